"""Risk-coverage curves against orders tried one by one, literals and symmetries."""

import itertools

import numpy as np
import pytest

from pp_jax.evaluate.selective import aurc, rank_correlation, risk_coverage, selective
from pp_jax.evaluate.subjects import CONFIDENCES


def curve_of_order(risk: np.ndarray, order: tuple[int, ...]) -> list[float]:
    return [float(np.mean([risk[i] for i in order[:k]])) for k in range(1, len(order) + 1)]


def row(dice: float | None, **confidences: float | None) -> dict:
    return dict.fromkeys(CONFIDENCES) | {"dice": dice} | confidences


def test_the_surest_are_kept_first():
    curve = risk_coverage(np.array([0.1, 0.9, 0.5, 0.7]), np.array([0.8, 0.0, 0.1, 0.4]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(curve.risk, [0, 0.4 / 2, 0.5 / 3, 1.3 / 4])
    assert aurc(curve) == pytest.approx((0 + 0.2 + 0.5 / 3 + 0.325) / 4)


def test_ties_are_the_mean_over_all_orders_that_keep_the_surer_first():
    rng = np.random.default_rng(0)
    for _ in range(5):
        confidence, risk = rng.integers(0, 3, 6) / 2, rng.uniform(size=6)
        orders = [
            order
            for order in itertools.permutations(range(6))
            if all(confidence[i] >= confidence[j] for i, j in itertools.pairwise(order))
        ]
        assert len(orders) > 1
        want = np.mean([curve_of_order(risk, order) for order in orders], axis=0)
        np.testing.assert_allclose(risk_coverage(confidence, risk).risk, want)


def test_a_constant_confidence_gives_the_mean_risk_everywhere():
    risk = np.random.default_rng(1).uniform(size=50)
    np.testing.assert_allclose(risk_coverage(np.full(50, 0.3), risk).risk, risk.mean())


def test_no_order_is_better_than_the_oracles_and_none_worse_than_its_reverse():
    rng = np.random.default_rng(2)
    dice = rng.uniform(size=7)
    areas = [np.mean(curve_of_order(1 - dice, order)) for order in itertools.permutations(range(7))]
    best, worst = (
        selective([row(d, stability=sign * d) for d in dice])["stability"] for sign in (1, -1)
    )
    assert best.aurc == pytest.approx(best.oracle) == pytest.approx(min(areas))
    assert worst.aurc == pytest.approx(max(areas))
    assert worst.oracle == best.oracle
    assert best.random == pytest.approx(np.mean(areas))
    assert (best.spearman, worst.spearman) == pytest.approx((1, -1))


def test_an_increasing_map_of_the_confidence_changes_nothing():
    confidence, risk = np.random.default_rng(3).uniform(size=(2, 40))
    a, b = (risk_coverage(x, risk).risk for x in (confidence, np.exp(5 * confidence)))
    np.testing.assert_array_equal(a, b)


def test_low_entropy_is_sure():
    dice = [0.2, 0.9, 0.6]
    found = selective([row(d, entropy=1 - d, tta=d) for d in dice])
    assert set(found) == {"entropy", "tta"}
    assert found["entropy"][:5] == found["tta"][:5]
    assert found["entropy"].spearman == pytest.approx(1)


def test_a_score_is_judged_on_the_rows_that_have_it_and_the_metric():
    rows = [row(0.5, jitter=0.5), row(1.0), row(None, jitter=0.9), row(0.75, jitter=0.1)]
    found = selective(rows)
    assert set(found) == {"jitter"}
    # Kept first: risk .5, then .25 beside it. The oracle: .25, then .5 beside it.
    assert found["jitter"].n == 2
    assert found["jitter"].aurc == pytest.approx((0.5 + 0.375) / 2)
    assert found["jitter"].oracle == pytest.approx((0.25 + 0.375) / 2)
    assert found["jitter"].random == pytest.approx(0.375)
    assert found["jitter"].spearman == pytest.approx(-1)
    assert selective([row(0.5)]) == {}


def test_another_metric_is_another_risk_and_a_distance_is_none():
    rows = [row(0.5, tta=x) | {"iou": x / 2, "hd95": 12.0} for x in (0.2, 0.8)]
    assert selective(rows, metric="iou")["tta"].random == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"hd95: 12\.0 is outside of \[0, 1\]"):
        selective(rows, metric="hd95")


def test_ranks_correlate_as_in_a_worked_example():
    # Ranks 1, 2, 3, 4, 5 against 2, 1, 4, 3, 5: 1 - 6 * (1 + 1 + 1 + 1 + 0) / (5 * 24) = .8.
    a, b = np.array([1.0, 2.0, 3.0, 4.0, 50.0]), np.array([0.2, 0.1, 0.4, 0.3, 0.5])
    assert rank_correlation(a, b) == pytest.approx(0.8)
    assert rank_correlation(a, np.ones(5)) is None
    assert rank_correlation(a[:1], b[:1]) is None


def test_what_does_not_pair_is_refused():
    with pytest.raises(ValueError, match="2 confidences of 3 risks"):
        risk_coverage(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="0 confidences of 0 risks"):
        risk_coverage(np.zeros(0), np.zeros(0))
