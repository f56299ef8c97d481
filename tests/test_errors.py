"""Kinds of error on drawn pictures, their borders and symmetries; outliers against matplotlib."""

import random
from collections import Counter

import numpy as np
import pytest
from matplotlib.cbook import boxplot_stats

from pp_jax.evaluate import errors
from pp_jax.evaluate.errors import ERRORS
from pp_jax.evaluate.metrics import dice

SIZE = (60, 100)


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


NOTHING, TARGET = box(0, 0, 0, 0), box(10, 10, 30, 30)
PICTURES = {
    "extra": (TARGET, NOTHING),
    "wrong_side": (box(70, 10, 90, 30), TARGET),
    "missed": (box(10, 35, 30, 55), TARGET),
    "over": (box(8, 5, 32, 35), TARGET),
    "under": (box(12, 12, 24, 24), TARGET),
    "shifted": (box(10, 22, 30, 42), TARGET),
    "other": (box(10, 28, 45, 60), TARGET),
    "": (box(12, 12, 30, 30), TARGET),
}


def test_every_kind_of_error_has_its_picture():
    assert set(PICTURES) == {*ERRORS, errors.GOOD}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_drawn_error_has_its_name(kind):
    assert errors.classify(*PICTURES[kind]) == kind


def test_nothing_predicted_is_missed_and_two_empty_masks_are_good():
    assert errors.classify(NOTHING, TARGET) == "missed"
    assert errors.classify(NOTHING, NOTHING) == errors.GOOD


def test_one_and_a_half_times_the_area_is_not_yet_another_size():
    assert errors.classify(box(10, 10, 30, 40), TARGET) == ""  # 600 of 400 pixels.
    assert errors.classify(box(10, 10, 31, 40), TARGET) == "over"
    assert errors.classify(TARGET, box(10, 10, 30, 40)) == ""
    assert errors.classify(TARGET, box(10, 10, 31, 40)) == "under"


def test_half_of_the_target_is_enough_to_be_over_segmented():
    assert errors.classify(box(20, 0, 60, 30), TARGET) == "over"  # 200 of its 400 pixels.
    assert errors.classify(box(21, 0, 61, 30), TARGET) == "other"


def test_a_few_pixels_in_the_other_half_are_the_wrong_side_until_a_dice_of_a_tenth():
    target = box(10, 10, 50, 20)  # Its centre lies in the left half, the other's in the right.
    assert errors.classify(box(47, 10, 87, 20), target) == "wrong_side"  # Dice 3 / 40.
    assert errors.classify(box(46, 10, 86, 20), target) == "shifted"  # 4 / 40.
    centred = box(35, 40, 65, 60)  # In neither half.
    assert errors.classify(centred, target) == "missed"


def random_pairs(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = random.Random(0)

    def draw() -> np.ndarray:
        x, y = sorted(rng.sample(range(101), 2)), sorted(rng.sample(range(61), 2))
        return box(x[0], y[0], x[1], y[1])

    return [(draw(), draw()) for _ in range(count)]


def test_a_good_answer_has_a_dice_of_at_least_a_half_and_about_the_targets_area():
    found = Counter()
    for prediction, target in random_pairs(400):
        kind = errors.classify(prediction, target)
        ratio = prediction.sum() / target.sum()
        alike = dice(prediction, target) >= 0.5 and 2 / 3 <= ratio <= 1.5
        # A larger or smaller answer is over- or under-segmented if it holds, or is held, by half.
        if alike:
            assert kind == ""
        else:
            assert kind or dice(prediction, target) >= 0.5
        found[kind] += 1
    assert set(found) == {*PICTURES} - {"extra"}


def test_the_mirrored_image_has_the_same_error():
    for prediction, target in random_pairs(200):
        mirrored = errors.classify(prediction[:, ::-1], target[:, ::-1])
        assert mirrored == errors.classify(prediction, target)


def test_over_and_under_segmentation_change_places_with_the_masks():
    swap = {"over": "under", "under": "over", "missed": "missed", "wrong_side": "wrong_side"}
    for prediction, target in random_pairs(200):
        kind = errors.classify(prediction, target)
        assert errors.classify(target, prediction) == swap.get(kind, kind)


def test_masks_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(60, 100\) pixels and a target of \(60, 1\)"):
        errors.classify(TARGET, np.ones((60, 1), bool))


# Tables.


def row(number: int, value: float | None, **more) -> dict:
    same = {"method": "sam", "protocol": "box", "choice": "model", "dataset": "rsna"}
    return {**same, "id": f"im{number:03}", "object": 0, "dice": value, **more}


def test_the_table_counts_every_error_of_every_stratum_once():
    rng, kinds = random.Random(1), [*ERRORS, ""]
    rows = [row(i, 0.5, error=rng.choice(kinds), view=rng.choice("AL")) for i in range(100)]
    table = errors.error_table(rows, "view")
    want = Counter((r["view"], r["error"]) for r in rows)
    assert [count.stratum for count in table] == ["A", "L"]
    assert sum(count.n for count in table) == 100
    for stratum, n, counted in table:
        assert tuple(counted) == tuple(ERRORS)
        for kind in kinds[:-1]:
            assert counted[kind] == want[stratum, kind]
        assert n - sum(counted.values()) == want[stratum, ""]


def test_strata_may_be_named_by_a_function_and_what_is_not_known_is_unknown():
    rows = [row(i, 0.5, error="missed", age=age) for i, age in enumerate((7.0, 80.0, None))]
    rows.append(row(9, 0.5))  # No error was looked for.
    by_age = errors.error_table(rows, lambda r: r["age"] and ("old" if r["age"] > 18 else "young"))
    assert [(count.stratum, count.n) for count in by_age] == [
        ("old", 1),
        ("unknown", 1),
        ("young", 1),
    ]
    assert errors.error_table(rows, "sex")[0][:2] == ("unknown", 3)


def test_the_worst_come_first_and_ties_in_the_order_of_their_names():
    rows = [row(3, 0.4), row(1, 0.4), row(2, None), row(4, 0.1), row(5, 0.9)]
    rows.append(row(1, 0.4, object=1))
    rows.reverse()
    worst = errors.worst_first(rows, count=4)
    assert [(r["id"], r["object"]) for r in worst] == [
        ("im004", 0),
        ("im001", 0),
        ("im001", 1),
        ("im003", 0),
    ]


def test_of_a_distance_the_largest_is_the_worst():
    rows = [row(i, None, hd95=value) for i, value in enumerate((3.0, 40.0, None, 7.0))]
    assert [r["hd95"] for r in errors.worst_first(rows, metric="hd95")] == [40.0, 7.0, 3.0]
    rows = [row(i, None, hd95=value) for i, value in enumerate((1.0, 2.0, 3.0, 2.0, 1.0, 60.0))]
    assert [r["hd95"] for r in errors.outliers(rows, metric="hd95")] == [60.0]


@pytest.mark.parametrize("seed", range(4))
def test_outliers_are_the_low_fliers_of_each_methods_box_plot(seed):
    rng = np.random.default_rng(seed)
    good, poor = rng.normal(0.85, 0.02, 80), rng.normal(0.5, 0.1, 80)
    good[:3], poor[:2] = 0.55, 0.02  # 0.55 is far off for the one method, common for the other.
    rows = [row(i, float(value)) for i, value in enumerate(good)]
    rows += [row(i, float(value), method="box") for i, value in enumerate(poor)]
    want = {}
    for method, values in {"sam": good, "box": poor}.items():
        (box_plot,) = boxplot_stats(values)
        want[method] = sorted(x for x in box_plot["fliers"] if x < box_plot["med"])
    got = errors.outliers(rows)
    for method, values in want.items():
        assert [r["dice"] for r in got if r["method"] == method] == values
        assert len(values) >= 2
    assert [r["dice"] for r in got] == sorted(r["dice"] for r in got)


def test_equal_answers_have_no_outlier():
    assert errors.outliers([row(i, 0.7) for i in range(9)]) == []
    assert errors.outliers([]) == []
