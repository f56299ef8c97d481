"""Real opacities without a box: `tiny` beside its blind twin and what sees no pixel.

    python -m benchmarks.cxr --data-dir DIR
    python -m benchmarks.cxr --data-dir DIR --folds 2 3 4 --only score

Pre-trains on phantoms (presets `cxr-phantoms...`), then fine-tunes one model and its
blind twin per fold, without a prompt and with one click on the centre (`cxr-tiny`,
`cxr-tiny-click`); scores them with eval.py; prints Markdown. What is there already is not made
again. Recipes were chosen on folds 0 and 1: the figures of 2 to 4 count.
"""

import csv
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import tyro

from pp_jax.evaluate import statistics

PHANTOMS = Path("datasets/phantoms")
TUNED, REPORTED = (0, 1), (2, 3, 4)


class Task(NamedTuple):
    """What is asked of a model, and what it is compared with."""

    preset: str
    protocol: str
    lines: tuple[str, ...]  # Of `METHODS`: what sees no pixel; the lungs are the experts'.
    beside: tuple[str, ...]  # More protocols, reported without a claim.


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "none": Task("cxr-tiny", "none", ("mean_shape", "atlas", "lungs"), ()),
        "click": Task(
            "cxr-tiny-click", "centre", ("mean_shape", "atlas"), ("point", "box", "jitter:10")
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Train, score and compare."""

    data_dir: Path
    """Of the data set cxr_seg."""
    tasks: tuple[Literal[tuple(TASKS)], ...] = tuple(TASKS)
    """What is asked of the models."""
    folds: tuple[int, ...] = (*TUNED, *REPORTED)
    """Which of five."""
    only: Literal["all", "folds", "score"] = "all"
    """`folds` pre-trains nothing, `score` trains nothing."""
    blind: bool = True
    """Train the twins."""


def main() -> None:
    """Run what is missing, and print the tables."""
    study = tyro.cli(Study)
    if study.only == "all":
        pretrain()
    for name in study.tasks:
        task = TASKS[name]
        for fold in study.folds:
            for blind in (False, True)[: 1 + study.blind]:
                if study.only != "score":
                    train(study, task, fold, blind=blind)
            score(study, task, fold)
        print(f"\n## {task.preset}: {task.protocol}\n")
        print(table(study, task))


def pretrain() -> None:
    """The weights that all start from."""
    if not PHANTOMS.exists():
        size = ("--images", 1500, "--side", 320, "--seed", 5)
        call("-m", "data.synthetic", "--out", PHANTOMS, *size)
    for preset in ("cxr-phantoms", "cxr-phantoms-2", "cxr-phantoms-click"):
        call("train.py", "--preset", preset)


def train(study: Study, task: Task, fold: int, *, blind: bool) -> None:
    """One fold's model, or its twin; a run that is done is left as it is."""
    twin = ("--blind", "--out", f"runs/{task.preset}-blind") if blind else ()
    begun = time.perf_counter()
    call(
        *("train.py", "--preset", task.preset, "--data-dir", study.data_dir),
        *("--folds", 5, "--fold", fold, *twin),
    )
    print(f"fold {fold}, blind {blind}: {time.perf_counter() - begun:.0f} s", flush=True)


def score(study: Study, task: Task, fold: int) -> None:
    """The fold's report on its own test part."""
    if report_of(task, fold).exists():
        return
    prompts = ",".join([task.protocol, *task.beside])
    blind = (f"blind=runs/{task.preset}-blind/fold{fold}",) if study.blind else ()
    call(
        *("eval.py", "--methods", f"tiny=runs/{task.preset}/fold{fold}"),
        *(*blind, *task.lines),
        *("--data", "cxr_seg", "--data-dir", study.data_dir, "--prompt", prompts),
        *("--out", report_of(task, fold).parent, "--pictures", 0),
    )


def report_of(task: Task, fold: int) -> Path:
    """The figures per image."""
    return Path(f"runs/{task.preset}-scores/fold{fold}/images.csv")


def call(*words: object) -> None:
    """Runs one of our programs, or stops."""
    subprocess.run([sys.executable, *map(str, words)], check=True)


Dice = dict[str, dict[str, list[float]]]  # By method, of each patient's images.


def read(study: Study, task: Task, protocol: str, folds: Sequence[int]) -> Dice:
    """The Dice of images with a finding."""
    found = defaultdict(lambda: defaultdict(list))
    for fold in folds:
        with report_of(task, fold).open() as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if row["protocol"] != protocol or row["choice"] != "model" or not int(row["objects"]):
                continue
            found[row["method"]][row["patient"]].append(float(row["dice"]))
    return found


def table(study: Study, task: Task) -> str:
    """Markdown: means over patients, and paired differences, of both groups of folds."""
    lines = ["| folds | prompt | method | Dice [95 %] | tiny minus it [95 %] | patients |"]
    lines.append("|---|---|---|---:|---:|---:|")
    for group in (TUNED, REPORTED):
        folds = [fold for fold in group if fold in study.folds]
        for protocol in (task.protocol, *task.beside) if folds else ():
            found = read(study, task, protocol, folds)
            for method, patients in found.items():
                own = {patient: float(np.mean(values)) for patient, values in patients.items()}
                gain = {p: float(np.mean(found["tiny"][p])) - own[p] for p in own}
                told = "" if method == "tiny" else interval_text(gain)
                cells = (
                    ", ".join(map(str, folds)),
                    protocol,
                    method,
                    interval_text(own),
                    told,
                    len(own),
                )
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def interval_text(by_patient: Mapping[str, float]) -> str:
    """The mean over patients with its interval of 95 %."""
    one = statistics.interval(list(by_patient.values()), list(by_patient))
    return f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]"


if __name__ == "__main__":
    main()
