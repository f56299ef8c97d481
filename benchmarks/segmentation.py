"""The pictures of docs/segmentation.md, from phantoms that the project draws.

    python -m benchmarks.segmentation --out docs/segmentation
    python -m benchmarks.segmentation --out DIR --runs NAME=FOLDER NAME=FOLDER

The phantoms are the first of those that `make train` draws. Classical methods stand in a sheet for
each kind: a clear opacity in its box, a faint one in its box, and the whole image without a mark.
Networks are drawn as their layers are. With `--runs` the masks of trained runs are drawn instead,
each asked as it was trained.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Bool, Float, UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from data import rsna, synthetic
from data.records import load
from data.sheet import BOX, OUTLINE, outline
from data.sources import open_dataset
from pp_jax import cli
from pp_jax.baselines.__main__ import PICTURE
from pp_jax.baselines.__main__ import main as choose_clusters
from pp_jax.baselines.classical import CLASSICAL
from pp_jax.baselines.segmenter import SEGMENTERS, Segmenter
from pp_jax.baselines.views import Hint
from pp_jax.evaluate.metrics import dice
from pp_jax.finetune import runs
from pp_jax.predict.__main__ import main as predict
from pp_jax.types import Prompts

SIDE, SEED = 1024, 0  # Of the phantoms, as `make train` has them.
CLUSTERED = (0, 2, 4)  # Phantoms whose number of clusters is chosen.
SHOWN = 0  # The phantom of the sheets.
# Sheets, and the rows of `CLASSICAL` on each.
SHEETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "thresholds": ("threshold", "otsu", "multi-otsu", "k-means", "adaptive"),
        "regions": ("region-growing", "flood-fill", "watershed", "canny-regions"),
        "contours": ("chan-vese", "geodesic", "grabcut"),
    }
)
KINDS = ("classical", "clusters", "networks")

TILE, GAP, LINE = 150, 6, 17  # Pixels: side of one picture, between two, height of a line of text.
MARGIN = 0.3  # Shown around a box, as a share of its longer side.
MASK, TINT = (0, 114, 178), 0.5  # Okabe and Ito: told apart with every colour vision.
QUALITY = 78  # Of JPEG.
COLOURS = 64  # Of a PNG's palette.
_LEFT, _RIGHT, _COPIED = "#0072B2", "#009E73", "#D55E00"


class Scene(NamedTuple):
    """What is asked of a method, and the part of the image that is shown."""

    title: str
    image: UInt8[np.ndarray, "H W 3"]
    truth: Bool[np.ndarray, "H W"]
    box: Float[np.ndarray, "4"] | None
    window: tuple[slice, slice]  # Rows, columns.


Answer = Callable[[Scene], Bool[np.ndarray, "H W"] | None]  # None: it cannot be asked so.


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Draw the pictures of docs/segmentation.md."""

    out: Path = Path("docs/segmentation")
    """Folder to write into."""
    only: tuple[Literal[KINDS], ...] = KINDS
    """Which pictures of the page."""
    runs: tuple[str, ...] = ()
    """Trained runs, `NAME=FOLDER`, whose masks are drawn instead, to OUT/answers.jpg."""


def main() -> None:
    """Draw as the command line says."""
    with cli.one_line_errors():
        asked = tyro.cli(Figures, description=__doc__)
        named = parse_runs(asked.runs)
        asked.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if named:
                draw_answers(asked.out / "answers.jpg", named, folder)
                return
            if "networks" in asked.only:
                draw_networks(asked.out / "networks.svg")
            if "classical" in asked.only:
                draw_classical(asked.out, folder)
            if "clusters" in asked.only:
                draw_clusters(asked.out / "clusters.png", folder)


def parse_runs(texts: Sequence[str]) -> dict[str, Path]:
    """Folders by the names that they are given.

    Raises:
      ValueError: Something else than `NAME=FOLDER`.
    """
    pairs = [text.partition("=") for text in texts]
    for text, (name, _, folder) in zip(texts, pairs, strict=True):
        if not (name and folder):
            raise ValueError(f"--runs {text}: give NAME=FOLDER")
    return {name: Path(folder) for name, _, folder in pairs}


def draw_classical(out: Path, folder: Path) -> None:
    """The sheets of `SHEETS`, of a phantom that is drawn into the folder."""
    scenes = make_scenes(folder / "phantoms", draw_phantoms(folder / "phantoms")[SHOWN])
    for name, rows in SHEETS.items():
        answers = {row: partial(_classical, row) for row in rows}
        save(sheet(scenes, answers), out / f"{name}.jpg")


def draw_clusters(path: Path, folder: Path) -> None:
    """What `python -m pp_jax.baselines` draws of three phantoms, half as large."""
    drawn = draw_phantoms(folder / "phantoms")
    out = folder / "clusters"
    choose_clusters([*(str(drawn[n]) for n in CLUSTERED), "--out", str(out)])
    picture = Image.open(out / PICTURE).convert("RGB").reduce(2)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_answers(path: Path, named: Mapping[str, Path], folder: Path) -> None:
    """The sheet of trained runs."""
    drawn = draw_phantoms(folder / "phantoms")[SHOWN]
    answers = {name: partial(_run, run, drawn, folder) for name, run in named.items()}
    save(sheet(make_scenes(folder / "phantoms", drawn), answers), path)


def draw_phantoms(folder: Path) -> list[Path]:
    """The first phantoms of the default set, in the order in which they are drawn."""
    count = max(*CLUSTERED, SHOWN) + 1
    synthetic.generate(folder, images=count, seed=SEED, side=SIDE, workers=0)
    # The tables list them in that order; the records are sorted by patient.
    lines = (folder / rsna.CLASSES).read_text().splitlines()[1:]
    names = dict.fromkeys(line.split(",")[0] for line in lines)
    return [folder / rsna.IMAGES / f"{name}.dcm" for name in names]


def make_scenes(folder: Path, shown: Path) -> list[Scene]:
    """A clear object in its box, a faint one, and the whole image."""
    (record,) = (r for r in open_dataset("synthetic", folder) if r.id == shown.stem)
    sample = load(record)
    order = sorted(
        range(len(sample.objects)), key=lambda i: _contrast(sample.image, sample.objects[i])
    )
    titles = {order[-1]: "A clear opacity, its box marked", order[0]: "A faint one, its box marked"}
    scenes = [
        Scene(
            title,
            sample.image,
            sample.objects[index],
            sample.boxes[index].astype(float),
            _window(sample.boxes[index], sample.image.shape),
        )
        for index, title in titles.items()
    ]
    whole = (slice(None), slice(None))
    title = "Nothing marked: all opacities are asked for"
    return [*scenes, Scene(title, sample.image, sample.findings, None, whole)]


def _contrast(image: UInt8[np.ndarray, "H W 3"], truth: Bool[np.ndarray, "H W"]) -> float:
    """How much brighter an object is than the rest of its box."""
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    grey, inside = image[window][..., 0], truth[window]
    return float(grey[inside].mean() - grey[~inside].mean())


def _window(box: Float[np.ndarray, "4"], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """A square around the box, moved into the image where it would leave it."""
    side = min(int((1 + 2 * MARGIN) * max(box[2] - box[0], box[3] - box[1])), *shape[:2])
    middle = (box[:2] + box[2:]) / 2
    x, y = np.clip(np.int_(middle - side / 2), 0, np.array(shape[1::-1]) - side)
    return slice(y, y + side), slice(x, x + side)


def _classical(row: str, scene: Scene) -> Bool[np.ndarray, "H W"]:
    return CLASSICAL[row].function(scene.image, Hint(scene.box))


def _run(run: Path, image: Path, folder: Path, scene: Scene) -> Bool[np.ndarray, "H W"] | None:
    """What a run answers, if it was trained to be asked so."""
    free = runs.read_config(run).prompting == "none"
    if free != (scene.box is None):
        return None
    marks = ["--prompt-free"] if free else ["--box", *map(str, scene.box)]
    out = folder / "predicted"
    shutil.rmtree(out, ignore_errors=True)
    predict([str(image), "--checkpoint", str(run), "--out", str(out), *marks])
    masks = [np.asarray(Image.open(path)) > 127 for path in sorted((out / "masks").glob("*.png"))]
    return np.any([np.zeros_like(scene.truth), *masks], axis=0)


# Sheets.


def sheet(scenes: Sequence[Scene], answers: Mapping[str, Answer]) -> Image.Image:
    """A row for each scene: the image, and what each method answers, its Dice below."""
    across, down = TILE + GAP, TILE + 2 * LINE + GAP
    size = ((1 + len(answers)) * across + GAP, len(scenes) * down + 2 * LINE + GAP)
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    pen.text((GAP, 2), "image", font=font, fill="black")
    for number, name in enumerate(answers, 1):
        pen.text((GAP + number * across, 2), name, font=font, fill="black")
    for line, scene in enumerate(scenes):
        top = LINE + 4 + line * down
        pen.text((GAP, top), scene.title, font=font, fill="dimgrey")
        top += LINE
        canvas.paste(tile(scene, None), (GAP, top))
        for number, answer in enumerate(answers.values(), 1):
            mask, left = answer(scene), GAP + number * across
            if mask is None:
                pen.text((left, top), "not asked so", font=font, fill="dimgrey")
                continue
            canvas.paste(tile(scene, mask), (left, top))
            text = f"Dice {dice(mask, scene.truth):.2f}"
            pen.text((left, top + TILE), text, font=font, fill="black")
    top, left = size[1] - LINE - 2, GAP
    for text, colour in (("truth", OUTLINE), ("box", BOX), ("mask", MASK)):
        pen.rectangle((left, top + 3, left + 10, top + 13), fill=colour)
        pen.text((left + 15, top), text, font=font, fill="black")
        left += 70
    return canvas


def tile(scene: Scene, mask: Bool[np.ndarray, "H W"] | None) -> Image.Image:
    """The scene's window with a tinted mask below the outline of the truth, or with the box."""
    image = scene.image[scene.window].astype(float)
    if mask is not None:
        inside = mask[scene.window]
        image[inside] = (1 - TINT) * image[inside] + TINT * np.array(MASK)
    size = (TILE, TILE)
    picture = np.array(Image.fromarray(image.astype(np.uint8)).resize(size, Image.Resampling.BOX))
    picture[outline(scene.truth[scene.window], size=size)] = OUTLINE
    drawn = Image.fromarray(picture)
    if mask is None and scene.box is not None:
        rows, columns = scene.window
        corner, scale = (columns.start, rows.start) * 2, TILE / (rows.stop - rows.start)
        ImageDraw.Draw(drawn).rectangle(tuple((scene.box - corner) * scale), outline=BOX)
    return drawn


def save(picture: Image.Image, path: Path) -> None:
    """Write a JPEG whose colours are as sharp as its greys."""
    picture.save(path, quality=QUALITY, subsampling=0, optimize=True)


# Networks.


class Layers(NamedTuple):
    """Channels of a network's features by level: 0 is the image's resolution, 1 is half of it."""

    contracting: Mapping[int, tuple[int, ...]]
    expanding: Mapping[int, tuple[int, ...]]
    copied: Mapping[int, int]  # From the contracting to the expanding path.
    parameters: int


def layers_of(name: str) -> Layers:
    """The layers of a row of `SEGMENTERS`, as its own code makes them; nothing is computed."""
    config = SEGMENTERS[name]
    side, cells = config.image_size, config.mask_side
    prompts = Prompts(
        points=jnp.zeros((1, 1, 1, 2)),
        labels=jnp.zeros((1, 1, 1), jnp.int32),
        masks=jnp.zeros((1, 1, cells, cells)),
        has_mask=jnp.zeros((1, 1), bool),
        valid=jnp.ones((1, 1), bool),
    )
    make = partial(Segmenter(config).init, mutable=True, capture_intermediates=True)
    made = jax.eval_shape(make, jax.random.key(0), jnp.zeros((1, side, side, 3)), prompts)
    contracting, expanding, copied = {}, {}, {}
    for child, inner in made["intermediates"]["network"].items():
        if child == "__call__":
            continue
        for out in jax.tree.leaves(inner["__call__"]):
            level, channels = (side // out.shape[1]).bit_length() - 1, out.shape[-1]
            if child == "low_level":
                copied[level] = channels
            else:
                down = child.startswith(("encoder", "backbone"))
                path = contracting if down else expanding
                path[level] = (*path.get(level, ()), channels)
        taken = made["params"]["network"][child].get("block") if child[:3] == "dec" else None
        if taken is not None and (more := taken["conv_0"]["kernel"].shape[2] - channels):
            copied[level] = more
    count = sum(leaf.size for leaf in jax.tree.leaves(made["params"]))
    return Layers(contracting, expanding, copied, count)


def draw_networks(path: Path) -> None:
    """The rows of `SEGMENTERS` beside each other, as SVG; two have the channels of `unet`."""
    figure = Figure(figsize=(10.5, 7), layout="constrained")
    names = [name for name in SEGMENTERS if name not in ("unet-2015", "unet-bilinear")]
    cells = figure.subplots(2, -(-len(names) // 2)).flat
    for axes in cells:
        axes.set_axis_off()
    for axes, name in zip(figure.axes, names, strict=False):
        _draw_network(axes, name, layers_of(name))
    with rc_context({"svg.hashsalt": "segmentation", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def _draw_network(axes: Axes, name: str, layers: Layers) -> None:
    """Two columns of boxes, the contracting path on the left; copies are dashed arrows."""
    boxes: dict[tuple[float, int], Any] = {}
    for x, path, colour in ((0.0, layers.contracting, _LEFT), (1.0, layers.expanding, _RIGHT)):
        for level, channels in path.items():
            style = {"boxstyle": "round", "facecolor": "white", "edgecolor": colour}
            text = " → ".join(map(str, channels))
            placed = {"ha": "center", "va": "center", "fontsize": "small", "bbox": style}
            boxes[x, level] = axes.text(x, -level, text, **placed)

    def arrow(start: tuple[float, int], end: tuple[float, int], **look: Any) -> None:
        ends = {"patchA": boxes[start].get_bbox_patch(), "patchB": boxes[end].get_bbox_patch()}
        props = {"arrowstyle": "->", "shrinkA": 2, "shrinkB": 2, **ends, **look}
        axes.annotate("", (end[0], -end[1]), (start[0], -start[1]), arrowprops=props)

    for upper, lower in pairwise(sorted(layers.contracting)):
        arrow((0, upper), (0, lower), color=_LEFT)
    for upper, lower in pairwise(sorted(layers.expanding)):
        arrow((1, lower), (1, upper), color=_RIGHT)
    bottom, last = max(layers.contracting), max(layers.expanding)
    arrow((0, bottom), (1, last), color=_RIGHT)
    for level, channels in layers.copied.items():
        arrow((0, level), (1, level), color=_COPIED, linestyle="dashed")
        axes.text(0.45, -level + 0.06, str(channels), color=_COPIED, fontsize="small", ha="center")
    for level in range(max(bottom, last) + 1):
        share = "1" if level == 0 else f"1/{2**level}"
        axes.text(-0.62, -level, share, va="center", ha="center", color="grey", fontsize="small")
    axes.set(xlim=(-0.7, 1.5), ylim=(-5.3, 0.4))
    axes.set_title(f"{name}: {layers.parameters / 1e6:.1f} M parameters", fontsize="medium")


if __name__ == "__main__":
    main()
