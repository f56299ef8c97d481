"""From what a user names to the models that are compared: runs, their folds and seeds, weights."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from jax.sharding import Mesh

from pp_jax import checkpoints, config
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import EvalConfig, TrainConfig
from pp_jax.evaluate import automatic
from pp_jax.evaluate.consistency import FILTERS_COMPARED
from pp_jax.evaluate.methods import Method, Run, Source, Told
from pp_jax.evaluate.models import Asked, Image, answers
from pp_jax.evaluate.subjects import Subject
from pp_jax.finetune import runs
from pp_jax.look import Look, override
from pp_jax.predict.asking import Asker, make_asker
from pp_jax.predict.automatic import generate
from pp_jax.preprocess.stage import PREPARATIONS, make_stage
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
    weights: str  # Their hash.
    look: Look
    refine: tuple[str, ...]


def expand(told: Told, settings: EvalConfig) -> list[Member]:
    """The runs behind a name: one for each seed, and each fold of a cross-validation.

    Raises:
      CheckpointError: A folder with neither a run nor weights.
      ValueError: A look that does not fit.
    """
    members = []
    for path in told.folders:
        folder = Path(path)
        folds = runs.read_folds(folder)
        for own in folds or [folder]:
            seed = folder.name if len(told.folders) > 1 else ""
            members.append(_member(told, own, seed=seed, fold=bool(folds), settings=settings))
    return members


def _member(told: Told, folder: Path, *, seed: str, fold: bool, settings: EvalConfig) -> Member:
    variant, run, look, weights = _peek(folder)
    look = override(
        look,
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
    return Member(told.name, seed, folder, fold, variant, run, weights, look, told.refine)


def _peek(folder: Path) -> tuple[str, TrainConfig | None, Look, str]:
    """Variant, run, look and hash of the weights in a folder, which are not loaded yet."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; give a run of train.py (runs/...) or weights that "
            "`python -m convert` made (checkpoints/...)"
        )
    if (folder / runs.CONFIG).is_file():
        run = runs.read_config(folder)
        step = runs.newest_step(folder)
        if not step:
            raise CheckpointError(
                f"{folder}: a run without a checkpoint yet; start it again with the same command"
            )
        manifest = checkpoints.step_folder(folder, step) / checkpoints.MANIFEST
        return run.variant, run, config.look_of(run), checkpoints.sha256(manifest)
    held = checkpoints.read_manifest(folder)
    variant = held.get("variant")
    if variant not in VARIANTS or held.get("kind") != "converted":
        raise CheckpointError(f"{folder}: neither a run nor converted weights of {list(VARIANTS)}")
    look = Look(preprocess=held.get("preprocess", "sam"))
    return variant, None, look, checkpoints.sha256(folder / checkpoints.MANIFEST)


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--methods: blend={text} of {name!r} is no number") from None


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
      ValueError: A twin is asked for by name, and there is none.
    """
    entries = [Entry(one.name, "model", "", tuple(expand(one, settings))) for one in told]
    missing = {}
    for entry, one in zip(tuple(entries), told, strict=True):
        configs = [member.run for member in entry.members]
        blind = any(member.look.filter == BLANK for member in entry.members)
        if not twins or None in configs or blind:
            continue
        folders = dict.fromkeys(map(_twin_folder, entry.members))
        if all(runs.read_folds(folder) or (folder / runs.CONFIG).is_file() for folder in folders):
            name = f"{one.name}, {BLIND}"
            twin = Told(name, tuple(map(str, folders)), {}, one.refine)
            entries.append(Entry(name, "blind", one.name, tuple(expand(twin, settings))))
            continue
        missing[one.name] = config.twin_command(configs[0])
        if "blind" in settings.methods:
            raise ValueError(
                f"--methods blind: {one.name} has no blind twin; make it with `{missing[one.name]}`"
            )
    return entries, missing


def _twin_folder(member: Member) -> Path:
    folder = Path(config.blind_twin(member.run).out)
    return folder.parent if member.fold else folder


def apart(entry: Entry, served: Mapping[Path, frozenset[str]]) -> Entry:
    """The same entry, its folds told apart like seeds where they answer for the same patients.

    On the data that they were made of, folds share out the patients and are one run together; on
    other data each of them answers for all.
    """
    folds = [served[member.folder] for member in entry.members if member.fold]
    shared = sum(map(len, folds)) > len(frozenset().union(*folds))
    if not shared:
        return entry
    renamed = (
        member._replace(seed="/".join(filter(None, (member.seed, member.folder.name))))
        for member in entry.members
    )
    return entry._replace(members=tuple(renamed))


def common_patients(
    entries: Sequence[Entry], served: Mapping[Path, frozenset[str]]
) -> frozenset[str]:
    """The patients that every model may be scored on under each of its seeds."""
    allowed = []
    for entry in entries:
        of_seed: dict[str, frozenset[str]] = {}
        for member in entry.members:
            held = of_seed.get(member.seed, frozenset())
            of_seed[member.seed] = held | served[member.folder]
        allowed += of_seed.values()
    return frozenset.intersection(*allowed)


class Wanted(NamedTuple):
    """What all models of an evaluation are asked for."""

    settings: EvalConfig
    confidence: frozenset[str]
    automatic: bool
    mesh: Mesh


def make_method(
    member: Member,
    wanted: Wanted,
    *,
    patients: frozenset[str],
    fit: Sequence[Source],
    swap: Mapping[tuple[str, str], Source] | None = None,
) -> Method:
    """The member as a method; its weights are loaded when it is opened.

    Args:
      member: Which weights, and what they are shown.
      wanted: What is asked.
      patients: Those that it answers for.
      fit: Training images, for the rule of automatic masks.
      swap: For each image another patient's, that is shown in its place; None: its own is.
    """
    shown = partial(_other_image, swap) if swap is not None else _own_image
    label = member.label if swap is None else f"{member.label}, {SWAPPED}"
    begin = partial(_open, member, wanted, shown=shown, fit=fit)
    return Method(label, member.seed, patients.__contains__, begin)


def _open(
    member: Member,
    wanted: Wanted,
    scored: Sequence[Source],
    *,
    shown: Callable[[Subject], Image],
    fit: Sequence[Source],
) -> Run:
    settings = wanted.settings
    loaded = runs.load(member.folder, mesh=wanted.mesh)
    model = Sam(sized(member.variant, image_size(member, wanted)))
    make = partial(_asker, model, loaded.variables)
    searcher = None
    if wanted.automatic:
        stage = make_stage(member.look, side=model.config.image_size)
        points = automatic.config(settings.auto_points)
        propose = partial(generate, model, loaded.variables, config=points, stage=stage)
        searcher = automatic.make_searcher(propose, fit=fit, scored=scored)
    asked = Asked(
        asker=make(member.look),
        filtered=[
            make(dataclasses.replace(member.look, filter=name, fusion="replace"))
            for name in FILTERS_COMPARED
            if "filters" in wanted.confidence
        ],
        # What a training of one prompt at a time never used, the single mask, is not asked for.
        single=member.run is None,
        refine=member.refine,
        confidence=wanted.confidence,
        seed=settings.seed,
        shown=shown,
        searcher=searcher,
    )
    return partial(answers, asked)


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
        "trained_under": run.prompt if run else None,
        "training_seed": run.seed if run else None,
        "from_random": run is not None and not run.checkpoint,
        "look": dataclasses.asdict(member.look),
        "refine": list(member.refine),
    }
