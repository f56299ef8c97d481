"""Attention of the image encoder: whole-grid or windowed, with decomposed relative positions.

One formula, and a program for each kind of device: the rows of `ATTENTIONS`. But for `plain`, none
ever writes down all scores of the whole grid.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pp_jax.lora import Lora
from pp_jax.sam.interpolate import resize_offsets
from pp_jax.sam.low_rank import with_side_path
from pp_jax.sam.tiled import attend_in_tiles
from pp_jax.sharding import default_device

_QUERIES = 256  # At a time: their scores with 4096 keys are 4 MiB, which a CPU's cache holds.
_MULTIPLE = 8  # cuDNN's widths per head.


def relative_positions(table: Float[Array, "R d"], *, side: int) -> Float[Array, "q k d"]:
    """The embedding of the offset `q - k` for each pair of positions along an axis of `side`.

    Source: `get_rel_pos` of the official `image_encoder.py`, for as many queries as keys.
    """
    table = resize_offsets(table, length=2 * side - 1)
    return table[jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + side - 1]


def relative_terms(
    query: Float[Array, "B L K d"], rows: Float[Array, "h h d"], columns: Float[Array, "w w d"]
) -> tuple[Float[Array, "B L K h"], Float[Array, "B L K w"]]:
    """What each query adds to its scores with the keys of each row and of each column.

    The query is not scaled, as in the official code. Source: `add_decomposed_rel_pos` there.
    """
    B, L, K, d = query.shape
    h, w = len(rows), len(columns)
    grid = query.reshape(B, h, w, K, d)
    vertical = jnp.einsum("BhwKd,hkd->BhwKk", grid, rows)
    horizontal = jnp.einsum("BhwKd,wkd->BhwKk", grid, columns)
    return vertical.reshape(B, L, K, h), horizontal.reshape(B, L, K, w)


def attend(
    query: Float[Array, "B L K d"],
    key: Float[Array, "B L K d"],
    value: Float[Array, "B L K d"],
    rows: Float[Array, "h h d"],
    columns: Float[Array, "w w d"],
    *,
    at_once: bool = True,
) -> Float[Array, "B L K d"]:
    """Softmax attention on a grid of `L = h w` places, with relative positions along both axes.

    `rows[i, j]` is the embedding of the offset between rows `i` and `j`. The softmax runs in
    float32 whatever the inputs are. All queries at once, or a few rows of the grid at a time.
    """
    parts = (_scaled(query), key, value, *relative_terms(query, rows, columns))
    run = _attend_all if at_once else _attend_some
    return run(tuple(x.swapaxes(1, 2) for x in parts)).swapaxes(1, 2)


def attend_by_head(
    query: Float[Array, "B L K d"],
    key: Float[Array, "B L K d"],
    value: Float[Array, "B L K d"],
    rows: Float[Array, "h h d"],
    columns: Float[Array, "w w d"],
) -> Float[Array, "B L K d"]:
    """`attend`, one head and a few rows of the grid at a time: the scores stay in a CPU's cache."""

    def one_head(parts: tuple[Array, Array, Array]) -> Array:
        query, key, value = parts  # B L d
        terms = (x[:, :, 0] for x in relative_terms(query[:, :, None], rows, columns))
        return _attend_some((_scaled(query), key, value, *terms))

    heads = tuple(jnp.moveaxis(x, 2, 0) for x in (query, key, value))
    return jnp.moveaxis(jax.lax.map(one_head, heads), 0, 2)


def attend_folded(
    query: Float[Array, "B L K d"],
    key: Float[Array, "B L K d"],
    value: Float[Array, "B L K d"],
    rows: Float[Array, "h h d"],
    columns: Float[Array, "w w d"],
    *,
    implementation: str = "cudnn",
) -> Float[Array, "B L K d"]:
    """`attend` by `jax.nn.dot_product_attention`: positions become a part of queries and keys.

    A query is widened by its relative terms, a key by a one for its row and one for its column:
    their product is the sum that is wanted, and no kernel needs to know of positions.

    Raises:
      NotImplementedError: From cuDNN, where it has no kernel for such widths; see `fits_cudnn`.
    """
    d, h, w = query.shape[-1], len(rows), len(columns)
    width = folded_width(d, h, w)
    row = jnp.repeat(jnp.eye(h, dtype=key.dtype), w, axis=0)
    place = jnp.concatenate([row, jnp.tile(jnp.eye(w, dtype=key.dtype), (h, 1))], axis=-1)  # L h+w
    place = jnp.broadcast_to(place[:, None], (*key.shape[:-1], h + w))

    def widen(*parts: Array) -> Array:
        x = jnp.concatenate(parts, axis=-1)
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))

    out = jax.nn.dot_product_attention(
        widen(_scaled(query), *relative_terms(query, rows, columns)),
        widen(key, place),
        widen(value),
        scale=1.0,
        implementation=implementation,
    )
    return out[..., :d]


def attend_tiled(
    query: Float[Array, "B L K d"],
    key: Float[Array, "B L K d"],
    value: Float[Array, "B L K d"],
    rows: Float[Array, "h h d"],
    columns: Float[Array, "w w d"],
    *,
    interpret: bool = False,
) -> Float[Array, "B L K d"]:
    """`attend` by our own kernel for GPUs; `interpret` runs it on any device, slowly."""
    terms = relative_terms(query, rows, columns)
    return attend_in_tiles(_scaled(query), key, value, *terms, interpret=interpret)


def folded_width(d: int, h: int, w: int) -> int:
    """The width per head of `attend_folded`, for heads `d` wide and a grid of `h` x `w` keys."""
    return -(-(d + h + w) // _MULTIPLE) * _MULTIPLE


def fits_cudnn(width: int, dtype: jnp.dtype, *, capability: float) -> bool:
    """Whether cuDNN's flash attention takes heads of this width on a GPU of this capability.

    Source: `check_is_flash_attention` in jax's `cudnn/fused_attention_stablehlo.py`.
    """
    widest = 256 if capability >= 9 else 128
    return capability >= 8 and dtype in (jnp.bfloat16, jnp.float16) and width <= widest


def choose_attention(name: str, *, width: int, dtype: jnp.dtype) -> Callable[..., Array]:
    """A row of `ATTENTIONS`; by `auto` the one for the device that jax computes on by default.

    Args:
      name: `auto` or a row's.
      width: Of the folded heads, `folded_width`.
      dtype: That attention computes in.

    Raises:
      ValueError: There is no such row, or its kernel is not for this device, width or dtype.
    """
    device = default_device()
    capability = float(getattr(device, "compute_capability", None) or 0)  # None but on NVIDIA's.
    fits = fits_cudnn(width, dtype, capability=capability)
    if name == "auto":
        return ATTENTIONS["chunked" if device.platform == "cpu" else "cudnn" if fits else "rows"]
    if name not in ATTENTIONS:
        raise ValueError(f"unknown attention {name!r}: choose auto, {', '.join(ATTENTIONS)}")
    told = f"attention {name!r} does not run on {device.device_kind}"
    if name == "cudnn" and not fits:
        raise ValueError(
            f"{told} in {jnp.dtype(dtype).name} with heads {width} wide: it needs an NVIDIA GPU of "
            "compute capability 8 (9 for heads above 128) and bfloat16; choose auto"
        )
    if name == "tiled" and (capability < 8 or jax.device_count() > 1):
        raise ValueError(f"{told}: it needs one NVIDIA GPU of compute capability 8; choose auto")
    return ATTENTIONS[name]


class Attention(nn.Module):
    """Multi-head self-attention on a grid with decomposed relative positions."""

    num_heads: int
    table_side: int  # Side of the grid that the relative positions were trained on.
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"  # A row of ATTENTIONS.
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        """The attended grid."""
        B, h, w, D = x.shape
        d = D // self.num_heads
        x = x.reshape(B, h * w, D)
        qkv = nn.DenseGeneral((3, self.num_heads, d), dtype=self.dtype, name="qkv")(x)  # B L 3 K d
        query, key, value = (
            with_side_path(qkv[:, :, i], x, lora=self.lora, name=name)
            for i, name in enumerate("qkv")
        )
        table = (2 * self.table_side - 1, d)
        rel_pos_h = self.param("rel_pos_h", nn.initializers.zeros, table)
        rel_pos_w = self.param("rel_pos_w", nn.initializers.zeros, table)
        rows = relative_positions(rel_pos_h, side=h).astype(self.dtype)
        columns = relative_positions(rel_pos_w, side=w).astype(self.dtype)
        run = choose_attention(self.attention, width=folded_width(d, h, w), dtype=self.dtype)
        out = run(query, key, value, rows, columns)
        y = nn.DenseGeneral(D, axis=(-2, -1), dtype=self.dtype, name="proj")(out)
        y = with_side_path(y, out, lora=self.lora, name="proj", inputs=2)
        return y.reshape(B, h, w, D)


Parts = tuple[Array, Array, Array, Array, Array]  # Query, key, value, vertical, horizontal.


def _scaled(query: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    return query * query.shape[-1] ** -0.5


def _attend_some(parts: Parts) -> Float[Array, "*n L d"]:
    """`_attend_all`, a few rows of queries at a time."""
    query, key, value, vertical, horizontal = parts
    *batch, L, _ = query.shape
    chunks = _chunks(L, row=horizontal.shape[-1])

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*batch, chunks, L // chunks, x.shape[-1]), -3, 0)

    @jax.checkpoint  # Backward recomputes a chunk's scores instead of keeping those of all.
    def one_chunk(parts: tuple[Array, Array, Array]) -> Array:
        query, vertical, horizontal = parts
        return _attend_all((query, key, value, vertical, horizontal))

    if chunks == 1:
        return one_chunk((query, vertical, horizontal))
    out = jax.lax.map(one_chunk, (split(query), split(vertical), split(horizontal)))
    return jnp.moveaxis(out, 0, -3).reshape(query.shape)


def _chunks(length: int, *, row: int) -> int:
    """In how many equal parts of whole rows the queries are cut: as few as `_QUERIES` allows."""
    rows = length // row
    fitting = (n for n in range(1, rows + 1) if rows % n == 0 and length // n <= _QUERIES)
    return next(fitting, rows)


def _attend_all(parts: Parts) -> Float[Array, "*n L d"]:
    """The formula, on parts `*n L d`: only here are scores.

    All leading axes stand before the positions: a product whose batch axis lies between others is
    executed five times slower by XLA's CPU.
    """
    query, key, value, vertical, horizontal = parts
    scores = jnp.einsum("...Ld,...Td->...LT", query, key, preferred_element_type=jnp.float32)
    vertical, horizontal = vertical.astype(jnp.float32), horizontal.astype(jnp.float32)
    bias = vertical[..., :, None] + horizontal[..., None, :]  # *n L h w
    scores = scores + bias.reshape(scores.shape)
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))  # It cancels.
    weights = jnp.exp(scores - highest)
    # Divided after the product: by d numbers instead of T.
    out = jnp.einsum(
        "...LT,...Td->...Ld",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)


ATTENTIONS: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "plain": attend,  # The reference.
        "chunked": attend_by_head,  # CPUs.
        # Accelerators without a kernel for the widths or the dtype.
        "rows": partial(attend, at_once=False),
        "cudnn": attend_folded,  # NVIDIA GPUs in bfloat16.
        "tiled": attend_tiled,  # NVIDIA GPUs, when asked for: not yet measured on one.
    }
)
