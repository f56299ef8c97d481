"""Readers of two sets of brain MRI pictures, one with image labels and one with masks.

brain_yes_no    DIR/yes/*, DIR/no/*         PNG and JPEG, whatever their names say
                DIR/duplicates.csv          file,dup_group and, if known, redundant (optional)
brain_seg       DIR/images/<name>.png
                DIR/masks/<name>.png        black and white, in any mode
                DIR/groups.csv              image,group: whose head it is           (optional)
"""

from pathlib import Path

from data.annotated import (
    check_limit,
    find_images,
    first_patients,
    read_image_header,
    read_patients,
)
from data.folder import IMAGES, MASKS, marked_record
from data.records import Record
from data.tables import read_rows

OBTAIN_YES_NO = (
    "get it with `kaggle datasets download -d navoneel/brain-mri-images-for-brain-tumor-detection` "
    "and unzip it there (folders yes and no)"
)
OBTAIN_SEG = (
    "get figshare's brain_tumor_dataset (1512427) and write each slice as "
    "`images/<number>.png` and `masks/<number>.png` there; `groups.csv` (image,group) tells the "
    "heads apart"
)
ANSWERS = ("yes", "no")
DUPLICATES, GROUPS = "duplicates.csv", "groups.csv"


def read_brain_yes_no(folder: Path, *, limit: int | None = None) -> list[Record]:
    """One record per picture, labelled "yes" or "no"; where the tumour lies nobody says.

    Pictures that `duplicates.csv` puts in one group count as one patient. `id` begins with the
    label, as both folders may use a name.

    Args:
      folder: Holds the files named in this module's docstring.
      limit: Number of patients: the first ones, with all their pictures.

    Raises:
      FileNotFoundError: A folder is missing or empty.
      ValueError: `duplicates.csv` lacks a column or a picture; a damaged picture.
    """
    folder = Path(folder)
    check_limit(limit)
    images: dict[str, tuple[str, Path]] = {}
    for answer in ANSWERS:
        if not (folder / answer).is_dir():
            raise FileNotFoundError(f"{folder / answer}: no such folder; {OBTAIN_YES_NO}")
        for image in find_images([folder / answer]).values():
            images[f"{answer}/{image.name}"] = answer, image
    path = folder / DUPLICATES
    patients = read_patients(path, images, columns=("file", "dup_group"))
    redundant = (
        {row["file"] for _, row in read_rows(path, ("file",)) if row.get("redundant") == "1"}
        if path.is_file()
        else set()
    )
    records = []
    for name, patient in first_patients(patients, limit).items():
        answer, image = images[name]
        header = read_image_header(image)
        records.append(
            Record(
                id=f"{answer}-{image.name}",
                patient=patient,
                image=image,
                boxes=(),
                mask=None,
                target="box",
                label=answer,
                facts=header.facts,
                notes=(*header.notes, *(["duplicate"] if name in redundant else [])),
            )
        )
    return records


def read_brain_seg(folder: Path, *, limit: int | None = None) -> list[Record]:
    """One record per slice, in the order of the names; a group of `groups.csv` is a patient.

    Args:
      folder: Holds the files named in this module's docstring.
      limit: Number of patients: the first ones, with all their slices.

    Raises:
      FileNotFoundError: A folder is missing or empty, or a slice has no mask.
      ValueError: `groups.csv` lacks a column or a slice; a mask of another size; a damaged file.
    """
    folder = Path(folder)
    check_limit(limit)
    for part in (IMAGES, MASKS):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder / part}: no such folder; {OBTAIN_SEG}")
    images = find_images([folder / IMAGES])
    patients = read_patients(folder / GROUPS, images, columns=("image", "group"))
    return [
        marked_record(name, images[name], folder / MASKS, patient=patient)
        for name, patient in first_patients(patients, limit).items()
    ]
