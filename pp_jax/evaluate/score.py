"""A whole evaluation: every image scored by every method, then tables and pictures in a folder."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pp_jax import checkpoints
from pp_jax.evaluate import methods, report
from pp_jax.evaluate.methods import METHODS, PROTOCOLS, Subject, Tools
from pp_jax.evaluate.statistics import Summary, summarise, worst_median_best

Reader = Callable[[], Subject]  # Reads one image: the pixels of all would fill the memory.


def score(
    out: Path,
    readers: Sequence[Reader],
    tools: Tools,
    *,
    prompt: str,
    seed: int,
    pictures: int,
    title: str,
    settings: Mapping[str, Any],
) -> str:
    """The tables, after they, the figures of each image, its marks and overlays stand in `out`.

    An image without an object is left out where the protocol has to mark one.

    Args:
      out: An empty folder.
      readers: One per image.
      tools: What the methods need.
      prompt: A row of `PROTOCOLS`.
      seed: Of the clicks and of the intervals.
      pictures: How many overlays to draw, about.
      title: First line of the tables.
      settings: What a reader needs to repeat it.

    Raises:
      ValueError: No image is left.
    """
    rows, marks, scored = [], {}, []
    for reader in tqdm(readers, unit="image"):
        subject = reader()
        if PROTOCOLS[prompt].needs_objects and not len(subject.objects):
            warnings.warn(f"{subject.id}: no object to prompt for, left out", stacklevel=2)
            continue
        marked = methods.draw_marks(prompt, subject, seed=seed)
        rows += methods.compare(subject, marked, tools, prompt=prompt)
        marks[subject.id] = methods.marks_to_plain(marked)
        scored.append(reader)
    report.write_rows(out / "per_image.csv", rows)
    checkpoints.write_json(out / "prompts.json", {"seed": seed, "prompts": marks})
    sections = {
        heading: summarise(part, seed=seed) for heading, part in _sections(rows).items() if part
    }
    report.write_summary(out, sections, title=title, settings=settings)
    if pictures:
        scores = [row["dice"] for row in rows if row["method"] == METHODS["sam"].label]
        parts = worst_median_best(np.array(scores), each=max(1, pictures // 3))
        chosen = {label: [scored[i] for i in indices] for label, indices in parts.items()}
        _draw(out, chosen, tools, prompt=prompt, seed=seed, title=f"{title}, prompt: {prompt}")
    return "\n".join(_section(heading, lines) for heading, lines in sections.items())


def _sections(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found = [row for row in rows if row["objects"]]
    everything = {} if len(found) == len(rows) else {"All images": list(rows)}
    return everything | {"Images with a finding": found}


def _section(heading: str, lines: Sequence[Summary]) -> str:
    return f"## {heading}\n\n{report.table(lines)}"


def _draw(
    out: Path,
    parts: Mapping[str, Sequence[Reader]],
    tools: Tools,
    *,
    prompt: str,
    seed: int,
    title: str,
) -> None:
    """Overlays of the images that the model did worst, middling and best on."""
    (out / "overlays").mkdir()
    cases = {
        label: [_case(reader(), tools, prompt=prompt, seed=seed) for reader in readers]
        for label, readers in parts.items()
    }
    for label, row in cases.items():
        for rank, case in enumerate(row):
            report.overlay(out / "overlays" / f"{label}_{rank}_{case.title}.png", case)
    report.overlay_sheet(out / "overlays.png", cases, title=title)


def _case(subject: Subject, tools: Tools, *, prompt: str, seed: int) -> report.Case:
    """What is drawn of an image: predicted again, since masks of all would fill the memory."""
    marked = methods.draw_marks(prompt, subject, seed=seed)
    mask = METHODS["sam"].predict(subject, marked, tools).mask
    return report.Case(
        subject.id, subject.image, subject.findings, mask, marked.boxes, marked.points
    )
