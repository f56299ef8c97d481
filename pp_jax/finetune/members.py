"""From a name to the checkpoints that answer for it: seeds, folds, and those that are averaged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pp_jax import checkpoints, config
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate.methods import GROUPS, METHODS, Told
from pp_jax.finetune import runs
from pp_jax.finetune.models import config_of
from pp_jax.look import Look, override
from pp_jax.predict import ensemble
from pp_jax.preprocess import roi
from pp_jax.preprocess.stage import initial_fusion, make_shown
from pp_jax.sam import VARIANTS


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
    beside: tuple["Member", ...] = ()  # With whom it averages its logits, to answer as one.


def expand(told: Told, settings: EvalConfig) -> list[Member]:
    """The runs behind a name: one for each seed, and each fold of a cross-validation.

    Several that are averaged are one member.

    Raises:
      CheckpointError: A folder with neither a run nor weights.
      ValueError: A look that does not fit, a folder that is given twice, or masks that cannot be
        averaged.
    """
    members = []
    for seed, path in zip(_seeds(told), told.folders, strict=True):
        folds = runs.read_folds(Path(path))
        if folds and told.averaged:
            raise CheckpointError(
                f"--checkpoint {path}: {len(folds)} runs, which share out the images; name it "
                f"alone, or the runs to average, such as {folds[0]}"
            )
        for folder in folds or [Path(path)]:
            found = peek(folder, flag="--methods" if settings.methods else "--checkpoint")
            look = _look(told, found.trained, settings)
            members.append(
                Member(told.name, seed, folder, bool(folds), *found, look=look, refine=told.refine)
            )
    return [average(members, settings)] if told.averaged else members


def average(members: Sequence[Member], settings: EvalConfig) -> Member:
    """The first member with the others beside it.

    Raises:
      ValueError: Their masks do not lie in one frame.
    """
    shown = []
    for one in members:
        side = config_of(one.variant, image_size(one, settings)).image_size
        shown.append(ensemble.Shown(str(one.folder), one.variant, side, one.look))
    ensemble.require_alike(shown)
    return members[0]._replace(beside=tuple(members[1:]))


def together(member: Member) -> tuple[Member, ...]:
    """Each that is averaged, or the one member itself."""
    return (member._replace(beside=()), *member.beside)


def image_size(member: Member, settings: EvalConfig) -> int | None:
    """The longest side that the model is asked to see; None: the variant's own."""
    return settings.image_size or (member.run.image_size if member.run else None)


def _seeds(told: Told) -> list[str]:
    """A name for each of several runs of one method."""
    if told.averaged or len(told.folders) == 1:
        return [""] * len(told.folders)
    if len({Path(path).resolve() for path in told.folders}) < len(told.folders):
        raise ValueError(f"--methods: {told.name!r} has the same run twice among its seeds")
    return ensemble.short_names(told.folders)


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


class Found(NamedTuple):
    """What a folder's weights are; they are not loaded yet."""

    variant: str
    run: TrainConfig | None
    step: int
    weights: str
    trained: Look


def peek(folder: Path, *, flag: str) -> Found:
    """What stands in a folder of weights.

    Args:
      flag: That named the folder, for messages.

    Raises:
      CheckpointError: No weights.
    """
    runs.refuse_unconverted(folder, flag=flag)
    if runs.is_run(folder):
        run, step = runs.read_config(folder), runs.loaded_step(folder)
        manifest = checkpoints.step_folder(runs.home(folder), step) / checkpoints.MANIFEST
        look = config.look_of(run)
        return Found(run.variant, run, step, checkpoints.sha256(manifest), look)
    if not (folder / checkpoints.MANIFEST).is_file():
        found = "neither a run nor converted weights" if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{flag} {folder}: {found}; give a run of `python train.py` (runs/...), weights that "
            "`python -m convert` made (checkpoints/...), or under --methods one of "
            f"{', '.join((*METHODS, *GROUPS))}"
        )
    held = checkpoints.read_manifest(folder)
    variant = held.get("variant")
    if variant not in VARIANTS or held.get("kind") != "converted":
        raise CheckpointError(f"{folder}: neither a run nor converted weights of {list(VARIANTS)}")
    look = Look(preprocess=held.get("preprocess", "sam"))
    digest = checkpoints.sha256(folder / checkpoints.MANIFEST)
    return Found(variant, None, 0, digest, look)
