"""Which images a run may be scored on: those of patients that it was not fitted on."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data import sources
from data.records import Record

FITTED = ("train", "validation")


class Fitted(NamedTuple):
    """What a run was fitted on, and what it kept."""

    name: str  # The run, for messages.
    sets: sources.Sets
    patients: Mapping[str, Sequence[str]]  # Of each part.
    images: Mapping[str, Sequence[str]]  # Ids, of each part; empty of an old run.


def find_sets(asked: sources.Sets, fitted: Sequence[sources.Sets]) -> sources.Sets:
    """The data sets to score, by the names that they have in the first run that was fitted on them.

    Args:
      asked: The sets to score.
      fitted: Of each run.

    Raises:
      ValueError: Sets that share pictures with a run's, or a run's own ones beside others.
    """
    held = [sources.among(asked, sets) for sets in fitted]
    for sets in fitted:
        for (name, _), (other, _) in itertools.product(asked.values(), sets.values()):
            sources.check_apart(other, name)
    return next(filter(None, held), asked)


def is_own(sets: sources.Sets, trained: sources.Sets) -> bool:
    """Whether all data sets are those that a run was trained on, by the same names."""
    return all(
        alias in trained
        and (name, path.resolve()) == (trained[alias][0], _resolved(trained, alias))
        for alias, (name, path) in sets.items()
    )


def _resolved(sets: sources.Sets, alias: str) -> Path:
    return sets[alias][1].resolve()


def unseen(
    everything: Sequence[Record], sets: sources.Sets, run: Fitted, *, part: str
) -> frozenset[str]:
    """The ids of the records that a run may be scored on.

    Of its own data those of `part`, or all. Of other data those of `unknown_to`.
    """
    if not is_own(sets, run.sets):
        return unknown_to(everything, sets, run)
    kept = everything if part == "all" else _of_part(everything, run, part)
    return frozenset(record.id for record in kept)


def unknown_to(everything: Sequence[Record], sets: sources.Sets, run: Fitted) -> frozenset[str]:
    """The ids of the records of patients whom a run was not fitted on.

    They are told by their names in the same set or a copy of it, such as a prepared one, which is
    told by its own name. `folder` and `synthetic` are names of many sets; one of them is a copy if
    it has most of the run's images. A warning says how many are left out.
    """
    seen = _seen(everything, sets, run)
    kept = [record for record in everything if record.patient not in seen]
    if len(kept) < len(everything):
        warnings.warn(
            f"{len(everything) - len(kept)} of {len(everything)} images are left out: {run.name} "
            "was trained or validated on their patients",
            stacklevel=2,
        )
    return frozenset(record.id for record in kept)


def _of_part(everything: Sequence[Record], run: Fitted, part: str) -> list[Record]:
    """The images of a part, which need not be all of its patients': a hold-out leaves some out."""
    patients, images = frozenset(run.patients[part]), frozenset(run.images.get(part, ()))
    own = [record for record in everything if record.patient in patients]
    return [record for record in own if record.id in images] if run.images else own


def _seen(everything: Sequence[Record], sets: sources.Sets, run: Fitted) -> set[str]:
    patients, images = (
        {name for part in FITTED for name in parts.get(part, ())}
        for parts in (run.patients, run.images)
    )
    seen: set[str] = set()
    for alias, (name, _) in sets.items():
        own = [record for record in everything if record.dataset == alias]
        for other, (same, _) in run.sets.items():
            if name == same:
                ids = {r.id for r in own if _renamed(r.id, alias, other) in images}
                people = {r.patient for r in own if _renamed(r.patient, alias, other) in patients}
                people |= {record.patient for record in own if record.id in ids}
                if sources.DATASETS[name].source_of or 2 * len(ids) > len(images):
                    seen |= people
    return seen


def _renamed(name: str, alias: str, other: str) -> str:
    """A name in the set `alias` as `other` has it: of several sets, each puts its own in front."""
    bare = name.removeprefix(f"{alias}.") if alias else name
    return f"{other}.{bare}" if other else bare
