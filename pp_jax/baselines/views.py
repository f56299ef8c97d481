"""What a method without parameters sees of an image: the part around one object, grey, maybe small.

Boxes are `(x0, y0, x1, y1)` at the edges of pixels. A pixel belongs to a box when its centre, at
index + 0.5, does.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from pp_jax.preprocess.colour import to_grey
from pp_jax.types import BACKGROUND, FOREGROUND

Mask = Bool[np.ndarray, "h w"]
Window = tuple[slice, slice]  # Rows, columns.

_HAIR = 1e-6  # Pixels.


class Hint(NamedTuple):
    """What is marked for one object, in the original frame.

    Nothing at all asks for the whole image, all findings at once.
    """

    box: Float[np.ndarray, " 4"] | None = None
    points: Float[np.ndarray, "P 2"] | None = None  # (x, y) in pixel indices: 0 is a centre.
    labels: Int[np.ndarray, " P"] | None = None  # FOREGROUND, BACKGROUND or NEUTRAL.


class View(NamedTuple):
    """A part of an image, in grey, and what is marked there, in units of its own pixels."""

    grey: UInt8[np.ndarray, "h w"]
    box: Float[np.ndarray, " 4"]  # What may be in the mask; the whole view where there is no box.
    foreground: Float[np.ndarray, "p 2"]  # (x, y) of the marks in the box: 0 is a pixel's edge.
    background: Float[np.ndarray, "q 2"]
    marked: bool  # False: all findings at once.


def in_view(
    method: Callable[[View], Mask],
    image: UInt8[np.ndarray, "H W 3"],
    hint: Hint,
    *,
    margin: float = 0.0,
    longest: int | None = None,
) -> Bool[np.ndarray, "H W"]:
    """What a method finds in its view, as a mask of the image.

    Never more than the box, and never a pixel that is marked as background. Empty where the box
    holds no pixel of the image.

    Args:
      margin: Shown around the box, as a share of its longer side.
      longest: Side in pixels to which a view with a longer one is shrunk, since the time of some
        methods grows with the area, or faster. Nothing is enlarged.
    """
    mask = np.zeros(image.shape[:2], bool)
    box = _box(hint, mask.shape)
    window = _window(mask.shape, box, more=margin * max(box[2] - box[0], box[3] - box[1]))
    inside = _window(mask.shape, box)
    if not mask[inside].size:
        return mask
    view = _view(image, hint, window)
    found = np.zeros_like(mask)
    found[window] = _enlarged(method(shrunk(view, longest)), view.grey.shape)
    mask[inside] = found[inside]
    mask[window][pixels(view, view.background)] = False
    return mask


def shrunk(view: View, longest: int | None) -> View:
    """The view with its longer side at most `longest`, by Pillow's bilinear filter."""
    height, width = view.grey.shape
    if longest is None or longest >= max(height, width):
        return view
    size = [max(1, round(side * longest / max(height, width))) for side in (width, height)]
    scale = np.divide(size, (width, height))
    small = Image.fromarray(view.grey).resize(size, Image.Resampling.BILINEAR)
    return View(
        np.asarray(small),
        view.box * np.tile(scale, 2),
        view.foreground * scale,
        view.background * scale,
        view.marked,
    )


def inside(view: View) -> Mask:
    """The pixels of the view's box."""
    mask = np.zeros(view.grey.shape, bool)
    mask[_window(mask.shape, view.box)] = True
    return mask


def outside(view: View) -> Mask:
    """Surely not the object: what lies around the box, and marks of the background.

    Where nothing does, as in a box around the whole image, the outermost pixels of the view.
    """
    mask = ~inside(view)
    if not mask.any():
        mask[[0, -1]] = mask[:, [0, -1]] = True
    mask[pixels(view, view.background)] = True
    return mask


def seeds(view: View) -> Float[np.ndarray, "p 2"]:
    """(x, y) of the foreground's marks, without one the middle of what is seen of the box.

    The middle comes as four places, a hair apart: between two pixels it belongs to both, or an
    image and its mirror image would have different seeds.
    """
    if len(view.foreground):
        return view.foreground
    limit = np.array(view.grey.shape[::-1], float)
    middle = (np.clip(view.box[:2], 0, limit) + np.clip(view.box[2:], 0, limit)) / 2
    return middle + _HAIR * np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])


def seed_pixels(view: View) -> Mask:
    """The pixels that hold `seeds` and are not marked as background."""
    mask = np.zeros(view.grey.shape, bool)
    mask[pixels(view, seeds(view))] = True
    mask[pixels(view, view.background)] = False
    return mask


def core(view: View, share: float) -> Mask:
    """Surely the object: around each seed an ellipse with this share of the box's sides.

    Not outside the box, and not where the background is marked.
    """
    mask = seed_pixels(view)
    for centre in seeds(view):
        mask |= ellipse(view, centre, share=share)
    mask &= inside(view)
    mask[pixels(view, view.background)] = False
    return mask


def ellipse(
    view: View, centre: Float[np.ndarray, " 2"], *, share: float = 1.0
) -> Bool[np.ndarray, "h w"]:
    """An ellipse of the box's proportions around a place; at a share of 1 the box's own, moved."""
    y, x = (np.arange(side) + 0.5 for side in view.grey.shape)
    half = np.maximum(share * (view.box[2:] - view.box[:2]) / 2, 1e-9)
    across, down = ((x - centre[0]) / half[0]) ** 2, ((y - centre[1]) / half[1]) ** 2
    return down[:, None] + across <= 1


def pixels(
    view: View, places: Float[np.ndarray, "p 2"]
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """Rows and columns of the pixels that hold the places, (x, y)."""
    limit = np.array(view.grey.shape[::-1]) - 1
    columns, rows = np.clip(np.floor(places), 0, limit).astype(int).T
    return rows, columns


def _box(hint: Hint, shape: tuple[int, ...]) -> Float[np.ndarray, " 4"]:
    if hint.box is None:
        return np.array([0, 0, shape[1], shape[0]], float)
    return np.asarray(hint.box, float)


def _window(shape: tuple[int, ...], box: Float[np.ndarray, " 4"], *, more: float = 0.0) -> Window:
    """Rows and columns of the image whose centres lie in the box widened by `more` pixels."""
    first, last = np.ceil(box[:2] - more - 0.5), np.ceil(box[2:] + more - 0.5)
    (x0, y0), (x1, y1) = (np.clip(edge, 0, shape[::-1]).astype(int) for edge in (first, last))
    return slice(y0, y1), slice(x0, x1)


def _view(image: UInt8[np.ndarray, "H W 3"], hint: Hint, window: Window) -> View:
    box = _box(hint, image.shape[:2])
    corner = np.array([window[1].start, window[0].start])
    places, labels = np.zeros((0, 2)), np.zeros(0, int)
    if hint.points is not None and hint.labels is not None:
        places, labels = np.asarray(hint.points, float) + 0.5, np.asarray(hint.labels)
    held = ((places >= box[:2]) & (places < box[2:])).all(1)
    size = image.shape[1::-1]
    held &= ((places >= 0) & (places < size)).all(1)
    return View(
        to_grey(image[window]),
        box - np.tile(corner, 2),
        places[held & (labels == FOREGROUND)] - corner,
        places[held & (labels == BACKGROUND)] - corner,
        hint.box is not None or bool((held & (labels == FOREGROUND)).any()),
    )


def _enlarged(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """The inverse of `shrunk` for a mask: bilinear, from one half on."""
    if mask.shape == shape:
        return mask
    shares = Image.fromarray(mask.astype(np.float32)).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(shares) >= 0.5
