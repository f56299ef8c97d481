"""Laws of masks as data, against the official package, OpenCV and torchvision's algorithm."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pp_jax.predict.masks import (
    box_nms,
    crop_boxes,
    decode_rle,
    encode_rle,
    fill_small_holes,
    layer_grids,
    mask_boxes,
    near_crop_edge,
    remove_small_islands,
    rle_area,
    stability_score,
    to_coco,
)
from tests.official import segment_anything, torchvision

amg = segment_anything.utils.amg


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """torchvision's `nms_kernel_impl` for CPUs, line by line; its wheel may lack the operator."""
    x0, y0, x1, y1 = boxes.astype(np.float32).T
    areas = (x1 - x0) * (y1 - y0)
    order = np.argsort(-scores, kind="stable")
    suppressed, keep = np.zeros(len(boxes), bool), []
    for position, i in enumerate(order):
        if suppressed[i]:
            continue
        keep.append(int(i))
        for j in order[position + 1 :]:
            w = max(np.float32(0), min(x1[i], x1[j]) - max(x0[i], x0[j]))
            h = max(np.float32(0), min(y1[i], y1[j]) - max(y0[i], y0[j]))
            union = areas[i] + areas[j] - w * h
            if union > 0 and float(w * h / union) > threshold:  # 0 / 0 exceeds nothing.
                suppressed[j] = True
    return keep


def random_masks(count: int = 6, height: int = 13, width: int = 9) -> np.ndarray:
    """Masks of every density, the first empty and the last full."""
    rng = np.random.default_rng(0)
    return rng.random((count, height, width)) < np.linspace(0, 1, count)[:, None, None]


def test_stability_is_the_official_score() -> None:
    logits = np.random.default_rng(1).normal(1, 2, (5, 12, 17)).astype(np.float32)
    want = amg.calculate_stability_score(torch.from_numpy(logits), 0.0, 0.75).numpy()
    np.testing.assert_array_equal(stability_score(logits, offset=0.75), want)


def test_stability_of_an_empty_mask_is_zero() -> None:
    assert stability_score(jnp.full((4, 4), -9.0), offset=1.0) == 0


def test_boxes_are_the_official_ones() -> None:
    masks = random_masks() & random_masks()[::-1] | (np.arange(13 * 9).reshape(13, 9) == 29)
    masks[0] = False
    want = amg.batched_mask_to_box(torch.from_numpy(masks)).numpy()
    assert want[0].tolist() == [0, 0, 0, 0]
    np.testing.assert_array_equal(mask_boxes(masks), want)
    np.testing.assert_array_equal(mask_boxes(jnp.asarray(masks)), want)


def test_boxes_near_a_crop_s_edge_are_the_official_ones() -> None:
    rng = np.random.default_rng(2)
    corners = rng.integers(0, [100, 80], (4000, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=-1)
    for crop in ([0, 0, 100, 80], [60, 50, 160, 130], [0, 50, 100, 130]):
        want = amg.is_box_near_crop_edge(torch.from_numpy(boxes), crop, [0, 0, 160, 130]).numpy()
        got = near_crop_edge(jnp.asarray(boxes), crop=jnp.array(crop), image=jnp.array([130, 160]))
        np.testing.assert_array_equal(got, want)
        assert 0 < want.sum() < len(want)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8])
def test_suppression_keeps_what_torchvision_keeps(threshold: float) -> None:
    rng = np.random.default_rng(int(100 * threshold))
    corners = rng.integers(0, 12, (250, 2, 2))  # Few places and scores: many ties, empty boxes.
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=-1)
    scores = (rng.integers(0, 20, 250) / 20).astype(np.float32)
    want = suppress(boxes, scores, threshold)
    assert 20 < len(want) < 230
    assert box_nms(boxes, scores, threshold=threshold).tolist() == want
    if torchvision.extension._has_ops():
        tensors = torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(scores)
        assert torchvision.ops.nms(*tensors, threshold).tolist() == want


@pytest.mark.parametrize("threshold", [0.7, 0.8])
def test_suppression_compares_with_the_threshold_in_double_precision(threshold: float) -> None:
    boxes = np.array([[0, 0, 10, 1], [0, 0, int(10 * threshold), 1]])  # IoU .7 and .8, in float32.
    want = [0] if float(np.float32(threshold)) > threshold else [0, 1]
    assert box_nms(boxes, np.array([0.5, 0.4]), threshold=threshold).tolist() == want


def test_suppression_of_nothing_is_nothing() -> None:
    assert box_nms(np.zeros((0, 4)), np.zeros(0), threshold=0.5).tolist() == []


def test_run_lengths_are_the_official_ones() -> None:
    masks = random_masks()
    want = amg.mask_to_rle_pytorch(torch.from_numpy(masks))
    assert [encode_rle(mask) for mask in masks] == want
    assert want[-1]["counts"] == [0, 117]


def test_run_lengths_give_back_the_mask_and_its_area() -> None:
    for mask in random_masks():
        np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)
        assert rle_area(encode_rle(mask)) == mask.sum()


def test_run_lengths_go_down_the_columns() -> None:
    mask = np.array([[0, 0, 1], [0, 1, 1]], bool)
    assert encode_rle(mask) == {"size": [2, 3], "counts": [3, 3]}
    assert encode_rle(mask[:, ::-1]) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([6, 1, 40, 4, 5, 4, 5, 4, 21], "61X13mN000`0"),  # As printed by pycocotools' users.
        ([90], "j2"),  # 90 = 2 * 32 + 26; bit 16 of 26 would be a sign, so a group follows.
        ([0, 90], "0j2"),
    ],
)
def test_compressed_run_lengths_are_those_of_pycocotools(counts: list[int], text: str) -> None:
    assert to_coco({"size": [9, 10], "counts": counts}) == {"size": [9, 10], "counts": text}


def test_compressed_run_lengths_read_as_cocoapi_reads_them() -> None:
    mask = np.zeros((300, 400), bool)
    mask[::7, 3:380], mask[10:250, ::11] = True, True
    rle = encode_rle(mask)
    characters, counts = iter(to_coco(rle)["counts"]), []
    for character in characters:  # `rleFrString` of `maskApi.c`.
        value, place, group = 0, 0, 32
        while group & 32:
            group = ord(character) - 48
            value |= (group & 31) << 5 * place
            place += 1
            if group & 32:
                character = next(characters)
        if group & 16:
            value |= -1 << 5 * place
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    assert counts == rle["counts"]


@pytest.mark.parametrize("density", [0.2, 0.4, 0.5, 0.7])
@pytest.mark.parametrize(
    ("mode", "ours"), [("holes", fill_small_holes), ("islands", remove_small_islands)]
)
def test_small_regions_vanish_as_in_opencv(mode: str, ours: object, density: float) -> None:
    rng, outcomes = np.random.default_rng(int(10 * density)), set()
    for area in (1, 3, 8, 1000):
        for _ in range(40):
            mask = rng.random((11, 14)) < density
            want, found = amg.remove_small_regions(mask, area, mode)
            got, seen = ours(mask, min_area=area)
            np.testing.assert_array_equal(got, want)
            assert seen == found
            outcomes.add(found)
    assert outcomes == {False, True}


def test_only_the_first_of_equal_small_islands_stays_as_in_opencv() -> None:
    """OpenCV counts blocks of 2x2 pixels: the island on the left comes first."""
    mask = np.array([[0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]], bool)
    want, _ = amg.remove_small_regions(mask, 5, "islands")
    assert want[1, 0]
    np.testing.assert_array_equal(remove_small_islands(mask, min_area=5)[0], want)


def test_an_empty_mask_has_no_regions() -> None:
    mask, found = remove_small_islands(np.zeros((3, 4), bool), min_area=2)
    assert not mask.any()
    assert not found


@pytest.mark.parametrize("size", [(1024, 1024), (333, 500), (41, 7)])
def test_crops_are_the_official_ones(size: tuple[int, int]) -> None:
    boxes, layers = amg.generate_crop_boxes(size, 3, 512 / 1500)
    got = crop_boxes(*size, layers=3, overlap_ratio=512 / 1500)
    assert [list(crop.box) for crop in got] == boxes
    assert [crop.layer for crop in got] == layers


def test_grids_are_the_official_ones() -> None:
    want = amg.build_all_layer_point_grids(13, 2, 2)
    got = layer_grids(13, layers=2, downscale=2)
    assert [len(grid) for grid in got] == [169, 36, 9]
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)
