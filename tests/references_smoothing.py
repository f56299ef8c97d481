"""The blurs in OpenCV and SciPy: integers where OpenCV has them, else float64."""

import cv2
import numpy as np
from scipy import ndimage

_BORDER = cv2.BORDER_REFLECT_101


def gaussian(grey: np.ndarray, *, sigma: float = 1.0, aperture: int = 0) -> np.ndarray:
    levels = np.rint(grey).astype(np.uint8)
    return cv2.GaussianBlur(levels, (aperture, aperture), sigma, borderType=_BORDER)


def unsharp(grey: np.ndarray, *, amount: float = 1.0, sigma: float = 2.0) -> np.ndarray:
    return np.clip(grey + amount * (grey - _blur(grey, sigma)), 0, 255)


def dog(grey: np.ndarray, *, sigma: float = 1.0, ratio: float = 1.6) -> np.ndarray:
    return _blur(grey, sigma) - _blur(grey, ratio * sigma)


def log(grey: np.ndarray, *, sigma: float = 2.0) -> np.ndarray:
    return ndimage.gaussian_laplace(grey.astype(np.float64), sigma)


def _blur(grey: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(grey.astype(np.float64), (0, 0), sigma, borderType=_BORDER)
