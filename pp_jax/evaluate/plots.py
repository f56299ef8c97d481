"""Plots of a report, each as PNG and SVG of one name; the same figures give the same bytes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr

from pp_jax.evaluate.files import put
from pp_jax.evaluate.statistics import Interval

Line = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]

# Okabe and Ito's palette: told apart with every common kind of colour vision, and from grey.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_DASHES = ("solid", "dashed", "dotted", "dashdot")  # Of the eighth line on, colours return.
_WIDTH = 8.0  # Inches, at 100 pixels each.
_DPI = 100
_LEAST = 0.02  # Of an axis of shares in [0, 1].
_FEW = 30  # Points that are each marked.
_FEWEST_OF_A_SHAPE = 10  # Fewer values have no density to draw.


def violin(path: Path, groups: Mapping[str, Float[np.ndarray, " _"]], *, label: str) -> None:
    """Draw each method's distribution: density, quartiles, median, and every patient as a dot.

    Args:
      path: The PNG; the SVG lies beside it.
      groups: Values by the name of their row, one per patient; a row may have none.
      label: Of the axis of values.

    Raises:
      ValueError: There is no value.
    """
    _require(path, sum(len(values) for values in groups.values()))
    figure, axes = _plot(0.55 * len(groups) + 0.9)
    rng = np.random.default_rng(0)
    for row, values in enumerate(groups.values()):
        color = _color(row)
        if len(np.unique(values)) >= _FEWEST_OF_A_SHAPE:
            drawn = axes.violinplot(
                values, [row], orientation="horizontal", widths=0.85, showextrema=False
            )
            drawn["bodies"][0].set(facecolor=color, edgecolor="none", alpha=0.25)
        spread = row + rng.uniform(-0.18, 0.18, len(values))
        axes.plot(values, spread, ".", color=color, alpha=0.6, markersize=5, markeredgewidth=0)
        if len(values):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            axes.plot([low, high], [row, row], color="black", linewidth=4, solid_capstyle="butt")
            axes.plot(middle, row, "o", color="white", markeredgecolor="black", markersize=6)
    names = [f"{plain(name, 40)} ({len(values)})" for name, values in groups.items()]
    axes.set_yticks(range(len(groups)), names)
    axes.set(xlabel=label, ylim=(len(groups) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    _put_both(path, figure)


def scatter(
    path: Path,
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    *,
    xlabel: str,
    ylabel: str,
    diagonal: bool = True,
) -> None:
    """Draw a dot per image, with Spearman's rank correlation and the number of images above.

    Args:
      path: The PNG; the SVG lies beside it.
      x: Such as the predicted IoU.
      y: Such as the Dice.
      xlabel: Of `x`.
      ylabel: Of `y`.
      diagonal: Both are in [0, 1] and ought to be equal: the line where they are is drawn.

    Raises:
      ValueError: There is no point.
    """
    _require(path, len(x))
    figure, axes = _plot(4.5, width=5.0)
    axes.plot(x, y, "o", color=COLORS[0], alpha=0.5, markersize=5, markeredgewidth=0)
    if diagonal:
        _diagonal(axes)
    ranked = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
    rho = f"{spearmanr(x, y).statistic:.2f}" if ranked else "undefined"
    axes.set(xlabel=xlabel, ylabel=ylabel, title=f"Spearman {rho}, n = {len(x)}")
    axes.grid(alpha=0.3)
    _put_both(path, figure)


def reliability(
    path: Path,
    bins: Sequence[tuple[float, float, int, float, float]],
    *,
    xlabel: str = "predicted",
    ylabel: str = "observed",
) -> None:
    """Draw the observed mean of each bin over its predicted mean, and how many fall into each.

    Args:
      path: The PNG; the SVG lies beside it.
      bins: Low and high edge, count, mean predicted and mean observed of each; those with a count
        of 0 are left out.
      xlabel: What is predicted.
      ylabel: What is observed.

    Raises:
      ValueError: No bin has a count.
    """
    filled = [one for one in bins if one[2]]
    _require(path, len(filled))
    figure = make_figure(5.5, width=5.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    low, high, count, predicted, observed = np.array(filled, float).T
    above.plot(predicted, observed, "o-", color=COLORS[0], markersize=5)
    _diagonal(above)
    above.set(ylabel=ylabel)
    middle = {"color": COLORS[0], "alpha": 0.5, "align": "edge"}
    below.bar(low, count, width=high - low, edgecolor="white", linewidth=0.5, **middle)
    below.set(xlabel=xlabel, ylabel="count")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    _put_both(path, figure)


def curves(
    path: Path, lines: Mapping[str, Line], *, xlabel: str, ylabel: str, steps: bool = False
) -> None:
    """Draw a line per name, such as Dice over clicks, risk over coverage, or FROC.

    Args:
      path: The PNG; the SVG lies beside it.
      lines: `x` and `y` by name.
      xlabel: Of `x`.
      ylabel: Of `y`.
      steps: Between its points a line keeps the earlier value, as a FROC curve does.

    Raises:
      ValueError: There is no line.
    """
    _require(path, len(lines))
    figure, axes = _plot(4.5 + 0.22 * math.ceil(len(lines) / 3))
    for index, (name, (x, y)) in enumerate(lines.items()):
        axes.plot(
            x,
            y,
            color=_color(index),
            linestyle=_DASHES[index // len(COLORS) % len(_DASHES)],
            marker="o" if len(x) <= _FEW else "",
            markersize=4,
            drawstyle="steps-post" if steps else "default",
            label=plain(name, 32),
        )
    axes.set(xlabel=xlabel, ylabel=ylabel)
    low, high = axes.get_ylim()
    if high - low < _LEAST:  # Else what differs in the sixth digit would fill the picture.
        axes.set_ylim((low + high - _LEAST) / 2, (low + high + _LEAST) / 2)
    axes.grid(alpha=0.3)
    if all(float(one).is_integer() for x, _ in lines.values() for one in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    _put_both(path, figure)


def forest(
    path: Path, intervals: Mapping[str, Interval], *, label: str, reference: float | None = 0.0
) -> None:
    """Draw a mean with its interval per name, beside a line to compare them with.

    Args:
      path: The PNG; the SVG lies beside it.
      intervals: By the name of their row; of one patient the mean stands alone.
      label: Of the axis of values.
      reference: Where the line is: 0 for differences, such as the overall mean for strata; None:
        no line.

    Raises:
      ValueError: There is no interval.
    """
    _require(path, len(intervals))
    figure, axes = _plot(0.35 * len(intervals) + 0.9)
    if reference is not None:
        axes.axvline(reference, color="black", linewidth=1, linestyle="dashed")
    for row, one in enumerate(intervals.values()):
        if one.patients > 1:
            axes.plot([one.low, one.high], [row, row], color=COLORS[0], linewidth=2.5)
        axes.plot(one.mean, row, "s", color=COLORS[0], markersize=6)
    names = [f"{plain(name, 44)} ({one.patients})" for name, one in intervals.items()]
    axes.set_yticks(range(len(intervals)), names)
    axes.set(xlabel=f"{label}; in brackets: patients", ylim=(len(intervals) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    _put_both(path, figure)


def matrix(
    path: Path,
    values: Float[np.ndarray, "R C"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    xlabel: str = "tested under",
    ylabel: str = "trained under",
) -> None:
    """Draw a table of figures in [0, 1] as shades with the number in each field.

    Args:
      path: The PNG; the SVG lies beside it.
      values: NaN where there is no figure: an empty field.
      rows: Their names.
      columns: Their names.
      label: Of the scale.
      xlabel: What the columns are.
      ylabel: What the rows are.

    Raises:
      ValueError: There is no figure, or not one name for each row and column.
    """
    _require(path, int(np.isfinite(values).sum()))
    if values.shape != (len(rows), len(columns)):
        raise ValueError(f"{values.shape} figures for {len(rows)} rows, {len(columns)} columns")
    width = max(4.5, 0.8 * len(columns) + 3)
    figure, axes = _plot(0.5 * len(rows) + 2, width=width)
    drawn = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), one in np.ndenumerate(values):
        if np.isfinite(one):
            color = "black" if one > 0.5 else "white"
            axes.text(column, row, f"{one:z.3f}", ha="center", va="center", color=color)
    names = [plain(name, 32) for name in columns]
    axes.set_xticks(range(len(columns)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [plain(name, 32) for name in rows])
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.colorbar(drawn, label=label)
    _put_both(path, figure)


def learning_curve(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw a training over its steps, a panel for each figure: a PNG, 1200 pixels wide.

    Training is a pale line below its running mean, validation a line of points. The best Dice of a
    validation is marked, the first if several are equal.

    Args:
      path: The picture.
      rows: Of a run's log, each with `step`, `split` and figures by name; none has to have all.

    Raises:
      ValueError: There is no row.
    """
    if not rows:
        raise ValueError(f"no rows to draw in {path}; did the run finish a step?")
    figure = make_figure(7.5, width=12.0)
    panels = iter(figure.subplots(2, 3).flat)
    last = max(1, *(row["step"] for row in rows))
    handles: dict[str, Any] = {}
    for (key, label, top), axes in zip(_PANELS, panels, strict=False):
        held = [row for row in rows if row.get(key) is not None and math.isfinite(row[key])]
        for split in dict.fromkeys(row["split"] for row in held):
            here = [row for row in held if row["split"] == split]
            line = _curve(axes, split, [row["step"] for row in here], [row[key] for row in here])
            handles.setdefault(line.get_label(), line)
        scored = [row for row in held if row["split"] == "validation"]
        if key == "dice_metric" and scored:
            best = max(scored, key=lambda row: row[key])
            star = {"marker": "*", "markersize": 16, "markeredgecolor": "black", "linestyle": ""}
            (mark,) = axes.plot(best["step"], best[key], color=COLORS[2], zorder=1, **star)
            handles[f"best validation: {best[key]:.3f} after step {best['step']}"] = mark
        if not held:
            axes.text(0.5, 0.5, "none in this run", ha="center", transform=axes.transAxes)
        # The boundary loss may be below 0.
        bottom = None if any(row[key] < 0 for row in held) else 0
        axes.set(xlabel="step", title=label, xlim=(0, 1.03 * last), ylim=(bottom, top))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels:  # What is left over.
        axes.set_axis_off()
        axes.legend(handles.values(), handles, loc="center", frameon=False)
    put_picture(path, figure, kind="png")


# Of a learning curve: the figure, what it is called, and the top of its axis where it has one.
_PANELS = (
    ("loss", "loss", None),
    ("dice_metric", "Dice at low resolution", 1.0),
    ("iou_mse", "squared error of the predicted IoU", None),
    ("gradient_norm", "norm of the gradient", None),
    ("lr", "learning rate", None),
)


def make_figure(height: float, *, width: float = _WIDTH) -> Figure:
    """An empty figure, in inches of 100 pixels.

    It has a canvas of its own: pyplot would keep every figure of the process alive.
    """
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: str, length: int) -> str:
    """The text for a picture: its middle left out beyond `length` letters, dollars no formula."""
    half = (length - 1) // 2
    shown = text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
    return shown.replace("$", r"\$")


def put_picture(path: Path, figure: Figure, *, kind: str) -> None:
    """Write a figure as `kind`, "png" or "svg", without the time and names drawn by chance."""
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "pp_jax"}):
        put(path, lambda file: figure.savefig(file, format=kind, metadata=metadata))


def _put_both(path: Path, figure: Figure) -> None:
    if path.suffix != ".png":
        raise ValueError(f"{path}: a plot is written as PNG, and as SVG beside it; name the PNG")
    for kind in ("png", "svg"):
        put_picture(path.with_suffix(f".{kind}"), figure, kind=kind)


def _require(path: Path, count: int) -> None:
    if not count:
        raise ValueError(f"nothing to draw in {path}; were the rows empty?")


def _plot(height: float, *, width: float = _WIDTH) -> tuple[Figure, Axes]:
    figure = make_figure(height, width=width)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="dashed", zorder=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _curve(axes: Axes, split: str, steps: Sequence[int], values: Sequence[float]) -> Line2D:
    """Points if they are few; if many, all of them pale below their running mean."""
    color = COLORS[0] if split == "train" else COLORS[1]
    if len(steps) <= 50:
        return axes.plot(steps, values, marker="o", markersize=4, color=color, label=split)[0]
    window = len(steps) // 25
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
    middle = np.asarray(steps)[window // 2 :][: len(mean)]
    return axes.plot(middle, mean, color=color, label=f"{split} (mean of {window} rows)")[0]
