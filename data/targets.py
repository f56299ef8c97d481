"""Targets where nobody drew an outline: shapes and pseudo-masks made of a box.

None of them is a mask that a reader drew, and `Target.kind` never says so. Each lies in its box, so
that a box prompt contains most of the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy import ndimage
from skimage import filters, segmentation

from data.boxes import Box, fill_boxes

LEAST = 0.1  # Of the box: what a reader put a box around fills more of it.
_MARGIN = 0.25  # Of the longer side: what is shown around a box to tell it from its surroundings.
_EDGES_SIDE = 96  # Longer side of a box while its contour moves, so that resolution does not count.
_EDGES_STEPS = 30
_GRABCUT_SIDE = 192  # The same while it is cut out; the time grows with the square.
_GRABCUT_ROUNDS = 5
_CORE = 0.25  # Of each side, in the middle of the box: surely the finding.
_SEED = 0


class Target(NamedTuple):
    """A row of `TARGETS`."""

    draw: Callable[[UInt8[np.ndarray, "H W"], Box], Bool[np.ndarray, "H W"]]
    outline: bool  # A known outline goes before.
    reads: bool  # Looks at pixels; otherwise at the image's size alone.
    kind: str  # What tables call a target that was drawn so.


def draw_objects(
    grey: UInt8[np.ndarray, "H W"], boxes: Sequence[Box], *, target: str
) -> tuple[Bool[np.ndarray, "N H W"], tuple[str, ...]]:
    """The object of each box, drawn by a row of `TARGETS`, and a note for each that could not be.

    What a row draws in less than a tenth of its box is noise or nothing. The ellipse stands for it,
    and the filled box where the ellipse holds no pixel's centre. Only a box that holds none itself
    has an empty object.
    """
    objects = fill_boxes(boxes, size=grey.shape)
    notes = []
    for inside, box in zip(objects, boxes, strict=True):
        if not inside.any():
            continue
        filled = inside.copy()
        for name in dict.fromkeys((target, "ellipse", "box")):
            drawn = TARGETS[name].draw(grey, box) & filled
            if drawn.sum() >= max(1, LEAST * filled.sum()):
                break
        inside[:] = drawn
        if name != target:
            notes.append(f"{target}: {name} in its place, too little found in box {box}")
    return objects, tuple(notes)


def filled(grey: UInt8[np.ndarray, "H W"], box: Box) -> Bool[np.ndarray, "H W"]:
    """All of the box."""
    return fill_boxes([box], size=grey.shape)[0]


def ellipse(grey: UInt8[np.ndarray, "H W"], box: Box) -> Bool[np.ndarray, "H W"]:
    """The ellipse that touches the four sides of the box: pi / 4 of it."""
    return _ellipse(grey.shape, box)


def otsu(grey: UInt8[np.ndarray, "H W"], box: Box) -> Bool[np.ndarray, "H W"]:
    """The brighter side of Otsu's threshold within the box: one component, its holes filled.

    Opacities are bright. Of the components (4-connectivity) the one with most pixels is kept, each
    counted by how central it is: 1 in the middle of the box, 0 on the ellipse and beyond.
    """
    rows, columns = _window(grey.shape, box)
    inside = grey[rows, columns]
    found = np.zeros(grey.shape, bool)
    if not inside.size or inside.min() == inside.max():
        return found
    labels, _ = ndimage.label(inside > filters.threshold_otsu(inside))
    middle = np.maximum(1 - _radius(grey.shape, box)[rows, columns], 0)
    weights = np.bincount(labels.ravel(), weights=middle.ravel())
    weights[0] = 0
    found[rows, columns] = ndimage.binary_fill_holes(labels == weights.argmax())
    return found if weights.any() else np.zeros_like(found)


def edges(grey: UInt8[np.ndarray, "H W"], box: Box) -> Bool[np.ndarray, "H W"]:
    """The ellipse after its contour moved to near edges: a geodesic snake without balloon force.

    30 rounds at 96 pixels, with the edges of a Gaussian of 2 pixels: an edge has to be
    near to be seen, and where there is none the contour stays.

    P. Marquez-Neila, L. Baumela and L. Alvarez, A morphological approach to curvature-based
    evolution of curves and surfaces, PAMI 2014; scikit-image's implementation.
    """
    window = _window(grey.shape, box, margin=_MARGIN)
    small, near = _scaled(grey, box, window, side=_EDGES_SIDE)
    moved = segmentation.morphological_geodesic_active_contour(
        segmentation.inverse_gaussian_gradient(small / 255, alpha=100, sigma=2),
        num_iter=_EDGES_STEPS,
        init_level_set=_ellipse(small.shape, near),
        smoothing=1,
        balloon=0,
    )
    return _restored(moved > 0, window, shape=grey.shape)


def grabcut(grey: UInt8[np.ndarray, "H W"], box: Box) -> Bool[np.ndarray, "H W"]:
    """What OpenCV's GrabCut takes for the foreground in the box, at 192 pixels.

    What lies around the box, up to a quarter of its longer side, is background. The middle quarter
    of each side is foreground: from the box alone, GrabCut finds nothing in four of five boxes
    around opacities, whose grey levels are also those of the ribs and the heart beside them. Empty
    where there is nothing around the box.

    C. Rother, V. Kolmogorov and A. Blake, GrabCut, SIGGRAPH 2004.

    Raises:
      ValueError: OpenCV is not installed.
    """
    cv2 = _opencv()
    window = _window(grey.shape, box, margin=_MARGIN)
    small, near = _scaled(grey, box, window, side=_GRABCUT_SIDE)
    x, y = (near[0] + near[2]) / 2, (near[1] + near[3]) / 2
    right, down = (_CORE * (far - first) / 2 for first, far in zip(near[:2], near[2:], strict=True))
    labels = np.where(filled(small, near), cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    labels[_ellipse(small.shape, (x - right, y - down, x + right, y + down))] = cv2.GC_FGD
    if (labels == cv2.GC_BGD).sum() < _FEWEST or (labels != cv2.GC_BGD).sum() < _FEWEST:
        return np.zeros(grey.shape, bool)
    cv2.setRNGSeed(_SEED)  # Its mixtures start from k-means, which draws.
    models = np.zeros((2, 1, 65))  # Of background and foreground; GrabCut works in them.
    colours = np.repeat(small[:, :, None], 3, 2)
    cv2.grabCut(colours, labels, None, *models, _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return _restored(found, window, shape=grey.shape)


_FEWEST = 5  # Pixels: GrabCut mixes five colours on each side.


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            "--target grabcut needs OpenCV: pip install -c constraints.txt -e '.[opencv]', or "
            "choose another target"
        ) from error
    return cv2


def _radius(shape: tuple[int, ...], box: Box) -> np.ndarray:
    """Squared distance of pixels' centres from the middle of the box: 1 on the ellipse."""
    y, x = (np.arange(side) + 0.5 for side in shape)
    across = (2 * x - box[0] - box[2]) / (box[2] - box[0])
    down = (2 * y - box[1] - box[3]) / (box[3] - box[1])
    return down[:, None] ** 2 + across**2


def _ellipse(shape: tuple[int, ...], box: Box) -> Bool[np.ndarray, "H W"]:
    return _radius(shape, box) <= 1


def _window(shape: tuple[int, ...], box: Box, *, margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns whose centres lie in the box, widened by `margin` of its longer side."""
    more = margin * max(box[2] - box[0], box[3] - box[1])
    first = np.ceil(np.array(box[:2]) - more - 0.5)
    last = np.ceil(np.array(box[2:]) + more - 0.5)
    (x0, y0), (x1, y1) = (np.clip(edge, 0, shape[::-1]).astype(int) for edge in (first, last))
    return slice(int(y0), int(y1)), slice(int(x0), int(x1))


def _scaled(
    grey: UInt8[np.ndarray, "H W"], box: Box, window: tuple[slice, slice], *, side: int
) -> tuple[UInt8[np.ndarray, "h w"], Box]:
    """The window with the box brought to `side`, and the box in it."""
    rows, columns = window
    scale = side / max(box[2] - box[0], box[3] - box[1])
    height, width = (max(1, round((x.stop - x.start) * scale)) for x in window)
    shown = Image.fromarray(grey[window]).resize((width, height), Image.Resampling.BILINEAR)
    across, down = width / (columns.stop - columns.start), height / (rows.stop - rows.start)
    x0, x1 = ((edge - columns.start) * across for edge in (box[0], box[2]))
    y0, y1 = ((edge - rows.start) * down for edge in (box[1], box[3]))
    return np.asarray(shown), (x0, y0, x1, y1)


def _restored(
    small: Bool[np.ndarray, "h w"], window: tuple[slice, slice], *, shape: tuple[int, ...]
) -> Bool[np.ndarray, "H W"]:
    """The inverse of `_scaled` for a mask, on the whole image."""
    rows, columns = window
    size = (columns.stop - columns.start, rows.stop - rows.start)
    shares = Image.fromarray(small.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    mask = np.zeros(shape, bool)
    mask[window] = np.asarray(shares) >= 0.5
    return mask


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "mask": Target(filled, outline=True, reads=False, kind="box"),
        "box": Target(filled, outline=False, reads=False, kind="box"),
        "ellipse": Target(ellipse, outline=False, reads=False, kind="ellipse from box"),
        "otsu": Target(otsu, outline=False, reads=True, kind="otsu from box"),
        "grabcut": Target(grabcut, outline=False, reads=True, kind="grabcut from box"),
        "edges": Target(edges, outline=False, reads=True, kind="edges from box"),
    }
)
