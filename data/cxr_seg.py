"""Reader of GeneralBlockchain's segmentations of COVID-19 chest X-rays.

    DIR/images/<Filename>       61 or more X-rays of any size, PNG and JPEG
    DIR/masks/<name>.png        one structure each, cut to its box, RGBA; what is not black is it
    DIR/structure.csv           Filename,Template Name,Mask,Resolution,Top,Left and more
    DIR/metadata.csv            filename,patientid,view,sex,age,finding,license and more

A mask's place is known from `structure.csv` alone. What is to be found is the lesion: ground-glass
opacities and consolidations. The lungs go along as what an oracle knows.
"""

import dataclasses
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import ImageChops

from data.annotated import (
    Header,
    check_limit,
    find_images,
    first_patients,
    masked_record,
    read_image_header,
    shown,
)
from data.composed import Composed
from data.facts import Facts, parse_age, parse_sex
from data.files import File
from data.images import opened_picture
from data.records import Record
from data.tables import read_rows

OBTAIN = (
    "get it with `git clone "
    "https://github.com/GeneralBlockchain/covid-19-chest-xray-segmentations-dataset DIR`"
)
LESION = ("Ground Glass Opacities", "Consolidation")
LUNGS = ("Left Lung", "Right Lung")
IMAGES, MASKS, STRUCTURE, METADATA = "images", "masks", "structure.csv", "metadata.csv"
_RESOLUTION = re.compile(r"(\d+)x(\d+)")


class Part(NamedTuple):
    """One structure of one image."""

    template: str  # "Left Lung", "Consolidation", ...
    mask: File | None  # Some rows have none.
    top: int  # Of the mask's first row in the image.
    left: int


class _Annotation(NamedTuple):
    size: tuple[int, int]  # Height and width of the image that was annotated.
    parts: tuple[Part, ...]


def read_cxr_seg(folder: Path, *, limit: int | None = None) -> list[Record]:
    """One record per annotated image, in the order of the names.

    Images without annotation, and those of another size than was annotated, are left out with a
    warning. A record's notes name what is not drawn in it: a lung, or a lesion whose row has no
    mask.

    Args:
      folder: Holds the files named in this module's docstring.
      limit: Number of patients: the first ones, with all their images.

    Raises:
      FileNotFoundError: A CSV, the images or a mask are missing.
      ValueError: A CSV that lacks a column, a number that is none, a damaged file, a mask that
        leaves its image.
    """
    folder = Path(folder)
    check_limit(limit)
    for name in (STRUCTURE, METADATA, IMAGES):
        if not (folder / name).exists():
            obtain = OBTAIN.replace("DIR", str(folder))
            raise FileNotFoundError(f"{folder / name}: not there; {obtain}")
    images = find_images([folder / IMAGES])
    annotations = parse_structure(folder / STRUCTURE)
    people = {row["filename"]: row for _, row in read_rows(folder / METADATA, _COLUMNS)}
    headers = {name: read_image_header(image) for name, image in images.items()}
    _leave_out(folder, images, headers, annotations)
    patients = {
        name: people.get(image.name, {}).get("patientid") or name for name, image in images.items()
    }
    return [
        _record(
            folder,
            name,
            images[name],
            annotations[images[name].name],
            header=headers[name],
            patient=patient,
            person=people.get(images[name].name),
        )
        for name, patient in first_patients(patients, limit).items()
    ]


def parse_structure(path: Path) -> dict[str, _Annotation]:
    """What is annotated of each image, by its file name; errors as `read_cxr_seg`."""
    sizes: dict[str, tuple[int, int]] = {}
    parts: dict[str, list[Part]] = defaultdict(list)
    columns = ("Filename", "Template Name", "Mask", "Resolution", "Top", "Left")
    for line, row in read_rows(path, columns):
        where, name = f"{path}, line {line}", row["Filename"]
        found = _RESOLUTION.fullmatch(row["Resolution"])
        if not found:
            raise ValueError(f"{where}: Resolution is {row['Resolution']!r}, not as in 1024x768")
        size = (int(found[2]), int(found[1]))
        if sizes.setdefault(name, size) != size:
            raise ValueError(f"{where}: {name} has another Resolution above; correct one of them")
        try:
            top, left = int(row["Top"]), int(row["Left"])
        except ValueError:
            raise ValueError(
                f"{where}: Top {row['Top']!r} and Left {row['Left']!r} are no whole numbers"
            ) from None
        # The folder is fixed, so that no row reaches a file elsewhere.
        mask = path.parent / MASKS / Path(row["Mask"]).name if row["Mask"] else None
        if mask and not mask.is_file():
            raise FileNotFoundError(f"{mask}: no such file, but {where} names it; get it again")
        parts[name].append(Part(row["Template Name"], mask, top, left))
    return {name: _Annotation(size, tuple(parts[name])) for name, size in sizes.items()}


def draw_parts(size: tuple[int, int], parts: Sequence[Part]) -> Bool[np.ndarray, "H W"]:
    """The union of the structures in the image's frame.

    Raises:
      ValueError: A mask that is no picture or leaves the image.
      OSError: A mask cannot be opened.
    """
    drawn = np.zeros(size, bool)
    for part in parts:
        with opened_picture(part.mask) as picture:
            red, green, blue = picture.convert("RGB").split()
        marked = np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue)) > 0
        bottom, right = part.top + marked.shape[0], part.left + marked.shape[1]
        if min(part.top, part.left) < 0 or bottom > size[0] or right > size[1]:
            raise ValueError(
                f"{part.mask}: at Top {part.top}, Left {part.left} its {marked.shape[1]} x "
                f"{marked.shape[0]} pixels leave the image of {size[1]} x {size[0]}; get it again"
            )
        drawn[part.top : bottom, part.left : right] |= marked
    return drawn


def _leave_out(
    folder: Path,
    images: dict[str, Path],
    headers: dict[str, Header],
    annotations: dict[str, _Annotation],
) -> None:
    """Removes the images that nothing, or nothing fitting, is known of, with a warning."""
    unknown = [name for name, image in images.items() if image.name not in annotations]
    resized = [
        name
        for name, image in images.items()
        if name not in unknown and headers[name].size != annotations[image.name].size
    ]
    for names, reason in ((unknown, "no row"), (resized, "annotated at another size")):
        if names:
            warnings.warn(
                f"{folder / STRUCTURE}: {reason} for {shown(names)} images, left out", stacklevel=4
            )
        for name in names:
            del images[name]
    if not images:
        raise ValueError(f"{folder / STRUCTURE}: annotates none of the images in {folder / IMAGES}")


def _record(
    folder: Path,
    name: str,
    image: Path,
    annotation: _Annotation,
    *,
    header: Header,
    patient: str,
    person: dict[str, str] | None,
) -> Record:
    drawn = [part for part in annotation.parts if part.mask]
    templates = {part.template for part in drawn}
    empty = {part.template for part in annotation.parts if not part.mask}
    expected = (*LUNGS, *(lesion for lesion in LESION if lesion in empty))
    notes = [f"no mask: {template}" for template in expected if template not in templates]
    if person is None:
        notes.append(f"no row in {METADATA}")
        person = dict.fromkeys(_COLUMNS, "")
    facts = Facts(
        view=person["view"],
        sex=parse_sex(person["sex"]),
        age=parse_age(person["age"].removesuffix(".0")),
        licence=person["license"],
    )
    lesion, lungs = (
        Composed(
            f"{folder / STRUCTURE}: {image.name}",
            f"{name}.png",
            draw_parts,
            (annotation.size, tuple(part for part in drawn if part.template in kinds)),
        )
        for kinds in (LESION, LUNGS)
    )
    record = masked_record(
        name,
        lesion.pixels(),
        image=image,
        mask=lesion,
        header=header._replace(facts=facts),
        patient=patient,
        label=person["finding"],
        notes=notes,
    )
    # An image of which one lung was outlined has that one, and a note.
    return dataclasses.replace(record, lungs=lungs if templates & set(LUNGS) else None)


_COLUMNS = ("filename", "patientid", "view", "sex", "age", "finding", "license")
