from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.preprocess.asymmetry import asymmetry, mid_line
from pp_jax.preprocess.responses import respond
from tests import references_asymmetry

RNG = np.random.default_rng(0)
CANVAS = (50, 64)

_respond = jax.jit(partial(respond, filter=asymmetry()))
_mid_line = jax.jit(mid_line)


def response(image):
    """Of an image in the corner of a canvas full of something else."""
    height, width = image.shape
    return np.asarray(_respond(on_canvas(image), jnp.array(image.shape)))[:height, :width]


def line(image):
    return int(_mid_line(on_canvas(np.rint(image)).astype(jnp.int32), jnp.array(image.shape)))


def on_canvas(image):
    canvas = RNG.integers(0, 256, CANVAS).astype(np.float32)
    canvas[: image.shape[0], : image.shape[1]] = image
    return jnp.asarray(canvas)


def phantom(height, width, total):
    """A noisy image whose columns x and `total` - x are equal."""
    pairs = RNG.integers(0, 200, (height, 2 * width)).astype(np.float32)
    x = np.arange(width)
    return pairs[:, np.minimum(x, total - x) + width]


@pytest.mark.parametrize(
    ("height", "width", "total"),
    [(50, 64, 63), (50, 64, 70), (49, 60, 47), (31, 61, 72), (31, 61, 48), (3, 11, 12), (1, 1, 0)],
)
def test_a_symmetric_image_has_no_response_wherever_its_mid_line_is(height, width, total):
    image = phantom(height, width, total)
    assert line(image) == total
    np.testing.assert_array_equal(response(image), 0)


def test_a_mid_line_is_looked_for_from_40_to_60_per_cent_of_the_width():
    for total in (38, 61):  # At x = 19.5 and 31 of 50.
        image = phantom(40, 50, total)
        assert line(image) != total
    for total in (39, 59):  # At x = 20 and 30.
        assert line(phantom(40, 50, total)) == total


@pytest.mark.parametrize("total", [52, 59, 64])
def test_noise_does_not_move_the_mid_line(total):
    x, y = np.meshgrid(np.arange(60), np.arange(50))
    distance = np.abs(x - total / 2)
    lungs = 150 - 100 * np.exp(-((distance - 14) ** 2) / 40 - (y - 25) ** 2 / 200)
    noisy = lungs + RNG.normal(0, 10, lungs.shape)
    assert line(np.clip(noisy, 0, 255)) == total


def test_a_blob_on_one_side_is_all_that_responds_and_on_both_sides():
    image = phantom(45, 60, 63)
    blob = np.zeros_like(image)
    blob[20:28, 10:16] = RNG.integers(1, 50, (8, 6))
    want = blob.copy()
    want[20:28, 63 - 15 : 63 - 9] = blob[20:28, 15:9:-1]
    np.testing.assert_array_equal(response(image + blob), want)


def test_of_equal_lines_the_one_nearest_to_the_middle_is_taken():
    assert line(np.full((20, 41), 9)) == 40
    stripes = np.arange(40) % 2 * 90 * np.ones((20, 1))
    assert line(stripes) == 40  # Not 38, as near to the middle.


@pytest.mark.parametrize("shape", [(50, 64), (17, 64), (33, 43), (2, 5), (24, 1)])
def test_the_mid_line_has_the_least_mean_difference(shape):
    for image in (RNG.integers(0, 256, shape), RNG.integers(0, 2, shape), RNG.random(shape) * 255):
        assert line(image) == references_asymmetry.mid_line(np.rint(image))
        want = references_asymmetry.asymmetry(np.float32(image))
        np.testing.assert_array_equal(response(image), want)


def test_a_large_image_of_black_and_white_does_not_overflow():
    image = np.tile(RNG.choice(np.array([0, 255], np.int32), 2048), (2048, 1))
    want = references_asymmetry.mid_line(image)
    assert int(_mid_line(jnp.asarray(image), jnp.array(image.shape))) == want


def test_the_gradient_is_the_sign_of_the_difference():
    image, weight = phantom(50, 64, 60), RNG.normal(size=CANVAS)
    image[:, :20] += RNG.integers(1, 9, (50, 20))
    got = jax.grad(lambda x: (_respond(x, jnp.array(CANVAS)) * weight).sum())(jnp.asarray(image))
    both = weight[:, :20] + weight[:, 60:40:-1]
    np.testing.assert_allclose(got[:, :20], both, rtol=1e-5)
    np.testing.assert_allclose(got[:, 60:40:-1], -both, rtol=1e-5)
    np.testing.assert_array_equal(got[:, 20:41], 0)
