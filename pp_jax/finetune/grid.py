"""The grid of an ablation as jobs: what each trains, what it waits for, and when it is done."""

import dataclasses
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from pp_jax import config, outlook
from pp_jax.ablations import (
    ABLATIONS,
    BLIND,
    AblationConfig,
    Cell,
    before_of,
    begins_anew,
    cells,
    pairs_of,
    run_of,
    seeds_of,
    twin_of,
)
from pp_jax.config import TrainConfig
from pp_jax.evaluate.ablation import Compared
from pp_jax.evaluate.protocols import parse_protocols
from pp_jax.finetune import runs
from pp_jax.finetune.pace import seconds_of_step
from pp_jax.jobs import Job, count_cores, read_seconds

REPORT = "report"
_DATA, _GENERATED = "data", "generator.json"  # Written last by what draws phantoms.
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
        if row.needs and _DATA not in known:
            words = tuple(shlex.split(row.needs))
            jobs.append(Job(_DATA, words, (Path(before.data_dir) / _GENERATED).is_file))
        first = _training(asked, before)
        if first.name not in known:
            jobs.append(first._replace(after=(_DATA,) if row.needs else ()))
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
    return Job(name, words, partial(runs.is_done, folder))


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
    wanted = {
        "methods": list(methods),
        "prompt": asked.scored_under,
        "data": data.data,
        "data_dir": data.data_dir,
        "seed": asked.seed,
        "target": asked.target,
        "image_size": asked.image_size,
        "limit": asked.limit,
    }
    return Job(REPORT, words, partial(runs.is_reported, out, wanted), after)


def _beside(asked: AblationConfig) -> tuple[str, ...]:
    """The lines that see no pixel, and each model shown another patient's image."""
    return tuple(name for name in BESIDE if name != "lungs" or asked.data == "cxr_seg")


def run_data(asked: AblationConfig) -> TrainConfig:
    """Names and folders of what is trained on and scored, resolved."""
    plain = TrainConfig(data=asked.data, data_dir=asked.data_dir)
    return config.resolve(plain)


def at_once(asked: AblationConfig, *, backend: str) -> int:
    """How many trainings run side by side.

    Args:
      asked: Says it, or leaves it to the cores of this process.
      backend: What jax computes on.
    """
    if asked.jobs is not None:
        return asked.jobs
    return count_cores() if backend == "cpu" and asked.variant == "tiny" else 1


def settings_of(asked: AblationConfig) -> list[TrainConfig]:
    """One training of each cell."""
    row = ABLATIONS[asked.ablation]
    return [run_of(asked, cell, asked.seed) for cell in cells(asked)] if row.trains else []


def describe(
    asked: AblationConfig, jobs: Sequence[Job], *, side_by_side: int, mesh: Mesh | None = None
) -> str:
    """How much there is to do, how much of it is done, and about how long the rest takes.

    The time follows from the trainings that are done, or else from a few steps that are made now.

    Args:
      asked: The ablation.
      jobs: From `make_jobs`.
      side_by_side: How many run at a time.
      mesh: The devices; None: no step is made, and without trainings that are done no time is told.
    """
    left = [job for job in jobs if not job.done()]
    trainings = [job for job in left if job.words[0] == "train.py"]
    folds = sum("--fold" in job.words for job in trainings)
    told = [f"{asked.out}: {len(jobs) - len(left)} of {len(jobs)} jobs are done"]
    if trainings:
        seconds = _estimate(asked, trainings, side_by_side=side_by_side, mesh=mesh)
        about = f"about {outlook.in_words(seconds / side_by_side)}, " if seconds else ""
        told.append(
            f"left are {folds} trainings on folds and {len(trainings) - folds} before them: "
            f"{about}{side_by_side} at a time"
        )
    if left:
        told.append("then a report")
    return ", ".join(told)


def _estimate(
    asked: AblationConfig, trainings: Sequence[Job], *, side_by_side: int, mesh: Mesh | None
) -> float | None:
    """Seconds of the trainings one after another, where side by side they slow each other down."""
    took = read_seconds(Path(asked.out))
    known = {
        kind: float(np.median(own))
        for kind, part in ((True, "before/"), (False, "/fold"))
        if (own := [s for name, s in took.items() if part in name])
    }
    if missing := {job.name.startswith("before/") for job in trainings} - known.keys():
        if mesh is None:
            return None
        cell = cells(asked)[-1]
        folds = run_of(asked, cell, asked.seed)
        pace = seconds_of_step(folds, mesh=mesh) * side_by_side
        for kind in missing:
            one = before_of(asked, cell, asked.seed) if kind else folds
            known[kind] = _START_SECONDS + pace * (one.steps or 0)
    return sum(known[job.name.startswith("before/")] for job in trainings)


def comparison_of(asked: AblationConfig) -> Compared:
    """What the report's rows are to be read as."""
    row = ABLATIONS[asked.ablation]
    data = run_data(asked)
    told = {"data": f"{data.data} in {data.data_dir}", "target": asked.target}
    if row.trains:
        one = run_of(asked, cells(asked)[0], asked.seed)
        several = (
            f"{asked.folds} patient-disjoint folds, seeds {', '.join(map(str, seeds_of(asked)))}"
        )
        told |= {
            "trainings": f"{one.variant}, {one.trainable}, {one.steps or one.epochs} "
            f"{'steps' if one.steps else 'epochs'} of {one.batch} images; {several}",
            "first": f"{before_of(asked, cells(asked)[0], asked.seed).steps} steps on phantoms"
            if begins_anew(asked)
            else f"weights of {one.checkpoint or 'random numbers'}",
            "each training": "--filter none: " + config.command(one),
        }
        if begins_anew(asked):
            told["tuned"] = (
                "the recipe of tiny was chosen with the filter none on folds 0 and 1 of seed 0; "
                "other seeds have other folds"
            )
    else:
        told["weights"] = asked.checkpoint or asked.init
    hours = sum(read_seconds(Path(asked.out)).values()) / 3600
    told["time"] = f"{hours:.1f} hours of all programs together"
    return Compared(
        question=row.question,
        pairs=pairs_of(asked),
        first=cells(asked)[0].name,
        blind=BLIND if row.trains else "",
        prompts=tuple(parse_protocols(asked.scored_under)),
        told=told,
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
