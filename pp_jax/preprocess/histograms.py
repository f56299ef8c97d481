"""Counts of grey levels, in integers: they are the same whatever the canvas around the image."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32, UInt16

from pp_jax.preprocess.batching import image_by_image


def histogram(levels: Int[Array, "H W"], valid: Bool[Array, "H W"]) -> Int32[Array, "256"]:
    """How many valid pixels have each level from 0 to 255.

    Equals `np.bincount(levels[valid], minlength=256)`. Levels outside [0, 255] are no input.
    """
    rows = len(levels) + len(levels) % 2
    chosen = jnp.where(valid, levels, 0).astype(jnp.uint16)
    # Two pixels are counted at once: on a CPU each count has to wait for the one before.
    upper, lower = jnp.pad(chosen, ((0, rows - len(levels)), (0, 0))).reshape(2, -1)
    both = count_keys(upper << 8 | lower).reshape(256, 256)
    uncounted = rows * levels.shape[1] - valid.sum(dtype=jnp.int32)
    return (both.sum(0) + both.sum(1)).at[0].add(-uncounted)


@image_by_image
def count_keys(keys: UInt16[Array, "*n"]) -> Int32[Array, "65536"]:
    """How often each number from 0 to 65535 occurs."""
    zeros = jnp.zeros(2**16, jnp.int32)
    return zeros.at[keys.astype(jnp.int32)].add(1, mode="promise_in_bounds")


def nearest_levels(image: Float32[Array, "H W"]) -> Int32[Array, "H W"]:
    """The integer grey levels nearest to those of an image in [0, 255]; a half goes to the even."""
    return jnp.round(image).astype(jnp.int32)
