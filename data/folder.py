"""Reader of a plain folder of images with a mask each, as `pp_jax.predict --as-dataset` writes it.

    DIR/images/<name>.png       or .jpg, .jpeg, .dcm; any size, grey or colour
    DIR/masks/<name>.png        8-bit grey, above 127 is marked; all black: nothing to find
    DIR/patients.csv            image,patient                                   (optional)
    DIR/provenance.csv          image,accepted,machine_made and more            (optional)

Each connected component of a mask (8-connectivity) is an object with its tight box. One of less
than 0.1 % of the image is no object to prompt for, but it stays in the findings; where it lies in
the box of an object it counts to that. An image of which a row of `provenance.csv` says
`accepted` `no` is left out whole: without the rejected object its mask would be wrong.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image
from scipy import ndimage

from data.dicom import dicom_size
from data.records import Box, Record, read_mask
from data.tables import read_rows

OBTAIN = (
    "a folder of your own has images/*.png (or .jpg, .dcm) and masks/<name>.png (8-bit grey, white "
    "is marked); `python -m pp_jax.predict --as-dataset DIR` writes one"
)
IMAGES, MASKS, PATIENTS, PROVENANCE = "images", "masks", "patients.csv", "provenance.csv"
DICOM = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", *DICOM)
_SMALLEST = 1e-3  # Of the image: a smaller component is no object to prompt for.
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height.


def read_folder(folder: Path, *, limit: int | None = None) -> list[Record]:
    """One record per image, in the order of the names.

    Every mask is read and compared with the size in its image's header here, so that a wrong file
    stops a run at its start.

    Args:
      folder: Holds the files named in this module's docstring.
      limit: Number of patients: the first ones, with all their images.

    Raises:
      FileNotFoundError: No `images`, none in it, or one without a mask.
      ValueError: Two images of one name, a mask of another size or kind, a damaged file, or a CSV
        that lacks a column or a patient.
    """
    folder = Path(folder)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of patients, at least 1; got {limit}")
    if not (folder / IMAGES).is_dir():
        raise FileNotFoundError(f"{folder / IMAGES}: no such folder; {OBTAIN}")
    images = find_images([folder / IMAGES])
    machine_made = _provenance(folder / PROVENANCE, images)
    patients = _patients(folder / PATIENTS, images)
    chosen = set(list(dict.fromkeys(patients.values()))[:limit])
    return [
        _record(folder, name, image, patient=patients[name], machine_made=name in machine_made)
        for name, image in images.items()
        if patients[name] in chosen
    ]


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


def _is_image(path: Path) -> bool:
    known = path.suffix.lower() in SUFFIXES
    return path.is_file() and not path.name.startswith(".") and (known or _is_dicom(path))


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in DICOM:
        return True
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


def _record(folder: Path, name: str, image: Path, *, patient: str, machine_made: bool) -> Record:
    mask = folder / MASKS / f"{name}.png"
    if not mask.is_file():
        raise FileNotFoundError(
            f"{mask}: no mask for {image}; draw one (8-bit grey PNG of the image's size, all black "
            "where nothing is to be found), or move the image elsewhere"
        )
    findings = read_mask(mask, size=_size(image))
    return Record(
        id=name,
        patient=patient,
        image=image,
        boxes=component_boxes(findings),
        mask=mask,
        target="machine-made" if machine_made else "mask",
        label="finding" if findings.any() else "no finding",
    )


def _size(path: Path) -> tuple[int, int]:
    """Height and width as `read_any` will give them, without decoding the pixels."""
    if _is_dicom(path):
        return dicom_size(path)
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(0x0112) in _TURNED
            return picture.size if turned else picture.size[::-1]
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable picture; replace or remove it") from error


def _provenance(path: Path, images: dict[str, Path]) -> set[str]:
    """Names whose masks a model made; those that were not accepted are removed from `images`."""
    if not path.is_file():
        return set()
    machine_made, rejected = set(), set()
    for line, row in read_rows(path, ("image", "accepted", "machine_made")):
        for column in ("accepted", "machine_made"):
            if row[column].lower() not in ("yes", "no"):
                raise ValueError(f"{path}, line {line}: {column} is {row[column]!r}, not yes or no")
        name = _name(row["image"], images)
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
        warnings.warn(f"{path}: {len(rejected)} images left out (accepted is no)", stacklevel=3)
    if machine_made:
        warnings.warn(
            f"{path}: the masks of {len(machine_made)} of {len(images)} images are machine-made; a "
            "score against them says how well a model repeats the one that made them",
            stacklevel=3,
        )
    return machine_made


def _patients(path: Path, images: dict[str, Path]) -> dict[str, str]:
    if not path.is_file():
        warnings.warn(
            f"{path}: no such file (columns image,patient), so images of one person may be in two "
            "splits",
            stacklevel=3,
        )
        return {name: name for name in images}
    rows = read_rows(path, ("image", "patient"))
    told = {_name(row["image"], images): row["patient"] for _, row in rows}
    missing = [name for name in images if not told.get(name)]
    if missing:
        raise ValueError(
            f"{path}: no patient for {len(missing)} images (first: {missing[0]}); add the rows, or "
            "remove the file to count each image as a patient of its own"
        )
    return {name: told[name] for name in images}


def _name(cell: str, images: Sequence[str] | dict[str, Path]) -> str | None:
    """The image that a cell names, with or without its suffix."""
    return next((name for name in (cell, Path(cell).stem) if name in images), None)
