"""What an evaluation leaves behind: rows, tables and pictures. This module writes files.

Every file is written under a temporary name and renamed, so that none is ever half there.
"""

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pp_jax.evaluate.metrics import dice
from pp_jax.evaluate.statistics import Interval, Summary

# Okabe and Ito's palette: told apart with every common kind of colour vision, and from grey.
TARGET, PREDICTION, PROMPT, TRAIN = "#56B4E9", "#E69F00", "#F0E442", "#0072B2"
_WIDTH = 12.0  # Inches, at 100 pixels each.
_DPI = 100


class Case(NamedTuple):
    """One image to draw, at original size; points and boxes in pixels of the original frame."""

    title: str
    image: UInt8[np.ndarray, "H W 3"]
    target: Bool[np.ndarray, "H W"]
    prediction: Bool[np.ndarray, "H W"]
    boxes: Float[np.ndarray, "N 4"]  # The prompt; none: shape (0, 4).
    points: Float[np.ndarray, "P 2"]  # The prompt; none: shape (0, 2).


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, one column per key; None becomes an empty cell.

    Raises:
      ValueError: There is no row, or a row has other keys than the first.
    """
    if not rows:
        raise ValueError(f"no rows to write to {path}; was the list of images empty?")
    columns = list(rows[0])
    for row in rows:
        if row.keys() != rows[0].keys():
            raise ValueError(f"a row for {path} has the columns {list(row)}, the first {columns}")

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    _put(path, write)


def table(summaries: Sequence[Summary]) -> str:
    """A Markdown table, aligned for the terminal, with the notes its numbers need below it."""
    level = f"[{summaries[0].dice.level * 100:g} %]" if summaries else ""
    head = ("method", "prompt", "target", "images", "patients")
    head += (f"Dice {level}", f"IoU {level}", "pred. IoU", "empty")
    cells = [head, *(_cells(summary) for summary in summaries)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = 3  # Columns of text, to the left; figures go to the right.
    rules = [
        "-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)
    ]
    lines = [
        [
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in cells
    ]
    notes = (
        "Mean over images; interval: bootstrap over patients. "
        "empty: images where both masks are empty (score 1) + where one is (score 0)."
    )
    kinds = dict.fromkeys(summary.target for summary in summaries)
    if "box" in kinds:
        notes += "\nTarget box: the true outline is unknown, the score is against rectangles."
    for kind in kinds:
        if kind.endswith("from box"):
            notes += f"\nTarget {kind}: made of the box, not drawn by a reader; no true outline."
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rules, *lines[1:]]) + (
        f"\n\n{notes}\n"
    )


def write_summary(
    folder: Path,
    sections: Mapping[str, Sequence[Summary]],
    *,
    title: str,
    settings: Mapping[str, Any],
) -> None:
    """Write `summary.md`, one table per section, and `summary.json` with the same in full digits.

    Args:
      folder: Must exist.
      sections: Lines of each table by heading, such as "all images" and "images with a target".
      title: First line.
      settings: What a reader needs to repeat it: checkpoint, data, seed.
    """
    text = [f"# {title}\n"]
    text += [f"## {heading}\n\n{table(summaries)}" for heading, summaries in sections.items()]
    text += ["## Settings\n\n" + "\n".join(f"- {key}: {settings[key]}" for key in settings) + "\n"]
    full = {
        "title": title,
        "settings": dict(settings),
        "sections": {
            heading: [_plain(summary) for summary in summaries]
            for heading, summaries in sections.items()
        },
    }
    _put(folder / "summary.md", lambda path: path.write_text("\n".join(text), encoding="utf-8"))
    encoded = json.dumps(full, indent=2, allow_nan=False, default=str) + "\n"
    _put(folder / "summary.json", lambda path: path.write_text(encoded, encoding="utf-8"))


def overlay(path: Path, case: Case) -> None:
    """Write a PNG, 1200 pixels wide: the image with its prompt, and with both outlines.

    The legend names what is drawn and nothing else: an empty mask has no outline.
    """
    height, width = case.target.shape
    figure = _figure(0.49 * _WIDTH * float(np.clip(height / width, 0.25, 2.5)) + 1.1)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        _show(axes, case.image)
    prompted = len(case.boxes) or len(case.points)
    handles = _draw_prompt(left, case, size=1.0) + _draw_outlines(right, case, size=1.0)
    left.set_title("image and prompt" if prompted else "image, no prompt")
    right.set_title(_agreement(case))
    figure.suptitle(_short(case.title, 110), fontsize="large")
    _legend(figure, handles)
    _put_figure(path, figure)


def overlay_sheet(path: Path, parts: Mapping[str, Sequence[Case]], *, title: str) -> None:
    """Write a PNG, 1200 pixels wide: one row of cases per part, prompt and outlines together.

    Args:
      path: The picture.
      parts: Cases by the label of their row, such as those of `statistics.worst_median_best`.
      title: Above all.

    Raises:
      ValueError: There is no case.
    """
    rows = {label: cases for label, cases in parts.items() if len(cases)}
    if not rows:
        raise ValueError(f"no case to draw in {path}; was the list of images empty?")
    columns = max(4, *(len(cases) for cases in rows.values()))
    shapes = [case.target.shape for cases in rows.values() for case in cases]
    tallest = float(np.clip(max(height / width for height, width in shapes), 0.25, 2.0))
    figure = _figure(len(rows) * (_WIDTH / columns * tallest + 0.45) + 0.9)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    handles: dict[str, Line2D] = {}
    for line, (label, cases) in zip(grid, rows.items(), strict=True):
        for axes in line[len(cases) :]:
            axes.set_axis_off()
        for axes, case in zip(line, cases, strict=False):
            _show(axes, case.image)
            drawn = _draw_prompt(axes, case, size=0.6) + _draw_outlines(axes, case, size=0.6)
            handles |= {handle.get_label(): handle for handle in drawn}
            axes.set_title(f"{_short(case.title, 38)}\n{_agreement(case)}", fontsize="small")
        line[0].set_ylabel(label, fontsize="large")
    figure.suptitle(_short(title, 110), fontsize="large")
    _legend(figure, list(handles.values()))
    _put_figure(path, figure)


def learning_curve(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG, 1200 pixels wide: the loss and the Dice of masks over the training steps.

    Args:
      path: The picture.
      rows: Of a run's log, each with `step`, `split`, and `loss`, `dice_metric` or both.

    Raises:
      ValueError: There is no row.
    """
    if not rows:
        raise ValueError(f"no rows to draw in {path}; did the run finish a step?")
    figure = _figure(4.5)
    panels = {"loss": "loss", "dice_metric": "Dice at low resolution"}
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        splits = dict.fromkeys(row["split"] for row in rows if row.get(key) is not None)
        for split in splits:
            here = [r for r in rows if r["split"] == split and r.get(key) is not None]
            _curve(axes, split, [r["step"] for r in here], [r[key] for r in here])
        axes.set(xlabel="step", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if splits:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
        else:
            axes.text(0.5, 0.5, "none in this run", ha="center", transform=axes.transAxes)
        axes.set(xlim=(0, 1.03 * max(1, *(row["step"] for row in rows))), ylim=(0, None))
    figure.axes[1].set_ylim(0, 1)
    _put_figure(path, figure)


def _cells(summary: Summary) -> tuple[str, ...]:
    predicted = summary.predicted_iou
    return (
        summary.method,
        summary.protocol,
        summary.target,
        str(summary.dice.n),
        str(summary.dice.groups),
        _interval(summary.dice),
        _interval(summary.iou),
        "" if predicted is None else f"{predicted:.3f}",
        f"{summary.both_empty} + {summary.one_empty}",
    )


def _interval(interval: Interval) -> str:
    if interval.groups == 1:
        return f"{interval.mean:.3f} [1 patient]"
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _plain(summary: Summary) -> dict[str, Any]:
    intervals = {"dice": summary.dice._asdict(), "iou": summary.iou._asdict()}
    return summary._asdict() | intervals


def _figure(height: float) -> Figure:
    """A figure of its own canvas: pyplot would keep every figure of the process alive."""
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _show(axes: Axes, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Grey levels as they are; a pixel covers [i, i + 1], so boxes and centres fall in place."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[])
    axes.autoscale(False)  # A prompt beyond the border must not shrink the image.


def _draw_prompt(axes: Axes, case: Case, *, size: float) -> list[Line2D]:
    handles = []
    style = {"color": PROMPT, "linewidth": 2 * size}
    for x0, y0, x1, y1 in case.boxes:
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **style))
    if len(case.boxes):
        handles.append(Line2D([], [], label="box prompt", **style))
    star = {"marker": "*", "markersize": 16 * size, "markeredgecolor": "black"}
    if len(case.points):
        drawn = axes.plot(*case.points.T, linestyle="", color=PROMPT, label="click", **star)
        handles += drawn
    return handles


def _draw_outlines(axes: Axes, case: Case, *, size: float) -> list[Line2D]:
    """Target solid below, prediction dashed above: where they coincide, both are seen."""
    handles = []
    for label, mask, color, style in (
        ("target", case.target, TARGET, "solid"),
        ("prediction", case.prediction, PREDICTION, "dashed"),
    ):
        if not mask.any():
            continue
        height, width = mask.shape
        # The empty frame closes outlines that run along the image's border.
        framed = np.pad(mask, 1).astype(np.float32)
        x, y = np.arange(-1, width + 1) + 0.5, np.arange(-1, height + 1) + 0.5
        line = {"linewidths": 2.5 * size, "linestyles": style}
        axes.contour(x, y, framed, levels=[0.5], colors=color, **line)
        handles.append(Line2D([], [], color=color, linestyle=style, linewidth=2.5, label=label))
    return handles


def _agreement(case: Case) -> str:
    empty = {
        (False, True): " (no target)",
        (True, False): " (nothing predicted)",
        (False, False): " (no target, nothing predicted)",
    }.get((bool(case.target.any()), bool(case.prediction.any())), "")
    return f"Dice {dice(case.prediction, case.target):.3f}{empty}"


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    if handles:  # On grey, as the lines are in the pictures: yellow cannot be seen on white.
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=4,
            facecolor="#505050",
            labelcolor="w",
        )


def _curve(axes: Axes, split: str, steps: Sequence[int], values: Sequence[float]) -> None:
    """Points if they are few; if many, all of them pale below their running mean."""
    color = TRAIN if split == "train" else PREDICTION
    if len(steps) <= 50:
        axes.plot(steps, values, marker="o", markersize=4, color=color, label=split)
        return
    window = len(steps) // 25
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
    middle = np.asarray(steps)[window // 2 :][: len(mean)]
    axes.plot(middle, mean, color=color, label=f"{split} (mean of {window} rows)")


def _short(text: str, length: int) -> str:
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def _put_figure(path: Path, figure: Figure) -> None:
    _put(path, lambda temporary: figure.savefig(temporary, format="png"))


def _put(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
