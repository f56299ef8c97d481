"""Intervals against SciPy's bootstrap, literals, symmetries and simulations."""

import numpy as np
import pytest
import scipy.stats

from pp_jax.evaluate import statistics
from pp_jax.evaluate.statistics import Comparison, Interval, worst_median_best


def clustered(rng, patients: int, spread: float = 1.0) -> tuple[np.ndarray, list[str]]:
    """Images that share most of their value with the other images of their patient."""
    values, names = [], []
    for patient in range(patients):
        count = 1 + patient % 5
        values.append(rng.normal(0, spread) + rng.normal(0, 0.3, count))
        names += [f"p{patient}"] * count
    return np.concatenate(values), names


def rows_of(values, patients=None, method="sam", seed="", dataset="x"):
    """One row per value; each is a patient of its own unless said otherwise."""
    patients = [f"p{i}" for i in range(len(values))] if patients is None else patients
    return [
        {
            "method": method,
            "seed": seed,
            "dataset": dataset,
            "id": f"i{i}",
            "patient": patient,
            "dice": None if value is None else float(value),
        }
        for i, (value, patient) in enumerate(zip(values, patients, strict=True))
    ]


# Intervals


def test_with_one_image_per_patient_it_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).beta(5, 2, 80)
    got = statistics.interval(values, [f"p{i}" for i in range(80)])
    want = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    )
    # A 2.5 % quantile of 10,000 samples has a standard error of .027 deviations, and both draw.
    assert got.low == pytest.approx(want.confidence_interval.low, abs=0.12 * want.standard_error)
    assert got.high == pytest.approx(want.confidence_interval.high, abs=0.12 * want.standard_error)
    assert got.mean == pytest.approx(values.mean())
    assert got[3:] == (80, 80, 1, 0.95)


def test_each_patient_counts_once_however_many_images():
    values = [0.0, 0.0, 0.0, 1.0]
    interval = statistics.interval(values, ["a", "a", "a", "b"])
    # Drawn: a a (mean 0), a b (mean 1/2), b b (mean 1), with probabilities 1/4, 1/2, 1/4.
    assert interval == Interval(0.5, 0.0, 1.0, 4, 2, 1, 0.95)
    narrow = statistics.interval(values, ["a", "a", "a", "b"], level=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_more_images_that_say_the_same_of_a_patient_do_not_narrow_it():
    values, patients = clustered(np.random.default_rng(1), 30)
    once = statistics.interval(values, patients)
    again = statistics.interval(np.tile(values, 3), patients * 3)
    assert again[:3] == pytest.approx(once[:3], abs=1e-12)
    assert (once.images, again.images, again.patients) == (90, 270, 30)


def test_one_patient_has_no_width_and_says_that_it_is_one():
    interval = statistics.interval([0.2, 0.4], ["a", "a"])
    assert interval == pytest.approx((0.3, 0.3, 0.3, 2, 1, 1, 0.95))
    seeds = statistics.interval([0.2, 0.4], ["a", "a"], ["0", "1"])
    assert seeds == pytest.approx((0.3, 0.3, 0.3, 1, 1, 2, 0.95))


def test_the_order_of_the_images_does_not_change_the_last_digit():
    rng = np.random.default_rng(2)
    values, patients = clustered(rng, 30)
    seeds = [str(i) for i in range(3) for _ in values]
    values, patients = rng.normal(np.tile(values, 3)), patients * 3
    order = rng.permutation(len(values))
    shuffled = statistics.interval(
        values[order], [patients[i] for i in order], [seeds[i] for i in order]
    )
    assert shuffled == statistics.interval(values, patients, seeds)


def test_the_interval_moves_and_stretches_with_the_values():
    values, patients = clustered(np.random.default_rng(3), 30)
    plain = statistics.interval(values, patients)
    moved = statistics.interval(3 - 2 * values, patients)
    assert moved[:3] == pytest.approx((3 - 2 * plain.mean, 3 - 2 * plain.high, 3 - 2 * plain.low))


def test_another_seed_draws_other_patients():
    values, patients = clustered(np.random.default_rng(4), 30)
    first, second = (statistics.interval(values, patients, seed=seed) for seed in (0, 1))
    assert first.mean == second.mean
    assert first.low != second.low


def test_patients_are_drawn_as_often_as_a_plain_loop_draws_them(monkeypatch):
    values = np.random.default_rng(5).normal(size=7)
    for chunk in (1, 20, 10_000):  # One resample at a time, two, all.
        monkeypatch.setattr(statistics, "_CHUNK", chunk)
        got = statistics.interval(values, list("abcdefg"), samples=50)
        rng = np.random.default_rng(0)
        means = [values[rng.integers(7, size=7)].mean() for _ in range(50)]
        assert got[1:3] == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_the_interval_holds_the_truth_as_often_as_it_says_and_only_with_patients():
    rng = np.random.default_rng(5)
    held = {"patients": 0, "images": 0}
    for _ in range(300):
        values, patients = clustered(rng, 40)
        singles = [str(i) for i in range(len(values))]
        for name, drawn in (("patients", patients), ("images", singles)):
            interval = statistics.interval(values, drawn, samples=400)
            held[name] += interval.low <= 0 <= interval.high
    assert 0.90 <= held["patients"] / 300 <= 0.98  # Percentile intervals run a little short.
    assert held["images"] / 300 < 0.85


def test_seeds_that_differ_widen_the_interval_as_their_spread_says():
    rng = np.random.default_rng(6)
    patients, runs = [f"p{i}" for i in range(50)], rng.normal(0, 1, 8)
    values = rng.normal(0, 1, 50) + runs[:, None]
    flat, names = values.ravel(), np.repeat([str(i) for i in range(8)], 50)
    both = statistics.interval(flat, patients * 8, list(names))
    alone = statistics.interval(values.mean(0), patients)
    assert both.mean == pytest.approx(alone.mean)
    assert both[3:6] == (50, 50, 8)
    # Effects of patients and seeds add: so do the variances of their means.
    spread = np.sqrt(values.mean(0).var() / 50 + runs.var() / 8)
    assert both.high - both.low == pytest.approx(2 * 1.96 * spread, rel=0.05)
    assert both.high - both.low > 2 * (alone.high - alone.low)
    same = statistics.interval(np.tile(values[0], 8), patients * 8, list(names))
    assert same[:3] == pytest.approx(statistics.interval(values[0], patients)[:3])


@pytest.mark.parametrize(
    ("values", "patients", "seeds", "message"),
    [
        ([], [], None, "0 values, 0 patients"),
        ([1.0, 2.0], ["a"], None, "2 values, 1 patients"),
        ([1.0, 2.0], ["a", "b"], ["0"], "2 patients, 1 seeds"),
        ([1.0, np.nan, None], ["a", "b", "c"], None, "value 1, of 'b', is nan"),
        ([1.0, 2.0, None], ["a", "b", "c"], None, "value 2, of 'c', is None"),
        ([1.0, 2.0], ["a", "b"], ["0", "1"], "patient 'a' has 0 to 1 images .*folds are one seed"),
        ([1.0, 2.0, 3.0], ["a", "a", "a"], ["0", "1", "1"], "patient 'a' has 1 to 2 images"),
    ],
)
def test_scores_that_have_no_mean_are_refused(values, patients, seeds, message):
    with pytest.raises(ValueError, match=message):
        statistics.interval(values, patients, seeds)


# Intervals of rows


def test_rows_without_a_value_are_left_out_and_not_counted():
    rows = rows_of([0.5, None, 0.75, None, 1.0], ["a", "a", "b", "c", "b"])
    want = statistics.interval([0.5, 0.75, 1.0], ["a", "b", "b"])
    assert statistics.interval_of(rows, "dice") == want
    assert (want.images, want.patients) == (3, 2)
    assert statistics.interval_of(rows[1:2], "dice") is None
    assert statistics.interval_of([], "dice") is None


def test_an_image_without_a_value_under_one_seed_is_left_out_under_all():
    rows = rows_of([0.0, 0.5, 1.0], seed="0") + rows_of([None, 0.7, 0.8], seed="1")
    interval = statistics.interval_of(rows, "dice")
    assert interval.mean == pytest.approx(0.75)
    assert interval[3:6] == (2, 2, 2)


def test_objects_are_averaged_within_their_image_first():
    first = {"method": "m", "seed": "", "dataset": "x", "patient": "a"}
    rows = [
        first | {"id": "1", "object": 0, "dice": 0.0},
        first | {"id": "1", "object": 1, "dice": 0.5},
        first | {"id": "1", "object": 2, "dice": None},
        first | {"id": "2", "object": 0, "dice": 1.0},
        first | {"id": "3", "object": 0, "dice": 0.0, "patient": "b"},
    ]
    interval = statistics.interval_of(rows, "dice")
    assert interval.mean == ((0.25 + 1) / 2 + 0) / 2
    assert interval[3:6] == (3, 2, 1)


def test_a_patient_of_the_same_name_in_another_data_set_is_another():
    rows = rows_of([0.2, 0.4], dataset="x") + rows_of([0.6], dataset="y")
    assert statistics.interval_of(rows, "dice").patients == 3


def test_rows_of_two_protocols_are_not_averaged_unasked():
    with pytest.raises(ValueError, match=r"image 'i0' stands twice under 'sam'.*one method, proto"):
        statistics.interval_of(rows_of([0.5]) + rows_of([0.7]), "dice")


def test_folds_are_not_taken_for_seeds():
    rows = rows_of([0.5, 0.6], seed="0")
    rows[1]["seed"] = "1"
    with pytest.raises(ValueError, match=r"image 'i0' of 'sam' has no row under seed '1'"):
        statistics.interval_of(rows, "dice")


# Comparisons


def test_a_paired_difference_sees_what_separate_intervals_cannot():
    rng = np.random.default_rng(6)
    hardness, patients = clustered(rng, 40)
    worse = hardness - 0.1 + rng.normal(0, 0.05, len(hardness))
    a, b = rows_of(hardness, patients, "sam"), rows_of(worse, patients, "box")
    gain = statistics.compare(a, b, metric="dice").difference
    assert 0.05 < gain.low < gain.high < 0.15
    mean_a, mean_b = (statistics.interval_of(rows, "dice") for rows in (a, b))
    assert gain.mean == pytest.approx(mean_a.mean - mean_b.mean)
    assert gain[3:6] == (len(hardness), 40, 1)
    assert mean_b.high > mean_a.low
    # It is the interval of the differences, whatever the order of the rows.
    assert gain[:3] == pytest.approx(statistics.interval(hardness - worse, patients)[:3])
    swapped = statistics.compare(b[::-1], a, metric="dice")
    assert swapped.difference[:3] == pytest.approx((-gain.mean, -gain.high, -gain.low))
    assert (swapped.a, swapped.b, swapped.verdict) == ("box", "sam", "worse")


def test_the_wilcoxon_test_is_scipys_on_patient_means():
    rng = np.random.default_rng(7)
    hardness, patients = clustered(rng, 25)
    other = hardness + rng.normal(0.1, 0.3, len(hardness))
    difference = hardness - other
    means = [difference[np.array(patients) == name].mean() for name in dict.fromkeys(patients)]
    got = statistics.compare(
        rows_of(hardness, patients), rows_of(other, patients), metric="dice"
    ).wilcoxon
    assert got == pytest.approx(scipy.stats.wilcoxon(means).pvalue)
    # Six differences of one sign: 2 of the 64 assignments of signs are as extreme.
    six = statistics.compare(rows_of([1, 2, 3, 4, 5, 6]), rows_of([0] * 6), metric="dice")
    assert six.wilcoxon == pytest.approx(2 / 64)
    five = statistics.compare(rows_of([1, 2, 3, 4, 5]), rows_of([0] * 5), metric="dice")
    assert (five.wilcoxon, five.equivalent) == (None, None)
    assert five.verdict == "undecided: 5 patients are too few to tell, 6 are needed"


def test_equal_methods_have_no_difference_at_all():
    values = np.random.default_rng(8).random(90)
    patients = [f"p{i % 30}" for i in range(90)]
    same = statistics.compare(
        rows_of(values, patients), rows_of(values, patients, "twin"), metric="dice"
    )
    assert same.difference[:3] == (0, 0, 0)
    assert (same.wilcoxon, same.detectable, same.equivalent) == (None, 0, True)
    assert same.verdict == "no difference larger than 0.02 (equivalent)"


def test_the_detectable_difference_is_found_four_times_in_five():
    for count in (6, 12, 46, 400):
        values = np.random.default_rng(count).normal(0, 0.2, count)
        detectable = statistics.compare(
            rows_of(values), rows_of([0] * count), metric="dice", samples=10
        ).detectable
        shift = detectable / (values.std(ddof=1) / np.sqrt(count))
        limit = scipy.stats.t.ppf(0.975, count - 1)
        power = scipy.stats.nct.sf(limit, count - 1, shift)  # The other tail is under 1e-6.
        assert power == pytest.approx(0.8, abs=0.01), count
    # The last is large enough for the formula of the textbooks: (1.960 + 0.842) s / sqrt(n).
    assert shift == pytest.approx(2.802, rel=0.01)


def simulated(rng, difference: float, count: int = 60) -> Comparison:
    base = rng.random(count)
    other = base - rng.normal(difference, 0.04, count)
    return statistics.compare(rows_of(base), rows_of(other), metric="dice", samples=400)


def test_a_difference_of_the_margin_is_seldom_called_equivalent():
    rng = np.random.default_rng(9)
    wrong = sum(simulated(rng, 0.02).equivalent for _ in range(500))
    # 5 % asked; the percentile interval of 60 patients runs short (5.6 %), 500 runs scatter by 1.
    assert 0.02 < wrong / 500 < 0.09
    assert sum(simulated(rng, 0.0).equivalent for _ in range(50)) > 45


def test_the_difference_between_equal_methods_is_seldom_called_one():
    rng = np.random.default_rng(10)
    words = [simulated(rng, 0.0).verdict for _ in range(200)]
    assert sum(word.startswith(("better", "worse")) for word in words) / 200 < 0.11


@pytest.mark.parametrize(
    ("values", "higher_is_better", "words"),
    [
        ([0.05, 0.06, 0.07, 0.05, 0.06, 0.07, 0.08], True, "better"),
        ([0.05, 0.06, 0.07, 0.05, 0.06, 0.07, 0.08], False, "worse"),
        ([-0.05, -0.06, -0.07, -0.05, -0.06, -0.07], True, "worse"),
        ([-0.05, -0.06, -0.07, -0.05, -0.06, -0.07], False, "better"),
        ([0.005, 0.006, 0.007, 0.005, 0.006, 0.007], True, "better, but by less than 0.02"),
        ([0.01, -0.01] * 4, True, "no difference larger than 0.02 (equivalent)"),
        # t quantiles of 7 degrees of freedom: 2.365 + 0.896; deviation .1 sqrt(8/7) over sqrt(8).
        ([0.1, -0.1] * 4, True, "undecided: 8 patients can detect 0.123"),
    ],
)
def test_verdicts_are_words_and_never_no_effect(values, higher_is_better, words):
    got = statistics.compare(
        rows_of(values),
        rows_of([0.0] * len(values)),
        metric="dice",
        higher_is_better=higher_is_better,
    )
    assert got.verdict == words


def test_one_patient_is_never_equivalent_to_anything():
    one = statistics.compare(rows_of([0.5]), rows_of([0.5]), metric="dice")
    assert (one.equivalent, one.detectable, one.wilcoxon) == (None, None, None)
    assert one.verdict == "undecided: 1 patient is too few to tell, 6 are needed"


def test_a_method_of_several_seeds_is_compared_with_a_control_of_one():
    rng = np.random.default_rng(11)
    runs, control = rng.normal(0.1, 0.05, 8)[:, None] + rng.normal(0, 0.01, 40), [0.0] * 40
    rows = [row for seed, run in enumerate(runs) for row in rows_of(run, seed=str(seed))]
    got = statistics.compare(rows, rows_of(control, method="box"), metric="dice").difference
    want = statistics.interval_of(rows, "dice")
    assert got[:3] == pytest.approx(want[:3])
    assert got[3:6] == (40, 40, 8)
    # Seeds of the same names are the same draws: what they share goes out of the difference.
    shifted = [row | {"method": "b", "dice": row["dice"] - 0.03} for row in rows]
    paired = statistics.compare(rows, shifted, metric="dice").difference
    assert paired[:3] == pytest.approx((0.03, 0.03, 0.03))
    renamed = [row | {"seed": f"b{row['seed']}"} for row in shifted]
    apart = statistics.compare(rows, renamed, metric="dice").difference
    assert apart.mean == pytest.approx(0.03)
    assert apart.low + apart.high == pytest.approx(0.06, abs=0.01)
    # Drawn apart, two equal spreads add.
    both = statistics.interval(runs.mean(1), [str(i) for i in range(8)])
    assert apart.high - apart.low == pytest.approx(np.sqrt(2) * (both.high - both.low), rel=0.1)


def test_images_without_a_value_are_left_out_of_both():
    a, b = rows_of([0.5, None, 0.7, 0.9]), rows_of([0.4, 0.1, None, 0.9], method="box")
    got = statistics.compare(a, b, metric="dice").difference
    assert got.mean == pytest.approx(0.05)
    assert got.images == 2
    assert statistics.compare(a[1:3], b[1:3], metric="dice") is None


def test_an_image_that_one_method_lacks_is_named():
    a, b = rows_of([0.5, 0.6, 0.7]), rows_of([0.5, 0.6], method="box")
    with pytest.raises(ValueError, match=r"image 'i2' of 'x' has a row of 'sam' and none of 'box'"):
        statistics.compare(a, b, metric="dice")
    with pytest.raises(ValueError, match=r"image 'i2' of 'x' has a row of 'sam' and none of 'box'"):
        statistics.compare(b, a, metric="dice")


# The family


def test_holm_is_the_worked_example_of_the_textbooks():
    # Four hypotheses with p = .01, .04, .03, .005 (Wikipedia, "Holm-Bonferroni method"): the
    # smallest is held against alpha/4, the next against alpha/3; the third fails, and the rest.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_what_has_no_p_value_does_not_count_in_the_family():
    assert statistics.holm([None, 0.02, None, 0.5]) == pytest.approx([None, 0.04, None, 0.5])


def test_a_difference_that_the_family_does_not_bear_is_undecided():
    rng = np.random.default_rng(12)
    zero = rows_of([0.0] * 20, method="box")
    weak = statistics.compare(rows_of(0.05 + 0.09 * rng.normal(size=20)), zero, metric="dice")
    firm = statistics.compare(rows_of(0.05 + 0.01 * rng.normal(size=20)), zero, metric="dice")
    assert (weak.verdict, firm.verdict) == ("better", "better")
    assert 0.005 < weak.wilcoxon < 0.05
    *others, last = statistics.adjust([weak] * 9 + [firm])
    assert others[0].verdict.startswith("undecided after Holm: 20 patients can detect 0.0")
    assert others[0].holm == pytest.approx(9 * weak.wilcoxon)
    assert (last.verdict, last.holm) == ("better", pytest.approx(10 * firm.wilcoxon))
    assert statistics.adjust([weak])[0] == weak._replace(holm=weak.wilcoxon)


# What the pixels contribute


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ([0.0] * 8, "the image was not used (interval contains 0)"),
        ([0.1, -0.1] * 5, "the image was not used (interval contains 0)"),
        ([0.2, 0.3] * 5, "the image was used: another patient's costs 0.250"),
        ([-0.2, -0.3] * 5, "the image misleads: another patient's gains 0.250"),
        ([0.2, 0.3], "undecided: 2 patients are too few to tell, 6 are needed"),
    ],
)
def test_a_method_that_does_not_miss_the_image_did_not_use_it(drop, words):
    true, swapped = rows_of([0.7] * len(drop)), rows_of(0.7 - np.array(drop), method="sam swap")
    got = statistics.image_contribution(true, swapped)
    assert got.verdict == words
    assert got.difference.mean == pytest.approx(np.mean(drop))
    assert statistics.adjust([got])[0].verdict == words


def test_a_longer_distance_on_the_wrong_image_is_a_contribution_too():
    true, swapped = rows_of([1.0, 1.5] * 4), rows_of([3.0, 4.5] * 4)
    got = statistics.image_contribution(true, swapped, higher_is_better=False)
    assert got.verdict == "the image was used: another patient's costs 2.500"
    nothing = statistics.image_contribution(rows_of([None]), rows_of([None]))
    assert nothing is None


# Pictures to show


def test_pictures_are_the_worst_the_median_and_the_best():
    scores = np.array([0.9, 0.1, 0.5, 0.4, 0.6, 0.3, 0.8])
    got = worst_median_best(scores, each=1)
    assert {name: list(at) for name, at in got.items()} == {
        "worst": [1],
        "median": [2],
        "best": [0],
    }
    assert list(worst_median_best(scores[:3], each=3)["all"]) == [1, 2, 0]
