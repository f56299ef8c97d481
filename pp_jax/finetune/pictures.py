"""Pictures of what a training predicts: the same few images and prompts each time."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from pp_jax import sharding, tree
from pp_jax.config import Look
from pp_jax.evaluate.overlays import Case, overlay_sheet
from pp_jax.finetune.step import embedding_of
from pp_jax.preprocess.stage import make_shown, make_stage
from pp_jax.prompts import PROMPTINGS, Purpose, example_keys, sample_prompts
from pp_jax.sam import Sam
from pp_jax.types import BOTTOM_RIGHT, FOREGROUND, TOP_LEFT, Batch

COUNT = 6  # Images in a picture.


class Examples(NamedTuple):
    """The images that are drawn; rows of batches are those of this process."""

    part: str  # Of the split.
    ids: Sequence[str]
    rows: Sequence[int]  # Where they stand in the part: a validation prompts them the same.
    batches: Callable[[], Iterable[Batch]]  # All of them once; `index` counts in `ids`.


class Answer(NamedTuple):
    """A batch with what the model answers, at low resolution, in cells from the top left."""

    index: Int[Array, " B"]
    image: UInt8[Array, "B h w 3"]  # As SAM sees it.
    size: Int[Array, "B 2"]  # Cells with a pixel of the image.
    targets: Bool[Array, "B N h w"]
    masks: Bool[Array, "B N h w"]
    points: Float[Array, "B N P 2"]  # The prompts.
    labels: Int[Array, "B N P"]
    valid: Bool[Array, "B N"]


def make_answer(model: Sam, look: Look, *, prompting: str) -> Callable[..., Answer]:
    """The function `(trainable, frozen, batch, positions, key) -> Answer`.

    Prompts are those of a validation, and of the masks it is the one that the model would choose.
    """
    side, first = model.config.image_size, PROMPTINGS[prompting].first
    stage, shown = make_stage(look, side=side), make_shown(look)

    def answer(
        trainable: Any,
        frozen: Any,
        batch: Batch,
        positions: Int[Array, " B"],
        key: Key[Array, ""],
    ) -> Answer:
        keys = example_keys(
            key, purpose=Purpose.EVAL_PROMPT, step=jnp.int32(0), positions=positions
        )
        prompts = sample_prompts(
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
        output = model.apply(variables, embedding, prompts, method="decode").three().best()
        cells = batch.targets.shape[-1]
        pixels = side // cells
        levels = jax.vmap(shown, in_axes=(0, 0, None))(
            batch.image, batch.size, variables.get("fusion")
        )
        blocks = levels.reshape(-1, cells, pixels, cells, pixels, 3).mean((2, 4), jnp.float32)
        return Answer(
            batch.index,
            jnp.clip(jnp.round(blocks), 0, 255).astype(jnp.uint8),
            -(-batch.size // pixels),
            batch.targets > 0.5,
            output.logits[:, :, 0] > 0,
            prompts.points / pixels,
            prompts.labels,
            batch.valid,
        )

    return answer


def place(
    examples: Examples, embedded: Examples | None, *, mesh: Mesh
) -> list[tuple[Batch, Array]]:
    """The examples on the devices, each batch with where its rows stand in their part.

    Args:
      examples: With images.
      embedded: The same with embeddings, if there are any: then the encoder is not run.
      mesh: The devices.
    """
    batches = list(examples.batches())
    if embedded is not None:
        pairs = zip(batches, embedded.batches(), strict=True)
        batches = [batch._replace(features=other.features) for batch, other in pairs]
    rows = np.append(np.asarray(examples.rows, np.int32), 0)  # The last is for padding, at -1.
    return [sharding.place_batch((batch, rows[batch.index]), mesh) for batch in batches]


def draw(path: Path, answers: Iterable[Answer], examples: Examples, *, step: int) -> None:
    """Write a PNG of all examples: image, prompts, target and prediction, and their Dice.

    Of an image with several objects all are drawn, and the Dice is that of their union.
    """
    cases = []
    for answer in answers:
        rows = zip(*map(np.asarray, answer), strict=True)
        cases += [_case(Answer(*row), examples.ids) for row in rows if row[0] >= 0]
    known = "" if examples.part == "validation" else "; no validation image has a prompt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # What matplotlib would have otherwise is no reason to end a training.
        warnings.filterwarnings("ignore", module="matplotlib")
        overlay_sheet(path, {"": cases}, title=f"step {step}, {examples.part} images{known}")


def _case(one: Answer, ids: Sequence[str]) -> Case:
    """The case of an answer without its `B`."""
    height, width = one.size
    # Objects that are none have neither marks nor masks.
    points, labels = one.points[one.valid], one.labels[one.valid]
    boxed = (labels == TOP_LEFT).any(-1)
    corners = [points[boxed][labels[boxed] == label] for label in (TOP_LEFT, BOTTOM_RIGHT)]
    clicks = (labels >= 0) & (labels <= FOREGROUND)
    return Case(
        title=ids[int(one.index)],
        image=one.image[:height, :width],
        target=one.targets[one.valid].any(0)[:height, :width],
        predictions={"prediction": one.masks[one.valid].any(0)[:height, :width]},
        boxes=np.concatenate(corners, axis=-1),
        points=points[clicks],
        labels=labels[clicks],
    )
