"""Optimal k-means of an image's grey levels, for every k at once, and how many clusters to take.

The least sum of squared distances there is, by dynamic programming over sorted values (Wang & Song,
"Ckmeans.1d.dp: optimal k-means clustering in one dimension by dynamic programming", The R Journal
3(2), 2011). Pixels of one level are one weighted value, so the work does not grow with the image.
`pp_jax.preprocess.kmeans` is the same for JAX: inside a filter, in float32, for one static k.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from pp_jax.preprocess.kmeans import PALETTE

KS = tuple(range(2, 21))
EXPLAINED = 0.95  # Of the variance, when BCSS has grown enough.


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


class Selection(NamedTuple):
    """Four curves over the number of clusters, and the number that each criterion chooses.

    An image of fewer than k levels has no silhouette or Calinski-Harabasz index at k: NaN.
    """

    ks: tuple[int, ...]
    wcss: Float[np.ndarray, " n"]
    bcss: Float[np.ndarray, " n"]
    silhouette: Float[np.ndarray, " n"]
    """In [-1, 1]."""
    calinski_harabasz: Float[np.ndarray, " n"]
    """Infinite where every level has its own cluster."""
    chosen: Mapping[str, int]
    """By the names of `CRITERIA`."""


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
    """Pixels, their levels and squared levels, summed up to each of n values, from 0 on."""
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


def select(histogram: Int[np.ndarray, " L"], ks: Sequence[int] = KS) -> Selection:
    """The four criteria of the number of clusters for one image; `CRITERIA` says how each chooses.

    A criterion without a value, such as on an image of one level, chooses the least of `ks`.

    Raises:
      ValueError: Numbers that do not ascend from 2 on, or counts that are no histogram.
    """
    ks = tuple(ks)
    if not ks or ks[0] < 2 or any(b <= a for a, b in pairwise(ks)):
        raise ValueError(f"numbers of clusters {ks}: must ascend, from 2 on")
    everything = kmeans_all(histogram, ks[-1])
    found = [everything[k - 1] for k in ks]
    # Of too few levels for k there are no k clusters to judge.
    judged = [c if len(c.centres) == k else None for k, c in zip(ks, found, strict=True)]
    return _selection(
        ks,
        np.array([c.wcss for c in found]),
        np.array([c.bcss for c in found]),
        np.array([math.nan if c is None else silhouette(histogram, c) for c in judged]),
        np.array([math.nan if c is None else calinski_harabasz(histogram, c) for c in judged]),
    )


def average(selections: Sequence[Selection]) -> Selection:
    """The mean curves of a set of images, and what the criteria choose on them.

    An image counts alike whatever its size and contrast: WCSS and BCSS are shares of its total sum
    of squares, its Calinski-Harabasz index is a share of its largest finite one. A mean is over the
    images that have a value.

    Raises:
      ValueError: No image, or images of which other numbers of clusters were tried.
    """
    if len({one.ks for one in selections}) != 1:
        raise ValueError(f"{len(selections)} selections: give some, all over the same numbers")
    totals = [_nonzero(one.wcss[0] + one.bcss[0]) for one in selections]
    largest = [_nonzero(_finite(one.calinski_harabasz).max(initial=0)) for one in selections]
    return _selection(
        selections[0].ks,
        _mean([one.wcss / total for one, total in zip(selections, totals, strict=True)]),
        _mean([one.bcss / total for one, total in zip(selections, totals, strict=True)]),
        _mean([one.silhouette for one in selections]),
        _mean([one.calinski_harabasz / x for one, x in zip(selections, largest, strict=True)]),
    )


def silhouette(histogram: Int[np.ndarray, " L"], clusters: Clusters) -> float:
    """The pixels' mean silhouette, in [-1, 1]; that of a pixel alone in its cluster is 0.

    Exact: with a the mean distance to the others of its cluster and b the least mean distance to
    another cluster, a pixel has (b - a) / max(a, b) (Rousseeuw, "Silhouettes", Journal of
    Computational and Applied Mathematics 20, 1987). Clusters of levels are intervals, so the mean
    distance to another is that to its centre, and a follows from sums over the levels below.

    Raises:
      ValueError: Fewer than two clusters.
    """
    if len(clusters.centres) < 2:
        raise ValueError(f"{len(clusters.centres)} clusters: silhouettes need two")
    levels = np.flatnonzero(histogram)
    counts = np.asarray(histogram, np.int64)[levels]
    own = clusters.levels[levels]
    pixels, first, _ = _sums(levels, counts)
    starts = np.searchsorted(own, np.arange(len(clusters.centres)))
    ends = np.append(starts[1:], len(levels))
    below = levels * (pixels[1:] - pixels[starts][own]) - (first[1:] - first[starts][own])
    above = (first[ends][own] - first[1:]) - levels * (pixels[ends][own] - pixels[1:])
    size = (pixels[ends] - pixels[starts])[own]
    padded = np.concatenate(([-np.inf], clusters.centres, [np.inf]))
    outside = np.minimum(levels - padded[own], padded[own + 2] - levels)
    inside = (below + above) / np.maximum(size - 1, 1)
    each = np.where(size > 1, (outside - inside) / np.maximum(outside, inside), 0)
    return float(counts @ each / counts.sum())


def calinski_harabasz(histogram: Int[np.ndarray, " L"], clusters: Clusters) -> float:
    """BCSS / (k - 1) over WCSS / (N - k) of N pixels: more is better, infinite without WCSS.

    Source: Calinski & Harabasz, "A dendrite method for cluster analysis", Communications in
    Statistics 3(1), 1974.

    Raises:
      ValueError: Fewer than two clusters.
    """
    k = len(clusters.centres)
    if k < 2:
        raise ValueError(f"{k} clusters: the Calinski-Harabasz index needs two")
    if clusters.wcss == 0:
        return math.inf
    return clusters.bcss / (k - 1) / (clusters.wcss / (int(np.sum(histogram)) - k))


def colour_mask(levels: UInt8[np.ndarray, "H W"], clusters: Clusters) -> UInt8[np.ndarray, "H W 3"]:
    """RGB of each pixel's cluster, from black, the darkest, to red, the brightest.

    Ten clusters have the ten colours of `PALETTE`; fewer have some of them, evenly, as in the
    filter `kmeans`; more have mixtures of neighbours, evenly.
    """
    count = len(clusters.centres)
    places = np.linspace(0, len(PALETTE) - 1, max(count, 1))
    if count <= len(PALETTE):
        places = places.round()
    known = np.arange(len(PALETTE))
    mixed = np.stack([np.interp(places, known, channel) for channel in PALETTE.T], axis=-1)
    return mixed.round().astype(np.uint8)[clusters.levels[levels]]


def _selection(ks: tuple[int, ...], *curves: Float[np.ndarray, " n"]) -> Selection:
    found = Selection(ks, *curves, MappingProxyType({}))
    chosen = {name: ks[one.choose(found)] for name, one in CRITERIA.items()}
    return found._replace(chosen=MappingProxyType(chosen))


def _finite(curve: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    return curve[np.isfinite(curve)]


def _nonzero(total: float) -> float:
    return total if total > 0 else math.nan


def _mean(curves: Sequence[Float[np.ndarray, " n"]]) -> Float[np.ndarray, " n"]:
    return np.ma.masked_invalid(curves).mean(0).filled(math.nan)


def _elbow(found: Selection) -> int:
    """Farthest below the chord from the first to the last: Kneedle without smoothing.

    Source: Satopaa et al., "Finding a 'Kneedle' in a haystack", ICDCS Workshops 2011.
    """
    place = (np.array(found.ks) - found.ks[0]) / max(found.ks[-1] - found.ks[0], 1)
    chord = found.wcss[0] + (found.wcss[-1] - found.wcss[0]) * place
    return _greatest(chord - found.wcss)


def _enough(found: Selection) -> int:
    """The first that explains `EXPLAINED` of the variance, or the last where none does."""
    enough = found.bcss >= EXPLAINED * (found.bcss + found.wcss)
    some = enough.any() or np.isnan(found.bcss).all()
    return int(enough.argmax()) if some else len(enough) - 1


def _greatest(curve: Float[np.ndarray, " n"]) -> int:
    return int(np.where(np.isnan(curve), -np.inf, curve).argmax())


class Criterion(NamedTuple):
    """A rule for the number of clusters."""

    label: str
    curve: str  # The field of `Selection` that it looks at.
    choose: Callable[[Selection], int]  # The index into the curve.
    rule: str  # Half a sentence.


# BCSS grows with every cluster, for WCSS falls: its maximum tells nothing, hence a share of it.
CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "elbow": Criterion("elbow of WCSS", "wcss", _elbow, "farthest below the chord"),
        "bcss": Criterion("BCSS", "bcss", _enough, f"first to explain {100 * EXPLAINED:g} %"),
        "silhouette": Criterion(
            "silhouette", "silhouette", lambda found: _greatest(found.silhouette), "the largest"
        ),
        "calinski-harabasz": Criterion(
            "Calinski-Harabasz",
            "calinski_harabasz",
            lambda found: _greatest(found.calinski_harabasz),
            "the largest",
        ),
    }
)
