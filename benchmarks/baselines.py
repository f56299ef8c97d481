"""What SAM must beat on real opacities: classical methods, networks, and guesses, in one table.

    python -m benchmarks.baselines --data-dir DIR
    python -m benchmarks.baselines --data-dir DIR --only score

Trains on five patient-disjoint folds of `cxr_seg`, from weights that were pre-trained on phantoms
that the project draws: `tiny` on boxes and without a prompt, and the network `unet-tiny`
(`benchmarks.cxr` makes the phantoms and tiny's first weights). The network has half of tiny's
resolution and a third of its steps on phantoms: two cores have no more. Then eval.py scores all of
them and every classical method on each fold's own patients, with the exact box and without a
prompt; prints one table. A run that is done is not made again.
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

OUT = Path("runs/baselines")
GUESSES = ("box", "ellipse", "mean_shape", "atlas", "lungs", "box+lungs")


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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Train and compare."""

    data_dir: Path
    """Of the data set cxr_seg."""
    models: tuple[Literal[tuple(MODELS)], ...] = tuple(MODELS)
    """What is trained and compared."""
    only: Literal["all", "folds", "score"] = "all"
    """`folds` pre-trains nothing, `score` trains nothing."""


def main() -> None:
    """Run what is missing, and print the table."""
    asked = tyro.cli(Comparison)
    if asked.only == "all":
        pretrain()
    for name in asked.models:
        if asked.only != "score":
            train(name, MODELS[name], asked)
    named = (f"{name}={OUT}/{name}" for name in asked.models)
    if not (OUT / "report").exists():
        score(named, asked)
    print(table(OUT / "report"))


def score(named: Iterable[str], asked: Comparison) -> None:
    """The report on all folds' own patients."""
    call(
        *("eval.py", "--methods", *named, "classical", *GUESSES),
        *("--data", "cxr_seg", "--data-dir", asked.data_dir, "--prompt", "box,none"),
        *("--out", OUT / "report"),
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
    """The five folds of a model, and first what they start from; what is done is left as it is."""
    start = ()
    if model.before:
        first = OUT / f"{name}-phantoms"
        start = ("--init", first)
        if asked.only == "all":
            call("train.py", *model.before, "--out", first)
    call(
        *("train.py", *model.folds, *start, "--out", OUT / name),
        *("--data-dir", asked.data_dir, "--folds", 5),
    )


if __name__ == "__main__":
    main()
