"""Outlines of regions, as COCO writes them, to pixels: polygons and run lengths."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

Polygon = tuple[tuple[float, float], ...]  # Corners (x, y); pixel centres at +0.5.


class Runs(NamedTuple):
    """Lengths of runs down the columns, the first one unmarked."""

    size: tuple[int, int]  # Height and width.
    counts: tuple[int, ...]


_FARTHEST = 1e9  # Pixels; beyond it, differences lose their fractions.
Outline = tuple[Polygon, ...] | Runs


def parse_outline(value: Any, *, where: str) -> Outline | None:
    """A COCO `segmentation`: polygons, or run lengths, packed or not; None if it is empty.

    Raises:
      ValueError: Something else, or a number that is not finite; starts with `where`.
    """
    if value in (None, [], {}, ""):
        return None
    if isinstance(value, dict):
        return _parse_runs(value, where=where)
    if not isinstance(value, list):
        raise ValueError(f"{where}: segmentation is neither polygons nor run lengths")
    return tuple(_parse_polygon(one, where=where) for one in value)


def draw_outlines(
    size: tuple[int, int], outlines: Sequence[Outline], *, where: str = "outline"
) -> Bool[np.ndarray, "H W"]:
    """The union of the outlines.

    Polygons of one outline may lie within each other: all of them are filled. Their parts beyond
    the image are cut off.

    Raises:
      ValueError: Run lengths of an image of another size; starts with `where`.
    """
    drawn = np.zeros(size, bool)
    for outline in outlines:
        if isinstance(outline, Runs):
            if outline.size != size:
                raise ValueError(
                    f"{where}: run lengths of {outline.size[1]} x {outline.size[0]} pixels for an "
                    f"image of {size[1]} x {size[0]} (width x height)"
                )
            drawn |= fill_runs(outline)
        else:
            for polygon in outline:
                drawn |= fill_polygon(polygon, size=size)
    return drawn


def fill_polygon(polygon: Polygon, *, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Pixels whose centre (at +0.5) lies inside by the even-odd rule, the upper edges excluded.

    So a polygon that is a box fills what `data.boxes.fill_boxes` fills.
    """
    height, width = size
    corners = np.array(polygon, np.float64)
    crossings = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = sorted((y0, y1))
        rows = np.arange(*(int(np.clip(math.ceil(y - 0.5), 0, height)) for y in (low, high)))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            # A row's pixels from here on lie on the other side of this edge.
            crossings[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)] += 1
    return crossings[:, :width].cumsum(1) % 2 == 1


def fill_runs(runs: Runs) -> Bool[np.ndarray, "H W"]:
    """The pixels of every second run, the first excluded."""
    marked = np.arange(len(runs.counts)) % 2 == 1
    height, width = runs.size
    return np.repeat(marked, runs.counts).reshape(width, height).T


def unpack_counts(packed: str) -> list[int]:
    """The run lengths that pycocotools packs: six bits a character, differences from the fourth on.

    Raises:
      ValueError: Characters that it does not use, or a cut-off end.
    """
    counts: list[int] = []
    value = shift = 0
    for character in packed:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {character!r} in packed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # The last sign bit stands for all above it.
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("packed run lengths are cut off")
    return counts


def is_coordinate(value: Any) -> bool:
    """Whether it is a number of pixels: not NaN, not text, not beyond any image."""
    return type(value) in (int, float) and abs(value) <= _FARTHEST


def _parse_polygon(value: Any, *, where: str) -> Polygon:
    if not (isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0):
        raise ValueError(f"{where}: a polygon is a list of three or more corners x, y, x, y, ...")
    if not all(map(is_coordinate, value)):
        raise ValueError(f"{where}: a polygon's corner is not a finite number of pixels")
    return tuple(zip(map(float, value[::2]), map(float, value[1::2]), strict=True))


def _parse_runs(value: dict[str, Any], *, where: str) -> Runs:
    size, counts = value.get("size"), value.get("counts")
    if isinstance(counts, str):
        try:
            counts = unpack_counts(counts)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    lists = isinstance(size, list) and len(size) == 2 and isinstance(counts, list)
    if not lists or not all(type(number) is int and number >= 0 for number in [*size, *counts]):
        raise ValueError(f"{where}: run lengths need size [height, width] and counts from 0 on")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"{where}: run lengths add up to {sum(counts)} pixels, not to {size[1]} x {size[0]}"
        )
    return Runs((size[0], size[1]), tuple(counts))
