import itertools
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.preprocess.gradients import (
    SOBEL,
    laplacian,
    prewitt,
    scharr,
    sobel,
    sobel_gradients,
    to_int16,
)
from pp_jax.preprocess.responses import respond
from tests import references_gradients as references

RNG = np.random.default_rng(0)
CANVAS = (24, 20)
# The widths 5, 9 and 19 are some at which XLA fuses products and sums differently.
SIZES = np.array([(24, 20), (1, 1), (2, 5), (24, 9), (23, 19)])
# Steps and lines of full contrast beside noise: aperture 7 exceeds int16 there.
NOISE = RNG.integers(0, 256, CANVAS, dtype=np.uint8)
STEPS = np.kron(RNG.integers(0, 2, (6, 5), dtype=np.uint8) * 255, np.ones((4, 4), np.uint8))

FIRST = [
    (sobel, references.sobel, {"aperture": 1}),
    (sobel, references.sobel, {"aperture": 3}),
    (sobel, references.sobel, {"aperture": 5}),
    (sobel, references.sobel, {"aperture": 7}),
    (scharr, references.scharr, {}),
    (prewitt, references.prewitt, {}),
]
IDS = ["sobel1", "sobel3", "sobel5", "sobel7", "scharr", "prewitt"]


compiled = jax.jit(respond, static_argnames="filter")


def response(row, image: np.ndarray) -> np.ndarray:
    return np.asarray(compiled(np.float32(image), np.array(image.shape), filter=row))


@pytest.mark.parametrize(("make", "reference", "options"), FIRST, ids=IDS)
@pytest.mark.parametrize("part", ["x", "y"])
def test_a_signed_derivative_equals_opencvs_exactly(make, reference, options, part):
    row = make(part=part, **options)
    for image in (NOISE, STEPS):
        want = reference(image.astype(np.float64), part=part, **options)
        np.testing.assert_array_equal(response(row, image), want)


@pytest.mark.parametrize(("make", "reference", "options"), FIRST, ids=IDS)
@pytest.mark.parametrize(("norm", "ulp"), [("l2", 1), ("l1", 0)])
def test_a_magnitude_is_the_exactly_rounded_one_to_an_ulp(make, reference, options, norm, ulp):
    row = make(norm=norm, **options)
    for image in (NOISE, STEPS):
        want = reference(image.astype(np.float64), norm=norm, **options).astype(np.float32)
        np.testing.assert_array_max_ulp(response(row, image), want, ulp)


@pytest.mark.parametrize("aperture", [1, 3, 5, 7])
def test_a_laplacian_equals_opencvs_exactly(aperture):
    row = laplacian(aperture=aperture)
    for image in (NOISE, STEPS):
        want = references.laplacian(image.astype(np.float64), aperture=aperture)
        np.testing.assert_array_equal(response(row, image), want)


@pytest.mark.parametrize("aperture", SOBEL)
def test_sobel_in_int16_saturates_as_opencvs(aperture):
    margin = max(aperture // 2, 1)
    padded = np.pad(STEPS, margin, mode="reflect").astype(np.float32)
    gradients = sobel_gradients(jnp.asarray(padded), aperture=aperture)
    for got, order in zip(gradients, ((1, 0), (0, 1)), strict=True):
        want = cv2.Sobel(STEPS, cv2.CV_16S, *order, ksize=aperture)
        np.testing.assert_array_equal(to_int16(got), want)
        assert (want == 32767).any() == (want == -32768).any() == (aperture == 7)


def test_int16_rounds_halves_to_even_as_opencv():
    values = np.array([[0.5, 1.5, -0.5, -2.5, 40000.7, -1e6]], np.float32)
    want = cv2.add(values, 0.0, dtype=cv2.CV_16S)
    np.testing.assert_array_equal(to_int16(jnp.asarray(values)), want)


def kernel(reference, **options) -> np.ndarray:
    """What each pixel of a 7x7 neighbourhood adds to the centre, from single white pixels."""
    weights = np.zeros((7, 7))
    for index in np.ndindex(7, 7):
        image = np.zeros((13, 13))
        image[3 + index[0], 3 + index[1]] = 1
        weights[index] = reference(image, **options)[6, 6]
    return weights


@pytest.mark.parametrize(("make", "reference", "options"), FIRST, ids=IDS)
def test_the_range_of_a_derivative_is_its_true_maximum(make, reference, options):
    along_x, along_y = (kernel(reference, part=part, **options) for part in "xy")
    np.testing.assert_array_equal(along_y, along_x.T)
    angles = np.linspace(0, 2 * np.pi, 10_001)
    towards = np.cos(angles)[:, None, None] * along_x + np.sin(angles)[:, None, None] * along_y
    reached = 255 * np.clip(towards, 0, None).sum((1, 2))
    best = reached.argmax()

    # The longest vector is the longest projection on any direction; between two of 10 000 it can
    # only be longer by 1 / cos(pi / 10 000).
    row = make(**options)
    assert row.low == 0
    assert reached[best] * (1 - 1e-12) <= row.high <= reached[best] * (1 + 5e-8)
    white = np.where(towards[best] > 0, 255.0, 0.0)
    np.testing.assert_allclose(reference(white, **options)[3, 3], row.high, rtol=1e-12)

    diagonals = [np.clip(along_x + sign * along_y, 0, None).sum() for sign in (-1, 1)]
    assert make(norm="l1", **options).high == 255 * max(diagonals)
    for part in "xy":
        row = make(part=part, **options)
        assert row.high == -row.low == 255 * along_x.clip(min=0).sum()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_no_black_and_white_neighbourhood_exceeds_the_range_of_sobel(norm):
    patches = np.array(list(itertools.product((0.0, 255.0), repeat=9))).reshape(-1, 3, 3)
    reached = max(references.sobel(patch, norm=norm)[1, 1] for patch in patches)
    np.testing.assert_allclose(sobel(norm=norm).high, reached, rtol=1e-12)


@pytest.mark.parametrize("aperture", [1, 3, 5, 7])
def test_the_range_of_a_laplacian_is_what_black_and_white_pixels_reach(aperture):
    row = laplacian(aperture=aperture)
    weights = kernel(references.laplacian, aperture=aperture)
    assert row.high == 255 * weights.clip(min=0).sum()
    assert row.low == 255 * weights.clip(max=0).sum()


@pytest.mark.parametrize(
    "row",
    [sobel(aperture=5, norm="l1"), sobel(aperture=7), scharr(), laplacian(aperture=7)],
    ids=["sobel5", "sobel7", "scharr", "laplacian7"],
)
def test_a_derivative_does_not_know_the_canvas(row):
    canvases = (RNG.random((len(SIZES), *CANVAS)) * 255).astype(np.float32)
    got = jax.jit(jax.vmap(partial(respond, filter=row)))(canvases, SIZES)
    for padded, canvas, (height, width) in zip(got, canvases, SIZES, strict=True):
        alone = response(row, canvas[:height, :width])
        np.testing.assert_array_equal(padded[:height, :width], alone, f"{height}x{width}")


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_flat_image_has_a_zero_gradient(norm):
    row = sobel(aperture=7, norm=norm)
    slope = jax.jit(jax.grad(lambda image: respond(image, jnp.array(CANVAS), filter=row).sum()))
    np.testing.assert_array_equal(slope(np.full(CANVAS, 90.0, np.float32)), 0)


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        (sobel(aperture=5, part="x"), partial(references.sobel, aperture=5, part="x")),
        (laplacian(), references.laplacian),
    ],
    ids=["sobel5", "laplacian"],
)
def test_the_gradient_of_a_linear_response_is_its_transpose(row, reference):
    image, weight = RNG.normal(size=(2, *CANVAS))
    transposed = jax.jit(
        jax.grad(lambda i: (weight * respond(i, jnp.array(CANVAS), filter=row)).sum())
    )(jnp.zeros(CANVAS))
    want = (weight * reference(image)).sum()
    np.testing.assert_allclose((np.asarray(transposed) * image).sum(), want, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (sobel, {"aperture": 4}, "aperture=4: choose 1, 3, 5 or 7"),
        (sobel, {"aperture": float("nan")}, "aperture=nan: choose 1, 3, 5 or 7"),
        (sobel, {"part": "z"}, "part='z': choose magnitude, x or y"),
        (scharr, {"norm": "l3"}, "norm='l3': choose l1 or l2"),
        (prewitt, {"part": ""}, "part='': choose magnitude, x or y"),
        (laplacian, {"aperture": -1}, "aperture=-1: choose 1, 3, 5 or 7"),
    ],
)
def test_a_wrong_parameter_is_named(make, wrong, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(**wrong)
