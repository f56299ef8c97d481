"""What a prediction leaves behind: masks, tables, COCO, overlays, a data set, saved embeddings.

OUT/masks/<name>_<k>.png     one per object, from 1: 8-bit grey, 0 and 255, the image's size
OUT/objects.csv              one row per object: scores, and measurements of its pixels
OUT/boxes.csv                one row per mask (component 0) and per connected component (from 1)
OUT/coco.json                COCO instances with compressed run lengths
OUT/overlays/<name>.png      the image with outlines and prompts
OUT/predict.json             the settings

Boxes are `(x0, y0, x1, y1)` at the edges of pixels, original frame.
"""

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from pp_jax.predict.marks import Question
from pp_jax.predict.masks import encode_rle, to_coco
from pp_jax.predict.measure import Measurement, component_boxes, mask_boxes, measure
from pp_jax.preprocess.colour import to_grey

SETTINGS = "predict.json"
# Okabe and Ito's palette: told apart with every common kind of colour vision, and from grey.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0))
_PROMPT, _BACKGROUND = (240, 228, 66), (0, 0, 0)
_BOX = ("image", "object", "component", "x0", "y0", "x1", "y1")
_MEASURED = tuple(name for name in Measurement._fields if name != "label")


class Found(NamedTuple):
    """One object of an image, original frame."""

    question: Question
    mask: Bool[np.ndarray, "H W"]
    predicted_iou: float
    stability: float


class Rows(NamedTuple):
    """One image's part of the tables."""

    name: str
    image: dict[str, Any]  # COCO's, without its id.
    annotations: list[dict[str, Any]]  # COCO's, without their ids.
    objects: list[dict[str, Any]]
    boxes: list[dict[str, Any]]


def write_image(
    out: Path, name: str, image: UInt8[np.ndarray, "H W 3"], found: Sequence[Found], *, file: str
) -> Rows:
    """The image's rows, after its masks and its overlay were written below `out`.

    Args:
      out: The folder of the whole prediction.
      name: Of the image.
      image: Its pixels.
      found: In the order of their numbers.
      file: The image's file, for the tables.
    """
    for number, one in enumerate(found, start=1):
        _save(out / "masks" / f"{name}_{number}.png", one.mask)
    _save(out / "overlays" / f"{name}.png", draw(image, found))
    grey = to_grey(image)
    height, width = grey.shape
    return Rows(
        name=name,
        image={"file_name": file, "width": width, "height": height},
        annotations=[_annotation(one) for one in found],
        objects=[
            {"image": file, "object": number} | _object_row(one, grey)
            for number, one in enumerate(found, start=1)
        ],
        boxes=[
            {"image": file, "object": number} | row
            for number, one in enumerate(found, start=1)
            for row in _box_rows(one.mask)
        ],
    )


def write_tables(out: Path, rows: Sequence[Rows], *, settings: Mapping[str, Any]) -> None:
    """Write `objects.csv`, `boxes.csv`, `coco.json`, and last the settings, which mark the folder.

    Args:
      out: The folder of the whole prediction.
      rows: Of every image.
      settings: What a reader needs to repeat it.
    """
    columns = ("image", "object", "prompt", "predicted_iou", "stability", *_MEASURED)
    _write_csv(out / "objects.csv", columns, [row for part in rows for row in part.objects])
    _write_csv(out / "boxes.csv", _BOX, [row for part in rows for row in part.boxes])
    images, annotations = [], []
    for part in rows:
        images.append({"id": len(images) + 1, **part.image})
        for annotation in part.annotations:
            ids = {"id": len(annotations) + 1, "image_id": len(images)}
            annotations.append(ids | annotation)
    coco = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    (out / "coco.json").write_text(json.dumps(coco, allow_nan=False) + "\n", encoding="utf-8")
    text = json.dumps(dict(settings), indent=1, default=str) + "\n"
    (out / SETTINGS).write_text(text, encoding="utf-8")


def write_example(
    out: Path, name: str, image: UInt8[np.ndarray, "H W 3"], found: Sequence[Found]
) -> None:
    """Write an image and the union of its masks as `data/folder.py` reads them."""
    _save(out / "images" / f"{name}.png", image)
    _save(out / "masks" / f"{name}.png", union(image, found))


def write_provenance(out: Path, rows: Sequence[Rows], *, weights: str) -> None:
    """Write `boxes.csv` and `provenance.csv`, where a reader may set `accepted` to `no`.

    An image on which nothing was found has a row as well, with object 0: it, too, is a claim.

    Args:
      out: The folder of the data set.
      rows: Of every image.
      weights: Hash of the weights that made the masks.
    """
    provenance, boxes = [], []
    for part in rows:
        name = {"image": f"{part.name}.png"}
        nothing = {"object": 0, "prompt": "", "predicted_iou": ""}
        facts = {"weights": weights, "accepted": "yes", "machine_made": "yes"}
        for row in part.objects or [nothing]:
            provenance.append(name | {key: row[key] for key in nothing} | facts)
        boxes += [row | name for row in part.boxes]
    _write_csv(out / "boxes.csv", _BOX, boxes)
    _write_csv(out / "provenance.csv", tuple(provenance[0]), provenance)


def union(image: UInt8[np.ndarray, "H W 3"], found: Sequence[Found]) -> Bool[np.ndarray, "H W"]:
    """All that was found."""
    return np.any([np.zeros(image.shape[:2], bool), *(one.mask for one in found)], axis=0)


def draw(image: UInt8[np.ndarray, "H W 3"], found: Sequence[Found]) -> UInt8[np.ndarray, "H W 3"]:
    """The image with each mask's outline, tinted inside, and what was marked.

    Boxes and clicks are yellow, clicks on the background black.
    """
    picture = image.copy()
    thick = max(1, round(max(image.shape) / 400))
    for number, one in enumerate(found):
        colour = np.array(_COLOURS[number % len(_COLOURS)])
        inner = ndimage.binary_erosion(one.mask, np.ones((3, 3)), iterations=thick)
        picture[inner] = (3 * picture[inner].astype(int) + colour) // 4
        picture[one.mask & ~inner] = colour
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    for question in (one.question for one in found):
        if question.box is not None:
            x0, y0, x1, y1 = question.box
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_PROMPT, width=thick)
        if question.points is not None:
            for (x, y), label in zip(question.points, question.labels, strict=True):
                pen.circle((x, y), 3 * thick, fill=_PROMPT if label else _BACKGROUND)
    return np.asarray(canvas)


# Saved embeddings.


def embedding_file(
    folder: Path, image: UInt8[np.ndarray, "H W 3"], *, facts: Mapping[str, Any]
) -> Path:
    """Where the embedding of these pixels lies: under a hash of them and of all that made it.

    Args:
      folder: Of saved embeddings.
      image: The decoded pixels, so that a new way to read a file gives a new name.
      facts: The weights' hash, the filter and the like.
    """
    told = json.dumps([image.shape, dict(facts)], sort_keys=True)
    return folder / f"{hashlib.sha256(told.encode() + image.tobytes()).hexdigest()}.npz"


def read_embedding(path: Path, *, shape: tuple[int, ...]) -> Float32[np.ndarray, "1 h w D"] | None:
    """The embedding in a file that `write_embedding` wrote under this name; None from any other."""
    try:
        with np.load(path) as arrays:
            features, digest = arrays["features"], str(arrays["sha256"])
    except Exception:  # A damaged file raises whatever it likes; it is computed anew.
        return None
    right = features.shape == shape and features.dtype == np.float32
    return features if right and digest == _digest(path, features) else None


def write_embedding(path: Path, features: Float32[np.ndarray, "1 h w D"]) -> None:
    """Write the embedding, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, features=features, sha256=_digest(path, features))
    partial.rename(path)


def _digest(path: Path, features: np.ndarray) -> str:
    """Of the name as well, so that another image's embedding is not taken."""
    return hashlib.sha256(path.stem.encode() + features.tobytes()).hexdigest()


# Rows.


def _object_row(one: Found, grey: UInt8[np.ndarray, "H W"]) -> dict[str, Any]:
    """Scores and measurements; of an empty mask the area, and empty cells."""
    rows = measure(one.mask.astype(np.int32), grey)
    measured = rows[0]._asdict() if rows else {name: math.nan for name in _MEASURED} | {"area": 0.0}
    return {
        "prompt": one.question.prompt,
        "predicted_iou": one.predicted_iou,
        "stability": one.stability,
        **{name: "" if math.isnan(measured[name]) else measured[name] for name in _MEASURED},
    }


def _box_rows(mask: Bool[np.ndarray, "H W"]) -> list[dict[str, Any]]:
    if not mask.any():
        return []
    boxes = np.concatenate([mask_boxes(mask[None]), component_boxes(mask)]).astype(int).tolist()
    return [
        {"component": component} | dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
        for component, box in enumerate(boxes)
    ]


def _annotation(one: Found) -> dict[str, Any]:
    x0, y0, x1, y1 = mask_boxes(one.mask[None])[0].tolist()
    return {
        "category_id": 1,
        "segmentation": to_coco(encode_rle(one.mask)),
        "area": int(one.mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
        "score": one.predicted_iou,
    }


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels * np.uint8(255) if pixels.dtype == bool else pixels).save(path)
