"""Chest phantoms: drawn X-rays whose lung opacities are known to the pixel.

An X-ray on a screen is roughly linear in the attenuation along each ray, so a phantom is a sum of
attenuation layers (body, air, bones, vessels, opacities) through one tone curve. Coordinates run
from -1 (left, top) to 1; the patient's right lung is on the left of the picture. Layers are drawn
on a coarse grid and enlarged, noise is added at full size.

These pictures teach a network nothing about disease. They exercise the machinery with findings that
are irregular, soft-edged and crossed by ribs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

COARSE = 512  # Grid of the anatomy.
FIELD = 256  # Grid of the random fields.
NORMAL, OTHER, OPACITY = "Normal", "No Lung Opacity / Not Normal", "Lung Opacity"


@dataclass(frozen=True)
class Anatomy:
    """What all pictures of one person share."""

    sex: str
    age: int
    width: float  # Half the inner chest.
    apex: float  # Top of the lungs.
    domes: tuple[float, float]  # Tops of the diaphragm, left and right of the picture.
    heart: float  # Size, 1 is average.
    knob: float  # Aortic knob, radius.
    ribs: tuple[float, float, float, float]  # First, spacing, half width, slope.
    seed: int  # Of the vessels and the bones' irregularities.


class View(NamedTuple):
    """What changes from picture to picture."""

    position: str  # "PA" or "AP"
    shift: tuple[float, float]
    zoom: float
    breath: float  # How far the diaphragm stands above full inspiration.
    exposure: tuple[float, float, float]  # Black, white, gamma of the tone curve.
    noise: float


class Phantom(NamedTuple):
    """A picture and what is in it."""

    image: UInt8[np.ndarray, "S S"]
    objects: Bool[np.ndarray, "N S S"]  # One component each.
    label: str  # One of RSNA's three classes.
    position: str


class _Frame(NamedTuple):
    """Coordinates in the person's own system, and the lungs on the coarse grid."""

    x: Float[np.ndarray, "g g"]
    y: Float[np.ndarray, "g g"]
    depth: Float[np.ndarray, "g g"]  # Distance into a lung; negative outside.
    air: Float[np.ndarray, "g g"]  # 0 to 1.
    wall: Float[np.ndarray, "g g"]  # Lateral border of the lungs at this height.
    heart: Float[np.ndarray, "g g"]  # 0 to 1.
    below: Float[np.ndarray, "g g"]  # Distance below the diaphragm.


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random person."""
    base = rng.uniform(0.42, 0.58)
    return Anatomy(
        sex=str(rng.choice(["F", "M"])),
        age=int(np.clip(rng.normal(48, 17), 16, 91)),
        width=rng.uniform(0.68, 0.82),
        apex=rng.uniform(-0.86, -0.74),
        domes=(base - rng.uniform(0.02, 0.07), base),
        heart=rng.normal(1.0, 0.09),
        knob=rng.uniform(0.075, 0.115),
        ribs=(
            rng.uniform(-0.80, -0.72),
            rng.uniform(0.150, 0.172),
            rng.uniform(0.032, 0.040),
            rng.uniform(0.10, 0.24),
        ),
        seed=int(rng.integers(2**31)),
    )


def draw_phantom(rng: np.random.Generator, anatomy: Anatomy, *, side: int) -> Phantom:
    """A random picture of a person, with 1 to 3 opacities in about 60 % of the cases."""
    view = _draw_view(rng)
    frame = _frame(anatomy, view, grid=min(COARSE, side))
    fields = _opacities(rng, frame) if rng.random() < 0.6 else []
    devices = rng.random() < (0.5 if view.position == "AP" else 0.12)
    scars = rng.random() < 0.4
    layers = _body(anatomy, frame) + _bones(anatomy, view, frame)
    layers += 0.24 * _vessels(anatomy, frame) * frame.air
    layers += _variation(rng, frame)
    if scars:
        layers += _scars(rng, frame)
    for field in fields:
        layers += _density(rng, field, frame)
    layers = _enlarge(0.86 * layers + 0.14 * ndimage.gaussian_filter(layers, 18), side)
    if devices:
        layers += _wires(rng, side)
    objects = np.array([_outline(field, side) for field in fields], bool).reshape(-1, side, side)
    label = OPACITY if fields else OTHER if scars or devices else NORMAL
    return Phantom(_develop(rng, layers, view), objects, label, view.position)


def _draw_view(rng: np.random.Generator) -> View:
    supine = rng.random() < 0.45
    return View(
        position="AP" if supine else "PA",
        shift=(rng.normal(0, 0.03), rng.normal(0.0, 0.03)),
        zoom=rng.uniform(0.84, 1.0),
        breath=rng.uniform(0.04, 0.16) if supine else rng.uniform(0, 0.06),
        exposure=(rng.uniform(0.0, 0.10), rng.uniform(1.0, 1.2), rng.uniform(0.75, 1.15)),
        noise=rng.uniform(0.006, 0.016),
    )


def _frame(anatomy: Anatomy, view: View, *, grid: int) -> _Frame:
    line = (np.arange(grid, dtype=np.float32) + 0.5) * (2 / grid) - 1
    x = np.broadcast_to((line[None, :] - view.shift[0]) * view.zoom, (grid, grid))
    y = np.broadcast_to((line[:, None] - view.shift[1]) * view.zoom, (grid, grid))
    bends = np.random.default_rng(anatomy.seed)
    x, y = x + 0.012 * _noise(bends, 5, grid), y + 0.012 * _noise(bends, 5, grid)
    outward = np.abs(x)
    lateral = _cage(anatomy, y)
    dome = np.where(x < 0, *anatomy.domes) - view.breath
    dome = dome + np.where(
        outward > 0.42,
        1.9 * (outward - 0.42) ** 2 + 4 * (outward - 0.42) ** 4,
        0.55 * (outward - 0.42) ** 2,
    )
    medial = 0.115 + 0.07 * np.exp(-(((y + 0.02) / 0.2) ** 2))
    depth = _soft_min(outward - medial, 0.9 * (lateral - outward), dome - y)
    size = anatomy.heart * (1.12 if view.position == "AP" else 1.0)
    heart = _heart(x, y - 0.7 * (anatomy.domes[1] - view.breath - 0.5), size, anatomy.knob)
    edge = _ramp(depth / 0.018)
    air = edge * (0.50 + 0.50 * np.tanh(np.maximum(depth, 0) / 0.20)) * (1 - 0.86 * heart)
    return _Frame(x, y, depth, air, lateral, heart, y - dome)


def _cage(anatomy: Anatomy, y: Float[np.ndarray, "g g"]) -> Float[np.ndarray, "g g"]:
    widest = 0.35
    up = np.clip((widest - y) / (widest - anatomy.apex), 0, 1)
    above = (1 - up**2.9) ** (1 / 2.1)
    return anatomy.width * np.where(y < widest, above, 1 - 0.10 * (y - widest) ** 2)


def _heart(
    x: Float[np.ndarray, "g g"], y: Float[np.ndarray, "g g"], size: float, knob: float
) -> Float[np.ndarray, "g g"]:
    """How much of the ray the heart and the great vessels fill, 0 to 1."""
    turn = np.deg2rad(38)
    u = (x - 0.13) * np.cos(turn) + (y - 0.30) * np.sin(turn)
    v = -(x - 0.13) * np.sin(turn) + (y - 0.30) * np.cos(turn)
    ventricle = 1 - np.hypot(u / (0.37 * size), v / (0.27 * size))
    atrium = 1 - np.hypot((x + 0.05) / (0.19 * size), (y - 0.25) / 0.26)
    arch = 1 - np.hypot((x - 0.10) / (0.9 * knob + 0.03), (y + 0.33) / (1.3 * knob))
    trunk = 1 - np.hypot((x - 0.10) / 0.115, (y + 0.05) / 0.26)
    column = 0.3 - np.hypot(x / 0.36, np.maximum(-y - 0.45, 0) / 0.7)
    union = -_soft_min(*[-part for part in (ventricle, atrium, arch, trunk, column)])
    return _ramp(0.5 + union / 0.11)


def _body(anatomy: Anatomy, frame: _Frame) -> Float[np.ndarray, "g g"]:
    """Soft tissue less the air in it."""
    x, y = frame.x, frame.y
    heights = [-1.6, -1.1, -0.98, -0.88, -0.74, -0.3, 0.1, 0.6, 1.6]
    flank = anatomy.width + 0.19
    halves = [0.28, 0.34, 0.52, 0.95, 1.14, 1.14, flank + 0.08, flank, flank + 0.05]
    half = ndimage.gaussian_filter1d(np.interp(y, heights, halves), y.shape[0] / 40, axis=0)
    across = np.clip(1 - (np.abs(x) / half) ** 2, 0, 1)
    tissue = 0.66 * across**0.42 + 0.07 * _ramp((y + 0.2) / 1.2)
    tissue += 0.13 * np.exp(-((x / 0.20) ** 2)) * across * (1 - 0.4 * _ramp(frame.below / 0.4))
    tissue += (
        0.05 * ndimage.gaussian_filter(frame.heart, len(x) / 40)
        + 0.13 * _ramp(frame.below / 0.25) * across
    )
    trachea = np.exp(-(((x - 0.01) / 0.036) ** 4)) * _ramp((-0.22 - y) / 0.08)
    tissue -= 0.085 * trachea * across
    if anatomy.sex == "F":
        for centre in (-0.46, 0.46):
            breast = 1 - np.hypot((x - centre) / 0.33, (y - 0.36) / 0.33)
            tissue += 0.10 * _ramp(breast / 0.3) * np.sqrt(np.maximum(breast, 0) + 0.1)
    gas = 1 - np.hypot((x - 0.36) / 0.13, (y - anatomy.domes[1] - 0.16) / 0.07)
    if anatomy.seed % 3 == 0:
        tissue -= 0.13 * _ramp(gas / 0.25)
    return tissue - 0.47 * frame.air


def _bones(anatomy: Anatomy, view: View, frame: _Frame) -> Float[np.ndarray, "g g"]:
    rng = np.random.default_rng(anatomy.seed + 1)
    x, y, grid = frame.x, frame.y, len(frame.x)
    first, spacing, half, slope = anatomy.ribs
    outward = np.abs(x)
    across = np.clip(outward / (frame.wall + 0.04), 0, 1.2)
    wobble = 0.05 * _noise(rng, 6, grid)
    caged = _ramp((frame.wall + 0.045 - outward) / 0.02) * _ramp((y - anatomy.apex + 0.02) / 0.05)
    fall = 0.24 * across**3.2 + (slope + 0.16 * (y + 0.4)) * across**1.4
    behind = _ribs((y - first - fall) / spacing + wobble, half / spacing)
    behind *= (
        _ramp((outward - 0.05) / 0.05)
        * (1 - 0.8 * _ramp(frame.below / 0.2))
        * (1 - 0.45 * frame.heart)
    )
    meet = 0.24 + slope + 0.16 * (y + 0.4)
    front = _ribs(
        (y - first - meet - 0.62 * (1.04 - across)) / (1.06 * spacing) + wobble,
        1.25 * half / spacing,
    )
    front *= _ramp((across - 0.40) / 0.25) * _ramp((y - anatomy.apex - 0.3) / 0.2)
    front *= 1 - _ramp(frame.below / 0.12)
    bones = (0.085 * behind + 0.050 * front) * caged
    lift = 0.06 if view.position == "AP" else 0.0
    centre = anatomy.apex + 0.25 - lift - 0.22 * outward + 0.05 * np.sin(7 * outward)
    clavicle = _bar((y - centre) / 0.030) * _ramp((outward - 0.07) / 0.03)
    bones += 0.10 * clavicle * _ramp((0.93 - outward) / 0.1)
    spine = np.exp(-((x / 0.085) ** 4))
    discs = 0.5 + 0.5 * np.cos(2 * np.pi * (y - first) / (0.80 * spacing * (1 + 0.12 * y)))
    bones += spine * (0.03 + 0.030 * discs**2)
    blade = (outward - 0.80 + 0.28 * (y + 0.35)) / 0.03
    scapula = _ramp(blade) * _ramp((0.34 - (y + 0.35) ** 2 * 2 - 0.4 * (outward - 0.7)) / 0.2)
    scapula += 0.8 * np.exp(-((blade - 0.7) ** 2)) * _ramp((0.3 - np.abs(y + 0.38)) / 0.08)
    return bones + 0.04 * scapula * _ramp((y + 0.75) / 0.1)


def _ribs(phase: Float[np.ndarray, "g g"], half: float) -> Float[np.ndarray, "g g"]:
    """Bars at whole numbers 0 to 9 of `phase`, `half` of a period to each side."""
    number = np.rint(phase)
    return np.where((number >= 0) & (number <= 9), _bar((phase - number) / half), 0)


def _bar(across: Float[np.ndarray, "g g"]) -> Float[np.ndarray, "g g"]:
    """A bone's profile between -1 and 1: a dense shell around a looser core."""
    distance = np.abs(across)
    core = _ramp(0.5 + (1 - distance) / 0.35)
    return core * (0.62 + 0.38 * np.exp(-(((distance - 0.78) / 0.22) ** 2)))


def _vessels(anatomy: Anatomy, frame: _Frame) -> Float[np.ndarray, "g g"]:
    """Trees that grow from both hila, thinner at each fork."""
    rng = np.random.default_rng(anatomy.seed + 2)
    grid = len(frame.x)
    canvas = Image.new("L", (2 * grid, 2 * grid))
    pen = ImageDraw.Draw(canvas)
    unit = 2 * grid / COARSE
    for sign in (-1, 1):
        for angle in np.linspace(-1.45, 1.55, 9):
            root = (sign * 0.17, -0.02 + 0.09 * angle)
            twigs = [(root, angle + rng.normal(0, 0.15), rng.uniform(6, 9.5), 0.16)]
            while twigs:
                (px, py), heading, width, length = twigs.pop()
                for _ in range(3):
                    heading += rng.normal(0, 0.10)
                    end = (
                        px + sign * np.cos(heading) * length / 3,
                        py + np.sin(heading) * length / 3,
                    )
                    ends = [((a + 1) * grid, (b + 1) * grid) for a, b in ((px, py), end)]
                    pen.line(
                        ends, fill=min(255, int(26 * width)), width=max(1, round(width * unit / 2))
                    )
                    px, py = end
                if width > 1.3:
                    for turn in (rng.uniform(-0.7, -0.15), rng.uniform(0.15, 0.7)):
                        thinner = width * rng.uniform(0.58, 0.82)
                        twigs.append(((px, py), heading + turn, thinner, 0.88 * length))
    tree = np.asarray(canvas.reduce(2), np.float32) / 255
    hila = np.exp(-(((np.abs(frame.x) - 0.19) / 0.07) ** 2 + ((frame.y + 0.0) / 0.14) ** 2))
    return ndimage.gaussian_filter(tree, grid / 400) + 0.45 * hila


def _variation(rng: np.random.Generator, frame: _Frame) -> Float[np.ndarray, "g g"]:
    """Uneven inflation and grain of the lungs, uneven tissue elsewhere."""
    grid = len(frame.x)
    mottle = sum(_noise(rng, cells, grid) / cells**0.5 for cells in (24, 60, 120))
    return frame.air * (0.022 * _noise(rng, 4, grid) + 0.035 * mottle) + 0.012 * _noise(
        rng, 9, grid
    )


def _scars(rng: np.random.Generator, frame: _Frame) -> Float[np.ndarray, "g g"]:
    """Small nodules and linear scars: findings that are no opacity."""
    layer = np.zeros_like(frame.air)
    for _ in range(rng.integers(1, 4)):
        row, column = _place(rng, frame)
        dx, dy = frame.x - frame.x[row, column], frame.y - frame.y[row, column]
        if rng.random() < 0.5:
            radius = rng.uniform(0.010, 0.026)
            layer += rng.uniform(0.06, 0.16) * _ramp(0.5 + (1 - np.hypot(dx, dy) / radius) / 0.7)
        else:
            turn = rng.uniform(-0.6, 0.6)
            along, across = (
                dx * np.cos(turn) + dy * np.sin(turn),
                dy * np.cos(turn) - dx * np.sin(turn),
            )
            across = across + 0.8 * along**2
            streak = np.exp(-((along / rng.uniform(0.05, 0.10)) ** 4) - (across / 0.007) ** 2)
            layer += rng.uniform(0.05, 0.11) * streak
    return layer * _ramp(frame.depth / 0.02)


def _wires(rng: np.random.Generator, side: int) -> Float[np.ndarray, "S S"]:
    """Leads across the chest, each ending in a round electrode."""
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 4)):
        ends = rng.uniform((0.15, 0.15), (0.85, 0.75)), rng.uniform((0.0, 0.6), (1.0, 1.0))
        middle = rng.uniform(0.2, 0.8, 2)
        t = np.linspace(0, 1, 60)[:, None]
        curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * middle + t**2 * ends[1]
        width = max(1, round(side * rng.uniform(0.0025, 0.005)))
        pen.line([tuple(point) for point in curve * side], fill=130, width=width, joint="curve")
        radius = side * rng.uniform(0.008, 0.013)
        (px, py) = curve[0] * side
        pen.ellipse((px - radius, py - radius, px + radius, py + radius), fill=180, outline=255)
    return ndimage.gaussian_filter(np.asarray(canvas, np.float32) / 255, side / 1024) * 0.35


def _opacities(rng: np.random.Generator, frame: _Frame) -> list[Float[np.ndarray, "f f"]]:
    """Soft indicator (0 to 1, outline at .5) of 1 to 3 opacities that do not touch."""
    step = max(1, len(frame.x) // FIELD)
    lung = (frame.depth > 0.012)[::step, ::step] & (frame.heart < 0.5)[::step, ::step]
    taken = np.zeros_like(lung)
    found: list[Float[np.ndarray, "f f"]] = []
    wanted = rng.choice([1, 2, 3], p=[0.45, 0.40, 0.15])
    for _ in range(40):
        blob = _blob(rng, frame, lung, step)
        rows, columns = np.flatnonzero(blob.any(1)), np.flatnonzero(blob.any(0))
        if not len(rows) or (blob & taken).any():
            continue
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        if 0.02 < box / blob.size < 0.13 and 0.36 < blob.sum() / box < 0.63:
            found.append(ndimage.gaussian_filter(blob.astype(np.float32), len(blob) / 250))
            taken |= ndimage.binary_dilation(blob, iterations=max(2, len(blob) // 40))
            if len(found) == wanted:
                break
    return found


def _blob(
    rng: np.random.Generator, frame: _Frame, lung: Bool[np.ndarray, "f f"], step: int
) -> Bool[np.ndarray, "f f"]:
    """The largest piece of a random field above a level, within a tilted ellipse in the lung."""
    row, column = _place(rng, frame)
    dx = (frame.x - frame.x[row, column])[::step, ::step]
    dy = (frame.y - frame.y[row, column])[::step, ::step]
    turn = rng.uniform(0, np.pi)
    long = rng.uniform(0.20, 0.46)
    short = long * rng.uniform(0.42, 0.9)
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    coarse = _noise(rng, int(rng.integers(6, 11)), len(lung))
    field = 1 - np.hypot(u / long, v / short) + 0.36 * coarse + 0.15 * _noise(rng, 20, len(lung))
    labels, count = ndimage.label((field > rng.uniform(0.1, 0.3)) & lung)
    if not count:
        return np.zeros_like(lung)
    return ndimage.binary_fill_holes(labels == 1 + np.bincount(labels.flat)[1:].argmax())


def _density(
    rng: np.random.Generator, field: Float[np.ndarray, "f f"], frame: _Frame
) -> Float[np.ndarray, "g g"]:
    """Attenuation of one opacity: patchy, soft at its border, and none where there is no lung."""
    grid = len(frame.x)
    soft = ndimage.gaussian_filter(field, len(field) * rng.uniform(0.003, 0.012))
    patchy = 1 + 0.22 * _noise(rng, 14, grid) + 0.12 * _noise(rng, 40, grid)
    return rng.uniform(0.11, 0.28) * _enlarge(soft, grid) * patchy * _ramp(frame.depth / 0.02)


def _outline(field: Float[np.ndarray, "f f"], side: int) -> Bool[np.ndarray, "S S"]:
    """The one component of the field above a half, at full size."""
    labels, _ = ndimage.label(_enlarge(field, side) > 0.5)
    return labels == 1 + np.bincount(labels.flat)[1:].argmax()


def _develop(
    rng: np.random.Generator, layers: Float[np.ndarray, "S S"], view: View
) -> UInt8[np.ndarray, "S S"]:
    """Tone curve, grain, and now and then a marker or the collimator's shadow."""
    side = len(layers)
    black, white, gamma = view.exposure
    grain = rng.standard_normal((side, side), np.float32)
    grain = 0.6 * grain + 1.2 * ndimage.uniform_filter(grain, 3)
    light = np.clip((layers + view.noise * grain - black) / (white - black), 0, 1) ** gamma
    if rng.random() < 0.5:
        _mark(rng, light)
    if rng.random() < 0.3:
        top, left, bottom, right = (rng.uniform(0, 0.05, 4) * side).astype(int)
        light[:top] = light[side - bottom :] = 0
        light[:, :left] = light[:, side - right :] = 0
    return np.rint(255 * light).astype(np.uint8)


def _mark(rng: np.random.Generator, light: Float[np.ndarray, "S S"]) -> None:
    """Puts a bright side marker without letters into an upper corner."""
    side = len(light)
    size, top = (rng.uniform((0.02, 0.03), (0.035, 0.10)) * side).astype(int)
    left = top if rng.random() < 0.5 else side - top - size
    light[top : top + size, left : left + size] = 0.95
    inner = slice(size // 4, size - size // 4)
    light[top : top + size, left : left + size][inner, inner] = 0.25


def _place(rng: np.random.Generator, frame: _Frame) -> tuple[int, int]:
    """Row and column of a random point in a visible part of the lungs."""
    rows, columns = np.nonzero((frame.depth > 0.05) & (frame.heart < 0.5))
    pick = rng.integers(len(rows))
    return int(rows[pick]), int(columns[pick])


def _noise(rng: np.random.Generator, cells: int, grid: int) -> Float[np.ndarray, "g g"]:
    """Smooth noise of about unit variance with `cells` bumps along a side."""
    return _enlarge(1.4 * rng.standard_normal((cells + 2, cells + 2), np.float32), grid)


def _enlarge(values: Float[np.ndarray, "f f"], side: int) -> Float[np.ndarray, "S S"]:
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.array(picture.resize((side, side), Image.Resampling.BICUBIC))


def _ramp(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Smooth step from 0 at 0 to 1 at 1."""
    t = np.clip(values, 0, 1)
    return t * t * (3 - 2 * t)


def _soft_min(*distances: Float[np.ndarray, "g g"]) -> Float[np.ndarray, "g g"]:
    """Smallest of the distances, with rounded corners."""
    sharp = 28.0
    return -np.logaddexp.reduce([-sharp * distance for distance in distances]) / sharp
