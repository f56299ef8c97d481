"""What a user marks on images, as questions to the model: one question per object.

Coordinates are in pixels of the original image. Everything that can be wrong without an image is
checked when a function here is called, the rest when its answer is asked about an image.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from pp_jax.predict import strokes
from pp_jax.predict.official import check_boxes, check_points

Row = tuple[str, Mapping[str, str]]  # Where it stands, for messages, and its cells by column.
_RSNA = ("x", "y", "width", "height")


class Question(NamedTuple):
    """One object to be found, original frame: by clicks, a box, a mask, any mix, or nothing."""

    prompt: str  # How it was marked, for tables.
    points: Float[np.ndarray, "P 2"] | None = None
    labels: Int[np.ndarray, " P"] | None = None
    box: Float[np.ndarray, " 4"] | None = None
    mask: Float32[np.ndarray, "h w"] | None = None  # Raw logits, low resolution, model frame.


# The questions about an image of (height, width), for a model of `side`.
Ask = Callable[[tuple[int, int], int], list[Question]]


def clicks(points: Sequence[float], labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """The clicks of one object and their labels (default: all foreground), or None without any.

    Raises:
      ValueError: An odd count, labels for another number of points, labels other than 0 and 1, or
        NaN.
    """
    if len(points) % 2:
        raise ValueError(f"--point {_plain(points)}: give pairs of X Y")
    count = len(points) // 2
    if labels and len(labels) != count:
        raise ValueError(
            f"--label {_plain(labels)}: {len(labels)} labels for {count} points; give one per "
            "--point, or none if all are on the object"
        )
    if not count:
        return None
    return check_points(np.reshape(points, (count, 2)), labels or [1] * count)


def boxes(numbers: Sequence[float]) -> Float[np.ndarray, "N 4"]:
    """The boxes of a flat list.

    Raises:
      ValueError: Not four numbers per box, NaN, swapped corners, or no area.
    """
    if len(numbers) % 4:
        raise ValueError(f"--box {_plain(numbers)}: give X0 Y0 X1 Y1 for each box")
    found = np.reshape(np.asarray(numbers, np.float64), (-1, 4))
    _check_corners(found)
    return found


def same_everywhere(
    boxes: Float[np.ndarray, "N 4"],
    points: tuple[np.ndarray, np.ndarray] | None,
    mask: np.ndarray | None,
) -> Ask:
    """The same marks on every image: one object per box, or one that all marks share.

    Args:
      boxes: As `boxes` gives them.
      points: As `clicks` gives them.
      mask: A binary mask, or raw logits in low resolution; see `mask_logits`.

    Raises:
      ValueError: Points or a mask beside several boxes.
    """
    if len(boxes) > 1 and (points is not None or mask is not None):
        raise ValueError(
            f"{len(boxes)} boxes with points or a mask prompt, which mark one object: give one box"
        )
    given = {"box": len(boxes) > 0, "point": points is not None, "mask": mask is not None}
    prompt = "+".join(name for name, there in given.items() if there) or "none"

    def ask(size: tuple[int, int], side: int) -> list[Question]:
        check_boxes(boxes, size=size)
        question = Question(prompt)
        if points is not None:
            check_clicks(points[0], size=size)
            question = question._replace(points=points[0], labels=points[1])
        if mask is not None:
            question = question._replace(mask=mask_logits(mask, size=size, side=side))
        return [question._replace(box=box) for box in boxes] or [question]

    return ask


def check_clicks(points: Float[np.ndarray, "P 2"], *, size: tuple[int, int]) -> None:
    """Nothing, or a ValueError that names the first point outside the image of (height, width)."""
    outside = ((points < 0) | (points >= size[::-1])).any(axis=1)
    if outside.any():
        x, y = points[outside.argmax()]
        raise ValueError(
            f"point ({x:g}, {y:g}) lies outside the image of {size[1]} x {size[0]} (width x "
            "height); give pixels of the original image"
        )


def mask_logits(
    mask: Bool[np.ndarray, "H W"] | Float[np.ndarray, "h w"], *, size: tuple[int, int], side: int
) -> Float32[np.ndarray, "h w"]:
    """A mask prompt for the model: a binary mask through `mask_to_prompt`, logits as they are.

    Raises:
      ValueError: A binary mask of another size than the image, or with nothing marked; logits of
        another side than `side / 4`, or not finite.
    """
    if mask.dtype == bool:
        if mask.shape != size:
            raise ValueError(
                f"mask prompt of {mask.shape[1]} x {mask.shape[0]} pixels for an image of "
                f"{size[1]} x {size[0]} (width x height): save it at the image's size"
            )
        if not mask.any():
            raise ValueError("mask prompt without a marked pixel: nothing is above 127")
        return strokes.mask_to_prompt(mask, side=side)
    logits = np.squeeze(mask)
    if logits.shape != (side // 4, side // 4) or logits.dtype.kind not in "fiu":
        raise ValueError(
            f"mask prompt of {mask.dtype} {mask.shape}: logits are ({side // 4}, {side // 4}), the "
            "low resolution of an earlier prediction; or give a binary mask as a PNG"
        )
    if not np.isfinite(logits).all():
        raise ValueError("mask prompt with NaN or infinite logits: must be finite")
    return logits.astype(np.float32)


def boxes_of_rows(rows: Iterable[Row]) -> Ask:
    """One object per row: `x0,y0,x1,y1`, or `x,y,width,height`; a row without numbers is none.

    Raises:
      ValueError: A cell that is no number, swapped corners, or no area; names the row.
    """
    found = []
    for where, row in rows:
        rsna = "x0" not in row
        columns = _RSNA if rsna else ("x0", "y0", "x1", "y1")
        if not any(row[name] for name in columns):
            continue
        x, y, right, below = _numbers(where, row, columns)
        box = np.array([x, y, x + right, y + below] if rsna else [x, y, right, below])
        _located(where, _check_corners, box[None])
        found.append((where, box))

    def ask(size: tuple[int, int], side: int) -> list[Question]:
        del side
        for where, box in found:
            _located(where, partial(check_boxes, size=size), box)
        return [Question("box", box=box) for _, box in found]

    return ask


def scribbles_of_rows(rows: Iterable[Row]) -> Ask:
    """One object per value of the column `object`: clicks along the drawn line's skeleton."""
    lines = _vertices(rows)

    def ask(size: tuple[int, int], side: int) -> list[Question]:
        del side
        points = [
            strokes.scribble_clicks(strokes.polyline_pixels(line, shape=size)) for line in lines
        ]
        return [Question("scribble", points=p, labels=np.ones(len(p), np.int32)) for p in points]

    return ask


def lassos_of_rows(rows: Iterable[Row]) -> Ask:
    """One object per value of the column `object`: clicks inside the polygon, and its mask."""
    polygons = _vertices(rows)

    def ask(size: tuple[int, int], side: int) -> list[Question]:
        lassos = [strokes.lasso_prompt(corners, shape=size, side=side) for corners in polygons]
        return [
            Question("lasso", points=points, labels=np.ones(len(points), np.int32), mask=mask)
            for points, mask in lassos
        ]

    return ask


def _vertices(rows: Iterable[Row]) -> list[Float[np.ndarray, "P 2"]]:
    by_object: dict[str, list[tuple[float, ...]]] = {}
    for where, row in rows:
        by_object.setdefault(row.get("object", ""), []).append(_numbers(where, row, ("x", "y")))
    return [np.array(points) for points in by_object.values()]


def _numbers(where: str, row: Mapping[str, str], columns: Sequence[str]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(row[name]) for name in columns)
    except ValueError:
        numbers = (math.nan,)
    if not np.isfinite(numbers).all():
        cells = ", ".join(f"{name} {row[name]!r}" for name in columns)
        raise ValueError(f"{where}: {cells}: must be finite numbers")
    return numbers


def _check_corners(boxes: Float[np.ndarray, "N 4"]) -> None:
    """Nothing, or the error of a box that is none on any image; a negative one waits for its own.

    The message of a box that leaves its image names the image's size.
    """
    check_boxes(boxes[~(boxes.min(axis=1) < 0)], size=(math.inf, math.inf))


def _located(where: str, check: Callable[[np.ndarray], object], box: np.ndarray) -> None:
    try:
        check(box)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _plain(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


class Sheet(NamedTuple):
    """A row of `SHEETS`: what a CSV of marks holds."""

    layouts: tuple[tuple[str, ...], ...]  # Sets of columns; the first of each names the image.
    ask: Callable[[Iterable[Row]], Ask]


SHEETS: Mapping[str, Sheet] = MappingProxyType(
    {
        "boxes": Sheet((("image", "x0", "y0", "x1", "y1"), ("patientId", *_RSNA)), boxes_of_rows),
        "scribble": Sheet((("image", "x", "y"),), scribbles_of_rows),
        "lasso": Sheet((("image", "x", "y"),), lassos_of_rows),
    }
)
