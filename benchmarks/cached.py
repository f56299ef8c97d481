"""A step of the decoder on cached embeddings, beside one without reading, and one from images.

    python -m benchmarks.cached --variant vit_b
    python -m benchmarks.cached --variant tiny --repeats 3

`cached` reads its batches as `train.py --embeddings` does, embeddings and targets from disk, while
the device computes; `resident` has them on the device before; `images` encodes them in every step.
Weights are random, images those of `python -m data.synthetic`. Prints Markdown, then how far losses
are from those of `images`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import turns
from data import cache, embedded, pipeline, sources
from pp_jax import sharding, tree
from pp_jax.config import TrainConfig, resolve
from pp_jax.finetune import recipe
from pp_jax.finetune.embeddings import make_embedder
from pp_jax.finetune.step import State
from pp_jax.memory import keep_freed_memory
from pp_jax.preprocess import roi
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init

PACKAGES = ("jax", "flax", "optax", "grain", "array_record")
_STEPS = 1000  # Of the schedule.


class Training(NamedTuple):
    """A training at its first step."""

    state: State
    frozen: Mapping[str, Any]
    step: Callable
    batches: Iterator  # Without end.
    positions: np.ndarray
    mesh: Mesh


def main() -> None:
    """Measure, and print the table."""
    settings = turns.read(Benchmark, make_programs)
    turns.print_machine(settings, PACKAGES)
    rows = turns.take_turns("benchmarks.cached", make_programs(settings), settings)
    print()
    print(turns.table(rows, count=settings.batch, ours="resident"))
    print()
    wanted = losses(begin(settings, embeddings=""), settings.compared)
    for dtype in ("float32", "bfloat16"):
        got = losses(begin(settings, embeddings=dtype), settings.compared)
        apart = np.max(np.abs(got - wanted) / wanted)
        print(f"- losses of {len(got)} steps, {dtype} embeddings: {apart:.1e} apart (relative)")


def begin(settings: "Benchmark", *, embeddings: str) -> Training:
    """The training on images, or on embeddings of a type."""
    run = resolve(
        TrainConfig(
            variant=settings.variant,
            init="random",
            trainable="decoder",
            data_dir=str(settings.data_dir),
            batch=settings.batch,
            embeddings=embeddings,
            cache_dir=str(settings.cache_dir),
        )
    )
    mesh = sharding.make_mesh(jax.devices()[:1])
    everywhere = sharding.replicated(mesh)
    model = Sam(VARIANTS[run.variant])
    variables = jax.jit(partial(init, model), out_shardings=everywhere)(jax.random.key(0))
    trainable, frozen = tree.partition(variables, recipe.rules_of(run))
    rule = recipe.optimizer_of(run, steps=_STEPS)
    state = State(jnp.int32(0), trainable, rule.init(trainable))
    step = jax.jit(recipe.step_of(run, steps=_STEPS, mesh=mesh), donate_argnums=0)
    records = [
        record for record in sources.open_dataset("synthetic", settings.data_dir) if record.boxes
    ]
    frame = {
        "side": model.config.image_size,
        "batch": run.batch,
        "fit": "longest",
        "cut": roi.whole_window,
    }
    features = None
    if embeddings:
        embedder = make_embedder(run, variables, mesh=mesh)
        features = embedded.embed(
            records[: settings.images],
            cache.open_cache(
                settings.cache_dir,
                about={**embedder.about, "reader": embedded.READER},
                shape=embedder.shape,
                dtype=embeddings,
            ),
            embedder.compute,
            **frame,
        )
    batches = pipeline.train_batches(
        records[: settings.images],
        seed=0,
        max_objects=run.max_objects,
        objects="each",
        features=features,
        **frame,
    )
    state = jax.device_put(state, everywhere)
    positions = sharding.place_batch(np.arange(run.batch, dtype=np.int32), mesh)
    return Training(state, frozen, step, batches, positions, mesh)


def losses(training: Training, count: int) -> np.ndarray:
    """Of the first steps."""
    state, found = training.state, []
    for batch in itertools.islice(training.batches, count):
        placed = sharding.place_batch(batch, training.mesh)
        state, means = training.step(
            state, training.frozen, placed, training.positions, jax.random.key(0)
        )
        found.append(float(means["loss"]))
    return np.array(found)


def prepare(settings: "Benchmark", *, embeddings: str, resident: bool = False) -> turns.Run:
    """A step as the training loop takes it: the next batch is placed while the devices compute."""
    keep_freed_memory()
    training = begin(settings, embeddings=embeddings)
    state, key = training.state, jax.random.key(0)
    placed = (sharding.place_batch(batch, training.mesh) for batch in training.batches)
    if resident:
        placed = itertools.cycle(
            jax.block_until_ready(list(itertools.islice(placed, settings.images // settings.batch)))
        )
    batch = next(placed)

    def run() -> None:
        nonlocal state, batch
        state, means = training.step(state, training.frozen, batch, training.positions, key)
        batch = next(placed)
        jax.block_until_ready((state, means, batch))

    return run


PROGRAMS: Mapping[str, Callable[..., turns.Run]] = MappingProxyType(
    {
        "resident": partial(prepare, embeddings="float32", resident=True),
        "cached": partial(prepare, embeddings="float32"),
        "cached in bfloat16": partial(prepare, embeddings="bfloat16"),
        "images": partial(prepare, embeddings=""),
    }
)


@dataclass(frozen=True, kw_only=True)
class Benchmark(turns.Settings):
    """Time decoder steps on cached embeddings."""

    turn_s = 2.0
    variant: Literal[tuple(VARIANTS)] = "vit_b"
    """Of the model."""
    batch: int = 1
    """Images in a batch."""
    images: int = 8
    """To train on."""
    compared: int = 4
    """Steps whose losses are compared."""
    data_dir: Path = Path("datasets/synthetic")
    """Of `python -m data.synthetic`."""
    cache_dir: Path = Path("datasets/embeddings")
    """Of the embeddings."""


def make_programs(settings: Benchmark) -> Mapping[str, turns.Prepare]:
    """What takes turns."""
    return {name: partial(program, settings) for name, program in PROGRAMS.items()}


if __name__ == "__main__":
    main()
