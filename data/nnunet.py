"""Reader of 2-D pictures in nnU-Net's layout (version 2).

    DIR/imagesTr/<name>_0000.png    one picture each, grey or colour; .bmp and .tif as well
    DIR/labelsTr/<name>.png         label numbers
    DIR/dataset.json                {"labels": {"background": 0, "tumour": 1},
                                     "file_ending": ".png"}
    DIR/patients.csv                image,patient                                   (optional)

A label's value may be a list of numbers, as for nnU-Net's regions. Pixels of the label `ignore`
are not marked, and the record's notes say so.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from data.annotated import (
    NO_FINDING,
    check_limit,
    first_patients,
    masked_record,
    read_image_header,
    read_patients,
    shown,
)
from data.composed import Composed, read_numbers
from data.files import File
from data.records import Record

IMAGES, LABELS, DESCRIPTION, PATIENTS = "imagesTr", "labelsTr", "dataset.json", "patients.csv"
IGNORE = "ignore"
_CHANNEL = "_0000"


def find_nnunet(folder: Path) -> Path | None:
    """The folder `imagesTr`, if it is there."""
    return folder / IMAGES if (folder / IMAGES).is_dir() else None


def read_nnunet(folder: Path, *, limit: int | None = None, label: str = "") -> list[Record]:
    """One record per image of `imagesTr`, in the order of the names.

    Args:
      folder: Holds the files named in this module's docstring.
      limit: Number of patients: the first ones, with all their images.
      label: Its name, or all above 0 by default.

    Raises:
      FileNotFoundError: `dataset.json`, the images or a label picture are missing.
      ValueError: Volumes, several files per image, an unknown label, a label picture of another
        size or with numbers that `dataset.json` does not name.
    """
    check_limit(limit)
    labels, ending, count = _describe(folder / DESCRIPTION)
    images = _find(folder / IMAGES, ending)
    if count is not None and count != len(images):
        warnings.warn(
            f"{folder / DESCRIPTION}: numTraining is {count}, {folder / IMAGES} holds "
            f"{len(images)} images",
            stacklevel=3,
        )
    if label and label not in labels:
        raise ValueError(
            f"{folder / DESCRIPTION}: no label {label!r}; choose from {', '.join(labels)}"
        )
    patients = first_patients(read_patients(folder / PATIENTS, images), limit)
    return [
        _record(
            folder, name, images[name], labels=labels, ending=ending, label=label, patient=patient
        )
        for name, patient in patients.items()
    ]


def pick_labels(path: File, numbers: tuple[int, ...]) -> Bool[np.ndarray, "H W"]:
    """The pixels of a label picture that hold one of `numbers`; errors as `read_numbers`."""
    return np.isin(read_numbers(path), numbers)


def _describe(path: Path) -> tuple[dict[str, tuple[int, ...]], str, int | None]:
    """Numbers of each label but the background, how files end, and how many images there are."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; nnU-Net's layout needs it")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON in UTF-8 ({error})") from error
    fields = description if isinstance(description, dict) else {}
    named, ending = fields.get("labels"), fields.get("file_ending")
    if not (isinstance(named, dict) and isinstance(ending, str)):
        raise ValueError(
            f"{path}: needs labels (name to number) and file_ending, as nnU-Net 2 writes them"
        )
    if not ending.lower().endswith((".png", ".bmp", ".tif", ".tiff")):
        raise ValueError(
            f"{path}: file_ending is {ending!r}; only 2-D pictures are read (.png, .bmp, .tif): "
            "save the slices as pictures"
        )
    labels = {name: _numbers(path, name, value) for name, value in named.items()}
    foreground = {name: numbers for name, numbers in labels.items() if numbers != (0,)}
    if not foreground.keys() - {IGNORE}:
        raise ValueError(f"{path}: no label above 0, so nothing is to be found")
    count = fields.get("numTraining")
    return foreground, ending, count if isinstance(count, int) else None


def _numbers(path: Path, name: str, value: Any) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, list) else (value,)
    if not numbers or not all(type(n) is int and 0 <= n <= 255 for n in numbers):
        raise ValueError(f"{path}: label {name!r} is {value!r}, not a number from 0 to 255")
    return numbers


def _find(folder: Path, ending: str) -> dict[str, Path]:
    """The images by name; nnU-Net numbers an image's channels."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ending))
    stems = {path.name.removesuffix(ending): path for path in files}
    images = {s.removesuffix(_CHANNEL): p for s, p in stems.items() if s.endswith(_CHANNEL)}
    others = [path.name for stem, path in stems.items() if not stem.endswith(_CHANNEL)]
    if others:
        raise ValueError(
            f"{folder}: {shown(others)} not named <name>{_CHANNEL}{ending}; an image is one file, "
            "its colours within"
        )
    if not images:
        raise FileNotFoundError(f"{folder}: no image; expected <name>{_CHANNEL}{ending}")
    return images


def _record(
    folder: Path,
    name: str,
    image: Path,
    *,
    labels: dict[str, tuple[int, ...]],
    ending: str,
    label: str,
    patient: str,
) -> Record:
    path = folder / LABELS / f"{name}{ending}"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no label picture for {image}; add it, or move the image")
    header = read_image_header(image)
    numbers = read_numbers(path)
    there = set(np.unique(numbers).tolist())
    unknown = sorted(there - {0}.union(*labels.values()))
    if unknown:
        raise ValueError(f"{path}: label {unknown[0]} is not among those of {DESCRIPTION}")
    ignored = labels.get(IGNORE, ())
    chosen = [label] if label else [other for other in labels if other != IGNORE]
    wanted = tuple(sorted({n for one in chosen for n in labels[one]}))
    seen = [one for one in chosen if there.intersection(labels[one])]
    return masked_record(
        name,
        np.isin(numbers, wanted),
        image=image,
        mask=Composed(str(path), f"{name}.png", pick_labels, (path, wanted)),
        header=header,
        patient=patient,
        label="|".join(seen) or NO_FINDING,
        notes=("pixels to ignore",) if there.intersection(ignored) else (),
    )
