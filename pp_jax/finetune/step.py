"""One optimizer step, and one validation batch, as pure functions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from pp_jax import tree
from pp_jax.finetune.iterative import Task, draw_rounds, make_rounds
from pp_jax.finetune.losses import Terms, Wanted, sam_terms
from pp_jax.preprocess.augment import Row, augment
from pp_jax.preprocess.geometry import coverage
from pp_jax.prompts import PROMPTINGS, Purpose, example_keys, make_prompts, sample_marks
from pp_jax.sam import Sam, SamOutput
from pp_jax.types import Batch, Prompts

Params = Mapping[str, Any]

_DECODERS = ("prompt_encoder", "mask_decoder")


class State(NamedTuple):
    """What training changes."""

    step: Int[Array, ""]
    trainable: Params
    optimizer: optax.OptState


def make_terms(
    model: Sam,
    stage: Callable,
    *,
    prompting: str,
    purpose: Purpose,
    weights: Mapping[str, float],
    best_mask: str = "lowest-loss",
    rounds: int = 1,
    chain: Sequence[Row] = (),
) -> Callable[..., Terms]:
    """The function from variables and a batch to the loss's sums; see `sam_terms`.

    It takes the trainable and the frozen tree, the batch, each row's position in the global batch,
    the run's key and the step. Examples are augmented by the `chain`, and prompts are drawn from
    what comes of it; both depend on these alone.

    Args:
      model: Encodes what the stage makes of images, and decodes.
      stage: From images and their sizes to what the model is shown.
      prompting: A row of `PROMPTINGS`.
      purpose: Of the prompts' draws.
      weights: Of the losses.
      best_mask: Which mask takes the gradient.
      rounds: How often a prompting with clicks asks; with 1 its first prompt is all.
      chain: Augmentations.
    """
    side = model.config.image_size
    first, clicks, _ = PROMPTINGS[prompting]
    score = partial(sam_terms, weights=weights, best_mask=best_mask)

    def decode(variables: Params, embedding: Array, prompts: Prompts) -> SamOutput:
        return model.apply(variables, embedding, prompts, method="decode")

    play = make_rounds(decode, score, rounds=rounds, side=side)

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
        marks = sample_marks(
            first,
            keys,
            targets=batch.targets,
            boxes=batch.boxes,
            valid=batch.valid,
            size=batch.size,
            side=side,
        )
        variables = tree.combine(trainable, frozen)
        embedding = embedding_of(model, stage, variables, batch)
        wanted = wanted_of(batch, side=side, image=bool(weights.get("affinity")))
        if clicks and rounds > 1:
            draws = draw_rounds(keys, objects=batch.valid.shape[1], rounds=rounds)
            learned, fixed = (read_by_decoder(variables) for variables in (trainable, frozen))
            return play(learned, embedding, Task(fixed, marks, wanted, batch.size, draws))
        prompts = make_prompts(**marks._asdict(), valid=batch.valid)
        return score(decode(variables, embedding, prompts).three(), wanted)

    return terms


def embedding_of(
    model: Sam, stage: Callable, variables: Params, batch: Batch
) -> Float[Array, "B h w D"]:
    """The batch's embedding, computed of what the `stage` makes of its images if it brings none."""
    if batch.features is not None:
        return batch.features.astype(jnp.float32)
    shown = stage(batch.image, batch.size, variables.get("fusion"))
    return model.apply(variables, shown, method="encode")


def read_by_decoder(variables: Params) -> Params:
    """The variables of prompt encoder and mask decoder: masks follow from them and an embedding."""
    flat = tree.flatten(variables)
    return tree.unflatten({path: x for path, x in flat.items() if path.split("/")[1] in _DECODERS})


def wanted_of(batch: Batch, *, side: int, image: bool = False) -> Wanted:
    """What the masks of a batch on canvases of `side` should be, with the `image` if asked for.

    A cell's colour is the mean of its pixels in the image. A batch of embeddings has no image.
    """
    cells = batch.targets.shape[-1]
    cover = jax.vmap(lambda size: coverage(size, side=side))(batch.size)
    wanted = Wanted(batch.targets, cover, batch.valid, batch.boxes * (cells / side))
    if not image or batch.features is not None:
        return wanted
    pixels = side // cells
    blocks = batch.image.reshape(-1, cells, pixels, cells, pixels, 3)
    # Pixels beyond the image are 0: the sum is that of the pixels within.
    share = jnp.where(cover > 0, cover, 1.0)[..., None]
    return wanted._replace(image=jnp.mean(blocks, (2, 4), dtype=jnp.float32) / share)


def averages(sums: Terms) -> dict[str, Array]:
    """Means over images with a valid prompt; zeros where there is none."""
    count = jnp.maximum(sums.count, 1.0)
    return {name: value / count for name, value in sums._asdict().items() if name != "count"}


def make_step(
    terms: Callable[..., Terms], optimizer: optax.GradientTransformation, *, accumulate: int = 1
) -> Callable:
    """The function `(state, frozen, batch, positions, key) -> (state, averages)`.

    The gradient is that of the mean over the global batch's images with a valid prompt. With
    `accumulate` it is the sum over as many parts of the batch, computed one after the other.
    """

    def loss(trainable: Params, *rest: Any) -> tuple[Array, Terms]:
        sums = terms(trainable, *rest)
        return sums.loss, sums

    slopes = jax.grad(loss, has_aux=True)

    def in_parts(trainable: Params, frozen: Params, batch: Batch, positions: Array, *rest: Any):
        def add(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
            own = slopes(trainable, frozen, *part, *rest)
            return jax.tree.map(jnp.add, total, own), None

        parts = jax.tree.map(lambda x: _parts(x, accumulate), (batch, positions))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(slopes, trainable, frozen, *first, *rest)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    def step(
        state: State,
        frozen: Params,
        batch: Batch,
        positions: Int[Array, " B"],
        key: Key[Array, ""],
    ) -> tuple[State, dict[str, Array]]:
        run = in_parts if accumulate > 1 else slopes
        gradient, sums = run(state.trainable, frozen, batch, positions, key, state.step)
        # Divided once, by the count of all parts: a part without prompts must not weigh as much.
        count = jnp.maximum(sums.count, 1.0)
        gradient = jax.tree.map(lambda x: x / count, gradient)
        means = averages(sums)
        updates, inner = optimizer.update(
            gradient, state.optimizer, state.trainable, value=means["loss"]
        )
        trainable = optax.apply_updates(state.trainable, updates)
        return State(state.step + 1, trainable, inner), means | norms(gradient)

    return step


def _parts(x: Array, count: int) -> Array:
    """Rows in `count` parts, each of which has its share of every device's rows."""
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def norms(gradient: Params) -> dict[str, Array]:
    """The gradient's norm, and that of each part of the model under `gradient_norm/PART`."""
    groups: dict[str, list[Array]] = {}
    for path, leaf in tree.flatten(gradient).items():
        names = path.split("/")
        part = names[1] if names[0] == "params" else names[0]
        groups.setdefault(part, []).append(leaf)
    own = {f"gradient_norm/{part}": optax.tree.norm(leaves) for part, leaves in groups.items()}
    return {"gradient_norm": optax.tree.norm(gradient)} | own
