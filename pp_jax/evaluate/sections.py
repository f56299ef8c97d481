"""What a report is made of: plain records, whatever they are written as."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pp_jax.evaluate.statistics import Interval

Cell = str | int | float | None | Interval


class Column(NamedTuple):
    """One column of a table."""

    name: str
    unit: str = ""  # Stands in brackets behind the name.
    digits: int = 3  # Behind the point, of numbers that are not whole.
    higher_is_better: bool | None = None  # None: no value of the column is its best.


@dataclass(frozen=True)
class Table:
    """Rows of cells under their columns; None is a value that is not known, an empty cell.

    Raises:
      ValueError: A row has more or fewer cells than there are columns, or a number is not finite.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()  # What a reader must know to read the numbers, below them.

    def __post_init__(self):
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                where = f"table {self.title!r}, row {index}"
                raise ValueError(f"{where}: {len(row)} cells for {len(self.columns)} columns")
            for cell, column in zip(row, self.columns, strict=True):
                numbers = cell[:3] if isinstance(cell, Interval) else (cell,)
                if any(isinstance(one, float) and not math.isfinite(one) for one in numbers):
                    where = f"table {self.title!r}, row {index}, column {column.name!r}"
                    raise ValueError(f"{where}: {cell} is not finite; not known is None")


class Picture(NamedTuple):
    """A PNG or SVG file."""

    path: Path
    title: str
    caption: str = ""


class Section(NamedTuple):
    """One heading of a report and all that stands below it.

    A paragraph that begins with "$ " is a command, to be copied as it stands behind these two.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
