"""Whole runs of `train.py` and `eval.py`, on a few small phantoms."""

import contextlib
import csv
import dataclasses
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import convert.__main__
import eval as eval_front
import train as train_front
from data.records import load, object_crops, split_patients
from data.rsna import read_rsna
from data.synthetic import generate
from pp_jax import checkpoints
from pp_jax.config import TrainConfig, resolve
from pp_jax.evaluate.controls import CONTROLS, fit_mean_shape, mean_shape
from pp_jax.evaluate.methods import METHODS
from pp_jax.evaluate.metrics import dice
from pp_jax.sam import VARIANTS
from tests import official
from tests.dicom_files import HEADER, write_dicom, write_set

ROOT = Path(__file__).resolve().parents[1]
STEPS = 4
FRONTS = {"train.py": train_front, "eval.py": eval_front}


class Ended(NamedTuple):
    """What is left of a program."""

    code: int
    out: str
    err: str


def front(name: str, *args: object) -> Ended:
    """A front's `main` in this process, whose compilations the cache keeps."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, args)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                FRONTS[name].main()
            except SystemExit as end:
                code = end.code
    return Ended(code, out.getvalue(), err.getvalue())


def start(cache: Path, *args: object, **environment: str) -> subprocess.Popen:
    """`python train.py` as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "train.py", *map(str, args)],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        }
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Ended:
    out, err = process.communicate()
    return Ended(process.returncode, out, err)


def flags(data: Path, run: Path, **more: object) -> list[str]:
    choices = {"data_dir": data, "out": run, "steps": STEPS, "batch": 4, "save_every": 2}
    choices |= {"trainable": "decoder", "keep": 3} | more
    return [part for k, v in choices.items() for part in (f"--{k.replace('_', '-')}", str(v))]


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def held(run: Path, step: int) -> list[np.ndarray]:
    """All arrays of a step's checkpoint: parameters, moments, counters."""
    folder = run / "steps" / f"{step:08d}" / "tree"
    with ocp.PyTreeCheckpointer() as reader:
        shapes = reader.metadata(folder.absolute()).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return jax.tree.leaves(reader.restore(folder.absolute(), restore_args=plain))


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = held(one, STEPS), held(other, STEPS)
    assert len(ours) == len(theirs) > 300
    for leaf, again in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(leaf, again)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compilations of this module, shared by this process and those that it starts.

    They are made in a hurry: a few steps need no fast program.
    """
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_disable_most_optimizations", True)
    compilation_cache.reset_cache()
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_disable_most_optimizations", False)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    return generate(folder, images=20, seed=0, side=256, workers=0)


@pytest.fixture(scope="module")
def trained(cache, data, tmp_path_factory):
    """A run that nothing interrupted, and what it said."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    ended = finish(start(cache, *flags(data, run), JAX_LOG_COMPILES="1"))
    assert ended.code == 0, ended.err
    return run, ended


@pytest.fixture(scope="module")
def run(trained):
    return trained[0]


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Converted weights of an official model with random tensors."""
    folder = tmp_path_factory.mktemp("weights")
    sam = official.randomise(official.build(VARIANTS["tiny"]), seed=0)
    torch.save(sam.state_dict(), folder / "tiny.pth")
    convert.__main__.convert(folder / "tiny.pth", folder / "tiny", preprocess="sam")
    return folder / "tiny"


# A run.


def test_a_run_leaves_its_files(run):
    present = {path.name for path in run.iterdir()}
    assert present == {
        "config.json",
        "environment.json",
        "split.json",
        "atlas.npz",
        "base",
        "steps",
        "metrics.jsonl",
        "learning_curve.png",
    }
    assert sorted(path.name for path in (run / "steps").iterdir()) == ["00000002", "00000004"]
    with Image.open(run / "learning_curve.png") as picture:
        assert picture.width == 1200
    assert json.loads((run / "environment.json").read_text())["jax"] == jax.__version__


def test_the_log_has_a_row_per_step_and_per_validation(run):
    assert [(row["step"], row["split"]) for row in rows(run)] == [
        (1, "train"),
        (2, "train"),
        (2, "validation"),
        (3, "train"),
        (4, "train"),
        (4, "validation"),
    ]
    for row in rows(run):
        loss = 20 * row["focal"] + row["dice"] + row["iou_mse"]
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
        assert 0 < row["loss"] < 50
        assert 0 <= row["dice_metric"] <= 1
        assert "prompt_is_target" not in row


def test_the_config_is_complete(run, data):
    config = json.loads((run / "config.json").read_text())
    assert config.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert resolve(TrainConfig(**config)) == TrainConfig(**config)
    assert (config["data_dir"], config["steps"], config["batch"]) == (str(data), STEPS, 4)


def test_the_split_stands_in_the_run_and_shares_no_patient(run, data):
    split = json.loads((run / "split.json").read_text())
    assert split == {k: list(v) for k, v in split_patients(read_rsna(data), seed=0).items()}
    names = [name for part in split.values() for name in part]
    assert len(names) == len(set(names))


def test_step_and_validation_are_compiled_once(trained):
    said = trained[1].err
    assert said.count("Finished XLA compilation of jit(step)") == 1
    assert said.count("Finished XLA compilation of jit(terms)") == 1


def test_the_frozen_leaves_are_written_once_and_the_steps_hold_the_rest(run):
    sizes = {
        name: sum(path.stat().st_size for path in (run / name).rglob("*") if path.is_file())
        for name in ("base", "steps/00000002")
    }
    # Float32: 3.5 M in encoder and prompt encoder; 4.1 M in the decoder and twice that in moments.
    assert sizes["base"] == pytest.approx(4 * 3.5e6, rel=0.2)
    assert sizes["steps/00000002"] == pytest.approx(3 * 4 * 4.06e6, rel=0.2)


# Stopped and started again.


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(cache, data, run, tmp_path):
    out = tmp_path / "killed"
    process = start(cache, *flags(data, out, save_every=1))
    log = out / "metrics.jsonl"
    while process.poll() is None and not (log.is_file() and '"step": 3' in log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    newest = checkpoints.steps(out)[-1]
    assert 2 <= newest < STEPS
    ended = finish(start(cache, *flags(data, out, save_every=1)))
    assert ended.code == 0, ended.err
    assert f"resuming after step {newest}" in ended.out
    assert [row["step"] for row in rows(out) if row["split"] == "train"] == [1, 2, 3, 4]
    assert_same_weights(out, run)


def flip_a_bit(checkpoint: Path) -> None:
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


@pytest.fixture(scope="module")
def damaged(cache, run, data, tmp_path_factory):
    """A run whose newest checkpoint has a flipped bit, started again.

    The folder, how it ended, what was logged, and the step at the end of the run's log whenever a
    batch was read.
    """
    out = Path(shutil.copytree(run, tmp_path_factory.mktemp("runs") / "damaged"))
    flip_a_bit(out / "steps" / "00000004")
    read_at = []
    batches = train_front.pipeline.train_batches

    def noting(*args, **options):
        for batch in batches(*args, **options):
            read_at.append(rows(out)[-1]["step"])
            yield batch

    said = io.StringIO()
    handler = logging.StreamHandler(said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_front.pipeline, "train_batches", noting)
        logging.getLogger("pp_jax").addHandler(handler)
        ended = front("train.py", *flags(data, out))
        logging.getLogger("pp_jax").removeHandler(handler)
    return out, ended, said.getvalue(), read_at


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(damaged, run):
    out, ended, said, _ = damaged
    assert ended.code == 0, ended.err
    assert f"skipping step 4: {out / 'steps' / '00000004'}" in said
    assert "resuming after step 2" in ended.out
    assert [row["step"] for row in rows(out) if row["split"] == "train"] == [1, 2, 3, 4]
    assert_same_weights(out, run)


def test_the_next_batch_is_read_before_the_step_is_waited_for(damaged):
    # One before the first step; then each while the log still ends with the step before.
    assert damaged[3] == [2, 2, 3]


def test_a_damaged_checkpoint_does_not_outlive_sound_ones(copied, data, monkeypatch):
    """Counted among the newest, it would make room by the removal of those that verify."""

    def stop(*args):
        raise ValueError("the first step after the start")

    flip_a_bit(copied / "steps" / "00000004")
    monkeypatch.setattr(train_front.loop, "make_step", stop)
    assert_refused(front("train.py", *flags(data, copied)), "the first step after the start")
    assert checkpoints.steps(copied) == [2]


def test_a_run_without_any_sound_checkpoint_is_not_begun_anew(copied, data):
    for path in copied.glob("steps/*/MANIFEST.json"):
        path.write_text("{}")
    assert_refused(front("train.py", *flags(data, copied)), str(copied), "every checkpoint")


def test_a_finished_run_says_so(copied, data):
    before = held(copied, STEPS)
    ended = front("train.py", *flags(data, copied))
    assert ended.code == 0, ended.err
    assert f"{copied}: already trained to step 4" in ended.out
    for leaf, again in zip(before, held(copied, STEPS), strict=True):
        np.testing.assert_array_equal(leaf, again)
    assert rows(copied)[-1]["step"] == STEPS


def test_other_settings_are_refused_by_name_and_forced_only_aside(copied, data, monkeypatch):
    other = flags(data, copied, lr=0.5, seed=1)
    assert_refused(front("train.py", *other), "lr: 0.001 -> 0.5, seed: 0 -> 1", "--force")
    monkeypatch.setattr(train_front.loop, "fit", lambda *args, **options: [])
    ended = front("train.py", *other, "--force")
    assert ended.code == 0, ended.err
    aside = copied.with_name("copy.old1")
    assert str(aside) in ended.out
    assert rows(aside)[-1]["step"] == STEPS
    assert json.loads((copied / "config.json").read_text())["lr"] == 0.5
    assert not (copied / "steps").exists()


def test_where_and_how_fast_a_run_is_computed_may_change(copied, data):
    ended = front("train.py", *flags(data, copied, workers=1, keep=5, device="cpu"))
    assert ended.code == 0, ended.err
    assert "already trained" in ended.out


def test_a_run_that_never_stepped_gives_way_to_other_settings(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert_refused(front("train.py", *flags(data, out, batch=50)), "a batch of 50")
    monkeypatch.setattr(train_front.loop, "fit", lambda *args, **options: [])
    assert front("train.py", *flags(data, out, batch=2)).code == 0
    assert json.loads((out / "config.json").read_text())["batch"] == 2


def test_data_that_changed_since_a_run_began_are_refused(copied, data, tmp_path):
    """With a patient less the split is another: a test patient might be trained on."""
    less = Path(shutil.copytree(data, tmp_path / "less"))
    gone = read_rsna(less)[-1].patient
    kept = {record.id for record in read_rsna(less) if record.patient != gone} | {"patientId"}
    labels = less / "stage_2_train_labels.csv"
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(line for line in lines if line.split(",")[0] in kept))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"data_dir": str(less)}))
    assert_refused(front("train.py", *flags(less, copied)), str(copied), "changed since")


# Evaluation.


@pytest.fixture(scope="module")
def evaluated(run, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports") / "test"
    ended = front("eval.py", "--checkpoint", run, "--out", out, "--pictures", 3)
    assert ended.code == 0, ended.err
    return out, ended


def test_the_runs_own_test_patients_are_scored_and_no_others(evaluated, run, data):
    scored = table(evaluated[0] / "per_image.csv")
    patients = set(json.loads((run / "split.json").read_text())["test"])
    wanted = {r.id for r in read_rsna(data) if r.patient in patients and r.boxes}
    assert len(wanted) > 1
    assert {row["id"] for row in scored} == wanted
    assert {row["patient"] for row in scored} <= patients
    assert len(scored) == len(wanted) * len(METHODS)


def test_the_table_sets_the_model_beside_the_controls(evaluated):
    out, ended = evaluated
    for name in ("SAM", *(control.label for control in CONTROLS.values())):
        assert name in ended.out
    (section,) = json.loads((out / "summary.json").read_text())["sections"].values()
    scored = table(out / "per_image.csv")
    for line in section:
        values = [float(row["dice"]) for row in scored if row["method"] == line["method"]]
        assert line["dice"]["mean"] == pytest.approx(np.mean(values))
        assert line["dice"]["n"] == len(values)
    pictures = {path.name for path in (out / "overlays").iterdir()}
    assert len(pictures) == min(3, len(scored) // len(METHODS))
    assert (out / "overlays.png").is_file()


def test_stored_prompts_are_the_exact_boxes_of_the_objects(evaluated, data):
    stored = json.loads((evaluated[0] / "prompts.json").read_text())["prompts"]
    for record in read_rsna(data):
        if record.id in stored:
            assert stored[record.id] == {"boxes": load(record).boxes.tolist(), "points": []}


def test_the_mean_shape_is_that_of_the_training_part(evaluated, run, data):
    split = json.loads((run / "split.json").read_text())
    records = {record.id: record for record in read_rsna(data)}
    training = [r for r in records.values() if r.patient in split["train"]]
    atlas = fit_mean_shape(object_crops(training))
    assert_mean_shape_scores(evaluated[0], records, lambda patient: atlas)


def test_evaluating_twice_gives_the_same_figures(evaluated, run, tmp_path):
    again = Path(shutil.copytree(evaluated[0], tmp_path / "again"))
    (again / "prompts.json").unlink()
    assert front("eval.py", "--checkpoint", run, "--out", again, "--pictures", 0).code == 0
    assert not (again / "overlays").exists()  # The older report is replaced.
    for name in ("per_image.csv", "prompts.json"):
        assert (again / name).read_bytes() == (evaluated[0] / name).read_bytes()


def test_on_other_data_everything_is_test(run, cache, data, tmp_path):
    other = Path(shutil.copytree(data, tmp_path / "other"))
    out = tmp_path / "report"
    marks = ("--prompt", "point", "--pictures", 0)
    ended = front("eval.py", "--checkpoint", run, "--data-dir", other, "--out", out, *marks)
    assert ended.code == 0, ended.err
    scored = table(out / "per_image.csv")
    assert {row["id"] for row in scored} == {r.id for r in read_rsna(other) if r.boxes}
    assert {row["protocol"] for row in scored} == {"one click", "exact box"}
    stored = json.loads((out / "prompts.json").read_text())["prompts"]
    for record in read_rsna(other):
        points = stored.get(record.id, {"points": []})["points"]
        for pixels, point in zip(load(record).objects, points, strict=bool(record.boxes)):
            assert pixels[int(point["y"]), int(point["x"])]


def test_converted_weights_are_scored_beside_the_shape_of_other_patients(
    converted, cache, data, tmp_path
):
    out = tmp_path / "report"
    where = ("--data-dir", data, "--out", out, "--prompt", "none", "--pictures", 0)
    ended = front("eval.py", "--checkpoint", converted, *where)
    assert ended.code == 0, ended.err
    records = {record.id: record for record in read_rsna(data)}
    assert {row["id"] for row in table(out / "per_image.csv")} == records.keys()
    assert "All images" in ended.out
    assert "Images with a finding" in ended.out
    assert_mean_shape_scores(
        out,
        records,
        lambda patient: fit_mean_shape(
            object_crops([r for r in records.values() if r.patient != patient])
        ),
    )


def assert_mean_shape_scores(out, records, atlas_for) -> None:
    label = CONTROLS["mean_shape"].label
    scored = [row for row in table(out / "per_image.csv") if row["method"] == label]
    for row in [row for row in scored if row["objects"] != "0"][:3]:
        sample = load(records[row["id"]])
        shape = mean_shape(sample.findings.shape, sample.boxes, atlas=atlas_for(row["patient"]))
        assert float(row["dice"]) == pytest.approx(dice(shape, sample.findings))


# A user's mistakes.


def assert_refused(ended: Ended, *named: str) -> None:
    """Exit code 2 and one line that names what is wrong, without a traceback."""
    assert ended.code == 2, ended
    errors = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, ended.err
    for word in named:
        assert word in errors[0]
    assert "Traceback" not in ended.out + ended.err


def labels(*changed: str) -> str:
    """Six patients with a box each; then the rows given."""
    plain = [f"p{i},4,6,20,12,1" for i in range(6)]
    return "\n".join([*plain, *changed]) + "\n"


def write_patients(folder: Path, text: str) -> Path:
    names = dict.fromkeys(line.split(",")[0] for line in text.splitlines())
    rows = "".join(f"{name},{name}\n" for name in names)
    (folder / "patients.csv").write_text("patientId,patient\n" + rows)
    return folder


def bad_set(folder: Path, *changed: str) -> Path:
    return write_patients(write_set(folder, labels(*changed)), labels(*changed))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("bad,50,6,20,12,1", ["bad", "(50.0, 6.0, 70.0, 18.0)", "60 x 40", "correct the row"]),
        ("bad,4,6,0,12,1", ["line 8 (bad)", "width 0.0"]),
        ("bad,4,6,twenty,12,1", ["line 8 (bad)", "twenty"]),
    ],
)
@pytest.mark.parametrize("name", FRONTS)
def test_a_bad_row_names_file_line_and_value(name, row, named, converted, tmp_path):
    folder = bad_set(tmp_path / "set", row)
    more = ["--checkpoint", converted, "--data", "rsna", "--data-dir", folder]
    ended = front(name, *more, "--out", tmp_path / "out")
    assert_refused(ended, str(folder / "stage_2_train_labels.csv"), *named)
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_named(tmp_path):
    folder = bad_set(tmp_path / "set")
    file = folder / "stage_2_train_labels.csv"
    file.write_text(file.read_text().replace(HEADER, HEADER.replace("width", "w")))
    assert_refused(front("train.py", "--data-dir", folder), str(file), "no column width")


def test_an_image_without_a_file_is_named(tmp_path):
    folder = bad_set(tmp_path / "set")
    (folder / "stage_2_train_images" / "p3.dcm").unlink()
    assert_refused(front("train.py", "--data-dir", folder), "p3", "unzip all images")


@pytest.mark.filterwarnings("default")
def test_a_file_without_pixels_is_named(cache, data, tmp_path):
    folder = Path(shutil.copytree(data, tmp_path / "set"))
    for record in read_rsna(folder):
        write_dicom(record.image, None, Rows=256, Columns=256)
    ended = front("train.py", *flags(folder, tmp_path / "run"))
    assert_refused(ended, str(folder), ".dcm", "no pixel data")


def test_folders_that_are_not_there_are_named(tmp_path):
    assert_refused(front("train.py", "--data-dir", tmp_path / "none"), str(tmp_path / "none"))
    missing = ("--checkpoint", tmp_path / "none")
    assert_refused(front("train.py", *missing), str(tmp_path / "none"), "converted checkpoint")
    assert_refused(front("eval.py", *missing), str(tmp_path / "none"), "MANIFEST.json")
    assert_refused(front("eval.py", "--checkpoint", tmp_path), str(tmp_path), "MANIFEST.json")


def test_large_variants_name_the_commands_that_get_their_weights(monkeypatch):
    for variant in ("vit_b", "vit_l", "vit_h"):
        if not Path("checkpoints", variant).exists():
            file = train_front.runs.OFFICIAL[variant]
            ended = front("train.py", "--variant", variant)
            commands = (f"segment_anything/{file}`", f"`python -m convert {file}", "--init random")
            assert_refused(ended, f"checkpoints/{variant}", *commands)


def test_weights_of_another_variant_are_refused(converted, data, tmp_path):
    choices = flags(data, tmp_path / "run", variant="vit_b", checkpoint=converted)
    assert_refused(front("train.py", *choices), str(converted), "weights of tiny", "--variant tiny")


def test_too_few_patients_are_refused(data, tmp_path):
    ended = front("train.py", *flags(data, tmp_path / "run", limit=2))
    assert_refused(ended, "2 patients", "--limit")
    assert not (tmp_path / "run").exists()


def test_an_unknown_flag_or_choice_is_named():
    for name, flag, value in (
        ("train.py", "--varant", "tiny"),
        ("eval.py", "--prompt", "boxes"),
        ("train.py", "--lr", "fast"),
    ):
        ended = front(name, flag, value)
        assert ended.code == 2
        assert (flag if flag == "--varant" else value) in ended.err
        assert "Traceback" not in ended.err


def test_a_box_prompt_on_box_targets_is_refused_in_evaluation(converted, tmp_path):
    folder = bad_set(tmp_path / "set")
    where = ("--checkpoint", converted, "--data", "rsna", "--data-dir", folder)
    ended = front("eval.py", *where, "--prompt", "box", "--out", tmp_path / "out")
    assert_refused(ended, str(folder), "6 images", "--prompt point or none")


def test_a_box_prompt_on_box_targets_is_marked_in_training(tmp_path, monkeypatch):
    feeds = []
    monkeypatch.setattr(
        train_front.loop, "fit", lambda run, settings, feed, **options: feeds.append(feed)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [])
        ended = front("train.py", *flags(bad_set(tmp_path / "set"), tmp_path / "run"))
    assert ended.code == 0, ended.err
    assert feeds[0].facts == {"prompt_is_target": True}
    assert "warning: 4 training images have boxes and no masks" in ended.err


def test_a_batch_that_the_devices_cannot_share_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_front.cli, "devices", lambda name: jax.devices()[:1] * 3)
    ended = front("train.py", *flags(data, tmp_path / "run"))
    assert_refused(ended, "a batch of 4 images", "3 devices", "multiple of 3")


def test_a_folder_that_is_not_ours_is_left_alone(run, data, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    ended = front("train.py", *flags(data, tmp_path, force=True)[:-1])
    assert_refused(ended, f"--out {tmp_path}", "not empty and no run")
    ended = front("eval.py", "--checkpoint", run, "--out", tmp_path)
    assert_refused(ended, f"--out {tmp_path}", "no older report")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_without_a_checkpoint_cannot_be_scored(copied):
    shutil.rmtree(copied / "steps")
    assert_refused(front("eval.py", "--checkpoint", copied), str(copied), "without a checkpoint")


@pytest.mark.parametrize("name", FRONTS)
def test_a_start_outside_of_the_clone_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(front(name), f"cd {ROOT}")


@pytest.mark.parametrize("file", ["config.json", "split.json"])
def test_a_damaged_file_of_a_run_is_named(file, copied, data):
    (copied / file).write_text('{"half": ')
    ended = front("train.py", *flags(data, copied))
    assert_refused(ended, str(copied / file), "damaged")


def test_a_base_of_other_weights_is_refused(copied, data):
    manifest = json.loads((copied / "base" / "MANIFEST.json").read_text())
    (copied / "base" / "MANIFEST.json").write_text(json.dumps(manifest | {"source": "other"}))
    assert_refused(front("eval.py", "--checkpoint", copied), "other frozen weights")


def test_a_diverged_training_ends_in_one_line(cache, data, tmp_path, monkeypatch):
    def falling_apart(state, *rest):
        loss = jnp.where(state.step == 0, 1.0, jnp.nan)
        return state._replace(step=state.step + 1), {"loss": loss, "hard_dice": loss}

    monkeypatch.setattr(train_front.loop, "make_step", lambda *args: falling_apart)
    ended = front("train.py", *flags(data, tmp_path / "run"))
    assert_refused(ended, str(tmp_path / "run"), "the loss is nan at step 2", "lower --lr")
