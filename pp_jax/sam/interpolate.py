"""Position tables for other grids than the one they were trained on, as torch interpolates them.

`jax.image.resize` would not do: its cubic has another parameter than torch's, and it widens the
kernel when it shrinks. Sizes are static, so each axis is one small constant matrix.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_CUBIC = -0.75  # torch's; Keys' own, and jax's, is -0.5.


def _positions(old: int, new: int) -> Float[np.ndarray, " new"]:
    """Where the new samples lie among the old, rounded to float32 as torch does."""
    half = np.float32(0.5)
    return np.float32(old / new) * (np.arange(new, dtype=np.float32) + half) - half


@functools.cache
def linear_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Rows of weights that resample `old` values to `new` along one axis.

    Equals torch's `interpolate(mode="linear", align_corners=False)`.
    """
    position = np.clip(_positions(old, new), 0, None)
    low = position.astype(int)
    part = position - low
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    np.add.at(matrix, (rows, low), 1 - part)
    np.add.at(matrix, (rows, np.minimum(low + 1, old - 1)), part)
    return matrix.astype(np.float32)


@functools.cache
def cubic_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """As `linear_matrix`, for `interpolate(mode="bicubic", align_corners=False)` along one axis."""
    position = _positions(old, new)
    low = np.floor(position).astype(int)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(position - (low + tap))
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(matrix, (np.arange(new), np.clip(low + tap, 0, old - 1)), weight)
    return matrix.astype(np.float32)


def resize_offsets(table: Float[Array, "R d"], *, length: int) -> Float[Array, "length d"]:
    """A table of relative positions for `length` offsets.

    Source: `get_rel_pos` of the official `image_encoder.py`.
    """
    if len(table) == length:
        return table
    return jnp.matmul(linear_matrix(len(table), length), table, precision="highest")


def resize_positions(table: Float[Array, "1 h w D"], *, grid: int) -> Float[Array, "1 g g D"]:
    """A table of absolute positions for a square grid.

    The official code has no formula for this; it is that of ViTDet's `get_abs_pos`, which SAM's
    encoder comes from (bicubic).
    """
    height, width = table.shape[1:3]
    if (height, width) == (grid, grid):
        return table
    rows, columns = cubic_matrix(height, grid), cubic_matrix(width, grid)
    return jnp.einsum("gh,kw,BhwD->BgkD", rows, columns, table, precision="highest")
