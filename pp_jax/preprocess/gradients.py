"""Derivatives of the image: how steep it is, in which direction, and how it is curved."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int16, Int64

from pp_jax.preprocess.responses import Filter, correlate, opaque_zero


class Operator(NamedTuple):
    """One-dimensional kernels; the derivative along x smooths along y, and the reverse."""

    smoothing: tuple[int, ...]
    difference: tuple[int, ...]


def sobel(*, aperture: int = 3, part: str = "magnitude", norm: str = "l2") -> Filter:
    """First derivative by the Sobel operator, in grey levels per pixel times 2, 8, 128 or 2048.

    Equals `cv2.Sobel(x, cv2.CV_32F, ..., ksize=aperture)`, not saturated, exactly where the grey
    levels are integers.

    Args:
      aperture: Side of the kernel in pixels: 1 (three pixels, no smoothing), 3, 5 or 7.
      part: `magnitude`, or `x` or `y`: the signed derivative along it.
      norm: A name in `NORMS`, for the magnitude: `l1` is |dx| + |dy|, `l2` the Euclidean length, to
        1 ulp. Where the image is flat, its gradient with respect to the image is zero.
    """
    if aperture not in SOBEL:
        raise ValueError(f"aperture={aperture}: choose 1, 3, 5 or 7")
    return _first_derivative(SOBEL[aperture], part=part, norm=norm)


def scharr(*, part: str = "magnitude", norm: str = "l2") -> Filter:
    """First derivative by the 3x3 Scharr operator, in grey levels per pixel times 32.

    Equals `cv2.Scharr(x, cv2.CV_32F, ...)`; `part` and `norm` as in `sobel`.
    """
    return _first_derivative(Operator((3, 10, 3), (-1, 0, 1)), part=part, norm=norm)


def prewitt(*, part: str = "magnitude", norm: str = "l2") -> Filter:
    """First derivative by the 3x3 Prewitt operator, in grey levels per pixel times 6.

    Equals `cv2.filter2D` with its integer kernels; `part` and `norm` as in `sobel`.
    """
    return _first_derivative(Operator((1, 1, 1), (-1, 0, 1)), part=part, norm=norm)


def laplacian(*, aperture: int = 1) -> Filter:
    """Sum of both second derivatives, positive in dark spots, with the gain of the kernel.

    Equals `cv2.Laplacian(x, cv2.CV_32F, ksize=aperture)` exactly where the grey levels are
    integers: 3x3 kernels of 4 neighbours (aperture 1) or of the diagonals (3), Sobel's second
    derivatives for 5 and 7.
    """
    if aperture not in LAPLACIAN:
        raise ValueError(f"aperture={aperture}: choose 1, 3, 5 or 7")
    terms = LAPLACIAN[aperture]
    kernel = sum(np.outer(along_y, along_x) for along_y, along_x in terms)
    high = 255 * int(kernel.clip(min=0).sum())

    def function(
        padded: Float32[Array, "rows columns"], size: Int[Array, "2"]
    ) -> Float32[Array, "H W"]:
        del size
        apply = partial(correlate, zero=opaque_zero(padded))
        return sum(
            apply(apply(padded, along_y, axis=0), along_x, axis=1) for along_y, along_x in terms
        )

    return Filter(function, "reflect101", margin=len(kernel) // 2, low=-high, high=high)


def sobel_gradients(
    padded: Float32[Array, "rows columns"], *, aperture: int = 3
) -> tuple[Float32[Array, "H W"], Float32[Array, "H W"]]:
    """`(dx, dy)` of the Sobel operator, on a canvas padded by `max(aperture // 2, 1)`.

    Equals `cv2.Sobel(x, cv2.CV_32F, 1, 0, ksize=aperture)` and `(..., 0, 1)`, not saturated,
    exactly where the grey levels are integers; the padding is the border rule.
    """
    return gradients(padded, operator=SOBEL[aperture])


def gradients(
    padded: Float32[Array, "rows columns"], *, operator: Operator
) -> tuple[Float32[Array, "H W"], Float32[Array, "H W"]]:
    """`(dx, dy)` on a canvas padded by half a kernel."""
    smoothing, difference = operator
    apply = partial(correlate, zero=opaque_zero(padded))
    dx = apply(apply(padded, smoothing, axis=0), difference, axis=1)
    dy = apply(apply(padded, difference, axis=0), smoothing, axis=1)
    return dx, dy


def to_int16(response: Float[Array, "H W"]) -> Int16[Array, "H W"]:
    """The response rounded, half to even, and saturated to [-32768, 32767].

    Of `sobel_gradients`, equals `cv2.Sobel(x, cv2.CV_16S, ...)`; only aperture 7 is ever saturated.
    """
    return jnp.clip(jnp.round(response), -32768, 32767).astype(jnp.int16)


def length_l2(
    dx: Float32[Array, "H W"], dy: Float32[Array, "H W"], *, zero: Float32[Array, ""]
) -> Float32[Array, "H W"]:
    """Euclidean length of `(dx, dy)` within 1 ulp, by an `opaque_zero`; at zero its gradient is 0.

    The ulp: both squares, their sum and the root are each rounded correctly.
    """
    square = (dx * dx + zero) + (dy * dy + zero)
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, jnp.sqrt(safe), 0)


def length_l1(
    dx: Float32[Array, "H W"], dy: Float32[Array, "H W"], *, zero: Float32[Array, ""]
) -> Float32[Array, "H W"]:
    """|dx| + |dy|; its gradient is zero at zero."""
    del zero
    return jnp.maximum(dx, -dx) + jnp.maximum(dy, -dy)


def _first_derivative(operator: Operator, *, part: str, norm: str) -> Filter:
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: choose l1 or l2")
    if part not in ("magnitude", "x", "y"):
        raise ValueError(f"part={part!r}: choose magnitude, x or y")
    dx, dy = _extremes(operator)
    reached = {"l1": abs(dx) + abs(dy), "l2": np.hypot(dx, dy)}[norm]
    high = 255 * float({"magnitude": reached, "x": dx, "y": dy}[part].max())

    def function(
        padded: Float32[Array, "rows columns"], size: Int[Array, "2"]
    ) -> Float32[Array, "H W"]:
        del size
        dx, dy = gradients(padded, operator=operator)
        if part == "magnitude":
            return NORMS[norm](dx, dy, zero=opaque_zero(padded))
        return dx if part == "x" else dy

    margin = len(operator.difference) // 2
    low = 0 if part == "magnitude" else -high
    return Filter(function, "reflect101", margin=margin, low=low, high=high)


def _extremes(operator: Operator) -> Int64[np.ndarray, "2 n"]:
    """All corners of the set of `(dx, dy)` that grey levels in [0, 1] can have.

    A convex function such as a norm is greatest at one of them. The neighbourhood that reaches
    furthest in a direction is white where the pixel's own weights `(x, y)` point that way, so one
    direction between each two at which some pixel changes sides finds all of them.
    """
    smoothing, difference = operator
    weights = np.stack([np.outer(smoothing, difference), np.outer(difference, smoothing)])
    weights = weights.reshape(2, -1)
    turns = np.arctan2(weights[1], weights[0])
    turns = np.sort(np.concatenate([turns - np.pi / 2, turns + np.pi / 2]))
    angles = (turns + np.append(turns[1:], turns[0] + 2 * np.pi)) / 2
    towards = np.cos(angles)[:, None] * weights[0] + np.sin(angles)[:, None] * weights[1]
    return weights @ (towards > 0).T


SOBEL: Mapping[int, Operator] = MappingProxyType(
    {
        1: Operator((0, 1, 0), (-1, 0, 1)),
        3: Operator((1, 2, 1), (-1, 0, 1)),
        5: Operator((1, 4, 6, 4, 1), (-1, -2, 0, 2, 1)),
        7: Operator((1, 6, 15, 20, 15, 6, 1), (-1, -4, -5, 0, 5, 4, 1)),
    }
)

NORMS: Mapping[str, Callable[..., Float32[Array, "H W"]]] = MappingProxyType(
    {"l1": length_l1, "l2": length_l2}
)

# Per aperture the terms of the kernel, each as its factors along y and along x.
LAPLACIAN: Mapping[int, tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = MappingProxyType(
    {
        1: (((0, 1, 0), (1, -2, 1)), ((1, -2, 1), (0, 1, 0))),
        3: (((2, 0, 2), (1, 0, 1)), ((0, -8, 0), (0, 1, 0))),
        5: (((1, 4, 6, 4, 1), (1, 0, -2, 0, 1)), ((1, 0, -2, 0, 1), (1, 4, 6, 4, 1))),
        7: (
            ((1, 6, 15, 20, 15, 6, 1), (1, 2, -1, -4, -1, 2, 1)),
            ((1, 2, -1, -4, -1, 2, 1), (1, 6, 15, 20, 15, 6, 1)),
        ),
    }
)
