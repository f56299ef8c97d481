"""How far a method's masks of one object agree when what must not matter is changed.

What is changed: the marks (`jittered`), the view of the image (`VIEWS`), or the filter before the
model (`FILTERS_COMPARED`). Nothing here sees the true outline, so the figures can be had for an
image without one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from pp_jax.evaluate.subjects import Marks
from pp_jax.predict.masks import stability_score

Image = UInt8[np.ndarray, "H W 3"]

POINT_SHARE = 0.02  # Of the image's longest side: how far a click is moved along each axis.
# More contrast, sharper, smoother: a reader would call each the same film. The response of an edge
# filter alone is nearly black, and disagreement there would only say that the film is gone.
FILTERS_COMPARED = ("none", "clahe", "unsharp", "gaussian:2")
_CANVAS = 2**18  # Numbers of pixels are rounded up to it: few compilations for many sizes.


class View(NamedTuple):
    """A row of `VIEWS`: an image and its marks shown in another way, and its masks brought back."""

    image: Callable[[Image], Image]
    marks: Callable[[Marks, int], Marks]  # Given the image's width.
    mask: Callable[[Bool[np.ndarray, "*n H W"]], Bool[np.ndarray, "*n H W"]]


# Agreement.


def pairwise_iou(
    a: Bool[np.ndarray, "n H W"], b: Bool[np.ndarray, "m H W"]
) -> Float64[np.ndarray, "n m"]:
    """IoU of each mask of `a` with each of `b`, in [0, 1]; 1 where both are empty."""
    pixels = a.shape[-2] * a.shape[-1]
    packed = [np.packbits(masks.reshape(-1, pixels), axis=-1) for masks in (a, b)]
    areas = [np.bitwise_count(bits).sum(-1, dtype=np.int64) for bits in packed]
    common = np.empty((len(a), len(b)), np.int64)
    for i, bits in enumerate(packed[0]):
        common[i] = np.bitwise_count(bits & packed[1]).sum(-1, dtype=np.int64)
    union = areas[0][:, None] + areas[1] - common
    return np.where(union, common / np.maximum(union, 1), 1.0)


def agreement(masks: Bool[np.ndarray, "K H W"]) -> float:
    """The mean IoU of all pairs of the masks, in [0, 1]; two empty masks agree by 1.

    Raises:
      ValueError: There is no pair.
    """
    if len(masks) < 2:
        raise ValueError(f"{len(masks)} mask cannot agree with another: give at least 2")
    return float(pairwise_iou(masks, masks)[np.triu_indices(len(masks), 1)].mean())


def entropy_map(masks: Bool[np.ndarray, "K H W"]) -> Float64[np.ndarray, "H W"]:
    """Each pixel's entropy in bits: 0 where all masks say the same, 1 where half of them say yes.

    Raises:
      ValueError: There is no mask.
    """
    if not len(masks):
        raise ValueError("no mask has no entropy: give at least 1")
    share = np.arange(len(masks) + 1) / len(masks)
    ends = np.stack([share, 1 - share])
    bits = -np.sum(ends * np.log2(np.where(ends > 0, ends, 1)), axis=0)
    return bits[masks.sum(0)]


def mean_entropy(masks: Bool[np.ndarray, "K H W"]) -> float:
    """The mean of `entropy_map` over the pixels that any mask holds, in [0, 1]; 0 without one."""
    held = np.count_nonzero(masks.any(0))
    return float(entropy_map(masks).sum() / max(held, 1))


def stability(logits: Float[np.ndarray, "H W"], *, offset: float = 1.0) -> float:
    """SAM's stability score of one mask, in [0, 1]: see `pp_jax.predict.masks.stability_score`."""
    padding = (0, -logits.size % _CANVAS)
    flat = np.pad(logits.ravel(), padding, constant_values=-np.inf)
    return float(stability_score(flat[None], offset=offset))


# Other marks.


def jittered(
    marks: Marks,
    *,
    size: tuple[int, int],
    rng: np.random.Generator,
    count: int,
    share: float = 0.05,
) -> list[Marks]:
    """`count` draws of the marks as another hand might have set them, clipped to the image.

    Each edge of a box moves by a uniform within `share` of the box's side along its axis, each
    click by one within 2 % of the image's longest side along either axis.

    Args:
      marks: Boxes, clicks, or both.
      size: (height, width) of the image.
      rng: What the draws come from.
      count: Number of draws.
      share: In [0, 0.5), so that no edge passes the one across.

    Raises:
      ValueError: Nothing is marked, or a share outside its range.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"{share=} of a box's side must be in [0, 0.5)")
    if marks.boxes is None and marks.points is None:
        raise ValueError("an image without marks has none to move: give boxes or points")
    return [_jitter(marks, size=size, rng=rng, share=share) for _ in range(count)]


def _jitter(
    marks: Marks, *, size: tuple[int, int], rng: np.random.Generator, share: float
) -> Marks:
    boxes, points, corner = marks.boxes, marks.points, np.array(size[::-1])
    if boxes is not None:
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        moved = boxes + sides * rng.uniform(-share, share, boxes.shape)
        boxes = np.clip(moved, 0, np.tile(corner, 2)).astype(boxes.dtype)
    if points is not None:
        reach = POINT_SHARE * max(size)
        moved = points + rng.uniform(-reach, reach, points.shape)
        points = np.clip(moved, 0, corner - 1).astype(points.dtype)
    return marks._replace(boxes=boxes, points=points)


# Other views.


def _same(shown: np.ndarray) -> np.ndarray:
    return shown


def _same_marks(marks: Marks, width: int) -> Marks:
    del width
    return marks


def _mirror_image(image: Image) -> Image:
    return image[:, ::-1]


def _mirror_masks(masks: Bool[np.ndarray, "*n H W"]) -> Bool[np.ndarray, "*n H W"]:
    return masks[..., ::-1]


def _mirror_marks(marks: Marks, width: int) -> Marks:
    """The marks of the mirrored image; a mask prompt, which is none of the three, is left out."""
    boxes, points = marks.boxes, marks.points
    if boxes is not None:
        boxes = boxes[:, [2, 1, 0, 3]].copy()
        boxes[:, [0, 2]] = width - boxes[:, [0, 2]]
    if points is not None:
        points = points.copy()
        points[..., 0] = width - 1 - points[..., 0]
    return Marks(boxes=boxes, points=points, labels=marks.labels)


def _gamma(image: Image, *, exponent: float) -> Image:
    levels = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return levels[image]


VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "identity": View(_same, _same_marks, _same),
        "mirror": View(_mirror_image, _mirror_marks, _mirror_masks),
        "brighter": View(partial(_gamma, exponent=0.8), _same_marks, _same),
        "darker": View(partial(_gamma, exponent=1.25), _same_marks, _same),
    }
)
