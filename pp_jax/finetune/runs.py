"""The folder of a run, and how weights come out of it or out of a converted checkpoint.

RUN/config.json          every choice
RUN/environment.json     versions and devices of its last start
RUN/split.json           patients of train, validation and test
RUN/images.json          ids of the images of each part
RUN/atlas.npz            mean training shape and place, for the controls of eval.py
RUN/base/                frozen leaves, written once
RUN/steps/00000120/      trainable leaves, optimizer state, step
RUN/metrics.jsonl        one row per step and per validation
RUN/learning_curve.png

A cross-validation is a folder of runs:
OUT/folds.json           their names
OUT/fold0/ OUT/fold1/    a run each
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pp_jax import checkpoints, config, prompts, sharding, tree
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import Look, TrainConfig
from pp_jax.evaluate.controls import Atlas, Outlined, fit_atlas
from pp_jax.finetune.recipe import model_of, rules_of
from pp_jax.finetune.step import State
from pp_jax.preprocess.stage import initial_fusion
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init

CONFIG, ENVIRONMENT, SPLIT = "config.json", "environment.json", "split.json"
IMAGES, FOLDS = "images.json", "folds.json"
_BEGUN = f".{FOLDS}."
METRICS, CURVE, ATLAS, BASE = "metrics.jsonl", "learning_curve.png", "atlas.npz", "base"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")

Split = Mapping[str, Sequence[str]]


# The folder.


def open_run(
    settings: TrainConfig, *, split: Split, images: Split, outlines: Iterable[Outlined]
) -> Path:
    """The run's folder, ready to start or to resume.

    A run that has not made a step yet has nothing to lose: it starts anew with these settings.

    Args:
      settings: Resolved.
      split: Names of the patients of each part.
      images: Ids of the images of each part.
      outlines: The training images' objects; looked at only where the atlas is not there yet.

    Raises:
      ValueError: It holds a run with other settings (they are named) and `--force` was not given,
        a run with other patients, or something that is no run.
    """
    run = Path(settings.out)
    if run.exists() and not run.is_dir():
        raise ValueError(f"--out {run}: a file stands there; choose another folder")
    if not (run / CONFIG).is_file() and run.is_dir() and any(run.iterdir()):
        raise ValueError(f"--out {run}: not empty and no run; choose another folder")
    started = bool(_size(run / METRICS) or checkpoints.steps(run))
    if started:
        changed = config.differences(_read_json(run / CONFIG), settings)
        if changed and not settings.force:
            listed = ", ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items())
            raise ValueError(
                f"{run}: holds a run with other settings ({listed}); give another --out, the old "
                "settings to resume it, or --force to move it aside"
            )
        if changed:
            _move_aside(run)
            started = False
    if started:
        _require_same_split(run, split)
    else:
        run.mkdir(parents=True, exist_ok=True)
        checkpoints.write_json(run / SPLIT, split)
        checkpoints.write_json(run / IMAGES, images)
        _write_atlas(run, fit_atlas(outlines))
    # Last, since a folder without it is no run.
    checkpoints.write_json(run / ENVIRONMENT, _environment())
    checkpoints.write_json(run / CONFIG, dataclasses.asdict(settings))
    return run


def of_folds(settings: TrainConfig) -> list[TrainConfig]:
    """The settings of each run that is to be trained: themselves, or those of the folds.

    The folder of a cross-validation then names all of them, trained here or elsewhere.

    Raises:
      ValueError: The folder holds something else, or a cross-validation of another number of folds
        and `--force` was not given.
    """
    if not settings.folds:
        return [settings]
    out, names = Path(settings.out), [f"fold{fold}" for fold in range(settings.folds)]
    if (out / FOLDS).is_file():
        held = [path.name for path in read_folds(out)]
        if held != names and not settings.force:
            raise ValueError(
                f"{out}: holds {len(held)} folds, not {len(names)}; give another --out, --folds "
                f"{len(held)} to go on with them, or --force to move them aside"
            )
        if held != names:
            _move_aside(out)
    elif out.is_file() or (out.is_dir() and not all(map(_is_begun, out.iterdir()))):
        raise ValueError(f"--out {out}: holds something else than folds; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    # Folds may be started together, on several machines: each writes under a name of its own.
    partial = out / f"{_BEGUN}{uuid.uuid4().hex}"
    partial.write_text(json.dumps({"runs": names}, indent=1) + "\n")
    partial.rename(out / FOLDS)
    chosen = range(settings.folds) if settings.fold is None else (settings.fold,)
    return [config.fold_of(settings, fold) for fold in chosen]


def _is_begun(path: Path) -> bool:
    """Whether it is another process's list of folds that has not its name yet."""
    return path.name.startswith(_BEGUN)


def read_folds(folder: Path) -> list[Path]:
    """The runs of a cross-validation; nothing if the folder is none."""
    if not (folder / FOLDS).is_file():
        return []
    return [folder / name for name in _read_json(folder / FOLDS)["runs"]]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _move_aside(run: Path) -> None:
    number = 1
    while (aside := run.with_name(f"{run.name}.old{number}")).exists():
        number += 1
    os.rename(run, aside)
    print(f"moved the old run to {aside}")


def _environment() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"python": platform.python_version(), **versions, "devices": devices}


def _require_same_split(run: Path, split: Split) -> None:
    for part, names in read_split(run).items():
        moved = sorted(set(names) ^ set(split[part]))
        if moved:
            raise ValueError(
                f"{run}: the data set changed since this run began: {len(moved)} patients of its "
                f"{part} part came or went, first {moved[0]}; restore the data or give another "
                "--out"
            )


def _write_atlas(run: Path, atlas: Atlas) -> None:
    partial = run / (ATLAS + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **atlas.to_arrays())
    partial.rename(run / ATLAS)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); restore a copy of it") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged (no object); restore a copy of it")
    return content


def read_config(run: Path) -> TrainConfig:
    """The choices a run was made with.

    Raises:
      CheckpointError: They are not those of this version.
    """
    held = _read_json(run / CONFIG)
    try:
        return TrainConfig(**held)
    except TypeError as error:
        raise CheckpointError(
            f"{run / CONFIG}: not the config of a run of this version ({error})"
        ) from error


def read_split(run: Path) -> dict[str, list[str]]:
    """Patients of each part."""
    return _read_json(run / SPLIT)


def read_images(run: Path) -> dict[str, list[str]]:
    """Ids of the images of each part; nothing of a run from before they were written."""
    return _read_json(run / IMAGES) if (run / IMAGES).is_file() else {}


def read_atlas(run: Path) -> Atlas:
    """What the training objects look like on average.

    Raises:
      CheckpointError: Damaged.
    """
    try:
        with np.load(run / ATLAS) as arrays:
            return Atlas.from_arrays(arrays)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CheckpointError(f"{run / ATLAS}: damaged ({error}); restore a copy") from error


# Weights.


class Loaded(NamedTuple):
    """Weights, and what is known of them."""

    variant: str
    variables: dict[str, Any]
    config: TrainConfig | None  # None: converted weights, no run.
    step: int | None
    look: Look  # What the weights' images looked like.


def load(folder: Path, *, mesh: Mesh) -> Loaded:
    """The weights in a folder: a run (its newest step that verifies) or a converted checkpoint.

    Raises:
      CheckpointError: Neither, or damaged.
    """
    if (folder / CONFIG).is_file():
        return _load_run(folder, mesh=mesh)
    facts = checkpoints.read_manifest(folder)
    variant = facts.get("variant")
    if variant not in VARIANTS or facts.get("kind") != "converted":
        raise CheckpointError(f"{folder}: neither a run nor converted weights of {list(VARIANTS)}")
    look = Look(preprocess=facts.get("preprocess", "sam"))
    variables = checkpoints.load(folder, _shapes(variant, look, mesh=mesh))
    return Loaded(variant, variables, None, None, look)


def _load_run(run: Path, *, mesh: Mesh) -> Loaded:
    settings = read_config(run)
    step = newest_step(run)
    if not step:
        raise CheckpointError(
            f"{run}: a run without a checkpoint yet; start it again with the same command"
        )
    look = config.look_of(settings)
    abstract = _shapes(settings.variant, look, mesh=mesh)
    trainable, frozen = tree.partition(abstract, rules_of(settings))
    folder = checkpoints.step_folder(run, step)
    held = checkpoints.load_part(folder, {"trainable": trainable})["trainable"]
    base, _ = _load_base(run, frozen, step=folder)
    variables = tree.combine(held, base)
    return Loaded(settings.variant, variables, settings, step, look)


def newest_step(run: Path) -> int:
    """The newest step of a run whose checkpoint verifies; 0 before the first.

    Raises:
      CheckpointError: It has checkpoints, and none verifies.
    """
    step = checkpoints.newest_verified(run)
    if step is None and checkpoints.steps(run):
        raise CheckpointError(
            f"{run / 'steps'}: every checkpoint of this run is damaged; restore a copy of one, or "
            "remove the folder of the run to start anew"
        )
    return step or 0


def _variables(variant: str, look: Look, key: jax.Array) -> dict[str, Any]:
    return init(Sam(VARIANTS[variant]), key) | initial_fusion(look)


def _shapes(variant: str, look: Look, *, mesh: Mesh) -> dict[str, Any]:
    """Shapes and placements of all variables of a variant that is shown a look."""
    abstract = jax.eval_shape(partial(_variables, variant, look), jax.random.key(0))
    return _placed(abstract, sharding.placements(abstract, mesh))


def _placed(abstract: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, where
    )


def _load_base(run: Path, like: Any, *, step: Path) -> tuple[dict[str, Any], str]:
    """The frozen leaves and their hash, which must be the one that the step was trained with."""
    digest = checkpoints.sha256(run / BASE / checkpoints.MANIFEST)
    if checkpoints.read_manifest(step).get("base_sha256") != digest:
        raise CheckpointError(f"{step}: was trained on other frozen weights than {run / BASE}")
    return checkpoints.load(run / BASE, like), digest


def require_checkpoint(settings: TrainConfig) -> None:
    """Nothing, when the weights to start from are there or none are needed.

    Raises:
      CheckpointError: They are not; says how to get them.
    """
    if settings.checkpoint and not Path(settings.checkpoint).exists():
        raise CheckpointError(_how_to_get(settings.checkpoint, settings.variant))


def with_preprocess(settings: TrainConfig) -> TrainConfig:
    """The config with the preparation of images that the checkpoint's weights expect.

    Raises:
      ValueError: The user asked for another one.
    """
    expected = "sam"
    if settings.checkpoint:
        folder = Path(settings.checkpoint)
        if (folder / CONFIG).is_file():
            expected = read_config(folder).preprocess or "sam"
        else:
            expected = checkpoints.read_manifest(folder).get("preprocess", "sam")
        if settings.preprocess not in ("", expected):
            raise ValueError(
                f"--preprocess {settings.preprocess}: the weights in {folder} expect {expected}; "
                "leave the flag out"
            )
    return dataclasses.replace(settings, preprocess=settings.preprocess or expected)


def _how_to_get(folder: str, variant: str) -> str:
    if variant not in OFFICIAL:
        return f"{folder}: no such folder; --checkpoint takes a converted checkpoint or a run"
    file = OFFICIAL[variant]
    return (
        f"{folder}: no such folder. Get the official weights and convert them with "
        f"`curl -LO {_URL}{file}` and "
        f"`python -m convert {file} checkpoints/{variant}`, or add `--init random`"
    )


def _initial_variables(settings: TrainConfig, *, mesh: Mesh) -> dict[str, Any]:
    """The weights a training starts from: converted ones, another run's, or random ones.

    A learned fusion goes on where it stood, if it was learned on the same filters.
    """
    look = config.look_of(settings)
    if settings.checkpoint:
        loaded = load(Path(settings.checkpoint), mesh=mesh)
        if loaded.variant != settings.variant:
            raise CheckpointError(
                f"{settings.checkpoint}: weights of {loaded.variant}, not of {settings.variant}; "
                f"use --variant {loaded.variant} or another --checkpoint"
            )
        variables = {k: v for k, v in loaded.variables.items() if k != "fusion"}
        same = (loaded.look.fusion, loaded.look.filter) == (look.fusion, look.filter)
        kept = loaded.variables if same else {}
        fresh = jax.device_put(initial_fusion(look), sharding.replicated(mesh))
        return variables | {name: kept.get(name, value) for name, value in fresh.items()}
    key = jax.random.fold_in(jax.random.key(settings.seed), prompts.Purpose.INIT)
    places = _places(_shapes(settings.variant, look, mesh=mesh))
    return jax.jit(partial(_variables, settings.variant, look), out_shardings=places)(key)


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
        _forget_after(run, step)
        return Begun(State(**checkpoints.load(folder, like._asdict())), base, digest)
    trainable, frozen = tree.partition(_initial_variables(settings, mesh=mesh), rules_of(settings))
    facts = {
        "kind": "base",
        "variant": settings.variant,
        "source": settings.checkpoint or "random",
    }
    checkpoints.save(run / BASE, frozen, facts=facts)
    make = partial(_start, optimizer=optimizer)
    state = jax.jit(make, out_shardings=_places(like))(trainable)
    return Begun(state, frozen, checkpoints.sha256(run / BASE / checkpoints.MANIFEST))


def _forget_after(run: Path, step: int) -> None:
    """Steps after the one that is resumed from are damaged: kept, they would pass for the newest
    and `prune` would remove good ones in their place.
    """
    if jax.process_index() == 0:
        for later in checkpoints.steps(run):
            if later > step:
                shutil.rmtree(checkpoints.step_folder(run, later))


def save_step(run: Path, state: State, *, settings: TrainConfig, base: str) -> None:
    """The state stands in the run as a checkpoint of its step, and old ones are gone."""
    step = int(state.step)
    facts = {"kind": "step", "variant": settings.variant, "step": step, "base_sha256": base}
    checkpoints.save(checkpoints.step_folder(run, step), state._asdict(), facts=facts)
    checkpoints.prune(run, keep=settings.keep)


def shapes_of(
    settings: TrainConfig, optimizer: optax.GradientTransformation, *, mesh: Mesh
) -> tuple[State, dict[str, Any]]:
    """Shapes and placements of a training's state, and of what is frozen beside it.

    Moments lie where their parameters lie.
    """
    model, look = model_of(settings), config.look_of(settings)
    shapes = jax.eval_shape(lambda key: init(model, key) | initial_fusion(look), jax.random.key(0))
    shapes = _placed(shapes, sharding.placements(shapes, mesh))
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


_URL = "https://dl.fbaipublicfiles.com/segment_anything/"

OFFICIAL: Mapping[str, str] = MappingProxyType(
    {
        "vit_b": "sam_vit_b_01ec64.pth",
        "vit_l": "sam_vit_l_0b3195.pth",
        "vit_h": "sam_vit_h_4b8939.pth",
    }
)
