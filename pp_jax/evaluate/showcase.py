"""Overlays of the images that the first model did worst, middling and best on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from pp_jax.evaluate import overlays
from pp_jax.evaluate.analysis import Evidence, pick
from pp_jax.evaluate.methods import METHODS, Method, Source
from pp_jax.evaluate.protocols import Drawn, from_plain
from pp_jax.evaluate.sections import Picture, Section
from pp_jax.evaluate.statistics import worst_median_best
from pp_jax.evaluate.subjects import MODEL, Subject

FOLDER = "overlays"
_BESIDE = METHODS["mean_shape"].label  # Drawn beside the model.


def draw(
    folder: Path,
    evidence: Evidence,
    methods: Sequence[Method],
    images: Sequence[Source],
    *,
    count: int,
) -> Section:
    """The section of overlays at the primary endpoint, the worst first, with the files written.

    Masks of all images would fill the memory: those that are drawn are predicted again.
    """
    metric, protocol = evidence.primary
    rows = pick(evidence.scores.images, method=evidence.first, protocol=protocol, choice=MODEL)
    rows = [row for row in rows if row[metric] is not None]
    if not rows:
        return Section("Pictures", ["No image to show at the primary endpoint."])
    own = [row for row in rows if row["seed"] == rows[0]["seed"]]
    parts = worst_median_best(np.array([row["dice"] for row in own]), each=max(1, count // 3))
    chosen = {label: [own[i] for i in indices] for label, indices in parts.items()}
    wanted = {(row["dataset"], row["id"]) for part in chosen.values() for row in part}
    sources = {key: s for s in images if (key := (s.dataset, s.id)) in wanted}
    cases = _cases(evidence, methods, sources, seed=own[0]["seed"])
    (folder / FOLDER).mkdir(exist_ok=True)
    made = []
    for label, part in chosen.items():
        for rank, row in enumerate(part):
            case = cases[row["dataset"], row["id"]]
            name = "".join(c if c.isalnum() or c in "-_." else "_" for c in row["id"])
            path = folder / FOLDER / f"{label}_{rank}_{name}.png"
            overlays.overlay(path, case)
            made.append(Picture(path, f"{label}: {row['id']}", _caption(row)))
    shown = {label: [cases[r["dataset"], r["id"]] for r in part] for label, part in chosen.items()}
    title = f"{evidence.plan['title']}, prompt: {protocol}"
    overlays.overlay_sheet(folder / "overlays.png", shown, title=title)
    return Section("Pictures", ["The worst first; Dice of the union of all objects."], (), made)


def _caption(row: Mapping) -> str:
    facts = [f"{name} {row[name]}" for name in ("label", "view", "sex", "age") if row[name]]
    return ", ".join([f"patient {row['patient']}", *facts])


def _cases(
    evidence: Evidence,
    methods: Sequence[Method],
    sources: Mapping[tuple[str, str], Source],
    *,
    seed: str,
) -> dict[tuple[str, str], overlays.Case]:
    """What is drawn of each image: the first model's answer and the mean shape's."""
    subjects = {key: source.read() for key, source in sources.items()}
    masks: dict[tuple[str, str], dict[str, Bool[np.ndarray, "H W"]]] = {key: {} for key in sources}
    for method in methods:
        shown = (method.label == evidence.first and method.seed == seed) or method.label == _BESIDE
        own = {k: s for k, s in sources.items() if shown and method.serves(s.patient)}
        run = method.open(list(own.values())) if own else None
        for key in own:
            found = _union(run, subjects[key], evidence)
            if found is not None:
                masks[key][method.label] = found
    return {key: _case(subjects[key], masks[key], evidence) for key in sources}


def _asked(evidence: Evidence, subject: Subject) -> tuple[str, Drawn]:
    """The protocol that was drawn for the primary one, and its marks."""
    protocol = evidence.primary[1]
    held = evidence.scores.prompts
    spec = protocol
    if protocol not in held:  # Some of several clicks.
        spec = next(spec for spec in held if spec.startswith("clicks:"))
    return spec, from_plain(held[spec][subject.id])


def _union(run, subject: Subject, evidence: Evidence) -> Bool[np.ndarray, "H W"] | None:
    spec, drawn = _asked(evidence, subject)
    for outcome in run(subject, {spec: drawn}):
        if outcome.protocol == evidence.primary[1] and outcome.choice == MODEL:
            return outcome.masks.any(0)
    return None


def _case(
    subject: Subject, masks: Mapping[str, Bool[np.ndarray, "H W"]], evidence: Evidence
) -> overlays.Case:
    protocol = evidence.primary[1]
    marks = _asked(evidence, subject)[1].marks
    clicks = evidence.scores.clicks.get(evidence.first, {}).get(subject.id)
    if protocol.startswith("clicks:") and clicks:
        marks = from_plain(clicks).marks
        count = int(protocol.partition(":")[2])
        marks = marks._replace(points=marks.points[:, :count], labels=marks.labels[:, :count])
    boxes = np.zeros((0, 4)) if marks.boxes is None else marks.boxes
    points, labels = np.zeros((0, 2)), np.zeros(0, int)
    if marks.points is not None:
        points, labels = marks.points.reshape(-1, 2), marks.labels.reshape(-1)
    return overlays.Case(
        subject.id, subject.image, subject.findings, dict(masks), boxes, points, labels
    )
