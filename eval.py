"""`python eval.py`: score models beside guesses that see no pixel, and report. See `--help`."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from data import held_out, outlines, records, sources, splits, targets
from pp_jax import cli, config, sharding
from pp_jax.eval_config import EvalConfig, resolve_eval
from pp_jax.evaluate import journal, report, strata
from pp_jax.evaluate.controls import Atlas, leave_one_patient_out
from pp_jax.evaluate.methods import (
    GROUPS,
    METHODS,
    Method,
    Source,
    Told,
    answered,
    guess,
    needs_lungs,
    parse_line,
    parse_methods,
)
from pp_jax.evaluate.models import CONFIDENCE_HELP, check_confidence
from pp_jax.evaluate.protocols import BOXED, HELP, Protocol, parse_protocols, read_prompts
from pp_jax.evaluate.score import score
from pp_jax.evaluate.subjects import Subject
from pp_jax.finetune import compared, runs
from pp_jax.finetune.compared import Entry
from pp_jax.finetune.members import Member, image_size, together
from pp_jax.finetune.models import config_of
from pp_jax.look import SAFE
from pp_jax.predict import ensemble
from pp_jax.preprocess import roi
from pp_jax.preprocess.stage import SPECS, describe
from pp_jax.sam.attention import ATTENTIONS

CHOICES = {
    "target": targets.TARGETS,
    "part": (*reversed(splits.PARTS), "all"),
    "recipe": ("", *config.RECIPES),
    "dtype": config.DTYPES,
    "attention": ("auto", *ATTENTIONS),
    "device": cli.DEVICES,
}
BESIDE = ", ".join(
    f"{name} ({row.help}{'' if row.default else '; by name'})" for name, row in METHODS.items()
)
CHECKED = SPECS | {
    "methods": (parse_methods, f"{BESIDE}, or {', '.join(GROUPS)} for several"),
    "data": (sources.check_names, sources.HELP),
    "prompt": (parse_protocols, HELP),
    "by": (strata.check_by, ", ".join(strata.BY)),
    "confidence": (check_confidence, CONFIDENCE_HELP),
    "primary": (report.parse_primary, "METRIC@PROTOCOL"),
}

Served = Mapping[Path, frozenset[str]]  # The images that each run may be scored on.


def main() -> None:
    """Evaluate as the command line says."""
    with cli.one_line_errors(less_memory=cli.SMALLER):
        asked = cli.parse(EvalConfig, prog="eval.py", choices=CHOICES, specs=CHECKED)
        cli.require_clone()
        mesh = sharding.make_mesh(cli.devices(asked.device)[:1])
        told, lines = name_methods(asked)
        entries, missing = compared.line_up(told, asked, twins="blind" in lines)
        settings = resolve(asked, told, entries[0].members[0])
        protocols = parse_protocols(settings.prompt)
        protocols = compared.answerable(entries, protocols, prompt=settings.prompt)
        if settings.prompt != "all":
            for name, specs in compared.unread(entries, protocols).items():
                print(f"{name} is not asked under {', '.join(specs)}, which it does not read")
        require_boxes(entries, protocols)
        stored = read_prompts(Path(settings.prompts)) if settings.prompts else {}
        everything, served = open_records(settings, entries)
        entries = [compared.apart(entry, served) for entry in entries]
        allowed = compared.common_images(entries, served)
        chosen = choose(everything, protocols, settings, allowed=allowed)
        chosen, lines = shared(chosen, lines, settings)
        protocols = askable(protocols, chosen, settings)
        patients = {record.patient for record in chosen}
        print(f"scoring {len(chosen)} images of {len(patients)} patients, part: {settings.part}")
        lungs = any(map(needs_lungs, lines))
        images = [to_source(record, settings, lungs=lungs) for record in chosen]
        wanted = compared.Wanted(
            settings, check_confidence(settings.confidence), "auto" in protocols, mesh
        )
        swap = None
        if "swap" in settings.methods or ("swap" in lines and len(patients) > 1):
            swap = compared.swap_partners(images, seed=settings.seed)
        methods = make_methods(entries, wanted, served, everything, swap=swap)
        atlas_of = make_atlas(entries, served, everything)
        exact = () if any(record.from_box for record in chosen) else ("box",)
        methods += [
            guess(line, atlas_of, also=exact)
            for line in lines
            if METHODS[parse_line(line)[0]].guess is not None
        ]
        told_of = compared.facts(entries, swapped=swap is not None)
        plan = report.make_plan(settings, protocols, told_of, missing=missing, images=images)
        out = Path(settings.out)
        book = journal.open_journal(cli.partial_folder(out, ours=report.SUMMARY), plan)
        scores = score(
            book, methods, images, protocols=protocols, seed=settings.seed, stored=stored
        )
        folder = book.path.parent
        text = report.write(folder, scores, plan, methods, images, count=settings.pictures)
        if settings.kaggle_submission:
            report.write_submission(Path(settings.kaggle_submission), scores, plan)
        journal.close(book)
        cli.put_folder(folder, out)
        print(f"\n{text}\n{out}: report.html, table.md, results.csv, images.csv, overlays")


def name_methods(asked: EvalConfig) -> tuple[list[Told], list[str]]:
    """The models to compare, one if none is named, and the lines beside them.

    Raises:
      ValueError: `--checkpoint` beside models of `--methods`.
    """
    models, lines = parse_methods(asked.methods)
    if asked.checkpoint and models:
        raise ValueError(
            f"--checkpoint {' '.join(asked.checkpoint)} beside models of --methods: name all of "
            "them there"
        )
    if not models:
        # The shell finds folds.json as well where `runs/X/fold*` names the folds.
        named = [path for path in asked.checkpoint if Path(path).name != runs.FOLDS]
        paths = named or asked.checkpoint or [config.resolve(config.TrainConfig()).out]
        folders = tuple(path.rstrip("/") for path in paths)
        several = len(folders) > 1
        name = ensemble.label(folders) if several else Path(folders[0]).name
        models = [Told(name, folders, {}, (), averaged=several)]
    return models, lines


def resolve(asked: EvalConfig, told: Sequence[Told], first: Member) -> EvalConfig:
    """What is asked, with the defaults that follow from the first model."""
    return resolve_eval(
        dataclasses.replace(asked, checkpoint=told[0].folders),
        folder=told[0].folders[0],
        run=first.run,
        trained=first.trained,
        shown=first.look,
        several=compared.joint_name(told),
        report_in=report_in(told[0]),
    )


def report_in(told: Told) -> str:
    """What stands before the report's name, where it does not follow from the folder."""
    homes = [runs.home(Path(folder)) for folder in told.folders]
    if told.averaged:
        # Beside the members, in none of them.
        above = homes[0].parent if len({home.parent for home in homes}) == 1 else Path("runs")
        names = ",".join(ensemble.short_names(told.folders)).replace("/", "_")
        return f"{above}/ensemble-{names.translate(SAFE)}-"
    folder = Path(told.folders[0])
    # A step is a checkpoint itself: a file more in its folder and it does not verify.
    return f"{homes[0]}/step{int(folder.name)}-" if homes[0] != folder else ""


def open_records(
    settings: EvalConfig, entries: Sequence[Entry]
) -> tuple[list[records.Record], Served]:
    """All records of the data sets, and the images that each run, or weights, may be scored on."""
    members = itertools.chain(*(entry.members for entry in entries))
    folders = [one.folder for member in members for one in together(member)]
    fitted = {folder: fitted_on(folder) for folder in folders}
    asked = sources.name_sets(settings.data, settings.data_dir)
    sets = held_out.find_sets(asked, [run.sets for own in fitted.values() for run in own])
    opened = sources.open_sets(sets)
    everything = records.draw_as(itertools.chain(*opened), settings.target)
    served = dict.fromkeys(folders, frozenset(record.id for record in everything))
    for folder, own in fitted.items():
        for run in own[:1]:
            served[folder] = held_out.unseen(everything, sets, run, part=settings.part)
        for begun_from in own[1:] if settings.part == "test" else ():
            served[folder] &= held_out.unknown_to(everything, sets, begun_from)
    return everything, served


def fitted_on(folder: Path) -> list[held_out.Fitted]:
    """What a run was fitted on, and before it the runs that it began from; nothing of weights."""
    return [
        held_out.Fitted(
            fit.run, sources.name_sets(fit.data, fit.data_dir), fit.patients, fit.images
        )
        for fit in runs.lineage(folder)
    ]


def choose(
    everything: Sequence[records.Record],
    protocols: Mapping[str, Protocol],
    settings: EvalConfig,
    *,
    allowed: frozenset[str],
) -> list[records.Record]:
    """The records to score: where every protocol marks objects, those that have some.

    Raises:
      ValueError: No record is left.
    """
    chosen = [record for record in everything if record.id in allowed]
    if all(protocol.needs_objects for protocol in protocols.values()):
        chosen = [record for record in chosen if record.boxes]
    patients = frozenset(sorted({record.patient for record in chosen})[: settings.limit])
    chosen = [record for record in chosen if record.patient in patients]
    if not chosen:
        raise ValueError(
            f"{settings.data_dir}: no image to score with --prompt {settings.prompt} in part "
            f"{settings.part!r}; choose another --part, or --prompt none for images without boxes"
        )
    return chosen


def shared(
    chosen: Sequence[records.Record], lines: Sequence[str], settings: EvalConfig
) -> tuple[list[records.Record], list[str]]:
    """The records and the lines beside the models of which each line answers for each record.

    Raises:
      ValueError: As `answered`.
    """
    kept, images = answered(
        lines,
        settings.methods,
        images=[record.id for record in chosen],
        outlined=[record.id for record in chosen if record.lungs is not None],
        where=settings.data,
    )
    return [record for record in chosen if record.id in images], kept


def askable(
    protocols: Mapping[str, Protocol], chosen: Sequence[records.Record], settings: EvalConfig
) -> dict[str, Protocol]:
    """The protocols whose prompt is not the answer.

    Raises:
      ValueError: Box prompts, not as a part of `all`, on targets that are these boxes.
    """
    same = [record for record in chosen if record.from_box and record.boxes]
    kept = {s: p for s, p in protocols.items() if not same or s.partition(":")[0] not in BOXED}
    if len(kept) < len(protocols) and settings.prompt != "all":
        raise ValueError(
            f"{settings.data_dir}: {len(same)} images (first: {same[0].id}) have no masks as "
            f"targets (target: {same[0].kind}), so a box prompt would contain the answer; use "
            "--prompt point or none"
        )
    return kept


def require_boxes(entries: Sequence[Entry], protocols: Mapping[str, Protocol]) -> None:
    """Nothing, when no region of interest needs boxes that a protocol does not mark.

    Raises:
      ValueError: A prompt without boxes, with a region around each box.
    """
    without = [spec for spec in protocols if spec.partition(":")[0] not in BOXED]
    for member in itertools.chain(*(entry.members for entry in entries)):
        if without and roi.make(member.look.roi).per == "box":
            raise ValueError(
                f"--roi {member.look.roi} cuts around boxes, and --prompt {without[0]} marks none: "
                "choose --prompt box, or --roi none or content"
            )


def make_methods(
    entries: Sequence[Entry],
    wanted: compared.Wanted,
    served: Served,
    everything: Sequence[records.Record],
    *,
    swap: Mapping[tuple[str, str], Source] | None,
) -> list[Method]:
    """Each model, and beside it the same model shown another patient's image."""
    methods, told = [], []
    load = compared.make_load(wanted)
    for entry in entries:
        for member in entry.members:
            side = config_of(member.variant, image_size(member, wanted.settings)).image_size
            for one in together(member):
                told.append(f"{entry.name}: {describe(one.look, side=side)}")
            own = served[member.folder]
            make = partial(
                compared.make_method,
                member,
                load,
                patients=frozenset(r.patient for r in everything if r.id in own),
                fit=to_fit(member, everything, wanted.settings) if wanted.automatic else (),
                seed=wanted.settings.seed,
            )
            methods.append(make())
            if swap is not None and entry.kind == "model":
                methods.append(make(swap=swap))
    print("\n".join(dict.fromkeys(told)))
    return methods


def to_fit(
    member: Member, everything: Sequence[records.Record], settings: EvalConfig
) -> list[Source]:
    """The run's own training images, if they are among the data."""
    if member.run is None:
        return []
    trained = frozenset(runs.read_images(member.folder).get("train", ()))
    return [to_source(record, settings) for record in everything if record.id in trained]


def make_atlas(
    entries: Sequence[Entry], served: Served, everything: Sequence[records.Record]
) -> Callable[[str], Atlas]:
    """What controls know for a patient: the first run's training part, or all other patients."""
    fitted = [entry for entry in entries if entry.members[0].run is not None]
    of_image: dict[str, Atlas] = {}
    for member in fitted[0].members if fitted else ():
        of_image |= dict.fromkeys(served[member.folder], runs.read_atlas(member.folder))
    if of_image:
        known = [record for record in everything if record.id in of_image]
        return {record.patient: of_image[record.id] for record in known}.__getitem__
    by_patient = defaultdict(list)
    for record in everything:
        by_patient[record.patient].append(record)
    drawn = {name: outlines.outlines(own) for name, own in by_patient.items()}
    return leave_one_patient_out(drawn).__getitem__


def to_source(record: records.Record, settings: EvalConfig, *, lungs: bool = False) -> Source:
    """The record as an image that is read when it is needed, and its lungs if they are as well."""
    dataset = record.dataset or settings.data
    return Source(dataset, record.id, record.patient, partial(read, record, dataset, lungs=lungs))


def read(record: records.Record, dataset: str, *, lungs: bool) -> Subject:
    """The record with its pixels, and what is known of it."""
    sample = records.load(record)
    size = sample.findings.shape
    facts = record.facts
    return Subject(
        id=record.id,
        patient=record.patient,
        dataset=dataset,
        target=sample.target,
        label=record.label,
        view=facts.view,
        sex=facts.sex,
        age=facts.age,
        spacing=facts.spacing,
        image=sample.image,
        objects=sample.objects,
        boxes=sample.boxes,
        findings=sample.findings,
        lungs=records.read_mask(record.lungs, size=size) if lungs and record.lungs else None,
    )


if __name__ == "__main__":
    main()
