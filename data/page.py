"""The page of a fingerprint: its figures as tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.fingerprint import PLAUSIBLE, Figures

_SHOWN = 10  # Ids or reasons of a kind; `fingerprint.json` has all.


def page(figures: Figures) -> str:
    """The whole page, without its pictures."""
    warnings = _warnings(figures)
    sections = [
        f"# Fingerprint of {figures['name']}",
        _table(("", ""), _overview(figures)),
        "## Grey levels\n\n"
        + _table(
            ("percentile", "mean over images", "standard deviation"),
            [(name[1:], one["mean"], one["std"]) for name, one in figures["intensity"].items()],
        ),
        "## Classes by view, sex and age\n\n"
        + _table(
            ("", "", "images", "with a finding", "labels"),
            [
                (column, group, one["images"], one["with_finding"], _listed(one["labels"]))
                for column, groups in figures["balance"].items()
                for group, one in groups.items()
            ],
        ),
        "## Copies\n\n" + _copies(figures["duplicates"]),
        "## Shortcuts\n\n" + _shortcuts(figures["shortcuts"]),
        "## Warnings\n\n" + (_table(("images", "what"), warnings) if warnings else "None."),
    ]
    return "\n\n".join(sections) + "\n"


def _overview(figures: Figures) -> list[tuple[str, str]]:
    sizes, objects, spacing = figures["sizes"], figures["objects"], figures["spacing"]
    films = f"{spacing['known']} images"
    if spacing["known"]:
        low, high = map(int, PLAUSIBLE)
        films += (
            f", {spacing['plausible']} of them plausible for a chest film "
            f"({low} to {high} mm high; here {_range(spacing['height_mm'])})"
        )
    shares = objects["share_of_image"]
    percent = {name: 100 * value for name, value in shares.items()} if shares else None
    return [
        ("images", f"{figures['images']}, {len(figures['unreadable'])} of them unreadable"),
        ("patients", str(figures["patients"])),
        ("images per patient", _range(figures["images_per_patient"])),
        ("height", _range(sizes["height"])),
        ("width", _range(sizes["width"])),
        ("width x height", f"{sizes['different']} different: {_listed(sizes['most_common'])}"),
        ("mode", _listed(figures["modes"])),
        ("grey in fact", str(figures["grey"])),
        ("with alpha", str(figures["alpha"])),
        ("bits", _listed(figures["bits"])),
        ("pixel spacing known", films),
        ("label", _listed(figures["labels"])),
        ("known outline", _listed(figures["targets"]) or "none"),
        ("images with a finding", str(objects["images_with_finding"])),
        ("objects", str(objects["total"])),
        ("objects per image", _listed(objects["per_image"])),
        ("share of the image, %", _range(percent) if percent else "no objects"),
        ("stored inverted (MONOCHROME1)", str(figures["polarity"]["monochrome1"])),
        ("licence of the set", figures["licence"]),
        ("licence of the images", _listed(figures["licences"])),
    ]


def _copies(duplicates: Figures) -> str:
    names = {"exact": "the same pixels", "near": "nearly the same"}
    rows = [
        (
            names[kind],
            one["groups"],
            one["redundant"],
            one["several_patients"],
            one["several_answers"],
        )
        for kind, one in duplicates.items()
    ]
    heads = ("", "groups", "images too many", "groups of several patients", "with several answers")
    groups = [" = ".join(group) for group in duplicates["near"]["ids"]]
    return "\n".join([_table(heads, rows), "", *(f"- {line}" for line in _some(groups))]).rstrip()


def _shortcuts(audits: Figures) -> str:
    if "refused" in audits:
        return f"Refused: {audits['refused']}."
    rows = []
    for name, audit in audits.items():
        if name == "positive":
            continue
        told = f"refused: {audit['refused']}"
        if not audit["refused"]:
            told = f"{audit['auroc']:.2f} [{audit['low']:.2f}, {audit['high']:.2f}]"
        n = f"{audit['images']} ({audit['positive']} positive), {audit['groups']} patients"
        rows.append((name.replace("_", " "), told, n))
    return (
        f"How well the label (positive: {audits['positive']}) follows from what shows no finding. "
        "Logistic regression, patients and copies in one fold; chance is 0.50.\n\n"
        + _table(("from", "AUROC [95 % interval]", "n"), rows)
    )


def _warnings(figures: Figures) -> list[tuple[int, str]]:
    spacing, copies = figures["spacing"], figures["duplicates"]["near"]
    readable = figures["images"] - len(figures["unreadable"])
    lost = [f"{one['id']}: {one['reason']}" for one in figures["unreadable"]]
    odd = figures["polarity"]
    found = [
        (len(lost), f"unreadable: {'; '.join(_some(lost))}"),
        (readable - spacing["known"], "pixel spacing unknown"),
        (spacing["known"] - spacing["plausible"], "pixel spacing implausible for a chest film"),
        (
            odd["looks_inverted"],
            f"look inverted, brighter around than within: {', '.join(_some(odd['ids']))}",
        ),
        (copies["redundant"], "copies of another image"),
        *((count, note) for note, count in figures["notes"].items()),
    ]
    return [row for row in found if row[0]]


def _range(values: Mapping[str, float]) -> str:
    low, middle, high = (f"{values[name]:.4g}" for name in ("min", "median", "max"))
    return low if low == high else f"{low} to {high}, median {middle}"


def _listed(counts: Mapping[str, int]) -> str:
    names = [f"{name}: {count}" for name, count in counts.items()]
    return ", ".join(_some(names))


def _some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
