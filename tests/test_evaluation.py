"""Whole runs of `eval.py`, on a few small phantoms."""

import json
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import eval as eval_front
import train as train_front
from data.outlines import outlines
from data.records import Record, load
from data.rsna import read_rsna
from data.synthetic import generate
from pp_jax import checkpoints
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate import models
from pp_jax.evaluate import report as reporting
from pp_jax.evaluate.controls import fit_atlas, mean_shape
from pp_jax.evaluate.methods import METHODS, Told
from pp_jax.evaluate.metrics import dice
from pp_jax.evaluate.protocols import parse_protocols
from pp_jax.finetune import compared, runs
from tests.fronts import assert_refused, finish, flags, front, start, table

LABELS = {name: row.label for name, row in METHODS.items()}
SWAP = "plain, another patient's image"
CLUSTERED = "k-means refine=fill_holes"
QUICK = ("--samples", 200, "--pictures", 0, "--confidence", "stability")


def recast(run: Path, folder: Path, **choices: object) -> Path:
    """The run under another name, as if it had been trained with other choices."""
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"out": str(folder)} | choices))
    return folder


def patients_tested(run: Path) -> set[str]:
    """The patients of a run's test part."""
    return set(json.loads((run / "splits.json").read_text())["test"])


def rows_of(out: Path, file: str = "images.csv", **wanted: str) -> list[dict[str, str]]:
    """Those rows of a report whose columns have these values."""
    return [row for row in table(out / file) if wanted.items() <= row.items()]


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Reports without plots, which take longer than all else and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting.pictures, "illustrate", lambda folder, evidence, found: found)
        yield


# Several models beside each other, and the same again.


@pytest.fixture(scope="module")
def several(run, converted, tmp_path_factory):
    """Flags that compare two seeds of a run with converted weights and some guesses."""
    folder = tmp_path_factory.mktemp("several")
    seeds = "+".join(str(recast(run, folder / name, seed=n)) for n, name in enumerate("ab"))
    names = (f"mine={seeds}", f"plain={converted}", "mean_shape", "atlas", CLUSTERED, "swap")
    return ("--methods", *names, "--prompt", "box,point,none", *QUICK)


@pytest.fixture(scope="module")
def report(several, compiled, tmp_path_factory):
    jax.clear_caches()  # What others compiled, with all optimisations, rounds otherwise.
    out = tmp_path_factory.mktemp("reports") / "several"
    ended = front("eval.py", *several, "--out", out)
    assert ended.code == 0, ended.err
    return out, ended.out


def test_all_models_are_scored_on_the_test_patients_of_the_run_and_on_no_others(report, run, data):
    own = [record for record in read_rsna(data) if record.patient in patients_tested(run)]
    assert len({record.patient for record in own}) < len({r.patient for r in read_rsna(data)})
    for prompt, wanted in (
        ("none", [record.id for record in own]),
        ("point", [record.id for record in own if record.boxes]),
    ):
        assert len(wanted) > 1
        for method in ("mine", "plain", SWAP, LABELS["atlas"]):
            choice = {"method": method, "protocol": prompt, "choice": "model"}
            scored = [row["id"] for row in rows_of(report[0], **choice)]
            assert sorted(set(scored)) == sorted(wanted)
    assert (
        f"scoring {len(own)} images of {len(patients_tested(run))} patients, part: test"
        in report[1]
    )


def test_two_seeds_are_two_rows_of_an_image_and_one_line_of_a_table(report):
    out, _ = report
    choice = {"method": "mine", "protocol": "box", "choice": "model"}
    rows = rows_of(out, **choice)
    assert [row["seed"] for row in rows] == ["a"] * (len(rows) // 2) + ["b"] * (len(rows) // 2)
    assert [row["id"] for row in rows[: len(rows) // 2]] == [
        row["id"] for row in rows[len(rows) // 2 :]
    ]
    lines = (out / "table.md").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("| method "))
    names = [line.split("|")[1].strip() for line in lines[first + 2 : lines.index("", first)]]
    assert [name for name in names if name.startswith("mine")].count("mine") == 1
    heads = [cell.strip() for cell in lines[first].split("|")]
    cells = dict(zip(heads, (c.strip() for c in lines[first + 2].split("|")), strict=True))
    assert (cells["method"], cells["seeds"]) == ("mine", "2")
    patients = {row["patient"] for row in rows}
    means = [np.mean([float(r["dice"]) for r in rows if r["patient"] == one]) for one in patients]
    assert float(cells["Dice [95 %]"].split()[0]) == pytest.approx(np.mean(means), abs=6e-4)


def test_a_refined_classical_method_is_scored_on_the_images_of_the_models(report):
    label = f"{LABELS['k-means']} refine=fill_holes"
    for prompt in ("box", "point", "none"):
        own, other = (
            [row["id"] for row in rows_of(report[0], method=name, protocol=prompt, choice="model")]
            for name in (label, "plain")
        )
        assert own == other
        assert own
    assert f"| {label} " in report[1]


def test_every_object_has_a_row_of_its_own(report, data):
    records = {record.id: record for record in read_rsna(data)}
    rows = rows_of(report[0], "results.csv", method="plain", protocol="box", choice="model")
    counts = {row["id"]: sum(r["id"] == row["id"] for r in rows) for row in rows}
    assert counts == {name: len(load(records[name]).objects) for name in counts}
    assert len(rows) > len(counts)


def test_exchanged_images_change_the_answer_and_not_the_prompt(report):
    own, other = (
        rows_of(report[0], "results.csv", method=name, protocol="box", choice="model")
        for name in ("plain", SWAP)
    )
    same = ("id", "object", "area", "contrast")
    assert [[row[k] for k in same] for row in own] == [[row[k] for k in same] for row in other]
    assert [row["predicted_iou"] for row in own] != [row["predicted_iou"] for row in other]


def test_stored_prompts_are_the_boxes_and_clicks_of_the_objects(report, data):
    stored = json.loads((report[0] / "prompts.json").read_text())["prompts"]
    assert set(stored) == {"box", "point", "none"}
    records = {record.id: record for record in read_rsna(data)}
    for name, drawn in stored["box"].items():
        sample = load(records[name])
        assert drawn["boxes"] == sample.boxes.tolist()
        clicks = np.array(stored["point"][name]["points"])
        for pixels, (x, y) in zip(sample.objects, clicks[:, 0].astype(int), strict=True):
            assert pixels[y, x]


def assert_mean_shape_scores(out, data, atlas_for) -> None:
    """The control's Dice is that of what `atlas_for` a patient pastes into the exact boxes."""
    records = {record.id: record for record in read_rsna(data)}
    scored = rows_of(out, method=LABELS["mean_shape"], protocol="box")
    assert len(scored) > 1
    for row in scored[:3]:
        sample = load(records[row["id"]])
        shape = mean_shape(sample.findings.shape, sample.boxes, atlas=atlas_for(row["patient"]))
        assert float(row["dice"]) == pytest.approx(dice(shape, sample.findings))


def test_the_mean_shape_is_that_of_the_training_part(report, run, data):
    split = json.loads((run / "splits.json").read_text())
    atlas = fit_atlas(outlines([r for r in read_rsna(data) if r.patient in split["train"]]))
    assert_mean_shape_scores(report[0], data, lambda patient: atlas)


def untimed(path: Path) -> list[list[str]]:
    """The lines as cells, without the column of times."""
    kept, timed = [], None
    for line in path.read_text().splitlines():
        cells = [cell.strip(" -:") for cell in line.split("|")]
        if "seconds per image" in cells:
            timed = cells.index("seconds per image")
        timed = timed if line.startswith("|") else None
        kept.append([cell for index, cell in enumerate(cells) if index != timed])
    return kept


def test_killed_in_the_middle_and_started_again_it_gives_the_same_files(
    report, several, compiled, tmp_path, monkeypatch
):
    out, kept = tmp_path / "killed", []
    book = tmp_path / "killed.partial" / "journal.jsonl"
    process = start(compiled, *several, "--out", out, name="eval.py")
    while process.poll() is None and not (book.is_file() and book.read_text().count("\n") > 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    assert not out.exists()
    held = book.read_bytes()
    done = held.count(b"\n")
    settings = json.loads((book.parent / "settings.json").read_text())
    assert settings["primary"] == {"metric": "dice", "protocol": "box"}
    close = eval_front.journal.close
    monkeypatch.setattr(
        eval_front.journal, "close", lambda book: close(kept.append(book.path.read_bytes()) or book)
    )
    ended = front("eval.py", *several, "--out", out)
    assert ended.code == 0, ended.err
    assert kept[0].startswith(held[: held.rindex(b"\n") + 1])  # Nothing is scored again.
    assert 2 < done < len(rows_of(report[0], protocol="none", choice="model"))
    for name in ("results.csv", "images.csv", "prompts.json", "settings.json"):
        assert (out / name).read_bytes() == (report[0] / name).read_bytes(), name
    assert untimed(out / "table.md") == untimed(report[0] / "table.md")
    assert not book.parent.exists()
    assert not (out / "journal.jsonl").exists()


def test_stored_prompts_give_the_same_figures_under_another_seed(
    report, several, compiled, tmp_path
):
    """What a seed draws beside them, exchanged images and intervals, is another's."""
    again = ("--prompts", report[0] / "prompts.json", "--seed", 1, "--out", tmp_path / "again")
    less = [part for part in several if part != "swap"]
    ended = front("eval.py", *less, *again)
    assert ended.code == 0, ended.err
    stored = [json.loads((x / "prompts.json").read_text()) for x in (report[0], tmp_path / "again")]
    assert stored[0]["prompts"] == stored[1]["prompts"]
    for name in ("results.csv", "images.csv"):
        want = [row for row in table(report[0] / name) if "another" not in row["method"]]
        assert table(tmp_path / "again" / name) == want


# One model.


def test_on_other_data_everything_is_test_and_a_blind_twin_stands_beside(run, compiled, tmp_path):
    mine = recast(run, tmp_path / "mine")
    recast(run, tmp_path / "mine-blind", filter="blank")
    other, out = generate(tmp_path / "set", images=6, seed=1, side=256, workers=0), tmp_path / "out"
    asked = ("--data-dir", other, "--out", out, "--prompt", "point", "--filter", "sobel")
    ended = front("eval.py", "--checkpoint", mine, *asked, *QUICK)
    assert ended.code == 0, ended.err
    records = [record for record in read_rsna(other) if record.boxes]
    scored = rows_of(out, choice="model", protocol="point")
    twin = "mine, blind twin"
    unasked = [line.label for line in METHODS.values() if line.default]
    for method in ("mine", twin, "mine, another patient's image", *unasked):
        if method not in (LABELS["swap"], LABELS["blind"]):
            assert {r["id"] for r in scored if r["method"] == method} == {r.id for r in records}
    boxes = rows_of(out, protocol="box")
    assert {LABELS["box"], LABELS["mean_shape"]} <= {row["method"] for row in boxes}
    assert LABELS["k-means"] not in {row["method"] for row in scored}
    assert twin not in {row["method"] for row in boxes}
    models = json.loads((out / "settings.json").read_text())["models"]
    assert {(model["kind"], model["look"]["filter"]) for model in models} == {
        ("model", "sobel"),
        ("swap", "sobel"),
        ("blind", "blank"),
    }


def test_weights_alone_are_scored_on_everything_beside_the_shape_of_other_patients(
    converted, data, compiled, tmp_path
):
    out, csv = tmp_path / "report", tmp_path / "boxes" / "submission.csv"
    asked = ("--data-dir", data, "--out", out, "--prompt", "none", "--kaggle-submission", csv)
    named = ("--methods", converted, "mean_shape", "box")
    ended = front("eval.py", *named, *asked, *QUICK)
    assert ended.code == 0, ended.err
    records = read_rsna(data)
    names = [row["id"] for row in rows_of(out, method="tiny", choice="model")]
    assert sorted(names) == sorted(record.id for record in records)
    assert {row["protocol"] for row in rows_of(out, method=LABELS["mean_shape"])} == {"box"}

    def fitted_on_others(patient):
        return fit_atlas(outlines([r for r in records if r.patient != patient]))

    assert_mean_shape_scores(out, data, fitted_on_others)
    held = {one["id"]: one for one in json.loads((out / "detections.json").read_text())}
    submitted = {row["patientId"]: row["PredictionString"].split() for row in table(csv)}
    assert submitted.keys() == held.keys() == set(names)
    assert {name: len(words) // 5 for name, words in submitted.items()} == {
        name: len(one["boxes"]) for name, one in held.items()
    }
    assert any(submitted.values())


@pytest.fixture
def cross(run, data, tmp_path, monkeypatch):
    """A cross-validation whose folds have the weights of the run."""

    def fit(fold: Path, *args: object, **options: object) -> None:
        for name in ("base", "steps"):
            shutil.copytree(run / name, fold / name)

    monkeypatch.setattr(train_front.loop, "fit", fit)
    assert front("train.py", *flags(data, tmp_path / "cross", folds=2)).code == 0
    return tmp_path / "cross"


def test_each_patient_of_a_cross_validation_is_scored_once_by_the_fold_that_did_not_see_them(
    cross, data, compiled, tmp_path
):
    out = tmp_path / "report"
    opened, asked = [], set()

    def load(folder, **options):
        opened.append(folder.name)
        return runs.load(folder, **options)

    def answers(model, subject, drawn):
        asked.add((opened[-1], subject.patient))
        return models.answers(model, subject, drawn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared, "runs", SimpleNamespace(**vars(runs) | {"load": load}))
        patch.setattr(compared, "answers", answers)
        named = ("--methods", cross, "atlas", "--prompt", "none", "--out", out)
        ended = front("eval.py", *named, *QUICK)
    assert ended.code == 0, ended.err
    rows = rows_of(out, method="cross", choice="model")
    assert sorted(row["id"] for row in rows) == sorted(record.id for record in read_rsna(data))
    assert {row["seed"] for row in rows} == {""}
    assert opened == ["fold0", "fold1"]
    for fold in opened:
        assert {patient for name, patient in asked if name == fold} == patients_tested(cross / fold)


# What is not to be scored.


def test_a_copy_of_a_runs_data_is_scored_without_whom_it_was_fitted_on(run, data, tmp_path):
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    with pytest.warns(UserWarning, match="images are left out"):
        everything, served = opened_records(run, data_dir=copy)
    assert {r.patient for r in everything if r.id in served} == patients_tested(run)


def test_of_its_training_part_a_run_is_scored_on_the_images_that_it_had(copied, data):
    images = json.loads((copied / "images.json").read_text())
    left_out, *kept = images["train"]
    (copied / "images.json").write_text(json.dumps(images | {"train": kept}))
    assert opened_records(copied, data_dir=data, part="train")[1] == frozenset(kept)
    assert left_out in opened_records(copied, data_dir=data, part="all")[1]


def test_whom_a_run_began_from_was_trained_on_is_not_tested(run, data, tmp_path):
    """As if it had been trained again from that run, with the parts dealt out anew."""
    later = recast(run, tmp_path / "later", checkpoint=str(run))
    parts = ("train", "validation", "test")
    for file in ("splits.json", "images.json"):
        held = json.loads((later / file).read_text())
        everyone = sorted(name for part in parts for name in held[part])
        (later / file).write_text(json.dumps({**held, "test": everyone}))
    facts = json.loads((later / "environment.json").read_text())
    facts["splits_sha256"] = checkpoints.sha256(later / "splits.json")
    (later / "environment.json").write_text(json.dumps(facts))
    with pytest.warns(UserWarning, match=f"left out: {run} was trained"):
        everything, served = opened_records(later, data_dir=data)
    assert {r.patient for r in everything if r.id in served} == patients_tested(run)
    assert len(opened_records(later, data_dir=data, part="all")[1]) == len(everything)


def opened_records(run: Path, *, data_dir: Path, part: str = "test"):
    """All records, and the images of them that the run may be scored on."""
    settings = EvalConfig(data="synthetic", data_dir=str(data_dir), part=part)
    entries, _ = compared.line_up([Told("r", (str(run),), {}, ())], settings, twins=False)
    everything, served = eval_front.open_records(settings, entries)
    return everything, served[run]


def test_a_limit_counts_patients_who_can_be_scored():
    """Those without a box are not, where there is nothing to mark."""
    everything = [
        Record(name, name, Path(name), ((0, 0, 9, 9),) * n, Path(name), "mask", "")
        for n, name in zip((0, 1, 0, 1, 1), "abcde", strict=True)
    ]
    for prompt, wanted in (("point", "bd"), ("point,none", "ab"), ("none", "ab")):
        settings = EvalConfig(prompt=prompt, limit=2)
        protocols = parse_protocols(prompt)
        allowed = frozenset("abcde")
        chosen = eval_front.choose(everything, protocols, settings, allowed=allowed)
        assert "".join(record.id for record in chosen) == wanted


# Mistakes.


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (("--methods", "elipse"), ("--methods elipse: no such folder", "ellipse", "train.py")),
        (("--checkpoint", "nowhere"), ("--checkpoint nowhere: no such folder", "runs/...")),
        (("--prompt", "circle"), ("protocol 'circle' is unknown", "scribble")),
        (("--prompt", "box,clicks:99"), ("'clicks:99'", "from 1 to 10")),
        (("--prompt", "box,box"), ("box is given twice",)),
        (("--primary", "dise@box"), ("'dise@box'", "METRIC@PROTOCOL", "nsd_1")),
        (("--primary", "dice@circle"), ("protocol 'circle' is unknown", "scribble")),
        (("--confidence", "sure"), ("--confidence 'sure'", "stability, jitter")),
        (("--by", "height"), ("--by 'height'", "view, sex, age")),
        (("--samples", 10), ("--samples 10", "at least 100")),
        (("--primary", "dice@point"), ("--primary dice@point: point is not among", "box")),
        (("--kaggle-submission", "x.csv"), ("--prompt box: no RSNA score", "none or auto")),
        (("--prompts", "nowhere.json"), ("nowhere.json: no such file of prompts",)),
        (("--methods", "swap", "--limit", 1), ("1 patient", "leave the method swap out")),
        (("--checkpoint", "x", "--methods", "y"), ("--checkpoint x beside models",)),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_the_choices(run, tmp_path, asked, named):
    own = () if {"elipse", "nowhere", "x"} & set(asked) else ("--checkpoint", run)
    assert_refused(front("eval.py", *own, *asked, "--out", tmp_path / "out"), *named)
    assert not list(tmp_path.iterdir())
