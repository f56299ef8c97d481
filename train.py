"""`python train.py`: fine-tune SAM. See `python train.py --help`."""

import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import pp_jax.config
from data import cache, embedded, outlines, pipeline, records, sources, splits, targets
from pp_jax import cli, prompts, sharding
from pp_jax.config import TrainConfig, look_of
from pp_jax.finetune import loop, optimize, runs, trainable
from pp_jax.finetune.embeddings import Embedder, check_fixed
from pp_jax.preprocess import augment, roi
from pp_jax.preprocess.stage import PREPARATIONS, SPECS, make_shown
from pp_jax.sam import VARIANTS, sized

CHOICES = {
    "variant": VARIANTS,
    "init": ("checkpoint", "random"),
    "preprocess": ("", *PREPARATIONS),
    "target": targets.TARGETS,
    "trainable": ("", *trainable.POLICIES),
    "prompt": prompts.SAMPLERS,
    "recipe": ("", *pp_jax.config.RECIPES),
    "optimizer": optimize.OPTIMIZERS,
    "schedule": optimize.SCHEDULES,
    "dtype": ("float32", "bfloat16"),
    "embeddings": ("", "bfloat16", "float32"),
    "sharding": sharding.RULES,
    "device": cli.DEVICES,
}
CHECKED = SPECS | {
    "augment": (augment.parse, augment.HELP),
    "data": (sources.check_names, sources.HELP),
}


def main() -> None:
    """Train as the command line says."""
    with cli.one_line_errors():
        settings = pp_jax.config.resolve(
            cli.parse(TrainConfig, prog="train.py", choices=CHOICES, specs=CHECKED)
        )
        cli.require_clone()
        make_shown(look_of(settings))  # Fusions and regions that do not fit are refused here.
        roi.make_for_images(settings.roi)
        if settings.embeddings:
            check_fixed(settings)
        runs.require_checkpoint(settings)
        settings = runs.with_preprocess(settings)
        mesh = sharding.make_mesh(cli.devices(settings.device))
        sets = sources.name_sets(settings.data, settings.data_dir)
        split, parts = share_out(settings, sources.open_sets(sets, limit=settings.limit))
        print(", ".join(f"{p}: {len(parts[p])} images, {len(split[p])} patients" for p in split))
        feed = make_feed(settings, parts)
        images = {part: [record.id for record in parts[part]] for part in parts}
        marked = outlines.outlines(parts["train"])
        run = runs.open_run(settings, split=split, images=images, outlines=marked)
        loop.fit(run, settings, feed, mesh=mesh)
        print(f"{run}: done. Score it with `python eval.py --checkpoint {run}`")


def share_out(
    settings: TrainConfig, sets: list[list[records.Record]]
) -> tuple[dict[str, list[str]], dict[str, list[records.Record]]]:
    """Patients and records of each part; every data set has its share in each."""
    split: dict[str, list[str]] = {part: [] for part in splits.PARTS}
    parts: dict[str, list[records.Record]] = {part: [] for part in splits.PARTS}
    for everything in sets:
        own = splits.split_patients(
            everything, seed=settings.seed, validation=settings.validation, test=settings.test
        )
        part_of = {patient: part for part, patients in own.items() for patient in patients}
        for part, patients in own.items():
            split[part] += patients
        for record in records.draw_as(everything, settings.target):
            parts[part_of[record.patient]].append(record)
    return split, parts


def make_feed(
    settings: TrainConfig,
    parts: dict[str, list[records.Record]],
    features: pipeline.Features | None = None,
) -> loop.Feed:
    """Batches of the run's own training and validation parts, of images or of their embeddings."""
    kinds = Counter(r.kind for r in parts["train"] if r.from_box and r.boxes)
    same = settings.prompt == "box" and bool(kinds)
    for kind, count in kinds.items() if same else ():
        warnings.warn(
            f"{count} training images have no masks as targets (target: {kind}): with --prompt "
            "box, the prompt contains the target, and a low loss says nothing about the image",
            stacklevel=2,
        )
    common = {
        "side": sized(settings.variant, settings.image_size).image_size,
        "fit": PREPARATIONS[settings.preprocess].fit,
        "cut": roi.make_for_images(settings.roi),
        "batch": settings.batch,
        "max_objects": settings.max_objects,
        "objects": "union" if settings.prompt == "none" else "each",
        "features": features,
        **cli.process_share(),
    }
    usable = pipeline.usable(parts["train"], objects=common["objects"])
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
        epoch_steps=max(1, len(usable) // settings.batch),
        facts={"prompt_is_target": True} if same else {},
        embedded=partial(embed, settings, parts) if settings.embeddings and not features else None,
    )


def embed(
    settings: TrainConfig, parts: dict[str, list[records.Record]], embedder: Embedder
) -> loop.Feed:
    """The feed with the embeddings of all its images, of which those not on disk are computed."""
    features = embedded.embed(
        [*parts["train"], *parts["validation"]],
        cache.open_cache(
            Path(settings.cache_dir),
            about={**embedder.about, "reader": embedded.READER},
            shape=embedder.shape,
            dtype=settings.embeddings,
        ),
        embedder.compute,
        side=sized(settings.variant, settings.image_size).image_size,
        fit=PREPARATIONS[settings.preprocess].fit,
        cut=roi.make_for_images(settings.roi),
        batch=settings.batch,
        **cli.process_share(),
    )
    return make_feed(settings, parts, features)


if __name__ == "__main__":
    main()
