"""Calibration against scikit-learn, a loop over pixels, and worked examples."""

import math
import time

import numpy as np
import pytest
from scipy import ndimage
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from pp_jax.evaluate.calibration import (
    Bin,
    add,
    brier,
    ece,
    iou_head,
    pixel_bins,
    reliability,
)

BINS = 15


def disc(size: tuple[int, int], *, centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return np.hypot(x - centre[0], y - centre[1]) < radius


def by_loop(logits: np.ndarray, target: np.ndarray, *, band: float) -> list[tuple[float, bool]]:
    """Probability and truth of every pixel near an outline pixel, one pixel at a time."""
    height, width = target.shape
    reach = band * max(height, width)

    def outside(y: int, x: int) -> bool:
        return 0 <= y < height and 0 <= x < width and not target[y, x]

    outline = [
        (y, x)
        for y, x in zip(*np.nonzero(target), strict=True)
        if any(outside(y + dy, x + dx) for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    ]
    return [
        (1 / (1 + math.exp(-float(logits[y, x]))), bool(target[y, x]))
        for y in range(height)
        for x in range(width)
        if any(math.hypot(y - v, x - u) <= reach for v, u in outline)
    ]


@pytest.fixture(scope="module")
def example() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = disc((40, 60), centre=(20, 3), radius=8) | disc((40, 60), centre=(40, 25), radius=6)
    smooth = ndimage.gaussian_filter(rng.normal(size=target.shape), 2) * 20
    return (smooth + 2 * target).astype(np.float32), target


def test_sums_are_those_of_a_loop_over_the_pixels_near_the_outline(example):
    pixels = by_loop(*example, band=0.05)
    got = reliability(*example)
    assert 100 < len(pixels) < example[1].size / 2
    for index in range(BINS):
        own = [(p, t) for p, t in pixels if index / BINS <= p < (index + 1) / BINS]
        assert got.counts[index] == len(own)
        assert got.sum_probability[index] == pytest.approx(sum(p for p, _ in own), abs=1e-5)
        assert got.sum_truth[index] == sum(t for _, t in own)
        squares = sum((p - t) ** 2 for p, t in own)
        assert got.sum_squared_error[index] == pytest.approx(squares, abs=1e-5)


def test_brier_and_bins_are_scikit_learns(example):
    probability, truth = zip(*by_loop(*example, band=0.1), strict=True)
    got = reliability(*example, band=0.1)
    assert brier(got) == pytest.approx(brier_score_loss(truth, probability), abs=1e-6)
    true, predicted = calibration_curve(truth, probability, n_bins=BINS)
    bins = pixel_bins(got)
    np.testing.assert_allclose([b.true for b in bins], true, atol=1e-6)
    np.testing.assert_allclose([b.predicted for b in bins], predicted, atol=1e-6)
    share = np.array([b.n for b in bins]) / len(truth)
    assert ece(got) == pytest.approx(np.sum(share * np.abs(true - predicted)), abs=1e-6)


def test_true_probabilities_have_no_calibration_error():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (200, 200))
    probability = 1 / (1 + np.exp(-logits))
    target = rng.uniform(size=logits.shape) < probability
    sums = reliability(logits, target, band=1)
    assert sums.counts.sum() == logits.size
    # Of 15 bins of some 2,700 pixels each, a share of truth is off by about .006.
    assert ece(sums) < 0.02
    assert brier(sums) == pytest.approx(np.mean(probability * (1 - probability)), abs=0.005)
    # Twice the logits are too sure by about a tenth, and half of them too unsure.
    assert ece(reliability(2 * logits, target, band=1)) > 0.05
    assert ece(reliability(logits / 2, target, band=1)) > 0.05


def test_sure_and_right_is_perfect_and_sure_and_wrong_the_worst(example):
    target = example[1]
    right = reliability(np.where(target, 80.0, -80.0), target)
    wrong = reliability(np.where(target, -80.0, 80.0), target)
    assert (brier(right), ece(right)) == pytest.approx((0, 0), abs=1e-12)
    assert (brier(wrong), ece(wrong)) == pytest.approx((1, 1), abs=1e-12)
    assert [b.predicted for b in pixel_bins(wrong)] == pytest.approx([0, 1])


def test_two_parts_add_up_to_the_whole(example):
    logits, target = example
    flipped = logits[::-1, ::-1] - 1, target[::-1, ::-1]
    both = add(reliability(logits, target), reliability(*flipped))
    pixels = by_loop(logits, target, band=0.05) + by_loop(*flipped, band=0.05)
    probability, truth = zip(*pixels, strict=True)
    assert brier(both) == pytest.approx(brier_score_loss(truth, probability), abs=1e-6)
    assert (both.images, both.left_out) == (2, 0)


def test_a_target_without_an_outline_is_counted_and_weighs_nothing(example):
    logits, target = example
    plain = reliability(logits, target)
    total = plain
    for nothing in (np.zeros_like(target), np.ones_like(target)):
        left_out = reliability(logits, nothing)
        assert (brier(left_out), ece(left_out), pixel_bins(left_out)) == (None, None, ())
        total = add(total, left_out)
    assert (total.images, total.left_out) == (1, 2)
    assert (brier(total), ece(total)) == (brier(plain), ece(plain))


def test_logits_far_from_the_outline_do_not_matter(example):
    logits, target = example
    far = ndimage.distance_transform_edt(~target) > 0.05 * 60 + 1
    changed = reliability(np.where(far, 9.0, logits), target)
    np.testing.assert_array_equal(changed.counts, reliability(logits, target).counts)


def test_logits_of_another_size_are_refused(example):
    with pytest.raises(ValueError, match=r"logits of \(40, 59\) pixels .* target of \(40, 60\)"):
        reliability(example[0][:, :-1], example[1])


def test_the_large_film_of_an_opacity_takes_an_instant():
    target = disc((1024, 1024), centre=(600, 500), radius=200)
    logits = np.random.default_rng(2).normal(size=target.shape).astype(np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        reliability(logits, target)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.06


def test_the_iou_head_of_four_masks_as_worked_out_by_hand():
    predicted = np.array([0.95, 0.9, 0.32, 1.02])
    true = np.array([0.75, 0.8, 0.42, 0.9])
    got = iou_head(predicted, true)
    # Errors: .2, .1, -.1, .12.
    assert got.mae == pytest.approx(0.52 / 4)
    assert got.bias == pytest.approx(0.32 / 4)
    # Ranks 3, 2, 1, 4 against 2, 3, 1, 4: 1 - 6 * 2 / (4 * 15) = .8.
    assert got.spearman == pytest.approx(0.8)
    assert got.n == 4
    low, high = got.bins
    assert low == pytest.approx(Bin(0.3, 0.4, 1, 0.32, 0.42))
    assert high == pytest.approx(Bin(0.9, 1.0, 3, 2.87 / 3, 2.45 / 3))


def test_bins_of_the_iou_head_are_scikit_learns():
    rng = np.random.default_rng(3)
    predicted, true = rng.uniform(size=200), (rng.uniform(size=200) < 0.5).astype(float)
    want, centre = calibration_curve(true, predicted, n_bins=10)
    bins = iou_head(predicted, true).bins
    np.testing.assert_allclose([b.true for b in bins], want)
    np.testing.assert_allclose([b.predicted for b in bins], centre)


def test_without_masks_or_spread_nothing_is_claimed():
    assert iou_head(np.zeros(0), np.zeros(0)) is None
    assert iou_head(np.array([0.5, 0.5]), np.array([0.1, 0.9])).spearman is None
