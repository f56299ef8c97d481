"""Hysteresis: which weak pixels hang together with a strong one, found by merging trees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

# Between two tests for the end: an accelerator's host waits for each.
_DOUBLINGS = 2


class Blocks(NamedTuple):
    """The pixels of each 2x2 block of an image."""

    upper_left: Bool[Array, "h w"]
    upper_right: Bool[Array, "h w"]
    lower_left: Bool[Array, "h w"]
    lower_right: Bool[Array, "h w"]


class Link(NamedTuple):
    """Which blocks hang together with the one `dy` below and `dx` to the right."""

    linked: Bool[Array, "h w"]
    dy: int
    dx: int


def hysteresis(strong: Bool[Array, "H W"], weak: Bool[Array, "H W"]) -> Bool[Array, "H W"]:
    """The weak pixels that a chain of weak pixels joins to a strong one, itself weak as well.

    In a chain each pixel is one of the 8 neighbours of the last. Any two pixels of a 2x2 block are
    neighbours, so a block is one node. The nodes form trees: each holds the index of its tree's
    root, the lowest in the tree; at first each is its own root. They `merge` in rounds until
    nothing changes.

    Two rounds at least halve the trees of a component, until one is left. In the first, a tree with
    a lower neighbour joins its lowest one. The root of a tree without is still a root after the
    second only if all its neighbours joined it in the first: one that had joined a lower tree would
    make that touch this one, which would join it in the second. So there are at most
    `2 log2(H W / 4) + 1` rounds of at most `log2(H W / 4) + 2` doublings, whatever the picture: 37
    and 20 for 1024x1024 pixels. The edges of X-rays take about 5 rounds.

    Source: Liu and Tarjan, "Simple Concurrent Labeling Algorithms for Connected Components", 2019,
    algorithm S; blocks as in Grana, Borghesani and Cucchiara, "Optimized Block-Based Connected
    Components Labeling With Decision Trees", 2010.
    """
    links = find_links(weak)

    def step(state: tuple[Int32[Array, "h w"], Bool[Array, ""]]):
        merged = merge(state[0], links)
        return merged, (merged != state[0]).any()

    seeds = jnp.stack(_blocks(strong & weak)).any(axis=0)
    alone = jnp.arange(seeds.size, dtype=jnp.int32).reshape(seeds.shape)
    roots, _ = jax.lax.while_loop(lambda state: state[1], step, (alone, jnp.array(True)))
    kept = jnp.zeros(seeds.size, bool).at[roots].max(seeds)[roots]
    return weak & kept.repeat(2, axis=0).repeat(2, axis=1)[: weak.shape[0], : weak.shape[1]]


def find_links(weak: Bool[Array, "H W"]) -> tuple[Link, ...]:
    """In half of the 8 directions; the others are these seen from the other block."""
    blocks = _blocks(weak)
    right = blocks.upper_right | blocks.lower_right
    left = blocks.upper_left | blocks.lower_left
    upper = blocks.upper_left | blocks.upper_right
    lower = blocks.lower_left | blocks.lower_right
    return (
        Link(right & _shifted(left, 0, 1), 0, 1),
        Link(lower & _shifted(upper, 1, 0), 1, 0),
        Link(blocks.lower_right & _shifted(blocks.upper_left, 1, 1), 1, 1),
        Link(blocks.lower_left & _shifted(blocks.upper_right, 1, -1), 1, -1),
    )


def merge(roots: Int32[Array, "h w"], links: tuple[Link, ...]) -> Int32[Array, "h w"]:
    """The roots after a round, in which a tree joins the lowest it is linked to, if that is lower.

    Args:
      roots: The root of each block, as the index of a block in raster order.
    """
    lowest = roots
    for linked, dy, dx in links:
        there = jnp.where(linked, _shifted(roots, dy, dx), roots.size)
        here = jnp.where(linked, roots, roots.size)
        back = _shifted(here, -dy, -dx, fill=roots.size)
        lowest = jnp.minimum(lowest, jnp.minimum(there, back))
    flat = roots.ravel()
    parents = flat.at[flat].min(lowest.ravel())

    def double(state: tuple[Int32[Array, " n"], Bool[Array, ""]]):
        parents, _ = state
        for _ in range(_DOUBLINGS):
            last, parents = parents, parents[parents]
        return parents, (parents != last).any()

    parents, _ = jax.lax.while_loop(lambda state: state[1], double, (parents, jnp.array(True)))
    return parents.reshape(roots.shape)


def _blocks(pixels: Bool[Array, "H W"]) -> Blocks:
    even = jnp.pad(pixels, [(0, length % 2) for length in pixels.shape])
    return Blocks(*(even[row::2, column::2] for row in (0, 1) for column in (0, 1)))


def _shifted(x: Array, dy: int, dx: int, *, fill: int = 0) -> Array:
    """At each place what stands `dy` below and `dx` to the right, or `fill` beyond the border."""
    height, width = x.shape
    padded = jnp.pad(x, 1, constant_values=fill)
    return padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
