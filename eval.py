"""`python eval.py`: score models beside guesses that see no pixel, and report. See `--help`."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from data import held_out, outlines, records, sources, splits, targets
from pp_jax import cli, config, sharding
from pp_jax.config import EvalConfig
from pp_jax.evaluate import journal, report, strata
from pp_jax.evaluate.controls import Atlas, leave_one_patient_out
from pp_jax.evaluate.methods import METHODS, Method, Source, Told, guess, parse_methods
from pp_jax.evaluate.models import CONFIDENCE_HELP, check_confidence
from pp_jax.evaluate.protocols import HELP, Protocol, parse_protocols, read_prompts
from pp_jax.evaluate.score import score
from pp_jax.evaluate.subjects import Subject
from pp_jax.finetune import compared, runs
from pp_jax.finetune.compared import Entry, Member
from pp_jax.preprocess import roi
from pp_jax.preprocess.stage import SPECS, describe
from pp_jax.sam import sized

CHOICES = {
    "target": targets.TARGETS,
    "part": (*reversed(splits.PARTS), "all"),
    "recipe": ("", *config.RECIPES),
    "device": cli.DEVICES,
}
CHECKED = SPECS | {
    "data": (sources.check_names, sources.HELP),
    "prompt": (parse_protocols, HELP),
    "by": (strata.check_by, ", ".join(strata.BY)),
    "confidence": (check_confidence, CONFIDENCE_HELP),
    "primary": (report.parse_primary, "METRIC@PROTOCOL"),
}
GUESSES = tuple(name for name in METHODS if name not in ("swap", "blind"))
BOXES = ("box", "jitter", "box+point")  # Protocols whose prompt is made of an object's box.

Served = Mapping[Path, frozenset[str]]  # The patients that each run may be scored on.


def main() -> None:
    """Evaluate as the command line says."""
    with cli.one_line_errors():
        asked = cli.parse(EvalConfig, prog="eval.py", choices=CHOICES, specs=CHECKED)
        cli.require_clone()
        mesh = sharding.make_mesh(cli.devices(asked.device)[:1])
        told, lines = name_methods(asked)
        entries, missing = compared.line_up(told, asked, twins="blind" in lines)
        first = entries[0].members[0]
        settings = config.resolve_eval(
            asked, folder=told[0].folders[0], run=first.run, look=first.look
        )
        everything, sets = open_records(settings, entries)
        served = serve(everything, sets, entries, part=settings.part)
        entries = [compared.apart(entry, served) for entry in entries]
        allowed = compared.common_patients(entries, served)
        chosen, protocols = choose(everything, settings, allowed)
        require_boxes(entries, protocols)
        images = [to_source(record, settings) for record in chosen]
        wanted = compared.Wanted(
            asked, check_confidence(asked.confidence), "auto" in protocols, mesh
        )
        swapped = "swap" in lines and len({image.patient for image in images}) > 1
        swap = compared.swap_partners(images, seed=asked.seed) if swapped else None
        methods = make_methods(entries, wanted, served, everything, settings, swap=swap)
        atlas_of = make_atlas(entries[0], served, everything)
        exact = () if any(record.from_box for record in chosen) else ("box",)
        methods += [guess(line, atlas_of, also=exact) for line in lines if line in GUESSES]
        plan = report.make_plan(
            settings,
            protocols,
            compared.facts(entries, swapped=swapped),
            missing=missing,
            images=images,
        )
        out = Path(settings.out)
        book = journal.open_journal(cli.partial_folder(out, ours=report.SUMMARY), plan)
        stored = read_prompts(Path(settings.prompts)) if settings.prompts else {}
        scores = score(
            book, methods, images, protocols=protocols, seed=settings.seed, stored=stored
        )
        text = report.write(
            book.path.parent, scores, plan, methods, images, count=settings.pictures
        )
        if settings.kaggle_submission:
            report.write_submission(Path(settings.kaggle_submission), scores, plan)
        journal.close(book)
        cli.put_folder(book.path.parent, out)
        print(f"\n{text}\n{out}: report.html, table.md, results.csv, images.csv, overlays")


def name_methods(asked: EvalConfig) -> tuple[list[Told], list[str]]:
    """The models to compare, one checkpoint if none is named, and the lines beside them.

    Raises:
      ValueError: `--checkpoint` beside models of `--methods`.
    """
    models, lines = parse_methods(asked.methods)
    if asked.checkpoint and models:
        raise ValueError(
            f"--checkpoint {asked.checkpoint} beside models of --methods: name all of them there"
        )
    if not models:
        folder = (asked.checkpoint or config.resolve(config.TrainConfig()).out).rstrip("/")
        models = [Told(Path(folder).name, (folder,), {}, ())]
    return models, lines


def trained(member: Member) -> held_out.Trained | None:
    """What a run was fitted on; None of converted weights."""
    if member.run is None:
        return None
    return held_out.Trained(
        str(member.folder),
        sources.name_sets(member.run.data, member.run.data_dir),
        runs.read_split(member.folder),
        runs.read_images(member.folder),
    )


def open_records(
    settings: EvalConfig, entries: Sequence[Entry]
) -> tuple[list[records.Record], sources.Sets]:
    """The records of the data sets, and the sets by the names that they have in the first run."""
    asked = sources.name_sets(settings.data, settings.data_dir)
    known = [trained(member) for entry in entries for member in entry.members]
    fitted = next((run for run in known if run is not None), None)
    sets = held_out.find_sets(asked, fitted.sets if fitted else None)
    opened = sources.open_sets(sets)
    return records.draw_as(itertools.chain(*opened), settings.target), sets


def serve(
    everything: Sequence[records.Record],
    sets: sources.Sets,
    entries: Sequence[Entry],
    *,
    part: str,
) -> Served:
    """The patients that each run, or converted weights, may be scored on."""
    patients = frozenset(record.patient for record in everything)
    served = {}
    for member in itertools.chain(*(entry.members for entry in entries)):
        fitted = trained(member)
        served[member.folder] = (
            patients if fitted is None else held_out.unseen(everything, sets, fitted, part=part)
        )
    return served


def choose(
    everything: Sequence[records.Record], settings: EvalConfig, allowed: frozenset[str]
) -> tuple[list[records.Record], dict[str, Protocol]]:
    """The records to score, and the protocols; of `all` those whose prompt is not the answer.

    Raises:
      ValueError: No record is left, or box prompts on targets that are these boxes.
    """
    protocols = parse_protocols(settings.prompt)
    patients = frozenset(sorted(allowed)[: settings.limit])
    chosen = [record for record in everything if record.patient in patients]
    if all(protocol.needs_objects for protocol in protocols.values()):
        chosen = [record for record in chosen if record.boxes]
    if not chosen:
        raise ValueError(
            f"{settings.data_dir}: no image to score with --prompt {settings.prompt} in part "
            f"{settings.part!r}; choose another --part, or --prompt none for images without boxes"
        )
    same = [record for record in chosen if record.from_box and record.boxes]
    kept = {s: p for s, p in protocols.items() if not same or s.partition(":")[0] not in BOXES}
    if len(kept) < len(protocols) and settings.prompt != "all":
        raise ValueError(
            f"{settings.data_dir}: {len(same)} images (first: {same[0].id}) have no masks as "
            f"targets (target: {same[0].kind}), so a box prompt would contain the answer; use "
            "--prompt point or none"
        )
    count = len({record.patient for record in chosen})
    print(f"scoring {len(chosen)} images of {count} patients, part: {settings.part}")
    return chosen, kept


def require_boxes(entries: Sequence[Entry], protocols: Mapping[str, Protocol]) -> None:
    """Nothing, when no region of interest needs boxes that a protocol does not mark.

    Raises:
      ValueError: A prompt without boxes, with a region around each box.
    """
    without = [spec for spec in protocols if spec.partition(":")[0] not in BOXES]
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
    settings: EvalConfig,
    *,
    swap: Mapping[tuple[str, str], Source] | None,
) -> list[Method]:
    """Each model, and beside it the same model shown another patient's image."""
    methods = []
    for entry in entries:
        for member in entry.members:
            side = sized(member.variant, compared.image_size(member, wanted)).image_size
            print(f"{entry.name}: {describe(member.look, side=side)}")
            make = partial(
                compared.make_method,
                member,
                wanted,
                patients=served[member.folder],
                fit=to_fit(member, everything, settings) if wanted.automatic else (),
            )
            methods.append(make())
            if swap is not None and entry.kind == "model":
                methods.append(make(swap=swap))
    return methods


def to_fit(
    member: Member, everything: Sequence[records.Record], settings: EvalConfig
) -> list[Source]:
    """The run's own training images, if they are among the data."""
    if member.run is None:
        return []
    patients = set(runs.read_split(member.folder)["train"])
    images = set(runs.read_images(member.folder).get("train", ()))
    return [
        to_source(record, settings)
        for record in everything
        if record.patient in patients and record.id in images
    ]


def make_atlas(
    entry: Entry, served: Served, everything: Sequence[records.Record]
) -> Callable[[str], Atlas]:
    """What controls know for a patient: the first model's training part, or all other patients."""
    of_patient: dict[str, Atlas] = {}
    for member in entry.members:
        if member.run is not None:
            atlas = runs.read_atlas(member.folder)
            of_patient |= dict.fromkeys(served[member.folder], atlas)
    if of_patient:
        return of_patient.__getitem__
    by_patient = defaultdict(list)
    for record in everything:
        by_patient[record.patient].append(record)
    drawn = {name: outlines.outlines(own) for name, own in by_patient.items()}
    return leave_one_patient_out(drawn).__getitem__


def to_source(record: records.Record, settings: EvalConfig) -> Source:
    """The record as an image that is read when it is needed."""
    dataset = record.dataset or settings.data
    return Source(dataset, record.id, record.patient, partial(read, record, dataset))


def read(record: records.Record, dataset: str) -> Subject:
    """The record with its pixels, and what is known of it."""
    sample = records.load(record)
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
    )


if __name__ == "__main__":
    main()
