"""What `pyramids.py` should answer with default parameters, by OpenCV's pyramids in float64."""

import cv2
import numpy as np


def down(grey: np.ndarray) -> np.ndarray:
    height, width = grey.shape
    return cv2.pyrDown(grey).reshape((height + 1) // 2, (width + 1) // 2)


def up(grey: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.pyrUp(grey, dstsize=shape[::-1]).reshape(shape)


def musica(
    grey: np.ndarray,
    *,
    gain: float = 1.0,
    levels: int = 6,
    power: float = 0.7,
    noise: float = 2.0,
) -> np.ndarray:
    details = []
    for _ in range(levels):
        half = down(grey)
        details.append(grey - up(half, grey.shape))
        grey = half
    for x in details[::-1]:
        strong = gain * 64 * np.sign(x) * (np.abs(x) / 64) ** power
        faint = gain * 64 * (x / noise) * (noise / 64) ** power
        grey = up(grey, x.shape) + np.where(np.abs(x) < noise, faint, strong)
    return np.clip(grey, 0, 255)
