"""`python -m data describe`: a data set's statistics, contact sheet and fingerprint.

OUT/fingerprint.json   all figures
OUT/fingerprint.md     the same as a page
OUT/sheet.png          a sample with boxes and outlines
OUT/positions.png      where findings lie
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from data.fingerprint import Figures, fingerprint, to_json
from data.measures import Measures, Unreadable, measure, spread
from data.page import page
from data.sheet import Tile, choose, contact_sheet, draw_positions, draw_tile
from data.sources import DATASETS, open_dataset

FIGURES, PAGE, SHEET, POSITIONS = "fingerprint.json", "fingerprint.md", "sheet.png", "positions.png"


@dataclass(frozen=True)
class Describe:
    """Print what a data set is like; write its fingerprint and a contact sheet."""

    name: tyro.conf.Positional[str]
    """The data set."""
    data_dir: Path | None = None
    """Its folder; by default `datasets/NAME`."""
    out: Path | None = None
    """The folder to write; by default `runs/fingerprints/NAME`. An older one is replaced."""
    limit: int | None = None
    """Number of patients: the first ones, with all their images."""
    workers: int = 2
    """Processes that decode; 0: this one."""
    sample: int = 24
    """Images on the contact sheet, half of them with a finding."""


def run(settings: Describe) -> None:
    """Print the page and write the folder, which appears as a whole.

    Raises:
      ValueError: A wrong name or number, no readable image, or a folder `out` that holds something
        else.
      OSError: A folder is missing, or cannot be written.
    """
    name, least = settings.name, {"workers": 0, "sample": 1}
    for field, low in least.items():
        if getattr(settings, field) < low:
            raise ValueError(f"--{field} {getattr(settings, field)}: must be at least {low}")
    out = settings.out or Path("runs", "fingerprints", name)
    check_free(out)
    records = open_dataset(name, settings.data_dir or default_folder(name), limit=settings.limit)
    measured = spread(measure, records, workers=settings.workers, title="reading")
    figures = fingerprint(records, measured, name=name, licence=DATASETS[name].licence)
    readable = [
        record for record, one in zip(records, measured, strict=True) if isinstance(one, Measures)
    ]
    found = [one.position is not None for one in measured if isinstance(one, Measures)]
    drawn = [readable[row] for row in choose(found, count=settings.sample)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Counted when they were measured.
        tiles = spread(draw_tile, drawn, workers=0, title="drawing")
    write(out, figures, tiles)
    print(f"{page(figures)}\n{out}: {', '.join((FIGURES, PAGE, SHEET, POSITIONS))}")


def default_folder(name: str) -> Path:
    """Where a data set lies unless told otherwise; an unknown one has its name there."""
    return Path("datasets", DATASETS[name].folder if name in DATASETS else name)


def write(out: Path, figures: Figures, tiles: Sequence[Tile | Unreadable]) -> None:
    """The folder `out` with its four files; an older fingerprint there is replaced."""
    name, images = figures["name"], figures["images"]
    pictures = f"![A sample]({SHEET})\n\n![Where findings lie]({POSITIONS})\n"
    count = figures["objects"]["images_with_finding"]
    with replaced(out) as partial:
        (partial / FIGURES).write_text(to_json(figures), encoding="utf-8")
        (partial / PAGE).write_text(f"{page(figures)}\n{pictures}", encoding="utf-8")
        kept = [tile for tile in tiles if isinstance(tile, Tile)]
        contact_sheet(kept, title=f"{name}: {len(kept)} of {images}").save(partial / SHEET)
        positions = np.array(figures["positions"])
        figure = draw_positions(positions, title=f"{name}: {count} images with a finding")
        figure.savefig(partial / POSITIONS)


def check_free(out: Path) -> None:
    """Nothing, or a ValueError where `out` holds anything but an older fingerprint."""
    ours = (out / FIGURES).is_file()
    if out.exists() and not ours and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"--out {out}: holds something else; choose another folder")


@contextlib.contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` in the end, or disappears on an error."""
    partial = out.with_name(f".{out.name}.unfinished-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(out, ignore_errors=True)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
