"""Pictures of cases: what there is is drawn, where it is, in the colour that the legend says."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from pp_jax.evaluate.overlays import PREDICTIONS, PROMPT, TARGET, Case, overlay, overlay_sheet
from pp_jax.evaluate.statistics import worst_median_best

HALF = np.tile(np.arange(100) < 50, (80, 1))
SMALL = np.zeros((80, 100), bool)
SMALL[30:60, 20:70] = True
NOTHING = np.zeros((80, 100), bool)
FILL = "#6a8077"  # No grey: the edges of letters have every grey.


def case(target=SMALL, predictions=HALF, boxes=((20, 30, 70, 60),), points=((45, 45),), **more):
    if not isinstance(predictions, dict):
        predictions = {"prediction": predictions}
    return Case(
        "case",
        np.full((80, 100, 3), np.round(np.array(to_rgb(FILL)) * 255), np.uint8),
        target,
        predictions,
        np.array(boxes, float).reshape(-1, 4),
        np.array(points, float).reshape(-1, 2),
        **more,
    )


BARE = case(NOTHING, NOTHING, boxes=(), points=())


def pixels(path, color: str) -> np.ndarray:
    """Where the picture has exactly that colour."""
    with Image.open(path) as file:
        picture = np.asarray(file.convert("RGB"))
    return (picture == np.round(np.array(to_rgb(color)) * 255)).all(-1)


def has(path, color: str) -> bool:
    """Whether it is in the drawn panels; the legend lies below them."""
    rows = np.flatnonzero(pixels(path, FILL).any(1))
    return bool(pixels(path, color)[rows[0] : rows[-1] + 1].sum() > 20)


@pytest.mark.parametrize(
    ("drawn", "colors"),
    [
        (case(), {TARGET, PREDICTIONS[0], PROMPT}),
        (case(target=NOTHING, boxes=(), points=()), {PREDICTIONS[0]}),
        (case(predictions=NOTHING, boxes=()), {TARGET, PROMPT}),
        (case(target=NOTHING, predictions=NOTHING, points=()), {PROMPT}),
        (case(target=~NOTHING, predictions={}, boxes=(), points=()), {TARGET}),
        (
            case(NOTHING, {"a": HALF, "b": NOTHING, "c": ~HALF}, (), ()),
            {PREDICTIONS[0], PREDICTIONS[2]},
        ),
        (
            case(NOTHING, {"a": NOTHING, "b": NOTHING, "c": NOTHING, "d": SMALL}, (), ()),
            {PREDICTIONS[3]},
        ),
    ],
)
def test_an_overlay_has_the_colour_of_exactly_what_there_is(tmp_path, drawn, colors):
    overlay(tmp_path / "case.png", drawn)
    with Image.open(tmp_path / "case.png") as file:
        assert file.size[0] == 1200
    known = (TARGET, PROMPT, *PREDICTIONS)
    assert {color for color in known if has(tmp_path / "case.png", color)} == colors
    assert list(tmp_path.iterdir()) == [tmp_path / "case.png"]


def test_outlines_and_boxes_lie_where_the_masks_and_prompts_are(tmp_path):
    overlay(tmp_path / "case.png", case(points=(), predictions={}))
    filled = pixels(tmp_path / "case.png", FILL)
    columns = np.flatnonzero(filled.any(0))
    gap = np.argmax(np.diff(columns))
    rows = np.flatnonzero(filled.any(1))
    panels = {
        PROMPT: (columns[0], columns[gap]),
        TARGET: (columns[gap + 1], columns[-1]),
    }
    for color, (left, right) in panels.items():
        found = pixels(tmp_path / "case.png", color)[rows[0] : rows[-1] + 1, left : right + 1]
        y, x = np.nonzero(found)
        scale = (right + 1 - left) / 100
        box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / scale
        np.testing.assert_allclose(box, [20, 30, 70, 60], atol=0.7)  # Half a line, in pixels.


def test_levels_are_shown_as_they_are(tmp_path):
    faint = BARE._replace(image=BARE.image.copy())
    faint.image[:, :50] -= 8
    overlay(tmp_path / "case.png", faint)
    assert pixels(tmp_path / "case.png", "#62786f").sum() > 50_000
    assert pixels(tmp_path / "case.png", FILL).sum() > 50_000


def test_a_prompt_beyond_the_border_does_not_shrink_the_image(tmp_path):
    overlay(tmp_path / "inside.png", BARE)
    overlay(tmp_path / "beyond.png", BARE._replace(points=np.array([[150.0, -50.0]])))
    inside, beyond = (pixels(tmp_path / f"{name}.png", FILL).sum() for name in ("inside", "beyond"))
    assert beyond > 0.95 * inside


def test_a_click_on_background_is_another_mark_and_no_click_is_none(tmp_path):
    shown = {}
    for value in (1, 0, -2):
        clicked = BARE._replace(points=np.array([[50.0, 40.0]]), labels=np.array([value]))
        overlay(tmp_path / f"{value}.png", clicked)
        rows = np.flatnonzero(pixels(tmp_path / f"{value}.png", FILL).any(1))
        shown[value] = pixels(tmp_path / f"{value}.png", PROMPT)[rows[0] : rows[-1] + 1]
    y, x = np.nonzero(shown[0])
    cross = shown[0][y.min() : y.max() + 1, x.min() : x.max() + 1]
    agree = [(cross == turned).mean() for turned in (np.rot90(cross), cross[::-1])]
    assert min(agree) > 0.9  # A cross looks the same from four sides; a star with five arms not.
    assert shown[1].sum() > 20
    assert shown[1].sum() != shown[0].sum()
    assert not shown[-2].any()


def test_heat_is_laid_over_the_image_only_where_there_is_some(tmp_path):
    warm = BARE._replace(heat=SMALL.astype(float))
    overlay(tmp_path / "with.png", warm)
    filled = pixels(tmp_path / "with.png", FILL)
    columns = np.flatnonzero(filled.any(0))
    panels = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    assert len(panels) == 3
    shares = [filled[:, part[0] : part[-1] + 1].sum() for part in panels]
    assert shares[0] == pytest.approx(shares[1], rel=0.02)
    assert shares[2] / shares[0] == pytest.approx(1 - SMALL.mean(), abs=0.02)


def test_more_predictions_than_can_be_told_apart_are_refused(tmp_path):
    crowded = case(predictions=dict.fromkeys("abcde", HALF))
    with pytest.raises(ValueError, match=r"case: 5 predictions in one picture; 4 can be told"):
        overlay(tmp_path / "case.png", crowded)
    assert not list(tmp_path.iterdir())


def test_names_are_no_formulas(tmp_path):
    odd = case(predictions={"$\\frac{$": HALF, "b$": SMALL})._replace(title="$\\nonsense$ ^{")
    overlay(tmp_path / "case.png", odd)
    overlay_sheet(tmp_path / "sheet.png", {"all": [odd]}, title="$\\nonsense$")


def test_a_sheet_has_one_row_per_part_and_every_case(tmp_path):
    parts = {"worst": [BARE] * 4, "median": [BARE], "best": []}
    overlay_sheet(tmp_path / "sheet.png", parts, title="all")
    with Image.open(tmp_path / "sheet.png") as file:
        assert file.size[0] == 1200
    filled = pixels(tmp_path / "sheet.png", FILL)
    runs = [np.flatnonzero(np.diff(np.r_[0, filled.any(axis).astype(int), 0])) for axis in (1, 0)]
    rows, columns = (len(edges) // 2 for edges in runs)
    assert (rows, columns) == (2, 4)
    top = filled[: runs[0][1]].sum()
    assert filled.sum() == pytest.approx(top * 5 / 4, rel=0.02)
    assert not has(tmp_path / "sheet.png", TARGET)
    overlay_sheet(tmp_path / "sheet.png", {"all": [BARE, case()]}, title="two")
    assert has(tmp_path / "sheet.png", TARGET)
    with pytest.raises(ValueError, match="no case"):
        overlay_sheet(tmp_path / "sheet.png", {"worst": []}, title="none")


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
