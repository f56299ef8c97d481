"""The input stage: a batch of uint8 canvases to what SAM's image encoder takes, in one function."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from pp_jax.preprocess.filters import make_filter, parse, show
from pp_jax.preprocess.fusion import FUSIONS
from pp_jax.preprocess.geometry import Fit
from pp_jax.preprocess.responses import inside

# SAM's mean and standard deviation of R, G, B in grey levels.
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)

# XLA does not round every division correctly, so the 256 values of an unfiltered image are divided
# here, on the host, and equal torch's bit for bit.
_NORMALISED = (np.arange(256, dtype=np.float32)[:, None] - MEAN) / STD

Stage = Callable[[UInt8[Array, "B S S 3"], Int[Array, "B 2"]], Float32[Array, "B S S 3"]]


def make_stage(
    *, filter: str, fusion: str, blend: float, side: int, preprocess: str = "sam"
) -> Stage:
    """A pure function from `(images, sizes)` to the model's input; to be called inside `jit`.

    Each image becomes grey, is filtered and mapped to [0, 255] by the filter's fixed range, is
    fused with the image, scaled as the weights expect, and set to zero beyond its valid (height,
    width). The filter `none` passes the image itself, in colour, whatever the fusion: then the
    values normalised for SAM equal torch's `(x - mean) / std` bit for bit.

    Args:
      filter: A spec of one chain, see `filters`.
      fusion: A name in `FUSIONS`.
      blend: Weight of the response in [0, 1], for fusions that have one.
      side: Side of the square canvas in pixels.
      preprocess: A name in `PREPARATIONS`: how the weights' training images were prepared.

    Raises:
      ValueError: An unknown name, a wrong spec, or a weight outside [0, 1].
    """
    if fusion not in FUSIONS:
        raise ValueError(f"unknown {fusion=}: choose one of {', '.join(FUSIONS)}")
    if preprocess not in PREPARATIONS:
        raise ValueError(f"unknown {preprocess=}: choose one of {', '.join(PREPARATIONS)}")
    if not 0 <= blend <= 1:
        raise ValueError(f"{blend=} is no weight: choose one in [0, 1]")
    chain = [make_filter(named) for named in parse(filter)[0]]
    fuse, scale = FUSIONS[fusion], PREPARATIONS[preprocess].scale

    def prepare(image: UInt8[Array, "S S 3"], size: Int[Array, "2"]) -> Float32[Array, "S S 3"]:
        valid = inside(size, shape=(side, side))[..., None]
        if filter == "none":
            shown = image
        else:
            shown = fuse(image.astype(jnp.float32), show(grey(image), size, chain=chain), blend)
        return jnp.where(valid, scale(shown, valid), 0)

    def stage(
        images: UInt8[Array, "B S S 3"], sizes: Int[Array, "B 2"]
    ) -> Float32[Array, "B S S 3"]:
        if images.shape[1:] != (side, side, 3):
            raise ValueError(f"{images.shape=}: this stage takes (B, {side}, {side}, 3)")
        return jax.vmap(prepare)(images, sizes)

    return stage


Levels = UInt8[Array, "S S 3"] | Float[Array, "S S 3"]


def standardise(image: Levels, inside: Bool[Array, "S S 1"]) -> Float32[Array, "S S 3"]:
    """SAM's scaling: minus the mean, over the standard deviation, of each channel."""
    del inside
    if image.dtype == jnp.uint8:
        return jnp.asarray(_NORMALISED)[image, jnp.arange(3)]
    return (image - MEAN) / STD


def min_max(image: Levels, inside: Bool[Array, "S S 1"]) -> Float32[Array, "S S 3"]:
    """MedSAM's scaling: the valid pixels' own range, over all channels, becomes [0, 1].

    Source: bowang-lab/MedSAM, `MedSAM_Inference.py`.
    """
    levels = image.astype(jnp.float32)
    low = jnp.min(levels, where=inside, initial=jnp.inf)
    high = jnp.max(levels, where=inside, initial=-jnp.inf)
    return (levels - low) / jnp.maximum(high - low, 1e-8)


class Preparation(NamedTuple):
    """A row of `PREPARATIONS`."""

    fit: Fit
    scale: Callable[[Levels, Bool[Array, "S S 1"]], Float32[Array, "S S 3"]]


def grey(image: UInt8[Array, "H W 3"]) -> Float32[Array, "H W"]:
    """Luma of an RGB image in integer grey levels; equal channels keep their value.

    Equals `cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)`: .299, .587, .114 in 15-bit fixed point.
    """
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    return ((9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15).astype(jnp.float32)


PREPARATIONS: Mapping[str, Preparation] = MappingProxyType(
    {
        "sam": Preparation("longest", standardise),
        "medsam": Preparation("square", min_max),
    }
)
