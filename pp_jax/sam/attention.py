"""Attention of the image encoder: whole-grid or windowed, with decomposed relative positions."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pp_jax.sam.interpolate import resize_offsets

_CHUNK = 256  # Queries at a time in global attention: bounds memory by heads x 256 x tokens.


def relative_positions(table: Float[Array, "R d"], *, side: int) -> Float[Array, "q k d"]:
    """The embedding of the offset `q - k` for each pair of positions along an axis of `side`.

    Source: `get_rel_pos` of the official `image_encoder.py`, for as many queries as keys.
    """
    table = resize_offsets(table, length=2 * side - 1)
    return table[jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + side - 1]


def attend(
    query: Float[Array, "B L K d"],
    key: Float[Array, "B T K d"],
    value: Float[Array, "B T K d"],
    vertical: Float[Array, "B L K h"],
    horizontal: Float[Array, "B L K w"],
) -> Float[Array, "B L K d"]:
    """Softmax attention over a grid of `T = h w` keys, plus a bias for each key's row and column.

    The softmax runs in float32 whatever the inputs are.
    """
    h, w = vertical.shape[-1], horizontal.shape[-1]
    scores = jnp.einsum(
        "BLKd,BTKd->BKLT", query, key, preferred_element_type=jnp.float32
    )  # B K L T
    bias = vertical[..., :, None] + horizontal[..., None, :]  # B L K h w
    bias = bias.reshape(*bias.shape[:3], h * w).transpose(0, 2, 1, 3)  # B K L T
    weights = jax.nn.softmax(scores + bias.astype(jnp.float32), axis=-1).astype(value.dtype)
    return jnp.einsum("BKLT,BTKd->BLKd", weights, value)


def attend_in_chunks(
    query: Float[Array, "B L K d"],
    key: Float[Array, "B T K d"],
    value: Float[Array, "B T K d"],
    vertical: Float[Array, "B L K h"],
    horizontal: Float[Array, "B L K w"],
) -> Float[Array, "B L K d"]:
    """`attend`, a few queries at a time: the scores `B K L T` never exist at once."""
    chunks = query.shape[1] // _CHUNK
    if chunks <= 1 or query.shape[1] % _CHUNK:
        return attend(query, key, value, vertical, horizontal)

    def split(x: Array) -> Array:
        return x.reshape(x.shape[0], chunks, _CHUNK, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint  # Backward recomputes a chunk's scores instead of keeping those of all.
    def body(parts: tuple[Array, Array, Array]) -> Array:
        part, rows, columns = parts
        return attend(part, key, value, rows, columns)

    out = jax.lax.map(body, (split(query), split(vertical), split(horizontal)))
    return out.swapaxes(0, 1).reshape(query.shape)


class Attention(nn.Module):
    """Multi-head self-attention on a grid with decomposed relative positions.

    The relative terms use the unscaled query, as the official code does.
    """

    num_heads: int
    table_side: int  # Side of the grid that the relative positions were trained on.
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        """The attended grid."""
        B, h, w, D = x.shape
        d = D // self.num_heads
        qkv = nn.DenseGeneral((3, self.num_heads, d), dtype=self.dtype, name="qkv")(
            x.reshape(B, h * w, D)
        )  # B L 3 K d
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        table = (2 * self.table_side - 1, d)
        rel_pos_h = self.param("rel_pos_h", nn.initializers.zeros, table)
        rel_pos_w = self.param("rel_pos_w", nn.initializers.zeros, table)
        rows = relative_positions(rel_pos_h, side=h).astype(self.dtype)
        columns = relative_positions(rel_pos_w, side=w).astype(self.dtype)
        on_grid = query.reshape(B, h, w, self.num_heads, d)
        vertical = jnp.einsum("BhwKd,hkd->BhwKk", on_grid, rows)
        horizontal = jnp.einsum("BhwKd,wkd->BhwKk", on_grid, columns)
        out = attend_in_chunks(
            query * d**-0.5,
            key,
            value,
            vertical.reshape(B, h * w, self.num_heads, h),
            horizontal.reshape(B, h * w, self.num_heads, w),
        )
        out = nn.DenseGeneral(D, axis=(-2, -1), dtype=self.dtype, name="proj")(out)
        return out.reshape(B, h, w, D)
