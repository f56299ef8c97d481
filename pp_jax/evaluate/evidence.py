"""What a report is made of: the rows of an evaluation, what was laid down before, comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pp_jax.evaluate import statistics
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.protocols import parse_protocol
from pp_jax.evaluate.score import Scores
from pp_jax.evaluate.statistics import Comparison, Interval
from pp_jax.evaluate.subjects import MODEL, Row

NUMBERS = "objects / images / patients"  # Heading of a column of counts.
EXACT = "box"  # The protocol under which guesses stand in every report.


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

    @property
    def first(self) -> str:
        """The model that all others are compared with."""
        return self.labels("model")[0]

    def labels(self, kind: str) -> list[str]:
        """The models of a kind, in their order: "model", "swap" or "blind"."""
        return list(dict.fromkeys(m["label"] for m in self.plan["models"] if m["kind"] == kind))

    def protocols(self) -> list[str]:
        """Under which there is an answer; of rounds of clicks those that are asked for."""
        held = {row["protocol"] for row in self.scores.images}
        wanted = dict.fromkeys([*self.plan["protocols"], self.primary[1], EXACT])
        return [spec for spec in wanted if spec in held]

    def rows(self, protocol: str) -> list[Row]:
        """One per image and method, of the masks that the models chose."""
        return pick(self.scores.images, protocol=protocol, choice=MODEL)

    def objects(self, protocol: str) -> list[Row]:
        """One per object and method, of the masks that the models chose."""
        return pick(self.scores.objects, protocol=protocol, choice=MODEL)


class Count(NamedTuple):
    """How many there are behind a figure, of one seed."""

    objects: int
    images: int
    patients: int


def pick(rows: Sequence[Row], **wanted: str) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def by_method(rows: Sequence[Row], *, without: Sequence[str] = ()) -> dict[str, list[Row]]:
    """The rows of each method, in the order of the rows: models first, then guesses."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] not in without:
            parts.setdefault(row["method"], []).append(row)
    return parts


def count(rows: Sequence[Row]) -> Count:
    """Of rows per object, or of rows per image, whatever the methods and seeds."""
    images = {(row["dataset"], row["id"]): row.get("objects", 0) for row in rows}
    told = {(row["dataset"], row["id"], row["object"]) for row in rows if "object" in row}
    patients = {(row["dataset"], row["patient"]) for row in rows}
    return Count(len(told) or sum(images.values()), len(images), len(patients))


def numbers(rows: Sequence[Row]) -> str:
    """The `count` for a column of `NUMBERS`."""
    return " / ".join(map(str, count(rows)))


def interval(evidence: Evidence, rows: Sequence[Row], metric: str) -> Interval | None:
    """Over the rows that have a value; None without any."""
    return statistics.interval_of(rows, metric, **evidence.draws)


def mean(rows: Sequence[Row], metric: str) -> Interval | None:
    """The mean as `interval` has it, and its numbers, without the cost of resampling."""
    return statistics.interval_of(rows, metric, samples=1)


def name_of(protocol: str) -> str:
    """As readers know it."""
    return parse_protocol(protocol)[1].label


# Comparisons.


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


def differences(evidence: Evidence, protocol: str) -> list[Comparison]:
    """The first model against every other method, at the primary metric; p as they are.

    The same model with another patient's image is no rival and stands apart.
    """
    parts = by_method(evidence.rows(protocol), without=evidence.labels("swap"))
    own = parts.pop(evidence.first, [])
    found = [compare(evidence, own, rows, evidence.primary[0]) for rows in parts.values()]
    return [one for one in found if one is not None]


def primary_family(evidence: Evidence) -> list[Comparison]:
    """The `differences` at the primary endpoint, adjusted together."""
    return statistics.adjust(differences(evidence, evidence.primary[1]))


def contributions(evidence: Evidence, protocol: str) -> list[Comparison]:
    """What each model owes to the image, at the primary metric."""
    metric = evidence.primary[0]
    rows = by_method(evidence.rows(protocol))
    pairs = {m["label"]: m["of"] for m in evidence.plan["models"] if m["kind"] == "swap"}
    found = [
        statistics.image_contribution(
            rows[model],
            rows[swapped],
            metric=metric,
            higher_is_better=METRICS[metric].higher_is_better,
            **evidence.draws,
        )
        for swapped, model in pairs.items()
        if model in rows and swapped in rows
    ]
    return [one for one in found if one is not None]


def twins(evidence: Evidence) -> list[Comparison]:
    """Each model against its blind twin at the primary endpoint; the first's as in the family."""
    rows = by_method(evidence.rows(evidence.primary[1]))
    pairs = {m["label"]: m["of"] for m in evidence.plan["models"] if m["kind"] == "blind"}
    family = {one.b: one for one in primary_family(evidence)}
    found = [
        family.get(twin)
        if of == evidence.first
        else compare(evidence, rows.get(of, []), rows.get(twin, []), evidence.primary[0])
        for twin, of in pairs.items()
    ]
    return [one for one in found if one is not None]
