"""Distances on a grid."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def distances(marked: Bool[Array, "*n h w"]) -> Float[Array, "*n h w"]:
    """Exact Euclidean distance from each cell to the nearest marked one. No gradient.

    Large and finite where none is marked. Equals `scipy.ndimage.distance_transform_edt` of the
    opposite. First along each column, then the least sum of squares along each row, one row after
    the other: all at once would hold `w` maps.
    """
    height, width = marked.shape[-2:]
    far = float(2 * (height + width))
    rows = jnp.arange(height, dtype=jnp.float32)[:, None]
    axis = marked.ndim - 2
    above = jax.lax.cummax(jnp.where(marked, rows, -far), axis)
    below = jax.lax.cummin(jnp.where(marked, rows, far + height), axis, reverse=True)
    squared = jnp.minimum(rows - above, below - rows) ** 2
    columns = jnp.arange(width, dtype=jnp.float32)
    apart = (columns[:, None] - columns) ** 2

    def along_row(row: Float[Array, "*n w"]) -> Float[Array, "*n w"]:
        return jnp.min(row[..., None, :] + apart, -1)

    nearest = jax.lax.map(along_row, jnp.moveaxis(squared, -2, 0))
    return jnp.sqrt(jnp.moveaxis(nearest, 0, -2))
