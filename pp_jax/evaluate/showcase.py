"""Overlays of the images that the first model did worst, middling and best on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from pp_jax.evaluate import overlays, tables
from pp_jax.evaluate.analysis import column
from pp_jax.evaluate.evidence import Evidence, name_of, pick
from pp_jax.evaluate.methods import METHODS, Method, Run, Source
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.protocols import Drawn, from_plain
from pp_jax.evaluate.sections import Picture, Section
from pp_jax.evaluate.statistics import worst_median_best
from pp_jax.evaluate.subjects import MODEL, Row, Subject

FOLDER = "overlays"
_BESIDE = METHODS["mean_shape"].label  # Drawn beside the model.

Key = tuple[str, str]  # Data set and image.
Mask = Bool[np.ndarray, "H W"]


class Shown(NamedTuple):
    """The pictures at the primary endpoint."""

    sheet: Section  # All together.
    single: Section  # Each by itself, large.


def draw(
    folder: Path,
    evidence: Evidence,
    methods: Sequence[Method],
    images: Sequence[Source],
    *,
    count: int,
) -> Shown | None:
    """Sections of overlays, the worst first, with the files written; None without an answer.

    Masks of all images would fill the memory: those that are drawn are predicted again.

    Args:
      folder: Of the report.
      evidence: Ranks the images.
      methods: To predict with.
      images: All that were scored.
      count: How many to draw, about.
    """
    chosen = choose(evidence, count=count)
    if not chosen:
        return None
    protocol = evidence.primary[1]
    rows = [row for part in chosen.values() for row in part]
    cases = _cases(evidence, methods, images, rows)
    (folder / FOLDER).mkdir(exist_ok=True)
    made = []
    for label, part in chosen.items():
        for rank, row in enumerate(part):
            name = "".join(c if c.isalnum() or c in "-_." else "_" for c in row["id"])
            path = folder / FOLDER / f"{label}_{rank}_{name}.png"
            overlays.overlay(path, cases[row["dataset"], row["id"]])
            made.append(Picture(path, f"{label}: {row['id']}", _caption(row, evidence)))
    shown = {label: [cases[r["dataset"], r["id"]] for r in part] for label, part in chosen.items()}
    sheet = folder / "overlays.png"
    overlays.overlay_sheet(sheet, shown, title=f"{evidence.plan['title']}, prompt: {protocol}")
    ranked = f"Ranked by {METRICS[evidence.primary[0]].label} of the union of an image's objects"
    told = f"{ranked}; prompt: {name_of(protocol)}."
    return Shown(
        Section("Pictures", [told], (), [Picture(sheet, "Outlines and prompts")]),
        Section("Pictures one by one", [told], (), made),
    )


def choose(evidence: Evidence, *, count: int) -> dict[str, list[Row]]:
    """The first model's rows to show, by part, each from worse to better; of its first seed."""
    metric, protocol = evidence.primary
    rows = pick(evidence.scores.images, method=evidence.first, protocol=protocol, choice=MODEL)
    rows = [row for row in rows if row[metric] is not None]
    own = [row for row in rows if row["seed"] == rows[0]["seed"]]
    if not own:
        return {}
    sign = 1 if METRICS[metric].higher_is_better else -1
    order = np.array([sign * row[metric] for row in own], float)
    parts = worst_median_best(order, each=max(1, count // 3))
    return {label: [own[i] for i in indices] for label, indices in parts.items()}


def _caption(row: Row, evidence: Evidence) -> str:
    metric = evidence.primary[0]
    told = f"{METRICS[metric].label} {tables.text(float(row[metric]), column(metric))}"
    facts = [f"{name} {row[name]}" for name in ("label", "view", "sex") if row[name]]
    age = [] if row["age"] is None else [f"age {row['age']:g}"]
    return ", ".join([told, f"patient {row['patient']}", *facts, *age])


def _cases(
    evidence: Evidence, methods: Sequence[Method], images: Sequence[Source], rows: Sequence[Row]
) -> dict[Key, overlays.Case]:
    """What is drawn of the rows' images: the first model's answer and the mean shape's."""
    wanted = {(row["dataset"], row["id"]) for row in rows}
    subjects = {key: s.read() for s in images if (key := (s.dataset, s.id)) in wanted}
    masks: dict[Key, dict[str, Mask]] = {key: {} for key in subjects}
    for method in methods:
        first = method.label == evidence.first and method.seed == rows[0]["seed"]
        served = [source for source in images if method.serves(source.patient)]
        own = [key for s in served if (key := (s.dataset, s.id)) in wanted]
        if not own or not (first or method.label == _BESIDE):
            continue
        run = method.open(served)
        for key in own:
            found = _union(run, subjects[key], evidence)
            if found is not None:
                masks[key][method.label] = found
    return {key: _case(subject, masks[key], evidence) for key, subject in subjects.items()}


def _asked(evidence: Evidence, subject: Subject) -> tuple[str, Drawn]:
    """The protocol that was drawn for the primary one, and its marks."""
    spec, held = evidence.primary[1], evidence.scores.prompts
    if spec not in held:  # Fewer clicks than were drawn.
        spec = next(spec for spec in held if spec.startswith("clicks:"))
    return spec, from_plain(held[spec][subject.id])


def _union(run: Run, subject: Subject, evidence: Evidence) -> Mask | None:
    spec, drawn = _asked(evidence, subject)
    for outcome in run(subject, {spec: drawn}):
        if outcome.protocol == evidence.primary[1] and outcome.choice == MODEL:
            return outcome.masks.any(0)
    return None


def _case(subject: Subject, masks: Mapping[str, Mask], evidence: Evidence) -> overlays.Case:
    name, _, clicks = evidence.primary[1].partition(":")
    marks = _asked(evidence, subject)[1].marks
    corrected = evidence.scores.clicks.get(evidence.first, {}).get(subject.id)
    if name == "clicks" and corrected:
        marks = from_plain(corrected).marks
        count = int(clicks)
        marks = marks._replace(points=marks.points[:, :count], labels=marks.labels[:, :count])
    boxes = np.zeros((0, 4)) if marks.boxes is None else marks.boxes
    points, labels = np.zeros((0, 2)), np.zeros(0, int)
    if marks.points is not None:
        points, labels = marks.points.reshape(-1, 2), marks.labels.reshape(-1)
    return overlays.Case(
        subject.id, subject.image, subject.findings, dict(masks), boxes, points, labels
    )
