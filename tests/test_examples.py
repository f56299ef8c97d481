"""Examples in docstrings and pages give what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("pp_jax", "data", "convert")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text()
)


def test_examples_are_found() -> None:
    assert {"pp_jax.tree", "pp_jax.evaluate.metrics", "data.splits"} <= set(MODULES)
    assert len(MODULES) >= 8


@pytest.mark.parametrize("name", MODULES)
def test_an_example_gives_what_it_shows(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted
    assert not done.failed
