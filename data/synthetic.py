"""A small data set of chest phantoms in exactly RSNA's layout: real DICOM files, real CSVs.

python -m data.synthetic --out DIR --images 360 --seed 0 --side 1024
"""

import csv
import io
import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from jaxtyping import UInt8
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage, generate_uid
from tqdm import tqdm

from data import rsna
from data.phantom import Anatomy, Phantom, draw_anatomy, draw_phantom
from data.records import tight_boxes
from pp_jax import outlook

VERSION = 1  # Of the pictures: raise it when the same seed draws others.
RECIPE = "generator.json"
SMALLEST = 64  # Pixels; below it nothing is left of a rib.
IMAGE, PERSON, GROUPS = 0, 1, 2  # What a stream of random numbers is for.


class _Written(NamedTuple):
    id: str
    boxes: list[list[float]]
    label: str


def generate(
    folder: Path, *, images: int = 360, seed: int = 0, side: int = 1024, workers: int = 2
) -> Path:
    """The folder, filled with `images` DICOM files, masks for all of them, and RSNA's CSVs.

    The same arguments give the same files, whatever the number of workers; more images continue the
    same series. The set appears under its name only when it is complete; a complete one with the
    same arguments is left as it is.

    Args:
      folder: Must not exist, or be empty, or hold just this set.
      images: Number of pictures, of about two thirds as many patients.
      seed: Of everything drawn.
      side: Of the square pictures, in pixels.
      workers: Processes that draw; 0 draws in this one.

    Raises:
      ValueError: Too few images or pixels, or a folder that holds something else.
    """
    folder = Path(folder)
    if images < 1 or side < SMALLEST or seed < 0:
        raise ValueError(
            f"cannot draw {images=} with {side=} from {seed=}; "
            f"needs 1 image, {SMALLEST} pixels and a seed of 0 at least"
        )
    recipe = {"version": VERSION, "images": images, "seed": seed, "side": side}
    if _holds(folder, recipe):
        return folder
    unfinished = folder.with_name(f".{folder.name}.unfinished-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in (rsna.IMAGES, rsna.MASKS):
        (unfinished / part).mkdir(parents=True)
    try:
        patients = _group(images, seed)
        draw = partial(_draw, unfinished, seed, side)
        drawn = tqdm(_spread(draw, patients, workers), total=images, desc="X-rays")
        written = list(outlook.watched(drawn, images, "images", devices=False))
        _write_tables(unfinished, written, patients)
        (unfinished / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _holds(folder: Path, recipe: dict[str, int]) -> bool:
    """Whether the finished set is there; a ValueError if something else is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = (folder / RECIPE).read_text() if (folder / RECIPE).is_file() else "no data set"
    if found.startswith("{") and json.loads(found) == recipe:
        return True
    raise ValueError(
        f"{folder} holds {' '.join(found.split())}, not {json.dumps(recipe)}; "
        "choose another folder or remove this one"
    )


def _group(images: int, seed: int) -> list[int]:
    """Patient number of each image: most have one, some two or three."""
    rng = np.random.default_rng([seed, GROUPS])
    sizes = rng.choice([1, 2, 3], p=[0.65, 0.22, 0.13], size=images)
    return np.repeat(np.arange(images), sizes)[:images].tolist()


def _spread(draw: partial, patients: Sequence[int], workers: int) -> Iterator[_Written]:
    if not workers:
        yield from map(draw, range(len(patients)), patients)
        return
    # Spawned, not forked: the caller may have started JAX, whose threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(draw, range(len(patients)), patients, chunksize=4)


def _draw(folder: Path, seed: int, side: int, number: int, patient: int) -> _Written:
    anatomy = draw_anatomy(np.random.default_rng([seed, PERSON, patient]))
    rng = np.random.default_rng([seed, IMAGE, number])
    name = str(uuid.UUID(bytes=rng.bytes(16), version=4))
    phantom = draw_phantom(rng, anatomy, side=side)
    _write_dicom(folder / rsna.IMAGES / f"{name}.dcm", name, anatomy, phantom)
    mask = np.uint8(255) * phantom.objects.any(0)
    Image.fromarray(mask).save(folder / rsna.MASKS / f"{name}.png")
    return _Written(name, tight_boxes(phantom.objects).tolist(), phantom.label)


def _write_dicom(path: Path, name: str, anatomy: Anatomy, phantom: Phantom) -> None:
    """A file with the header fields of RSNA's."""
    height, width = phantom.image.shape
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    instance = generate_uid(entropy_srcs=[name, "instance"])
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = instance
    data.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
    data.SpecificCharacterSet = "ISO_IR 100"
    data.Modality, data.ConversionType, data.BodyPartExamined = "CR", "WSD", "CHEST"
    data.SeriesDescription = f"view: {phantom.position}"
    data.ViewPosition = phantom.position
    data.PatientName = data.PatientID = name
    data.PatientSex = anatomy.sex
    # RSNA writes "51" where the standard wants "051Y"; readers must bear it.
    age = pydicom.DataElement(
        "PatientAge", "AS", str(anatomy.age), validation_mode=pydicom.config.IGNORE
    )
    data.add(age)
    data.InstanceNumber = "1"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = height, width
    data.PixelSpacing = [round(0.168 * 1024 / width, 4)] * 2
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.LossyImageCompression, data.LossyImageCompressionMethod = "01", "ISO_10918_1"
    data.PixelData = encapsulate([_jpeg(phantom.image)])
    data.save_as(path, enforce_file_format=True)


def _jpeg(image: UInt8[np.ndarray, "H W"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write_tables(folder: Path, written: Sequence[_Written], patients: Sequence[int]) -> None:
    boxes = []
    for image in written:
        for x0, y0, x1, y1 in image.boxes:
            boxes.append((image.id, x0, y0, x1 - x0, y1 - y0, 1))
        if not image.boxes:
            boxes.append((image.id, "", "", "", "", 0))
    _write(folder / rsna.LABELS, ("patientId", "x", "y", "width", "height", "Target"), boxes)
    # As in RSNA's own table: as many rows per id as in the labels.
    classes = [(i.id, i.label) for i in written for _ in range(max(1, len(i.boxes)))]
    _write(folder / rsna.CLASSES, ("patientId", "class"), classes)
    people = [(image.id, f"P{number:05d}") for image, number in zip(written, patients, strict=True)]
    _write(folder / rsna.PATIENTS, ("patientId", "patient"), people)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(out: Path, images: int = 360, seed: int = 0, side: int = 1024) -> None:
    """Write chest X-ray phantoms with opacities in RSNA's layout: DICOM, CSVs, masks.

    Args:
      out: Folder to write; one that holds the same set already is left as it is.
      images: How many.
      seed: Of everything that is drawn.
      side: Of each image, in pixels.
    """
    generate(out, images=images, seed=seed, side=side)


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(main, prog="python -m data.synthetic")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
