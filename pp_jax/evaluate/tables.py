"""Tables as Markdown, LaTeX and CSV; only what is called `write_` touches a file."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pp_jax.evaluate.files import put_text
from pp_jax.evaluate.sections import Cell, Column, Section, Table
from pp_jax.evaluate.statistics import Interval

BEST = "Bold: the best of its column."


def heading(table: Table, index: int) -> str:
    """A column's name with its unit and, above intervals, the level of their confidence."""
    column = table.columns[index]
    cells = [row[index] for row in table.rows]
    levels = {cell.level for cell in cells if isinstance(cell, Interval) and cell.patients > 1}
    told = ", ".join(f"{100 * level:g} %" for level in sorted(levels))
    return column.name + (f" ({column.unit})" if column.unit else "") + (f" [{told}]" * bool(told))


def text(cell: Cell, column: Column) -> str:
    """A cell as people read it: "" for None, `0.784 [0.753, 0.808]`, `0.784 [1 patient]`."""
    if cell is None:
        return ""
    if isinstance(cell, Interval):
        mean, low, high = (f"{value:z.{column.digits}f}" for value in cell[:3])
        return f"{mean} [1 patient]" if cell.patients == 1 else f"{mean} [{low}, {high}]"
    return f"{cell:z.{column.digits}f}" if isinstance(cell, float) else str(cell)


def value(cell: Cell) -> float | None:
    """The number that a cell is sorted and ranked by: an interval's mean; None: it has none."""
    if isinstance(cell, Interval):
        return cell.mean
    return float(cell) if isinstance(cell, int | float) else None


def is_numeric(table: Table, index: int) -> bool:
    """Whether a column has numbers only: such a column is aligned to the right."""
    known = [row[index] for row in table.rows if row[index] is not None]
    return bool(known) and all(value(cell) is not None for cell in known)


def best(table: Table) -> frozenset[tuple[int, int]]:
    """Row and column of the best values, where a column says which is better.

    What is printed alike is equally good, whatever the digits that are not printed; where all rows
    are equal, or only one has a value, none is the best.
    """
    found = set()
    for index, column in enumerate(table.columns):
        if column.higher_is_better is None:
            continue
        known = {
            i: round(value(row[index]), column.digits)
            for i, row in enumerate(table.rows)
            if value(row[index]) is not None
        }
        if len(set(known.values())) < 2:
            continue
        top = (max if column.higher_is_better else min)(known.values())
        found |= {(i, index) for i, one in known.items() if one == top}
    return frozenset(found)


def target_notes(kinds: Iterable[str]) -> tuple[str, ...]:
    """What a table must say of targets that no reader has outlined, by `Subject.target`."""
    rectangles = "Target box: the true outline is unknown, Dice is against rectangles."
    return tuple(
        rectangles
        if kind == "box"
        else f"Target {kind}: made of the box, not drawn by a reader; no true outline."
        for kind in dict.fromkeys(kinds)
        if kind == "box" or kind.endswith("from box")
    )


def to_markdown(table: Table) -> str:
    """The table aligned for the terminal, its notes below it; without its title."""
    columns = range(len(table.columns))
    right = [is_numeric(table, index) for index in columns]
    lines = [[_in_markdown(heading(table, index)) for index in columns]]
    lines += [
        [_in_markdown(text(cell, column)) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    # Three dashes at least: what GitHub takes for a table.
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rules = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    aligned = [
        [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        for line in lines
    ]
    drawn = [f"| {' | '.join(line)} |" for line in (aligned[0], rules, *aligned[1:])]
    return "\n".join([*drawn, *(f"\n{' '.join(note.split())}" for note in table.notes)]) + "\n"


def to_latex(table: Table) -> str:
    """A `table` environment of booktabs; the best values are bold, notes below the rows."""
    bold = best(table)
    columns = range(len(table.columns))
    body = [
        [
            _bold(_in_latex(text(cell, column)), (i, j) in bold)
            for j, (cell, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        for i, row in enumerate(table.rows)
    ]
    notes = [*table.notes, *([BEST] if bold else [])]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"  \centering",
            rf"  \caption{{{_in_latex(table.title)}}}",
            rf"  \begin{{tabular}}{{{''.join('lr'[is_numeric(table, j)] for j in columns)}}}",
            r"    \toprule",
            rf"    {' & '.join(_in_latex(heading(table, j)) for j in columns)} \\",
            r"    \midrule",
            *(rf"    {' & '.join(cells)} \\" for cells in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(rf"  \par\smallskip{{\footnotesize {_in_latex(note)}\par}}" for note in notes),
            r"\end{table}",
            "",
        ]
    )


def to_csv(table: Table) -> str:
    """The table in full digits; an interval gives its bounds, images, patients and seeds, too."""
    spread = [
        any(isinstance(row[index], Interval) for row in table.rows)
        for index in range(len(table.columns))
    ]
    names = [
        name
        for column, wide in zip(table.columns, spread, strict=True)
        for name in [column.name, *(f"{column.name} {part}" for part in _PARTS if wide)]
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in table.rows:
        writer.writerow(
            one
            for cell, wide in zip(row, spread, strict=True)
            for one in (_spread(cell) if wide else [cell])
        )
    return file.getvalue()


def write_markdown(
    path: Path, sections: Sequence[Section], *, title: str, settings: Mapping[str, Any]
) -> None:
    """Write the report as one Markdown document; pictures are links relative to it.

    Args:
      path: The file, in a folder that exists.
      sections: In their order.
      title: First line.
      settings: What a reader needs to repeat it; last section.
    """
    parts = [f"# {_in_markdown(title)}"]
    for section in sections:
        parts += [f"## {_in_markdown(section.heading)}", *map(_paragraph, section.paragraphs)]
        for table in section.tables:
            parts += [f"### {_in_markdown(table.title)}", to_markdown(table).rstrip("\n")]
        for picture in section.pictures:
            where = Path(os.path.relpath(picture.path, path.parent)).as_posix()
            parts += [f"![{_in_markdown(picture.title)}](<{where}>)", _in_markdown(picture.caption)]
    lines = [f"- {_in_markdown(f'{key}: {settings[key]}')}" for key in settings]
    parts += ["## Settings", "\n".join(lines)]
    put_text(path, "\n\n".join(part for part in parts if part) + "\n")


def write_latex(path: Path, sections: Sequence[Section]) -> None:
    """Write all tables as LaTeX, to be taken in by `\\input`; the document loads booktabs."""
    parts = ["% \\usepackage{booktabs}\n"]
    for section in sections:
        parts += [f"% {' '.join(section.heading.split())}\n", *map(to_latex, section.tables)]
    put_text(path, "\n".join(parts))


def command(paragraph: str) -> str | None:
    """The command that a paragraph is, as a shell takes it; None: it is prose."""
    return paragraph[2:] if paragraph.startswith("$ ") else None


def _paragraph(paragraph: str) -> str:
    shell = command(paragraph)
    return _in_markdown(paragraph) if shell is None else f"```sh\n{shell}\n```"


def _in_markdown(words: str) -> str:
    """On one line, without what would end a cell or begin a tag."""
    return " ".join(words.split()).replace("|", r"\|").replace("<", r"\<")


def _in_latex(words: str) -> str:
    escaped = "".join(_LATEX.get(letter, letter) for letter in " ".join(words.split()))
    # After the end of a row a star or a bracket would be taken for an option of `\\\\`.
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped.startswith(("[", "*")) else escaped


def _bold(words: str, best: bool) -> str:
    return rf"\textbf{{{words}}}" if best and words else words


def _spread(cell: Cell) -> list[Cell]:
    """An interval as one cell for each of `_PARTS`; without an interval, no bounds."""
    if not isinstance(cell, Interval):
        return [cell, *[None] * len(_PARTS)]
    bounds = (None, None) if cell.patients == 1 else (cell.low, cell.high)
    return [cell.mean, *bounds, cell.images, cell.patients, cell.seeds]


_PARTS = ("low", "high", "images", "patients", "seeds")
_LATEX: Mapping[str, str] = MappingProxyType(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': "''",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "≈": r"$\approx$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "−": "$-$",
        "→": r"$\rightarrow$",
        "µ": r"\textmu{}",
        "°": r"\textdegree{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }
)
