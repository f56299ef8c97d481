"""Reader of NIH ChestX-ray14, as the NIH Clinical Center packs it.

    DIR/images/<Image Index>            or DIR/images_001/images/... to images_012
    DIR/Data_Entry_2017.csv             Image Index,Finding Labels,Patient ID,Patient Age,...
                                        (or Data_Entry_2017_v2020.csv)
    DIR/BBox_List_2017.csv              Image Index,Finding Label,Bbox [x,y,w,h]

Of 112,120 images 880 have boxes. Where a finding has none, nobody says where it lies: such images
are left out. The CSV's pixel spacing belongs to the picture before it was made 1024 x 1024, so no
millimetres follow from it.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from data.annotated import check_limit, clip_box, first_patients, read_image_header, shown
from data.boxes import Box
from data.facts import Facts, parse_age, parse_sex
from data.records import Record
from data.tables import read_rows

OBTAIN = (
    "get the images, Data_Entry_2017.csv and BBox_List_2017.csv from "
    "https://nihcc.app.box.com/v/ChestXray-NIHCC and unpack them there"
)
ENTRIES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
BOXES, IMAGES = "BBox_List_2017.csv", "images"
NO_FINDING = "No Finding"
_CORNER = ("Bbox [x", "y", "w", "h]")  # The header's brackets hold commas.


class _Boxed(NamedTuple):
    where: str  # For messages.
    finding: str
    box: Box


def read_nih(folder: Path, *, limit: int | None = None, label: str = "") -> list[Record]:
    """One record per image of which it is known where its findings lie, in the CSV's order.

    Those are the images without a finding and those whose finding has a box. Images that are not
    there are left out with a warning, as are those of a finding without a box. A record's notes
    name a finding without box beside one that has.

    Args:
      folder: Holds the files named in this module's docstring.
      limit: Number of patients: the first ones, with all their images.
      label: One finding; images that have others alone then count as without. Default: all.

    Raises:
      FileNotFoundError: A CSV or all images are missing.
      ValueError: A CSV that lacks a column, a number that is none, a box outside of its image or of
        an image without entry, an unknown finding, two entries for an image.
    """
    folder = Path(folder)
    check_limit(limit)
    entries_path = next((folder / name for name in ENTRIES if (folder / name).is_file()), None)
    if entries_path is None or not (folder / BOXES).is_file():
        missing = BOXES if entries_path else ENTRIES[0]
        raise FileNotFoundError(f"{folder / missing}: no such file; {OBTAIN}")
    entries = _entries(entries_path)
    boxes = _boxes(folder / BOXES, entries, label=label)
    images = _find_images(folder)
    if not images.keys() & entries.keys():
        raise FileNotFoundError(
            f"{folder / IMAGES}: none of the images of {entries_path}; {OBTAIN}"
        )
    findings = {
        name: {*row["Finding Labels"].split("|")} - {NO_FINDING} for name, row in entries.items()
    }
    known = set().union(*findings.values())
    if label and label not in known:
        raise ValueError(f"{entries_path}: no {label!r}; choose from {', '.join(sorted(known))}")
    wanted = {name: found & {label} if label else found for name, found in findings.items()}
    chosen = _locatable(entries_path, wanted, boxes, images)
    patients = first_patients({name: entries[name]["Patient ID"] for name in chosen}, limit)
    return [
        _record(images[name], entries[name], wanted[name], boxes.get(name, [])) for name in patients
    ]


def _entries(path: Path) -> dict[str, dict[str, str]]:
    entries: dict[str, dict[str, str]] = {}
    columns = ("Image Index", "Finding Labels", "Patient ID")
    for line, row in read_rows(path, columns):
        name = row["Image Index"]
        if name in entries:
            raise ValueError(f"{path}, line {line}: a second row for {name}; keep one")
        if not (name and row["Patient ID"] and row["Finding Labels"]):
            raise ValueError(f"{path}, line {line} ({name}): {', '.join(columns)} must be filled")
        entries[name] = row
    if not entries:
        raise ValueError(f"{path}: no rows below the header")
    return entries


def _boxes(
    path: Path, entries: dict[str, dict[str, str]], *, label: str
) -> dict[str, list[_Boxed]]:
    """The boxes of each image, of one finding if it is given."""
    boxes: dict[str, list[_Boxed]] = defaultdict(list)
    for line, row in read_rows(path, ("Image Index", "Finding Label", *_CORNER)):
        name, where = row["Image Index"], f"{path}, line {line} ({row['Image Index']})"
        if name not in entries:
            raise ValueError(f"{where}: no row in {' or '.join(ENTRIES)} for this image")
        try:
            x, y, width, height = (float(row[column]) for column in _CORNER)
        except ValueError as error:
            raise ValueError(f"{where}: {error} in the box") from None
        finding = _SPELLED.get(row["Finding Label"], row["Finding Label"])
        if label in ("", finding):
            boxes[name].append(_Boxed(where, finding, (x, y, x + width, y + height)))
    return dict(boxes)


def _find_images(folder: Path) -> dict[str, Path]:
    folders = [folder / IMAGES, *sorted(folder.glob(f"{IMAGES}_*/{IMAGES}"))]
    return {path.name: path for part in folders if part.is_dir() for path in part.glob("*.png")}


def _locatable(
    path: Path,
    wanted: dict[str, set[str]],
    boxes: dict[str, list[_Boxed]],
    images: dict[str, Path],
) -> list[str]:
    """Names of images that are there and of which it is known where something is, or nothing."""
    there = [name for name in wanted if name in images]
    absent = [name for name in wanted if name not in images]
    if absent:
        warnings.warn(f"{path}: no file for {shown(absent)} images, left out", stacklevel=4)
    unlocated = [name for name in there if wanted[name] and name not in boxes]
    if unlocated:
        warnings.warn(
            f"{path}: {shown(unlocated)} images have a finding and no box, left out", stacklevel=4
        )
    lost = set(unlocated)
    return [name for name in there if name not in lost]


def _record(image: Path, entry: dict[str, str], wanted: set[str], boxed: list[_Boxed]) -> Record:
    notes: list[str] = []
    clipped: list[Box] = []
    if boxed:
        header = read_image_header(image)
        for one in boxed:
            box, said = clip_box(one.box, size=header.size, where=one.where)
            clipped.append(box)
            notes += said
    without = sorted(wanted - {one.finding for one in boxed})
    if without:
        notes.append(f"finding without box: {', '.join(without)}")
    return Record(
        id=image.stem,
        patient=entry["Patient ID"],
        image=image,
        boxes=tuple(dict.fromkeys(clipped)),
        mask=None,
        target="box",
        label="|".join(sorted({one.finding for one in boxed})) or NO_FINDING,
        facts=Facts(
            view=entry.get("View Position", ""),
            sex=parse_sex(entry.get("Patient Gender", entry.get("Patient Sex", ""))),
            age=parse_age(entry.get("Patient Age", "")),
            licence="unrestricted, cite",
        ),
        notes=tuple(notes),
    )


# BBox_List's word: Data_Entry's.
_SPELLED: Mapping[str, str] = MappingProxyType({"Infiltrate": "Infiltration"})
