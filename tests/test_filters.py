"""Laws that every row of `FILTERS` obeys; each filter's own stand in the test of its module."""

from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax import sharding
from pp_jax.preprocess.filters import (
    FILTERS,
    canonical,
    filter_image,
    make_chain,
    parse,
    show,
)
from pp_jax.preprocess.responses import BORDERS, respond
from tests import references

RNG = np.random.default_rng(0)
CANVAS = (24, 20)
SIZES = np.array([(24, 20), (1, 1), (1, 7), (2, 5), (5, 2), (24, 1), (23, 19), (11, 20)], np.int32)
ROWS = {name: make() for name, make in FILTERS.items()}
ODD = 6  # 23x19.
WHOLE = RNG.integers(0, 256, (len(SIZES), *CANVAS)).astype(np.float32)
SMOOTH = np.stack([cv2.GaussianBlur(RNG.random(CANVAS) * 255, (5, 5), 0) for _ in SIZES])
FLAT = (0.0, 128.0, 255.0)


@jax.jit
def respond_all(images, sizes):
    """Every filter on every image of a batch."""
    return {
        name: jax.vmap(lambda image, size, row=row: respond(image, size, filter=row))(images, sizes)
        for name, row in ROWS.items()
    }


@pytest.fixture(scope="module")
def responses():
    """To integer and to fractional grey levels, in one program, shared out over four devices."""
    mesh = sharding.make_mesh(jax.devices()[:4])
    batch = np.concatenate([WHOLE, SMOOTH.astype(np.float32)]), np.tile(SIZES, (2, 1))
    return jax.device_get(respond_all(*sharding.place_batch(batch, mesh)))


@pytest.fixture(scope="module")
def whole(responses):
    """Responses to integer grey levels."""
    return {name: response[: len(SIZES)] for name, response in responses.items()}


@pytest.fixture(scope="module")
def smooth(responses):
    """Responses to fractional grey levels."""
    return {name: response[len(SIZES) :] for name, response in responses.items()}


def valid(images):
    """The valid part of each image of a batch, with its size."""
    for image, (height, width) in zip(np.asarray(images), SIZES, strict=True):
        yield image[:height, :width], f"{height}x{width}"


def assert_agrees(got, want, reference, where):
    want = np.asarray(want, np.float64)
    allowed = np.maximum(
        reference.ulp * np.spacing(np.abs(want).astype(np.float32)), reference.atol
    )
    off = np.abs(np.asarray(got, np.float64) - want) > allowed
    assert off.mean() <= reference.share, f"{where}: {off.sum()} pixels are off"


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
def test_a_response_is_the_reference_of_the_valid_part_alone(name, whole):
    reference = references.FILTERS[name]
    for (image, where), (response, _) in zip(valid(WHOLE), valid(whole[name]), strict=True):
        assert_agrees(response, reference.function(image.astype(np.float64)), reference, where)


@pytest.mark.parametrize("name", ["sobel", "log", "dog", "unsharp", "bilateral", "musica", "gamma"])
def test_fractional_grey_levels_are_filtered_as_they_are(name, smooth):
    reference = references.FILTERS[name]
    reference = reference._replace(atol=max(reference.atol, 2**-12))  # ulps of 8 * 255, cancelled.
    for (image, where), (response, _) in zip(valid(SMOOTH), valid(smooth[name]), strict=True):
        image = image.astype(np.float32).astype(np.float64)
        assert_agrees(response, reference.function(image), reference, where)


def test_integer_grey_levels_are_the_same_in_bfloat16(whole):
    one = jax.jit(lambda image, size: respond(image, size, filter=ROWS["sobel"]))
    got = one(jnp.asarray(WHOLE[0], jnp.bfloat16), SIZES[0])
    np.testing.assert_array_equal(got, whole["sobel"][0])


@pytest.fixture(scope="module")
def alone():
    """Responses to an image that is no canvas, of a width that XLA computes in another way."""
    height, width = SIZES[ODD]
    image = SMOOTH[ODD, :height, :width].astype(np.float32)
    return jax.device_get(respond_all(image[None], SIZES[ODD][None]))


@pytest.mark.parametrize("name", FILTERS)
def test_a_response_does_not_know_the_canvas(name, smooth, alone):
    height, width = SIZES[ODD]
    np.testing.assert_array_equal(smooth[name][ODD, :height, :width], alone[name][0])


@pytest.fixture(scope="module")
def slopes():
    """Gradients of every filter's sum, on flat images, compiled in a hurry."""

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @jax.vmap
    def slope(image):
        size = jnp.array(CANVAS)
        return {
            name: jax.grad(lambda x, row=row: respond(x, size, filter=row).sum())(image)
            for name, row in ROWS.items()
        }

    return slope(jnp.stack([jnp.full(CANVAS, level) for level in FLAT]))


@pytest.mark.parametrize("name", FILTERS)
def test_a_flat_image_has_a_finite_gradient(name, slopes):
    assert np.isfinite(slopes[name]).all()


@pytest.mark.parametrize("name", FILTERS)
def test_responses_to_grey_levels_stay_in_the_fixed_range(name, whole, smooth):
    row = ROWS[name]
    for responses in (whole, smooth):
        for response, _ in valid(responses[name]):
            assert row.low <= response.min()
            assert response.max() <= row.high


def test_a_chain_is_its_filters_one_after_another():
    spec = "median:3>clahe>musica>sobel:3"
    image = jnp.asarray(WHOLE[0])
    size = jnp.array([21, 17])
    chain = parse(spec)[0]
    got = jax.jit(lambda image, size: show(image, size, filters=make_chain(chain)))(image, size)
    want = WHOLE[0][:21, :17].astype(np.float64)
    for name in ("median", "clahe", "musica", "sobel"):
        row = ROWS[name]
        want = references.FILTERS[name].function(want)
        want = np.clip((want - row.low) * 255 / (row.high - row.low), 0, 255)
    np.testing.assert_allclose(got[:21, :17], want, rtol=0, atol=0.02)


def test_the_order_of_a_chain_counts():
    image = WHOLE[0]
    one, other = filter_image(image, spec="sobel>median,median>sobel")
    assert np.abs(one - other).mean() > 1


def test_a_canonical_spec_names_every_parameter():
    assert canonical("median>clahe:3,none") == "median:aperture=3>clahe:clip=3.0:tiles=8,none"
    assert canonical(canonical("sobel:5")) == canonical("sobel:aperture=5")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sobel:4", "filter 'sobel:4': aperture=4"),
        ("median:7", "aperture=7"),
        ("laplacian:2", "aperture=2"),
        ("gaussian:-1", "sigma=-1"),
        ("log:0", "sigma=0"),
        ("dog:nan", "sigma=nan"),
        ("canny:150:50", "low=150"),
        ("canny_quantile:2:0.9:0.8", "low=0.9"),
        ("window:99:1", "low=99"),
        ("gamma:0", "gamma=0"),
        ("bilateral:4", "diameter=4"),
        ("clahe:-1", "clip=-1"),
        ("median>canny:a", "low='a' must be a number"),
        ("median>", "filter '' is unknown"),
    ],
)
def test_a_wrong_parameter_is_named_at_construction(spec, message):
    with pytest.raises(ValueError, match=message):
        parse(spec)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((3, 3), np.nan), "grey levels from nan to nan"),
        (np.full((3, 3), 256.0), "grey levels from 256.0 to 256.0"),
        (np.zeros((0, 4)), r"an image of shape \(0, 4\)"),
        (np.zeros((4, 4, 2)), r"an image of shape \(4, 4, 2\)"),
    ],
)
def test_an_image_that_is_none_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        filter_image(image, spec="none")


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
def test_a_large_image_is_filtered_like_a_small_one(name):
    image = cv2.GaussianBlur(RNG.integers(0, 256, (2048, 1536), dtype=np.uint8), (0, 0), 5)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.float32)
    row, reference = ROWS[name], references.FILTERS[name]
    got = jax.jit(lambda x, size: respond(x, size, filter=row))(image, jnp.array([2048, 1536]))
    assert_agrees(got, reference.function(image.astype(np.float64)), reference, name)
