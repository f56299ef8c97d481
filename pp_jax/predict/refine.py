"""Refinements of a predicted mask, original frame: pure functions, and chains of them.

Each takes the mask's logits (positive is inside) and the image, and returns a mask. In a chain the
mask of one step goes to the next as logits of +1 and -1, so a step that reads the logits' values
(`smooth`, `guided`) belongs first. Pixels that touch by a corner belong to one region; a hole is
connected along edges. What lies beyond the image counts as neither inside nor outside.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage
from scipy.special import expit
from skimage.measure import label, regionprops
from skimage.segmentation import inverse_gaussian_gradient, morphological_geodesic_active_contour

from pp_jax.preprocess.colour import to_fractions

Logits = Float32[np.ndarray, "H W"]
Image = UInt8[np.ndarray, "H W 3"]
Mask = Bool[np.ndarray, "H W"]


class Refinement(NamedTuple):
    """A row of `REFINEMENTS`: the function, and its parameters in the order of `NAME=VALUE,...`."""

    function: Callable[..., Mask]
    parameters: Mapping[str, type] = MappingProxyType({})


def refine(steps: Sequence[str], logits: Logits, image: Image) -> Mask:
    """The mask after all steps in their order; without a step, the pixels with a positive logit.

    Args:
      steps: As `parse_refinements` reads them.
      logits: Original frame.
      image: The same pixels.

    Raises:
      ValueError: A step that `parse_refinements` refuses, or logits and image of different sizes.
    """
    if logits.shape != image.shape[:2]:
        raise ValueError(
            f"logits of {logits.shape} on an image of {image.shape[:2]}: both need the same "
            "height and width"
        )
    mask = logits > 0
    for function in parse_refinements(steps):
        mask = function(logits, image)
        logits = np.where(mask, np.float32(1), np.float32(-1))
    return mask


def parse_refinements(steps: Sequence[str]) -> list[Callable[[Logits, Image], Mask]]:
    """One function of `(logits, image)` per step.

    A step is `NAME`, `NAME=VALUE` or `NAME=VALUE,VALUE`: a row of `REFINEMENTS`, then values for
    its parameters in their order. All values are positive.

    Raises:
      ValueError: An unknown name, too many values, or one that is not a positive number.
    """
    return [_parse(step) for step in steps]


def _parse(step: str) -> Callable[[Logits, Image], Mask]:
    name, _, text = step.partition("=")
    if name not in REFINEMENTS:
        raise ValueError(f"unknown refinement {step!r}: choose from {', '.join(REFINEMENTS)}")
    function, parameters = REFINEMENTS[name]
    texts = text.split(",") if "=" in step else []
    if len(texts) > len(parameters):
        takes = ",".join(parameters).upper()
        raise ValueError(
            f"refinement {step!r}: "
            + (f"give {name}={takes}" if takes else f"{name} takes no value")
        )
    options = {
        parameter: _number(value, kind=parameters[parameter], parameter=parameter, step=step)
        for parameter, value in zip(parameters, texts, strict=False)
    }
    return partial(function, **options)


def _number(text: str, *, kind: type, parameter: str, step: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        wanted = "whole number" if kind is int else "number"
        raise ValueError(f"refinement {step!r}: {parameter} needs a {wanted} above 0, not {text!r}")
    return value


def remove_small(logits: Logits, image: Image, *, area: int = 100) -> Mask:
    """The mask without its regions of fewer than `area` pixels; possibly empty.

    As `skimage.morphology.remove_small_objects`. The official generator's clean-up differs: it
    keeps the largest region where all are small.
    """
    del image
    regions, areas = _regions(logits > 0)
    return (areas >= area)[regions]


def keep_largest(logits: Logits, image: Image, *, count: int = 1) -> Mask:
    """The `count` largest regions; of equal ones, the first in raster order."""
    del image
    regions, areas = _regions(logits > 0)
    kept = np.zeros(len(areas), bool)
    kept[np.argsort(-areas, kind="stable")[:count]] = True
    return (kept & (areas > 0))[regions]


def fill_holes(logits: Logits, image: Image) -> Mask:
    """The mask and all background that no path along edges connects to the image's border."""
    del image
    return ndimage.binary_fill_holes(logits > 0)


def opened(logits: Logits, image: Image, *, radius: float = 3.0) -> Mask:
    """The union of all discs inside the mask: thin bridges and specks go.

    Equals `cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc)`, where a disc of `radius` pixels has all
    offsets of at most that length.
    """
    del image
    return ~_eroded(~_eroded(logits > 0, radius), radius)


def closed(logits: Logits, image: Image, *, radius: float = 3.0) -> Mask:
    """The complement of the union of all discs outside the mask: gaps and clefts go.

    Equals `cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc)`; see `opened`.
    """
    del image
    return _eroded(~_eroded(~(logits > 0), radius), radius)


def smooth(logits: Logits, image: Image, *, sigma: float = 3.0) -> Mask:
    """Where the logits are positive after a Gaussian of `sigma` pixels, the border repeated."""
    del image
    return ndimage.gaussian_filter(logits, sigma, mode="nearest") > 0


def convex_hull(logits: Logits, image: Image) -> Mask:
    """The convex hull of each region, as `skimage.morphology.convex_hull_object`.

    It holds each pixel whose centre lies in the hull of the region's pixels, each pixel a diamond
    that reaches the middles of its four edges.
    """
    del image
    mask = logits > 0
    hull = np.zeros_like(mask)
    for region in regionprops(label(mask, connectivity=2)):
        hull[region.slice] |= region.image_convex
    return hull


def snake(
    logits: Logits,
    image: Image,
    *,
    iterations: int = 30,
    sigma: float = 2.0,
    alpha: float = 100.0,
) -> Mask:
    """The mask after its outline was drawn to the image's edges, at most a pixel per iteration.

    Morphological geodesic active contour without a balloon force (Caselles et al. 1997; Marquez-
    Neila et al. 2014, doi 10.1109/TPAMI.2013.106), on the stopping function `1 / sqrt(1 + alpha *
    |gradient|)` of the grey levels in [0, 1].

    Args:
      iterations: Each moves and then smooths the outline once.
      sigma: Of the Gaussian whose gradient is taken, in pixels: edges farther than about twice as
        much do not attract.
      alpha: Steepness of the stopping function.
    """
    mask = logits > 0
    if not mask.any():
        return mask
    stopping = inverse_gaussian_gradient(to_fractions(image), alpha=alpha, sigma=sigma)
    # Nothing farther than an iteration's three pixels of reach can change or be seen, so the rest
    # of the image is left out. The image's border is repeated as far: the library takes what lies
    # beyond for outside, which would eat a mask there away.
    margin = 3 * iterations
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    near = tuple(slice(x[0], x[-1] + 1 + 2 * margin) for x in (rows, columns))
    outline = np.zeros(np.add(mask.shape, 2 * margin), bool)
    outline[near] = morphological_geodesic_active_contour(
        np.pad(stopping, margin, mode="edge")[near],
        iterations,
        np.pad(mask, margin, mode="edge")[near],
        smoothing=1,
    )
    if iterations % 2:
        # The library smooths by two operators in turn and remembers whose turn it is, from one call
        # to the next: one round more, of nothing, and every snake begins alike.
        morphological_geodesic_active_contour(np.ones((3, 3)), 1, np.ones((3, 3)), smoothing=1)
    return outline[margin:-margin, margin:-margin]


def guided(logits: Logits, image: Image, *, radius: int = 8, epsilon: float = 1e-3) -> Mask:
    """Where the probability exceeds one half after a guided filter: edges move to the image's.

    In each window of `2 radius + 1` pixels a side, the probability is fitted by a linear function
    of the grey level in [0, 1], and each pixel takes the mean of its windows' functions. Windows
    end at the image's border. Source: He, Sun and Tang 2010, ECCV, "Guided image filtering".

    Args:
      radius: In pixels.
      epsilon: Penalty on the slope: windows whose grey levels have a smaller variance are blurred.
    """
    grey, probability = to_fractions(image), expit(logits.astype(np.float64))
    size = 2 * radius + 1
    covered = ndimage.uniform_filter(np.ones_like(grey), size, mode="constant")

    def mean(x: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
        return ndimage.uniform_filter(x, size, mode="constant") / covered

    grey_mean, probability_mean = mean(grey), mean(probability)
    covariance = mean(grey * probability) - grey_mean * probability_mean
    slope = covariance / (mean(grey * grey) - grey_mean**2 + epsilon)
    offset = probability_mean - slope * grey_mean
    return mean(slope) * grey + mean(offset) > 0.5


def _regions(mask: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's region, and the areas by region; the background's (0) counts as 0."""
    regions = label(mask, connectivity=2)
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    return regions, areas


def _eroded(mask: Mask, radius: float) -> Mask:
    """The pixels that lie farther than `radius` from every pixel outside the mask."""
    if mask.all():
        return mask  # The distance to a background that does not exist is arbitrary in SciPy.
    return ndimage.distance_transform_edt(mask) > radius


REFINEMENTS: Mapping[str, Refinement] = MappingProxyType(
    {
        "remove_small": Refinement(remove_small, {"area": int}),
        "keep_largest": Refinement(keep_largest, {"count": int}),
        "fill_holes": Refinement(fill_holes),
        "open": Refinement(opened, {"radius": float}),
        "close": Refinement(closed, {"radius": float}),
        "smooth": Refinement(smooth, {"sigma": float}),
        "convex_hull": Refinement(convex_hull),
        "snake": Refinement(snake, {"iterations": int, "sigma": float, "alpha": float}),
        "guided": Refinement(guided, {"radius": int, "epsilon": float}),
    }
)
