"""What a report says further down: strata, errors, confidence and detection, counted otherwise."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from pp_jax.evaluate import breakdown, statistics
from pp_jax.evaluate.detection import RSNA_THRESHOLDS, rsna_mean, rsna_score
from pp_jax.evaluate.evidence import NUMBERS, Evidence, pick
from pp_jax.evaluate.sections import Table
from tests.report_world import (
    FIRST,
    GUESSES,
    MODELS,
    NORMAL,
    OTHER,
    OTHERWISE,
    SWAPPED,
    evidence,
    mean_of,
)

SEEDS = tuple(m | {"seed": seed} for m in MODELS for seed in ("a", "b"))


@pytest.fixture(scope="module")
def many() -> Evidence:
    """Patients enough for a stratum that is more than descriptive, and for the metadata."""
    return evidence(44, protocols="box,clicks:3,none", by="view,sex,age,size")


def named(table: Table) -> list[dict[str, object]]:
    """Rows by the names of their columns."""
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def own(found: Evidence, *, method: str = FIRST, protocol: str = "box") -> list:
    return pick(found.scores.images, protocol=protocol, choice="model", method=method)


# Strata.


def test_each_stratum_has_its_mean_its_numbers_and_a_sign_where_patients_are_few(many):
    table = breakdown.strata_section(many).tables[0]
    rows = [row for row in named(table) if row["by"] == "sex"]
    assert [row["stratum"] for row in rows] == ["F *", "M *", "unknown *"]
    for row, sex in zip(rows, ("F", "M", ""), strict=True):
        inside = [r for r in own(many) if r["sex"] == sex]
        assert row[FIRST].mean == pytest.approx(mean_of(inside))
        counts = (
            sum(r["objects"] for r in inside),
            len(inside),
            len({r["patient"] for r in inside}),
        )
        assert row[NUMBERS] == " / ".join(map(str, counts))
        guessed = [r for r in own(many, method="atlas") if r["sex"] == sex]
        assert row["atlas"] == pytest.approx(mean_of(guessed))
    assert SWAPPED not in [column.name for column in table.columns]
    views = {row["stratum"] for row in named(table) if row["by"] == "view"}
    patients = {v: len({r["patient"] for r in own(many) if r["view"] == v}) for v in ("AP", "PA")}
    assert patients == {"AP": 22, "PA": 11}
    assert views == {"AP", "PA *"}


def test_the_worst_stratum_is_named_with_its_patients(many):
    (line,) = [p for p in breakdown.strata_section(many).paragraphs if p.startswith("Worst sex")]
    means = {sex: mean_of([r for r in own(many) if r["sex"] == sex]) for sex in ("F", "M", "")}
    worst = min(means, key=means.get)
    count = len({r["patient"] for r in own(many) if r["sex"] == worst})
    assert line.startswith(f"Worst sex of {FIRST}: {worst or 'unknown'}, {means[worst]:.3f} [")
    assert line.endswith(f"({count} patients; descriptive only).")
    # Of two views one has patients enough, so it is the worst that can be named.
    (line,) = [p for p in breakdown.strata_section(many).paragraphs if p.startswith("Worst view")]
    assert line.startswith(f"Worst view of {FIRST}: AP")
    assert "descriptive" not in line


def test_a_single_stratum_is_none(many):
    assert breakdown.strata_section(evidence(8, by="")) is None
    assert breakdown.strata_section(evidence(8, by="dataset")) is None


def test_thirds_of_the_contrast_have_their_objects(many):
    (table,) = breakdown.ambiguity_section(many).tables
    rows = pick(many.scores.objects, protocol="box", choice="model", method=FIRST)
    contrast, dice = (np.array([r[name] for r in rows]) for name in ("contrast", "dice"))
    order = np.argsort(contrast)
    third = len(rows) // 3
    _, low, low_n, high, high_n, count, rho = table.rows[0]
    assert count == len(rows)
    assert rho == pytest.approx(scipy.stats.spearmanr(contrast, dice).statistic)
    for cell, told, chosen in ((low, low_n, order[:third]), (high, high_n, order[-third:])):
        part = [rows[i] for i in chosen]
        images, patients = ({r[name] for r in part} for name in ("id", "patient"))
        assert told == f"{third} / {len(images)} / {len(patients)}"
        # Objects of an image first.
        means = [
            {"seed": "", "patient": r["patient"], "dice": np.mean([x["dice"] for x in same])}
            for name in images
            for same in [[x for x in part if x["id"] == name]]
            for r in same[:1]
        ]
        assert cell.mean == pytest.approx(mean_of(means))
    assert f"up to {contrast[order[third - 1]]:.2f}" in table.notes[0]
    assert f"from {contrast[order[-third]]:.2f}" in table.notes[0]


# Errors.


def test_kinds_of_error_add_up_to_the_answers(many):
    kinds, by_stratum, _ = breakdown.errors_section(many).tables
    for row in named(kinds):
        rows = pick(many.scores.objects, protocol="box", choice="model", method=row["method"])
        assert row["good"] == sum(r["error"] == "" for r in rows)
        assert row["over-segmented"] == sum(r["error"] == "over" for r in rows)
        assert sum(v for v in list(row.values())[2:]) == len(rows)
    rows = [row for row in named(by_stratum) if row["by"] == "view"]
    wanted = pick(many.scores.objects, protocol="box", choice="model", method=FIRST)
    assert [row["good"] for row in rows] == [
        sum(r["error"] == "" for r in wanted if r["view"] == view) for view in ("AP", "PA")
    ]


def test_the_worst_objects_come_first_and_outliers_are_those_of_their_own_set():
    found = evidence(12)
    rows = pick(found.scores.objects, protocol="box", choice="model", method=FIRST)
    # The same names in a second set, where 0.1 is usual; in the first it is far off.
    lows = [r | {"dataset": "other", "dice": 0.1 + 0.001 * i} for i, r in enumerate(rows)]
    rows = [r | {"dice": 0.8 + 0.001 * i} for i, r in enumerate(rows)]
    rows[3]["dice"] = 0.1
    table = breakdown.errors_section(
        found._replace(scores=found.scores._replace(objects=rows + lows))
    ).tables[-1]
    told = named(table)
    assert [row["Dice"] for row in told] == sorted(r["dice"] for r in rows + lows)[:10]
    assert {(r["dataset"], r["image"], r["object"]) for r in told if r["outlier"]} == {
        ("set", rows[3]["id"], rows[3]["object"])
    }


# Confidence.


def test_confidence_is_ranked_as_scipy_does_and_entropy_the_other_way(many):
    table = breakdown.confidence_section(many).tables[0]
    rows = pick(many.scores.objects, protocol="box", choice="model", method=FIRST)
    dice = [r["dice"] for r in rows]
    told = {row["confidence"]: row for row in named(table) if row["method"] == FIRST}
    assert list(told) == ["predicted IoU", "stability", "jitter", "views", "filters", "entropy"]
    for name, column, sign in (("views", "tta", 1), ("entropy", "entropy", -1)):
        rho = scipy.stats.spearmanr([sign * r[column] for r in rows], dice).statistic
        assert told[name]["Spearman"] == pytest.approx(rho)
    best = np.sort(1 - np.array(dice))
    oracle = np.mean([best[: k + 1].mean() for k in range(len(best))])
    assert told["jitter"]["oracle's"] == pytest.approx(oracle)
    assert told["jitter"]["random"] == pytest.approx(np.mean(1 - np.array(dice)))
    assert {row["method"] for row in named(table)} == {FIRST, OTHER}


def test_the_iou_head_is_judged_by_the_true_iou(many):
    table = breakdown.confidence_section(many).tables[1]
    rows = pick(many.scores.objects, protocol="box", choice="model", method=FIRST)
    errors = np.array([r["predicted_iou"] - r["iou"] for r in rows])
    row = named(table)[0]
    assert row["absolute error"] == pytest.approx(np.abs(errors).mean())
    assert row["bias"] == pytest.approx(errors.mean())
    known = (len(rows), len({r["id"] for r in rows}), len({r["patient"] for r in rows}))
    assert row[NUMBERS] == " / ".join(map(str, known))


def test_pixels_of_all_seeds_are_pooled():
    found = evidence(6, models=SEEDS)
    table = breakdown.confidence_section(found).tables[-1]
    parts = [found.scores.reliability[FIRST, seed, "box"] for seed in ("a", "b")]
    pixels = sum(part.counts.sum() for part in parts)
    row = named(table)[0]
    assert row["pixels"] == pixels
    brier = sum(part.sum_squared_error.sum() for part in parts) / pixels
    assert row["Brier score"] == pytest.approx(brier)
    gaps = sum(part.sum_probability - part.sum_truth for part in parts)
    assert row["calibration error"] == pytest.approx(np.abs(gaps).sum() / pixels)
    assert [row["method"] for row in named(table)] == [FIRST, OTHER]


def test_guesses_alone_have_no_confidence():
    found = evidence(6)
    guesses = [r for r in found.scores.objects if r["method"] in GUESSES]
    scores = found.scores._replace(objects=guesses, reliability={})
    assert breakdown.confidence_section(found._replace(scores=scores)) is None


# Clicks.


def test_the_curve_is_the_mean_after_each_click(many):
    (table,) = breakdown.clicks_section(many).tables
    assert [row["method"] for row in named(table)] == [FIRST, OTHER]
    row = named(table)[0]
    rows = [r for r in many.scores.objects if r["method"] == FIRST]
    for count in "123":
        part = [r for r in rows if r["protocol"] == f"clicks:{count}"]
        images = {r["id"]: r for r in part}
        means = [
            r | {"dice": np.mean([x["dice"] for x in part if x["id"] == name])}
            for name, r in images.items()
        ]
        assert row[count] == pytest.approx(mean_of(means))
    assert row["mean"] == pytest.approx(np.mean([row[c] for c in "123"]))
    assert breakdown.clicks_section(evidence(4)) is None


# Detection.


def test_without_a_protocol_that_tells_nothing_there_is_no_detection():
    assert breakdown.detection_section(evidence(8, protocols="box,clicks:2,box+point")) is None
    assert breakdown.froc_curves(evidence(8, protocols="box,clicks:2")) == {}


def test_the_rsna_score_is_the_challenges_and_its_interval_is_over_patients():
    found = evidence(12, protocols="none")
    boxes = breakdown.detection_section(found).tables[0]
    assert [row["method"] for row in named(boxes)] == [FIRST, OTHER, "atlas", "Otsu"]
    for row in named(boxes):
        held = pick(found.scores.detections, method=row["method"])
        each = [rsna_score(*breakdown.to_pair(one)) for one in held]
        assert row["RSNA score"] == rsna_mean(each).mean
        known = [(s, one) for s, one in zip(each, held, strict=True) if s is not None]
        interval = statistics.interval(
            [s for s, _ in known], [one["patient"] for _, one in known], samples=200
        )
        assert row["mean over patients"] == pytest.approx(interval)
        assert (row["images"], row["left out"]) == (len(known), len(held) - len(known))
        assert row["patients"] == len({one["patient"] for _, one in known})
        assert row["left out"] > 0 or row["method"] != FIRST


def test_an_image_without_truth_is_left_out_or_costs_its_whole_score():
    assert len(RSNA_THRESHOLDS) == 8
    found = evidence(8, protocols="none", models=MODELS[:1], guesses=())
    held = [
        one | {"boxes": one["truth"], "confidences": [0.5] * len(one["truth"])}
        for one in found.scores.detections
    ]
    healthy = [i for i, one in enumerate(held) if not one["truth"]]
    held[healthy[0]] |= {"boxes": [[0.0, 0.0, 5.0, 5.0]], "confidences": [0.5]}
    table = breakdown.detection_section(
        found._replace(scores=found.scores._replace(detections=held))
    ).tables[0]
    row = named(table)[0]
    count = len(held) - len(healthy) + 1
    assert (row["images"], row["left out"]) == (count, len(healthy) - 1)
    assert row["RSNA score"] == pytest.approx((count - 1) / count)


def test_an_image_counts_once_whatever_the_seeds():
    boxes = breakdown.detection_section(evidence(8, protocols="none", models=SEEDS)).tables[0]
    held = {one["id"] for one in evidence(8, protocols="none").scores.detections}
    for row in named(boxes):
        assert row["images"] + row["left out"] == len(held)


def test_areas_are_those_of_scikit_learn_beside_a_guess_without_pixels(many):
    _, areas, classes = breakdown.detection_section(many).tables
    rows = own(many, protocol="none")
    truth, score = [r["objects"] > 0 for r in rows], [r["score"] for r in rows]
    first = named(areas)[0]
    assert (first["method"], first["why not"]) == (FIRST, "")
    assert first["AUROC"].mean == pytest.approx(roc_auc_score(truth, score))
    assert first["AUPRC"].mean == pytest.approx(average_precision_score(truth, score))
    assert (first["with"], first["without"]) == (sum(truth), len(truth) - sum(truth))
    assert first["patients"] == 44
    last = named(areas)[-1]
    assert last["method"] == "view, sex and age alone"
    assert (last["with"], last["without"]) == (first["with"], first["without"])
    # Only patients of odd number, all filmed from behind, have none.
    assert last["AUROC"].mean > 0.7
    parts = [row for row in named(classes) if row["method"] == FIRST]
    assert [row["negatives"] for row in parts] == [OTHERWISE, NORMAL]
    for row in parts:
        kept = [r for r in rows if r["objects"] or r["label"] == row["negatives"]]
        wanted = roc_auc_score([r["objects"] > 0 for r in kept], [r["score"] for r in kept])
        assert row["AUROC"].mean == pytest.approx(wanted)


def test_an_area_that_does_not_exist_says_why():
    few = evidence(3, protocols="none")
    _, areas = breakdown.detection_section(few).tables
    assert [row["why not"] for row in named(areas)][:2] == ["all 4 images have a finding"] * 2
    assert "too few" in named(areas)[-1]["why not"]


def test_a_curve_of_each_method_begins_at_nothing(many):
    curves = breakdown.froc_curves(many)
    assert set(curves) == {f"{name} (none)" for name in (FIRST, OTHER, "atlas", "Otsu")}
    for name, curve in curves.items():
        held = pick(many.scores.detections, method=name.removesuffix(" (none)"))
        assert curve.false_positives[0] == curve.sensitivity[0] == 0
        found = curve.sensitivity[-1] * sum(len(one["truth"]) for one in held)
        false = curve.false_positives[-1] * len(held)
        assert found + false == pytest.approx(sum(len(one["boxes"]) for one in held))
