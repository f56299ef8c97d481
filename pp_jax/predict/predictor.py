"""Encode once, decode many: the two halves of SAM, in the model frame."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Int, UInt8

from pp_jax.sam import Sam, SamOutput
from pp_jax.types import Prompts


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


def predict(
    model: Sam,
    variables: Mapping[str, Any],
    embedding: Float[Array, "B h w D"],
    prompts: Prompts,
) -> SamOutput:
    """All masks of all prompts, low resolution, model frame."""
    return model.apply(variables, embedding, prompts, method="decode")
