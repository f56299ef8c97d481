"""`python -m pp_jax.study --sam FILE --rsna DIR`: the whole study on your own files.

OUT/report.html, report.md  the answer, with intervals, and what it cost
OUT/choice.json             the filters that folds 0 and 1 chose
OUT/weights/ OUT/data/      converted and prepared
OUT/runs/ OUT/embeddings/   trainings
OUT/reports/                of eval.py, with rows per image
OUT/study.json              the settings
OUT/logs/ OUT/seconds.json  of every program
"""

import shlex
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from data import rsna
from data.annotated import first_patients
from pp_jax import cli, jobs
from pp_jax.checkpoints import write_json
from pp_jax.evaluate import page, tables
from pp_jax.evaluate.files import read_rows
from pp_jax.evaluate.subjects import Row
from pp_jax.finetune.runs import read_json
from pp_jax.study import answer, settings
from pp_jax.study.cost import COSTS, Sizes
from pp_jax.study.settings import TUNED, ZERO_SHOT, Study
from pp_jax.study.stages import CANDIDATES, SCREEN, STAGES, Step, steps_of

SETTINGS, CHOICE, REPORT = "study.json", "choice.json", "report"
_CHOICES = MappingProxyType({"device": cli.DEVICES, "preprocess": ("", "sam", "medsam")})


def main(args: list[str] | None = None) -> None:
    """Run the study as the command line says, or `args` instead of it."""
    with cli.one_line_errors():
        study = cli.parse(Study, prog="python -m pp_jax.study", choices=_CHOICES, args=args)
        study = settings.resolve(study)
        cli.require_clone()
        sizes, doubts = count(study)
        settings.check_patients(study, sizes.patients)
        if study.dry_run:
            print(describe(study, sizes))
            return
        begin(study)
        run(study, sizes, None)
        filters = choose(study)
        print(f"filters chosen on folds 0 and 1: {', '.join(filters)}")
        run(study, sizes, tuple(filters))
        print(conclude(study, sizes, filters, doubts))


def count(study: Study) -> tuple[Sizes, list[str]]:
    """How much there is, and what a reader must know of it; only tables are read."""
    files = rsna.find_files(Path(study.rsna))
    labels = rsna.parse_labels(files[rsna.LABELS])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        people = rsna.find_patients(files, list(labels))
    patients = first_patients(people.patients, study.limit)
    found = [name for name in patients if labels[name].boxes]
    doubts = [str(warning.message) for warning in caught]
    if study.masks:
        known = sum((Path(study.masks) / f"{name}.png").is_file() for name in found)
        doubts.append(f"{known} of {len(found)} images with a finding have an expert's mask.")
    return Sizes(len(patients), len(found), len(set(patients.values()))), doubts


def describe(study: Study, sizes: Sizes) -> str:
    """The stages with their commands, about how long they take and what they leave."""
    stages = steps_of(study, sizes, CANDIDATES[: study.best])
    lines = [
        f"{sizes.images:,} images of {sizes.patients:,} patients, {sizes.findings:,} with a "
        f"finding; targets: {study.target}",
        f"Filters are not chosen yet; {', '.join(CANDIDATES[: study.best])} stand in their place.",
    ]
    for name, steps in stages.items():
        done = sum(step.job.done() for step in steps)
        lines.append(
            f"\n{name}: {STAGES[name].help}; {len(steps)} programs, {done} done, "
            f"{_time(sum(step.seconds for step in steps))}, "
            f"{sum(step.gib for step in steps):.1f} GiB"
        )
        lines += [f"  python {shlex.join(step.job.words)}" for step in steps]
    every = [step for steps in stages.values() for step in steps]
    free = shutil.disk_usage(_first_there(study.folder)).free / 2**30
    lines.append(
        f"\n{len(every)} programs, about {_time(sum(step.seconds for step in every))} and "
        f"{sum(step.gib for step in every):.1f} GiB in {study.out} ({free:.0f} GiB are free). "
        "These are estimates from times of vit_b on two CPU cores (benchmarks/RESULTS.md), "
        "scaled by operations and counts; no accelerator, which is much faster, was measured:"
    )
    lines += [f"  {name}: {cost.seconds:g} s ({cost.source})" for name, cost in COSTS.items()]
    return "\n".join(lines)


def _first_there(folder: Path) -> Path:
    """The folder, or the one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def begin(study: Study) -> None:
    """The folder holds the settings, and links to the user's files where masks are added to them.

    Raises:
      ValueError: It holds another study, or something else.
    """
    out, path = study.folder, study.folder / SETTINGS
    if path.is_file():
        settings.require_same(study, read_json(path))
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: not empty and no study; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings.identity(study))
    if study.masks:
        link(Path(study.rsna), Path(study.masks), study.source)


def link(source: Path, masks: Path, folder: Path) -> None:
    """RSNA's files and the masks beside them, as links."""
    folder.mkdir(exist_ok=True)
    wanted = {path.name: path for path in source.iterdir()} if source.is_dir() else {}
    if source.is_file():
        wanted[rsna.ARCHIVE] = source
    for name, path in (wanted | {rsna.MASKS: masks}).items():
        place = folder / name
        if not place.is_symlink():
            place.symlink_to(path.resolve())


def run(study: Study, sizes: Sizes, filters: Sequence[str] | None) -> None:
    """All stages are done, or without the filters those up to their choice."""
    steps = [step for own in steps_of(study, sizes, filters).values() for step in own]
    jobs.run([step.job for step in steps], folder=study.folder, at_once=study.jobs)


def choose(study: Study) -> dict[str, float]:
    """The best filters and their Dice on folds 0 and 1."""
    rows = {fold: _rows(study, f"choice-fold{fold}") for fold in TUNED}
    filters = answer.best_filters(rows, CANDIDATES, count=study.best)
    write_json(study.folder / CHOICE, {"folds": TUNED, "dice": filters})
    return filters


def conclude(
    study: Study, sizes: Sizes, filters: Mapping[str, float], doubts: Sequence[str]
) -> str:
    """The answer in words, after the report stands in the folder."""
    scores = answer.Scores(
        choice={fold: _rows(study, f"choice-fold{fold}") for fold in TUNED},
        folds={fold: _rows(study, f"fold{fold}") for fold in study.reported},
        screen=_rows(study, f"{SCREEN}/report"),
        zero_shot=_rows(study, ZERO_SHOT),
    )
    found = answer.sections(
        scores, filters=filters, folds=study.folds, target=study.target, doubts=doubts
    )
    found.append(answer.cost_section(costs(study, steps_of(study, sizes, tuple(filters)))))
    told = {
        "title": "Does preprocessing and fine-tuning make SAM segment these findings better?",
        "settings": settings.identity(study),
    }
    tables.write_markdown(study.folder / f"{REPORT}.md", found, **told)
    page.write_page(study.folder / f"{REPORT}.html", found, **told)
    words = "\n".join(found[0].paragraphs)
    return f"\n{words}\n{study.folder}: {REPORT}.html, {REPORT}.md"


def costs(
    study: Study, stages: Mapping[str, Sequence[Step]]
) -> list[tuple[str, int, float, float]]:
    """Of each stage the programs, their seconds and the GiB that they left."""
    took, rows, counted = jobs.read_seconds(study.folder), [], set()
    for name, steps in stages.items():
        seconds = sum(took.get(step.job.name, 0.0) for step in steps)
        folders = {folder for step in steps for folder in _written(study, step)} - counted
        counted |= folders
        rows.append((name, len(steps), seconds, sum(map(_gib, folders))))
    rows.append(("embeddings", 0, 0.0, _gib(study.folder / "embeddings")))
    return rows


def _written(study: Study, step: Step) -> list[Path]:
    """The folder that a program writes."""
    own = {"convert": study.weights, "prepare": study.data, SCREEN: study.report(SCREEN)}
    name = step.job.name
    return [own.get(name) or study.folder / (name if "reports/" in name else f"runs/{name}")]


def _gib(folder: Path) -> float:
    files = folder.rglob("*") if folder.is_dir() else ()
    return sum(path.stat().st_size for path in files if path.is_file()) / 2**30


def _rows(study: Study, report: str) -> list[Row]:
    return read_rows(study.report(report) / "images.csv")


if __name__ == "__main__":
    main()
