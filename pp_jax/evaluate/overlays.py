"""Pictures of cases: the image with its prompt, and the outlines that were drawn in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from pp_jax.evaluate.metrics import dice
from pp_jax.evaluate.plots import make_figure, plain, put_picture

# Okabe and Ito's palette: told apart with every common kind of colour vision, and from grey.
TARGET, PROMPT = "#56B4E9", "#F0E442"
PREDICTIONS = ("#E69F00", "#D55E00", "#CC79A7", "#009E73")
# Dashes of lengths that cover one another nowhere for long: what coincides is still told apart.
_DASHES = ("dashed", (0, (1, 1)), (0, (7, 2, 1, 2)), (0, (12, 3)))
_WIDTH = 12.0  # Inches, at 100 pixels each.


class Case(NamedTuple):
    """One image to draw, at original size; points and boxes in pixels of the original frame."""

    title: str
    image: UInt8[np.ndarray, "H W 3"]
    target: Bool[np.ndarray, "H W"]
    predictions: Mapping[str, Bool[np.ndarray, "H W"]]  # By what the legend calls them.
    boxes: Float[np.ndarray, "N 4"]  # The prompt; none: shape (0, 4).
    points: Float[np.ndarray, "P 2"]  # The prompt; none: shape (0, 2).
    labels: Int[np.ndarray, " P"] | None = None  # 1, 0; others are not drawn. None: all are 1.
    heat: Float[np.ndarray, "H W"] | None = None  # Entropy of the masks, bits in [0, 1].


def overlay(path: Path, case: Case) -> None:
    """Write a PNG, 1200 pixels wide: the image with its prompt, with all outlines, and the heat.

    The legend names what is drawn and nothing else: an empty mask has no outline. There is a panel
    of the heat if the case has one.

    Raises:
      ValueError: There are more predictions than can be told apart.
    """
    height, width = case.target.shape
    count = 2 if case.heat is None else 3
    tall = 0.98 * _WIDTH / count * float(np.clip(height / width, 0.25, 2.5))
    told = 0.22 * max(1, len(case.predictions))  # Above its panel, a line for each.
    figure = make_figure(tall + 1.0 + told, width=_WIDTH)
    panels = figure.subplots(1, count)
    for axes in panels:
        _show(axes, case.image)
        axes.set_anchor("S")  # What the layout leaves over is above: the title has several lines.
    prompted = len(case.boxes) or len(case.points)
    styles = _styles([case])
    handles = _draw_prompt(panels[0], case, size=1.0)
    handles += _draw_outlines(panels[1], case, styles, size=1.0)
    panels[0].set_title("image and prompt" if prompted else "image, no prompt")
    panels[1].set_title(_agreement(case))
    if case.heat is not None:
        extent = (0, width, height, 0)
        # Where all agree nothing is laid over the image.
        drawn = panels[2].imshow(
            case.heat,
            alpha=np.sqrt(np.clip(case.heat, 0, 1)),
            vmin=0,
            vmax=1,
            cmap="inferno",
            extent=extent,
        )
        beside = panels[2].inset_axes((1.02, 0, 0.04, 1))
        figure.colorbar(drawn, cax=beside, label="bits")
        panels[2].set_title("entropy of the masks")
    figure.suptitle(plain(case.title, 110), fontsize="large")
    _legend(figure, handles)
    put_picture(path, figure, kind="png")


def overlay_sheet(path: Path, parts: Mapping[str, Sequence[Case]], *, title: str) -> None:
    """Write a PNG, 1200 pixels wide: one row of cases per part, prompt and outlines together.

    Args:
      path: The picture.
      parts: Cases by the label of their row, such as those of `statistics.worst_median_best`.
      title: Above all.

    Raises:
      ValueError: There is no case, or one has more predictions than can be told apart.
    """
    rows = {label: cases for label, cases in parts.items() if len(cases)}
    if not rows:
        raise ValueError(f"no case to draw in {path}; was the list of images empty?")
    columns = max(4, *(len(cases) for cases in rows.values()))
    shapes = [case.target.shape for cases in rows.values() for case in cases]
    tallest = float(np.clip(max(height / width for height, width in shapes), 0.25, 2.0))
    several = max(len(case.predictions) for cases in rows.values() for case in cases) - 1
    line_height = _WIDTH / columns * tallest + 0.45 + 0.17 * max(0, several)
    figure = make_figure(len(rows) * line_height + 0.9, width=_WIDTH)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    styles = _styles([case for cases in rows.values() for case in cases])
    handles: dict[str, Line2D] = {}
    for line, (label, cases) in zip(grid, rows.items(), strict=True):
        for axes in line[len(cases) :]:
            axes.set_axis_off()
        for axes, case in zip(line, cases, strict=False):
            _show(axes, case.image)
            drawn = _draw_prompt(axes, case, size=0.6)
            drawn += _draw_outlines(axes, case, styles, size=0.6)
            handles |= {handle.get_label(): handle for handle in drawn}
            axes.set_title(f"{plain(case.title, 38)}\n{_agreement(case)}", fontsize="small")
        line[0].set_ylabel(label, fontsize="large")
    figure.suptitle(plain(title, 110), fontsize="large")
    _legend(figure, list(handles.values()))
    put_picture(path, figure, kind="png")


def _show(axes: Axes, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Grey levels as they are; a pixel covers [i, i + 1], so boxes and centres fall in place."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)  # It would lie over outlines along the image's border.
    axes.autoscale(False)  # A prompt beyond the border must not shrink the image.


def _draw_prompt(axes: Axes, case: Case, *, size: float) -> list[Line2D]:
    handles = []
    style = {"color": PROMPT, "linewidth": 2 * size}
    for x0, y0, x1, y1 in case.boxes:
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **style))
    if len(case.boxes):
        handles.append(Line2D([], [], label="box prompt", **style))
    labels = np.ones(len(case.points), int) if case.labels is None else case.labels
    small = 1.0 if len(case.points) <= 12 else 0.5  # A scribble of many points stays a line.
    for value, label, marker in ((1, "click", "*"), (0, "click on background", "X")):
        points = case.points[labels == value]
        if len(points):
            edge = {"markeredgecolor": "black", "markersize": (16 if value else 11) * size * small}
            drawn = axes.plot(
                *points.T, linestyle="", color=PROMPT, marker=marker, label=label, **edge
            )
            handles += drawn
    return handles


def _styles(cases: Sequence[Case]) -> dict[str, tuple[str, Any]]:
    """Colour and dashes of each name: the same in all cases of a picture."""
    names = list(dict.fromkeys(name for case in cases for name in case.predictions))
    if len(names) > len(PREDICTIONS):
        told = f"{cases[0].title}: {len(names)} predictions in one picture"
        raise ValueError(f"{told}; {len(PREDICTIONS)} can be told apart, choose those to show")
    return dict(zip(names, zip(PREDICTIONS, _DASHES, strict=True), strict=False))


def _draw_outlines(
    axes: Axes, case: Case, styles: Mapping[str, tuple[str, Any]], *, size: float
) -> list[Line2D]:
    """Target solid below, predictions dashed above: where they coincide, all are seen."""
    lines = [("target", case.target, TARGET, "solid")]
    lines += [(label, mask, *styles[label]) for label, mask in case.predictions.items()]
    handles = []
    for label, mask, color, style in lines:
        if not mask.any():
            continue
        height, width = mask.shape
        # The empty frame closes outlines that run along the image's border.
        framed = np.pad(mask, 1).astype(np.float32)
        x, y = np.arange(-1, width + 1) + 0.5, np.arange(-1, height + 1) + 0.5
        line = {"linewidths": 2.5 * size, "linestyles": [style]}
        axes.contour(x, y, framed, levels=[0.5], colors=color, **line)
        handles.append(
            Line2D([], [], color=color, linestyle=style, linewidth=2.5, label=plain(label, 32))
        )
    return handles


def _agreement(case: Case) -> str:
    """Dice of each prediction, by name if there are several, and what is empty."""
    lines = []
    for label, mask in case.predictions.items():
        empty = {
            (False, True): " (no target)",
            (True, False): " (nothing predicted)",
            (False, False): " (no target, nothing predicted)",
        }.get((bool(case.target.any()), bool(mask.any())), "")
        name = f"{plain(label, 24)}: " if len(case.predictions) > 1 else ""
        lines.append(f"{name}Dice {dice(mask, case.target):.3f}{empty}")
    return "\n".join(lines)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    if handles:  # On grey, as the lines are in the pictures: yellow cannot be seen on white.
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=4,
            facecolor="#505050",
            labelcolor="w",
        )
