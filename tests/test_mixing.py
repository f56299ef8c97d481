"""Several data sets in one run: their names, folders, splits and shares."""

import json
from itertools import chain, islice
from pathlib import Path

import pytest

import train as train_front
from data import sources
from data.held_out import Fitted, find_sets, unseen
from data.rsna import read_rsna
from data.synthetic import generate
from pp_jax.config import TrainConfig, differences, resolve
from tests.fronts import assert_refused, front


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sets of phantoms, whose patients go by the same names."""
    root = tmp_path_factory.mktemp("sets")
    return [
        generate(root / name, images=14, seed=n, side=64, workers=0) for n, name in enumerate("ab")
    ]


def joined(folders):
    return ",".join(map(str, folders))


# Names.


def test_one_set_has_no_name_and_its_folder_may_hold_a_comma():
    assert sources.name_sets("rsna", "a,b") == {"": ("rsna", Path("a,b"))}


def test_several_sets_go_by_their_names_and_a_second_of_a_kind_by_a_number():
    got = sources.name_sets("folder,rsna,folder,folder", "a,b,c,d")
    assert got == {
        "folder": ("folder", Path("a")),
        "rsna": ("rsna", Path("b")),
        "folder2": ("folder", Path("c")),
        "folder3": ("folder", Path("d")),
    }


@pytest.mark.parametrize(
    ("data", "where", "message"),
    [
        ("rsna,brain", "a,b", "unknown data set 'brain'; choose from synthetic"),
        ("rsna,brain_seg", "a", "--data-dir a: 1 folders for the 2 data sets"),
        ("folder,folder", "a,./a", "share pictures, so that a patient"),
        ("rsna,nih", "a,b", r"rsna \(a\) and nih \(b\) share pictures of nih-chestxray14"),
        ("cxr_seg,rsna_like", "a,b", "share pictures of covid-chestxray-dataset"),
    ],
)
def test_sets_that_cannot_be_mixed_are_refused(data, where, message):
    with pytest.raises(ValueError, match=message):
        sources.name_sets(data, where)


def test_images_and_patients_of_several_sets_keep_apart(folders):
    opened = sources.open_sets(sources.name_sets("synthetic,synthetic", joined(folders)))
    for alias, records, folder in zip(("synthetic", "synthetic2"), opened, folders, strict=True):
        plain = read_rsna(folder)
        assert [r.id for r in records] == [f"{alias}.{r.id}" for r in plain]
        assert [r.patient for r in records] == [f"{alias}.{r.patient}" for r in plain]
        assert {r.dataset for r in records} == {alias}
    patients = [{r.patient for r in records} for records in opened]
    assert not patients[0] & patients[1]
    assert {r.patient for r in read_rsna(folders[0])} & {r.patient for r in read_rsna(folders[1])}


# Choices.


@pytest.mark.parametrize("mix", ["2", "2,1,1", "2,0", "2,-1", "2,1.5", "2,x", "2,1001", "2,"])
def test_shares_other_than_a_whole_number_for_each_set_are_refused(mix):
    with pytest.raises(ValueError, match=f"--mix {mix}: give a whole number from 1 to 1000"):
        resolve(TrainConfig(data="rsna,brain_seg", mix=mix))


def test_shares_of_a_single_set_are_refused():
    with pytest.raises(ValueError, match=r"--mix 2,1: .* each of the 1 data sets of --data rsna"):
        resolve(TrainConfig(data="rsna", mix="2,1"))


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_balance_with_prompts_is_refused(prompt):
    with pytest.raises(
        ValueError, match=f"--balance with --prompting {prompt}: .*--prompting none"
    ):
        resolve(TrainConfig(balance=True, prompting=prompt))


def test_mixes_and_balance_make_other_runs_with_other_names():
    asked = [
        {},
        {"mix": "2,1"},
        {"mix": "1,2"},
        {"balance": True},
        {"mix": "2,1", "balance": True},
    ]
    made = [resolve(TrainConfig(data="rsna,brain_seg", prompting="none", **more)) for more in asked]
    assert len({run.out for run in made}) == len(made)
    assert made[0].out == "runs/tiny-rsna,brain_seg-none-none"
    assert made[0].data_dir == "datasets/rsna,datasets/brain_seg"
    assert set(differences({}, made[4])) >= {"mix", "balance"}


# Runs.


@pytest.fixture(scope="module")
def mixed(folders, tmp_path_factory):
    """What the loop is given by a run on both sets, and the run's folder."""
    fed, out = [], tmp_path_factory.mktemp("runs") / "mixed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train_front.loop, "fit", lambda run, settings, feed, **options: fed.append(feed)
        )
        names = ("--data", "synthetic,synthetic", "--data-dir", joined(folders))
        shares = ("--mix", "2,1", "--balance", "--prompt", "none", "--batch", 6)
        ended = front("train.py", *names, *shares, "--out", out)
    assert ended.code == 0, ended.err
    return fed[0], out


def test_a_run_on_two_sets_trains_on_their_shares_and_validates_on_both(mixed, folders):
    feed, out = mixed
    split = json.loads((out / "splits.json").read_text())
    names = ("synthetic", "synthetic2")
    counts = {}
    for part, patients in split.items():
        assert len(patients) == len(set(patients))
        counts[part] = [
            sum(f"{name}.{r.patient}" in patients for r in read_rsna(folder))
            for name, folder in zip(names, folders, strict=True)
        ]
    assert [sum(each) for each in zip(*counts.values(), strict=True)] == [14, 14]
    assert all(min(each) > 0 for each in counts.values())
    assert feed.epoch_steps == sum(counts["train"]) // 6
    first = counts["train"][0]  # Rows of the first set come first.
    for batch in islice(feed.train(0), 6):
        assert sum(row < first for row in batch.index) == 4
        assert batch.targets.any((1, 2, 3)).tolist() == [True, False] * 3
    shown = [row for batch in feed.validation() for row in batch.index if row >= 0]
    assert shown == list(range(sum(counts["validation"])))


def test_a_run_on_two_sets_is_scored_on_its_test_patients_of_both_or_of_one(mixed, folders):
    out = mixed[1]
    split, images = (
        json.loads((out / f"{name}.json").read_text()) for name in ("splits", "images")
    )
    run = Fitted("mixed", sources.name_sets("synthetic,synthetic", joined(folders)), split, images)
    test = {
        f"{alias}.{record.id}"
        for alias, folder in zip(("synthetic", "synthetic2"), folders, strict=True)
        for record in read_rsna(folder)
        if f"{alias}.{record.patient}" in split["test"]
    }
    assert {name.partition(".")[0] for name in test} == {"synthetic", "synthetic2"}
    second = {name for name in test if name.startswith("synthetic2.")}
    for data, where, wanted in (
        ("synthetic,synthetic", joined(folders), test),
        ("synthetic", str(folders[1]), second),
    ):
        sets = find_sets(sources.name_sets(data, where), [run.sets])
        everything = list(chain(*sources.open_sets(sets)))
        assert unseen(everything, sets, run, part="test") == wanted


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_an_unknown_data_set_is_refused_before_anything_is_read(name, tmp_path):
    ended = front(name, "--data", "synthetic,tombs", "--data-dir", tmp_path / "nowhere")
    assert_refused(ended, "unknown data set 'tombs'", "brain_seg")
