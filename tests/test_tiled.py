"""Attention in tiles: the kernels, interpreted, are the plain formula; and they lower for a GPU."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from pp_jax.sam.tiled import attend_in_tiles

interpreted = partial(attend_in_tiles, interpret=True)


def plain(query, key, value, vertical, horizontal) -> jax.Array:
    """The formula, all scores at once."""
    bias = vertical[..., :, None] + horizontal[..., None, :]
    bias = bias.reshape(*bias.shape[:3], -1).transpose(0, 2, 1, 3).astype(jnp.float32)
    scores = jnp.einsum("BLKd,BTKd->BKLT", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores + bias, axis=-1).astype(value.dtype)
    return jnp.einsum("BKLT,BTKd->BLKd", weights, value)


def draw(*sizes: int, dtype: str = "float32", scale: float = 1.0) -> tuple[tuple, jax.Array]:
    """Query, key, value, vertical and horizontal terms, and a gradient of the output."""
    B, L, h, w, K, d = sizes
    random = np.random.default_rng(sum(sizes))
    shapes = (L, K, d), (h * w, K, d), (h * w, K, d), (L, K, h), (L, K, w), (L, K, d)
    parts = [jnp.asarray(random.standard_normal((B, *shape)), dtype) for shape in shapes]
    query, *rest, dout = parts
    return (query * jnp.asarray(scale * d**-0.5, dtype), *rest), dout


def value_and_gradients(run, parts: tuple, dout: jax.Array) -> tuple:
    @jax.jit
    def both(parts: tuple, dout: jax.Array) -> tuple:
        out, pull = jax.vjp(run, *parts)
        return out, *pull(dout)

    return tuple(np.asarray(x, np.float64) for x in both(parts, dout))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((2, 35, 5, 7, 2, 16), id="an odd grid"),
        pytest.param((2, 196, 14, 14, 1, 80), id="windows and a width that is no power of two"),
        pytest.param((1, 128, 2, 64, 2, 32), id="a row of keys is a block"),
        pytest.param((1, 40, 3, 128, 1, 16), id="a row is twice a block; other queries than keys"),
        pytest.param((2, 9, 3, 3, 3, 8), id="less than a block, a width less than 16"),
    ],
)
def test_outputs_and_all_five_gradients_are_those_of_the_plain_formula(sizes: tuple) -> None:
    parts, dout = draw(*sizes)
    got = value_and_gradients(interpreted, parts, dout)
    want = value_and_gradients(plain, parts, dout)
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        assert np.abs(x - y).max() < 1e-5 * np.abs(y).max()


def test_scores_beyond_what_an_exponential_holds_are_those_of_the_plain_formula() -> None:
    parts, dout = draw(1, 24, 9, 16, 1, 16, scale=300.0)
    got = value_and_gradients(interpreted, parts, dout)
    want = value_and_gradients(plain, parts, dout)
    for x, y in zip(got, want, strict=True):
        # A score of 1000 has lost 1e-4 of the e-fold that its weight depends on.
        assert np.abs(x - y).max() < 1e-3 * np.abs(y).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_errs_no_more_than_the_plain_formula_in_half_precision(dtype: str) -> None:
    parts, dout = draw(1, 50, 6, 10, 2, 32, dtype=dtype)
    exact = tuple(x.astype(jnp.float32) for x in parts)
    want = value_and_gradients(plain, exact, dout.astype(jnp.float32))
    got = value_and_gradients(interpreted, parts, dout)
    rounded = value_and_gradients(plain, parts, dout)
    for x, y, z in zip(got, rounded, want, strict=True):
        # Rounding differs in place, not in kind.
        assert np.abs(x - z).std() < 1.5 * np.abs(y - z).std()


def test_keys_of_one_row_and_column_alone_are_found_by_their_terms() -> None:
    h, w = 5, 11
    random = np.random.default_rng(0)
    value = jnp.asarray(random.standard_normal((1, h * w, 1, 16)), jnp.float32)
    zeros = jnp.zeros_like(value)
    rows, columns = jnp.divmod(jnp.arange(h * w), w)
    vertical = 100 * jax.nn.one_hot(rows, h)[None, :, None]
    horizontal = 100 * jax.nn.one_hot(columns, w)[None, :, None]
    got = interpreted(zeros, zeros, value, vertical, horizontal)
    np.testing.assert_allclose(got, value, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "width"), [(12, 64), (16, 80)], ids=["vit_b", "vit_h"])
@pytest.mark.parametrize(("batch", "side"), [(1, 64), (25, 14)], ids=["grid", "windows"])
def test_both_directions_lower_for_a_gpu_to_three_kernels_and_no_scores(
    batch: int, side: int, heads: int, width: int, dtype: str
) -> None:
    tokens = side * side
    shapes = [(tokens, heads, width)] * 3 + [(tokens, heads, side)] * 2
    parts = [jax.ShapeDtypeStruct((batch, *shape), dtype) for shape in shapes]

    def both(*parts: jax.Array) -> tuple:
        out, pull = jax.vjp(attend_in_tiles, *parts)
        return out, *pull(out)

    device = AbstractDevice(device_kind="NVIDIA A100", num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        text = jax.jit(both).trace(*parts).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"custom_call @\S*triton", text)) == 3
    assert f"{tokens}x{tokens}x" not in text
