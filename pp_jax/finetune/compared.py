"""From what a user names to the models that are compared: runs, their folds and seeds, weights."""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from pp_jax import config
from pp_jax.baselines.segmenter import SEGMENTERS
from pp_jax.config import TrainConfig
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate import automatic
from pp_jax.evaluate.consistency import FILTERS_COMPARED
from pp_jax.evaluate.methods import METHODS, Method, Outcome, Run, Source, Told
from pp_jax.evaluate.models import AUTOMATIC, Asked, Image, answers
from pp_jax.evaluate.protocols import BOXED, Drawn, Protocol
from pp_jax.evaluate.subjects import Subject
from pp_jax.finetune import runs
from pp_jax.finetune.members import Member, expand, image_size, peek, together
from pp_jax.finetune.models import Model, config_of, make_model
from pp_jax.look import Look
from pp_jax.predict import ensemble
from pp_jax.predict.asking import Asker, make_asker
from pp_jax.predict.automatic import generate
from pp_jax.predict.masks import decode_rle, encode_rle
from pp_jax.preprocess import roi
from pp_jax.preprocess.stage import PREPARATIONS, make_stage

BLIND, SWAPPED = "blind twin", "another patient's image"
BLANK = "blank"  # The filter that shows nothing.
_READ = MappingProxyType({"box": BOXED, "none": ("none",)})  # By a network trained under it.


class Entry(NamedTuple):
    """One model of the tables."""

    name: str
    kind: str  # "model", or "blind".
    of: str  # Whose twin it is.
    members: tuple[Member, ...]


def line_up(
    told: Sequence[Told], settings: EvalConfig, *, twins: bool
) -> tuple[list[Entry], dict[str, str]]:
    """The models and their blind twins; for a run without one, what to type to train it.

    Raises:
      ValueError: A twin is asked for by name, and there is none; or two lines of one name.
    """
    models = [Entry(one.name, "model", "", tuple(expand(one, settings))) for one in told]
    entries, missing = list(models), {}
    for entry in models if twins else ():
        parts = list(itertools.chain(*map(together, entry.members)))
        if any(one.run is None or one.look.filter == BLANK for one in parts):
            continue
        if (twin := _twin(entry)) is not None:
            entries.append(twin)
        else:
            missing[entry.name] = _twin_command(entry)
    if "blind" in settings.methods:
        for name, command in missing.items():
            way = f"make it with `{command}`" if command else "its only loss reads pixels"
            raise ValueError(f"--methods blind: {name} has no blind twin; {way}")
        if len(entries) == len(models):
            raise ValueError(
                f"--methods blind: {models[0].name} was not trained here on images, so it has no "
                "blind twin; name a run of train.py, or leave blind out"
            )
    _check_labels([*(entry.name for entry in entries), *(row.label for row in METHODS.values())])
    return entries, missing


def _check_labels(labels: Sequence[str]) -> None:
    for name in labels:
        if labels.count(name) > 1:
            raise ValueError(
                f"--methods: {name!r} would be the name of two lines of the tables; call the model "
                "by another name, as in 'mine=FOLDER'"
            )


def _twin(entry: Entry) -> Entry | None:
    """The same trainings of models that were shown nothing, if there are all of them."""
    name = f"{entry.name}, {BLIND}"
    members = []
    for member in entry.members:
        blind = [_blind(one, name) for one in together(member)]
        if None in blind:
            return None
        members.append(blind[0]._replace(beside=tuple(blind[1:])))
    return Entry(name, "blind", entry.name, tuple(members))


def _blind(member: Member, name: str) -> Member | None:
    wanted = config.blind_twin(member.run)
    folder = Path(wanted.out)
    if not (folder / runs.CONFIG).is_file():
        return None
    trained = dataclasses.asdict(runs.read_config(folder))
    both = [runs.home(path) for path in (folder, member.folder)]
    # By patience each of them ends where it does.
    ended = all(map(runs.is_finished, both)) or len(set(map(runs.newest_step, both))) == 1
    if config.differences(trained, wanted) or not ended:
        return None
    found = peek(folder, flag="--methods blind")
    look = dataclasses.replace(member.look, filter=BLANK, fusion="replace")
    return member._replace(label=name, folder=folder, look=look, **found._asdict())


def _twin_command(entry: Entry) -> str:
    """What to type for the twins of all runs, or nothing where one can have none.

    Those of a cross-validation are trained at once.
    """
    commands = []
    for one in itertools.chain(*map(together, entry.members)):
        whole = one.run
        if one.fold:
            out = whole.out.removesuffix(f"/fold{whole.fold}")
            whole = dataclasses.replace(whole, fold=None, out=out)
        commands.append(config.twin_command(whole))
    return " && ".join(dict.fromkeys(commands)) if all(commands) else ""


def joint_name(told: Sequence[Told]) -> str:
    """A name for several models or seeds together, for a folder; nothing of one model alone."""
    if len(told) == 1 and (told[0].averaged or len(told[0].folders) == 1):
        return ""
    return ",".join(one.name.replace("/", "_") for one in told)


def answerable(
    entries: Sequence[Entry], protocols: Mapping[str, Protocol], *, prompt: str
) -> dict[str, Protocol]:
    """The protocols that the models can be asked under; automatic masks are those of one model.

    Raises:
      ValueError: They are asked of an ensemble, or something is asked that none of the models
        reads, and not as a part of `all`.
    """
    members = [member for entry in entries for member in entry.members]
    unread = [spec for spec in protocols if not any(reads(member, spec) for member in members)]
    asked = [spec for spec in protocols if spec not in unread]
    if asked and prompt != "all" and not reads(members[0], asked[0]):
        raise ValueError(
            f"--prompt {asked[0]}: {entries[0].name}, the first model, with which all others are "
            "compared, does not read it; name another model or another prompt first"
        )
    if unread and prompt != "all":
        raise ValueError(
            f"--prompt {unread[0]}: {entries[0].name} ({members[0].variant}) reads "
            f"{' or '.join(_READ[members[0].run.prompting])} alone, as it was trained; choose that"
        )
    several = any(member.beside for entry in entries for member in entry.members)
    if several and AUTOMATIC in protocols and prompt != "all":
        raise ValueError(
            f"--prompt {AUTOMATIC}: automatic masks are those of one model, and several are "
            "averaged; leave it out, or name one --checkpoint"
        )
    left_out = {*unread, *([AUTOMATIC] if several else [])}
    return {spec: protocol for spec, protocol in protocols.items() if spec not in left_out}


def unread(entries: Sequence[Entry], protocols: Iterable[str]) -> dict[str, list[str]]:
    """The protocols that a model is not asked under, by its name; nothing of one that reads all."""
    skipped = {
        entry.name: [spec for spec in protocols if not reads(entry.members[0], spec)]
        for entry in entries
    }
    return {name: specs for name, specs in skipped.items() if specs}


def reads(member: Member, spec: str) -> bool:
    """Whether the member takes what a protocol marks: a network does what it was trained on."""
    kind = spec.partition(":")[0]
    networks = [one for one in together(member) if one.variant in SEGMENTERS]
    return all(kind in _READ[one.run.prompting] for one in networks)


def apart(entry: Entry, served: Mapping[Path, frozenset[str]]) -> Entry:
    """The same entry, its folds told apart like seeds where they answer for the same images.

    On the data that they were made of, folds share out the images and are one run together; on
    other data each of them answers for all.
    """
    folds: dict[str, list[frozenset[str]]] = {}
    for member in entry.members:
        if member.fold:
            folds.setdefault(member.seed, []).append(served[member.folder])
    if all(sum(map(len, own)) == len(frozenset().union(*own)) for own in folds.values()):
        return entry
    renamed = (
        member._replace(seed="/".join(filter(None, (member.seed, member.folder.name))))
        for member in entry.members
    )
    return entry._replace(members=tuple(renamed))


def common_images(
    entries: Sequence[Entry], served: Mapping[Path, frozenset[str]]
) -> frozenset[str]:
    """The images that every model may be scored on under each of its seeds.

    An ensemble may be scored on those that each of its members may be. A warning says where they
    are fewer than one alone might be scored on.

    Raises:
      ValueError: The members of an ensemble leave one another nothing.
    """
    allowed = []
    for entry in entries:
        of_seed: dict[str, frozenset[str]] = {}
        for member in entry.members:
            held = of_seed.get(member.seed, frozenset())
            if member.beside:
                _require_common(member, served)
                allowed += [served[one.folder] for one in member.beside]
            of_seed[member.seed] = held | served[member.folder]
        allowed += of_seed.values()
    common, fewest = frozenset.intersection(*allowed), min(map(len, allowed))
    if len(common) < fewest:
        warnings.warn(
            f"{len(common)} images may be scored by all runs, {fewest} or more by each alone: a "
            "training with another --seed tests other patients; train what is to be compared with "
            "one --seed, with --folds or with --train-on",
            stacklevel=2,
        )
    return common


def _require_common(member: Member, served: Mapping[Path, frozenset[str]]) -> None:
    parts = together(member)
    if frozenset.intersection(*(served[one.folder] for one in parts)):
        return
    above = runs.home(member.folder).parent
    folds = f"each fold on its own part by --checkpoint {above} (the folder of the folds)"
    alone = folds if runs.read_folds(above) else "each by its own --checkpoint"
    raise ValueError(
        f"--checkpoint of {len(parts)} that are averaged: no image is left that all of them may be "
        "scored on, as what one keeps for the test, another was trained or validated on; score "
        f"{alone}, or the ensemble on other data by --data and --data-dir"
    )


class Wanted(NamedTuple):
    """What all models of an evaluation are asked for."""

    settings: EvalConfig
    confidence: frozenset[str]
    automatic: bool
    mesh: Mesh


class Ready(NamedTuple):
    """A loaded model, and how it is asked."""

    asker: Asker
    filtered: Sequence[Asker]  # Behind other filters, for the confidence `filters`.
    confidence: frozenset[str]
    searcher: automatic.Search | None  # For automatic masks; None: not asked for.


Load = Callable[[Member, Sequence[Source], Sequence[Source]], Ready]


def make_load(wanted: Wanted) -> Load:
    """A function that loads a member, given what its rules are fitted on and what it is to answer.

    The last one is kept, for the method that shows it other images.
    """
    return functools.lru_cache(maxsize=1)(partial(_load, wanted))


def _load(wanted: Wanted, member: Member, fit: Sequence[Source], scored: Sequence[Source]) -> Ready:
    look, parts = member.look, together(member)
    # The weights of all that are averaged are on the device at once.
    weights = [runs.load(one.folder, mesh=wanted.mesh).variables for one in parts]
    model = make_model(
        config_of(member.variant, image_size(member, wanted.settings)),
        dtype=jnp.dtype(wanted.settings.dtype),
        attention=wanted.settings.attention,
    )

    def make(**changed: str) -> Asker:
        looks = [dataclasses.replace(one.look, **changed) for one in parts]
        askers = [_asker(model, own, look) for own, look in zip(weights, looks, strict=True)]
        return ensemble.averaged(askers)

    searcher = None
    if wanted.automatic and reads(member, AUTOMATIC):
        points = automatic.config(wanted.settings.auto_points)
        stage = make_stage(look, side=model.config.image_size)
        propose = partial(generate, model, weights[0], config=points, stage=stage)
        region = roi.make(look.roi)
        if region.per == "image":
            propose = partial(_in_region, region, propose)
        searcher = automatic.make_searcher(propose, fit=fit, scored=scored)
    # A filter in place of the one that shows nothing would show the image.
    confidence = wanted.confidence - ({"filters"} if look.filter == BLANK else set())
    filtered = [
        make(filter=name, fusion="replace") for name in FILTERS_COMPARED if "filters" in confidence
    ]
    return Ready(make(), filtered, confidence, searcher)


def make_method(
    member: Member,
    load: Load,
    *,
    patients: frozenset[str],
    fit: Sequence[Source],
    seed: int,
    swap: Mapping[tuple[str, str], Source] | None = None,
) -> Method:
    """The member as a method; its weights are loaded when it is opened.

    Args:
      member: Which weights, and what they are shown.
      load: From `make_load`.
      patients: Those that it answers for.
      fit: Training images, for the rule of automatic masks.
      seed: Of the draws for its confidence.
      swap: For each image another patient's, that is shown in its place; None: its own is.
    """

    def begin(scored: Sequence[Source]) -> Run:
        ready = load(member, tuple(fit), tuple(scored))
        asked = Asked(
            asker=ready.asker,
            filtered=ready.filtered,
            single=all(knows_single(one.run) for one in together(member)),
            refine=member.refine,
            confidence=ready.confidence,
            seed=seed,
            shown=_own_image if swap is None else partial(_other_image, swap),
            searcher=ready.searcher,
        )

        def run(subject: Subject, drawn: Mapping[str, Drawn]) -> Iterator[Outcome]:
            yield from answers(asked, subject, {k: v for k, v in drawn.items() if reads(member, k)})

        return run

    label = member.label if swap is None else f"{member.label}, {SWAPPED}"
    return Method(label, member.seed, patients.__contains__, begin)


def _in_region(region: roi.Roi, propose: automatic.Generate, image: Image) -> list[dict[str, Any]]:
    """The masks that are proposed for what a region cuts out, as run lengths of the whole image."""
    size, window = image.shape[:2], region.window(image, None)
    found = propose(roi.crop(image, window))
    masks = (decode_rle(one["segmentation"]) for one in found)
    whole = (encode_rle(roi.paste(mask, window, size=size)) for mask in masks)
    return [one | {"segmentation": rle} for one, rle in zip(found, whole, strict=True)]


def _asker(model: Model, variables: Mapping[str, Any], look: Look) -> Asker:
    return make_asker(
        model,
        variables,
        stage=_stage(look, model.config.image_size),
        fit=PREPARATIONS[look.preprocess].fit,
        roi=look.roi,
    )


@functools.lru_cache
def _stage(look: Look, side: int) -> Callable:
    """One for all members of a look: the encoder is compiled for each stage that it meets."""
    return make_stage(look, side=side)


def _own_image(subject: Subject) -> Image:
    return subject.image


def _other_image(swap: Mapping[tuple[str, str], Source], subject: Subject) -> Image:
    """Another patient's image, stretched to the size of the subject's."""
    other = swap[subject.dataset, subject.id].read().image
    height, width = subject.image.shape[:2]
    return np.asarray(
        PIL.Image.fromarray(other).resize((width, height), PIL.Image.Resampling.BILINEAR)
    )


def swap_partners(sources: Sequence[Source], *, seed: int) -> dict[tuple[str, str], Source]:
    """For each image one of another patient: of the next patient in an order drawn from the seed.

    Raises:
      ValueError: There is only one patient.
    """
    by_patient: dict[str, list[Source]] = {}
    for source in sources:
        by_patient.setdefault(source.patient, []).append(source)
    if len(by_patient) < 2:
        raise ValueError(
            f"{len(by_patient)} patient: no other's image can be shown in place of the own one; "
            "score more patients, or leave the method swap out"
        )
    names = sorted(by_patient)
    order = np.random.default_rng(seed).permutation(len(names))
    following = {names[a]: names[b] for a, b in zip(order, np.roll(order, -1), strict=True)}
    partners = {}
    for patient, own in by_patient.items():
        others = by_patient[following[patient]]
        for index, source in enumerate(own):
            partners[source.dataset, source.id] = others[index % len(others)]
    return partners


def knows_single(run: TrainConfig | None) -> bool:
    """Whether the single mask was trained: officially, or by rounds of clicks.

    A training of one prompt at a time never uses it.
    """
    return run is None or run.prompting == "iterative"


def facts(entries: Sequence[Entry], *, swapped: bool) -> list[dict[str, Any]]:
    """What a report says of the models, and what tells whether the same would be scored again."""
    told = []
    for entry in entries:
        for member in entry.members:
            own = _facts(entry, member)
            told.append(own)
            if swapped and entry.kind == "model":
                label = f"{entry.name}, {SWAPPED}"
                told.append(own | {"label": label, "kind": "swap", "of": entry.name})
    return told


def _facts(entry: Entry, member: Member) -> dict[str, Any]:
    parts = together(member)
    trained = [one.run for one in parts if one.run is not None]
    known = trained if len(trained) == len(parts) else []
    told = {
        "label": entry.name,
        "kind": entry.kind,
        "of": entry.of,
        "seed": member.seed,
        "folder": ", ".join(str(one.folder) for one in parts),
        "fold": member.fold,
        "step": _alike([one.step for one in parts]),
        "variant": member.variant,
        "weights": ensemble.joint_digest([one.weights for one in parts]),
        "trained_on": ",".join(dict.fromkeys(run.data for run in known)) or None,
        "trained_under": _alike([run.prompting for run in known]),
        "training_seed": _alike([run.seed for run in known]),
        "from_random": any(_from_random(run) for run in trained),
        "look": _joint_look([one.look for one in parts]),
        "refine": list(member.refine),
    }
    if not member.beside:
        return told
    own = ("folder", "step", "weights", "look")
    members = [_facts(entry, one) for one in parts]
    return told | {"members": [{name: one[name] for name in own} for one in members]}


def _alike(values: Sequence[Any]) -> Any:
    """The one value, if all are the same."""
    return values[0] if len(set(values)) == 1 else None


def _joint_look(looks: Sequence[Look]) -> dict[str, Any]:
    """What all are shown; where that is not one thing, all of it in words."""
    told = [dataclasses.asdict(look) for look in looks]
    each = {name: list(dict.fromkeys(one[name] for one in told)) for name in told[0]}
    return {k: own[0] if len(own) == 1 else " or ".join(map(str, own)) for k, own in each.items()}


def _from_random(run: TrainConfig) -> bool:
    """Whether the first of the runs that it goes on from began with random numbers."""
    begun = Path(run.checkpoint)
    if run.checkpoint and runs.is_run(begun):
        return _from_random(runs.read_config(begun))
    return not run.checkpoint
