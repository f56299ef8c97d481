import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pp_jax.preprocess.denoise import bilateral, median
from pp_jax.preprocess.responses import respond
from tests import references_denoise

RNG = np.random.default_rng(0)
SHAPE = (40, 37)
STEP = np.where(np.arange(37) < 20, 30.0, 230.0) * np.ones((40, 1))


compiled = jax.jit(respond, static_argnames="filter")


def response(row, image):
    return np.asarray(compiled(np.float32(image), np.array(image.shape), filter=row))


@pytest.mark.parametrize("aperture", [3, 5])
def test_median_equals_opencvs(aperture):
    whole = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
    fractional = (RNG.random(SHAPE) * 255).astype(np.float32)
    for image in (whole, fractional):
        got = response(median(aperture=aperture), image)
        np.testing.assert_array_equal(got, cv2.medianBlur(image, aperture))


def test_median_equals_opencvs_on_an_x_ray(real_data):
    path = min((real_data / "cxr_seg").rglob("*.png"))
    image = np.asarray(Image.open(path).convert("L"))
    np.testing.assert_array_equal(response(median(), image), cv2.medianBlur(image, 3))


@pytest.mark.parametrize("aperture", [3, 5])
def test_median_is_right_for_every_black_and_white_square(aperture):
    """By the zero-one principle it is then right for all squares: exchanges are all it does.

    It sorts columns first, after which only their numbers of white pixels matter.
    """
    counts = np.array(list(itertools.product(range(aperture + 1), repeat=aperture)))
    squares = np.arange(aperture)[:, None] < counts[:, None, :]  # (squares, rows, columns)
    image = squares.transpose(1, 0, 2).reshape(aperture, -1)
    middle = response(median(aperture=aperture), image)[aperture // 2, aperture // 2 :: aperture]
    np.testing.assert_array_equal(middle, counts.sum(1) > aperture**2 // 2)


@pytest.mark.parametrize("diameter", [3, 5, 15])
def test_bilateral_equals_opencvs_on_floats(diameter):
    image = cv2.GaussianBlur(RNG.random(SHAPE).astype(np.float32) * 255, (3, 3), 0)
    row = bilateral(diameter=diameter, sigma_grey=40.0, sigma_space=2.0)
    want = cv2.bilateralFilter(image, diameter, 40, 2)
    np.testing.assert_allclose(response(row, image), want, atol=1e-3)


@pytest.mark.parametrize(("diameter", "tolerance"), [(5, 1), (7, 0.5)])
def test_opencv_rounds_bilateral_of_bytes(diameter, tolerance):
    image = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
    want = cv2.bilateralFilter(image, diameter, 25, 3)
    np.testing.assert_allclose(
        response(bilateral(diameter=diameter), image), want, rtol=0, atol=tolerance + 1e-3
    )


def test_bilateral_equals_its_definition():
    image = RNG.random(SHAPE) * 255
    for parameters in ((5, 25.0, 3.0), (9, 80.0, 1.5), (7, 0.1, 1000.0)):
        row = bilateral(
            **dict(zip(("diameter", "sigma_grey", "sigma_space"), parameters, strict=True))
        )
        want = references_denoise.bilateral(np.float32(image).astype(np.float64), *parameters)
        # Some fifty roundings of positive terms, and that of squared differences in the exponent.
        np.testing.assert_allclose(response(row, image), want, rtol=1e-5)


@pytest.mark.parametrize("row", [median(aperture=5), bilateral(diameter=7)])
def test_a_wider_aperture_does_not_know_the_canvas_either(row):
    canvas = (RNG.random((24, 20)) * 255).astype(np.float32)
    for height, width in ((1, 1), (2, 5), (23, 19)):
        got = compiled(canvas, np.array([height, width]), filter=row)
        want = response(row, canvas[:height, :width])
        np.testing.assert_array_equal(got[:height, :width], want)


def test_both_keep_a_step_and_take_speckles_away():
    speckles = STEP.copy()
    speckles[5::7, 5::7] += 20
    for row in (median(), median(aperture=5), bilateral(diameter=9, sigma_grey=15.0)):
        np.testing.assert_allclose(response(row, STEP), STEP, atol=1e-3)
        assert np.abs(response(row, speckles) - STEP).max() < 8


@pytest.mark.parametrize("row", [median(), median(aperture=5), bilateral()])
@pytest.mark.parametrize("flat", [True, False])
def test_a_brighter_image_has_a_response_as_much_brighter(row, flat):
    """The mean over directions of the gradient: a pixel's weights sum to one."""
    image = jnp.full((9, 8), 77.0) if flat else jnp.asarray(RNG.random((9, 8)) * 255, jnp.float32)
    brighter = jax.jit(
        lambda x: jax.jvp(
            lambda x: respond(x, jnp.array(x.shape), filter=row), (x,), (jnp.ones_like(x),)
        )
    )
    _, slope = brighter(image)
    np.testing.assert_allclose(slope, 1, rtol=1e-5)


def test_the_gradient_of_bilateral_equals_finite_differences():
    image, weight = RNG.random((6, 5)) * 255, RNG.normal(size=(6, 5))
    slope = jax.grad(lambda x: (respond(x, jnp.array([6, 5]), filter=bilateral()) * weight).sum())
    got = jax.jit(slope)(np.float32(image))
    want = np.zeros((6, 5))
    for index in np.ndindex(6, 5):
        step = np.zeros((6, 5))
        step[index] = 1e-4
        high, low = (references_denoise.bilateral(image + s) for s in (step, -step))
        want[index] = ((high - low) * weight).sum() / 2e-4
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("factory", "parameters", "words"),
    [
        (median, {"aperture": 4}, "aperture=4: choose 3 or 5"),
        (median, {"aperture": 7}, "aperture=7"),
        (bilateral, {"diameter": 6}, "diameter=6: choose an odd number from 3 to 15"),
        (bilateral, {"diameter": 1}, "diameter=1"),
        (bilateral, {"sigma_grey": float("nan")}, "sigma_grey=nan: choose"),
        (bilateral, {"sigma_grey": -1.0}, "sigma_grey=-1.0"),
        (bilateral, {"sigma_space": float("inf")}, "sigma_space=inf"),
    ],
)
def test_a_wrong_parameter_is_named(factory, parameters, words):
    with pytest.raises(ValueError, match=words):
        factory(**parameters)
