"""Contrast of the whole image: one curve from old to new grey levels for all its pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from pp_jax.preprocess.histograms import histogram, nearest_levels
from pp_jax.preprocess.quantiles import masked_quantiles
from pp_jax.preprocess.responses import Filter, inside


def equalize() -> Filter:
    """The image with its grey levels spread so that each range of them is about equally frequent.

    Equals `cv2.equalizeHist` exactly. Grey levels are rounded to integers first; an image of a
    single level stays as it is. It has no gradient.
    """
    return Filter(_equalize, border="replicate", margin=0, low=0, high=255)


def window(*, low: float = 1.0, high: float = 99.0) -> Filter:
    """The grey levels between two percentiles of the image, stretched linearly to [0, 255].

    What is darker than the percentile `low` becomes 0, what is lighter than `high` becomes 255. A
    pixel that equals both, as every pixel of a flat image does, stays as it is. The percentiles are
    `np.percentile`'s. The gradient takes them as constants.

    Raises:
      ValueError: Not 0 <= low < high <= 100.
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"low={low}, high={high}: choose percentiles with 0 <= low < high <= 100")
    return Filter(
        partial(_window, low=low, high=high), border="replicate", margin=0, low=0, high=255
    )


def gamma(*, gamma: float = 0.5) -> Filter:
    """The image brightened (`gamma` < 1) or darkened: `255 * (x / 255) ** gamma`.

    At black, where the curve may be infinitely steep, the gradient is set to zero.

    Raises:
      ValueError: `gamma` is outside (0, 10].
    """
    if not 0 < gamma <= 10:
        raise ValueError(f"gamma={gamma}: choose a power above 0 and at most 10")
    return Filter(partial(_gamma, gamma=gamma), border="replicate", margin=0, low=0, high=255)


def _equalize(image: Float32[Array, "H W"], size: Int[Array, "2"]) -> Float32[Array, "H W"]:
    levels = nearest_levels(jax.lax.stop_gradient(image))
    return _equalizing_table(histogram(levels, inside(size, shape=image.shape)))[levels]


def _equalizing_table(counts: Int32[Array, "256"]) -> Float32[Array, "256"]:
    """The new grey level of each old one; the darkest that occurs becomes 0."""
    darkest = counts[jnp.argmax(counts > 0)]
    others = counts.sum() - darkest
    # In this order and in float32, so that halves round as OpenCV's.
    scale = 255 / jnp.maximum(others, 1).astype(jnp.float32)
    levels = jnp.round((jnp.cumsum(counts) - darkest).astype(jnp.float32) * scale)
    return jnp.where(others > 0, jnp.clip(levels, 0, 255), jnp.arange(256.0))


def _window(
    image: Float32[Array, "H W"], size: Int[Array, "2"], *, low: float, high: float
) -> Float32[Array, "H W"]:
    valid = inside(size, shape=image.shape)
    dark, light = masked_quantiles(image, valid, shares=(low / 100, high / 100))
    span = jnp.where(light > dark, light - dark, 1)
    stretched = jnp.clip((image - dark) / span * 255, 0, 255)
    step = jnp.select([image < dark, image > light], [0.0, 255.0], image)
    return jnp.where(light > dark, stretched, step)


def _gamma(
    image: Float32[Array, "H W"], size: Int[Array, "2"], *, gamma: float
) -> Float32[Array, "H W"]:
    del size
    share = image * (1 / 255)
    # Below the normal numbers XLA flushes to 0, where the derivative of a power may be infinite.
    lit = share >= np.finfo(np.float32).tiny
    return jnp.where(lit, 255 * jnp.where(lit, share, 1) ** gamma, 0)
