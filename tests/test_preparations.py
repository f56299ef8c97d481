"""MedSAM's weights have SAM's names and expect other images: square, in [0, 1]."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from skimage import transform

from pp_jax import checkpoints, config
from pp_jax.config import Look
from pp_jax.finetune import start
from pp_jax.preprocess import geometry
from pp_jax.preprocess.stage import PREPARATIONS, make_stage
from pp_jax.sam import sized
from pp_jax.segment_anything import SamPredictor
from tests.test_official_api import weights


def photo(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(20, 200, (height, width, 3), np.uint8)


def medsam_pixels(image: np.ndarray, side: int) -> np.ndarray:
    """The lines of MedSAM's own inference script, with `side` for 1024."""
    square = transform.resize(
        image, (side, side), order=3, preserve_range=True, anti_aliasing=True
    ).astype(np.uint8)
    return (square - square.min()) / np.clip(square.max() - square.min(), a_min=1e-8, a_max=None)


def test_an_image_for_medsam_is_stretched_and_scaled_as_its_own_code_does() -> None:
    image, fit = photo(40, 70), PREPARATIONS["medsam"].fit
    square = geometry.resize_image(image, longest=64, fit=fit)
    stage = make_stage(Look(preprocess="medsam"), side=64)
    got = jax.jit(stage)(square[None], np.array([[64, 64]], np.int32))[0]
    np.testing.assert_allclose(got, medsam_pixels(image, 64), atol=1e-6)


def test_boxes_and_targets_follow_the_stretching() -> None:
    mask = np.zeros((40, 80), bool)
    mask[10:20, 20:60] = True
    resized = geometry.resized_shape(40, 80, longest=64, fit="square")
    box = geometry.boxes_to_model(
        np.array([[20.0, 10, 60, 20]]), original=(40, 80), resized=resized
    )
    assert box.tolist() == [[16, 16, 48, 32]]
    target = geometry.low_res_target(mask, side=64, fit="square")
    want = np.zeros((16, 16))
    want[4:8, 4:12] = 1
    np.testing.assert_allclose(target, want, atol=1e-6)


def test_the_predictor_obeys_the_preparation() -> None:
    loaded, _ = weights("tiny")
    image = photo(50, 90)
    pixels = medsam_pixels(image, 256).astype(np.float32)
    encode = jax.jit(lambda variables, x: loaded.model.apply(variables, x, method="encode"))
    want = encode(loaded.variables, pixels[None])
    predictor = SamPredictor(loaded._replace(look=Look(preprocess="medsam")))
    predictor.set_image(image)
    np.testing.assert_allclose(np.asarray(predictor.features), want, atol=1e-4)
    assert predictor.input_size == (256, 256)
    masks, _, _ = predictor.predict(box=np.array([5, 5, 80, 40]))
    assert masks.shape == (3, 50, 90)


@pytest.fixture
def medsam_weights(tmp_path: Path) -> Path:
    variables = {"params": {"none": np.zeros(1, np.float32)}}  # Nobody looks at them.
    facts = {"kind": "converted", "variant": "tiny", "preprocess": "medsam"}
    checkpoints.save(tmp_path / "weights", variables, facts=facts)
    return tmp_path / "weights"


def test_training_takes_the_preparation_from_the_weights(medsam_weights: Path) -> None:
    settings = config.resolve(config.TrainConfig(checkpoint=str(medsam_weights)))
    told = start.with_preprocess(settings)
    assert told.preprocess == "medsam"
    assert json.dumps(dataclasses.asdict(told))  # Stands in the run's config.
    with pytest.raises(ValueError, match=r"expect medsam; leave the flag out"):
        start.with_preprocess(dataclasses.replace(settings, preprocess="sam"))
    assert start.with_preprocess(config.resolve(config.TrainConfig())).preprocess == "sam"


@pytest.mark.parametrize("size", [255, 240, 2064])
def test_an_image_size_that_sam_cannot_have_is_an_error_that_names_it(size: int) -> None:
    with pytest.raises(ValueError, match=f"image size {size}: needs a multiple of 16 from 256"):
        sized("vit_b", size)
