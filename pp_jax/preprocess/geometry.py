"""Between the original frame and the model frame: pixels, points, boxes and masks, both ways.

The *original frame* is the image as the file holds it. The *model frame* is that image with its
longest side scaled to `S`, at the top left of an `S S` canvas; its valid part is `size`, or
`resized`: (height, width). Points are `(x, y)` in pixel indices: 0 is the first pixel's centre.
Boxes are `(x0, y0, x1, y1)` at the edges of pixels: a box around the whole image is (0, 0, width,
height). SAM scales both alike; the prompt encoder adds its half pixel later.

The host's half works on NumPy arrays, the device's half is pure JAX.
"""

import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8
from PIL import Image
from skimage import transform

CELL = 4  # Model pixels per side of a low-resolution mask's cell.


# The host: from the original frame to the model frame, and back.

Fit = Literal["longest", "square"]  # SAM keeps the proportions; MedSAM stretches to a square.


def resized_shape(
    height: int, width: int, *, longest: int, fit: Fit = "longest"
) -> tuple[int, int]:
    """`(height, width)` after the longer side was scaled to `longest`.

    Rounds as the official `ResizeLongestSide.get_preprocess_shape`: half a pixel up.

    Raises:
      ValueError: A side would become 0.

    Examples:
      >>> resized_shape(2000, 1600, longest=1024)
      (1024, 819)
      >>> resized_shape(2000, 1600, longest=1024, fit="square")
      (1024, 1024)
    """
    if fit == "square":
        return longest, longest
    scale = longest * 1.0 / max(height, width, 1)
    resized = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(resized) < 1:
        raise ValueError(
            f"an image of {height}x{width} (height x width) would become {resized[0]}x{resized[1]} "
            f"with its longest side at {longest}: crop it to a less extreme shape"
        )
    return resized


def resize_image(
    image: UInt8[np.ndarray, "H W 3"], *, longest: int, fit: Fit = "longest"
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its longer side scaled to `longest`.

    Bit-exact with the official `ResizeLongestSide(longest).apply_image`: Pillow's bilinear filter,
    widened when it shrinks. "square" is MedSAM's: scikit-image's cubic, truncated to integers.

    Raises:
      ValueError: A side would become 0.
    """
    height, width = resized_shape(*image.shape[:2], longest=longest, fit=fit)
    if fit == "square":
        resized = transform.resize(
            image, (height, width), order=3, preserve_range=True, anti_aliasing=True
        )
        return resized.astype(np.uint8)
    if image.shape[:2] == (height, width):
        return image  # As Pillow does, but for two copies.
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def pad_square(image: UInt8[np.ndarray, "h w 3"], *, side: int) -> UInt8[np.ndarray, "S S 3"]:
    """The image at the top left of a square canvas of zeros.

    Raises:
      ValueError: The image is larger than the canvas.
    """
    height, width = image.shape[:2]
    if max(height, width) > side:
        raise ValueError(
            f"an image of {height}x{width} does not fit in {side}x{side}: resize it first"
        )
    return np.pad(image, ((0, side - height), (0, side - width), (0, 0)))


def low_res_target(
    mask: Bool[np.ndarray, "H W"], *, side: int, fit: Fit = "longest"
) -> Float32[np.ndarray, "h w"]:
    """Part of each low-resolution cell's covered area that the mask fills, in [0, 1].

    Cells are 4x4 pixels of the padded model frame, so `h == w == side / 4`. A cell that the image
    does not reach is 0. Areas are computed from the original pixels, with no image in between.

    Raises:
      ValueError: `side` is no multiple of 4, or a side of the mask would become 0.
    """
    if side % CELL:
        raise ValueError(f"{side=} needs a multiple of {CELL}")
    height, width = mask.shape
    rows, columns = resized_shape(height, width, longest=side, fit=fit)
    edges_y = _cell_edges(height, rows, side=side)
    edges_x = _cell_edges(width, columns, side=side)
    target = np.zeros((side // CELL, side // CELL), np.float32)
    if not mask.any():
        return target
    # Nothing but the cells that the mask may reach.
    cells_y, cells_x = _reached(mask.any(1), edges_y), _reached(mask.any(0), edges_x)
    edges_y, edges_x = (
        edges[cells.start : cells.stop + 1]
        for edges, cells in ((edges_y, cells_y), (edges_x, cells_x))
    )
    top, left = int(edges_y[0]), int(edges_x[0])
    part = mask[top : math.ceil(edges_y[-1]), left : math.ceil(edges_x[-1])]
    area = _integrals(_integrals(part, edges_y - top).T, edges_x - left).T
    target[cells_y, cells_x] = area / np.outer(np.diff(edges_y), np.diff(edges_x))
    return target


def points_to_model(
    points: Float[np.ndarray, "*n 2"], *, original: tuple[int, int], resized: tuple[int, int]
) -> Float32[np.ndarray, "*n 2"]:
    """Points of the original frame in the model frame, each axis scaled by new / old.

    Equals the official `ResizeLongestSide.apply_coords`; both sizes are (height, width).
    """
    return _scaled(points, new=resized, old=original)


def points_to_original(
    points: Float[np.ndarray, "*n 2"], *, original: tuple[int, int], resized: tuple[int, int]
) -> Float32[np.ndarray, "*n 2"]:
    """Points of the model frame in the original frame: the inverse of `points_to_model`."""
    return _scaled(points, new=original, old=resized)


def boxes_to_model(
    boxes: Float[np.ndarray, "*n 4"], *, original: tuple[int, int], resized: tuple[int, int]
) -> Float32[np.ndarray, "*n 4"]:
    """Boxes of the original frame in the model frame, each axis scaled by new / old.

    Equals the official `ResizeLongestSide.apply_boxes`; both sizes are (height, width).

    Examples:
      >>> box = np.array([[100.0, 200.0, 300.0, 400.0]])
      >>> boxes_to_model(box, original=(2000, 1600), resized=(1000, 800)).tolist()
      [[50.0, 100.0, 150.0, 200.0]]
    """
    return _scaled(boxes, new=resized, old=original)


def boxes_to_original(
    boxes: Float[np.ndarray, "*n 4"], *, original: tuple[int, int], resized: tuple[int, int]
) -> Float32[np.ndarray, "*n 4"]:
    """Boxes of the model frame in the original frame: the inverse of `boxes_to_model`."""
    return _scaled(boxes, new=original, old=resized)


def _scaled(
    coordinates: Float[np.ndarray, "*n d"], *, new: tuple[int, int], old: tuple[int, int]
) -> Float32[np.ndarray, "*n d"]:
    scale_xy = np.array([new[1] / old[1], new[0] / old[0]])  # float64, as the official code.
    pairs = coordinates.reshape(*coordinates.shape[:-1], coordinates.shape[-1] // 2, 2) * scale_xy
    return pairs.reshape(coordinates.shape).astype(np.float32)


def _cell_edges(original: int, resized: int, *, side: int) -> Float[np.ndarray, " edges"]:
    """The cells' borders along one axis, in original pixels from the image's edge."""
    edges = np.arange(0, side + 1, CELL) * (original / resized)
    return np.minimum(edges, original)


def _reached(marked: Bool[np.ndarray, " n"], edges: Float[np.ndarray, " edges"]) -> slice:
    """The cells between the edges, from the first to the last with a marked pixel."""
    pixels = np.flatnonzero(marked)
    first = np.searchsorted(edges, pixels[0], side="right") - 1
    return slice(int(first), int(np.searchsorted(edges, pixels[-1] + 1, side="left")))


def _integrals(
    values: np.ndarray, edges: Float[np.ndarray, " edges"]
) -> Float[np.ndarray, "cells m"]:
    """Integral of piecewise constant rows between neighbouring edges, along the first axis."""
    total = np.cumsum(values, axis=0, dtype=np.int32 if values.dtype == bool else np.float64)
    total = np.concatenate([np.zeros_like(total[:1]), total])
    low = np.minimum(edges.astype(int), len(values) - 1)
    part = (edges - low)[:, None]
    return np.diff(total[low] * (1 - part) + total[low + 1] * part, axis=0)


# The device: masks from the model frame to the original frame.


class Taps(NamedTuple):
    """For each output sample along one axis: the two inputs it mixes, and the second's weight."""

    low: Int[Array, " out"]
    high: Int[Array, " out"]
    weight: Float32[Array, " out"]


def coverage(size: Int[Array, "2"], *, side: int) -> Float32[Array, "h w"]:
    """Part of each low-resolution cell that lies inside the valid `size`, in [0, 1]."""
    starts = jnp.arange(0, side, CELL)
    rows, columns = (jnp.clip(size[axis] - starts, 0, CELL) / CELL for axis in (0, 1))
    return rows[:, None] * columns[None, :]


def bilinear_taps(
    out_length: int, *, in_size: int | Int[Array, ""], out_size: int | Int[Array, ""]
) -> Taps:
    """Taps that resize `in_size` samples to `out_size`, on a canvas of `out_length`.

    The formula of torch's `interpolate(mode="bilinear", align_corners=False)`. Sizes may be traced,
    so that one compilation serves every image; taps beyond `out_size` repeat the last sample. Under
    `jit` with traced sizes the positions are rounded as torch rounds them (with a fused multiply
    and add); sizes fixed at compilation, or no `jit`, may move a position by 1 ulp.
    """
    scale = jnp.asarray(in_size, jnp.float32) / jnp.asarray(out_size, jnp.float32)
    position = scale * (jnp.arange(out_length, dtype=jnp.float32) + 0.5) - 0.5
    position = jnp.clip(position, 0, in_size - 1)
    low = position.astype(jnp.int32)
    return Taps(low, jnp.minimum(low + 1, in_size - 1), position - low)


def upscale(
    x: Float[Array, "*n h w"], *, taps_y: Taps, taps_x: Taps
) -> Float32[Array, "*n out_h out_w"]:
    """The maps resampled in float32 at the taps of each axis.

    Two gathers and a lerp per axis: `jax.image.resize` multiplies by a dense matrix instead, 8
    times slower on a CPU. Columns go first, as in torch, while there are still few rows.
    """
    x = x.astype(jnp.float32)
    x = x[..., taps_x.low] * (1 - taps_x.weight) + x[..., taps_x.high] * taps_x.weight
    weight = taps_y.weight[:, None]
    return x[..., taps_y.low, :] * (1 - weight) + x[..., taps_y.high, :] * weight


def postprocess_masks(
    logits: Float[Array, "M h w"],
    *,
    side: int,
    size: Int[Array, "2"],
    original: Int[Array, "2"],
    canvas: tuple[int, int],
) -> Float32[Array, "M H W"]:
    """Mask logits in the original frame, at the top left of `canvas`.

    As the official `Sam.postprocess_masks`: low resolution to `side`, crop to the valid `size`,
    then to `original`. Beyond `original` the canvas repeats the mask's last row and column.

    Args:
      logits: Low-resolution mask logits of the padded model frame.
      side: Side of the model frame.
      size: Valid (height, width) in the model frame, may be traced.
      original: (height, width) of the original image, may be traced; at most `canvas`.
      canvas: Static (height, width) of the answer.
    """
    height, width = logits.shape[-2:]
    frame = upscale(
        logits,
        taps_y=bilinear_taps(side, in_size=height, out_size=side),
        taps_x=bilinear_taps(side, in_size=width, out_size=side),
    )
    return upscale(
        frame,
        taps_y=bilinear_taps(canvas[0], in_size=size[0], out_size=original[0]),
        taps_x=bilinear_taps(canvas[1], in_size=size[1], out_size=original[1]),
    )
