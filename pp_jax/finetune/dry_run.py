"""What a training would do, told before anything of it is written: `python train.py --dry-run`."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pp_jax import outlook, sharding
from pp_jax.config import TrainConfig
from pp_jax.finetune import loop, pace, plan, runs, start
from pp_jax.finetune.embeddings import Embedder, make_embedder
from pp_jax.finetune.models import config_of

# From the embedder of a run and the seconds of an image to what is there and what is to come.
Foresee = Callable[[Embedder, float], str]


def describe(
    settings: Sequence[TrainConfig],
    feeds: Sequence[loop.Feed],
    *,
    mesh: Mesh,
    embedded: Sequence[Foresee] = (),
) -> str:
    """Steps, checkpoints, time and disk of trainings that differ in their data alone.

    The time follows from a few steps on empty images, which are made now.

    Args:
      settings: Resolved, one of each training.
      feeds: Of each training.
      mesh: The devices.
      embedded: Of each training, where its embeddings are kept.

    Raises:
      ValueError, CheckpointError: What would stop a training before its first step.
    """
    begun = [_begun(own, feed, mesh=mesh) for own, feed in zip(settings, feeds, strict=True)]
    told = []
    for own, foresee in zip(settings, embedded, strict=False):
        embedder = make_embedder(own, runs.initial_variables(own, mesh=mesh), mesh=mesh)
        told.append(foresee(embedder, _seconds_of_embedding(embedder, own)))
    seconds = pace.seconds_of_step(settings[0], mesh=mesh)
    for own, feed, step in zip(settings, feeds, begun, strict=True):
        told.append(f"{own.out}: {_one(own, feed, step, seconds=seconds, mesh=mesh)}")
    return "\n".join([*told, "nothing was written (--dry-run)"])


def _begun(settings: TrainConfig, feed: loop.Feed, *, mesh: Mesh) -> int:
    """The step that a training would go on after, once it is known that it would start."""
    run = Path(settings.out)
    started, fits = start.look_into(run, settings)
    sharding.check_batch(settings.batch, mesh, parts=settings.accumulate)
    feed.train(0)  # Refuses a batch that the data cannot fill.
    return runs.newest_step(run) if started and fits else 0


def _one(settings: TrainConfig, feed: loop.Feed, begun: int, *, seconds: float, mesh: Mesh) -> str:
    planned = loop.plan_of(settings, epoch_steps=feed.epoch_steps)
    due = sum(planned.is_due(step) for step in range(begun + 1, planned.total + 1))
    # A validation's batch takes no longer than a step's.
    batches = -(-feed.validated // settings.batch)
    took = outlook.in_words(seconds * (planned.total - begun + due * batches))
    after = f" after step {begun}" if begun else ""
    state, frozen, *_ = plan.shapes_of(settings, mesh, steps=planned.total)
    kept = min(due, settings.keep + 1)  # The best by validation beside the newest.
    size = (_bytes(frozen) + kept * _bytes(state)) / 2**30
    return (
        f"{planned.total - begun:,} steps{after} of {settings.batch} images, {due} checkpoints"
        f"{' and validations' if batches else ''}, about {took}, {size:.2f} GiB on disk"
    )


def _seconds_of_embedding(embedder: Embedder, settings: TrainConfig) -> float:
    """Of one empty image, after the batch that compiles."""
    rows = settings.batch // jax.process_count()
    side = config_of(settings.variant, settings.image_size).image_size
    images = np.zeros((rows, side, side, 3), np.uint8)
    sizes = np.full((rows, 2), side, np.int32)
    for _ in range(2):
        before = time.perf_counter()
        embedder.compute(images, sizes)
    return (time.perf_counter() - before) / settings.batch


def _bytes(arrays: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
