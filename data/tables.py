"""Rows of a user's CSV, each cell as text."""

import csv
import io
from collections.abc import Iterator, Sequence

from data.files import File


def read_rows(path: File, *layouts: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and stripped cells of each row; a short row has empty cells at its end.

    All columns of the file are given, in any order.

    Args:
      path: The CSV, with a header.
      layouts: Sets of columns, of which the file must have one whole.

    Raises:
      ValueError: Names the columns that are there and those that are wanted, or a file that is no
        text.
      OSError: The file cannot be opened.
    """
    try:
        with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, restval="")
            header = [name.strip() for name in reader.fieldnames or []]
            if not any(set(layout) <= set(header) for layout in layouts):
                wanted = " or ".join(",".join(layout) for layout in layouts)
                missing = " or ".join(_missing(layout, header) for layout in layouts)
                raise ValueError(
                    f"{path}: needs the columns {wanted}; it has {','.join(header)}: no column "
                    f"{missing}"
                )
            reader.fieldnames = header
            for row in reader:
                cells = {name: row[name].strip() for name in header}
                if any(cells.values()):
                    yield reader.line_num, cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV in UTF-8 ({error})") from error


def _missing(layout: Sequence[str], header: Sequence[str]) -> str:
    return ", ".join(name for name in layout if name not in header)
