"""Every implementation of attention computes the plain formula on the accelerator at hand."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.sam.attention import ATTENTIONS, attend

pytestmark = pytest.mark.gpu

SHAPES = {
    "vit_b grid": (1, 64, 12, 64),
    "vit_h grid": (1, 64, 16, 80),
    "vit_b windows": (25, 14, 12, 64),
    "vit_h windows": (25, 14, 16, 80),
    "tiny grid": (2, 16, 2, 32),
}


def value_and_gradients(run: Callable[..., jax.Array], parts: tuple, dout: jax.Array) -> tuple:
    @jax.jit
    def both(parts: tuple, dout: jax.Array) -> tuple:
        out, pull = jax.vjp(run, *parts)
        return out, *pull(dout)

    return tuple(np.asarray(x, np.float32) for x in jax.device_get(both(parts, dout)))


@cache
def drawn(shape: str) -> tuple[tuple, jax.Array]:
    """Query, key, value and both terms, each a bfloat16 number; and a gradient of the output."""
    batch, side, heads, width = SHAPES[shape]
    keys = jax.random.split(jax.random.key(0), 6)
    sizes = (width, width, width, side, side, width)
    parts = [
        jax.random.normal(key, (batch, side * side, heads, size), jnp.bfloat16)
        for key, size in zip(keys, sizes, strict=True)
    ]
    query, *rest, dout = (x.astype(jnp.float32) for x in parts)
    query = (query * width**-0.5).astype(jnp.bfloat16).astype(jnp.float32)
    return (query, *rest), dout


@cache
def exact(shape: str) -> tuple:
    with jax.default_matmul_precision("highest"):
        return value_and_gradients(attend, *drawn(shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name != "plain"])
def test_outputs_and_gradients_are_those_of_the_plain_formula(
    name: str, shape: str, dtype: str
) -> None:
    if jax.devices()[0].platform == "cpu":
        pytest.skip("jax sees no accelerator on this machine")
    if name == "cudnn" and dtype == "float32":
        pytest.skip("cuDNN's flash attention takes no float32")
    parts, dout = jax.tree.map(lambda x: x.astype(dtype), drawn(shape))
    with jax.default_matmul_precision("highest"):
        got = value_and_gradients(ATTENTIONS[name], parts, dout)
        plain = value_and_gradients(attend, parts, dout)
    for x, y, z in zip(got, plain, exact(shape), strict=True):
        if dtype == "float32":
            assert np.abs(x - z).max() < 1e-5 * np.abs(z).max()
        else:  # Rounding differs in place, not in kind.
            assert np.abs(x - z).std() < 1.5 * np.abs(y - z).std()
