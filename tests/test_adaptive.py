"""The choice of a filter for each image: laws on drawn scores, SciPy, NumPy and literals."""

import numpy as np
import pytest
import scipy.stats

from pp_jax.evaluate import adaptive
from pp_jax.evaluate.adaptive import ADAPTIVE, ORACLE, SINGLE, STATISTICS
from pp_jax.evaluate.statistics import Interval
from tests import report_world

FILTERS = ("none", "sobel", "clahe")
NAMES = tuple(STATISTICS)
BOUND = 40.0


def world(seed: int = 0, *, step: float = 0.3, images: int = 100) -> tuple:
    """Statistics, scores, folds and patients; the second filter gains below a bound, else loses."""
    rng = np.random.default_rng(seed)
    statistics = np.column_stack([rng.uniform(20, 60, images), rng.random((images, 2))])
    # Images are hard or easy by another statistic, whatever the filter.
    scores = 0.4 + 0.5 * (statistics[:, 1:2] > 0.5) + 0.02 * rng.standard_normal((images, 3))
    scores[:, 1] += np.where(statistics[:, 0] <= BOUND, step, -step)
    patient = rng.permutation(np.arange(images) // 2)
    return statistics, scores, patient % 5, [f"p{one}" for one in patient]


def taken(scores: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return scores[np.arange(len(scores)), columns]


# Statistics.


def test_entropy_is_scipys_and_deviation_numpys():
    image = np.random.default_rng(0).integers(0, 256, (37, 23)).astype(np.uint8)
    found = adaptive.describe(image)
    counts = np.unique(image, return_counts=True)[1]
    assert found["entropy"] == pytest.approx(scipy.stats.entropy(counts, base=2))
    assert found["sd"] == pytest.approx(np.std(image.astype(float)))
    assert found["contrast"] == pytest.approx(scipy.stats.variation(image.astype(float), axis=None))


def test_entropy_counts_in_bits_up_to_eight():
    levels = np.arange(256, dtype=np.float32).reshape(16, 16)
    assert adaptive.describe(levels)["entropy"] == pytest.approx(8)
    assert adaptive.describe(levels // 64)["entropy"] == pytest.approx(2)
    near = np.array([[9.6, 10.4], [19.7, 20.2]])
    assert adaptive.describe(near)["entropy"] == pytest.approx(1)


def test_two_levels_have_the_figures_of_a_coin():
    found = adaptive.describe(np.array([[50, 150]] * 3, np.uint8))
    assert found == pytest.approx({"sd": 50, "entropy": 1, "contrast": 0.5})


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_constant_image_has_no_deviation_no_entropy_and_no_contrast(level):
    found = adaptive.describe(np.full((5, 4), level, np.uint8))
    assert found == dict.fromkeys(STATISTICS, 0.0)


def test_padding_is_no_part_of_the_image():
    image = np.random.default_rng(1).uniform(0, 255, (9, 5))
    canvas = np.full((12, 12), 255.0)
    canvas[:9, :5] = image
    assert adaptive.describe(canvas, size=(9, 5)) == adaptive.describe(image)
    assert adaptive.describe(canvas) != adaptive.describe(image)


@pytest.mark.parametrize("image", [np.array([[300.0]]), np.array([[-1.0]]), np.array([[np.nan]])])
def test_levels_that_are_no_grey_levels_are_named(image):
    with pytest.raises(ValueError, match=r"must lie in \[0, 255\], these: "):
        adaptive.describe(image)


# The rule.


def test_a_step_in_a_statistic_is_found_on_unseen_folds_and_beats_every_single_filter():
    statistics, scores, folds, patients = world()
    found = adaptive.cross_fitted(statistics, scores, folds, patients)
    low = statistics[:, 0] <= BOUND
    sure = np.abs(statistics[:, 0] - BOUND) > 1.5  # The bound is known up to its neighbours.
    np.testing.assert_array_equal(found.chosen[sure] == 1, low[sure])
    assert taken(scores, found.chosen).mean() > scores.mean(0).max() + 0.1
    for rule in found.rules.values():
        told = adaptive.words(rule, filters=FILTERS, statistics=NAMES)
        assert told.startswith("if SD ≤ ")
        assert abs(float(told.split("≤ ")[1].split()[0]) - BOUND) < 1.5


def test_what_makes_all_filters_better_is_no_reason_to_choose():
    """Without the mean of an image the only question would be for hard and easy ones."""
    statistics, scores, folds, patients = world(step=0.05)
    found = adaptive.cross_fitted(statistics, scores, folds, patients, depth=1)
    assert all(rule.tree.tree_.feature[0] == 0 for rule in found.rules.values())
    moved = scores + np.random.default_rng(2).random((len(scores), 1))
    again = adaptive.cross_fitted(statistics, moved, folds, patients, depth=1)
    np.testing.assert_array_equal(again.chosen, found.chosen)


def test_statistics_that_tell_nothing_gain_nothing_on_average():
    """Filters whose scores are exchangeable are equally good, however they are chosen."""
    gains, oracles = [], []
    for seed in range(80):
        statistics, scores, folds, patients = world(seed, step=0.0, images=50)
        found = adaptive.cross_fitted(statistics, scores, folds, patients, leaf=5)
        gains.append((taken(scores, found.chosen) - taken(scores, found.single)).mean())
        oracles.append((scores.max(1) - taken(scores, found.single)).mean())
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    assert error > 0
    assert abs(np.mean(gains)) < 3 * error
    assert np.mean(oracles) > 10 * error  # An oracle gains of the same scores.


def test_permuted_filters_permute_the_choices():
    statistics, scores, folds, patients = world(3, step=0.02)
    order = np.array([2, 0, 1])
    found = adaptive.cross_fitted(statistics, scores, folds, patients)
    moved = adaptive.cross_fitted(statistics, scores[:, order], folds, patients)
    np.testing.assert_array_equal(order[moved.chosen], found.chosen)
    np.testing.assert_array_equal(order[moved.single], found.single)
    assert len(set(found.chosen)) > 1


def test_the_scores_of_a_fold_do_not_change_its_choices():
    statistics, scores, folds, patients = world(4, step=0.02)
    found = adaptive.cross_fitted(statistics, scores, folds, patients)
    for fold in range(5):
        own = folds == fold
        other = scores.copy()
        other[own] = np.eye(3)[(found.single[own] + 1) % 3] * 100
        changed = adaptive.cross_fitted(statistics, other, folds, patients)
        np.testing.assert_array_equal(changed.chosen[own], found.chosen[own])
        np.testing.assert_array_equal(changed.single[own], found.single[own])
        assert (changed.single != found.single).any()  # Of other folds, which may look.


def test_a_patient_counts_once():
    statistics = np.zeros((8, 1))
    scores = np.array([[0.7, 0.3]] * 5 + [[0.4, 0.6]] * 3)
    rule = adaptive.fit(statistics, scores, ["a"] * 5 + ["b", "c", "d"])
    assert (rule.single, rule.images, rule.patients) == (1, 8, 4)
    assert adaptive.choose(rule, statistics).tolist() == [1] * 8


@pytest.mark.parametrize(("patients", "asks"), [(20, True), (19, False), (16, False), (2, False)])
def test_each_answer_has_enough_patients_behind_it(patients, asks):
    """Many images of two patients are two patients."""
    owner = np.arange(64) * patients // 64
    statistics = owner[:, None].astype(float)
    scores = np.column_stack([np.zeros(64), np.where(owner < patients / 2, 1.0, -0.5)])
    rule = adaptive.fit(statistics, scores, [f"p{one}" for one in owner], leaf=10)
    told = adaptive.words(rule, filters=FILTERS, statistics=["sd"])
    assert told == ("if SD ≤ 9.5 grey levels: sobel, else none" if asks else "sobel")


def test_words_say_what_the_rule_does():
    statistics, scores, _, patients = world(5)
    # A second question above the bound: the third filter pays where the second statistic is low.
    scores[:, 2] += np.where((statistics[:, 0] > BOUND) & (statistics[:, 1] <= 0.5), 0.2, -0.2)
    rule = adaptive.fit(statistics, scores, patients, leaf=5)
    told = adaptive.words(rule, filters=FILTERS, statistics=["a", "b", "c"])
    first, second = (float(part.split(":")[0]) for part in told.split("≤ ")[1:])
    assert told == f"if a ≤ {first:.4g}: sobel, else if b ≤ {second:.4g}: clahe, else none"
    want = np.where(statistics[:, 0] <= first, 1, np.where(statistics[:, 1] <= second, 2, 0))
    np.testing.assert_array_equal(adaptive.choose(rule, statistics), want)


def test_equal_filters_are_the_first_of_them():
    statistics, scores, folds, patients = world(6)
    equal = np.repeat(scores[:, :1], 3, axis=1)
    found = adaptive.cross_fitted(statistics, equal, folds, patients)
    assert not found.chosen.any()
    assert not found.single.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s, y, f, p: (s, y, f, ["same", *p[1:-1], "same"]),
            "patient 'same' is in the folds",
        ),
        (lambda s, y, f, p: (s, y[1:], f, p), "each image needs one of each"),
        (lambda s, y, f, p: (s, y * np.nan, f, p), "not finite"),
        (lambda s, y, f, p: (s, y[:, :1], f, p), "1 filter"),
        (lambda s, y, f, p: (s, y, f * 0, p), "two or more that have images"),
    ],
)
def test_what_cannot_be_fitted_is_named(change, message):
    statistics, scores, _, _ = world(images=10)
    folds = np.arange(10) % 5
    patients = [f"p{number}" for number in range(10)]
    with pytest.raises(ValueError, match=message):
        adaptive.cross_fitted(*change(statistics, scores, folds, patients))


# The section.

PROTOCOLS = ("centre", "none")
SEEDS = ("0", "1")


@pytest.fixture(scope="module")
def report() -> tuple:
    """Rows with a step of one filter under one prompt alone, statistics, folds and the section."""
    shown = report_world.images(60)
    methods = [(name, seed) for name in FILTERS for seed in SEEDS]
    held = report_world.make_scores(shown, [*methods, ("atlas", "")], PROTOCOLS).images
    rng = np.random.default_rng(0)
    statistics = {
        one["id"]: dict(zip(NAMES, rng.uniform(20, 60, 3).tolist(), strict=True)) for one in shown
    }
    rows = []
    for row in held:
        if row["method"] == "sobel" and row["protocol"] == "centre":
            low = statistics[row["id"]]["sd"] <= BOUND
            row = row | {"dice": row["dice"] + (0.25 if low else -0.25)}
        rows.append(row)
    number = {one["id"]: int(one["patient"][1:]) for one in shown}
    # A fold is no residue of 4, as are patients without a finding.
    folds = {(s, name): (n + 2 * int(s)) % 5 for s in SEEDS for name, n in number.items()}
    made = adaptive.section(rows, statistics, folds, filters=FILTERS, samples=200)
    return rows, statistics, folds, made


def test_each_prompt_has_a_table_of_choices_and_one_of_rules(report):
    *_, made = report
    titles = [table.title for table in made.tables]
    assert [title.startswith("Rules") for title in titles] == [False, True] * 2
    assert len(set(titles)) == 4
    for table in made.tables[::2]:
        assert [line[0] for line in table.rows] == ["none", SINGLE, ADAPTIVE, ORACLE]
    for table in made.tables[1::2]:
        assert [line[:2] for line in table.rows] == [(s, f) for s in SEEDS for f in range(5)]


def test_the_tables_means_are_those_of_the_rows(report):
    rows, *_, made = report
    for protocol, table in zip(PROTOCOLS, made.tables[::2], strict=True):
        own = [r for r in rows if r["protocol"] == protocol and r["objects"]]
        plain = [r for r in own if r["method"] == "none"]
        best: dict[tuple, dict] = {}
        for row in own:
            key = row["seed"], row["id"]
            if row["method"] in FILTERS and row["dice"] > best.get(key, {"dice": -9})["dice"]:
                best[key] = row
        means = {line[0]: line[2].mean for line in table.rows}
        assert means["none"] == pytest.approx(report_world.mean_of(plain))
        assert means[ORACLE] == pytest.approx(report_world.mean_of(list(best.values())))
        for line in table.rows[1:]:
            assert line[3].mean == pytest.approx(means[line[0]] - means["none"])
        for line in table.rows[2:]:
            assert line[5].mean == pytest.approx(means[line[0]] - means[SINGLE])
        assert all(isinstance(line[2], Interval) and line[2].seeds == 2 for line in table.rows)


def test_the_step_pays_under_its_own_prompt_alone(report):
    *_, made = report
    stepped, flat = (table.rows[2] for table in made.tables[::2])
    assert stepped[5].low > 0.05
    assert abs(flat[5].mean) < 0.05
    assert all("SD ≤" in line[4] for line in made.tables[1].rows)
    assert "; better." in made.paragraphs[1]
    assert "; better." not in made.paragraphs[2]


def test_each_seed_is_fitted_by_itself(report):
    rows, statistics, folds, made = report
    changed = [r | {"dice": 1 - r["dice"]} if r["seed"] == "1" else r for r in rows]
    other = adaptive.section(changed, statistics, folds, filters=FILTERS, samples=1)
    for before, after in zip(made.tables[1::2], other.tables[1::2], strict=True):
        assert before.rows[:5] == after.rows[:5]
    assert made.tables[1].rows[5:] != other.tables[1].rows[5:]


def test_a_metric_that_is_better_when_low_is_chosen_by_the_lowest(report):
    rows, statistics, folds, _ = report
    turned = [row | {"hd95": 1 - row["dice"]} for row in rows]
    made = [
        adaptive.section(turned, statistics, folds, filters=FILTERS, samples=1, metric=metric)
        for metric in ("dice", "hd95")
    ]
    for dice, hd95 in zip(*(one.tables[::2] for one in made), strict=True):
        assert [line[1] for line in dice.rows] == [line[1] for line in hd95.rows]
        for a, b in zip(dice.rows, hd95.rows, strict=True):
            assert a[2].mean == pytest.approx(1 - b[2].mean)


def test_an_image_without_a_value_is_left_out_of_all(report):
    rows, statistics, folds, _ = report
    # The first image of its patient, who has another.
    lacking = [r | {"dice": None} if r["id"] == "i0_0" and r["seed"] == "0" else r for r in rows]
    gone = [r for r in rows if r["id"] != "i0_0"]
    a, b = (
        adaptive.section(own, statistics, folds, filters=FILTERS, samples=1)
        for own in (lacking, gone)
    )
    assert a == b


def test_images_of_one_fold_have_no_rule_and_the_report_says_so(report):
    rows, statistics, folds, _ = report
    made = adaptive.section(rows, statistics, dict.fromkeys(folds, 0), filters=FILTERS, samples=1)
    assert not made.tables
    assert all("No rule" in told for told in made.paragraphs[1:])


def test_rows_that_do_not_fit_are_named(report):
    rows, statistics, folds, _ = report

    def section(own=rows, known=statistics, kept=folds):
        return adaptive.section(own, known, kept, filters=FILTERS, samples=1)

    first = next(row for row in rows if row["objects"])
    with pytest.raises(ValueError, match=r"'i0_0' stands twice under 'none'"):
        section([*rows, first])
    with pytest.raises(ValueError, match=r"'i0_0' has no row of 'none' under seed '0'"):
        section([row for row in rows if row is not first])
    with pytest.raises(ValueError, match=r"'i0_0' is in two data sets"):
        section([*rows, first | {"dataset": "another"}])
    with pytest.raises(ValueError, match=r"image 'i0_0' has no statistics"):
        section(known={name: own for name, own in statistics.items() if name != "i0_0"})
    with pytest.raises(ValueError, match=r"'i0_0' has no fold under seed '0'"):
        section(kept={key: fold for key, fold in folds.items() if key != ("0", "i0_0")})
    with pytest.raises(ValueError, match=r"no rows of none, sobel, clahe"):
        section([row for row in rows if row["method"] == "atlas"])
