"""Selective prediction: what is left of the error where a method answers only when it is sure.

Source: El-Yaniv and Wiener, JMLR 2010 (risk-coverage curves); Geifman, Uziel and El-Yaniv, ICLR
2019 (the area under them, and an oracle's beside it).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from pp_jax.evaluate.subjects import CONFIDENCES, Row

_LOWER_IS_SURER = ("entropy",)


class Curve(NamedTuple):
    """The mean risk of the surest answers, for every number of them."""

    coverage: Float[np.ndarray, " n"]  # Share of the answers that are kept: 1 / n, 2 / n, ..., 1.
    risk: Float[np.ndarray, " n"]


class Selective(NamedTuple):
    """How well one confidence score orders the answers. Areas: lower is better."""

    aurc: float
    oracle: float  # The area of the best possible order, by the risk itself.
    random: float  # The expected area of a random order: the mean risk.
    spearman: float | None  # Of surer with better; see `rank_correlation`.
    n: int
    curve: Curve


def risk_coverage(confidence: Float[np.ndarray, " n"], risk: Float[np.ndarray, " n"]) -> Curve:
    """The mean risk of the `k` surest answers, `k` from 1 to `n`.

    Equal confidences are in random order, and the curve is the expectation over these orders: a
    constant confidence gives the mean risk everywhere.

    Raises:
      ValueError: No answer, or not one confidence for each risk.
    """
    if not len(risk) or len(risk) != len(confidence):
        raise ValueError(f"{len(confidence)} confidences of {len(risk)} risks: one each is needed")
    _, tie, ties = np.unique(-confidence, return_inverse=True, return_counts=True)
    expected = np.bincount(tie, weights=risk) / ties
    kept = np.arange(1, len(risk) + 1)
    return Curve(kept / len(risk), np.cumsum(np.repeat(expected, ties)) / kept)


def aurc(curve: Curve) -> float:
    """The area under a risk-coverage curve: its mean over the coverages, in the risk's unit."""
    return float(np.mean(curve.risk))


def selective(rows: Sequence[Row], *, metric: str = "dice") -> dict[str, Selective]:
    """How well each confidence score tells good answers from bad ones; the risk is 1 - metric.

    A score is judged on the rows that have it and the metric, and is left out where there is none.

    Args:
      rows: Of one method under one protocol, with the columns of `CONFIDENCES`.
      metric: A column in [0, 1], higher is better.

    Raises:
      ValueError: A value of the metric outside of [0, 1].
    """
    found = {}
    for name in CONFIDENCES:
        pairs = [
            (row[name], row[metric])
            for row in rows
            if row[name] is not None and row[metric] is not None
        ]
        if not pairs:
            continue
        confidence, value = np.array(pairs, float).T
        if value.min() < 0 or value.max() > 1:
            outside = value[(value < 0) | (value > 1)][0]
            raise ValueError(
                f"{metric}: {outside} is outside of [0, 1], so 1 - {metric} is no risk"
            )
        surer = -confidence if name in _LOWER_IS_SURER else confidence
        curve = risk_coverage(surer, 1 - value)
        found[name] = Selective(
            aurc=aurc(curve),
            oracle=aurc(risk_coverage(value, 1 - value)),
            random=float(np.mean(1 - value)),
            spearman=rank_correlation(surer, value),
            n=len(value),
            curve=curve,
        )
    return found


def rank_correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float | None:
    """Spearman's rank correlation, in [-1, 1], ties by mean rank; None where one is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)
