"""Stored values of one DICOM frame, with sizes checked before anything is reserved for them."""

import importlib.util
from collections.abc import Mapping
from contextlib import nullcontext
from types import MappingProxyType

import numpy as np
from jaxtyping import Shaped, UInt8
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder

from data.dicom_header import Header, quiet

# Pixels of a compressed frame, whose size no length of the file confirms: 8192 x 8192, three times
# the largest radiograph.
MAX_PIXELS = 2**26
# openjpeg reserves 5 KB for each.
_MAX_TILES = 2**14


def decode(header: Header, *, frame: int) -> Shaped[np.ndarray, "H W *C"]:
    """The frame's stored values in their own type; `C` is 3 for colour, as RGB where it was YBR.

    Raises:
      ValueError: Sizes at odds with each other or with the data, or a coding that is not read.
      Exception: What a decoder raises on damaged data.
    """
    _check(header)
    if header.syntax in _NATIVE and header.allocated == 1:
        _check_native(header)
        return _bits(header, frame)
    if header.syntax in _NATIVE:
        pixels, options = header.pixels, {"validate": False, "index": frame}
        _check_native(header)
    elif header.syntax in _PLUGINS:
        pixels, options = _encapsulated(header, frame)
    else:
        raise ValueError("this transfer syntax is not read; convert the file, e.g. with gdcmconv")
    # Of other grey codestreams pydicom has nothing to say, and threads then decode side by side.
    talks = header.samples > 1 or header.syntax == uid.RLELossless
    with quiet() if talks else nullcontext():
        values, _ = get_decoder(header.syntax).as_array(pixels, **(_options(header) | options))
    plain = header.syntax in _NATIVE or header.syntax == uid.RLELossless
    return _without_unused_bits(values, header) if plain else values


def _check(header: Header) -> None:
    if not (header.rows > 0 and header.columns > 0 and header.frames > 0):
        raise ValueError(
            f"{header.rows} rows, {header.columns} columns, {header.frames} frames: no pixel"
        )
    if header.samples not in (1, 3):
        raise ValueError(f"{header.samples} samples per pixel, expected 1 or 3")
    if header.allocated not in (1, 8, 16, 32, 64):
        raise ValueError(f"{header.allocated} bits allocated, expected 1, 8, 16, 32 or 64")
    if not 1 <= header.stored <= header.allocated:
        raise ValueError(f"{header.stored} bits stored in {header.allocated}")
    if header.allocated == 1 and header.samples > 1:
        raise ValueError("colours of one bit")
    if header.keyword != "PixelData" and header.allocated not in (32, 64):
        raise ValueError(f"{header.keyword} of {header.allocated} bits")


def _check_native(header: Header) -> None:
    samples = header.rows * header.columns * header.samples * header.frames
    if header.photometric == "YBR_FULL_422":  # Two pixels share their colour.
        samples = samples * 2 // 3
    expected = -(-samples * header.allocated // 8)
    if len(header.pixels) < expected:
        raise ValueError(
            f"{len(header.pixels)} bytes of pixel data, {expected} expected for {header.frames} x "
            f"{header.rows} x {header.columns} pixels"
        )


def _bits(header: Header, frame: int) -> UInt8[np.ndarray, "H W"]:
    """Single bits, whose frames may begin within a byte: there pydicom reads one byte too few."""
    count = header.rows * header.columns
    start = frame * count
    packed = np.frombuffer(header.pixels[start // 8 : (start + count + 7) // 8], np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[start % 8 :][:count]
    return bits.reshape(header.rows, header.columns)


def _encapsulated(header: Header, frame: int) -> tuple[bytes, dict]:
    """The frame alone, and the options that its codestream corrects."""
    if header.rows * header.columns > MAX_PIXELS:
        raise ValueError(
            f"{header.rows} x {header.columns} pixels, more than the {MAX_PIXELS} that are read"
        )
    code = get_frame(
        header.pixels, frame, number_of_frames=header.frames, extended_offsets=header.offsets
    )
    plugin, options = _PLUGINS[header.syntax], {}
    if header.syntax == uid.RLELossless:
        _check_rle(code, header)
    else:
        code, size, precision = _codestream(code, header.syntax)
        if size != (header.rows, header.columns, header.samples):
            raise ValueError(
                f"the codestream holds {size[0]} x {size[1]} x {size[2]}, the header says "
                f"{header.rows} x {header.columns} x {header.samples}"
            )
        allocated = 8 * 2 ** (precision > 8)
        options = {"bits_allocated": allocated, "bits_stored": min(header.stored, allocated)}
        if header.syntax == uid.JPEGExtended12Bit and precision == 8:
            plugin = "pillow"
    if header.syntax in _NEED_LIBJPEG and plugin == "pylibjpeg" and not _LIBJPEG:
        raise ValueError(
            "this coding needs pylibjpeg-libjpeg (GPL-3.0): pip install -c constraints.txt -e "
            "'.[dicom]'"
        )
    one = {"index": 0, "number_of_frames": 1, "decoding_plugin": plugin}
    return encapsulate([code]), options | one


def _options(header: Header) -> dict:
    return {
        "rows": header.rows,
        "columns": header.columns,
        "number_of_frames": header.frames,
        "samples_per_pixel": header.samples,
        "photometric_interpretation": header.photometric,
        "planar_configuration": header.planar,
        "bits_allocated": header.allocated,
        "bits_stored": header.stored,
        "pixel_representation": int(header.signed),
        "pixel_keyword": header.keyword,
        "pixel_vr": header.representation,
        "correct_unused_bits": header.syntax not in _NATIVE and header.syntax != uid.RLELossless,
    }


def _check_rle(code: bytes, header: Header) -> None:
    # A byte of a segment takes two at most, and a segment of one byte can claim a hundred.
    longest = 64 + 2 * header.rows * header.columns * header.samples * header.allocated // 8 + 64
    if len(code) > longest:
        raise ValueError(f"{len(code)} bytes of runs, {longest} at most for this size")


def _codestream(code: bytes, syntax: uid.UID) -> tuple[bytes, tuple[int, int, int], int]:
    """What the decoder is given; its height, width and components; its bits."""
    if syntax in uid.JPEG2000TransferSyntaxes:
        code = code[max(code.find(_J2K_START), 0) :]  # Some writers leave the JP2 boxes on.
        return code, *_j2k_size(code)
    # Without an end CharLS looks for one for seconds.
    if syntax in uid.JPEGLSTransferSyntaxes and code.rfind(_EOI) < code.rfind(_SOS):
        raise ValueError("the JPEG-LS data have no end")
    return code, *_jpeg_size(code)


def _jpeg_size(code: bytes) -> tuple[tuple[int, int, int], int]:
    """Height, width and components, and bits, from the frame header (ISO 10918-1 B.2.2)."""
    at = 2
    while code[:2] == b"\xff\xd8" and at + 10 <= len(code) and code[at] == 0xFF:
        marker = code[at + 1]
        if marker == 0xFF:  # Any number of them may fill up before a marker.
            at += 1
        elif marker in _FRAME_HEADERS:
            height = int.from_bytes(code[at + 5 : at + 7])
            width = int.from_bytes(code[at + 7 : at + 9])
            return (height, width, code[at + 9]), code[at + 4]
        else:
            at += 2 + int.from_bytes(code[at + 2 : at + 4])
    raise ValueError("no JPEG frame header")


def _j2k_size(code: bytes) -> tuple[tuple[int, int, int], int]:
    """Height, width and components, and bits, from the SIZ segment (ISO 15444-1 A.5.1)."""
    if not code.startswith(_J2K_START) or len(code) < 45:
        raise ValueError("no JPEG 2000 codestream")
    numbers = [int.from_bytes(code[at : at + 4]) for at in range(8, 40, 4)]
    right, bottom, left, top, tile_width, tile_height, _, _ = numbers
    components = int.from_bytes(code[40:42])
    area = max(right * bottom, 1)
    if not tile_width or not tile_height or area > tile_width * tile_height * _MAX_TILES:
        raise ValueError(f"JPEG 2000 tiles of {tile_height} x {tile_width} pixels")
    if any(code[at : at + 2] != b"\1\1" for at in range(43, 42 + 3 * components, 3)):
        raise ValueError("JPEG 2000 components of unequal size")
    return (bottom - top, right - left, components), (code[42] & 127) + 1


def _without_unused_bits(
    values: Shaped[np.ndarray, "H W *C"], header: Header
) -> Shaped[np.ndarray, "H W *C"]:
    """Bits above and below the stored ones removed: they may hold anything, overlays among it."""
    size = 8 * values.dtype.itemsize
    if header.stored == size or values.dtype.kind == "f" or header.allocated == 1:
        return values
    return values << (size - 1 - header.high) >> (size - header.stored)


_SOS, _EOI = b"\xff\xda", b"\xff\xd9"
_J2K_START = b"\xff\x4f\xff\x51"
# Without hierarchical ones, which no decoder here reads; 0xF7 is JPEG-LS.
_FRAME_HEADERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)
_LIBJPEG = importlib.util.find_spec("libjpeg") is not None
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_NEED_LIBJPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
# RLE by pydicom itself: pylibjpeg-rle panics on damaged data past every `except Exception`.
# One decoder for each coding, so that the same file gives the same pixels wherever it is read: two
# JPEG decoders differ by a grey level, and pydicom takes whichever is installed.
_PLUGINS: Mapping[uid.UID, str] = MappingProxyType(
    {
        uid.JPEGBaseline8Bit: "pillow",
        uid.JPEGExtended12Bit: "pylibjpeg",
        uid.JPEGLossless: "pylibjpeg",
        uid.JPEGLosslessSV1: "pylibjpeg",
        uid.JPEGLSLossless: "pyjpegls",
        uid.JPEGLSNearLossless: "pyjpegls",
        uid.JPEG2000Lossless: "pylibjpeg",
        uid.JPEG2000: "pylibjpeg",
        uid.HTJ2KLossless: "pylibjpeg",
        uid.HTJ2KLosslessRPCL: "pylibjpeg",
        uid.HTJ2K: "pylibjpeg",
        uid.RLELossless: "pydicom",
    }
)
