import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
        ({"boxes": BOXES}, "give mask_side"),
    ],
)
def test_an_incomplete_prompt_says_what_is_missing(given, message):
    with pytest.raises(ValueError, match=message):
        make_prompts(**given)


def test_an_unknown_sampler_is_named_with_the_choices():
    with pytest.raises(ValueError, match="unknown prompt 'boxes': choose one of box, point, none"):
        sample_prompts("boxes", keys([0]), **fields(1))


@pytest.mark.parametrize(("name", "labels"), [("box", [2, 3]), ("point", [1, -1]), ("none", [-2])])
def test_each_sampler_gives_its_labels(name, labels):
    prompts = sample_prompts(name, keys([0, 1]), **fields(2))
    assert prompts.labels.tolist() == [[labels]] * 2
    assert prompts.masks.shape == (2, 1, 16, 16)
    invalid = fields(2) | {"valid": jnp.zeros((2, 1), bool)}
    neutral = sample_prompts(name, keys([0, 1]), **invalid)
    assert neutral.labels.tolist() == [[[-2] * len(labels)]] * 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_draw_depends_on_the_position_and_not_on_the_batch(name):
    together = sample_prompts(name, keys([0, 1, 2, 3]), **fields(4))
    apart = [sample_prompts(name, keys(part), **fields(2)) for part in ([0, 1], [2, 3])]
    joined = np.concatenate([prompts.points for prompts in apart])
    np.testing.assert_array_equal(together.points, joined)


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
    prompts = sample_prompts("point", keys(np.arange(700)), **fields(700, target=target))
    x, y = np.asarray(prompts.points)[:, 0, 0].T
    # The centre of a cell of pixels 4c .. 4c + 3 has the pixel index 4c + 1.5.
    columns, rows = (x - 1.5) / 4, (y - 1.5) / 4
    assert set(zip(columns, rows, strict=True)) == {
        *((c, r) for r in (2.0, 3.0) for c in (5.0, 6.0, 7.0)),
        (1.0, 9.0),
    }
    _, counts = np.unique(rows * 16 + columns, return_counts=True)
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100)  # Five deviations of a count.


def test_a_target_that_fills_no_cell_is_clicked_where_it_is_fullest():
    target = np.zeros((16, 16), np.float32)
    target[4, 9], target[8, 2] = 0.4, 0.2
    prompts = sample_prompts("point", keys(np.arange(20)), **fields(20, target=target))
    np.testing.assert_array_equal(prompts.points[:, 0, 0], np.tile([37.5, 17.5], (20, 1)))


def test_a_click_stays_inside_an_image_that_ends_in_the_middle_of_a_cell():
    mask = np.zeros((64, 33), bool)
    mask[40, 32] = True  # The last column: pixel 32, the first of its cell.
    target = low_res_target(mask, side=SIDE)
    prompts = sample_prompts("point", keys([0]), **fields(1, target=target, size=(64, 33)))
    assert prompts.points[0, 0, 0].tolist() == [32, 41.5]


def test_an_empty_target_gets_no_click():
    target = np.zeros((16, 16), np.float32)
    prompts = sample_prompts("point", keys([0]), **fields(1, target=target))
    assert prompts.labels.tolist() == [[[-2, -2]]]


def jittered(**options) -> np.ndarray:
    prompts = sample_prompts("box", keys(np.arange(4000)), **fields(4000, **options))
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
