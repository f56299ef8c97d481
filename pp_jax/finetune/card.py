"""The model card of a run: text, made of plain facts."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pp_jax.config import SEGMENTERS, TrainConfig

UNKNOWN = "unknown: ask its owner"


class Facts(NamedTuple):
    """What a run's folder says of it."""

    run: str
    settings: TrainConfig
    command: str  # That begins the same run.
    environment: Mapping[str, Any]
    patients: Mapping[str, int]  # Of each part.
    images: Mapping[str, int]
    rows: Sequence[Mapping[str, Any]]  # Of the log.
    best: Mapping[str, Any] | None
    steps: Sequence[int]  # Of which there are checkpoints.
    reports: Sequence[str]  # Folders of evaluations.


def text(facts: Facts) -> str:
    """The card, as Markdown."""
    sections = {
        "What it is": _subject(facts),
        "Licences": _licences(facts),
        "Intended use": [_USE],
        "Training": _training(facts),
        "Results": _results(facts),
        "Known failures and limits": _limits(facts),
        "Versions": _versions(facts),
        "To reproduce and to score it": _commands(facts),
    }
    parts = [f"# Model card: {facts.run}", "**Not for diagnosis.** " + _WARNING]
    for title, lines in sections.items():
        parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def strictest(licences: Iterable[str]) -> str:
    """The name of the strictest kind of licence among texts.

    A text counts as the strictest kind that it speaks of; as unknown where it speaks of none.
    """
    order = [name for name, _ in STRICTNESS]
    return max((kind(licence) for licence in licences), key=order.index, default=order[-1])


def kind(licence: str) -> str:
    """The strictest kind that a licence's text speaks of; unknown where it speaks of none."""
    told = [name for name, pattern in STRICTNESS if re.search(pattern, licence, re.IGNORECASE)]
    return told[-1] if told else STRICTNESS[-1][0]


def _subject(facts: Facts) -> list[str]:
    own = facts.settings
    kind, plus, _ = own.prompting.partition("+")
    asked = "no prompt" if kind == "none" else f"prompts of the kind `{kind}`"
    asked += " and without" if plus else ""
    return [
        f"{_model(own.variant)}, trained on {own.data} with {asked}. It gives masks of findings, "
        "and a guess of each mask's IoU.",
        "",
        f"Started from: {own.checkpoint or 'random weights'}. Trained: `{own.trainable}`. Shown: "
        f"filter `{own.filter}`, fusion `{own.fusion}`, region `{own.roi}`.",
    ]


def _model(variant: str) -> str:
    return (
        f"A network (`{variant}`)" if variant in SEGMENTERS else f"Segment Anything (`{variant}`)"
    )


def _licences(facts: Facts) -> list[str]:
    held = facts.environment.get("licences") or {}
    rows = [(_cell(name), _cell(licence), kind(licence)) for name, licence in held.items()]
    return [
        f"**The strictest counts: {strictest(held.values())}.** Weights take on the terms of what "
        "they were made of; whether those of images hold for weights differs between countries, "
        "so ask before you publish them.",
        "",
        *_table(("of", "licence", "kind"), rows),
    ]


def _training(facts: Facts) -> list[str]:
    plain = TrainConfig(variant=facts.settings.variant)
    told = {
        field.name: getattr(facts.settings, field.name)
        for field in dataclasses.fields(TrainConfig)
        if getattr(facts.settings, field.name) != getattr(plain, field.name)
        and field.name not in ("out", "force", "resume")
    }
    parts = [
        (part, str(facts.images.get(part, 0)), str(count)) for part, count in facts.patients.items()
    ]
    done = max((row["step"] for row in facts.rows), default=0)
    return [
        *_table(("part", "images", "patients"), parts),
        "",
        "No patient is in two parts. Who is in which stands in `splits.json`, sha256 "
        f"`{facts.environment.get('splits_sha256', 'unknown')}`.",
        "",
        f"Steps so far: {done}. Settings that differ from the defaults (all: `config.json`):",
        "",
        *_table(("setting", "value"), [(f"`{k}`", f"`{_cell(v)}`") for k, v in told.items()]),
    ]


def _results(facts: Facts) -> list[str]:
    judged = [row for row in facts.rows if row.get("split") == "validation"]
    count = f"n = {facts.images.get('validation', 0)} images of "
    count += f"{facts.patients.get('validation', 0)} patients"
    lines = ["Not validated yet."]
    if judged:
        step = facts.best["step"] if facts.best else judged[-1]["step"]
        row = next((row for row in judged if row["step"] == step), judged[-1])
        what = "best" if facts.best else "newest"
        dice, loss = (row.get(name, math.nan) for name in ("dice_metric", "loss"))
        lines = [
            f"Validation, {what} step {row['step']}: Dice {dice:.3f}, loss {loss:.3f} ({count}).",
            "",
            "It was chosen by this part, so the figure is optimistic; at the model's own "
            "resolution, without an interval.",
        ]
    reports = [f"- `{name}/report.html`" for name in facts.reports]
    lines += ["", "Evaluations, with intervals, beside controls that see no pixel:"]
    return [*lines, "", *(reports or ["- none yet"])]


def _limits(facts: Facts) -> list[str]:
    own = facts.settings
    limits = [
        "Nothing is known of other scanners, views, ages and diseases than those of its data.",
        "It draws what it was asked for: a box or a click where no finding is gets a mask too, "
        "unless it was trained without prompts on images without findings.",
        "An exact box tells place, size and nearly the shape: read a Dice under boxes beside that "
        "of the controls.",
        "The IoU that it guesses is not calibrated.",
    ]
    if own.target != "mask":
        limits.append(f"Its targets were made of boxes (`{own.target}`), not drawn by experts.")
    if any(row.get("prompt_is_target") for row in facts.rows):
        limits.append("Box prompts were its targets too: a low loss says nothing of the image.")
    if own.blind:
        limits.append("A blind twin: it was shown mid-grey and has seen no image.")
    if not own.checkpoint:
        limits.append("It began from random weights: it knows what its data taught it, no more.")
    limits.append("Its worst images stand in each evaluation's report, under the overlays.")
    return [f"- {line}" for line in limits]


def _versions(facts: Facts) -> list[str]:
    held = facts.environment
    told = {k: v for k, v in held.items() if isinstance(v, str) and k not in _ELSEWHERE}
    revision = held.get("revision") or "none: not a clone"
    earlier = held.get("earlier_revisions") or []
    lines = [f"Git revision: `{revision}`."]
    if earlier:
        lines[0] += f" Earlier steps: {', '.join(f'`{name}`' for name in earlier)}."
    return [*lines, "", *_table(("of", "version"), [(k, _cell(v)) for k, v in told.items()])]


def _commands(facts: Facts) -> list[str]:
    lines = [
        facts.command,
        f"python train.py --resume {facts.run}",
        f"python eval.py --checkpoint {facts.run}",
    ]
    kept = ", ".join(map(str, facts.steps)) or "none"
    return [
        "The first line begins the same run, the second goes on with this one, the third scores "
        f"it. Checkpoints of steps: {kept}; the best by validation is the one that is loaded.",
        "",
        "```",
        *lines,
        "```",
        "",
        f"Its last start was `{facts.environment.get('command', 'unknown')}`.",
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


_WARNING = (
    "A result of research on how images are segmented. Nobody has shown that it helps a patient, "
    "and no authority has cleared it as a medical device."
)
_USE = (
    "Research on segmentation: comparisons of training recipes, preprocessing and prompts, and "
    "drafts of masks that an expert corrects. Not for triage, diagnosis, treatment, or any other "
    "decision about a person."
)
_ELSEWHERE = ("command", "revision", "splits_sha256")

# Kinds of licence from the freest to the strictest, and the words that tell them.
STRICTNESS = (
    ("permissive", r"none needed|apache|\bmit\b|\bbsd\b|cc0|public domain|unrestricted"),
    ("attribution", r"\bcc[- ]by\b|\bcite\b|attribution"),
    ("share-alike", r"\bby(-nc)?-sa\b|share-?alike|\bgpl"),
    ("non-commercial", r"\bby-nc\b|non-?commercial"),
    ("research or local use only", r"research (use )?only|local use only|no redistribution"),
    ("unknown", r"unknown|unclear|unstated|unverified|your own|ask its owner"),
)
