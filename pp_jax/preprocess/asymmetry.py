"""How the left of an image differs from its right."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32

from pp_jax.preprocess.histograms import nearest_levels
from pp_jax.preprocess.ratios import first_least, limbs
from pp_jax.preprocess.responses import Filter, inside

# Horizontal bands over which rows are added up before both sides are compared: noise averages out.
_BANDS = 16


def asymmetry() -> Filter:
    """The absolute difference of each pixel to its mirror image about the mid-line, in grey levels.

    It is the same on both sides, and 0 where the mirror image falls outside. The mid-line is that
    of the nearest levels. It has no gradient itself, and neither have two equal pixels.
    """
    return Filter(_difference_to_mirror, border="replicate", margin=0, low=0, high=255)


def mid_line(levels: Int32[Array, "H W"], size: Int[Array, "2"]) -> Int32[Array, ""]:
    """The sum of the numbers of two columns that mirror each other about the vertical mid-line.

    Column numbers count from 0, so that the line is at x = (sum + 1) / 2, at a pixel's centre or
    between two pixels. Of all lines at 40 to 60 per cent of the valid width, it is the one with the
    least mean absolute difference between the image, its rows added up in 16 bands, and the mirror
    image, over the columns that have one; of several, the one nearest to the middle, then the
    right one. The comparison is exact up to 2048 x 2048 pixels.
    """
    width, (height, valid) = levels.shape[1], size
    bands = _band_sums(jnp.where(inside(size, shape=levels.shape), levels, 0), height)
    backwards = jnp.pad(bands[:, ::-1], ((0, 0), (width, width)))

    def difference(total: Int[Array, ""]) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
        # Reversed, column `total - x` stands at `width - 1 - total + x`.
        mirror = jax.lax.dynamic_slice(backwards, (0, 2 * width - 1 - total), bands.shape)
        column = jnp.arange(width)
        both = (column < valid) & (column <= total) & (column > total - valid)
        return jnp.where(both, jnp.abs(bands - mirror), 0).sum(), both.sum()

    step = jnp.arange(2 * (width // 5) + 1)
    steps = (step + 1) // 2 * jnp.where(step % 2, 1, -1)  # 0, 1, -1, 2, -2: from the middle out.
    allowed = jnp.abs(steps) <= valid // 5
    totals = valid - 1 + jnp.where(allowed, steps, 0)
    differences, columns = jax.lax.map(difference, totals)
    return totals[first_least(limbs(differences, count=3), limbs(columns, count=1))]


def _band_sums(levels: Int32[Array, "H W"], height: Int[Array, ""]) -> Int32[Array, "bands W"]:
    """The sums over rows of 16 horizontal bands of the valid height."""
    band = jnp.arange(levels.shape[0]) * _BANDS // height
    return jax.ops.segment_sum(levels, band, num_segments=_BANDS)


def _difference_to_mirror(
    padded: Float32[Array, "H W"], size: Int[Array, "2"]
) -> Float32[Array, "H W"]:
    total = mid_line(nearest_levels(jax.lax.stop_gradient(padded)), size)
    mirrored = total - jnp.arange(padded.shape[1])
    outside = (mirrored < 0) | (mirrored >= size[1])
    difference = padded - padded[:, jnp.clip(mirrored, 0, size[1] - 1)]
    # The gradient of `abs` is 1 at 0: that of two equal pixels must not draw them apart.
    return jnp.where(outside, 0, difference * jnp.sign(difference))
