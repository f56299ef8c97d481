"""Regions grown from seeds, on grey levels: pixels touch along edges, not by a corner."""

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from pp_jax.baselines.views import Mask

Grey = UInt8[np.ndarray, "h w"]


def flood(grey: Grey, seeds: Mask, *, tolerance: float, barred: Mask) -> Mask:
    """What a path joins to a seed along which no level differs more than `tolerance` from its own.

    The union over the seeds. No path leads through `barred`.
    """
    found = np.zeros_like(seeds)
    for level in np.unique(grey[seeds & ~barred]):
        near = (np.abs(grey.astype(np.int16) - np.int16(level)) <= tolerance) & ~barred
        found |= reached(near, seeds & (grey == level))
    return found


def reached(passable: Mask, seeds: Mask) -> Mask:
    """The connected regions of `passable` that hold a seed."""
    regions, count = ndimage.label(passable)
    kept = np.zeros(count + 1, bool)
    kept[regions[seeds]] = True
    kept[0] = False
    return kept[regions]


def grow(grey: Grey, seeds: Mask, *, tolerance: float, barred: Mask) -> Mask:
    """The seeds and what joins them by the criterion |I - mean| < `tolerance`.

    In each round all neighbours that meet it join together, then the mean of the region's levels is
    taken anew; the end is when none joins. What was refused is asked again when the mean has moved.
    Adams and Bischof ("Seeded region growing", PAMI 16(6), 1994) let pixels join one at a time;
    rounds do not depend on the order in which pixels are looked at.

    Args:
      barred: Never joins.
    """
    height, width = np.add(grey.shape, 2)
    levels = np.pad(grey, 1).ravel()  # A frame spares asking whether a neighbour is in the image.
    fresh = np.pad(~(seeds | barred), 1).ravel()  # May join, and has not been asked yet.
    region = np.pad(seeds & ~barred, 1).ravel()
    joined, refused = np.flatnonzero(region), np.zeros(0, int)
    total, count = 0, 0
    while len(joined):
        total, count = total + int(levels[joined].sum(dtype=np.int64)), count + len(joined)
        beside = (joined[:, None] + np.array([-width, -1, 1, width])).ravel()
        beside = np.unique(beside[fresh[beside]])
        fresh[beside] = False
        asked = np.concatenate([refused, beside])
        near = np.abs(np.arange(256) - total / count) < tolerance
        passed = near[levels[asked]]
        joined, refused = asked[passed], asked[~passed]
        region[joined] = True
    return region.reshape(height, width)[1:-1, 1:-1]
