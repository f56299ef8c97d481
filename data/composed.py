"""Masks that no file holds: drawn from what a data set has instead, each time they are read."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data.files import File
from data.images import opened_picture


@dataclass(frozen=True)
class Composed:
    """A mask as a `data.files.File`: its bytes are the PNG of what `draw(*args)` marks."""

    source: str  # What it is drawn from, for messages.
    name: str
    draw: Callable[..., Bool[np.ndarray, "H W"]]  # At a module's top, so that it can be pickled.
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return self.source

    @property
    def stem(self) -> str:
        """As of a path."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """As of a path."""
        return PurePosixPath(self.name).suffix

    def pixels(self) -> Bool[np.ndarray, "H W"]:
        """What is marked."""
        return self.draw(*self.args)

    def open(self, mode: str = "rb") -> BinaryIO:
        """The PNG as a stream."""
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """An 8-bit grey PNG, 255 where something is marked."""
        content = io.BytesIO()
        picture = Image.fromarray(self.pixels().astype(np.uint8) * 255)
        picture.save(content, format="PNG", compress_level=1)
        return content.getvalue()


def read_numbers(path: File) -> UInt8[np.ndarray, "H W"]:
    """The numbers of a label picture; colours count where all three channels are the same.

    A palette's numbers are its indices, of a black and white picture 0 and 1.

    Raises:
      ValueError: No picture, a damaged one, true colours, transparent parts, or above 8 bits.
      OSError: The file cannot be opened.
    """
    with opened_picture(path) as picture:
        mode, pixels = picture.mode, np.asarray(picture)
    if mode in ("LA", "RGBA") and (pixels[..., -1] < 255).any():
        raise ValueError(f"{path}: a mask with transparent parts; save it as an 8-bit grey PNG")
    if mode in ("LA", "RGB", "RGBA"):
        grey, colours = pixels[..., 0], pixels[..., : 1 if mode == "LA" else 3]
        if (colours != grey[..., None]).any():
            raise ValueError(f"{path}: a mask in colours; save it as an 8-bit grey PNG")
        return grey
    if mode not in ("1", "L", "P") or pixels.ndim != 2:
        raise ValueError(f"{path}: a mask is an 8-bit grey PNG (mode L), this one has mode {mode}")
    return pixels.astype(np.uint8)


def read_marked(path: File) -> Bool[np.ndarray, "H W"]:
    """What a mask marks that may be 0 and 1, or a colour picture: above 127, or the ones.

    Raises:
      ValueError: Errors of `read_numbers`; numbers of which none is 255 or 1, as nobody can tell
        what they mean.
    """
    numbers = read_numbers(path)
    largest = int(numbers.max(initial=0))
    if 1 < largest <= 127:
        raise ValueError(
            f"{path}: its largest value is {largest}, and what is marked lies above 127; save a "
            "mask of 0 and 255 (label numbers are read in nnU-Net's layout, with dataset.json)"
        )
    return numbers > 127 if largest > 1 else numbers == 1
