"""`python train.py`: fine-tune SAM. See `python train.py --help`."""

import dataclasses
import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from jax.sharding import Mesh

import pp_jax.config
from data import cache, embedded, outlines, pipeline, records, sources, splits, targets
from pp_jax import ablations, cli, jobs, presets, prompts, ranges, sharding
from pp_jax.ablations import ABLATIONS, AblationConfig
from pp_jax.config import TrainConfig, look_of
from pp_jax.evaluate import ablation, adaptive, files
from pp_jax.evaluate.sections import Section
from pp_jax.finetune import (
    dry_run,
    grid,
    loop,
    losses,
    models,
    monitor,
    optimize,
    pictures,
    plan,
    recipe,
    runs,
    start,
    trainable,
)
from pp_jax.finetune.embeddings import Embedder, check_fixed
from pp_jax.preprocess import augment, roi
from pp_jax.preprocess.stage import PREPARATIONS, SPECS, make_shown
from pp_jax.presets import PRESETS
from pp_jax.sam.attention import ATTENTIONS

CHOICES = {
    "variant": models.MODELS,
    "preprocess": ("", *PREPARATIONS),
    "target": targets.TARGETS,
    "trainable": ("", *trainable.POLICIES),
    "prompting": prompts.PROMPTINGS,
    "recipe": ("", *pp_jax.config.RECIPES),
    "best_mask": losses.BEST_MASKS,
    "optimizer": optimize.OPTIMIZERS,
    "schedule": optimize.SCHEDULES,
    "dtype": pp_jax.config.DTYPES,
    "attention": ("auto", *ATTENTIONS),
    "embeddings": ("", "bfloat16", "float32"),
    "device": cli.DEVICES,
}
CHECKED = SPECS | {
    "augment": (augment.parse, augment.HELP),
    "lr_scale": (optimize.parse_lr_scale, optimize.LR_SCALE_HELP),
    "mesh": (sharding.parse_mesh, sharding.MESH_HELP),
    "plan": (plan.parse, plan.HELP),
    "data": (sources.check_names, sources.HELP),
    "preset": (presets.check, presets.about(PRESETS)),
    "train_on": (splits.parse_train_on, splits.HELP),
    "ablation": (ablations.check, ablations.about(ABLATIONS)),
}

LESS_MEMORY = (
    "give a smaller --batch, --accumulate 2 or more (the batch in parts, the same gradient), "
    "--remat, a smaller --image-size, --dtype bfloat16, or --mesh fsdp=N on several devices"
)
ALIASES = {"prompting": "--prompt", "variant": "--model"}  # As eval.py calls what it asks with.


def main() -> None:
    """Train as the command line says."""
    with cli.one_line_errors(less_memory=LESS_MEMORY):
        if name := cli.told("--ablation"):
            ablate(name)
            return
        folder = cli.told("--resume")
        held = start.to_resume(folder) if folder else None
        asked = cli.parse(
            TrainConfig,
            prog="train.py",
            choices=CHOICES,
            specs=CHECKED,
            aliases=ALIASES,
            presets={name: preset.flags for name, preset in PRESETS.items()},
            alternatives=ranges.ALTERNATIVES,
            default=held,
        )
        settings = pp_jax.config.resolve(with_effect(asked, held))
        cli.require_clone()
        if settings.plan:  # Before anything starts jax, which then has the devices it has.
            raise SystemExit(plan.tell(settings))
        if settings.distributed:
            cli.join_processes()
        monitor.check(settings)
        make_shown(look_of(settings))  # Fusions and regions that do not fit are refused here.
        roi.make_for_images(settings.roi)
        recipe.check_rules(settings)
        if settings.embeddings:
            check_fixed(settings)
        if held is None:  # A run that goes on has the weights in its folder.
            named = asked.init not in ("checkpoint", "random")
            start.require_checkpoint(settings, flag="--init" if named else "--checkpoint")
            settings = start.with_preprocess(settings)
        mesh = sharding.make_mesh(cli.devices(settings.device), settings.mesh)
        sets = sources.name_sets(settings.data, settings.data_dir)
        opened = sources.open_sets(sets, limit=settings.limit)
        shares = share_out(settings, opened)
        tell_exceptions(settings, opened, shares)
        if settings.dry_run:
            say(foresee(start.folds_of(settings), shares, mesh=mesh))
            return
        for own, share in zip(start.of_folds(settings), shares, strict=True):
            train_one(own, share, mesh=mesh)


def ablate(name: str) -> None:
    """Trains and compares a grid of runs."""
    ablations.check(name)
    preset = PRESETS.get(cli.told("--preset"))
    usual = (preset.flags if preset else {}).get("variant", TrainConfig.variant)
    variant = cli.told("--variant") or cli.told("--model") or usual
    flags = ablations.flags_of(name, variant=variant)
    asked = cli.parse(
        AblationConfig,
        prog="train.py",
        choices=CHOICES,
        specs=CHECKED,
        aliases=ALIASES,
        presets={"": flags, **{key: {**flags, **row.flags} for key, row in PRESETS.items()}},
        alternatives=ranges.ALTERNATIVES,
    )
    asked = ablations.resolve(asked)
    cli.require_clone()
    require_all(asked)
    planned = grid.make_jobs(asked)
    # Asked elsewhere: an accelerator that this process held would be lost to its jobs.
    backend = asked.device if asked.device != "auto" else jobs.backend_there()
    side_by_side = grid.at_once(asked, backend=backend)
    mesh = None
    if asked.dry_run or backend == "cpu":
        mesh = sharding.make_mesh(cli.devices(asked.device), asked.mesh)
    print(grid.describe(asked, planned, side_by_side=side_by_side, mesh=mesh))
    if asked.dry_run:
        return
    out, row = Path(asked.out), ABLATIONS[name]
    jobs.run(planned, folder=out, at_once=side_by_side)
    alone = len({cell.policy for cell in ablations.cells(asked)}) == 1
    more = [choice_of_filter(asked)] if row.trains and alone else []
    text = ablation.write(out, grid.comparison_of(asked), more=more)
    print(f"\n{text}\n{out}: ablation.html, the same as ablation.md; report/report.html")


def require_all(asked: AblationConfig) -> None:
    """Nothing, when looks, rules, data and weights of a grid are there and fit: found out now, not
    after hours.

    Raises:
      ValueError: They are not; of weights a CheckpointError.
    """
    for one in grid.settings_of(asked):
        make_shown(look_of(one))
        recipe.check_rules(one)
        if not ablations.begins_anew(asked):
            start.require_checkpoint(one)
    data = grid.run_data(asked)
    sources.open_sets(sources.name_sets(data.data, data.data_dir), limit=asked.limit)


def choice_of_filter(asked: AblationConfig) -> Section:
    """What a choice of the filter by image, from its grey levels, makes of an ablation's rows."""
    rows = files.read_rows(Path(asked.out) / grid.REPORT / "images.csv")
    scored = {row["id"] for row in rows}
    data = grid.run_data(asked)
    opened = sources.open_sets(sources.name_sets(data.data, data.data_dir))
    statistics = {}
    for record in itertools.chain(*opened):
        if record.id in scored:
            levels = PIL.Image.fromarray(records.load(record).image).convert("L")
            statistics[record.id] = adaptive.describe(np.asarray(levels, np.float32))
    names = [cell.name for cell in ablations.cells(asked)]
    return adaptive.section(rows, statistics, grid.folds_of(asked), filters=names)


def with_effect(asked: TrainConfig, held: TrainConfig | None) -> TrainConfig:
    """What is asked for, on top of the run that goes on, if there is one.

    Raises:
      ValueError: A flag would do nothing, or would make the run another one.
    """
    if held is not None:
        asked = start.resumed(asked, held)
        ranges.check_idle(asked, held)
        return asked
    flags = PRESETS[asked.preset].flags if asked.preset else {}
    ranges.check_idle(asked, dataclasses.replace(TrainConfig(), **flags))
    return ranges.drop_idle(asked)


class Share(NamedTuple):
    """Who and what a run has in each of `splits.PARTS`."""

    patients: dict[str, list[str]]
    records: dict[str, list[records.Record]]


def train_one(settings: TrainConfig, share: Share, *, mesh: Mesh) -> None:
    """Brings one run to its last step."""
    say(counted(share))
    feed = make_feed(settings, share.records)
    images = {part: [record.id for record in own] for part, own in share.records.items()}
    marked = outlines.outlines(share.records["train"])
    run = start.open_run(
        settings,
        split=share.patients,
        images=images,
        outlines=marked,
        licences=licences_of(settings, share),
    )
    loop.fit(run, settings, feed, mesh=mesh)
    runs.write_card(run, settings)
    say(f"{run}: done. Score it with `python eval.py --checkpoint {run}`")


def counted(share: Share) -> str:
    """Images and patients of each part."""
    counts = (
        f"{part}: {len(share.records[part])} images, {len(share.patients[part])} patients"
        for part in splits.PARTS
    )
    return ", ".join(counts)


def foresee(settings: Sequence[TrainConfig], shares: Sequence[Share], *, mesh: Mesh) -> str:
    """What the runs would do; nothing is written."""
    said = [f"{own.out}: {counted(share)}" for own, share in zip(settings, shares, strict=True)]
    feeds = [make_feed(o, s.records) for o, s in zip(settings, shares, strict=True)]
    kept = [partial(foresee_embeddings, o, s) for o, s in zip(settings, shares, strict=True)]
    embedded_ = kept if settings[0].embeddings else []
    told = dry_run.describe(settings, feeds, mesh=mesh, embedded=embedded_)
    return "\n".join([*said, told])


def say(line: str) -> None:
    """The line is printed once, by the first of all processes."""
    if cli.process_share()["process_index"] == 0:
        print(line)


def licences_of(settings: TrainConfig, share: Share) -> dict[str, str]:
    """Of the data sets, and of the images of them that have one of their own."""
    held = {name: sources.DATASETS[name].licence for name in settings.data.split(",")}
    own = Counter(r.facts.licence for r in share.records["train"] if r.facts.licence)
    if own:
        listed = ", ".join(f"{licence} ({count})" for licence, count in own.most_common())
        held["training images that have a licence of their own"] = listed
    return held


def share_out(settings: TrainConfig, sets: list[list[records.Record]]) -> list[Share]:
    """What each run of the settings has: one run, or one for each fold that is to be trained.

    Every data set has its share in each part, but where `--train-on` says what is trained on.
    """
    common = {"seed": settings.seed, "validation": settings.validation}
    if settings.train_on:
        everything = list(itertools.chain(*sets))
        held_out = splits.split_held_out(everything, train_on=settings.train_on, **common)
        return [_share(settings, [held_out])]
    if settings.folds:
        split = [splits.split_folds(own, count=settings.folds, **common) for own in sets]
        chosen = range(settings.folds) if settings.fold is None else (settings.fold,)
        return [
            _share(settings, [(parts[fold], own) for parts, own in zip(split, sets, strict=True)])
            for fold in chosen
        ]
    split = [splits.split_patients(own, test=settings.test, **common) for own in sets]
    return [_share(settings, list(zip(split, sets, strict=True)))]


def tell_exceptions(
    settings: TrainConfig, sets: list[list[records.Record]], shares: list[Share]
) -> None:
    """Says how many images no fold tests, or no part has, and why."""
    everything = list(itertools.chain(*sets))
    doubtful = {record.patient for record in everything if records.DOUBTFUL in record.notes}
    doubtful -= {patient for share in shares for patient in share.patients["test"]}
    if settings.folds and doubtful:
        say(
            f"{len(doubtful)} patients may be someone else by the data set's own account: they are "
            "trained on in every fold and tested in none"
        )
    used = sum(map(len, shares[0].records.values()))
    if used < len(everything):
        say(
            f"{len(everything) - used} images are left out: of patients who are trained on with "
            "others of their images, or who may be someone else"
        )


def _share(
    settings: TrainConfig, sets: Iterable[tuple[splits.Parts, list[records.Record]]]
) -> Share:
    share = Share({part: [] for part in splits.PARTS}, {part: [] for part in splits.PARTS})
    for split, everything in sets:
        part_of = {patient: part for part, patients in split.items() for patient in patients}
        for part, patients in split.items():
            share.patients[part] += patients
        for record in records.draw_as(everything, settings.target):
            share.records[part_of[record.patient]].append(record)
    return share


def make_feed(
    settings: TrainConfig,
    parts: dict[str, list[records.Record]],
    features: pipeline.Features | None = None,
) -> loop.Feed:
    """Batches of the run's own training and validation parts, of images or of their embeddings."""
    kinds = Counter(r.kind for r in parts["train"] if r.from_box and r.boxes)
    same = settings.prompting.partition("+")[0] == "box" and bool(kinds)
    for kind, count in kinds.items() if same else ():
        warnings.warn(
            f"{count} training images have no masks as targets (target: {kind}): with --prompting "
            "box, the prompt contains the target, and a low loss says nothing about the image",
            stacklevel=2,
        )
    common = {
        "side": models.config_of(settings.variant, settings.image_size).image_size,
        "fit": PREPARATIONS[settings.preprocess].fit,
        "cut": roi.make_for_images(settings.roi),
        "batch": settings.batch,
        "max_objects": settings.max_objects,
        "objects": prompts.PROMPTINGS[settings.prompting].objects,
        "features": features,
        **cli.process_share(),
    }
    usable, validated = (
        pipeline.usable(parts[part], objects=common["objects"]) for part in ("train", "validation")
    )
    weights = pp_jax.config.weights_of(settings)
    names = dict.fromkeys(record.dataset for record in parts["train"])
    return loop.Feed(
        train=lambda start: pipeline.train_batches(
            parts["train"],
            seed=settings.seed,
            mix=dict(zip(names, weights, strict=True)) if weights else {},
            balance=settings.balance,
            start_step=start,
            workers=settings.workers,
            **common,
        ),
        validation=lambda: pipeline.eval_batches(parts["validation"], **common),
        validated=len(validated),
        epoch_steps=max(1, len(usable) // settings.batch),
        names=lambda index: [parts["train"][row].id for row in index],
        examples=_examples("validation", parts, validated, common)
        if validated
        else _examples("train", parts, usable, common),
        facts={"prompt_is_target": True} if same else {},
        embedded=partial(embed, settings, parts) if settings.embeddings and not features else None,
    )


def _examples(
    part: str, parts: dict[str, list[records.Record]], rows: list[int], common: dict[str, Any]
) -> pictures.Examples:
    """The first images of a part that have a prompt."""
    rows = rows[: pictures.COUNT]
    shown = [parts[part][row] for row in rows]
    ids = [record.id for record in shown]
    return pictures.Examples(part, ids, rows, lambda: pipeline.eval_batches(shown, **common))


def embed(
    settings: TrainConfig, parts: dict[str, list[records.Record]], embedder: Embedder
) -> loop.Feed:
    """The feed with the embeddings of all its images, of which those not on disk are computed."""
    features = embedded.embed(
        [*parts["train"], *parts["validation"]],
        cache.open_cache(Path(settings.cache_dir), **contents(settings, embedder)),
        embedder.compute,
        side=models.config_of(settings.variant, settings.image_size).image_size,
        fit=PREPARATIONS[settings.preprocess].fit,
        cut=roi.make_for_images(settings.roi),
        batch=settings.batch,
        **cli.process_share(),
    )
    return make_feed(settings, parts, features)


def contents(settings: TrainConfig, embedder: Embedder) -> dict[str, Any]:
    """What the cache of a run holds."""
    about = {**embedder.about, "reader": embedded.READER}
    return {"about": about, "shape": embedder.shape, "dtype": settings.embeddings}


def foresee_embeddings(
    settings: TrainConfig, share: Share, embedder: Embedder, seconds: float
) -> str:
    """What `embed` would do, an image taking so many seconds."""
    held = cache.find_cache(Path(settings.cache_dir), **contents(settings, embedder))
    images = [*share.records["train"], *share.records["validation"]]
    return embedded.foresee(images, held, seconds=seconds)


if __name__ == "__main__":
    main()
