"""What went wrong: each answer's kind of error, the worst answers, and those far off the rest."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.subjects import Row

GOOD = ""  # The answer of `classify` where no row of `ERRORS` fits.
UNKNOWN = "unknown"  # The stratum of rows that do not tell theirs.
# Rows of one group answer the same question: what is far off is judged among them.
GROUP = ("method", "protocol", "choice", "dataset")
_TIMES = 1.5  # An area this many times another is another size.


class Overlap(NamedTuple):
    """A prediction against its target, in pixels."""

    predicted: int
    target: int
    common: int
    opposite: bool  # Whether the centres lie in different halves, left and right, of the image.


class Error(NamedTuple):
    """A row of `ERRORS`."""

    fits: Callable[[Overlap], bool]
    label: str
    explanation: str


class Count(NamedTuple):
    """How many answers of one stratum went wrong in which way."""

    stratum: str
    n: int  # Answers, the good ones as well.
    kinds: Mapping[str, int]  # For each row of `ERRORS`, zeros as well.


def classify(prediction: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"]) -> str:
    """The first row of `ERRORS` that fits; empty if none does.

    Raises:
      ValueError: The masks differ in size.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"a prediction of {prediction.shape} pixels and a target of {target.shape}: bring the "
            "prediction to the original size first"
        )
    counts = [np.count_nonzero(mask) for mask in (prediction, target, prediction & target)]
    overlap = Overlap(*counts, opposite=_side(prediction) * _side(target) < 0)
    return next((name for name, error in ERRORS.items() if error.fits(overlap)), GOOD)


def error_table(rows: Sequence[Row], by: str | Callable[[Row], str]) -> list[Count]:
    """How many rows of each stratum have which `error`, strata in order of their names.

    Args:
      rows: One per object, with the answer of `classify` as `error`; others are left out.
      by: A column, or a function that names a row's stratum. Nothing there is "unknown".
    """
    name = by if callable(by) else lambda row: row.get(by)
    strata: dict[str, list[str]] = {}
    for row in rows:
        if row.get("error") is not None:
            stratum = name(row)
            stratum = UNKNOWN if stratum in (None, "") else str(stratum)
            strata.setdefault(stratum, []).append(row["error"])
    return [
        Count(stratum, len(kinds), {kind: kinds.count(kind) for kind in ERRORS})
        for stratum, kinds in sorted(strata.items())
    ]


def worst_first(rows: Sequence[Row], *, metric: str = "dice", count: int = 12) -> list[Row]:
    """The `count` rows with the worst value of the metric, the worst first, ties by id and object.

    Rows without a value are left out.
    """
    sign = 1 if METRICS[metric].higher_is_better else -1
    known = [row for row in rows if row.get(metric) is not None]
    return sorted(known, key=lambda row: (sign * row[metric], *_name(row)))[:count]


def outliers(rows: Sequence[Row], *, metric: str = "dice") -> list[Row]:
    """The rows that do far worse than their method usually does, the worst first.

    That is: beyond the worse quartile by more than 1.5 interquartile ranges (Tukey's fence), among
    the rows of one method, protocol, choice and data set. Rows without a value are left out.
    """
    sign = 1 if METRICS[metric].higher_is_better else -1
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.get(metric) is not None:
            groups.setdefault(tuple(row.get(key) for key in GROUP), []).append(row)
    far: list[Row] = []
    for group in groups.values():
        values = sign * np.array([row[metric] for row in group], np.float64)
        low, high = np.quantile(values, [0.25, 0.75])
        fence = low - 1.5 * (high - low)
        far += [row for row, value in zip(group, values, strict=True) if value < fence]
    return worst_first(far, metric=metric, count=len(far))


def _name(row: Row) -> tuple[str, int]:
    return str(row.get("id", "")), int(row.get("object") or 0)


def _side(mask: Bool[np.ndarray, "H W"]) -> int:
    """On which side of the image's middle the mask's centre lies: -1 left, 1 right, 0 neither."""
    per_column = np.count_nonzero(mask, axis=0)
    width = len(per_column)
    return int(np.sign(per_column @ (2 * np.arange(width) + 1 - width)))


def _dice(overlap: Overlap) -> float:
    total = overlap.predicted + overlap.target
    return 2 * overlap.common / total if total else 1.0


def _extra(overlap: Overlap) -> bool:
    return not overlap.target and overlap.predicted > 0


def _wrong_side(overlap: Overlap) -> bool:
    return overlap.opposite and _dice(overlap) < 0.1


def _missed(overlap: Overlap) -> bool:
    return overlap.target > 0 and not overlap.common


def _over(overlap: Overlap) -> bool:
    larger = overlap.predicted > _TIMES * overlap.target
    return larger and 2 * overlap.common >= overlap.target


def _under(overlap: Overlap) -> bool:
    smaller = _TIMES * overlap.predicted < overlap.target
    return smaller and 2 * overlap.common >= overlap.predicted


def _shifted(overlap: Overlap) -> bool:
    small, large = sorted(overlap[:2])
    return large <= _TIMES * small and _dice(overlap) < 0.5


def _other(overlap: Overlap) -> bool:
    return _dice(overlap) < 0.5


# The first row that fits an answer names its error. Without an overlap "missed" would fit what lies
# on the wrong side too.
ERRORS: Mapping[str, Error] = MappingProxyType(
    {
        "extra": Error(_extra, "extra", "something is predicted where there is no target"),
        "wrong_side": Error(
            _wrong_side,
            "wrong side",
            "Dice below .1, and its centre lies in the other half of the image than the target's",
        ),
        "missed": Error(_missed, "missed", "no pixel of the target is predicted"),
        "over": Error(
            _over,
            "over-segmented",
            "more than 1.5 times the target's area, and at least half of the target is in it",
        ),
        "under": Error(
            _under,
            "under-segmented",
            "less than 1/1.5 of the target's area, and at least half of it is in the target",
        ),
        "shifted": Error(
            _shifted, "shifted", "about the target's area, in the wrong place: Dice below .5"
        ),
        "other": Error(_other, "other", "Dice below .5 in another way"),
    }
)
