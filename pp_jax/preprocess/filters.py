"""The filters by name, and the specs that choose them: `median:3>clahe:clip=3>sobel`.

A spec is one or more *chains*, separated by commas, each a list of filters joined by `>`. A filter
is a name in `FILTERS` and its parameters, by position or by name. Sizes are pixels of the model
frame. In a chain each filter sees the response of the one before, mapped to [0, 255].
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Num

from pp_jax.preprocess import specs
from pp_jax.preprocess.asymmetry import asymmetry
from pp_jax.preprocess.canny import canny, canny_quantile
from pp_jax.preprocess.clahe import clahe
from pp_jax.preprocess.contrast import equalize, gamma, window
from pp_jax.preprocess.denoise import bilateral, median
from pp_jax.preprocess.gradients import laplacian, prewitt, scharr, sobel
from pp_jax.preprocess.pyramids import musica
from pp_jax.preprocess.responses import Filter, respond, to_grey_levels
from pp_jax.preprocess.smoothing import dog, gaussian, log, unsharp
from pp_jax.preprocess.texture import entropy
from pp_jax.preprocess.thresholds import otsu

Chain = tuple[specs.Named, ...]


def parse(spec: str) -> tuple[Chain, ...]:
    """The chains of a spec, every parameter filled in and checked.

    Raises:
      ValueError: An unknown name or parameter, or a value outside its range; names the value and
        the choices.
    """
    return tuple(
        tuple(specs.parse_row(text, FILTERS, what="filter") for text in chain.split(">"))
        for chain in spec.split(",")
    )


def canonical(spec: str) -> str:
    """The spec with all parameters and defaults written out: what a cache key must hold.

    Examples:
      >>> canonical("median:5>clahe:clip=3")
      'median:aperture=5>clahe:clip=3.0:tiles=8'
      >>> canonical("canny,log")
      'canny:low=50.0:high=150.0:aperture=3:norm=l1,log:sigma=2.0'
    """
    return ",".join(">".join(map(str, chain)) for chain in parse(spec))


def make_chain(chain: Chain) -> tuple[Filter, ...]:
    """The filters of one chain."""
    return tuple(specs.make_row(named, FILTERS) for named in chain)


def show(
    image: Float[Array, "H W"], size: Int[Array, "2"], *, filters: Sequence[Filter]
) -> Float32[Array, "H W"]:
    """The image after all filters in turn, in grey levels in [0, 255]."""
    for filter in filters:
        image = to_grey_levels(respond(image, size, filter=filter), filter=filter)
    return image


def filter_image(image: Num[np.ndarray, "H W"], *, spec: str) -> Float32[np.ndarray, "chains H W"]:
    """One host image after each chain of the spec, in grey levels in [0, 255].

    Raises:
      ValueError: A wrong spec, or an image that is empty, has channels, or holds values that are
        not finite or outside [0, 255].
    """
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"an image of shape {image.shape}: filters take one grey image, (H, W)")
    low, high = image.min(), image.max()  # NaN where there is one.
    if not 0 <= low <= high <= 255:
        raise ValueError(f"grey levels from {low} to {high}: filters take finite ones in [0, 255]")
    levels, size = jnp.asarray(image, jnp.float32), jnp.array(image.shape)
    chains = map(make_chain, parse(spec))
    return np.stack([jax.jit(partial(show, filters=chain))(levels, size) for chain in chains])


def none() -> Filter:
    """The grey levels themselves."""
    return Filter(lambda image, size: image, border="reflect101", margin=0, low=0, high=255)


def blank() -> Filter:
    """Mid-grey, 128, whatever the image: its shape is all that a model learns of it.

    What is trained on it is the blind twin of what is trained on the image.
    """
    return Filter(
        lambda image, size: jnp.full_like(image, 128), border="replicate", margin=0, low=0, high=255
    )


FILTERS: Mapping[str, Callable[..., Filter]] = MappingProxyType(
    {
        "none": none,
        "sobel": sobel,
        "scharr": scharr,
        "prewitt": prewitt,
        "laplacian": laplacian,
        "log": log,
        "dog": dog,
        "canny": canny,
        "canny_quantile": canny_quantile,
        "gaussian": gaussian,
        "unsharp": unsharp,
        "median": median,
        "bilateral": bilateral,
        "equalize": equalize,
        "clahe": clahe,
        "window": window,
        "gamma": gamma,
        "musica": musica,
        "entropy": entropy,
        "otsu": otsu,
        "asymmetry": asymmetry,
        "blank": blank,
    }
)

HELP = (
    "NAME[:VALUE...], chained by '>' (quote it), several chains separated by ','. Names with their "
    f"parameters and defaults: {specs.describe(FILTERS)}"
)
