"""Canny's edges, in OpenCV's integer arithmetic and in scikit-image's floating point."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Num

from pp_jax.preprocess.batching import image_by_image
from pp_jax.preprocess.gradients import NORMS, SOBEL, sobel_gradients
from pp_jax.preprocess.hysteresis import hysteresis
from pp_jax.preprocess.quantiles import masked_quantiles
from pp_jax.preprocess.responses import Filter, correlate, inside, opaque_zero
from pp_jax.preprocess.smoothing import gaussian_kernel

# tan(22.5 degrees) in 15-bit fixed point, as OpenCV rounds it.
_TAN_22 = 13573

# OpenCV cuts thresholds at the largest int16 before it squares them.
_L2_LIMIT = 32767

# OpenCV divides gradients and thresholds of aperture 7, so that they fit int16.
_SCALE_7 = 16

_SIGMA_RANGE = (0.3, 50)

# Smaller gradients are rounding: at the border of flat white float32 leaves up to 3e-4.
_FLAT = 1e-3


def canny(*, low: float = 50.0, high: float = 150.0, aperture: int = 3, norm: str = "l1") -> Filter:
    """Canny's edges as OpenCV finds them: 255 on an edge, else 0.

    Equals `cv2.Canny(x, low, high, apertureSize=aperture, L2gradient=norm == "l2")` exactly. Grey
    levels are rounded to integers first. Not differentiable: `jax.lax.stop_gradient` stands on the
    input.

    Args:
      low: An edge goes on as long as the gradient is above, in the units of `cv2.Sobel`.
      high: Somewhere an edge must be above.
      aperture: Side of the Sobel operator in pixels: 3, 5 or 7.
      norm: `l1`, |dx| + |dy|, or `l2`, the length of (dx, dy).

    Raises:
      ValueError: Another aperture or norm, or not 0 <= low <= high; OpenCV exchanges the two.
    """
    limits = thresholds(low, high, aperture=aperture, norm=norm)

    def response(
        padded: Float32[Array, "rows columns"], size: Int[Array, "2"]
    ) -> Float32[Array, "H W"]:
        edges = integer_edges(padded, size, jnp.asarray(limits), aperture=aperture, norm=norm)
        return jnp.where(edges, 255.0, 0.0)

    return Filter(
        image_by_image(response), border="replicate", margin=aperture // 2, low=0, high=255
    )


def canny_quantile(*, sigma: float = 2.0, low: float = 0.8, high: float = 0.9) -> Filter:
    """Canny's edges as scikit-image finds them, its thresholds quantiles: 255 on an edge, else 0.

    Agrees with `skimage.feature.canny(x, sigma, low, high, use_quantiles=True)` in float64 on all
    but 1e-5 of an X-ray's pixels. Where gradients are equal by symmetry, as in drawings, or in
    enlarged images for a sigma below 1, rounding decides and the two differ more. Gradients below
    1e-3, which in float32 are rounding, are no edges, so a flat image has none; scikit-image marks
    rounding there. Not differentiable: `jax.lax.stop_gradient` stands on the input.

    Args:
      sigma: Standard deviation of the Gaussian that smooths first, in pixels, from 0.3 to 50.
      low: An edge goes on as long as the gradient reaches this quantile of the image's gradients.
      high: Somewhere an edge must reach this quantile.

    Raises:
      ValueError: A sigma outside its range, or not 0 <= low <= high <= 1.
    """
    smallest, largest = _SIGMA_RANGE
    if not smallest <= sigma <= largest:
        raise ValueError(f"sigma={sigma}: choose a number of pixels from {smallest} to {largest}")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low={low} and high={high}: choose quantiles, 0 <= low <= high <= 1")

    def response(image: Float32[Array, "H W"], size: Int[Array, "2"]) -> Float32[Array, "H W"]:
        edges = quantile_edges(image, size, sigma=sigma, low=low, high=high)
        return jnp.where(edges, 255.0, 0.0)

    return Filter(image_by_image(response), border="replicate", margin=0, low=0, high=255)


def thresholds(low: float, high: float, *, aperture: int, norm: str) -> Int32[np.ndarray, "2"]:
    """The thresholds as `integer_edges` takes them: floored, for L2 after squaring.

    Raises:
      ValueError: Another aperture or norm, or not 0 <= low <= high < infinity.
    """
    if aperture not in (3, 5, 7):
        raise ValueError(f"aperture={aperture}: choose 3, 5 or 7")
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: choose l1 or l2")
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"low={low} and high={high}: choose finite ones with 0 <= low <= high")
    limits = np.array([low, high]) / (_SCALE_7 if aperture == 7 else 1)
    if norm == "l2":
        limits = np.minimum(limits, _L2_LIMIT) ** 2
    return np.floor(np.minimum(limits, np.iinfo(np.int32).max)).astype(np.int32)


def integer_edges(
    padded: Float32[Array, "rows columns"],
    size: Int[Array, "2"],
    limits: Int32[Array, "2"],
    *,
    aperture: int,
    norm: str,
) -> Bool[Array, "H W"]:
    """Where OpenCV's Canny finds edges, right in the valid `size`.

    Args:
      padded: Grey levels, continued by `aperture // 2` replicated pixels on each side.
      limits: What `thresholds` returns.
    """
    levels = jnp.round(jax.lax.stop_gradient(padded))
    dx, dy = sobel_gradients(levels, aperture=aperture)
    if aperture == 7:  # Halves go to even, as in `cvRound`.
        dx, dy = jnp.round(dx / _SCALE_7), jnp.round(dy / _SCALE_7)
    dx, dy = dx.astype(jnp.int32), dy.astype(jnp.int32)
    length = dx * dx + dy * dy if norm == "l2" else abs(dx) + abs(dy)
    # OpenCV counts the gradient beyond the image as 0.
    length = jnp.where(inside(size, shape=dx.shape), length, 0)
    return hysteresis(length > limits[1], (length > limits[0]) & _is_integer_ridge(length, dx, dy))


def _is_integer_ridge(
    length: Int32[Array, "H W"], dx: Int32[Array, "H W"], dy: Int32[Array, "H W"]
) -> Bool[Array, "H W"]:
    """Whether no neighbour across the edge has a longer gradient; of two equal ones, one counts.

    Source: opencv/opencv, modules/imgproc/src/canny.cpp.
    """
    near = _neighbours(length)
    across, along = abs(dx), abs(dy) << 15
    tan_22 = across * _TAN_22
    tan_67 = tan_22 + (across << 16)  # tan(67.5) is tan(22.5) + 2.
    horizontal = (length > near[0, -1]) & (length >= near[0, 1])
    vertical = (length > near[-1, 0]) & (length >= near[1, 0])
    falling = (length > near[-1, -1]) & (length > near[1, 1])
    rising = (length > near[-1, 1]) & (length > near[1, -1])
    diagonal = jnp.where((dx < 0) == (dy < 0), falling, rising)
    return jnp.where(along < tan_22, horizontal, jnp.where(along > tan_67, vertical, diagonal))


def quantile_edges(
    image: Float32[Array, "H W"], size: Int[Array, "2"], *, sigma: float, low: float, high: float
) -> Bool[Array, "H W"]:
    """Where scikit-image's Canny finds edges, right in the valid `size`; see `canny_quantile`."""
    image = jax.lax.stop_gradient(image)
    zero = opaque_zero(image)
    dx, dy = _smooth_gradients(image, size, sigma)
    length = jnp.sqrt((dx * dx + zero) + (dy * dy + zero))
    valid = inside(size, shape=image.shape)
    weakest, strongest = masked_quantiles(length, valid, shares=(low, high))
    rows, columns = (
        (place > 0) & (place < last)
        for place, last in zip(map(jnp.arange, image.shape), size - 1, strict=True)
    )
    interior = rows[:, None] & columns
    weak = (length >= jnp.maximum(weakest, _FLAT)) & _is_ridge(length, dx, dy, zero=zero)
    return hysteresis(length >= strongest, weak & interior)


def _smooth_gradients(
    image: Float32[Array, "H W"], size: Int[Array, "2"], sigma: float
) -> tuple[Float32[Array, "H W"], Float32[Array, "H W"]]:
    """Sobel's `(dx, dy)` of the smoothed image, continued as in `reflect`."""
    whole, rest = (_reflected(x, size) for x in _smoothed(image, size, sigma, margin=2))

    def derivative(axis: int) -> Float32[Array, "H W"]:
        difference = partial(correlate, kernel=SOBEL[3].difference, axis=axis)
        exact = difference(whole).astype(jnp.float32) * 2.0**-23 + difference(rest)
        return correlate(exact, SOBEL[3].smoothing, axis=1 - axis)

    return derivative(1), derivative(0)


def _smoothed(
    image: Float32[Array, "H W"], size: Int[Array, "2"], sigma: float, *, margin: int
) -> tuple[Int32[Array, "rows columns"], Float32[Array, "rows columns"]]:
    """Gaussian means of the valid pixels alone, as whole numbers of 2**-23, and a small rest.

    Neighbouring means are so nearly equal that their differences would lose half of their digits,
    were the means in float32: 70 times as many pixels would differ from float64.
    """
    radius = int(4 * sigma + 0.5)  # SciPy's default.
    kernel = gaussian_kernel(sigma, aperture=2 * radius + 1)
    upper = np.floor(kernel * 2**15).astype(int).tolist()  # Their sum is at most 2**15.
    lower = (kernel - np.array(upper) * 2.0**-15).tolist()
    gains = [
        _gain(jnp.arange(-margin, length + margin), valid, kernel)
        for length, valid in zip(image.shape, size, strict=True)
    ]
    apply = partial(correlate, zero=opaque_zero(image))
    # All the frame at once: XLA would take 10 times as long for sums inside a later one.
    image = jnp.pad(jnp.where(inside(size, shape=image.shape), image, 0), radius + margin)

    levels = jnp.round(image)
    whole = correlate(levels, upper, axis=0)  # 23 bits, after the point 15.
    rest = apply(image - levels, kernel.tolist(), axis=0) + apply(levels, lower, axis=0)
    rest += (whole * 2.0**-15 + rest) * (gains[0][:, None] - 1)

    coarse = jnp.floor(whole * 2.0**-7)  # 16 bits, after the point 8.
    rest += (whole - coarse * 2**7) * 2.0**-15
    whole = correlate(coarse.astype(jnp.int32), upper, axis=1)  # 31 bits, after the point 23.
    rest = apply(rest, kernel.tolist(), axis=1) + apply(coarse * 2.0**-8, lower, axis=1)
    return whole, rest + (whole * 2.0**-23 + rest) * (gains[1] - 1)


def _gain(
    place: Int[Array, " n"], length: Int[Array, ""], kernel: Float[np.ndarray, " k"]
) -> Float32[Array, " n"]:
    """What makes up for the weights of a kernel around `place` that are not in [0, length)."""
    radius = len(kernel) // 2
    ends = np.append(0, kernel.cumsum())
    # All gains are from the host, by the weights before the image and behind it: XLA does not round
    # every division correctly. Without such weights the gain is 1, whatever the sum's last digit.
    before, behind = np.indices((radius + 1, radius + 1))
    gains = 1 / (ends[2 * radius + 1 - behind] - ends[before])
    gains[0, 0] = 1
    return jnp.asarray(gains, jnp.float32)[
        jnp.clip(radius - place, 0, radius), jnp.clip(radius + place - length + 1, 0, radius)
    ]


def _reflected(framed: Num[Array, "H+4 W+4"], size: Int[Array, "2"]) -> Num[Array, "H+2 W+2"]:
    """The valid part continued by one pixel on each side, which equals the one beside it."""
    x = framed
    for axis, valid in enumerate(size):
        count = x.shape[axis] - 2
        before, here, behind = (
            jax.lax.slice_in_dim(x, start, start + count, axis=axis) for start in range(3)
        )
        place = jnp.expand_dims(jnp.arange(-1, count - 1), 1 - axis)
        x = jnp.where(place == -1, behind, jnp.where(place == valid, before, here))
    return x


def _is_ridge(
    length: Float32[Array, "H W"],
    dx: Float32[Array, "H W"],
    dy: Float32[Array, "H W"],
    *,
    zero: Float32[Array, ""],
) -> Bool[Array, "H W"]:
    """Whether the gradient is nowhere longer one pixel further along itself, nor one back.

    Source: scikit-image, skimage/feature/_canny_cy.pyx.
    """
    near = _neighbours(length)
    is_steep = abs(dy) > abs(dx)
    falls = (dx > 0) == (dy > 0)
    larger, smaller = jnp.maximum(abs(dx), abs(dy)), jnp.minimum(abs(dx), abs(dy))

    def is_longer_at(side: int) -> Bool[Array, "H W"]:
        """A side is 1 to the right, -1 to the left."""
        diagonal = jnp.where(falls, near[side, side], near[-side, side])
        upright = jnp.where(falls, near[side, 0], near[-side, 0])
        straight = jnp.where(is_steep, upright, near[0, side])
        # The interpolated length, times `larger` to spare a division.
        further = (diagonal * smaller + zero) + (straight * (larger - smaller) + zero)
        return further > length * larger

    return ~(is_longer_at(1) | is_longer_at(-1))


def _neighbours(x: Num[Array, "H W"]) -> dict[tuple[int, int], Num[Array, "H W"]]:
    """By (dy, dx) what stands there from each pixel; 0 beyond the border."""
    height, width = x.shape
    padded = jnp.pad(x, 1)
    return {
        (dy, dx): padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
