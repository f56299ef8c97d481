"""Filters: float32 grey levels in [0, 255] to a float32 response in the filter's natural unit.

A filter runs on a canvas of one static shape. `respond` first fills the canvas beyond the valid
`size` by the filter's own border rule, so that no filter sees the border of the padding: for every
row of `FILTERS` the valid part of the response equals, bit for bit, that of the image alone.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Filter(NamedTuple):
    """A filter, the rule of its borders and the fixed range of its response.

    `low` and `high` go to 0 and 255 when the response becomes an image. They never depend on the
    image, so that equal edges look equal in all images.
    """

    function: Callable[[Float[Array, "H W"]], Float[Array, "H W"]]
    border: str
    low: float
    high: float


def identity(image: Float[Array, "H W"]) -> Float[Array, "H W"]:
    """The grey levels themselves."""
    return image


def sobel(image: Float[Array, "H W"]) -> Float[Array, "H W"]:
    """Gradient magnitude, in grey levels per pixel times 8.

    Matches `cv2.magnitude` of `sobel_gradients` to 1 ulp. Where the image is flat, the gradient
    with respect to the image is zero.
    """
    dx, dy = sobel_gradients(image)
    square = dx * dx + dy * dy
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, jnp.sqrt(safe), 0)


def sobel_gradients(image: Float[Array, "H W"]) -> tuple[Float[Array, "H W"], Float[Array, "H W"]]:
    """`(dx, dy)` of the 3x3 Sobel operator, in grey levels per pixel times 8.

    Equals `cv2.Sobel(x, cv2.CV_32F, 1, 0)` and `(..., 0, 1)`, border reflect-101, exactly where the
    grey levels are integers.
    """
    padded = jnp.pad(image, 1, mode="reflect")
    # Shifted sums: XLA's convolution of one channel is far slower on a CPU.
    smooth_y = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_x = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth_y[:, 2:] - smooth_y[:, :-2], smooth_x[2:] - smooth_x[:-2]


# For binary neighbourhoods the longest (dx, dy) is (4, 2) times 255: the three pixels of one side
# and the middle of a neighbouring side are white. A convex function of the pixels has its maximum
# at such a corner of their range, so no grey levels in [0, 255] exceed it.
_SOBEL_MAXIMUM = 255 * math.sqrt(4**2 + 2**2)


def reflect_101(index: Int[Array, " n"], length: Int[Array, ""]) -> Int[Array, " n"]:
    """The valid index that stands at `index` when a row continues as in `dcb|abcd|cba`.

    OpenCV's `BORDER_REFLECT_101`, SciPy's `mirror`; a row of one pixel repeats it.
    """
    period = jnp.maximum(2 * (length - 1), 1)
    phase = index % period
    return jnp.minimum(phase, period - phase)


def extend(
    image: Float[Array, "H W"], size: Int[Array, "2"], *, border: str
) -> Float[Array, "H W"]:
    """The canvas with all beyond the valid `size` replaced, by the row of `BORDERS`."""
    rows, columns = (
        BORDERS[border](jnp.arange(length), valid)
        for length, valid in zip(image.shape, size, strict=True)
    )
    return image[rows][:, columns]


def respond(
    image: Float[Array, "H W"], size: Int[Array, "2"], *, row: Filter
) -> Float[Array, "H W"]:
    """The response of one row of `FILTERS`, right in the valid `size` of the canvas.

    What the canvas holds beyond `size` has no influence.
    """
    return row.function(extend(image, size, border=row.border))


BORDERS: Mapping[str, Callable[[Int[Array, " n"], Int[Array, ""]], Int[Array, " n"]]] = (
    MappingProxyType({"reflect101": reflect_101})
)

FILTERS: Mapping[str, Filter] = MappingProxyType(
    {
        "none": Filter(identity, border="reflect101", low=0, high=255),
        "sobel": Filter(sobel, border="reflect101", low=0, high=_SOBEL_MAXIMUM),
    }
)
