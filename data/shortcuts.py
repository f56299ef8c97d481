"""How well the label follows from what says nothing about the finding: a shortcut audit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
_REPEATS = 5  # Partitions, whose scores are averaged: one of 150 images moves the area by .02.
FEWEST = 2 * FOLDS  # Groups of each class.
_DRAWS = 500  # Of the bootstrap.


@dataclass(frozen=True)
class Audit:
    """How well one kind of feature predicts the label; no figure where it was refused."""

    auroc: float | None
    low: float | None  # 95 % interval, bootstrap over groups.
    high: float | None
    images: int
    positive: int
    groups: int
    refused: str = ""  # Why, in words.


def audit(
    features: Float[np.ndarray, "n f"],
    positive: Bool[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
) -> Audit:
    """Area under the ROC curve of logistic regression, no image scored by what its group taught.

    Five folds with shares of both classes, five times; features are standardised on the training
    folds. .5 is chance; the mean scores of all images make one curve.

    Args:
      groups: Images of one patient, and copies of one picture, have one number.
    """
    counts = {
        "positive": int(positive.sum()),
        "images": len(positive),
        "groups": len(np.unique(groups)),
    }
    for sign, name in ((True, "positive"), (False, "negative")):
        held = len(np.unique(groups[positive == sign]))
        if held < FEWEST:
            reason = f"{held} patients of the {name} class, {FEWEST} are needed"
            return Audit(None, None, None, **counts, refused=reason)
    scores = np.zeros(len(positive))
    for seed in range(_REPEATS):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        for train, test in folds.split(features, positive, groups):
            model = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))
            model.fit(features[train], positive[train])
            scores[test] += model.decision_function(features[test])
    low, high = _interval(scores, positive, groups)
    return Audit(round(area(scores, positive), 4), low, high, **counts)


def area(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Both classes must be there.
    """
    count = int(positive.sum())
    above = rankdata(scores)[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(positive) - count)))


def size_and_mode(sizes: Int[np.ndarray, "n 2"], modes: Sequence[str]) -> Float[np.ndarray, "n f"]:
    """Logarithms of height, width and their ratio's size, whether square, and one column a mode."""
    height, width = np.log(sizes).T
    kinds = sorted(set(modes))
    columns = [height, width, np.abs(height - width), height == width]
    columns += [np.array([mode == kind for mode in modes]) for kind in kinds]
    return np.stack(columns, axis=1).astype(np.float64)


def outer_frame(cells: UInt8[np.ndarray, "n 20 20"]) -> Float[np.ndarray, "n 16"]:
    """Mean grey level of each quarter of the top, bottom, left and right side, 5 % wide."""
    sides = np.stack([cells[:, 0], cells[:, -1], cells[:, :, 0], cells[:, :, -1]], axis=1)
    return sides.reshape(len(cells), 4, 4, -1).mean(3).reshape(len(cells), 16)


def classes(
    found: Bool[np.ndarray, " n"], labels: Sequence[str]
) -> tuple[Bool[np.ndarray, " n"], str]:
    """Which images are positive, and what that means.

    Findings are, where some images have one and some have none; else the second of two labels.

    Raises:
      ValueError: Neither gives two classes.
    """
    if found.any() and not found.all():
        return found, "a finding is marked"
    kinds = sorted(set(labels))
    if len(kinds) != 2:
        marked = "every image has" if found.any() else "no image has"
        raise ValueError(f"{marked} a finding, and there are {len(kinds)} labels: not two classes")
    return np.array([label == kinds[1] for label in labels]), f"{kinds[1]}, not {kinds[0]}"


def _interval(
    scores: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    areas = []
    for _ in range(_DRAWS):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if 0 < positive[rows].sum() < len(rows):
            areas.append(area(scores[rows], positive[rows]))
    low, high = np.percentile(areas, (2.5, 97.5))
    return round(float(low), 4), round(float(high), 4)
