"""Every program of the encoder's attention, beside torch in double precision."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pp_jax.sam import attention
from pp_jax.sam.attention import ATTENTIONS, choose_attention, fits_cudnn, folded_width
from pp_jax.sam.image_encoder import gelu

# Heads, width per head, grid: a window, a wide grid of one chunk, several chunks, a prime side.
SHAPES = {
    "window": (2, 8, 14, 14),
    "wide": (3, 16, 5, 12),
    "grid": (2, 8, 24, 32),
    "prime": (1, 8, 19, 19),
}
# Rows whose kernels only a GPU has, by the same code on another backend.
ON_CPU = {
    "cudnn": partial(attention.attend_folded, implementation="xla"),
    "tiled": partial(attention.attend_tiled, interpret=True),
}
NAMES = ("query", "key", "value", "rows", "columns")


def parts(heads: int, d: int, h: int, w: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(h * w)
    tokens = (2, h * w, heads, d)
    shapes = (tokens, tokens, tokens, (h, h, d), (w, w, d))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def in_torch(arrays: tuple[np.ndarray, ...], cotangent: np.ndarray) -> list[np.ndarray]:
    """The output and all gradients; the positions' term is written out for each pair of places."""
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays]
    q, k, v, rows, columns = leaves
    h, w = len(rows), len(columns)
    row, column = torch.arange(h * w) // w, torch.arange(h * w) % w
    scores = torch.einsum("blkd,btkd->bklt", q, k) / q.shape[-1] ** 0.5
    scores = scores + torch.einsum("blkd,ltd->bklt", q, rows[row][:, row])
    scores = scores + torch.einsum("blkd,ltd->bklt", q, columns[column][:, column])
    out = torch.einsum("bklt,btkd->blkd", scores.softmax(-1), v)
    out.backward(torch.tensor(cotangent, dtype=torch.float64))
    return [out.detach().numpy(), *(x.grad.numpy() for x in leaves)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_each_program_gives_torchs_output_and_gradients(name: str, shape: str) -> None:
    arrays = parts(*SHAPES[shape])
    cotangent = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)
    run = ON_CPU.get(name, ATTENTIONS[name])

    @jax.jit
    def both(arrays: tuple, cotangent: jax.Array) -> tuple:
        out, back = jax.vjp(run, *arrays)
        return out, *back(cotangent)

    got = both(arrays, cotangent)
    want = in_torch(arrays, cotangent)
    for what, ours, theirs in zip(("output", *NAMES), got, want, strict=True):
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max(), what


@pytest.mark.parametrize("name", ["chunked", "rows"])
def test_no_program_but_the_plain_one_writes_all_scores_down(name: str) -> None:
    heads, d, side = 12, 64, 64
    tokens, table = (1, side * side, heads, d), (side, side, d)
    shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in (*[tokens] * 3, *[table] * 2)]

    def loss(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(run(*arrays))

    all_scores = heads * side**4
    for run, limit in ((ATTENTIONS[name], all_scores / 15), (ATTENTIONS["plain"], None)):
        for program in (run, jax.grad(loss, argnums=range(5))):
            largest = max(sizes(jax.make_jaxpr(program)(*shapes).jaxpr))
            assert largest >= all_scores if limit is None else largest <= limit


def sizes(jaxpr: jax.extend.core.Jaxpr):
    """Elements of every array that the program or a part of it computes."""
    for equation in jaxpr.eqns:
        yield from (math.prod(out.aval.shape) for out in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from sizes(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    ("side", "chunks"), [(14, 1), (16, 1), (64, 16), (40, 8), (128, 64), (19, 19)]
)
def test_chunks_are_whole_rows_of_at_most_256_queries(side: int, chunks: int) -> None:
    assert attention._chunks(side * side, row=side) == chunks


def test_cudnn_is_chosen_only_where_it_has_a_kernel() -> None:
    assert [folded_width(64, 14, 14), folded_width(80, 14, 14)] == [96, 112]
    assert [folded_width(64, 64, 64), folded_width(80, 64, 64)] == [192, 208]
    assert fits_cudnn(96, jnp.bfloat16, capability=8.0)
    assert not fits_cudnn(192, jnp.bfloat16, capability=8.0)
    assert fits_cudnn(208, jnp.bfloat16, capability=9.0)
    assert not fits_cudnn(96, jnp.float32, capability=9.0)
    assert not fits_cudnn(96, jnp.bfloat16, capability=7.5)


def test_a_cpu_attends_in_chunks_and_an_unknown_name_lists_the_rows() -> None:
    with jax.default_device(jax.devices("cpu")[0]):
        assert choose_attention("auto", width=96, dtype=jnp.float32) is ATTENTIONS["chunked"]
    assert choose_attention("plain", width=96, dtype=jnp.float32) is ATTENTIONS["plain"]
    with pytest.raises(ValueError, match="unknown attention 'flash': choose auto, plain, chunked"):
        choose_attention("flash", width=96, dtype=jnp.float32)


@pytest.mark.parametrize("name", ["cudnn", "tiled"])
def test_a_kernel_for_gpus_is_refused_elsewhere_in_one_line(name: str) -> None:
    with (
        jax.default_device(jax.devices("cpu")[0]),
        pytest.raises(ValueError, match=f"attention '{name}' does not run on cpu.*choose auto"),
    ):
        choose_attention(name, width=96, dtype=jnp.bfloat16)


def test_gelu_and_its_slope_are_torchs_and_only_the_slope_is_kept() -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    want = torch.nn.functional.gelu(leaf)
    want.sum().backward()
    np.testing.assert_allclose(gelu(x), want.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), leaf.grad.numpy(), atol=1e-6)
    _, back = jax.vjp(gelu, jnp.asarray(x, jnp.bfloat16))
    kept = [array for array in jax.tree.leaves(back) if array.shape == x.shape]
    assert [array.dtype for array in kept] == [jnp.bfloat16]
