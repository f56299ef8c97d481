"""What an ablation found: each cell of its grid against the first, paired, in tables and words.

Made from a report of eval.py (OUT/report), in which each cell is a model with its seeds.

OUT/ablation.md, ablation.html, differences-PROTOCOL.png
"""

import itertools
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
    first: str  # A cell.
    pairs: Mapping[str, str]  # What each other cell is compared with.
    blind: str  # The first cell's twin, which saw nothing; empty: there is none.
    prompts: tuple[str, ...]  # Protocols, all of them primary.
    told: Mapping[str, Any]  # What a reader must know of the grid.

    @property
    def cells(self) -> tuple[str, ...]:
        """All of them."""
        return (self.first, *self.pairs)


def write(out: Path, compared: Compared, *, more: Sequence[Section] = ()) -> str:
    """The answer in words, after tables and pictures stand in the folder.

    Args:
      out: The ablation's folder, with the report.
      compared: Its cells.
      more: Sections behind the ablation's own.

    Raises:
      FileNotFoundError: There is no report.
      ValueError: A cell has no rows there.
    """
    rows = files.read_rows(out / "report" / "images.csv")
    found = family(rows, compared)
    parts = {protocol: _cells(rows, protocol) for protocol in found}
    sections = [_answer(found, compared, parts)]
    sections += [_of_protocol(out, protocol, found, compared, parts) for protocol in found]
    told = {"title": compared.question, "settings": compared.told}
    tables.write_markdown(out / "ablation.md", [*sections, *more], **told)
    page.write_page(out / "ablation.html", [*sections, *more], **told)
    return "\n".join(sections[0].paragraphs)


def family(rows: Sequence[Row], compared: Compared) -> dict[str, list[Comparison]]:
    """By protocol, each cell minus its pair; p-values are adjusted over all of them together.

    Images without a finding are left out: there is nothing that a filter could help to outline.
    A cell that is equal on every patient counts with a p of 1: it is of the family as declared.

    Raises:
      ValueError: A cell without rows.
    """
    told = []
    for protocol in compared.prompts:
        parts = _cells(rows, protocol)
        if missing := [name for name in compared.cells if name not in parts]:
            raise ValueError(f"the report has no rows of {missing[0]} with a finding, {protocol}")
        for name, other in compared.pairs.items():
            one = statistics.compare(parts[name], parts[other], metric=METRIC)
            alike = one.wilcoxon is None and one.difference.low == one.difference.high == 0
            told.append(one._replace(wilcoxon=1.0) if alike else one)
    adjusted = iter(statistics.adjust(told))
    return {
        protocol: list(itertools.islice(adjusted, len(compared.pairs)))
        for protocol in compared.prompts
    }


def _cells(rows: Sequence[Row], protocol: str) -> dict[str, list[Row]]:
    """Of images with a finding, the models' own choices by method."""
    chosen = pick(rows, protocol=protocol, choice=MODEL)
    return by_method([row for row in chosen if row["objects"]])


def _answer(
    found: Mapping[str, Sequence[Comparison]],
    compared: Compared,
    parts: Mapping[str, Mapping[str, Sequence[Row]]],
) -> Section:
    told = []
    for protocol, own in found.items():
        kinds = {
            "Better": [one for one in own if _holds(one) and one.difference.mean > 0],
            "Worse": [one for one in own if _holds(one) and one.difference.mean < 0],
        }
        rest = [one for one in own if not _holds(one)]
        same = [one for one in rest if one.equivalent]
        rest = [one for one in rest if not one.equivalent]
        if same:
            kinds[f"Equivalent within {same[0].margin}"] = same
        sizes = [one.detectable for one in rest if one.detectable is not None]
        seen = f" (before correction, {max(sizes):.3f} can be detected)" if sizes else ""
        kinds[f"Undecided{seen}"] = rest
        words = (
            f"{kind}: {', '.join(map(_worded, ones))}." for kind, ones in kinds.items() if ones
        )
        told.append(f"Prompt: {name_of(protocol)}. {' '.join(words)}")
    told += [
        f"Prompt: {name_of(protocol)}. {_image_words(own, compared)}"
        for protocol, own in parts.items()
    ]
    return Section("Answer", told)


def _holds(one: Comparison) -> bool:
    """Whether a difference stands after the correction, by its interval as well."""
    interval = one.difference
    corrected = 1.0 if one.holm is None else one.holm  # 0.0 is a p-value too.
    return corrected <= 0.05 and not interval.low <= 0 <= interval.high


def _worded(one: Comparison) -> str:
    own = one.difference
    return f"{one.a} minus {one.b} {own.mean:+.3f} [{own.low:+.3f}, {own.high:+.3f}]"


def _image_words(parts: Mapping[str, Sequence[Row]], compared: Compared) -> str:
    """How much of the first cell's Dice comes from the image."""
    own = _mean(parts[compared.first])
    told = [f"Dice of {compared.first}: {own:.3f}"]
    for name, said in (
        (f"{compared.first}, {_SWAPPED}", "shown another patient's image"),
        (compared.blind, "its twin that was trained and asked in grey"),
    ):
        if name in parts:
            gain = statistics.compare(parts[compared.first], parts[name], metric=METRIC).difference
            told.append(
                f"{said}: {_mean(parts[name]):.3f}, less by {gain.mean:.3f} "
                f"[{gain.low:.3f}, {gain.high:.3f}], {gain.mean / own if own else 0:.0%} of it"
            )
    return "; ".join(told) + "."


def _mean(rows: Sequence[Row]) -> float:
    one = statistics.interval_of(rows, METRIC, samples=1)
    return one.mean if one else 0.0


def _of_protocol(
    out: Path,
    protocol: str,
    found: Mapping[str, Sequence[Comparison]],
    compared: Compared,
    parts: Mapping[str, Mapping[str, Sequence[Row]]],
) -> Section:
    path = out / f"differences-{protocol.replace(':', '_')}.png"
    intervals = {f"{one.a} minus {one.b}": one.difference for one in found[protocol]}
    plots.forest(path, intervals, label="difference of Dice")
    return Section(
        f"Prompt: {name_of(protocol)}",
        tables=(
            _levels(parts[protocol], protocol),
            _differences(found[protocol], protocol),
            *_of_image(parts[protocol], compared, protocol),
        ),
        pictures=(Picture(path, f"Differences, prompt: {name_of(protocol)}"),),
    )


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
    wanted = [(name, f"{name}, {_SWAPPED}", _SWAPPED) for name in compared.cells]
    wanted.append((compared.first, compared.blind, "blind twin"))
    rows = []
    for name, without, word in wanted:
        if without in parts:
            one = statistics.image_contribution(parts[name], parts[without], metric=METRIC)
            own, other = _mean(parts[name]), _mean(parts[without])
            share = one.difference.mean / own if own else None
            rows.append((name, word, own, other, one.difference, share))
    if not rows:
        return []
    names = ("cell", "beside", "Dice", "Dice without its image", "difference", "share of the Dice")
    note = f"The blind twin was trained like {compared.first}, from its weights, and saw grey."
    title = f"How much comes from the image, prompt: {name_of(protocol)}"
    return [Table(title, tuple(map(Column, names)), rows, (note,))]
