"""Independent answers to the denoising filters with their default parameters."""

import cv2
import numpy as np


def median(grey: np.ndarray) -> np.ndarray:
    return cv2.medianBlur(grey.astype(np.float32), 3).astype(np.float64)


def bilateral(
    grey: np.ndarray, diameter: int = 5, sigma_grey: float = 25.0, sigma_space: float = 3.0
) -> np.ndarray:
    """In float64, because `cv2.bilateralFilter` takes the weights of floats from a table."""
    radius = diameter // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = np.hypot(x, y) <= radius
    space = np.exp(-(x**2 + y**2) / (2 * sigma_space**2)) * disk
    # Not NumPy's pad: OpenCV too repeats a single row.
    padded = cv2.copyMakeBorder(grey, *[radius] * 4, cv2.BORDER_REFLECT_101)
    patches = np.lib.stride_tricks.sliding_window_view(padded, (diameter, diameter))
    weights = space * np.exp(-((patches - grey[..., None, None]) ** 2) / (2 * sigma_grey**2))
    return (weights * patches).sum((2, 3)) / weights.sum((2, 3))
