"""Means and differences with their uncertainty: patients are drawn, not images.

Images of one patient agree with each other, so ten of them tell little more than one. Everywhere
the route is object -> image -> patient -> mean: each patient counts once, each image of a patient
alike. Runs of one method from several seeds are a second level that is drawn as well.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from pp_jax.evaluate.subjects import Row

_PARTS = ("worst", "median", "best")
_FEWEST = 6  # Patients: of 5, all better, a fair coin shows as much in 1 of 16 (two-sided).
_POWER, _ALPHA = 0.8, 0.05
_CHUNK = 100_000  # Draws at a time: they stay in the cache, whatever the number of patients.


class Interval(NamedTuple):
    """A mean over patients and the range that a new draw of patients would put it in.

    With `patients == 1` there is nothing to draw from: `low == high == mean` says nothing about
    the uncertainty, and tables print "1 patient" in its place.
    """

    mean: float
    low: float
    high: float
    images: int  # Of one seed.
    patients: int
    seeds: int  # Of a difference: of the method that has more.
    level: float


class Comparison(NamedTuple):
    """What one method does better or worse than another, on the same images."""

    a: str
    b: str
    metric: str
    difference: Interval  # Of a - b.
    wilcoxon: float | None  # p, two-sided, on patient means; None under 6 patients or all equal.
    holm: float | None  # The same after `adjust`.
    detectable: float | None  # Found in 4 of 5 studies of this size; None for one patient.
    equivalent: bool | None  # Surely within the margin (TOST, 5 %); None under 6 patients.
    verdict: str
    margin: float = 0.02
    higher_is_better: bool = True


class _Scores(NamedTuple):
    """A method's values of each image, one per seed; None where a seed has none."""

    method: str
    seeds: tuple[str, ...]
    patients: dict[tuple[str, str], str]
    values: dict[tuple[str, str], list[float] | None]


def interval(
    values: Sequence[float] | Float[np.ndarray, " n"],
    patients: Sequence[str],
    seeds: Sequence[str] | None = None,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean over patients, then seeds, with its percentile interval from a bootstrap.

    Each resample draws as many patients as there are, with replacement, and as many seeds. The
    same patients and `seed` draw the same resamples, whatever the metric and the order. Of two or
    three seeds the draws show too little of the spread: read their interval as a lower bound.

    Args:
      values: One per image, or one per image and seed.
      patients: The patient of each value.
      seeds: The seed of each value; None: all of one.

    Raises:
      ValueError: No value, a value that is missing or not finite, not one patient (and seed) for
        each, or a patient who has more images under one seed than under another.

    Examples:
      The patient of two images counts once.

      >>> found = interval([0.9, 0.7, 0.4, 0.6], ["ann", "ann", "bob", "eve"])
      >>> round(found.mean, 3), found.images, found.patients
      (0.6, 4, 3)
      >>> round(found.low, 3), round(found.high, 3)
      (0.4, 0.8)
    """
    table, images = _table(values, patients, seeds)
    weights = _seed_weights(table.shape[1], samples=samples, seed=seed)
    means = _resampled(table, weights, seed=seed)
    return _interval(float(table.mean()), means, level, images=images, shape=table.shape)


def interval_of(
    rows: Iterable[Row],
    metric: str,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """The interval of one column, among the images that have a value; None where none has.

    Rows of several objects of an image are averaged first. An image without a value under one
    seed is left out under all of them.

    Args:
      rows: Of one method, protocol and choice: with `dataset`, `id`, `patient`, `seed`, perhaps
        `object`, and the column.

    Raises:
      ValueError: An image stands twice, or lacks a row under one seed.
    """
    scores = _scores(rows, metric)
    there = [image for image, values in scores.values.items() if values is not None]
    if not there:
        return None
    return interval(*_flat(scores, there), samples=samples, seed=seed, level=level)


def compare(
    rows_a: Iterable[Row],
    rows_b: Iterable[Row],
    *,
    metric: str,
    higher_is_better: bool = True,
    margin: float = 0.02,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison | None:
    """Method a against method b on the same images; None where no image has a value of both.

    The bootstrap draws the patients of both together. Seeds of the same names are drawn together
    too, others apart. Equivalence is two one-sided tests at 5 %: the 90 % interval of the same
    resamples lies within the margin (Schuirmann 1987). The detectable difference is that of a
    two-sided paired t-test at 5 % with a power of 80 %, from the patients' spread alone.

    Args:
      rows_a: Of one method, protocol and choice, as for `interval_of`.
      rows_b: Of the other, on the same images.
      margin: Largest difference that does not matter, in units of the metric.

    Raises:
      ValueError: An image that only one of them has.
    """
    a, b = _scores(rows_a, metric), _scores(rows_b, metric)
    _require_same_images(a, b)
    both = [i for i, values in a.values.items() if values is not None and b.values[i] is not None]
    if not both:
        return None
    (table_a, images), (table_b, _) = (_table(*_flat(scores, both)) for scores in (a, b))
    # A difference of equal means is 0, not the last bit of their sums.
    differences = np.round(table_a.mean(1) - table_b.mean(1), 12)
    means = _resampled_difference(
        table_a, table_b, together=a.seeds == b.seeds, samples=samples, seed=seed
    )
    shape = (len(table_a), max(table_a.shape[1], table_b.shape[1]))
    difference = _interval(float(differences.mean()), means, level, images=images, shape=shape)
    within = np.abs(np.quantile(means, [_ALPHA, 1 - _ALPHA])).max() < margin
    comparison = Comparison(
        a=a.method,
        b=b.method,
        metric=metric,
        difference=difference,
        wilcoxon=_wilcoxon(differences),
        holm=None,
        detectable=_detectable(differences),
        equivalent=bool(within) if len(differences) >= _FEWEST else None,
        verdict="",
        margin=margin,
        higher_is_better=higher_is_better,
    )
    return comparison._replace(verdict=_worded(comparison))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p after Holm's step-down correction for all that are there; None stays None.

    Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Examples:
      >>> holm([0.04, 0.01, None])
      [0.04, 0.02, None]
    """
    there = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, (p, at) in enumerate(there):
        reached = max(reached, min(1.0, (len(there) - rank) * p))
        adjusted[at] = reached
    return adjusted


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons as one declared family: `holm` filled, verdicts that obey it."""
    adjusted = []
    for old, p in zip(comparisons, holm([c.wilcoxon for c in comparisons]), strict=True):
        new = old._replace(holm=p)
        # The words of an image contribution are its own.
        adjusted.append(new._replace(verdict=_worded(new)) if old.verdict == _worded(old) else new)
    return adjusted


def image_contribution(
    rows_true: Iterable[Row],
    rows_swapped: Iterable[Row],
    *,
    metric: str = "dice",
    higher_is_better: bool = True,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison | None:
    """What a method owes to the pixels: the true image against another patient's, same prompts.

    Args:
      rows_true: As for `compare`.
      rows_swapped: Of the same method, scored against the same targets, having seen other images.
    """
    comparison = compare(
        rows_true,
        rows_swapped,
        metric=metric,
        higher_is_better=higher_is_better,
        samples=samples,
        seed=seed,
        level=level,
    )
    if comparison is None:
        return None
    difference = comparison.difference
    if difference.low <= 0 <= difference.high:
        verdict = "the image was not used (interval contains 0)"
    elif difference.patients < _FEWEST:
        verdict = _too_few(difference.patients)
    elif (difference.mean > 0) == higher_is_better:
        verdict = f"the image was used: another patient's costs {abs(difference.mean):.3f}"
    else:
        verdict = f"the image misleads: another patient's gains {abs(difference.mean):.3f}"
    return comparison._replace(verdict=verdict)


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


def _scores(rows: Iterable[Row], metric: str) -> _Scores:
    """Values of each image under each seed, the mean over its objects."""
    method = ""
    patients: dict[tuple[str, str], str] = {}
    objects: dict[tuple[str, str], dict[str, dict[int | None, float | None]]] = {}
    for row in rows:
        method = row["method"]
        image = row["dataset"], row["id"]
        # Two data sets may both have a patient "1".
        patients[image] = f"{row['dataset']}/{row['patient']}"
        values = objects.setdefault(image, {}).setdefault(row["seed"], {})
        if row.get("object") in values:
            raise ValueError(
                f"image {row['id']!r} stands twice under {method!r}: a mean is taken over the rows "
                "of one method, protocol and choice"
            )
        values[row.get("object")] = row[metric]
    seeds = tuple(sorted({seed for by_seed in objects.values() for seed in by_seed}))
    means = {}
    for image, by_seed in objects.items():
        if missing := [seed for seed in seeds if seed not in by_seed]:
            raise ValueError(
                f"image {image[1]!r} of {method!r} has no row under seed {missing[0]!r}: "
                "every seed is scored on the same images (folds are one seed)"
            )
        per_seed = [[v for v in by_seed[seed].values() if v is not None] for seed in seeds]
        means[image] = [float(np.mean(v)) for v in per_seed] if all(per_seed) else None
    return _Scores(method, seeds, patients, means)


def _flat(
    scores: _Scores, images: Sequence[tuple[str, str]]
) -> tuple[list[float], list[str], list[str]]:
    """Values, patients and seeds of some images, all of which have values."""
    values = [value for image in images for value in scores.values[image] or ()]
    patients = [scores.patients[image] for image in images for _ in scores.seeds]
    return values, patients, list(scores.seeds) * len(images)


def _require_same_images(a: _Scores, b: _Scores) -> None:
    for has, lacks in ((a, b), (b, a)):
        for dataset, name in has.values:
            if (dataset, name) not in lacks.values:
                raise ValueError(
                    f"image {name!r} of {dataset!r} has a row of {has.method!r} and none of "
                    f"{lacks.method!r}: methods are compared on the same images"
                )


def _table(
    values: Sequence[float] | Float[np.ndarray, " n"],
    patients: Sequence[str],
    seeds: Sequence[str] | None = None,
) -> tuple[Float[np.ndarray, "P S"], int]:
    """Means of each patient's images under each seed, in alphabetic order, and the images."""
    seeds = [""] * len(values) if seeds is None else seeds
    if not len(values) or len({len(values), len(patients), len(seeds)}) > 1:
        raise ValueError(
            f"{len(values)} values, {len(patients)} patients, {len(seeds)} seeds: "
            "each image needs one of each"
        )
    array = np.array(values, float)  # None becomes NaN.
    if not np.isfinite(array).all():
        at = int(np.argmin(np.isfinite(array)))
        raise ValueError(f"value {at}, of {patients[at]!r}, is {values[at]}: a mean needs numbers")
    names, row = np.unique(np.asarray(patients), return_inverse=True)
    columns, column = np.unique(np.asarray(seeds), return_inverse=True)
    shape = len(names), len(columns)
    cell = row * shape[1] + column
    order = np.lexsort((array, cell))  # So that the last digit knows no order of images.
    sums = np.bincount(cell[order], array[order], minlength=shape[0] * shape[1]).reshape(shape)
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    if (uneven := counts.min(1) < counts.max(1)).any():
        at = int(np.argmax(uneven))
        raise ValueError(
            f"patient {str(names[at])!r} has {counts[at].min()} to {counts[at].max()} images under "
            "different seeds: every seed is scored on the same images (folds are one seed)"
        )
    return sums / counts, int(counts[:, 0].sum())


def _seed_weights(
    count: int, *, samples: int, seed: int, stream: int = 0
) -> Float[np.ndarray, "samples S"]:
    """The share of each seed in each resample."""
    if count == 1:
        return np.ones((samples, 1))
    rng = np.random.default_rng([seed, 1 + stream])
    return rng.multinomial(count, [1 / count] * count, size=samples) / count


def _resampled(
    table: Float[np.ndarray, "P S"], weights: Float[np.ndarray, "samples S"], *, seed: int
) -> Float[np.ndarray, " samples"]:
    """The weighted mean of each resample, which draws rows (patients) with replacement."""
    patients, samples = len(table), len(weights)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // patients)
    means = []
    for start in range(0, samples, at_once):
        part = weights[start : start + at_once]
        drawn = rng.integers(patients, size=(len(part), patients))
        drawn += patients * np.arange(len(part))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means.append(((counts @ table) * part).sum(1) / patients)
    return np.concatenate(means)


def _resampled_difference(
    a: Float[np.ndarray, "P Sa"],
    b: Float[np.ndarray, "P Sb"],
    *,
    together: bool,
    samples: int,
    seed: int,
) -> Float[np.ndarray, " samples"]:
    """The mean of a - b of each resample: the same patients of both, and the same seeds or not."""
    weights = _seed_weights(a.shape[1], samples=samples, seed=seed)
    if together or a.shape[1] == b.shape[1] == 1:
        return _resampled(np.round(a - b, 12), weights, seed=seed)
    others = _seed_weights(b.shape[1], samples=samples, seed=seed, stream=1)
    return _resampled(np.hstack([a, b]), np.hstack([weights, -others]), seed=seed)


def _interval(
    mean: float,
    means: Float[np.ndarray, " samples"],
    level: float,
    *,
    images: int,
    shape: tuple[int, int],
) -> Interval:
    if shape[0] == 1:
        return Interval(mean, mean, mean, images, *shape, level)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), images, *shape, level)


def _wilcoxon(differences: Float[np.ndarray, " P"]) -> float | None:
    if len(differences) < _FEWEST or not differences.any():
        return None
    return float(scipy.stats.wilcoxon(differences).pvalue)


def _detectable(differences: Float[np.ndarray, " P"]) -> float | None:
    """Smallest true mean that a paired t-test finds at 5 %, two-sided, with a power of 80 %.

    The sum of two quantiles of Student's t stands for the non-central t: within 2 % of it.
    """
    count = len(differences)
    if count < 2:
        return None
    quantiles = scipy.stats.t.ppf([1 - _ALPHA / 2, _POWER], count - 1)
    return float(quantiles.sum() * differences.std(ddof=1) / np.sqrt(count))


def _worded(c: Comparison) -> str:
    """The verdict: nothing is called equal unless the test of equivalence says so."""
    difference = c.difference
    if difference.patients < _FEWEST:
        return _too_few(difference.patients)
    clear = not difference.low <= 0 <= difference.high
    if clear and (c.holm is None or c.holm <= 1 - difference.level):
        word = "better" if (difference.mean > 0) == c.higher_is_better else "worse"
        return f"{word}, but by less than {c.margin:g}" if c.equivalent else word
    if c.equivalent:
        return f"no difference larger than {c.margin:g} (equivalent)"
    after = " after Holm" if clear else ""
    return f"undecided{after}: {difference.patients} patients can detect {c.detectable:.3f}"


def _too_few(patients: int) -> str:
    there = "1 patient is" if patients == 1 else f"{patients} patients are"
    return f"undecided: {there} too few to tell, {_FEWEST} are needed"
