"""Plots: each figure that was given is found where its value says, and nothing else is drawn."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from pp_jax.evaluate import plots
from pp_jax.evaluate.statistics import Interval

TRAIN, VALIDATION = plots.COLORS[:2]
RNG = np.random.default_rng(0)
DICE = RNG.beta(8, 2, 40)
MEAN = Interval(0.1, 0.05, 0.2, 57, 46, 1, 0.95)

DRAWN: dict[str, Callable[[Path], None]] = {
    "violin": lambda path: plots.violin(
        path, {"sam": DICE, "few": DICE[:3], "none": DICE[:0]}, label="Dice"
    ),
    "scatter": lambda path: plots.scatter(path, DICE, DICE**2, xlabel="IoU", ylabel="Dice"),
    "reliability": lambda path: plots.reliability(
        path, [(0, 0.5, 9, 0.25, 0.5), (0.5, 0.7, 0, 0, 0), (0.7, 1, 3, 0.75, 1.0)]
    ),
    "curves": lambda path: plots.curves(
        path, {f"method {i}": (np.arange(5), DICE[:5]) for i in range(9)}, xlabel="x", ylabel="y"
    ),
    "forest": lambda path: plots.forest(
        path, {"women": MEAN, "one": MEAN._replace(patients=1)}, label="difference in Dice"
    ),
    "matrix": lambda path: plots.matrix(
        path, np.array([[0.1, np.nan]]), rows=["box"], columns=["box", "point"], label="Dice"
    ),
}


def pixels(path: Path, color: str) -> np.ndarray:
    """Where the picture has exactly that colour."""
    with Image.open(path) as file:
        picture = np.asarray(file.convert("RGB"))
    return (picture == np.round(np.array(to_rgb(color)) * 255)).all(-1)


def marks(path: Path, color: str) -> np.ndarray:
    """Places of the SVG's markers of that colour, in points from the left and the top."""
    places = [
        (float(one.get("x")), float(one.get("y")))
        for one in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}use")
        if color.lower() in one.get("style", "")
    ]
    return np.array(places).reshape(-1, 2)


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_is_a_png_and_an_svg_of_the_same_bytes_each_time(tmp_path, name):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        DRAWN[name](tmp_path / folder / f"{name}.png")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        *(f"{name}.png", f"{name}.svg")
    ]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    svg = ElementTree.parse(tmp_path / "a" / f"{name}.svg").getroot()
    with Image.open(tmp_path / "a" / f"{name}.png") as png:
        width, height = (float(svg.get(side).removesuffix("pt")) for side in ("width", "height"))
        np.testing.assert_allclose([width, height], np.array(png.size) * 0.72, atol=1)
    assert "dc:date" not in (tmp_path / "a" / f"{name}.svg").read_text()


def test_a_scatter_puts_each_image_at_its_two_values(tmp_path):
    x, y = np.array([0.0, 1.0, 0.25, 0.5]), np.array([0.0, 1.0, 0.75, 0.5])
    plots.scatter(tmp_path / "s.png", x, y, xlabel="x", ylabel="y")
    found = marks(tmp_path / "s.svg", TRAIN)
    (x0, y0), (x1, y1) = found[0], found[1]
    np.testing.assert_allclose((found[:, 0] - x0) / (x1 - x0), x, atol=1e-3)
    np.testing.assert_allclose((found[:, 1] - y0) / (y1 - y0), y, atol=1e-3)
    assert y1 < y0  # Higher is up.


def test_a_scatter_tells_spearmans_correlation(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(plots, "_put_both", lambda path, f: told.append(f.axes[0].get_title()))
    for y in ([1, 4, 9, 16], [5, 3, 2, 1], [1, 3, 2, 4], [1, 1, 1, 1]):
        x = np.arange(4.0)
        plots.scatter(tmp_path / "s.png", x, np.array(y, float), xlabel="x", ylabel="y")
    expected = ["1.00", "-1.00", "0.80", "undefined"]  # 1 - 6 * 2 / (4 * 15) = 0.8.
    assert told == [f"Spearman {rho}, n = 4" for rho in expected]


def test_every_patient_is_a_dot_of_a_violin_at_its_value(tmp_path):
    plots.violin(tmp_path / "v.png", {"a": DICE, "b": DICE[:3]}, label="Dice")
    for color, values in ((plots.COLORS[0], DICE), (plots.COLORS[1], DICE[:3])):
        found = marks(tmp_path / "v.svg", color)[:, 0]
        assert len(found) == len(values)
        slope, start = np.polyfit(values, found, 1)
        np.testing.assert_allclose(slope * values + start, found, atol=0.01)
    with pytest.raises(ValueError, match=r"nothing to draw in .*v.png"):
        plots.violin(tmp_path / "v.png", {"a": DICE[:0]}, label="Dice")


def test_a_forest_has_its_reference_between_what_is_below_and_above(tmp_path):
    low = Interval(-0.1, -0.2, -0.05, 57, 46, 1, 0.95)
    plots.forest(tmp_path / "f.png", {"worse": low, "better": MEAN}, label="difference")
    found = marks(tmp_path / "f.svg", TRAIN)[:, 0]
    line = dict.fromkeys(
        float(x)
        for part in re.findall(
            r'<path d="([^"]*)"[^>]*stroke-dasharray', (tmp_path / "f.svg").read_text()
        )
        for x in re.findall(r"[ML] ([\d.]+) ", part)
    )
    (zero,) = line
    np.testing.assert_allclose(zero, found.mean(), atol=0.01)
    assert found[0] < found[1]
    plots.forest(tmp_path / "f.png", {"a": MEAN}, label="Dice", reference=None)
    assert "stroke-dasharray" not in (tmp_path / "f.svg").read_text()


def test_reliability_leaves_out_empty_bins(tmp_path):
    bins = [(0.0, 0.5, 9, 0.2, 0.4), (0.5, 0.7, 0, 0.6, 0.0), (0.7, 1.0, 3, 0.8, 1.0)]
    plots.reliability(tmp_path / "r.png", bins)
    (x0, y0), (x1, y1) = marks(tmp_path / "r.svg", TRAIN)
    plots.reliability(tmp_path / "r.png", [(0.0, 1.0, 1, 0.0, 0.0), (0.0, 1.0, 1, 1.0, 1.0)])
    left, right = marks(tmp_path / "r.svg", TRAIN)[:, 0]
    np.testing.assert_allclose((x1 - x0) / (right - left), 0.6, atol=1e-3)
    assert y1 < y0
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.reliability(tmp_path / "r.png", bins[1:2])


def test_lines_are_told_apart_when_colours_return(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_put_both", lambda path, figure: drawn.extend(figure.axes[0].lines))
    lines = {str(i): (np.arange(3.0), np.arange(3.0)) for i in range(20)}
    plots.curves(tmp_path / "c.png", lines, xlabel="x", ylabel="y")
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 20


def test_a_matrix_needs_a_name_for_each_row_and_column(tmp_path):
    values = np.full((2, 3), 0.5)
    with pytest.raises(ValueError, match=r"\(2, 3\) figures for 3 rows, 2 columns"):
        plots.matrix(tmp_path / "m.png", values, rows=list("abc"), columns=list("ab"), label="Dice")


def test_names_are_no_formulas_and_files_are_png(tmp_path):
    plots.violin(tmp_path / "v.png", {"$\\nonsense$ ^{": DICE}, label="Dice")
    plots.forest(tmp_path / "f.png", {"$\\nonsense$ ^{": MEAN}, label="Dice")
    with pytest.raises(ValueError, match=r"v.pdf: a plot is written as PNG, and as SVG"):
        plots.violin(tmp_path / "v.pdf", {"a": DICE}, label="Dice")


PANELS = {  # Left and top, width and height: three beside one another, two above one another.
    name: (slice(390 * (i // 3), 390 * (i // 3) + 375), slice(400 * (i % 3), 400 * (i % 3) + 400))
    for i, name in enumerate(["loss", "dice_metric", "iou_mse", "gradient_norm", "lr", "legend"])
}


@pytest.mark.parametrize("steps", [1, 10, 200])
def test_a_learning_curve_draws_each_figure_of_each_split_that_was_logged(tmp_path, steps):
    path = tmp_path / "curve.png"
    figures = {"dice_metric": 0.4, "iou_mse": 0.1, "gradient_norm": 3.0, "lr": 1e-4}
    train = [{"step": i, "split": "train", "loss": 2 / i} | figures for i in range(1, steps + 1)]
    plots.learning_curve(path, train)
    with Image.open(path) as file:
        assert file.size[0] == 1200
    for name, place in PANELS.items():
        assert pixels(path, TRAIN)[place].any(), name
    assert not pixels(path, VALIDATION).any()
    figures = {"loss": 1.0, "dice_metric": 0.5, "iou_mse": 0.2}
    checked = [{"step": steps, "split": "validation"} | figures]
    plots.learning_curve(path, train + checked)
    found = {name for name, place in PANELS.items() if pixels(path, VALIDATION)[place].any()}
    assert found == {"loss", "dice_metric", "iou_mse", "legend"}


def test_the_first_of_the_best_validations_is_marked(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "put_picture", lambda path, figure, kind: drawn.append(figure))
    dices = {2: 0.25, 4: 0.75, 6: float("nan"), 8: 0.75}
    rows = [{"step": k, "split": "validation", "dice_metric": v} for k, v in dices.items()]
    rows.append({"step": 8, "split": "train", "dice_metric": 0.875})
    plots.learning_curve(tmp_path / "curve.png", rows)
    stars = [line for line in drawn[0].axes[1].lines if line.get_marker() == "*"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in stars] == [(4, 0.75)]
    told = [text.get_text() for text in drawn[0].axes[5].get_legend().get_texts()]
    assert told == ["validation", "train", "best validation: 0.750 after step 4"]


@pytest.mark.parametrize("lowest", [-0.5, 0.5])
def test_a_panel_begins_at_zero_unless_a_figure_is_below_it(tmp_path, monkeypatch, lowest):
    drawn = []
    monkeypatch.setattr(plots, "put_picture", lambda path, figure, kind: drawn.append(figure))
    rows = [{"step": n, "split": "train", "loss": x} for n, x in enumerate([2.0, lowest], 1)]
    plots.learning_curve(tmp_path / "curve.png", rows)
    low, high = drawn[0].axes[0].get_ylim()
    assert low < lowest if lowest < 0 else low == 0
    assert high > 2


def test_a_run_without_a_row_has_no_curve(tmp_path):
    with pytest.raises(ValueError, match="no row"):
        plots.learning_curve(tmp_path / "curve.png", [])
