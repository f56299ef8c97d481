"""What a report says first: the answer, every prompt at a glance, and what the image gave."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from pp_jax.evaluate import matching, tables
from pp_jax.evaluate.controls import CONTROLS
from pp_jax.evaluate.evidence import (
    EXACT,
    NUMBERS,
    Evidence,
    by_method,
    contributions,
    count,
    differences,
    interval,
    mean,
    name_of,
    numbers,
    pick,
    primary_family,
    twins,
)
from pp_jax.evaluate.methods import METHODS
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.sections import Column, Section, Table
from pp_jax.evaluate.statistics import Comparison, Interval
from pp_jax.evaluate.subjects import ORACLE, Row

ANSWER, EVERY_PROMPT = "Answer", "Every prompt"  # Headings that plots stand under.

_RANDOM = (
    "The weights of {names} began as random numbers: these figures show that the machinery works, "
    "and tell nothing about whether SAM transfers."
)
_NO_TEST = (
    "Among the patients of part {part} may be some that a model was trained or validated on: these "
    "figures are no test."
)
_AVERAGE = (
    "Mean over the images of a patient, then over patients (and seeds), of the union of an image's "
    "objects; intervals: bootstrap over patients."
)
_EMPTY = (
    "Empty: images where both masks are (1 by definition, HD95 0), and where one is (0, and HD95 "
    "the diagonal). HD95: % of the longest side."
)
_TIME = (
    "Seconds per image: median over the images, all objects of an image together, without its "
    "reading; of a model with the image's encoding. They differ from run to run."
)
_SHOWN = ("dice", "nsd_1", "hd95")  # With intervals, beside the primary metric.
_BLIND = tuple(METHODS[name].label for name in CONTROLS)  # Guesses that see no pixel.
_PROVEN = ("better", "the image was used")  # How a verdict begins that supports a claim.
_DROPPED = ("f1",)  # Of pixels, F1 is Dice.


def column(metric: str) -> Column:
    """The column of a metric."""
    row = METRICS[metric]
    unit = "%" if row.unit.startswith("%") else row.unit  # Of what is in a note.
    return Column(row.label, unit, _DIGITS.get(metric, 3), row.higher_is_better)


def p_value(p: float | None) -> str | None:
    """As journals print it: "< 0.001", "0.012"."""
    if p is None:
        return None
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


# The answer.


def answer(evidence: Evidence) -> Section:
    """The primary endpoint in plain words, its table, and the differences to all others."""
    metric, protocol = evidence.primary
    own = pick(evidence.rows(protocol), method=evidence.first)
    found = interval(evidence, own, metric)
    if found is None:
        told = f"No image has a value of {METRICS[metric].label} under: {name_of(protocol)}."
        return Section(ANSWER, [f"The primary endpoint could not be computed. {told}"])
    family = primary_family(evidence)
    best = _best_guess(evidence, family)
    used = {one.a: one for one in contributions(evidence, protocol)}
    blind = {one.a: one for one in twins(evidence)}
    claims = {
        "is better than the best guess that sees no pixel": best,
        "uses the image": used.get(evidence.first),
    }
    if evidence.first in {**blind, **evidence.plan["missing_twins"]}:
        claims["is better than its blind twin"] = blind.get(evidence.first)
    told = [
        f"Primary endpoint, laid down before the first image was read: {METRICS[metric].label} of "
        f"{evidence.first}; prompt: {name_of(protocol)}. It is {_text(found, metric)} "
        f"({_counts(own)}).",
        _against_guess(evidence, best),
        *_used(evidence, used),
        *_against_twin(evidence, blind),
        _allowed(evidence, found, claims),
        *warnings(evidence),
    ]
    made = [main_table(evidence, protocol)]
    if family:
        margin = evidence.plan["settings"]["margin"]
        note = f"p after Holm counts. Equivalent: within {margin:g} (two one-sided tests, 5 %)."
        made.append(_differences("Primary comparisons", family, note))
    return Section(ANSWER, told, made)


def _best_guess(evidence: Evidence, family: Sequence[Comparison]) -> Comparison | None:
    """The comparison with the best of the guesses that see no pixel; None where none answers."""
    metric, protocol = evidence.primary
    sign = 1 if METRICS[metric].higher_is_better else -1
    rows = by_method(evidence.rows(protocol))
    guesses = [one for one in family if one.b in _BLIND]
    return max(guesses, key=lambda one: sign * mean(rows[one.b], metric).mean, default=None)


def _against_guess(evidence: Evidence, best: Comparison | None) -> str:
    metric, protocol = evidence.primary
    if best is None:
        more = "; see those of the exact box" if EXACT in evidence.protocols() else ""
        return f"No guess that sees no pixel was scored under this prompt{more}."
    own = interval(evidence, pick(evidence.rows(protocol), method=best.b), metric)
    return (
        f"The best guess that sees no pixel, {best.b}: {_text(own, metric)}. "
        f"{best.a} minus {best.b}: {_text(best.difference, metric)}; {best.verdict}."
    )


def _used(evidence: Evidence, used: Mapping[str, Comparison]) -> list[str]:
    if evidence.first not in used:
        return [
            "Whether the image was used was not measured: score two patients or more, with `swap` "
            "among the methods."
        ]
    return [
        f"Image contribution, {name} on the own image minus another patient's: "
        f"{_text(one.difference, one.metric)}; {one.verdict}."
        for name, one in used.items()
    ]


def _against_twin(evidence: Evidence, blind: Mapping[str, Comparison]) -> list[str]:
    told = [
        f"{name} minus its blind twin, trained alike on blank images: "
        f"{_text(one.difference, one.metric)}; {one.verdict}."
        for name, one in blind.items()
    ]
    for name, command in evidence.plan["missing_twins"].items():
        none = f"{name} has no blind twin, the same training on blank images"
        told += (
            [f"{none}. Make it with:", f"$ {command}"]
            if command
            else [f"{none}: its only loss reads pixels."]
        )
    return told


def _allowed(evidence: Evidence, own: Interval, found: Mapping[str, Comparison | None]) -> str:
    """What may be said of the first model, and what may not.

    Args:
      evidence: Names it.
      own: Its figure.
      found: By what may be said of it, the comparison that would show it; None: not made.
    """
    part = evidence.plan["settings"]["part"]
    if part != "test" and any(m["trained_on"] for m in evidence.plan["models"]):
        return f"What these data allow: no conclusion. {_NO_TEST.format(part=part)}"
    if any(one is not None and one.equivalent is None for one in found.values()):
        few = f"{own.patients} patient{'s are' if own.patients > 1 else ' is'} too few for a test"
        return f"What these data allow: no conclusion, {few}."
    proven = [
        claim for claim, one in found.items() if one is not None and one.verdict.startswith(_PROVEN)
    ]
    open_ = [claim for claim in found if claim not in proven]
    told = [f"it may be said that {evidence.first} {' and '.join(proven)}"] if proven else []
    told += [f"it may not be said that {evidence.first} {' or '.join(open_)}"] if open_ else []
    return f"What these data allow: {'; '.join(told)}."


def warnings(evidence: Evidence) -> list[str]:
    """What a reader must know before any figure."""
    random = [
        m["label"] for m in evidence.plan["models"] if m["from_random"] and m["kind"] == "model"
    ]
    told = [_RANDOM.format(names=", ".join(dict.fromkeys(random)))] if random else []
    return told + list(target_notes(evidence))


def target_notes(evidence: Evidence) -> tuple[str, ...]:
    """What each table must say of targets that no reader outlined."""
    return tables.target_notes(row["target"] for row in evidence.scores.images)


def _text(one: Interval, metric: str) -> str:
    return tables.text(one, column(metric))


def _counts(rows: Sequence[Row]) -> str:
    held = zip(count(rows), ("object", "image", "patient"), strict=True)
    seeds = len({row["seed"] for row in rows})
    told = [f"{n} {word}{'s' * (n != 1)}" for n, word in held]
    return ", ".join([*told, f"{seeds} seeds"] if seeds > 1 else told)


# Tables of methods.


def main_table(evidence: Evidence, protocol: str) -> Table:
    """All methods under one protocol: how many there are, the main figures, and the time."""
    metrics = tuple(dict.fromkeys((evidence.primary[0], *_SHOWN)))
    seconds = evidence.scores.seconds
    rows = []
    for name, own in by_method(evidence.rows(protocol)).items():
        empty = [row["empty"] for row in own]
        took = seconds.get((name, protocol))
        rows.append(
            (
                name,
                *count(own),
                len({row["seed"] for row in own}),
                *(interval(evidence, own, metric) for metric in metrics),
                float(np.median(took)) if took else None,
                f"{empty.count('both')} / {empty.count('one')}",
            )
        )
    columns = (
        Column("method"),
        *map(Column, ("objects", "images", "patients", "seeds")),
        *map(column, metrics),
        Column("seconds per image", digits=4),
        Column("empty: both / one"),
    )
    if all(row[4] == 1 for row in rows):
        columns, rows = columns[:4] + columns[5:], [row[:4] + row[5:] for row in rows]
    found = [cell for row in rows for cell in row if isinstance(cell, Interval)]
    several = len({one.images for one in found}) > 1
    notes = [_AVERAGE, _EMPTY, *(_fewer(evidence.rows(protocol), metrics) if several else ())]
    if any(spec == protocol for _, spec in seconds):
        notes.append(_TIME)
    return Table(f"Prompt: {name_of(protocol)}", columns, rows, notes)


def _fewer(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """Of metrics that some images have no value of: how many have."""
    whole, told = count(rows), []
    for metric in metrics:
        known = count([row for row in rows if row[metric] is not None])
        if 0 < known.images < whole.images:
            label = METRICS[metric].label if metric in METRICS else "HD95 in mm"
            told.append(f"{label}: {known.images} images of {known.patients} patients have it.")
    return told


def details_section(evidence: Evidence, protocol: str) -> Section:
    """All figures of all methods under one protocol; of the primary one, what is not yet said."""
    parts = by_method(evidence.rows(protocol))
    made = [_all_metrics(protocol, parts), _matched_table(protocol, parts)]
    if protocol != evidence.primary[1]:
        made.insert(0, main_table(evidence, protocol))
        if found := differences(evidence, protocol):
            title = f"Paired differences, prompt: {name_of(protocol)}"
            made.append(_differences(title, found, "Secondary: p is not adjusted."))
    guessed = "Guesses alone, as a common measure."
    told = [] if evidence.first in parts else [guessed]
    return Section(f"All figures: {name_of(protocol)}", told, made)


def _differences(title: str, found: Sequence[Comparison], note: str) -> Table:
    """Comparisons of one method, which the title names, with others."""
    names = list(dict.fromkeys(one.a for one in found))
    several = len(names) > 1
    columns = (
        *((Column("method"),) if several else ()),
        Column("against"),
        Column(f"difference of {METRICS[found[0].metric].label}"),
        *map(Column, ("images", "patients", "Wilcoxon p", "p after Holm", "detectable", "verdict")),
    )
    rows = [
        (
            *((one.a,) if several else ()),
            one.b,
            one.difference,
            one.difference.images,
            one.difference.patients,
            p_value(one.wilcoxon),
            p_value(one.holm),
            one.detectable,
            one.verdict,
        )
        for one in found
    ]
    detectable = "Detectable: the smallest difference that is found with a power of 80 %."
    whose = "" if several else f", {names[0]} minus each"
    return Table(f"{title}{whose}", columns, rows, (note, detectable))


def _all_metrics(protocol: str, parts: Mapping[str, Sequence[Row]]) -> Table:
    names = [n for n in (*METRICS, "hd95_mm") if n not in (*_SHOWN, *_DROPPED)]
    columns = [Column("HD95", "mm", 1, False) if n == "hd95_mm" else column(n) for n in names]
    rows = []
    for method, own in parts.items():
        means = [mean(own, name) for name in names]
        told = (None if one is None else one.mean for one in means)
        rows.append((method, numbers(own), *told))
    notes = ["Means as of Dice. Spurious area: % of the image."]
    for own in list(parts.values())[:1]:
        notes += _fewer(own, names)
    if any(row[-1] is not None for row in rows):
        notes.append("mm: only where rows x spacing is plausible for a chest film (250 to 600 mm).")
    title = f"All other metrics, prompt: {name_of(protocol)}"
    return Table(title, (Column("method"), Column(NUMBERS), *columns), rows, notes)


def _matched_table(protocol: str, parts: Mapping[str, Sequence[Row]]) -> Table:
    rows = []
    for method, own in parts.items():
        found = matching.total(
            matching.Matched(row["tp"], row["fp"], row["fn"], row["matched_iou"]) for row in own
        )
        figures = (
            matching.panoptic_quality(found),
            matching.sensitivity(found),
            matching.false_positives(found, images=len(own)),
        )
        rows.append((method, numbers(own), *figures))
    return Table(
        f"Objects matched at IoU 0.5, prompt: {name_of(protocol)}",
        (
            Column("method"),
            Column(NUMBERS),
            Column("panoptic quality", higher_is_better=True),
            Column("sensitivity", higher_is_better=True),
            Column("false positives per image", higher_is_better=False),
        ),
        rows,
        ("Over all objects. Components under 0.1 % of the image are ignored on both sides.",),
    )


# Sections over several prompts.


def every_prompt_section(evidence: Evidence) -> Section | None:
    """The Dice of every method under every prompt at a glance; None of a single prompt."""
    specs = evidence.protocols()
    if len(specs) < 2:
        return None
    parts = {spec: by_method(evidence.rows(spec)) for spec in specs}
    left_out = evidence.labels("swap")
    names = dict.fromkeys(n for own in parts.values() for n in own if n not in left_out)
    trained = trained_under(evidence)
    rows = []
    for spec, own in parts.items():
        found = [mean(own[name], "dice") if name in own else None for name in names]
        told = (None if one is None else one.mean for one in found)
        rows.append((name_of(spec), numbers([r for part in own.values() for r in part]), *told))
    titles = [f"{n} (trained under: {trained[n]})" if n in trained else n for n in names]
    columns = map(Column, ("prompt", NUMBERS, *titles))
    note = "Intervals: under the prompt's own heading below. Guesses do not look at corrections."
    return Section(EVERY_PROMPT, (), [Table("Dice by prompt", (*columns,), rows, (_AVERAGE, note))])


def trained_under(evidence: Evidence) -> dict[str, str]:
    """The prompt of each run's training; nothing of weights that are not of a run."""
    return {
        m["label"]: m["trained_under"]
        for m in evidence.plan["models"]
        if m["kind"] == "model" and m["trained_under"]
    }


def training_matrix(evidence: Evidence) -> tuple[np.ndarray, list[str], list[str]] | None:
    """Dice by model and test prompt, NaN where there is none, with the names of both.

    None without a run, or under one prompt.
    """
    trained, specs = trained_under(evidence), evidence.protocols()
    if not trained or len(specs) < 2:
        return None
    models = evidence.labels("model")
    found = np.full((len(models), len(specs)), np.nan)
    for j, spec in enumerate(specs):
        parts = by_method(evidence.rows(spec))
        for i, name in enumerate(models):
            if name in parts:
                found[i, j] = mean(parts[name], "dice").mean
    return found, [f"{n} ({trained.get(n, 'not fine-tuned')})" for n in models], specs


def contribution_section(evidence: Evidence) -> Section | None:
    """What each model owes to the image; None where no image was exchanged and no twin stands."""
    metric = evidence.primary[0]
    rows = [
        (
            name_of(protocol),
            one.a,
            one.difference,
            one.difference.images,
            one.difference.patients,
            p_value(one.wilcoxon),
            one.verdict,
        )
        for protocol in evidence.protocols()
        for one in contributions(evidence, protocol)
    ]
    names = ("prompt", "method", f"drop of {METRICS[metric].label}", "images", "patients")
    columns = (*map(Column, names), Column("Wilcoxon p"), Column("verdict"))
    title = "The own image minus another patient's, same prompts"
    made = [Table(title, columns, rows)] if rows else []
    if found := twins(evidence):
        note = "A blind twin was trained alike on blank images: it knows prompts and shapes alone."
        made.append(_differences("Against the blind twin", found, note))
    return Section("Image contribution", (), made) if made else None


def choice_section(evidence: Evidence) -> Section | None:
    """What an oracle would make of the same masks; None where nothing was to choose."""
    rows = []
    for protocol in evidence.protocols():
        offered = by_method(
            pick(evidence.scores.images, protocol=protocol, choice=ORACLE),
            without=evidence.labels("swap"),
        )
        chosen = by_method(evidence.rows(protocol))
        for name, best in offered.items():
            shared = {(row["dataset"], row["id"]) for row in best}
            own = [row for row in chosen[name] if (row["dataset"], row["id"]) in shared]
            figures = (interval(evidence, part, "dice") for part in (own, best))
            rows.append((name_of(protocol), name, numbers(best), *figures))
    if not rows:
        return None
    columns = ("prompt", "method", NUMBERS, "Dice, model's choice", "Dice, oracle's choice")
    note = (
        "An oracle takes the mask that agrees best with the target, which no reader can. Automatic "
        "masks: the model's choice is that of a rule fitted on training images or other patients."
    )
    table = Table("Whose choice among the masks", (*map(Column, columns),), rows, (note,))
    return Section("The model's choice and an oracle's", (), [table])


# Behind the point, where the unit makes three of them too many.
_DIGITS: Mapping[str, int] = MappingProxyType({"hd95": 1, "spurious_count": 1, "spurious_area": 2})
