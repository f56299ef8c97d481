"""What a data set is like, in figures: `fingerprint.json`, and the page that says them in words."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from data import shortcuts
from data.duplicates import components, equal_pairs, near_pairs_within
from data.measures import MAP, PERCENTILES, Measures, Unreadable
from data.records import Record

FORMAT = 1
PLAUSIBLE = (250.0, 600.0)  # Millimetres: height of a chest film.
_AGES = (20, 40, 60, 80)
_UNKNOWN = "unknown"

Figures = dict[str, Any]  # Plain values, as JSON has them.


def fingerprint(
    records: Sequence[Record],
    measured: Sequence[Measures | Unreadable],
    *,
    name: str,
    licence: str,
) -> Figures:
    """The figures of a set, from its records and what was measured on each.

    All but `images`, `patients`, `unreadable` and the notes are of the readable images.

    Args:
      name: Of the set.
      licence: Of the set; an image may have its own.

    Raises:
      ValueError: Not one image can be read; the first reason.
    """
    held = [
        (record, one)
        for record, one in zip(records, measured, strict=True)
        if isinstance(one, Measures)
    ]
    lost = [
        {"id": record.id, "reason": one.reason}
        for record, one in zip(records, measured, strict=True)
        if isinstance(one, Unreadable)
    ]
    if not held:
        reason = f", {lost[0]['id']}: {lost[0]['reason']}" if lost else ""
        raise ValueError(f"{name}: none of {len(records)} images can be read{reason}")
    rows, seen = [record for record, _ in held], [one for _, one in held]
    per_patient = Counter(record.patient for record in records)
    groups = _groups(rows, seen)
    return {
        "format": FORMAT,
        "name": name,
        "images": len(records),
        "patients": len(per_patient),
        "images_per_patient": _range(per_patient.values()),
        "unreadable": lost,
        "sizes": _sizes(seen),
        "modes": _counts(one.mode for one in seen),
        "grey": sum(one.grey for one in seen),
        "alpha": sum(one.alpha for one in seen),
        "bits": _counts(_or_unknown(one.bits) for one in seen),
        "intensity": _intensity(seen),
        "spacing": _spacing(seen),
        "labels": _counts(record.label or _UNKNOWN for record in rows),
        "targets": _counts(record.target for record, one in held if one.position is not None),
        "balance": _balance(rows, seen),
        "objects": _objects(seen),
        "positions": _positions(seen),
        "duplicates": _duplicates(rows, seen, groups),
        "polarity": _polarity(rows, seen),
        "licence": licence,
        "licences": _counts(one.facts.licence or _UNKNOWN for one in seen),
        "notes": _counts(note for one in seen for note in one.notes),
        "shortcuts": _shortcuts(rows, seen, groups),
    }


def age_group(age: float | None) -> str:
    """The twenty years that an age lies in, such as "20-39"; "unknown" for none."""
    if age is None:
        return _UNKNOWN
    low = max((bound for bound in _AGES if bound <= age), default=0)
    return f"{low}+" if low == _AGES[-1] else f"{low}-{low + 19}"


def to_json(figures: Figures) -> str:
    """As `fingerprint.json` holds them, lists of numbers on one line."""
    text = json.dumps({**figures, "positions": None}, indent=2, ensure_ascii=False)
    grid = "[\n    " + ",\n    ".join(map(json.dumps, figures["positions"])) + "\n  ]"
    return text.replace('"positions": null', f'"positions": {grid}', 1) + "\n"


def _sizes(seen: Sequence[Measures]) -> Figures:
    heights, widths = zip(*(one.size for one in seen), strict=True)
    counts = Counter(f"{width} x {height}" for height, width in (one.size for one in seen))
    return {
        "height": _range(heights),
        "width": _range(widths),
        "different": len(counts),
        "most_common": dict(counts.most_common(10)),  # Width x height.
    }


def _intensity(seen: Sequence[Measures]) -> Figures:
    levels = np.array([one.percentiles for one in seen])
    return {
        f"p{percent}": {
            "mean": round(float(column.mean()), 2),
            "std": round(float(column.std()), 2),
        }
        for percent, column in zip(PERCENTILES, levels.T, strict=True)
    }


def _spacing(seen: Sequence[Measures]) -> Figures:
    heights = [one.size[0] * one.facts.spacing[0] for one in seen if one.facts.spacing]
    return {
        "known": len(heights),
        "plausible": sum(PLAUSIBLE[0] <= height <= PLAUSIBLE[1] for height in heights),
        "height_mm": _range(heights) if heights else None,
    }


def _balance(rows: Sequence[Record], seen: Sequence[Measures]) -> Figures:
    """Images, those with a finding, and labels by view, sex and age."""
    keys = {
        "view": lambda one: one.facts.view or _UNKNOWN,
        "sex": lambda one: one.facts.sex or _UNKNOWN,
        "age": lambda one: age_group(one.facts.age),
    }
    balance: Figures = {}
    for column, key in keys.items():
        groups: dict[str, list[tuple[Record, Measures]]] = {}
        for row, one in zip(rows, seen, strict=True):
            groups.setdefault(key(one), []).append((row, one))
        balance[column] = {
            group: {
                "images": len(groups[group]),
                "with_finding": sum(one.position is not None for _, one in groups[group]),
                "labels": _counts(row.label or _UNKNOWN for row, _ in groups[group]),
            }
            for group in sorted(groups)
        }
    return balance


def _objects(seen: Sequence[Measures]) -> Figures:
    shares = [share for one in seen for share in one.objects]
    return {
        "total": len(shares),
        "per_image": _counts(str(len(one.objects)) for one in seen),
        "images_with_finding": sum(one.position is not None for one in seen),
        "share_of_image": _range(shares) if shares else None,
    }


def _positions(seen: Sequence[Measures]) -> list[list[float]]:
    """Mean of the findings over the images that have any, on a grid over the image."""
    maps = [one.position for one in seen if one.position is not None]
    mean = np.mean(maps, axis=0, dtype=np.float64) if maps else np.zeros((MAP, MAP))
    return np.round(mean, 4).tolist()


def _groups(rows: Sequence[Record], seen: Sequence[Measures]) -> dict[str, np.ndarray]:
    """For each image the number of its group: of the same pixels, near copies, or people as well.

    One person's images, and images of several people that share a copy, are one group of people.
    """
    count = len(rows)
    digests = [one.appearance.digest for one in seen]
    patients = [record.patient for record in rows]
    exact = equal_pairs(digests, digests)
    near = [*exact, *_near(seen)]
    return {
        "exact": components(count, exact),
        "near": components(count, near),
        "people": components(count, [*near, *_chain(patients)]),
    }


def _near(seen: Sequence[Measures]) -> list[tuple[int, int]]:
    thumbnails = np.stack([one.appearance.thumbnail for one in seen])
    return [(pair.first, pair.second) for pair in near_pairs_within(thumbnails)]


def _chain(names: Sequence[str]) -> list[tuple[int, int]]:
    """Each row with the first of the same name."""
    first: dict[str, int] = {}
    return [(first.setdefault(name, row), row) for row, name in enumerate(names)]


def _duplicates(
    rows: Sequence[Record], seen: Sequence[Measures], groups: Mapping[str, np.ndarray]
) -> Figures:
    figures: Figures = {}
    for kind in ("exact", "near"):
        members: dict[int, list[int]] = {}
        for row, group in enumerate(groups[kind].tolist()):
            members.setdefault(group, []).append(row)
        several = [group for group in members.values() if len(group) > 1]
        figures[kind] = {
            "groups": len(several),
            "redundant": sum(len(group) - 1 for group in several),
            "several_patients": sum(len({rows[i].patient for i in group}) > 1 for group in several),
            "several_answers": sum(
                len({(rows[i].label, seen[i].position is None) for i in group}) > 1
                for group in several
            ),
            "ids": [[rows[i].id for i in group] for group in several],
        }
    return figures


def _polarity(rows: Sequence[Record], seen: Sequence[Measures]) -> Figures:
    """How many files hold white as 0; and who, as shown, is brighter around than within."""
    odd = [row.id for row, one in zip(rows, seen, strict=True) if _looks_inverted(one)]
    return {
        "monochrome1": sum(one.facts.inverted for one in seen),
        "looks_inverted": len(odd),
        "ids": odd,
    }


def _looks_inverted(one: Measures) -> bool:
    """Of a chest film or a head: air lies beside and above it, the spine in its middle.

    The frame is 5 % wide and leaves the lower side out, which the belly fills.
    """
    ring = np.ones(one.cells.shape, bool)
    ring[1:, 1:-1] = False
    fifth = len(one.cells) // 5
    middle = one.cells[fifth:-fifth, 2 * fifth : -2 * fifth]
    return bool(one.cells[ring].mean() > middle.mean())


def _shortcuts(
    rows: Sequence[Record], seen: Sequence[Measures], groups: Mapping[str, np.ndarray]
) -> Figures:
    found = np.array([one.position is not None for one in seen])
    try:
        positive, meaning = shortcuts.classes(found, [record.label for record in rows])
    except ValueError as error:
        return {"refused": str(error)}
    features = {
        "size_and_mode": shortcuts.size_and_mode(
            np.array([one.size for one in seen]), [one.mode for one in seen]
        ),
        "outer_frame": shortcuts.outer_frame(np.stack([one.cells for one in seen])),
    }
    audits = {
        name: asdict(shortcuts.audit(columns, positive, groups["people"]))
        for name, columns in features.items()
    }
    return {"positive": meaning, **audits}


def _or_unknown(value: object) -> str:
    return _UNKNOWN if value is None else str(value)


def _counts(names: Iterable[str]) -> dict[str, int]:
    """The most frequent first, then by name."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _range(values: Iterable[float]) -> Figures:
    numbers = np.array(list(values), np.float64)
    figures = {"min": numbers.min(), "median": np.median(numbers), "max": numbers.max()}
    return {name: float(f"{value:.6g}") for name, value in figures.items()}
