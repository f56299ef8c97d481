"""Millimetres, where an image's pixel spacing can be believed.

The spacing in a file's header often belongs to the film's matrix before it was made smaller, as all
over the RSNA challenge: its 1024 rows would then show 118 to 204 mm of a chest.
"""

import math

import numpy as np
from jaxtyping import Bool

from pp_jax.evaluate import surfaces

FILM = (250.0, 600.0)  # Millimetres that a chest film is high.


def plausible_spacing(
    spacing: tuple[float, float] | None, size: tuple[int, int]
) -> tuple[float, float] | None:
    """The spacing if the image is as high by it as a chest film, 250 to 600 mm; None if not.

    Args:
      spacing: Millimetres from row to row and from column to column, as DICOM's `PixelSpacing`;
        None: unknown.
      size: Height and width of the image, in pixels.
    """
    if spacing is None or not 0 < spacing[1] < math.inf:
        return None
    return spacing if FILM[0] <= size[0] * spacing[0] <= FILM[1] else None


def hd95_mm(
    prediction: Bool[np.ndarray, "H W"],
    target: Bool[np.ndarray, "H W"],
    *,
    spacing: tuple[float, float],
) -> float:
    """The 95th percentile of the Hausdorff distance, in millimetres.

    0 when both masks are empty, the image's diagonal when one is.

    Args:
      spacing: Millimetres from row to row and from column to column: see `plausible_spacing`.

    Raises:
      ValueError: Masks of two sizes.
    """
    between = surfaces.gaps(*surfaces.crop(prediction, target), spacing=spacing)
    height, width = (
        pixels * millimetres for pixels, millimetres in zip(target.shape, spacing, strict=True)
    )
    return min(surfaces.hausdorff95(between), math.hypot(height, width))
