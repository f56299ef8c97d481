"""Areas against scikit-learn, draws that can be listed, and RSNA's own tables."""

import csv
import gzip

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pp_jax.evaluate.classification import (
    Images,
    auprc,
    auroc,
    by_negative_class,
    images_of,
    metadata_auroc,
)

CURVES = ((auroc, roc_auc_score), (auprc, average_precision_score))


def example(*, count: int = 90, patients: int = 30, seed: int = 0) -> Images:
    """Scores that tell a little, in tenths, so that many are equal."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(size=count) < 0.4
    scores = np.round(rng.normal(size=count) + truth, 1)
    labels = np.where(truth, "Lung Opacity", rng.choice(["Normal", "Other"], count))
    names = [f"p{i}" for i in rng.integers(patients, size=count)]
    return Images(truth, scores, labels.tolist(), names, [""] * count)


def image(objects: int, **facts: object) -> dict:
    return {
        "method": "sam",
        "protocol": "none",
        "seed": "",
        "dataset": "d",
        "id": "i",
        "patient": "p",
        "label": "",
        "objects": objects,
        "score": 0.5,
    } | facts


@pytest.mark.parametrize(("ours", "theirs"), CURVES)
def test_the_area_is_scikit_learns(ours, theirs):
    for seed in range(5):
        images = example(seed=seed)
        assert len(set(images.scores)) < len(images.scores)
        area = ours(images, samples=2)
        assert area.interval.mean == pytest.approx(theirs(images.truth, images.scores))
        assert (area.positives, area.negatives) == (images.truth.sum(), (~images.truth).sum())
        assert area.interval[3:] == (90, len(set(images.patients)), 1, 0.95)


@pytest.mark.parametrize(("ours", "theirs"), CURVES)
def test_the_interval_is_that_of_scikit_learns_areas_of_drawn_patients(ours, theirs):
    images = example()
    interval = ours(images, samples=4000).interval
    rng = np.random.default_rng(9)
    names = sorted(set(images.patients))
    at = [names.index(name) for name in images.patients]
    drawn = []
    for _ in range(400):
        weights = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[at]
        drawn.append(theirs(images.truth, images.scores, sample_weight=weights))
    # A 2.5 % quantile of 400 draws has a standard error of .13 of their deviation.
    near = 0.5 * np.std(drawn)
    assert (interval.low, interval.high) == pytest.approx(
        np.quantile(drawn, (0.025, 0.975)), abs=near
    )


@pytest.mark.parametrize(("ours", "alone", "both"), [(auroc, 0, 3 / 4), (auprc, 1 / 2, 5 / 6)])
def test_two_patients_give_the_three_areas_that_can_be_drawn(ours, alone, both):
    # a's positive is first, b's third: a a has area 1, b b `alone`, a b and b a `both`.
    scores, truth = np.array([0.9, 0.1, 0.2, 0.8]), np.array([True, False, True, False])
    images = Images(truth, scores, [""] * 4, ["a", "a", "b", "b"], [""] * 4)
    assert ours(images).interval[:3] == pytest.approx((both, alone, 1))
    assert ours(images, level=0.4).interval[:3] == pytest.approx((both, both, both))


@pytest.mark.parametrize("curve", [auroc, auprc])
def test_a_draw_of_one_class_alone_is_no_area(curve):
    images = Images(np.array([True, False]), np.array([1.0, 0.0]), ["", ""], ["a", "b"], ["", ""])
    assert curve(images, samples=200).interval[:3] == (1, 1, 1)


@pytest.mark.parametrize(("ours", "theirs"), CURVES)
def test_several_seeds_are_averaged_and_drawn(ours, theirs):
    first, second = example(), example()
    second = second._replace(scores=-second.scores, seeds=["7"] * 90)
    together = Images(
        *(np.concatenate([a, b]) for a, b in zip(first[:2], second[:2], strict=True)),
        *([*a, *b] for a, b in zip(first[2:], second[2:], strict=True)),
    )
    area = ours(together, samples=1000)
    want = [theirs(run.truth, run.scores) for run in (first, second)]
    assert area.interval.mean == pytest.approx(np.mean(want))
    assert (area.positives + area.negatives, *area.interval[3:6]) == (90, 90, 29, 2)
    # Now and then only one of the seeds is drawn.
    assert area.interval.low < min(want) + 0.1
    assert area.interval.high > max(want) - 0.1


def test_the_order_of_the_images_does_not_matter():
    images = example()
    order = np.random.default_rng(1).permutation(90)
    shuffled = Images(
        images.truth[order],
        images.scores[order],
        *([column[i] for i in order] for column in images[2:]),
    )
    for curve in (auroc, auprc):
        a, b = curve(images, samples=300), curve(shuffled, samples=300)
        assert a.interval == pytest.approx(b.interval, abs=1e-12)


def test_an_increasing_map_of_the_scores_changes_nothing_and_their_reverse_mirrors_the_auroc():
    images = example()
    plain = auroc(images, samples=300).interval
    assert auroc(images._replace(scores=np.exp(images.scores)), samples=300).interval == plain
    mirrored = auroc(images._replace(scores=-images.scores), samples=300).interval
    assert mirrored[:3] == pytest.approx((1 - plain.mean, 1 - plain.high, 1 - plain.low))


def test_one_class_alone_has_no_area_and_the_reason_is_said():
    images = example()
    for curve in (auroc, auprc):
        everything = curve(images._replace(truth=np.ones(90, bool)))
        assert everything == (None, 90, 0, "all 90 images have a finding")
        nothing = curve(images._replace(truth=np.zeros(90, bool)))
        assert nothing == (None, 0, 90, "no image of 90 has a finding")


def test_one_patient_has_no_width():
    interval = auroc(example(patients=1)).interval
    assert interval.low == interval.mean == interval.high


def test_a_score_that_is_no_number_is_refused():
    images = example()
    images.scores[3] = np.nan
    with pytest.raises(ValueError, match="image 3 has the score nan"):
        auroc(images)


def test_each_class_of_negatives_is_told_from_all_positives():
    images = example()
    areas = by_negative_class(images, samples=50)
    assert list(areas) == ["Normal", "Other"]
    for label, area in areas.items():
        kept = [i for i in range(90) if images.truth[i] or images.labels[i] == label]
        want = roc_auc_score(images.truth[kept], images.scores[kept])
        assert area.interval.mean == pytest.approx(want)
        assert area.positives == images.truth.sum()
        assert area.negatives == images.labels.count(label)


def test_rows_with_objects_are_positive_and_two_sets_share_no_patient():
    rows = [
        image(2, score=0.9, label="Lung Opacity"),
        image(0, score=0.25, dataset="e", label="Normal", seed="1"),
    ]
    images = images_of(rows)
    assert images.truth.tolist() == [True, False]
    assert images.scores.tolist() == [0.9, 0.25]
    assert (images.labels, images.seeds) == (["Lung Opacity", "Normal"], ["", "1"])
    assert len(set(images.patients)) == 2
    with pytest.raises(ValueError, match="image x of sam under none has no score"):
        images_of([*rows, image(1, score=None, id="x")])


# From what is known beside the pixels.


def people(count: int, *, seed: int, told: float) -> list[dict]:
    """Two images per patient; the view tells the class in a share `told` of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        sick = bool(rng.integers(2))
        for side in range(2):
            sees = rng.uniform() < told
            rows.append(
                image(
                    int(sick),
                    id=f"{i}.{side}",
                    patient=str(i),
                    view="AP" if (sick if sees else rng.integers(2)) else "PA",
                    sex=rng.choice(["F", "M", ""]),
                    age=None if rng.uniform() < 0.2 else float(rng.integers(20, 90)),
                )
            )
    return rows


def test_metadata_that_tells_nothing_is_a_coin():
    areas = [metadata_auroc(people(60, seed=i, told=0), samples=2) for i in range(8)]
    # One such area has a standard error of about .06, their mean of .02.
    assert np.mean([area.interval.mean for area in areas]) == pytest.approx(0.5, abs=0.06)


def test_a_view_that_tells_all_is_found_and_one_that_is_constant_tells_nothing():
    rows = people(60, seed=0, told=1)
    area = metadata_auroc(rows, samples=50, columns=("view",))
    assert area.interval[:3] == (1, 1, 1)
    assert (area.positives + area.negatives, area.interval.patients) == (120, 60)
    same = [row | {"view": "PA"} for row in rows]
    assert metadata_auroc(same, samples=50, columns=("view",)).interval[:3] == (0.5, 0.5, 0.5)


def test_an_image_counts_once_whatever_the_methods():
    rows = people(40, seed=1, told=0.5)
    others = [row | {"method": "box", "seed": "3"} for row in rows]
    assert metadata_auroc([*rows, *others], samples=50) == metadata_auroc(rows, samples=50)


def test_too_few_patients_of_a_class_are_said():
    rows = people(40, seed=2, told=0)
    few = [row for row in rows if row["objects"] or int(row["patient"]) < 8]
    healthy = {row["patient"] for row in few if not row["objects"]}
    assert 0 < len(healthy) < 5
    area = metadata_auroc(few)
    assert area.interval is None
    assert area.reason == f"{len(healthy)} patients of one class are too few for 5 folds"
    assert area.negatives == 2 * len(healthy)


def test_rsnas_opacities_are_told_from_the_view_alone_by_706(real_data):
    folder = real_data / "rsna_csv"

    def read(name: str) -> list[dict]:
        return list(csv.DictReader((folder / name).read_text().splitlines()))

    classes = {row["patientId"]: row["class"] for row in read("stage_2_detailed_class_info.csv")}
    patients = {row["patientId"]: row["nih_image"][:8] for row in read("rsna_to_nih.csv")}
    with gzip.open(folder / "kaggle_stage_2_train_images_dicom_headers.csv.gz", "rt") as file:
        views = {row["PatientID"]: row["ViewPosition"] for row in csv.DictReader(file)}
    rows = [
        image(int(classes[name] == "Lung Opacity"), id=name, patient=patients[name], view=view)
        for name, view in views.items()
    ]
    area = metadata_auroc(rows, columns=("view",), samples=2)
    assert (area.positives, area.negatives) == (6_012, 20_672)
    shares = [
        np.mean([row["view"] == "AP" for row in rows if bool(row["objects"]) == sick])
        for sick in (True, False)
    ]
    # Of one yes or no, the area is the mean of sensitivity and specificity.
    assert area.interval.mean == pytest.approx((1 + shares[0] - shares[1]) / 2, abs=0.001)
    assert area.interval.mean == pytest.approx(0.706, abs=0.001)
