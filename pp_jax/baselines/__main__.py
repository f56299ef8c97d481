"""`python -m pp_jax.baselines`: draws the clusters of your images' grey levels, and counts them.

No other baseline has a front of its own: `eval.py --methods` runs the classical methods, `train.py
--model` the networks.

OUT/clusters.png  per image the colours of its clusters and four criteria over their number; below,
                  the average over all images
OUT/clusters.csv  the criteria of each image for each number; a cell without a value is empty
"""

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from data.folder import find_images
from data.images import read_any
from pp_jax import cli
from pp_jax.baselines.clusters import (
    CRITERIA,
    Clusters,
    Criterion,
    Selection,
    average,
    colour_mask,
    kmeans,
    select,
)
from pp_jax.evaluate.files import write_rows
from pp_jax.evaluate.sections import Column, Table
from pp_jax.evaluate.tables import to_markdown
from pp_jax.preprocess.colour import to_grey

TABLE, PICTURE = "clusters.csv", "clusters.png"
_MOST = 256  # Clusters: an image has no more grey levels.
_MOST_ROWS = 200  # Of the picture: its format ends at 65535 pixels.
_NAME = 24  # Characters of an image's name in the picture.
_LINE, _CHOSEN = "#0072B2", "#D55E00"  # Okabe and Ito: told apart with every colour vision.
_NOTE = (
    "WCSS, BCSS: share of each image's sum of squares.\n"
    "Calinski-Harabasz: share of each image's largest."
)
_CELL, _DPI = 2.1, 150  # Inches, and pixels per inch.


@dataclass(frozen=True)
class Baselines:
    """Draw the clusters of images' grey levels (exact k-means), and how many there are to take.

    Colour masks, and the number of clusters by four criteria. The other baselines are run by
    `eval.py --methods classical` and `train.py --model unet-tiny`.
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files (PNG, JPEG, DICOM), or folders of them."""
    out: Path = Path("clusters")
    """Folder to write; an older output of this command is replaced."""
    k: int = 0
    """Clusters of the colour masks; 0: as many as the elbow chooses."""
    rows: int = 20
    """Images that are drawn, the first; the table, the average and the CSV are of all."""


class Looked(NamedTuple):
    """What is kept of an image: a picture for those that are drawn alone."""

    picture: tuple[UInt8[np.ndarray, "H W"], Clusters] | None
    selection: Selection


def main(args: list[str] | None = None) -> None:
    """Draw as the command line says, or `args` instead of it."""
    with cli.one_line_errors():
        settings = cli.parse(Baselines, prog="python -m pp_jax.baselines", args=args)
        for name, value, least, most in (
            ("--k", settings.k, 0, _MOST),
            ("--rows", settings.rows, 1, _MOST_ROWS),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} {value}: must lie in [{least}, {most}]")
        images = find_images(settings.images)
        out = cli.fresh_folder(settings.out, ours=TABLE)
        try:
            looked = look(images, settings)
            mean = average([one.selection for one in looked.values()])
            draw(looked, mean).savefig(out / PICTURE)
            write_rows(out / TABLE, rows(looked))
            cli.put_folder(out, settings.out)
        finally:
            shutil.rmtree(out, ignore_errors=True)
        print(to_markdown(chosen(looked, mean)))
        print(f"{settings.out}: {len(looked)} of {len(images)} images")


def look(images: Mapping[str, Path], settings: Baselines) -> dict[str, Looked]:
    """The clusters of each image by its name; one that cannot be read is skipped with a line.

    Raises:
      ValueError: None could be read; the first reason.
    """
    found: dict[str, Looked] = {}
    failures: list[str] = []
    for name, path in tqdm(images.items(), unit="image", disable=None):
        try:
            grey = to_grey(read_any(path))
        except (ValueError, OSError) as error:
            failures.append(" ".join(str(error).split()))
            if len(images) > 1:
                tqdm.write(f"skipped: {failures[-1]}", file=sys.stderr)
            continue
        counts: Int[np.ndarray, "256"] = np.bincount(grey.ravel(), minlength=_MOST)
        selection = select(counts)
        picture = None
        if len(found) < settings.rows:
            picture = grey, kmeans(counts, settings.k or selection.chosen["elbow"])
        found[name] = Looked(picture, selection)
    if not found:
        raise ValueError(failures[0])
    return found


def rows(looked: Mapping[str, Looked]) -> list[dict[str, Any]]:
    """The CSV: one row per image and number of clusters."""
    return [
        {"image": name, "k": k} | {one.curve: _known(one, found, i) for one in CRITERIA.values()}
        for name, (_, found) in looked.items()
        for i, k in enumerate(found.ks)
    ]


def _known(criterion: Criterion, found: Selection, index: int) -> float | None:
    value = float(getattr(found, criterion.curve)[index])
    return value if math.isfinite(value) else None


def chosen(looked: Mapping[str, Looked], mean: Selection) -> Table:
    """The number of clusters that each criterion chooses, for each image and on the average."""
    named = {name: one.selection for name, one in looked.items()}
    return Table(
        "Numbers of clusters",
        [Column("image"), *(Column(one.label) for one in CRITERIA.values())],
        [
            [name, *(selection.chosen[criterion] for criterion in CRITERIA)]
            for name, selection in [*named.items(), ("average curves", mean)]
        ],
    )


def draw(looked: Mapping[str, Looked], mean: Selection) -> Figure:
    """A row for each image that kept its picture, and one for the average of all."""
    shown = {name: one for name, one in looked.items() if one.picture is not None}
    columns = 2 + len(CRITERIA)
    figure = Figure(
        figsize=(_CELL * columns + 0.6, _CELL * (len(shown) + 1)), dpi=_DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)  # pyplot would keep every figure of the process alive.
    grid = figure.subplots(len(shown) + 1, columns, squeeze=False)
    for line, (name, one) in zip(grid, shown.items(), strict=False):
        grey, clusters = one.picture
        line[0].imshow(_small(grey), cmap="gray", vmin=0, vmax=255)
        line[0].set_title(_short(name), fontsize="small")
        line[1].imshow(_small(colour_mask(grey, clusters)), interpolation="nearest")
        line[1].set_title(f"{len(clusters.centres)} clusters", fontsize="small")
        _curves(line[2:], one.selection)
    _curves(grid[-1, 2:], mean)
    count = f"{len(looked)} image" + "s" * (len(looked) > 1)
    for height, size, text in ((0.75, "medium", f"Average of {count}"), (0.6, "x-small", _NOTE)):
        # Outside the layout: it lies over the second column, too, and must not widen the first.
        grid[-1, 0].text(0, height, text, va="top", fontsize=size, in_layout=False)
    for axes in (*grid[:, 0], *grid[:, 1]):
        axes.set_axis_off()
    for axes, criterion in zip(grid[0, 2:], CRITERIA.values(), strict=True):
        axes.set_title(f"{criterion.label}\n{criterion.rule}\n", fontsize="small", y=1, pad=4)
    for axes in grid[-1, 2:]:
        axes.set_xlabel("clusters", fontsize="small")
    return figure


def _curves(line: Sequence[Axes], found: Selection) -> None:
    """The criteria in their columns, each with a mark at what it chooses."""
    ks = np.array(found.ks)
    for axes, (name, criterion) in zip(line, CRITERIA.items(), strict=True):
        curve = getattr(found, criterion.curve)
        finite = np.where(np.isfinite(curve), curve, np.nan)
        k = found.chosen[name]
        axes.plot(ks, finite, "-", color=_LINE, linewidth=1.2)
        axes.axvline(k, color=_CHOSEN, linewidth=1, linestyle="dashed")
        axes.plot(ks[ks == k], finite[ks == k], "o", color=_CHOSEN, markersize=5)
        axes.set_title(f"k = {k}", color=_CHOSEN, fontsize="small", loc="right", y=1, pad=4)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        axes.tick_params(labelsize="x-small")
        axes.yaxis.get_offset_text().set_fontsize("x-small")
        axes.grid(alpha=0.3)


def _small(image: np.ndarray) -> np.ndarray:
    """Every n-th pixel: what a cell can show, without a mixture of colours that is no cluster."""
    step = max(1, round(max(image.shape[:2]) / (2 * _CELL * _DPI)))
    return image[::step, ::step]


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


if __name__ == "__main__":
    main()
