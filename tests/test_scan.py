"""Encoder blocks compiled once, as a loop, compute what they compute one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax import tree
from pp_jax.lora import Lora
from pp_jax.sam.image_encoder import ImageEncoder
from tests.test_step import COMPILER, SIDE, SMALL

TWO_GROUPS = dataclasses.replace(SMALL, depth=6, global_blocks=(2, 5))
PAIRS = Lora(2, 4.0, ("q", "lin1"))


def encoder(**choices) -> ImageEncoder:
    return ImageEncoder(TWO_GROUPS, lora=PAIRS, **choices)


def pixels() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (1, SIDE, SIDE, 3))


@functools.cache
def variables() -> dict:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(encoder().init, jax.random.key(0), pixels())
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), shapes)


def answer(**choices) -> tuple[np.ndarray, dict]:
    """The embedding, and the gradient of a sum of it that no symmetry takes away."""

    @functools.partial(jax.jit, compiler_options=COMPILER)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def slope(variables):
        y = encoder(**choices).apply(variables, pixels())
        return (y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)).sum(), y

    (_, y), gradient = slope(variables())
    return jax.device_get((y, gradient))


def test_a_loop_over_blocks_gives_the_same_embedding_and_gradients():
    """Blocks computed again in the backward pass, too."""
    want, slopes = answer()
    got, own = answer(scan_blocks=True, remat=True)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    flat = tree.flatten(own)
    assert flat.keys() == tree.flatten(slopes).keys()
    for path, leaf in tree.flatten(slopes).items():
        highest = np.abs(leaf).max()
        assert highest > 0, path
        np.testing.assert_allclose(flat[path], leaf, atol=1e-4 * highest, err_msg=path)


def test_parameters_are_named_the_same_whether_they_are_looped_over_or_not():
    looped = jax.eval_shape(encoder(scan_blocks=True).init, jax.random.key(0), pixels())
    assert looped == jax.eval_shape(encoder().init, jax.random.key(0), pixels())


@pytest.mark.parametrize("depth", [1, 5])
def test_blocks_without_a_repeated_pattern_are_one_group(depth):
    config = dataclasses.replace(SMALL, depth=depth, global_blocks=(0,))
    plain, looped = (ImageEncoder(config, scan_blocks=scan) for scan in (False, True))
    drawn = jax.eval_shape(plain.init, jax.random.key(0), pixels())
    got, want = (jax.eval_shape(own.apply, drawn, pixels()) for own in (looped, plain))
    assert got == want
