"""Boxes `(x0, y0, x1, y1)`, original frame: edges of pixels, whose centres lie at +0.5."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32

Box = tuple[float, float, float, float]


def check_boxes(boxes: Sequence[Box], *, size: tuple[int, int], where: str) -> None:
    """Nothing, or a ValueError that names the first box that leaves the image."""
    height, width = size
    for box in boxes:
        if min(box) < 0 or box[2] > width or box[3] > height:
            raise ValueError(
                f"{where}: box (x0, y0, x1, y1) = {box} leaves the image of {width} x {height} "
                "pixels (width x height); correct the row in the CSV"
            )


def fill_boxes(boxes: Sequence[Box], *, size: tuple[int, int]) -> Bool[np.ndarray, "N H W"]:
    """Pixels whose centre (at +0.5) lies in each box, the upper edges excluded."""
    y, x = (np.arange(side) + 0.5 for side in size)
    corners = np.array(boxes, np.float64).reshape(-1, 4, 1)
    columns = (corners[:, 0] <= x) & (x < corners[:, 2])
    rows = (corners[:, 1] <= y) & (y < corners[:, 3])
    return rows[:, :, None] & columns[:, None, :]


def tight_boxes(objects: Bool[np.ndarray, "N H W"]) -> Float32[np.ndarray, "N 4"]:
    """Smallest box around each object, from the first pixel's edge to the last one's.

    Zeros for an object without pixels.
    """
    boxes = np.zeros((len(objects), 4), np.float32)
    for box, pixels in zip(boxes, objects, strict=True):
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
