"""What `contrast.py` and `clahe.py` should answer with default parameters."""

import cv2
import numpy as np


def equalize(grey: np.ndarray) -> np.ndarray:
    return cv2.equalizeHist(np.rint(grey).astype(np.uint8)).reshape(grey.shape).astype(np.float64)


def clahe(grey: np.ndarray, *, clip: float = 2.0, tiles: int = 8) -> np.ndarray:
    levels = np.rint(grey).astype(np.uint8)
    result = cv2.createCLAHE(clip, (tiles, tiles)).apply(levels)
    return result.reshape(grey.shape).astype(np.float64)


def window(grey: np.ndarray, *, low: float = 1.0, high: float = 99.0) -> np.ndarray:
    """The percentiles are float32's, as of the image: near black a float64 one would differ."""
    dark, light = (np.float64(np.percentile(grey.astype(np.float32), q)) for q in (low, high))
    if dark == light:
        return np.where(grey < dark, 0, np.where(grey > light, 255, grey))
    return np.interp(grey, [dark, light], [0, 255])


def gamma(grey: np.ndarray, *, gamma: float = 0.5) -> np.ndarray:
    return 255 * (grey / 255) ** gamma
