"""Files that are whole or not there: written under a temporary name, then renamed."""

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pp_jax.evaluate.subjects import KEYS, Row

# Columns that stay text when a table is read: an id "007" is no number, an empty one is "".
TEXT = (*KEYS, "target", "label", "view", "sex", "empty", "error")


def put(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` fill a temporary file beside `path`, then give it that name.

    If it fails, an older file of that name is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def put_text(path: Path, text: str) -> None:
    """Write text as UTF-8 with the line ends that it has, whole or not at all."""
    put(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, one column per key, numbers in full digits; None becomes an empty cell.

    Raises:
      ValueError: There is no row, a row has other keys than the first, or a number is not finite.
    """
    if not rows:
        raise ValueError(f"no rows to write to {path}; was the list of images empty?")
    columns = list(rows[0])
    for index, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise ValueError(f"a row for {path} has the columns {list(row)}, the first {columns}")
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"row {index} for {path}: {name} is {value}; not known is None")

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    put(path, write)


def read_rows(path: Path, *, text: Sequence[str] = TEXT) -> list[Row]:
    """The rows of a CSV that `write_rows` wrote, as they were given to it.

    Args:
      path: The file.
      text: Columns that hold text, where an empty cell is "". In any other an empty cell is None,
        "True" and "False" are truth values, a number is one, and the rest is text.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: A line has more or fewer cells than there are columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; has eval.py finished there?")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        rows = []
        for cells in reader:
            if len(cells) != len(columns):
                line = f"{path}, line {reader.line_num}"
                raise ValueError(f"{line}: {len(cells)} cells for {len(columns)} columns")
            rows.append(
                {
                    name: cell if name in text else _value(cell)
                    for name, cell in zip(columns, cells, strict=True)
                }
            )
    return rows


def _value(cell: str) -> str | int | float | bool | None:
    if cell in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[cell]
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
