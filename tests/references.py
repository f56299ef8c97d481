"""One independent answer per row of our tables, in OpenCV and NumPy float64.

A new row in `FILTERS`, `BORDERS` or `FUSIONS` needs its row here: the tests run over all of them
and fail otherwise.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np


class FilterReference(NamedTuple):
    """What a filter should answer to grey levels, and how many float32 ulps it may be off."""

    function: Callable[[np.ndarray], np.ndarray]
    ulp: int


def sobel(grey: np.ndarray) -> np.ndarray:
    """Gradient magnitude; not `cv2.magnitude`, which is not correctly rounded."""
    return np.sqrt(
        cv2.Sobel(grey, cv2.CV_64F, 1, 0, borderType=cv2.BORDER_REFLECT_101) ** 2
        + cv2.Sobel(grey, cv2.CV_64F, 0, 1, borderType=cv2.BORDER_REFLECT_101) ** 2
    )


def blend(image: np.ndarray, response: np.ndarray, weight: float) -> np.ndarray:
    return cv2.addWeighted(
        image.astype(np.float64),
        1 - weight,
        cv2.merge([response.astype(np.float64)] * 3),
        weight,
        0,
    )


FILTERS: Mapping[str, FilterReference] = MappingProxyType(
    {
        "none": FilterReference(lambda grey: grey.astype(np.float64), ulp=0),
        "sobel": FilterReference(sobel, ulp=1),
    }
)

BORDERS: Mapping[str, int] = MappingProxyType(
    {
        "reflect101": cv2.BORDER_REFLECT_101,
        "reflect": cv2.BORDER_REFLECT,
        "replicate": cv2.BORDER_REPLICATE,
    }
)

FUSIONS: Mapping[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = MappingProxyType(
    {
        "replace": lambda image, response, weight: cv2.merge([response] * 3),
        "blend": blend,
    }
)
