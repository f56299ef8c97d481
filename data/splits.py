"""Who is trained on, validated on and tested on: patients, never images, are shared out."""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from math import fsum
from types import MappingProxyType

import numpy as np

from data.records import DOUBTFUL, Record

PARTS = ("train", "validation", "test")
_FIRST = ("train", "test", "validation")  # Which parts one or two patients of a kind go to.

Parts = dict[str, tuple[str, ...]]  # Sorted patient names of each of `PARTS`.


def split_patients(
    records: Sequence[Record], *, seed: int, validation: float = 0.1, test: float = 0.2
) -> Parts:
    """Sorted patient names of `train`, `validation` and `test`, disjoint, each with at least one.

    A pure function of the patients, of how many images of each finding, label and view they have,
    and of the seed. The fractions are of images. Each part has its share of all images, of those
    with a finding, of every label, of every view and of every combination, as near as whole
    patients allow; and a patient with a finding if there are three such, one without if three.

    A patient with an image of which nobody knows who it shows (`records.DOUBTFUL`) is trained on:
    in another part it might show someone who is trained on as well.

    Raises:
      ValueError: Fewer than three patients, or fractions that leave nothing for a part.
    """
    if min(validation, test) <= 0 or validation + test >= 1:
        raise ValueError(f"{validation=} and {test=} must be above 0 and leave something to train")
    traits = _count_traits(records)
    doubtful = _find_doubtful(records, traits, fewest=len(PARTS))
    if len(traits) < len(PARTS):
        raise ValueError(
            f"{len(traits)} patients cannot fill train, validation and test without one of them "
            "being in two: give at least 3 patients (a higher --limit, or more images)"
        )
    fractions = {"train": 1 - validation - test, "validation": validation, "test": test}
    return _deal(records, fractions, rng=np.random.default_rng(seed), doubtful=doubtful)


def split_folds(
    records: Sequence[Record], *, count: int, seed: int, validation: float = 0.1
) -> list[Parts]:
    """For each of `count` folds the parts as `split_patients`, every patient tested in one of them.

    The folds are as like each other as whole patients allow; what a fold does not test is trained
    on but for a share of `validation` of all images. A pure function of what `split_patients` is.

    A patient with an image of which nobody knows who it shows is trained on in every fold and
    tested in none.

    Raises:
      ValueError: Too few patients, or a share that leaves nothing to train on.
    """
    if not 0 < validation < 1 - 1 / count:
        raise ValueError(f"{validation=} must be above 0 and leave something to train in {count=}")
    traits = _count_traits(records)
    fewest = max(count, len(PARTS))
    doubtful = _find_doubtful(records, traits, fewest=fewest)
    if len(traits) < fewest:
        raise ValueError(
            f"{len(traits)} patients cannot fill {count} folds without an empty one: give at least "
            f"{fewest} patients (a higher --limit, or more images), or fewer --folds"
        )
    rng = np.random.default_rng(seed)
    known = [record for record in records if record.patient not in doubtful]
    folds = _deal(known, {str(fold): 1 / count for fold in range(count)}, rng=rng)
    split = []
    for tested in folds.values():
        rest = [record for record in records if record.patient not in set(tested)]
        share = validation / (1 - 1 / count)
        shares = {"train": 1 - share, "validation": share}
        parts = _deal(rest, shares, rng=rng, doubtful=doubtful) | {"test": tested}
        if not all(parts.values()):
            raise ValueError(
                f"{len(traits)} patients, of whom {len(tested)} are tested in one fold, leave "
                "nobody to train or to validate on; give more patients, or more --folds"
            )
        split.append(parts)
    return split


def split_held_out(
    records: Sequence[Record], *, train_on: str, seed: int, validation: float = 0.1
) -> tuple[Parts, list[Record]]:
    """The parts, tested on what `train_on` does not name, and the records to use.

    A patient with a named image is trained or validated on, without the other images; every other
    patient is tested, but for those with an image of which nobody knows who it shows.

    Args:
      train_on: As `parse_train_on` takes it.

    Raises:
      ValueError: As `parse_train_on`; a value that no record has; fewer than two patients to train
        and validate on, or none to test.
    """
    if not 0 < validation < 1:
        raise ValueError(f"{validation=} must be above 0 and leave something to train")
    field, values = parse_train_on(train_on)
    value_of = FIELDS[field]
    there = sorted({value_of(record) for record in records})
    if unknown := [value for value in values if value not in there]:
        raise ValueError(
            f"--train-on {train_on}: no image has {field} {unknown[0]!r}; there are "
            f"{', '.join(map(repr, there))}"
        )
    named = [record for record in records if value_of(record) in values]
    seen = {record.patient for record in named}
    everybody = {record.patient for record in records}
    doubtful = _find_doubtful(records, everybody, fewest=len(PARTS))
    rest = [record for record in records if record.patient not in seen | doubtful]
    if len(seen) < 2 or not rest:
        raise ValueError(
            f"--train-on {train_on}: {len(seen)} patients to train and validate on and "
            f"{len({record.patient for record in rest})} to test; at least 2 and 1 are needed"
        )
    rng = np.random.default_rng(seed)
    shares = {"train": 1 - validation, "validation": validation}
    unsure = _find_doubtful(named, seen, fewest=2)
    parts = _deal(named, shares, rng=rng, doubtful=unsure)
    return parts | {"test": tuple(sorted({record.patient for record in rest}))}, named + rest


def parse_train_on(text: str) -> tuple[str, tuple[str, ...]]:
    """The field and its values in `FIELD=VALUE,VALUE`.

    Raises:
      ValueError: Not of that form, or an unknown field.

    Examples:
      >>> parse_train_on("finding=COVID-19,SARS")
      ('finding', ('COVID-19', 'SARS'))
    """
    field, _, values = text.partition("=")
    if field not in FIELDS or not values:
        raise ValueError(
            f"--train-on {text}: give FIELD=VALUE,VALUE,... with a field of {', '.join(FIELDS)}"
        )
    return field, tuple(values.split(","))


def _find_doubtful(
    records: Iterable[Record], patients: Collection[str], *, fewest: int
) -> set[str]:
    """Who may be someone else; nobody, where too few others would be left."""
    doubtful = {record.patient for record in records if DOUBTFUL in record.notes}
    return doubtful if len(patients) - len(doubtful) >= fewest else set()


def _deal(
    records: Sequence[Record],
    fractions: Mapping[str, float],
    *,
    rng: np.random.Generator,
    doubtful: Collection[str] = (),
) -> Parts:
    """The patients of each part, which has about its fraction of whatever there is.

    Those in doubt go to "train".
    """
    traits = _count_traits(records)
    positive = {record.patient for record in records if record.boxes}
    names = sorted(traits)
    shuffled = [names[index] for index in rng.permutation(len(names))]
    smallest_first = sorted(shuffled, key=lambda name: traits[name][()])
    start = dict(zip(fractions, rng.random(len(fractions)).tolist(), strict=True))
    known = [name for name in smallest_first if name not in doubtful]
    order = [part for part in _FIRST if part in fractions] or list(fractions)
    dealt = _deal_first(known, positive, order)
    dealt |= {name: "train" for name in names if name in doubtful}
    part_of = _deal_rest(reversed(smallest_first), traits, dealt, fractions=fractions, start=start)
    return {part: tuple(name for name in names if part_of[name] == part) for part in fractions}


def _count_traits(records: Iterable[Record]) -> dict[str, Counter[Hashable]]:
    """For each patient, how many images have each trait; all have the trait `()`."""
    traits: dict[str, Counter[Hashable]] = {}
    for record in records:
        finding, label, view = bool(record.boxes), record.label, record.facts.view
        single = (("finding", finding), ("label", label), ("view", view))
        traits.setdefault(record.patient, Counter()).update([(), *single, (finding, label, view)])
    return traits


def _deal_first(names: Sequence[str], positive: set[str], parts: Sequence[str]) -> dict[str, str]:
    """The part of a few patients, so that no part lacks what as many patients as parts have."""
    with_finding = [name for name in names if name in positive][: len(parts)]
    without = [name for name in names if name not in positive][: len(parts)]
    dealt = dict(zip(with_finding, parts, strict=False))
    taken = set(dealt.values())
    empty_first = sorted(parts, key=lambda part: part in taken)
    return dealt | dict(zip(without, empty_first, strict=False))


def _deal_rest(
    names: Iterable[str],
    traits: Mapping[str, Counter[Hashable]],
    dealt: Mapping[str, str],
    *,
    fractions: Mapping[str, float],
    start: Mapping[str, float],
) -> dict[str, str]:
    """The part of every patient: each goes to the part that is least full of the patient's traits.

    How full a part is of a trait is its images over its fair number of them. With `start` 1/2 this
    is Webster's method of apportionment; another start between 0 and 1 ends alike, and lets the
    seed decide where the first ones go. `names` has large patients first: small ones even out.
    """
    total: Counter[Hashable] = Counter()
    for own in traits.values():
        total.update(own)
    # A trait that is too rare for one image in each part is left to chance.
    fewest = min(1 / min(fractions.values()), total[()])
    counted = {trait for trait, count in total.items() if count >= fewest}
    part_of = dict(dealt)
    held: dict[str, Counter[Hashable]] = {part: Counter() for part in fractions}
    for name, part in part_of.items():
        held[part].update(traits[name])

    def fullness(part: str, own: Mapping[Hashable, int]) -> float:
        have, first = held[part], start[part]
        # fsum: the order of the images must not matter, not even by rounding.
        shares = (n * (have[t] + first * n) / total[t] for t, n in own.items() if t in counted)
        return fsum(shares) / fractions[part]

    for name in names:
        if name not in part_of:
            full = {part: fullness(part, traits[name]) for part in fractions}
            part_of[name] = min(full, key=full.__getitem__)
            held[part_of[name]].update(traits[name])
    return part_of


FIELDS: Mapping[str, Callable[[Record], str]] = MappingProxyType(
    {
        "finding": lambda record: record.label,
        "view": lambda record: record.facts.view,
        "sex": lambda record: record.facts.sex,
        "dataset": lambda record: record.dataset,
    }
)

HELP = f"FIELD=VALUE,VALUE,... with a field of {', '.join(FIELDS)}"
