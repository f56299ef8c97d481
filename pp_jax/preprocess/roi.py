"""What is cut out of an image before it is scaled, and the way back: `content`, `box-context:1.5`.

Host arrays. A window is a part of the original frame; what it shows is an image of its own, in
which points, boxes and masks are shifted by the window's corner and by nothing else. Points are
`(x, y)` in pixel indices, boxes `(x0, y0, x1, y1)` at the edges of pixels.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Num, UInt8
from scipy import ndimage

from pp_jax.preprocess import specs
from pp_jax.preprocess.colour import to_grey

Image = UInt8[np.ndarray, "H W 3"]
Box = Float[np.ndarray, " 4"]

CONTENT_THRESHOLD = 5  # Grey levels: JPEG's noise on a black frame stays below it.
CONTEXT_SCALE = 1.5


class Window(NamedTuple):
    """The rows `top` to `bottom` and columns `left` to `right` of an image, the ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Of an array's rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def __str__(self) -> str:
        return f"columns {self.left} to {self.right - 1}, rows {self.top} to {self.bottom - 1}"


class Roi(NamedTuple):
    """What a row of `ROIS` makes of its parameters."""

    window: Callable[[Image, Box | None], Window]  # Of an image, and a box on it if one is marked.
    per: Literal["nothing", "image", "box"]  # What has a window of its own.


# Windows.


def whole_window(image: Image) -> Window:
    """All of the image."""
    return Window(0, 0, *image.shape[:2])


def content_window(image: Image, *, threshold: int = CONTENT_THRESHOLD) -> Window:
    """The box around the largest region that is not black.

    Pixels brighter than `threshold` (luma, 0 to 255) that touch by an edge or a corner are one
    region; of equal ones the first in raster order counts. Letters and markers apart from it are
    left out, unless they lie within its box. An image that is black all over is kept whole.
    """
    regions, count = ndimage.label(to_grey(image) > threshold, structure=np.ones((3, 3)))
    if not count:
        return whole_window(image)
    largest = regions == np.bincount(regions.ravel())[1:].argmax() + 1
    rows, columns = (np.flatnonzero(largest.any(axis)).tolist() for axis in (1, 0))
    return Window(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)


def context_window(box: Box, *, size: tuple[int, int], scale: float = CONTEXT_SCALE) -> Window:
    """The box scaled about its centre by `scale`, in whole pixels that hold it, within the image.

    At least one pixel, whatever the box.

    Args:
      box: Original frame.
      size: (height, width) of the image.
    """
    low, high = np.asarray(box, np.float64).reshape(2, 2)
    margin = (scale - 1) / 2 * (high - low)
    last = np.array(size[::-1]) - 1
    left, top = np.clip(np.floor(low - margin), 0, last).astype(int).tolist()
    right, bottom = np.clip(np.ceil(high + margin), [left + 1, top + 1], last + 1).astype(int)
    return Window(top, left, int(bottom), int(right))


# To the window and back.


def crop(image: Num[np.ndarray, "H W *c"], window: Window) -> Num[np.ndarray, "h w *c"]:
    """What the window shows: a view."""
    return image[window.slices]


def paste(
    masks: Bool[np.ndarray, "*n h w"], window: Window, *, size: tuple[int, int]
) -> Bool[np.ndarray, "*n H W"]:
    """Masks of the window in the frame of an image of `size` (height, width); False around it.

    Raises:
      ValueError: The masks are not of the window's size.
    """
    if masks.shape[-2:] != window.size:
        raise ValueError(f"masks of {masks.shape[-2:]} do not fill a window of {window.size}")
    whole = np.zeros((*masks.shape[:-2], *size), bool)
    whole[..., *window.slices] = masks
    return whole


def to_window(
    coordinates: Float[np.ndarray, "*n d"], window: Window
) -> Float64[np.ndarray, "*n d"]:
    """Points (`d` 2) or boxes (`d` 4) of the original frame, in that of the window."""
    return coordinates.astype(np.float64) - _corner(coordinates, window)


def to_frame(coordinates: Float[np.ndarray, "*n d"], window: Window) -> Float64[np.ndarray, "*n d"]:
    """Points or boxes of the window in the original frame: the inverse of `to_window`.

    It is exact for what lies in the window, and for all that came as float32.
    """
    return coordinates.astype(np.float64) + _corner(coordinates, window)


def clip_boxes(
    boxes: Float[np.ndarray, "*n 4"], *, size: tuple[int, int]
) -> Float64[np.ndarray, "*n 4"]:
    """The part of each box that lies in an image of `size` (height, width)."""
    return np.clip(boxes.astype(np.float64), 0, np.tile(size[::-1], 2))


def meets(boxes: Float[np.ndarray, "*n 4"], window: Window) -> Bool[np.ndarray, "*n"]:
    """Whether each box of the original frame shares an area with the window."""
    inside = clip_boxes(to_window(boxes, window), size=window.size)
    return (inside[..., 2:] > inside[..., :2]).all(-1)


def holds(points: Num[np.ndarray, "*n 2"], window: Window) -> Bool[np.ndarray, "*n"]:
    """Whether each point of the original frame is one of the window's pixels."""
    inside = points - np.array([window.left, window.top])
    return ((inside >= 0) & (inside < window.size[::-1])).all(-1)


def _corner(coordinates: Float[np.ndarray, "*n d"], window: Window) -> np.ndarray:
    return np.tile([window.left, window.top], coordinates.shape[-1] // 2)


# Specs.


def parse(spec: str) -> specs.Named:
    """The row of `ROIS` that a spec names, every parameter filled in and checked.

    Raises:
      ValueError: An unknown name or parameter, or a value outside its range.
    """
    return specs.parse_row(spec, ROIS, what="roi")


def make(spec: str) -> Roi:
    """The region of interest that a spec names.

    Raises:
      ValueError: As `parse`.
    """
    return specs.make_row(parse(spec), ROIS)


def make_for_images(spec: str) -> Callable[[Image], Window]:
    """The one window of an image, for a training.

    Raises:
      ValueError: As `parse`, or a region that each box has for itself.
    """
    roi = make(spec)
    if roi.per == "box":
        raise ValueError(
            f"roi {spec!r}: for prediction and evaluation only, since in training several prompts "
            "share an image; choose none or content"
        )
    return partial(roi.window, box=None)


def none() -> Roi:
    """The whole image."""
    return Roi(_whole, "nothing")


def content(*, threshold: int = CONTENT_THRESHOLD) -> Roi:
    """The largest region brighter than `threshold`, see `content_window`."""
    if not 0 <= threshold <= 254:
        raise ValueError(f"threshold={threshold}: choose a grey level from 0 to 254")
    return Roi(partial(_content, threshold=threshold), "image")


def box_context(*, scale: float = CONTEXT_SCALE) -> Roi:
    """The neighbourhood of each box, see `context_window`."""
    if not 1 <= scale < np.inf:
        raise ValueError(f"scale={scale}: choose a number from 1 up; 1 is the box alone")
    return Roi(partial(_context, scale=scale), "box")


def _whole(image: Image, box: Box | None) -> Window:
    del box
    return whole_window(image)


def _content(image: Image, box: Box | None, *, threshold: int) -> Window:
    del box
    return content_window(image, threshold=threshold)


def _context(image: Image, box: Box | None, *, scale: float) -> Window:
    if box is None:
        raise ValueError(
            "roi box-context cuts around a box, and none is marked: mark boxes, or choose roi none "
            "or content"
        )
    return context_window(box, size=image.shape[:2], scale=scale)


ROIS: Mapping[str, Callable[..., Roi]] = MappingProxyType(
    {"none": none, "content": content, "box-context": box_context}
)
