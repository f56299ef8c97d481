"""The plots of a report, each below the section that it belongs to."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from pp_jax.evaluate import analysis, breakdown, calibration, plots, selective, strata
from pp_jax.evaluate.evidence import Evidence, by_method, mean, name_of, primary_family
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.sections import Picture, Section
from pp_jax.evaluate.subjects import Row

FOLDER = "plots"
_MOST = 20  # Rows of a picture that can still be read.


def illustrate(folder: Path, evidence: Evidence, sections: Sequence[Section]) -> list[Section]:
    """The sections with their plots, which stand in the folder."""
    (folder / FOLDER).mkdir(exist_ok=True)
    made = []
    for section in sections:
        drawn = [draw(folder / FOLDER, evidence) for draw in _PLOTS.get(section.heading, ())]
        made.append(section._replace(pictures=(*section.pictures, *itertools.chain(*drawn))))
    return made


def _methods(folder: Path, evidence: Evidence) -> list[Picture]:
    metric, protocol = evidence.primary
    parts = by_method(evidence.rows(protocol))
    groups = {name: patient_means(rows, metric) for name, rows in parts.items()}
    if not any(len(values) for values in groups.values()):
        return []
    path = folder / "methods.png"
    plots.violin(path, groups, label=METRICS[metric].label)
    title = f"{METRICS[metric].label} of each patient, prompt: {name_of(protocol)}"
    caption = "Dot: a patient; bar: quartiles; white: median. In brackets: patients."
    return [Picture(path, title, caption)]


def patient_means(rows: Sequence[Row], metric: str) -> Float[np.ndarray, " P"]:
    """One value per patient that has any: the mean over images and seeds."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row[metric] is not None:
            values[row["dataset"], row["patient"]].append(row[metric])
    return np.array([np.mean(own) for own in values.values()])


def _differences(folder: Path, evidence: Evidence) -> list[Picture]:
    family = primary_family(evidence)
    if not family:
        return []
    path = folder / "differences.png"
    metric = METRICS[evidence.primary[0]]
    label = f"{metric.label} of {evidence.first} minus the other's"
    plots.forest(path, {f"minus {one.b}": one.difference for one in family}, label=label)
    better = "Right" if metric.higher_is_better else "Left"
    caption = f"Means with intervals over patients. {better} of 0: {evidence.first} is better."
    return [Picture(path, "Paired differences", caption)]


def _matrix(folder: Path, evidence: Evidence) -> list[Picture]:
    found = analysis.training_matrix(evidence)
    if found is None:
        return []
    values, rows, columns = found
    path = folder / "training_against_test.png"
    plots.matrix(path, values, rows=rows, columns=columns, label="Dice")
    caption = "Dice, mean over patients; in brackets: the prompt of the training."
    return [Picture(path, "Training against test prompt", caption)]


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
            found |= {f"{by}: {one.name}": one.interval for one in own if one.interval is not None}
    if not found:
        return []
    path = folder / "strata.png"
    label = f"{METRICS[metric].label} of {evidence.first}"
    drawn = dict(itertools.islice(found.items(), _MOST))
    plots.forest(path, drawn, label=label, reference=mean(rows, metric).mean)
    caption = "Dashed: the mean over all."
    if len(found) > _MOST:
        caption += f" The first {_MOST} of {len(found)} strata."
    return [Picture(path, f"Strata: {evidence.first}", caption)]


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
    seen = breakdown.pixel_reliability(evidence).get(evidence.first)
    if seen is not None:
        path = folder / "pixels.png"
        bins = calibration.pixel_bins(seen)
        plots.reliability(path, bins, xlabel="probability", ylabel="share of target pixels")
        made.append(Picture(path, f"Reliability of pixels near the outline: {evidence.first}"))
    ranked = selective.selective(rows)
    if ranked:
        path = folder / "risk_coverage.png"
        lines = {
            breakdown.SCORES[name]: (one.curve.coverage, one.curve.risk)
            for name, one in ranked.items()
        }
        plots.curves(path, lines, xlabel="share of objects kept", ylabel="mean 1 - Dice")
        made.append(Picture(path, f"Risk and coverage: {evidence.first}"))
    return made


# By the heading of the section that they stand under.
_PLOTS: Mapping[str, Sequence[Callable[[Path, Evidence], list[Picture]]]] = MappingProxyType(
    {
        analysis.ANSWER: (_methods, _differences),
        analysis.EVERY_PROMPT: (_matrix,),
        breakdown.CLICKS: (_clicks,),
        breakdown.AMBIGUITY: (_ambiguity,),
        breakdown.STRATA: (_strata,),
        breakdown.DETECTION: (_froc,),
        breakdown.CONFIDENCE: (_confidence,),
    }
)
