"""Masks guessed without seeing a pixel: what a model has to beat before its Dice means anything.

A control knows the image's shape and the ground-truth boxes, nothing else. Boxes are
`(x0, y0, x1, y1)` in pixels of the original frame and tight: `x1 = x0 + width` and `y1` are the far
edges. A pixel is inside when its centre, at index + 0.5, is.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

LEFT, RIGHT = 0, 1  # Half of the image, as seen on the screen, that holds the centre of the box.
RESOLUTION = 64
THRESHOLDS = tuple(level / 20 for level in range(2, 17))  # 0.1, 0.15 ... 0.8

Crop = tuple[Bool[np.ndarray, "H W"], Float[np.ndarray, " 4"]]  # One object: its mask, its box.


class Control(NamedTuple):
    """A row of `CONTROLS`."""

    function: Callable[..., Bool[np.ndarray, "H W"]]
    needs_atlas: bool  # Called with `atlas=`; the others take nothing but shape and boxes.
    label: str  # Name in tables.


class Atlas(NamedTuple):
    """How often each place of a box is covered by its object, and from which share on we say yes.

    `threshold` maximises the Dice of the thresholded shapes against the shapes themselves, over all
    fitted objects. Unlike the mean of the objects' own Dice this follows from the sums alone, so
    leaving a patient out costs one subtraction, and nothing of that patient is left in the level.
    """

    shape: Float32[np.ndarray, "2 R R"]  # In [0, 1]; LEFT and RIGHT.
    threshold: float
    count: int  # Objects fitted.

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Its fields as arrays, for `numpy.savez`."""
        return {name: np.asarray(value) for name, value in self._asdict().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Atlas":
        """The inverse of `to_arrays`; takes an opened `.npz` too."""
        return cls(arrays["shape"], float(arrays["threshold"]), int(arrays["count"]))


class _Sums(NamedTuple):
    shape: Float64[np.ndarray, "2 R R"]
    count: Float64[np.ndarray, " 2"]


def filled_box(shape: tuple[int, int], boxes: Float[np.ndarray, "N 4"]) -> Bool[np.ndarray, "H W"]:
    """The union of the boxes; empty without a box."""
    inside = np.zeros(shape, bool)
    for box in boxes:
        rows, columns = _window(shape, box)
        inside[rows, columns] = True
    return inside


def inscribed_ellipse(
    shape: tuple[int, int], boxes: Float[np.ndarray, "N 4"]
) -> Bool[np.ndarray, "H W"]:
    """The union of the ellipses that touch the four sides of each box; empty without a box."""
    inside = np.zeros(shape, bool)
    for box in boxes:
        rows, columns = _window(shape, box)
        u, v = _positions(rows, columns, box)
        inside[rows, columns] |= (2 * v[:, None] - 1) ** 2 + (2 * u[None, :] - 1) ** 2 <= 1
    return inside


def mean_shape(
    shape: tuple[int, int], boxes: Float[np.ndarray, "N 4"], *, atlas: Atlas
) -> Bool[np.ndarray, "H W"]:
    """The union of the atlas of each box's side, resized bilinearly into it and thresholded."""
    inside = np.zeros(shape, bool)
    for box in boxes:
        rows, columns = _window(shape, box)
        u, v = _positions(rows, columns, box)
        across = _lerp(u, atlas.shape.shape[2])
        down = _lerp(v, atlas.shape.shape[1])
        share = down @ atlas.shape[_side(shape, box)] @ across.T
        inside[rows, columns] |= share >= atlas.threshold
    return inside


def fit_mean_shape(crops: Iterable[Crop], *, resolution: int = RESOLUTION) -> Atlas:
    """The mean shape in its box of the objects of each half of the image.

    Each object is cut to its box and averaged by area onto `resolution` squared cells. A half
    without an example takes the mirror image of the other.

    Args:
      crops: Of each object its mask in the whole image and its box.

    Raises:
      ValueError: There is no object, or a box without area.
    """
    return _atlas(_sum(crops, resolution))


def leave_one_patient_out(
    crops: Mapping[str, Iterable[Crop]], *, resolution: int = RESOLUTION
) -> dict[str, Atlas]:
    """For each patient the atlas fitted on all other patients, for data without a training part.

    Args:
      crops: The objects of each patient; a patient may have none.

    Raises:
      ValueError: Only one patient has objects, so that nothing is left to fit on.
    """
    own = {patient: _sum(objects, resolution) for patient, objects in crops.items()}
    shape = np.sum([sums.shape for sums in own.values()], axis=0)
    count = np.sum([sums.count for sums in own.values()], axis=0)
    return {
        patient: _atlas(_Sums(shape - sums.shape, count - sums.count))
        for patient, sums in own.items()
    }


def _sum(crops: Iterable[Crop], resolution: int) -> _Sums:
    sums = _Sums(np.zeros((2, resolution, resolution)), np.zeros(2))
    for mask, box in crops:
        x0, y0, x1, y1 = (float(edge) for edge in box)
        if not (x1 > x0 and y1 > y0):
            raise ValueError(f"the box {[x0, y0, x1, y1]} has no area; leave this object out")
        side = _side(mask.shape, box)
        across = _shares(x0, x1, mask.shape[1], resolution)
        down = _shares(y0, y1, mask.shape[0], resolution)
        sums.shape[side] += down @ mask.astype(np.float32) @ across.T
        sums.count[side] += 1
    return sums


def _atlas(sums: _Sums) -> Atlas:
    if not sums.count.any():
        raise ValueError("a mean shape needs at least one object to fit on; use more patients")
    shape = sums.shape / np.maximum(sums.count, 1)[:, None, None]
    for side in (LEFT, RIGHT):
        if not sums.count[side]:
            shape[side] = shape[1 - side, :, ::-1]
    shape = np.clip(shape, 0, 1).astype(np.float32)  # A subtraction may leave -1e-16.
    agreement = [_agreement(shape, sums.count, threshold) for threshold in THRESHOLDS]
    return Atlas(shape, THRESHOLDS[int(np.argmax(agreement))], int(sums.count.sum()))


def _agreement(
    shape: Float32[np.ndarray, "2 R R"], count: Float64[np.ndarray, " 2"], threshold: float
) -> float:
    """Mean over all objects of the Dice of the thresholded shape against the mean shape."""
    said = shape >= threshold
    both = (shape * said).sum((1, 2))
    either = shape.sum((1, 2)) + said.sum((1, 2))
    return float(count @ (2 * both / np.maximum(either, 1e-9)))


def _side(shape: tuple[int, ...], box: Float[np.ndarray, " 4"]) -> int:
    return RIGHT if box[0] + box[2] >= shape[1] else LEFT


def _window(shape: tuple[int, int], box: Float[np.ndarray, " 4"]) -> tuple[slice, slice]:
    """Rows and columns of the image whose centres the box holds."""
    first, last = np.ceil(box[:2] - 0.5), np.ceil(box[2:] - 0.5)
    limit = np.array(shape[::-1])
    (x0, y0), (x1, y1) = (np.clip(edge, 0, limit).astype(int) for edge in (first, last))
    return slice(y0, y1), slice(x0, x1)


def _positions(
    rows: slice, columns: slice, box: Float[np.ndarray, " 4"]
) -> tuple[Float64[np.ndarray, " w"], Float64[np.ndarray, " h"]]:
    """Centres of the pixels of the window in units of the box: 0 at one edge, 1 at the other."""
    u = (np.arange(columns.start, columns.stop) + 0.5 - box[0]) / (box[2] - box[0])
    v = (np.arange(rows.start, rows.stop) + 0.5 - box[1]) / (box[3] - box[1])
    return u, v


def _lerp(position: Float64[np.ndarray, " n"], size: int) -> Float64[np.ndarray, "n {size}"]:
    """Bilinear weights of `size` cells at each position; constant beyond the outer cells' centres.

    Each row is the hat function around the position, whose two non-zero weights sum to 1.
    """
    place = np.clip(position * size - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(size)), 0)


def _shares(start: float, stop: float, pixels: int, cells: int) -> Float32[np.ndarray, "cells n"]:
    """Share of each cell of `[start, stop]` that each pixel covers; what is outside covers none."""
    edge = np.linspace(start, stop, cells + 1)[:, None]
    pixel = np.arange(pixels)
    overlap = np.minimum(edge[1:], pixel + 1) - np.maximum(edge[:-1], pixel)
    return (np.maximum(overlap, 0) * cells / (stop - start)).astype(np.float32)


CONTROLS: Mapping[str, Control] = MappingProxyType(
    {
        "filled_box": Control(filled_box, False, "filled box"),
        "inscribed_ellipse": Control(inscribed_ellipse, False, "inscribed ellipse"),
        "mean_shape": Control(mean_shape, True, "mean shape"),
    }
)
