"""Networks beside SAM in the fronts: trained, resumed, scored, and refused what they lack."""

import json
import shutil

import numpy as np
import pytest

from pp_jax import ranges
from pp_jax.baselines.segmenter import SEGMENTERS
from pp_jax.config import TrainConfig, resolve, weights_of_losses
from pp_jax.finetune.models import MODELS, config_of
from pp_jax.predict import __main__ as predict_front
from pp_jax.sam import VARIANTS
from tests.fronts import assert_refused, flags, front, held, table

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
