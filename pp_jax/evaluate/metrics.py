"""Agreement of two masks of one image, at the size the file holds.

Host arrays: every image has its own size, and one sum of a million booleans costs nothing.

Every metric has a value for every pair of masks: two empty masks agree wholly (1; HD95 0), an empty
one and another not at all (0; HD95 the image's diagonal). Only a recall of parts that the target
does not have is None. Distances are in per cent of the image's longest side, which images of any
size and unknown scale have in common.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from pp_jax.evaluate import surfaces
from pp_jax.evaluate.surfaces import Gaps, check_sizes

THIN = 1.0  # Radius of the disc that does not fit into a thin part, per cent of the longest side.

Empty = Literal["neither", "one", "both"]


class Pair(NamedTuple):
    """A prediction beside its target, with what the metrics share of them."""

    prediction: Bool[np.ndarray, "h w"]  # Both cropped, see `surfaces.crop`.
    target: Bool[np.ndarray, "h w"]
    size: tuple[int, int]  # Height and width before the crop.
    side: int  # Pixels that are 100 % of a distance.
    predicted: int  # Pixels of the prediction, of the target, of both.
    marked: int
    both: int
    between: Gaps  # Pixels.


class Metric(NamedTuple):
    """A row of `METRICS`."""

    function: Callable[[Pair], float | None]
    higher_is_better: bool
    label: str  # Heading in tables.
    unit: str  # "" for a share in [0, 1] or a count.


def dice(prediction: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"]) -> float:
    """`2 |A and B| / (|A| + |B|)`, in [0, 1]; 1 when both masks are empty, 0 when one is.

    Examples:
      >>> marked = np.array([[True, True, False, False]])
      >>> float(dice(marked, np.array([[False, True, True, False]])))
      0.5
      >>> float(dice(~marked & marked, ~marked & marked))
      1.0
    """
    check_sizes(prediction, target)
    total = np.count_nonzero(prediction) + np.count_nonzero(target)
    return 2 * np.count_nonzero(prediction & target) / total if total else 1.0


def iou(prediction: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"]) -> float:
    """`|A and B| / |A or B|`, in [0, 1]; 1 when both masks are empty, 0 when one is."""
    check_sizes(prediction, target)
    union = np.count_nonzero(prediction | target)
    return np.count_nonzero(prediction & target) / union if union else 1.0


def emptiness(prediction: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"]) -> Empty:
    """How many of the two masks are empty, so that a table can say where a score was a convention.

    With "both" every agreement is 1 by definition, with "one" it is 0, whatever the shapes.
    """
    return ("neither", "one", "both")[int(not prediction.any()) + int(not target.any())]


def pair(
    prediction: Bool[np.ndarray, "H W"],
    target: Bool[np.ndarray, "H W"],
    *,
    side: int | None = None,
) -> Pair:
    """The two masks as the functions of `METRICS` take them, the boundaries compared once.

    Args:
      side: Pixels that are 100 % of a distance; None: the longest side of the masks.

    Raises:
      ValueError: Masks of two sizes.
    """
    cropped = surfaces.crop(prediction, target)
    return Pair(
        *cropped,
        size=target.shape,
        side=max(target.shape) if side is None else side,
        predicted=int(np.count_nonzero(cropped[0])),
        marked=int(np.count_nonzero(cropped[1])),
        both=int(np.count_nonzero(cropped[0] & cropped[1])),
        between=surfaces.gaps(*cropped),
    )


def measure(
    prediction: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"]
) -> dict[str, float | None]:
    """Every row of `METRICS` by its name; None where the target lacks what is measured.

    Raises:
      ValueError: Masks of two sizes.
    """
    masks = pair(prediction, target)
    return {name: metric.function(masks) for name, metric in METRICS.items()}


def _dice(masks: Pair) -> float:
    return _share(masks, 2 * masks.both, masks.predicted + masks.marked)


def _iou(masks: Pair) -> float:
    return _share(masks, masks.both, masks.predicted + masks.marked - masks.both)


def _precision(masks: Pair) -> float:
    return _share(masks, masks.both, masks.predicted)


def _recall(masks: Pair) -> float:
    return _share(masks, masks.both, masks.marked)


def _area_similarity(masks: Pair) -> float:
    """One minus the difference of the areas by their sum, wherever the masks lie."""
    smaller, total = min(masks.predicted, masks.marked), masks.predicted + masks.marked
    return _share(masks, 2 * smaller, total)


def _share(masks: Pair, part: int, whole: int) -> float:
    """`part / whole`; 1 when both masks are empty, 0 when the one that is asked for is."""
    if not masks.predicted and not masks.marked:
        return 1.0
    return part / whole if whole else 0.0


def _boundary_f(masks: Pair, *, percent: float) -> float:
    return surfaces.boundary_f(masks.between, tolerance=masks.side * percent / 100)


def _nsd(masks: Pair, *, percent: float) -> float:
    return surfaces.surface_dice(masks.between, tolerance=masks.side * percent / 100)


def _hd95(masks: Pair) -> float:
    return 100 * min(surfaces.hausdorff95(masks.between), math.hypot(*masks.size)) / masks.side


def _thin_recall(masks: Pair) -> float | None:
    """The share of the target's thin parts, corners included, that the prediction covers.

    Thin is what an opening by a disc removes; None where it removes nothing.
    """
    thin = masks.target & ~surfaces.opened(masks.target, radius=masks.side * THIN / 100)
    total = int(np.count_nonzero(thin))
    return int(np.count_nonzero(masks.prediction & thin)) / total if total else None


def _spurious_count(masks: Pair) -> float:
    """How many components of the prediction (8-connectivity) touch no pixel of the target."""
    return float(len(_spurious_areas(masks)))


def _spurious_area(masks: Pair) -> float:
    """The area of those components, in per cent of the image."""
    return 100 * sum(_spurious_areas(masks)) / math.prod(masks.size)


def _spurious_areas(masks: Pair) -> list[int]:
    labels, _ = ndimage.label(masks.prediction, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=1)
    areas[0] = 0
    areas[labels[masks.target]] = 0
    return areas[areas > 0].tolist()


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "dice": Metric(_dice, True, "Dice", ""),
        "iou": Metric(_iou, True, "IoU", ""),
        "precision": Metric(_precision, True, "Precision", ""),
        "recall": Metric(_recall, True, "Recall", ""),
        # Of pixels, F1 is Dice: it stands here for readers who look for it.
        "f1": Metric(_dice, True, "F1", ""),
        "area_similarity": Metric(_area_similarity, True, "Area similarity", ""),
        "boundary_f": Metric(partial(_boundary_f, percent=1.0), True, "Boundary F at 1 %", ""),
        "nsd_05": Metric(partial(_nsd, percent=0.5), True, "NSD at 0.5 %", ""),
        "nsd_1": Metric(partial(_nsd, percent=1.0), True, "NSD at 1 %", ""),
        "nsd_2": Metric(partial(_nsd, percent=2.0), True, "NSD at 2 %", ""),
        "hd95": Metric(_hd95, False, "HD95", "% of the longest side"),
        "thin_recall": Metric(_thin_recall, True, "Recall of thin parts", ""),
        "spurious_count": Metric(_spurious_count, False, "Spurious components", ""),
        "spurious_area": Metric(_spurious_area, False, "Spurious area", "% of the image"),
    }
)
