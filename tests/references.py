"""One independent answer per row of our tables, in OpenCV and NumPy float64.

A new row in `FILTERS`, `BORDERS` or `FUSIONS` needs its row here: the tests run over all of them
and fail otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np
import torch


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


def same_thrice(image: np.ndarray, responses: Sequence[np.ndarray], weight: float) -> np.ndarray:
    return cv2.merge([responses[0]] * 3)


def blend(image: np.ndarray, responses: Sequence[np.ndarray], weight: float) -> np.ndarray:
    thrice = cv2.merge([responses[0].astype(np.float64)] * 3)
    return cv2.addWeighted(image.astype(np.float64), 1 - weight, thrice, weight, 0)


def channels(image: np.ndarray, responses: Sequence[np.ndarray], weight: float) -> np.ndarray:
    grey = cv2.cvtColor(np.round(image).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    shown = [grey.astype(np.float64), *responses] if len(responses) == 2 else responses
    return cv2.merge([channel.astype(np.float64) for channel in shown])


def add_edges(image: np.ndarray, responses: Sequence[np.ndarray], weight: float) -> np.ndarray:
    thrice = cv2.merge([responses[0].astype(np.float64)] * 3)
    return np.minimum(cv2.addWeighted(image.astype(np.float64), 1, thrice, weight, 0), 255)


def learned(image: np.ndarray, responses: Sequence[np.ndarray], weight: float) -> np.ndarray:
    """With the parameters `LEARNED`, by torch's convolution."""
    stacked = np.concatenate([image.transpose(2, 0, 1), np.stack(responses)])
    return (
        torch.nn.functional.conv2d(
            torch.tensor(stacked, dtype=torch.float64),
            torch.tensor(LEARNED["mixing"], dtype=torch.float64).T[..., None, None],
            255 * torch.tensor(LEARNED["shift"], dtype=torch.float64),
        )
        .permute(1, 2, 0)
        .numpy()
    )


def learned_parameters() -> Mapping[str, np.ndarray]:
    rng = np.random.default_rng(3)
    mixing, shift = rng.normal(size=(5, 3)), rng.normal(size=3)
    return {"mixing": mixing.astype(np.float32), "shift": shift.astype(np.float32)}


LEARNED = learned_parameters()

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

FUSIONS: Mapping[str, Callable[[np.ndarray, Sequence[np.ndarray], float], np.ndarray]] = (
    MappingProxyType(
        {
            "replace": same_thrice,
            "blend": blend,
            "channels": channels,
            "add-edges": add_edges,
            "learned": learned,
        }
    )
)
