"""What an ablation found: each cell of its grid against the first, paired, in tables and words.

Made from a report of eval.py (OUT/report), in which each cell is a model with its seeds.

OUT/ablation.md, ablation.html, differences-PROTOCOL.png
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pp_jax.evaluate import files, page, plots, statistics, tables
from pp_jax.evaluate.evidence import by_method, name_of, pick
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.sections import Column, Picture, Section, Table
from pp_jax.evaluate.statistics import Comparison
from pp_jax.evaluate.subjects import MODEL, Row

METRIC, SECOND = "dice", "nsd_1"
_SWAPPED = "another patient's image"


class Compared(NamedTuple):
    """How the models of a report are cells of a grid."""

    question: str
    cells: tuple[str, ...]  # The others are compared with the first.
    blind: str  # The model that was trained alike and saw nothing; empty: there is none.
    hours: float  # Of all trainings together.


def write(out: Path, compared: Compared, *, more: Sequence[Section] = ()) -> str:
    """The answer in words, after tables and pictures stand in the folder.

    Args:
      out: The ablation's folder, with the report.
      compared: Its cells.
      more: Sections behind the ablation's own.

    Raises:
      FileNotFoundError: There is no report.
    """
    rows = files.read_rows(out / "report" / "images.csv")
    found = family(rows, compared)
    sections = [_answer(found, compared, rows), *_of_protocols(out, rows, found, compared), *more]
    told: Mapping[str, Any] = {
        "title": f"Ablation: {compared.question}",
        "settings": {"trainings": f"{compared.hours:.1f} hours of computing", "report": "report/"},
    }
    tables.write_markdown(out / "ablation.md", sections, **told)
    page.write_page(out / "ablation.html", sections, **told)
    return "\n".join(sections[0].paragraphs)


def family(rows: Sequence[Row], compared: Compared) -> dict[str, list[Comparison]]:
    """By protocol, each cell minus the first; p-values are adjusted over all of them together.

    Images without a finding are left out: there is nothing that a filter could help to outline.
    """
    told = []
    for protocol in _protocols(rows, compared):
        parts = _cells(rows, protocol)
        base = parts[compared.cells[0]]
        for name in compared.cells[1:]:
            told.append((protocol, statistics.compare(parts[name], base, metric=METRIC)))
    kept = [(protocol, one) for protocol, one in told if one is not None]
    adjusted = statistics.adjust([one for _, one in kept])
    found: dict[str, list[Comparison]] = {}
    for (protocol, _), one in zip(kept, adjusted, strict=True):
        found.setdefault(protocol, []).append(one)
    return found


def _protocols(rows: Sequence[Row], compared: Compared) -> list[str]:
    """Those that the cells were asked under: guesses are asked under the exact box as well."""
    own = pick(rows, method=compared.cells[0])
    return list(dict.fromkeys(row["protocol"] for row in own))


def _cells(rows: Sequence[Row], protocol: str) -> dict[str, list[Row]]:
    """Of images with a finding, the models' own choices by method."""
    chosen = pick(rows, protocol=protocol, choice=MODEL)
    return by_method([row for row in chosen if row["objects"]])


def _answer(
    found: Mapping[str, Sequence[Comparison]], compared: Compared, rows: Sequence[Row]
) -> Section:
    told = []
    base = compared.cells[0]
    for protocol, family_ in found.items():
        surely = {
            "better": [one for one in family_ if _holds(one) and one.difference.mean > 0],
            "worse": [one for one in family_ if _holds(one) and one.difference.mean < 0],
        }
        same = [one for one in family_ if not _holds(one) and one.equivalent]
        rest = [one for one in family_ if not _holds(one) and not one.equivalent]
        parts = [
            f"{word} than {base}: {', '.join(map(_worded, own))}"
            for word, own in surely.items()
            if own
        ]
        if same:
            listed = ", ".join(map(_worded, same))
            parts.append(f"equivalent to {base} within {same[0].margin}: {listed}")
        if rest:
            least = max(one.detectable or 0 for one in rest)
            listed = ", ".join(map(_worded, rest))
            parts.append(
                f"not told apart from {base}: {listed} (differences from {least:.3f} on would "
                "have been found in 4 of 5 such studies)"
            )
        told.append(f"Prompt {name_of(protocol)}. {'; '.join(parts)}.")
    for protocol in found:
        parts = _cells(rows, protocol)
        told.append(f"Prompt {name_of(protocol)}. {_image_words(parts, compared)}")
    return Section("Answer", told)


def _holds(one: Comparison) -> bool:
    """Whether a difference stands after the correction, by its interval as well."""
    interval = one.difference
    corrected = 1.0 if one.holm is None else one.holm  # 0.0 is a p-value too.
    return corrected <= 0.05 and not interval.low <= 0 <= interval.high


def _worded(one: Comparison) -> str:
    own = one.difference
    return f"{one.a} by {own.mean:+.3f} [{own.low:+.3f}, {own.high:+.3f}]"


def _image_words(parts: Mapping[str, Sequence[Row]], compared: Compared) -> str:
    base = compared.cells[0]
    own = _mean(parts[base])
    told = [f"Dice of {base} is {own:.3f}"]
    if swapped := parts.get(f"{base}, {_SWAPPED}"):
        told.append(f"shown another patient's image it is {_mean(swapped):.3f}")
    if compared.blind in parts:
        blind = _mean(parts[compared.blind])
        share = max(0.0, own - blind) / own if own else 0.0
        told.append(
            f"its twin that saw nothing reaches {blind:.3f}: {share:.0%} of the Dice come from the "
            "image"
        )
    return ", ".join(told) + "."


def _mean(rows: Sequence[Row]) -> float:
    one = statistics.interval_of(rows, METRIC, samples=1)
    return one.mean if one else 0.0


def _of_protocols(
    out: Path,
    rows: Sequence[Row],
    found: Mapping[str, Sequence[Comparison]],
    compared: Compared,
) -> list[Section]:
    sections = []
    for protocol, family_ in found.items():
        parts = _cells(rows, protocol)
        path = out / f"differences-{protocol.replace(':', '_')}.png"
        intervals = {one.a: one.difference for one in family_}
        plots.forest(path, intervals, label=f"Dice minus that of {compared.cells[0]}")
        sections.append(
            Section(
                f"Prompt: {name_of(protocol)}",
                tables=(
                    _levels(parts, protocol),
                    _differences(family_, protocol),
                    *_of_image(parts, compared, protocol),
                ),
                pictures=(Picture(path, f"Differences, prompt: {name_of(protocol)}"),),
            )
        )
    return sections


def _levels(parts: Mapping[str, Sequence[Row]], protocol: str) -> Table:
    """All methods, with the mean of each seed."""
    rows = []
    for name, own in parts.items():
        if name.endswith(_SWAPPED):
            continue
        seeds = {
            seed: _mean(pick(own, seed=seed)) for seed in dict.fromkeys(r["seed"] for r in own)
        }
        apart = ", ".join(f"{value:.3f}" for value in seeds.values()) if len(seeds) > 1 else ""
        both = [statistics.interval_of(own, metric) for metric in (METRIC, SECOND)]
        rows.append((name, *both, apart, both[0].images if both[0] else 0))
    columns = (
        Column("method"),
        *(Column(METRICS[metric].label) for metric in (METRIC, SECOND)),
        Column("Dice of each seed"),
        Column("images"),
    )
    note = "Images with a finding; mean over patients, then seeds; bootstrap over both."
    return Table(f"Levels, prompt: {name_of(protocol)}", columns, rows, (note,))


def _differences(family_: Sequence[Comparison], protocol: str) -> Table:
    names = ("cell", "minus", "difference of Dice", "Wilcoxon p", "p after Holm", "detectable")
    rows = [
        (one.a, one.b, one.difference, one.wilcoxon, one.holm, one.detectable, one.verdict)
        for one in family_
    ]
    note = "Paired by image; Holm over all cells and prompts of this ablation."
    columns = (*map(Column, names), Column("verdict"))
    return Table(f"Paired differences, prompt: {name_of(protocol)}", columns, rows, (note,))


def _of_image(parts: Mapping[str, Sequence[Row]], compared: Compared, protocol: str) -> list[Table]:
    """How much of each cell's Dice comes from the image."""
    blind = _mean(parts[compared.blind]) if compared.blind in parts else None
    rows = []
    for name in compared.cells:
        own, swapped = _mean(parts[name]), parts.get(f"{name}, {_SWAPPED}")
        other = _mean(swapped) if swapped else None
        share = None if blind is None or not own else max(0.0, own - blind) / own
        rows.append((name, own, other, blind, share))
    if blind is None and all(row[2] is None for row in rows):
        return []
    names = ("cell", "Dice", f"Dice with {_SWAPPED}", "Dice of the blind twin", "share of image")
    note = "Share: what is left of the Dice above the twin that was trained and asked in grey."
    title = f"How much comes from the image, prompt: {name_of(protocol)}"
    return [Table(title, tuple(map(Column, names)), rows, (note,))]
