import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pp_jax.config import Look
from pp_jax.preprocess.filters import FILTERS
from pp_jax.preprocess.fusion import FUSIONS, luma
from pp_jax.preprocess.stage import make_stage
from tests import references

RNG = np.random.default_rng(0)
SIDE = 32
SIZES = np.array([(32, 32), (32, 20), (7, 32), (1, 1)], np.int32)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
BLEND = 0.3
# Random, and garbage in the padding, which must not matter.
IMAGES = RNG.integers(0, 256, (len(SIZES), SIDE, SIDE, 3), dtype=np.uint8)


@functools.cache
def staged(name: str) -> dict[str, np.ndarray]:
    """The images as a filter shows them, by fusion: one program, since both share the filter."""
    fusions = ("replace", "blend")
    stages = {fusion: make_stage(Look(name, fusion, BLEND), side=SIDE) for fusion in fusions}
    every = jax.jit(lambda *given: {fusion: stage(*given) for fusion, stage in stages.items()})
    return jax.device_get(every(IMAGES, SIZES))


def normalised(image: np.ndarray) -> np.ndarray:
    """SAM's normalisation in torch float32, of one image `H W 3`."""
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (MEAN, STD))
    x = torch.tensor(image).permute(2, 0, 1).float()
    return ((x - mean) / std).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("fusion", [n for n, make in FUSIONS.items() if not make().acts_alone])
def test_an_unfiltered_image_is_normalised_as_torch_does_bit_for_bit(fusion):
    every = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 1, 3)).reshape(1, 16, 16, 3)
    stage = jax.jit(make_stage(Look(fusion=fusion, blend=BLEND), side=16))
    got = stage(every, np.array([[16, 16]], np.int32))
    np.testing.assert_array_equal(got[0], normalised(every[0]))


@pytest.mark.parametrize("name", FILTERS)
def test_the_padding_is_zero_after_normalisation(name):
    for images in staged(name).values():
        for got, (height, width) in zip(images.copy(), SIZES, strict=True):
            assert got[:height, :width].any()
            got[:height, :width] = 0
            np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize("fusion", ["replace", "blend"])
@pytest.mark.parametrize("name", [name for name in FILTERS if name != "none"])
def test_a_batch_of_sizes_equals_each_image_filtered_alone(name, fusion):
    row, reference = FILTERS[name](), references.FILTERS[name]
    # The row's own tolerance, and 2 ulps of a grey level of 255 before they cancel in x - mean.
    levels = reference.atol * 255 / (row.high - row.low) + 2 * 255 * 2**-23
    for got, image, (height, width) in zip(staged(name)[fusion], IMAGES, SIZES, strict=True):
        image = np.ascontiguousarray(image[:height, :width])
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
        response = (reference.function(luma) - row.low) / (row.high - row.low) * 255
        fused = references.FUSIONS[fusion](image, [response], BLEND)
        want = normalised(fused.astype(np.float32))
        np.testing.assert_allclose(got[:height, :width], want, atol=levels / min(STD))


def test_grey_equals_opencvs_and_keeps_equal_channels():
    image = RNG.integers(0, 256, (300, 200, 3), dtype=np.uint8)
    np.testing.assert_array_equal(luma(jnp.asarray(image)), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    equal = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    np.testing.assert_array_equal(luma(jnp.asarray(equal))[0], np.arange(256))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"filter": "sobell"}, "filter 'sobell' is unknown: choose one of none, sobel"),
        ({"fusion": "add"}, "fusion 'add' is unknown: choose one of replace, blend"),
        ({"blend": 1.5}, r"blend=1.5 is no weight: choose one in \[0, 1\]"),
        ({"blend": float("nan")}, "blend=nan is no weight"),
    ],
)
def test_a_wrong_option_is_named_with_the_choices(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_stage(Look(**({"filter": "sobel", "fusion": "blend"} | wrong)), side=8)


def test_a_canvas_of_another_side_is_refused():
    stage = make_stage(Look(), side=8)
    with pytest.raises(ValueError, match=r"takes \(B, 8, 8, 3\)"):
        stage(jnp.zeros((1, 16, 16, 3), jnp.uint8), jnp.array([[16, 16]]))
