"""Whole runs of `train.py`, on a few small phantoms."""

import dataclasses
import io
import json
import logging
import math
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import train as train_front
from data.rsna import read_rsna
from data.splits import split_patients
from pp_jax import checkpoints
from pp_jax.config import TrainConfig, resolve
from pp_jax.prompts import Purpose
from tests.fronts import (
    STEPS,
    assert_refused,
    assert_same_weights,
    finish,
    flags,
    front,
    held,
    rows,
    start,
)

# A run.


def test_a_run_leaves_its_files(run):
    present = {path.name for path in run.iterdir()}
    assert present >= {
        "config.json",
        "environment.json",
        "splits.json",
        "images.json",
        "atlas.npz",
        "base",
        "steps",
        "metrics.jsonl",
        "curves.png",
        "tensorboard",
        "best.json",
    }
    assert sorted(path.name for path in (run / "steps").iterdir()) == ["00000002", "00000004"]
    with Image.open(run / "curves.png") as file:
        assert file.width == 1200
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
        # The decoder is all that is trained.
        assert row.get("gradient_norm/mask_decoder") == row.get("gradient_norm")
    rates = [row["lr"] for row in rows(run) if row["split"] == "train"]
    # Half a cosine to a hundredth, without a warm-up in so short a training.
    cosine = [0.01 + 0.99 * (1 + np.cos(np.pi * step / 4)) / 2 for step in range(4)]
    np.testing.assert_allclose(rates, 1e-3 * np.array(cosine), rtol=1e-4)
    for row in rows(run):
        assert "prompt_is_target" not in row


def test_the_config_is_complete(run, data):
    config = json.loads((run / "config.json").read_text())
    assert config.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert resolve(TrainConfig(**config)) == TrainConfig(**config)
    assert (config["data_dir"], config["steps"], config["batch"]) == (str(data), STEPS, 4)


def test_the_split_stands_in_the_run_and_shares_no_patient(run, data):
    split = json.loads((run / "splits.json").read_text())
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


def reached(process, out, step):
    """Waits until the run's log has the step, or the process ended."""
    log = out / "metrics.jsonl"
    while process.poll() is None and not (log.is_file() and f'"step": {step}' in log.read_text()):
        time.sleep(0.01)


def told(run):
    """What the log says, but for how long it took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(run)]


def test_a_run_asked_to_stop_and_then_killed_ends_as_if_it_had_not_been(
    compiled, data, run, tmp_path
):
    out = tmp_path / "stopped"
    process = start(compiled, *flags(data, out))
    reached(process, out, 1)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert ended.code == 0, ended.err
    newest = checkpoints.steps(out)[-1]
    assert 1 <= newest < STEPS
    assert rows(out)[-1]["step"] == newest
    assert f"step {newest} is saved; go on with `python train.py --resume {out}`" in ended.out
    assert "done. Score it" not in ended.out

    process = start(compiled, *flags(data, out))
    reached(process, out, 3)
    process.send_signal(signal.SIGKILL)
    killed = finish(process)
    assert killed.code == -signal.SIGKILL
    assert f"resuming after step {newest}" in killed.out

    newest = checkpoints.steps(out)[-1]
    assert 1 <= newest < STEPS
    ended = front("train.py", *flags(data, out))
    assert ended.code == 0, ended.err
    assert f"resuming after step {newest}" in ended.out
    assert told(out) == told(run)
    assert_same_weights(out, run)


def flip_a_bit(checkpoint: Path) -> None:
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


@pytest.fixture(scope="module")
def damaged(compiled, run, data, tmp_path_factory):
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

    def stop(*args, **options):
        raise ValueError("the first step after the start")

    flip_a_bit(copied / "steps" / "00000004")
    monkeypatch.setattr(train_front.loop.recipe, "step_of", stop)
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


def test_a_validation_that_a_signal_put_off_is_made_up_for(copied, data):
    """Early stopping and the best step depend on it."""
    before = told(copied)
    kept = [line for line in (copied / "metrics.jsonl").read_text().splitlines()][:-1]
    (copied / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    ended = front("train.py", *flags(data, copied))
    assert ended.code == 0, ended.err
    assert told(copied) == before


def test_a_validation_that_is_made_up_for_may_end_the_run(copied, data, monkeypatch):
    """As it had ended the one that was not interrupted."""
    shutil.rmtree(copied / "steps" / "00000004")
    lines = (copied / "metrics.jsonl").read_text().splitlines()[:2]
    (copied / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"patience": 1}))
    monkeypatch.setattr(train_front.loop.stopping, "stopped_early", stops_at_two)
    ended = front("train.py", *flags(data, copied, patience=1))
    assert ended.code == 0, ended.err
    assert "stopped early at step 2: in 1 validations no Dice was above" in ended.out
    assert checkpoints.steps(copied) == [2]
    assert [(row["step"], row["split"]) for row in rows(copied)][1:] == [
        (2, "train"),
        (2, "validation"),
    ]


def test_a_run_that_stopped_early_does_not_go_on(compiled, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(train_front.loop.stopping, "stopped_early", stops_at_two)
    early = flags(data, out, patience=1, pictures_every=2)
    ended = front("train.py", *early)
    assert ended.code == 0, ended.err
    assert "stopped early at step 2: in 1 validations no Dice was above" in ended.out
    assert checkpoints.steps(out) == [2]
    with Image.open(out / "pictures" / "00000002.png") as picture:
        assert picture.width == 1200
    again = front("train.py", *early)
    assert again.code == 0, again.err
    assert "stopped early at step 2" in again.out
    assert checkpoints.steps(out) == [2]


def stops_at_two(rows, *, patience):
    """Whatever the Dice is, as two validations are too few to be sure of it."""
    assert patience == 1
    return next((row["step"] for row in rows if row["split"] == "validation"), None)


def test_what_is_not_finite_is_named_with_its_images_and_not_saved(
    compiled, copied, data, monkeypatch
):
    shutil.rmtree(copied / "steps" / "00000004")
    before, begin, shown = held(copied, 2), train_front.loop.runs.begin, []
    batches = train_front.pipeline.train_batches

    def spoiled(*args, **options):
        state, *rest = begin(*args, **options)
        weights = jax.tree.map(lambda x: x * np.inf, state.trainable)
        return state._replace(trainable=weights), *rest

    def noting(*args, **options):
        for batch in batches(*args, **options):
            shown.append(batch.index)
            yield batch

    monkeypatch.setattr(train_front.loop.runs, "begin", spoiled)
    monkeypatch.setattr(train_front.pipeline, "train_batches", noting)
    ended = front("train.py", *flags(data, copied, save_every=2))
    train = json.loads((copied / "images.json").read_text())["train"]
    names = ", ".join(train[row] for row in shown[0])
    assert_refused(
        ended, str(copied), "the loss is nan", "gradient norm", f"at step 3, on {names}.", "--init"
    )
    assert checkpoints.steps(copied) == [2]
    for leaf, again in zip(before, held(copied, 2), strict=True):
        np.testing.assert_array_equal(leaf, again)


def test_before_the_first_checkpoint_there_is_none_to_start_from(tmp_path):
    row = {"step": 1, "split": "train", "loss": math.nan}
    with pytest.raises(FloatingPointError, match=r"no checkpoint before it.*; or start anew") as no:
        train_front.loop._require_finite(row, tmp_path, names=["a"])
    assert "--init" not in str(no.value)


def test_patience_needs_images_to_validate_on(data, tmp_path, monkeypatch):
    make = train_front.make_feed
    monkeypatch.setattr(train_front, "make_feed", lambda *args: make(*args)._replace(validated=0))
    ended = front("train.py", *flags(data, tmp_path / "run", patience=2))
    assert_refused(ended, "--patience 2", "no image of the validation part")


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


def test_training_is_augmented_and_validation_is_not(compiled, data, tmp_path, monkeypatch):
    chains = {}

    def noting(*args, purpose, chain, **options):
        chains[purpose] = chain
        if len(chains) == 2:
            raise ValueError("both functions are asked for")

    monkeypatch.setattr(train_front.loop.recipe, "make_terms", noting)
    ended = front("train.py", *flags(data, tmp_path / "run", augment="flip:1>noise:3"))
    assert_refused(ended, "both functions are asked for")
    assert "augmented, in training alone: flip:p=1.0>noise:sigma=3.0" in ended.out
    assert len(chains[Purpose.TRAIN_PROMPT]) == 2
    assert chains[Purpose.EVAL_PROMPT] == ()


def test_a_wrong_augmentation_is_refused_before_anything_is_read(tmp_path):
    ended = front("train.py", "--augment", "flip>roll", "--data-dir", tmp_path)
    assert_refused(ended, "augmentation 'roll' is unknown", "flip")
