"""Blurs, and what they leave out: sharpening and band-pass filters."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from pp_jax.preprocess.responses import Filter, correlate, extend_axis, opaque_zero

# Sides of kernels grow with sigma, and so does the time: 401 taps along each axis at the most.
_SIGMA_RANGE = (0.3, 50)

Function = Callable[[Float32[Array, "H W"], Int[Array, "2"]], Float32[Array, "H W"]]


def gaussian(*, sigma: float = 1.0, aperture: int = 0) -> Filter:
    """Gaussian blur as OpenCV's 8-bit fixed-point model computes it, in whole grey levels.

    Equals `cv2.GaussianBlur(uint8, (aperture, aperture), sigma)` exactly. Other values are rounded
    to the nearest integer first, half to even. The derivative is that of the same weighted sum
    without roundings.

    Args:
      sigma: Standard deviation in pixels, from 0.3 to 50.
      aperture: Side of the kernel in pixels, odd; 0 is OpenCV's choice for uint8, about 6 sigma.
    """
    _check_sigma("sigma", sigma)
    if aperture != 0 and not (0 < aperture <= 401 and aperture % 2 == 1):
        raise ValueError(f"aperture={aperture}: choose 0 or an odd number from 1 to 401")
    kernel = _fixed_point(gaussian_kernel(sigma, aperture=aperture or round(6 * sigma + 1) | 1))
    return Filter(_fixed_point_blur(kernel.tolist()), "reflect101", margin=0, low=0, high=255)


def unsharp(*, amount: float = 1.0, sigma: float = 2.0) -> Filter:
    """The image plus `amount` times what a Gaussian blur takes from it, clipped to [0, 255].

    The blur is `cv2.GaussianBlur` on floats, which are not rounded.

    Args:
      amount: From 0 to 100; 0 gives the image.
      sigma: Standard deviation in pixels, from 0.3 to 50.
    """
    if not 0 <= amount <= 100:
        raise ValueError(f"amount={amount}: choose a number from 0 to 100")
    _check_sigma("sigma", sigma)
    kernel = _float_kernel(sigma).tolist()

    def function(image: Float32[Array, "H W"], size: Int[Array, "2"]) -> Float32[Array, "H W"]:
        blurred = separable(image, size, along_y=kernel, along_x=kernel, border="reflect101")
        return jnp.clip(image + amount * (image - blurred), 0, 255)

    return Filter(function, "reflect101", margin=0, low=0, high=255)


def dog(*, sigma: float = 1.0, ratio: float = 1.6) -> Filter:
    """Difference of two Gaussian blurs, in grey levels: bright spots of a size are positive.

    `cv2.GaussianBlur` on floats with `sigma`, minus that with `ratio * sigma`.

    Args:
      sigma: Standard deviation of the narrow blur in pixels, from 0.3.
      ratio: At least 1.1, with `ratio * sigma` up to 50.
    """
    _check_sigma("sigma", sigma)
    if not ratio >= 1.1:
        raise ValueError(f"ratio={ratio}: choose a number from 1.1 up")
    _check_sigma("ratio * sigma", ratio * sigma)
    narrow, wide = _float_kernel(sigma), _float_kernel(ratio * sigma)
    narrow = np.pad(narrow, (len(wide) - len(narrow)) // 2)
    return _band_pass([(narrow, narrow), (-wide, wide)], border="reflect101")


def log(*, sigma: float = 2.0) -> Filter:
    """Laplacian of a Gaussian blur, in grey levels per square pixel: dark spots are positive.

    Equals `scipy.ndimage.gaussian_laplace`, its border `reflect` and its kernels that end at 4
    sigma, to 1e-5 of its range.

    Args:
      sigma: Standard deviation in pixels, from 0.3 to 50.
    """
    _check_sigma("sigma", sigma)
    radius = int(4 * sigma + 0.5)
    blur = gaussian_kernel(sigma, aperture=2 * radius + 1)
    position = np.arange(-radius, radius + 1)
    second = (position**2 / sigma**4 - 1 / sigma**2) * blur
    return _band_pass([(blur, second), (second, blur)], border="reflect")


def gaussian_kernel(sigma: float, *, aperture: int) -> Float[np.ndarray, " aperture"]:
    """Samples of a Gaussian at whole pixels around the centre, with sum 1."""
    position = np.arange(aperture) - aperture // 2
    kernel = np.exp(-(position**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def separable(
    image: Float32[Array, "H W"],
    size: Int[Array, "2"],
    *,
    along_y: Sequence[float],
    along_x: Sequence[float],
    border: str,
) -> Float32[Array, "H W"]:
    """Correlation with the product of two odd kernels, of the valid part of the canvas."""
    # Each axis is continued just before its own pass: this also keeps XLA from fusing the passes,
    # which would compute the first one anew for each tap of the second.
    padded = extend_axis(image, size[0], axis=0, border=border, margin=len(along_y) // 2)
    zero = opaque_zero(padded)
    passed = correlate(padded, along_y, axis=0, zero=zero)
    padded = extend_axis(passed, size[1], axis=1, border=border, margin=len(along_x) // 2)
    return correlate(padded, along_x, axis=1, zero=zero)


def _fixed_point_blur(taps: Sequence[int]) -> Function:
    """Both passes with `taps` in 256ths, the sum of products rounded once, half up."""
    margin, weights = len(taps) // 2, [tap / 256 for tap in taps]

    @jax.custom_jvp
    def blur(image: Float32[Array, "H W"], size: Int[Array, "2"]) -> Float32[Array, "H W"]:
        levels = jnp.round(image).astype(jnp.uint8)
        # The smallest number types that hold every sum: the passes are bound by memory.
        padded = extend_axis(levels, size[0], axis=0, border="reflect101", margin=margin)
        passed = correlate(padded.astype(jnp.uint16), taps, axis=0)
        padded = extend_axis(passed, size[1], axis=1, border="reflect101", margin=margin)
        total = correlate(padded.astype(jnp.int32), taps, axis=1)
        return ((total + (1 << 15)) >> 16).astype(jnp.float32)

    @blur.defjvp
    def derivative(primals, tangents):
        image, size = primals
        sums = partial(separable, size=size, along_y=weights, along_x=weights, border="reflect101")
        return blur(image, size), jax.jvp(sums, (image,), tangents[:1])[1]

    return blur


def _band_pass(terms: Sequence[tuple[np.ndarray, np.ndarray]], *, border: str) -> Filter:
    """The sum of separable filters, given as kernels along y and x, with a symmetric range."""
    kernel = sum(np.outer(along_y, along_x) for along_y, along_x in terms)
    high = 255 * float(max(kernel.clip(min=0).sum(), -kernel.clip(max=0).sum()))
    factors = [(along_y.tolist(), along_x.tolist()) for along_y, along_x in terms]

    def function(image: Float32[Array, "H W"], size: Int[Array, "2"]) -> Float32[Array, "H W"]:
        return sum(
            separable(image, size, along_y=along_y, along_x=along_x, border=border)
            for along_y, along_x in factors
        )

    return Filter(function, border, margin=0, low=-high, high=high)


def _check_sigma(name: str, sigma: float) -> None:
    low, high = _SIGMA_RANGE
    if not low <= sigma <= high:
        raise ValueError(f"{name}={sigma}: choose a number of pixels from {low} to {high}")


def _float_kernel(sigma: float) -> Float[np.ndarray, " aperture"]:
    """The kernel that OpenCV chooses for floats, about 8 sigma long."""
    return gaussian_kernel(sigma, aperture=round(8 * sigma + 1) | 1)


def _fixed_point(kernel: Float[np.ndarray, " aperture"]) -> Int[np.ndarray, " aperture"]:
    """The symmetric kernel in 256ths, with sum 256: what a tap loses by rounding the next one gets.

    As OpenCV's `getGaussianKernelFixedPoint_ED`: from the ends inwards, the rest at the centre.
    """
    half = len(kernel) // 2
    exact = np.cumsum(256 * kernel[:half])
    left = np.diff(np.round(exact), prepend=0)
    taps = np.concatenate([left, [256 - 2 * left.sum()], left[::-1]])
    return taps.astype(np.int64)
