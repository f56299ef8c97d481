"""What is told of a training, and what ends it early: each against a plainer account of its own."""

import dataclasses
import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from pp_jax.config import Look, TrainConfig
from pp_jax.evaluate import overlays
from pp_jax.finetune import monitor, pictures, stopping
from pp_jax.finetune.step import make_terms
from pp_jax.preprocess.stage import make_stage
from pp_jax.prompts import Purpose
from pp_jax.sam import Sam
from pp_jax.sam.model import init
from tests.test_step import COMPILER, KEY, SIDE, SMALL, WEIGHTS, disks

PLAIN = TrainConfig(batch=8)


def step_row(step, loss=1.0):
    figures = {"loss": loss, "dice_metric": 0.5, "gradient_norm": 2.0, "gradient_norm/lora": 1.5}
    return {"step": step, "split": "train", **figures, "lr": 0.25, "seconds": 2.0}


def validation_row(step, dice):
    return {"step": step, "split": "validation", "loss": 0.5, "dice_metric": dice}


def begin(run, *, start=0, settings=PLAIN):
    log = monitor.Log(run / "metrics.jsonl", resumed_at=start)
    return monitor.Monitor(run, settings, log, start=start, total=9)


def shown(run):
    """`{(tag, step): value}` as TensorBoard shows it: a restart hides what is of later steps."""
    values = {}
    for path in sorted((run / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.HasField("session_log"):
                values = {place: v for place, v in values.items() if place[1] < event.step}
            for one in event.summary.value:
                assert (one.tag, event.step) not in values  # Shown twice otherwise.
                pictured = one.HasField("image")
                values[one.tag, event.step] = one.image.width if pictured else one.simple_value
    return values


def test_tensorboard_shows_the_logs_figures_also_of_a_run_that_went_on(tmp_path):
    with begin(tmp_path) as told:
        for step in (1, 2, 3):
            told.step(step_row(step, loss=step))
        told.validation(validation_row(3, 0.75))
    with begin(tmp_path, start=2) as told:
        assert [row["loss"] for row in told.rows] == [1, 2]
        told.step(step_row(3, loss=30))
        told.validation(validation_row(3, 0.25))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, 2), (3, 30), (3, 0.5)]
    found = shown(tmp_path)
    assert found["train/loss", 3] == 30
    assert found["validation/dice_metric", 3] == 0.25
    assert {tag for tag, step in found if step == 1} == {
        *("train/loss", "train/dice_metric", "train/gradient_norm", "train/seconds"),
        *("gradient_norm/lora", "lr"),
    }
    assert len(found) == 3 * 6 + 2


def test_a_picture_is_shown_beside_the_figures(tmp_path):
    Image.new("RGB", (7, 5)).save(tmp_path / "p.png")
    with begin(tmp_path) as told:
        told.picture(tmp_path / "p.png", step=4)
    assert shown(tmp_path) == {("predictions", 4): 7}


def test_the_bar_tells_loss_dice_and_images_per_second(tmp_path, capsys):
    with begin(tmp_path) as told:
        told.step(step_row(1) | {"seconds": 100.0})  # Compiled: no part of the rate.
        told.step(step_row(2))
    text = capsys.readouterr()
    assert "step 1 done, in 100.0 s" in text.out
    assert "2/9" in text.err
    assert "loss=1.000, dice=0.500, images/s=4]" in text.err


def ahead(run, capsys, seconds, *, start=0):
    """The line on which the first steps are told, of nine steps in all."""
    with begin(run, start=start) as told:
        for number, took in enumerate(seconds, start + 1):
            told.step(step_row(number) | {"seconds": took})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "compiled" in line]
    return line


def test_a_long_training_tells_its_steps_time_and_memory_once(tmp_path, capsys):
    line = ahead(tmp_path, capsys, [100.0, 50.0, 60.0])
    told = r"compiled, and step 1 done, in 100\.0 s; 9 steps, about 8 min, \d+\.\d GiB resident.*"
    assert re.fullmatch(told, line)  # 100 + 8 * 50 s.
    line = ahead(tmp_path, capsys, [20.0, 30.0], start=3)
    assert re.match(r"compiled, and step 4 done, in 20\.0 s; 6 steps, about 3 min, ", line)


def test_a_short_training_tells_of_no_time_and_the_last_step_is_waited_for_by_none(
    tmp_path, capsys
):
    assert ahead(tmp_path, capsys, [20.0, 3.0]) == "compiled, and step 1 done, in 20.0 s"
    assert ahead(tmp_path, capsys, [59.0], start=8) == "compiled, and step 9 done, in 59.0 s"


def test_another_process_tells_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with begin(tmp_path) as told:
        told.step(step_row(1))
        told.validation(validation_row(1, 0.5))
        told.curve()
        assert len(told.rows) == 2  # Early stopping is decided everywhere.
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_can_be_left_out(tmp_path):
    with begin(tmp_path, settings=TrainConfig(batch=8, tensorboard=False)) as told:
        told.step(step_row(1))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


WANDB = TrainConfig(batch=8, tensorboard=False, wandb="lungs")


@pytest.fixture
def logged(monkeypatch):
    """What a Weights & Biases that is no such service is told."""
    said = []
    one = types.SimpleNamespace(
        log=lambda figures, step: said.append((step, figures)),
        finish=lambda exit_code: said.append(f"finished {exit_code}"),
    )
    fake = types.SimpleNamespace(init=lambda **options: said.append(options) or one)
    fake.Error = type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return said


def test_weights_and_biases_get_the_same_figures(tmp_path, logged):
    with begin(tmp_path, start=2, settings=WANDB) as told:
        told.step(step_row(3))
    assert logged[0]["project"] == "lungs"
    assert logged[0]["config"]["wandb"] == "lungs"
    assert logged[0]["name"] == f"{tmp_path.name} from step 2"
    assert logged[1] == (3, monitor.tagged(step_row(3)))
    assert logged[2] == "finished 0"


@pytest.mark.parametrize(
    ("error", "code"), [(FloatingPointError, 1), (SystemExit, 0), (KeyboardInterrupt, 0)]
)
def test_a_training_that_fails_is_told_from_one_that_was_asked_to_stop(
    tmp_path, logged, error, code
):
    with pytest.raises(error), begin(tmp_path, settings=WANDB):
        raise error
    assert logged[-1] == f"finished {code}"


def test_a_service_that_does_not_start_is_one_clear_error_and_closes_the_others(
    tmp_path, logged, monkeypatch
):
    def refused(**options):
        raise sys.modules["wandb"].Error("no API key")

    closed = []
    board = monitor.Sink(print, print, closed.append)
    monkeypatch.setattr(monitor, "to_tensorboard", lambda *args, **options: board)
    monkeypatch.setattr(sys.modules["wandb"], "init", refused)
    with pytest.raises(ValueError, match=r"--wandb lungs: .*\(no API key\).*`wandb login`"):
        begin(tmp_path, settings=dataclasses.replace(WANDB, tensorboard=True))
    assert closed == [True]


def test_the_log_stays_json_when_a_figure_is_no_number(tmp_path):
    def refuse(name):
        raise ValueError(name)

    with begin(tmp_path, settings=TrainConfig(batch=8, tensorboard=False)) as told:
        told.step(step_row(1, loss=math.nan) | {"gradient_norm": math.inf})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=refuse)
    assert (row["loss"], row["gradient_norm"], row["dice_metric"]) == (None, None, 0.5)
    (again,) = monitor.Log(tmp_path / "metrics.jsonl", resumed_at=1).rows
    assert math.isnan(again["loss"])


def test_the_curve_is_drawn_at_once_then_every_ten_seconds_and_at_the_end(tmp_path, monkeypatch):
    drawn, now = [], [100.0]
    monkeypatch.setattr(monitor.plots, "learning_curve", lambda _, rows: drawn.append(len(rows)))
    monkeypatch.setattr(monitor, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with begin(tmp_path, settings=TrainConfig(batch=8, tensorboard=False)) as told:
        for step in range(1, 6):
            told.step(step_row(step))
            told.curve()
            now[0] += 4
        told.curve(last=True)
        told.curve(last=True)  # It shows all.
    assert drawn == [1, 4, 5]


def test_a_service_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(monitor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--wandb lungs: .* not installed.*\[wandb\]"):
        monitor.check(TrainConfig(wandb="lungs"))
    monitor.check(TrainConfig())


# Stopping.


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_a_run_stops_once_its_best_validation_is_so_many_validations_old(patience):
    rng = np.random.default_rng(patience)
    stopped = 0
    for _ in range(50):
        values = rng.integers(0, 8, 12) / 8  # With ties: an equal Dice is not better.
        ages = [i - int(np.argmax(values[: i + 1])) for i in range(12)]
        wanted = next((10 * i for i, age in enumerate(ages) if age >= patience), None)
        rows = [validation_row(10 * i, value) for i, value in enumerate(values)]
        rows += [step_row(i) for i in range(120)]
        rows.sort(key=lambda row: row["step"])
        assert stopping.stopped_early(rows, patience=patience) == wanted
        stopped += wanted is not None
    assert stopped
    assert stopping.stopped_early(rows, patience=None) is None


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_is_noted_and_ends_the_program_only_afterwards(number, ends, capfd):
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    saved = []

    def train():
        with stopping.on_signal() as asked:
            assert not asked(1)
            os.kill(os.getpid(), number)
            assert asked(2)
            # The next one, of either kind, would end the process at once.
            assert {signal.getsignal(one) for one in before} == {signal.SIG_DFL}
            saved.append(2)

    with pytest.raises(ends) as caught:
        train()
    assert saved == [2]
    assert ends is KeyboardInterrupt or caught.value.code == 0
    assert {one: signal.getsignal(one) for one in before} == before
    assert "stopping after this step" in capfd.readouterr().err


def test_an_error_after_a_signal_is_told():
    def train():
        with stopping.on_signal():
            os.kill(os.getpid(), signal.SIGTERM)
            raise FloatingPointError("told")

    with pytest.raises(FloatingPointError, match="told"):
        train()


SIGNALLED = """
import os, signal, sys, threading, time
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from pp_jax.finetune import stopping
if sys.argv[2] == "1":
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
with stopping.on_signal() as asked:
    for step in range(1, 1000):
        time.sleep(0.01)
        if asked(step):
            print(step)
            break
"""


def test_two_processes_stop_after_the_same_step_whichever_was_asked():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SIGNALLED, address, str(process)],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    (one, _), (other, said) = (process.communicate(timeout=120) for process in both)
    assert int(one) == int(other)
    assert both[0].returncode == 0
    assert "KeyboardInterrupt" in said


# Pictures.


@pytest.fixture(scope="module")
def answered():
    """Disks, and two answers: one sees one more object than the other."""
    model, look = Sam(SMALL), Look()
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init(model, jax.random.key(1)))
    variables = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
    answer = jax.jit(
        pictures.make_answer(model, look, prompting="box"), compiler_options=dict(COMPILER)
    )
    # With embeddings, so that no encoder is compiled.
    features = rng.normal(0, 1, (4, SIDE // 16, SIDE // 16, SMALL.out_dim)).astype(np.float32)
    batch, positions = disks()._replace(features=features), np.arange(4, dtype=np.int32)
    return variables, batch, positions, jax.device_get(answer(variables, {}, batch, positions, KEY))


def test_the_masks_drawn_are_those_that_a_validation_scores(answered):
    variables, batch, positions, got = answered
    terms = make_terms(
        Sam(SMALL),
        make_stage(Look(), side=SIDE),
        prompting="box",
        purpose=Purpose.EVAL_PROMPT,
        weights=WEIGHTS,
    )
    score = jax.jit(terms, compiler_options=dict(COMPILER))
    sums = score(variables, {}, batch, positions, KEY, np.int32(0))
    dices = []
    for row in range(4):
        height, width = got.size[row]
        assert (height, width) == (64, batch.size[row, 1] // 4)
        own = []
        for slot in np.flatnonzero(batch.valid[row]):
            mask = got.masks[row, slot, :height, :width]
            target = batch.targets[row, slot, :height, :width] > 0.5
            own.append(2 * (mask & target).sum() / (mask.sum() + target.sum()))
        dices.append(np.mean(own))
    np.testing.assert_allclose(np.mean(dices), sums.hard_dice / sums.count, rtol=1e-5)
    assert 0 < np.mean(dices) < 1
    blocks = batch.image.reshape(4, 64, 4, 64, 4, 3).mean((2, 4))
    np.testing.assert_allclose(got.image, blocks, atol=0.51)


def test_a_picture_shows_each_image_with_its_prompts_targets_and_masks(
    answered, tmp_path, monkeypatch
):
    _, batch, _, got = answered
    drawn = []
    monkeypatch.setattr(
        pictures, "overlay_sheet", lambda path, parts, title: drawn.append((parts, title))
    )
    padded = got._replace(index=np.array([0, 1, 2, -1]))
    shown = pictures.Examples("validation", ["a", "b", "c"], [4, 7, 8], tuple)
    pictures.draw(tmp_path / "p.png", [padded], shown, step=12)
    ((parts, title),) = drawn
    (cases,) = parts.values()
    assert title == "step 12, validation images"
    assert [case.title for case in cases] == ["a", "b", "c"]
    for row, case in enumerate(cases):
        width = batch.size[row, 1] // 4
        valid = batch.valid[row]
        union = (batch.targets[row][valid] > 0.5).any(0)[:, :width]
        np.testing.assert_array_equal(case.target, union)
        assert case.image.shape == (64, width, 3)
        assert len(case.points) == 0
        # Jittered by a tenth of their sides; in cells of four pixels.
        sides = np.tile(batch.boxes[row][valid][:, 2:] - batch.boxes[row][valid][:, :2], 2)
        assert (np.abs(4 * case.boxes - batch.boxes[row][valid]) < 0.5 * sides).all()


def test_what_matplotlib_warns_of_ends_no_training(answered, tmp_path, monkeypatch):
    *_, got = answered
    sheet = pictures.overlay_sheet

    def warning(path, parts, *, title):
        sheet(path, parts, title=title)
        code = compile("import warnings; warnings.warn('of a font')", "m.py", "exec")
        exec(code, {"__name__": "matplotlib.text", "__builtins__": __builtins__})

    monkeypatch.setattr(pictures, "overlay_sheet", warning)
    shown = pictures.Examples("train", list("abcd"), range(4), tuple)
    pictures.draw(tmp_path / "new" / "p.png", [got], shown, step=1)
    with Image.open(tmp_path / "new" / "p.png") as file:
        picture = np.asarray(file.convert("RGB"))
    for color in (overlays.TARGET, overlays.PROMPT):
        level = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(picture - np.array(level)).max(-1).min() < 25  # Thin lines are blended.
