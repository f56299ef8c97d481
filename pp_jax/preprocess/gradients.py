"""Derivatives of the image: how steep it is, and in which direction."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int

from pp_jax.preprocess.responses import Filter

# For binary neighbourhoods the longest (dx, dy) is (4, 2) times 255: the three pixels of one side
# and the middle of a neighbouring side are white. A convex function of the pixels has its maximum
# at such a corner of their range, so no grey levels in [0, 255] exceed it.
_SOBEL_MAXIMUM = 255 * math.sqrt(4**2 + 2**2)


def sobel() -> Filter:
    """Gradient magnitude of the 3x3 Sobel operator, in grey levels per pixel times 8."""
    return Filter(sobel_magnitude, border="reflect101", margin=1, low=0, high=_SOBEL_MAXIMUM)


def sobel_magnitude(
    padded: Float32[Array, "rows columns"], size: Int[Array, "2"]
) -> Float32[Array, "H W"]:
    """Gradient magnitude, in grey levels per pixel times 8.

    Matches `cv2.magnitude` of `sobel_gradients` to 1 ulp. Where the image is flat, the gradient
    with respect to the image is zero.
    """
    del size
    dx, dy = sobel_gradients(padded)
    square = dx * dx + dy * dy
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, jnp.sqrt(safe), 0)


def sobel_gradients(
    padded: Float32[Array, "rows columns"],
) -> tuple[Float32[Array, "H W"], Float32[Array, "H W"]]:
    """`(dx, dy)` of the 3x3 Sobel operator, in grey levels per pixel times 8.

    Equals `cv2.Sobel(x, cv2.CV_32F, 1, 0)` and `(..., 0, 1)`, border reflect-101, exactly where the
    grey levels are integers.
    """
    # Shifted sums: XLA's convolution of one channel is far slower on a CPU.
    smooth_y = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_x = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth_y[:, 2:] - smooth_y[:, :-2], smooth_x[2:] - smooth_x[:-2]
