"""What a report says further down: who is served worst, how sure a method is, what it finds."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from pp_jax.evaluate import (
    calibration,
    classification,
    detection,
    errors,
    selective,
    statistics,
    strata,
    tables,
)
from pp_jax.evaluate.analysis import column
from pp_jax.evaluate.detection import Froc, Scored
from pp_jax.evaluate.evidence import (
    NUMBERS,
    Evidence,
    by_method,
    count,
    interval,
    mean,
    name_of,
    numbers,
    pick,
)
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.protocols import Curve, click_curve, parse_protocol
from pp_jax.evaluate.sections import Cell, Column, Section, Table
from pp_jax.evaluate.subjects import Row

# Headings that plots stand under.
STRATA, AMBIGUITY, CLICKS = "Strata", "Contrast of the boundary", "Clicks"
CONFIDENCE, DETECTION = "Confidence and calibration", "Detection without a prompt"

_WORST = 10  # Rows of a table of the worst answers.
_FEW = "*"  # Behind a stratum of too few patients.


def own_rows(evidence: Evidence, *, objects: bool = False) -> dict[str, list[Row]]:
    """The rows of each method at the primary protocol, but for exchanged images."""
    protocol = evidence.primary[1]
    rows = evidence.objects(protocol) if objects else evidence.rows(protocol)
    return by_method(rows, without=evidence.labels("swap"))


# Who is served worst.


def strata_section(evidence: Evidence) -> Section | None:
    """Models with intervals and guesses with means in every stratum; the first model's worst."""
    metric = evidence.primary[0]
    methods = own_rows(evidence)
    rows, worst = [], []
    for by in strata.check_by(evidence.plan["settings"]["by"]):
        found = strata.strata(methods.get(evidence.first, []), by, metric, **evidence.draws)
        if len(found) < 2:
            continue
        named = {name: strata.BY[by](part) for name, part in methods.items()}
        for one in found:
            inside = {
                name: [row for row in part if named[name](row) == one.name]
                for name, part in methods.items()
            }
            cells = (_in_stratum(evidence, name, part) for name, part in inside.items())
            name = f"{one.name} {_FEW}" if one.descriptive else one.name
            rows.append((by, name, numbers(inside[evidence.first]), *cells))
        low = strata.worst(found, higher_is_better=METRICS[metric].higher_is_better)
        if low is not None:
            few = "; descriptive only" if low.descriptive else ""
            told = f"{tables.text(low.interval, column(metric))} ({low.patients} patients{few})"
            worst.append(f"Worst {by} of {evidence.first}: {low.name}, {told}.")
    if not rows:
        return None
    columns = map(Column, ("by", "stratum", NUMBERS, *methods))
    title = f"{METRICS[metric].label} by stratum, prompt: {name_of(evidence.primary[1])}"
    notes = (
        f"{_FEW} Under 20 patients: descriptive only. Models have intervals, other methods means.",
    )
    return Section(STRATA, worst, [Table(title, (*columns,), rows, notes)])


def _in_stratum(evidence: Evidence, method: str, rows: Sequence[Row]) -> Cell:
    metric = evidence.primary[0]
    if method in evidence.labels("model"):
        return interval(evidence, rows, metric)
    told = mean(rows, metric)
    return None if told is None else told.mean


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
    rows = []
    for name, one in known.items():
        thirds = [cell for part in one[1:3] for cell in (part.interval, _n(part))]
        rows.append((name, *thirds, one.objects, one.spearman))
    names = ("method", "lowest third", "of", "highest third", "of", "objects")
    notes = (
        f"Contrast-to-noise ratio at the boundary; lowest third: up to {first.lowest.contrast:.2f},"
        f" highest: from {first.highest.contrast:.2f}; {first.left_out} objects without a ratio "
        "are left out. Of: objects / images / patients. Spearman's rank correlation of contrast "
        "and Dice takes objects for independent, which they are not.",
        "The ratio: |mean inside - mean outside| / standard deviation outside, in bands of 2 % of "
        "the longest side. The outer band crosses ribs, heart and chest wall, so a low ratio is "
        "partly anatomy.",
    )
    columns = (*map(Column, names), Column("Spearman", digits=2))
    title = f"Dice by contrast of the boundary, prompt: {name_of(evidence.primary[1])}"
    return Section(AMBIGUITY, (), [Table(title, columns, rows, notes)])


def _n(third: strata.Third) -> str:
    return f"{third.objects} / {third.interval.images} / {third.interval.patients}"


def errors_section(evidence: Evidence) -> Section | None:
    """Kinds of error by method, and of the first model by stratum, and its worst answers."""
    objects = own_rows(evidence, objects=True)
    if not objects:
        return None
    kinds = [Column(one.label) for one in errors.ERRORS.values()]
    explained = "; ".join(f"{one.label}: {one.explanation}" for one in errors.ERRORS.values())
    rows = [
        (name, numbers(part), *_kinds(one))
        for name, part in objects.items()
        for one in errors.error_table(part, lambda row: "all")
    ]
    columns = (*map(Column, ("method", NUMBERS, "good")), *kinds)
    made = [Table("Kinds of error", columns, rows, (f"Each answer has one. {explained}.",))]
    own = objects.get(evidence.first, [])
    rows = []
    for by in strata.check_by(evidence.plan["settings"]["by"]):
        name = strata.BY[by](own)
        counts = errors.error_table(own, name)
        counts.sort(key=lambda count: strata.place(count.stratum))
        for one in counts if len(counts) > 1 else ():
            inside = [row for row in own if name(row) == one.stratum]
            rows.append((by, one.stratum, numbers(inside), *_kinds(one)))
    if rows:
        columns = (*map(Column, ("by", "stratum", NUMBERS, "good")), *kinds)
        made.append(Table(f"Kinds of error of {evidence.first} by stratum", columns, rows))
    return Section("Errors", (), [*made, _worst_table(evidence, own)] if own else made)


def _kinds(one: errors.Count) -> tuple[int, ...]:
    return (one.n - sum(one.kinds.values()), *one.kinds.values())


def _worst_table(evidence: Evidence, rows: Sequence[Row]) -> Table:
    keys = ("dataset", "id", "seed", "object")
    far = {tuple(row[key] for key in keys) for row in errors.outliers(rows)}
    several = tuple(n for n in ("dataset", "seed") if len({row[n] for row in rows}) > 1)
    columns = (
        *map(Column, ("image", "object", "patient", *several, "Dice", "error")),
        Column("area", "% of the image", 2),
        Column("contrast", digits=2),
        Column("predicted IoU"),
        Column("outlier"),
    )
    told = [
        (
            *(row[name] for name in ("id", "object", "patient", *several, "dice")),
            errors.ERRORS[row["error"]].label if row["error"] else "",
            *(row[name] for name in ("area", "contrast", "predicted_iou")),
            "yes" if tuple(row[key] for key in keys) in far else "",
        )
        for row in errors.worst_first(rows, count=_WORST)
    ]
    note = "Outlier: below the lower quartile by more than 1.5 interquartile ranges."
    return Table(f"Worst objects of {evidence.first}", columns, told, (note,))


# How sure a method is.


def confidence_section(evidence: Evidence) -> Section | None:
    """Whether confidence goes with quality: correlations, risk and coverage, the IoU head."""
    ranked, heads, pixels = [], [], []
    seen = pixel_reliability(evidence)
    for name, rows in own_rows(evidence, objects=True).items():
        for score, one in selective.selective(rows).items():
            known = numbers([row for row in rows if row[score] is not None])
            areas = (one.aurc, one.oracle, one.random)
            ranked.append((name, SCORES[score], known, one.spearman, *areas))
        if (head := iou_head(rows)) is not None:
            known = numbers([row for row in rows if row["predicted_iou"] is not None])
            heads.append((name, known, head.mae, head.bias, head.spearman))
        if name in seen:
            one, total = seen[name], int(np.sum(seen[name].counts))
            figures = (calibration.brier(one), calibration.ece(one))
            pixels.append((name, numbers(rows), total, *figures))
    made = []
    if ranked:
        names = ("method", "confidence", NUMBERS, "Spearman", "area", "oracle's", "random")
        note = (
            "Spearman: of confidence with Dice. Area under risk and coverage: the mean of 1 - Dice "
            "over the objects that are kept, the surest first; lower is better."
        )
        agreement = (
            "Jitter, views and filters: agreement of the masks under moved marks, other views, "
            "other filters. Entropy: of the masks under moved marks; lower is surer."
        )
        made.append(Table("Confidence and Dice", (*map(Column, names),), ranked, (note, agreement)))
    if heads:
        names = ("method", NUMBERS, "absolute error", "bias", "Spearman")
        note = "Bias above 0: the model thinks too well of its masks."
        made.append(Table("Predicted against true IoU", (*map(Column, names),), heads, (note,)))
    if pixels:
        names = ("method", NUMBERS, "pixels", "Brier score", "calibration error")
        note = "Pixels within 5 % of the longest side of the target's outline; 15 bins."
        made.append(Table("Probabilities of pixels", (*map(Column, names),), pixels, (note,)))
    return Section(CONFIDENCE, (), made) if made else None


def iou_head(rows: Sequence[Row]) -> calibration.IouHead | None:
    """The predicted IoU of objects against the true one; None without any."""
    known = [row for row in rows if row["predicted_iou"] is not None]
    told = np.array([row["predicted_iou"] for row in known], float)
    return calibration.iou_head(told, np.array([row["iou"] for row in known], float))


def pixel_reliability(evidence: Evidence) -> dict[str, calibration.Reliability]:
    """By method, at the primary protocol, over all seeds."""
    found: dict[str, calibration.Reliability] = {}
    for (method, _, protocol), seen in evidence.scores.reliability.items():
        if protocol == evidence.primary[1] and np.sum(seen.counts):
            held = found.get(method)
            found[method] = seen if held is None else calibration.add(held, seen)
    return found


# Clicks.


def click_curves(evidence: Evidence) -> dict[str, Curve]:
    """How each model gains from click to click; nothing without the protocol."""
    parts = _clicked(evidence)
    return {name: click_curve(rows) for name, rows in parts.items()}


def _clicked(evidence: Evidence) -> dict[str, list[Row]]:
    rows = [row for row in evidence.scores.objects if row["protocol"].startswith("clicks:")]
    return by_method(rows, without=evidence.labels("swap"))


def clicks_section(evidence: Evidence) -> Section | None:
    """How each model gains from click to click; None without the protocol."""
    curves, parts = click_curves(evidence), _clicked(evidence)
    if not curves:
        return None
    counts = map(str, next(iter(curves.values())).clicks)
    columns = (
        *map(Column, ("method", NUMBERS, *counts, "mean")),
        Column("clicks to 0.80", digits=1),
        Column("never"),
    )
    rows = [
        (name, numbers(parts[name]), *one.dice, one.area, one.clicks_to_target, one.never)
        for name, one in curves.items()
    ]
    note = (
        "Each click but the first is where the mask was wrong; the last mask is fed back. Clicks "
        "to 0.80: the median over the objects that reach it; never: the share of those that do not."
    )
    return Section(CLICKS, (), [Table("Dice by number of clicks", columns, rows, (note,))])


# What is found without being told.


def detection_section(evidence: Evidence) -> Section | None:
    """Figures that exist only where no prompt tells the truth; None where every prompt does."""
    boxes, areas, classes = [], [], []
    for protocol, method, rows in _prompt_free(evidence):
        where = (name_of(protocol), method)
        boxes.append((*where, *_box_figures(evidence, method, protocol)))
        told = [row for row in rows if row["score"] is not None]
        if not told:
            continue
        images, patients = classification.images_of(told), count(told).patients
        area = classification.auroc(images, **evidence.draws)
        precision = classification.auprc(images, **evidence.draws)
        areas.append((*where, *_area(area, patients), precision.interval, area.reason))
        if area.interval is not None:
            parts = classification.by_negative_class(images, **evidence.draws)
            for name, part in parts.items():
                counted = part.interval.patients if part.interval else None
                classes.append((*where, name or "unnamed", *_area(part, counted)))
    if not boxes:
        return None
    made = [_box_table(boxes)]
    if areas:
        guess, patients = _by_metadata(evidence)
        names = ("prompt", "method", "with", "without", "patients", "AUROC", "AUPRC", "why not")
        known = ("none", "view, sex and age alone", *_area(guess, patients), None, guess.reason)
        note = (
            "With, without: images with a finding and without one. The last row guesses from what "
            "is known beside the pixels, which an AUROC has to beat."
        )
        made.append(
            Table("Which images have a finding", (*map(Column, names),), [*areas, known], (note,))
        )
    if classes:
        names = ("prompt", "method", "negatives", "with", "without", "patients", "AUROC")
        made.append(Table("Against each class of negatives", (*map(Column, names),), classes))
    return Section(DETECTION, (), made)


def _prompt_free(evidence: Evidence) -> Iterator[tuple[str, str, list[Row]]]:
    """Protocols that tell no truth, the methods that answered, and their rows per image."""
    for protocol in evidence.protocols():
        if not parse_protocol(protocol)[1].truth_in_prompt:
            rows = by_method(evidence.rows(protocol), without=evidence.labels("swap"))
            for method, own in rows.items():
                yield protocol, method, own


def _box_figures(evidence: Evidence, method: str, protocol: str) -> tuple[Cell, ...]:
    """RSNA's score over images and over patients, the images it counts and leaves out, FROC."""
    held = pick(evidence.scores.detections, method=method, protocol=protocol)
    found = [to_pair(one) for one in held]
    scores = [detection.rsna_score(*pair) for pair in found]
    rows = [one | {"rsna": score} for one, score in zip(held, scores, strict=True)]
    over_patients = statistics.interval_of(rows, "rsna", **evidence.draws)
    scored = count([row for row in rows if row["rsna"] is not None])
    curve = detection.froc(found)
    return (
        detection.rsna_mean(scores).mean,
        over_patients,
        scored.images,
        scored.patients,
        count(rows).images - scored.images,
        None if curve is None else detection.mean_sensitivity(curve),
    )


def to_pair(found: Row) -> tuple[Scored, np.ndarray]:
    """The boxes that a method found in an image, and the true ones."""
    boxes, truth = (np.array(found[name], float).reshape(-1, 4) for name in ("boxes", "truth"))
    return Scored(boxes, np.array(found["confidences"], float)), truth


def _box_table(rows: Sequence[tuple[Cell, ...]]) -> Table:
    columns = (
        *map(Column, ("prompt", "method")),
        Column("RSNA score", higher_is_better=True),
        Column("mean over patients", higher_is_better=True),
        *map(Column, ("images", "patients", "left out")),
        Column("FROC, mean sensitivity", higher_is_better=True),
    )
    note = (
        "RSNA score: TP / (TP + FP + FN) at IoU above .40 to .75, mean of eight, mean over images; "
        "images with nothing true and nothing found are left out. FROC: IoU above .4, at 1/8 to 8 "
        "false positives per image."
    )
    return Table("Boxes", columns, rows, (note,))


def _area(area: classification.Area, patients: int | None) -> tuple[Cell, ...]:
    return area.positives, area.negatives, patients, area.interval


def froc_curves(evidence: Evidence) -> dict[str, Froc]:
    """The free-response curve of each method and protocol that tells no truth."""
    found = {}
    for protocol, method, _ in _prompt_free(evidence):
        held = pick(evidence.scores.detections, method=method, protocol=protocol)
        curve = detection.froc([to_pair(one) for one in held])
        if curve is not None:
            found[f"{method} ({protocol})"] = curve
    return found


def _by_metadata(evidence: Evidence) -> tuple[classification.Area, int]:
    """What a guess from view, sex and age reaches on all images, and their patients."""
    rows = [row for _, _, part in _prompt_free(evidence) for row in part]
    return classification.metadata_auroc(rows, **evidence.draws), count(rows).patients


SCORES: Mapping[str, str] = MappingProxyType(
    {
        "predicted_iou": "predicted IoU",
        "stability": "stability",
        "jitter": "jitter",
        "tta": "views",
        "filters": "filters",
        "entropy": "entropy",
    }
)
