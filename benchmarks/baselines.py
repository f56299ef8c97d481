"""What SAM must beat on real images: classical methods, networks, and guesses, in one table.

    python -m benchmarks.baselines --data-dir DIR
    python -m benchmarks.baselines --data-dir DIR --only score
    python -m benchmarks.baselines --data brain_seg --data-dir DIR

Trains on five patient-disjoint folds of `cxr_seg`, from weights that were pre-trained on phantoms
that the project draws: `tiny` on boxes and without a prompt, and the network `unet-tiny`
(`benchmarks.cxr` makes the phantoms and tiny's first weights). The network has half of tiny's
resolution and a third of its steps on phantoms: two cores have no more. Then eval.py scores all of
them and every classical method on each fold's own patients, with the exact box and without a
prompt; prints one table. A run that is done is not made again.

Of `brain_seg` the folds are of heads (`groups.csv`), of which there are few: `tiny` alone, on
boxes, for 100 steps. It has no lungs.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import tyro

from benchmarks.cxr import call, interval_text, pretrain

PHANTOMS_OUT = Path("runs/baselines")  # What networks start from, whatever they are tuned to.
FOLDS = 5
_UNSEEN = ("box", "ellipse", "mean_shape", "atlas")  # Guesses that see no pixel.


class Model(NamedTuple):
    """What is trained before, and on the folds."""

    before: tuple[str, ...]  # Flags of a training on phantoms; none: the preset tells of it.
    folds: tuple[str, ...]  # Of the training on the folds.


# At 256 px a step of it takes five times as long as one of `tiny`. It runs once for each box.
_UNET = ("--variant", "unet-tiny", "--image-size", "128")
_BOXES = (*_UNET, "--prompting", "box", "--max-objects", "2")

# The names are those of the tables.
MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "tiny-box": Model((), ("--preset", "cxr-tiny-click", "--prompting", "box")),
        "tiny": Model((), ("--preset", "cxr-tiny")),
        "unet-box": Model(
            ("--preset", "cxr-phantoms", *_BOXES, "--steps", "400"),
            ("--preset", "cxr-tiny-click", *_BOXES),
        ),
        "unet": Model(
            ("--preset", "cxr-phantoms", *_UNET),
            ("--preset", "cxr-tiny", *_UNET),
        ),
    }
)


class Task(NamedTuple):
    """What is trained and asked on a data set."""

    out: Path
    models: tuple[str, ...]  # Unless others are asked for.
    folds: tuple[object, ...]  # Flags of the trainings on the folds, behind those of the model.
    prompt: str
    guesses: tuple[str, ...]


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "cxr_seg": Task(
            Path("runs/baselines"), tuple(MODELS), (), "box,none", (*_UNSEEN, "lungs", "box+lungs")
        ),
        "brain_seg": Task(
            Path("runs/brain"),
            ("tiny-box",),
            # A tenth of 17 slices is not one head.
            ("--steps", 100, "--save-every", 100, "--validation", 0.2, "--pictures-every", 0),
            "box",
            _UNSEEN,
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Train and compare."""

    data: Literal[tuple(TASKS)] = "cxr_seg"
    """The data set."""
    data_dir: Path
    """Its folder."""
    models: tuple[Literal[tuple(MODELS)], ...] = ()
    """What is trained and compared; by default what the data set's table has."""
    only: Literal["all", "folds", "score"] = "all"
    """`folds` pre-trains nothing, `score` trains nothing."""


def main() -> None:
    """Run what is missing, and print the table."""
    asked = tyro.cli(Comparison)
    names, report = asked.models or TASKS[asked.data].models, TASKS[asked.data].out / "report"
    if asked.only == "all":
        pretrain()
    for name in names:
        if asked.only != "score":
            train(name, MODELS[name], asked)
    if not report.exists():
        score(names, asked)
    print(table(report))


def score(names: Iterable[str], asked: Comparison) -> None:
    """The report on all folds' own patients."""
    task = TASKS[asked.data]
    named = (f"{name}={task.out}/{name}" for name in names)
    call(
        *("eval.py", "--methods", *named, "classical", *task.guesses),
        *("--data", asked.data, "--data-dir", asked.data_dir, "--prompt", task.prompt),
        *("--out", task.out / "report"),
    )


def table(report: Path) -> str:
    """Markdown: of each method under each prompt, means over patients of images with a finding."""
    with (report / "seconds.csv").open() as file:
        seconds = {
            (row["method"], row["protocol"]): float(row["median seconds"])
            for row in csv.DictReader(file)
        }
    scores = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with (report / "images.csv").open() as file:
        for row in csv.DictReader(file):
            if row["choice"] == "model" and int(row["objects"]):
                for metric in ("dice", "nsd_1"):
                    own = scores[row["protocol"], row["method"]][metric]
                    own[row["patient"]].append(float(row[metric]))
    lines = ["| prompt | method | Dice [95 %] | NSD at 1 % [95 %] | ms an image | patients |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for (protocol, method), of in sorted(scores.items(), key=lambda item: item[0][0]):
        means = [{p: float(np.mean(x)) for p, x in own.items()} for own in of.values()]
        milliseconds = f"{1000 * seconds[method, protocol]:.1f}"
        cells = (protocol, method, *map(interval_text, means), milliseconds, len(means[0]))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def train(name: str, model: Model, asked: Comparison) -> None:
    """The folds of a model, and first what they start from; what is done is left as it is."""
    task, start = TASKS[asked.data], ()
    if model.before:
        first = PHANTOMS_OUT / f"{name}-phantoms"
        start = ("--init", first)
        if asked.only == "all":
            call("train.py", *model.before, "--out", first)
    call(
        *("train.py", *model.folds, *start, *task.folds, "--out", task.out / name),
        *("--data", asked.data, "--data-dir", asked.data_dir, "--folds", FOLDS),
    )


if __name__ == "__main__":
    main()
