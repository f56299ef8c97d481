"""How varied an image is around each pixel."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from pp_jax.preprocess.batching import image_by_image
from pp_jax.preprocess.histograms import nearest_levels
from pp_jax.preprocess.responses import Filter, inside

# Rows that are scanned one after the other; bands of them are scanned side by side.
_BAND = 256
# Pixels outside the image have a level of their own, which does not count.
_OUTSIDE = 256
# Sums of n log2(n) are whole multiples of 1 / _UNITS, so that nothing is lost when a pixel leaves
# the disk. The largest, 709 log2(709) for radius 15, stays below 2**31.
_UNITS = 2**18


def entropy(*, radius: int = 5) -> Filter:
    """Shannon entropy of the 256 grey levels in a disk around each pixel, in bits.

    Equals `skimage.filters.rank.entropy` with `skimage.morphology.disk(radius)` on uint8 to 1e-5
    bits: at the border the disk is cropped to the image. Other values are rounded to the nearest
    level first. At most 8, and at most log2 of the pixels of a disk. Has no gradient.
    """
    if radius not in range(1, 16):
        raise ValueError(f"{radius=}: choose a whole number from 1 to 15")
    high = min(8.0, math.log2(_area(radius)))
    function = image_by_image(partial(_entropy_of_disks, radius=radius))
    return Filter(function, border="replicate", margin=radius, low=0, high=high)


def _reaches(radius: int) -> list[int]:
    """How far a disk reaches up and down in each of its columns."""
    return [math.isqrt(radius**2 - x**2) for x in range(-radius, radius + 1)]


def _area(radius: int) -> int:
    return sum(2 * reach + 1 for reach in _reaches(radius))


def _entropy_of_disks(
    padded: Float32[Array, "rows columns"], size: Int[Array, "2"], *, radius: int
) -> Float32[Array, "H W"]:
    height, width = (length - 2 * radius for length in padded.shape)
    ringed = jnp.pad(inside(size, shape=(height, width)), radius)
    levels = jnp.where(ringed, nearest_levels(jax.lax.stop_gradient(padded)), _OUTSIDE)
    # From `2 radius + 1` rows above, where nothing is inside yet, to `radius` rows below its band.
    band = min(_BAND, height)
    bands = -(-height // band)
    levels = jnp.pad(levels, ((0, bands * band - height), (0, 0)), constant_values=_OUTSIDE)
    rows = jnp.arange(band + 2 * radius)[:, None] + band * jnp.arange(bands)
    above = ((2 * radius + 1, 0), (0, 0), (0, 0))
    strips = jnp.pad(levels[rows], above, constant_values=_OUTSIDE)  # (rows, bands, columns)
    n = np.arange(1, _area(radius) + 1)
    n_log2_n = np.insert(np.rint(n * np.log2(n) * _UNITS), 0, 0).astype(np.int32)
    total, pixels = (
        a.reshape(band, bands, width).swapaxes(0, 1).reshape(-1, width)[:height]
        for a in _scan_disks(strips, radius=radius, n_log2_n=n_log2_n)
    )
    bits = (jnp.asarray(n_log2_n)[pixels] - total) / jnp.maximum(pixels, 1) / _UNITS
    return jnp.minimum(bits, math.log2(_area(radius)))  # Against rounding.


def _scan_disks(
    strips: Int32[Array, "rows bands columns"], *, radius: int, n_log2_n: Int32[np.ndarray, " n"]
) -> tuple[Int32[Array, "band lanes"], Int32[Array, "band lanes"]]:
    """Sum over levels of n log2(n), and the number of pixels, of each disk in a band.

    All disks move down one row at a time, each with its histogram. The sum follows every pixel
    that enters or leaves: a step costs the edge of the disk and not its area, nor 256 levels.
    """
    _, bands, columns = strips.shape
    width, lanes = columns - 2 * radius, bands * (columns - 2 * radius)
    first = jnp.arange(lanes) * (_OUTSIDE + 1)
    growth = jnp.asarray(np.diff(n_log2_n))  # From n to n + 1.

    def step(state, row):
        histograms, total, pixels = state
        for left, reach in enumerate(_reaches(radius)):
            for edge, change in ((row - 1 - reach, -1), (row + reach, 1)):
                level = strips[edge, :, left : left + width].reshape(-1)
                place, counts = first + level, level != _OUTSIDE
                before = histograms[place]
                histograms = histograms.at[place].set(
                    before + jnp.int16(change), unique_indices=True, mode="promise_in_bounds"
                )
                lesser = before if change > 0 else before - 1
                total += change * jnp.where(counts, growth[lesser], 0)
                pixels += change * counts
        return (histograms, total, pixels), (total, pixels)

    zero = jnp.zeros(lanes, jnp.int32)
    # 709 pixels at most: int16 keeps more of the histograms in the cache.
    histograms = jnp.zeros(lanes * (_OUTSIDE + 1), jnp.int16)
    centres = jnp.arange(radius + 1, strips.shape[0] - radius)
    _, (total, pixels) = jax.lax.scan(step, (histograms, zero, zero), centres)
    return total[2 * radius :], pixels[2 * radius :]
