"""Intervals against SciPy's bootstrap, literals, symmetries and a simulation."""

import numpy as np
import pytest
import scipy.stats

from pp_jax.evaluate import statistics


def clustered(rng, patients: int, spread: float = 1.0) -> tuple[np.ndarray, list[str]]:
    """Images that share most of their value with the other images of their patient."""
    values, groups = [], []
    for patient in range(patients):
        count = 1 + patient % 5
        values.append(rng.normal(0, spread) + rng.normal(0, 0.3, count))
        groups += [f"p{patient}"] * count
    return np.concatenate(values), groups


def test_with_one_image_per_patient_it_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).beta(5, 2, 80)
    got = statistics.bootstrap_mean(values, [f"p{i}" for i in range(80)], samples=20_000)
    want = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    # A 2.5 % quantile of 20,000 samples has a standard error of .019 of their deviation.
    assert got.low == pytest.approx(want.confidence_interval.low, abs=0.1 * want.standard_error)
    assert got.high == pytest.approx(want.confidence_interval.high, abs=0.1 * want.standard_error)
    assert got.mean == pytest.approx(values.mean())
    assert (got.n, got.groups, got.level) == (80, 80, 0.95)


def test_two_patients_give_the_three_means_that_can_be_drawn():
    values = np.array([0.0, 0.0, 0.0, 1.0])
    interval = statistics.bootstrap_mean(values, ["a", "a", "a", "b"])
    # Drawn: a a (mean 0), a b (mean 1/4), b b (mean 1), with probabilities 1/4, 1/2, 1/4.
    assert interval == statistics.Interval(0.25, 0.0, 1.0, 4, 2, 0.95)
    narrow = statistics.bootstrap_mean(values, ["a", "a", "a", "b"], level=0.4)
    assert (narrow.low, narrow.high) == (0.25, 0.25)


def test_one_patient_has_no_width_and_says_that_it_is_one():
    interval = statistics.bootstrap_mean(np.array([0.2, 0.4]), ["a", "a"])
    assert interval == pytest.approx((0.3, 0.3, 0.3, 2, 1, 0.95))


def test_the_order_of_the_images_does_not_matter():
    rng = np.random.default_rng(2)
    values, groups = clustered(rng, 30)
    order = rng.permutation(len(values))
    shuffled = statistics.bootstrap_mean(values[order], [groups[i] for i in order])
    assert shuffled == pytest.approx(statistics.bootstrap_mean(values, groups), abs=1e-12)


def test_the_interval_moves_and_stretches_with_the_values():
    values, groups = clustered(np.random.default_rng(3), 30)
    plain = statistics.bootstrap_mean(values, groups)
    moved = statistics.bootstrap_mean(3 - 2 * values, groups)
    assert moved[:3] == pytest.approx((3 - 2 * plain.mean, 3 - 2 * plain.high, 3 - 2 * plain.low))


def test_another_seed_draws_other_patients():
    values, groups = clustered(np.random.default_rng(4), 30)
    first, second = (statistics.bootstrap_mean(values, groups, seed=seed) for seed in (0, 1))
    assert first.mean == second.mean
    assert first.low != second.low


def test_the_interval_holds_the_truth_as_often_as_it_says_and_only_with_patients():
    rng = np.random.default_rng(5)
    held = {"patients": 0, "images": 0}
    for _ in range(300):
        values, groups = clustered(rng, 40)
        singles = [str(i) for i in range(len(values))]
        for name, drawn in (("patients", groups), ("images", singles)):
            interval = statistics.bootstrap_mean(values, drawn, samples=400)
            held[name] += interval.low <= 0 <= interval.high
    assert 0.90 <= held["patients"] / 300 <= 0.98  # Percentile intervals run a little short.
    assert held["images"] / 300 < 0.85


def test_a_paired_difference_sees_what_separate_intervals_cannot():
    rng = np.random.default_rng(6)
    hardness, groups = clustered(rng, 40)
    worse = hardness - 0.1 + rng.normal(0, 0.05, len(hardness))
    gain = statistics.paired_difference(hardness, worse, groups)
    assert gain.low > 0.05
    assert gain.high < 0.15
    a, b = (statistics.bootstrap_mean(values, groups) for values in (hardness, worse))
    assert gain.mean == pytest.approx(a.mean - b.mean)
    assert b.high > a.low
    swapped = statistics.paired_difference(worse, hardness, groups)
    assert swapped[:3] == pytest.approx((-gain.mean, -gain.high, -gain.low))


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([], [], "0 values of 0 images"),
        ([1.0, 2.0], ["a"], "2 values of 1 images"),
        ([1.0, np.nan], ["a", "b"], "of 'b', is nan"),
    ],
)
def test_scores_that_have_no_mean_are_refused(values, groups, message):
    with pytest.raises(ValueError, match=message):
        statistics.bootstrap_mean(np.array(values, float), groups)


def row(method, patient, dice, empty="neither", predicted_iou=None, target="mask"):
    return {
        "method": method,
        "protocol": "box",
        "target": target,
        "patient": patient,
        "dice": dice,
        "iou": dice / (2 - dice),
        "predicted_iou": predicted_iou,
        "empty": empty,
    }


def test_a_summary_has_one_line_per_method_protocol_and_target():
    rows = [
        row("sam", "a", 1.0, "both"),
        row("box", "a", 0.5),
        row("sam", "b", 0.0, "one", predicted_iou=0.25),
        row("sam", "b", 0.0, "one"),
        row("sam", "c", 1.0, predicted_iou=0.75),
        row("box", "b", 0.75),
        row("box", "b", 0.9, target="box"),
    ]
    sam, box, rectangles = statistics.summarise(rows)
    assert (sam.method, sam.protocol, sam.target) == ("sam", "box", "mask")
    assert (sam.dice.mean, sam.dice.n, sam.dice.groups) == (0.5, 4, 3)
    assert sam.iou.mean == pytest.approx(0.5)
    assert (sam.predicted_iou, sam.both_empty, sam.one_empty) == (0.5, 1, 2)
    assert (box.method, box.predicted_iou, box.dice.n, box.both_empty) == ("box", None, 2, 0)
    assert (box.dice.mean, box.iou.mean) == pytest.approx((0.625, (1 / 3 + 3 / 5) / 2))
    assert (rectangles.target, rectangles.dice.n) == ("box", 1)
