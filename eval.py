"""`python eval.py`: score a checkpoint beside guesses that see no pixel. See `--help`."""

import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import records, sources
from pp_jax import checkpoints, cli, config, prompts, sharding
from pp_jax.config import EvalConfig
from pp_jax.evaluate import methods, report
from pp_jax.evaluate.controls import Atlas, leave_one_patient_out
from pp_jax.evaluate.statistics import summarise, worst_median_best
from pp_jax.finetune import runs
from pp_jax.predict.predictor import make_segment
from pp_jax.preprocess import filters, fusion
from pp_jax.preprocess.stage import make_stage
from pp_jax.sam import VARIANTS, Sam

CHOICES = {
    "data": ("", *sources.DATASETS),
    "prompt": ("", *prompts.SAMPLERS),
    "part": ("test", "validation", "train", "all"),
    "filter": ("", *filters.FILTERS),
    "fusion": ("", *fusion.FUSIONS),
    "device": cli.DEVICES,
}


def main() -> None:
    """Evaluate as the command line says."""
    with cli.one_line_errors():
        settings = cli.parse(EvalConfig, prog="eval.py", choices=CHOICES)
        cli.require_clone()
        mesh = sharding.make_mesh(cli.devices(settings.device)[:1])
        folder = Path(settings.checkpoint or config.resolve(config.TrainConfig()).out)
        loaded = runs.load(folder, mesh=mesh)
        settings = config.resolve_eval(settings, folder=str(folder), run=loaded.config)
        chosen, everything = choose(settings, loaded, folder)
        segment = make_segment(
            Sam(VARIANTS[loaded.variant]),
            loaded.variables,
            stage=make_stage(
                filter=settings.filter,
                fusion=settings.fusion,
                blend=settings.blend,
                side=VARIANTS[loaded.variant].image_size,
            ),
        )
        tools = methods.Tools(segment, make_atlas(folder, loaded, everything))
        out = Path(settings.out)
        partial = cli.fresh_folder(out, ours="summary.json")
        text = evaluate(chosen, tools, settings, loaded, partial)
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
        print(f"\n{text}\n{out}: tables, per_image.csv, prompts.json and overlays")


def choose(
    settings: EvalConfig, loaded: runs.Loaded, folder: Path
) -> tuple[list[records.Record], list[records.Record]]:
    """The records to score, and all records of the data set.

    Raises:
      ValueError: None is left, or box prompts on targets that are these boxes.
    """
    everything = sources.open_dataset(settings.data, Path(settings.data_dir))
    run = loaded.config
    own = run is not None and (run.data, Path(run.data_dir).resolve()) == (
        settings.data,
        Path(settings.data_dir).resolve(),
    )
    chosen, part = everything, "all (not the run's own data)"
    if own and settings.part != "all":
        part = settings.part
        patients = set(json.loads((folder / runs.SPLIT).read_text())[part])
        chosen = [record for record in everything if record.patient in patients]
    names = sorted({record.patient for record in chosen})[: settings.limit]
    chosen = [record for record in chosen if record.patient in set(names)]
    if settings.prompt != "none":
        chosen = [record for record in chosen if record.boxes]
    if not chosen:
        raise ValueError(
            f"{settings.data_dir}: no image to score with --prompt {settings.prompt} in part "
            f"{settings.part!r}; choose another --part, or --prompt none for images without boxes"
        )
    boxes = [record.id for record in chosen if record.target == "box" and record.boxes]
    if settings.prompt == "box" and boxes:
        raise ValueError(
            f"{settings.data_dir}: {len(boxes)} images (first: {boxes[0]}) have boxes and no "
            "masks, so a box prompt would be the answer itself; use --prompt point or none"
        )
    print(f"scoring {len(chosen)} images of {len(names)} patients, part: {part}")
    return chosen, everything


def make_atlas(
    folder: Path, loaded: runs.Loaded, everything: list[records.Record]
) -> Callable[[str], Atlas]:
    """The mean shape for a patient: the run's training shapes, or those of all other patients."""
    if loaded.config is not None:
        with np.load(folder / runs.ATLAS) as arrays:
            atlas = Atlas.from_arrays(arrays)
        return lambda patient: atlas
    by_patient = defaultdict(list)
    for record in everything:
        by_patient[record.patient].append(record)
    crops = {name: records.object_crops(own) for name, own in by_patient.items()}
    return leave_one_patient_out(crops).__getitem__


def evaluate(
    chosen: list[records.Record],
    tools: methods.Tools,
    settings: EvalConfig,
    loaded: runs.Loaded,
    out: Path,
) -> str:
    """The tables' text, after everything was written below `out`."""
    rows, marks = [], {}
    compared = methods.compare(subjects(chosen), tools, prompt=settings.prompt, seed=settings.seed)
    for subject, marked, _, figures in tqdm(compared, total=len(chosen), unit="image"):
        rows += figures
        marks[subject.id] = methods.marks_to_plain(marked)
    report.write_rows(out / "per_image.csv", rows)
    checkpoints.write_json(out / "prompts.json", {"seed": settings.seed, "prompts": marks})
    found = [row for row in rows if row["objects"]]
    sections = (
        {"Images with a finding": found}
        if len(found) == len(rows)
        else {
            "All images": rows,
            "Images with a finding": found,
        }
    )
    report.write_summary(
        out,
        {name: summarise(part, seed=settings.seed) for name, part in sections.items() if part},
        title=f"{loaded.variant} on {settings.data}",
        settings={**dataclasses.asdict(settings), "variant": loaded.variant, "step": loaded.step},
    )
    draw(chosen, tools, settings, rows, out)
    return (out / "summary.md").read_text().split("## Settings")[0]


def draw(
    chosen: list[records.Record],
    tools: methods.Tools,
    settings: EvalConfig,
    rows: list[dict],
    out: Path,
) -> None:
    """Overlays of the images that the model did worst, middling and best on."""
    if not settings.pictures:
        return
    model = methods.METHODS["sam"].label
    scores = np.array([row["dice"] for row in rows if row["method"] == model])
    parts = worst_median_best(scores, each=max(1, settings.pictures // 3))
    cases = {}
    (out / "overlays").mkdir()
    for label, indices in parts.items():
        picked = [chosen[i] for i in indices]
        cases[label] = list(case_of(picked, tools, settings))
        for rank, case in enumerate(cases[label]):
            report.overlay(out / "overlays" / f"{label}_{rank}_{case.title}.png", case)
    report.overlay_sheet(
        out / "overlays.png", cases, title=f"{settings.data}, prompt: {settings.prompt}"
    )


def case_of(
    picked: list[records.Record], tools: methods.Tools, settings: EvalConfig
) -> Iterator[report.Case]:
    """The picture of each record: predicted again, since masks of all images would fill memory."""
    for subject in subjects(picked):
        marked = methods.draw_marks(settings.prompt, subject, seed=settings.seed)
        mask = methods.METHODS["sam"].predict(subject, marked, tools).mask
        yield report.Case(
            subject.id, subject.image, subject.findings, mask, marked.boxes, marked.points
        )


def subjects(chosen: list[records.Record]) -> Iterator[methods.Subject]:
    """Each record with its pixels, read when asked for."""
    for record in chosen:
        sample = records.load(record)
        yield methods.Subject(record.id, record.patient, record.target, *sample)


if __name__ == "__main__":
    main()
