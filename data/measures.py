"""What is measured on each image of a set, in as many processes as there are cores for it."""

import functools
import multiprocessing
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image
from tqdm import tqdm

from data.dicom import is_dicom
from data.dicom_header import read_header
from data.duplicates import Appearance, appearance
from data.facts import Facts
from data.files import File
from data.images import opened_picture, read_any
from data.records import Record, load
from pp_jax.preprocess.colour import to_grey

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
MAP = 32  # Side of a position map.
CELLS = 20  # Side of the coarse picture, whose outermost ring is a frame of 5 %.

T = TypeVar("T")


class Measures(NamedTuple):
    """One image and its objects, small enough to be kept for a whole set."""

    size: tuple[int, int]  # Height, width.
    mode: str  # As stored: Pillow's mode, or DICOM's photometric interpretation.
    grey: bool  # The three channels are equal.
    alpha: bool
    bits: int | None  # Used of each stored value; None where the file does not tell.
    facts: Facts
    percentiles: tuple[float, ...]  # Grey levels 0..255 at `PERCENTILES`.
    cells: UInt8[np.ndarray, "20 20"]  # Area means of grey levels.
    appearance: Appearance
    objects: tuple[float, ...]  # Share of the image that each one covers.
    position: Float32[np.ndarray, "32 32"] | None  # Area means of the findings; None without.
    notes: tuple[str, ...]  # The record's, and what was warned of while it was read.


class Unreadable(NamedTuple):
    """Why there are no measures."""

    reason: str


def measure(record: Record) -> Measures | Unreadable:
    """All that is measured on a record's image, mask and boxes."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            sample = load(record)
            mode, alpha, bits = stored_form(record.image)
    except (ValueError, OSError) as error:
        return Unreadable(_reason(record, error))
    grey = to_grey(sample.image)
    return Measures(
        size=grey.shape,
        mode=mode,
        grey=bool((sample.image == sample.image[..., :1]).all()),
        alpha=alpha,
        bits=record.facts.bits or bits,
        facts=record.facts,
        percentiles=tuple(np.percentile(grey, PERCENTILES).tolist()),
        cells=np.asarray(Image.fromarray(grey).resize((CELLS, CELLS), Image.Resampling.BOX)),
        appearance=appearance(sample.image),
        objects=tuple(sample.objects.mean((1, 2)).tolist()),
        position=position_map(sample.findings) if sample.findings.any() else None,
        notes=record.notes + tuple(note_kind(record, str(one.message)) for one in said),
    )


def look(record: Record) -> Appearance | Unreadable:
    """What `measure` keeps to find the image again; neither mask nor boxes are looked at."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return appearance(read_any(record.image))
    except (ValueError, OSError) as error:
        return Unreadable(_reason(record, error))


def spread(
    function: Callable[[Record], T], records: Sequence[Record], *, workers: int, title: str
) -> list[T]:
    """The function of each record, in order, with a progress bar on a terminal.

    Args:
      function: Of a module, so that another process finds it.
      workers: Processes; 0 works in this one.

    Raises:
      OSError: A process was killed.
    """
    bar = functools.partial(tqdm, total=len(records), desc=title, unit="image", disable=None)
    return list(bar(_mapped(function, records, workers)))


def _mapped(
    function: Callable[[Record], T], records: Sequence[Record], workers: int
) -> Iterator[T]:
    if not workers:
        yield from map(function, records)
        return
    # Spawned, not forked: the caller may have started JAX, whose threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            yield from pool.map(function, records, chunksize=4)
    except BrokenProcessPool as error:
        raise OSError(
            "a process that decodes was killed, as happens when memory runs out; start the same "
            "command again with fewer --workers"
        ) from error


def stored_form(file: File) -> tuple[str, bool, int | None]:
    """Mode, whether there is transparency, and bits per value, as the file stores them.

    Raises:
      ValueError: A DICOM without a readable header, or not a readable picture.
      OSError: The file cannot be opened.
    """
    if is_dicom(file):
        header = read_header(file)
        return header.photometric, False, header.stored
    with opened_picture(file) as picture:
        return picture.mode, picture.has_transparency_data, _bits(picture)


def _bits(picture: Image.Image) -> int | None:
    if picture.mode == "1":
        return 1
    if picture.mode.startswith("I;16"):
        return 16
    return 32 if picture.mode in ("I", "F") else 8


def position_map(findings: Bool[np.ndarray, "H W"]) -> Float32[np.ndarray, "32 32"]:
    """Share of the findings in each cell of a grid over the image, whatever its shape."""
    levels = Image.fromarray(findings.astype(np.float32))
    return np.asarray(levels.resize((MAP, MAP), Image.Resampling.BOX))


def note_kind(record: Record, message: str) -> str:
    """A warning without the file and the numbers in it, so that equal ones can be counted."""
    for file in (record.image, record.mask):
        message = message.removeprefix(f"{file}: ")
    return re.sub(r"-?\d+(\.\d+)?", "#", " ".join(message.split()))


def _reason(record: Record, error: Exception) -> str:
    return " ".join(str(error).split()).removeprefix(f"{record.image}: ")
