"""Reader of a user's folder, in one of four layouts; the first that fits is taken.

    masks       DIR/images/<name>.png       or .jpg, .jpeg, .dcm; any size, grey or colour
                DIR/masks/<name>.png        above 127 (or 1 in a mask of 0 and 1) is marked; all
                                            black: nothing to find
                DIR/provenance.csv          image,accepted,machine_made and more    (optional)
    nnU-Net     DIR/imagesTr, DIR/labelsTr, DIR/dataset.json    (data/nnunet.py)
    COCO        a JSON in DIR or DIR/annotations                (data/coco.py)
    box table   a CSV in DIR with image,x0,y0,x1,y1             (data/box_table.py)

Each layout may have `DIR/patients.csv` (image,patient). `pp_jax.predict --as-dataset` writes the
first one.

Each connected component of a mask (8-connectivity) is an object with its tight box. One of less
than 0.1 % of the image is no object to prompt for, but it stays in the findings; where it lies in
the box of an object it counts to that. An image of which a row of `provenance.csv` says
`accepted` `no` is left out whole: without the rejected object its mask would be wrong.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from data.annotated import (
    check_limit,
    find_images,
    first_patients,
    masked_record,
    named,
    read_image_header,
    read_patients,
)
from data.box_table import find_box_table, read_box_table
from data.coco import find_coco, read_coco
from data.composed import Composed, read_marked
from data.files import File
from data.images import opened_picture
from data.nnunet import find_nnunet, read_nnunet
from data.records import Record
from data.tables import read_rows

OBTAIN = (
    "a folder of your own has `images/*.png` (or .jpg, .dcm) and `masks/<name>.png` (8-bit grey, "
    "white is marked), or nnU-Net's imagesTr, labelsTr and dataset.json, or a COCO JSON, or a CSV "
    "with image,x0,y0,x1,y1; `python -m pp_jax.predict --as-dataset DIR` writes the first"
)
IMAGES, MASKS, PATIENTS, PROVENANCE = "images", "masks", "patients.csv", "provenance.csv"


@dataclass(frozen=True)
class Layout:
    """One way to lay out a folder."""

    find: Callable[[Path], Path | None]  # What tells that the folder has it, or None.
    read: Callable[..., list[Record]]  # (folder, *, limit, label) -> records


def read_folder(folder: Path, *, limit: int | None = None, label: str = "") -> list[Record]:
    """One record per image, in the order of the names; prints which layout it took.

    Every mask is read and compared with the size in its image's header here, so that a wrong file
    stops a run at its start.

    Args:
      folder: Has one of the layouts in this module's docstring.
      limit: Number of patients: the first ones, with all their images.
      label: What alone is to be found, where annotations are labelled; default: all.

    Raises:
      FileNotFoundError: No layout fits, no image, or one without an annotation.
      ValueError: Two images of one name, a mask of another size or kind, a damaged file, a table
        that lacks a column or a patient, an unknown label.
    """
    folder = Path(folder)
    check_limit(limit)
    for name, layout in LAYOUTS.items():
        found = layout.find(folder)
        if found:
            records = layout.read(folder, limit=limit, label=label)
            print(f"{folder}: {len(records)} images, layout {name} ({found.relative_to(folder)})")
            return records
    missing = MASKS if (folder / IMAGES).is_dir() else IMAGES
    raise FileNotFoundError(f"{folder / missing}: no such folder; {OBTAIN}")


def find_masks(folder: Path) -> Path | None:
    """The folder of masks, if there is one of images as well."""
    return folder / MASKS if (folder / IMAGES).is_dir() and (folder / MASKS).is_dir() else None


def read_masks(folder: Path, *, limit: int | None, label: str = "") -> list[Record]:
    """The records of the layout "masks"; arguments and errors as `read_folder`."""
    if label:
        raise ValueError(f"{folder / MASKS}: masks have no labels, so there is no {label!r} in it")
    images = find_images([folder / IMAGES])
    machine_made = _provenance(folder / PROVENANCE, images)
    patients = first_patients(read_patients(folder / PATIENTS, images), limit)
    return [
        marked_record(
            name,
            images[name],
            folder / MASKS,
            patient=patient,
            target="machine-made" if name in machine_made else "mask",
        )
        for name, patient in patients.items()
    ]


def marked_file(path: Path) -> File:
    """The mask as `data.records` reads it: the file itself, or what it means as 8-bit grey.

    Raises:
      ValueError: Not a readable picture.
    """
    with opened_picture(path) as picture:
        plain = picture.mode == "L" and picture.getextrema()[1] in (0, *range(128, 256))
    return path if plain else Composed(str(path), path.name, read_marked, (path,))


def marked_record(
    name: str,
    image: Path,
    masks: Path,
    *,
    patient: str,
    target: Literal["mask", "machine-made"] = "mask",
) -> Record:
    """A record from an image and `<name>.png` in the folder `masks`; errors as `read_folder`."""
    mask = masks / f"{name}.png"
    if not mask.is_file():
        raise FileNotFoundError(
            f"{mask}: no mask for {image}; draw one (8-bit grey PNG of the image's size, all black "
            "where nothing is to be found), or move the image elsewhere"
        )
    header = read_image_header(image)
    file = marked_file(mask)
    return masked_record(
        name,
        read_marked(mask),
        image=image,
        mask=file,
        header=header,
        patient=patient,
        target=target,
        notes=() if file is mask else ("mask brought to 8-bit grey",),
    )


def _provenance(path: Path, images: dict[str, Path]) -> set[str]:
    """Names whose masks a model made; those that were not accepted are removed from `images`."""
    if not path.is_file():
        return set()
    machine_made, rejected = set(), set()
    for line, row in read_rows(path, ("image", "accepted", "machine_made")):
        for column in ("accepted", "machine_made"):
            if row[column].lower() not in ("yes", "no"):
                raise ValueError(f"{path}, line {line}: {column} is {row[column]!r}, not yes or no")
        name = named(row["image"], images)
        if name is None:
            continue  # Moved away since.
        if row["accepted"].lower() == "no":
            rejected.add(name)
        elif row["machine_made"].lower() == "yes":
            machine_made.add(name)
    for name in rejected:
        del images[name]
    machine_made -= rejected
    if not images:
        raise ValueError(f"{path}: every image was rejected (accepted is no)")
    if rejected:
        warnings.warn(f"{path}: {len(rejected)} images left out (accepted is no)", stacklevel=4)
    if machine_made:
        warnings.warn(
            f"{path}: the masks of {len(machine_made)} of {len(images)} images are machine-made; a "
            "score against them says how well a model repeats the one that made them",
            stacklevel=4,
        )
    return machine_made


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "masks": Layout(find_masks, read_masks),
        "nnU-Net": Layout(find_nnunet, read_nnunet),
        "COCO": Layout(find_coco, read_coco),
        "box table": Layout(find_box_table, read_box_table),
    }
)
