"""Regions of like grey level: k-means of the intensities, and colours to show its labels."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from pp_jax.preprocess.histograms import histogram, nearest_levels
from pp_jax.preprocess.responses import inside

PALETTE = np.array(
    [
        (0, 0, 0),  # black
        (128, 0, 128),  # purple
        (0, 0, 255),  # blue
        (0, 255, 255),  # cyan
        (173, 216, 230),  # light blue
        (0, 128, 0),  # green
        (255, 255, 0),  # yellow
        (255, 192, 203),  # pink
        (255, 165, 0),  # orange
        (255, 0, 0),  # red
    ],
    np.uint8,
)


def kmeans_labels(
    grey: Float32[Array, "H W"], size: Int[Array, "2"], *, clusters: int
) -> Int32[Array, "H W"]:
    """The cluster of each pixel of a grey image in [0, 255], from 0, the darkest, to the brightest.

    The clusters have the least sum of squared distances to their means, over the valid pixels, that
    there is: no start is drawn. Values are rounded to the nearest level first. An image of fewer
    levels than `clusters` has the first labels alone. Has no gradient.

    Raises:
      ValueError: A number of clusters for which there are not as many colours.
    """
    _check(clusters)
    levels = nearest_levels(jax.lax.stop_gradient(grey))
    counts = histogram(levels, inside(size, shape=levels.shape))
    clusters_of_levels = _cluster_levels(counts.astype(jnp.float32), clusters=clusters)
    pixels = jnp.zeros(clusters, jnp.int32).at[clusters_of_levels].add(counts)
    labels = jnp.maximum(jnp.cumsum(pixels > 0) - 1, 0)  # Empty clusters take none.
    return labels[clusters_of_levels][levels]


def colour_labels(labels: Int32[Array, "H W"], *, clusters: int) -> Float32[Array, "H W 3"]:
    """RGB in [0, 255] of each label: colours of `PALETTE`, evenly from the first to the last.

    Raises:
      ValueError: A number of clusters for which there are not as many colours.
    """
    _check(clusters)
    chosen = np.linspace(0, len(PALETTE) - 1, clusters).round().astype(int)
    return jnp.asarray(PALETTE[chosen], jnp.float32)[labels]


def _check(clusters: int) -> None:
    if clusters not in range(2, len(PALETTE) + 1):
        raise ValueError(f"{clusters=}: choose a whole number from 2 to {len(PALETTE)}")


def _cluster_levels(counts: Float32[Array, "256"], *, clusters: int) -> Int32[Array, "256"]:
    """The cluster of each level, from 0 to `clusters` - 1.

    The best clusters of the levels up to one of them end with a cluster from some level on, before
    which stand the best clusters of one less: dynamic programming over the 256 levels.
    """
    cost = _costs(counts)
    best, choices = cost[0], []
    for _ in range(1, clusters):
        total = jnp.pad(best[:-1], (1, 0), constant_values=jnp.inf)[:, None] + cost
        choices.append(jnp.argmin(total, 0))
        best = jnp.min(total, 0)
    cluster, last = jnp.zeros(256, jnp.int32), 255
    for choice in reversed(choices):
        cluster += jnp.arange(256) >= choice[last]
        last = choice[last] - 1
    return cluster


def _costs(counts: Float32[Array, "256"]) -> Float32[Array, "first last"]:
    """Sum of squared distances to their mean of the pixels from a first to a last level.

    Levels are added one by one: differences of sums of squares would lose all digits. Infinite
    where the last level is before the first.
    """
    first = jnp.arange(256)

    def add(state, level):
        weight, mean, cost = state
        more = jnp.where(first <= level, counts[level], 0)
        share = more / jnp.maximum(weight + more, 1)
        gap = level - mean
        state = weight + more, mean + gap * share, cost + gap * gap * weight * share
        return state, jnp.where(first <= level, state[2], jnp.inf)

    zero = jnp.zeros(256)
    return jax.lax.scan(add, (zero, zero, zero), first)[1].T
