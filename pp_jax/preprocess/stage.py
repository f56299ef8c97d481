"""The input stage: a batch of uint8 canvases to what SAM's image encoder takes, in one function."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from pp_jax.config import Look
from pp_jax.preprocess import filters, roi, specs
from pp_jax.preprocess.fusion import FUSIONS, Given, Parameters, luma, pass_through
from pp_jax.preprocess.geometry import Fit
from pp_jax.preprocess.responses import inside

# SAM's mean and standard deviation of R, G, B in grey levels.
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)

# XLA does not round every division correctly, so the 256 values of an unfiltered image are divided
# here, on the host, and equal torch's bit for bit.
_NORMALISED = (np.arange(256, dtype=np.float32)[:, None] - MEAN) / STD

Levels = UInt8[Array, "H W 3"] | Float[Array, "H W 3"]
Stage = Callable[..., Float32[Array, "B S S 3"]]


# The same function for the same look, so that what was compiled with it is found again.
@cache
def make_stage(look: Look, *, side: int) -> Stage:
    """A pure function from `(images, sizes, fusion=None)` to the model's input, for use in `jit`.

    Each image is shown as `make_shown` says, scaled as the weights expect, and set to zero beyond
    its valid (height, width). An image shown as it is and normalised for SAM equals torch's
    `(x - mean) / std` bit for bit. The learned fusion takes its parameters as `fusion`.

    Args:
      look: What is shown; its region of interest was cut out before.
      side: Side of the square canvas in pixels.

    Raises:
      ValueError: As `make_shown`, or an unknown preparation.
    """
    if look.preprocess not in PREPARATIONS:
        raise ValueError(
            f"preprocess={look.preprocess!r} is unknown: choose one of {', '.join(PREPARATIONS)}"
        )
    shown, scale = make_shown(look), PREPARATIONS[look.preprocess].scale

    def prepare(
        image: UInt8[Array, "S S 3"], size: Int[Array, "2"], parameters: Parameters | None
    ) -> Float32[Array, "S S 3"]:
        valid = inside(size, shape=(side, side))[..., None]
        return jnp.where(valid, scale(shown(image, size, parameters), valid), 0)

    def stage(
        images: UInt8[Array, "B S S 3"],
        sizes: Int[Array, "B 2"],
        fusion: Parameters | None = None,
    ) -> Float32[Array, "B S S 3"]:
        if images.shape[1:] != (side, side, 3):
            raise ValueError(f"{images.shape=}: this stage takes (B, {side}, {side}, 3)")
        return jax.vmap(prepare, in_axes=(0, 0, None))(images, sizes, fusion)

    return stage


Shown = Callable[[UInt8[Array, "H W 3"], Int[Array, "2"], Parameters | None], Levels]


def make_shown(look: Look) -> Shown:
    """A pure function from `(image, size, fusion)` to the picture that SAM sees, in grey levels.

    The image becomes grey, is filtered and mapped to [0, 255] by the filters' fixed ranges, and is
    fused with the image. The filter `none` passes the image itself, uint8 and in colour, unless the
    fusion acts alone. Only the valid (height, width) of the answer counts.

    Raises:
      ValueError: An unknown name, a wrong spec, a weight outside [0, 1], or a number of chains that
        the fusion cannot take.
    """
    chains = filters.parse(look.filter)
    fusion = specs.make_row(specs.parse_row(look.fusion, FUSIONS, what="fusion"), FUSIONS)
    if not 0 <= look.blend <= 1:
        raise ValueError(f"blend={look.blend} is no weight: choose one in [0, 1]")
    if look.filter == "none" and not fusion.acts_alone:
        return lambda image, size, parameters: image
    if not fusion.fewest <= len(chains) <= fusion.most:
        wanted = " to ".join(map(str, sorted({fusion.fewest, fusion.most})))
        raise ValueError(
            f"fusion {look.fusion!r} takes {wanted} filters separated by commas, not the "
            f"{len(chains)} of {look.filter!r}; channels and learned take several"
        )
    made = [filters.make_chain(chain) for chain in chains]

    def shown(
        image: UInt8[Array, "H W 3"], size: Int[Array, "2"], parameters: Parameters | None
    ) -> Float32[Array, "H W 3"]:
        levels, colours = luma(image), image.astype(jnp.float32)
        responses = jnp.stack([filters.show(levels, size, filters=chain) for chain in made])
        return fusion.function(Given(colours, responses, size, look.blend, parameters))

    return shown


def initial_fusion(look: Look) -> dict[str, Parameters]:
    """The variables that a look adds to the model's: `{"fusion": ...}` of the learned fusion."""
    fusion = specs.make_row(specs.parse_row(look.fusion, FUSIONS, what="fusion"), FUSIONS)
    return {"fusion": pass_through(len(filters.parse(look.filter)))} if fusion.learned else {}


def describe(look: Look, *, side: int) -> str:
    """One line that says what SAM is shown, every parameter with it."""
    fusion = specs.parse_row(look.fusion, FUSIONS, what="fusion")
    return (
        f"SAM sees: filter {filters.canonical(look.filter)} (sizes in pixels of the {side} px "
        f"model frame), fusion {fusion}, blend {look.blend:g}, roi {look.roi}, prepared as for "
        f"{look.preprocess}"
    )


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


# What a front hands to its parser: how a spec of each flag is checked, and what `--help` adds.
SPECS: Mapping[str, tuple[Callable[[str], object], str]] = MappingProxyType(
    {
        "filter": (filters.parse, filters.HELP),
        "fusion": (partial(specs.parse_row, table=FUSIONS, what="fusion"), ", ".join(FUSIONS)),
        "roi": (roi.parse, specs.describe(roi.ROIS)),
    }
)

PREPARATIONS: Mapping[str, Preparation] = MappingProxyType(
    {
        "sam": Preparation("longest", standardise),
        "medsam": Preparation("square", min_max),
    }
)
