"""Training from embeddings computed once: the same as from images, and never from wrong ones."""

import json
from pathlib import Path

import numpy as np
import pytest

import train as train_front
from data import cache
from pp_jax.config import TrainConfig, resolve
from pp_jax.finetune.embeddings import check_fixed
from tests.fronts import assert_refused, flags, front, rows


@pytest.fixture(scope="module")
def embedded(compiled, data, run, tmp_path_factory):
    """Where the shared run was trained again, from embeddings."""
    folder = tmp_path_factory.mktemp("embedded")
    ended = front(
        "train.py",
        *flags(data, folder / "run", embeddings="float32", cache_dir=folder / "cache"),
    )
    assert ended.code == 0, ended.err
    return folder


READY = "the embeddings are there"


@pytest.fixture
def unfitted(monkeypatch):
    """Embeddings are computed, and nothing is trained from them: that compiles another step."""

    def stop(*args, **options):
        raise ValueError(READY)

    monkeypatch.setattr(train_front.loop.recipe, "step_of", stop)


def caches(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (folder / "cache").glob("*/about.json")]


def test_losses_are_those_of_the_run_from_images(run, embedded):
    """Rounding alone differs: the encoder is another program."""
    mine = rows(embedded / "run")
    assert len(mine) == len(rows(run))
    for row, other in zip(mine, rows(run), strict=True):
        for name in {*other} - {"seconds", "split"}:
            assert row[name] == pytest.approx(other[name], rel=1e-3), name


def test_a_second_run_computes_none_and_a_changed_filter_all(data, embedded, unfitted):
    folder = embedded
    more = {"embeddings": "float32", "cache_dir": folder / "cache", "seed": 0}
    again = front("train.py", *flags(data, folder / "again", **more))
    assert_refused(again, READY)
    assert "0 are computed now" in again.out
    assert len(caches(folder)) == 1
    other = front("train.py", *flags(data, folder / "other", filter="sobel", **more))
    assert ": 0 of" in other.out
    assert len(caches(folder)) == 2
    assert {about["filter"] for about in caches(folder)} == {
        "none",
        "sobel:aperture=3:part=magnitude:norm=l2",
    }
    assert len({about["weights"] for about in caches(folder)}) == 1


def test_an_interrupted_computation_goes_on(data, embedded, unfitted, tmp_path, monkeypatch):
    monkeypatch.setattr("data.embedded._SHARD", 4)
    written = []

    def add_one(*args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(args)
        return cache.add(*args)

    more = {"embeddings": "bfloat16", "cache_dir": tmp_path / "cache"}
    with monkeypatch.context() as patch:
        patch.setattr("data.embedded.add", add_one)
        assert front("train.py", *flags(data, tmp_path / "run", **more)).code == 130
    again = front("train.py", *flags(data, tmp_path / "run", **more))
    assert_refused(again, READY)
    assert "embeddings: 8 of" in again.out
    whole = cache_of(embedded / "cache", "float32")
    half = cache_of(tmp_path / "cache", "bfloat16")
    assert set(half.places) == set(whole.places)
    for name in half.places:
        exact, kept = (np.asarray(cache.read(c, name), np.float32) for c in (whole, half))
        np.testing.assert_allclose(kept, exact, rtol=2**-8, atol=1e-6)


def cache_of(folder: Path, dtype: str) -> cache.Cache:
    """The one of unfiltered images."""
    for path in folder.glob("*/about.json"):
        about = json.loads(path.read_text())
        if about["filter"] == "none":
            shape = tuple(about.pop("shape"))
            assert about.pop("dtype") == dtype
            return cache.open_cache(folder, about=about, shape=shape, dtype=dtype)
    raise AssertionError(folder)


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"trainable": "full"}, "--trainable full"),
        ({"augment": "light"}, "--augment light"),
        ({"fusion": "learned", "filter": "sobel"}, "--fusion learned"),
    ],
)
def test_what_changes_embeddings_is_refused(choices, named):
    settings = resolve(TrainConfig(embeddings="float32", **({"trainable": ""} | choices)))
    with pytest.raises(ValueError, match=f"--embeddings with {named}"):
        check_fixed(settings)


def test_too_little_space_is_said_before_the_work(data, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    more = {"embeddings": "float32", "cache_dir": tmp_path / "cache"}
    ended = front("train.py", *flags(data, tmp_path / "run", **more))
    assert_refused(ended, "GiB of embeddings", "--cache-dir", "bfloat16")
