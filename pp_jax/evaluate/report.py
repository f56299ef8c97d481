"""What an evaluation leaves in its folder. This module writes files.

settings.json     what was laid down before the first image was read: models, prompts, endpoint
results.csv       one row per object, method, protocol and choice
images.csv        one row per image
prompts.json      every mark; `--prompts` plays them again
clicks.json       where each model was corrected
detections.json   boxes under protocols that tell no truth
seconds.csv       what each answer took
table.md, table.tex, claim.md, report.html, plots/, overlays/
"""

import hashlib
import importlib.metadata
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pp_jax import checkpoints
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate import (
    analysis,
    breakdown,
    claim,
    detection,
    files,
    page,
    pictures,
    showcase,
    tables,
)
from pp_jax.evaluate.analysis import Evidence, pick
from pp_jax.evaluate.methods import Method, Source
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.protocols import Protocol, parse_protocol
from pp_jax.evaluate.score import Scores
from pp_jax.evaluate.sections import Section
from pp_jax.evaluate.subjects import MODEL

SUMMARY = "report.html"  # What a folder is known by as a report.
_ELSEWHERE = ("out", "device", "pictures", "kaggle_submission")  # Change no figure.
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
    return {
        "title": f"{models[0]['label']} on {settings.data}, part: {settings.part}",
        "primary": {"metric": metric, "protocol": protocol},
        "protocols": list(protocols),
        "models": [dict(model) for model in models],
        "missing_twins": dict(missing),
        "images": {
            "count": len(images),
            "patients": len({image.patient for image in images}),
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
    sections = pictures.illustrate(folder, evidence, sections)
    if count:
        sections.append(showcase.draw(folder, evidence, methods, images, count=count))
    sections.append(winner_section(evidence))
    settings = _settings(plan)
    tables.write_markdown(folder / "table.md", sections, title=plan["title"], settings=settings)
    latex = [tables.to_latex(one) for section in sections for one in section.tables]
    files.put_text(folder / "table.tex", "\n\n".join(latex) + "\n")
    claim.write_claim(folder / "claim.md", claim_facts(evidence))
    page.write_page(folder / "report.html", sections, title=plan["title"], settings=settings)
    shown = sections[: 1 + len(evidence.protocols())]
    return "\n".join(_in_terminal(section) for section in shown)


def write_submission(path: Path, scores: Scores, plan: Mapping[str, Any]) -> None:
    """The boxes of the first model, under its first protocol that tells no truth, are in the file.

    The format is that of RSNA's challenge.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    evidence = Evidence(scores, plan)
    held = pick(scores.detections, method=evidence.first)
    protocol = held[0]["protocol"]
    rows = [one for one in held if one["protocol"] == protocol and one["seed"] == held[0]["seed"]]
    found = breakdown.pairs(evidence, evidence.first, protocol)[: len(rows)]
    boxes = [(row["id"], scored) for row, (scored, _) in zip(rows, found, strict=True)]
    detection.write_submission(path, boxes)


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
                "method": m,
                "protocol": p,
                "images": len(own),
                "median seconds": float(np.median(own)),
            }
            for (m, p), own in scores.seconds.items()
        ]
        files.write_rows(folder / "seconds.csv", rows)


def find_sections(evidence: Evidence) -> list[Section]:
    """All that can be said of the evidence, in the order of the report."""
    matrix = analysis.training_matrix(evidence)
    found = [
        analysis.answer(evidence),
        *(analysis.protocol_section(evidence, spec) for spec in evidence.protocols()),
        analysis.contribution_section(evidence),
        analysis.choice_section(evidence),
        None if matrix is None else Section("Training against test prompt", (), [matrix[0]]),
        breakdown.clicks_section(evidence),
        breakdown.ambiguity_section(evidence),
        breakdown.strata_section(evidence),
        breakdown.detection_section(evidence),
        breakdown.confidence_section(evidence),
        breakdown.errors_section(evidence),
    ]
    return [section for section in found if section is not None]


def winner_section(evidence: Evidence) -> Section:
    """The exact command that applies the model of the best mean at the primary endpoint."""
    metric, protocol = evidence.primary
    rows = pick(evidence.scores.images, protocol=protocol, choice=MODEL)
    means = {
        name: one.mean
        for name in evidence.labels("model")
        if (one := analysis.interval(evidence, pick(rows, method=name), metric)) is not None
    }
    if not means:
        return Section("How to apply it", ["No model has a value at the primary endpoint."])
    sign = 1 if METRICS[metric].higher_is_better else -1
    best = max(means, key=lambda name: sign * means[name])
    model = next(m for m in evidence.plan["models"] if m["label"] == best)
    words = ["python", "-m", "pp_jax.predict", "IMAGES", "--checkpoint", model["folder"]]
    words += ["--out", "DIR", *_asking(protocol)]
    look = model["look"]
    for name, default in (("filter", "none"), ("fusion", "replace"), ("roi", "none")):
        if look[name] != default:
            words += [f"--{name}", look[name]]
    if look["fusion"] in ("blend", "add-edges"):
        words += ["--blend", f"{look['blend']:g}"]
    if size := evidence.plan["settings"]["image_size"]:
        words += ["--image-size", str(size)]
    if model["refine"]:
        words += ["--refine", *model["refine"]]
    told = [f"Best mean {METRICS[metric].label} among the models: {best}. To apply it to images:"]
    return Section("How to apply it", [*told, f"$ {shlex.join(words)}"])


def _asking(protocol: str) -> list[str]:
    name = protocol.partition(":")[0]
    if name in ("box", "jitter"):
        return ["--box", "X0", "Y0", "X1", "Y1"]
    if name == "auto":
        return ["--auto"]
    if name == "none":
        return ["--prompt-free"]
    if name == "scribble":
        return ["--scribble", "LINES.csv"]
    box = ["--box", "X0", "Y0", "X1", "Y1"] if name == "box+point" else []
    return [*box, "--point", "X", "Y"]


def claim_facts(evidence: Evidence) -> dict[str, str]:
    """What the run itself can say to items of the checklist."""
    plan, settings = evidence.plan, evidence.plan["settings"]
    metric, protocol = evidence.primary
    models = "; ".join(
        f"{m['label']}: {m['variant']} from {m['folder']} (weights sha256 {m['weights'][:12]})"
        for m in plan["models"]
        if m["kind"] == "model"
    )
    kinds = ", ".join(sorted({row["target"] for row in evidence.scores.images}))
    count, patients = plan["images"]["count"], plan["images"]["patients"]
    return {
        "sources": f"{settings['data']} in {settings['data_dir']}",
        "preprocessing": "; ".join(
            f"{m['label']}: filter {m['look']['filter']}, fusion {m['look']['fusion']}, region "
            f"{m['look']['roi']}, prepared as for {m['look']['preprocess']}"
            for m in plan["models"]
            if m["kind"] == "model"
        ),
        "reference_method": f"Targets: {kinds}",
        "disjoint": "Parts are of patients: no patient who was trained on is scored.",
        "sample_size": f"{count} images of {patients} patients; the smallest detectable difference "
        "stands beside each comparison in table.md.",
        "model": models,
        "software": ", ".join(f"{name} {version}" for name, version in plan["versions"].items()),
        "metrics": f"Primary: {METRICS[metric].label} under {protocol}, laid down in settings.json "
        f"before the first image was read. Others: {', '.join(METRICS)}.",
        "statistics": f"Bootstrap over patients, {settings['samples']} resamples; paired "
        "differences, Wilcoxon on patient means, Holm over the family of the primary endpoint; "
        f"equivalence within {settings['margin']:g} by two one-sided tests.",
        "robustness": "Strata, jittered prompts and exchanged images: see table.md.",
        "internal": f"{count} held-out images of {patients} patients.",
        "failures": "Kinds of error and the worst objects: see table.md and overlays.",
        "performance": "table.md",
        "estimates": "Every mean with a 95 % interval; differences paired: table.md.",
    }


def _settings(plan: Mapping[str, Any]) -> dict[str, Any]:
    primary = plan["primary"]
    told = {"primary endpoint": f"{primary['metric']}@{primary['protocol']}"}
    told |= {name: value for name, value in plan["settings"].items() if value not in ("", None, [])}
    for model in plan["models"]:
        seed = f" {model['seed']}" if model["seed"] else ""
        told[f"{model['label']}{seed}"] = (
            f"{model['folder']}, sha256 {model['weights'][:12]}, filter {model['look']['filter']}, "
            f"fusion {model['look']['fusion']}, region {model['look']['roi']}"
        )
    return told | plan["versions"]


def _in_terminal(section: Section) -> str:
    parts = [f"## {section.heading}", *section.paragraphs]
    parts += [tables.to_markdown(one) for one in section.tables[:1]]
    return "\n\n".join(parts) + "\n"
