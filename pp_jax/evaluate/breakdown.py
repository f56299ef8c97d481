"""What a report says further down: who is served worst, how sure a method is, what it finds."""

from collections.abc import Iterator, Sequence

import numpy as np

from pp_jax.evaluate import (
    calibration,
    classification,
    detection,
    errors,
    selective,
    strata,
    tables,
)
from pp_jax.evaluate.analysis import Evidence, order, pick
from pp_jax.evaluate.detection import Froc, Scored
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.protocols import Curve, click_curve, parse_protocol
from pp_jax.evaluate.sections import Cell, Column, Section, Table
from pp_jax.evaluate.subjects import MODEL, Row

_WORST = 10  # Rows of a table of the worst answers.


def own_rows(evidence: Evidence, *, objects: bool = False) -> dict[str, list[Row]]:
    """The rows of each method at the primary protocol, but for exchanged images."""
    rows = evidence.scores.objects if objects else evidence.scores.images
    rows = pick(rows, protocol=evidence.primary[1], choice=MODEL)
    swapped = evidence.labels("swap")
    return {n: pick(rows, method=n) for n in order(evidence, rows) if n not in swapped}


# Who is served worst.


def strata_section(evidence: Evidence) -> Section | None:
    """Every method in every stratum that is asked for, and the worst of the first model."""
    metric = evidence.primary[0]
    asked = strata.check_by(evidence.plan["settings"]["by"])
    rows, worst = [], []
    for name, own in own_rows(evidence).items():
        for by in asked:
            found = strata.strata(own, by, metric, **evidence.draws)
            if len(found) < 2:
                continue
            rows += [_stratum(name, one) for one in found]
            low = strata.worst(found, higher_is_better=METRICS[metric].higher_is_better)
            if name == evidence.first and low is not None:
                few = ", of few patients: descriptive only" if low.descriptive else ""
                told = tables.text(low.interval, Column(metric))
                worst.append(f"Worst {by} of {name}: {low.name}, {told} (n = {low.images}{few}).")
    if not rows:
        return None
    columns = [Column(n) for n in ("method", "by", "stratum", "images", "patients")]
    columns += [Column(METRICS[metric].label), Column("reading")]
    table = Table("Strata", columns, rows, ("Under 20 patients a figure is descriptive only.",))
    return Section("Strata", worst, [table])


def _stratum(name: str, one: strata.Stratum) -> tuple[Cell, ...]:
    reading = "descriptive only" if one.descriptive else ""
    return (name, one.by, one.name, one.images, one.patients, one.interval, reading)


def ambiguity_section(evidence: Evidence) -> Section | None:
    """The claim under test: how each method does where the boundary can hardly be seen."""
    found = {
        name: strata.ambiguity_thirds(rows, "dice", **evidence.draws)
        for name, rows in own_rows(evidence, objects=True).items()
    }
    known = {name: one for name, one in found.items() if one.lowest and one.highest}
    if not known:
        return None
    first = next(iter(known.values()))
    columns = (
        Column("method"),
        Column("objects"),
        Column("lowest third"),
        Column("highest third"),
        Column("Spearman", digits=2),
    )
    rows = [
        (name, one.objects, one.lowest.interval, one.highest.interval, one.spearman)
        for name, one in known.items()
    ]
    notes = (
        "Contrast-to-noise ratio of the boundary: |mean inside - mean of a ring of 2 % of the "
        "longest side| / SD of the ring. The ring crosses ribs, heart and chest wall, so a low "
        "ratio partly measures the anatomy around a finding.",
        f"Lowest third: up to {first.lowest.contrast:.2f}; highest: from "
        f"{first.highest.contrast:.2f}; {first.left_out} objects without a ratio are left out. "
        "Spearman takes objects for independent, which they are not.",
    )
    return Section(
        "Ambiguity", (), [Table("Dice by contrast of the boundary", columns, rows, notes)]
    )


def errors_section(evidence: Evidence) -> Section | None:
    """Kinds of error by method, and of the first model by stratum, and its worst answers."""
    objects = own_rows(evidence, objects=True)
    if not any(objects.values()):
        return None
    kinds = [Column(errors.ERRORS[name].label) for name in errors.ERRORS]
    made = [
        Table(
            "Kinds of error, objects",
            (Column("method"), Column("objects"), Column("good"), *kinds),
            [_errors(name, count) for name, rows in objects.items() for count in _all(rows)],
            tuple(f"{one.label}: {one.explanation}" for one in errors.ERRORS.values()),
        )
    ]
    own = objects.get(evidence.first, [])
    rows = []
    for by in strata.check_by(evidence.plan["settings"]["by"]):
        counts = errors.error_table(own, strata.BY[by](own))
        rows += [(by, *_errors(count.stratum, count)) for count in counts if len(counts) > 1]
    if rows:
        columns = (Column("by"), Column("stratum"), Column("objects"), Column("good"), *kinds)
        made.append(Table(f"Kinds of error of {evidence.first}", columns, rows))
    made.append(_worst_table(evidence, own))
    return Section("Errors", (), made)


def _all(rows: Sequence[Row]) -> list[errors.Count]:
    return errors.error_table(rows, lambda row: "all")


def _errors(name: str, count: errors.Count) -> tuple[Cell, ...]:
    return (name, count.n, count.n - sum(count.kinds.values()), *count.kinds.values())


def _worst_table(evidence: Evidence, rows: Sequence[Row]) -> Table:
    far = {(row["id"], row["object"]) for row in errors.outliers(rows)}
    columns = [Column(n) for n in ("image", "object", "patient", "Dice", "error", "area (%)")]
    return Table(
        f"Worst objects of {evidence.first}",
        (*columns, Column("contrast"), Column("predicted IoU"), Column("outlier")),
        [
            (
                row["id"],
                row["object"],
                row["patient"],
                row["dice"],
                errors.ERRORS[row["error"]].label if row["error"] else "",
                row["area"],
                row["contrast"],
                row["predicted_iou"],
                "yes" if (row["id"], row["object"]) in far else "",
            )
            for row in errors.worst_first(rows, count=_WORST)
        ],
        ("Outlier: below the lower quartile by more than 1.5 interquartile ranges.",),
    )


# How sure a method is.


def confidence_section(evidence: Evidence) -> Section | None:
    """Whether confidence goes with quality: correlations, risk and coverage, the IoU head."""
    ranked, heads = [], []
    for name, rows in own_rows(evidence, objects=True).items():
        ranked += [
            (name, score, one.n, one.spearman, one.aurc, one.oracle, one.random)
            for score, one in selective.selective(rows).items()
        ]
        head = iou_head(rows)
        if head is not None:
            heads.append((name, head.n, head.mae, head.bias, head.spearman))
    pixels = [
        (key[0], *_pixels(seen))
        for key, seen in pixel_reliability(evidence).items()
        if key[1] == evidence.primary[1] and key[0] not in evidence.labels("swap")
    ]
    if not ranked and not pixels:
        return None
    made = []
    if ranked:
        columns = [Column(n) for n in ("method", "confidence", "objects", "Spearman with Dice")]
        columns += [Column(f"area under risk-coverage, {n}") for n in ("own", "oracle", "random")]
        made.append(
            Table(
                "Confidence scores and Dice",
                columns,
                ranked,
                (
                    "Risk: 1 - Dice of the objects that are kept, the surest first; lower is "
                    "better. Jitter, tta, filters: mean pairwise IoU of the masks under other "
                    "draws of the marks, other views and other filters; entropy: of the mean mask.",
                ),
            )
        )
    if heads:
        columns = [Column(n) for n in ("method", "objects", "absolute error", "bias", "Spearman")]
        made.append(Table("Predicted against true IoU", columns, heads))
    if pixels:
        columns = [Column(n) for n in ("method", "images", "pixels", "Brier", "ECE")]
        note = "Pixels within 5 % of the longest side of the target's outline; 15 bins."
        made.append(Table("Probabilities of pixels", columns, pixels, (note,)))
    return Section("Confidence and calibration", (), made)


def iou_head(rows: Sequence[Row]) -> calibration.IouHead | None:
    """The predicted IoU of objects against the true one; None without any."""
    known = [row for row in rows if row["predicted_iou"] is not None]
    told = np.array([row["predicted_iou"] for row in known], float)
    return calibration.iou_head(told, np.array([row["iou"] for row in known], float))


def pixel_reliability(evidence: Evidence) -> dict[tuple[str, str], calibration.Reliability]:
    """By method and protocol, over all seeds."""
    found: dict[tuple[str, str], calibration.Reliability] = {}
    for (method, _, protocol), seen in evidence.scores.reliability.items():
        held = found.get((method, protocol))
        found[method, protocol] = seen if held is None else calibration.add(held, seen)
    return found


def _pixels(seen: calibration.Reliability) -> tuple[Cell, ...]:
    total = int(np.sum(seen.counts))
    return (int(seen.images), total, calibration.brier(seen), calibration.ece(seen))


# Clicks.


def click_curves(evidence: Evidence) -> dict[str, Curve]:
    """How each model gains from click to click; nothing without the protocol."""
    rows = [row for row in evidence.scores.objects if row["protocol"].startswith("clicks:")]
    swapped = evidence.labels("swap")
    return {
        name: click_curve(pick(rows, method=name))
        for name in order(evidence, rows)
        if name not in swapped
    }


def clicks_section(evidence: Evidence) -> Section | None:
    """How each model gains from click to click; None without the protocol."""
    curves = click_curves(evidence)
    if not curves:
        return None
    counts = next(iter(curves.values())).clicks
    columns = [Column("method"), Column("objects")]
    columns += [Column(f"{count}") for count in counts]
    columns += [Column("mean over clicks"), Column("clicks to 0.80", digits=1), Column("never")]
    rows = [
        (name, one.objects, *one.dice, one.area, one.clicks_to_target, one.never)
        for name, one in curves.items()
    ]
    note = (
        "Dice after so many clicks, each where the mask was wrong, with the last mask fed back. "
        "Clicks to 0.80: the median over the objects that reach it; never: the share of those that "
        "do not."
    )
    return Section("Clicks", (), [Table("Dice by number of clicks", columns, rows, (note,))])


# What is found without being told.


def detection_section(evidence: Evidence) -> Section | None:
    """Figures that exist only where no prompt tells the truth; None where every prompt does."""
    boxes, areas, classes = [], [], []
    for protocol, method, rows in _prompt_free(evidence):
        label = parse_protocol(protocol)[1].label
        found = pairs(evidence, method, protocol)
        score = detection.rsna_mean([detection.rsna_score(*pair) for pair in found])
        curve = detection.froc(found)
        sensitivity = None if curve is None else detection.mean_sensitivity(curve)
        boxes.append((label, method, score.mean, score.images, score.left_out, sensitivity))
        told = [row for row in rows if row["score"] is not None]
        if not told:
            continue
        images = classification.images_of(told)
        area = classification.auroc(images, **evidence.draws)
        precision = classification.auprc(images, **evidence.draws)
        areas.append(
            (
                label,
                method,
                area.positives,
                area.negatives,
                area.interval,
                precision.interval,
                area.reason,
            )
        )
        for name, part in classification.by_negative_class(images, **evidence.draws).items():
            if area.interval is not None:
                row = (label, method, name or "unnamed", part.positives, part.negatives)
                classes.append((*row, part.interval))
    if not boxes:
        return None
    return Section(
        "Detection without a prompt", _metadata(evidence), _tables(boxes, areas, classes)
    )


def _prompt_free(evidence: Evidence) -> Iterator[tuple[str, str, list[Row]]]:
    """Protocols that tell no truth, the methods that answered, and their rows per image."""
    swapped = evidence.labels("swap")
    for protocol in evidence.protocols():
        if not parse_protocol(protocol)[1].truth_in_prompt:
            rows = pick(evidence.scores.images, protocol=protocol, choice=MODEL)
            for method in order(evidence, rows):
                if method not in swapped:
                    yield protocol, method, pick(rows, method=method)


def pairs(evidence: Evidence, method: str, protocol: str) -> list[tuple[Scored, np.ndarray]]:
    """The boxes that a method found in each image, and the true ones."""
    return [
        (
            Scored(np.array(one["boxes"]).reshape(-1, 4), np.array(one["confidences"])),
            np.array(one["truth"]).reshape(-1, 4),
        )
        for one in pick(evidence.scores.detections, method=method, protocol=protocol)
    ]


def froc_curves(evidence: Evidence) -> dict[str, Froc]:
    """The free-response curve of each method and protocol that tells no truth."""
    found = {
        f"{method} ({protocol})": detection.froc(pairs(evidence, method, protocol))
        for protocol, method, _ in _prompt_free(evidence)
    }
    return {name: curve for name, curve in found.items() if curve is not None}


def _metadata(evidence: Evidence) -> list[str]:
    """What a guess from view, sex and age reaches, which an AUROC has to beat."""
    seen = {(row["dataset"], row["id"]): row for row in evidence.scores.images}
    area = classification.metadata_auroc(list(seen.values()), **evidence.draws)
    if area.interval is None:
        return [f"No AUROC of a guess from view, sex and age alone: {area.reason}."]
    told = tables.text(area.interval, Column("AUROC"))
    counts = f"{area.positives} with a finding, {area.negatives} without"
    return [f"A guess from view, sex and age alone reaches an AUROC of {told} ({counts})."]


def _tables(
    boxes: Sequence[tuple[Cell, ...]],
    areas: Sequence[tuple[Cell, ...]],
    classes: Sequence[tuple[Cell, ...]],
) -> list[Table]:
    method = (Column("prompt"), Column("method"))
    counts = (Column("images with"), Column("without"))
    made = [
        Table(
            "Boxes",
            (
                *method,
                Column("RSNA score", higher_is_better=True),
                Column("images"),
                Column("left out"),
                Column("FROC, mean sensitivity", higher_is_better=True),
            ),
            boxes,
            (
                "RSNA score: TP / (TP + FP + FN) at IoU above .40 to .75, mean of eight; images "
                "with nothing true and nothing found are left out. FROC: IoU above .4, at 1/8 to 8 "
                "false positives per image.",
            ),
        )
    ]
    if areas:
        columns = (*method, *counts, Column("AUROC"), Column("AUPRC"), Column("why not"))
        made.append(Table("Images with a finding against those without", columns, areas))
    if classes:
        columns = (*method, Column("negatives"), *counts, Column("AUROC"))
        made.append(Table("Against each class of negatives", columns, classes))
    return made
