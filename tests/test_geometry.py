from fractions import Fraction
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pp_jax.preprocess.geometry import (
    bilinear_taps,
    boxes_to_model,
    boxes_to_original,
    coverage,
    low_res_target,
    pad_square,
    points_to_model,
    points_to_original,
    postprocess_masks,
    resize_image,
    resized_shape,
    upscale,
)

RNG = np.random.default_rng(0)
# Squares, slivers and both orders of the sides, from 1x1 to 4000x300.
SIZES = [(1, 1), (1, 7), (4000, 300), (300, 4000), (64, 64), (65, 64), (31, 200)] + [
    (int(height), int(width)) for height, width in RNG.integers(1, (4001, 301), (200, 2))
]


def official_transform(longest: int):
    from tests.official import segment_anything

    return segment_anything.utils.transforms.ResizeLongestSide(longest)


def test_resized_pixels_equal_the_official_ones_bit_for_bit():
    compared = 0
    for index, (height, width) in enumerate(SIZES):
        longest = (256, 1024, 100)[index % 3]
        if min(height, width) * longest < max(height, width) / 2:
            continue  # A side would become 0: refused, see below.
        image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        want = official_transform(longest).apply_image(image)
        np.testing.assert_array_equal(resize_image(image, longest=longest), want, str(image.shape))
        compared += 1
    assert compared > 190


def test_a_side_is_rounded_half_up_and_never_to_zero():
    assert resized_shape(1200, 800, longest=1024) == (1024, 683)
    assert resized_shape(5, 8, longest=4) == (3, 4)  # 2.5 goes up; `round` would give 2.
    assert resized_shape(2048, 1, longest=1024) == (1024, 1)
    with pytest.raises(ValueError, match=r"4000x1 .* would become 1024x0"):
        resized_shape(4000, 1, longest=1024)


def test_padding_is_zero_to_the_right_and_below():
    image = np.arange(1, 13, dtype=np.uint8).reshape(2, 2, 3)
    padded = pad_square(image, side=3)
    assert padded[:, :, 0].tolist() == [[1, 4, 0], [7, 10, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="2x2 does not fit in 1x1"):
        pad_square(image, side=1)


def overlap(original: int, resized: int, cells: int) -> list[list[Fraction]]:
    """Length of each original pixel inside each cell of 4 model pixels, in exact fractions."""
    scale = Fraction(resized, original)
    shares = [[Fraction(0)] * original for _ in range(cells)]
    for cell, pixel in product(range(cells), range(original)):
        low, high = max(4 * cell, pixel * scale), min(4 * cell + 4, (pixel + 1) * scale)
        shares[cell][pixel] = max(Fraction(0), high - low)
    return shares


@pytest.mark.parametrize(("height", "width"), [(7, 5), (3, 40), (16, 16), (37, 23), (1, 1)])
def test_low_res_target_is_the_exact_share_of_area(height, width):
    side, cells = 16, 4
    mask = RNG.random((height, width)) < 0.5
    rows, columns = resized_shape(height, width, longest=side)
    in_y, in_x = overlap(height, rows, cells), overlap(width, columns, cells)
    want = np.zeros((cells, cells))
    for i in range(cells):
        for j in range(cells):
            covered = sum(in_y[i]) * sum(in_x[j])
            filled = sum(in_y[i][y] * in_x[j][x] for y, x in np.argwhere(mask))
            want[i, j] = filled / covered if covered else 0
    np.testing.assert_allclose(low_res_target(mask, side=side), want, atol=1e-7)


def test_a_full_mask_fills_every_covered_cell_exactly():
    target = low_res_target(np.ones((300, 211), bool), side=64)
    covered = resized_shape(300, 211, longest=64)[1]  # 45 columns reach into 12 cells.
    assert covered == 45
    np.testing.assert_array_equal(target, np.repeat([[1.0] * 12 + [0.0] * 4], 16, axis=0))


def test_low_res_target_names_a_side_that_cells_do_not_divide():
    with pytest.raises(ValueError, match="side=30 needs a multiple of 4"):
        low_res_target(np.ones((2, 2), bool), side=30)


def test_points_and_boxes_scale_as_the_official_ones_and_back():
    original = (477, 613)
    resized = resized_shape(*original, longest=1024)
    points = (RNG.random((5, 3, 2)) * (613, 477)).astype(np.float32)
    boxes = (RNG.random((5, 4)) * (613, 477, 613, 477)).astype(np.float32)
    transform = official_transform(1024)
    to_model = points_to_model(points, original=original, resized=resized)
    np.testing.assert_array_equal(
        to_model, transform.apply_coords(points, original).astype(np.float32)
    )
    boxes_model = boxes_to_model(boxes, original=original, resized=resized)
    np.testing.assert_array_equal(
        boxes_model, transform.apply_boxes(boxes, original).astype(np.float32)
    )
    back = points_to_original(to_model, original=original, resized=resized)
    np.testing.assert_allclose(back, points, rtol=3e-7)  # Two roundings to float32.
    back = boxes_to_original(boxes_model, original=original, resized=resized)
    np.testing.assert_allclose(back, boxes, rtol=3e-7)


def test_coverage_is_the_mean_of_the_valid_pixels_in_each_cell():
    covered = jax.jit(coverage, static_argnames="side")
    for height, width in [(16, 16), (1, 7), (9, 16), (13, 2)]:
        inside = np.zeros((16, 16))
        inside[:height, :width] = 1
        want = inside.reshape(4, 4, 4, 4).mean(axis=(1, 3))
        got = covered(jnp.array([height, width]), side=16)
        np.testing.assert_array_equal(got, want, f"{height}x{width}")


def torch_resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    tensor = torch.tensor(x)[None]
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0].numpy()


def test_postprocess_equals_the_official_two_steps_for_every_size_in_one_compilation():
    side, canvas = 64, (200, 190)
    logits = RNG.normal(size=(2, 16, 16)).astype(np.float32)
    run = jax.jit(postprocess_masks, static_argnames=("side", "canvas"))
    for original in [(200, 190), (200, 131), (97, 190), (64, 64), (40, 41), (1, 30), (5, 2)]:
        size = resized_shape(*original, longest=side)
        want = torch_resize(torch_resize(logits, (side, side))[:, : size[0], : size[1]], original)
        got = run(
            logits, side=side, size=jnp.array(size), original=jnp.array(original), canvas=canvas
        )
        got = np.asarray(got)[:, : original[0], : original[1]]
        np.testing.assert_allclose(got, want, atol=2e-6, err_msg=str(original))
    assert run._cache_size() == 1


@pytest.mark.parametrize("out_size", [1400, 700, 1023])
def test_sample_positions_round_as_torchs_at_full_length(out_size):
    rows = RNG.normal(size=(1, 2, 1024)).astype(np.float32)

    @jax.jit
    def resample(x, in_size, out_size):
        taps_x = bilinear_taps(1400, in_size=in_size, out_size=out_size)
        return upscale(x, taps_y=bilinear_taps(2, in_size=2, out_size=2), taps_x=taps_x)

    got = resample(rows, jnp.array(1024), jnp.array(out_size))
    want = torch_resize(rows, (2, out_size))
    np.testing.assert_allclose(np.asarray(got)[..., :out_size], want, atol=1e-6)


def test_taps_never_read_beyond_the_crop():
    frame = np.full((1, 8, 8), np.nan, np.float32)
    frame[:, :5, :3] = RNG.normal(size=(5, 3))

    @jax.jit
    def resample(x, size, original):
        taps_y, taps_x = (
            bilinear_taps(20, in_size=size[axis], out_size=original[axis]) for axis in (0, 1)
        )
        return upscale(x, taps_y=taps_y, taps_x=taps_x)

    got = np.asarray(resample(frame, jnp.array([5, 3]), jnp.array([20, 12])))
    np.testing.assert_allclose(got[:, :, :12], torch_resize(frame[:, :5, :3], (20, 12)), atol=1e-6)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[:, :, 11:], np.repeat(got[:, :, 11:12], 9, axis=2))
