"""Reader of the RSNA Pneumonia Detection Challenge (stage 2), as Kaggle packs it.

    DIR/stage_2_train_images/<patientId>.dcm
    DIR/stage_2_train_labels.csv            patientId,x,y,width,height,Target
    DIR/stage_2_detailed_class_info.csv     patientId,class                    (optional)
    DIR/masks/<patientId>.png               the true outline, where known      (optional)
    DIR/patients.csv                        patientId,patient                  (optional)
    DIR/rsna_to_nih.csv                     patientId,nih_image,mse            (optional)

RSNA's `patientId` names an image. Who is shown stands in `patients.csv`, or follows from the NIH
file name (`00019124_092.png` is picture 92 of patient 19124).
"""

import csv
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from data.dicom import dicom_size
from data.records import Box, Record, check_boxes

OBTAIN = (
    "download it with `kaggle competitions download -c rsna-pneumonia-detection-challenge` "
    "(after accepting the rules on kaggle.com) and unzip it there"
)
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
IMAGES = "stage_2_train_images"
MASKS = "masks"
PATIENTS = "patients.csv"
NIH = "rsna_to_nih.csv"


def read_rsna(folder: Path, *, limit: int | None = None) -> list[Record]:
    """One record per `patientId`, in the order of the labels' CSV.

    Boxes are compared with the size in the DICOM header here (0.2 ms per positive image), so that
    a wrong row stops a run at its start, and again with the pixels in `records.load`.

    Args:
      folder: Holds the files named in this module's docstring.
      limit: Number of patients: the first ones, with all their images.

    Raises:
      FileNotFoundError: The folder or its labels are missing, or images that the CSV names.
      ValueError: A CSV that lacks a column or an id, a number that is none, a box that is empty or
        leaves its image, a Target other than 0 and 1 or at odds with its box.
    """
    folder = Path(folder)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of patients, at least 1; got {limit}")
    if not (folder / LABELS).is_file():
        raise FileNotFoundError(f"{folder / LABELS}: no such file; to get RSNA, {OBTAIN}")
    boxes = parse_labels(folder / LABELS)
    patients = find_patients(folder, list(boxes))
    chosen = set(list(dict.fromkeys(patients.values()))[:limit])
    ids = [name for name in boxes if patients[name] in chosen]
    images = {name: folder / IMAGES / f"{name}.dcm" for name in ids}
    _check_files(folder, ids, images)
    classes = _column(folder / CLASSES, "class") if (folder / CLASSES).is_file() else {}
    records = []
    for name in ids:
        if boxes[name]:
            check_boxes(
                boxes[name], size=dicom_size(images[name]), where=f"{folder / LABELS}: {name}"
            )
        mask = folder / MASKS / f"{name}.png"
        masked = mask.is_file()
        records.append(
            Record(
                id=name,
                patient=patients[name],
                image=images[name],
                boxes=boxes[name],
                mask=mask if masked else None,
                target="mask" if masked else "box",
                label=classes.get(name, "Lung Opacity" if boxes[name] else "No Lung Opacity"),
            )
        )
    return records


def parse_labels(path: Path) -> dict[str, tuple[Box, ...]]:
    """Boxes `(x0, y0, x1, y1)` by `patientId`, in the order of the file; none for Target 0.

    Raises:
      ValueError: Names file, line and value.
    """
    boxes: dict[str, tuple[Box, ...]] = {}
    cells = ("x", "y", "width", "height")
    for line, row in _rows(path, ("patientId", *cells, "Target")):
        name, where = row["patientId"], f"{path}, line {line} ({row['patientId']})"
        boxes.setdefault(name, ())
        if row["Target"] not in ("0", "1"):
            raise ValueError(f"{where}: Target is {row['Target']!r}, expected 0 or 1")
        if row["Target"] == "1":
            boxes[name] += (_box([row[cell] for cell in cells], where=where),)
        elif any(row[cell] for cell in cells):
            raise ValueError(f"{where}: Target is 0 but there is a box; empty it or set Target 1")
    if not boxes:
        raise ValueError(f"{path}: no rows below the header")
    return boxes


def find_patients(folder: Path, ids: Sequence[str]) -> dict[str, str]:
    """Patient by `patientId`: from `patients.csv`, else from `rsna_to_nih.csv`, else the id.

    The last comes with a warning: images of one person may then stand in two splits.

    Raises:
      ValueError: The CSV has no row for some id.
    """
    for file, column, patient in SOURCES_OF_PATIENTS:
        path = folder / file
        if path.is_file():
            table = _column(path, column)
            missing = [name for name in ids if not table.get(name)]
            if missing:
                raise ValueError(
                    f"{path}: no patient for {_some(missing)}; add the rows, or remove the file "
                    "to count each image as a patient of its own"
                )
            return {name: patient(table[name]) for name in ids}
    warnings.warn(
        f"{folder}: neither {PATIENTS} nor {NIH} says who is shown, so images of one person may be "
        "in two splits",
        stacklevel=2,
    )
    return {name: name for name in ids}


def _box(cells: Sequence[str], *, where: str) -> Box:
    if not all(cells):
        raise ValueError(f"{where}: Target is 1 but the box is {cells}; give x, y, width, height")
    try:
        x, y, width, height = map(float, cells)
    except ValueError as error:
        raise ValueError(f"{where}: {error} in the box {cells}") from None
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"{where}: the box {cells} is not finite")
    if width <= 0 or height <= 0:
        raise ValueError(f"{where}: the box is empty, width {width} and height {height}")
    return x, y, x + width, y + height


def _rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and stripped cells of each row; a short row has empty cells at its end."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        header = reader.fieldnames or []
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(header)}")
        for row in reader:
            yield reader.line_num, {name: row[name].strip() for name in columns}


def _column(path: Path, column: str) -> dict[str, str]:
    return {row["patientId"]: row[column] for _, row in _rows(path, ("patientId", column))}


def _check_files(folder: Path, ids: Sequence[str], images: dict[str, Path]) -> None:
    there = {entry.stem for entry in (folder / IMAGES).glob("*.dcm")}
    missing = [name for name in ids if name not in there]
    if missing:
        raise FileNotFoundError(
            f"{folder / IMAGES}: no <patientId>.dcm for {_some(missing)} of {LABELS}; unzip all "
            "images there, or remove the rows"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} ids ({', '.join(names[:3])}{more})"


def _nih_patient(image: str) -> str:
    return image.partition("_")[0]


SOURCES_OF_PATIENTS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    (PATIENTS, "patient", str),
    (NIH, "nih_image", _nih_patient),
)
