import re
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pp_jax.preprocess.responses import respond
from pp_jax.preprocess.smoothing import dog, gaussian, gaussian_kernel, log, unsharp
from tests import references_smoothing as references

RNG = np.random.default_rng(0)
CANVAS = (40, 33)
NOISE = RNG.integers(0, 256, CANVAS, dtype=np.uint8)
STEPS = np.kron(RNG.integers(0, 2, (8, 11), dtype=np.uint8) * 255, np.ones((5, 3), np.uint8))
# Float32 sums of at most 66 positive terms that add up to 255.
ATOL = 255 * 2**-20


compiled = jax.jit(respond, static_argnames="filter")


def response(row, image: np.ndarray) -> np.ndarray:
    return np.asarray(compiled(np.float32(image), np.array(image.shape), filter=row))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma": 0.3},
        {"sigma": 2.3},
        {"sigma": 7.5},  # The aperture exceeds the image: its border is reflected many times.
        {"sigma": 1.0, "aperture": 1},
        {"sigma": 50.0, "aperture": 3},
        {"sigma": 2.5, "aperture": 21},
    ],
    ids=str,
)
def test_a_gaussian_blur_equals_opencvs_on_uint8_exactly(options):
    row = gaussian(**options)
    for image in (NOISE, STEPS, np.full(CANVAS, 255, np.uint8)):
        np.testing.assert_array_equal(response(row, image), references.gaussian(image, **options))


def test_the_widest_gaussian_blur_equals_opencvs_exactly():
    row = NOISE[:1]
    np.testing.assert_array_equal(
        response(gaussian(sigma=50.0), row), references.gaussian(row, sigma=50.0)
    )


def test_a_gaussian_blur_of_a_real_image_equals_opencvs_exactly(real_data):
    path = min((real_data / "cxr_seg" / "images").glob("*.*"))
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[:1024, :1024]
    np.testing.assert_array_equal(response(gaussian(), image), references.gaussian(image))


def test_a_gaussian_blur_rounds_fractional_levels_first():
    levels = np.clip(NOISE + RNG.uniform(-0.5, 0.5, CANVAS), 0, 255)
    np.testing.assert_array_equal(response(gaussian(), levels), references.gaussian(levels))


def test_a_gaussian_kernel_equals_opencvs():
    for sigma, aperture in ((0.3, 3), (1.0, 9), (20.0, 161)):
        want = cv2.getGaussianKernel(aperture, sigma)[:, 0]
        np.testing.assert_allclose(gaussian_kernel(sigma, aperture=aperture), want, rtol=1e-13)


def test_the_derivative_of_a_gaussian_blur_is_the_blur_without_its_rounding():
    image = jnp.asarray(NOISE, jnp.float32)
    blur = partial(compiled, filter=gaussian())
    # Without roundings the blur is linear: its derivative in the image's own direction is itself.
    value, along_itself = jax.jvp(lambda i: blur(i, jnp.array(CANVAS)), (image,), (image,))
    want = references.gaussian(NOISE)
    np.testing.assert_array_equal(value, want)
    error = np.abs(np.asarray(along_itself) - want)
    assert 0.4 < error.max() <= 0.5 + 1e-4

    weight = RNG.normal(size=CANVAS).astype(np.float32)
    backward = jax.jit(jax.grad(lambda i: (weight * blur(i, jnp.array(CANVAS))).sum()))(image)
    np.testing.assert_allclose(
        (np.asarray(backward, np.float64) * NOISE).sum(),
        (np.asarray(along_itself, np.float64) * weight).sum(),
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("make", "reference", "options"),
    [
        (unsharp, references.unsharp, {}),
        (unsharp, references.unsharp, {"amount": 3.5, "sigma": 0.8}),
        (dog, references.dog, {}),
        (dog, references.dog, {"sigma": 4.0, "ratio": 2.0}),
    ],
    ids=["unsharp", "strong unsharp", "dog", "wide dog"],
)
def test_what_a_float_blur_leaves_equals_opencvs(make, reference, options):
    row = make(**options)
    for image in (NOISE, STEPS, RNG.random(CANVAS) * 255):
        image = image.astype(np.float32)
        want = reference(image.astype(np.float64), **options)
        tolerance = ATOL * (1 + options.get("amount", 1))
        np.testing.assert_allclose(response(row, image), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0])
def test_log_equals_scipys_to_a_millionth_of_its_range(sigma):
    row = log(sigma=sigma)
    for image in (NOISE, STEPS):
        want = references.log(image, sigma=sigma)
        got = response(row, image)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * (row.high - row.low))


def test_the_bright_and_the_dark_side_of_a_band_pass():
    spot = np.zeros((9, 9))
    spot[4, 4] = 255
    assert response(dog(), spot)[4, 4] > 20
    assert response(log(sigma=1.0), spot)[4, 4] < -50


def test_no_amount_of_sharpening_gives_the_image():
    np.testing.assert_array_equal(response(unsharp(amount=0.0), NOISE), NOISE)


@pytest.mark.parametrize(
    ("make", "reference"),
    [(dog, references.dog), (log, lambda image: ndimage.gaussian_laplace(image, 2.0))],
    ids=["dog", "log"],
)
def test_the_range_of_a_band_pass_is_what_black_and_white_pixels_reach(make, reference):
    impulse = np.zeros((81, 81))
    impulse[40, 40] = 1
    # Both kernels are symmetric, so that the response to one white pixel is the kernel.
    kernel = reference(impulse)
    lit, dark = (reference(np.where(sign * kernel > 0, 255.0, 0.0))[40, 40] for sign in (1, -1))
    row = make()
    assert row.low == -row.high
    np.testing.assert_allclose(row.high, max(lit, -dark), rtol=1e-12)


@pytest.mark.parametrize(
    "row",
    [gaussian(sigma=3.0), unsharp(sigma=0.5), log(sigma=0.7), dog(sigma=2.0)],
    ids=["gaussian", "unsharp", "log", "dog"],
)
def test_a_response_does_not_know_the_canvas(row):
    # The widths 5, 9 and 22 are some at which XLA fuses products and sums differently.
    sizes = np.array([CANVAS, (1, 1), (2, 5), (24, 9), (39, 22)])
    canvases = (RNG.random((len(sizes), *CANVAS)) * 255).astype(np.float32)
    got = jax.jit(jax.vmap(partial(respond, filter=row)))(canvases, sizes)
    for padded, canvas, (height, width) in zip(got, canvases, sizes, strict=True):
        alone = response(row, canvas[:height, :width])
        np.testing.assert_array_equal(padded[:height, :width], alone, f"{height}x{width}")


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (gaussian, {"sigma": -1.0}, "sigma=-1.0: choose a number of pixels from 0.3 to 50"),
        (gaussian, {"sigma": float("nan")}, "sigma=nan: choose a number of pixels from 0.3 to 50"),
        (gaussian, {"aperture": 4}, "aperture=4: choose 0 or an odd number from 1 to 401"),
        (gaussian, {"aperture": -3}, "aperture=-3: choose 0 or an odd number from 1 to 401"),
        (unsharp, {"sigma": 50.1}, "sigma=50.1: choose a number of pixels from 0.3 to 50"),
        (unsharp, {"amount": float("inf")}, "amount=inf: choose a number from 0 to 100"),
        (unsharp, {"amount": -1.0}, "amount=-1.0: choose a number from 0 to 100"),
        (dog, {"ratio": 1.0}, "ratio=1.0: choose a number from 1.1 up"),
        (dog, {"ratio": float("nan")}, "ratio=nan: choose a number from 1.1 up"),
        (dog, {"sigma": 40.0}, "ratio * sigma=64.0: choose a number of pixels from 0.3 to 50"),
        (log, {"sigma": 0.0}, "sigma=0.0: choose a number of pixels from 0.3 to 50"),
    ],
)
def test_a_wrong_parameter_is_named(make, wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**wrong)
