"""What a report says first: the answer, a table for each protocol, and what the image gave."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pp_jax.evaluate import matching, statistics, tables
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.protocols import parse_protocol
from pp_jax.evaluate.score import Scores
from pp_jax.evaluate.sections import Cell, Column, Section, Table
from pp_jax.evaluate.statistics import Comparison, Interval
from pp_jax.evaluate.subjects import MODEL, ORACLE, Row

_RANDOM = (
    "The weights of {names} began as random numbers: these figures show that the machinery works, "
    "and tell nothing about whether SAM transfers."
)
_AVERAGE = (
    "Means: objects of an image together, then images of a patient, then patients (and seeds); "
    "intervals: bootstrap over patients."
)
EXACT = "box"  # The protocol under which guesses stand in every report.
# Of the long table, those of the first are left out.
_FIRST = ("dice", "iou", "nsd_1", "hd95")


class Evidence(NamedTuple):
    """All that the sections of a report are made of."""

    scores: Scores
    plan: Mapping[str, Any]  # See `report.make_plan`.

    @property
    def draws(self) -> dict[str, int]:
        """How intervals are drawn."""
        settings = self.plan["settings"]
        return {"samples": settings["samples"], "seed": settings["seed"]}

    @property
    def primary(self) -> tuple[str, str]:
        """Metric and protocol of the primary endpoint."""
        return self.plan["primary"]["metric"], self.plan["primary"]["protocol"]

    def labels(self, kind: str) -> list[str]:
        """The models of a kind, in their order."""
        return list(dict.fromkeys(m["label"] for m in self.plan["models"] if m["kind"] == kind))

    @property
    def first(self) -> str:
        """The model that all others are compared with."""
        return self.labels("model")[0]

    def protocols(self) -> list[str]:
        """Under which there is an answer; of rounds of clicks those after the last."""
        held = {row["protocol"] for row in self.scores.images}
        wanted = dict.fromkeys([*self.plan["protocols"], EXACT])
        return [spec for spec in wanted if spec in held]


def pick(rows: Sequence[Row], **wanted: str) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def order(evidence: Evidence, rows: Sequence[Row]) -> list[str]:
    """The methods of the rows, models first."""
    return list(dict.fromkeys(row["method"] for row in rows))


def interval(evidence: Evidence, rows: Sequence[Row], metric: str) -> Interval | None:
    """Over the rows that have a value; None without any."""
    return statistics.interval_of(rows, metric, **evidence.draws) if rows else None


# Comparisons.


def primary_family(evidence: Evidence) -> list[Comparison]:
    """The first model against every other method at the primary endpoint, adjusted together.

    The same model with another patient's image is no rival and stands apart.
    """
    metric, protocol = evidence.primary
    rows = pick(evidence.scores.images, protocol=protocol, choice=MODEL)
    own = pick(rows, method=evidence.first)
    swapped = evidence.labels("swap")
    found = [
        compare(evidence, own, pick(rows, method=other), metric)
        for other in order(evidence, rows)
        if other != evidence.first and other not in swapped
    ]
    return statistics.adjust([one for one in found if one is not None])


def compare(
    evidence: Evidence, a: Sequence[Row], b: Sequence[Row], metric: str
) -> Comparison | None:
    """One method against another on the same images; None where they share no value."""
    if not a or not b:
        return None
    return statistics.compare(
        a,
        b,
        metric=metric,
        higher_is_better=METRICS[metric].higher_is_better,
        margin=evidence.plan["settings"]["margin"],
        **evidence.draws,
    )


def contributions(evidence: Evidence, protocol: str) -> list[Comparison]:
    """What each model owes to the image, at the primary metric."""
    metric = evidence.primary[0]
    rows = pick(evidence.scores.images, protocol=protocol, choice=MODEL)
    found = []
    for model in evidence.plan["models"]:
        true, swapped = (pick(rows, method=model[key]) for key in ("of", "label"))
        if (
            model["kind"] == "swap"
            and true
            and swapped
            and model["label"] not in [c.b for c in found]
        ):
            higher = METRICS[metric].higher_is_better
            found.append(
                statistics.image_contribution(
                    true, swapped, metric=metric, higher_is_better=higher, **evidence.draws
                )
            )
    return [one for one in found if one is not None]


def _comparison_table(title: str, found: Sequence[Comparison], *, notes: Sequence[str]) -> Table:
    return Table(
        title,
        (
            Column("method"),
            Column("against"),
            Column(f"difference of {METRICS[found[0].metric].label}"),
            Column("images"),
            Column("patients"),
            Column("Wilcoxon p"),
            Column("after Holm"),
            Column("detectable"),
            Column("verdict"),
        ),
        [
            (
                one.a,
                one.b,
                one.difference,
                one.difference.images,
                one.difference.patients,
                one.wilcoxon,
                one.holm,
                one.detectable,
                one.verdict,
            )
            for one in found
        ],
        notes,
    )


# Sections.


def answer(evidence: Evidence) -> Section:
    """The primary endpoint in plain words, and whether the image was used."""
    metric, protocol = evidence.primary
    label = parse_protocol(protocol)[1].label
    rows = pick(evidence.scores.images, protocol=protocol, choice=MODEL)
    own = interval(evidence, pick(rows, method=evidence.first), metric)
    if own is None:
        told = f"No image could be scored under {label}: the primary endpoint has no value."
        return Section("Answer", [told])
    column = Column(METRICS[metric].label)
    told = [
        f"Primary endpoint, laid down before the first image was read: {column.name} under "
        f"{label}. {evidence.first}: {tables.text(own, column)} ({_counts(own)})."
    ]
    family = primary_family(evidence)
    told += [
        f"Against {one.b}: {tables.text(one.difference, column)}. {_sentence(one.verdict)}"
        for one in family
    ]
    told += [
        f"Image contribution of {one.a}: {tables.text(one.difference, column)}. "
        f"{_sentence(one.verdict)}"
        for one in contributions(evidence, protocol)
    ]
    told += [
        f"{name} has no blind twin yet, a run of the same training on blank images; make it with:"
        f"\n$ {command}"
        for name, command in evidence.plan["missing_twins"].items()
    ]
    told += warnings(evidence)
    margin = evidence.plan["settings"]["margin"]
    notes = (
        "Family of the primary endpoint: p after Holm counts. Detectable: the smallest difference "
        f"found with a power of 80 %. Equivalent: within {margin:g} (TOST, 5 %).",
    )
    found = [_comparison_table("Primary comparisons", family, notes=notes)] if family else []
    return Section("Answer", _commands(told), found)


def _commands(told: Sequence[str]) -> list[str]:
    return [line for text in told for line in text.split("\n")]


def _sentence(verdict: str) -> str:
    return f"{verdict[:1].upper()}{verdict[1:]}."


def _counts(one: Interval) -> str:
    seeds = f", {one.seeds} seeds" if one.seeds > 1 else ""
    return f"{one.images} images of {one.patients} patients{seeds}"


def warnings(evidence: Evidence) -> list[str]:
    """What a reader must know before any figure."""
    random = [
        m["label"] for m in evidence.plan["models"] if m["from_random"] and m["kind"] == "model"
    ]
    told = [_RANDOM.format(names=", ".join(dict.fromkeys(random)))] if random else []
    return told + list(tables.target_notes(row["target"] for row in evidence.scores.images))


def protocol_section(evidence: Evidence, protocol: str) -> Section:
    """All methods under one protocol: the main figures, all figures, differences to the first."""
    rows = pick(evidence.scores.images, protocol=protocol, choice=MODEL)
    objects = pick(evidence.scores.objects, protocol=protocol, choice=MODEL)
    names = order(evidence, rows)
    parts = {name: pick(rows, method=name) for name in names}
    kinds = tables.target_notes(row["target"] for row in rows)
    main = Table(
        f"Prompt: {parse_protocol(protocol)[1].label}",
        (
            Column("method"),
            Column("objects"),
            Column("images"),
            Column("patients"),
            Column("seeds"),
            *(
                Column(METRICS[m].label, METRICS[m].unit, 3, METRICS[m].higher_is_better)
                for m in _FIRST
            ),
            Column("predicted IoU"),
            Column("empty: both + one"),
        ),
        [_main_row(evidence, name, own, pick(objects, method=name)) for name, own in parts.items()],
        (
            _AVERAGE,
            "empty: images where both masks are empty (1 by definition) + where one is (0, and "
            "HD95 the diagonal).",
            *kinds,
        ),
    )
    found = [main, _long_table(evidence, parts), _matched_table(parts)]
    metric = evidence.primary[0]
    others = [
        compare(evidence, parts.get(evidence.first, []), own, metric)
        for name, own in parts.items()
        if name != evidence.first
    ]
    if differences := [one for one in others if one is not None]:
        note = "Secondary unless this is the primary protocol; p not adjusted here."
        found.append(_comparison_table("Paired differences", differences, notes=(note,)))
    heading = f"Prompt: {parse_protocol(protocol)[1].label} ({protocol})"
    return Section(heading, (), found)


def _main_row(
    evidence: Evidence, name: str, rows: Sequence[Row], objects: Sequence[Row]
) -> tuple[Cell, ...]:
    figures = [interval(evidence, rows, metric) for metric in _FIRST]
    sure = interval(evidence, rows, "predicted_iou")
    seeds = {row["seed"] for row in rows}
    counts = {(row["dataset"], row["id"], row["object"]) for row in objects}
    empty = [row["empty"] for row in rows]
    return (
        name,
        len(counts),
        figures[0].images,
        figures[0].patients,
        len(seeds),
        *figures,
        None if sure is None else sure.mean,
        f"{empty.count('both')} + {empty.count('one')}",
    )


def _long_table(evidence: Evidence, parts: Mapping[str, Sequence[Row]]) -> Table:
    names = [name for name in (*METRICS, "hd95_mm") if name not in _FIRST]
    columns = [
        Column("HD95", "mm", 1, False)
        if name == "hd95_mm"
        else Column(METRICS[name].label, METRICS[name].unit, 3, METRICS[name].higher_is_better)
        for name in names
    ]
    values = {
        method: [interval(evidence, rows, name) for name in names] for method, rows in parts.items()
    }
    known = [i for i in range(len(names)) if any(own[i] is not None for own in values.values())]
    thin = max((own[names.index("thin_recall")] for own in values.values()), key=_images)
    notes = [f"Thin parts: of the {_images(thin)} images whose target has any."]
    if "hd95_mm" in [names[i] for i in known]:
        notes.append("mm: only where rows x spacing is plausible for a chest film (250 to 600 mm).")
    return Table(
        "All metrics, means",
        (Column("method"), *(columns[i] for i in known)),
        [
            (method, *(None if own[i] is None else own[i].mean for i in known))
            for method, own in values.items()
        ],
        notes,
    )


def _images(one: Interval | None) -> int:
    return 0 if one is None else one.images


def _matched_table(parts: Mapping[str, Sequence[Row]]) -> Table:
    rows = []
    for method, own in parts.items():
        matched = matching.total(
            matching.Matched(row["tp"], row["fp"], row["fn"], row["matched_iou"]) for row in own
        )
        rows.append(
            (
                method,
                matched.tp + matched.fn,
                matching.panoptic_quality(matched),
                matching.sensitivity(matched),
                matching.false_positives(matched, images=len(own)),
            )
        )
    return Table(
        "Objects, matched at IoU 0.5",
        (
            Column("method"),
            Column("objects"),
            Column("PQ", higher_is_better=True),
            Column("sensitivity", higher_is_better=True),
            Column("false positives per image", higher_is_better=False),
        ),
        rows,
        ("Components under 0.1 % of the image are ignored on both sides.",),
    )


def choice_section(evidence: Evidence) -> Section | None:
    """What an oracle would make of the same masks; None where nothing was to choose."""
    found = []
    for protocol in evidence.protocols():
        rows = pick(evidence.scores.images, protocol=protocol)
        for name in order(evidence, rows):
            own = pick(rows, method=name, choice=MODEL)
            best = pick(rows, method=name, choice=ORACLE)
            shared = {(row["dataset"], row["id"], row["seed"]) for row in best}
            same = [row for row in own if (row["dataset"], row["id"], row["seed"]) in shared]
            if best and name not in evidence.labels("swap"):
                found.append(
                    (
                        parse_protocol(protocol)[1].label,
                        name,
                        interval(evidence, same, "dice"),
                        interval(evidence, best, "dice"),
                    )
                )
    if not found:
        return None
    columns = (Column("prompt"), Column("method"), Column("Dice, model's choice"))
    table = Table(
        "Whose choice",
        (*columns, Column("Dice, oracle's choice")),
        found,
        (
            "The oracle knows the target: no reader has it. Automatic masks: the model's row takes "
            "what a rule fitted on training images (or on other patients) takes.",
        ),
    )
    return Section("The model's choice and an oracle's", (), [table])


def contribution_section(evidence: Evidence) -> Section | None:
    """What each model owes to the image; None where no image was exchanged."""
    found = {protocol: contributions(evidence, protocol) for protocol in evidence.protocols()}
    rows = [
        (parse_protocol(protocol)[1].label, one.a, one.difference, one.wilcoxon, one.verdict)
        for protocol, own in found.items()
        for one in own
    ]
    twins = _twins(evidence)
    made = []
    if rows:
        made.append(
            Table(
                "The own image against another patient's, same prompts",
                (
                    Column("prompt"),
                    Column("method"),
                    Column(f"drop of {METRICS[evidence.primary[0]].label}"),
                    Column("Wilcoxon p"),
                    Column("verdict"),
                ),
                rows,
            )
        )
    if twins:
        note = "A blind twin was trained alike on blank images: it knows prompts and shapes alone."
        made.append(_comparison_table("Against the blind twin", twins, notes=(note,)))
    return Section("Image contribution", (), made) if made else None


def _twins(evidence: Evidence) -> list[Comparison]:
    protocol = evidence.primary[1]
    rows = pick(evidence.scores.images, protocol=protocol, choice=MODEL)
    pairs = {m["label"]: m["of"] for m in evidence.plan["models"] if m["kind"] == "blind"}
    found = [
        compare(evidence, pick(rows, method=of), pick(rows, method=twin), evidence.primary[0])
        for twin, of in pairs.items()
    ]
    return [one for one in found if one is not None]


def training_matrix(evidence: Evidence) -> tuple[Table, np.ndarray, list[str], list[str]] | None:
    """Dice of each model, by the prompt of its training, under each protocol; None without a run.

    The last three are the same figures as an array, and the names of its rows and columns.
    """
    trained = {
        m["label"]: m["trained_under"] or "not fine-tuned"
        for m in evidence.plan["models"]
        if m["kind"] == "model"
    }
    if all(prompt == "not fine-tuned" for prompt in trained.values()):
        return None
    specs = evidence.protocols()
    rows = []
    for name, prompt in trained.items():
        own = pick(evidence.scores.images, method=name, choice=MODEL)
        rows.append(
            (
                f"{name} ({prompt})",
                *(interval(evidence, pick(own, protocol=s), "dice") for s in specs),
            )
        )
    table = Table("Training against test prompt, Dice", _columns(specs), rows, (_AVERAGE,))
    values = np.array([[np.nan if c is None else c.mean for c in row[1:]] for row in rows])
    return table, values, [row[0] for row in rows], specs


def _columns(specs: Sequence[str]) -> tuple[Column, ...]:
    labels = [parse_protocol(spec)[1].label for spec in specs]
    return (Column("trained under"), *(Column(label, higher_is_better=True) for label in labels))
