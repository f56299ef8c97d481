"""Agreement of two masks of one image, at the size the file holds.

Host arrays: every image has its own size, and one sum of a million booleans costs nothing.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

Mask = Bool[np.ndarray, "H W"]
Empty = Literal["neither", "one", "both"]


class Metric(NamedTuple):
    """A row of `METRICS`."""

    function: Callable[[Mask, Mask], float]
    higher_is_better: bool
    label: str  # Heading in tables.


def dice(prediction: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"]) -> float:
    """`2 |A and B| / (|A| + |B|)`, in [0, 1]; 1 when both masks are empty, 0 when one is."""
    _same_size(prediction, target)
    total = np.count_nonzero(prediction) + np.count_nonzero(target)
    return 2 * np.count_nonzero(prediction & target) / total if total else 1.0


def iou(prediction: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"]) -> float:
    """`|A and B| / |A or B|`, in [0, 1]; 1 when both masks are empty, 0 when one is."""
    _same_size(prediction, target)
    union = np.count_nonzero(prediction | target)
    return np.count_nonzero(prediction & target) / union if union else 1.0


def emptiness(prediction: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"]) -> Empty:
    """How many of the two masks are empty, so that a table can say where a score was a convention.

    With "both" every metric is 1 by definition, with "one" it is 0, whatever the shapes.
    """
    return ("neither", "one", "both")[int(not prediction.any()) + int(not target.any())]


def _same_size(prediction: Mask, target: Mask) -> None:
    """Without this check (1, W) against (H, W) would broadcast into a plausible number."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"a prediction of {prediction.shape} pixels cannot be compared with a target of "
            f"{target.shape}; bring the prediction to the original size first"
        )


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "dice": Metric(dice, True, "Dice"),
        "iou": Metric(iou, True, "IoU"),
    }
)
