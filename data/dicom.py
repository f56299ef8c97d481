"""Pixels from DICOM files, as a viewer shows them.

Read are the native, deflated, JPEG, JPEG Lossless, JPEG-LS, JPEG 2000 and RLE transfer syntaxes,
with or without preamble. Overlays (60xx) and graphics are left out: the pixels below them stay as
they are, and overlays in unused bits of the pixels are removed with those bits.
"""

import warnings

import numpy as np
from jaxtyping import Shaped, UInt8
from pydicom.uid import JPEG2000TransferSyntaxes

from data.dicom_decode import decode
from data.dicom_header import Header, read_facts, read_header, starts_as_dicom
from data.dicom_values import WINDOWS, to_grey, to_rgb
from data.facts import Facts
from data.files import File

_NOISE = "Unable to decode as exceptions were raised by all available plugins: "
_GREY = ("MONOCHROME1", "MONOCHROME2")


class DicomError(ValueError):
    """A file that is not the DICOM image asked for; the message names file and reason."""


def is_dicom(path: File) -> bool:
    """Whether the file's first bytes are DICOM's, with or without preamble."""
    with path.open("rb") as file:
        return starts_as_dicom(file.read(132))


def dicom_size(path: File) -> tuple[int, int]:
    """Height and width from the header; errors as `dicom_facts`."""
    return dicom_facts(path)[0]


def dicom_facts(path: File) -> tuple[tuple[int, int], Facts]:
    """`((height, width), facts)` from the header, without touching the pixels.

    Raises:
      DicomError: Not a DICOM file, or one without an image.
      OSError: The file cannot be opened.
    """
    path.open("rb").close()
    try:
        return read_facts(path)
    except Exception as error:
        raise _named(path, error) from error


def dicom_values(path: File, *, frame: int | None = None) -> Shaped[np.ndarray, "H W *C"]:
    """The stored values of one frame in the file's own type; colours as RGB, `C` being 3.

    Neither rescaled nor windowed; palette colours are indices. Else as `read_dicom`.
    """
    return _read(path, frame)[1]


def read_dicom(
    path: File, *, frame: int | None = None, window: str = "header"
) -> UInt8[np.ndarray, "H W"]:
    """Grey levels 0..255, black to white as on a viewer's screen.

    Modality LUT or rescale, then the window, then MONOCHROME1 inverted; padding (PixelPaddingValue
    to PixelPaddingRangeLimit) is black and takes no part in percentiles and extremes. A file that
    names no transfer syntax, or a window without width, is read with one warning.

    Args:
      frame: Counted from 0; needed where there are several.
      window: `header`: the first VOI LUT or window of the file (PS3.3 C.11.2). Without either, up
        to 8 bits span 0..255, which leaves 8-bit data as they are, and others go by `percentile`:
        from the 0.5th to the 99.5th of the pixels, ends clipped. `extremes`: from the least to the
        greatest pixel.

    Raises:
      DicomError: Not a DICOM file, no pixel data, several frames without a choice, colour, or
        anything else that cannot be decoded.
      OSError: The file cannot be opened.
      ValueError: Another window.
    """
    _check_window(window)
    header, stored = _read(path, frame)
    if header.photometric not in _GREY:
        raise DicomError(
            f"{path}: {header.photometric or 'unnamed'} pixels, expected MONOCHROME1 or 2; "
            "read_dicom_rgb reads colours"
        )
    return _shown(path, header, stored, window)


def read_dicom_rgb(
    path: File, *, frame: int | None = None, window: str = "header"
) -> UInt8[np.ndarray, "H W 3"]:
    """RGB in 0..255: colours and palettes as such, grey levels as `read_dicom`, three times.

    Colours know no window; those of more than 8 bits are scaled by their stored bits, palettes of
    16 bits give their high byte. Arguments and errors as `read_dicom`, but for colour.
    """
    _check_window(window)
    header, stored = _read(path, frame)
    shown = _shown(path, header, stored, window)
    return shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, axis=2)


def _check_window(window: str) -> None:
    if window not in WINDOWS:
        raise ValueError(f"window {window!r}: choose one of {', '.join(WINDOWS)}")


def _read(path: File, frame: int | None) -> tuple[Header, Shaped[np.ndarray, "H W *C"]]:
    path.open("rb").close()  # What fails from here on is the file's fault.
    try:
        header = read_header(path, frame=frame)
        _check(header, frame)
    except Exception as error:
        raise _named(path, error) from error
    if header.notes:
        warnings.warn(f"{path}: {'; '.join(header.notes)}", stacklevel=3)
    try:
        return header, decode(header, frame=frame or 0)
    except Exception as error:
        raise _undecodable(path, header, error) from error


def _check(header: Header, frame: int | None) -> None:
    if header.frames > 1 and frame is None:
        raise ValueError(
            f"{header.frames} frames; choose one with frame=0 to {header.frames - 1}, or split the "
            "file into single images"
        )
    if frame is not None and not 0 <= frame < header.frames:
        raise ValueError(f"frame {frame} of {header.frames}, counted from 0")
    if (header.photometric in (*_GREY, "PALETTE COLOR")) != (header.samples == 1):
        raise ValueError(
            f"{header.photometric or 'unnamed'} pixels of {header.samples} samples cannot be read"
        )
    known = ("RGB", "YBR_FULL", "YBR_FULL_422")
    if header.syntax in JPEG2000TransferSyntaxes:
        known += ("YBR_ICT", "YBR_RCT")
    if header.samples > 1 and header.photometric not in known:
        raise ValueError(f"{header.photometric} pixels, expected {', '.join(known)} or greys")


def _shown(path: File, header: Header, stored: np.ndarray, window: str) -> np.ndarray:
    try:
        if header.photometric in _GREY:
            return to_grey(stored, header, window=window)
        return to_rgb(stored, header)
    except Exception as error:
        raise _undecodable(path, header, error) from error


def _undecodable(path: File, header: Header, error: Exception) -> DicomError:
    return _named(path, error, f"pixels ({header.syntax.name}) cannot be decoded: ")


def _named(path: File, error: Exception, what: str = "") -> DicomError:
    """Decoders, tables and parsers raise whatever they like on a damaged file."""
    if not isinstance(error, ValueError):
        what = what or "the DICOM header cannot be read: "
    reason = " ".join(str(error).split()).removeprefix(_NOISE)[:400] or type(error).__name__
    return DicomError(f"{path}: {what}{reason}")
