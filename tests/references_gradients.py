"""The derivatives in OpenCV and NumPy float64."""

import cv2
import numpy as np

_BORDER = cv2.BORDER_REFLECT_101


def sobel(
    grey: np.ndarray, *, aperture: int = 3, part: str = "magnitude", norm: str = "l2"
) -> np.ndarray:
    dx, dy = (
        cv2.Sobel(grey, cv2.CV_64F, *order, ksize=aperture, borderType=_BORDER)
        for order in ((1, 0), (0, 1))
    )
    return _part(dx, dy, part=part, norm=norm)


def scharr(grey: np.ndarray, *, part: str = "magnitude", norm: str = "l2") -> np.ndarray:
    dx, dy = (
        cv2.Scharr(grey, cv2.CV_64F, *order, borderType=_BORDER) for order in ((1, 0), (0, 1))
    )
    return _part(dx, dy, part=part, norm=norm)


def prewitt(grey: np.ndarray, *, part: str = "magnitude", norm: str = "l2") -> np.ndarray:
    along_x = np.array([[-1, 0, 1]] * 3, np.float64)
    dx, dy = (
        cv2.filter2D(grey, cv2.CV_64F, kernel, borderType=_BORDER)
        for kernel in (along_x, along_x.T)
    )
    return _part(dx, dy, part=part, norm=norm)


def laplacian(grey: np.ndarray, *, aperture: int = 1) -> np.ndarray:
    return cv2.Laplacian(grey, cv2.CV_64F, ksize=aperture, borderType=_BORDER)


def _part(dx: np.ndarray, dy: np.ndarray, *, part: str, norm: str) -> np.ndarray:
    """Not `cv2.magnitude`, which is not correctly rounded."""
    magnitude = np.sqrt(dx**2 + dy**2) if norm == "l2" else np.abs(dx) + np.abs(dy)
    return {"magnitude": magnitude, "x": dx, "y": dy}[part]
