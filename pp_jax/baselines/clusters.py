"""Optimal k-means of an image's grey levels, for every k at once, and the choice of k.

The least sum of squared distances there is, by dynamic programming over sorted values (Wang & Song,
"Ckmeans.1d.dp: optimal k-means clustering in one dimension by dynamic programming", The R Journal
3(2), 2011). Pixels of one level are one weighted value, so the work does not grow with the image.
`pp_jax.preprocess.kmeans` is the same for JAX: inside a filter, in float32, for one static k.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Clusters(NamedTuple):
    """Grey levels in groups: "k" is the number asked for, or that of distinct levels if less."""

    centres: Float[np.ndarray, " k"]
    """Mean level of each cluster's pixels, ascending."""
    levels: Int[np.ndarray, " L"]
    """Cluster of each grey level, 0 the darkest; one without a pixel goes to the nearest centre."""
    wcss: float
    """Sum of the pixels' squared distances to their centre: within clusters."""
    bcss: float
    """Sum of the centres' squared distances to the mean, one for each pixel: between clusters."""


def kmeans(histogram: Int[np.ndarray, " L"], k: int) -> Clusters:
    """The k clusters of grey levels with the least within-cluster sum of squares.

    Fewer distinct levels than `k` are one cluster each, so that there are fewer centres; no pixels
    at all have no centre, and cluster 0 for every level.

    Args:
      histogram: Number of pixels of each level, below 2**31 together.

    Raises:
      ValueError: Fewer than one cluster, or counts that are no histogram.
    """
    return kmeans_all(histogram, k)[-1]


def kmeans_all(histogram: Int[np.ndarray, " L"], most: int) -> tuple[Clusters, ...]:
    """`kmeans` for k = 1, 2, ..., `most`, at the price of the last.

    Raises:
      ValueError: As `kmeans`.
    """
    if most < 1:
        raise ValueError(f"{most} clusters: must be at least 1")
    histogram = np.asarray(histogram, np.int64)
    if (histogram < 0).any() or histogram.sum() >= 2**31:
        raise ValueError("a histogram counts from 0 to 2**31 - 1 pixels together")
    present = np.flatnonzero(histogram)
    if not len(present):
        return (Clusters(np.zeros(0), np.zeros(len(histogram), np.int64), 0.0, 0.0),) * most
    sums = _sums(present, histogram[present])
    cost = _costs(sums)
    starts = _starts(cost, most=min(most, len(present)))
    found = [_clusters(first, sums, cost, levels=len(histogram)) for first in starts]
    return tuple(found[min(k, len(found)) - 1] for k in range(1, most + 1))


def _sums(levels: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]) -> Int[np.ndarray, "3 m"]:
    """Pixels, their levels and squared levels, summed before each of n values and after the last."""
    moments = np.stack([counts, counts * levels, counts * levels**2])
    return np.pad(np.cumsum(moments, axis=1), ((0, 0), (1, 0)))


def _costs(sums: Int[np.ndarray, "3 m"]) -> Float[np.ndarray, "n n"]:
    """Sum of squared distances to their mean of values [row] to [column]; infinite if none.

    With S1 = q W + r it is S2 - q S1 - q r - r^2 / W: whole numbers but for the last term, where
    S2 - S1^2 / W would cancel.
    """
    count, first, second = sums[:, None, 1:] - sums[:, :-1, None]
    some = count > 0
    quotient, rest = np.divmod(first, np.where(some, count, 1))
    whole = second - quotient * (first + rest)
    return np.where(some, whole - rest**2 / np.where(some, count, 1), np.inf)


def _starts(cost: Float[np.ndarray, "n n"], *, most: int) -> list[Int[np.ndarray, " k"]]:
    """The value at which each cluster starts, for k = 1, ..., `most` <= n.

    The best clusters of the values up to one of them end with a cluster from some value on, before
    which stand the best clusters of one less.
    """
    best, choices, starts = cost[0], [], []
    for k in range(most):
        if k:
            total = np.pad(best[:-1], (1, 0), constant_values=np.inf)[:, None] + cost
            choices.append(total.argmin(0))
            best = total.min(0)
        last, found = len(cost) - 1, []
        for choice in reversed(choices):
            found.append(choice[last])
            last = choice[last] - 1
        starts.append(np.array([0, *reversed(found)]))
    return starts


def _clusters(
    starts: Int[np.ndarray, " k"],
    sums: Int[np.ndarray, "3 m"],
    cost: Float[np.ndarray, "n n"],
    *,
    levels: int,
) -> Clusters:
    ends = np.append(starts[1:], len(cost))
    count, first, _ = sums[:, ends] - sums[:, starts]
    centres = first / count
    wcss = math.fsum(cost[starts, ends - 1])
    # A level of the optimum never lies midway: Hartigan's move would lower the sum.
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, np.arange(levels))
    return Clusters(centres, nearest, wcss, float(cost[0, -1]) - wcss)
