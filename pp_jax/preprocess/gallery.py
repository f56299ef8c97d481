"""Figures of what SAM is shown: every filter and fusion on one image, and grey-level statistics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BEFORE, AFTER = "#0072B2", "#D55E00"  # Okabe and Ito: told apart with every colour vision.
PAGE = 10  # Images on one page of distributions.
_LEVELS = np.arange(256)
_DPI = 100


class Distribution(NamedTuple):
    """Share of the pixels at each grey level, of one image before and after its filter."""

    name: str
    label: str
    before: Float[np.ndarray, "256"]
    after: Float[np.ndarray, "256"]


def histogram(image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "256"]:
    """Share of the pixels at each grey level; the sum is 1."""
    return np.bincount(image.ravel(), minlength=256) / image.size


def moments(histogram: Float[np.ndarray, "256"]) -> dict[str, float]:
    """Mean and standard deviation in grey levels, and entropy in bits."""
    mean = float(histogram @ _LEVELS)
    deviation = float(np.sqrt(histogram @ (_LEVELS - mean) ** 2))
    there = histogram[histogram > 0]
    return {"mean": mean, "deviation": deviation, "entropy": float(-there @ np.log2(there))}


def contact_sheet(
    title: str,
    sections: Mapping[str, Mapping[str, UInt8[np.ndarray, "H W 3"]]],
    *,
    columns: int = 6,
) -> Figure:
    """All pictures under their names, a heading before each section."""
    rows = sum(-(-len(pictures) // columns) for pictures in sections.values())
    first = next(iter(next(iter(sections.values())).values()))
    shape = np.clip(first.shape[0] / first.shape[1], 0.3, 3)
    figure = _figure(2.2 * columns, (2.2 * shape + 0.35) * rows + 0.4 * len(sections) + 0.4)
    figure.suptitle(title)
    heights = [-(-len(pictures) // columns) for pictures in sections.values()]
    parts = np.atleast_1d(figure.subfigures(len(sections), 1, height_ratios=heights))
    for part, height, (heading, pictures) in zip(parts, heights, sections.items(), strict=True):
        part.suptitle(heading, fontsize="medium", fontweight="bold")
        grid = part.subplots(height, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, (name, picture) in zip(grid, pictures.items(), strict=False):
            axes.imshow(picture, vmin=0, vmax=255)
            axes.set_title(name, fontsize="small")
    return figure


def distributions_page(title: str, page: Sequence[Distribution]) -> Figure:
    """Histogram and cumulative distribution of each image, before and after."""
    figure = _figure(11, 1.7 * len(page) + 0.9)
    figure.suptitle(title)
    grid = figure.subplots(len(page), 2, squeeze=False, sharex=True)
    for (left, right), one in zip(grid, page, strict=True):
        for levels, colour, when in ((one.before, BEFORE, "before"), (one.after, AFTER, "after")):
            left.step(_LEVELS, levels, where="mid", color=colour, linewidth=1, label=when)
            right.plot(_LEVELS, np.cumsum(levels), color=colour, linewidth=1.5, label=when)
        left.set_ylim(0, _ceiling(one.before, one.after))
        left.set_title(f"{one.name} ({one.label})", fontsize="small", loc="left")
    _finish(grid)
    return figure


def distributions_by_label(title: str, everything: Sequence[Distribution]) -> Figure:
    """Mean of the images' distributions of each class, and the band from 10 to 90 % of them."""
    labels = sorted({one.label for one in everything})
    figure = _figure(11, 2.6 * len(labels) + 0.9)
    figure.suptitle(title)
    grid = figure.subplots(len(labels), 2, squeeze=False, sharex=True)
    for (left, right), label in zip(grid, labels, strict=True):
        images = [one for one in everything if one.label == label]
        before, after = (np.stack([getattr(one, when) for one in images]) for when in _WHEN)
        for levels, colour, when in ((before, BEFORE, "before"), (after, AFTER, "after")):
            _band(left, levels, colour, when)
            _band(right, np.cumsum(levels, axis=1), colour, when)
        left.set_ylim(0, _ceiling(before.mean(0), after.mean(0)))
        left.set_title(f"{label}: {len(images)} images", fontsize="small", loc="left")
    _finish(grid)
    return figure


_WHEN = ("before", "after")


def _band(axes: Axes, values: Float[np.ndarray, "n 256"], colour: str, label: str) -> None:
    low, high = np.quantile(values, [0.1, 0.9], axis=0)
    axes.fill_between(_LEVELS, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(_LEVELS, values.mean(0), color=colour, linewidth=1.5, label=label)


def _ceiling(*histograms: Float[np.ndarray, "256"]) -> float:
    """Twice the 98th percentile at least: one crowded level, such as black, hides all others."""
    return 1.5 * max(1e-3, *(float(np.quantile(h[h > 0], 0.95)) for h in histograms))


def _finish(grid: np.ndarray) -> None:
    for left, right in grid:
        left.set_ylabel("share of pixels", fontsize="small")
        right.set_ylabel("share up to", fontsize="small")
        right.set_ylim(0, 1.02)
    for axes in grid[-1]:
        axes.set(xlabel="grey level", xlim=(0, 255))
    grid[0, 1].legend(loc="lower right", fontsize="small", frameon=False)


def _figure(width: float, height: float) -> Figure:
    """A figure of its own canvas: pyplot would keep every figure of the process alive."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
