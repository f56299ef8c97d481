"""The training loop: the one impure place between pure steps."""

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
from tqdm import tqdm

from pp_jax import checkpoints, sharding, tree
from pp_jax.config import TrainConfig
from pp_jax.evaluate import report
from pp_jax.finetune import runs
from pp_jax.finetune.optimize import make_optimizer
from pp_jax.finetune.step import State, averages, make_step, make_terms
from pp_jax.finetune.trainable import POLICIES
from pp_jax.preprocess.stage import make_stage
from pp_jax.prompts import Purpose
from pp_jax.sam import VARIANTS, Sam
from pp_jax.types import Batch

_PAPER_WARMUP = 250


class Feed(NamedTuple):
    """Where batches come from; rows are those of this process."""

    train: Callable[[int], Iterator[Batch]]  # From a step on, without end.
    validation: Callable[[], Iterable[Batch]]  # All of it, once.
    epoch_steps: int
    facts: dict[str, Any]  # To stand in every row of the log.


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


def steps_in_all(settings: TrainConfig, *, epoch_steps: int) -> int:
    """Optimizer steps of the whole training."""
    return settings.steps or settings.epochs * epoch_steps


def fit(run: Path, settings: TrainConfig, feed: Feed, *, mesh: Mesh) -> list[dict[str, Any]]:
    """The rows of the log, after training was brought to its last step.

    Starts from the newest checkpoint in `run` that verifies, if there is one.

    Raises:
      FloatingPointError: The loss is no longer finite.
    """
    total = steps_in_all(settings, epoch_steps=feed.epoch_steps)
    warmup = min(_PAPER_WARMUP, total // 10) if settings.warmup is None else settings.warmup
    optimizer = make_optimizer(
        name=settings.optimizer,
        schedule=settings.schedule,
        lr=settings.lr,
        warmup=warmup,
        steps=total,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
    )
    state, frozen, base = _begin(run, settings, optimizer, mesh=mesh)
    start = int(state.step)
    log = _Log(run / runs.METRICS, resumed_at=start)
    if start >= total:
        print(f"{run}: already trained to step {start}")
        return log.rows
    if start:
        print(f"{run}: resuming after step {start}")
    _describe(state, frozen, settings, total=total, start=start)

    def terms(purpose: Purpose) -> Callable:
        stage = make_stage(
            filter=settings.filter,
            fusion=settings.fusion,
            blend=settings.blend,
            side=VARIANTS[settings.variant].image_size,
        )
        model = Sam(
            VARIANTS[settings.variant], dtype=jnp.dtype(settings.dtype), remat=settings.remat
        )
        weights = {"focal": settings.focal, "dice": settings.dice, "iou": settings.iou}
        return make_terms(model, stage, prompt=settings.prompt, purpose=purpose, weights=weights)

    places = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        make_step(terms(Purpose.TRAIN_PROMPT), optimizer),
        donate_argnums=0,
        out_shardings=(places, sharding.replicated(mesh)),
    )
    score = jax.jit(terms(Purpose.EVAL_PROMPT), out_shardings=sharding.replicated(mesh))
    key = jax.random.key(settings.seed)
    every = settings.save_every or feed.epoch_steps
    batches = feed.train(start)
    shown = jax.process_index() == 0

    bar: tqdm | None = None
    for number in range(start + 1, total + 1):
        begun = time.perf_counter()
        batch = next(batches)
        batch, positions = _place(batch, mesh)
        state, means = step(state, frozen, batch, positions, key)
        row = _row(number, "train", means, feed.facts)
        row["seconds"] = round(time.perf_counter() - begun, 3)
        log.add(row)
        _require_finite(row, run)
        if bar is None:  # Made after the first step, whose compilation would spoil the estimate.
            tqdm.write(f"compiled, and step {number} done, in {row['seconds']:.1f} s")
            bar = tqdm(total=total, initial=number, unit="step", disable=not shown)
        else:
            bar.update()
        bar.set_postfix(loss=f"{row['loss']:.3f}", dice=f"{row['dice_metric']:.3f}")
        if number % every == 0 or number == total:
            scored = _validate(score, state, frozen, feed, key, mesh=mesh)
            if scored is not None:
                log.add(_row(number, "validation", scored, feed.facts))
                tqdm.write(
                    f"step {number}: validation loss {float(scored['loss']):.3f}, "
                    f"Dice {float(scored['hard_dice']):.3f}"
                )
            runs.save_step(run, state, variant=settings.variant, base=base)
            checkpoints.prune(run, keep=settings.keep)
            if shown:
                report.learning_curve(run / runs.CURVE, log.rows)
    if bar is not None:
        bar.close()
    return log.rows


def _begin(
    run: Path, settings: TrainConfig, optimizer: Any, *, mesh: Mesh
) -> tuple[State, dict[str, Any], str]:
    """The state to go on from, the frozen leaves, and the hash of the frozen leaves' checkpoint."""
    abstract = runs.shapes(settings.variant, mesh=mesh, rule=settings.sharding)
    policy = POLICIES[settings.trainable]

    def make(trainable: Any) -> State:
        return State(jnp.int32(0), trainable, optimizer.init(trainable))

    like = runs.abstract_state(tree.partition(abstract, policy)[0], optimizer, mesh=mesh, make=make)
    base_folder = run / runs.BASE
    if base_folder.is_dir():
        frozen = checkpoints.load(base_folder, tree.partition(abstract, policy)[1])
        base = checkpoints.sha256(base_folder / checkpoints.MANIFEST)
        state = runs.restore_state(run, like, base=base)
        if state is not None:
            return state, frozen, base
    variables = runs.initial_variables(settings, mesh=mesh)
    trainable, frozen = tree.partition(variables, policy)
    source = settings.checkpoint or "random"
    base = runs.save_base(run, frozen, variant=settings.variant, source=source)
    places = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(make, out_shardings=places)(trainable), frozen, base


def _place(batch: Batch, mesh: Mesh) -> tuple[Batch, jax.Array]:
    rows, process, count = len(batch.index), jax.process_index(), jax.process_count()
    positions = process + count * np.arange(rows, dtype=np.int32)
    return sharding.place_batch((batch, positions), mesh)


def _validate(
    score: Callable, state: State, frozen: Any, feed: Feed, key: jax.Array, *, mesh: Mesh
) -> dict[str, jax.Array] | None:
    """Averages over all validation prompts, each drawn by the image alone; None without prompts."""
    sums = None
    for batch in feed.validation():
        positions = np.maximum(batch.index, 0).astype(np.int32)
        placed, where = sharding.place_batch((batch, positions), mesh)
        part = score(state.trainable, frozen, placed, where, key, jnp.int32(0))
        sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
    return None if sums is None or not float(sums.count) else averages(sums)


def _row(step: int, split: str, means: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    values = {name: float(value) for name, value in means.items()}
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
