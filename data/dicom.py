"""Grey levels from DICOM files, as a viewer shows them."""

from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Float, UInt8
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi


class DicomError(ValueError):
    """A file that is not a single greyscale DICOM image; the message names file and reason."""


def dicom_size(path: Path) -> tuple[int, int]:
    """Height and width from the header, without touching the pixels.

    Raises:
      DicomError: Not a DICOM file, or one without an image.
    """
    header = _read(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
    if "Rows" not in header or "Columns" not in header:
        raise DicomError(f"{path}: no pixel data in this DICOM file")
    return int(header.Rows), int(header.Columns)


def read_dicom(path: Path) -> UInt8[np.ndarray, "H W"]:
    """Grey levels 0..255, black to white as on a viewer's screen.

    Modality LUT, then the first VOI window or VOI LUT (PS3.3 C.11), then MONOCHROME1 inverted.
    Without either, 8-bit data stay as they are and other data span 0..255 from their own minimum
    to their maximum.

    Raises:
      DicomError: Not a DICOM file, no pixel data, several frames, colour, or not decodable.
    """
    data = _read(path)
    if "PixelData" not in data:
        raise DicomError(f"{path}: no pixel data in this DICOM file")
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise DicomError(f"{path}: {data.NumberOfFrames} frames; split the file into single images")
    photometric = str(data.get("PhotometricInterpretation", ""))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomError(f"{path}: {photometric or 'unnamed'} pixels; expected MONOCHROME1 or 2")
    try:
        stored = data.pixel_array
        grey = _grey(data, stored)
    except Exception as error:  # Decoders and LUTs of a damaged file raise whatever they like.
        syntax = getattr(data.file_meta.get("TransferSyntaxUID"), "name", "no transfer syntax")
        reason = " ".join(str(error).split())
        raise DicomError(f"{path}: pixels ({syntax}) cannot be decoded: {reason}") from error
    return 255 - grey if photometric == "MONOCHROME1" else grey


def _read(path: Path, **options) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(path, **options)
    except InvalidDicomError as error:
        raise DicomError(f"{path}: not a DICOM file") from error
    except OSError:
        raise
    except Exception as error:  # A damaged header ends in struct, key or value errors.
        raise DicomError(f"{path}: the DICOM header cannot be read: {error}") from error


def _grey(data: pydicom.Dataset, stored: np.ndarray) -> UInt8[np.ndarray, "H W"]:
    values = apply_modality_lut(stored, data)
    if data.get("VOILUTSequence"):
        bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
        fraction = apply_voi(values, data) / (2.0**bits - 1)
    elif data.get("WindowCenter") is not None and data.get("WindowWidth") is not None:
        fraction = _window(
            values.astype(np.float64),
            centre=_first(data.WindowCenter),
            width=_first(data.WindowWidth),
            function=str(data.get("VOILUTFunction") or "LINEAR"),
        )
    elif stored.dtype == np.uint8 and data.BitsStored == 8 and np.array_equal(values, stored):
        return stored
    else:
        low, high = float(values.min()), float(values.max())
        fraction = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.rint(255 * np.clip(fraction, 0, 1)).astype(np.uint8)


def _first(value) -> float:
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)


def _window(
    values: Float[np.ndarray, "H W"], *, centre: float, width: float, function: str
) -> Float[np.ndarray, "H W"]:
    """Share of the output range, PS3.3 C.11.2.1.2 and C.11.2.1.3; not clipped."""
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise ValueError(f"window width {width}")
    if function == "LINEAR":
        # Width 1 is a step between two integers; the guard keeps it one.
        return (values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    raise ValueError(f"unknown VOI LUT function {function!r}")
