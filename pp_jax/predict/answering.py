"""From questions about an image to its masks and their scores, in its original frame."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from pp_jax.predict.automatic import AutomaticConfig, generate
from pp_jax.predict.marks import Ask, Question
from pp_jax.predict.masks import stability_score
from pp_jax.predict.official import LoadedSam, SamPredictor
from pp_jax.predict.refine import refine
from pp_jax.predict.writing import Found, embedding_file, read_embedding, write_embedding
from pp_jax.preprocess import filters, geometry
from pp_jax.preprocess.stage import make_stage

_STABILITY_OFFSET = 1.0  # In logits, as in the official automatic mask generator.

Image = UInt8[np.ndarray, "H W 3"]
Segment = Callable[[str, Image], list[Found]]  # Of an image's name and pixels.


def make_prompted(
    sam: LoadedSam,
    asks: Mapping[str, Ask],
    *,
    multimask: bool,
    steps: Sequence[str],
    kept: Callable[[Image], Path] | None,
    counts: Counter,
) -> Segment:
    """The objects that were marked on an image.

    Args:
      sam: The model.
      asks: The questions about each image, by name.
      multimask: Of the model's three masks the one it scores highest; else its single mask.
      steps: Refinements.
      kept: The file that keeps an image's embedding; None: none is kept.
      counts: Counts embeddings as `reused` or `computed`.
    """
    predictor = SamPredictor(sam)
    side = sam.model.config.image_size

    def segment(name: str, image: Image) -> list[Found]:
        questions = asks[name](image.shape[:2], side)
        if questions:
            reused = _embed(predictor, image, file=None if kept is None else kept(image))
            counts["reused" if reused else "computed"] += 1
        return [
            answer(predictor, image, question, multimask=multimask, steps=steps)
            for question in questions
        ]

    return segment


def answer(
    predictor: SamPredictor,
    image: Image,
    question: Question,
    *,
    multimask: bool,
    steps: Sequence[str],
) -> Found:
    """The refined mask of one object, with the scores of the mask before its refinement."""
    logits, iou, _ = predictor.predict(
        question.points,
        question.labels,
        question.box,
        None if question.mask is None else question.mask[None],
        multimask_output=multimask,
        return_logits=True,
    )
    best = int(np.argmax(iou))
    stability = float(stability_score(logits[best], offset=_STABILITY_OFFSET))
    return Found(question, refine(steps, logits[best], image), float(iou[best]), stability)


def make_automatic(sam: LoadedSam, config: AutomaticConfig, *, steps: Sequence[str]) -> Segment:
    """All objects that a grid of points finds on an image.

    A binary mask has no logits: refinements see +1 and -1.
    """
    side = sam.model.config.image_size
    stage = make_stage(sam.look, side=side)

    def segment(name: str, image: Image) -> list[Found]:
        del name
        return [
            Found(
                Question("auto"),
                refine(steps, 2 * one["segmentation"].astype(np.float32) - 1, image),
                one["predicted_iou"],
                one["stability_score"],
            )
            for one in generate(sam.model, sam.variables, image, config, stage=stage)
        ]

    return segment


def embedding_path(folder: Path, sam: LoadedSam, *, weights: str) -> Callable[[Image], Path]:
    """The file that keeps an image's embedding, under a hash of the pixels and all that made it.

    Args:
      folder: Of saved embeddings.
      sam: The model with its filter.
      weights: Hash of the weights.
    """
    facts: dict[str, Any] = {
        "weights": weights,
        **dataclasses.asdict(sam.look),
        "filter": filters.canonical(sam.look.filter),
        "image_size": sam.model.config.image_size,
    }
    return lambda image: embedding_file(folder, image, facts=facts)


def _embed(predictor: SamPredictor, image: Image, *, file: Path | None) -> bool:
    """Whether the embedding that the predictor now holds was a saved one."""
    config, size = predictor.sam.model.config, image.shape[:2]
    shape = (1, config.grid, config.grid, config.out_dim)
    saved = None if file is None else read_embedding(file, shape=shape)
    if saved is None:
        predictor.set_image(image)
        if file is not None:
            write_embedding(file, np.asarray(predictor.features))
        return False
    predictor.features = jnp.asarray(saved)
    predictor.original_size = size
    predictor.input_size = geometry.resized_shape(
        *size, longest=config.image_size, fit=predictor.transform.fit
    )
    predictor.is_image_set = True
    return True
