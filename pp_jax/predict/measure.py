"""Measurements and boxes of masks, original frame, in pixels."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Num
from skimage.measure import label, regionprops


class Measurement(NamedTuple):
    """One object's row in a table. Its names are the columns; all lengths are in pixels."""

    label: int
    area: float
    perimeter: float  # Along the centres of the border pixels; of one pixel it is 0.
    eccentricity: float  # Of the ellipse with the same second moments: 0 a circle, 1 a line.
    x0: float  # Box at the edges of pixels: the width is x1 - x0.
    y0: float
    x1: float
    y1: float
    centroid_x: float  # A pixel index, 0 at the first pixel's centre.
    centroid_y: float
    intensity_mean: float
    intensity_sd: float  # Divided by the number of pixels, not by one less.
    intensity_skewness: float  # m3 / m2^1.5; NaN where all pixels are equal.


def label_components(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
    """Each connected component numbered from 1 in raster order; 0 is background.

    Pixels that touch by a corner are connected, as in the official SAM's clean-up.
    """
    return label(mask, connectivity=2)


def measure(labels: Int[np.ndarray, "H W"], intensity: Num[np.ndarray, "H W"]) -> list[Measurement]:
    """One row per object: the pixels that share a number above 0.

    With `label_components(mask)` an object is a connected component, with `mask.astype(int)` it is
    the whole mask. Values are those of `skimage.measure.regionprops`; skewness is
    `scipy.stats.skew` of the object's pixels.

    Args:
      labels: Original frame.
      intensity: Grey levels, or any other quantity, of the same pixels.

    Raises:
      ValueError: The two differ in shape.
    """
    if labels.shape != intensity.shape:
        raise ValueError(
            f"a mask of {labels.shape} on an image of {intensity.shape}: both need the same "
            "height and width"
        )
    return [_row(region) for region in regionprops(labels, intensity_image=intensity)]


def component_boxes(mask: Bool[np.ndarray, "H W"]) -> Float32[np.ndarray, "N 4"]:
    """The box of each connected component, numbered as `label_components` does.

    At the edges of pixels: of the pixel (3, 5) it is (3, 5, 4, 6). The official
    `batched_mask_to_box` gives the last pixel's index instead: 1 less on the right and below.
    """
    boxes = [_edges(region.bbox) for region in regionprops(label_components(mask))]
    return np.array(boxes, np.float32).reshape(-1, 4)


def mask_boxes(masks: Bool[np.ndarray, "N H W"]) -> Float32[np.ndarray, "N 4"]:
    """The box of each whole mask, at the edges of pixels; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        for region in regionprops(mask.astype(np.uint8)):
            box[:] = _edges(region.bbox)
    return boxes


def _edges(bbox: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    y0, x0, y1, x1 = bbox  # Half-open, as slices are.
    return x0, y0, x1, y1


def _row(region) -> Measurement:
    y, x = region.centroid
    values = region.image_intensity[region.image].astype(np.float64)
    centred = values - values.mean()
    variance = np.mean(centred**2)
    skewness = np.mean(centred**3) / variance**1.5 if variance > 0 else np.nan
    return Measurement(
        region.label,
        float(region.area),
        float(region.perimeter),
        float(region.eccentricity),
        *map(float, _edges(region.bbox)),
        float(x),
        float(y),
        float(values.mean()),
        float(np.sqrt(variance)),
        float(skewness),
    )
