"""What the readers of annotated images share: headers, patients, objects, boxes."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from data.boxes import Box
from data.dicom import dicom_facts, is_dicom
from data.facts import Facts
from data.files import File
from data.images import opened_picture
from data.records import Record
from data.tables import read_rows

DICOM = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", *DICOM)
FINDING, NO_FINDING = "finding", "no finding"
_SMALLEST = 1e-3  # Of the image: a smaller component is no object to prompt for.
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height.
_ORIENTATION = 0x0112


class Header(NamedTuple):
    """What is known of an image without its pixels."""

    size: tuple[int, int]  # Height and width, as `read_any` will give them.
    facts: Facts
    notes: tuple[str, ...]


def read_image_header(path: File) -> Header:
    """Size, facts, and whether the name belies the content ("PNG named .jpg").

    Raises:
      ValueError: Not a readable picture or DICOM.
      OSError: The file cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix in DICOM or is_dicom(path):
        size, facts = dicom_facts(path)
        belied = suffix in _FORMATS
        return Header(size, facts, (f"DICOM named {suffix}",) if belied else ())
    with opened_picture(path) as picture:
        turned = picture.getexif().get(_ORIENTATION) in _TURNED
        size = picture.size if turned else picture.size[::-1]
        kind = "JPEG" if picture.format == "MPO" else picture.format
    belied = _FORMATS.get(suffix, kind) != kind
    return Header(size, Facts(), (f"{kind} named {suffix}",) if belied else ())


def find_images(given: Sequence[Path]) -> dict[str, Path]:
    """The files by name, and those in the folders: of a known suffix, or DICOM without one.

    A name has no known suffix; the numbers that many DICOM files are named by stay whole.

    Raises:
      FileNotFoundError: One is not there, or a folder holds no image.
      ValueError: None is given, or two have one name, so that they would share a mask's file.
    """
    if not given:
        raise ValueError(f"give images: files ({', '.join(SUFFIXES)}), or folders of them")
    images: dict[str, Path] = {}
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        inside = sorted(filter(_is_image, path.iterdir())) if path.is_dir() else [path]
        if not inside:
            raise FileNotFoundError(
                f"{path}: no image in this folder; expected {', '.join(SUFFIXES)}"
            )
        for file in inside:
            name = file.stem if file.suffix.lower() in SUFFIXES else file.name
            if images.setdefault(name, file) is not file:
                raise ValueError(
                    f"{images[name]} and {file}: two images named {name} would share one mask "
                    "file; rename one of them"
                )
    return images


def bare_name(file_name: str) -> str:
    """The name without its suffix, if that is an image's: "1.2.840.5" stays whole."""
    bare, dot, suffix = file_name.rpartition(".")
    return bare if f"{dot}{suffix}".lower() in (*_FORMATS, *DICOM) else file_name


def _is_image(path: Path) -> bool:
    known = path.suffix.lower() in SUFFIXES
    return path.is_file() and not path.name.startswith(".") and (known or _has_dicom_mark(path))


def _has_dicom_mark(path: Path) -> bool:
    """Whether a file of any name is DICOM for sure; what merely starts like one is not searched."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def component_boxes(findings: Bool[np.ndarray, "H W"]) -> tuple[Box, ...]:
    """The tight box of each component of at least 0.1 % of the image, in raster order.

    Two components with one box are one object: a box cannot tell them apart.
    """
    labels, _ = ndimage.label(findings, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    boxes = [
        (float(x.start), float(y.start), float(x.stop), float(y.stop))
        for (y, x), area in zip(ndimage.find_objects(labels), areas, strict=True)
        if area >= _SMALLEST * findings.size
    ]
    return tuple(dict.fromkeys(boxes))


def masked_record(
    name: str,
    findings: Bool[np.ndarray, "H W"],
    *,
    image: File,
    mask: File,
    header: Header,
    patient: str,
    label: str = "",
    target: Literal["mask", "machine-made"] = "mask",
    notes: Sequence[str] = (),
) -> Record:
    """A record whose objects are the components of `findings`, which is what `mask` marks.

    Raises:
      ValueError: The mask has another size than the image.
    """
    if findings.shape != header.size:
        raise ValueError(
            f"{mask}: mask of {findings.shape[1]} x {findings.shape[0]} pixels for an image of "
            f"{header.size[1]} x {header.size[0]} (width x height); save it at the image's size"
        )
    return Record(
        id=name,
        patient=patient,
        image=image,
        boxes=component_boxes(findings),
        mask=mask,
        target=target,
        label=label or (FINDING if findings.any() else NO_FINDING),
        facts=header.facts,
        notes=(*header.notes, *notes),
    )


def check_limit(limit: int | None) -> None:
    """Nothing, or a ValueError: a limit below one patient."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of patients, at least 1; got {limit}")


def first_patients(patients: Mapping[str, str], limit: int | None) -> dict[str, str]:
    """The images of the first `limit` patients, with their patient."""
    chosen = set(list(dict.fromkeys(patients.values()))[:limit])
    return {name: patient for name, patient in patients.items() if patient in chosen}


def read_patients(
    path: Path, names: Iterable[str], *, columns: tuple[str, str] = ("image", "patient")
) -> dict[str, str]:
    """The patient of each image; without the file each image is one, with a warning.

    Args:
      path: A CSV, which may be missing.
      names: Of images. A cell may name one with its folder and its suffix.
      columns: Which ones hold the image and who it shows.

    Raises:
      ValueError: The CSV lacks a column or an image, or gives one image two patients.
    """
    names = list(names)
    if not path.is_file():
        warnings.warn(
            f"{path}: no such file (columns {','.join(columns)}), so images of one person may be "
            "in two splits",
            stacklevel=4,
        )
        return {name: name for name in names}
    known = set(names)
    image, patient = columns
    told: dict[str, str] = {}
    for line, row in read_rows(path, columns):
        name, given = named(row[image], known), row[patient]
        if name is not None and told.setdefault(name, given) != given:
            raise ValueError(
                f"{path}, line {line} ({row[image]}): {patient} {given!r}, but {told[name]!r} in a "
                "row above; remove one"
            )
    missing = [name for name in names if not told.get(name)]
    if missing:
        raise ValueError(
            f"{path}: no {patient} for {len(missing)} images (first: {missing[0]}); add the rows, "
            "or remove the file to count each image as a patient of its own"
        )
    return {name: told[name] for name in names}


def named(cell: str, names: set[str] | Mapping[str, object]) -> str | None:
    """The image that a cell names, with or without its suffix and the folders before it."""
    bare = bare_name(cell)
    spelled = (cell, bare, joined(bare), PurePosixPath(bare).name)
    return next((name for name in spelled if name in names), None)


def joined(path: str) -> str:
    """The path as one name: "sub/b" gives "sub-b"."""
    return path.replace("/", "-")


def clip_box(box: Box, *, size: tuple[int, int], where: str) -> tuple[Box, tuple[str, ...]]:
    """The part of a box that lies in the image, and a note if that is not all of it.

    Raises:
      ValueError: Not finite, empty, or outside of the image.
    """
    height, width = size
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)):
        raise ValueError(f"{where}: the box {box} is not finite; correct or remove it")
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"{where}: the box (x0, y0, x1, y1) = {box} is empty; correct or remove it"
        )
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ValueError(
            f"{where}: the box (x0, y0, x1, y1) = {box} lies outside of the image of {width} x "
            f"{height} pixels (width x height); correct or remove it"
        )
    return inside, () if inside == box else ("box clipped",)


def shown(names: Sequence[object]) -> str:
    """How many there are, and the first three."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} ({', '.join(map(str, names[:3]))}{more})"


_FORMATS: Mapping[str, str] = MappingProxyType(  # What a suffix promises; the content decides.
    {
        ".png": "PNG",
        ".jpg": "JPEG",
        ".jpeg": "JPEG",
        ".bmp": "BMP",
        ".tif": "TIFF",
        ".tiff": "TIFF",
        ".webp": "WEBP",
    }
)
