"""Reader of the RSNA Pneumonia Detection Challenge (stage 2), as Kaggle packs it.

    DIR/stage_2_train_images/<patientId>.dcm
    DIR/stage_2_train_labels.csv            patientId,x,y,width,height,Target
    DIR/stage_2_detailed_class_info.csv     patientId,class                    (optional)
    DIR/masks/<patientId>.png               the true outline, where known      (optional)
    DIR/patients.csv                        patientId,patient                  (optional)
    DIR/rsna_to_nih.csv                     patientId,nih_image,mse            (optional)

Kaggle's zip archive may stay packed: DIR is it, or holds it; what also lies in DIR itself counts
before what lies in the archive. RSNA's `patientId` names an image. Who is shown stands in
`patients.csv`, or follows from the NIH file name (`00019124_092.png` is picture 92 of patient
19124); `mse`, how unlike the two pictures are, may be missing.
"""

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from tqdm import tqdm

from data.annotated import check_limit, clip_box, first_patients
from data.boxes import Box
from data.dicom import dicom_facts
from data.files import File, members
from data.records import DOUBTFUL, Record
from data.tables import read_rows

OBTAIN = (
    "download it with `kaggle competitions download -c rsna-pneumonia-detection-challenge` "
    "(after accepting the rules on kaggle.com) and put the zip archive there, unzipped or not"
)
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
IMAGES = "stage_2_train_images"
MASKS = "masks"
PATIENTS = "patients.csv"
NIH = "rsna_to_nih.csv"
ARCHIVE = "rsna-pneumonia-detection-challenge.zip"
NAMES_OF_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_NIH_FILE = re.compile(r"(\d+)_\d+(\.\w+)?")
_MATCHED = 10.0  # Squared grey levels: in the published map up to 7.2, or from 73.8 on.
_MANY = 300  # Images whose headers take long enough for a progress bar.


class Labelled(NamedTuple):
    """What the labels' CSV says of one image."""

    boxes: tuple[Box, ...]  # (x0, y0, x1, y1) as written: they may leave the image.
    places: tuple[str, ...]  # Where each box stands, for messages.
    notes: tuple[str, ...]


class People(NamedTuple):
    """Who is shown."""

    patients: dict[str, str]  # By `patientId`.
    doubtful: frozenset[str]  # Ids whose patient may be another one.


def read_rsna(folder: Path, *, limit: int | None = None) -> list[Record]:
    """One record per `patientId`, in the order of the labels' CSV.

    The DICOM header of every image is read here (0.4 ms each, 0.9 ms from an archive), so that a
    wrong row or file stops a run at its start. Notes say what was put right or is missing:
    "duplicate row", "box clipped" (it lay partly outside of the image), "inverted", "no spacing",
    "doubtful patient".

    Args:
      folder: Holds the files named in this module's docstring, or is the zip archive.
      limit: Number of patients: the first ones, with all their images.

    Raises:
      FileNotFoundError: The labels are missing, or images that they name.
      ValueError: A CSV that lacks a column or an id, an id that is no file name, a number that is
        none, a box that is empty or outside of its image, rows that disagree, an unknown class, a
        damaged archive, or several.
      DicomError: An image whose header cannot be read.
    """
    check_limit(limit)
    files = find_files(Path(folder))
    labels = parse_labels(files[LABELS])
    classes = parse_classes(files[CLASSES]) if CLASSES in files else {}
    people = find_patients(files, list(labels))
    chosen = first_patients(people.patients, limit)
    _check_images(files, chosen)
    records = []
    hidden = None if len(chosen) >= _MANY else True
    for name in tqdm(chosen, desc="DICOM headers", unit="image", disable=hidden):
        labelled, image = labels[name], files[f"{IMAGES}/{name}.dcm"]
        size, facts = dicom_facts(image)
        boxes, notes = _clip(labelled, size=size)
        told = {
            "inverted": facts.inverted,
            "no spacing": facts.spacing is None,
            DOUBTFUL: name in people.doubtful,
        }
        mask = files.get(f"{MASKS}/{name}.png")
        records.append(
            Record(
                id=name,
                patient=people.patients[name],
                image=image,
                boxes=boxes,
                mask=mask,
                target="mask" if mask else "box",
                label=classes.get(name, "Lung Opacity" if boxes else "No Lung Opacity"),
                facts=facts,
                notes=(*labelled.notes, *notes, *(note for note, true in told.items() if true)),
            )
        )
    return records


def find_files(folder: Path) -> dict[str, File]:
    """The set's files by their path in DIR, from the folder and the zip archive that it holds.

    Raises:
      FileNotFoundError: Neither has labels.
      ValueError: The archive is damaged, or there are several with labels.
    """
    tables = (folder / name for name in (LABELS, CLASSES, PATIENTS, NIH))
    files: dict[str, File] = {path.name: path for path in tables if path.is_file()}
    images = {f"{IMAGES}/{path.name}": path for path in (folder / IMAGES).glob("*.dcm")}
    masks = {f"{MASKS}/{path.name}": path for path in (folder / MASKS).glob("*.png")}
    packed = {} if images and LABELS in files else _find_packed(folder)
    files = packed | files | images | masks
    if LABELS not in files:
        raise FileNotFoundError(
            f"{folder / LABELS}: no such file, nor a zip archive that has it; to get RSNA, {OBTAIN}"
        )
    return files


def parse_labels(file: File) -> dict[str, Labelled]:
    """What is said of each `patientId`, in the order of the CSV; no boxes for Target 0.

    Raises:
      ValueError: Names file, line and value.
    """
    found: dict[str, Labelled] = {}
    cells = ("x", "y", "width", "height")
    for line, row in read_rows(file, ("patientId", *cells, "Target")):
        name, target = row["patientId"], row["Target"]
        where = f"{file}, line {line} ({name})"
        _check_id(name, where=f"{file}, line {line}")
        if target not in ("0", "1"):
            raise ValueError(f"{where}: Target is {target!r}, expected 0 or 1")
        if target == "0" and any(row[cell] for cell in cells):
            raise ValueError(f"{where}: Target is 0 but there is a box; empty it or set Target 1")
        boxes = (_box([row[cell] for cell in cells], where=where),) if target == "1" else ()
        before = found.get(name)
        if before is None:
            found[name] = Labelled(boxes, (where,) * len(boxes), ())
        elif bool(before.boxes) != bool(boxes):
            raise ValueError(
                f"{where}: Target is {target}, but {1 - int(target)} in a row above; remove one"
            )
        elif set(boxes) <= set(before.boxes):
            found[name] = before._replace(notes=("duplicate row",))
        else:
            found[name] = Labelled(before.boxes + boxes, (*before.places, where), before.notes)
    if not found:
        raise ValueError(f"{file}: no rows below the header")
    return found


def parse_classes(file: File) -> dict[str, str]:
    """Class by `patientId`.

    Raises:
      ValueError: A class that is none of RSNA's three, or two of one id.
    """
    classes: dict[str, str] = {}
    for line, row in read_rows(file, ("patientId", "class")):
        name, given = row["patientId"], row["class"]
        if given not in NAMES_OF_CLASSES:
            choices = ", ".join(map(repr, NAMES_OF_CLASSES))
            raise ValueError(
                f"{file}, line {line} ({name}): unknown class {given!r}; choose from {choices}"
            )
        if classes.setdefault(name, given) != given:
            raise ValueError(
                f"{file}, line {line} ({name}): class {given!r}, but {classes[name]!r} in a row "
                "above; remove one"
            )
    return classes


def find_patients(files: Mapping[str, File], ids: Sequence[str]) -> People:
    """Who is shown by `patients.csv`, else by `rsna_to_nih.csv`, else each id alone.

    The last comes with a warning: images of one person may then stand in two splits.

    Raises:
      ValueError: The CSV has no row for some id, or says two things of one.
    """
    source = next((name for name in (PATIENTS, NIH) if name in files), None)
    if source is None:
        warnings.warn(
            f"{files[LABELS]}: neither {PATIENTS} nor {NIH} says who is shown, so images of one "
            "person may be in two splits",
            stacklevel=2,
        )
        return People({name: name for name in ids}, frozenset())
    people = (parse_patients if source == PATIENTS else parse_nih)(files[source])
    missing = [name for name in ids if not people.patients.get(name)]
    if missing:
        raise ValueError(
            f"{files[source]}: no patient for {_some(missing)}; add the rows, or remove the file "
            "to count each image as a patient of its own"
        )
    return People({name: people.patients[name] for name in ids}, people.doubtful)


def parse_patients(file: File) -> People:
    """The rows of `patients.csv`; a ValueError where two name different patients for one id."""
    patients: dict[str, str] = {}
    for line, row in read_rows(file, ("patientId", "patient")):
        name, given = row["patientId"], row["patient"]
        if patients.setdefault(name, given) != given:
            raise ValueError(
                f"{file}, line {line} ({name}): patient {given!r}, but {patients[name]!r} in a row "
                "above; remove one"
            )
    return People(patients, frozenset())


def parse_nih(file: File) -> People:
    """NIH patients; those that one image may show are one, named by the smallest number.

    An id is doubtful if its `mse` is above 10, if it has several NIH files, or if one of them has
    several ids. The published map gives one file to each id, also to the 98 that match none
    (`mse` above 70): who these show nobody knows, so the person may be in another part as well.

    Raises:
      ValueError: Names file, line and value.
    """
    images, ids = defaultdict(set), defaultdict(set)
    doubtful = set()
    for line, row in read_rows(file, ("patientId", "nih_image")):
        name, image, mse = row["patientId"], row["nih_image"], row.get("mse")
        where = f"{file}, line {line} ({name})"
        if not image:
            continue
        if not _NIH_FILE.fullmatch(image):
            raise ValueError(f"{where}: nih_image is {image!r}, expected e.g. 00019124_092.png")
        images[name].add(image)
        ids[image].add(name)
        if mse and not _number(mse, where=f"{where}: mse") <= _MATCHED:
            doubtful.add(name)
    doubtful |= {name for name, several in images.items() if len(several) > 1}
    doubtful |= {name for several in ids.values() if len(several) > 1 for name in several}
    candidates = {
        name: {image.partition("_")[0] for image in several} for name, several in images.items()
    }
    group = _join(candidates.values())
    return People(
        {name: group[min(several)] for name, several in candidates.items()}, frozenset(doubtful)
    )


def _join(together: Iterable[set[str]]) -> dict[str, str]:
    """The smallest member of each one's group, where all of a set are in one group."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for names in together:
        smallest, *others = sorted(map(root, names))
        parent |= dict.fromkeys(others, smallest)
    return {name: root(name) for name in list(parent)}


def _find_packed(folder: Path) -> dict[str, File]:
    """The files of the one archive that has labels, by their path beside these; or nothing."""
    archives = [folder] if folder.is_file() else sorted(folder.glob("*.zip"))
    if folder / ARCHIVE in archives:
        archives = [folder / ARCHIVE]
    found = []
    for archive in archives:
        inside = members(archive)
        for labels in inside:
            if labels.name == LABELS:
                root = labels.path.removesuffix(LABELS)
                found.append(
                    {x.path.removeprefix(root): x for x in inside if x.path.startswith(root)}
                )
    if len(found) > 1:
        raise ValueError(
            f"{' and '.join(str(files[LABELS]) for files in found)}: several sets of labels; keep "
            "one zip archive here, or unzip the one you want"
        )
    return dict(found[0]) if found else {}


def _check_id(name: str, *, where: str) -> None:
    """Nothing, or a ValueError: an id that could name a file elsewhere, or none."""
    plain = PureWindowsPath(name).name == name and name.isprintable()
    if not plain or name in ("", ".."):
        raise ValueError(
            f"{where}: patientId {name!r} is no plain file name (it may have no path separators "
            "and no control characters); correct or remove the row"
        )


def _clip(labelled: Labelled, *, size: tuple[int, int]) -> tuple[tuple[Box, ...], tuple[str, ...]]:
    """The boxes within the image, with a note if they left it."""
    clipped = [
        clip_box(box, size=size, where=where)
        for box, where in zip(labelled.boxes, labelled.places, strict=True)
    ]
    notes = dict.fromkeys(note for _, notes in clipped for note in notes)
    return tuple(box for box, _ in clipped), tuple(notes)


def _box(cells: Sequence[str], *, where: str) -> Box:
    if not all(cells):
        raise ValueError(f"{where}: Target is 1 but the box is {cells}; give x, y, width, height")
    x, y, width, height = (_number(cell, where=f"{where}: the box {cells}") for cell in cells)
    box = x, y, x + width, y + height
    if not all(map(math.isfinite, box)):
        raise ValueError(f"{where}: the box {cells} is not finite; correct or remove the row")
    if width <= 0 or height <= 0:
        raise ValueError(
            f"{where}: the box is empty, width {width} and height {height}; correct or remove the "
            "row"
        )
    return box


def _number(cell: str, *, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{where}: {cell!r} is no number; correct or remove the row") from None


def _check_images(files: Mapping[str, File], ids: Iterable[str]) -> None:
    missing = [name for name in ids if f"{IMAGES}/{name}.dcm" not in files]
    if missing:
        where = str(files[LABELS]).removesuffix(LABELS)
        raise FileNotFoundError(
            f"{where}{IMAGES}: no <patientId>.dcm for {_some(missing)} of {LABELS}; unzip all "
            "images there, or remove the rows"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} ids ({', '.join(names[:3])}{more})"
