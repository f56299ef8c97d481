"""What is written is what was given: tables against literals, files read back, pictures' pixels."""

import csv
import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from pp_jax.evaluate import report
from pp_jax.evaluate.statistics import Interval, Summary, worst_median_best

SAM = Summary(
    method="sam",
    protocol="one click",
    target="mask",
    dice=Interval(0.81249, 0.7, 0.9, 57, 46, 0.95),
    iou=Interval(0.6844, 0.5955, 1.0, 57, 46, 0.95),
    predicted_iou=0.75,
    both_empty=3,
    one_empty=11,
)
BOX = SAM._replace(method="filled box", protocol="box", predicted_iou=None, both_empty=0)
HALF = np.tile(np.arange(100) < 50, (80, 1))
SMALL = np.zeros((80, 100), bool)
SMALL[30:60, 20:70] = True
NOTHING = np.zeros((80, 100), bool)
FILL = "#6a8077"  # No grey: the edges of letters have every grey.


def case(target=SMALL, prediction=HALF, boxes=((20, 30, 70, 60),), points=((45, 45),)):
    return report.Case(
        "case",
        np.full((80, 100, 3), np.round(np.array(to_rgb(FILL)) * 255), np.uint8),
        target,
        prediction,
        np.array(boxes, float).reshape(-1, 4),
        np.array(points, float).reshape(-1, 2),
    )


def pixels(path, color: str) -> np.ndarray:
    """Where the picture has exactly that colour."""
    with Image.open(path) as file:
        picture = np.asarray(file.convert("RGB"))
    return (picture == np.round(np.array(to_rgb(color)) * 255)).all(-1)


def has(path, color: str) -> bool:
    """Whether it is in the drawn panels; the legend lies below them."""
    rows = np.flatnonzero(pixels(path, FILL).any(1))
    return bool(pixels(path, color)[rows[0] : rows[-1] + 1].sum() > 20)


def test_a_table_shows_the_figures_it_was_given():
    lines = report.table([SAM, BOX]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == [
        *("method", "prompt", "target", "images", "patients"),
        *("Dice [95 %]", "IoU [95 %]", "pred. IoU", "empty"),
    ]
    assert cells[2] == [
        *("sam", "one click", "mask", "57", "46"),
        *("0.812 [0.700, 0.900]", "0.684 [0.596, 1.000]", "0.750", "3 + 11"),
    ]
    assert cells[3][0] == "filled box"
    assert cells[3][7:] == ["", "0 + 11"]


def test_a_table_is_aligned_and_is_markdown():
    lines = report.table([SAM, BOX]).splitlines()[:4]
    bars = [[i for i, letter in enumerate(line) if letter == "|"] for line in lines]
    assert all(bar == bars[0] for bar in bars)
    assert set(lines[1]) == set("|-: ")


def test_a_table_names_rectangles_and_lonely_patients():
    assert "rectangles" not in report.table([SAM])
    assert "rectangles" in report.table([SAM, SAM._replace(target="box")])
    alone = SAM._replace(dice=Interval(0.5, 0.5, 0.5, 3, 1, 0.95))
    assert "0.500 [1 patient]" in report.table([alone])


def test_rows_come_back_from_their_file(tmp_path):
    rows = [
        {"image": 'a "quoted", name', "dice": 0.1 + 0.2, "predicted_iou": None, "empty": "both"},
        {"image": "zwölf", "dice": 1.0, "predicted_iou": 0.25, "empty": "neither"},
    ]
    report.write_rows(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert [row["image"] for row in back] == ['a "quoted", name', "zwölf"]
    assert [float(row["dice"]) for row in back] == [0.1 + 0.2, 1.0]
    assert [row["predicted_iou"] for row in back] == ["", "0.25"]
    assert list(tmp_path.iterdir()) == [tmp_path / "rows.csv"]


def test_rows_that_fail_leave_the_old_file_whole(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("old")

    class Unprintable:
        def __str__(self):
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        report.write_rows(path, [{"a": 1}, {"a": Unprintable()}])
    with pytest.raises(ValueError, match=r"rows.csv has the columns \['b'\], the first \['a'\]"):
        report.write_rows(path, [{"a": 1}, {"b": 2}])
    with pytest.raises(ValueError, match="no rows"):
        report.write_rows(path, [])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_summary_holds_the_same_numbers_twice(tmp_path):
    report.write_summary(
        tmp_path,
        {"all images": [SAM, BOX], "with a target": [BOX]},
        title="An evaluation",
        settings={"seed": 7, "data": "rsna"},
    )
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("# An evaluation\n")
    assert text.index("## all images") < text.index("| sam ") < text.index("## with a target")
    assert "- seed: 7" in text
    full = json.loads((tmp_path / "summary.json").read_text())
    assert full["settings"] == {"seed": 7, "data": "rsna"}
    sam, box = full["sections"]["all images"]
    assert sam["dice"] == {
        **{"mean": 0.81249, "low": 0.7, "high": 0.9},
        **{"n": 57, "groups": 46, "level": 0.95},
    }
    assert (sam["predicted_iou"], sam["one_empty"], box["predicted_iou"]) == (0.75, 11, None)
    assert len(full["sections"]["with a target"]) == 1


@pytest.mark.parametrize(
    ("drawn", "colors"),
    [
        (case(), {report.TARGET, report.PREDICTION, report.PROMPT}),
        (case(target=NOTHING, boxes=(), points=()), {report.PREDICTION}),
        (case(prediction=NOTHING, boxes=()), {report.TARGET, report.PROMPT}),
        (case(target=NOTHING, prediction=NOTHING, points=()), {report.PROMPT}),
        (case(target=~NOTHING, prediction=NOTHING, boxes=(), points=()), {report.TARGET}),
    ],
)
def test_an_overlay_has_the_colour_of_exactly_what_there_is(tmp_path, drawn, colors):
    report.overlay(tmp_path / "case.png", drawn)
    with Image.open(tmp_path / "case.png") as file:
        assert file.size[0] == 1200
    known = (report.TARGET, report.PREDICTION, report.PROMPT)
    assert {color for color in known if has(tmp_path / "case.png", color)} == colors


def test_outlines_and_boxes_lie_where_the_masks_and_prompts_are(tmp_path):
    drawn = case(points=(), prediction=NOTHING)
    report.overlay(tmp_path / "case.png", drawn)
    filled = pixels(tmp_path / "case.png", FILL)
    columns = np.flatnonzero(filled.any(0))
    gap = np.argmax(np.diff(columns))
    rows = np.flatnonzero(filled.any(1))
    panels = {
        report.PROMPT: (columns[0], columns[gap]),
        report.TARGET: (columns[gap + 1], columns[-1]),
    }
    for color, (left, right) in panels.items():
        found = pixels(tmp_path / "case.png", color)[rows[0] : rows[-1] + 1, left : right + 1]
        y, x = np.nonzero(found)
        scale = (right + 1 - left) / 100
        box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / scale
        np.testing.assert_allclose(box, [20, 30, 70, 60], atol=0.7)  # Half a line, in pixels.


def test_levels_are_shown_as_they_are(tmp_path):
    faint = case(NOTHING, NOTHING, boxes=(), points=())
    faint.image[:, :50] -= 8
    report.overlay(tmp_path / "case.png", faint)
    assert pixels(tmp_path / "case.png", "#62786f").sum() > 50_000
    assert pixels(tmp_path / "case.png", FILL).sum() > 50_000


def test_a_prompt_beyond_the_border_does_not_shrink_the_image(tmp_path):
    report.overlay(tmp_path / "inside.png", case(NOTHING, NOTHING, boxes=(), points=()))
    report.overlay(tmp_path / "beyond.png", case(NOTHING, NOTHING, boxes=(), points=((150, -50),)))
    inside, beyond = (pixels(tmp_path / f"{name}.png", FILL).sum() for name in ("inside", "beyond"))
    assert beyond > 0.95 * inside


def test_a_sheet_has_one_row_per_part_and_every_case(tmp_path):
    bare = case(NOTHING, NOTHING, boxes=(), points=())
    parts = {"worst": [bare] * 4, "median": [bare], "best": []}
    report.overlay_sheet(tmp_path / "sheet.png", parts, title="all")
    with Image.open(tmp_path / "sheet.png") as file:
        assert file.size[0] == 1200
    filled = pixels(tmp_path / "sheet.png", FILL)
    runs = [np.flatnonzero(np.diff(np.r_[0, filled.any(axis).astype(int), 0])) for axis in (1, 0)]
    rows, columns = (len(edges) // 2 for edges in runs)
    assert (rows, columns) == (2, 4)
    top = filled[: runs[0][1]].sum()
    assert filled.sum() == pytest.approx(top * 5 / 4, rel=0.02)
    assert not has(tmp_path / "sheet.png", report.TARGET)
    report.overlay_sheet(tmp_path / "sheet.png", {"all": [bare, case()]}, title="two")
    assert has(tmp_path / "sheet.png", report.TARGET)
    with pytest.raises(ValueError, match="no case"):
        report.overlay_sheet(tmp_path / "sheet.png", {"worst": []}, title="none")


def test_the_cases_of_a_sheet_are_the_lowest_middle_and_highest():
    scores = np.random.default_rng(0).permutation(21) / 20
    parts = {name: list(scores[index] * 20) for name, index in worst_median_best(scores).items()}
    assert parts == {
        "worst": pytest.approx([0, 1, 2, 3]),
        "median": pytest.approx([8, 9, 10, 11]),
        "best": pytest.approx([17, 18, 19, 20]),
    }
    for count in range(1, 13):
        shown = np.concatenate(list(worst_median_best(scores[:count]).values()))
        np.testing.assert_array_equal(scores[shown], np.sort(scores[:count]))


@pytest.mark.parametrize("steps", [1, 10, 200])
def test_a_learning_curve_draws_each_split_that_was_logged(tmp_path, steps):
    train = [{"step": i, "split": "train", "loss": 2 / i} for i in range(1, steps + 1)]
    report.learning_curve(tmp_path / "curve.png", train)
    assert pixels(tmp_path / "curve.png", report.TRAIN)[32:].any()  # Below the legend.
    assert not pixels(tmp_path / "curve.png", report.PREDICTION).any()
    checked = [{"step": steps, "split": "validation", "loss": 1.0, "dice_metric": 0.5}]
    report.learning_curve(tmp_path / "curve.png", train + checked)
    found = pixels(tmp_path / "curve.png", report.PREDICTION)
    assert found[32:, :600].any()
    assert found[32:, 600:].any()
    with Image.open(tmp_path / "curve.png") as file:
        assert file.size[0] == 1200


def test_a_run_without_a_row_has_no_curve(tmp_path):
    with pytest.raises(ValueError, match="no row"):
        report.learning_curve(tmp_path / "curve.png", [])
