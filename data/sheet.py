"""Pictures of a data set: a sheet of images with what is marked on them, and where it lies."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from data.measures import Unreadable
from data.records import Record, load

TILE = 240  # Pixels: side of one picture on the sheet.
BOX, OUTLINE = (86, 180, 233), (230, 159, 0)  # Okabe and Ito: told apart with every colour vision.
_CAPTION, _GAP, _COLUMNS = 34, 8, 6


class Tile(NamedTuple):
    """One picture of the sheet with the lines below it."""

    picture: UInt8[np.ndarray, "h w 3"]
    lines: tuple[str, ...]


def choose(found: Sequence[bool], *, count: int) -> list[int]:
    """Rows of at most `count` images, half of them with a finding if there are, in order.

    Drawn at random, the same each time.
    """
    rng = np.random.default_rng(0)
    piles = [rng.permutation([i for i, one in enumerate(found) if one == kind]) for kind in (1, 0)]
    few = min(range(2), key=lambda pile: len(piles[pile]))
    first = piles[few][: count // 2]
    return sorted(int(i) for i in (*first, *piles[1 - few][: count - len(first)]))


def draw_tile(record: Record) -> Tile | Unreadable:
    """The image within `TILE`, its boxes and the outline of its mask; label, view and id below."""
    try:
        sample = load(record)
    except (ValueError, OSError) as error:
        return Unreadable(str(error))
    height, width = sample.image.shape[:2]
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = np.array(Image.fromarray(sample.image).resize(size, Image.Resampling.BOX))
    if record.target != "box":  # A filled box has no outline of its own.
        picture[outline(sample.findings, size=size)] = OUTLINE
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    for x0, y0, x1, y1 in sample.boxes.tolist():
        ends = (x0 * scale, y0 * scale, max(x1 * scale - 1, x0 * scale), y1 * scale)
        pen.rectangle((*ends[:3], max(ends[3] - 1, ends[1])), outline=BOX)
    answer = " · ".join(filter(None, (record.label or "no label", record.facts.view)))
    return Tile(np.asarray(canvas), (answer, record.id))


def outline(findings: Bool[np.ndarray, "H W"], *, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The innermost ring of pixels of the mask scaled to (width, height); more than half counts."""
    share = Image.fromarray(findings.astype(np.float32)).resize(size, Image.Resampling.BOX)
    inside = np.asarray(share) > 0.5
    return inside & ~ndimage.binary_erosion(inside)


def contact_sheet(tiles: Sequence[Tile], *, title: str) -> Image.Image:
    """All tiles in rows of six, white on black, the colours explained in the title's line."""
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    cell = (TILE + _GAP, TILE + _CAPTION + _GAP)
    sheet = Image.new("RGB", (max(columns, 3) * cell[0] + _GAP, rows * cell[1] + 2 * _CAPTION))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    pen.text((_GAP, _GAP), title, font=ImageFont.load_default(16), fill="white")
    pen.text((_GAP, _CAPTION), "box", font=font, fill=BOX)
    pen.text((_GAP + 40, _CAPTION), "outline of the mask", font=font, fill=OUTLINE)
    for number, tile in enumerate(tiles):
        left = _GAP + number % columns * cell[0]
        top = 2 * _CAPTION + number // columns * cell[1]
        sheet.paste(Image.fromarray(tile.picture), (left, top))
        for line, text in enumerate(tile.lines):
            while pen.textlength(text, font) > TILE:
                text = text[:-1]
            pen.text((left, top + TILE + 2 + 15 * line), text, font=font, fill="white")
    return sheet


def draw_positions(positions: Float[np.ndarray, "32 32"], *, title: str) -> Figure:
    """The position map with its scale."""
    figure = Figure(figsize=(5, 4.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    drawn = axes.imshow(positions, cmap="viridis", vmin=0, extent=(0, 1, 1, 0))
    figure.colorbar(drawn, label="share of the images with a finding")
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("share of the width")
    axes.set_ylabel("share of the height")
    return figure
