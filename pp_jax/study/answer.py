"""What the study found, in plain words and tables, from the rows of its reports."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from pp_jax.evaluate.analysis import p_value
from pp_jax.evaluate.evidence import name_of, pick
from pp_jax.evaluate.sections import Column, Section, Table
from pp_jax.evaluate.statistics import Comparison, Interval, adjust, compare, interval_of
from pp_jax.evaluate.subjects import MODEL, Row
from pp_jax.study.settings import PROMPTS, TUNED, ZERO_SHOT
from pp_jax.study.stages import DECODER, LORA, UNET, models, with_filter

METRIC = "dice"
SWAPPED = "another patient's image"
UNSEEN = MappingProxyType({"centre": "mean shape", "none": "atlas"})  # By prompt: sees no pixel.
_ASKED = MappingProxyType({"centre": "With one click on the centre", "none": "Without a prompt"})


class Scores(NamedTuple):
    """Rows of the reports' images.csv."""

    choice: Mapping[int, Sequence[Row]]  # By fold; the filters are models.
    folds: Mapping[int, Sequence[Row]]  # By fold, those that are reported.
    screen: Sequence[Row]  # SAM as it is, behind each filter.
    zero_shot: Sequence[Row]  # Under every protocol.


class Pair(NamedTuple):
    """A difference that is asked for."""

    prompt: str
    a: str
    b: str


def best_filters(
    choice: Mapping[int, Sequence[Row]], candidates: Sequence[str], *, count: int
) -> dict[str, float]:
    """The best of the candidates by the mean Dice under the primary prompts, best first.

    Only the rows of folds 0 and 1 are read. Of equal ones the first counts.

    Args:
      choice: Rows by fold, in which each candidate is a method.
      candidates: In their order.
      count: How many.

    Raises:
      ValueError: A candidate without a score.
    """
    rows = list(itertools.chain(*(choice[fold] for fold in TUNED)))
    means: dict[str, float] = {}
    for name in candidates:
        found = [_level(rows, name, prompt) for prompt in PROMPTS]
        if None in found:
            raise ValueError(f"the filter {name} has no score on folds 0 and 1: score them again")
        # Equal means are equal, not apart by the last bit of their sums.
        means[name] = round(sum(found) / len(found), 12)
    return dict(sorted(means.items(), key=lambda item: -item[1])[:count])


def rows_of(rows: Iterable[Row], method: str, prompt: str) -> list[Row]:
    """A method's own masks of images with a finding."""
    found = pick(rows, method=method, protocol=prompt, choice=MODEL)
    return [row for row in found if row["objects"]]


def mean_of(rows: Iterable[Row], method: str, prompt: str) -> Interval | None:
    """The mean Dice of a method with its interval; None where it was not asked."""
    return interval_of(rows_of(rows, method, prompt), METRIC)


def _level(rows: Iterable[Row], method: str, prompt: str) -> float | None:
    """The mean alone, without the draws for an interval."""
    found = interval_of(rows_of(rows, method, prompt), METRIC, samples=1)
    return found.mean if found else None


def differences(rows: Sequence[Row], pairs: Iterable[Pair]) -> dict[Pair, Comparison]:
    """Each pair that has rows, as one family: p-values are corrected over all of them."""
    found = {}
    for pair in pairs:
        a, b = (rows_of(rows, name, pair.prompt) for name in (pair.a, pair.b))
        comparison = compare(a, b, metric=METRIC) if a and b else None
        if comparison is not None:
            found[pair] = comparison
    return dict(zip(found, adjust(list(found.values())), strict=True))


def word_of(comparison: Comparison) -> str:
    """better, worse, equivalent or undecided, as the interval and the corrected p allow."""
    verdict = comparison.verdict
    if verdict.startswith(("better", "worse")):
        return verdict.split(",")[0]
    return "equivalent" if verdict.startswith("no difference") else "undecided"


def sentence(pair: Pair, comparison: Comparison) -> str:
    """The difference in plain words, with its interval."""
    own, word = comparison.difference, word_of(comparison)
    told = f"{own.mean:+.3f} [{own.low:+.3f}, {own.high:+.3f}], {_people(own.patients)}"
    if comparison.holm is not None:
        told += f", p after Holm {p_value(comparison.holm)}"
    if word in ("better", "worse"):
        small = f", but by less than {comparison.margin:g}" if comparison.equivalent else ""
        return f"{pair.a} is {word} than {pair.b}{small}: Dice {told}."
    if word == "equivalent":
        return (
            f"{pair.a} and {pair.b} are equivalent: the difference lies surely within "
            f"{comparison.margin:g}. Dice {told}."
        )
    rest = ""
    if comparison.detectable is not None:
        rest = (
            f"; before correction so many patients would have shown a difference of "
            f"{comparison.detectable:.3f}"
        )
    return f"Whether {pair.a} is better than {pair.b} is undecided: Dice {told}{rest}."


def _people(count: int) -> str:
    return "1 patient" if count == 1 else f"{count} patients"


def family(filters: Sequence[str]) -> list[Pair]:
    """The declared comparisons: each training against none, each filter against no filter."""
    pairs = []
    for prompt in PROMPTS:
        for model in (DECODER, LORA):
            pairs.append(Pair(prompt, model, ZERO_SHOT))
            pairs += [Pair(prompt, with_filter(one, model), model) for one in filters]
    return pairs


def sections(
    scores: Scores,
    *,
    filters: Mapping[str, float],
    folds: int,
    target: str,
    doubts: Sequence[str] = (),
) -> list[Section]:
    """The report, from the answer to the scores under every protocol.

    Args:
      scores: Rows of all reports.
      filters: From `best_filters`.
      folds: How many there were.
      target: What was scored against, a name of `data.targets`.
      doubts: More that a reader must know.
    """
    rows = list(itertools.chain(*scores.folds.values()))
    names = models(tuple(filters))
    primary = differences(rows, family(tuple(filters)))
    tuned = " and ".join(map(str, TUNED))
    reported = ", ".join(map(str, sorted(scores.folds)))
    about = [
        f"Filters were chosen on folds {tuned} of {folds} patient-disjoint ones; all that follows "
        f"is of images with a finding in folds {reported}. No score of theirs had a say in it; the "
        "models of the choice were trained on their patients, as in any stacking.",
        *_of_target(target),
        *doubts,
        "One training of each: what another seed would change is in no interval.",
    ]
    found = [
        Section("The answer", [*_answers(primary), *_of_image(rows, names)]),
        Section("What was compared", about, [_choice(scores, filters)]),
        Section(
            "The declared family",
            (),
            [_differences(primary, "Primary differences, Holm over all of them")],
        ),
    ]
    for prompt in PROMPTS:
        found.append(
            Section(
                f"Prompt: {name_of(prompt)}", _beside(rows, names, prompt), [_levels(rows, prompt)]
            )
        )
    return [*found, _screened(scores.screen), _as_it_is(scores.zero_shot)]


def _of_target(target: str) -> list[str]:
    if target == "mask":
        return ["Targets are the experts' masks; a finding without one is its filled box."]
    return [
        f"No experts' masks were given: targets are made of RSNA's boxes ({target}). Every figure "
        "says how well these are met, not how well findings are outlined."
    ]


def _answers(primary: Mapping[Pair, Comparison]) -> list[str]:
    """A paragraph for each question and prompt."""
    questions = {
        "Does fine-tuning make SAM better?": lambda pair: pair.b == ZERO_SHOT,
        "Do filters add to fine-tuning?": lambda pair: pair.b != ZERO_SHOT,
    }
    told = []
    for question, belongs in questions.items():
        for prompt in PROMPTS:
            own = [
                sentence(pair, one)
                for pair, one in primary.items()
                if pair.prompt == prompt and belongs(pair)
            ]
            if own:
                told.append(f"{question} {_ASKED[prompt]}: {' '.join(own)}")
    return told


def _best_of(rows: Sequence[Row], names: Iterable[str], prompt: str) -> str | None:
    means = {name: _level(rows, name, prompt) for name in names}
    known = {name: mean for name, mean in means.items() if mean is not None}
    return max(known, key=known.__getitem__) if known else None


def _of_image(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """How much of the best model's Dice comes from the image."""
    told = []
    for prompt in PROMPTS:
        best = _best_of(rows, (ZERO_SHOT, *names), prompt)
        if best is None:
            continue
        others = ("blind", UNSEEN[prompt], f"{best}, {SWAPPED}")
        pairs = [Pair(prompt, best, other) for other in others]
        own = [sentence(pair, one) for pair, one in differences(rows, pairs).items()]
        level = mean_of(rows, best, prompt)
        told.append(
            f"How much comes from the image? {_ASKED[prompt]}: the highest Dice is that of {best}, "
            f"{_interval(level)}, a little too high as the best of several. {' '.join(own)}"
        )
    return told


def _beside(rows: Sequence[Row], names: Sequence[str], prompt: str) -> list[str]:
    """The best model against the U-Net and the best of the classical methods."""
    best = _best_of(rows, (ZERO_SHOT, *names), prompt)
    if best is None:
        return []
    own = {ZERO_SHOT, *names, "blind", UNET, *UNSEEN.values()}
    classical = {row["method"] for row in rows} - own
    named = [name for name in sorted(classical) if not name.endswith(SWAPPED)]
    rivals = [UNET, _best_of(rows, named, prompt)]
    pairs = [Pair(prompt, best, rival) for rival in rivals if rival]
    told = [sentence(pair, one) for pair, one in differences(rows, pairs).items()]
    note = (
        "Both the model and the classical method are the best on these very images, which favours "
        "them; it is no declared comparison."
    )
    return [*told, note] if told else []


def _interval(one: Interval) -> str:
    return f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _choice(scores: Scores, filters: Mapping[str, float]) -> Table:
    """Dice of the decoder with each filter on the folds of the choice."""
    rows = list(itertools.chain(*(scores.choice[fold] for fold in TUNED)))
    names = dict.fromkeys(row["method"] for row in rows)
    body = [
        (name, *(mean_of(rows, name, prompt) for prompt in PROMPTS), "yes" * (name in filters))
        for name in names
        if any(rows_of(rows, name, prompt) for prompt in PROMPTS)
    ]
    columns = (Column("filter"), *map(Column, map(name_of, PROMPTS)), Column("chosen"))
    return Table("Choice of the filters: Dice on folds 0 and 1", columns, body)


def _differences(found: Mapping[Pair, Comparison], title: str) -> Table:
    body = [
        (
            name_of(pair.prompt),
            pair.a,
            pair.b,
            one.difference,
            p_value(one.wilcoxon),
            p_value(one.holm),
            one.detectable,
            one.verdict,
        )
        for pair, one in found.items()
    ]
    names = ("prompt", "method", "minus", "Dice", "Wilcoxon p", "p after Holm", "detectable")
    note = "Paired on the same images and clicks; bootstrap over patients."
    return Table(title, (*map(Column, names), Column("verdict")), body, (note,))


def _levels(rows: Sequence[Row], prompt: str) -> Table:
    """Dice and NSD of everything that was asked."""
    body = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = rows_of(rows, name, prompt)
        if own:
            body.append(
                (name, *(interval_of(own, metric) for metric in (METRIC, "nsd_1")), len(own))
            )
    columns = (
        Column("method"),
        Column("Dice", higher_is_better=True),
        Column("NSD at 1 %", higher_is_better=True),
        Column("images"),
    )
    return Table(f"All methods, prompt: {name_of(prompt)}", columns, body)


def _screened(rows: Sequence[Row]) -> Section:
    """SAM as it is, behind each filter minus without one, as a family of its own."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = [
        name for name in methods[1:] if not name.endswith(SWAPPED) and name not in UNSEEN.values()
    ]
    pairs = [Pair(prompt, name, methods[0]) for prompt in PROMPTS for name in cells]
    found = differences(rows, pairs)
    counts = {
        word: sum(word_of(one) == word for one in found.values())
        for word in ("better", "worse", "equivalent", "undecided")
    }
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    words = f"Of {len(found)} comparisons of SAM as it is behind a filter with no filter: {told}."
    table = _differences(found, "Filters without training, Holm over all of them")
    return Section("Filters without training", [words], [table])


def _as_it_is(rows: Sequence[Row]) -> Section:
    """SAM under every protocol, beside what sees no pixel."""
    body = []
    for prompt in dict.fromkeys(row["protocol"] for row in rows):
        names = (ZERO_SHOT, f"{ZERO_SHOT}, {SWAPPED}", "mean shape", "atlas")
        body.append((name_of(prompt), *(mean_of(rows, name, prompt) for name in names)))
    names = ("prompt", ZERO_SHOT, SWAPPED, "mean shape", "atlas")
    table = Table("Dice of SAM as it is, all patients", tuple(map(Column, names)), body)
    return Section("SAM as it is, under every protocol", (), [table])


def cost_section(rows: Sequence[tuple[str, int, float, float]]) -> Section:
    """What the study took.

    Args:
      rows: Stage, programs, seconds, GiB.
    """
    hours = sum(row[2] for row in rows) / 3600
    told = f"{hours:.1f} hours of computing and {sum(row[3] for row in rows):.1f} GiB on the disk."
    columns = (
        Column("stage"),
        Column("programs"),
        Column("time", "s", digits=0),
        Column("disk", "GiB", digits=2),
    )
    return Section("What it cost", [told], [Table("Time and disk of the stages", columns, rows)])
