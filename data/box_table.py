"""Reader of a folder of images with a CSV of boxes.

    DIR/images/<name>.png       or .jpg, .jpeg, .dcm; or in DIR itself
    DIR/boxes.csv               image,x0,y0,x1,y1 and, if known, label and patient; or another name
    DIR/patients.csv            image,patient                                   (optional)

Corners are edges of pixels in the image's own frame. A row without numbers says that nothing is to
be found in its image; an image without a row is left out, as nobody knows what it shows.
"""

import csv
import warnings
from pathlib import Path
from typing import NamedTuple

from data.annotated import (
    FINDING,
    NO_FINDING,
    check_limit,
    clip_box,
    find_images,
    first_patients,
    named,
    read_image_header,
    read_patients,
    shown,
)
from data.boxes import Box
from data.records import Record
from data.tables import read_rows

CORNERS = ("x0", "y0", "x1", "y1")
COLUMNS = ("image", *CORNERS)
IMAGES, PATIENTS = "images", "patients.csv"


class _Row(NamedTuple):
    line: int
    box: Box | None
    label: str
    patient: str


def find_box_table(folder: Path) -> Path | None:
    """The CSV in the folder that has the columns of boxes.

    Raises:
      ValueError: Several have.
    """
    tables = [path for path in sorted(folder.glob("*.csv")) if _has_columns(path)]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise ValueError(f"{folder}: several CSVs of boxes ({names}); keep one")
    return tables[0] if tables else None


def read_box_table(folder: Path, *, limit: int | None = None, label: str = "") -> list[Record]:
    """One record per image that the CSV names, in the order of the names.

    Boxes half outside are clipped and double rows dropped; the record's notes say so.

    Args:
      folder: Holds the files named in this module's docstring.
      limit: Number of patients: the first ones, with all their images.
      label: Of the boxes to keep; default: all.

    Raises:
      FileNotFoundError: An image that the CSV names is not there, or none is.
      ValueError: A number that is none, an empty box or one outside of its image, two patients for
        an image, an unknown label.
    """
    check_limit(limit)
    path = find_box_table(folder)
    if path is None:
        raise FileNotFoundError(f"{folder}: no CSV with the columns {','.join(COLUMNS)}")
    images = find_images([folder / IMAGES if (folder / IMAGES).is_dir() else folder])
    rows = _parse(path, images)
    labels = sorted({row.label for own in rows.values() for row in own if row.label})
    if label and label not in labels:
        raise ValueError(f"{path}: no label {label!r}; choose from {', '.join(labels) or 'none'}")
    unknown = len(images) - len(rows)
    if unknown:
        warnings.warn(f"{path}: no row for {unknown} images, left out", stacklevel=3)
    patients = first_patients(_patients(path, rows), limit)
    return [
        _record(path, name, images[name], rows[name], label=label, patient=patient)
        for name, patient in patients.items()
    ]


def _has_columns(path: Path) -> bool:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
    except (csv.Error, UnicodeDecodeError):
        return False
    return set(COLUMNS) <= {cell.strip() for cell in header}


def _parse(path: Path, images: dict[str, Path]) -> dict[str, list[_Row]]:
    """The rows of each image, in the order of `images`."""
    rows: dict[str, list[_Row]] = {}
    missing: list[str] = []
    for line, row in read_rows(path, COLUMNS):
        name = named(row["image"], images)
        if name is None:
            missing.append(row["image"])
            continue
        cells = [row[corner] for corner in CORNERS]
        try:
            numbers = tuple(map(float, cells)) if any(cells) else None
        except ValueError as error:
            raise ValueError(f"{path}, line {line} ({row['image']}): {error}") from None
        one = _Row(line, numbers, row.get("label", ""), row.get("patient", ""))
        rows.setdefault(name, []).append(one)
    if missing:
        missing = list(dict.fromkeys(missing))
        raise FileNotFoundError(
            f"{path}: no image for {shown(missing)}; add the files, or remove the rows"
        )
    if not rows:
        raise ValueError(f"{path}: no rows below the header")
    return {name: rows[name] for name in images if name in rows}


def _patients(path: Path, rows: dict[str, list[_Row]]) -> dict[str, str]:
    """From the table's own column where it is filled, else from `patients.csv`."""
    told = {name: {row.patient for row in own} - {""} for name, own in rows.items()}
    for name, people in told.items():
        if len(people) > 1:
            raise ValueError(f"{path}: {name} has two patients, {' and '.join(sorted(people))}")
    if all(told.values()):
        return {name: next(iter(people)) for name, people in told.items()}
    if any(told.values()):
        lacking = [name for name, people in told.items() if not people]
        raise ValueError(f"{path}: no patient for {shown(lacking)}; fill the column or remove it")
    return read_patients(path.parent / PATIENTS, rows)


def _record(
    path: Path, name: str, image: Path, rows: list[_Row], *, label: str, patient: str
) -> Record:
    header = read_image_header(image)
    notes = list(header.notes)
    boxes: dict[tuple[Box, str], None] = {}
    for row in rows:
        if row.box is None or (label and row.label != label):
            continue
        box, clipped = clip_box(
            row.box, size=header.size, where=f"{path}, line {row.line} ({image.name})"
        )
        notes += clipped
        if (box, row.label) in boxes:
            notes.append("double row dropped")
        boxes[box, row.label] = None
    labels = sorted({said for _, said in boxes if said})
    return Record(
        id=name,
        patient=patient,
        image=image,
        boxes=tuple(dict.fromkeys(box for box, _ in boxes)),
        mask=None,
        target="box",
        label="|".join(labels) or (FINDING if boxes else NO_FINDING),
        facts=header.facts,
        notes=tuple(notes),
    )
