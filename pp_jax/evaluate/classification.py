"""One score per image against its class: whether there is a finding at all.

These figures exist only where the prompt says nothing of the truth; see
`pp_jax.evaluate.detection.require_prompt_free`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pp_jax.evaluate.statistics import Interval
from pp_jax.evaluate.subjects import Row

Weights = Int[np.ndarray, "R n"]  # How often each of `n` is in each of `R` resamples.

METADATA = ("view", "sex", "age")
_CHUNK = 200_000  # Weights at a time: they stay in the cache.


class Images(NamedTuple):
    """Images with their class and one score each; under several seeds, one for each of them."""

    truth: Bool[np.ndarray, " n"]  # There is a finding.
    scores: Float[np.ndarray, " n"]  # Higher is surer that there is one.
    labels: Sequence[str]  # The class, as the data set names it.
    patients: Sequence[str]
    seeds: Sequence[str]


class Area(NamedTuple):
    """An area under a curve over images, the mean over seeds."""

    interval: Interval | None  # None: see `reason`.
    positives: int  # Images of one seed.
    negatives: int
    reason: str  # Why there is none; "" where there is.


class _Sorted(NamedTuple):
    """Images of one run in ascending order of their scores."""

    truth: Bool[np.ndarray, " n"]
    patient: Int[np.ndarray, " n"]  # Its number.
    first: Int[np.ndarray, " scores"]  # Where each new score begins.


def images_of(rows: Sequence[Row]) -> Images:
    """The images of rows per image, positive where there is an object, with their `score`.

    Raises:
      ValueError: A row without a score.
    """
    for row in rows:
        if row["score"] is None:
            raise ValueError(
                f"image {row['id']} of {row['method']} under {row['protocol']} has no score that "
                "there is a finding: leave such rows out"
            )
    return _images(rows)._replace(scores=np.array([row["score"] for row in rows], float))


def auroc(images: Images, *, samples: int = 10_000, seed: int = 0, level: float = 0.95) -> Area:
    """The area under the receiver operating characteristic, with an interval over patients.

    Of a positive and a negative image, the chance that the positive one scores higher, ties
    counted half: in [0, 1]. Each resample draws as many patients as there are, and as many seeds;
    one that draws a single class has no area and is left out.

    Raises:
      ValueError: A score that is not finite.
    """
    return _area(_roc_area, images, samples=samples, seed=seed, level=level)


def auprc(images: Images, *, samples: int = 10_000, seed: int = 0, level: float = 0.95) -> Area:
    """The average precision, with an interval over patients as of `auroc`.

    In [0, 1]; a random order has the share of positives, so it is compared within one data set
    alone. The sum over steps of recall, without interpolation, as in scikit-learn.

    Raises:
      ValueError: A score that is not finite.
    """
    return _area(_average_precision, images, samples=samples, seed=seed, level=level)


def by_negative_class(
    images: Images, *, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> dict[str, Area]:
    """The AUROC of all positives against the negatives of each class, in alphabetic order.

    Opacities are easily told from normal chests, and hardly from other diseases: one figure
    over both says how many of each there were.
    """
    labels = np.array(images.labels)
    areas = {}
    for label in sorted(set(labels[~images.truth].tolist())):
        kept = np.flatnonzero(images.truth | (labels == label))
        names = ([column[i] for i in kept] for column in images[2:])
        part = Images(images.truth[kept], images.scores[kept], *names)
        areas[label] = auroc(part, samples=samples, seed=seed, level=level)
    return areas


def metadata_auroc(
    rows: Sequence[Row],
    *,
    columns: Sequence[str] = METADATA,
    folds: int = 5,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Area:
    """The AUROC of a guess from what is known of the image beside its pixels.

    A logistic regression, fitted on the other patients (cross-validation); images are compared
    within a fold. An image model has shown nothing before it beats this: sick patients are filmed
    lying down.

    Args:
      rows: Per image, with the columns and `objects`; an image counts once, whatever the methods.
      columns: Of `METADATA`. Not known is a value of its own.
    """
    images = list({(row["dataset"], row["id"]): row for row in rows}.values())
    known = _images(images)._replace(seeds=[""] * len(images))
    patients, positives = np.array(known.patients), int(known.truth.sum())
    fewest = min(len(set(patients[known.truth == truth])) for truth in (True, False))
    if fewest < folds:
        reason = f"{fewest} patients of one class are too few for {folds} folds"
        return Area(None, positives, len(images) - positives, reason)
    facts = np.array([_facts(row, columns) for row in images], dtype=object)
    scores, fold = np.zeros(len(images)), np.zeros(len(images), int)
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for index, (train, test) in enumerate(parts.split(facts, known.truth, patients)):
        model = make_pipeline(DictVectorizer(sparse=False), StandardScaler(), LogisticRegression())
        model.fit(facts[train], known.truth[train])
        scores[test], fold[test] = model.decision_function(facts[test]), index
    interval = _area_within(
        fold, known._replace(scores=scores), samples=samples, seed=seed, level=level
    )
    return Area(interval, positives, len(images) - positives, "")


def _facts(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    return {name: "unknown" if row[name] in (None, "") else row[name] for name in columns}


def _images(rows: Sequence[Row]) -> Images:
    return Images(
        np.array([row["objects"] > 0 for row in rows], bool),
        np.zeros(len(rows)),
        [row["label"] for row in rows],
        [f"{row['dataset']}/{row['patient']}" for row in rows],  # Two sets may share a name.
        [row["seed"] for row in rows],
    )


def _area(
    area: Callable[[Weights, Weights], Float[np.ndarray, " R"]],
    images: Images,
    *,
    samples: int,
    seed: int,
    level: float,
) -> Area:
    """The mean over seeds of an area, with its interval over draws of patients and seeds."""
    if not np.isfinite(images.scores).all():
        at = int(np.argmin(np.isfinite(images.scores)))
        raise ValueError(f"image {at} has the score {images.scores[at]}: it must be finite")
    seeds, run = np.unique(np.array(images.seeds), return_inverse=True)
    positives, size = int(images.truth[run == 0].sum()), int(np.sum(run == 0))
    if reason := _single_class(positives, size):
        return Area(None, positives, size - positives, reason)
    parts = _parts(images, run)

    def mean(weights: Weights, shares: Float[np.ndarray, "R S"]) -> Float[np.ndarray, " R"]:
        areas = []
        for part in parts:
            classes = _by_score(part, weights)
            single = np.min([own.sum(1) for own in classes], axis=0) == 0
            areas.append(np.where(single, np.nan, area(*classes)))
        return (np.stack(areas, axis=1) * shares).sum(1)

    interval = _bootstrap(
        mean, images, size=size, seeds=len(seeds), samples=samples, seed=seed, level=level
    )
    return Area(interval, positives, size - positives, "")


def _area_within(
    fold: Int[np.ndarray, " n"], images: Images, *, samples: int, seed: int, level: float
) -> Interval:
    """The AUROC over the pairs of images within a fold, with its interval over draws of patients.

    Scores of two folds are of two models: pooled, they put a fold that has more positives than
    the others, which its model was fitted on, too low.
    """
    parts = _parts(images, fold)

    def pooled(weights: Weights, _: Float[np.ndarray, "R S"]) -> Float[np.ndarray, " R"]:
        pairs, right = 0, 0
        for part in parts:
            positive, negative = _by_score(part, weights)
            own = positive.sum(1) * negative.sum(1)
            pairs, right = pairs + own, right + own * _roc_area(positive, negative)
        return np.where(pairs == 0, np.nan, right / np.maximum(pairs, 1))

    size = len(images.truth)
    return _bootstrap(pooled, images, size=size, seeds=1, samples=samples, seed=seed, level=level)


def _bootstrap(
    statistic: Callable[[Weights, Float[np.ndarray, "R S"]], Float[np.ndarray, " R"]],
    images: Images,
    *,
    size: int,
    seeds: int,
    samples: int,
    seed: int,
    level: float,
) -> Interval:
    """A statistic of how often each patient, in alphabetic order, and each seed is drawn."""
    patients = len(set(images.patients))
    once = np.ones((1, patients), np.int32), np.full((1, seeds), 1 / seeds)
    value = float(statistic(*once)[0])
    drawn = np.array([value])
    if patients > 1:
        draws = _draws(patients, seeds, samples=samples, seed=seed, size=size)
        drawn = np.concatenate([statistic(*draw) for draw in draws])
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), size, patients, seeds, level)


def _parts(images: Images, run: Int[np.ndarray, " n"]) -> list[_Sorted]:
    patient = np.unique(np.array(images.patients), return_inverse=True)[1]
    parts = []
    for index in range(run.max() + 1):
        own = np.flatnonzero(run == index)
        own = own[np.argsort(images.scores[own])]
        first = np.flatnonzero(np.diff(images.scores[own], prepend=-np.inf))
        parts.append(_Sorted(images.truth[own], patient[own], first))
    return parts


def _single_class(positives: int, size: int) -> str:
    if 0 < positives < size:
        return ""
    return f"all {size} images have a finding" if positives else f"no image of {size} has a finding"


def _draws(
    patients: int, seeds: int, *, samples: int, seed: int, size: int
) -> Iterator[tuple[Weights, Float[np.ndarray, "R S"]]]:
    """How often each patient, and which share of each seed, is in each resample; in parts."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // size)
    for start in range(0, samples, at_once):
        count = min(at_once, samples - start)
        drawn = rng.integers(patients, size=(count, patients))
        drawn += patients * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield weights, rng.multinomial(seeds, [1 / seeds] * seeds, size=count) / seeds


def _by_score(part: _Sorted, weights: Weights) -> tuple[Weights, Weights]:
    """The weight of the positives and of the negatives at each score, from low to high."""
    each = weights[:, part.patient]
    positive = np.add.reduceat(each * part.truth, part.first, axis=1)
    return positive, np.add.reduceat(each, part.first, axis=1) - positive


def _roc_area(positive: Weights, negative: Weights) -> Float[np.ndarray, " R"]:
    lower = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return (positive * lower).sum(1) / np.maximum(pairs, 1)


def _average_precision(positive: Weights, negative: Weights) -> Float[np.ndarray, " R"]:
    found = np.cumsum(positive[:, ::-1], axis=1)
    called = np.cumsum((positive + negative)[:, ::-1], axis=1)
    precision = found / np.maximum(called, 1)
    return (positive[:, ::-1] * precision).sum(1) / np.maximum(found[:, -1], 1)
