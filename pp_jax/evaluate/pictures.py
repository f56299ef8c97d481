"""The plots of a report, each below the section that it belongs to."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pp_jax.evaluate import analysis, breakdown, calibration, plots, selective, strata
from pp_jax.evaluate.analysis import Evidence, pick
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.sections import Picture, Section
from pp_jax.evaluate.subjects import MODEL, Row

FOLDER = "plots"
_MOST = 20  # Rows of a picture that can still be read.


def illustrate(folder: Path, evidence: Evidence, sections: Sequence[Section]) -> list[Section]:
    """The sections with their plots, which stand in the folder."""
    (folder / FOLDER).mkdir(exist_ok=True)
    made: dict[str, list[Picture]] = defaultdict(list)
    for heading, draw in _PLOTS:
        made[heading] += draw(folder / FOLDER, evidence)
    return [
        section._replace(pictures=(*section.pictures, *made.get(section.heading, ())))
        for section in sections
    ]


def _methods(folder: Path, evidence: Evidence) -> list[Picture]:
    metric, protocol = evidence.primary
    rows = pick(evidence.scores.images, protocol=protocol, choice=MODEL)
    groups = {
        n: patient_means(pick(rows, method=n), metric) for n in analysis.order(evidence, rows)
    }
    if not any(len(values) for values in groups.values()):
        return []
    path = folder / "methods.png"
    plots.violin(path, groups, label=METRICS[metric].label)
    title = f"{METRICS[metric].label} of each patient, {protocol}"
    return [Picture(path, title, "Dot: a patient. Bar: quartiles; white: median.")]


def patient_means(rows: Sequence[Row], metric: str) -> np.ndarray:
    """One value per patient: the mean over images and seeds."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row[metric] is not None:
            values[row["dataset"], row["patient"]].append(row[metric])
    return np.array([np.mean(own) for own in values.values()])


def _differences(folder: Path, evidence: Evidence) -> list[Picture]:
    found = {f"against {one.b}": one.difference for one in analysis.primary_family(evidence)}
    if not found:
        return []
    path = folder / "differences.png"
    label = METRICS[evidence.primary[0]].label
    plots.forest(path, found, label=f"{label} of {evidence.first} minus the other's")
    return [Picture(path, "Paired differences", "Means with their intervals over patients.")]


def _matrix(folder: Path, evidence: Evidence) -> list[Picture]:
    found = analysis.training_matrix(evidence)
    if found is None or not np.isfinite(found[1]).any():
        return []
    path = folder / "training_against_test.png"
    plots.matrix(path, found[1], rows=found[2], columns=found[3], label="Dice")
    return [Picture(path, "Training against test prompt", "Dice, mean over patients.")]


def _clicks(folder: Path, evidence: Evidence) -> list[Picture]:
    curves = breakdown.click_curves(evidence)
    lines = {name: (np.array(one.clicks), np.array(one.dice)) for name, one in curves.items()}
    if not lines:
        return []
    path = folder / "clicks.png"
    plots.curves(path, lines, xlabel="clicks", ylabel="Dice")
    return [Picture(path, "Clicks and Dice", "Each further click is where the mask was wrong.")]


def _ambiguity(folder: Path, evidence: Evidence) -> list[Picture]:
    rows = breakdown.own_rows(evidence, objects=True).get(evidence.first, [])
    known = [row for row in rows if row["contrast"] is not None]
    if not known:
        return []
    path = folder / "ambiguity.png"
    x, y = (np.array([row[name] for row in known], float) for name in ("contrast", "dice"))
    label = "contrast-to-noise ratio of the boundary"
    plots.scatter(path, x, y, xlabel=label, ylabel="Dice", diagonal=False)
    return [Picture(path, f"Ambiguity: {evidence.first}", "A dot per object.")]


def _strata(folder: Path, evidence: Evidence) -> list[Picture]:
    metric = evidence.primary[0]
    rows = breakdown.own_rows(evidence).get(evidence.first, [])
    found = {}
    for by in strata.check_by(evidence.plan["settings"]["by"]):
        own = strata.strata(rows, by, metric, **evidence.draws)
        if len(own) > 1:
            found |= {
                f"{by}: {one.name} ({one.images})": one.interval
                for one in own
                if one.interval is not None
            }
    if not found:
        return []
    path = folder / "strata.png"
    whole = analysis.interval(evidence, rows, metric)
    plots.forest(
        path,
        dict(list(found.items())[:_MOST]),
        label=f"{METRICS[metric].label} of {evidence.first}",
        reference=None if whole is None else whole.mean,
    )
    return [Picture(path, "Strata", "In brackets: images. Line: the mean over all.")]


def _froc(folder: Path, evidence: Evidence) -> list[Picture]:
    found = breakdown.froc_curves(evidence)
    if not found:
        return []
    path = folder / "froc.png"
    lines = {name: (one.false_positives, one.sensitivity) for name, one in found.items()}
    labels = {"xlabel": "false positives per image", "ylabel": "sensitivity"}
    plots.curves(path, lines, **labels, steps=True)
    return [Picture(path, "Free-response curves", "Boxes with an IoU above .4 are found.")]


def _confidence(folder: Path, evidence: Evidence) -> list[Picture]:
    rows = breakdown.own_rows(evidence, objects=True).get(evidence.first, [])
    made = []
    known = [row for row in rows if row["predicted_iou"] is not None]
    if known:
        path = folder / "predicted_iou.png"
        told = np.array([row["predicted_iou"] for row in known], float)
        true = np.array([row["dice"] for row in known], float)
        plots.scatter(path, told, true, xlabel="predicted IoU", ylabel="Dice")
        made.append(Picture(path, f"Dice against predicted IoU: {evidence.first}"))
        head = breakdown.iou_head(rows)
        path = folder / "iou_head.png"
        labels = {"xlabel": "predicted IoU", "ylabel": "true IoU"}
        plots.reliability(path, head.bins, **labels)
        made.append(Picture(path, f"Reliability of the predicted IoU: {evidence.first}"))
    seen = breakdown.pixel_reliability(evidence).get((evidence.first, evidence.primary[1]))
    if seen is not None and np.sum(seen.counts):
        path = folder / "pixels.png"
        bins = calibration.pixel_bins(seen)
        plots.reliability(path, bins, xlabel="probability", ylabel="share of target pixels")
        made.append(Picture(path, f"Reliability of pixels near the outline: {evidence.first}"))
    ranked = selective.selective(rows)
    if ranked:
        path = folder / "risk_coverage.png"
        lines = {name: (one.curve.coverage, one.curve.risk) for name, one in ranked.items()}
        plots.curves(path, lines, xlabel="share of objects kept", ylabel="mean 1 - Dice")
        made.append(Picture(path, f"Risk and coverage: {evidence.first}"))
    return made


_PLOTS: tuple[tuple[str, Callable[[Path, Evidence], list[Picture]]], ...] = (
    ("Answer", _methods),
    ("Answer", _differences),
    ("Training against test prompt", _matrix),
    ("Clicks", _clicks),
    ("Ambiguity", _ambiguity),
    ("Strata", _strata),
    ("Detection without a prompt", _froc),
    ("Confidence and calibration", _confidence),
)
