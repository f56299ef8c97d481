"""Images cut in two where their own histogram says."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32

from pp_jax.preprocess.histograms import histogram, nearest_levels
from pp_jax.preprocess.ratios import difference, first_least, limbs, product
from pp_jax.preprocess.responses import Filter, inside


def otsu() -> Filter:
    """255 above Otsu's threshold of the valid pixels, 0 up to it.

    Equals `skimage.filters.threshold_otsu` on uint8: a constant image is 0 everywhere, where
    OpenCV's is 255 unless it is black. Other values are rounded to the nearest level first. Has no
    gradient.
    """
    return Filter(_above_threshold, border="replicate", margin=0, low=0, high=255)


def otsu_threshold(counts: Int32[Array, "256"]) -> Int32[Array, ""]:
    """The level up to which pixels are dark such that the variance between both classes is largest.

    Of levels with equal variance the lowest is taken, of a constant image its own. The comparison
    is exact for up to 2**23 pixels.
    """
    levels = jnp.arange(256)
    dark, dark_sum = jnp.cumsum(counts), jnp.cumsum(counts * levels)
    pixels, total = limbs(dark[-1:], count=2), limbs(dark_sum[-1:], count=3)
    # With class shares p and q and mean grey levels m and n the variance is p q (m - n)^2. In whole
    # numbers, but for a common factor: (dark total - pixels dark_sum)^2 / (dark light).
    gap = difference(
        product(limbs(dark, count=2), total), product(limbs(dark_sum, count=3), pixels)
    )
    spread = product(limbs(dark, count=2), limbs(dark[-1] - dark, count=2))
    # Where one class is empty the gap is 0, and so must be the ratio.
    spread = spread.at[0].add((dark == 0) | (dark == dark[-1]))
    return jnp.maximum(first_least(spread, product(gap, gap)), jnp.argmax(dark > 0))


def _above_threshold(padded: Float32[Array, "H W"], size: Int[Array, "2"]) -> Float32[Array, "H W"]:
    levels = nearest_levels(jax.lax.stop_gradient(padded))
    threshold = otsu_threshold(histogram(levels, inside(size, shape=levels.shape)))
    return jnp.where(levels > threshold, 255.0, 0.0)
