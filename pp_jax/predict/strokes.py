"""Scribbles, lassos and masks as SAM's prompts: clicks, and raw logits of a mask.

Everything a user draws is in the original frame; points are `(x, y)` pixel indices.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.ndimage import distance_transform_edt
from skimage.draw import line, polygon2mask
from skimage.morphology import skeletonize

from pp_jax.preprocess.geometry import low_res_target

# SAM takes an earlier answer's raw logits as mask prompt and was trained on nothing else; far from
# the outline these are about 10 in size. A mask of 0 and 1 says "undecided everywhere" to it:
# github.com/facebookresearch/segment-anything/issues/169.
INSIDE, OUTSIDE = 10.0, -10.0


class Lasso(NamedTuple):
    """What a lasso becomes."""

    points: Float32[np.ndarray, "P 2"]  # Original frame, all foreground.
    mask: Float32[np.ndarray, "h w"]  # Raw logits, low resolution, padded model frame.


def mask_to_prompt(
    mask: Bool[np.ndarray, "H W"],
    *,
    side: int,
    inside: float = INSIDE,
    outside: float = OUTSIDE,
) -> Float32[np.ndarray, "h w"]:
    """Raw logits for SAM's mask prompt: low resolution (`side / 4`), padded model frame.

    A cell that the mask fills by half is 0, between there and `inside` or `outside` logits grow
    linearly with the filled part; beyond the image they are `outside`. A mask that fills no cell
    by more than half is first scaled until it fills its fullest cell: a small object stays one.

    Args:
      mask: Original frame.
      side: Side of the model frame, 1024 for the official models.
      inside: Logit of a filled cell.
      outside: Logit of an empty cell.

    Raises:
      ValueError: `inside` is not above 0 or `outside` not below, or `low_res_target` refuses.
    """
    if not outside < 0 < inside:
        raise ValueError(f"{inside=} must be above 0 and {outside=} below: these are logits")
    filled = low_res_target(mask, side=side)
    if 0 < filled.max() <= 0.5:
        filled = filled / filled.max()
    return np.interp(filled, [0, 0.5, 1], [outside, 0, inside]).astype(np.float32)


def scribble_clicks(
    drawn: Bool[np.ndarray, "H W"], *, count: int = 4
) -> Float32[np.ndarray, "P 2"]:
    """At most `count` pixels of the scribble's skeleton, each as far as possible from those before.

    The first is the skeleton's farthest pixel from its mean: an end, where there is one. A brush of
    any width gives clicks along its middle. A skeleton of fewer pixels gives them all.

    Raises:
      ValueError: Nothing is drawn, or `count` is below 1.
    """
    pixels = _skeleton(drawn, what="scribble")
    first = np.argmax(((pixels - pixels.mean(axis=0)) ** 2).sum(axis=1))
    return pixels[farthest(pixels, first=int(first), count=count)]


def polyline_pixels(
    points: Float[np.ndarray, "P 2"], *, shape: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """The pixels of a line through the points, one pixel wide.

    Raises:
      ValueError: No point, or one that is not finite or lies outside the image.
    """
    corners = np.rint(_finite(points, least=1, what="scribble"))
    outside = ((corners < 0) | (corners >= shape[::-1])).any(axis=1)
    if outside.any():
        x, y = points[outside.argmax()]
        raise ValueError(
            f"the scribble's point ({x:g}, {y:g}) lies outside the image of {shape[1]}x{shape[0]} "
            "(width x height)"
        )
    drawn = np.zeros(shape, bool)
    drawn[tuple(corners[0, ::-1].astype(int))] = True
    for start, end in itertools.pairwise(corners.astype(int)):
        drawn[line(*start[::-1], *end[::-1])] = True
    return drawn


def lasso_pixels(
    corners: Float[np.ndarray, "P 2"], *, shape: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """The pixels whose centres lie in the closed polygon, by the even-odd rule.

    Raises:
      ValueError: Fewer than three corners, or one that is not finite.
    """
    return polygon2mask(shape, _finite(corners, least=3, what="lasso")[:, ::-1])


def lasso_prompt(
    corners: Float[np.ndarray, "P 2"], *, shape: tuple[int, int], side: int, count: int = 4
) -> Lasso:
    """At most `count` clicks inside the lasso, and its mask prompt.

    The first click is the skeleton's pixel deepest inside the lasso, the others go on along the
    skeleton, each as far as possible from those before.

    Args:
      corners: Of a polygon that closes itself; original frame.
      shape: (height, width) of the image.
      side: Side of the model frame.
      count: Of clicks.

    Raises:
      ValueError: Fewer than three corners, one that is not finite, no pixel inside, or `count`
        below 1.
    """
    drawn = lasso_pixels(corners, shape=shape)
    pixels = _skeleton(drawn, what="lasso")
    # A border of background: a lasso around the whole image has a deepest pixel as well.
    depth = distance_transform_edt(np.pad(drawn, 1))[1:-1, 1:-1]
    x, y = pixels.astype(int).T
    chosen = farthest(pixels, first=int(np.argmax(depth[y, x])), count=count)
    return Lasso(pixels[chosen], mask_to_prompt(drawn, side=side))


def farthest(points: Float[np.ndarray, "K 2"], *, first: int, count: int) -> Int[np.ndarray, " P"]:
    """Indices of at most `count` points, each as far as possible from all before it.

    Of equally far ones the first. Source: Gonzalez 1985, doi 10.1016/0304-3975(85)90224-5.

    Raises:
      ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"{count=}: ask for at least one click")
    chosen = [first]
    distance = np.full(len(points), np.inf)
    for _ in range(min(count, len(points)) - 1):
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(np.argmax(distance)))
    return np.array(chosen)


def _skeleton(drawn: Bool[np.ndarray, "H W"], *, what: str) -> Float32[np.ndarray, "K 2"]:
    if not drawn.any():
        raise ValueError(f"the {what} holds no pixel of the image: draw it inside the image")
    return np.argwhere(skeletonize(drawn))[:, ::-1].astype(np.float32)


def _finite(points: Float[np.ndarray, "P 2"], *, least: int, what: str) -> Float[np.ndarray, "P 2"]:
    if len(points) < least or not np.isfinite(points).all():
        raise ValueError(
            f"a {what} of {points.tolist()}: give at least {least} finite (x, y) points"
        )
    return points
