"""Tables as text: every figure stands where it was given, whatever letters stand beside it."""

import csv
import io
import re
from dataclasses import replace

import pytest

from pp_jax.evaluate import tables
from pp_jax.evaluate.sections import Column, Picture, Section, Table
from pp_jax.evaluate.statistics import Interval

SAM = Interval(0.81249, 0.7, 0.9, 57, 46, 1, 0.95)
NASTY = r"50 % of a_b & #1 {x} $y$ \z ~ ^ < > | [c] *"
TABLE = Table(
    "Dice by method",
    (
        Column("method"),
        Column("images"),
        Column("Dice", higher_is_better=True),
        Column("HD95", unit="%", digits=1, higher_is_better=False),
        Column("pred. IoU"),
    ),
    (
        ("sam", 57, SAM, 3.25, 0.75),
        ("filled box", 57, SAM._replace(mean=0.722, low=-0.00001), 4.0, None),
        (NASTY, 3, Interval(0.5, 0.5, 0.5, 3, 1, 1, 0.95), 10.0, None),
    ),
    ("Dice is 1 where both are empty.", "Second\nnote."),
)


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_shows_the_figures_it_was_given():
    head, _, sam, box, nasty = markdown_cells(tables.to_markdown(TABLE))
    assert head == ["method", "images", "Dice [95 %]", "HD95 (%)", "pred. IoU"]
    assert sam == ["sam", "57", "0.812 [0.700, 0.900]", "3.2", "0.750"]
    assert box == ["filled box", "57", "0.722 [0.000, 0.900]", "4.0", ""]
    assert nasty[1:4] == ["3", "0.500 [1 patient]", "10.0"]
    assert nasty[0].replace("\\|", "|").replace("\\<", "<") == NASTY
    assert "\n\nDice is 1 where both are empty.\n\nSecond note.\n" in tables.to_markdown(TABLE)


def test_markdown_is_aligned_and_numbers_are_to_the_right():
    lines = [line for line in tables.to_markdown(TABLE).splitlines() if line.startswith("|")]
    bars = [[m.start() for m in re.finditer(r"(?<!\\)\|", line)] for line in lines]
    assert all(bar == bars[0] for bar in bars)
    assert set(lines[1]) == set("|-: ")
    rules = [rule.strip() for rule in lines[1].strip("|").split("|")]
    assert [rule.endswith(":") for rule in rules] == [False, True, True, True, True]


def test_a_short_column_is_still_a_table():
    assert markdown_cells(tables.to_markdown(Table("t", [Column("n")], [["a"]])))[1] == ["---"]


LATEX_COMMANDS = (
    ("textbackslash{}", "\\"),
    ("textasciitilde{}", "~"),
    ("textasciicircum{}", "^"),
    ("textless{}", "<"),
    ("textgreater{}", ">"),
    ("textbar{}", "|"),
    *((letter, letter) for letter in "&%$#_{}"),
)


def plain_latex(source: str) -> str:
    """What LaTeX prints of a cell; fails on a letter that has a meaning and is not escaped."""
    printed, depth = "", 0
    while source:
        if source[0] == "\\":
            name, letter = next(one for one in LATEX_COMMANDS if source[1:].startswith(one[0]))
            printed, source = printed + letter, source[1 + len(name) :]
            continue
        assert source[0] not in "&%$#_~^<>|", source
        depth += {"{": 1, "}": -1}.get(source[0], 0)
        assert depth >= 0, source
        printed, source = printed + source[0].strip("{}"), source[1:]
    assert depth == 0
    return printed


def latex_rows(source: str) -> list[list[str]]:
    """The cells of a table's rows, each of which must end as rows do and begin with no option."""
    inside = source[source.index(r"\toprule") + 8 : source.index(r"\bottomrule")]
    rows = [row.strip() for row in inside.replace(r"\midrule", "").split("\\\\\n")]
    assert rows.pop() == ""
    assert not any(row.startswith(("[", "*")) for row in rows)
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", row)] for row in rows]


def test_latex_prints_the_figures_it_was_given():
    head, sam, box, nasty = latex_rows(tables.to_latex(TABLE))
    assert [plain_latex(cell) for cell in head][2:4] == ["Dice [95 %]", "HD95 (%)"]
    assert plain_latex(nasty[0]) == NASTY
    assert sam == ["sam", "57", r"\textbf{0.812 [0.700, 0.900]}", r"\textbf{3.2}", "0.750"]
    assert box == ["filled box", "57", "0.722 [0.000, 0.900]", "4.0", ""]
    assert nasty[1:] == ["3", "0.500 [1 patient]", "10.0", ""]


@pytest.mark.parametrize("words", ["[0, 1]", "*", "* a", "[", r"\\[1em]", "100%", "a\n\nb", ""])
def test_no_words_change_what_latex_does(words):
    source = tables.to_latex(Table(words, [Column(words)], [[words]], [words]))
    head, row = latex_rows(source)
    assert plain_latex(head[0]) == plain_latex(row[0]) == " ".join(words.split())
    commands = re.findall(r"(?<!\\)(?:\\\\)*\\(begin|end)\{(\w+)\}", source)
    assert commands == [
        *[("begin", "table"), ("begin", "tabular")],
        *[("end", "tabular"), ("end", "table")],
    ]
    bare = re.sub(r"\\[{}]", "", source)
    assert bare.count("{") == bare.count("}")


@pytest.mark.parametrize(
    ("column", "cells", "rows"),
    [
        (Column("x", higher_is_better=True), [0.1, 0.9, None], {1}),
        (Column("x", higher_is_better=False), [0.1, 0.9, None], {0}),
        (Column("x"), [0.1, 0.9], set()),
        (Column("x", digits=2, higher_is_better=True), [0.901, 0.9, 0.5], {0, 1}),
        (Column("x", digits=2, higher_is_better=True), [0.901, 0.9], set()),
        (Column("x", higher_is_better=True), [0.5, None], set()),
        (Column("x", higher_is_better=True), [SAM, 0.7, 3], {2}),
        (Column("x", higher_is_better=True), ["a", "b"], set()),
    ],
)
def test_the_best_is_what_is_printed_as_best(column, cells, rows):
    table = Table("t", [column], [[cell] for cell in cells])
    assert tables.best(table) == {(row, 0) for row in rows}
    assert (tables.BEST in tables.to_latex(table)) == bool(rows)


def test_csv_keeps_all_digits_and_spreads_intervals():
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(TABLE))))
    assert rows[0] == {
        **{"method": "sam", "images": "57", "HD95": "3.25", "pred. IoU": "0.75"},
        **{"Dice": "0.81249", "Dice low": "0.7", "Dice high": "0.9"},
        **{"Dice images": "57", "Dice patients": "46", "Dice seeds": "1"},
    }
    assert rows[2]["method"] == NASTY
    assert (rows[2]["Dice low"], rows[2]["Dice high"], rows[2]["Dice patients"]) == ("", "", "1")


def test_a_table_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="'Dice by method', row 0: 1 cells for 5 columns"):
        replace(TABLE, rows=[["sam"]])
    for cell in (float("nan"), SAM._replace(low=float("inf"))):
        with pytest.raises(ValueError, match=r"row 0, column 'n': .* is not finite"):
            Table("t", [Column("n")], [[cell]])


def test_a_table_names_rectangles_and_targets_that_nobody_drew():
    assert tables.target_notes(["mask", "machine-made", "mask"]) == ()
    box, ellipse = tables.target_notes(["box", "mask", "ellipse from box", "box"])
    assert "Dice is against rectangles" in box
    assert "ellipse from box: made of the box, not drawn by a reader" in ellipse


def test_a_document_holds_all_sections_in_their_order(tmp_path):
    (tmp_path / "plots").mkdir()
    sections = [
        Section("Main result", ["Prose.", "$ python eval.py --seed 1"], [TABLE]),
        Section("Pictures", pictures=[Picture(tmp_path / "plots" / "a b.png", "Title", "Words.")]),
    ]
    path = tmp_path / "table.md"
    tables.write_markdown(path, sections, title="An evaluation", settings={"seed": 7})
    told = path.read_text()
    parts = ["# An evaluation", "## Main result", "Prose.", "```sh\npython eval.py --seed 1\n```"]
    parts += ["### Dice by method", "| sam ", "## Pictures", "![Title](<plots/a b.png>)", "Words."]
    parts += ["## Settings", "- seed: 7\n"]
    places = [told.index(part) for part in parts]
    assert places == sorted(places)
    tables.write_latex(tmp_path / "table.tex", sections)
    source = (tmp_path / "table.tex").read_text()
    assert source.startswith("% ")
    assert source.count(r"\begin{table}") == 1
