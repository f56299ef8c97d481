"""Whom a run's weights have seen, and folders of runs that were begun and killed at once."""

import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from pp_jax import checkpoints
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig, resolve
from pp_jax.finetune import runs, start

FIRST = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
SECOND = {"train": ["d"], "validation": ["a", "c"], "test": ["b"]}
OTHER = {"train": ["x"], "validation": ["y"], "test": ["z"]}
DRAWN = [((9, 9), [(np.ones((4, 3), bool), (1.0, 2.0, 4.0, 6.0))])]


def settings_of(run: Path, **more) -> TrainConfig:
    return resolve(TrainConfig(**({"out": str(run), "data_dir": str(run.parent)} | more)))


def open_run(run: Path, parts: dict[str, list[str]] = FIRST, **more) -> Path:
    """Its patients are its images, with a `p` in front."""
    split = {part: [f"p{name}" for name in names] for part, names in parts.items()}
    return start.open_run(settings_of(run, **more), split=split, images=parts, outlines=DRAWN)


def told(run: Path) -> list[tuple[str, str, str]]:
    """Name, training images and training patients of a run and of those before it."""
    return [
        (Path(fit.run).name, "".join(fit.images["train"]), "".join(fit.patients["train"]))
        for fit in runs.lineage(run)
    ]


@pytest.fixture
def three(tmp_path):
    """A run, one that began from it, and one that began from that."""
    first = open_run(tmp_path / "first")
    second = open_run(tmp_path / "second", OTHER, init=str(first))
    return first, second, open_run(tmp_path / "third", OTHER, init=str(second))


LINEAGE = [("third", "x", "px"), ("second", "x", "px"), ("first", "ab", "papb")]


def test_a_run_knows_whom_its_weights_have_seen_when_those_runs_are_gone(three):
    first, second, third = three
    assert told(third) == LINEAGE
    shutil.rmtree(first)
    second.rename(second.with_name("moved"))
    assert told(third) == LINEAGE
    fit = runs.lineage(third)[2]
    assert (fit.images.keys(), fit.data_dir) == ({"train", "validation"}, str(first.parent))
    assert runs.read_images(third) == OTHER
    assert told(second.with_name("moved"))[1:] == [LINEAGE[2]]


def forget(run: Path) -> None:
    """As a run from before it was noted."""
    (run / runs.IMAGES).write_text(json.dumps(runs.read_images(run)))


def test_an_old_run_is_asked_of_its_folders_and_of_a_lost_one_that_is_said(three):
    first, second, third = three
    for run in (second, third):
        forget(run)
    assert told(third) == LINEAGE
    first.rename(first.with_name("moved"))
    with pytest.raises(CheckpointError, match=f"{second}: began from {first}, .*restore that"):
        runs.lineage(third)
    # Nor does one that is begun from it know.
    with pytest.warns(UserWarning, match=f"fourth: {second}: began from {first}"):
        fourth = open_run(first.with_name("fourth"), OTHER, init=str(third))
    with pytest.raises(CheckpointError, match=f"began from {first}"):
        runs.lineage(fourth)


def test_weights_were_fitted_on_nothing_here(tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    facts = {"files": {}, "kind": "converted", "variant": "tiny"}
    (weights / checkpoints.MANIFEST).write_text(json.dumps(facts))
    run = open_run(tmp_path / "run", checkpoint=str(weights))
    assert len(runs.lineage(run)) == 1
    forget(run)
    assert len(runs.lineage(run)) == 1
    assert runs.lineage(weights) == []


def test_a_validation_on_images_that_the_weights_have_seen_is_warned_of(tmp_path):
    first = open_run(tmp_path / "first")
    with pytest.warns(UserWarning, match=f"1 of 2 images of the val.*{first} was trained on"):
        open_run(tmp_path / "second", SECOND, init=str(first))
    # A copy is known by most of its images, and otherwise names are no more than names.
    copy = {"init": str(first), "data_dir": str(tmp_path / "copy")}
    with pytest.warns(UserWarning, match="1 of 2 images"):
        open_run(tmp_path / "third", SECOND, **copy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_run(tmp_path / "fourth", {**OTHER, "validation": ["a", "y"]}, **copy)
        open_run(tmp_path / "fifth", FIRST, init=str(first))


# Begun.


@pytest.mark.parametrize("last", ["splits.json", "images.json", "atlas.npz", "environment.json"])
def test_a_start_that_was_killed_goes_on_by_the_same_command(tmp_path, last):
    run = open_run(tmp_path / "run")
    whole = sorted(path.name for path in run.iterdir())
    order = ["splits.json", "images.json", "atlas.npz", "environment.json", "config.json"]
    for name in order[order.index(last) + 1 :]:
        (run / name).unlink()
    (run / "config.json.partial").write_text("{")
    open_run(run, OTHER)
    assert sorted(path.name for path in run.iterdir()) == whole
    assert runs.read_images(run) == OTHER


def test_a_folder_of_anything_else_is_refused(tmp_path):
    run = open_run(tmp_path / "run")
    (run / "config.json").unlink()
    (run / "holiday.png").touch()
    with pytest.raises(ValueError, match=f"--out {run}: not empty and no run"):
        open_run(run)


@pytest.mark.parametrize("process", [0, 1])
def test_folds_are_moved_aside_after_every_process_has_looked(tmp_path, monkeypatch, process):
    out, seen = tmp_path / "cross", []
    start.of_folds(settings_of(out, folds=3))

    def meet(name):
        seen.append(len(runs.read_folds(out)))
        if process == 1 and len(seen) == 1:  # What the first process does meanwhile.
            out.rename(out.with_name("cross.old1"))
            out.mkdir()
            (out / "folds.json").write_text('{"runs": ["fold0", "fold1"]}')

    monkeypatch.setattr(checkpoints, "meet", meet)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    assert len(start.of_folds(settings_of(out, folds=2, force=True))) == 2
    assert seen == [3, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cross", "cross.old1"]
