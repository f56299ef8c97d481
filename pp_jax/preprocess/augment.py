"""Augmentation of training examples on the device: `flip>rotate:10>shift:20>noise:5`.

A spec is a list of rows of `AUGMENTATIONS` joined by `>`, applied as written, or a name in
`PRESETS`. Rows that move pixels come first, then `elastic`, then rows that change grey levels:
the moves are composed, and pixels are interpolated once. Image, targets and boxes move together,
and prompts are drawn afterwards. Grey levels change in the valid part of the canvas only, in all
three channels alike, are cut off at 0 and 255 after each row and rounded at the end.

Every draw depends on the example's key and the row's place in the spec alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from pp_jax.preprocess import motion, specs
from pp_jax.preprocess.responses import inside
from pp_jax.types import Batch

_LEAST = 0.01  # Of a cell, or of a smaller object: what must be left of it.


Draw = Callable[[Key[Array, ""], Int[Array, "2"], int], Any]  # Of a key, the size and the side.


class Move(NamedTuple):
    """A row that moves the image: what it draws, and the map that a draw means."""

    draw: Draw
    matrix: Callable[[Array, Int[Array, "2"]], Float32[Array, "2 3"]]


class Bend(NamedTuple):
    """A row that bends the image: it draws the controls of `motion.Motion`."""

    draw: Draw


class Tone(NamedTuple):
    """A row that changes grey levels: what it draws, and the levels after it."""

    draw: Draw
    levels: Callable[[Float32[Array, "S S 3"], Any, Bool[Array, "S S"]], Float32[Array, "S S 3"]]


Row = Move | Bend | Tone
_ORDER = (Move, Bend, Tone)


def parse(spec: str) -> tuple[specs.Named, ...]:
    """The rows of a spec, every parameter filled in and checked; none for `none`.

    Raises:
      ValueError: An unknown name or parameter, a value outside its range, or a wrong order.
    """
    if spec == "none":
        return ()
    text = PRESETS.get(spec, spec)
    rows = [specs.parse_row(part, AUGMENTATIONS, what="augmentation") for part in text.split(">")]
    ranks = [_ORDER.index(type(specs.make_row(row, AUGMENTATIONS))) for row in rows]
    for place in range(1, len(rows)):
        if ranks[place] < ranks[place - 1]:
            raise ValueError(
                f"augmentation {spec!r}: put {rows[place].name} before {rows[place - 1].name}; "
                "rows that move pixels come first, then elastic, then rows of grey levels"
            )
    if ranks.count(_ORDER.index(Bend)) > 1:
        raise ValueError(f"augmentation {spec!r} bends the image twice: choose one elastic")
    return tuple(rows)


def canonical(spec: str) -> str:
    """The spec with all parameters written out; `none` without a row."""
    return ">".join(map(str, parse(spec))) or "none"


def make_chain(spec: str) -> tuple[Row, ...]:
    """The rows of a spec.

    Raises:
      ValueError: As `parse`.
    """
    return tuple(specs.make_row(row, AUGMENTATIONS) for row in parse(spec))


def augment(keys: Key[Array, " B"], batch: Batch, *, chain: Sequence[Row]) -> Batch:
    """The batch with every example changed by the rows in turn, one key per example.

    An object that leaves the image becomes invalid. Boxes of slots without a target stay.
    """
    return jax.vmap(partial(_augment, chain=chain))(keys, batch)


def _augment(key: Key[Array, ""], example: Batch, *, chain: Sequence[Row]) -> Batch:
    side = len(example.image)
    shown = inside(example.size, shape=(side, side))
    levels = example.image.astype(jnp.float32)
    drawn = [
        (row, row.draw(jax.random.fold_in(key, place), example.size, side))
        for place, row in enumerate(chain)
    ]
    if any(isinstance(row, Move | Bend) for row in chain):
        by = _motion(drawn, example.size)
        levels = motion.move_image(example.image, example.size, by)
        example = move_answers(example, by)
    for row, draws in drawn:
        if isinstance(row, Tone):
            levels = jnp.clip(row.levels(levels, draws, shown), 0, 255)
    image = jnp.where(shown[..., None], jnp.round(levels), 0).astype(jnp.uint8)
    return example._replace(image=image)


def _motion(drawn: Sequence[tuple[Row, Any]], size: Int[Array, "2"]) -> motion.Motion:
    """The moves one after the other, and what bends the image thereafter."""
    matrices = [row.matrix(draws, size) for row, draws in drawn if isinstance(row, Move)]
    bends = [draws for row, draws in drawn if isinstance(row, Bend)]
    return motion.Motion(
        reduce(motion.compose, matrices, jnp.eye(2, 3)), bends[0] if bends else None
    )


def move_answers(example: Batch, by: motion.Motion) -> Batch:
    """One example whose targets and boxes are moved, and whose image is not.

    An object becomes invalid where less is left of it than a hundredth of a cell, or of itself if
    it is smaller, or where its box has no extent any more.
    """
    side = len(example.image)
    targets = motion.move_targets(example.targets, example.size, by, side=side)
    boxes = motion.move_boxes(example.boxes, targets, example.size, by, side=side)
    before, after = (jnp.sum(x, axis=(1, 2)) for x in (example.targets, targets))
    left = after >= _LEAST * jnp.minimum(before, 1)
    left &= jnp.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    marked = before > 0
    return example._replace(
        targets=targets,
        boxes=jnp.where(marked[:, None], boxes, example.boxes),
        valid=example.valid & (left | ~marked),
    )


# Rows. Draws are even in their range, unless they say otherwise.


def flip(*, p: float = 0.5) -> Move:
    """Left and right exchanged with probability `p`.

    On a chest X-ray, heart and liver change sides: do not ask for it where the side has a meaning.
    """
    _require("p", p, low=0, high=1)
    return Move(
        lambda key, size, side: jax.random.bernoulli(key, p),
        lambda flipped, size: motion.mirroring(flipped, jnp.bool_(False), size),
    )


def vflip(*, p: float = 0.5) -> Move:
    """Top and bottom exchanged with probability `p`."""
    _require("p", p, low=0, high=1)
    return Move(
        lambda key, size, side: jax.random.bernoulli(key, p),
        lambda flipped, size: motion.mirroring(jnp.bool_(False), flipped, size),
    )


def rotate(*, degrees: float = 10.0) -> Move:
    """Turned about the centre by up to `degrees`, either way."""
    _require("degrees", degrees, low=0, high=180)
    return Move(lambda key, size, side: _even(key, degrees), motion.rotation)


def scale(*, share: float = 0.1) -> Move:
    """Enlarged about the centre by a factor in [1 - share, 1 + share]."""
    _require("share", share, low=0, high=0.9)
    return Move(lambda key, size, side: 1 + _even(key, share), motion.scaling)


def translate(*, share: float = 0.05) -> Move:
    """Moved along each axis by up to a `share` of the canvas's side."""
    _require("share", share, low=0, high=1)
    return Move(
        lambda key, size, side: side * _even(key, share, shape=(2,)),
        lambda offset, size: motion.translation(offset),
    )


def elastic(*, share: float = 0.02, cells: int = 8) -> Bend:
    """Bent smoothly: each place moves along each axis by at most a `share` of the canvas's side.

    A cubic B-spline over `cells` by `cells`, its controls drawn evenly; with `share * cells` below
    1/4 nothing folds. Source: Rueckert et al. 1999, doi 10.1109/42.796284.
    """
    _require("cells", cells, low=1, high=64)
    if not 0 <= share * cells < 0.25:
        raise ValueError(
            f"share={share} with cells={cells} could fold the image: choose a share from 0 to "
            f"below 0.25 / cells = {0.25 / cells:g}"
        )
    return Bend(lambda key, size, side: side * _even(key, share, shape=(2, cells + 3, cells + 3)))


def shift(*, levels: float = 20.0) -> Tone:
    """Brighter or darker by up to `levels` grey levels."""
    _require("levels", levels, low=0, high=255)
    return Tone(
        lambda key, size, side: _even(key, levels), lambda image, amount, shown: image + amount
    )


def contrast(*, share: float = 0.2) -> Tone:
    """Distances from the image's mean level times a factor in [1 - share, 1 + share]."""
    _require("share", share, low=0, high=1)

    def levels(image: Array, factor: Array, shown: Array) -> Array:
        mean = jnp.mean(image, where=shown[..., None])
        return mean + factor * (image - mean)

    return Tone(lambda key, size, side: 1 + _even(key, share), levels)


def gamma(*, share: float = 0.2) -> Tone:
    """`255 * (level / 255) ** g`, the logarithm of `g` even between those of 1 + share and of its
    inverse.
    """
    _require("share", share, low=0, high=9)
    return Tone(
        lambda key, size, side: jnp.exp(_even(key, math.log1p(share))),
        lambda image, power, shown: 255 * (image / 255) ** power,
    )


def noise(*, sigma: float = 5.0) -> Tone:
    """Gaussian noise, its standard deviation in grey levels drawn from [0, sigma]."""
    _require("sigma", sigma, low=0, high=255)

    def draw(key: Key[Array, ""], size: Int[Array, "2"], side: int) -> Float[Array, "S S"]:
        width, field = jax.random.split(key)
        return sigma * jax.random.uniform(width) * jax.random.normal(field, (side, side))

    return Tone(draw, lambda image, added, shown: image + added[..., None])


def cutout(*, share: float = 0.2) -> Tone:
    """A black square around a place of the image; targets stay: the model is to guess.

    Its side is drawn from 0 to a `share` of the image's shorter side; what lies beyond the image is
    cut off. Source: DeVries and Taylor 2017, arXiv 1708.04552.
    """
    _require("share", share, low=0, high=1)

    def draw(key: Key[Array, ""], size: Int[Array, "2"], side: int) -> Float[Array, "3"]:
        """x and y of the centre, and the side."""
        spans = jnp.array([size[1], size[0], share * jnp.min(size)])
        return spans * jax.random.uniform(key, (3,))

    def levels(image: Array, hole: Array, shown: Array) -> Array:
        x, y, width = hole
        centres = jnp.arange(len(image)) + 0.5
        rows, columns = (jnp.abs(centres - centre) < width / 2 for centre in (y, x))
        return jnp.where((rows[:, None] & columns)[..., None], 0, image)

    return Tone(draw, levels)


def _even(key: Key[Array, ""], most: float, *, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
    """Even draws from [-most, most]."""
    return jax.random.uniform(key, shape, minval=-most, maxval=most)


def _require(name: str, value: float, *, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: choose a number from {low} to {high}")


AUGMENTATIONS: Mapping[str, Callable[..., Row]] = MappingProxyType(
    {
        "flip": flip,
        "vflip": vflip,
        "rotate": rotate,
        "scale": scale,
        "translate": translate,
        "elastic": elastic,
        "shift": shift,
        "contrast": contrast,
        "gamma": gamma,
        "noise": noise,
        "cutout": cutout,
    }
)

# No flip: in a chest or a belly the side has a meaning.
PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "light": "rotate:5>scale:0.05>translate:0.03>shift:10>contrast:0.1",
        "strong": "rotate:15>scale:0.2>translate:0.1>elastic>shift:30>contrast:0.3>gamma:0.3>"
        "noise:8>cutout:0.2",
    }
)

HELP = (
    "a name or NAME[:VALUE...], chained by '>' (quote it). Names: "
    f"none, {', '.join(PRESETS)}. Rows with their parameters and defaults: "
    f"{specs.describe(AUGMENTATIONS)}"
)
