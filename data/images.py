"""Pixels from PNG, JPEG and other picture files, as a viewer shows them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from data.dicom import is_dicom, read_dicom_rgb
from data.files import File
from pp_jax.preprocess.colour import to_rgb_uint8

# Modes whose arrays mean what `to_rgb_uint8` takes them for. Palettes, CMYK and the like do not.
_PLAIN = ("1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L")


class ImageError(ValueError):
    """A file that is not one readable picture; the message names file and reason."""


@contextmanager
def opened_picture(file: File) -> Iterator[Image.Image]:
    """The picture; whatever Pillow raises until the block ends is one error that names the file.

    So the block decodes and does nothing else.

    Raises:
      ImageError: Not a picture, a truncated or damaged one, or one of too many pixels.
      OSError: The file cannot be opened or read.
    """
    with file.open("rb") as stream:
        try:
            with Image.open(stream) as picture:
                yield picture
        except Exception as error:  # Decoders of a damaged file raise whatever they like.
            # Pillow's have no number, and a damaged one may ask for a place that no file has.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise OSError(error.errno, error.strerror, str(file)) from error
            reason = " ".join(str(error).replace(repr(stream), "the file").split())
            raise ImageError(
                f"{file}: not a readable picture: {reason}; replace or remove it"
            ) from error


def read_image(path: File) -> UInt8[np.ndarray, "H W 3"]:
    """The picture as RGB in 0..255, turned upright as its EXIF orientation says.

    Other modes go through `to_rgb_uint8`: alpha is dropped, 16-bit grey spans 0..65535. Of 16-bit
    colour Pillow keeps the high byte.

    Raises:
      ImageError: Not a picture, a truncated or damaged one, several frames, or numbers without one
        meaning (32 bits, or floats outside [0, 1]).
      OSError: The file cannot be opened.
    """
    with opened_picture(path) as picture:
        # A phone's JPEG may carry a preview as a second frame; its first is the picture.
        frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
        upright = ImageOps.exif_transpose(picture)
        pixels = np.asarray(upright if upright.mode in _PLAIN else _converted(upright))
    if frames > 1:
        raise ImageError(f"{path}: {frames} frames; split the file into single images")
    try:
        return to_rgb_uint8(pixels)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error


def read_any(path: File) -> UInt8[np.ndarray, "H W 3"]:
    """A picture file or a DICOM as RGB in 0..255; which it is, the file's first bytes tell.

    A DICOM may lack its preamble, and its colours stay colours.

    Raises:
      ImageError: Neither, or a damaged one.
      DicomError: A DICOM that cannot be read.
      OSError: The file cannot be opened.
    """
    if path.suffix.lower() in (".dcm", ".dicom") or is_dicom(path):
        return read_dicom_rgb(path)
    return read_image(path)


def _converted(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F"):
        return picture
    # Pillow warns of a palette with transparent colours unless alpha comes along.
    return picture.convert("RGBA" if picture.mode in ("P", "PA") else "RGB")
