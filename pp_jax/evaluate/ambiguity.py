"""How well the image itself shows where an object ends."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

RING = 0.02  # Width of the bands on both sides of the boundary, of the image's longest side.
FEWEST = 10  # Pixels that a band needs.
FLOOR = 1.0  # Grey levels: below this spread a ring counts as flat, as a byte cannot show less.
_ROUNDING = 1e-6  # Grey levels: less is the sums' own error.

Grey = UInt8[np.ndarray, "H W"] | Float[np.ndarray, "H W"]


class Boundary(NamedTuple):
    """The grey levels on both sides of an object's boundary."""

    inside: float  # Mean.
    outside: float  # Mean.
    spread: float  # Standard deviation outside.


def contrast_to_noise(
    image: Grey, object: Bool[np.ndarray, "H W"], *, others: Bool[np.ndarray, "H W"] | None = None
) -> float | None:
    """`|mean inside - mean outside| / spread outside` along the object's boundary, 0 or more.

    See `boundary`. A spread below one grey level counts as one, so that a drawn, noiseless object
    has a finite figure. It is the same for a brighter image, and, down to that floor, for one with
    more contrast. None where a band has too few pixels to be judged, or where there is neither a
    difference nor noise.
    """
    levels = boundary(image, object, others=others)
    if levels is None:
        return None
    difference = abs(levels.inside - levels.outside)
    if max(difference, levels.spread) < _ROUNDING:
        return None
    return difference / max(levels.spread, FLOOR)


def boundary(
    image: Grey, object: Bool[np.ndarray, "H W"], *, others: Bool[np.ndarray, "H W"] | None = None
) -> Boundary | None:
    """The levels of the object's pixels near its boundary and of a ring around; None: too few.

    Near is within 2 % of the image's longest side, at least one pixel, between centres of pixels;
    too few are fewer than 10 on either side. The border of the image is no boundary.

    Args:
      image: Grey levels in [0, 255].
      object: Its pixels.
      others: Pixels of other objects, which the ring leaves out.
    """
    _same_size(image, object)
    rows, columns = (np.flatnonzero(object.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    radius = max(RING * max(object.shape), 1.0)
    reach = int(radius) + 1
    window = tuple(
        slice(max(int(line[0]) - reach, 0), int(line[-1]) + reach + 1) for line in (rows, columns)
    )
    part, levels = object[window], image[window]
    ring = within(part, radius) & ~part
    if others is not None:
        _same_size(image, others)
        ring &= ~others[window]
    sides = (within(~part, radius) & part, ring)
    inside, outside = (levels[side].astype(np.float64) for side in sides)
    if min(len(inside), len(outside)) < FEWEST:
        return None
    return Boundary(*(float(x) for x in (inside.mean(), outside.mean(), outside.std())))


def within(mask: Bool[np.ndarray, "h w"], radius: float) -> Bool[np.ndarray, "h w"]:
    """The pixels at most `radius` from one of the mask.

    The union of the mask's rows, each widened to the chord of the disc at its distance: a fifth of
    the time of SciPy's distance transform, which knows far more than is asked here.
    """
    far, width = int(radius) + 1, mask.shape[1]
    column = np.arange(width, dtype=np.int16 if width + 2 * far < 2**15 else np.int32)
    last = np.maximum.accumulate(np.where(mask, column, column.dtype.type(-far)), axis=1)
    following = np.where(mask, column, column.dtype.type(width + far))[:, ::-1]
    following = np.minimum.accumulate(following, axis=1)[:, ::-1]
    gap = np.minimum(np.minimum(column - last, following - column), far)
    gap = gap.astype(np.uint8 if far < 256 else np.int32)
    near = gap < far
    for distance in range(1, min(far, len(mask))):
        chord = gap <= int(math.sqrt(radius * radius - distance * distance))
        near[distance:] |= chord[:-distance]
        near[:-distance] |= chord[distance:]
    return near


def _same_size(image: np.ndarray, mask: np.ndarray) -> None:
    if image.shape != mask.shape:
        raise ValueError(f"an image of {image.shape} pixels and a mask of {mask.shape} do not fit")
