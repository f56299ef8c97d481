"""The boundary loss: a mistake costs more, the farther it is from the outline."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pp_jax.distances import distances


def boundary(
    logits: Float[Array, "*n h w"],
    targets: Float[Array, "*#n h w"],
    weight: Float[Array, "*#n h w"],
) -> Float[Array, "*n"]:
    """Mean over each mask's pixels of the probability times the target's `signed_distance`.

    Negative for a good mask. Its unit is the longest side of the grid, so that the size of the loss
    does not depend on the resolution. A target without a pixel inside: 0. Source: Kervadec et al.
    2019, arXiv 1812.07032.
    """
    distance = signed_distance(targets, weight) / max(targets.shape[-2:])
    total = jnp.sum(jax.nn.sigmoid(logits) * distance * weight, (-2, -1))
    return total / jnp.sum(weight, (-2, -1))


def signed_distance(
    targets: Float[Array, "*#n h w"], weight: Float[Array, "*#n h w"]
) -> Float[Array, "*#n h w"]:
    """Distance to the outline of `targets > 0.5` in cells, negative inside. No gradient.

    `dist(outside) - dist(inside)` as in the authors' code: outside, the distance to the nearest
    cell inside; inside, one minus that to the nearest cell outside, so that the outermost cells
    inside are 0. Cells that the image does not reach are neither. 0 where nothing or all is inside.
    """
    shown = jax.lax.stop_gradient(weight) > 0
    inside = (jax.lax.stop_gradient(targets) > 0.5) & shown
    outside = ~inside & shown
    to_inside, to_outside = distances(jnp.stack([inside, outside]))
    signed = jnp.where(inside, 1 - to_outside, jnp.where(outside, to_inside, 0.0))
    both = inside.any((-2, -1), keepdims=True) & outside.any((-2, -1), keepdims=True)
    return jnp.where(both, signed, 0.0)
