"""Filters that take away noise and leave edges where they are."""

import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int

from pp_jax.preprocess.responses import Filter

Image = Float32[Array, "H W"]


def median(*, aperture: int = 3) -> Filter:
    """The median of the square of `aperture` x `aperture` pixels around each, in grey levels.

    Equals `cv2.medianBlur`, border replicate, exactly. The gradient goes to the pixel that is the
    median; among equal ones to one of them.
    """
    if aperture not in (3, 5):
        raise ValueError(f"{aperture=}: choose 3 or 5")
    function = partial(_median_of_squares, aperture=aperture)
    return Filter(function, border="replicate", margin=aperture // 2, low=0, high=255)


def bilateral(*, diameter: int = 5, sigma_grey: float = 25.0, sigma_space: float = 3.0) -> Filter:
    """The mean over a disk, weighted by nearness in space and in grey, in grey levels.

    Within 1e-3 of `cv2.bilateralFilter` on float32, border reflect-101, which reads its weights
    from a table; on uint8 OpenCV rounds the same mean to a whole level, most pixels down where the
    diameter is 3 or 5.

    Args:
      diameter: Of the disk in pixels.
      sigma_grey: Standard deviation of the Gaussian of the difference in grey levels.
      sigma_space: Standard deviation of the Gaussian of the distance, in pixels.
    """
    if diameter not in range(3, 16, 2):
        raise ValueError(f"{diameter=}: choose an odd number from 3 to 15")
    # Below, squared reciprocals overflow float32 in the gradient.
    for name, sigma in (("sigma_grey", sigma_grey), ("sigma_space", sigma_space)):
        if not 0.1 <= sigma <= 1000:
            raise ValueError(f"{name}={sigma}: choose a number from 0.1 to 1000")
    radius = diameter // 2
    function = partial(
        _bilateral_mean, radius=radius, sigma_grey=sigma_grey, sigma_space=sigma_space
    )
    return Filter(function, border="reflect101", margin=radius, low=0, high=255)


def _median_of_squares(
    padded: Float32[Array, "rows columns"], size: Int[Array, "2"], *, aperture: int
) -> Image:
    """The median of each square, by exchanges of whole shifted images.

    Once the columns of a square are sorted (which neighbouring squares share), and then its rows,
    element (i, j) has (i + 1)(j + 1) - 1 others not above it. So all but those near the
    anti-diagonal cannot be the only median, as many on one side of it as on the other.
    """
    del size
    height, width = (length - aperture + 1 for length in padded.shape)
    columns = _sorted([padded[i : i + height] for i in range(aperture)])
    rows = [_sorted([row[:, j : j + width] for j in range(aperture)]) for row in columns]
    middle = aperture**2 // 2 + 1
    return _median(
        [
            rows[i][j]
            for i in range(aperture)
            for j in range(aperture)
            if (i + 1) * (j + 1) <= middle and (aperture - i) * (aperture - j) <= middle
        ]
    )


def _sorted(images: Sequence[Image]) -> list[Image]:
    """The images' values in rising order at each pixel."""
    images = list(images)
    for last in range(len(images) - 1, 0, -1):
        for i in range(last):
            images[i], images[i + 1] = _exchange(images[i], images[i + 1])
    return images


def _median(images: Sequence[Image]) -> Image:
    """The median at each pixel of an odd number of images.

    Of any n // 2 + 2 of n values the least and the greatest are not the only median: both are
    dropped and the next value takes part, until one is left.
    """
    kept, waiting = list(images[: len(images) // 2 + 2]), list(images[len(images) // 2 + 2 :])
    while len(kept) > 1:
        for i in range(len(kept) // 2):  # From here the least is in the first half.
            kept[i], kept[~i] = _exchange(kept[i], kept[~i])
        for i in range(1, (len(kept) + 1) // 2):
            kept[0], kept[i] = _exchange(kept[0], kept[i])
            kept[~i], kept[-1] = _exchange(kept[~i], kept[-1])
        kept = kept[1:-1] + waiting[:1]
        waiting = waiting[1:]
    return kept[0]


def _exchange(first: Image, second: Image) -> tuple[Image, Image]:
    """The lesser and the greater value at each pixel."""
    # One comparison for both: twice as fast as `minimum` and `maximum`, backwards 20 times.
    ordered = first <= second
    return jnp.where(ordered, first, second), jnp.where(ordered, second, first)


def _bilateral_mean(
    padded: Float32[Array, "rows columns"],
    size: Int[Array, "2"],
    *,
    radius: int,
    sigma_grey: float,
    sigma_space: float,
) -> Image:
    del size
    height, width = (length - 2 * radius for length in padded.shape)
    centre = padded[radius : radius + height, radius : radius + width]
    total, weights = 0.0, 0.0
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            if x * x + y * y > radius * radius:
                continue
            top, left = radius + y, radius + x
            difference = padded[top : top + height, left : left + width] - centre
            near = math.exp(-(x * x + y * y) / (2 * sigma_space**2))
            weight = near * jnp.exp(difference * difference * (-0.5 / sigma_grey**2))
            total += weight * difference
            weights += weight
    # Not the mean of the neighbours themselves, which rounding may take out of their range.
    return centre + total / weights
