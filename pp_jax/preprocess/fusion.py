"""Fusions: how filter responses, as grey levels in [0, 255], enter the image that SAM sees.

A row of `FUSIONS` is a factory, as in `filters`: its parameters are checked and give a `Fusion`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from pp_jax.preprocess.kmeans import PALETTE, colour_labels, kmeans_labels

Parameters = Mapping[str, Float32[Array, "..."]]


class Given(NamedTuple):
    """What a fusion works on."""

    image: Float32[Array, "H W 3"]
    responses: Float32[Array, "R H W"]  # One per chain of the filter's spec.
    size: Int[Array, "2"]  # Valid (height, width).
    weight: float | Float[Array, ""]  # In [0, 1]; `--blend`.
    parameters: Parameters | None  # Of the learned fusion.


class Fusion(NamedTuple):
    """A fusion, and how many responses it takes.

    One that does not act alone leaves the image as it is where the filter is `none`.
    """

    function: Callable[[Given], Float32[Array, "H W 3"]]
    fewest: int = 1
    most: int = 1
    acts_alone: bool = False
    learned: bool = False


def replace() -> Fusion:
    """The response in all three channels."""
    return Fusion(lambda given: jnp.stack([given.responses[0]] * 3, axis=-1))


def blend() -> Fusion:
    """`(1 - weight) * image + weight * response` in each channel."""
    return Fusion(
        lambda given: (
            (1 - given.weight) * given.image + given.weight * given.responses[0][..., None]
        )
    )


def channels() -> Fusion:
    """Three chains as red, green and blue; of two, the image's luma comes first.

    With `--filter none,canny,log`, or `canny,log` for short, SAM sees the image and two responses.
    """

    def function(given: Given) -> Float32[Array, "H W 3"]:
        shown = given.responses
        if len(shown) == 2:
            shown = jnp.concatenate([luma(given.image)[None], shown])
        return jnp.moveaxis(shown, 0, -1)

    return Fusion(function, fewest=2, most=3)


def add_edges() -> Fusion:
    """`image + weight * response` in each channel, clipped to [0, 255]."""
    return Fusion(
        lambda given: jnp.clip(given.image + given.weight * given.responses[0][..., None], 0, 255)
    )


def regions(*, clusters: int = 6) -> Fusion:
    """The response's k-means clusters on intensity, in colours from dark to light."""
    if not 2 <= clusters <= len(PALETTE):
        raise ValueError(f"clusters={clusters}: choose 2 to {len(PALETTE)}")

    def function(given: Given) -> Float32[Array, "H W 3"]:
        labels = kmeans_labels(given.responses[0], given.size, clusters=clusters)
        return colour_labels(labels, clusters=clusters)

    return Fusion(function, acts_alone=True)


def learned() -> Fusion:
    """A 1x1 convolution of image and responses, not clipped; see `pass_through`."""

    def function(given: Given) -> Float32[Array, "H W 3"]:
        if given.parameters is None:
            raise ValueError("the learned fusion has no parameters: only a run trained with it has")
        mixing, shift = given.parameters["mixing"], given.parameters["shift"]
        if len(mixing) != 3 + len(given.responses):
            raise ValueError(
                f"the learned fusion was trained with {len(mixing) - 3} filters, not "
                f"{len(given.responses)}"
            )
        shown = jnp.concatenate([given.image, jnp.moveaxis(given.responses, 0, -1)], axis=-1)
        return jnp.einsum("HWR,RC->HWC", shown, mixing, precision="highest") + 255 * shift

    return Fusion(function, most=8, acts_alone=True, learned=True)


def pass_through(responses: int) -> dict[str, Float32[Array, "..."]]:
    """Parameters of the learned fusion that show the image and ignore the responses.

    `mixing` is `(3 + R, 3)`: red, green, blue and each response to red, green, blue. `shift` is in
    units of 255 grey levels.
    """
    return {"mixing": jnp.eye(3 + responses, 3), "shift": jnp.zeros(3)}


def luma(image: Float32[Array, "H W 3"]) -> Float32[Array, "H W"]:
    """Grey levels of an RGB image in integer grey levels; equal channels keep their value.

    Equals `cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)`: .299, .587, .114 in 15-bit fixed point.
    """
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    return ((9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15).astype(jnp.float32)


FUSIONS: Mapping[str, Callable[..., Fusion]] = MappingProxyType(
    {
        "replace": replace,
        "blend": blend,
        "channels": channels,
        "add-edges": add_edges,
        "regions": regions,
        "learned": learned,
    }
)
