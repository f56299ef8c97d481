"""Independent answers to entropy and Otsu's threshold with their default parameters."""

import numpy as np
from skimage.filters import threshold_otsu
from skimage.filters.rank import entropy as rank_entropy
from skimage.morphology import disk


def entropy(grey: np.ndarray, radius: int = 5) -> np.ndarray:
    return rank_entropy(np.rint(grey).astype(np.uint8), disk(radius))


def otsu(grey: np.ndarray) -> np.ndarray:
    levels = np.rint(grey).astype(np.uint8)
    return np.where(levels > threshold_otsu(levels), 255.0, 0.0)
