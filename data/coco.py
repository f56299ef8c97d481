"""Reader of a folder of images with annotations in one COCO JSON.

    DIR/<any>.json or DIR/annotations/<any>.json
    images beside the JSON, in DIR/images or in DIR, as `file_name` says
    DIR/patients.csv            image,patient                                   (optional)

An outline is a list of polygons, or run lengths (plain or packed). As with masks, an object is a
connected component of all outlines of an image. Where no annotation of the file has an outline,
the boxes are what is known; where some lack one, their images have boxes only.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data.annotated import (
    NO_FINDING,
    Header,
    bare_name,
    check_limit,
    clip_box,
    first_patients,
    joined,
    masked_record,
    read_image_header,
    read_patients,
)
from data.boxes import Box, tight_boxes
from data.composed import Composed
from data.records import Record
from data.regions import Outline, draw_outlines, is_coordinate, parse_outline

IMAGES, ANNOTATIONS, PATIENTS = "images", "annotations", "patients.csv"


class _Annotation(NamedTuple):
    where: str  # For messages.
    category: str
    box: Box | None
    outline: Outline | None


class _Picture(NamedTuple):
    path: Path
    size: tuple[int, int] | None  # Height and width, if the JSON says.
    annotations: list[_Annotation]


def find_coco(folder: Path) -> Path | None:
    """The JSON with images and annotations.

    Raises:
      ValueError: There are several.
    """
    files = [
        path
        for path in (*sorted(folder.glob("*.json")), *sorted(folder.glob(f"{ANNOTATIONS}/*.json")))
        if _has_annotations(path)
    ]
    if len(files) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in files)
        raise ValueError(f"{folder}: several COCO JSONs ({names}); keep one")
    return files[0] if files else None


def read_coco(folder: Path, *, limit: int | None = None, label: str = "") -> list[Record]:
    """One record per image that the JSON lists, in the order of the names.

    Args:
      folder: Holds the files named in this module's docstring.
      limit: Number of patients: the first ones, with all their images.
      label: The category to find; default: all.

    Raises:
      FileNotFoundError: No JSON, or an image that it lists is not there.
      ValueError: Not COCO's fields, a `file_name` that leaves the folder, an outline that is no
        region of its image, a box outside of it, an image of another size, an unknown category.
    """
    check_limit(limit)
    path = find_coco(folder)
    if path is None:
        raise FileNotFoundError(f"{folder}: no JSON with images and annotations")
    content = _load(path)
    categories = _categories(path, content)
    if label and label not in categories.values():
        choices = ", ".join(sorted(set(categories.values())))
        raise ValueError(f"{path}: no category {label!r}; choose from {choices}")
    pictures = _pictures(folder, path, content, categories)
    outlined = any(a.outline for picture in pictures.values() for a in picture.annotations)
    patients = first_patients(read_patients(folder / PATIENTS, sorted(pictures)), limit)
    return [
        _record(path, name, pictures[name], outlined=outlined, label=label, patient=patient)
        for name, patient in patients.items()
    ]


def _has_annotations(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return '"images"' in text and '"annotations"' in text


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON in UTF-8 ({error})") from error
    for field in ("images", "annotations", "categories"):
        rows = content.get(field) if isinstance(content, dict) else None
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise ValueError(f"{path}: {field} is not a list of objects, as COCO has it")
    return content


def _categories(path: Path, content: dict[str, list[dict[str, Any]]]) -> dict[int, str]:
    return {
        _field(row, "id", int, f"{path}: category {number}"): _field(
            row, "name", str, f"{path}: category {number}"
        )
        for number, row in enumerate(content["categories"])
    }


def _pictures(
    folder: Path,
    path: Path,
    content: dict[str, list[dict[str, Any]]],
    categories: dict[int, str],
) -> dict[str, _Picture]:
    """What is known of each image, by its file name without suffix."""
    pictures: dict[str, _Picture] = {}
    of_id: dict[int, str] = {}
    annotations = _annotations(path, content, categories)
    for number, row in enumerate(content["images"]):
        where = f"{path}: image {number}"
        key, file_name = _field(row, "id", int, where), _field(row, "file_name", str, where)
        file = _inside(folder, path, file_name)
        name = joined(bare_name(str(PurePosixPath(file_name))))
        if key in of_id or name in pictures:
            raise ValueError(f"{where} ({file_name}): its id or its name is that of another image")
        of_id[key] = name
        size = None
        if "height" in row or "width" in row:
            size = _field(row, "height", int, where), _field(row, "width", int, where)
        pictures[name] = _Picture(file, size, annotations.pop(key, []))
    if annotations:
        stray = next(iter(annotations.values()))[0].where
        raise ValueError(f"{stray}: of an image that is not listed")
    if not pictures:
        raise ValueError(f"{path}: lists no image")
    return pictures


def _annotations(
    path: Path, content: dict[str, list[dict[str, Any]]], categories: dict[int, str]
) -> dict[int, list[_Annotation]]:
    """By the image's id."""
    found: dict[int, list[_Annotation]] = defaultdict(list)
    for number, row in enumerate(content["annotations"]):
        where = f"{path}: annotation {row.get('id', number)}"
        category = _field(row, "category_id", int, where)
        if category not in categories:
            raise ValueError(f"{where}: category {category} is not among the categories")
        outline = parse_outline(row.get("segmentation"), where=where)
        box = _box(row.get("bbox"), where=where)
        if outline is None and box is None:
            raise ValueError(f"{where}: neither segmentation nor bbox")
        image = _field(row, "image_id", int, where)
        found[image].append(_Annotation(where, categories[category], box, outline))
    return dict(found)


def _box(value: Any, *, where: str) -> Box | None:
    if value is None or value == []:
        return None
    if not (isinstance(value, list) and len(value) == 4 and all(map(is_coordinate, value))):
        raise ValueError(f"{where}: bbox is {value!r}, not numbers [x, y, width, height]")
    x, y, width, height = map(float, value)
    return x, y, x + width, y + height


def _inside(folder: Path, path: Path, file_name: str) -> Path:
    """The image's file, which lies in the folder whatever `file_name` says."""
    name = PurePosixPath(file_name)
    if (
        not name.name
        or name.is_absolute()
        or ".." in name.parts
        or "\\" in file_name
        or ":" in file_name
    ):
        raise ValueError(f"{path}: file_name {file_name!r} may leave the folder; name files in it")
    for parent in (path.parent, folder / IMAGES, folder):
        if (parent / name).is_file():
            return parent / name
    raise FileNotFoundError(
        f"{folder}: no {file_name}, which {path.name} lists; put it in {IMAGES}, or remove its "
        "entry"
    )


def _field(row: dict[str, Any], name: str, kind: type, where: str) -> Any:
    value = row.get(name)
    if type(value) is not kind:
        raise ValueError(f"{where}: {name} is {value!r}, expected {kind.__name__}")
    return value


def _record(
    path: Path, name: str, picture: _Picture, *, outlined: bool, label: str, patient: str
) -> Record:
    header = read_image_header(picture.path)
    if picture.size not in (None, header.size):
        raise ValueError(
            f"{path}: {picture.path.name} is listed with {picture.size[1]} x {picture.size[0]} "
            f"pixels and has {header.size[1]} x {header.size[0]} (width x height)"
        )
    wanted = [a for a in picture.annotations if label in ("", a.category)]
    categories = "|".join(sorted({a.category for a in wanted})) or NO_FINDING
    if outlined and all(a.outline for a in wanted):
        outlines = tuple(a.outline for a in wanted)
        for annotation in wanted:  # Whatever is wrong is found here, with a name.
            draw_outlines(header.size, (annotation.outline,), where=annotation.where)
        source = f"{path}: {picture.path.name}"
        mask = Composed(source, f"{name}.png", draw_outlines, (header.size, outlines))
        return masked_record(
            name,
            mask.pixels(),
            image=picture.path,
            mask=mask,
            header=header,
            patient=patient,
            label=categories,
        )
    return _boxed(name, picture.path, wanted, header, label=categories, patient=patient)


def _boxed(
    name: str,
    image: Path,
    annotations: Sequence[_Annotation],
    header: Header,
    *,
    label: str,
    patient: str,
) -> Record:
    """A record of boxes; an annotation without one gives that of its outline."""
    notes = [*header.notes]
    boxes: list[Box] = []
    for annotation in annotations:
        box = annotation.box or _box_around(annotation, size=header.size)
        box, clipped = clip_box(box, size=header.size, where=annotation.where)
        boxes.append(box)
        notes += clipped
        notes += ["outline unused"] if annotation.outline else []
    return Record(
        id=name,
        patient=patient,
        image=image,
        boxes=tuple(dict.fromkeys(boxes)),
        mask=None,
        target="box",
        label=label,
        facts=header.facts,
        notes=tuple(notes),
    )


def _box_around(annotation: _Annotation, *, size: tuple[int, int]) -> Box:
    """The tight box of the outline's pixels."""
    drawn = draw_outlines(size, (annotation.outline,), where=annotation.where)
    if not drawn.any():
        raise ValueError(f"{annotation.where}: the outline holds no pixel; correct or remove it")
    return tuple(tight_boxes(drawn[None])[0].tolist())
