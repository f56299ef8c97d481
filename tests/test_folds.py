"""`train.py --folds`, `--train-on` and `--blind`: who is in which run, and what goes on."""

import json
import os
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

import train as train_front
from data import sources
from data.records import load
from pp_jax.config import TrainConfig, resolve
from pp_jax.evaluate.controls import fit_atlas
from pp_jax.finetune import runs
from tests.fronts import assert_refused, flags, front


@pytest.fixture
def fitted(monkeypatch):
    """The folders of the runs that were brought to their last step, by a `fit` that only notes."""
    folders = []
    monkeypatch.setattr(train_front.loop, "fit", lambda run, *args, **more: folders.append(run))
    return folders


def split_of(run):
    return json.loads((run / "splits.json").read_text())


def patients_of(data):
    records = sources.open_dataset("synthetic", data)
    return sorted({record.patient for record in records})


def test_folds_are_runs_whose_test_parts_are_all_patients_each_once(data, tmp_path, fitted):
    out = tmp_path / "cross"
    ended = front("train.py", *flags(data, out, folds=4))
    assert ended.code == 0, ended.err
    names = ["fold0", "fold1", "fold2", "fold3"]
    assert fitted == runs.read_folds(out) == [out / name for name in names]
    assert json.loads((out / "folds.json").read_text()) == {"runs": names}
    assert sorted(path.name for path in out.iterdir()) == [*names, "folds.json"]
    splits = [split_of(run) for run in fitted]
    assert sorted(chain.from_iterable(split["test"] for split in splits)) == patients_of(data)
    for fold, (run, split) in enumerate(zip(fitted, splits, strict=True)):
        assert sorted(chain.from_iterable(split.values())) == patients_of(data)
        assert min(map(len, split.values())) > 0
        held = runs.read_config(run)
        assert (held.folds, held.fold, held.out) == (4, fold, str(run))
        assert f"{run}: done" in ended.out


def test_the_atlas_of_a_fold_is_of_its_training_part(data, tmp_path, fitted):
    assert front("train.py", *flags(data, tmp_path / "cross", folds=3, fold=1)).code == 0
    (run,) = fitted
    train = set(split_of(run)["train"])
    samples = [
        load(record)
        for record in sources.open_dataset("synthetic", data)
        if record.patient in train and record.boxes
    ]
    want = fit_atlas(
        [(s.findings.shape, list(zip(s.objects, s.boxes, strict=True))) for s in samples]
    )
    for field, value in runs.read_atlas(run)._asdict().items():
        np.testing.assert_allclose(value, getattr(want, field), err_msg=field)


def test_one_fold_alone_is_the_same_run_and_names_them_all(data, tmp_path, fitted):
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    assert front("train.py", *flags(data, whole, folds=3)).code == 0
    assert front("train.py", *flags(data, alone, folds=3, fold=2)).code == 0
    assert fitted[3:] == [alone / "fold2"]
    assert runs.read_folds(alone) == [alone / f"fold{fold}" for fold in range(3)]
    assert split_of(alone / "fold2") == split_of(whole / "fold2")
    assert front("train.py", *flags(data, alone, folds=3, fold=0)).code == 0
    assert {path.name for path in alone.iterdir()} == {"folds.json", "fold0", "fold2"}


def test_a_cross_validation_that_was_killed_goes_on_by_the_same_command(
    data, tmp_path, monkeypatch
):
    """That a run resumes, and is left alone when it is done, are laws of a single one."""
    out, fitted = tmp_path / "cross", []

    def fit(run, *args, **more):
        fitted.append(run.name)
        (run / runs.METRICS).write_text('{"step": 1}\n')  # It has begun.
        if len(fitted) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_front.loop, "fit", fit)
    command = ("train.py", *flags(data, out, folds=3))
    assert front(*command).code == 130
    before = [(out / f"fold{fold}" / runs.SPLIT).stat().st_mtime_ns for fold in (0, 1)]
    ended = front(*command)
    assert ended.code == 0, ended.err
    assert fitted == ["fold0", "fold1", "fold0", "fold1", "fold2"]
    after = [(out / f"fold{fold}" / runs.SPLIT).stat().st_mtime_ns for fold in (0, 1)]
    assert before == after
    assert_refused(front(*command, "--seed", 1), "fold0", "other settings (seed: 0 -> 1)")


def test_a_folder_of_something_else_is_refused(data, tmp_path, fitted):
    out = tmp_path / "out"
    assert front("train.py", *flags(data, out)).code == 0
    assert_refused(front("train.py", *flags(data, out, folds=3)), str(out), "else than folds")
    out = tmp_path / "folds"
    assert front("train.py", *flags(data, out, folds=3)).code == 0
    refused = front("train.py", *flags(data, out, folds=4))
    assert_refused(refused, str(out), "holds 3 folds, not 4", "--folds 3")
    assert front("train.py", *flags(data, out, folds=4), "--force").code == 0
    assert len(runs.read_folds(out)) == 4
    assert len(runs.read_folds(tmp_path / "folds.old1")) == 3
    assert runs.read_folds(out / "fold0") == []


def test_folds_that_are_started_together_do_not_refuse_each_other(data, tmp_path, fitted):
    out = tmp_path / "cross"
    out.mkdir()
    (out / ".folds.json.0123").touch()  # Another machine is about to name it.
    assert front("train.py", *flags(data, out, folds=3, fold=1)).code == 0
    assert oct((out / "folds.json").stat().st_mode & 0o777) == oct(0o666 & ~umask())


def umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_what_train_on_does_not_name_is_kept_for_eval(real_data):
    records = sources.open_dataset("cxr_seg", real_data / "cxr_seg")
    settings = resolve(TrainConfig(data="cxr_seg", train_on="finding=COVID-19,SARS"))
    (share,) = train_front.share_out(settings, [records])
    found = {part: {record.label for record in own} for part, own in share.records.items()}
    assert found["train"] == {"COVID-19", "SARS"}
    assert found["validation"] <= found["train"]
    others = {"Pneumocystis", "ARDS", "Streptococcus", "No Finding", "Klebsiella", "Legionella"}
    assert found["test"] == others
    counts = {part: len(own) for part, own in share.records.items()}
    assert counts["train"] + counts["validation"] == 39 + 6
    assert counts["test"] == 61 - 45
    assert len(set(chain.from_iterable(share.patients.values()))) == 50


def test_images_that_no_part_has_are_counted(data, tmp_path, fitted, monkeypatch):
    records = sources.open_dataset("synthetic", data)
    views = sorted({record.facts.view for record in records})
    assert len(views) > 1
    # Two more images of the other view show someone who is trained on.
    seen = next(r.patient for r in records if r.facts.view == views[0])
    others = [r.id for r in records if r.facts.view != views[0] and r.patient != seen][:2]
    records = [replace(r, patient=seen) if r.id in others else r for r in records]
    monkeypatch.setattr(train_front.sources, "open_sets", lambda sets, limit=None: [records])
    trained = {record.patient for record in records if record.facts.view == views[0]}
    lost = sum(r.facts.view != views[0] and r.patient in trained for r in records)
    assert lost >= 2
    ended = front("train.py", *flags(data, tmp_path / "run", train_on=f"view={views[0]}"))
    assert ended.code == 0, ended.err
    assert f"{lost} images are left out" in ended.out


def test_a_wrong_hold_out_is_one_line(data, tmp_path, fitted):
    for told, named in (
        ("age=3", "finding, view, sex, dataset"),
        ("sex=X", "no image has sex 'X'"),
    ):
        out = tmp_path / "run"
        assert_refused(front("train.py", *flags(data, out, train_on=told)), told, named)
        assert not out.exists()


def test_a_blind_run_is_shown_one_grey(data, tmp_path, fitted):
    assert front("train.py", *flags(data, tmp_path / "run", recipe="edges"), "--blind").code == 0
    held = runs.read_config(tmp_path / "run")
    assert (held.filter, held.fusion, held.recipe, held.blind) == ("blank", "replace", "", False)
