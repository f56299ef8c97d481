"""Strata against parts made by hand, SciPy's correlation and the real metadata."""

import csv

import numpy as np
import pytest
import scipy.stats

from pp_jax.evaluate import strata
from pp_jax.evaluate.statistics import Interval, interval, interval_of


def row(at: int, dice: float | None = 0.5, **facts):
    return {
        "method": "sam",
        "seed": "",
        "dataset": "x",
        "id": f"i{at:03}",
        "patient": f"p{at}",
        "label": "COVID-19",
        "view": "PA",
        "sex": "F",
        "age": 50.0,
        "area": 4.0,
        "dice": dice,
    } | facts


def test_every_row_of_the_table_is_a_choice_and_others_are_named():
    assert strata.check_by("view,sex,age,class,size,dataset") == tuple(strata.BY)
    assert strata.check_by(" sex, view,sex ") == ("sex", "view")
    assert strata.check_by("") == ()
    with pytest.raises(ValueError, match=r"--by 'veiw': choose among view, sex, age, class, size"):
        strata.check_by("sex,veiw")


@pytest.mark.parametrize(
    ("by", "facts", "name"),
    [
        ("view", {"view": "AP"}, "AP"),
        ("view", {"view": ""}, "unknown"),
        ("sex", {"sex": None}, "unknown"),
        ("class", {"label": "Normal"}, "Normal"),
        ("dataset", {"dataset": "rsna"}, "rsna"),
        ("age", {"age": 0.0}, "<18"),
        ("age", {"age": 17.9}, "<18"),
        ("age", {"age": 18}, "18-39"),
        ("age", {"age": 39.5}, "18-39"),
        ("age", {"age": 40}, "40-59"),
        ("age", {"age": 60}, "60-79"),
        ("age", {"age": 80}, "80+"),
        ("age", {"age": 120}, "80+"),
        ("age", {"age": 151}, "unknown"),
        ("age", {"age": -1}, "unknown"),
        ("age", {"age": None}, "unknown"),
    ],
)
def test_a_row_belongs_to_the_stratum_that_its_facts_name(by, facts, name):
    rows = [row(0, **facts)]
    assert strata.BY[by](rows)(rows[0]) == name


def test_sizes_are_thirds_of_the_areas_that_there_are():
    areas = [9.0, 1.0, 3.0, 6.0, 2.0, 5.0, 0.0, None]
    rows = [row(at, dice=0.1 * at, area=area) for at, area in enumerate(areas)]
    # Of 1 2 3 5 6 9 the thirds lie at two thirds of the way from 2 to 3, and one from 5 to 6.
    small, medium, large, none = strata.strata(rows, "size", "dice")
    assert [s.name for s in (small, medium, large, none)] == [
        "small (< 2.67 %)",
        "medium (2.67 to 5.33 %)",
        "large (> 5.33 %)",
        "no finding",
    ]
    assert [s.images for s in (small, medium, large, none)] == [2, 2, 2, 2]
    assert small.interval.mean == pytest.approx((0.1 + 0.4) / 2)
    assert none.interval.mean == pytest.approx((0.6 + 0.7) / 2)


def test_the_bounds_of_the_sizes_do_not_move_when_a_run_is_repeated():
    rows = [row(at, area=float(area)) for at, area in enumerate([1, 2, 3, 4, 10, 20])]
    uneven = rows + [r | {"seed": "1"} for r in rows[:2]]
    names = [[strata.BY["size"](part)(r) for r in rows] for part in (rows, uneven)]
    assert names[0] == names[1]


def test_a_part_of_the_images_has_the_interval_of_that_part_alone():
    rng = np.random.default_rng(0)
    values = rng.random(60)
    views = rng.choice(["PA", "AP"], 60)
    ages = rng.choice([None, 10, 30, 50, 70, 90], 60)
    facts = zip(values, views, ages, strict=True)
    rows = [row(at, dice, view=str(view), age=age) for at, (dice, view, age) in enumerate(facts)]
    ap, pa = strata.strata(rows, "view", "dice")
    assert (ap.by, ap.name, pa.name) == ("view", "AP", "PA")
    assert ap.interval == interval_of([r for r in rows if r["view"] == "AP"], "dice")
    assert pa.interval.mean == pytest.approx(values[views == "PA"].mean())
    assert (ap.patients, pa.patients) == ((views == "AP").sum(), (views == "PA").sum())
    by_age = [stratum.name for stratum in strata.strata(rows, "age", "dice")]
    assert by_age == ["<18", "18-39", "40-59", "60-79", "80+", "unknown"]


@pytest.mark.parametrize(("patients", "descriptive"), [(19, True), (20, False)])
def test_under_twenty_patients_a_stratum_describes_only(patients, descriptive):
    rows = [row(at, patient=f"p{at % patients}") for at in range(60)]
    (only,) = strata.strata(rows, "sex", "dice", samples=10)
    assert (only.images, only.patients, only.descriptive) == (60, patients, descriptive)


def test_a_stratum_without_a_value_stands_there_empty():
    rows = [row(0), row(1, dice=None, view="AP")]
    ap, pa = strata.strata(rows, "view", "dice")
    assert ap == strata.Stratum("view", "AP", None, 0, 0, True)
    assert pa.interval.mean == 0.5


def stratum(name, mean, patients):
    figure = None if mean is None else Interval(mean, 0.0, 1.0, patients, patients, 1, 0.95)
    return strata.Stratum("view", name, figure, patients, patients, patients < 20)


def test_the_worst_is_sought_among_those_that_can_bear_it():
    found = [stratum("PA", 0.8, 40), stratum("AP", 0.6, 30), stratum("L", 0.1, 5)]
    assert strata.worst(found).name == "AP"
    assert strata.worst(found, higher_is_better=False).name == "PA"
    few = [stratum("L", 0.1, 5), stratum("S", None, 0), stratum("R", 0.3, 6)]
    assert (strata.worst(few).name, strata.worst(few).descriptive) == ("L", True)
    assert strata.worst([stratum("S", None, 0)]) is None


def objects(contrasts, values, *, seed=""):
    """Two objects in each image, two images of each patient."""
    return [
        row(at // 2, dice, patient=f"p{at // 4}", object=at % 2, contrast=contrast, seed=seed)
        for at, (contrast, dice) in enumerate(zip(contrasts, values, strict=True))
    ]


def test_clear_and_unclear_objects_are_averaged_apart():
    contrasts = [3.0, 0.1, 2.0, 0.2, 1.0, None, 0.3, 4.0]
    values = [0.9, 0.2, 0.7, 0.4, 0.5, 0.0, None, 0.8]
    got = strata.ambiguity_thirds(objects(contrasts, values))
    assert (got.metric, got.objects, got.left_out) == ("dice", 6, 2)
    # Lowest: .1 (image 0, patient 0) and .2 (image 1, patient 0); highest: 3 (image 0, patient 0)
    # and 4 (image 3, patient 1).
    assert (got.lowest.objects, got.lowest.contrast, got.lowest.interval.patients) == (2, 0.2, 1)
    assert got.lowest.interval.mean == pytest.approx(0.3)
    assert (got.highest.objects, got.highest.contrast, got.highest.interval.patients) == (2, 3.0, 2)
    assert got.highest.interval == interval([0.9, 0.8], ["a", "b"])
    kept = [(c, v) for c, v in zip(contrasts, values, strict=True) if None not in (c, v)]
    assert got.spearman == pytest.approx(scipy.stats.spearmanr(*zip(*kept, strict=True)).statistic)


def test_objects_count_once_however_many_seeds_and_in_any_order():
    rng = np.random.default_rng(1)
    contrasts, first, second = rng.integers(0, 9, 40), rng.random(40), rng.random(40)
    rows = objects(contrasts, first, seed="0") + objects(contrasts, second, seed="1")
    got = strata.ambiguity_thirds(rows)
    assert (got.objects, got.lowest.objects, got.highest.objects) == (40, 13, 13)
    assert got.lowest.interval.seeds == 2
    want = scipy.stats.spearmanr(contrasts, (first + second) / 2).statistic
    assert got.spearman == pytest.approx(want)
    rng.shuffle(rows)
    assert strata.ambiguity_thirds(rows) == got


def test_too_few_or_equal_objects_have_no_correlation():
    few = strata.ambiguity_thirds(objects([1.0, 2.0, None], [0.1, 0.2, 0.3]))
    assert few == strata.Ambiguity("dice", None, None, None, 2, 1)
    assert strata.ambiguity_thirds([]).objects == 0
    flat = strata.ambiguity_thirds(objects([1.0] * 6, np.linspace(0, 1, 6)))
    assert (flat.spearman, flat.lowest.objects) == (None, 2)


def test_the_real_metadata_fall_into_strata_that_add_up(real_data):
    with open(real_data / "cxr_seg" / "metadata.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [
        row(
            at,
            patient=line["patientid"],
            view=line["view"],
            sex=line["sex"],
            age=float(line["age"]) if line["age"] else None,
            label=line["finding"],
        )
        for at, line in enumerate(lines)
    ]
    for by in ("view", "sex", "age", "class"):
        found = strata.strata(rows, by, "dice", samples=10)
        assert sum(part.images for part in found) == len(lines), by
    women = {line["patientid"] for line in lines if line["sex"] == "F"}
    sexes = {part.name: part.patients for part in strata.strata(rows, "sex", "dice", samples=10)}
    assert sexes["F"] == len(women)
