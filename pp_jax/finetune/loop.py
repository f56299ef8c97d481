"""The training loop: the one impure place between pure steps."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from tqdm import tqdm

from pp_jax import sharding, tree
from pp_jax.config import TrainConfig, look_of
from pp_jax.evaluate import plots
from pp_jax.finetune import recipe, runs
from pp_jax.finetune.embeddings import Embedder, make_embedder
from pp_jax.finetune.step import State, averages
from pp_jax.preprocess import augment
from pp_jax.preprocess.stage import describe
from pp_jax.prompts import Purpose
from pp_jax.sam import sized
from pp_jax.types import Batch

_FEWEST_BETWEEN_SAVES = 50  # Of a small data set an epoch is seconds, a checkpoint as well.


class Feed(NamedTuple):
    """Where batches come from; rows are those of this process."""

    train: Callable[[int], Iterator[Batch]]  # From a step on, without end.
    validation: Callable[[], Iterable[Batch]]  # All of it, once.
    epoch_steps: int
    facts: dict[str, Any]  # To stand in every row of the log.
    embedded: Callable[[Embedder], "Feed"] | None = None  # The same batches with embeddings.


class _Log:
    """The run's `metrics.jsonl`; rows after the step that is resumed from are dropped."""

    def __init__(self, path: Path, *, resumed_at: int):
        self._path, self._active = path, jax.process_index() == 0
        lines = path.read_text().splitlines() if path.is_file() else []
        self.rows = [row for row in map(_parse, lines) if row and row["step"] <= resumed_at]
        if self._active:
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            partial.rename(path)

    def draw(self, path: Path) -> None:
        if self._active:
            plots.learning_curve(path, self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._active:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # The last line of a run that was killed while it wrote.


def fit(run: Path, settings: TrainConfig, feed: Feed, *, mesh: Mesh) -> list[dict[str, Any]]:
    """The rows of the log, after training was brought to its last step.

    Starts from the newest checkpoint in `run` that verifies, if there is one.

    Raises:
      ValueError: A batch that the devices cannot share or the data cannot fill.
      CheckpointError: As `runs.begin`.
      FloatingPointError: The loss is no longer finite.
    """
    total = settings.steps or settings.epochs * feed.epoch_steps
    start = runs.newest_step(run)
    log = _Log(run / runs.METRICS, resumed_at=start)
    if start >= total:
        print(f"{run}: already trained to step {start}")
        return log.rows
    if start:
        print(f"{run}: resuming after step {start}")
    # A batch that the devices or the data do not allow is refused before weights are read.
    sharding.check_batch(settings.batch, mesh, parts=settings.accumulate)
    positions = sharding.place_batch(_positions(settings.batch), mesh)
    batches = feed.train(start)
    optimizer = recipe.optimizer_of(settings, steps=total)
    state, frozen, base = runs.begin(run, settings, optimizer, step=start, mesh=mesh)
    _describe(state, frozen, settings, total=total, start=start)
    if feed.embedded is not None:
        variables = tree.combine(state.trainable, frozen)
        feed = feed.embedded(make_embedder(settings, variables, mesh=mesh))
        batches = feed.train(start)
    everywhere = sharding.replicated(mesh)
    step = jax.jit(
        recipe.step_of(settings, steps=total, mesh=mesh),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), everywhere),
    )
    score = jax.jit(
        recipe.terms_of(settings, Purpose.EVAL_PROMPT, mesh=mesh), out_shardings=everywhere
    )
    key = jax.random.key(settings.seed)
    every = settings.save_every or max(feed.epoch_steps, _FEWEST_BETWEEN_SAVES)

    batch = sharding.place_batch(next(batches), mesh)
    with contextlib.ExitStack() as closing:  # The bar's line ends also where an error follows.
        for number in range(start + 1, total + 1):
            begun = time.perf_counter()
            state, means = step(state, frozen, batch, positions, key)
            batch = sharding.place_batch(next(batches), mesh)  # While the devices compute.
            row = _row(number, "train", means, feed.facts)
            row["seconds"] = round(time.perf_counter() - begun, 3)
            log.add(row)
            _require_finite(row, run)
            if number == start + 1:
                # The bar is made now, since the compilation would spoil its estimate.
                tqdm.write(f"compiled, and step {number} done, in {row['seconds']:.1f} s")
                hidden = jax.process_index() > 0
                bar = closing.enter_context(
                    tqdm(total=total, initial=number, unit="step", disable=hidden)
                )
            else:
                bar.update()
            bar.set_postfix(loss=f"{row['loss']:.3f}", dice=f"{row['dice_metric']:.3f}")
            if number % every == 0 or number == total:
                means = _validate(score, state, frozen, feed, key, mesh=mesh)
                if means is not None:
                    scored = _row(number, "validation", means, feed.facts)
                    log.add(scored)
                    tqdm.write(
                        f"step {number}: validation loss {scored['loss']:.3f}, "
                        f"Dice {scored['dice_metric']:.3f}"
                    )
                log.draw(run / runs.CURVE)
                runs.save_step(run, state, settings=settings, base=base)
    return log.rows


def _positions(batch: int) -> Int[np.ndarray, " B"]:
    """Where this process's rows stand in the global batch."""
    return np.arange(jax.process_index(), batch, jax.process_count(), dtype=np.int32)


def _validate(
    score: Callable, state: State, frozen: Any, feed: Feed, key: jax.Array, *, mesh: Mesh
) -> dict[str, jax.Array] | None:
    """Averages over all validation prompts, each drawn by the image alone; None without prompts."""
    sums, hidden = None, jax.process_index() > 0
    # Shown where it lasts: one image of `vit_h` is half a minute on a CPU.
    shown = tqdm(
        feed.validation(), desc="validating", unit="batch", leave=False, delay=2, disable=hidden
    )
    for batch in shown:
        positions = np.maximum(batch.index, 0).astype(np.int32)
        placed, where = sharding.place_batch((batch, positions), mesh)
        part = score(state.trainable, frozen, placed, where, key, jnp.int32(0))
        sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
    return None if sums is None or not float(sums.count) else averages(sums)


def _row(step: int, split: str, means: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    values = {name: float(value) for name, value in jax.device_get(means).items()}
    values["dice_metric"] = values.pop("hard_dice")
    return {"step": step, "split": split, **values, **facts}


def _require_finite(row: dict[str, Any], run: Path) -> None:
    if not math.isfinite(row["loss"]):
        raise FloatingPointError(
            f"{run}: the loss is {row['loss']} at step {row['step']}; the checkpoints before it "
            "are kept. Try a lower --lr, or --dtype float32"
        )


def _describe(state: State, frozen: Any, settings: TrainConfig, *, total: int, start: int) -> None:
    trained, fixed = (
        sum(x.size for x in jax.tree.leaves(leaves)) for leaves in (state.trainable, frozen)
    )
    print(
        f"{settings.variant}: {trained:,} parameters trained ({settings.trainable}), "
        f"{fixed:,} frozen; steps {start + 1} to {total}, {settings.batch} images each"
    )
    side = sized(settings.variant, settings.image_size).image_size
    print(describe(look_of(settings), side=side))
    if augment.parse(settings.augment):
        print(f"augmented, in training alone: {augment.canonical(settings.augment)}")
