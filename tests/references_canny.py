"""Independent answers for Canny's rows: OpenCV, scikit-image and SciPy."""

import cv2
import numpy as np
from scipy import ndimage
from skimage import feature


def canny(grey: np.ndarray) -> np.ndarray:
    return cv2.Canny(np.rint(grey).astype(np.uint8), 50, 150).astype(np.float64)


def canny_quantile(grey: np.ndarray) -> np.ndarray:
    if np.ptp(grey) == 0:  # scikit-image marks its rounding errors here.
        return np.zeros_like(grey)
    edges = feature.canny(grey, sigma=2, low_threshold=0.8, high_threshold=0.9, use_quantiles=True)
    return 255.0 * edges


def hysteresis(strong: np.ndarray, weak: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(weak, np.ones((3, 3)))
    return weak & np.isin(labels, labels[strong & weak])
