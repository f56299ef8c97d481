"""`python -m data check`: pictures that two data sets share."""

import csv
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from data.describe import default_folder
from data.duplicates import TURNS, Appearance, Pair, equal_pairs, near_pairs
from data.measures import Unreadable, look, spread
from data.records import Record
from data.sources import open_dataset

COLUMNS = ("first", "second", "correlation", "turned", "same_pixels")
_SHOWN = 20


@dataclass(frozen=True)
class Check:
    """List the pictures that two data sets share, exactly or nearly; exit code 1 if there are any.

    Found are copies that were scaled, padded, cropped to their content, recompressed or inverted.
    """

    first: tyro.conf.Positional[str]
    """A data set: NAME, which lies in `datasets/NAME`, or NAME=DIR."""
    second: tyro.conf.Positional[str]
    """The other one."""
    turned: bool = False
    """Look for turned and mirrored copies, too: eight times the comparisons."""
    out: Path | None = None
    """A CSV to write all pairs to."""
    limit: int | None = None
    """Number of patients of each set: the first ones, with all their images."""
    workers: int = 2
    """Processes that decode; 0: this one."""


def run(settings: Check) -> None:
    """Print the pairs and write the CSV.

    Raises:
      SystemExit: Code 1: there are pairs.
      ValueError: A wrong name or number, twice the same set, or no readable image.
      OSError: A folder is missing, or the CSV cannot be written.
    """
    if settings.workers < 0:
        raise ValueError(f"--workers {settings.workers}: a number of processes, 0 or more")
    named = [parse_set(text) for text in (settings.first, settings.second)]
    folders = [folder.resolve() for _, folder in named]
    if folders[0] == folders[1]:
        raise ValueError(
            f"{settings.first} and {settings.second} are one folder; `python -m data describe` "
            "lists the copies within a set"
        )
    opened = [open_dataset(name, folder, limit=settings.limit) for name, folder in named]
    held = [
        _appearances(records, name, workers=settings.workers)
        for records, (name, _) in zip(opened, named, strict=True)
    ]
    rows = shared(*held, turned=settings.turned)
    if settings.out is not None:
        _write(settings.out, rows)
    sizes = f"{len(held[0])} images of {settings.first} and {len(held[1])} of {settings.second}"
    if not rows:
        print(f"no picture is shared by {sizes}")
        return
    for row in rows[:_SHOWN]:
        print("  ".join(str(row[column]) for column in COLUMNS[:4]).rstrip())
    if len(rows) > _SHOWN:
        print(f"and {len(rows) - _SHOWN} more; --out FILE lists all")
    pictures = [len({row[column] for row in rows}) for column in COLUMNS[:2]]
    print(
        f"{len(rows)} pairs among {sizes}: {pictures[0]} pictures of the first, {pictures[1]} of "
        "the second; never train on one set and test on the other"
    )
    raise SystemExit(1)


def parse_set(text: str) -> tuple[str, Path]:
    """Name and folder from NAME=DIR, or from NAME alone."""
    name, given, folder = text.partition("=")
    if given and not folder:
        raise ValueError(f"{text}: no folder after the =; write NAME=DIR, or NAME alone")
    return name, Path(folder) if given else default_folder(name)


def shared(
    first: Mapping[str, Appearance], second: Mapping[str, Appearance], *, turned: bool = False
) -> list[dict[str, str | float]]:
    """A row of `COLUMNS` for each pair of pictures that are the same or nearly, by id."""
    digests = [[one.digest for one in held.values()] for held in (first, second)]
    thumbnails = [np.stack([one.thumbnail for one in held.values()]) for held in (first, second)]
    pairs = {pair[:2]: pair for pair in near_pairs(*thumbnails, turns=_turns(turned))}
    equal = set(equal_pairs(*digests))
    pairs |= {rows: Pair(*rows, 1.0, "upright") for rows in equal}
    ids = list(first), list(second)
    return [
        {
            "first": ids[0][i],
            "second": ids[1][j],
            "correlation": pairs[i, j].correlation,
            "turned": pairs[i, j].turned,
            "same_pixels": "yes" if (i, j) in equal else "no",
        }
        for i, j in sorted(pairs)
    ]


def _turns(turned: bool) -> Sequence[str]:
    return tuple(TURNS) if turned else ("upright",)


def _appearances(records: Sequence[Record], name: str, *, workers: int) -> dict[str, Appearance]:
    """By id; images that cannot be read are left out, with one warning."""
    seen = spread(look, records, workers=workers, title=name)
    lost = [
        f"{record.id}: {one.reason}"
        for record, one in zip(records, seen, strict=True)
        if isinstance(one, Unreadable)
    ]
    if len(lost) == len(records):
        raise ValueError(f"{name}: none of {len(records)} images can be read, {lost[0]}")
    if lost:
        warnings.warn(
            f"{name}: {len(lost)} images that cannot be read are left out, first {lost[0]}",
            stacklevel=2,
        )
    return {
        record.id: one
        for record, one in zip(records, seen, strict=True)
        if isinstance(one, Appearance)
    }


def _write(path: Path, rows: Sequence[Mapping[str, str | float]]) -> None:
    partial = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
