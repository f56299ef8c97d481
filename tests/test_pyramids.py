from functools import cache, partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.preprocess.pyramids import musica, pyramid_down, pyramid_up
from pp_jax.preprocess.responses import respond
from tests import references_pyramids as references

RNG = np.random.default_rng(0)
CANVAS = (41, 30)
SIZES = [(41, 30), (1, 1), (1, 30), (40, 1), (2, 3), (3, 2), (33, 17), (16, 16), (40, 29)]
DEFAULT, OTHER = {}, {"gain": 1.5, "levels": 3, "power": 0.4, "noise": 6.0}

down = jax.jit(pyramid_down)
up = jax.jit(pyramid_up, static_argnames="shape")


@cache
def jitted(**parameters):
    return jax.jit(partial(respond, filter=musica(**parameters)))


def canvas_and_image(size):
    """Random grey levels, and those of them that are valid."""
    canvas = RNG.integers(0, 256, CANVAS, dtype=np.uint8)
    return canvas.astype(np.float32), canvas[: size[0], : size[1]]


@pytest.mark.parametrize("size", SIZES)
def test_halving_equals_opencvs_pyr_down(size):
    canvas, image = canvas_and_image(size)
    height, width = ((side + 1) // 2 for side in size)
    got = np.asarray(down(canvas, jnp.array(size)))[:height, :width]
    np.testing.assert_array_equal(got, references.down(image.astype(np.float32)))
    np.testing.assert_array_equal(np.floor(got + 0.5), references.down(image))


@pytest.mark.parametrize("size", SIZES)
def test_doubling_equals_opencvs_pyr_up(size):
    canvas, image = canvas_and_image(size)
    got = np.asarray(up(canvas, jnp.array(size), shape=(82, 59)))
    for less in (0, 1):
        height, width = 2 * size[0] - less, min(2 * size[1] - less, 59)
        part = got[:height, :width]
        np.testing.assert_array_equal(part, references.up(image.astype(np.float32), part.shape))
        np.testing.assert_array_equal(np.floor(part + 0.5), references.up(image, part.shape))


def test_pyramids_of_fractional_levels_equal_opencvs_to_float_accuracy():
    image = (RNG.random(CANVAS) * 255).astype(np.float32)
    size = jnp.array(CANVAS)
    # Sums of at most 256 / 16 times 255, rounded a few times.
    np.testing.assert_allclose(down(image, size), references.down(image), rtol=1e-6)
    got = up(image, size, shape=(82, 60))
    np.testing.assert_allclose(got, references.up(image, (82, 60)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(83, 60), (80, 60), (41, 30)])
def test_doubling_to_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="choose twice each side"):
        pyramid_up(jnp.zeros(CANVAS), jnp.array(CANVAS), shape=shape)


@pytest.mark.parametrize("levels", [1, 9])
def test_without_amplification_the_image_comes_back(levels):
    got = jitted(levels=levels, power=1.0)
    for size in SIZES:
        canvas, image = canvas_and_image(size)
        response = got(canvas, jnp.array(size))[: size[0], : size[1]]
        np.testing.assert_allclose(response, image, atol=1e-4)


@pytest.mark.parametrize("parameters", [DEFAULT, OTHER])
def test_amplification_equals_the_papers_equations_on_opencvs_pyramids(parameters):
    got = jitted(**parameters)
    for size in SIZES:
        canvas = (RNG.random(CANVAS) * 255).astype(np.float32)
        canvas = cv2.GaussianBlur(canvas, (0, 0), RNG.choice([0.4, 2, 5]))
        response = got(canvas, jnp.array(size))[: size[0], : size[1]]
        want = references.musica(canvas[: size[0], : size[1]].astype(np.float64), **parameters)
        # Rounding errors of grey levels, about 2 ** -16, times the factor of faint details.
        np.testing.assert_allclose(response, want, atol=1e-3)


def test_details_fainter_than_the_noise_grow_by_one_factor():
    pattern = RNG.normal(size=CANVAS).astype(np.float32)
    got = jitted(levels=2, noise=4.0)

    def growth(strength):
        response = got(100 + strength * pattern, jnp.array(CANVAS)) - 100
        return np.asarray(response, np.float64) / strength

    np.testing.assert_allclose(growth(1.0), growth(0.5), atol=1e-3)
    factor = (4 / 64) ** (0.7 - 1)
    coarse = references.down(references.down(pattern.astype(np.float64)))
    rest = references.up(references.up(coarse, (21, 15)), CANVAS)
    np.testing.assert_allclose(growth(1.0), factor * (pattern - rest) + rest, atol=1e-3)
    assert growth(20.0).std() < 0.8 * growth(1.0).std()


def test_a_flat_image_stays_exactly():
    for level in np.append(RNG.random(20) * 255, [0, 255]):
        flat = np.full(CANVAS, level, np.float32)
        np.testing.assert_array_equal(jitted()(flat, jnp.array(CANVAS)), flat)


def test_amplification_knows_neither_the_canvas_nor_the_batch():
    sizes = [(1, 1), (16, 16), (33, 17)]
    images = (RNG.random((len(sizes), *CANVAS)) * 255).astype(np.float32)
    batched = jax.jit(jax.vmap(jitted(**OTHER)))(images, jnp.array(sizes))
    for image, response, (height, width) in zip(images, batched, sizes, strict=True):
        alone = jitted(**OTHER)(image[:height, :width], jnp.array([height, width]))
        padded = jitted(**OTHER)(image, jnp.array([height, width]))
        np.testing.assert_array_equal(padded[:height, :width], alone)
        np.testing.assert_array_equal(response[:height, :width], alone)


def test_the_gradient_of_amplification_equals_finite_differences():
    shape = (6, 7)
    image = 60 + RNG.random(shape) * 80
    got = jax.jit(jax.grad(lambda x: (jitted(**OTHER)(x, jnp.array(shape)) * weight).sum()))
    weight = RNG.normal(size=shape).astype(np.float32)
    for base in (image, np.full(shape, 128.0)):
        want = np.zeros(shape)
        for index in np.ndindex(shape):
            step = np.zeros(shape)
            step[index] = 1e-3
            higher, lower = (references.musica(base + s, **OTHER) for s in (step, -step))
            want[index] = ((higher - lower) * weight).sum() / 2e-3
        np.testing.assert_allclose(got(base.astype(np.float32)), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gain": -1.0},
        {"gain": float("nan")},
        {"levels": 0},
        {"levels": 12},
        {"power": 0.0},
        {"power": float("inf")},
        {"noise": 0.0},
        {"noise": 256.0},
        {"noise": float("nan")},
    ],
)
def test_a_wrong_parameter_is_named_and_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}: choose"):
        musica(**wrong)
