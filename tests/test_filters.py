import itertools
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.preprocess.filters import FILTERS
from pp_jax.preprocess.gradients import sobel_gradients
from pp_jax.preprocess.responses import BORDERS, respond
from tests import references

RNG = np.random.default_rng(0)
CANVAS = (24, 20)
SIZES = [(24, 20), (1, 1), (1, 7), (2, 5), (5, 2), (24, 1), (23, 19), (11, 20)]

ROWS = {name: make() for name, make in FILTERS.items()}

responses = {
    name: jax.jit(lambda image, size, row=row: respond(image, size, filter=row))
    for name, row in ROWS.items()
}


def test_every_row_has_an_independent_answer():
    assert set(references.FILTERS) == set(FILTERS)
    assert set(references.BORDERS) == set(BORDERS)


@pytest.mark.parametrize("name", BORDERS)
def test_a_border_rule_continues_as_opencvs(name):
    continued, rule = jax.jit(BORDERS[name]), references.BORDERS[name]
    for length in (1, 2, 3, 9):
        want = [cv2.borderInterpolate(index, length, rule) for index in range(-20, 40)]
        np.testing.assert_array_equal(continued(jnp.arange(-20, 40), jnp.array(length)), want)


@pytest.mark.parametrize("name", FILTERS)
def test_a_response_equals_its_reference(name):
    reference = references.FILTERS[name]
    blurred = cv2.GaussianBlur(RNG.random(CANVAS) * 255, (5, 5), 0)
    for grey in (RNG.integers(0, 256, CANVAS), blurred, np.full(CANVAS, 77)):
        grey = grey.astype(np.float32)
        got = responses[name](grey, jnp.array(CANVAS))
        want = reference.function(grey.astype(np.float64))
        if np.array_equal(grey, np.round(grey)):
            np.testing.assert_array_max_ulp(np.asarray(got), want.astype(np.float32), reference.ulp)
        else:  # Differences of fractional greys cancel: their error is in ulps of 8 * 255.
            np.testing.assert_allclose(got, want, atol=2**-12)


@pytest.mark.parametrize("name", FILTERS)
def test_a_response_does_not_know_the_canvas(name):
    row = ROWS[name]
    for whole in (True, False):  # Integer and fractional grey levels.
        for height, width in SIZES:
            canvas = (RNG.random(CANVAS) * 255).astype(np.float32)
            canvas = np.round(canvas) if whole else canvas
            alone = jax.jit(partial(respond, filter=row))(
                canvas[:height, :width], jnp.array([height, width])
            )
            padded = responses[name](canvas, jnp.array([height, width]))[:height, :width]
            np.testing.assert_array_equal(padded, alone, f"{height}x{width}, {whole=}")
    assert responses[name]._cache_size() == 1


@pytest.mark.parametrize("name", FILTERS)
def test_a_padded_response_equals_the_reference_of_the_image_alone(name):
    reference = references.FILTERS[name]
    for height, width in SIZES:
        canvas = RNG.integers(0, 256, CANVAS).astype(np.float32)
        got = responses[name](canvas, jnp.array([height, width]))[:height, :width]
        want = reference.function(canvas[:height, :width].astype(np.float64))
        np.testing.assert_array_max_ulp(np.asarray(got), want.astype(np.float32), reference.ulp)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("level", [0.0, 128.0, 255.0])
def test_a_flat_image_has_a_finite_gradient(name, level):
    flat = jnp.full(CANVAS, level)
    total = jax.grad(lambda image: responses[name](image, jnp.array(CANVAS)).sum())
    assert np.isfinite(total(flat)).all()


def test_the_gradient_of_sobel_equals_finite_differences():
    image = RNG.random((6, 6)).astype(np.float32) * 255
    weight = RNG.normal(size=(6, 6))
    got = jax.grad(lambda x: (responses["sobel"](x, jnp.array([6, 6])) * weight).sum())(
        jnp.array(image)
    )
    want = np.zeros((6, 6))
    for index in np.ndindex(6, 6):
        step = np.zeros((6, 6))
        step[index] = 1e-4
        high, low = (references.sobel(image.astype(np.float64) + s) for s in (step, -step))
        want[index] = ((high - low) * weight).sum() / 2e-4
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_sobel_gradients_equal_opencvs_exactly():
    image = RNG.integers(0, 256, (40, 33), dtype=np.uint8)
    padded = np.pad(image, 1, mode="reflect").astype(np.float32)
    dx, dy = sobel_gradients(jnp.asarray(padded))
    np.testing.assert_array_equal(dx, cv2.Sobel(image, cv2.CV_32F, 1, 0))
    np.testing.assert_array_equal(dy, cv2.Sobel(image, cv2.CV_32F, 0, 1))


def test_sobels_range_is_what_black_and_white_pixels_reach():
    corners = np.array(list(itertools.product((0, 255), repeat=8)), np.float64)
    neighbours = np.insert(corners, 4, 0, axis=1).reshape(-1, 3, 3)
    reached = max(references.sobel(patch)[1, 1] for patch in neighbours)
    row = ROWS["sobel"]
    assert row.low == 0
    np.testing.assert_allclose(row.high, reached, rtol=1e-12)


@pytest.mark.parametrize("name", FILTERS)
def test_responses_to_grey_levels_stay_in_the_fixed_range(name):
    row = ROWS[name]
    for grey in (RNG.integers(0, 256, CANVAS), RNG.integers(0, 2, CANVAS) * 255):
        got = np.asarray(responses[name](grey.astype(np.float32), jnp.array(CANVAS)))
        assert row.low <= got.min()
        assert got.max() <= row.high
