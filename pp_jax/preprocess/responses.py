"""What a filter is, and the single place where one is called.

A filter maps float32 grey levels in [0, 255] to a float32 response in its natural unit. It runs on
a canvas of one static shape, of which only a `size` is valid: `respond` first continues the valid
part by the filter's own border rule, so that no filter sees the border of the padding. For every
filter the valid part of the response equals, bit for bit, that of the image alone.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Num


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
    image: Num[Array, "H W"], size: Int[Array, "2"], *, border: str, margin: int = 0
) -> Num[Array, "rows columns"]:
    """The canvas, `margin` wider on each side, with the valid part continued by `margin` pixels.

    What lies further beyond `size` is not defined.

    Args:
      border: A name in `BORDERS`.
    """
    canvas = jnp.pad(image, margin)
    for axis, length in enumerate(size):
        canvas = _continue(canvas, length, axis=axis, border=border, margin=margin)
    return canvas


def extend_axis(
    image: Num[Array, "H W"], length: Int[Array, ""], *, axis: int, border: str, margin: int
) -> Num[Array, "rows columns"]:
    """As `extend`, along one axis of valid `length` only: for the passes of a separable filter."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (margin, margin)
    canvas = jnp.pad(image, widths)
    return _continue(canvas, length, axis=axis, border=border, margin=margin)


def _continue(
    canvas: Num[Array, "rows columns"],
    length: Int[Array, ""],
    *,
    axis: int,
    border: str,
    margin: int,
) -> Num[Array, "rows columns"]:
    """The canvas with `margin` pixels set on both sides of those at `margin + arange(length)`.

    Only these strips are gathered. A gather of the whole canvas takes as long as the filter, and on
    a CPU is fused into each of the shifted sums that read it, where it is repeated.
    """
    if margin == 0:
        return canvas
    outside = jnp.concatenate([jnp.arange(-margin, 0), length + jnp.arange(margin)])
    strips = jnp.take(canvas, margin + BORDERS[border](outside, length), axis=axis, mode="clip")
    place = (slice(None),) * axis + (margin + outside,)
    return canvas.at[place].set(strips, indices_are_sorted=True, unique_indices=True)


def correlate(
    padded: Num[Array, "rows columns"],
    kernel: Sequence[float],
    *,
    axis: int,
    zero: Num[Array, ""] | int = 0,
) -> Num[Array, "H W"]:
    """Correlation with an odd `kernel` along one axis, where all of it lies on the canvas.

    A sum of shifted slices in the canvas's number type: XLA's convolution of one channel is far
    slower on a CPU.

    Args:
      zero: An `opaque_zero`; 0 will do where all products are exact, as those of integers.
    """
    length = padded.shape[axis] - len(kernel) + 1
    return sum(
        weight * lax.slice_in_dim(padded, start, start + length, axis=axis) + zero
        for start, weight in enumerate(kernel)
        if weight
    )


def opaque_zero(values: Num[Array, "H W"]) -> Num[Array, ""]:
    """A zero that no compiler foresees: `product + zero` is rounded before it is added to a sum.

    XLA's CPU compiler fuses products and sums into operations with a single rounding, but in some
    columns only, which depends on the width of the canvas. The fusion of a product with this zero
    changes nothing.

    Args:
      values: Finite, and in memory, such as a padded canvas: of an intermediate sum, the one pixel
        would be computed again beside every other.
    """
    return lax.stop_gradient(values[0, 0]) * 0


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
