"""One independent answer per row of our tables, in OpenCV and NumPy float64.

A new row in `FILTERS`, `BORDERS` or `FUSIONS` needs its row here: the tests run over all of them
and fail otherwise.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np
import torch

from tests import (
    references_asymmetry,
    references_canny,
    references_contrast,
    references_denoise,
    references_gradients,
    references_pyramids,
    references_smoothing,
    references_texture,
)


class FilterReference(NamedTuple):
    """What a filter should answer to grey levels, and how far float32 may be off.

    `ulp` are units in the last place, `atol` units of the response; at each pixel the larger of the
    two counts. Of `share` of the pixels nothing is asked.
    """

    function: Callable[[np.ndarray], np.ndarray]
    ulp: int = 0
    atol: float = 0.0
    share: float = 0.0


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


def regions(image: np.ndarray, responses: Sequence[np.ndarray], weight: float) -> np.ndarray:
    """The best of all cuts of the levels into six runs, in six of the ten colours."""
    levels = np.rint(responses[0])
    values, counts = np.unique(levels, return_counts=True)

    def spread(cut: tuple[int, ...]) -> float:
        edges = (0, *cut, len(values))
        runs = (slice(a, b) for a, b in itertools.pairwise(edges))
        means = ((values[r], counts[r], np.average(values[r], weights=counts[r])) for r in runs)
        return sum((count * (value - mean) ** 2).sum() for value, count, mean in means)

    cuts = itertools.combinations(range(1, len(values)), 5)
    labels = np.digitize(levels, values[list(min(cuts, key=spread))])
    colours = [(0, 0, 0), (0, 0, 255), (173, 216, 230), (0, 128, 0), (255, 192, 203), (255, 0, 0)]
    return np.array(colours, np.float64)[labels]


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

# A part in 100,000 of 255 grey levels.
_FINE = 255e-5

FILTERS: Mapping[str, FilterReference] = MappingProxyType(
    {
        "none": FilterReference(lambda grey: grey.astype(np.float64)),
        "sobel": FilterReference(references_gradients.sobel, ulp=1),
        "scharr": FilterReference(references_gradients.scharr, ulp=1),
        "prewitt": FilterReference(references_gradients.prewitt, ulp=1),
        "laplacian": FilterReference(references_gradients.laplacian),
        "log": FilterReference(references_smoothing.log, atol=_FINE / 5),
        "dog": FilterReference(references_smoothing.dog, atol=_FINE / 5),
        "canny": FilterReference(references_canny.canny),
        "canny_quantile": FilterReference(references_canny.canny_quantile, share=1e-4),
        "gaussian": FilterReference(references_smoothing.gaussian),
        "unsharp": FilterReference(references_smoothing.unsharp, atol=_FINE),
        "median": FilterReference(references_denoise.median),
        "bilateral": FilterReference(references_denoise.bilateral, atol=_FINE),
        "equalize": FilterReference(references_contrast.equalize),
        "clahe": FilterReference(references_contrast.clahe),
        "window": FilterReference(references_contrast.window, atol=_FINE),
        "gamma": FilterReference(references_contrast.gamma, atol=_FINE),
        "musica": FilterReference(references_pyramids.musica, atol=_FINE),
        "entropy": FilterReference(references_texture.entropy, atol=1e-4),
        "otsu": FilterReference(references_texture.otsu),
        "asymmetry": FilterReference(references_asymmetry.asymmetry),
        "blank": FilterReference(lambda grey: np.full(grey.shape, 128.0)),
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
            "regions": regions,
            "learned": learned,
        }
    )
)
