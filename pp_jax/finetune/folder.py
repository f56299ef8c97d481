"""The files of a run's folder: their names, and what they say. See `runs`."""

import json
import logging
import math
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pp_jax import checkpoints, config
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig
from pp_jax.evaluate.controls import Atlas
from pp_jax.finetune import card, stopping

CONFIG, ENVIRONMENT, SPLIT = "config.json", "environment.json", "splits.json"
IMAGES, FOLDS, BEST = "images.json", "folds.json", "best.json"
METRICS, CURVE, ATLAS, BASE = "metrics.jsonl", "curves.png", "atlas.npz", "base"
CARD, PICTURES, TENSORBOARD = "MODEL_CARD.md", "pictures", "tensorboard"
_METRIC, _BEFORE = "dice_metric", "before"
FITTED = ("train", "validation")

Split = Mapping[str, Sequence[str]]


class Fit(NamedTuple):
    """What a run was fitted on, and what it kept."""

    run: str
    data: str
    data_dir: str
    patients: Split
    images: Split


def home(folder: Path) -> Path:
    """The run that a folder is a step of, as RUN/steps/00000120 is; else the folder itself."""
    run = folder.parent.parent
    within = folder.name.isdigit() and folder.parent == checkpoints.step_folder(run, 0).parent
    return run if within and (run / CONFIG).is_file() else folder


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run, or of one of its steps."""
    return (home(folder) / CONFIG).is_file()


def refuse_unconverted(path: Path, *, flag: str = "") -> None:
    """Nothing, unless weights of another library stand where a run or converted ones belong.

    Args:
      path: A file, or a folder.
      flag: That named it.

    Raises:
      CheckpointError: They do; names the command that converts them.
    """
    if (path / checkpoints.MANIFEST).is_file() or (home(path) / SPLIT).is_file():
        return  # What lies beside is somebody's export.
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    foreign = [file for file in files if file.suffix.lower() in _FOREIGN and file.is_file()]
    if foreign and not read_folds(path):
        raise CheckpointError(
            f"{flag} {path}: weights that are not converted yet; run `python -m convert "
            f"{foreign[0]} checkpoints/{foreign[0].stem}` and give that folder".strip()
        )


_FOREIGN = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


def read_folds(folder: Path) -> list[Path]:
    """The runs of a cross-validation; nothing if the folder is none."""
    if not (folder / FOLDS).is_file():
        return []
    return [folder / name for name in read_json(folder / FOLDS)["runs"]]


def read_json(path: Path) -> dict[str, Any]:
    """What a file of a run holds.

    Raises:
      CheckpointError: It is not there, or damaged.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; restore a copy of it") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); restore a copy of it") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged (no object); restore a copy of it")
    return content


def read_config(folder: Path) -> TrainConfig:
    """The choices that a run, or the run of a step, was made with.

    Raises:
      CheckpointError: They are not those of this version.
    """
    path = home(folder) / CONFIG
    held = read_json(path)
    try:
        return TrainConfig(**held)
    except TypeError as error:
        raise CheckpointError(
            f"{path}: not the config of a run of this version ({error})"
        ) from error


def read_split(folder: Path) -> dict[str, list[str]]:
    """Patients of each part, as the run began with them.

    Raises:
      CheckpointError: The file was edited since, so that it no longer says who was trained on.
    """
    run = home(folder)
    split = read_json(run / SPLIT)
    if checkpoints.sha256(run / SPLIT) != read_json(run / ENVIRONMENT).get("splits_sha256"):
        raise CheckpointError(
            f"{run / SPLIT}: edited since this run began (its sha256 is not the one in "
            f"{ENVIRONMENT}), so it no longer says who was trained on; restore a copy of it"
        )
    return split


def read_images(folder: Path) -> dict[str, list[str]]:
    """Ids of the images of each part."""
    held = read_json(home(folder) / IMAGES)
    return {part: ids for part, ids in held.items() if part != _BEFORE}


def write_images(run: Path, images: Split, *, before: Sequence[Fit] | None) -> None:
    """The ids of the images of each part stand in the run.

    Args:
      before: What the weights that it starts from were fitted on here; None: nobody asked.
    """
    more = {} if before is None else {_BEFORE: [fit._asdict() for fit in before]}
    checkpoints.write_json(run / IMAGES, {**images, **more})


def lineage(folder: Path) -> list[Fit]:
    """What a run was fitted on, and before it the runs that it began from; nothing of weights.

    Those before it are as it noted them when it began, or else, as of an old run, read in their
    folders.

    Raises:
      CheckpointError: It noted nothing, and what it began from is no longer there.
    """
    if not is_run(folder):
        return []
    settings = read_config(folder)
    own = read_split(folder), read_images(folder)
    fits = [Fit(str(folder), settings.data, settings.data_dir, *own)]
    noted = read_json(home(folder) / IMAGES).get(_BEFORE)
    if noted is not None:
        return fits + [Fit(**one) for one in noted]
    if settings.checkpoint in ("", f"checkpoints/{settings.variant}"):
        return fits
    begun_from = Path(settings.checkpoint)
    if is_run(begun_from):
        return fits + lineage(begun_from)
    manifest = begun_from / checkpoints.MANIFEST
    if not manifest.is_file() or read_json(manifest).get("kind") == "step":
        raise CheckpointError(
            f"{folder}: began from {begun_from}, which is no longer there, so that nobody knows "
            "which images its weights have seen; restore that folder"
        )
    return fits


def fitted_before(folder: Path) -> list[Fit]:
    """The `lineage` of what a run is to start from, without the parts that were kept."""
    return [
        fit._replace(
            patients={part: fit.patients[part] for part in FITTED if part in fit.patients},
            images={part: fit.images[part] for part in FITTED if part in fit.images},
        )
        for fit in lineage(folder)
    ]


def read_atlas(folder: Path) -> Atlas:
    """What the training objects look like on average.

    Raises:
      CheckpointError: Damaged.
    """
    path = home(folder) / ATLAS
    try:
        with np.load(path) as arrays:
            return Atlas.from_arrays(arrays)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); restore a copy") from error


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of the log, without the half one of a run that was killed while it wrote."""
    path = run / METRICS
    rows = map(_parse, path.read_text().splitlines()) if path.is_file() else ()
    return [row for row in rows if row]


def to_line(row: Mapping[str, Any]) -> str:
    """A row as a line of the log: JSON has no NaN and no infinity, which are null."""
    told = {k: None if _is_odd(value) else value for k, value in row.items()}
    return json.dumps(told, allow_nan=False) + "\n"


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return {name: math.nan if value is None else value for name, value in row.items()}


def write_card(
    run: Path,
    settings: TrainConfig,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    parts: Split | None = None,
) -> None:
    """The run's model card, from what its folder holds by now.

    Args:
      settings: The run's.
      rows: Of the log; default: those on the disk.
      parts: Ids of the images of each part; default: those on the disk.
    """
    if jax.process_index() > 0:
        return
    images = read_images(run) if parts is None else parts
    facts = card.Facts(
        run=str(run),
        settings=settings,
        command=config.command(settings),
        environment=read_json(run / ENVIRONMENT),
        patients={part: len(names) for part, names in read_split(run).items()},
        images={part: len(names) for part, names in images.items()},
        rows=read_rows(run) if rows is None else rows,
        best=read_best(run),
        steps=checkpoints.steps(run),
        reports=[str(path.parent) for path in sorted(run.glob("*eval-*/report.html"))],
    )
    partial_file = run / (CARD + ".partial")
    partial_file.write_text(card.text(facts))
    partial_file.rename(run / CARD)


# Steps.


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


def is_finished(run: Path) -> bool:
    """Whether a run stands at its last step: that of its schedule, or where it stopped early."""
    step, settings = newest_step(run), read_config(run)
    if not step:
        return False
    total = checkpoints.read_manifest(checkpoints.step_folder(run, step)).get("last_step")
    early = stopping.stopped_early(read_rows(run), patience=settings.patience)
    return step in (total or settings.steps, early)


def is_done(folder: Path) -> bool:
    """Whether a finished run stands in a folder that may be anything."""
    try:
        return (folder / CONFIG).is_file() and is_finished(folder)
    except CheckpointError:
        return False  # Damaged: train.py says so.


def is_reported(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a report of eval.py with these settings stands in a folder that may be anything."""
    path = folder / "settings.json"
    if not (path.is_file() and (folder / "report.html").is_file()):
        return False
    held = read_json(path)["settings"]
    return all(held.get(name) == value for name, value in settings.items())


def best_step(run: Path) -> int | None:
    """The step that is best by validation, if one is noted and its checkpoint verifies."""
    held = read_best(run)
    good = held is not None and checkpoints.step_verifies(run, held["step"])
    return held["step"] if good else None


def note_best(run: Path, *, step: int, value: float, metric: str = _METRIC) -> bool:
    """Whether a step is better by validation than all before it; if so, that is noted.

    The checkpoint of the step noted is not pruned, and is the one that the run is loaded from.

    Args:
      step: Whose checkpoint stands.
      value: Of the metric; higher is better.
    """
    held = read_best(run)
    known = held is not None and held["metric"] == metric
    better = math.isfinite(value) and not (known and value <= held["value"])
    checkpoints.meet(f"all know the best before {step}")
    if better:
        _write_best(run, {"step": step, "metric": metric, "value": value})
    checkpoints.meet(f"the best of {step} is noted")
    return better


def read_best(run: Path) -> dict[str, Any] | None:
    """The step noted as the best by validation, its metric and value."""
    if not (run / BEST).is_file():
        return None
    try:
        held = read_json(run / BEST)
        return {"step": int(held["step"]), "metric": held["metric"], "value": float(held["value"])}
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        logging.getLogger(__name__).warning("no best step: %s: damaged (%s)", run / BEST, error)
        return None


def _write_best(run: Path, best: dict[str, Any] | None) -> None:
    if jax.process_index() > 0:
        return
    if best is None:
        (run / BEST).unlink(missing_ok=True)
    else:
        checkpoints.write_json(run / BEST, best)


def loaded_step(folder: Path) -> int:
    """The step that weights are taken from.

    The one that is named, as in RUN/steps/00000120; of a run the best by validation, or where none
    is noted, or it is damaged, the newest that verifies.

    Raises:
      CheckpointError: There is none.
    """
    run = home(folder)
    if run != folder:
        return int(folder.name)
    best = best_step(run)
    step = newest_step(run) if best is None else best
    if not step:
        raise CheckpointError(
            f"{run}: a run without a checkpoint yet; go on with it by `python train.py --resume "
            f"{run}`"
        )
    if best is None and read_best(run):
        logging.getLogger(__name__).warning(
            "%s: its best checkpoint is damaged; taking the newest that is not, of step %d",
            run,
            step,
        )
    return step


def forget_after(run: Path, step: int) -> None:
    """Steps after the one that is resumed from are damaged: kept, they would pass for the newest
    and `prune` would remove good ones in their place. The best is again what it was then.
    """
    if jax.process_index() > 0:
        return
    for later in checkpoints.steps(run):
        if later > step:
            shutil.rmtree(checkpoints.step_folder(run, later))
    held = read_best(run)
    metric = held["metric"] if held else _METRIC
    validated = [row for row in read_rows(run) if row.get("split") == "validation"]
    noted = {row["step"]: row.get(metric, math.nan) for row in validated}
    if held:
        noted.setdefault(held["step"], held["value"])
    there = [s for s in checkpoints.steps(run) if math.isfinite(noted.get(s, math.nan))]
    best = max(there, key=noted.__getitem__, default=None)
    _write_best(run, best and {"step": best, "metric": metric, "value": noted[best]})
