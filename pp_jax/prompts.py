"""Prompts: built from what a user marks, or drawn from a target as a user would mark it.

All coordinates are in the model frame. Points are pixel indices, 0 at the first pixel's centre;
boxes lie at the edges of pixels. The prompt encoder adds SAM's half pixel to both. Randomness comes
from keys that `example_keys` derives, so that a draw depends on the seed, its purpose, the step and
the position in the global batch alone.
"""

import enum
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from pp_jax.distances import distances
from pp_jax.types import (
    BOTTOM_RIGHT,
    FOREGROUND,
    NEUTRAL,
    NOT_A_POINT,
    TOP_LEFT,
    Objects,
    Prompts,
    check,
)

# The SAM paper's box noise: 10 % of the box's side, never more than 20 pixels at 1024.
_BOX_SIGMA = 0.1
_BOX_LIMIT = 20 / 1024

_STROKE_CLICKS = 4  # Of a simulated scribble or lasso.
# A simulated lasso is the target's outline after a blur, as a share of the canvas's side, at a
# level drawn from this range: sloppy by as much to both sides.
_LASSO_BLUR = 1 / 32
_LASSO_LEVELS = 0.3, 0.7
_LASSO_LOGIT = 10.0  # Size of SAM's own logits far from an outline.


class Purpose(enum.IntEnum):
    """What a random draw is for. Numbers are part of every run: append, never renumber."""

    INIT = 0
    TRAIN_PROMPT = 1
    EVAL_PROMPT = 2
    AUGMENT = 3


class Marks(NamedTuple):
    """What is marked on one image's `N` objects; a kind of mark that nobody made is None."""

    points: Float[Array, "N P 2"] | None = None
    labels: Int[Array, "N P"] | None = None
    boxes: Float[Array, "N 4"] | None = None
    has_box: Bool[Array, " N"] | None = None
    masks: Float[Array, "N h w"] | None = None  # Raw logits, low resolution, padded model frame.
    has_mask: Bool[Array, " N"] | None = None


def example_keys(
    key: Key[Array, ""],
    *,
    purpose: Purpose,
    step: int | Int[Array, ""],
    positions: Int[Array, " B"],
) -> Key[Array, " B"]:
    """One key per example: `fold_in(fold_in(fold_in(key, purpose), step), position)`.

    Args:
      key: Made from the run's seed, never carried in a state.
      purpose: What is drawn.
      step: Optimizer step, or 0 where there is none.
      positions: Each example's position in the global batch.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, purpose), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def make_prompts(
    *,
    points: Float[Array, "B N P 2"] | None = None,
    labels: Int[Array, "B N P"] | None = None,
    boxes: Float[Array, "B N 4"] | None = None,
    has_box: Bool[Array, "B N"] | None = None,
    masks: Float[Array, "B N h w"] | None = None,
    has_mask: Bool[Array, "B N"] | None = None,
    valid: Bool[Array, "B N"] | None = None,
    batch: int | None = None,
    count: int | None = None,
    mask_side: int = 0,
) -> Prompts:
    """SAM's tokens for any mix of marks: points, then the two corners of the box.

    Where a prompt has points and no box, SAM's pad point (-1) takes the first corner's place; its
    embedding is zeroed, so its coordinates do not matter. All other unused slots are neutral (-2),
    and so are all slots of an invalid prompt and of one with neither points nor box.

    Args:
      points: Model frame; a ragged tail is labelled neutral.
      labels: 1 foreground, 0 background, -1 not a point, -2 neutral.
      boxes: Model frame.
      has_box: Default: all, if there are boxes.
      masks: Raw logits of earlier masks.
      has_mask: Default: all, if there are masks.
      valid: Default: all.
      batch: Number of images, needed only where no array tells.
      count: Number of prompts per image, needed only where no array tells.
      mask_side: `h` and `w` of the mask prompts without `masks`: 0 where no prompt has one, and
        nothing is computed for them; the model's, to have one program for prompts with and without.

    Raises:
      ValueError: Half of a pair is missing (labels of points, boxes of has_box, masks of has_mask),
        masks have no pixels, or nothing tells `(B, N)`.

    Examples:
      One image with one object: a click beside SAM's pad point, and a box as its two corners.

      >>> click = make_prompts(points=jnp.array([[[[64.0, 80.0]]]]), labels=jnp.array([[[1]]]))
      >>> click.labels.tolist()
      [[[1, -1]]]
      >>> box = make_prompts(boxes=jnp.array([[[10.0, 20.0, 90.0, 80.0]]]))
      >>> box.points.tolist(), box.labels.tolist()
      ([[[[10.0, 20.0], [90.0, 80.0]]]], [[[2, 3]]])
    """
    if (points is None) != (labels is None):
        raise ValueError("points and labels go together: give both or neither")
    if (boxes is None and has_box is not None) or (masks is None and has_mask is not None):
        raise ValueError("has_box needs boxes and has_mask needs masks: give them or leave it out")
    if masks is not None and not masks.shape[-1]:
        raise ValueError(f"masks of shape {masks.shape} hold nothing: leave them out")
    known = [array.shape[:2] for array in (points, boxes, masks, valid) if array is not None]
    if not known and (batch is None or count is None):
        raise ValueError("no array tells the number of images and prompts: give batch and count")
    shape = known[0] if known else (batch, count)
    if masks is None:
        masks, has_mask = jnp.zeros((*shape, mask_side, mask_side)), jnp.zeros(shape, bool)
    if points is None:
        points, labels = jnp.zeros((*shape, 0, 2)), jnp.zeros((*shape, 0), jnp.int32)
    last_points, last_labels = _corners(labels, boxes, has_box)
    labels = jnp.concatenate([labels, last_labels], axis=2)
    valid = jnp.ones(shape, bool) if valid is None else valid
    return check(
        Prompts(
            points=jnp.concatenate([points, last_points], axis=2),
            labels=jnp.where(valid[..., None], labels, NEUTRAL),
            masks=masks,
            has_mask=jnp.ones(shape, bool) if has_mask is None else has_mask,
            valid=valid,
        )
    )


def _corners(
    labels: Int[Array, "B N P"],
    boxes: Float[Array, "B N 4"] | None,
    has_box: Bool[Array, "B N"] | None,
) -> tuple[Float[Array, "B N Q 2"], Int[Array, "B N Q"]]:
    """The slots after the points: two corners, or the pad point, or neutral."""
    has_point = jnp.any(labels != NEUTRAL, axis=-1)
    pad = jnp.where(has_point, NOT_A_POINT, NEUTRAL)
    if boxes is None:
        return jnp.zeros((*pad.shape, 1, 2)), pad[..., None]
    has_box = jnp.ones_like(has_point) if has_box is None else has_box
    first = jnp.where(has_box, TOP_LEFT, pad)
    second = jnp.where(has_box, BOTTOM_RIGHT, NEUTRAL)
    return boxes.reshape(*pad.shape, 2, 2), jnp.stack([first, second], axis=-1)


def box_prompt(
    key: Key[Array, ""],
    targets: Float[Array, "N h w"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    *,
    side: int,
) -> Marks:
    """The target's box with the SAM paper's noise on each coordinate.

    Gaussian, its deviation 10 % of the side along that axis, cut off at 20 pixels where `side`
    is 1024. Corners stay ordered and inside the valid `size`.
    """
    del targets
    extent = jnp.tile(boxes[:, 2:] - boxes[:, :2], 2)
    limit = _BOX_LIMIT * side
    noise = jnp.clip(_BOX_SIGMA * extent * jax.random.normal(key, boxes.shape), -limit, limit)
    corners = jnp.clip((boxes + noise).reshape(-1, 2, 2), 0, size[::-1])
    return Marks(boxes=jnp.sort(corners, axis=1).reshape(-1, 4), has_box=valid)


def point_prompt(
    key: Key[Array, ""],
    targets: Float[Array, "N h w"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    *,
    side: int,
) -> Marks:
    """One click on each target: the centre of a low-resolution cell drawn evenly.

    A cell counts if the target fills more than half of it; if it fills none so far, the fullest
    counts. An empty target gets no click. The centre is held inside the valid `size`.
    """
    del boxes
    uniform = jax.random.uniform(key, targets.shape[:1])
    cells = jax.vmap(draw_cell)(_clickable(targets), uniform)
    return _click(cells[:, None], valid[:, None], targets, size, side=side)


def centre_prompt(
    key: Key[Array, ""],
    targets: Float[Array, "N h w"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    *,
    side: int,
) -> Marks:
    """One click on each target, where it is deepest: the cell farthest from all outside.

    Of equally deep cells the first in raster order. Cells and empty targets as in `point_prompt`.
    """
    del key, boxes
    inside = jnp.pad(_clickable(targets), ((0, 0), (1, 1), (1, 1)))
    depth = distances(~inside)[:, 1:-1, 1:-1]
    deepest = jnp.argmax(depth.reshape(len(targets), -1), axis=1)
    cells = jnp.stack([deepest % targets.shape[2], deepest // targets.shape[2]], axis=-1)
    return _click(cells[:, None], valid[:, None], targets, size, side=side)


def scribble_prompt(
    key: Key[Array, ""],
    targets: Float[Array, "N h w"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    *,
    side: int,
) -> Marks:
    """Four clicks spread over each target, as a scribble across all of it would be read.

    The first is that of `point_prompt`; each other is the cell farthest from all before it. A
    target of fewer cells gets one click on each.
    """
    del boxes
    cells = _clickable(targets)
    first = jax.vmap(draw_cell)(cells, jax.random.uniform(key, targets.shape[:1]))
    spread, fresh = jax.vmap(farthest_cells)(cells, first)
    return _click(spread, fresh & valid[:, None], targets, size, side=side)


def _click(
    cells: Int[Array, "N P 2"],
    wanted: Bool[Array, "N P"],
    targets: Float[Array, "N h w"],
    size: Int[Array, "2"],
    *,
    side: int,
) -> Marks:
    """Foreground clicks on the wanted cells of targets that are not empty."""
    clicked = wanted & jnp.any(targets > 0, axis=(1, 2))[:, None]
    return Marks(
        points=cell_centres(cells, size, stride=side / targets.shape[-1]),
        labels=jnp.where(clicked, FOREGROUND, NEUTRAL),
    )


def lasso_prompt(
    key: Key[Array, ""],
    targets: Float[Array, "N h w"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    *,
    side: int,
) -> Marks:
    """The clicks of `scribble_prompt` and a mask prompt: the logits of a sloppy outline.

    The outline is the target's, blurred (by a Gaussian of 1/32 of the canvas, cut off at the valid
    `size`) at a level drawn from .3 to .7 of its peak. Logits are 0 there, 10 at the peak and -10
    where the blurred target is 0. An empty target gets no mask.
    """
    marks = scribble_prompt(key, targets, boxes, valid, size, side=side)
    blurred = _blur(targets, size, side=side)
    share = blurred / jnp.maximum(
        jnp.max(blurred, (1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny
    )
    # A key of its own, so that the clicks are the scribble's.
    low, high = _LASSO_LEVELS
    uniform = jax.random.uniform(jax.random.fold_in(key, 1), (len(targets), 1, 1))
    level = low + (high - low) * uniform
    above = share - level
    logits = _LASSO_LOGIT * jnp.where(above > 0, above / (1 - level), above / level)
    return marks._replace(masks=logits, has_mask=valid & jnp.any(targets > 0, axis=(1, 2)))


def mixed_prompt(
    key: Key[Array, ""],
    targets: Float[Array, "N h w"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    *,
    side: int,
) -> Marks:
    """The mark of `box_prompt` or that of `point_prompt`, each for half of the objects."""
    # Keys of their own, so that neither mark tells which of them is taken.
    point_key, choice_key = (jax.random.fold_in(key, number) for number in (1, 2))
    box = box_prompt(key, targets, boxes, valid, size, side=side)
    point = point_prompt(point_key, targets, boxes, valid, size, side=side)
    clicked = jax.random.bernoulli(choice_key, shape=valid.shape)
    return Marks(
        points=point.points,
        labels=jnp.where(clicked[:, None], point.labels, NEUTRAL),
        boxes=box.boxes,
        has_box=valid & ~clicked,
    )


def no_prompt(
    key: Key[Array, ""],
    targets: Float[Array, "N h w"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    *,
    side: int,
) -> Marks:
    """No marks: the model is asked for the one object that it finds."""
    del key, targets, boxes, valid, size, side
    return Marks()


def and_none(sampler: "Sampler") -> "Sampler":
    """Marks by the sampler, but none on the first object, which is all findings together.

    A model that learns from both in one step answers with and without a prompt.
    """

    def sample(
        key: Key[Array, ""],
        targets: Float[Array, "N h w"],
        boxes: Float[Array, "N 4"],
        valid: Bool[Array, " N"],
        size: Int[Array, "2"],
        *,
        side: int,
    ) -> Marks:
        marks = sampler(key, targets, boxes, valid, size, side=side)
        if marks.labels is not None:
            marks = marks._replace(labels=marks.labels.at[0].set(NEUTRAL))
        if marks.has_box is not None:
            marks = marks._replace(has_box=marks.has_box.at[0].set(False))
        return marks

    return sample


def draw_cell(cells: Bool[Array, "h w"], uniform: Float[Array, ""]) -> Int[Array, "2"]:
    """`(x, y)` of the true cell number `floor(uniform * count)` in raster order.

    `uniform` is in [0, 1). Without a true cell it is (0, 0).
    """
    rank = jnp.cumsum(cells.ravel())
    chosen = jnp.floor(uniform * rank[-1]).astype(jnp.int32)
    index = jnp.argmax(rank > chosen)
    return jnp.stack([index % cells.shape[1], index // cells.shape[1]])


def cell_centres(
    cells: Int[Array, "*n 2"], size: Int[Array, "2"], *, stride: float
) -> Float[Array, "*n 2"]:
    """The middle `(x, y)` of cells of `stride` pixels, held inside the valid `size`."""
    return jnp.minimum((cells + 0.5) * stride - 0.5, size[::-1] - 1)


def farthest_cells(
    cells: Bool[Array, "h w"], first: Int[Array, "2"]
) -> tuple[Int[Array, "P 2"], Bool[Array, " P"]]:
    """`(x, y)` of four true cells, each the farthest from all before it, and which are new.

    Of equally far cells the first in raster order. Where no other true cell is left, the rest
    repeats cells and is not new. Source: Gonzalez 1985, doi 10.1016/0304-3975(85)90224-5.
    """
    height, width = cells.shape
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    chosen, fresh = [first], [jnp.bool_(True)]
    distance = jnp.where(cells, jnp.iinfo(jnp.int32).max, -1)
    for _ in range(_STROKE_CLICKS - 1):
        x, y = chosen[-1]
        distance = jnp.minimum(distance, (columns - x) ** 2 + (rows - y) ** 2)
        index = jnp.argmax(distance)
        chosen.append(jnp.stack([index % width, index // width]))
        fresh.append(distance.ravel()[index] > 0)
    return jnp.stack(chosen), jnp.stack(fresh)


def _clickable(targets: Float[Array, "N h w"]) -> Bool[Array, "N h w"]:
    """The cells that a target fills by more than half; if none, those that it fills most."""
    fullest = jnp.max(targets, axis=(1, 2), keepdims=True)
    return (targets > 0.5) | ((fullest <= 0.5) & (targets == fullest))


def _blur(
    targets: Float[Array, "N h w"], size: Int[Array, "2"], *, side: int
) -> Float[Array, "N h w"]:
    """Gaussian means over the cells that the image reaches; 0 beyond."""
    cell = jnp.arange(targets.shape[-1])
    sigma = _LASSO_BLUR * len(cell)
    weights = jnp.exp(-0.5 * ((cell[:, None] - cell[None, :]) / sigma) ** 2)
    reached = cell * (side / len(cell)) < size[:, None]  # 2 h
    rows, columns = (jnp.where(axis[:, None] & axis[None, :], weights, 0) for axis in reached)
    rows, columns = (
        kernel / jnp.maximum(kernel.sum(axis=1, keepdims=True), 1) for kernel in (rows, columns)
    )
    return jnp.einsum("ih,Nhw,jw->Nij", rows, targets, columns)


def sample_marks(
    name: str,
    keys: Key[Array, " B"],
    *,
    targets: Float[Array, "B N h w"],
    boxes: Float[Array, "B N 4"],
    valid: Bool[Array, "B N"],
    size: Int[Array, "B 2"],
    side: int,
) -> Marks:
    """Marks drawn from a batch's targets by a row of `SAMPLERS`, one key per image.

    Every field has a leading axis `B`.

    Raises:
      ValueError: An unknown name.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown prompt {name!r}: choose one of {', '.join(SAMPLERS)}")
    return jax.vmap(partial(SAMPLERS[name], side=side))(keys, targets, boxes, valid, size)


def sample_prompts(
    name: str, keys: Key[Array, " B"], *, valid: Bool[Array, "B N"], **batch: Any
) -> Prompts:
    """The prompts of `sample_marks`, which says what the arguments are."""
    marks = sample_marks(name, keys, valid=valid, **batch)
    return make_prompts(**marks._asdict(), valid=valid)


Sampler = Callable[..., Marks]

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "box": box_prompt,
        "point": point_prompt,
        "centre": centre_prompt,
        "mixed": mixed_prompt,
        "none": no_prompt,
        "scribble": scribble_prompt,
        "lasso": lasso_prompt,
        "box+none": and_none(box_prompt),
        "point+none": and_none(point_prompt),
        "centre+none": and_none(centre_prompt),
    }
)


class Prompting(NamedTuple):
    """How training marks its objects."""

    first: str  # A row of `SAMPLERS`.
    clicks: bool = False  # Whether rounds of clicks on the model's errors follow.
    objects: Objects = "each"  # What is marked.


PROMPTINGS: Mapping[str, Prompting] = MappingProxyType(
    {
        "box": Prompting("box"),
        "point": Prompting("point"),
        "centre": Prompting("centre"),
        "mixed": Prompting("mixed"),
        "none": Prompting("none", objects="union"),
        "scribble": Prompting("scribble"),
        "lasso": Prompting("lasso"),
        "box+none": Prompting("box+none", objects="both"),
        "point+none": Prompting("point+none", objects="both"),
        "centre+none": Prompting("centre+none", objects="both"),
        "iterative": Prompting("mixed", clicks=True),
    }
)
