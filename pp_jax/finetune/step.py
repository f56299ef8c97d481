"""One optimizer step, and one validation batch, as pure functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from pp_jax import tree
from pp_jax.finetune.losses import Terms, sam_terms
from pp_jax.preprocess.augment import Row, augment
from pp_jax.preprocess.geometry import coverage
from pp_jax.prompts import Purpose, example_keys, sample_prompts
from pp_jax.sam import Sam
from pp_jax.types import Batch

Params = Mapping[str, Any]


class State(NamedTuple):
    """What training changes."""

    step: Int[Array, ""]
    trainable: Params
    optimizer: optax.OptState


def make_terms(
    model: Sam,
    stage: Callable,
    *,
    prompt: str,
    purpose: Purpose,
    weights: Mapping[str, float],
    chain: Sequence[Row] = (),
) -> Callable[..., Terms]:
    """The function from variables and a batch to the loss's sums; see `sam_terms`.

    It takes the trainable and the frozen tree, the batch, each row's position in the global batch,
    the run's key and the step. Examples are augmented by the `chain`, and prompts are drawn from
    what comes of it; both depend on these alone.
    """
    side = model.config.image_size

    def terms(
        trainable: Params,
        frozen: Params,
        batch: Batch,
        positions: Int[Array, " B"],
        key: Key[Array, ""],
        step: Int[Array, ""],
    ) -> Terms:
        if chain:
            keys = example_keys(key, purpose=Purpose.AUGMENT, step=step, positions=positions)
            batch = augment(keys, batch, chain=chain)
        keys = example_keys(key, purpose=purpose, step=step, positions=positions)
        prompts = sample_prompts(
            prompt,
            keys,
            targets=batch.targets,
            boxes=batch.boxes,
            valid=batch.valid,
            size=batch.size,
            side=side,
        )
        variables = tree.combine(trainable, frozen)
        if batch.features is None:
            shown = stage(batch.image, batch.size, variables.get("fusion"))
            output = model.apply(variables, shown, prompts)
        else:
            features = batch.features.astype(jnp.float32)
            output = model.apply(variables, features, prompts, method="decode")
        cover = jax.vmap(lambda size: coverage(size, side=side))(batch.size)
        return sam_terms(output.three(), batch.targets, cover, batch.valid, weights=weights)

    return terms


def averages(sums: Terms) -> dict[str, Array]:
    """Means over prompts; zeros where no prompt was valid."""
    count = jnp.maximum(sums.count, 1.0)
    return {name: value / count for name, value in sums._asdict().items() if name != "count"}


def make_step(terms: Callable[..., Terms], optimizer: optax.GradientTransformation) -> Callable:
    """The function `(state, frozen, batch, positions, key) -> (state, averages)`.

    The gradient is that of the mean over all valid prompts of the global batch.
    """

    def loss(trainable: Params, *rest: Any) -> tuple[Array, Terms]:
        sums = terms(trainable, *rest)
        return sums.loss / jnp.maximum(sums.count, 1.0), sums

    def step(
        state: State,
        frozen: Params,
        batch: Batch,
        positions: Int[Array, " B"],
        key: Key[Array, ""],
    ) -> tuple[State, dict[str, Array]]:
        gradient, sums = jax.grad(loss, has_aux=True)(
            state.trainable, frozen, batch, positions, key, state.step
        )
        updates, inner = optimizer.update(gradient, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        means = averages(sums) | {"gradient_norm": optax.tree.norm(gradient)}
        return State(state.step + 1, trainable, inner), means

    return step
