"""Training by rounds: a first prompt, then clicks on the errors of the mask before.

The SAM paper's algorithm (arXiv 2304.02643, appendix A, "Training algorithm"). In each round the
model is asked anew: with all clicks so far, the first box, and the raw logits of the mask before as
mask prompt. Two rounds bring no click, so that the model learns to profit from its own masks: the
last, and one at a random place before it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from pp_jax import tree
from pp_jax.finetune.losses import Terms, Wanted
from pp_jax.prompts import Marks, cell_centres, draw_cell, make_prompts
from pp_jax.sam import SamOutput
from pp_jax.types import BACKGROUND, FOREGROUND, NEUTRAL, Prompts

Params = Mapping[str, Any]
Decode = Callable[[Params, Float[Array, "B h w D"], Prompts], SamOutput]
Score = Callable[..., Terms]  # `sam_terms` of an output and what is wanted, with its `allowed`.

# Which masks answer a round: the three of an ambiguous prompt, then the one for several prompts.
_FIRST, _LATER = (False, True, True, True), (True, False, False, False)
_UNCLICKED = 3  # Rounds without a click of their own: the first, one between, and the last.


class Draws(NamedTuple):
    """The chances of the rounds on each image."""

    uniforms: Float[Array, "B N R"]  # In [0, 1); where a click falls after each round.
    pause: Int[Array, " B"]  # The round between the first and the last that brings no click.


class Task(NamedTuple):
    """What the rounds are about. No gradient reaches it."""

    frozen: Params  # Variables that decoding reads beside those that learn.
    first: Marks  # One point or a box; every field has a leading axis `B`.
    wanted: Wanted
    size: Int[Array, "B 2"]
    draws: Draws


class Asked(NamedTuple):
    """What changes from round to round."""

    points: Float[Array, "B N P 2"]
    labels: Int[Array, "B N P"]
    logits: Float[Array, "B N h w"]  # Of the mask before.


def draw_rounds(keys: Key[Array, " B"], *, objects: int, rounds: int) -> Draws:
    """The chances of so many rounds, one key per image."""

    def draw(key: Key[Array, ""]) -> Draws:
        # The first prompt's draws use the key itself, 1 and 2.
        uniform_key, pause_key = (jax.random.fold_in(key, number) for number in (3, 4))
        pause = jax.random.randint(pause_key, (), 1, rounds - 1)
        return Draws(jax.random.uniform(uniform_key, (objects, rounds)), pause)

    return jax.vmap(draw)(keys)


def make_rounds(
    decode: Decode, score: Score, *, rounds: int, side: int
) -> Callable[[Params, Float[Array, "B h w D"], Task], Terms]:
    """The function from what learns, the embedding and the task to the mean over the rounds.

    Its gradient takes the memory of one round's: each round is differentiated as soon as it was
    computed, and the gradients are summed. What a round hands on, its mask and the click on it, is
    taken as given. Dice of the hard mask is the last round's. Only `loss` has a gradient.

    Args:
      decode: From all variables that it reads.
      score: The loss of a round.
      rounds: At least 3.
      side: Of the model frame.
    """

    def begin(task: Task) -> Asked:
        targets, first = task.wanted.targets, task.first
        clicks = ((0, 0), (0, 0), (0, rounds - _UNCLICKED))
        return Asked(
            jnp.pad(first.points, (*clicks, (0, 0))),
            jnp.pad(first.labels, clicks, constant_values=NEUTRAL),
            jnp.zeros_like(targets),
        )

    def ask(
        learned: Params, embedding: Array, task: Task, asked: Asked, number: Array
    ) -> tuple[Array, tuple[Terms, Array]]:
        valid = task.wanted.valid
        prompts = make_prompts(
            points=asked.points,
            labels=asked.labels,
            boxes=task.first.boxes,
            has_box=task.first.has_box,
            masks=asked.logits,
            has_mask=valid & (number > 0),
            valid=valid,
        )
        output = decode(tree.combine(learned, task.frozen), embedding, prompts)
        allowed = jnp.where(number == 0, jnp.array(_FIRST), jnp.array(_LATER))
        terms = score(output, task.wanted, allowed=allowed)
        return terms.loss / rounds, (terms, most_trusted(output, allowed))

    def forward(learned: Params, embedding: Array, task: Task) -> tuple[Terms, Any]:
        def play(carry: tuple[Asked, Any], drawn: tuple[Array, Array]) -> tuple[Any, Terms]:
            (asked, total), (number, uniforms) = carry, drawn
            slopes, (terms, logits) = jax.grad(ask, argnums=(0, 1), has_aux=True)(
                learned, embedding, task, asked, number
            )
            slot = click_slot(number + 1, task.draws.pause, rounds=rounds)
            asked = click(asked, logits, task, uniforms, slot=slot, side=side)
            return (asked, jax.tree.map(jnp.add, total, slopes)), terms

        zeros = jax.tree.map(jnp.zeros_like, (learned, embedding))
        uniforms = jnp.moveaxis(task.draws.uniforms, -1, 0)
        (_, total), terms = jax.lax.scan(play, (begin(task), zeros), (jnp.arange(rounds), uniforms))
        means = jax.tree.map(lambda x: jnp.mean(x, axis=0), terms)
        means = means._replace(hard_dice=terms.hard_dice[-1], count=terms.count[-1])
        return means, total

    def backward(slopes: Any, cotangent: Terms) -> tuple[Any, Any, None]:
        learned, embedding = jax.tree.map(lambda x: x * cotangent.loss, slopes)
        return learned, embedding, None

    played = jax.custom_vjp(lambda *given: forward(*given)[0])
    played.defvjp(forward, backward)
    return played


def most_trusted(output: SamOutput, allowed: Bool[Array, " M"]) -> Float[Array, "B N h w"]:
    """Raw logits of the mask with the highest predicted IoU among those allowed."""
    trust = jnp.where(allowed, output.iou, -jnp.inf)
    best = jnp.argmax(trust, axis=-1)[..., None, None, None]  # B N 1 1 1
    return jnp.take_along_axis(output.logits, best, axis=2)[:, :, 0]


def click_slot(
    number: int | Int[Array, ""], pause: Int[Array, " B"], *, rounds: int
) -> Int[Array, " B"]:
    """Where among an image's points the click of a round stands; beyond all where it has none.

    The first prompt's point has slot 0, the clicks the next `rounds` - 3: the last round gets none.
    """
    return jnp.where(pause == number, rounds, number - (pause < number))


def click(
    asked: Asked,
    logits: Float[Array, "B N h w"],
    task: Task,
    uniforms: Float[Array, "B N"],
    *,
    slot: Int[Array, " B"],
    side: int,
) -> Asked:
    """The next round's prompt: with a click on a cell where mask and target differ, drawn evenly.

    Cells are those that the image covers, in raster order. A click on what the mask left out is
    foreground, on what it took in background. Without an error there is no click.
    """
    wanted = task.wanted
    target = wanted.targets > 0.5
    wrong = ((logits > 0) != target) & (wanted.cover > 0)[:, None]
    cells = jax.vmap(jax.vmap(draw_cell))(wrong, uniforms)  # B N 2
    missed = jax.vmap(jax.vmap(lambda inside, cell: inside[cell[1], cell[0]]))(target, cells)
    label = jnp.where(missed, FOREGROUND, BACKGROUND)
    label = jnp.where(jnp.any(wrong, axis=(2, 3)), label, NEUTRAL)
    stride = side / target.shape[-1]
    points = jax.vmap(lambda cell, size: cell_centres(cell, size, stride=stride))(cells, task.size)
    here = (jnp.arange(asked.labels.shape[-1]) == slot[:, None])[:, None]  # B 1 P
    return Asked(
        jnp.where(here[..., None], points[:, :, None], asked.points),
        jnp.where(here, label[..., None], asked.labels),
        logits,
    )
