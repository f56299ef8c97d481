"""What is known of an image beside its pixels."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_AGE = re.compile(r"(\d{1,3}(?:\.\d+)?)([DWMY]?)")
_PER_YEAR: Mapping[str, float] = MappingProxyType(
    {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0, "": 1.0}
)
_OLDEST = 120  # Years: RSNA's headers hold ages up to 155.


@dataclass(frozen=True)
class Facts:
    """Empty or None where nothing, or nothing sensible, is said."""

    view: str = ""  # As written: "AP", "PA", "L", ...
    sex: str = ""  # "F" or "M".
    age: float | None = None  # Years.
    spacing: tuple[float, float] | None = None  # Millimetres from row to row, column to column.
    bits: int | None = None  # Used of each stored value.
    inverted: bool = False  # Stored with white as 0 (MONOCHROME1).
    licence: str = ""


def parse_age(text: str) -> float | None:
    """Years from DICOM's age string (`034Y`, `011M`) or a plain number; None if it is neither.

    Nor is an age of more than 120 years one.
    """
    found = _AGE.fullmatch(text.strip().upper())
    if not found:
        return None
    years = float(found[1]) / _PER_YEAR[found[2]]
    return years if years <= _OLDEST else None


def parse_sex(text: str) -> str:
    """`F`, `M`, or nothing."""
    first = text.strip().upper()[:1]
    return first if first in ("F", "M") else ""


def parse_spacing(values: object) -> tuple[float, float] | None:
    """Two positive, finite distances, or None."""
    try:
        row, column = (float(value) for value in values)
    except (TypeError, ValueError):
        return None
    if not (math.isfinite(row) and math.isfinite(column) and min(row, column) > 0):
        return None
    return row, column
