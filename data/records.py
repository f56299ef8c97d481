"""One image of a data set: where it is, and what is in it."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from data.boxes import Box, check_boxes, tight_boxes
from data.facts import Facts
from data.files import File
from data.images import opened_picture, read_any
from data.targets import TARGETS, draw_objects
from pp_jax.preprocess.colour import to_grey

DOUBTFUL = "doubtful patient"  # A note: who is shown may be someone else.


@dataclass(frozen=True)
class Record:
    """An image by its file and its annotation; no pixels yet."""

    id: str
    patient: str
    image: File
    boxes: tuple[Box, ...]  # (x0, y0, x1, y1), original frame, edges of pixels.
    mask: File | None
    target: Literal["mask", "machine-made", "box"]  # What is known of the true outline.
    label: str
    facts: Facts = field(default_factory=Facts)
    notes: tuple[str, ...] = ()  # What was put right while reading, "box clipped"; to be counted.
    drawn: str = "mask"  # How its objects are drawn: a row of `TARGETS`.
    dataset: str = ""  # Which of several that are read together.
    lungs: File | None = None  # A mask of both as an expert outlined them, for oracles alone.

    @property
    def from_box(self) -> bool:
        """Whether its objects are made of its boxes, so that nobody drew their outlines."""
        return self.mask is None or not TARGETS[self.drawn].outline

    @property
    def kind(self) -> str:
        """What its objects are, for tables: `target`, or what was made of the boxes."""
        return TARGETS[self.drawn].kind if self.from_box else self.target


class Sample(NamedTuple):
    """The pixels and objects of one record, original frame."""

    image: UInt8[np.ndarray, "H W 3"]
    objects: Bool[np.ndarray, "N H W"]  # One per box that holds something.
    boxes: Float32[np.ndarray, "N 4"]  # Tight around each object, or the annotated boxes.
    findings: Bool[np.ndarray, "H W"]  # All that was marked, in a box or not.
    target: str  # `Record.kind`.
    notes: tuple[str, ...]  # Objects that could not be drawn as the record asks.


def load(record: Record) -> Sample:
    """The decoded image with its objects in the order of `record.boxes`.

    With a mask file, an object is all components (8-connectivity) that lie mostly in its box; a
    component in no box counts in `findings` only; a box without a component is left out, with a
    warning that names it (a warning because nobody would call a function that counts them).
    Without one, or where the record asks for it, an object is drawn from its box by a row of
    `TARGETS`: by default all pixels whose centre lies inside. Where that fails a warning says so.

    Raises:
      ValueError: A box outside the image, or a mask of another size or kind.
      DicomError, ImageError: The image cannot be read.
    """
    image = read_any(record.image)
    size = image.shape[:2]
    check_boxes(record.boxes, size=size, where=f"{record.image}")
    if record.from_box:
        # A shape asks for the image's size alone.
        grey = to_grey(image) if TARGETS[record.drawn].reads else image[:, :, 0]
        objects, notes = draw_objects(grey, record.boxes, target=record.drawn)
        for note in notes:
            warnings.warn(f"{record.id}: {note}", stacklevel=2)
        held = objects.any((1, 2))  # A box thinner than a pixel may hold no pixel's centre.
        boxes = np.array(record.boxes, np.float32).reshape(-1, 4)
        return Sample(image, objects[held], boxes[held], objects.any(0), record.kind, notes)
    findings = read_mask(record.mask, size=size)
    objects = assign_components(findings, record.boxes)
    found = objects.any((1, 2))
    if not found.all():
        lost = [box for box, kept in zip(record.boxes, found, strict=True) if not kept]
        warnings.warn(f"{record.mask}: nothing is marked inside box {lost[0]}", stacklevel=2)
    objects = objects[found]
    return Sample(image, objects, tight_boxes(objects), findings, record.kind, ())


def draw_as(records: Iterable[Record], target: str) -> list[Record]:
    """The records with their objects to be drawn by a row of `TARGETS`.

    Raises:
      ValueError: No such row.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; choose from {', '.join(TARGETS)}")
    return [replace(record, drawn=target) for record in records]


def object_crops(
    records: Iterable[Record],
) -> Iterator[tuple[Bool[np.ndarray, "H W"], Float32[np.ndarray, " 4"]]]:
    """Each object's mask and box, original frame, without decoding an image where possible.

    An object that is a shape in its box lies on a canvas that just holds it.
    """
    for record in records:
        if record.from_box and TARGETS[record.drawn].reads:
            sample = load(record)
            yield from zip(sample.objects, sample.boxes, strict=True)
        elif record.from_box:
            for box in record.boxes:
                canvas = np.zeros((math.ceil(box[3]), math.ceil(box[2])), np.uint8)
                (drawn,), _ = draw_objects(canvas, [box], target=record.drawn)
                yield drawn, np.array(box, np.float32)
        else:
            with opened_picture(record.mask) as picture:
                size = (picture.height, picture.width)
            objects = assign_components(read_mask(record.mask, size=size), record.boxes)
            objects = objects[objects.any((1, 2))]
            yield from zip(objects, tight_boxes(objects), strict=True)


def assign_components(
    findings: Bool[np.ndarray, "H W"], boxes: Sequence[Box]
) -> Bool[np.ndarray, "N H W"]:
    """For each box, the components (8-connectivity) with more pixels in it than in any other.

    Ties go to the smaller box: a small finding often lies within the box of a large one.
    """
    objects = np.zeros((len(boxes), *findings.shape), bool)
    if not boxes or not findings.any():
        return objects
    height, width = findings.shape
    rows, columns = (_span(findings.any(axis)) for axis in (1, 0))  # The rest need not be searched.
    labels, count = ndimage.label(findings[rows, columns], structure=np.ones((3, 3)))
    whole = [
        [_between(*box[i::2], length) for i, length in ((1, height), (0, width))] for box in boxes
    ]
    insides = [(_shifted(y, rows), _shifted(x, columns)) for y, x in whole]
    pixels = np.stack([np.bincount(labels[box].ravel(), minlength=count + 1) for box in insides])
    areas = [(y.stop - y.start) * (x.stop - x.start) for y, x in whole]
    smallest_first = np.argsort(areas, kind="stable")
    owner = smallest_first[pixels[smallest_first].argmax(0)]
    owner[(pixels.max(0) == 0) | (np.arange(count + 1) == 0)] = -1  # Label 0 is the background.
    objects[:, rows, columns] = owner[labels] == np.arange(len(boxes))[:, None, None]
    return objects


def _span(marked: Bool[np.ndarray, " n"]) -> slice:
    """From the first marked one to the last."""
    places = np.flatnonzero(marked)
    return slice(int(places[0]), int(places[-1]) + 1)


def _between(low: float, high: float, length: int) -> slice:
    """The pixels of a side whose centre lies from `low` to below `high`."""
    first, end = (min(max(math.ceil(edge - 0.5), 0), length) for edge in (low, high))
    return slice(first, max(first, end))


def _shifted(pixels: slice, window: slice) -> slice:
    """Those of the pixels that lie in the window, counted from its start."""
    return slice(max(pixels.start - window.start, 0), max(pixels.stop - window.start, 0))


def read_mask(path: File, *, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """What is marked in an 8-bit grey picture, the pixels above 127, or in one of 1 bit, the white.

    Raises:
      ValueError: Another kind of file, a damaged one, or one that is not of `size`.
      OSError: The file cannot be opened.
    """
    with opened_picture(path) as file:
        mode, mask = file.mode, np.asarray(file)
    if mode not in ("L", "1"):
        raise ValueError(f"{path}: a mask is an 8-bit grey PNG (mode L), this one has mode {mode}")
    if mask.shape != tuple(size):
        raise ValueError(
            f"{path}: mask of {mask.shape[1]} x {mask.shape[0]} pixels for an image of "
            f"{size[1]} x {size[0]} (width x height); save it at the image's size"
        )
    return mask if mode == "1" else mask > 127
