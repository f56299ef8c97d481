"""`python eval.py`: score a checkpoint beside guesses that see no pixel. See `--help`."""

import dataclasses
import itertools
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from data import records, sources, splits, targets
from pp_jax import cli, config, sharding
from pp_jax.config import EvalConfig
from pp_jax.evaluate.controls import Atlas, leave_one_patient_out
from pp_jax.evaluate.methods import PROTOCOLS, Subject, Tools
from pp_jax.evaluate.score import score
from pp_jax.finetune import runs
from pp_jax.predict.predictor import make_segment
from pp_jax.preprocess import roi
from pp_jax.preprocess.stage import PREPARATIONS, SPECS, describe, make_stage
from pp_jax.sam import Sam, sized

CHOICES = {
    "target": targets.TARGETS,
    "prompt": ("", *PROTOCOLS),
    "part": (*reversed(splits.PARTS), "all"),
    "recipe": ("", *config.RECIPES),
    "device": cli.DEVICES,
}
CHECKED = SPECS | {"data": (sources.check_names, sources.HELP)}


def main() -> None:
    """Evaluate as the command line says."""
    with cli.one_line_errors():
        settings = cli.parse(EvalConfig, prog="eval.py", choices=CHOICES, specs=CHECKED)
        cli.require_clone()
        mesh = sharding.make_mesh(cli.devices(settings.device)[:1])
        folder = Path(settings.checkpoint or config.resolve(config.TrainConfig()).out)
        loaded = runs.load(folder, mesh=mesh)
        settings = config.resolve_eval(
            settings, folder=str(folder), run=loaded.config, look=loaded.look
        )
        look = config.override(
            loaded.look,
            filter=settings.filter,
            fusion=settings.fusion,
            blend=settings.blend,
            roi=settings.roi,
        )
        require_boxes(settings)
        sets, own = find_sets(settings, loaded.config)
        opened = sources.open_sets(sets)
        everything = records.draw_as(itertools.chain(*opened), settings.target)
        if loaded.config is not None and not own:
            everything = leave_out_seen(everything, sets, folder, loaded.config)
        chosen = choose(everything, settings, folder, own=own)
        model = Sam(sized(loaded.variant, settings.image_size))
        stage = make_stage(look, side=model.config.image_size)
        print(describe(look, side=model.config.image_size))
        fit = PREPARATIONS[look.preprocess].fit
        segment = make_segment(model, loaded.variables, stage=stage, fit=fit, roi=look.roi)
        out = Path(settings.out)
        partial_out = cli.fresh_folder(out, ours="summary.json")
        tables = score(
            partial_out,
            [partial(read, record) for record in chosen],
            Tools(segment, make_atlas(folder, loaded, everything)),
            prompt=settings.prompt,
            seed=settings.seed,
            pictures=settings.pictures,
            title=f"{loaded.variant} on {settings.data}, part: {settings.part}",
            settings=dataclasses.asdict(settings)
            | {"variant": loaded.variant, "step": loaded.step},
        )
        shutil.rmtree(out, ignore_errors=True)
        partial_out.rename(out)
        print(f"\n{tables}\n{out}: tables, per_image.csv, prompts.json and overlays")


def require_boxes(settings: EvalConfig) -> None:
    """Nothing, when the marks are boxes or no region of interest needs them.

    Raises:
      ValueError: Another prompt with a region around each box.
    """
    if roi.make(settings.roi).per == "box" and settings.prompt != "box":
        raise ValueError(
            f"--roi {settings.roi} cuts around boxes, and --prompt {settings.prompt} marks none: "
            "choose --prompt box, or --roi none or content"
        )


def find_sets(settings: EvalConfig, run: config.TrainConfig | None) -> tuple[sources.Sets, bool]:
    """The data sets to score, and whether they are the run's own, which have test patients.

    Raises:
      ValueError: Other sets that share pictures with the run's, or own ones beside others.
    """
    asked = sources.name_sets(settings.data, settings.data_dir)
    if run is None:
        return asked, False
    trained = sources.name_sets(run.data, run.data_dir)
    if held := sources.among(asked, trained):
        return held, True
    for name, _ in asked.values():
        for other, _ in trained.values():
            sources.check_apart(other, name)
    return asked, False


def leave_out_seen(
    everything: Sequence[records.Record], sets: sources.Sets, folder: Path, run: config.TrainConfig
) -> list[records.Record]:
    """The records without those that the run was fitted on in a copy of the same data set.

    A copy, such as a prepared one, is told by its name: left out are the patients and images that
    the run has by the same names. `folder` and `synthetic` are names of many sets; one of them is a
    copy if it has most of the run's images.
    """
    trained = sources.name_sets(run.data, run.data_dir)
    patients, images = (
        {name for part in ("train", "validation") for name in parts.get(part, ())}
        for parts in (runs.read_split(folder), runs.read_images(folder))
    )
    seen: set[str] = set()
    for alias, (name, _) in sets.items():
        own = [record for record in everything if record.dataset == alias]
        for other, (same, _) in trained.items():
            if name == same:
                ids = {r.id for r in own if _renamed(r.id, alias, other) in images}
                people = {r.patient for r in own if _renamed(r.patient, alias, other) in patients}
                people |= {record.patient for record in own if record.id in ids}
                if sources.DATASETS[name].source_of or 2 * len(ids) > len(images):
                    seen |= people
    kept = [record for record in everything if record.patient not in seen]
    if len(kept) < len(everything):
        warnings.warn(
            f"{len(everything) - len(kept)} of {len(everything)} images are left out: {folder} was "
            "trained or validated on their patients, in another copy of the data set",
            stacklevel=2,
        )
    return kept


def _renamed(name: str, alias: str, other: str) -> str:
    """A name in the set `alias` as `other` has it: of several sets, each puts its own in front."""
    bare = name.removeprefix(f"{alias}.") if alias else name
    return f"{other}.{bare}" if other else bare


def choose(
    everything: Sequence[records.Record], settings: EvalConfig, folder: Path, *, own: bool
) -> list[records.Record]:
    """The records to score; of the run's own data, those of the part that is asked for.

    Raises:
      ValueError: None is left, box prompts on targets that are these boxes, or a run's prompt that
        is for training alone.
    """
    if settings.prompt not in PROTOCOLS:
        raise ValueError(
            f"{folder}: trained with --prompt {settings.prompt}, which eval.py cannot draw; choose "
            f"--prompt {', '.join(PROTOCOLS)}"
        )
    part = settings.part if own else "all"
    patients = {record.patient for record in everything}
    if part != "all":
        patients &= set(runs.read_split(folder)[part])
    patients = set(sorted(patients)[: settings.limit])
    chosen = [record for record in everything if record.patient in patients]
    if PROTOCOLS[settings.prompt].needs_objects:
        chosen = [record for record in chosen if record.boxes]
    if not chosen:
        raise ValueError(
            f"{settings.data_dir}: no image to score with --prompt {settings.prompt} in part "
            f"{part!r}; choose another --part, or --prompt none for images without boxes"
        )
    boxes = [record for record in chosen if record.from_box and record.boxes]
    if settings.prompt == "box" and boxes:
        raise ValueError(
            f"{settings.data_dir}: {len(boxes)} images (first: {boxes[0].id}) have no masks as "
            f"targets (target: {boxes[0].kind}), so a box prompt would contain the answer; use "
            "--prompt point or none"
        )
    count = len({record.patient for record in chosen})
    whose = "" if own else " (not a run's own data)"
    print(f"scoring {len(chosen)} images of {count} patients, part: {part}{whose}")
    return chosen


def make_atlas(
    folder: Path, loaded: runs.Loaded, everything: Sequence[records.Record]
) -> Callable[[str], Atlas]:
    """The mean shape for a patient: the run's training shapes, or those of all other patients."""
    if loaded.config is not None:
        atlas = runs.read_atlas(folder)
        return lambda patient: atlas
    by_patient = defaultdict(list)
    for record in everything:
        by_patient[record.patient].append(record)
    crops = {name: records.object_crops(own) for name, own in by_patient.items()}
    return leave_one_patient_out(crops).__getitem__


def read(record: records.Record) -> Subject:
    """The record with its pixels."""
    sample = records.load(record)
    return Subject(
        record.id,
        record.patient,
        sample.target,
        sample.image,
        sample.objects,
        sample.boxes,
        sample.findings,
    )


if __name__ == "__main__":
    main()
