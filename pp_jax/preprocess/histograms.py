"""Counts of grey levels, in integers: they are the same whatever the canvas around the image."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32


def histogram(levels: Int[Array, "H W"], valid: Bool[Array, "H W"]) -> Int32[Array, "256"]:
    """How many valid pixels have each level from 0 to 255.

    Equals `np.bincount(levels[valid], minlength=256)`. Levels outside [0, 255] are no input.
    """
    return jnp.zeros(256, jnp.int32).at[levels].add(valid.astype(jnp.int32))


def nearest_levels(image: Float32[Array, "H W"]) -> Int32[Array, "H W"]:
    """The integer grey levels nearest to those of an image in [0, 255]; a half goes to the even."""
    return jnp.round(image).astype(jnp.int32)
