"""Independent answers to `asymmetry`, in loops over lines and exact fractions."""

from fractions import Fraction

import numpy as np


def mid_line(levels: np.ndarray) -> int:
    """The sum of two columns' numbers that mirror each other; see `asymmetry.mid_line`."""
    height, width = levels.shape
    bands = np.zeros((16, width), int)
    for y, row in enumerate(levels.astype(int)):
        bands[y * 16 // height] += row
    line, least = None, None
    for total in sorted(range(2 * width), key=lambda total: (abs(total - width + 1), -total)):
        if abs(total - (width - 1)) > width // 5:
            continue
        columns = [x for x in range(width) if 0 <= total - x < width]
        mirrored = [total - x for x in columns]
        mean = Fraction(int(np.abs(bands[:, columns] - bands[:, mirrored]).sum()), len(columns))
        if least is None or mean < least:
            line, least = total, mean
    return line


def asymmetry(grey: np.ndarray) -> np.ndarray:
    total, width = mid_line(np.rint(grey)), grey.shape[1]
    response = np.zeros(grey.shape)
    for x in range(width):
        if 0 <= total - x < width:
            response[:, x] = np.abs(grey[:, x] - grey[:, total - x])
    return response
