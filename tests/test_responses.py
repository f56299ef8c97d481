import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.preprocess.responses import BORDERS, correlate, extend, extend_axis
from tests import references

RNG = np.random.default_rng(0)
CANVAS = (12, 10)
SIZES = np.array([(12, 10), (1, 1), (1, 7), (2, 5), (11, 9)])


def continued(image: np.ndarray, *, border: str, margin: int, axis: int) -> np.ndarray:
    """The image with `margin` more pixels on both sides of one axis, one at a time by OpenCV."""
    length = image.shape[axis]
    rule = references.BORDERS[border]
    index = [cv2.borderInterpolate(i, length, rule) for i in range(-margin, length + margin)]
    return np.take(image, index, axis=axis)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("margin", [0, 1, 30])
def test_each_image_of_a_batch_is_continued_beyond_its_own_size(border, margin):
    images = RNG.random((len(SIZES), *CANVAS)).astype(np.float32)
    got = jax.jit(jax.vmap(lambda i, s: extend(i, s, border=border, margin=margin)))(images, SIZES)
    for image, (height, width), padded in zip(images, SIZES, got, strict=True):
        want = continued(image[:height, :width], border=border, margin=margin, axis=0)
        want = continued(want, border=border, margin=margin, axis=1)
        np.testing.assert_array_equal(padded[: height + 2 * margin, : width + 2 * margin], want)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_axis_is_continued_and_the_other_left(axis):
    image = RNG.integers(0, 256, CANVAS, dtype=np.uint8)
    got = jax.jit(lambda i, n: extend_axis(i, n, axis=axis, border="reflect", margin=3))(image, 7)
    want = continued(
        image[:7] if axis == 0 else image[:, :7], border="reflect", margin=3, axis=axis
    )
    np.testing.assert_array_equal(got[tuple(map(slice, want.shape))], want)
    assert got.dtype == jnp.uint8


def test_the_gradient_of_a_continued_image_counts_each_pixel_as_often_as_it_stands_there():
    image = jnp.zeros(CANVAS)
    got = jax.jit(
        jax.grad(
            lambda i: extend(i, jnp.array([4, 3]), border="reflect101", margin=2)[:8, :7].sum()
        )
    )(image)
    # Of 4 rows stand there 2 1 0 1 2 3 2 1, of 3 columns 2 1 0 1 2 1 0.
    want = np.zeros(CANVAS)
    want[:4, :3] = np.outer([1, 3, 3, 1], [2, 3, 2])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("axis", [0, 1])
def test_correlation_equals_numpys(axis):
    image = RNG.integers(-9, 9, CANVAS).astype(np.float32)
    kernel = [2, 0, -1, 5, 3]
    want = np.apply_along_axis(np.correlate, axis, image, kernel, mode="valid")
    np.testing.assert_array_equal(correlate(jnp.asarray(image), kernel, axis=axis), want)
