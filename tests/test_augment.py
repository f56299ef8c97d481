"""Augmentation: the moves against NumPy and SciPy, grey levels against their formulas."""

import hashlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pp_jax import sharding
from pp_jax.preprocess import motion
from pp_jax.preprocess.augment import (
    AUGMENTATIONS,
    PRESETS,
    augment,
    canonical,
    make_chain,
    move_answers,
    parse,
)
from pp_jax.preprocess.geometry import low_res_target
from pp_jax.preprocess.responses import inside
from pp_jax.prompts import Purpose, example_keys
from pp_jax.types import Batch

SIDE = 64
# As in `test_step`, whose import would take longer.
COMPILER = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
MOVES = ("flip", "vflip", "rotate", "scale", "translate", "elastic")
TONES = ("shift", "contrast", "gamma", "noise", "cutout")
NOTHING = jnp.bool_(False)


def example(masks: np.ndarray, *, seed: int = 0) -> Batch:
    """A noisy image with these objects, `N H W`, the longest side of which is the canvas's."""
    height, width = masks.shape[1:]
    side = max(height, width)
    image = np.zeros((side, side, 3), np.uint8)
    image[:height, :width] = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Batch(
        jnp.asarray(image),
        jnp.array([height, width], jnp.int32),
        jnp.array([low_res_target(mask, side=side) for mask in masks]),
        jnp.array([tight(mask) for mask in masks], jnp.float32),
        jnp.ones(len(masks), bool),
        jnp.int32(0),
    )


def tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    if not mask.any():
        return 0, 0, 0, 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def blobs(height: int, width: int) -> np.ndarray:
    """Two smooth objects inside the image, and none."""
    y, x = np.mgrid[:height, :width] + 0.5
    large = np.hypot((x - 0.6 * width) / 1.5, y - 0.5 * height) < 0.2 * min(height, width)
    small = np.hypot(x - 0.3 * width, (y - 0.4 * height) / 2) < 0.1 * min(height, width)
    return np.stack([large, small, np.zeros_like(large)])


@jax.jit
def moved(given: Batch, by: motion.Motion) -> Batch:
    """All of the example moved, the image rounded and cut off at its size."""
    levels = motion.move_image(given.image, given.size, by)
    shown = inside(given.size, shape=levels.shape[:2])[..., None]
    image = jnp.where(shown, jnp.round(levels), 0).astype(jnp.uint8)
    return move_answers(given, by)._replace(image=image)


@partial(jax.jit, static_argnames="spec")
def augmented(key: jax.Array, given: Batch, *, spec: str) -> Batch:
    alone = jax.tree.map(lambda x: x[None], given)
    return jax.tree.map(lambda x: x[0], augment(key[None], alone, chain=make_chain(spec)))


def by(*matrices: jax.Array) -> motion.Motion:
    whole = jnp.eye(2, 3)
    for matrix in matrices:
        whole = motion.compose(whole, matrix)
    return motion.Motion(whole)


def bend(seed: int, *, share: float = 0.02, cells: int = 8) -> jax.Array:
    """Controls of the row `elastic`."""
    row = AUGMENTATIONS["elastic"](share=share, cells=cells)
    return row.draw(jax.random.key(seed), jnp.array([SIDE, SIDE]), SIDE)


def bent(x: np.ndarray, y: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places with their displacement, SciPy's B-spline from the same coefficients."""
    cells = controls.shape[-1] - 3
    at = [axis / SIDE * cells + 1 for axis in (y, x)]
    dx, dy = (
        ndimage.map_coordinates(np.float64(c), at, order=3, prefilter=False) for c in controls
    )
    return x + dx, y + dy


def assert_equal(got: Batch, want: Batch) -> None:
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)


# Moves.


@pytest.mark.parametrize("size", [(64, 64), (64, 44), (44, 64)])
def test_a_flip_is_numpys_within_the_image(size):
    height, width = size
    given = example(blobs(*size))
    for across, down, axis in ((True, False, 1), (False, True, 0)):
        flip = motion.mirroring(jnp.bool_(across), jnp.bool_(down), given.size)
        got = moved(given, by(flip))
        want = example(np.flip(blobs(*size), axis + 1))
        image = np.zeros_like(given.image)
        image[:height, :width] = np.flip(given.image[:height, :width], axis)
        np.testing.assert_array_equal(got.image, image)
        np.testing.assert_array_equal(got.targets, want.targets)
        np.testing.assert_array_equal(got.boxes, want.boxes)
        np.testing.assert_array_equal(got.valid, True)


@pytest.mark.parametrize("width", [41, 42, 43, 44])
def test_a_mask_of_the_whole_image_is_that_after_a_flip(width):
    given = example(np.ones((1, 64, width), bool))
    flip = motion.mirroring(jnp.bool_(True), NOTHING, given.size)
    np.testing.assert_array_equal(moved(given, by(flip)).targets, given.targets)


def test_two_flips_are_none():
    given = example(blobs(64, 52))
    flip = by(motion.mirroring(jnp.bool_(True), jnp.bool_(True), given.size))
    assert_equal(moved(moved(given, flip), flip), given)


def test_a_right_angle_is_numpys_rot90():
    given = example(blobs(64, 64))
    got = moved(given, by(motion.rotation(jnp.float32(90), given.size)))
    want = example(np.rot90(blobs(64, 64), axes=(1, 2)))
    np.testing.assert_array_equal(got.image, np.rot90(given.image))
    np.testing.assert_allclose(got.targets, want.targets, atol=1e-4)  # Its cosine is 4e-8.
    np.testing.assert_allclose(got.boxes, want.boxes, atol=2)


def test_a_translation_by_whole_cells_is_a_shift_in_numpy():
    height, width = 64, 52
    given = example(blobs(height, width))
    got = moved(given, by(motion.translation(jnp.array([8.0, -12.0]))))
    image = np.zeros_like(given.image)
    image[: height - 12, 8:width] = given.image[12:height, : width - 8]
    np.testing.assert_array_equal(got.image, image)
    targets = np.zeros_like(given.targets)
    targets[:, :13, 2:13] = given.targets[:, 3:, :11]
    np.testing.assert_array_equal(got.targets, targets)
    x0, y0, x1, y1 = np.asarray(given.boxes)[0]
    np.testing.assert_array_equal(got.boxes[0], [x0 + 8, y0 - 12, min(x1 + 8, width), y1 - 12])


def test_moves_follow_each_other_as_written():
    given = example(blobs(64, 64))
    turn = motion.rotation(jnp.float32(90), given.size)
    push = motion.translation(jnp.array([8.0, 0.0]))
    pushed = np.zeros_like(given.image)
    pushed[:, 8:] = given.image[:, :-8]
    np.testing.assert_array_equal(moved(given, by(push, turn)).image, np.rot90(pushed))
    turned = np.zeros_like(given.image)
    turned[:, 8:] = np.rot90(given.image)[:, :-8]
    np.testing.assert_array_equal(moved(given, by(turn, push)).image, turned)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", [(64, 64), (64, 45)])
def test_pixels_are_scipys_to_a_grey_level(size, seed):
    given = example(blobs(*size), seed=seed)
    angle, factor, offset = 25.0 - 60 * seed, 1.2 - 0.3 * seed, np.array([5.3, -2.6])
    matrices = (
        motion.rotation(jnp.float32(angle), given.size),
        motion.scaling(jnp.float32(factor), given.size),
        motion.translation(jnp.array(offset)),
    )
    controls = bend(seed)
    got = moved(given, by(*matrices)._replace(controls=controls))

    at = np.arange(SIDE) + 0.5
    x, y = bent(*np.meshgrid(at, at), np.asarray(controls))
    centre = np.array([size[1], size[0]]) / 2
    place = np.stack([x, y], -1) - offset
    place = (place - centre) / factor
    turn = np.deg2rad(angle)
    place = place @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).T
    x, y = np.moveaxis(place + centre - 0.5, -1, 0)
    for channel in range(3):
        grey = np.float64(given.image[: size[0], : size[1], channel])
        want = ndimage.map_coordinates(grey, [y, x], order=1, mode="grid-constant")
        difference = np.abs(want - got.image[..., channel])[: size[0], : size[1]]
        assert difference.max() <= 1


def phantom(side: int) -> Batch:
    """An image that is its own mask."""
    mask = blobs(side, side)[:1]
    image = np.repeat(mask[0][..., None], 3, -1).astype(np.uint8) * 255
    return example(mask)._replace(image=jnp.asarray(image))


@pytest.mark.parametrize("name", MOVES)
def test_image_and_mask_move_together(name):
    given = phantom(128)
    for seed in range(4):
        got = augmented(jax.random.key(seed), given, spec=name)
        seen = np.asarray(got.image[..., 0]).reshape(32, 4, 32, 4).mean((1, 3)) >= 127.5
        mask = np.asarray(got.targets[0]) >= 0.5
        assert (seen & mask).sum() > 0.95 * (seen | mask).sum() > 0
        x0, y0, x1, y1 = tight(np.asarray(got.image[..., 0]) >= 127.5)
        np.testing.assert_allclose(got.boxes[0], [x0, y0, x1, y1], atol=4)  # A cell.


def test_a_turned_or_bent_box_is_that_of_the_moved_mask():
    given = example(blobs(64, 64)[:2])
    turned = by(motion.rotation(jnp.float32(30), given.size))
    for moves in (turned, by()._replace(controls=bend(1))):
        got = moved(given, moves)
        want = [4 * np.array(tight(target >= 0.5)) for target in np.asarray(got.targets)]
        np.testing.assert_array_equal(got.boxes, want)


def test_a_map_that_keeps_the_axes_moves_boxes_exactly():
    given = example(blobs(64, 64)[:2])
    given = given._replace(boxes=given.boxes + 0.3)
    offset = jnp.array([1.25, -3.5])
    enlarged = motion.scaling(jnp.float32(1.25), given.size)
    got = moved(given, by(enlarged, motion.translation(offset)))
    want = (np.float64(given.boxes).reshape(2, 2, 2) - 32) * 1.25 + 32 + np.asarray(offset)
    np.testing.assert_allclose(got.boxes, np.clip(want.reshape(2, 4), 0, 64), atol=1e-4)


def test_the_box_of_an_object_too_small_for_its_cells_is_that_of_its_corners():
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 20:22, 41] = True
    given = example(mask)
    got = moved(given, by(motion.rotation(jnp.float32(30), given.size)))
    corners = np.array([[41, 20], [42, 20], [41, 22], [42, 22]]) - 32.0
    turn = np.deg2rad(30)
    # Counter-clockwise where y goes down.
    corners = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]).T
    want = np.concatenate([corners.min(0), corners.max(0)]) + 32
    np.testing.assert_allclose(got.boxes[0], want, atol=1e-4)
    assert bool(got.valid[0])

    controls = bend(2, share=0.03)
    moves = by(motion.rotation(jnp.float32(30), given.size))._replace(controls=controls)
    x0, y0, x1, y1 = np.float64(moved(given, moves).boxes[0])
    (x,), (y,) = bent(np.array([(x0 + x1) / 2]), np.array([(y0 + y1) / 2]), np.asarray(controls))
    source = np.float64(moves.matrix) @ [x, y, 1]
    np.testing.assert_allclose(source, [41.5, 21], atol=0.2)


def test_the_strongest_bend_does_not_fold():
    at = np.arange(0, SIDE, 0.5)
    for seed in range(20):
        x, y = bent(*np.meshgrid(at, at), np.asarray(bend(seed, share=0.0312)))
        (xy, xx), (yy, yx) = np.gradient(x), np.gradient(y)
        assert (xx * yy - xy * yx).min() > 0


def test_an_object_that_leaves_the_image_is_invalid():
    """An empty target, of an image without a finding, is not an object that left."""
    masks = np.zeros((4, 64, 64), bool)
    masks[0, 10:20, 40:60], masks[1, 10:20, 4:14], masks[2, 30:31, 50:51] = True, True, True
    given = example(masks)
    got = moved(given, by(motion.translation(jnp.array([34.5, 0.0]))))
    np.testing.assert_array_equal(got.valid, [False, True, False, True])
    generous = given._replace(boxes=given.boxes.at[0, 0].set(5))  # Of the box, a part stays.
    assert not moved(generous, by(motion.translation(jnp.array([34.5, 0.0])))).valid[0]
    np.testing.assert_array_equal(got.boxes[3], 0)
    assert not got.targets[0].any()
    np.testing.assert_array_equal(got.boxes[1], [38.5, 10, 48.5, 20])
    padding = given._replace(valid=jnp.zeros(4, bool))
    assert not moved(padding, by(motion.translation(jnp.zeros(2)))).valid.any()


# Grey levels.


def numpys(name: str, image: np.ndarray, draws: np.ndarray, size: np.ndarray) -> np.ndarray:
    """What a row makes of grey levels, in float64."""
    valid = image[: size[0], : size[1]]
    if name == "shift":
        return image + draws
    if name == "contrast":
        return valid.mean() + draws * (image - valid.mean())
    if name == "gamma":
        return 255 * np.power(image / 255, draws)
    if name == "noise":
        return image + draws[..., None]
    x, y, width = draws
    rows, columns = np.mgrid[: len(image), : len(image)] + 0.5
    hole = np.maximum(np.abs(columns - x), np.abs(rows - y)) < width / 2
    return image * ~hole[..., None]


@pytest.mark.parametrize("names", [*((name,) for name in TONES), ("gamma", "shift"), TONES])
def test_grey_levels_are_numpys_in_the_order_written(names):
    """From the draws of each row: with the example's key folded with the row's place."""
    size = np.array([64, 45])
    given, key = example(blobs(*size)), jax.random.key(7)
    image = np.float64(given.image)
    for place, name in enumerate(names):
        row = AUGMENTATIONS[name]()
        draws = row.draw(jax.random.fold_in(key, place), given.size, SIDE)
        image = np.clip(numpys(name, image, np.float64(draws), size), 0, 255)
    image[:, 45:] = 0
    got = augmented(key, given, spec=">".join(names))
    difference = np.abs(np.float64(got.image) - np.round(image))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3  # Float32 rounds a tie to the other side.
    assert (np.asarray(got.image) != np.asarray(given.image)).any()
    assert_equal(got._replace(image=given.image), given)


# Draws.


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("rotate:30", -30, 30),
        ("scale:0.2", 0.8, 1.2),
        ("translate:0.1", -6.4, 6.4),
        ("elastic:0.02", -1.28, 1.28),
        ("shift:15", -15, 15),
        ("contrast:0.3", 0.7, 1.3),
        ("gamma:0.25", 0.8, 1.25),
    ],
)
def test_draws_fill_the_range_that_was_asked_for(name, low, high):
    (row,) = make_chain(name)
    size = jnp.array([SIDE, SIDE])
    draws = jax.vmap(lambda key: row.draw(key, size, SIDE))(
        jax.random.split(jax.random.key(0), 999)
    )
    assert low <= draws.min() < low + 0.02 * (high - low)
    assert high >= draws.max() > high - 0.02 * (high - low)


def test_flips_noise_and_holes_come_as_often_and_as_large_as_asked_for():
    keys, size = jax.random.split(jax.random.key(0), 999), jnp.array([64, 48])

    def draws(spec: str) -> np.ndarray:
        (row,) = make_chain(spec)
        return np.asarray(jax.vmap(lambda key: row.draw(key, size, SIDE))(keys))

    for spec, often in (("flip:0", 0), ("flip:0.25", 0.25), ("vflip:1", 1)):
        assert draws(spec).mean() == pytest.approx(often, abs=0.05)
    x, y, width = draws("cutout:0.5").T
    for values, most in ((x, 48), (y, 64), (width, 24)):
        assert 0 <= values.min() < 0.02 * most
        assert most >= values.max() > 0.98 * most
    fields = draws("noise:4").reshape(999, -1)
    assert 3.8 < fields.std(1).max() < 4.2
    assert fields.std(1).mean() == pytest.approx(2, abs=0.1)
    assert abs(fields.mean()) < 0.01


# All of it.


def test_draws_of_nothing_change_no_bit():
    spec = (
        "flip:0>vflip:0>rotate:0>scale:0>translate:0>elastic:0>shift:0>contrast:0>gamma:0>noise:0"
        ">cutout:0"
    )
    for size in ((64, 64), (64, 45), (37, 64), (64, 1)):
        given = example(blobs(*size))
        given = given._replace(boxes=jnp.clip(given.boxes - 0.3, 0, None))
        assert_equal(augmented(jax.random.key(0), given, spec=spec), given)


@pytest.mark.parametrize("size", [(64, 45), (26, 64)])
def test_nothing_appears_beyond_the_image(size):
    given = example(blobs(*size))
    for seed in range(3):
        got = augmented(jax.random.key(seed), given, spec="strong")
        assert got.image.dtype == jnp.uint8
        cells = [-(-length // 4) for length in size]
        for axis in (0, 1):
            assert not np.split(np.asarray(got.image), [size[axis]], axis)[1].any()
            assert not np.split(np.asarray(got.targets), [cells[axis]], axis + 1)[1].any()
        assert got.targets.min() >= 0
        assert got.targets.max() <= 1
        boxes = np.asarray(got.boxes)
        assert (boxes >= 0).all()
        assert (boxes <= [size[1], size[0]] * 2).all()


def batch() -> Batch:
    rows = [example(blobs(*size), seed=i) for i, size in enumerate([(64, 64), (64, 45)] * 2)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def digest(count: int, *, step: int, seed: int = 3) -> str:
    """Of the image, answers and boxes of a batch augmented on `count` devices."""
    mesh = sharding.make_mesh(jax.devices()[:count])

    @partial(jax.jit, compiler_options=COMPILER)
    def changed(given: Batch, positions: jax.Array) -> Batch:
        keys = example_keys(
            jax.random.key(seed), purpose=Purpose.AUGMENT, step=step, positions=positions
        )
        return augment(keys, given, chain=make_chain("flip>" + PRESETS["strong"]))

    got = changed(*sharding.place_batch((batch(), np.arange(4)), mesh))
    assert len(got.image.sharding.device_set) == count
    whole = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(got))
    return hashlib.sha256(whole).hexdigest()


def test_a_seed_gives_the_same_batch_on_one_and_on_four_devices():
    script = "from tests.test_augment import digest; print(digest(4, step=5))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(1, step=5)


def test_an_example_depends_on_its_seed_its_step_and_its_position_alone():
    @jax.jit
    def changed(given: Batch, positions: jax.Array, step: int, seed: int) -> jax.Array:
        key = jax.random.key(seed)
        keys = example_keys(key, purpose=Purpose.AUGMENT, step=step, positions=positions)
        return augment(keys, given, chain=make_chain("rotate>noise")).image

    whole = np.asarray(changed(batch(), np.arange(4), 5, 3))
    rows = np.array([3, 1, 3, 0])  # As another process may hold them.
    part = changed(jax.tree.map(lambda x: x[rows], batch()), rows, 5, 3)
    np.testing.assert_array_equal(part, whole[rows])
    for positions, step, seed in (
        (np.arange(4) + 1, 5, 3),
        (np.arange(4), 6, 3),
        (np.arange(4), 5, 4),
    ):
        other = np.asarray(changed(batch(), positions, step, seed))
        assert all((one != two).any() for one, two in zip(other, whole, strict=True))


# Specs.


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mirror", "augmentation 'mirror' is unknown: choose one of flip, vflip, rotate"),
        ("", "augmentation '' is unknown"),
        ("flip:2", "p=2.0: choose a number from 0 to 1"),
        ("vflip:-1", "p=-1.0: choose a number from 0 to 1"),
        ("rotate:nan", "degrees=nan: choose a number from 0 to 180"),
        ("scale:1", "share=1.0: choose a number from 0 to 0.9"),
        ("translate:2", "share=2.0: choose a number from 0 to 1"),
        ("elastic:0.1", "share=0.1 with cells=8 could fold the image: choose a share from 0 to be"),
        ("elastic:cells=0", "cells=0: choose a number from 1 to 64"),
        ("elastic>elastic", "'elastic>elastic' bends the image twice: choose one elastic"),
        ("shift:inf", "levels=inf: choose a number from 0 to 255"),
        ("contrast:1.5", "share=1.5: choose a number from 0 to 1"),
        ("gamma:-0.1", "share=-0.1: choose a number from 0 to 9"),
        ("noise:-5", "sigma=-5.0: choose a number from 0 to 255"),
        ("cutout:2", "share=2.0: choose a number from 0 to 1"),
        ("noise>flip", "'noise>flip': put flip before noise"),
        ("elastic>rotate", "'elastic>rotate': put rotate before elastic"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_sentence(spec, said):
    with pytest.raises(ValueError, match="augmentation") as refused:
        parse(spec)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_spec_written_out_means_the_same():
    assert canonical("none") == "none"
    assert canonical("flip>rotate:5") == "flip:p=0.5>rotate:degrees=5.0"
    for spec in (*PRESETS, *AUGMENTATIONS):
        assert parse(canonical(spec)) == parse(spec)
    assert {*MOVES, *TONES} == set(AUGMENTATIONS)
