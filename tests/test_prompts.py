import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pp_jax.preprocess.geometry import low_res_target
from pp_jax.prompts import (
    SAMPLERS,
    Purpose,
    draw_cell,
    example_keys,
    make_prompts,
    sample_prompts,
)

RNG = np.random.default_rng(0)
SIDE = 64
draw = jax.jit(sample_prompts, static_argnames=("name", "side"))


def keys(positions, *, step=0):
    return example_keys(
        jax.random.key(7), purpose=Purpose.TRAIN_PROMPT, step=step, positions=jnp.asarray(positions)
    )


def fields(batch: int, *, target=None, box=(8.0, 12.0, 40.0, 28.0), size=(64, 48)) -> dict:
    """A batch of one object per image, the same in all."""
    if target is None:
        target = np.zeros((16, 16), np.float32)
        target[3:7, 2:10] = 1
    return {
        "targets": jnp.tile(target, (batch, 1, 1, 1)),
        "boxes": jnp.tile(jnp.array(box), (batch, 1, 1)),
        "valid": jnp.ones((batch, 1), bool),
        "size": jnp.tile(jnp.array(size), (batch, 1)),
        "side": SIDE,
    }


POINTS = jnp.array([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [0.0, 0.0]], [[0.0, 0.0]] * 2]])
LABELS = jnp.array([[[1, 0], [1, -2], [-2, -2]]])
BOXES = jnp.array([[[10.0, 11.0, 12.0, 13.0], [20.0, 21.0, 22.0, 23.0], [30.0, 31.0, 32.0, 33.0]]])


def test_points_alone_are_followed_by_sams_pad_point():
    prompts = make_prompts(points=POINTS, labels=LABELS, mask_side=4)
    # The third prompt has no point, hence no pad point either.
    assert prompts.labels.tolist() == [[[1, 0, -1], [1, -2, -1], [-2, -2, -2]]]
    np.testing.assert_array_equal(prompts.points[:, :, :2], POINTS)


def test_a_box_alone_is_two_corners_without_a_pad_point():
    prompts = make_prompts(boxes=BOXES, mask_side=4)
    assert prompts.labels.tolist() == [[[2, 3]] * 3]
    assert prompts.points[0, 1].tolist() == [[20, 21], [22, 23]]


def test_points_come_before_the_box_and_the_pad_point_stands_where_there_is_no_box():
    prompts = make_prompts(
        points=POINTS,
        labels=LABELS,
        boxes=BOXES,
        has_box=jnp.array([[True, False, True]]),
        mask_side=4,
    )
    assert prompts.labels.tolist() == [[[1, 0, 2, 3], [1, -2, -1, -2], [-2, -2, 2, 3]]]
    assert prompts.points[0, 0].tolist() == [[1, 2], [3, 4], [10, 11], [12, 13]]


def test_neither_points_nor_box_is_neutral_only():
    nothing = make_prompts(batch=1, count=2, mask_side=4)
    assert nothing.labels.tolist() == [[[-2], [-2]]]
    assert nothing.valid.tolist() == [[True, True]]
    no_box = make_prompts(boxes=BOXES, has_box=jnp.zeros((1, 3), bool), mask_side=4)
    assert no_box.labels.tolist() == [[[-2, -2]] * 3]


def test_an_invalid_prompt_is_neutral_only():
    valid = jnp.array([[True, False, True]])
    prompts = make_prompts(boxes=BOXES, valid=valid, mask_side=4)
    assert prompts.labels.tolist() == [[[2, 3], [-2, -2], [2, 3]]]
    np.testing.assert_array_equal(prompts.valid, valid)


def test_only_given_masks_count_as_masks():
    without = make_prompts(boxes=BOXES, mask_side=4)
    assert without.has_mask.tolist() == [[False] * 3]
    np.testing.assert_array_equal(without.masks, np.zeros((1, 3, 4, 4)))
    masks = jnp.asarray(RNG.normal(size=(1, 3, 8, 8)), jnp.float32)
    given = make_prompts(masks=masks)
    assert given.has_mask.tolist() == [[True] * 3]
    np.testing.assert_array_equal(given.masks, masks)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": POINTS, "mask_side": 4}, "points and labels go together"),
        ({"has_box": jnp.ones((1, 3), bool), "mask_side": 4}, "has_box needs boxes"),
        ({"batch": 1, "mask_side": 4}, "give batch and count"),
    ],
)
def test_an_incomplete_prompt_says_what_is_missing(given, message):
    with pytest.raises(ValueError, match=message):
        make_prompts(**given)


def test_an_unknown_sampler_is_named_with_the_choices():
    with pytest.raises(
        ValueError, match="unknown prompt 'boxes': choose one of box, point, centre, mixed"
    ):
        sample_prompts("boxes", keys([0]), **fields(1))


LABELS_OF = {  # One of these.
    "box": [[2, 3]],
    "point": [[1, -1]],
    "centre": [[1, -1]],
    "mixed": [[1, -1, -2], [-2, 2, 3]],
    "none": [[-2]],
    "scribble": [[1, 1, 1, 1, -1]],
    "lasso": [[1, 1, 1, 1, -1]],
    "box+none": [[-2, -2]],  # The first object is never marked.
    "point+none": [[-2, -2]],
    "centre+none": [[-2, -2]],
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_gives_its_labels(name):
    labels = LABELS_OF[name]
    prompts = draw(name, keys([0, 1]), **fields(2))
    assert all(own in labels for own in prompts.labels[:, 0].tolist())
    side = 16 if name == "lasso" else 0
    assert prompts.masks.shape == (2, 1, side, side)
    assert prompts.has_mask.tolist() == [[name == "lasso"]] * 2
    invalid = fields(2) | {"valid": jnp.zeros((2, 1), bool)}
    neutral = draw(name, keys([0, 1]), **invalid)
    assert neutral.labels.tolist() == [[[-2] * len(labels[0])]] * 2
    assert neutral.has_mask.tolist() == [[False]] * 2


@pytest.mark.parametrize("name", ["box", "point", "centre"])
def test_beside_all_findings_together_each_is_marked_as_alone(name):
    three = {
        key: jnp.repeat(value, 3, axis=1) if key in ("targets", "boxes", "valid") else value
        for key, value in fields(2).items()
    }
    alone, both = draw(name, keys([0, 1]), **three), draw(f"{name}+none", keys([0, 1]), **three)
    np.testing.assert_array_equal(both.labels[:, 1:], alone.labels[:, 1:])
    np.testing.assert_array_equal(both.points[:, 1:], alone.points[:, 1:])
    assert (both.labels[:, 0] == -2).all()
    assert both.valid.all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_draw_depends_on_the_position_and_not_on_the_batch(name):
    together = draw(name, keys([0, 1, 2, 3]), **fields(4))
    apart = [draw(name, keys(part), **fields(2)) for part in ([0, 1], [2, 3])]
    for field in ("points", "labels", "masks", "has_mask"):
        joined = np.concatenate([getattr(prompts, field) for prompts in apart])
        np.testing.assert_array_equal(getattr(together, field), joined)


def test_draws_differ_between_positions_steps_and_purposes():
    root = jax.random.key(7)
    data = [
        jax.random.key_data(example_keys(root, purpose=p, step=s, positions=jnp.arange(3)))
        for p in Purpose
        for s in (0, 1)
    ]
    flat = np.concatenate(data)
    assert len(np.unique(flat, axis=0)) == len(Purpose) * 2 * 3


def test_keys_are_three_folds():
    want = jax.random.key(7)
    for number in (1, 5, 9):  # TRAIN_PROMPT, step, position
        want = jax.random.fold_in(want, number)
    got = keys([4, 9], step=5)[1]
    np.testing.assert_array_equal(jax.random.key_data(got), jax.random.key_data(want))


def test_the_drawn_cell_counts_true_cells_in_raster_order():
    cells = RNG.random((5, 7)) < 0.4
    true = np.argwhere(cells)[:, ::-1]
    uniform = (np.arange(len(true)) + 0.5) / len(true)
    got = jax.vmap(draw_cell, in_axes=(None, 0))(jnp.asarray(cells), jnp.asarray(uniform))
    np.testing.assert_array_equal(got, true)
    assert draw_cell(jnp.asarray(cells), jnp.float32(0)).tolist() == true[0].tolist()
    almost_one = jnp.nextafter(jnp.float32(1), jnp.float32(0))
    assert draw_cell(jnp.asarray(cells), almost_one).tolist() == true[-1].tolist()


def test_clicks_lie_on_the_target_and_reach_every_cell_alike():
    target = np.zeros((16, 16), np.float32)
    target[2:4, 5:8] = 1
    target[9, 1] = 0.51
    target[12, 12] = 0.5  # Not more than half.
    prompts = draw("point", keys(np.arange(700)), **fields(700, target=target))
    x, y = np.asarray(prompts.points)[:, 0, 0].T
    # The centre of a cell of pixels 4c .. 4c + 3 has the pixel index 4c + 1.5.
    columns, rows = (x - 1.5) / 4, (y - 1.5) / 4
    assert set(zip(columns, rows, strict=True)) == {
        *((c, r) for r in (2.0, 3.0) for c in (5.0, 6.0, 7.0)),
        (1.0, 9.0),
    }
    _, counts = np.unique(rows * 16 + columns, return_counts=True)
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100)  # Five deviations of a count.


@pytest.mark.parametrize("seed", range(4))
def test_a_click_on_the_centre_is_where_scipy_finds_the_target_deepest(seed):
    rng = np.random.default_rng(seed)
    target = (ndimage.gaussian_filter(rng.normal(size=(16, 16)), 2) > 0).astype(np.float32)
    depth = ndimage.distance_transform_edt(np.pad(target, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    prompts = draw("centre", keys([0]), **fields(1, target=target))
    np.testing.assert_array_equal(prompts.points[0, 0, 0], [4 * column + 1.5, 4 * row + 1.5])


def test_a_target_that_fills_no_cell_is_clicked_where_it_is_fullest():
    target = np.zeros((16, 16), np.float32)
    target[4, 9], target[8, 2] = 0.4, 0.2
    prompts = draw("point", keys(np.arange(20)), **fields(20, target=target))
    np.testing.assert_array_equal(prompts.points[:, 0, 0], np.tile([37.5, 17.5], (20, 1)))


def test_a_click_stays_inside_an_image_that_ends_in_the_middle_of_a_cell():
    mask = np.zeros((64, 33), bool)
    mask[40, 32] = True  # The last column: pixel 32, the first of its cell.
    target = low_res_target(mask, side=SIDE)
    prompts = draw("point", keys([0]), **fields(1, target=target, size=(64, 33)))
    assert prompts.points[0, 0, 0].tolist() == [32, 41.5]


def test_an_empty_target_gets_no_click():
    target = np.zeros((16, 16), np.float32)
    prompts = draw("point", keys([0]), **fields(1, target=target))
    assert prompts.labels.tolist() == [[[-2, -2]]]


def jittered(**options) -> np.ndarray:
    prompts = draw("box", keys(np.arange(4000)), **fields(4000, **options))
    return np.asarray(prompts.points)[:, 0].reshape(-1, 4)


def test_box_noise_is_gaussian_with_a_tenth_of_the_side():
    box = np.array([25.0, 20.0, 35.0, 25.0])  # 10 wide, 5 high: the limit is 1.25 = 20 * 64 / 1024
    noise = jittered(box=tuple(box), size=(64, 64)) - box
    # Cut off at z deviations, a Gaussian keeps the root of erf(z / sqrt 2) - 2 z phi(z) +
    # z^2 erfc(z / sqrt 2) of its deviation: .8138 at 1.25 along x and .9887 at 2.5 along y.
    np.testing.assert_allclose(noise.std(axis=0), [0.8138, 0.4944, 0.8138, 0.4944], rtol=0.05)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=5 / np.sqrt(4000))
    correlation = np.corrcoef(noise.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_box_noise_never_exceeds_twenty_pixels_at_1024():
    box = np.array([10.0, 10.0, 50.0, 50.0])
    noise = jittered(box=tuple(box), size=(64, 64)) - box
    np.testing.assert_allclose(np.abs(noise).max(axis=0), 20 * SIDE / 1024, rtol=1e-5)


def test_a_jittered_box_is_ordered_and_inside_the_valid_size():
    boxes = jittered(box=(0.0, 1.0, 48.0, 64.0), size=(64, 48))
    assert boxes.min() == 0
    assert boxes[:, 2].max() == 48
    assert boxes[:, 3].max() == 64
    assert (boxes[:, :2] <= boxes[:, 2:]).all()


def test_mixed_is_the_box_or_a_click_each_for_half_of_the_objects():
    count = 1600
    size = {"size": (64, 64)}
    prompts, boxes = (
        draw(name, keys(np.arange(count)), **fields(count, **size)) for name in ("mixed", "box")
    )
    labels, points = np.asarray(prompts.labels[:, 0]), np.asarray(prompts.points[:, 0])
    boxed = labels[:, 1] == 2
    assert {tuple(own) for own in labels.tolist()} == {(1, -1, -2), (-2, 2, 3)}
    assert abs(boxed.sum() - count / 2) < 5 * np.sqrt(count / 4)
    np.testing.assert_array_equal(points[boxed, 1:], boxes.points[boxed, 0])
    x, y = (points[~boxed, 0].T - 1.5) / 4  # Cells of the target: rows 3 to 6, columns 2 to 9.
    assert set(x) == set(range(2, 10))
    assert set(y) == set(range(3, 7))
    # Which of them it is tells nothing about the noise.
    noise = np.asarray(boxes.points[:, 0]).reshape(count, 4)
    assert np.abs(np.corrcoef(boxed, noise.T)[0, 1:]).max() < 5 / np.sqrt(count)


def shapes(batch: int, *, side: int = SIDE) -> dict:
    """A batch of two objects of random shape, the same in all images; a quarter of the canvas is
    empty on the right."""
    noise = [cv2.GaussianBlur(RNG.normal(size=(side, side)), (0, 0), side / 12) for _ in range(2)]
    masks = [(field > 0)[:, : side * 3 // 4] for field in noise]
    targets = np.stack([low_res_target(mask, side=side) for mask in masks])
    return {
        "targets": np.tile(targets, (batch, 1, 1, 1)),
        "boxes": jnp.zeros((batch, 2, 4)),
        "valid": jnp.ones((batch, 2), bool),
        "size": jnp.tile(jnp.array([side, side * 3 // 4]), (batch, 1)),
        "side": side,
    }


def drawn(name: str, positions, batch: dict):
    """The prompts as NumPy arrays."""
    return jax.tree.map(np.asarray, draw(name, keys(positions), **batch))


def test_a_scribble_is_farthest_point_clicks_on_the_target_as_by_brute_force():
    batch = shapes(20)
    prompts, first = (drawn(name, np.arange(20), batch) for name in ("scribble", "point"))
    np.testing.assert_array_equal(prompts.points[:, :, 0], first.points[:, :, 0])
    for image, number in np.ndindex(20, 2):
        cells = np.argwhere(batch["targets"][image, number] > 0.5)[:, ::-1]
        clicks = (prompts.points[image, number, :4] - 1.5) / 4
        chosen, apart = [clicks[0]], []
        for _ in range(3):
            nearest = [min(np.hypot(*(cell - c)) for c in chosen) for cell in cells]
            chosen.append(cells[np.argmax(nearest)])
            apart.append(max(nearest))
        np.testing.assert_array_equal(clicks, chosen)
        assert all(np.diff(apart) <= 0)
        assert prompts.labels[image, number].tolist() == [1, 1, 1, 1, -1]


def test_a_target_of_two_cells_gets_two_clicks():
    target = np.zeros((16, 16), np.float32)
    target[4, 9] = target[11, 3] = 1
    prompts = draw("scribble", keys(np.arange(6)), **fields(6, target=target))
    assert prompts.labels.tolist() == [[[1, 1, -2, -2, -1]]] * 6
    clicks = np.asarray(prompts.points)[:, 0, :2].tolist()
    assert {tuple(map(tuple, pair)) for pair in clicks} == {
        ((37.5, 17.5), (13.5, 45.5)),
        ((13.5, 45.5), (37.5, 17.5)),
    }


@pytest.mark.parametrize("name", ["scribble", "lasso"])
def test_strokes_do_not_see_the_other_objects_nor_their_padding(name):
    two = shapes(3)
    empty = jnp.zeros((3, 1, 16, 16))
    three = two | {
        "targets": jnp.concatenate([two["targets"], empty], axis=1),
        "boxes": jnp.zeros((3, 3, 4)),
        "valid": jnp.array([[True, True, False]] * 3),
    }
    got, want = (drawn(name, [0, 1, 2], batch) for batch in (three, two))
    for field in ("points", "labels", "masks", "has_mask"):
        np.testing.assert_array_equal(getattr(got, field)[:, :2], getattr(want, field))
    assert (got.labels[:, 2] == -2).all()
    assert not got.has_mask[:, 2].any()
    assert np.isfinite(got.masks).all()


def test_an_empty_target_gets_neither_stroke_nor_outline():
    target = np.zeros((16, 16), np.float32)
    prompts = draw("lasso", keys([0]), **fields(1, target=target))
    assert prompts.labels.tolist() == [[[-2] * 5]]
    assert not prompts.has_mask.any()
    assert np.isfinite(prompts.masks).all()


def test_a_lassos_clicks_are_the_scribbles_and_its_mask_a_blurred_outline_at_a_drawn_level():
    batch = shapes(40, side=256)
    prompts, scribble = (drawn(name, np.arange(40), batch) for name in ("lasso", "scribble"))
    np.testing.assert_array_equal(prompts.points, scribble.points)
    reached = np.zeros((64, 64))
    reached[:, :48] = 1

    def blur(x):
        return cv2.GaussianBlur(x, (63, 63), 2, borderType=cv2.BORDER_CONSTANT)

    levels = []
    for image, number in np.ndindex(40, 2):
        means = blur(batch["targets"][image, number].astype(float)) / blur(reached)
        share = means * reached / (means * reached).max()
        logits = prompts.masks[image, number]
        # A logit of -10 is a share of 0, and 10 the peak: the level solves -10 (1 - s / level).
        low = (logits < -1) & (share > 1e-3)
        level = np.median(share[low] / (1 + logits[low] / 10))
        want = np.where(share > level, (share - level) / (1 - level), share / level - 1)
        np.testing.assert_allclose(logits, 10 * want, atol=1e-3)
        levels.append(level)
    assert 0.3 <= min(levels) < 0.35
    assert 0.65 < max(levels) <= 0.7
    # The level has a key of its own: it does not tell where in raster order the first click is.
    rows = prompts.points[:, :, 0, 1].ravel()
    assert abs(np.corrcoef(levels, rows)[0, 1]) < 5 / np.sqrt(80)


def test_a_lasso_is_near_its_target_up_to_the_images_border():
    mask = np.zeros((64, 40), bool)
    mask[10:50, 20:] = True  # Touches the right border.
    target = low_res_target(mask, side=SIDE)
    prompts = drawn("lasso", [0], fields(1, target=target, size=(64, 40)))
    logits = prompts.masks[0, 0]
    assert (logits[4:11, 6:10] > 0).all()
    assert (logits[:, 10:] == -10).all()  # Beyond the image.
    assert (logits[:, :3] < 0).all()
