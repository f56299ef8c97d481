"""How a run is begun: its folder, what it goes on from, and what its first files say."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from pp_jax import checkpoints, config
from pp_jax.baselines.segmenter import NETWORKS, SEGMENTERS
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig
from pp_jax.evaluate.controls import Atlas, Outlined, fit_atlas
from pp_jax.finetune import card, runs
from pp_jax.finetune.runs import Split
from pp_jax.sam import VARIANTS

_BEGUN = f".{runs.FOLDS}."
_OPENING = (runs.SPLIT, runs.IMAGES, runs.ATLAS, runs.ENVIRONMENT)
_FIRST = frozenset((*_OPENING, *(f"{name}.partial" for name in (*_OPENING, runs.CONFIG))))
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


# The folder.


def open_run(
    settings: TrainConfig,
    *,
    split: Split,
    images: Split,
    outlines: Iterable[Outlined],
    licences: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """The run's folder, ready to start or to resume.

    A run that has not made a step yet has nothing to lose: it starts anew with these settings.

    Args:
      settings: Resolved.
      split: Names of the patients of each part.
      images: Ids of the images of each part.
      outlines: The training images' objects; looked at only where the atlas is not there yet.
      licences: Of each data set; what is not named counts as unknown.

    Raises:
      ValueError: It holds a run with other settings (they are named) and `--force` was not given,
        a run with other patients, or something that is no run.
    """
    run = Path(settings.out)
    started, fits = look_into(run, settings)
    if started and fits:
        _require_same_split(run, split)
    checkpoints.meet(f"all have looked into {run.name}")  # Before one of them writes there.
    if jax.process_index() == 0:
        if started and not fits:
            _move_aside(run)
        earlier = runs.read_json(run / runs.ENVIRONMENT) if started and fits else {}
        if not earlier:
            atlas, before = fit_atlas(outlines), _fitted_before(settings)
            _warn_of_known(settings, images, before or ())
            run.mkdir(parents=True, exist_ok=True)
            checkpoints.write_json(run / runs.SPLIT, split)
            runs.write_images(run, images, before=before)
            (run / runs.BEST).unlink(missing_ok=True)
            _write_atlas(run, atlas)
        facts = {
            **_environment(earlier),
            "splits_sha256": checkpoints.sha256(run / runs.SPLIT),
            "licences": earlier.get("licences") or _licences(settings, licences),
        }
        # Last, since a folder without it is no run.
        checkpoints.write_json(run / runs.ENVIRONMENT, facts)
        checkpoints.write_json(run / runs.CONFIG, dataclasses.asdict(settings))
    checkpoints.meet(f"{run.name} is open")
    return run


def look_into(run: Path, settings: TrainConfig) -> tuple[bool, bool]:
    """Whether a run has begun in the folder, and whether it is the one of the settings.

    Raises:
      ValueError: As `open_run`, but for the patients.
    """
    if run.exists() and not run.is_dir():
        raise ValueError(f"--out {run}: a file stands there; choose another folder")
    there = [path.name for path in run.iterdir()] if run.is_dir() else []
    # A start that was killed left some of its first files, which are written anew.
    if runs.CONFIG not in there and not _FIRST.issuperset(there):
        raise ValueError(f"--out {run}: not empty and no run; choose another folder")
    if settings.checkpoint and runs.home(Path(settings.checkpoint)).resolve() == run.resolve():
        raise ValueError(
            f"--out {run}: the run whose weights are to be started from; give the new run another "
            f"--out, or go on with the old one by `python train.py --resume {run}`"
        )
    if not (_size(run / runs.METRICS) or checkpoints.steps(run)):
        return False, True
    changed = config.differences(runs.read_json(run / runs.CONFIG), settings)
    if changed and not settings.force:
        listed = ", ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items())
        raise ValueError(
            f"{run}: holds a run with other settings ({listed}); give another --out, the old "
            f"settings to go on with it (or `--resume {run}` alone), or --force to move it aside"
        )
    return True, not changed


def _fitted_before(settings: TrainConfig) -> list[runs.Fit] | None:
    """What the weights to start from were fitted on; None where that cannot be known."""
    if not settings.checkpoint:
        return None  # Random ones.
    try:
        return runs.fitted_before(Path(settings.checkpoint))
    except CheckpointError as error:
        warnings.warn(f"{settings.out}: {error}", stacklevel=2)
        return None


def _warn_of_known(settings: TrainConfig, images: Split, before: Iterable[runs.Fit]) -> None:
    known = _named(images["validation"], settings.data)
    everything = _named([name for names in images.values() for name in names], settings.data)
    for fit in before:
        trained = _named(fit.images.get("train", ()), fit.data)
        # Other folders may use the same names for other images: as `data.held_out` tells a copy.
        same = _same_folders(settings, fit) or 2 * len(trained & everything) > len(trained)
        if same and (both := len(known & trained)):
            warnings.warn(
                f"{both} of {len(known)} images of the validation part are among those that "
                f"{fit.run} was trained on: early stopping and {runs.BEST} will go by images that "
                "the weights know; give the --seed, --validation and --test of that run",
                stacklevel=3,
            )


def _named(ids: Iterable[str], data: str) -> set[str]:
    """Ids with their data set in front, as those of several sets have it already."""
    return set(ids) if "," in data else {f"{data}.{name}" for name in ids}


def _same_folders(settings: TrainConfig, fit: runs.Fit) -> bool:
    one, other = (
        {Path(part).resolve() for part in folders.split(",")}
        for folders in (settings.data_dir, fit.data_dir)
    )
    return bool(one & other)


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
    aside = False
    if (out / runs.FOLDS).is_file():
        held = [path.name for path in runs.read_folds(out)]
        if held != names and not settings.force:
            raise ValueError(
                f"{out}: holds {len(held)} folds, not {len(names)}; give another --out, --folds "
                f"{len(held)} to go on with them, or --force to move them aside"
            )
        aside = held != names
    elif out.is_file() or (out.is_dir() and not all(map(_is_begun, out.iterdir()))):
        raise ValueError(f"--out {out}: holds something else than folds; choose another folder")
    checkpoints.meet(f"all have looked into {out.name}")  # Before one of them writes there.
    if jax.process_index() == 0:
        if aside:
            _move_aside(out)
        out.mkdir(parents=True, exist_ok=True)
        # Folds may be started apart, on several machines: each writes under a name of its own.
        partial = out / f"{_BEGUN}{uuid.uuid4().hex}"
        partial.write_text(json.dumps({"runs": names}, indent=1) + "\n")
        partial.rename(out / runs.FOLDS)
    checkpoints.meet(f"{out.name} has its folds")
    return folds_of(settings)


def folds_of(settings: TrainConfig) -> list[TrainConfig]:
    """What `of_folds` gives, without a look at the folder."""
    if not settings.folds:
        return [settings]
    chosen = range(settings.folds) if settings.fold is None else (settings.fold,)
    return [config.fold_of(settings, fold) for fold in chosen]


def _is_begun(path: Path) -> bool:
    """Whether it is another process's list of folds that has not its name yet."""
    return path.name.startswith(_BEGUN)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _move_aside(run: Path) -> None:
    number = 1
    while (aside := run.with_name(f"{run.name}.old{number}")).exists():
        number += 1
    os.rename(run, aside)
    print(f"moved the old run to {aside}")


def _require_same_split(run: Path, split: Split) -> None:
    for part, names in runs.read_split(run).items():
        moved = sorted(set(names) ^ set(split[part]))
        if moved:
            raise ValueError(
                f"{run}: the data set changed since this run began: {len(moved)} patients of its "
                f"{part} part came or went, first {moved[0]}; restore the data or give another "
                "--out"
            )


def _write_atlas(run: Path, atlas: Atlas) -> None:
    partial = run / (runs.ATLAS + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **atlas.to_arrays())
    partial.rename(run / runs.ATLAS)


def _environment(earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Where and how the run goes on now, and the revisions that its earlier steps were made by."""
    revision = _revision()
    passed = [*earlier.get("earlier_revisions", []), earlier.get("revision")] if earlier else []
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "revision": revision,
        "earlier_revisions": [old for old in dict.fromkeys(passed) if old and old != revision],
    }


def _revision() -> str | None:
    """The git revision of the clone, with `-dirty` after it where files were changed since; None
    outside a clone.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    told = [_git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "-uno")]
    if told[0] is None or told[1] is None:
        return None
    return told[0] + ("-dirty" if told[1] else "")


def _git(root: Path, *words: str) -> str | None:
    try:
        told = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def _licences(settings: TrainConfig, data: Mapping[str, str]) -> dict[str, str]:
    """Of all that the weights will be made of, by name."""
    own = {f"data set {name}": data.get(name, card.UNKNOWN) for name in settings.data.split(",")}
    own |= {f"data set {name}": licence for name, licence in data.items()}
    if not settings.checkpoint:
        return {"weights at the start": "none needed: random numbers"} | own
    begun = Path(settings.checkpoint)
    if runs.is_run(begun):
        held = runs.read_json(runs.home(begun) / runs.ENVIRONMENT).get("licences") or {}
        return (dict(held) or {f"weights of {begun}": card.UNKNOWN}) | own
    facts = checkpoints.read_manifest(begun)
    known = facts["licence"] if facts.get("official") and facts.get("licence") else card.UNKNOWN
    return {f"weights of {facts.get('source', begun.name)}": known} | own


# What a run starts from.


def require_checkpoint(settings: TrainConfig, *, flag: str = "--checkpoint") -> None:
    """Nothing, when the weights to start from are there, and of this variant, or none are needed.

    Args:
      settings: Resolved.
      flag: What named the weights.

    Raises:
      CheckpointError: They are not; says how to get them.
    """
    if not settings.checkpoint:
        return
    folder = Path(settings.checkpoint)
    if not folder.exists():
        raise CheckpointError(_how_to_get(settings, flag))
    runs.refuse_unconverted(folder, flag=flag)
    if folds := runs.read_folds(folder):
        raise CheckpointError(
            f"{flag} {folder}: {len(folds)} runs; name one of them, such as {folds[0]}"
        )
    if runs.is_backbone(folder):
        check_backbone(settings, flag=flag)
        return
    if runs.is_run(folder):
        variant = runs.read_config(folder).variant
    elif (folder / checkpoints.MANIFEST).is_file():
        variant = checkpoints.read_manifest(folder).get("variant")
    else:
        raise CheckpointError(
            f"{flag} {folder}: neither a run nor converted weights of {', '.join(VARIANTS)}"
        )
    if variant != settings.variant:
        raise CheckpointError(
            f"{flag} {folder}: weights of {variant}, not of {settings.variant}; use --variant "
            f"{variant}, or give other weights"
        )


def check_backbone(settings: TrainConfig, *, flag: str) -> None:
    """Nothing, when the encoder to start from is that of the network.

    Raises:
      CheckpointError: It is not; says which networks it fits.
    """
    held = checkpoints.read_manifest(Path(settings.checkpoint))["backbone"]
    fits = [name for name, row in SEGMENTERS.items() if NETWORKS[row.network].backbone == held]
    if settings.variant not in fits:
        raise CheckpointError(
            f"{flag} {settings.checkpoint}: a {held}, which {settings.variant} does not have; use "
            f"--variant {' or '.join(fits)}, or give other weights"
        )


def with_preprocess(settings: TrainConfig) -> TrainConfig:
    """The config with the preparation of images that the checkpoint's weights expect.

    Raises:
      ValueError: The user asked for another one.
    """
    expected = "sam"
    if settings.checkpoint:
        folder = Path(settings.checkpoint)
        if runs.is_run(folder):
            expected = runs.read_config(folder).preprocess or "sam"
        else:
            expected = checkpoints.read_manifest(folder).get("preprocess", "sam")
        if settings.preprocess not in ("", expected):
            raise ValueError(
                f"--preprocess {settings.preprocess}: the weights in {folder} expect {expected}; "
                "leave the flag out"
            )
    return dataclasses.replace(settings, preprocess=settings.preprocess or expected)


def _how_to_get(settings: TrainConfig, flag: str) -> str:
    folder, variant = settings.checkpoint, settings.variant
    if variant not in OFFICIAL or flag != "--checkpoint":
        return f"{flag} {folder}: no such folder; it takes a converted checkpoint or a run"
    file = OFFICIAL[variant]
    return (
        f"{folder}: no such folder. Get the official weights and convert them with "
        f"`curl -LO {_URL}{file}` and "
        f"`python -m convert {file} checkpoints/{variant}`, or add `--init random`"
    )


# What is gone on with.


def to_resume(folder: str) -> TrainConfig:
    """The settings of the run, or of all the folds, in a folder, to which flags may be added.

    Raises:
      CheckpointError: There is no run.
    """
    run = Path(folder)
    if folds := runs.read_folds(run):
        begun = [fold for fold in folds if (fold / runs.CONFIG).is_file()]
        if not begun:
            raise CheckpointError(f"--resume {run}: none of its folds has begun; start it anew")
        return dataclasses.replace(runs.read_config(begun[0]), fold=None, out=str(run))
    if runs.home(run) != run:
        raise CheckpointError(
            f"--resume {run}: a step of a run, which goes on from its newest: `--resume "
            f"{runs.home(run)}`; or start a new run from these weights: `--init {run}`"
        )
    if not (run / runs.CONFIG).is_file():
        what = "no run" if run.is_dir() else "no such folder"
        raise CheckpointError(f"--resume {run}: {what}; give the folder of a run, as runs/NAME")
    held = runs.read_config(run)
    if held.fold is None:
        return dataclasses.replace(held, out=str(run))
    if run.name != f"fold{held.fold}":
        raise CheckpointError(
            f"--resume {run}: a fold of a cross-validation, whose folder must be called "
            f"fold{held.fold}; rename it"
        )
    # As `of_folds` takes it: the folder of all folds, and this one of them.
    return dataclasses.replace(held, out=str(run.parent))


def resumed(told: TrainConfig, held: TrainConfig) -> TrainConfig:
    """The settings that a run goes on with: its own, computed where and how `told` says.

    Args:
      told: What the user said, on top of `held`.
      held: From `to_resume`.

    Raises:
      ValueError: A flag that would make it another run; says which, and the way to a new one.
    """
    folder = told.resume
    start = [f for f in ("init", "checkpoint") if getattr(told, f) != getattr(held, f)]
    if start:
        raise ValueError(
            f"--resume {folder} and --{start[0]} {getattr(told, start[0])}: --resume goes on with "
            "a run where it stopped, its optimizer and its schedule; --init starts a new run from "
            "a run's weights alone; give one of them"
        )
    if told.preset not in ("", held.preset):
        raise ValueError(
            f"--resume {folder} and --preset {told.preset}: the run has settings of its own; give "
            "one of them"
        )
    if Path(told.out) != Path(held.out):
        raise ValueError(
            f"--resume {folder} and --out {told.out}: a run goes on in its own folder; leave --out "
            f"out, or start a new run from its weights with `--init {folder} --out OTHER`"
        )
    changed = config.differences(dataclasses.asdict(held), told)
    if held.folds and held.fold is None:
        changed.pop("fold", None)  # One of the folds may go on alone.
    if changed:
        listed = ", ".join(
            f"--{name.replace('_', '-')} {new} (it has {old})"
            for name, (old, new) in changed.items()
        )
        length = changed.keys() & {"steps", "epochs"}
        why = ", whose schedule ends where it was to end" if length else ""
        raise ValueError(
            f"--resume {folder}: {listed}: that would be another run{why}; leave it out, or start "
            f"a new run from its weights with `--init {folder} --out OTHER`"
        )
    return dataclasses.replace(told, resume="", preset=held.preset)


_URL = "https://dl.fbaipublicfiles.com/segment_anything/"

OFFICIAL: Mapping[str, str] = MappingProxyType(
    {
        "vit_b": "sam_vit_b_01ec64.pth",
        "vit_l": "sam_vit_l_0b3195.pth",
        "vit_h": "sam_vit_h_4b8939.pth",
    }
)
