"""What a box says of a mask, where nobody has drawn the outline.

The mask ends where the box ends (`box_projection`), and neighbours of like colour belong together
(`pairwise_affinity`). Boxes are `(x0, y0, x1, y1)` in cells of the mask, at the edges of cells.
Source: BoxInst, Tian et al. 2021, arXiv 2012.02310, and its code in AdelaiDet.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_EPS = 1e-5  # AdelaiDet's, under the sums of squares.
# One of each two opposite neighbours in a 3x3 kernel of dilation 2, as (rows, columns).
_OFFSETS = ((0, 2), (2, -2), (2, 0), (2, 2))
_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)


def box_projection(
    logits: Float[Array, "*n h w"], boxes: Float[Array, "*#n 4"], weight: Float[Array, "*#n h w"]
) -> Float[Array, "*n"]:
    """How far the mask's extent along x and along y is from the box's, from 0 to 2.

    For each axis `1 - 2 sum(p t) / (sum(p^2) + sum(t^2) + 1e-5)`, where `p` is the highest
    probability in each column or row, and `t` the share of it that lies in the box. Both sums
    weigh a column by the share that the image covers; cells beyond the image are not seen.
    """
    probability = jnp.where(weight > 0, jax.nn.sigmoid(logits), 0.0)
    loss = jnp.zeros(logits.shape[:-2])
    for axis, (low, high) in ((-2, (0, 2)), (-1, (1, 3))):  # The axis that is projected away.
        cover = weight.max(axis)
        wanted = _share(boxes[..., low], boxes[..., high], cover)
        found = probability.max(axis)
        both = jnp.sum(found * wanted * cover, -1)
        total = jnp.sum((found**2 + wanted**2) * cover, -1)
        loss += 1 - 2 * both / (total + _EPS)
    return loss


def pairwise_affinity(
    logits: Float[Array, "*n h w"],
    image: Float[Array, "*#n h w 3"],
    boxes: Float[Array, "*#n 4"],
    weight: Float[Array, "*#n h w"],
    *,
    threshold: float = 0.3,
) -> Float[Array, "*n"]:
    """Mean of `-log(p q + (1 - p) (1 - q))` over pairs of cells of like colour, from 0 up.

    A pair is a cell that the box reaches and one of its eight neighbours two cells away; where the
    box reaches both it counts twice, as in AdelaiDet. Both must lie in the image, and their
    similarity `exp(-|Lab - Lab'| / 2)` must be `threshold` or more. No such pair: 0. The image
    takes no gradient.

    Args:
      image: Grey levels of sRGB in [0, 255], one per cell.
    """
    colours = jnp.moveaxis(jax.lax.stop_gradient(rgb_to_lab(image)), -1, 0)  # 3 n h w
    inside = _reached(boxes, weight)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    total, count = jnp.zeros(()), jnp.zeros(())
    for offset in _OFFSETS:
        ends = [_ends(x, *offset) for x in (log_p, log_not_p, colours, inside, weight > 0)]
        (p, q), (not_p, not_q), (colour, other), (here, there), shown = ends
        distance = jnp.sqrt(jnp.sum((colour - other) ** 2, 0))
        like = (jnp.exp(-distance / 2) >= threshold) & shown[0] & shown[1]
        pairs = jnp.where(like, here.astype(jnp.float32) + there, 0.0)
        # In logarithms, where neither product can vanish.
        total += jnp.sum(-jnp.logaddexp(p + q, not_p + not_q) * pairs, (-2, -1))
        count += jnp.sum(pairs, (-2, -1))
    return total / jnp.maximum(count, 1.0)


def rgb_to_lab(image: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """CIELAB of sRGB grey levels in [0, 255]: L in [0, 100], a and b about 0.

    White is D65 for the observer of 2 degrees. Equals `skimage.color.rgb2lab` of `image / 255`.
    """
    level = jnp.clip(image, 0.0, 255.0) / 255
    linear = jnp.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    xyz = jnp.einsum("ij,...j->...i", jnp.array(_TO_XYZ), linear, precision="highest")
    ratio = xyz / jnp.array(_WHITE)
    edge = 0.008856
    # The cube root has no finite slope at 0, where the line is taken.
    root = jnp.cbrt(jnp.maximum(ratio, edge))
    x, y, z = jnp.moveaxis(jnp.where(ratio > edge, root, 7.787 * ratio + 16 / 116), -1, 0)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _share(
    low: Float[Array, "*#n"], high: Float[Array, "*#n"], cover: Float[Array, "*#n cells"]
) -> Float[Array, "*#n cells"]:
    """Part of what the image covers of each cell along an axis that lies between two places."""
    starts = jnp.arange(cover.shape[-1])
    length = jnp.minimum(high[..., None], starts + 1) - jnp.maximum(low[..., None], starts)
    safe = jnp.where(cover > 0, cover, 1.0)
    return jnp.where(cover > 0, jnp.clip(length / safe, 0.0, 1.0), 0.0)


def _reached(
    boxes: Float[Array, "*#n 4"], weight: Float[Array, "*#n h w"]
) -> Bool[Array, "*#n h w"]:
    columns = _share(boxes[..., 0], boxes[..., 2], weight.max(-2)) > 0
    rows = _share(boxes[..., 1], boxes[..., 3], weight.max(-1)) > 0
    return rows[..., :, None] & columns[..., None, :]


def _ends(x: Array, down: int, right: int) -> tuple[Array, Array]:
    """The map at each cell that has a neighbour so far away, and at that neighbour."""
    height, width = x.shape[-2:]
    first, last = max(-right, 0), width - max(right, 0)
    here = x[..., : height - down, first:last]
    return here, x[..., down:, first + right : last + right]
