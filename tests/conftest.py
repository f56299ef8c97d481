"""Fixtures shared by all tests."""

import importlib.util
import os
from pathlib import Path

# With a worker on each core, torch's threads would only wait for one another, busily. Torch reads
# this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")

# On an accelerator machine with jax alone (`make gpu-check`) the fronts cannot be imported.
pytest_plugins = ["tests.fronts"] if importlib.util.find_spec("grain") else []

# Files that take a minute or so each: begun last, one would keep a process while the other idles.
_LONG = (
    "test_sharding",
    "test_embeddings",
    "test_evaluation",
    "test_training",
    "test_networks",
    "test_predict_cli",
    "test_front_mistakes",
    "test_policies",
    "test_runs",
)

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, in that order; otherwise the order stays."""
    order = {stem: place for place, stem in enumerate(_LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images: `PP_TEST_DATA`, or `../shared/data` if it is there."""
    folder = Path(os.environ.get("PP_TEST_DATA", _BESIDE))
    if not folder.is_dir():
        reason = f"no real data: set PP_TEST_DATA to their folder ({folder} is none)"
        if os.environ.get("PP_TEST_DATA"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
