"""Gaussian and Laplacian pyramids, and contrast amplified scale by scale (MUSICA)."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int

from pp_jax.preprocess.arithmetic import rounded
from pp_jax.preprocess.responses import Filter, extend

# The strength of a detail, in grey levels, that neither grows nor shrinks when the gain is 1.
_STRONG = 64


def musica(*, gain: float = 1.0, levels: int = 6, power: float = 0.7, noise: float = 2.0) -> Filter:
    """The image with faint details amplified more than strong ones, at every scale.

    A detail of `x` grey levels in the Laplacian pyramid becomes `gain * M * sign(x) * |x / M| **
    power`, with `M` = 64; the coarsest level of the pyramid stays. The result is clipped to
    [0, 255]. `gain` 1 with `power` 1 gives the image back. Vuylsteke and Schoeters 1994,
    "Multiscale Image Contrast Amplification (MUSICA)".

    Args:
      levels: Halvings of the resolution. Details wider than about `2 ** levels` pixels stay.
      noise: Grey levels. Details fainter than this are amplified by one common factor, that of a
        detail of this strength, so that noise is not raised above it.

    Raises:
      ValueError: `gain` outside [0, 100], `levels` outside 1 to 11, `power` outside (0, 2] or
        `noise` outside [0.01, 255].
    """
    if not 0 <= gain <= 100:
        raise ValueError(f"gain={gain}: choose a factor from 0 to 100")
    if not 1 <= levels <= 11:
        raise ValueError(f"levels={levels}: choose 1 to 11 halvings")
    if not 0 < power <= 2:
        raise ValueError(f"power={power}: choose a power above 0 and at most 2 (1 is linear)")
    if not 0.01 <= noise <= 255:
        raise ValueError(f"noise={noise}: choose 0.01 to 255 grey levels")
    function = partial(_musica, gain=gain, levels=levels, power=power, noise=noise)
    return Filter(function, border="replicate", margin=0, low=0, high=255)


def pyramid_down(
    image: Float32[Array, "H W"], size: Int[Array, "2"]
) -> Float32[Array, "half_H half_W"]:
    """The valid part blurred and at half the resolution, `(size + 1) // 2` large.

    Equals `cv2.pyrDown`, border reflect-101, exactly where the grey levels are integers; rounding
    a half up then gives its uint8 result. Burt and Adelson 1983.
    """
    padded = extend(image, size, border="reflect101", margin=2)
    return _down(_down(padded).T).T


def pyramid_up(
    image: Float32[Array, "H W"], size: Int[Array, "2"], *, shape: tuple[int, int]
) -> Float32[Array, "double_H double_W"]:
    """The valid part at twice the resolution, on a canvas of `shape`.

    Equals `cv2.pyrUp` in the same way as `pyramid_down` does `cv2.pyrDown`. Whether the larger
    image has `2 * size` pixels or one less makes no difference to the pixels they share.

    Raises:
      ValueError: A side of `shape` is not twice the canvas's, or one less.
    """
    for side, half in zip(shape, image.shape, strict=True):
        if half != (side + 1) // 2:
            raise ValueError(f"{image.shape} to {shape}: choose twice each side, or one less")
    # OpenCV continues by repetition after the last pixel, by reflection before the first.
    padded = extend(image, size, border="replicate", margin=1)
    padded = padded.at[0].set(padded[2])
    padded = padded.at[:, 0].set(padded[:, 2])
    doubled = _up(_up(padded).T).T
    return doubled[: shape[0], : shape[1]]


def _musica(
    image: Float32[Array, "H W"],
    size: Int[Array, "2"],
    *,
    gain: float,
    levels: int,
    power: float,
    noise: float,
) -> Float32[Array, "H W"]:
    details, sizes = [], [size]
    for _ in range(levels):
        coarse = pyramid_down(image, sizes[-1])
        sizes.append((sizes[-1] + 1) // 2)
        details.append(image - pyramid_up(coarse, sizes[-1], shape=image.shape))
        image = coarse
    for detail in reversed(details):
        amplified = _amplify(detail, gain=gain, power=power, noise=noise)
        image = amplified + pyramid_up(image, sizes.pop(), shape=detail.shape)
    return jnp.clip(image, 0, 255)


def _amplify(
    detail: Float32[Array, "H W"], *, gain: float, power: float, noise: float
) -> Float32[Array, "H W"]:
    strength = jnp.maximum(jnp.abs(detail), noise)
    return rounded(detail * (gain * (strength / _STRONG) ** (power - 1)))


def _down(padded: Float32[Array, "rows W"]) -> Float32[Array, "half_H W"]:
    """Every other row of the rows blurred by 1 4 6 4 1, without the margin of two."""
    last = padded.shape[0] - 5
    a, b, c, d, e = (padded[tap : last + tap + 1 : 2] for tap in range(5))
    # Each partial sum of equal pixels is a power of two: a flat image stays exactly as it is.
    return (((a + e) + 2 * c) + 4 * c + 4 * (b + d)) / 16


def _up(padded: Float32[Array, "rows W"]) -> Float32[Array, "double_H W"]:
    """Two rows for each, blurred by 1 6 1 and 4 4, without the margin of one."""
    before, here, after = padded[:-2], padded[1:-1], padded[2:]
    even = (((before + after) + 2 * here) + 4 * here) / 8
    return jnp.stack([even, (here + after) / 2], axis=1).reshape(-1, padded.shape[1])
