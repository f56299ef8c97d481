"""Lookup tables of a DICOM header: modality, VOI and palette."""

from typing import NamedTuple

import numpy as np
import pydicom
from jaxtyping import UInt16
from pydicom.multival import MultiValue


class Table(NamedTuple):
    """A LUT of PS3.3 C.11: the value `first` and all below it give entry 0, high ones the last."""

    first: int
    bits: int
    entries: UInt16[np.ndarray, " N"]


class Palette(NamedTuple):
    """Three tables of one length: red, green, blue."""

    red: Table
    green: Table
    blue: Table


def as_pixel(value: int, *, signed: bool, bits: int) -> int:
    """The value as a pixel of so many bits means it, in whichever signedness it was written."""
    value %= 2**bits
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


def read_lut(sequence, *, signed: bool, little: bool) -> Table | None:
    """The table in a sequence's first item, or none; ValueError where it is not whole."""
    if not sequence:
        return None
    item = sequence[0]
    return _table(item.get("LUTDescriptor"), item.get("LUTData"), signed=signed, little=little)


def _table(descriptor, content, *, signed: bool, little: bool) -> Table:
    if not isinstance(descriptor, list | MultiValue) or len(descriptor) != 3 or content is None:
        raise ValueError("a lookup table without descriptor or data")
    count, first, bits = (int(value) for value in descriptor)
    count = count or 2**16
    if not 1 <= bits <= 16:
        raise ValueError(f"a lookup table of {bits} bits, expected 1 to 16")
    if isinstance(content, bytes):
        # Entries of 8 bits come packed or one in every word.
        width = 1 if len(content) in (count, count + 1) else 2
        order = "<" if little else ">"
        entries = np.frombuffer(content[: width * count], f"{order}u{width}")
    else:
        entries = np.array(content[:count] if isinstance(content, list | MultiValue) else [content])
    if len(entries) < count:
        raise ValueError(f"a lookup table of {len(entries)} entries, its descriptor says {count}")
    first = as_pixel(first, signed=signed, bits=16)
    return Table(first, bits, entries.astype(np.uint16))


def read_palette(data: pydicom.Dataset, *, signed: bool, little: bool) -> Palette | None:
    """The palette of PALETTE COLOR pixels, plain or segmented; ValueError where it is not whole."""
    if str(data.get("PhotometricInterpretation")) != "PALETTE COLOR":
        return None
    tables = []
    for colour in ("Red", "Green", "Blue"):
        descriptor = data.get(f"{colour}PaletteColorLookupTableDescriptor")
        content = data.get(f"{colour}PaletteColorLookupTableData")
        segments = data.get(f"Segmented{colour}PaletteColorLookupTableData")
        if content is None and segments is not None and isinstance(descriptor, list | MultiValue):
            content = _expanded(segments, int(descriptor[0]) or 2**16, descriptor[2], little=little)
        tables.append(_table(descriptor, content, signed=signed, little=little))
    return Palette(*tables)


def _expanded(segments: bytes, count: int, bits: int, *, little: bool) -> bytes:
    """The entries of a segmented palette (PS3.3 C.7.9.2), as the plain one would hold them."""
    order = "<" if little else ">"
    kind = np.dtype(np.uint8 if bits <= 8 else f"{order}u2")
    words = np.frombuffer(segments[: len(segments) // kind.itemsize * kind.itemsize], kind)
    parts, total, at = [], 0, 0
    while total < count and at + 2 < len(words):
        code, length = int(words[at]), int(words[at + 1])
        if code == 0:
            part, at = words[at + 2 : at + 2 + length], at + 2 + length
        elif code == 1 and parts and length:
            start, end = float(parts[-1][-1]), float(words[at + 2])
            part, at = np.rint(np.linspace(start, end, length + 1)[1:]), at + 3
        else:
            raise ValueError(f"a palette segment of kind {code}; only 0 and 1 can be read")
        if len(part):
            parts.append(part.astype(kind))
        total += len(part)
    return b"".join(part.tobytes() for part in parts)[: count * kind.itemsize]
