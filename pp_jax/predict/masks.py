"""Masks as data: stability, boxes, suppression of duplicates, run lengths, small regions, crops.

What runs per batch is pure JAX with fixed shapes; what has data-dependent shapes (run lengths,
connected regions) is NumPy on the host. A mask's box here is `(x0, y0, x1, y1)` in indices of its
outermost pixels, both ends included, as in the official automatic mask generator; elsewhere in this
package boxes lie at the edges of pixels.

Source: `utils/amg.py` of facebookresearch/segment-anything.
"""

import itertools
import math
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int
from scipy import ndimage

_EDGE = 20.0  # Pixels within which a box touches the border of its crop.
_EIGHT = np.ones((3, 3), bool)  # Neighbours by side or corner.


class Rle(TypedDict):
    """Run lengths of a mask read column by column, the first run outside the mask."""

    size: list[int]  # [height, width]
    counts: list[int]


class CocoRle(TypedDict):
    """The same in COCO's compressed form, as `pycocotools.mask` reads and writes it."""

    size: list[int]  # [height, width]
    counts: str


class Crop(NamedTuple):
    """A part of an image that is searched on its own."""

    box: tuple[int, int, int, int]  # Edges of pixels, original frame.
    layer: int  # 0 is the whole image, layer `i` has `4 ** i` crops.


# The device: per batch.


def stability_score(logits: Float[Array, "*n H W"], *, offset: float) -> Float[Array, "*n"]:
    """IoU of the masks above `+offset` and above `-offset`, in [0, 1]; 0 where both are empty.

    The official score, except that its 0 / 0 is NaN.
    """
    inner = jnp.sum(logits > offset, axis=(-2, -1))
    outer = jnp.sum(logits > -offset, axis=(-2, -1))
    return inner / jnp.maximum(outer, 1)


def mask_boxes(masks: Bool[Array | np.ndarray, "*n H W"]) -> Int[Array, "*n 4"]:
    """The box of each mask, both ends included; (0, 0, 0, 0) for an empty mask."""
    ends = []
    for axis in (-2, -1):  # Along x, then along y.
        line = masks.any(axis=axis)
        ends += [line.argmax(-1), line.shape[-1] - 1 - line[..., ::-1].argmax(-1)]
    x0, x1, y0, y1 = ends
    return jnp.stack([x0, y0, x1, y1], axis=-1) * masks.any(axis=(-2, -1))[..., None]


def near_crop_edge(
    boxes: Int[Array, "*n 4"], *, crop: Int[Array, "4"], image: Int[Array, "2"]
) -> Bool[Array, "*n"]:
    """Whether a side lies within 20 pixels of the crop's border, but not of the whole image's.

    Args:
      boxes: In the frame of the crop.
      crop: The crop's box, original frame.
      image: (height, width) of the whole image.
    """
    boxes = boxes + jnp.tile(crop[:2], 2)
    whole = jnp.stack([0, 0, image[1], image[0]])
    return jnp.any((jnp.abs(boxes - crop) <= _EDGE) & ~(jnp.abs(boxes - whole) <= _EDGE), axis=-1)


@jax.jit
def _suppress(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    valid: Bool[Array, " N"],
    limit: Float[Array, ""],
) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
    order = jnp.lexsort((-scores, ~valid))
    x0, y0, x1, y1 = boxes[order].T
    area, place = (x1 - x0) * (y1 - y0), jnp.arange(len(boxes))

    def step(i: Int[Array, ""], kept: Bool[Array, " N"]) -> Bool[Array, " N"]:
        width = jnp.minimum(x1[i], x1) - jnp.maximum(x0[i], x0)
        height = jnp.minimum(y1[i], y1) - jnp.maximum(y0[i], y0)
        common = jnp.maximum(width, 0) * jnp.maximum(height, 0)
        # Two boxes without area give NaN, which exceeds no threshold: neither suppresses the other.
        duplicate = common / (area[i] + area - common) > limit
        return kept & ~(duplicate & kept[i] & (place > i))

    return order, jax.lax.fori_loop(0, valid.sum(), step, valid[order])


def box_nms(
    boxes: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, " N"], *, threshold: float
) -> Int[np.ndarray, " kept"]:
    """Indices of the boxes that no better one overlaps by an IoU above `threshold`, best first.

    Greedy, as `torchvision.ops.nms` on a CPU: equal scores in their given order, areas without the
    outermost pixel, IoU in float32 against a float64 threshold. The same indices as long as areas
    are exact in float32 (integers up to 2**24). Compiles for each power of two of `N`.
    """
    count = len(boxes)
    slots = 1 << max(count - 1, 0).bit_length()
    limit = np.float32(threshold)
    if float(limit) > threshold:
        limit = np.nextafter(limit, np.float32(-np.inf))
    order, kept = _suppress(
        np.pad(boxes.astype(np.float32), ((0, slots - count), (0, 0))),
        np.pad(scores.astype(np.float32), (0, slots - count)),
        np.arange(slots) < count,
        limit,
    )
    return np.asarray(order)[np.asarray(kept)]


# The host: run lengths.


def encode_rle(mask: Bool[np.ndarray, "H W"]) -> Rle:
    """The mask's run lengths.

    Examples:
      Columns are read from the left, each from the top; the first run is of background.

      >>> encode_rle(np.array([[False, True], [True, True]]))
      {'size': [2, 2], 'counts': [1, 3]}
    """
    pixels = mask.T.reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def decode_rle(rle: Rle) -> Bool[np.ndarray, "H W"]:
    """The mask of its run lengths."""
    height, width = rle["size"]
    inside = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(inside, rle["counts"]).reshape(width, height).T


def rle_area(rle: Rle) -> int:
    """Number of pixels in the mask."""
    return sum(rle["counts"][1::2])


def to_coco(rle: Rle) -> CocoRle:
    """The run lengths in COCO's compressed form.

    From the fourth on, each run is stored as the difference from the run two before, in groups of
    five bits, lowest first, each with a bit that says whether another follows. Source:
    `rleToString` of cocoapi's `maskApi.c`.
    """
    counts, characters = rle["counts"], []
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            group, rest = rest & 31, rest >> 5
            more = rest != (-1 if group & 16 else 0)
            characters.append(chr(48 + group + 32 * more))
    return {"size": rle["size"], "counts": "".join(characters)}


# The host: small regions.


def fill_small_holes(
    mask: Bool[np.ndarray, "H W"], *, min_area: float
) -> tuple[Bool[np.ndarray, "H W"], bool]:
    """The mask with holes of fewer than `min_area` pixels filled, and whether there were any.

    A hole is a region of background, connected by sides or corners; also one at the border.
    """
    labels, sizes = _regions(~mask)
    small = sizes < min_area
    return mask | np.concatenate([[False], small])[labels], bool(small.any())


def remove_small_islands(
    mask: Bool[np.ndarray, "H W"], *, min_area: float
) -> tuple[Bool[np.ndarray, "H W"], bool]:
    """The mask without regions of fewer than `min_area` pixels, and whether there were any.

    Regions are connected by sides or corners. If all are small the largest stays.
    """
    labels, sizes = _regions(mask)
    small = sizes < min_area
    if not small.any():
        return mask, False
    if small.all():
        small[_largest(labels, sizes)] = False
    return np.concatenate([[False], ~small])[labels], True


def _regions(mask: Bool[np.ndarray, "H W"]) -> tuple[Int[np.ndarray, "H W"], Int[np.ndarray, " n"]]:
    labels, _ = ndimage.label(mask, structure=_EIGHT)
    return labels, np.bincount(labels.ravel())[1:]


def _largest(labels: Int[np.ndarray, "H W"], sizes: Int[np.ndarray, " n"]) -> int:
    """Index of the largest region; of equal ones that which OpenCV numbers first.

    OpenCV scans blocks of 2x2 pixels, row by row, where SciPy scans pixels.
    """
    rows, columns = np.nonzero(np.isin(labels, np.flatnonzero(sizes == sizes.max()) + 1))
    first = np.lexsort((columns // 2, rows // 2))[0]
    return int(labels[rows[first], columns[first]]) - 1


# The host: where to look.


def crop_boxes(height: int, width: int, *, layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then `4 ** i` overlapping crops for each layer `i`, column by column.

    Args:
      height: Of the image.
      width: Of the image.
      layers: Number of layers beyond the whole image.
      overlap_ratio: Overlap of the first layer's crops, as part of the image's shorter side; halved
        with each further layer.
    """
    crops = [Crop((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / side))
        crop_w, crop_h = (
            math.ceil((overlap * (side - 1) + length) / side) for length in (width, height)
        )
        for i, j in itertools.product(range(side), repeat=2):
            x0, y0 = (crop_w - overlap) * i, (crop_h - overlap) * j
            crops.append(Crop((x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)), layer))
    return crops


def point_grid(per_side: int) -> Float64[np.ndarray, "points 2"]:
    """`per_side ** 2` evenly spaced points in [0, 1], row by row, the first half a step inside."""
    offset = 1 / (2 * per_side)
    line = np.linspace(offset, 1 - offset, per_side)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)


def layer_grids(
    per_side: int, *, layers: int, downscale: int
) -> list[Float64[np.ndarray, "points 2"]]:
    """One grid for the whole image and one for each layer of crops, coarser by `downscale` each."""
    return [point_grid(int(per_side / downscale**layer)) for layer in range(layers + 1)]
