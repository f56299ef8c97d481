"""How long a training's step takes here, measured before there is data."""

import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pp_jax.config import TrainConfig
from pp_jax.finetune import plan, recipe

_STEPS = 3


def seconds_of_step(settings: TrainConfig, *, mesh: Mesh) -> float:
    """The shortest of a few steps on empty images, after the one that compiles.

    Args:
      settings: Resolved.
      mesh: The devices.
    """
    state, frozen, batch, positions, key = jax.tree.map(
        _blank, plan.shapes_of(settings, mesh, steps=_STEPS + 1)
    )
    step = jax.jit(recipe.step_of(settings, steps=_STEPS + 1, mesh=mesh), donate_argnums=0)
    took = []
    for _ in range(_STEPS + 1):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, frozen, batch, positions, key))
        took.append(time.perf_counter() - begun)
    return min(took[1:])


def _blank(shape: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jax.device_put(jnp.ones(shape.shape, shape.dtype), shape.sharding)
