"""The grid of an ablation as jobs: what each trains, what it waits for, and when it is done."""

import dataclasses
import math
import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from pp_jax import config
from pp_jax.ablations import (
    ABLATIONS,
    BLIND,
    AblationConfig,
    Cell,
    before_of,
    begins_anew,
    cells,
    run_of,
    seeds_of,
    twin_of,
)
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig
from pp_jax.evaluate.ablation import Compared
from pp_jax.finetune import runs
from pp_jax.finetune.pace import seconds_of_step
from pp_jax.jobs import Job, read_seconds

REPORT = "report"
_START_SECONDS = 25  # Of a training on a CPU, until its first step.
BESIDE = ("swap", "mean_shape", "atlas", "lungs")


def make_jobs(asked: AblationConfig) -> list[Job]:
    """All that the ablation runs, each behind what it needs.

    Args:
      asked: With its folder.

    Raises:
      ValueError: A folder of the grid holds a run with other settings.
    """
    jobs: list[Job] = []
    for number, cell in enumerate(cells(asked)) if ABLATIONS[asked.ablation].trains else ():
        for seed in seeds_of(asked):
            jobs += _of_cell(asked, cell, seed, twin=number == 0, known=[job.name for job in jobs])
    return [*jobs, _report(asked, after=tuple(job.name for job in jobs))]


def _of_cell(
    asked: AblationConfig, cell: Cell, seed: int, *, twin: bool, known: Sequence[str]
) -> list[Job]:
    jobs, after = [], ()
    row = ABLATIONS[asked.ablation]
    if begins_anew(asked):
        before = before_of(asked, cell, seed)
        if row.needs and "data" not in known:
            words = tuple(shlex.split(row.needs))
            jobs.append(Job("data", words, Path(before.data_dir).is_dir))
        first = _training(asked, before)
        jobs.append(first._replace(after=("data",) if row.needs else ()))
        after = (first.name,)
    run = run_of(asked, cell, seed)
    for one in (run, twin_of(asked, run))[: 1 + twin]:
        for fold in range(one.folds):
            jobs.append(_training(asked, config.fold_of(one, fold))._replace(after=after))
    return jobs


def _training(asked: AblationConfig, settings: TrainConfig) -> Job:
    folder = Path(settings.out)
    _require_same(folder, settings)
    words = tuple(shlex.split(config.command(settings))[1:])
    name = str(folder.relative_to(asked.out))
    return Job(name, words, partial(_is_done, folder))


def _require_same(folder: Path, settings: TrainConfig) -> None:
    """Nothing, when a run of the grid that is there is the one that is asked for."""
    if not (folder / runs.CONFIG).is_file():
        return
    held = runs.read_config(folder)
    wanted = dataclasses.replace(settings, preprocess=settings.preprocess or held.preprocess)
    if changed := config.differences(dataclasses.asdict(held), wanted):
        listed = ", ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items())
        raise ValueError(
            f"{folder}: holds a run with other settings ({listed}); give another --out, or the old "
            "settings to go on"
        )


def _is_done(folder: Path) -> bool:
    try:
        return (folder / runs.CONFIG).is_file() and runs.is_finished(folder)
    except CheckpointError:
        return False  # Damaged: train.py says so.


def methods_of(asked: AblationConfig) -> dict[str, str]:
    """What eval.py is asked to compare: `NAME=FOLDER+FOLDER` by the names of cells."""
    grid, row = cells(asked), ABLATIONS[asked.ablation]
    if not row.trains:
        folder = asked.checkpoint or (asked.init if asked.init != "checkpoint" else "")
        if not folder:
            raise ValueError(
                f"--ablation {asked.ablation}: give --checkpoint FOLDER, converted weights or a run"
            )
        return {
            one.name: f"{one.name}={folder} filter={one.filter} fusion={one.fusion}" for one in grid
        }
    named = {one.name: [run_of(asked, one, s) for s in seeds_of(asked)] for one in grid}
    named[BLIND] = [twin_of(asked, run) for run in named[grid[0].name]]
    return {name: f"{name}={'+'.join(run.out for run in own)}" for name, own in named.items()}


def _report(asked: AblationConfig, *, after: tuple[str, ...]) -> Job:
    out = Path(asked.out) / REPORT
    methods = (*methods_of(asked).values(), *_beside(asked))
    data = run_data(asked)
    words = (
        *("eval.py", "--methods", *methods, "--prompt", asked.scored_under, "--confidence", ""),
        *("--data", data.data, "--data-dir", data.data_dir, "--device", asked.device),
        *("--seed", str(asked.seed), "--target", asked.target, "--out", str(out)),
        *(("--image-size", str(asked.image_size)) if asked.image_size else ()),
        *(("--limit", str(asked.limit)) if asked.limit else ()),
    )
    return Job(REPORT, words, _reported(out, methods, asked.scored_under), after)


def _beside(asked: AblationConfig) -> tuple[str, ...]:
    """The lines that see no pixel, and each model shown another patient's image."""
    return tuple(name for name in BESIDE if name != "lungs" or asked.data == "cxr_seg")


def _reported(out: Path, methods: Sequence[str], prompt: str) -> Callable[[], bool]:
    """Whether the report stands there, and is of these methods."""

    def done() -> bool:
        path = out / "settings.json"
        if not path.is_file():
            return False
        held = runs.read_json(path)["settings"]
        return list(held["methods"]) == list(methods) and held["prompt"] == prompt

    return done


def run_data(asked: AblationConfig) -> TrainConfig:
    """Names and folders of what is trained on and scored, resolved."""
    plain = TrainConfig(data=asked.data, data_dir=asked.data_dir)
    return config.resolve(plain)


def at_once(asked: AblationConfig) -> int:
    """How many trainings run side by side."""
    if asked.jobs is not None:
        return asked.jobs
    on_cpu = asked.device == "cpu" or jax.default_backend() == "cpu"
    return (os.cpu_count() or 1) if on_cpu and asked.variant == "tiny" else 1


def settings_of(asked: AblationConfig) -> list[TrainConfig]:
    """One training of each cell."""
    row = ABLATIONS[asked.ablation]
    return [run_of(asked, cell, asked.seed) for cell in cells(asked)] if row.trains else []


def describe(asked: AblationConfig, jobs: Sequence[Job], *, mesh: Mesh) -> str:
    """How much there is to do, how much of it is done, and about how long the rest takes.

    The time follows from the trainings that are done, or else from a few steps that are made now.
    """
    left = [job for job in jobs if not job.done()]
    trainings = [job for job in left if job.words[0] == "train.py"]
    folds = sum("--fold" in job.words for job in trainings)
    told = [f"{asked.out}: {len(jobs) - len(left)} of {len(jobs)} jobs are done"]
    if trainings:
        seconds = _estimate(asked, trainings, mesh=mesh)
        minutes = math.ceil(seconds / at_once(asked) / 60)
        told.append(
            f"left are {folds} trainings on folds and {len(trainings) - folds} before them: about "
            f"{minutes // 60}:{minutes % 60:02} hours, {at_once(asked)} at a time"
        )
    if left:
        told.append("then a report")
    return ", ".join(told)


def _estimate(asked: AblationConfig, trainings: Sequence[Job], *, mesh: Mesh) -> float:
    """Seconds of the trainings one after another, where side by side they slow each other down."""
    took = read_seconds(Path(asked.out))
    known = {
        kind: float(np.median(own))
        for kind in (True, False)
        if (own := [s for name, s in took.items() if name.startswith("before/") is kind])
    }
    if missing := {job.name.startswith("before/") for job in trainings} - known.keys():
        cell = cells(asked)[-1]
        folds = run_of(asked, cell, asked.seed)
        pace = seconds_of_step(folds, mesh=mesh) * at_once(asked)
        for kind in missing:
            one = before_of(asked, cell, asked.seed) if kind else folds
            known[kind] = _START_SECONDS + pace * (one.steps or 0)
    return sum(known[job.name.startswith("before/")] for job in trainings)


def comparison_of(asked: AblationConfig) -> Compared:
    """What the report's rows are to be read as."""
    return Compared(
        question=ABLATIONS[asked.ablation].help,
        cells=tuple(cell.name for cell in cells(asked)),
        blind=BLIND if ABLATIONS[asked.ablation].trains else "",
        hours=sum(read_seconds(Path(asked.out)).values()) / 3600,
    )


def folds_of(asked: AblationConfig) -> dict[tuple[str, str], int]:
    """The fold that tests an image, by the seed as the report names it and the image's id."""
    cell, several = cells(asked)[0], len(seeds_of(asked)) > 1
    found = {}
    for seed in seeds_of(asked):
        run = run_of(asked, cell, seed)
        for fold in range(run.folds):
            for name in runs.read_images(Path(config.fold_of(run, fold).out))["test"]:
                found[f"seed{seed}" if several else "", name] = fold
    return found
