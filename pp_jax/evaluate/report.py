"""What an evaluation leaves in its folder. This module writes files.

settings.json     what was laid down before the first image was read: models, prompts, endpoint
results.csv       one row per object, method, protocol and choice
images.csv        one row per image
prompts.json      every mark; `--prompts` plays them again
clicks.json       where each model was corrected
detections.json   boxes under protocols that tell no truth
seconds.csv       median time of each method's answers
table.md, table.tex, claim.md, report.html, plots/, overlays/
"""

import dataclasses
import hashlib
import importlib.metadata
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pp_jax import checkpoints
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate import (
    analysis,
    automatic,
    breakdown,
    claim,
    detection,
    files,
    page,
    pictures,
    showcase,
    tables,
)
from pp_jax.evaluate.evidence import Evidence, mean, pick
from pp_jax.evaluate.methods import Method, Source
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.protocols import Protocol, parse_protocol
from pp_jax.evaluate.score import Scores
from pp_jax.evaluate.sections import Section, Table

SUMMARY = "report.html"  # What a folder is known by as a report.
_ELSEWHERE = ("out", "device", "pictures", "kaggle_submission")  # Change no figure.
_APPLY = "How to apply it"
_IN_TERMINAL = (analysis.ANSWER, analysis.EVERY_PROMPT)
_SEVERAL = ("box+point", "scribble", "clicks")  # Several marks on an object.
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "scikit-learn", "pillow")


def parse_primary(spec: str) -> tuple[str, str]:
    """Metric and protocol of `METRIC@PROTOCOL`.

    Raises:
      ValueError: An unknown one of either.
    """
    metric, at, protocol = spec.partition("@")
    if metric not in METRICS or not at:
        raise ValueError(
            f"--primary {spec!r}: give METRIC@PROTOCOL, such as dice@point, with a metric of "
            f"{', '.join(METRICS)}"
        )
    return metric, parse_protocol(protocol)[0]


def make_plan(
    settings: EvalConfig,
    protocols: Mapping[str, Protocol],
    models: Sequence[Mapping[str, Any]],
    *,
    missing: Mapping[str, str],
    images: Sequence[Source],
) -> dict[str, Any]:
    """What is laid down before the first image is read, in plain values.

    The primary endpoint, unless it is given, is Dice under the first protocol.

    Raises:
      ValueError: The primary endpoint's protocol is not among the protocols.
    """
    first = next(iter(protocols))
    metric, protocol = parse_primary(settings.primary or f"dice@{first}")
    last = next((p.rounds for s, p in protocols.items() if s.startswith("clicks:")), 0)
    within = protocol.startswith("clicks:") and int(protocol.partition(":")[2]) <= last
    if protocol not in protocols and not within:
        raise ValueError(
            f"--primary {settings.primary}: {protocol} is not among the protocols "
            f"{', '.join(protocols)}; add it to --prompt"
        )
    if settings.kaggle_submission and all(one.truth_in_prompt for one in protocols.values()):
        detection.require_prompt_free(first, truth_in_prompt=True)
    known = vars(settings)
    names = "\n".join(f"{image.dataset}/{image.id}" for image in images)
    compared = dict.fromkeys(model["label"] for model in models if model["kind"] == "model")
    return {
        "title": f"{', '.join(compared)} on {settings.data}, part: {settings.part}",
        "primary": {"metric": metric, "protocol": protocol},
        "protocols": list(protocols),
        "models": [dict(model) for model in models],
        "missing_twins": dict(missing),
        "images": {
            "count": len(images),
            "patients": len({(image.dataset, image.patient) for image in images}),
            "sha256": hashlib.sha256(names.encode()).hexdigest(),
        },
        "settings": {name: known[name] for name in known if name not in _ELSEWHERE},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def write(
    folder: Path,
    scores: Scores,
    plan: Mapping[str, Any],
    methods: Sequence[Method],
    images: Sequence[Source],
    *,
    count: int,
) -> str:
    """The first tables as text, after everything stands in the folder.

    Args:
      folder: With the journal.
      scores: Of it.
      plan: From `make_plan`.
      methods: To draw the answers of the first again.
      images: What was scored.
      count: How many overlays to draw, about.
    """
    _write_figures(folder, scores, plan)
    evidence = Evidence(scores, plan)
    sections = find_sections(evidence)
    shown = [section for section in sections if section.heading in _IN_TERMINAL]
    sections = pictures.illustrate(folder, evidence, sections)
    drawn = showcase.draw(folder, evidence, methods, images, count=count) if count else None
    if drawn is not None:
        sections = [sections[0], drawn.sheet, *sections[1:], drawn.single]
    sections.append(winner_section(evidence))
    told = {"title": plan["title"], "settings": _settings(plan)}
    tables.write_markdown(folder / "table.md", sections, **told)
    tables.write_latex(folder / "table.tex", sections)
    claim.write_claim(folder / "claim.md", claim_facts(evidence))
    page.write_page(folder / SUMMARY, sections, **told)
    return "\n".join(_in_terminal(section) for section in shown)


def write_submission(path: Path, scores: Scores, plan: Mapping[str, Any]) -> None:
    """The boxes of the first model, of its first seed, are in the file, as RSNA's challenge has it.

    They are those under its first protocol that tells no truth.
    """
    held = pick(scores.detections, method=Evidence(scores, plan).first)
    order = {protocol: index for index, protocol in enumerate(plan["protocols"])}
    first = min(held, key=lambda one: order[one["protocol"]])
    rows = pick(held, protocol=first["protocol"], seed=first["seed"])
    path.parent.mkdir(parents=True, exist_ok=True)
    detection.write_submission(path, [(row["id"], breakdown.to_pair(row)[0]) for row in rows])


def _write_figures(folder: Path, scores: Scores, plan: Mapping[str, Any]) -> None:
    if scores.objects:
        files.write_rows(folder / "results.csv", scores.objects)
    files.write_rows(folder / "images.csv", scores.images)
    seed = plan["settings"]["seed"]
    checkpoints.write_json(folder / "prompts.json", {"seed": seed, "prompts": scores.prompts})
    for name, content in (("clicks", scores.clicks), ("detections", scores.detections)):
        if content:
            checkpoints.write_json(folder / f"{name}.json", content)
    if scores.seconds:
        rows = [
            {
                "method": method,
                "protocol": protocol,
                "images": len(own),
                "median seconds": float(np.median(own)),
            }
            for (method, protocol), own in scores.seconds.items()
        ]
        files.write_rows(folder / "seconds.csv", rows)


def find_sections(evidence: Evidence) -> list[Section]:
    """All that can be said of the evidence, in the order of the report."""
    notes = analysis.target_notes(evidence)
    found = [
        analysis.answer(evidence),
        analysis.every_prompt_section(evidence),
        analysis.contribution_section(evidence),
        breakdown.detection_section(evidence),
        breakdown.clicks_section(evidence),
        breakdown.ambiguity_section(evidence),
        breakdown.strata_section(evidence),
        breakdown.errors_section(evidence),
        breakdown.confidence_section(evidence),
        analysis.choice_section(evidence),
        *(analysis.details_section(evidence, spec) for spec in evidence.protocols()),
    ]
    return [
        # The truth of detection are boxes, whatever the target.
        section._replace(
            tables=[
                _finished(table, () if section.heading == breakdown.DETECTION else notes)
                for table in section.tables
            ]
        )
        for section in found
        if section is not None
    ]


def _finished(table: Table, notes: Sequence[str]) -> Table:
    """The table with more notes, and without columns in which nothing stands."""
    kept = [
        index
        for index in range(len(table.columns))
        if any(row[index] not in (None, "") for row in table.rows)
    ]
    return dataclasses.replace(
        table,
        columns=[table.columns[index] for index in kept],
        rows=[[row[index] for index in kept] for row in table.rows],
        notes=(*table.notes, *notes),
    )


def winner_section(evidence: Evidence) -> Section:
    """The exact command that applies the model of the best mean at the primary endpoint."""
    metric, protocol = evidence.primary
    rows = evidence.rows(protocol)
    means = {
        name: found.mean
        for name in evidence.labels("model")
        if (found := mean(pick(rows, method=name), metric)) is not None
    }
    if not means:
        return Section(_APPLY, ["No model has a value at the primary endpoint."])
    sign = 1 if METRICS[metric].higher_is_better else -1
    best = max(means, key=lambda name: sign * means[name])
    runs = [model for model in evidence.plan["models"] if model["label"] == best]
    told = [f"Best mean {METRICS[metric].label} among the models: {best}."]
    if len(runs) > 1:
        told.append(f"The mean is over {len(runs)} runs; this is the first of them.")
    told.append(_ASKED.get(protocol.partition(":")[0], ""))
    told.append("To apply it to images of your own, with capital words filled in:")
    words = _command(runs[0], protocol, evidence.plan["settings"])
    return Section(_APPLY, [*filter(None, told), f"$ {shlex.join(words)}"])


def _command(model: Mapping[str, Any], protocol: str, settings: Mapping[str, Any]) -> list[str]:
    """The words that ask a model as it was asked, and show it what it was shown."""
    members = model.get("members") or [model]  # Of an ensemble.
    words = ["python", "-m", "pp_jax.predict", "IMAGES", "--checkpoint"]
    words += [member["folder"] for member in members]
    words += ["--out", "DIR", *_asking(protocol, settings)]
    # A default would be that of the training, which an evaluation may have overridden for all.
    looks = [member["look"] for member in members]
    for name in ("filter", "fusion", "roi"):
        if len({look[name] for look in looks}) == 1:
            words += [f"--{name}", looks[0][name]]
    weighted = any(look["fusion"] in ("blend", "add-edges") for look in looks)
    if weighted and len({look["blend"] for look in looks}) == 1:
        words += ["--blend", f"{looks[0]['blend']:g}"]
    if settings["image_size"]:
        words += ["--image-size", str(settings["image_size"])]
    if model["trained_on"] is None and protocol.partition(":")[0] in _SEVERAL:
        words.append("--no-multimask")  # Of converted weights SAM's single mask counted.
    return [*words, "--refine", *model["refine"]] if model["refine"] else words


def _asking(protocol: str, settings: Mapping[str, Any]) -> list[str]:
    name = protocol.partition(":")[0]
    if name in ("box", "jitter"):
        return ["--boxes", "BOXES.csv"]
    if name == "scribble":
        return ["--scribble", "LINES.csv"]
    if name == "none":
        return ["--prompt-free"]
    if name == "auto":
        grid = ["--points-per-side", str(settings["auto_points"])]
        limits = ["--pred-iou-thresh", f"{automatic.IOU:g}"]
        return ["--auto", *grid, *limits, "--stability-score-thresh", f"{automatic.STABILITY:g}"]
    box = ["--box", "X0", "Y0", "X1", "Y1"] if name == "box+point" else []
    return [*box, "--point", "X", "Y"]


def claim_facts(evidence: Evidence) -> dict[str, str]:
    """What the run itself can say to items of the checklist."""
    plan, settings = evidence.plan, evidence.plan["settings"]
    metric, protocol = evidence.primary
    models = [model for model in plan["models"] if model["kind"] == "model"]
    kinds = ", ".join(sorted({row["target"] for row in evidence.scores.images}))
    numbers = f"{plan['images']['count']} images of {plan['images']['patients']} patients"
    told = {
        "sources": f"{settings['data']} in {settings['data_dir']}",
        "preprocessing": "; ".join(
            f"{m['label']}: filter {m['look']['filter']}, fusion {m['look']['fusion']}, region "
            f"{m['look']['roi']}, prepared as for {m['look']['preprocess']}"
            for m in models
        ),
        "reference_method": f"Targets: {kinds}",
        "sample_size": f"{numbers}; the smallest detectable difference stands beside each "
        "comparison in table.md.",
        "model": "; ".join(
            f"{m['label']}: {m['variant']} from {m['folder']} (weights sha256 {m['weights'][:12]})"
            for m in models
        ),
        "software": ", ".join(f"{name} {version}" for name, version in plan["versions"].items()),
        "initialisation": "; ".join(f"{m['label']}: {_begun(m)}" for m in models),
        "metrics": f"Primary: {METRICS[metric].label} under {protocol}, laid down in settings.json "
        f"before the first image was read. Others: {', '.join(METRICS)}.",
        "statistics": f"Bootstrap over patients, {settings['samples']} resamples; paired "
        "differences, Wilcoxon on patient means, Holm over the family of the primary endpoint; "
        f"equivalence within {settings['margin']:g} by two one-sided tests.",
        "robustness": "Strata, jittered prompts and exchanged images: see table.md.",
        "explanation": "Guesses that see no pixel, exchanged images and blind twins: see the "
        "answer in table.md.",
        "failures": "Kinds of error and the worst objects: see table.md and overlays.",
        "performance": "See table.md.",
        "estimates": "Means with 95 % intervals, and paired differences: see table.md.",
    }
    # Of converted weights it is not known what they were trained on; of other parts it is.
    if settings["part"] == "test" and all(model["trained_on"] for model in models):
        told["disjoint"] = "By patient: none of those who were trained or validated on is scored."
        told["internal"] = f"{numbers} that the models were not trained or validated on."
    return told


def _begun(model: Mapping[str, Any]) -> str:
    if model["from_random"]:
        return "random numbers"
    return "converted weights" + (", then trained" if model["trained_on"] else ", as they are")


def _settings(plan: Mapping[str, Any]) -> dict[str, Any]:
    primary = plan["primary"]
    told = {"primary endpoint": f"{primary['metric']}@{primary['protocol']}"}
    known = {
        name: value for name, value in plan["settings"].items() if value not in ("", None, (), [])
    }
    told |= {name: ", ".join(v) if isinstance(v, tuple | list) else v for name, v in known.items()}
    for model in plan["models"]:
        if model["kind"] != "swap":
            told[f"{model['label']}, {model['folder']}"] = f"sha256 {model['weights'][:12]}"
    return told | plan["versions"]


def _in_terminal(section: Section) -> str:
    parts = [f"## {section.heading}", *section.paragraphs]
    parts += [f"{one.title}\n\n{tables.to_markdown(one)}" for one in section.tables]
    return "\n\n".join(parts)


# What a command cannot say of how a model was asked.
_ASKED: Mapping[str, str] = MappingProxyType(
    {
        "jitter": "The boxes that were scored were moved at random, as by a careless reader.",
        "clicks": (
            "Each further click comes where the mask is wrong: add --point X Y for it, and a "
            "--label 1 (object) or 0 (not) for every click. What was scored fed the last mask back "
            "as well (--mask-prompt)."
        ),
        "auto": (
            "What was scored are those of the automatic masks that a fitted rule takes; the "
            "command writes all of them."
        ),
    }
)
