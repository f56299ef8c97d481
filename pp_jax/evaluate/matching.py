"""Several objects in one image: which component of a prediction is which object.

A component is a set of connected pixels (8-connectivity) of a mask. Where objects do not overlap,
an IoU above 1/2 leaves no choice; where they do, as boxes may, an assignment decides (the Hungarian
method, by SciPy).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

IGNORED = 1000  # What is under one in so many of the image's pixels, 0.1 %, is no finding.


class Matched(NamedTuple):
    """How many components and objects found each other, in one image or summed over many."""

    tp: int  # Pairs with an IoU above 1/2.
    fp: int  # Components without an object.
    fn: int  # Objects without a component.
    iou: float  # Summed over the pairs.


def match(prediction: Bool[np.ndarray, "H W"], objects: Bool[np.ndarray, "N H W"]) -> Matched:
    """The matches of one image at an IoU above 1/2, so that the sum of their IoU is largest.

    Components and objects under 0.1 % of the image are ignored: neither found nor missed.

    Args:
      prediction: All that was found, in one mask.
      objects: The truth; they may overlap, and one may be of several pieces.
    """
    labels, areas = _components(prediction)
    table = _ious(labels, areas, objects)
    table = table[:, areas * IGNORED >= prediction.size]
    table = table[objects.sum((1, 2)) * IGNORED >= prediction.size]
    # What is no match may not draw an object or a component away from one.
    table = np.where(table > 0.5, table, 0)
    found = table[linear_sum_assignment(table, maximize=True)]
    tp = int(np.count_nonzero(found))
    return Matched(tp, table.shape[1] - tp, table.shape[0] - tp, float(found.sum()))


def total(matches: Iterable[Matched]) -> Matched:
    """The sums over images."""
    tp, fp, fn, iou = zip(Matched(0, 0, 0, 0.0), *matches, strict=True)
    return Matched(sum(tp), sum(fp), sum(fn), sum(iou))


def panoptic_quality(matched: Matched) -> float | None:
    """Summed IoU by `tp + (fp + fn) / 2`, in [0, 1]; None where there is nothing to find or found.

    Of a data set: from the sums over its images (Kirillov et al. 2019, arXiv:1801.00868).
    """
    count = matched.tp + (matched.fp + matched.fn) / 2
    return matched.iou / count if count else None


def sensitivity(matched: Matched) -> float | None:
    """The share of the objects that were found, in [0, 1]; None where there is none."""
    objects = matched.tp + matched.fn
    return matched.tp / objects if objects else None


def false_positives(matched: Matched, *, images: int) -> float:
    """Components without an object, per image."""
    return matched.fp / images


def assign_components(
    prediction: Bool[np.ndarray, "H W"], objects: Bool[np.ndarray, "N H W"]
) -> Bool[np.ndarray, "N H W"]:
    """For each object the component of the prediction that answers it, empty if none does.

    The answers to the objects of an image that nobody marked: no component answers two, none is
    left out for its size, and the sum of the IoU is largest.
    """
    labels, areas = _components(prediction)
    table = _ious(labels, areas, objects)
    answers = np.zeros_like(objects)
    for row, column in zip(*linear_sum_assignment(table, maximize=True), strict=True):
        if table[row, column]:
            answers[row] = labels == column + 1
    return answers


def _components(
    mask: Bool[np.ndarray, "H W"],
) -> tuple[Int[np.ndarray, "H W"], Int[np.ndarray, " C"]]:
    """A number from 1 on at each pixel of the mask, and how many pixels have each."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]


def _ious(
    labels: Int[np.ndarray, "H W"],
    areas: Int[np.ndarray, " C"],
    objects: Bool[np.ndarray, "N H W"],
) -> Float64[np.ndarray, "N C"]:
    table = np.zeros((len(objects), len(areas)))
    for row, inside in zip(table, objects, strict=True):
        shared = np.bincount(labels[inside], minlength=len(areas) + 1)[1:]
        row[:] = shared / (areas + np.count_nonzero(inside) - shared)
    return table
