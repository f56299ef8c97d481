"""Who is trained on, validated on and tested on: patients, never images, are shared out."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import fsum

import numpy as np

from data.records import DOUBTFUL, Record

PARTS = ("train", "validation", "test")
_FIRST = ("train", "test", "validation")  # Which parts one or two patients of a kind go to.


def split_patients(
    records: Sequence[Record], *, seed: int, validation: float = 0.1, test: float = 0.2
) -> dict[str, tuple[str, ...]]:
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
    fractions = {"train": 1 - validation - test, "validation": validation, "test": test}
    traits = _count_traits(records)
    doubtful = {record.patient for record in records if DOUBTFUL in record.notes}
    if len(traits) - len(doubtful) < len(PARTS):
        doubtful = set()
    if len(traits) < len(PARTS):
        raise ValueError(
            f"{len(traits)} patients cannot fill train, validation and test without one of them "
            "being in two: give at least 3 patients (a higher --limit, or more images)"
        )
    positive = {record.patient for record in records if record.boxes}
    rng = np.random.default_rng(seed)
    names = sorted(traits)
    shuffled = [names[index] for index in rng.permutation(len(names))]
    smallest_first = sorted(shuffled, key=lambda name: traits[name][()])
    start = dict(zip(PARTS, rng.random(len(PARTS)).tolist(), strict=True))
    known = [name for name in smallest_first if name not in doubtful]
    dealt = _deal_first(known, positive) | dict.fromkeys(doubtful, "train")
    part_of = _deal_rest(reversed(smallest_first), traits, dealt, fractions=fractions, start=start)
    return {part: tuple(name for name in names if part_of[name] == part) for part in PARTS}


def _count_traits(records: Iterable[Record]) -> dict[str, Counter[Hashable]]:
    """For each patient, how many images have each trait; all have the trait `()`."""
    traits: dict[str, Counter[Hashable]] = {}
    for record in records:
        finding, label, view = bool(record.boxes), record.label, record.facts.view
        single = (("finding", finding), ("label", label), ("view", view))
        traits.setdefault(record.patient, Counter()).update([(), *single, (finding, label, view)])
    return traits


def _deal_first(names: Sequence[str], positive: set[str]) -> dict[str, str]:
    """The part of up to six patients, so that no part lacks what three patients have."""
    with_finding = [name for name in names if name in positive][: len(PARTS)]
    without = [name for name in names if name not in positive][: len(PARTS)]
    dealt = dict(zip(with_finding, _FIRST, strict=False))
    taken = set(dealt.values())
    empty_first = sorted(_FIRST, key=lambda part: part in taken)
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
    held: dict[str, Counter[Hashable]] = {part: Counter() for part in PARTS}
    for name, part in part_of.items():
        held[part].update(traits[name])

    def fullness(part: str, own: Mapping[Hashable, int]) -> float:
        have, first = held[part], start[part]
        # fsum: the order of the images must not matter, not even by rounding.
        shares = (n * (have[t] + first * n) / total[t] for t, n in own.items() if t in counted)
        return fsum(shares) / fractions[part]

    for name in names:
        if name not in part_of:
            full = {part: fullness(part, traits[name]) for part in PARTS}
            part_of[name] = min(full, key=full.__getitem__)
            held[part_of[name]].update(traits[name])
    return part_of
