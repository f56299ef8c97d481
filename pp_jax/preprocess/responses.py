"""What a filter is, and the single place where one is called.

A filter maps float32 grey levels in [0, 255] to a float32 response in its natural unit. It runs on
a canvas of one static shape, of which only a `size` is valid: `respond` first continues the valid
part by the filter's own border rule, so that no filter sees the border of the padding. For every
filter the valid part of the response equals, bit for bit, that of the image alone.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int


class Filter(NamedTuple):
    """A filter with its parameters: a function, its borders and the fixed range of its response.

    `function` takes the canvas continued by `margin` pixels on each side, `H + 2 margin` high, and
    the valid (height, width); it returns the response on the canvas, `H W`, whatever beyond the
    valid part. `low` and `high` go to 0 and 255 when the response becomes an image. They never
    depend on the image, so that equal edges look equal in all images.
    """

    function: Callable[[Float32[Array, "rows columns"], Int[Array, "2"]], Float32[Array, "H W"]]
    border: str
    margin: int
    low: float
    high: float


def respond(
    image: Float[Array, "H W"], size: Int[Array, "2"], *, filter: Filter
) -> Float32[Array, "H W"]:
    """The response of one filter, right in the valid `size` of the canvas.

    What the canvas holds beyond `size` has no influence. Other floats than float32 are converted
    first; all integer grey levels are exact in bfloat16.
    """
    image = image.astype(jnp.float32)
    return filter.function(extend(image, size, border=filter.border, margin=filter.margin), size)


def to_grey_levels(response: Float[Array, "H W"], *, filter: Filter) -> Float[Array, "H W"]:
    """The response with the filter's fixed range mapped to [0, 255], and clipped there."""
    scale = 255 / (filter.high - filter.low)
    return jnp.clip((response - filter.low) * scale, 0, 255)


def extend(
    image: Float[Array, "H W"], size: Int[Array, "2"], *, border: str, margin: int = 0
) -> Float[Array, "rows columns"]:
    """The canvas, `margin` wider on each side, continued beyond the valid `size`.

    Args:
      border: A name in `BORDERS`.
    """
    rows, columns = (
        BORDERS[border](jnp.arange(-margin, length + margin), valid)
        for length, valid in zip(image.shape, size, strict=True)
    )
    return image[rows][:, columns]


def inside(size: Int[Array, "2"], *, shape: tuple[int, int]) -> Bool[Array, "H W"]:
    """Which pixels of a canvas of `shape` are valid."""
    return (jnp.arange(shape[0]) < size[0])[:, None] & (jnp.arange(shape[1]) < size[1])


def reflect_101(index: Int[Array, " n"], length: Int[Array, ""]) -> Int[Array, " n"]:
    """The valid index that stands at `index` when a row continues as in `dcb|abcd|cba`.

    OpenCV's `BORDER_REFLECT_101`, SciPy's `mirror`; a row of one pixel repeats it.
    """
    period = jnp.maximum(2 * (length - 1), 1)
    phase = index % period
    return jnp.minimum(phase, period - phase)


def reflect(index: Int[Array, " n"], length: Int[Array, ""]) -> Int[Array, " n"]:
    """The valid index that stands at `index` when a row continues as in `cba|abcd|dcb`.

    OpenCV's `BORDER_REFLECT`, SciPy's `reflect`.
    """
    phase = index % (2 * length)
    return jnp.minimum(phase, 2 * length - 1 - phase)


def replicate(index: Int[Array, " n"], length: Int[Array, ""]) -> Int[Array, " n"]:
    """The valid index that stands at `index` when a row continues as in `aaa|abcd|ddd`.

    OpenCV's `BORDER_REPLICATE`, SciPy's `nearest`.
    """
    return jnp.clip(index, 0, length - 1)


BORDERS: Mapping[str, Callable[[Int[Array, " n"], Int[Array, ""]], Int[Array, " n"]]] = (
    MappingProxyType({"reflect101": reflect_101, "reflect": reflect, "replicate": replicate})
)
