"""What a DICOM header says of its pixels, as plain numbers."""

import io
import logging
import math
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pydicom
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from data.dicom_tables import Palette, Table, as_pixel, read_lut, read_palette
from data.facts import Facts, parse_age, parse_sex, parse_spacing
from data.files import File

# What a deflated file may hold: 1 KB of it can claim 1 MB.
MAX_INFLATED = 2**28


class Header(NamedTuple):
    """What is needed to decode and show one frame."""

    syntax: UID
    keyword: str  # The element that holds the pixels.
    pixels: bytes
    representation: str  # Of that element: OB or OW tell how big-endian bytes are ordered.
    offsets: tuple[bytes, bytes] | None  # Extended offset table: places and lengths.
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    high: int
    signed: bool
    slope: float
    intercept: float
    modality: Table | None
    voi: Table | None
    window: tuple[float, float, str] | None  # Centre, width, function.
    padding: tuple[int, int] | None  # Both ends belong to it.
    palette: Palette | None
    notes: tuple[str, ...]  # What was assumed, for one warning.


def read_header(path: File, *, frame: int | None = None) -> Header:
    """All fields of `Header`; window and rescale are those of `frame` where frames have their own.

    Raises:
      ValueError: Not a DICOM image, or none of one meaning; says why.
      OSError: The file cannot be opened.
      Exception: What pydicom raises on a damaged file: struct, key, type and other errors.
    """
    with _open(path) as file, quiet() as said:
        data = _dataset(file)
        cut = any("End of file reached" in str(warning.message) for warning in said)
        if cut and not any(name in data for name in _PIXELS):
            raise ValueError("the file is cut off before the end of its pixel data")
        return _header(data, frame or 0)


def read_facts(path: File) -> tuple[tuple[int, int], Facts]:
    """`((rows, columns), facts)`, without touching the pixels; raises as `read_header`."""
    with _open(path) as file, quiet():
        data = _dataset(file, specific_tags=list(_FACTS), stop_before_pixels=True)
        if "Rows" not in data or "Columns" not in data:
            raise ValueError("no pixel data in this DICOM file")
        _check_lengths(data)
        rows, columns = _whole(data, "Rows"), _whole(data, "Columns")
        facts = Facts(
            view=str(data.get("ViewPosition") or "").strip(),
            sex=parse_sex(str(data.get("PatientSex") or "")),
            age=parse_age(str(data.get("PatientAge") or "")),
            spacing=parse_spacing(data.get("PixelSpacing") or data.get("ImagerPixelSpacing")),
            bits=_whole(data, "BitsStored", 0) or None,
            inverted=str(data.get("PhotometricInterpretation") or "") == "MONOCHROME1",
        )
    if rows <= 0 or columns <= 0:
        raise ValueError(f"{rows} rows, {columns} columns: no pixel")
    return (rows, columns), facts


def starts_as_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes are DICOM's: its mark, or without preamble a first element."""
    return start[128:132] == b"DICM" or start[:4] in _FIRST_ELEMENTS


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """What pydicom warns of meanwhile, every oddity and without the path, instead of its warnings.

    Python's filters belong to the process, so only one thread at a time may swap them.
    """
    with _LOCK, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said
    for one in said:  # Another thread's, which came meanwhile.
        if "pydicom" not in Path(one.filename).parts:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


class _Bounded(io.BufferedReader):
    """A file that never reserves more memory than is left of it, whatever a length field says."""

    def __init__(self, raw: io.FileIO | io.BytesIO, *, name: str):
        super().__init__(raw)
        self._name = name
        self._size = self.seek(0, io.SEEK_END)
        self.seek(0)

    @property
    def name(self) -> str:
        """For pydicom, which asks every reader for it; bytes in memory have none of their own."""
        return self._name

    def read(self, size: int | None = -1, /) -> bytes:
        everything = size is None or size < 0
        left = max(self._size - self.tell(), 0)
        content = super().read(left if everything else min(size, left))
        if everything:  # pydicom does this once: to inflate the whole data set.
            _check_inflated(content)
        return content


def _open(path: File) -> _Bounded:
    raw = io.FileIO(str(path)) if isinstance(path, Path) else io.BytesIO(path.read_bytes())
    return _Bounded(raw, name=str(path))


def _check_inflated(content: bytes) -> None:
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while content and not inflater.eof:
        total += len(inflater.decompress(content, 2**20))
        content = inflater.unconsumed_tail
        if total > MAX_INFLATED:
            raise ValueError(f"inflates to more than {MAX_INFLATED} bytes, the most that is read")


def _dataset(file: _Bounded, **options) -> pydicom.FileDataset:
    start = file.read(132)
    if not starts_as_dicom(start):
        raise ValueError("not a DICOM file")
    file.seek(0)
    options = {"specific_tags": list(_TAGS)} | options
    return pydicom.dcmread(file, force=True, **options)


def _header(data: pydicom.FileDataset, frame: int) -> Header:
    keyword = next((name for name in _PIXELS if name in data), None)
    if keyword is None or "Rows" not in data or "Columns" not in data:
        raise ValueError("no pixel data in this DICOM file")
    _check_lengths(data)
    syntax, notes = _syntax(data)
    floating = keyword != "PixelData"
    allocated = _whole(data, "BitsAllocated")
    stored = allocated if floating else _whole(data, "BitsStored", allocated)
    high = _whole(data, "HighBit", stored - 1)
    signed = not floating and _whole(data, "PixelRepresentation", 0) == 1
    places = _places(data, frame)
    little = syntax != ExplicitVRBigEndian
    slope, intercept = _numbers(places, "RescaleSlope", "RescaleIntercept") or (1.0, 0.0)
    modality = _found(places, "ModalityLUTSequence")
    ends = (intercept, intercept + slope * (2 ** min(stored, 64) - 1))
    # A VOI LUT takes what the modality LUT gives: a table no sign, a rescale that of its values.
    below_zero = not modality and (signed or (not floating and min(ends) < 0))
    window, note = _window(places)
    offsets = data.get("ExtendedOffsetTable"), data.get("ExtendedOffsetTableLengths")
    return Header(
        syntax=syntax,
        keyword=keyword,
        pixels=data[keyword].value or b"",
        representation=str(data[keyword].VR),
        offsets=offsets if all(offsets) else None,
        rows=_whole(data, "Rows"),
        columns=_whole(data, "Columns"),
        frames=_whole(data, "NumberOfFrames", 0) or 1,
        samples=_whole(data, "SamplesPerPixel", 1),
        photometric=str(data.get("PhotometricInterpretation") or ""),
        planar=_whole(data, "PlanarConfiguration", 0),
        allocated=allocated,
        stored=stored,
        high=high if stored <= high + 1 <= allocated else stored - 1,
        signed=signed,
        slope=slope,
        intercept=intercept,
        modality=read_lut(modality, signed=signed, little=little),
        voi=read_lut(_found(places, "VOILUTSequence"), signed=below_zero, little=little),
        window=window,
        padding=_padding(data, signed=signed, allocated=allocated),
        palette=read_palette(data, signed=signed, little=little),
        notes=(*notes, *note),
    )


def _check_lengths(data: pydicom.Dataset) -> None:
    """Refuses what would be slow or large to convert, such as a million window centres."""
    for tag in list(data.keys()):
        element = data.get_item(tag)
        name = pydicom.datadict.keyword_for_tag(tag)
        raw = getattr(element, "value", None)
        limit = _LONGEST.get(name, 2**12)
        if isinstance(raw, bytes) and len(raw) > limit:
            raise ValueError(f"{name} of {len(raw)} bytes, expected at most {limit:.0f}")


def _syntax(data: pydicom.FileDataset) -> tuple[UID, tuple[str, ...]]:
    known = data.file_meta.get("TransferSyntaxUID")
    if known:
        return UID(str(known)), ()
    implicit, little = data.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    syntax = ImplicitVRLittleEndian if implicit else explicit
    default = ", DICOM's default" if implicit else ", as its elements are written"
    return syntax, (f"names no transfer syntax; read as {syntax.name}{default}",)


def _places(data: pydicom.Dataset, frame: int) -> list[pydicom.Dataset]:
    """Where window and rescale may stand: the frame's own, those of all frames, the header's."""
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*per_frame[frame : frame + 1], *(data.get("SharedFunctionalGroupsSequence") or [])]
    macros = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
    inner = [group.get(name) for group in groups for name in macros]
    return [*(sequence[0] for sequence in inner if sequence), data]


def _found(places: list[pydicom.Dataset], name: str):
    return next((place.get(name) for place in places if place.get(name) is not None), None)


def _numbers(places: list[pydicom.Dataset], *names: str) -> tuple[float, ...] | None:
    """The first value of each name, from the first place that has all of them."""
    for place in places:
        values = [_first(place.get(name)) for name in names]
        if all(isinstance(value, int | float) for value in values):
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{' and '.join(names)} are {values}, expected finite numbers")
            return tuple(float(value) for value in values)
    return None


def _first(value):
    return value[0] if isinstance(value, list | MultiValue) and value else value


def _window(
    places: list[pydicom.Dataset],
) -> tuple[tuple[float, float, str] | None, tuple[str, ...]]:
    numbers = _numbers(places, "WindowCenter", "WindowWidth")
    if numbers is None:
        return None, ()
    centre, width = numbers
    function = str(_found(places, "VOILUTFunction") or "LINEAR")
    if width <= 0 or (function == "LINEAR" and width < 1):
        return None, (f"has a window of width {width:g}, which shows nothing; shown without it",)
    return (centre, width, function), ()


def _whole(data: pydicom.Dataset, name: str, default: int | None = None) -> int:
    value = data.get(name)
    if value is None or value == "":
        if default is None:
            raise ValueError(f"{name} is missing")
        return default
    if not isinstance(value, int | str):
        raise ValueError(f"{name} is {value!r:.40}, expected one whole number")
    return int(value)


def _padding(data: pydicom.Dataset, *, signed: bool, allocated: int) -> tuple[int, int] | None:
    if "PixelPaddingValue" not in data:
        return None
    one = _whole(data, "PixelPaddingValue", 0)
    other = _whole(data, "PixelPaddingRangeLimit", one)
    # The value may be written in the other signedness than the pixels'.
    low, high = sorted(as_pixel(value, signed=signed, bits=allocated) for value in (one, other))
    return low, high


_LOCK = threading.Lock()
# pydicom logs each warning again, and every decoder's error with its traceback.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

# What a data set without preamble begins with, little endian: (0002,0000), (0002,0001), or of group
# 0008 its length, length to end, character set, image type, instance date, time, class or UID.
_FIRST_ELEMENTS = tuple(
    bytes((group, 0, element, 0))
    for group, elements in ((2, (0, 1)), (8, (0, 1, 5, 8, 0x12, 0x13, 0x16, 0x18)))
    for element in elements
)

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_LUTS = tuple(
    f"{prefix}{colour}PaletteColorLookupTableData"
    for prefix in ("", "Segmented")
    for colour in ("Red", "Green", "Blue")
)
_UNLIMITED = (
    *_PIXELS,
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
)
# Bytes that an element may have; all others, 2**12.
_LONGEST: Mapping[str, float] = MappingProxyType(
    dict.fromkeys(_UNLIMITED, float("inf"))
    | dict.fromkeys(_LUTS, 2**18)
    | {"ModalityLUTSequence": 2**20, "VOILUTSequence": 2**22}
)
_FACTS = (
    "Rows",
    "Columns",
    "ViewPosition",
    "PatientSex",
    "PatientAge",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "BitsStored",
    "PhotometricInterpretation",
)
_TAGS = (
    *_LONGEST,
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
)
