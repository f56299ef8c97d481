"""Means with their uncertainty: patients are drawn, not images, for images of one patient agree."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

_PARTS = ("worst", "median", "best")


class Interval(NamedTuple):
    """A mean over images and the range that a new draw of patients would put it in.

    With `groups == 1` there is nothing to draw from: `low == high == mean` says nothing about the
    uncertainty, and tables print "1 patient" in its place.
    """

    mean: float
    low: float
    high: float
    n: int  # Images.
    groups: int  # Patients.
    level: float


class Summary(NamedTuple):
    """One line of a table: one method under one prompt protocol against one kind of target."""

    method: str
    protocol: str
    target: str  # "mask"; "box" where Dice is against rectangles; "... from box".
    dice: Interval
    iou: Interval
    predicted_iou: float | None  # Mean over the images that have one; None if none has.
    both_empty: int  # Images that score 1 by definition.
    one_empty: int  # Images that score 0 by definition.


def bootstrap_mean(
    values: Float[np.ndarray, " n"],
    groups: Sequence[str],
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean over images with its percentile interval from a bootstrap over patients.

    Each sample draws as many patients as there are, with replacement, and takes the mean over all
    images of those drawn. The same groups and seed draw the same patients, in any order of images.

    Args:
      values: One per image.
      groups: The patient of each image.

    Raises:
      ValueError: No image, a value that is not finite, or not one group for each value.
    """
    if not len(values) or len(values) != len(groups):
        raise ValueError(f"{len(values)} values of {len(groups)} images: each image needs one")
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"value {at}, of {groups[at]!r}, is {values[at]}: a score must be finite")
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group, weights=values)
    counts = np.bincount(group)
    mean = float(np.mean(values))
    if len(names) == 1:
        return Interval(mean, mean, mean, len(values), 1, level)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(names), size=(samples, len(names)), dtype=np.int32)
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(values), len(names), level)


def paired_difference(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    groups: Sequence[str],
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean of `a - b` over the same images, with its interval from a bootstrap over patients.

    It is much narrower than the two means' own intervals when both methods find the same images
    hard: this is the interval to judge a difference by.
    """
    return bootstrap_mean(a - b, groups, samples=samples, seed=seed, level=level)


def worst_median_best(
    scores: Float[np.ndarray, " n"], *, each: int = 4
) -> dict[str, Int[np.ndarray, " _"]]:
    """Indices of the images to show, from the lowest score to the highest within each part.

    Few images are all shown: up to `each` as one part "all", up to `3 * each` in three thirds.
    """
    order = np.argsort(scores, kind="stable")
    if len(order) <= each:
        return {"all": order}
    if len(order) <= 3 * each:
        return dict(zip(_PARTS, np.array_split(order, 3), strict=True))
    middle = (len(order) - each) // 2
    chosen = (order[:each], order[middle : middle + each], order[-each:])
    return dict(zip(_PARTS, chosen, strict=True))


def summarise(
    rows: Sequence[Mapping[str, Any]], *, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> list[Summary]:
    """One `Summary` for each method, protocol and target among rows per image, in their order.

    Args:
      rows: Each with `method`, `protocol`, `target`, `patient`, `dice`, `iou`, `predicted_iou`
        (None: predicts none) and `empty`, the answer of `metrics.emptiness`.
    """
    parts: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault((row["method"], row["protocol"], row["target"]), []).append(row)
    return [
        _summary(key, part, samples=samples, seed=seed, level=level) for key, part in parts.items()
    ]


def _summary(
    key: tuple[str, str, str],
    rows: Sequence[Mapping[str, Any]],
    *,
    samples: int,
    seed: int,
    level: float,
) -> Summary:
    patients = [row["patient"] for row in rows]
    dice, iou = (
        bootstrap_mean(
            np.array([row[name] for row in rows], float),
            patients,
            samples=samples,
            seed=seed,
            level=level,
        )
        for name in ("dice", "iou")
    )
    predicted = [row["predicted_iou"] for row in rows if row["predicted_iou"] is not None]
    empty = [row["empty"] for row in rows]
    return Summary(
        *key,
        dice=dice,
        iou=iou,
        predicted_iou=float(np.mean(predicted)) if predicted else None,
        both_empty=empty.count("both"),
        one_empty=empty.count("one"),
    )
