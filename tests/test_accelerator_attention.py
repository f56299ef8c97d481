"""Every implementation of attention computes the plain formula on the accelerator at hand."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.sam.attention import ATTENTIONS, attend, fits_cudnn, folded_width

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
    """Query, key, value and both tables, each a bfloat16 number; and a gradient of the output."""
    batch, side, heads, width = SHAPES[shape]
    tokens, table = (batch, side * side, heads, width), (side, side, width)
    keys = jax.random.split(jax.random.key(0), 6)
    *parts, dout = (
        jax.random.normal(key, size, jnp.bfloat16).astype(jnp.float32)
        for key, size in zip(keys, (*[tokens] * 3, *[table] * 2, tokens), strict=True)
    )
    parts[3:] = (x * width**-0.5 for x in parts[3:])  # Scores of one size from keys and places.
    return tuple(parts), dout


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
    device = jax.devices()[0]
    if device.platform == "cpu":
        pytest.skip("jax sees no accelerator on this machine")
    if name == "cudnn":
        _, side, _, width = SHAPES[shape]
        width = folded_width(width, side, side)
        if not fits_cudnn(width, jnp.dtype(dtype), capability=float(device.compute_capability)):
            pytest.skip(f"cuDNN has no kernel for {dtype} and heads of {width} on this device")
    parts, dout = jax.tree.map(lambda x: x.astype(dtype), drawn(shape))
    with jax.default_matmul_precision("highest"):
        got = value_and_gradients(ATTENTIONS[name], parts, dout)
        plain = value_and_gradients(attend, parts, dout)
    for x, y, z in zip(got, plain, exact(shape), strict=True):
        if dtype == "float32":
            assert np.abs(x - z).max() < 1e-5 * np.abs(z).max()
        else:  # Rounding differs in place, not in kind.
            assert np.abs(x - z).std() < 2 * np.abs(y - z).std()
