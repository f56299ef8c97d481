from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.preprocess.clahe import clahe
from pp_jax.preprocess.contrast import equalize, gamma, window
from pp_jax.preprocess.responses import respond
from tests import references_contrast as references

RNG = np.random.default_rng(0)
CANVAS = (64, 48)
SIZES = [(64, 48), (1, 1), (1, 7), (5, 3), (40, 40), (64, 40), (63, 40), (23, 47)]
ROWS = {
    "equalize": equalize(),
    "clahe:clip=3.3:tiles=5": clahe(clip=3.3, tiles=5),
    "window:low=10:high=60": window(low=10.0, high=60.0),
    "gamma:gamma=2.2": gamma(gamma=2.2),
}


compiled = jax.jit(respond, static_argnames="filter")


def jitted(row):
    return partial(compiled, filter=row)


def on_canvas(image, canvas=CANVAS):
    """The image in the corner of a canvas that is random elsewhere."""
    around = RNG.integers(0, 256, canvas).astype(np.float32)
    around[: image.shape[0], : image.shape[1]] = image
    return around


def kinds(shape):
    """Integer images with broad, narrow, lopsided and flat histograms."""
    yield RNG.integers(0, 256, shape)
    yield np.clip(RNG.normal(30, 5, shape), 0, 255).round()
    yield np.clip(RNG.normal(250, 40, shape), 0, 255).round()
    yield RNG.integers(0, 2, shape) * 255
    yield np.full(shape, 77)


def assert_equals_reference(row, reference, sizes):
    got = jitted(row)
    for height, width in sizes:
        for image in kinds((height, width)):
            response = got(on_canvas(image), jnp.array([height, width]))[:height, :width]
            np.testing.assert_array_equal(response, reference(image), f"{height}x{width}")


def test_equalisation_equals_opencvs():
    assert_equals_reference(equalize(), references.equalize, SIZES)


@pytest.mark.parametrize(("clip", "tiles"), [(2.0, 8), (0.0, 3), (40.0, 7), (1.15, 1), (3.0, 64)])
def test_clahe_equals_opencvs(clip, tiles):
    reference = partial(references.clahe, clip=clip, tiles=tiles)
    assert_equals_reference(clahe(clip=clip, tiles=tiles), reference, SIZES)


# In float64 the first product is rounded up to a whole number, the second down from one.
@pytest.mark.parametrize(("clip", "height", "width"), [(2.3, 64, 40), (11.2, 15, 96)])
def test_the_limit_of_clahe_is_rounded_as_float64(clip, height, width):
    image = RNG.normal(60, 3, (height, width)).round()
    got = jitted(clahe(clip=clip, tiles=1))(image.astype(np.float32), jnp.array(image.shape))
    np.testing.assert_array_equal(got, references.clahe(image, clip=clip, tiles=1))


def test_equalisations_of_x_rays_equal_opencvs(real_data):
    rows = ((equalize(), references.equalize), (clahe(), references.clahe))
    for file in sorted((real_data / "cxr_seg" / "images").iterdir())[:3]:
        image = cv2.resize(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), (600, 512))
        for row, reference in rows:
            got = jitted(row)(image.astype(np.float32), jnp.array(image.shape))
            np.testing.assert_array_equal(got, reference(image))


def test_fractional_grey_levels_are_rounded_before_they_are_equalised():
    image = RNG.random(CANVAS) * 255
    image[0, :4] = [0.5, 1.5, 2.5, 254.5]
    image = image.astype(np.float32)
    for row, reference in ((equalize(), references.equalize), (clahe(), references.clahe)):
        np.testing.assert_array_equal(jitted(row)(image, jnp.array(CANVAS)), reference(image))


@pytest.mark.parametrize(("low", "high"), [(1.0, 99.0), (0.0, 100.0), (33.3, 34.5)])
def test_a_window_equals_the_line_between_numpys_percentiles(low, high):
    got = jitted(window(low=low, high=high))
    for height, width in SIZES:
        for image in (*kinds((height, width)), RNG.random((height, width)) * 255):
            image = image.astype(np.float32)
            response = got(on_canvas(image), jnp.array([height, width]))[:height, :width]
            want = references.window(image.astype(np.float64), low=low, high=high)
            # Five roundings: both percentiles, difference, quotient, product.
            steep = 255 / max(np.ptp(np.percentile(image, [low, high])), 1e-3)
            np.testing.assert_allclose(response, want, rtol=3e-7, atol=2**-15 * steep)


def test_a_window_of_a_flat_image_leaves_it():
    flat = jnp.full(CANVAS, 77.3)
    np.testing.assert_array_equal(jitted(window())(flat, jnp.array(CANVAS)), flat)


def test_a_window_between_equal_percentiles_parts_what_is_darker_and_lighter():
    image = np.full(CANVAS, 100.0, np.float32)
    image[0, :2] = [99, 101]
    want = image.copy()
    want[0, :2] = [0, 255]
    np.testing.assert_array_equal(jitted(window())(image, jnp.array(CANVAS)), want)


def test_the_gradient_of_a_window_is_its_slope_inside_and_zero_outside():
    image = np.arange(101, dtype=np.float32)[None] * 2  # The percentiles 10 and 60 are 20 and 120.
    row = ROWS["window:low=10:high=60"]
    slope = jax.jit(jax.grad(lambda x: respond(x, jnp.array(x.shape), filter=row).sum()))(image)
    inside = (image > 20) & (image < 120)
    np.testing.assert_allclose(slope[inside], 255 / 100, rtol=1e-6)
    np.testing.assert_array_equal(slope[(image < 20) | (image > 120)], 0)


@pytest.mark.parametrize("power", [0.1, 0.5, 2.2, 10.0])
def test_gamma_equals_the_power_in_float64(power):
    image = np.append(RNG.random(1000) * 255, [0, 1e-3, 1, 254, 255])[None].astype(np.float32)
    got = jitted(gamma(gamma=power))(image, jnp.array(image.shape))
    want = references.gamma(image.astype(np.float64), gamma=power)
    # The power multiplies the two rounding errors of x times 1 / 255, and adds a few of its own.
    np.testing.assert_allclose(got, want, rtol=(2 * power + 8) * 2**-24, atol=1e-30)


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0, 2.2])
def test_the_gradient_of_gamma_is_the_derivative_and_zero_at_black(power):
    image = jnp.array([[0.0, 1e-44, 1.0, 128.0, 255.0]])
    row = gamma(gamma=power)
    slope = jax.jit(jax.grad(lambda x: respond(x, jnp.array(x.shape), filter=row).sum()))(image)[0]
    np.testing.assert_array_equal(slope[:2], 0)
    want = power * (np.asarray(image[0, 2:], np.float64) / 255) ** (power - 1)
    np.testing.assert_allclose(slope[2:], want, rtol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_a_response_knows_neither_the_canvas_nor_the_batch(name):
    sizes = SIZES[1:5]
    images = (RNG.random((len(sizes), *CANVAS)) * 255).astype(np.float32)
    batched = jax.jit(jax.vmap(partial(respond, filter=ROWS[name])))(images, jnp.array(sizes))
    for image, response, (height, width) in zip(images, batched, sizes, strict=True):
        alone = jitted(ROWS[name])(image[:height, :width], jnp.array([height, width]))
        np.testing.assert_array_equal(response[:height, :width], alone)


@pytest.mark.parametrize("name", ROWS)
def test_a_flat_image_has_a_finite_gradient(name):
    slope = jax.jit(jax.grad(lambda x: respond(x, jnp.array(CANVAS), filter=ROWS[name]).sum()))
    for level in (0, 128, 255):
        assert np.isfinite(slope(jnp.full(CANVAS, level, jnp.float32))).all()


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (clahe, {"clip": -1.0}),
        (clahe, {"clip": float("nan")}),
        (clahe, {"clip": float("inf")}),
        (clahe, {"tiles": 0}),
        (clahe, {"tiles": 65}),
        (window, {"low": 60.0, "high": 60.0}),
        (window, {"low": -1.0}),
        (window, {"high": 100.5}),
        (window, {"low": float("nan")}),
        (gamma, {"gamma": 0.0}),
        (gamma, {"gamma": 10.5}),
        (gamma, {"gamma": float("nan")}),
    ],
)
def test_a_wrong_parameter_is_named_and_refused(make, wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}.*: choose"):
        make(**wrong)
