"""The folder of a run, and how weights come out of it or out of a converted checkpoint.

RUN/config.json          every choice
RUN/environment.json     versions, devices, revision and command of its last start; the hash of
                         splits.json; licences
RUN/splits.json          patients of train, validation and test
RUN/images.json          ids of the images of each part; `before`: who and what the runs that it
                         began from were fitted on
RUN/atlas.npz            mean training shape and place, for the controls of eval.py
RUN/base/                frozen leaves, written once
RUN/steps/00000120/      trainable leaves, optimizer state, step
RUN/best.json            the step that is best by validation
RUN/metrics.jsonl        one row per step and per validation
RUN/curves.png
RUN/pictures/            predictions
RUN/tensorboard/         the same rows, for TensorBoard
RUN/MODEL_CARD.md

A cross-validation is a folder of runs:
OUT/folds.json           their names
OUT/fold0/ OUT/fold1/    a run each
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pp_jax import checkpoints, config, prompts, sharding, tree
from pp_jax.baselines.backbones import backbone_of, with_backbone
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import Look, TrainConfig
from pp_jax.finetune.folder import (
    ATLAS,
    BASE,
    BEST,
    CARD,
    CONFIG,
    CURVE,
    ENVIRONMENT,
    FITTED,
    FOLDS,
    IMAGES,
    METRICS,
    PICTURES,
    SPLIT,
    TENSORBOARD,
    Fit,
    Split,
    best_step,
    fitted_before,
    forget_after,
    home,
    is_done,
    is_finished,
    is_reported,
    is_run,
    lineage,
    loaded_step,
    newest_step,
    note_best,
    read_atlas,
    read_best,
    read_config,
    read_folds,
    read_images,
    read_json,
    read_rows,
    read_split,
    refuse_unconverted,
    to_line,
    write_card,
    write_images,
)
from pp_jax.finetune.models import config_of, make_model
from pp_jax.finetune.recipe import rules_of
from pp_jax.finetune.step import State
from pp_jax.lora import Lora, lora_of, merge
from pp_jax.preprocess.stage import initial_fusion
from pp_jax.sam import VARIANTS
from pp_jax.sam.model import init

# Of this module, and of `folder` what the rest of the project asks a run.
__all__ = [
    "ATLAS",
    "BASE",
    "BEST",
    "CARD",
    "CONFIG",
    "CURVE",
    "ENVIRONMENT",
    "FITTED",
    "FOLDS",
    "IMAGES",
    "METRICS",
    "PICTURES",
    "SPLIT",
    "TENSORBOARD",
    "Begun",
    "Fit",
    "Loaded",
    "Split",
    "begin",
    "best_step",
    "fitted_before",
    "home",
    "initial_variables",
    "is_done",
    "is_finished",
    "is_reported",
    "is_run",
    "lineage",
    "load",
    "load_parts",
    "loaded_step",
    "newest_step",
    "note_best",
    "read_atlas",
    "read_best",
    "read_config",
    "read_folds",
    "read_images",
    "read_json",
    "read_rows",
    "read_split",
    "refuse_unconverted",
    "save_step",
    "shapes_of",
    "to_line",
    "write_card",
    "write_images",
]


# Weights.


class Loaded(NamedTuple):
    """Weights, and what is known of them."""

    variant: str
    variables: dict[str, Any]
    config: TrainConfig | None  # None: converted weights, no run.
    step: int | None
    look: Look  # What the weights' images looked like.
    folder: Path  # The checkpoint's, with its manifest.


def load(folder: Path, *, mesh: Mesh) -> Loaded:
    """The weights in a folder: of a run, of one of its steps, or of a converted checkpoint.

    Low-rank pairs are merged into the kernels that they belong to.

    Raises:
      CheckpointError: None of these, or damaged.
    """
    loaded = load_parts(folder, mesh=mesh)
    lora = lora_of(loaded.config) if loaded.config else None
    if lora is None:
        return loaded
    return loaded._replace(variables=merge(loaded.variables, lora))


def load_parts(folder: Path, *, mesh: Mesh) -> Loaded:
    """As `load`, but low-rank pairs stand apart, in the collection `lora`.

    Raises:
      CheckpointError: As `load`.
    """
    refuse_unconverted(folder)
    if is_run(folder):
        return _load_run(folder, mesh=mesh)
    if folds := read_folds(folder):
        raise CheckpointError(f"{folder}: {len(folds)} runs; name one of them, such as {folds[0]}")
    facts = checkpoints.read_manifest(folder)
    variant = facts.get("variant")
    if variant not in VARIANTS or facts.get("kind") != "converted":
        raise CheckpointError(f"{folder}: neither a run nor converted weights of {list(VARIANTS)}")
    look = Look(preprocess=facts.get("preprocess", "sam"))
    variables = checkpoints.load(folder, _shapes(variant, look, None, mesh=mesh))
    return Loaded(variant, variables, None, None, look, folder)


def _load_run(folder: Path, *, mesh: Mesh) -> Loaded:
    run, settings, step = home(folder), read_config(folder), loaded_step(folder)
    if step not in checkpoints.steps(run):
        raise CheckpointError(
            f"{folder}: no such step; {run} has checkpoints of {checkpoints.steps(run)}"
        )
    look = config.look_of(settings)
    abstract = _shapes(settings.variant, look, lora_of(settings), mesh=mesh)
    trainable, frozen = tree.partition(abstract, rules_of(settings))
    held_in = checkpoints.step_folder(run, step)
    held = checkpoints.load_part(held_in, {"trainable": trainable})["trainable"]
    base, _ = _load_base(run, frozen, step=held_in)
    variables = tree.combine(held, base)
    return Loaded(settings.variant, variables, settings, step, look, held_in)


def _variables(variant: str, look: Look, lora: Lora | None, key: jax.Array) -> dict[str, Any]:
    model = make_model(config_of(variant), dtype=jnp.float32, lora=lora)
    return init(model, key) | initial_fusion(look)


def _shapes(variant: str, look: Look, lora: Lora | None, *, mesh: Mesh) -> dict[str, Any]:
    """Shapes and placements of all variables of a variant that is shown a look."""
    abstract = jax.eval_shape(partial(_variables, variant, look, lora), jax.random.key(0))
    return _placed(abstract, sharding.placements(abstract, mesh))


def _placed(abstract: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, where
    )


def _load_base(run: Path, like: Any, *, step: Path) -> tuple[dict[str, Any], str]:
    """The frozen leaves and their hash, which must be the one that the step was trained with."""
    manifest = run / BASE / checkpoints.MANIFEST
    if not manifest.is_file():
        raise CheckpointError(
            f"{manifest}: missing; restore a copy of the frozen weights of this run"
        )
    digest = checkpoints.sha256(manifest)
    if checkpoints.read_manifest(step).get("base_sha256") != digest:
        raise CheckpointError(f"{step}: was trained on other frozen weights than {run / BASE}")
    return checkpoints.load(run / BASE, like), digest


def initial_variables(settings: TrainConfig, *, mesh: Mesh) -> dict[str, Any]:
    """The weights a training starts from: converted ones, another run's, or random ones.

    A learned fusion goes on where it stood, if it was learned on the same filters. Low-rank pairs
    begin anew: another run's are merged by now.
    """
    look, lora = config.look_of(settings), lora_of(settings)
    key = jax.random.fold_in(jax.random.key(settings.seed), prompts.Purpose.INIT)
    make = partial(_variables, settings.variant, look, lora)
    places = _places(_shapes(settings.variant, look, lora, mesh=mesh))
    if not settings.checkpoint:
        return jax.jit(make, out_shardings=places)(key)
    if is_backbone(Path(settings.checkpoint)):
        return _with_backbone(jax.jit(make, out_shardings=places)(key), Path(settings.checkpoint))
    loaded = load(Path(settings.checkpoint), mesh=mesh)
    if loaded.variant != settings.variant:
        raise CheckpointError(
            f"{settings.checkpoint}: weights of {loaded.variant}, not of {settings.variant}"
        )
    kept = dict(loaded.variables)
    if (loaded.look.fusion, loaded.look.filter) != (look.fusion, look.filter):
        kept.pop("fusion", None)
    new = [name for name in places if name not in kept]
    fresh = jax.jit(
        lambda key: {name: make(key)[name] for name in new},
        out_shardings={name: places[name] for name in new},
    )(key)
    return {name: (kept | fresh)[name] for name in places}


def is_backbone(folder: Path) -> bool:
    """Whether a folder holds the converted encoder of a network, rather than a whole model."""
    if not (folder / checkpoints.MANIFEST).is_file():
        return False
    return checkpoints.read_manifest(folder).get("kind") == "backbone"


def _with_backbone(variables: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A network's variables, its encoder's taken from the folder."""
    own = _placed(backbone_of(variables), _places(backbone_of(variables)))
    return with_backbone(variables, checkpoints.load(folder, own))


# The state of a training.


class Begun(NamedTuple):
    """What a training goes on from."""

    state: State
    frozen: dict[str, Any]
    base: str  # Hash of the frozen leaves' checkpoint, to stand in every step's.


def begin(
    run: Path,
    settings: TrainConfig,
    optimizer: optax.GradientTransformation,
    *,
    step: int,
    mesh: Mesh,
) -> Begun:
    """The state at `step` of the run; at 0 the initial weights, whose frozen leaves are written.

    Raises:
      CheckpointError: Weights of another variant, or damaged ones.
    """
    like, frozen = shapes_of(settings, optimizer, mesh=mesh)
    if step:
        folder = checkpoints.step_folder(run, step)
        base, digest = _load_base(run, frozen, step=folder)
        forget_after(run, step)
        return Begun(State(**checkpoints.load(folder, like._asdict())), base, digest)
    forget_after(run, step)
    trainable, frozen = tree.partition(initial_variables(settings, mesh=mesh), rules_of(settings))
    facts = {
        "kind": "base",
        "variant": settings.variant,
        "source": settings.checkpoint or "random",
    }
    checkpoints.save(run / BASE, frozen, facts=facts)
    make = partial(_start, optimizer=optimizer)
    state = jax.jit(make, out_shardings=_places(like))(trainable)
    return Begun(state, frozen, checkpoints.sha256(run / BASE / checkpoints.MANIFEST))


def save_step(
    run: Path, state: State, *, settings: TrainConfig, base: str, last: int | None = None
) -> None:
    """The state stands in the run as a checkpoint of its step, and old ones are gone.

    The best by validation stays, and as many of the newest as `settings` keep.

    Args:
      base: Hash of the frozen leaves' checkpoint.
      last: The step that the training ends with.
    """
    step = int(state.step)
    facts = {"kind": "step", "variant": settings.variant, "step": step, "base_sha256": base}
    facts |= {"last_step": last} if last else {}
    checkpoints.save(checkpoints.step_folder(run, step), state._asdict(), facts=facts)
    best = read_best(run)
    checkpoints.prune(run, keep=settings.keep, also=[best["step"]] if best else [])


def shapes_of(
    settings: TrainConfig, optimizer: optax.GradientTransformation, *, mesh: Mesh
) -> tuple[State, dict[str, Any]]:
    """Shapes and placements of a training's state, and of what is frozen beside it.

    Moments lie where their parameters lie.
    """
    look = config.look_of(settings)
    shapes = _shapes(settings.variant, look, lora_of(settings), mesh=mesh)
    trainable, frozen = tree.partition(shapes, rules_of(settings))
    state = jax.eval_shape(partial(_start, optimizer=optimizer), trainable)
    everywhere = sharding.replicated(mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda x, of: of.sharding if x.shape == of.shape else sharding.place(x.shape, mesh),
        state.optimizer,
        trainable,
        transform_non_params=lambda _: everywhere,
    )
    return _placed(state, State(everywhere, _places(trainable), moments)), frozen


def _start(trainable: Any, *, optimizer: optax.GradientTransformation) -> State:
    return State(jnp.int32(0), trainable, optimizer.init(trainable))


def _places(arrays: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, arrays)
