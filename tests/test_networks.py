"""Networks beside SAM in the fronts: trained, resumed, scored, and refused what they lack."""

import json
import shutil
import sys
from itertools import pairwise

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from pp_jax import doctor, ranges, sharding
from pp_jax.baselines.segmenter import SEGMENTERS
from pp_jax.baselines.unet import UNet
from pp_jax.config import TrainConfig, resolve, weights_of_losses
from pp_jax.finetune import plan
from pp_jax.finetune.models import MODELS, config_of
from pp_jax.finetune.runs import load
from pp_jax.predict import __main__ as predict_front
from pp_jax.sam import VARIANTS
from tests.fronts import assert_refused, flags, front, held, table
from tests.predict_world import failed
from tests.test_official_api import photo

SMALL = {"model": "unet-tiny", "image_size": 64, "trainable": "full", "batch": 2, "steps": 2}


@pytest.fixture(scope="module")
def runs(compiled, data, tmp_path_factory):
    """A network trained without a prompt, and one on boxes, saved after each step."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for prompting in ("none", "box"):
        found[prompting] = folder / prompting
        told = SMALL | {"prompting": prompting, "save_every": 1}
        ended = front("train.py", *flags(data, found[prompting], **told))
        assert ended.code == 0, ended.err
    return found


def test_the_flags_know_every_network_and_every_sam():
    assert set(ranges.SEGMENTERS) == set(SEGMENTERS)
    assert set(MODELS) == {*VARIANTS, *SEGMENTERS}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_network_starts_from_random_weights_and_is_trained_as_a_whole(name):
    settings = resolve(TrainConfig(variant=name, prompting="none"))
    assert (settings.checkpoint, settings.trainable) == ("", "full")
    assert weights_of_losses(settings)["iou"] == 0
    assert config_of(name, 128).image_size == 128


def test_a_stop_on_the_way_changes_no_bit(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs["none"], other)
    shutil.rmtree(other / "steps" / "00000002")
    ended = front("train.py", "--resume", other)
    assert ended.code == 0, ended.err
    for one, again in zip(held(runs["none"], 2), held(other, 2), strict=True):
        np.testing.assert_array_equal(one, again)


def test_each_is_scored_under_what_it_reads_alone(runs, data, tmp_path):
    named = [f"{name}={runs[name]}" for name in ("box", "none")]
    out = tmp_path / "report"
    asked = ("--prompt", "box,none", "--limit", "3", "--pictures", "0")
    ended = front("eval.py", "--methods", *named, "box", "--data-dir", data, "--out", out, *asked)
    assert ended.code == 0, ended.err
    answered = {(row["method"], row["protocol"]) for row in table(out / "images.csv")}
    assert {("none", "none"), ("box", "box")} <= answered
    assert not {("none", "box"), ("box", "none")} & answered


def test_what_a_network_does_not_read_is_refused_in_one_line(runs, data, tmp_path):
    ended = front("eval.py", "--checkpoint", runs["box"], "--data-dir", data, "--prompt", "point")
    assert_refused(ended, "--prompt point", "unet-tiny", "box")
    both = ("--checkpoint", runs["box"], runs["none"], "--data-dir", data)
    assert_refused(front("eval.py", *both, "--prompt", "box"), "--prompt box")
    for more, named in (
        (("--prompting", "point"), "--prompting point"),
        (("--trainable", "decoder"), "--trainable decoder"),
        (("--layer-decay", "0.8"), "--layer-decay"),
        (("--embeddings", "float32"), "--embeddings float32"),
        (("--iou", "2"), "--iou 2"),
    ):
        assert_refused(front("train.py", "--model", "unet-tiny", *more), named)
    settings = predict_front.Predict((), checkpoint=(runs["box"],), out=tmp_path, prompt_free=True)
    with pytest.raises(ValueError, match=r"--prompt-free: unet-tiny .* give --box"):
        predict_front.check_read(settings, _run_of(runs["box"]))


def _run_of(folder):
    return TrainConfig(**json.loads((folder / "config.json").read_text()))


BOX = ("--box", 8, 12, 40, 50)


def predict(run, folder, *asked):
    """The front on one picture of 64 x 64 pixels, which the network sees as it is."""
    Image.fromarray(photo(64, 64)).save(folder / "a.png")
    told = (folder / "a.png", "--checkpoint", run, "--out", folder / "out", *asked)
    predict_front.main([str(word) for word in told])


@pytest.mark.parametrize(("prompting", "asked"), [("box", BOX), ("none", ("--prompt-free",))])
def test_a_written_mask_is_where_the_networks_logits_are_above_0(
    runs, tmp_path, monkeypatch, prompting, asked
):
    loaded = load(runs[prompting], mesh=sharding.make_mesh(jax.devices()[:1]))
    params = loaded.variables["params"]["network"]
    inputs = np.zeros((1, 64, 64, 4), np.float32)
    inputs[0, :, :, :3] = (photo(64, 64) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    if prompting == "box":
        inputs[0, 12:50, 8:40, 3] = 1
    logits = np.asarray(jax.jit(UNet(width=16).apply)({"params": params}, inputs))
    cells = logits.reshape(16, 4, 16, 4).mean((1, 3))
    full = cv2.resize(cells, (64, 64), interpolation=cv2.INTER_LINEAR)
    # After two steps all logits have one sign: half of the pixels shall be foreground.
    middle = np.median(full)
    params["head"]["bias"] -= middle
    monkeypatch.setattr(predict_front.runs, "load", lambda *_, **__: loaded)
    predict(runs[prompting], tmp_path, *asked)
    with Image.open(tmp_path / "out" / "masks" / "a_1.png") as file:
        mask = np.asarray(file) > 0
    clear = np.abs(full - middle) > 1e-3 * full.std()
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(mask[clear], full[clear] > middle)
    assert table(tmp_path / "out" / "objects.csv")[0]["prompt"] == prompting


@pytest.mark.parametrize(
    ("prompting", "asked"), [("box", ("--point", 5, 8)), ("none", ("--auto",)), ("none", BOX)]
)
def test_marks_that_a_network_does_not_read_are_refused(runs, tmp_path, capsys, prompting, asked):
    with pytest.raises(SystemExit, match="2"):
        predict(runs[prompting], tmp_path, *asked)
    give = {"box": "--box", "none": "--prompt-free"}[prompting]
    assert failed(capsys) == (
        f"error: {asked[0]}: unet-tiny was trained with --prompting {prompting} and reads nothing "
        f"else; give {give}"
    )
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_the_parameters_and_products_of_a_network(monkeypatch):
    monkeypatch.setattr(plan, "_compile", lambda _, held: (held, ""))  # Memory is no network's own.
    told = ("--image-size", "64", "--batch", "2", "--prompting", "none")
    ended = front("train.py", "--plan", "cpu:1", "--model", "unet-tiny", *told)
    assert (ended.code, ended.out.splitlines()[-1]) == (plan.FITS, "it fits")
    # Of each convolution: taps, channels in and out, side of what it makes.
    channels = [16, 32, 64, 128, 256]
    layers = [(1, 16, 1, 64)]
    for level, (before, here) in enumerate(pairwise([4, *channels])):
        layers += [(9, before, here, 64 >> level), (9, here, here, 64 >> level)]
    for level, (here, below) in enumerate(pairwise(channels)):
        layers += [(9, 2 * here, here, 64 >> level), (9, here, here, 64 >> level)]
        layers += [(4, below, here, 32 >> level)]  # Transposed: four taps for each pixel below.
    count = sum(taps * here * there + there for taps, here, there, _ in layers)
    products = [taps * here * there * side**2 for taps, here, there, side in layers]
    first = 9 * 4 * 16 * 64**2  # Nothing asks for the gradient of the image.
    useful = 2 * 2 * (3 * sum(products) - first)
    assert f"parameters: {count:,} trained, 0 frozen" in ended.out
    assert f"TFLOP per step and device: {useful / 1e12:.4g} of the model" in ended.out


def test_the_doctor_says_that_no_network_is_to_be_compared(runs, monkeypatch, capsys):
    for named, line in (
        (runs["none"], f"error: {runs['none']}: a network (unet-tiny), which the official package"),
        ("unet-tiny", "error: unet-tiny: no checkpoint here"),
    ):
        monkeypatch.setattr(sys, "argv", ["doctor", str(named)])
        with pytest.raises(SystemExit, match="2"):
            doctor.main()
        assert failed(capsys).startswith(line)
