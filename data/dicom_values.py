"""From the stored values of a DICOM frame to what a viewer shows, 0..255."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num, Shaped, UInt8

from data.dicom_header import Header
from data.dicom_tables import Table

# Per cent of the pixels left out at either end where a file names no window.
TAIL = 0.5


class Levels(NamedTuple):
    """Levels of an image after the modality LUT, which of them count, and how often they occur."""

    values: Float64[np.ndarray, " N"]
    shown: Bool[np.ndarray, " N"]
    count: Callable[[], Int64[np.ndarray, " N"]]


def to_grey(
    stored: Shaped[np.ndarray, "H W"], header: Header, *, window: str
) -> UInt8[np.ndarray, "H W"]:
    """Black to white as on a screen: modality LUT, VOI, MONOCHROME1 inverted, padding black.

    `window` is a key of `WINDOWS`. Integers that span less than 2**16 go through one table of their
    levels, which is exact and takes no floats of the image's size.
    """
    with np.errstate(all="ignore"):  # Floats in a file may be anything.
        low, high = stored.min(), stored.max()
        if stored.dtype.kind == "f" or int(high) - int(low) >= 2**16:
            ones = np.ones(stored.size, np.int64)
            return _shown(stored.ravel(), lambda: ones, header, window).reshape(stored.shape)
        levels = np.arange(int(low), int(high) + 1)
        steps = stored.astype(np.int64) - int(low)
        grey = _shown(levels, lambda: np.bincount(steps.ravel()), header, window)
        return grey[steps]


def to_rgb(stored: Shaped[np.ndarray, "H W *C"], header: Header) -> UInt8[np.ndarray, "H W 3"]:
    """Colours: a palette's entries, or RGB whose stored bits span 0..255."""
    if header.palette is not None:
        # Entries of 16 bits that stay below 256 are 8-bit ones with a wrong descriptor.
        shift = 8 * any(table.entries.max() > 255 for table in header.palette)
        channels = [_looked_up(stored, table) >> shift for table in header.palette]
        return np.stack(channels, axis=-1).astype(np.uint8)
    if header.stored == 8:
        return stored.astype(np.uint8)
    fraction = stored / (2.0**header.stored - 1)
    return np.rint(255 * np.clip(fraction, 0, 1)).astype(np.uint8)


def _shown(
    levels: Num[np.ndarray, " N"],
    count: Callable[[], Int64[np.ndarray, " N"]],
    header: Header,
    window: str,
) -> UInt8[np.ndarray, " N"]:
    values = _modality(levels, header)
    shown = np.isfinite(values)
    if header.padding is not None:
        shown &= (levels < header.padding[0]) | (levels > header.padding[1])
    fraction = WINDOWS[window](Levels(values, shown, count), header)
    grey = np.rint(255 * np.clip(np.nan_to_num(fraction), 0, 1)).astype(np.uint8)
    if header.photometric == "MONOCHROME1":
        grey = 255 - grey
    return np.where(shown, grey, np.uint8(0))


def _modality(levels: Num[np.ndarray, " N"], header: Header) -> Float64[np.ndarray, " N"]:
    if header.modality is not None:
        return _looked_up(levels, header.modality).astype(np.float64)
    return levels.astype(np.float64) * header.slope + header.intercept


def _looked_up(values: Num[np.ndarray, "*n"], table: Table) -> Num[np.ndarray, "*n"]:
    places = np.nan_to_num(np.rint(values.astype(np.float64))) - table.first
    return table.entries[np.clip(places, 0, len(table.entries) - 1).astype(np.intp)]


def _as_the_header_says(levels: Levels, header: Header) -> Float64[np.ndarray, " N"]:
    if header.voi is not None:
        return _looked_up(levels.values, header.voi) / (2.0**header.voi.bits - 1)
    if header.window is not None:
        return _windowed(levels.values, *header.window)
    if header.stored <= 8:
        start = -(2 ** (header.stored - 1)) if header.signed else 0
        ends = _modality(np.arange(start, start + 2**header.stored), header)
        return _between(levels.values, ends.min(), ends.max())
    return _between_percentiles(levels, header)


def _between_percentiles(levels: Levels, header: Header) -> Float64[np.ndarray, " N"]:
    present = levels.shown & (levels.count() > 0)
    if not present.any():
        return np.zeros(len(levels.values))
    order = np.argsort(levels.values[present], kind="stable")
    values = levels.values[present][order]
    reached = np.cumsum(levels.count()[present][order])
    tail = reached[-1] * TAIL / 100
    low, high = values[np.searchsorted(reached, [tail, reached[-1] - tail])]
    if low == high:  # Hardly anything on a flat ground.
        low, high = values[0], values[-1]
    return _between(levels.values, low, high)


def _between_extremes(levels: Levels, header: Header) -> Float64[np.ndarray, " N"]:
    present = levels.values[levels.shown & (levels.count() > 0)]
    if not present.size:
        return np.zeros(len(levels.values))
    return _between(levels.values, present.min(), present.max())


def _between(values: Float64[np.ndarray, " N"], low: float, high: float) -> np.ndarray:
    return (values - low) / max(high - low, np.finfo(np.float64).tiny)


def _windowed(
    values: Float64[np.ndarray, " N"], centre: float, width: float, function: str
) -> Float64[np.ndarray, " N"]:
    """Share of the output range, PS3.3 C.11.2.1.2 and C.11.2.1.3; not clipped."""
    if function == "LINEAR":
        # Width 1 is a step between two integers; the guard keeps it one.
        return (values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    raise ValueError(f"unknown VOI LUT function {function!r}")


WINDOWS: Mapping[str, Callable[[Levels, Header], np.ndarray]] = MappingProxyType(
    {
        "header": _as_the_header_says,
        "percentile": _between_percentiles,
        "extremes": _between_extremes,
    }
)
