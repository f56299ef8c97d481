"""From what a user names to the models that are compared: runs, their folds and seeds, weights."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from pp_jax import checkpoints, config
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate import automatic
from pp_jax.evaluate.consistency import FILTERS_COMPARED
from pp_jax.evaluate.methods import METHODS, Method, Run, Source, Told
from pp_jax.evaluate.models import Asked, Image, answers
from pp_jax.evaluate.subjects import Subject
from pp_jax.finetune import runs
from pp_jax.look import Look, override
from pp_jax.predict.asking import Asker, make_asker
from pp_jax.predict.automatic import generate
from pp_jax.predict.masks import decode_rle, encode_rle
from pp_jax.preprocess import roi
from pp_jax.preprocess.stage import PREPARATIONS, initial_fusion, make_shown, make_stage
from pp_jax.sam import VARIANTS, Sam, sized

BLIND, SWAPPED = "blind twin", "another patient's image"
BLANK = "blank"  # The filter that shows nothing.


class Member(NamedTuple):
    """One run, or converted weights, that answers for a method or for a part of it."""

    label: str
    seed: str  # Which of several runs of one method; nothing of one alone, and of folds.
    folder: Path
    fold: bool  # One of several that share out the patients.
    variant: str
    run: TrainConfig | None  # None: converted weights.
    step: int  # Of the run; 0 of converted weights.
    weights: str  # Their hash.
    trained: Look  # What they were trained on.
    look: Look  # What they are shown.
    refine: tuple[str, ...]


def expand(told: Told, settings: EvalConfig) -> list[Member]:
    """The runs behind a name: one for each seed, and each fold of a cross-validation.

    Raises:
      CheckpointError: A folder with neither a run nor weights.
      ValueError: A look that does not fit, or a folder that is given twice.
    """
    members = []
    for seed, path in zip(_seeds(told), told.folders, strict=True):
        folds = runs.read_folds(Path(path))
        for folder in folds or [Path(path)]:
            found = _peek(folder, flag="--methods" if settings.methods else "--checkpoint")
            look = _look(told, found.trained, settings)
            members.append(
                Member(told.name, seed, folder, bool(folds), *found, look=look, refine=told.refine)
            )
    return members


def _seeds(told: Told) -> list[str]:
    """A name for each of several runs of one method."""
    if len(told.folders) == 1:
        return [""]
    if len({Path(path).resolve() for path in told.folders}) < len(told.folders):
        raise ValueError(f"--methods: {told.name!r} has the same run twice among its seeds")
    names = [Path(path).name for path in told.folders]
    return names if len(set(names)) == len(names) else list(told.folders)


def _look(told: Told, trained: Look, settings: EvalConfig) -> Look:
    """What is shown: by the method's own words, else by the flags, else as in the training."""
    look = override(
        trained,
        recipe=settings.recipe,
        filter=settings.filter,
        fusion=settings.fusion,
        blend=settings.blend,
        roi=settings.roi,
    )
    chosen: dict[str, Any] = dict(told.look)
    if "blend" in chosen:
        chosen["blend"] = _number(chosen["blend"], told.name)
    look = override(look, **chosen)
    make_shown(look)  # Filters and fusions that do not fit are refused here,
    roi.make(look.roi)  # and regions.
    learned = initial_fusion(look)
    if learned and (look.filter, look.fusion) != (trained.filter, trained.fusion):
        raise ValueError(
            f"{told.name}: fusion {look.fusion} of the filters {look.filter} was not learned in "
            f"its training (filter {trained.filter}, fusion {trained.fusion}); choose another"
        )
    return look


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--methods: blend={text} of {name!r} is no number") from None


class _Found(NamedTuple):
    """What a folder's weights are; they are not loaded yet."""

    variant: str
    run: TrainConfig | None
    step: int
    weights: str
    trained: Look


def _peek(folder: Path, *, flag: str) -> _Found:
    if runs.is_run(folder):
        run, step = runs.read_config(folder), runs.loaded_step(folder)
        manifest = checkpoints.step_folder(runs.home(folder), step) / checkpoints.MANIFEST
        look = config.look_of(run)
        return _Found(run.variant, run, step, checkpoints.sha256(manifest), look)
    if not (folder / checkpoints.MANIFEST).is_file():
        found = "neither a run nor converted weights" if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{flag} {folder}: {found}; give a run of `python train.py` (runs/...), weights that "
            "`python -m convert` made (checkpoints/...), or under --methods one of "
            f"{', '.join(METHODS)}"
        )
    held = checkpoints.read_manifest(folder)
    variant = held.get("variant")
    if variant not in VARIANTS or held.get("kind") != "converted":
        raise CheckpointError(f"{folder}: neither a run nor converted weights of {list(VARIANTS)}")
    look = Look(preprocess=held.get("preprocess", "sam"))
    digest = checkpoints.sha256(folder / checkpoints.MANIFEST)
    return _Found(variant, None, 0, digest, look)


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
        shown = [member.look.filter for member in entry.members]
        if BLANK in shown or any(member.run is None for member in entry.members):
            continue
        if (twin := _twin(entry)) is not None:
            entries.append(twin)
        else:
            missing[entry.name] = _twin_command(entry)
    if "blind" in settings.methods:
        for name, command in missing.items():
            raise ValueError(f"--methods blind: {name} has no blind twin; make it with `{command}`")
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
        wanted = config.blind_twin(member.run)
        folder = Path(wanted.out)
        if not (folder / runs.CONFIG).is_file():
            return None
        trained = dataclasses.asdict(runs.read_config(folder))
        steps = [runs.newest_step(runs.home(path)) for path in (folder, member.folder)]
        if config.differences(trained, wanted) or steps[0] != steps[1]:
            return None
        found = _peek(folder, flag="--methods blind")
        look = dataclasses.replace(member.look, filter=BLANK, fusion="replace")
        members.append(member._replace(label=name, folder=folder, look=look, **found._asdict()))
    return Entry(name, "blind", entry.name, tuple(members))


def _twin_command(entry: Entry) -> str:
    """What to type for the twins of all runs; of a cross-validation, for all folds at once."""
    commands = []
    for member in entry.members:
        whole = member.run
        if member.fold:
            out = whole.out.removesuffix(f"/fold{whole.fold}")
            whole = dataclasses.replace(whole, fold=None, out=out)
        commands.append(config.twin_command(whole))
    return " && ".join(dict.fromkeys(commands))


def joint_name(told: Sequence[Told]) -> str:
    """A name for several models or seeds together, for a folder; nothing of one run alone."""
    if len(told) == 1 and len(told[0].folders) == 1:
        return ""
    return ",".join(one.name.replace("/", "_") for one in told)


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

    A warning says where they are fewer than one alone might be scored on.
    """
    allowed = []
    for entry in entries:
        of_seed: dict[str, frozenset[str]] = {}
        for member in entry.members:
            held = of_seed.get(member.seed, frozenset())
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
    look, loaded = member.look, runs.load(member.folder, mesh=wanted.mesh)
    model = Sam(
        sized(member.variant, image_size(member, wanted)),
        dtype=jnp.dtype(wanted.settings.dtype),
        attention=wanted.settings.attention,
    )
    make = partial(_asker, model, loaded.variables)
    searcher = None
    if wanted.automatic:
        points = automatic.config(wanted.settings.auto_points)
        stage = make_stage(look, side=model.config.image_size)
        propose = partial(generate, model, loaded.variables, config=points, stage=stage)
        region = roi.make(look.roi)
        if region.per == "image":
            propose = partial(_in_region, region, propose)
        searcher = automatic.make_searcher(propose, fit=fit, scored=scored)
    # A filter in place of the one that shows nothing would show the image.
    confidence = wanted.confidence - ({"filters"} if look.filter == BLANK else set())
    filtered = [
        make(dataclasses.replace(look, filter=name, fusion="replace"))
        for name in FILTERS_COMPARED
        if "filters" in confidence
    ]
    return Ready(make(look), filtered, confidence, searcher)


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
            # What a training of one prompt at a time never used, the single mask, is not asked for.
            single=member.run is None,
            refine=member.refine,
            confidence=ready.confidence,
            seed=seed,
            shown=_own_image if swap is None else partial(_other_image, swap),
            searcher=ready.searcher,
        )
        return partial(answers, asked)

    label = member.label if swap is None else f"{member.label}, {SWAPPED}"
    return Method(label, member.seed, patients.__contains__, begin)


def _in_region(region: roi.Roi, propose: automatic.Generate, image: Image) -> list[dict[str, Any]]:
    """The masks that are proposed for what a region cuts out, as run lengths of the whole image."""
    size, window = image.shape[:2], region.window(image, None)
    found = propose(roi.crop(image, window))
    masks = (decode_rle(one["segmentation"]) for one in found)
    whole = (encode_rle(roi.paste(mask, window, size=size)) for mask in masks)
    return [one | {"segmentation": rle} for one, rle in zip(found, whole, strict=True)]


def _asker(model: Sam, variables: Mapping[str, Any], look: Look) -> Asker:
    return make_asker(
        model,
        variables,
        stage=make_stage(look, side=model.config.image_size),
        fit=PREPARATIONS[look.preprocess].fit,
        roi=look.roi,
    )


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


def image_size(member: Member, wanted: Wanted) -> int | None:
    """The longest side that the model is asked to see; None: the variant's own."""
    return wanted.settings.image_size or (member.run.image_size if member.run else None)


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
    run = member.run
    return {
        "label": entry.name,
        "kind": entry.kind,
        "of": entry.of,
        "seed": member.seed,
        "folder": str(member.folder),
        "fold": member.fold,
        "variant": member.variant,
        "weights": member.weights,
        "trained_on": run.data if run else None,
        "trained_under": run.prompting if run else None,
        "training_seed": run.seed if run else None,
        "from_random": run is not None and _from_random(run),
        "look": dataclasses.asdict(member.look),
        "refine": list(member.refine),
    }


def _from_random(run: TrainConfig) -> bool:
    """Whether the first of the runs that it goes on from began with random numbers."""
    begun = Path(run.checkpoint)
    if run.checkpoint and runs.is_run(begun):
        return _from_random(runs.read_config(begun))
    return not run.checkpoint
