"""Fusions: how a filter's response, as grey levels in [0, 255], enters the image that SAM sees."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float

Fusion = Callable[
    [Float[Array, "H W 3"], Float[Array, "H W"], float | Float[Array, ""]], Float[Array, "H W 3"]
]


def replace(
    image: Float[Array, "H W 3"],
    response: Float[Array, "H W"],
    weight: float | Float[Array, ""],
) -> Float[Array, "H W 3"]:
    """The response in all three channels; `weight` has no influence."""
    del weight
    return jnp.broadcast_to(response[..., None], image.shape)


def blend(
    image: Float[Array, "H W 3"],
    response: Float[Array, "H W"],
    weight: float | Float[Array, ""],
) -> Float[Array, "H W 3"]:
    """`(1 - weight) * image + weight * response` in each channel; `weight` is in [0, 1]."""
    return (1 - weight) * image + weight * response[..., None]


FUSIONS: Mapping[str, Fusion] = MappingProxyType({"replace": replace, "blend": blend})
