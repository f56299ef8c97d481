"""The training loop: the one impure place between pure steps."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Int
from tqdm import tqdm

from pp_jax import checkpoints, sharding, tree
from pp_jax.config import TrainConfig, look_of
from pp_jax.finetune import monitor, pictures, recipe, runs, stopping
from pp_jax.finetune.embeddings import Embedder, make_embedder
from pp_jax.finetune.models import config_of
from pp_jax.finetune.step import State, averages
from pp_jax.memory import peak_memory
from pp_jax.preprocess import augment
from pp_jax.preprocess.stage import describe
from pp_jax.prompts import Purpose
from pp_jax.types import Batch

_FEWEST_BETWEEN_SAVES = 50  # Of a small data set an epoch is seconds, a checkpoint as well.


class Feed(NamedTuple):
    """Where batches come from; rows are those of this process."""

    train: Callable[[int], Iterator[Batch]]  # From a step on, without end.
    validation: Callable[[], Iterable[Batch]]  # All of it, once.
    validated: int  # Images of the validation part that have a prompt.
    epoch_steps: int
    facts: dict[str, Any]  # To stand in every row of the log.
    names: Callable[[Int[np.ndarray, " B"]], list[str]]  # Ids of training images, by `index`.
    examples: pictures.Examples
    embedded: Callable[[Embedder], "Feed"] | None = None  # The same batches with embeddings.


class Plan(NamedTuple):
    """After which steps something else is done."""

    total: int
    save: int
    picture: int | None  # None: where a checkpoint is due; 0: never.

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after the step, and a validation with it."""
        return step % self.save == 0 or step == self.total

    def is_drawn(self, step: int) -> bool:
        """Whether a picture is due after the step."""
        if self.picture is None:
            return self.is_due(step)
        return self.picture > 0 and step % self.picture == 0


class _Begun(NamedTuple):
    """Where a training goes on."""

    batches: Iterator[Batch]
    start: int  # The last step that was made.
    owed: bool  # Whether the validation after it is still to be made.
    plan: Plan


class _Judge(NamedTuple):
    """How a state is judged, and where it is told."""

    run: Path
    settings: TrainConfig
    feed: Feed
    base: str
    mesh: Mesh
    score: Callable[..., Any]  # Of a state, a batch and where its rows stand in their part.
    answer: Callable[..., pictures.Answer]  # As well.
    pictured: list[tuple[Batch, jax.Array]]
    told: monitor.Monitor


def plan_of(settings: TrainConfig, *, epoch_steps: int) -> Plan:
    """How long a training is, and after which of its steps something else is done."""
    total = settings.steps or settings.epochs * epoch_steps
    every = settings.save_every or max(epoch_steps, _FEWEST_BETWEEN_SAVES)
    return Plan(total, every, settings.pictures_every)


def fit(run: Path, settings: TrainConfig, feed: Feed, *, mesh: Mesh) -> list[dict[str, Any]]:
    """The rows of the log, after training was brought to its last step.

    Starts from the newest checkpoint in `run` that verifies, if there is one. A signal to stop ends
    it after the step that is being made, which is saved; see `stopping.on_signal`.

    Raises:
      ValueError: A batch that the devices cannot share or the data cannot fill; a service to log to
        that is not installed or does not start; early stopping with nothing to validate on.
      CheckpointError: As `runs.begin`.
      FloatingPointError: The loss or the gradient is no longer finite. Nothing of it is saved.
    """
    monitor.check(settings)
    _require_validation(settings, feed)
    plan = plan_of(settings, epoch_steps=feed.epoch_steps)
    total = plan.total
    start = runs.newest_step(run)
    log = monitor.Log(run / runs.METRICS, resumed_at=start)
    # A signal that comes with a step has it saved at once: it was not validated then.
    owed = start > 0 and plan.is_due(start) and feed.validated > 0 and not _judged(log.rows, start)
    if ended := _ended(log.rows, settings, start=start if not owed else 0, total=total):
        print(f"{run}: {ended}")
        return log.rows
    if start:
        print(f"{run}: resuming after step {start}")
    # A batch that the devices or the data do not allow is refused before weights are read.
    sharding.check_batch(settings.batch, mesh, parts=settings.accumulate)
    begun = _Begun(feed.train(start), start, owed, plan)
    # So is a service that does not start.
    with monitor.Monitor(run, settings, log, start=start, total=total) as told:
        _train(run, settings, feed, begun, told=told, mesh=mesh)
    return log.rows


def _train(
    run: Path,
    settings: TrainConfig,
    feed: Feed,
    begun: _Begun,
    *,
    told: monitor.Monitor,
    mesh: Mesh,
) -> None:
    """Training from where it begins to its last step."""
    batches, start, owed, plan = begun
    total = plan.total
    positions = sharding.place_batch(_positions(settings.batch), mesh)
    optimizer = recipe.optimizer_of(settings, steps=total)
    state, frozen, base = runs.begin(run, settings, optimizer, step=start, mesh=mesh)
    _describe(state, frozen, settings, total=total, start=start)
    images, embedded = feed.examples, None
    if feed.embedded is not None:
        variables = tree.combine(state.trainable, frozen)
        feed = feed.embedded(make_embedder(settings, variables, mesh=mesh))
        batches, embedded = feed.train(start), feed.examples
    step = jax.jit(
        recipe.step_of(settings, steps=total, mesh=mesh),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh)),
    )
    key = jax.random.key(settings.seed)
    rate = recipe.rate_of(settings, steps=total)
    score, answer = _judges(settings, frozen, key, mesh=mesh)
    drawn = settings.pictures_every != 0
    pictured = pictures.place(images, embedded, mesh=mesh) if drawn else []
    judge = _Judge(run, settings, feed, base, mesh, score, answer, pictured, told)
    with stopping.on_signal() as asked:
        if owed:
            _settle(judge, state, start, plan=plan, saved=True)
            if early := _ended(told.rows, settings, start=0, total=total):
                told.say(f"{run}: {early}")
                total = start
        batch = _load(batches, mesh)
        for number in range(start + 1, total + 1):
            before = time.perf_counter()
            index = batch.index
            state, means = step(state, frozen, batch.placed, positions, key)
            batch = _load(batches, mesh)  # While the devices compute.
            row = _row(number, "train", means, feed.facts)
            row["lr"] = float(f"{rate(number - 1) * _reduction(state):.6g}")
            row["seconds"] = round(time.perf_counter() - before, 3)
            told.step(row)
            _require_finite(row, run, names=feed.names(index))
            if asked(number):
                runs.save_step(run, state, settings=settings, base=base, last=plan.total)
                told.say(f"step {number} is saved; go on with `python train.py --resume {run}`")
                break
            _settle(judge, state, number, plan=plan)
            if number % feed.epoch_steps == 0:
                told.curve()
            if plan.is_due(number) and (early := _ended(told.rows, settings, start=0, total=total)):
                told.say(f"{run}: {early}")
                break
        told.curve(last=True)
        told.say(f"peak memory: {peak_memory()}")


def _ended(rows: list[dict[str, Any]], settings: TrainConfig, *, start: int, total: int) -> str:
    """Why nothing is to be done after a step, if so."""
    early = stopping.stopped_early(rows, patience=settings.patience)
    if early is not None:
        best = max((r for r in rows if r["split"] == "validation"), key=_dice)
        return (
            f"stopped early at step {early}: in {settings.patience} validations no Dice was above "
            f"the {best['dice_metric']:.3f} of step {best['step']}"
        )
    return f"already trained to step {start}" if start >= total else ""


def _dice(row: dict[str, Any]) -> float:
    return row["dice_metric"]


def _judged(rows: list[dict[str, Any]], step: int) -> bool:
    return any(row["step"] == step and row["split"] == "validation" for row in rows)


def _require_validation(settings: TrainConfig, feed: Feed) -> None:
    if settings.patience is not None and not feed.validated:
        raise ValueError(
            f"--patience {settings.patience}: no image of the validation part has a finding to "
            "prompt for, so nothing says when to stop; give a larger --validation, or leave "
            "--patience out"
        )


class _Loaded(NamedTuple):
    placed: Batch
    index: Int[np.ndarray, " B"]  # Of this process's rows.


def _load(batches: Iterator[Batch], mesh: Mesh) -> _Loaded:
    batch = next(batches)
    return _Loaded(sharding.place_batch(batch, mesh), batch.index)


def _positions(batch: int) -> Int[np.ndarray, " B"]:
    """Where this process's rows stand in the global batch."""
    return np.arange(jax.process_index(), batch, jax.process_count(), dtype=np.int32)


def _judges(
    settings: TrainConfig, frozen: Any, key: jax.Array, *, mesh: Mesh
) -> tuple[Callable[..., Any], Callable[..., pictures.Answer]]:
    """The functions of a state, a batch and positions that give its sums, and its masks.

    Prompts depend on the image alone, and on no key that training draws from.
    """
    everywhere = sharding.replicated(mesh)
    terms = jax.jit(
        recipe.terms_of(settings, Purpose.EVAL_PROMPT, mesh=mesh), out_shardings=everywhere
    )
    masks = jax.jit(
        pictures.make_answer(
            recipe.model_of(settings, mesh=mesh), look_of(settings), prompting=settings.prompting
        ),
        out_shardings=everywhere,
    )

    def score(state: State, batch: Batch, positions: jax.Array) -> Any:
        return terms(state.trainable, frozen, batch, positions, key, jnp.int32(0))

    def answer(state: State, batch: Batch, positions: jax.Array) -> pictures.Answer:
        return masks(state.trainable, frozen, batch, positions, key)

    return score, answer


def _settle(judge: _Judge, state: State, number: int, *, plan: Plan, saved: bool = False) -> None:
    """Validation, checkpoint, learning curve and picture, where they are due after a step.

    Raises:
      FloatingPointError: The loss of the validation is not finite; the state is not saved.
    """
    if plan.is_due(number):
        row = _validate(judge, state, number)
        if row is not None:
            judge.told.validation(row)
            _require_finite(row, judge.run, names=["the validation part"])
        if not saved:
            runs.save_step(
                judge.run, state, settings=judge.settings, base=judge.base, last=plan.total
            )
        if row is not None:
            runs.note_best(judge.run, step=number, value=row["dice_metric"])
        judge.told.curve()
        runs.write_card(judge.run, judge.settings)
    if plan.is_drawn(number):
        path = judge.run / runs.PICTURES / f"{number:08d}.png"
        answers = [jax.device_get(judge.answer(state, *batch)) for batch in judge.pictured]
        if jax.process_index() == 0:
            pictures.draw(path, answers, judge.feed.examples, step=number)
        judge.told.picture(path, step=number)


def _validate(judge: _Judge, state: State, number: int) -> dict[str, Any] | None:
    """The row of averages over all validation prompts; None without prompts."""
    if not judge.feed.validated:
        return None
    sums, hidden = None, jax.process_index() > 0
    # Shown where it lasts: one image of `vit_h` is half a minute on a CPU.
    shown = tqdm(
        judge.feed.validation(),
        desc="validating",
        unit="batch",
        leave=False,
        delay=2,
        disable=hidden,
    )
    for batch in shown:
        positions = np.maximum(batch.index, 0).astype(np.int32)
        part = judge.score(state, *sharding.place_batch((batch, positions), judge.mesh))
        sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
    return _row(number, "validation", averages(sums), judge.feed.facts)


def _row(step: int, split: str, means: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    values = {name: float(value) for name, value in jax.device_get(means).items()}
    values["dice_metric"] = values.pop("hard_dice")
    return {"step": step, "split": split, **values, **facts}


def _reduction(state: State) -> float:
    """What a plateau has made of the learning rate so far: a factor."""

    def is_plateau(node: Any) -> bool:
        return isinstance(node, optax.contrib.ReduceLROnPlateauState)

    nodes = jax.tree.leaves(state.optimizer, is_leaf=is_plateau)
    return math.prod(float(node.scale) for node in nodes if is_plateau(node))


def _require_finite(row: dict[str, Any], run: Path, *, names: list[str]) -> None:
    wrong = {
        name.replace("_", " "): value
        for name, value in row.items()
        if name.split("/")[0] in ("loss", "gradient_norm") and not math.isfinite(value)
    }
    if wrong:
        told = ", ".join(f"the {name} is {value}" for name, value in wrong.items())
        kept, begin = "there is no checkpoint before it", "start anew with"
        if checkpoints.steps(run):
            kept = "the checkpoints before it are kept"
            begin = f"start from what is kept with `--init {run}`,"
        raise FloatingPointError(
            f"{run}: {told} at step {row['step']}, on {', '.join(names)}. Nothing of that step is "
            f"saved, and {kept}. Look at these images; or {begin} another --out and a lower --lr, "
            "or --dtype float32"
        )


def _describe(state: State, frozen: Any, settings: TrainConfig, *, total: int, start: int) -> None:
    trained, fixed = (
        sum(x.size for x in jax.tree.leaves(leaves)) for leaves in (state.trainable, frozen)
    )
    print(
        f"{settings.variant}: {trained:,} parameters trained ({settings.trainable}), "
        f"{fixed:,} frozen; steps {start + 1} to {total}, {settings.batch} images each"
    )
    side = config_of(settings.variant, settings.image_size).image_size
    print(describe(look_of(settings), side=side))
    if augment.parse(settings.augment):
        print(f"augmented, in training alone: {augment.canonical(settings.augment)}")
