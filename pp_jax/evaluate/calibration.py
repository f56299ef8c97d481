"""Whether predicted probabilities are true: of the IoU head per mask, of the logits per pixel.

Sources: Naeini, Cooper and Hauskrecht, AAAI 2015 (expected calibration error); Brier, Monthly
Weather Review 1950.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, special

from pp_jax.evaluate.ambiguity import within
from pp_jax.evaluate.selective import rank_correlation

_IOU_BINS = 10
_PIXEL_BINS = 15


class Bin(NamedTuple):
    """What was predicted within a range, and what was true there, on average."""

    low: float
    high: float
    n: int
    predicted: float
    true: float


class IouHead(NamedTuple):
    """The predicted IoU of masks against their true one."""

    mae: float  # Mean absolute error.
    bias: float  # Mean of predicted - true: above 0 the model thinks too well of its masks.
    spearman: float | None  # None where all predicted or all true values are equal.
    n: int
    bins: tuple[Bin, ...]  # Tenths of the predicted IoU; only those that hold a mask.


class Reliability(NamedTuple):
    """Sums over pixels near the targets' outlines, by 15 equal bins of the probability."""

    counts: Int[np.ndarray, " bins"]
    sum_probability: Float[np.ndarray, " bins"]
    sum_truth: Float[np.ndarray, " bins"]
    sum_squared_error: Float[np.ndarray, " bins"]
    images: int  # Images that the pixels are of.
    left_out: int  # Images whose target has no outline.


def iou_head(predicted: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> IouHead | None:
    """The error of the predicted IoU, overall and by its size; None without a mask.

    Args:
      predicted: One per mask; the head is not bounded, so values outside of [0, 1] count in the
        first or last bin.
      true: In [0, 1].
    """
    if not len(true):
        return None
    error = predicted - true
    place = _bin_of(predicted, count=_IOU_BINS)
    sums = (np.bincount(place, weights=x, minlength=_IOU_BINS) for x in (predicted, true))
    return IouHead(
        mae=float(np.mean(np.abs(error))),
        bias=float(np.mean(error)),
        spearman=rank_correlation(predicted, true),
        n=len(true),
        bins=_bins(np.bincount(place, minlength=_IOU_BINS), *sums),
    )


def reliability(
    logits: Float[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"], *, band: float = 0.05
) -> Reliability:
    """What `sigmoid(logits)` says of the pixels near the target's outline.

    Far from it every method is right and sure: over whole images all would seem calibrated. An
    image whose target has no outline, being empty or everything, is counted as left out.

    Args:
      logits: Original frame.
      target: Its outline is its pixels with a neighbour outside, by side; the image's frame is
        none.
      band: How far from an outline pixel a pixel may lie, on both sides, in image's longest sides.

    Raises:
      ValueError: Logits and target of different sizes.
    """
    if logits.shape != target.shape:
        raise ValueError(
            f"logits of {logits.shape} pixels cannot be compared with a target of {target.shape}; "
            "bring them to the original size first"
        )
    if not target.any() or target.all():
        nothing = np.zeros(_PIXEL_BINS)
        return Reliability(nothing.astype(int), nothing, nothing, nothing, images=0, left_out=1)
    reach = band * max(target.shape)
    window = _around(target, margin=int(reach) + 1)
    near = _near_outline(target[window], reach=reach)
    truth = target[window][near].astype(float)
    probability = special.expit(logits[window][near].astype(float))
    place = _bin_of(probability, count=_PIXEL_BINS)

    def sums(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " bins"]:
        return np.bincount(place, weights=values, minlength=_PIXEL_BINS)

    return Reliability(
        np.bincount(place, minlength=_PIXEL_BINS),
        sums(probability),
        sums(truth),
        sums((probability - truth) ** 2),
        images=1,
        left_out=0,
    )


def add(a: Reliability, b: Reliability) -> Reliability:
    """The sums over the pixels of both: large targets have long outlines and weigh more."""
    return Reliability(*(x + y for x, y in zip(a, b, strict=True)))


def brier(sums: Reliability) -> float | None:
    """The mean squared error of the probabilities, in [0, 1], lower is better; None: no pixel."""
    total = sums.counts.sum()
    return float(sums.sum_squared_error.sum() / total) if total else None


def ece(sums: Reliability) -> float | None:
    """The mean over pixels of |mean probability - share of truth| of their bin; None: no pixel.

    In [0, 1], lower is better.
    """
    total = sums.counts.sum()
    gaps = np.abs(sums.sum_probability - sums.sum_truth)
    return float(gaps.sum() / total) if total else None


def pixel_bins(sums: Reliability) -> tuple[Bin, ...]:
    """The bins that hold a pixel, to draw a reliability diagram of."""
    return _bins(sums.counts, sums.sum_probability, sums.sum_truth)


def _bin_of(values: Float[np.ndarray, " n"], *, count: int) -> Int[np.ndarray, " n"]:
    return np.clip((values * count).astype(int), 0, count - 1)


def _bins(
    counts: Int[np.ndarray, " bins"],
    predicted: Float[np.ndarray, " bins"],
    true: Float[np.ndarray, " bins"],
) -> tuple[Bin, ...]:
    edges = np.linspace(0, 1, len(counts) + 1).tolist()
    return tuple(
        Bin(edges[i], edges[i + 1], int(n), float(predicted[i] / n), float(true[i] / n))
        for i, n in enumerate(counts)
        if n
    )


def _around(mask: Bool[np.ndarray, "H W"], *, margin: int) -> tuple[slice, slice]:
    """The box of a mask that is not empty and `margin` pixels around it."""
    ends = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0))
    rows, columns = (slice(max(0, first - margin), last + 1 + margin) for first, last in ends)
    return rows, columns


def _near_outline(target: Bool[np.ndarray, "H W"], *, reach: float) -> Bool[np.ndarray, "H W"]:
    outline = target & ~ndimage.binary_erosion(target, border_value=1)
    return within(outline, reach)
