"""Encode once, decode many: the two halves of SAM, in the model frame."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from pp_jax.sam import Sam, SamOutput
from pp_jax.sharding import default_device
from pp_jax.types import Prompts

# Prompts in one pass of the decoder. On a CPU it works within its cache on one, but not on two.
_AT_ONCE_ON_CPU, _AT_ONCE = 1, 64


def embed(
    model: Sam,
    variables: Mapping[str, Any],
    image: UInt8[Array, "B S S 3"],
    size: Int[Array, "B 2"],
    *,
    stage: Callable,
) -> Float[Array, "B h w D"]:
    """The embedding of padded images, after their preprocessing by `stage`."""
    shown = stage(image, size, variables.get("fusion"))
    return model.apply(variables, shown, method="encode")


def prompts_at_once() -> int:
    """How many prompts a pass of the decoder takes on the device that jax computes on."""
    return _AT_ONCE_ON_CPU if default_device().platform == "cpu" else _AT_ONCE


def predict(
    model: Sam,
    variables: Mapping[str, Any],
    embedding: Float[Array, "B h w D"],
    prompts: Prompts,
) -> SamOutput:
    """All masks of all prompts, low resolution, model frame: some prompts at a time."""
    at_once = prompts_at_once()
    count = prompts.labels.shape[1]
    decode = partial(model.apply, variables, embedding, method="decode")
    if count <= at_once:
        return decode(prompts)
    passes = -(-count // at_once)

    def split(x: Array) -> Array:
        extra = passes * at_once - count
        x = jnp.pad(x, ((0, 0), (0, extra), *((0, 0),) * (x.ndim - 2)), mode="edge")
        return x.reshape(x.shape[0], passes, at_once, *x.shape[2:]).swapaxes(0, 1)

    def join(x: Array) -> Array:
        x = x.swapaxes(0, 1)
        return x.reshape(x.shape[0], passes * at_once, *x.shape[3:])[:, :count]

    return jax.tree.map(join, jax.lax.map(decode, jax.tree.map(split, prompts)))
