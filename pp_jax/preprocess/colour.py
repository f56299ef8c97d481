"""From any image a file may hold to the uint8 RGB that SAM was trained on."""

import numpy as np
from jaxtyping import Float64, UInt8


def to_rgb_uint8(image: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """The image as RGB in 0..255, whatever its channels and its number type.

    Channels, last: `H W` and `H W 1` are grey and fill all three; `H W 2` is grey with alpha, `H W
    4` is RGB with alpha. Alpha is dropped and not composited, as Pillow's `convert("RGB")` does: no
    background is known, and in most medical files alpha is a constant that an export has added.

    Values:
      - uint8 stay as they are;
      - bool become 0 and 255;
      - uint16 are the full range 0..65535: `round(x / 257)`, the exact inverse of `x * 257`. The
        image's own minimum and maximum have no influence; a 12-bit camera's file therefore looks
        dark, and a DICOM file belongs in the DICOM reader, which knows its window;
      - floats are fractions in [0, 1]: `round(255 * x)`, halves to even.

    Raises:
      ValueError: Another shape or number type, no pixel, a float outside [0, 1], or NaN. Nothing is
        guessed: floats in 0..255 and integers of 32 bits have no one meaning.
    """
    if image.ndim not in (2, 3) or (image.ndim == 3 and not 1 <= image.shape[2] <= 4):
        raise ValueError(
            f"an image of shape {image.shape} is none: give (H, W) or (H, W, C) with 1 to 4 "
            "channels, channels last"
        )
    if image.size == 0:
        raise ValueError(f"an image of shape {image.shape} has no pixel")
    channels = image.shape[2] if image.ndim == 3 else 1
    colours = image.reshape(*image.shape[:2], channels)[..., : 3 if channels > 2 else 1]
    levels = _to_uint8(colours)
    return np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else np.ascontiguousarray(levels)


def to_grey(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    """Luma of an RGB image; equal channels keep their value.

    Equals `cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)`, and the fusions' `luma`, its twin on the
    device: .299, .587, .114 in 15-bit fixed point.
    """
    return ((image @ np.array([9798, 19235, 3735]) + (1 << 14)) >> 15).astype(np.uint8)


def to_fractions(image: UInt8[np.ndarray, "H W 3"]) -> Float64[np.ndarray, "H W"]:
    """Luma of an RGB image in [0, 1]."""
    return to_grey(image) / 255


def _to_uint8(values: np.ndarray) -> UInt8[np.ndarray, "H W C"]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"an image of {values.dtype} numbers: give uint8, uint16, bool, or floats in [0, 1]"
        )
    if np.isnan(values).any():
        raise ValueError("the image holds NaN: replace it before it becomes a picture")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"a float image in [{low:g}, {high:g}]: scale it to [0, 1], or give uint8 or uint16"
        )
    return np.rint(255 * values.astype(np.float64)).astype(np.uint8)
