"""The folder of a run, and how weights come out of it or out of a converted checkpoint.

RUN/config.json          every choice (and the versions it ran with, in environment.json)
RUN/split.json           patients of train, validation and test
RUN/atlas.npz            mean training shape, a control for eval.py
RUN/base/                frozen leaves, written once
RUN/steps/00000120/      trainable leaves, optimizer state, step
RUN/metrics.jsonl        one row per step and per validation
RUN/learning_curve.png
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from pp_jax import checkpoints, config, prompts, sharding, tree
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig
from pp_jax.finetune.step import State
from pp_jax.finetune.trainable import POLICIES
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init

CONFIG, SPLIT, METRICS, CURVE = "config.json", "split.json", "metrics.jsonl", "learning_curve.png"
ATLAS, BASE = "atlas.npz", "base"
_GET = {
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
}
OFFICIAL_URL = "https://dl.fbaipublicfiles.com/segment_anything/"


class Loaded(NamedTuple):
    """Weights, and what is known of them."""

    variant: str
    variables: dict[str, Any]
    config: TrainConfig | None  # None: converted weights, no run.
    step: int | None
    facts: dict[str, Any]  # The manifest.


def shapes(variant: str, *, mesh: Mesh, rule: str = "data") -> dict[str, Any]:
    """Shapes and placements of all variables of a variant."""
    abstract = jax.eval_shape(lambda key: init(Sam(VARIANTS[variant]), key), jax.random.key(0))
    return _placed(abstract, sharding.placements(abstract, mesh, rule))


def _placed(abstract: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, where
    )


def initial_variables(settings: TrainConfig, *, mesh: Mesh) -> dict[str, Any]:
    """The weights a training starts from: converted ones, another run's, or random ones.

    Raises:
      CheckpointError: None where some are needed, damaged ones, or another variant's.
    """
    if settings.checkpoint:
        folder = Path(settings.checkpoint)
        if not folder.exists():
            raise CheckpointError(_how_to_get(folder, settings.variant))
        loaded = load(folder, mesh=mesh, rule=settings.sharding)
        if loaded.variant != settings.variant:
            raise CheckpointError(
                f"{folder}: weights of {loaded.variant}, not of {settings.variant}; "
                f"use --variant {loaded.variant} or another --checkpoint"
            )
        return loaded.variables
    model = Sam(VARIANTS[settings.variant])
    key = jax.random.fold_in(jax.random.key(settings.seed), prompts.Purpose.INIT)
    where = sharding.placements(
        jax.eval_shape(lambda k: init(model, k), key), mesh, settings.sharding
    )
    return jax.jit(lambda k: init(model, k), out_shardings=where)(key)


def _how_to_get(folder: Path, variant: str) -> str:
    if variant not in _GET:
        return f"{folder}: no such folder; --checkpoint takes a converted checkpoint or a run"
    file = _GET[variant]
    return (
        f"{folder}: no such folder. Get the official weights and convert them with "
        f"`curl -LO {OFFICIAL_URL}{file}` and "
        f"`python -m convert {file} checkpoints/{variant}`, or add `--init random`"
    )


def load(folder: Path, *, mesh: Mesh, rule: str = "data") -> Loaded:
    """The weights in a folder: a run (its newest step that verifies) or a converted checkpoint.

    Raises:
      CheckpointError: Neither, or damaged.
    """
    if (folder / CONFIG).is_file():
        return _load_run(folder, mesh=mesh, rule=rule)
    facts = checkpoints.read_manifest(folder)
    variant = facts.get("variant")
    if variant not in VARIANTS or facts.get("kind") != "converted":
        raise CheckpointError(f"{folder}: neither a run nor converted weights of {list(VARIANTS)}")
    variables = checkpoints.load(folder, shapes(variant, mesh=mesh, rule=rule))
    return Loaded(variant, variables, None, None, facts)


def read_config(run: Path) -> TrainConfig:
    """The choices a run was made with.

    Raises:
      CheckpointError: They are not those of this version.
    """
    path = run / CONFIG
    try:
        return TrainConfig(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not the config of a run ({error})") from error


def _load_run(run: Path, *, mesh: Mesh, rule: str) -> Loaded:
    settings = read_config(run)
    step = checkpoints.newest_verified(run)
    if step is None:
        raise CheckpointError(
            f"{run}: no checkpoint of this run verifies; start it again with the same command"
        )
    abstract = shapes(settings.variant, mesh=mesh, rule=rule)
    trainable, frozen = tree.partition(abstract, POLICIES[settings.trainable])
    held = checkpoints.load_part(checkpoints.step_folder(run, step), {"trainable": trainable})
    base = checkpoints.load(run / BASE, frozen)
    facts = checkpoints.read_manifest(checkpoints.step_folder(run, step))
    variables = tree.combine(held["trainable"], base)
    return Loaded(settings.variant, variables, settings, step, facts)


def open_run(settings: TrainConfig) -> Path:
    """The run's folder, ready to start or to resume.

    Raises:
      ValueError: It holds a run with other settings (they are named) and `--force` was not given.
    """
    run = Path(settings.out)
    path = run / CONFIG
    if run.exists() and not run.is_dir():
        raise ValueError(f"--out {run}: a file stands there; choose another folder")
    if path.is_file():
        changed = config.differences(json.loads(path.read_text()), settings)
        if changed and not settings.force:
            listed = ", ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items())
            raise ValueError(
                f"{run}: holds a run with other settings ({listed}); give another --out, the old "
                "settings to resume it, or --force to move it aside"
            )
        if changed:
            _move_aside(run)
    elif run.is_dir() and any(run.iterdir()):
        raise ValueError(f"--out {run}: not empty and no run; choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(path, dataclasses.asdict(settings))
    return run


def _move_aside(run: Path) -> None:
    number = 1
    while (aside := run.with_name(f"{run.name}.old{number}")).exists():
        number += 1
    os.rename(run, aside)
    print(f"moved the old run to {aside}")


def save_step(run: Path, state: State, *, variant: str, base: str) -> None:
    """The state stands in the run as a checkpoint of its step."""
    step = int(state.step)
    facts = {"kind": "step", "variant": variant, "step": step, "base_sha256": base}
    folder = checkpoints.step_folder(run, step)
    checkpoints.save(folder, state._asdict(), facts=facts)


def save_base(run: Path, frozen: Any, *, variant: str, source: str) -> str:
    """The frozen leaves stand in the run; returns the hash that step checkpoints refer to."""
    folder = run / BASE
    if not folder.is_dir():
        facts = {"kind": "base", "variant": variant, "source": source}
        checkpoints.save(folder, frozen, facts=facts)
    return checkpoints.sha256(folder / checkpoints.MANIFEST)


def restore_state(run: Path, like: State, *, base: str) -> State | None:
    """The newest state of a run that verifies, None if it has none.

    Raises:
      CheckpointError: It was trained on another base than the one that stands in the run.
    """
    step = checkpoints.newest_verified(run)
    if step is None:
        return None
    folder = checkpoints.step_folder(run, step)
    if checkpoints.read_manifest(folder)["base_sha256"] != base:
        raise CheckpointError(f"{folder}: was trained on other frozen weights than {run / BASE}")
    return State(**checkpoints.load(folder, like._asdict()))


def abstract_state(
    trainable: Any, optimizer: optax.GradientTransformation, *, mesh: Mesh, make: Callable
) -> State:
    """Shapes and placements of a training state: moments lie where their parameters lie."""
    state = jax.eval_shape(make, trainable)
    everywhere = sharding.replicated(mesh)
    params = jax.tree.map(lambda x: x.sharding, trainable)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        state.optimizer,
        params,
        transform_non_params=lambda _: everywhere,
    )
    return _placed(state, State(everywhere, params, moments))
