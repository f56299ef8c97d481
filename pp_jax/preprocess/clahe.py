"""Contrast-limited adaptive histogram equalisation: a curve of grey levels per tile."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32

from pp_jax.preprocess.arithmetic import multiply, rounded
from pp_jax.preprocess.batching import image_by_image
from pp_jax.preprocess.histograms import nearest_levels
from pp_jax.preprocess.responses import Filter

Scalar = Int[Array, ""]


def clahe(*, clip: float = 2.0, tiles: int = 8) -> Filter:
    """The image with its histogram equalised tile by tile, blended between the tiles.

    Equals `cv2.createCLAHE(clip, (tiles, tiles)).apply` exactly. Grey levels are rounded to
    integers first. It has no gradient. Zuiderveld 1994, "Contrast Limited Adaptive Histogram
    Equalization".

    Args:
      clip: No level of a tile counts as more frequent than this many times the average; what is
        cut off is spread over all levels. 0 cuts nothing. (Below 1/16, which is hardly of use, the
        limit may be off by one count.)
      tiles: Along each side.

    Raises:
      ValueError: A negative or infinite `clip`, or `tiles` outside 1 to 64.
    """
    if not 0 <= clip < math.inf:
        raise ValueError(f"clip={clip}: choose 0 (no limit) or a finite factor above it")
    if not 1 <= tiles <= 64:
        raise ValueError(f"tiles={tiles}: choose 1 to 64 per side")
    # Where a side does not divide, OpenCV continues the image by up to one pixel per tile.
    function = image_by_image(partial(_clahe, clip=clip, tiles=tiles))
    return Filter(function, border="reflect101", margin=tiles, low=0, high=255)


def _clahe(
    padded: Float32[Array, "rows columns"], size: Int[Array, "2"], *, clip: float, tiles: int
) -> Float32[Array, "H W"]:
    levels = nearest_levels(jax.lax.stop_gradient(padded))[tiles:, tiles:]
    height, width = _tile_sides(size, tiles)
    counts = _tile_counts(levels, height, width, tiles)
    curves = _curves(counts, height * width, clip).reshape(-1)

    levels = levels[:-tiles, :-tiles]
    upper, lower, below = _neighbours(levels.shape[0], height, tiles)
    left, right, beside = _neighbours(levels.shape[1], width, tiles)

    def curve(rows: Int[Array, " H"], columns: Int[Array, " W"]) -> Float32[Array, "H W"]:
        return curves[(rows[:, None] * tiles + columns) * 256 + levels]

    top = _blend(curve(upper, left), curve(upper, right), beside)
    bottom = _blend(curve(lower, left), curve(lower, right), beside)
    return jnp.round(_blend(top, bottom, below[:, None]))


def _tile_sides(size: Int[Array, "2"], tiles: int) -> tuple[Scalar, Scalar]:
    """Height and width of a tile; both sides are continued where only one does not divide."""
    divides = (size % tiles == 0).all()
    height, width = jnp.where(divides, size, size + tiles - size % tiles) // tiles
    return height, width


def _tile_counts(
    levels: Int32[Array, "rows columns"], height: Scalar, width: Scalar, tiles: int
) -> Int32[Array, "tiles 256"]:
    """How many pixels of each tile have each level."""
    row, column = (
        jnp.arange(length) // side
        for length, side in zip(levels.shape, (height, width), strict=True)
    )
    valid = (row < tiles)[:, None] & (column < tiles)
    tile = jnp.where(valid, row[:, None] * tiles + column, 0)
    counts = jnp.zeros(tiles * tiles * 256, jnp.int32)
    return counts.at[tile * 256 + levels].add(valid.astype(jnp.int32)).reshape(-1, 256)


def _curves(
    counts: Int32[Array, "tiles 256"], area: Scalar, clip: float
) -> Float32[Array, "tiles 256"]:
    """The new grey level of each old one, per tile."""
    if clip > 0:
        counts = _limited(counts, _limit(area, clip))
    scale = 255 / area.astype(jnp.float32)
    return jnp.clip(jnp.round(jnp.cumsum(counts, axis=1).astype(jnp.float32) * scale), 0, 255)


def _limit(area: Scalar, clip: float) -> Scalar:
    """`max(int(clip * area / 256), 1)`, the first product rounded to float64 as in OpenCV."""
    whole, fraction = multiply(area, min(clip, 256) / 256)
    # The product becomes the next whole number where it is less than half a last digit below it.
    high, low = fraction
    rounds_up = (~high == 0) & (jax.lax.clz(~low >> 10) >= jax.lax.clz(whole))
    return jnp.maximum((whole + rounds_up).astype(jnp.int32), 1)


def _limited(counts: Int32[Array, "tiles 256"], limit: Scalar) -> Int32[Array, "tiles 256"]:
    """The counts cut at the limit, with what is cut off spread over all levels."""
    cut = jnp.maximum(counts - limit, 0).sum(axis=1, keepdims=True)
    rest = cut % 256
    step = jnp.maximum(256 // jnp.maximum(rest, 1), 1)
    level = jnp.arange(256)
    extra = (level % step == 0) & (level // step < rest)
    return jnp.minimum(counts, limit) + cut // 256 + extra


def _neighbours(
    length: int, side: Scalar, tiles: int
) -> tuple[Int32[Array, " n"], Int32[Array, " n"], Float32[Array, " n"]]:
    """Per pixel, the tiles before and after it, and the weight of the latter."""
    place = rounded(jnp.arange(length) * (1 / side.astype(jnp.float32))) - 0.5
    before = jnp.floor(place)
    index = before.astype(jnp.int32)
    return jnp.clip(index, 0, tiles - 1), jnp.clip(index + 1, 0, tiles - 1), place - before


def _blend(
    a: Float32[Array, "H W"], b: Float32[Array, "H W"], weight: Float32[Array, "..."]
) -> Float32[Array, "H W"]:
    return rounded(a * (1 - weight)) + rounded(b * weight)
