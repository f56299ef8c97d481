"""Attention in tiles for GPUs: scores of all queries with all keys exist nowhere in memory.

Keys are visited a block at a time, where a block is a whole number of rows of their grid. So the
vertical term of the relative positions is a number for each query and row, and the horizontal term
is one tile that serves all blocks. The running maximum and sum are those of Dao et al.,
FlashAttention (2022). The gradient computes the scores again, from the logarithm of the softmax's
denominator: one kernel over blocks of queries, one over blocks of keys. Each number is written
once, so a result does not depend on the order in which blocks run.

Written for Pallas' Triton backend (NVIDIA's Ampere and later), which wants sizes that are powers of
two: a head of 80 is read as 64 and 16, rows of keys and blocks of queries are filled up and masked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from math import log
from operator import and_

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

_LEAST = 16  # A side of what tensor cores multiply.
_KEYS = 64  # Of a block, unless a row of the grid is longer.
_SCORES = 128 * 64  # Of a block of queries with one of keys: more do not fit in registers.
_LOG2_E = 1 / log(2)


def attend_in_tiles(
    query: Float[Array, "B L K d"],
    key: Float[Array, "B T K d"],
    value: Float[Array, "B T K d"],
    vertical: Float[Array, "B L K h"],
    horizontal: Float[Array, "B L K w"],
    *,
    interpret: bool = False,
) -> Float[Array, "B L K d"]:
    """`attention.attend` by kernels for GPUs, forward and backward.

    Softmax and sums run in float32. Products obey `jax.default_matmul_precision`, as elsewhere:
    unless it is "highest", a GPU rounds the factors of float32 products to TF32.

    Args:
      interpret: Run the kernels as plain JAX, slowly, on any device.
    """
    d = query.shape[-1]
    pad = ((0, 0), (0, 0), (0, 0), (0, -d % _LEAST))
    query, key, value = (jnp.pad(x, pad) for x in (query, key, value))
    # Queries last: the terms of a block's queries for one row or column of keys lie side by side.
    vertical, horizontal = (x.transpose(0, 2, 3, 1) for x in (vertical, horizontal))  # B K h L
    return _attend(interpret, query, key, value, vertical, horizontal)[..., :d]


Parts = tuple[Array, ...]  # Tokens in parts of their width.
Arrays = tuple[tuple[Array, ...], tuple[Array, ...]]  # Tokens `B L K d`, others `B K ...`.


@dataclass(frozen=True)
class _Axis:
    """Places along an axis of an array in memory, and which of them exist (None: all)."""

    index: Array
    exists: Array | None = None


@dataclass(frozen=True)
class _Keys:
    """A block of keys: their places among all, the column of each, the rows that they fill."""

    places: _Axis
    columns: _Axis
    rows: _Axis


@dataclass(frozen=True)
class _Plan:
    """How one attention is cut into blocks: known before anything runs."""

    length: int  # Queries.
    height: int  # Of the grid of keys.
    width: int
    depth: int  # Of a head, a multiple of 16.
    queries: int  # Of a block.
    rows: int  # Of a block of keys.
    columns: int  # `width`, filled up.

    @property
    def keys(self) -> int:
        return self.rows * self.columns

    def queries_of(self, block: Array) -> _Axis:
        """A block of queries."""
        index = block * self.queries + lax.iota(jnp.int32, self.queries)
        return _below(self.length, index, whole=self.length % self.queries == 0)

    def keys_of(self, block: Array | int) -> _Keys:
        """A block of keys."""
        count, rows = lax.iota(jnp.int32, self.keys), lax.iota(jnp.int32, self.rows)
        row, column = block * self.rows + lax.div(count, self.columns), lax.rem(count, self.columns)
        rows, index = block * self.rows + rows, row * self.width + column
        whole_rows, whole_columns = self.height % self.rows == 0, self.width == self.columns
        places = _Axis(index)
        if not (whole_rows and whole_columns):
            exists = (row < self.height) & (column < self.width)
            # What does not exist must not have the place of another.
            places = _Axis(jnp.where(exists, index, self.height * self.width), exists)
        columns = _below(self.width, column, whole=whole_columns)
        return _Keys(places, columns, _below(self.height, rows, whole=whole_rows))

    def parts(self) -> tuple[_Axis, ...]:
        """A head's width in powers of two: 80 is 64 and 16."""
        sizes = [1 << i for i in reversed(range(self.depth.bit_length())) if self.depth >> i & 1]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(_Axis(a + lax.iota(jnp.int32, b)) for a, b in zip(starts, sizes, strict=True))

    def read(self, ref: jax.Ref, at: _Axis) -> Parts:
        """Tokens at these places."""
        return tuple(_read(ref, at, part) for part in self.parts())

    def write(self, ref: jax.Ref, at: _Axis, tokens: Parts) -> None:
        """Tokens to these places."""
        for part, x in zip(self.parts(), tokens, strict=True):
            _write(ref, at, part, x)

    def zeros(self, count: int) -> Parts:
        """So many tokens of zeros."""
        return tuple(jnp.zeros((count, len(part.index)), jnp.float32) for part in self.parts())

    def spread(self, terms: Array, axis: int) -> Array:
        """A term for each row of a block, to be added to the scores of all keys of that row."""
        if self.rows == 1:
            return terms
        shape, wide = list(terms.shape), list(terms.shape)
        shape[axis] = self.keys
        wide.insert(axis + 1, self.columns)
        return jnp.broadcast_to(jnp.expand_dims(terms, axis + 1), wide).reshape(shape)

    def by_row(self, scores: Array) -> Array:
        """Scores `queries keys` as `queries rows columns`."""
        return scores.reshape(self.queries, self.rows, self.columns)


def _below(end: int, index: Array, *, whole: bool) -> _Axis:
    return _Axis(index, None if whole else index < end)


def _tile(first: _Axis, second: _Axis, turned: bool) -> tuple[tuple[Array, Array], Array | None]:
    """The index of a tile of a matrix, or of its transpose, and its mask."""
    a, b = (0, 1) if turned else (1, 0)
    masks = [(first.exists, a), (second.exists, b)]
    masks = [jnp.expand_dims(mask, axis) for mask, axis in masks if mask is not None]
    index = jnp.expand_dims(first.index, a), jnp.expand_dims(second.index, b)
    return index, reduce(and_, masks) if masks else None


def _read(ref: jax.Ref, first: _Axis, second: _Axis, *, turned: bool = False) -> Array:
    """A tile of a matrix, or of its transpose; zeros where nothing exists."""
    index, mask = _tile(first, second, turned)
    return triton.load(ref.at[index], mask=mask, other=None if mask is None else 0)


def _read_vector(ref: jax.Ref, at: _Axis) -> Array:
    other = None if at.exists is None else 0
    return triton.load(ref.at[at.index], mask=at.exists, other=other)


def _write(ref: jax.Ref, first: _Axis, second: _Axis, x: Array, *, turned: bool = False) -> None:
    index, mask = _tile(first, second, turned)
    triton.store(ref.at[index], x.astype(ref.dtype), mask=mask)


def _dot(left: Array, right: Array, over: tuple[int, int]) -> Array:
    """A product over these axes, summed in float32."""
    axes = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


def _compare(left: Parts, right: Parts) -> Array:
    """Products of all tokens of one side with all of the other."""
    return sum(_dot(a, b, (1, 1)) for a, b in zip(left, right, strict=True))


def _gather(sums: Parts, weights: Array, tokens: Parts) -> Parts:
    """Sums of tokens, so weighted, added to earlier ones."""
    both = zip(sums, tokens, strict=True)
    return tuple(total + _dot(weights.astype(x.dtype), x, (1, 0)) for total, x in both)


def _hide(scores: Array, keys: _Axis, axis: int) -> Array:
    """Scores without those of keys that do not exist."""
    if keys.exists is None:
        return scores
    return jnp.where(jnp.expand_dims(keys.exists, 1 - axis), scores, -jnp.inf)


def _exp(x: Array) -> Array:
    return jnp.exp2(x * _LOG2_E)  # What a GPU has an instruction for.


def _forward(q, k, v, vertical, horizontal, out, lse, *, plan: _Plan) -> None:
    """A block of queries over all keys."""
    here = plan.queries_of(pl.program_id(0))
    queries = plan.read(q, here)
    columns = _read(horizontal, plan.keys_of(0).columns, here, turned=True)

    def visit(block: Array, carry: tuple[Array, Array, Parts]) -> tuple[Array, Array, Parts]:
        highest, total, sums = carry
        keys = plan.keys_of(block)
        rows = plan.spread(_read(vertical, keys.rows, here, turned=True), 1)
        scores = _compare(queries, plan.read(k, keys.places)) + columns + rows
        scores = _hide(scores, keys.places, 1)
        rising = jnp.maximum(highest, scores.max(1))
        weights, fading = _exp(scores - rising[:, None]), _exp(highest - rising)
        sums = tuple(x * fading[:, None] for x in sums)
        sums = _gather(sums, weights, plan.read(v, keys.places))
        return rising, total * fading + weights.sum(1), sums

    highest = jnp.full(plan.queries, -jnp.inf, jnp.float32)  # Every block has a key.
    start = highest, jnp.zeros(plan.queries, jnp.float32), plan.zeros(plan.queries)
    highest, total, sums = lax.fori_loop(0, pl.cdiv(plan.height, plan.rows), visit, start)
    plan.write(out, here, tuple(x / total[:, None] for x in sums))
    triton.store(lse.at[here.index], highest + jnp.log(total), mask=here.exists)


def _backward_queries(
    q, k, v, dout, vertical, horizontal, lse, delta, dq, dvertical, dhorizontal, *, plan: _Plan
) -> None:
    """Gradients of a block of queries and of their terms, over all keys."""
    here, first_row = plan.queries_of(pl.program_id(0)), plan.keys_of(0).columns
    queries, douts = plan.read(q, here), plan.read(dout, here)
    lses, deltas = (_read_vector(x, here)[:, None] for x in (lse, delta))
    columns = _read(horizontal, first_row, here, turned=True)

    def visit(block: Array, carry: tuple[Array, Parts]) -> tuple[Array, Parts]:
        dcolumns, sums = carry
        keys = plan.keys_of(block)
        tokens = plan.read(k, keys.places)
        rows = plan.spread(_read(vertical, keys.rows, here, turned=True), 1)
        scores = _hide(_compare(queries, tokens) + columns + rows, keys.places, 1)
        dweights = _compare(douts, plan.read(v, keys.places))
        dscores = _exp(scores - lses) * (dweights - deltas)
        _write(dvertical, keys.rows, here, plan.by_row(dscores).sum(2), turned=True)
        return dcolumns + dscores, _gather(sums, dscores, tokens)

    start = jnp.zeros((plan.queries, plan.keys), jnp.float32), plan.zeros(plan.queries)
    dcolumns, sums = lax.fori_loop(0, pl.cdiv(plan.height, plan.rows), visit, start)
    plan.write(dq, here, sums)
    row = lax.iota(jnp.int32, plan.columns)
    row = _below(plan.width, row, whole=plan.width == plan.columns)
    _write(dhorizontal, row, here, plan.by_row(dcolumns).sum(1), turned=True)


def _backward_keys(q, k, v, dout, vertical, horizontal, lse, delta, dk, dv, *, plan: _Plan) -> None:
    """Gradients of a block of keys and of their values, over all queries. Scores `keys queries`."""
    keys = plan.keys_of(pl.program_id(0))
    tokens, values = plan.read(k, keys.places), plan.read(v, keys.places)

    def visit(block: Array, carry: tuple[Parts, Parts]) -> tuple[Parts, Parts]:
        dkeys, dvalues = carry
        here = plan.queries_of(block)
        queries, douts = plan.read(q, here), plan.read(dout, here)
        rows = plan.spread(_read(vertical, keys.rows, here), 0)
        scores = _compare(tokens, queries) + _read(horizontal, keys.columns, here) + rows
        # A query that does not exist adds nothing: it and its gradient are read as zeros.
        weights = _exp(_hide(scores, keys.places, 0) - _read_vector(lse, here))
        dscores = weights * (_compare(values, douts) - _read_vector(delta, here))
        return _gather(dkeys, dscores, queries), _gather(dvalues, weights, douts)

    start = plan.zeros(plan.keys), plan.zeros(plan.keys)
    dkeys, dvalues = lax.fori_loop(0, pl.cdiv(plan.length, plan.queries), visit, start)
    plan.write(dk, keys.places, dkeys)
    plan.write(dv, keys.places, dvalues)


def _plan(query: Array, vertical: Array, horizontal: Array, *, most: int) -> _Plan:
    """Blocks for these arrays, with at most so many queries in each."""
    (_, length, _, depth), height, width = query.shape, vertical.shape[2], horizontal.shape[2]
    columns = max(_LEAST, pl.next_power_of_2(width))
    rows = min(max(1, _KEYS // columns), pl.next_power_of_2(height))
    most = min(most, _SCORES // (rows * columns)) // (2 if query.dtype == jnp.float32 else 1)
    queries = max(_LEAST, min(most, pl.next_power_of_2(length)))
    return _Plan(length, height, width, depth, queries, rows, columns)


def _run(
    interpret: bool, kernel: Callable, plan: _Plan, blocks: int, inputs: Arrays, outputs: Arrays
) -> list[Array]:
    """A kernel over blocks, heads and images; it is shown one head of one image of each array."""
    B, _, K, d = inputs[0][0].shape

    def of_tokens(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, x.shape[1], None, d), lambda _, k, b: (b, 0, k, 0))

    def of_others(x: Array) -> pl.BlockSpec:
        zeros = (0,) * (len(x.shape) - 2)
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda _, k, b: (b, k, *zeros))

    single = inputs[0][0].dtype == jnp.float32
    call = pl.pallas_call(
        partial(kernel, plan=plan),
        grid=(blocks, K, B),
        in_specs=[*map(of_tokens, inputs[0]), *map(of_others, inputs[1])],
        out_specs=[*map(of_tokens, outputs[0]), *map(of_others, outputs[1])],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*outputs[0], *outputs[1])],
        compiler_params=triton.CompilerParams(
            # Eight warps share what is too large for the registers of four.
            num_warps=8 if single or plan.queries * plan.keys >= _SCORES else 4,
            num_stages=2 if single else 3,  # Of loads ahead of their use, in shared memory.
        ),
        interpret=interpret,
    )
    return call(*inputs[0], *inputs[1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(interpret: bool, *parts: Array) -> Array:
    return _attend_forward(interpret, *parts)[0]


def _attend_forward(
    interpret: bool, query: Array, key: Array, value: Array, vertical: Array, horizontal: Array
) -> tuple[Array, tuple[Array, ...]]:
    B, L, K, _ = query.shape
    plan = _plan(query, vertical, horizontal, most=128)
    inputs = (query, key, value), (vertical, horizontal)
    outputs = (query,), (jax.ShapeDtypeStruct((B, K, L), jnp.float32),)
    out, lse = _run(interpret, _forward, plan, pl.cdiv(L, plan.queries), inputs, outputs)
    return out, (query, key, value, vertical, horizontal, out, lse)


def _attend_backward(interpret: bool, saved: tuple[Array, ...], dout: Array) -> tuple[Array, ...]:
    query, key, value, vertical, horizontal, out, lse = saved
    # What the softmax takes off the gradient of each weight.
    delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).transpose(0, 2, 1)
    inputs = (query, key, value, dout), (vertical, horizontal, lse, delta)
    plan = _plan(query, vertical, horizontal, most=128)
    blocks, outputs = pl.cdiv(plan.length, plan.queries), ((query,), (vertical, horizontal))
    dquery, *dterms = _run(interpret, _backward_queries, plan, blocks, inputs, outputs)
    plan = _plan(query, vertical, horizontal, most=64)
    blocks, outputs = pl.cdiv(plan.height, plan.rows), ((key, value), ())
    dkey, dvalue = _run(interpret, _backward_keys, plan, blocks, inputs, outputs)
    return dquery, dkey, dvalue, *dterms


_attend.defvjp(_attend_forward, _attend_backward)
