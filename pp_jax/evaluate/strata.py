"""Parts of a table: by what is known of the image, and by how clear the finding's boundary is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import scipy.stats

from pp_jax.evaluate.statistics import Interval, interval_of
from pp_jax.evaluate.subjects import Row

Namer = Callable[[Row], str]  # The stratum of a row.

_UNKNOWN = "unknown"
_FEW = 20  # Patients: under them a stratum describes these patients and no others.
_AGES = ("<18", "18-39", "40-59", "60-79", "80+")
_AGE_STARTS = (18, 40, 60, 80)
_OLDEST = 120  # RSNA has patients of 148 to 155 years: slips of the keyboard.
_SIZES = ("small", "medium", "large", "no finding")
_ORDER = (*_AGES, *_SIZES, _UNKNOWN)  # Others stand before them, by the alphabet.


class Stratum(NamedTuple):
    """One part of the images, and the mean there."""

    by: str
    name: str
    interval: Interval | None  # None: no image of it has a value.
    images: int  # That have a value.
    patients: int
    descriptive: bool  # Too few patients for a conclusion.


class Third(NamedTuple):
    """The objects at one end of the contrast, and their mean: object -> image -> patient."""

    interval: Interval
    objects: int
    contrast: float  # Its bound: the highest contrast of the lowest third, or the reverse.


class Ambiguity(NamedTuple):
    """How a metric follows the contrast of the boundary; objects of a patient are not independent.

    `lowest` and `highest` are None under 3 objects, `spearman` too, and where either is constant.
    """

    metric: str
    lowest: Third | None
    highest: Third | None
    spearman: float | None  # Over objects, of contrast and metric.
    objects: int  # That have both.
    left_out: int  # Objects without a contrast or without a value.


def check_by(spec: str) -> tuple[str, ...]:
    """The rows of `BY` named by a list with commas, each once; nothing of an empty one.

    Raises:
      ValueError: Another name.
    """
    names = dict.fromkeys(name.strip() for name in spec.split(",") if name.strip())
    for name in names:
        if name not in BY:
            raise ValueError(f"--by {name!r}: choose among {', '.join(BY)}")
    return tuple(names)


def strata(
    rows: Sequence[Row],
    by: str,
    metric: str,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Stratum]:
    """The mean of a metric in each stratum, with its interval; sizes and ages from low to high.

    Args:
      rows: Of one method, protocol and choice, as for `statistics.interval_of`.
      by: A row of `BY`.
    """
    namer = BY[by](rows)
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(namer(row), []).append(row)
    found = []
    for name in sorted(parts, key=place):
        interval = interval_of(parts[name], metric, samples=samples, seed=seed, level=level)
        images, patients = (interval.images, interval.patients) if interval else (0, 0)
        found.append(Stratum(by, name, interval, images, patients, patients < _FEW))
    return found


def worst(found: Iterable[Stratum], *, higher_is_better: bool = True) -> Stratum | None:
    """The stratum of the worst mean among those that are not descriptive; None where none has one.

    Where all are descriptive it is the worst of them, and its `descriptive` says so.
    """
    valued = [stratum for stratum in found if stratum.interval is not None]
    firm = [stratum for stratum in valued if not stratum.descriptive]
    sign = 1 if higher_is_better else -1
    return min(firm or valued, key=lambda stratum: sign * stratum.interval.mean, default=None)


def ambiguity_thirds(
    rows: Sequence[Row],
    metric: str = "dice",
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Ambiguity:
    """A metric in the lowest and in the highest third of the boundary's contrast.

    Thirds are of objects, by rank: the middle one has the rest, ties stay in the order of names.

    Args:
      rows: Per object, of one method, protocol and choice; `contrast` None where it has none.
    """
    objects: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        objects.setdefault(_object(row), []).append(row)
    usable = {
        key: runs
        for key, runs in sorted(objects.items())
        if all(row["contrast"] is not None and row[metric] is not None for row in runs)
    }
    contrasts = np.array([runs[0]["contrast"] for runs in usable.values()], float)
    values = np.array([np.mean([row[metric] for row in runs]) for runs in usable.values()], float)
    keys, order, count = list(usable), np.argsort(contrasts, kind="stable"), len(usable) // 3

    def third(chosen: Sequence[int], bound: float) -> Third:
        part = [row for at in chosen for row in usable[keys[at]]]
        mean = interval_of(part, metric, samples=samples, seed=seed, level=level)
        return Third(mean, len(chosen), bound)

    return Ambiguity(
        metric,
        third(order[:count], float(contrasts[order[count - 1]])) if count else None,
        third(order[-count:], float(contrasts[order[-count]])) if count else None,
        _spearman(contrasts, values) if count else None,
        len(usable),
        len(objects) - len(usable),
    )


def _object(row: Row) -> tuple[str, str, int]:
    return row["dataset"], row["id"], row.get("object", 0)


def _spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(scipy.stats.spearmanr(x, y).statistic)


def place(name: str) -> tuple[int, str]:
    """Where a stratum stands in a table: ages and sizes in their own order, the unknown last."""
    places = [at for at, start in enumerate(_ORDER) if name.startswith(start)]
    return (places[0] if places else -1), name


def _column(name: str) -> Callable[[Sequence[Row]], Namer]:
    return lambda rows: lambda row: str(row[name] or _UNKNOWN)


def _by_age(rows: Sequence[Row]) -> Namer:
    def age(row: Row) -> str:
        years = row["age"]
        if years is None or not 0 <= years <= _OLDEST:
            return _UNKNOWN
        return _AGES[int(np.searchsorted(_AGE_STARTS, years, side="right"))]

    return age


def _by_size(rows: Sequence[Row]) -> Namer:
    """Thirds of the area of what the rows have; each object counts once, however many runs."""
    areas = list({_object(row): row["area"] for row in rows if row["area"]}.values())
    low, high = np.quantile(areas, [1 / 3, 2 / 3]) if areas else (0.0, 0.0)

    def size(row: Row) -> str:
        area = row["area"]
        if not area:
            return _SIZES[3]
        if area < low:
            return f"{_SIZES[0]} (< {low:.2f} %)"
        if area > high:
            return f"{_SIZES[2]} (> {high:.2f} %)"
        return f"{_SIZES[1]} ({low:.2f} to {high:.2f} %)"

    return size


# Each takes all rows, which some need for their bounds, and gives the name of one row's stratum.
BY: Mapping[str, Callable[[Sequence[Row]], Namer]] = MappingProxyType(
    {
        "view": _column("view"),
        "sex": _column("sex"),
        "age": _by_age,
        "class": _column("label"),
        "size": _by_size,
        "dataset": _column("dataset"),
    }
)
