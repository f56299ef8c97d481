"""Masks guessed without seeing a pixel: what a model has to beat before its Dice means anything.

A control knows the image's shape and what is marked on it, nothing else. Boxes are
`(x0, y0, x1, y1)` in pixels of the original frame and tight: `x1 = x0 + width` and `y1` are the far
edges. A pixel is inside when its centre, at index + 0.5, is. Oracles, which know the lungs as an
expert outlined them, stand beside the controls in a table of their own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from pp_jax.evaluate.subjects import Marks
from pp_jax.types import FOREGROUND

T = TypeVar("T")

LEFT, RIGHT = 0, 1  # Half of the image, as seen on the screen, that holds the centre of the box.
RESOLUTION = 64
THRESHOLDS = tuple(level / 20 for level in range(2, 17))  # 0.1, 0.15 ... 0.8
# Findings seldom lie where others lay: a place that a tenth of the images share is frequent.
FRAME_THRESHOLDS = tuple(level / 100 for level in range(1, 81))

Crop = tuple[Bool[np.ndarray, "H W"], Float[np.ndarray, " 4"]]  # One object: its mask, its box.
# One image: height and width, and its objects, whose masks may end where their boxes end.
Outlined = tuple[tuple[int, int], Sequence[Crop]]


class Control(NamedTuple):
    """A row of `CONTROLS` or of `ORACLES`."""

    # `(shape, marks, *, atlas)`, or of an oracle `(lungs, marks, *, atlas)`; one mask per mark.
    function: Callable[..., Bool[np.ndarray, "N H W"]]
    needs_marks: bool  # Says nothing of an image on which nothing is marked.
    label: str  # Name in tables.
    help: str


class Atlas(NamedTuple):
    """What objects look like on average: their shape, their size and where in the image they lie.

    `shape` is how often each place of a box is covered by its object, `frame` how often each place
    of an image with a finding is; a threshold is the share from which on we say yes. It maximises
    the Dice of the thresholded mean against the mean itself. Unlike the mean of the objects' own
    Dice this follows from the sums alone, so leaving a patient out costs one subtraction, and
    nothing of that patient is left in the level.

    A file from before there was a `frame` has neither that nor an `extent`.
    """

    shape: Float32[np.ndarray, "2 R R"]  # In [0, 1]; LEFT and RIGHT.
    threshold: float
    count: int  # Objects fitted.
    frame: Float32[np.ndarray, "R R"] | None = None  # In [0, 1].
    frame_threshold: float | None = None
    extent: Float32[np.ndarray, "2 2"] | None = None  # LEFT, RIGHT: shares of width and height.

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Its fields as arrays, for `numpy.savez`; what is not known is left out."""
        known = {name: value for name, value in self._asdict().items() if value is not None}
        return {name: np.asarray(value) for name, value in known.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Atlas":
        """The inverse of `to_arrays`; takes an opened `.npz` too."""
        atlas = cls(arrays["shape"], float(arrays["threshold"]), int(arrays["count"]))
        if "frame" not in arrays:
            return atlas
        return atlas._replace(
            frame=arrays["frame"],
            frame_threshold=float(arrays["frame_threshold"]),
            extent=arrays["extent"],
        )


class _Sums(NamedTuple):
    shape: Float64[np.ndarray, "2 R R"]
    count: Float64[np.ndarray, " 2"]
    extent: Float64[np.ndarray, "2 2"]
    frame: Float64[np.ndarray, "R R"]
    images: Float64[np.ndarray, ""]


# Guesses under whatever is marked: the rows of `CONTROLS`.


def box(shape: tuple[int, int], marks: Marks, *, atlas: Atlas) -> Bool[np.ndarray, "N H W"]:
    """Each mark's box, filled; `boxes_of` says which."""
    return _one_by_one(filled_box, shape, boxes_of(shape, marks, atlas=atlas))


def ellipse(shape: tuple[int, int], marks: Marks, *, atlas: Atlas) -> Bool[np.ndarray, "N H W"]:
    """The ellipse that touches the four sides of each mark's box."""
    return _one_by_one(inscribed_ellipse, shape, boxes_of(shape, marks, atlas=atlas))


def shape_in_box(
    shape: tuple[int, int], marks: Marks, *, atlas: Atlas
) -> Bool[np.ndarray, "N H W"]:
    """The mean shape of the objects on that side of the image, in each mark's box."""
    draw = partial(mean_shape, atlas=atlas)
    return _one_by_one(draw, shape, boxes_of(shape, marks, atlas=atlas))


def frame_atlas(shape: tuple[int, int], marks: Marks, *, atlas: Atlas) -> Bool[np.ndarray, "N H W"]:
    """Where findings are frequent in images with one, for each mark alike, whatever is marked.

    Raises:
      ValueError: The atlas was fitted before it had a frame.
    """
    frame, threshold = _known(atlas.frame, "frame"), _known(atlas.frame_threshold, "frame")
    down, across = (_lerp((np.arange(n) + 0.5) / n, len(frame)) for n in shape)
    return _for_each_mark(down @ frame @ across.T >= threshold, marks)


# Oracles: the rows of `ORACLES`.


def whole_lungs(
    lungs: Bool[np.ndarray, "H W"], marks: Marks, *, atlas: Atlas
) -> Bool[np.ndarray, "N H W"]:
    """The lungs for each mark alike, whatever is marked."""
    del atlas
    return _for_each_mark(lungs, marks)


def box_in_lungs(
    lungs: Bool[np.ndarray, "H W"], marks: Marks, *, atlas: Atlas
) -> Bool[np.ndarray, "N H W"]:
    """What of each mark's box lies in the lungs; `boxes_of` says which box."""
    return box(lungs.shape, marks, atlas=atlas) & lungs


# Marks.


def boxes_of(shape: tuple[int, int], marks: Marks, *, atlas: Atlas) -> Float[np.ndarray, "N 4"]:
    """The box of each mark; where only points are marked, one of the mean extent around them.

    Its centre is the mean of the points in the foreground, its extent that of the objects on that
    side of the image, and what leaves the image is cut off. Without such a point it has no area.

    Raises:
      ValueError: Nothing is marked, or the atlas was fitted before it had an extent.
    """
    if marks.boxes is not None:
        return marks.boxes
    if marks.points is None:
        raise ValueError("nothing is marked, and this guess is one of what is marked")
    size = np.array(shape[::-1], float)
    boxes = np.zeros((len(marks.points), 4))
    for edges, points, labels in zip(boxes, marks.points, marks.labels, strict=True):
        inside = points[labels == FOREGROUND]
        if len(inside):
            centre = inside.mean(0) + 0.5
            side = _side(shape, np.tile(centre, 2))
            half = _known(atlas.extent, "extent")[side] * size / 2
            edges[:2], edges[2:] = np.maximum(centre - half, 0), np.minimum(centre + half, size)
    return boxes


def _for_each_mark(mask: Bool[np.ndarray, "H W"], marks: Marks) -> Bool[np.ndarray, "N H W"]:
    marked = next((m for m in (marks.boxes, marks.points) if m is not None), np.zeros(1))
    return np.repeat(mask[None], len(marked), axis=0)


def _one_by_one(
    draw: Callable[..., Bool[np.ndarray, "H W"]],
    shape: tuple[int, int],
    boxes: Float[np.ndarray, "N 4"],
) -> Bool[np.ndarray, "N H W"]:
    masks = np.zeros((len(boxes), *shape), bool)
    for index in range(len(boxes)):
        masks[index] = draw(shape, boxes[index : index + 1])
    return masks


def _known(value: T | None, name: str) -> T:
    if value is None:
        raise ValueError(
            f"the run's atlas is of an older version and has no {name}; train the run anew, or "
            "leave this control out"
        )
    return value


# The union of guesses in boxes.


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


# Fitting.


def fit_atlas(images: Iterable[Outlined], *, resolution: int = RESOLUTION) -> Atlas:
    """The mean shape in its box of the objects of each half of the image, and where they lie.

    Each object is cut to its box and averaged by area onto `resolution` squared cells, and so is
    the union of an image's objects, in the whole frame. A half without an example takes the mirror
    image of the other.

    Args:
      images: Those with an object; others are passed over.

    Raises:
      ValueError: There is no object, or a box without area.
    """
    return _atlas(_sum(images, resolution))


def leave_one_patient_out(
    images: Mapping[str, Iterable[Outlined]], *, resolution: int = RESOLUTION
) -> dict[str, Atlas]:
    """For each patient the atlas fitted on all other patients, for data without a training part.

    Args:
      images: Those of each patient; a patient may have none.

    Raises:
      ValueError: Only one patient has objects, so that nothing is left to fit on.
    """
    own = {patient: _sum(theirs, resolution) for patient, theirs in images.items()}
    total = _Sums(*(np.sum(parts, axis=0) for parts in zip(*own.values(), strict=True)))
    return {
        patient: _atlas(_Sums(*(all_ - its for all_, its in zip(total, sums, strict=True))))
        for patient, sums in own.items()
    }


def _sum(images: Iterable[Outlined], resolution: int) -> _Sums:
    cells = (resolution, resolution)
    shape, count, extent = np.zeros((2, *cells)), np.zeros(2), np.zeros((2, 2))
    frame, with_objects = np.zeros(cells), 0
    for size, crops in images:
        found = np.zeros(size, bool)
        for mask, edges in crops:
            x0, y0, x1, y1 = (float(edge) for edge in edges)
            if not (x1 > x0 and y1 > y0):
                raise ValueError(f"the box {[x0, y0, x1, y1]} has no area; leave this object out")
            side = _side(size, edges)
            across = _shares(x0, x1, mask.shape[1], resolution)
            down = _shares(y0, y1, mask.shape[0], resolution)
            shape[side] += down @ mask.astype(np.float32) @ across.T
            count[side] += 1
            extent[side] += (x1 - x0) / size[1], (y1 - y0) / size[0]
            found[: mask.shape[0], : mask.shape[1]] |= mask
        if crops:
            down, across = (_shares(0, length, length, resolution) for length in size)
            frame += down @ found.astype(np.float32) @ across.T
            with_objects += 1
    return _Sums(shape, count, extent, frame, np.float64(with_objects))


def _atlas(sums: _Sums) -> Atlas:
    if not sums.count.any():
        raise ValueError("a mean shape needs at least one object to fit on; use more patients")
    shape = sums.shape / np.maximum(sums.count, 1)[:, None, None]
    extent = sums.extent / np.maximum(sums.count, 1)[:, None]
    for side in (LEFT, RIGHT):
        if not sums.count[side]:
            shape[side], extent[side] = shape[1 - side, :, ::-1], extent[1 - side]
    shape = np.clip(shape, 0, 1).astype(np.float32)  # A subtraction may leave -1e-16.
    frame = np.clip(sums.frame / sums.images, 0, 1).astype(np.float32)
    return Atlas(
        shape,
        _best_threshold(shape, sums.count, THRESHOLDS),
        int(sums.count.sum()),
        frame,
        _best_threshold(frame[None], np.ones(1), FRAME_THRESHOLDS),
        extent.astype(np.float32),
    )


def _best_threshold(
    means: Float32[np.ndarray, "K R R"],
    count: Float64[np.ndarray, " K"],
    thresholds: Sequence[float],
) -> float:
    agreement = [_agreement(means, count, threshold) for threshold in thresholds]
    return thresholds[int(np.argmax(agreement))]


def _agreement(
    means: Float32[np.ndarray, "K R R"], count: Float64[np.ndarray, " K"], threshold: float
) -> float:
    """The Dice of each thresholded mean against the mean itself, weighted by `count` and summed."""
    said = means >= threshold
    both = (means * said).sum((1, 2))
    either = means.sum((1, 2)) + said.sum((1, 2))
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
        "box": Control(box, True, "filled box", "the box of each mark"),
        "ellipse": Control(ellipse, True, "inscribed ellipse", "the ellipse in it"),
        "mean_shape": Control(
            shape_in_box,
            True,
            "mean shape",
            "the mean shape of training objects, pasted into it",
        ),
        "atlas": Control(
            frame_atlas, False, "atlas", "where training findings lie, whatever is marked"
        ),
    }
)

ORACLES: Mapping[str, Control] = MappingProxyType(
    {
        "lungs": Control(
            whole_lungs, False, "whole lungs (oracle)", "the lungs as an expert outlined them"
        ),
        "box+lungs": Control(
            box_in_lungs, True, "box in lungs (oracle)", "what of each box lies in them"
        ),
    }
)
