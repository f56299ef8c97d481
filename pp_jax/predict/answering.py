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
from pp_jax.predict.ensemble import mean
from pp_jax.predict.marks import Ask, Question
from pp_jax.predict.masks import stability_score
from pp_jax.predict.official import LoadedSam, SamPredictor
from pp_jax.predict.refine import refine
from pp_jax.predict.writing import Found, embedding_file, read_embedding, write_embedding
from pp_jax.preprocess import filters, geometry, roi
from pp_jax.preprocess.stage import make_stage

_STABILITY_OFFSET = 1.0  # In logits, as in the official automatic mask generator.

Image = UInt8[np.ndarray, "H W 3"]
Segment = Callable[[str, Image], list[Found]]  # Of an image's name and pixels.


def make_prompted(
    members: Sequence[LoadedSam],
    asks: Mapping[str, Ask],
    *,
    multimask: bool,
    steps: Sequence[str],
    kept: Sequence[Callable[[Image], Path]],
    counts: Counter,
) -> Segment:
    """The objects that were marked on an image.

    The model, or each of those that are averaged, sees what the look's region of interest cuts out:
    of the image once, or anew around each box. Refinements see the same; then the mask is pasted
    back. The function raises ValueError for a mark that lies outside of it, and for a mask prompt.

    Args:
      members: The model, or several that `ensemble.require_alike` accepts.
      asks: The questions about each image, by name.
      multimask: Of the model's three masks the one it scores highest; else its single mask.
      steps: Refinements.
      kept: Of each member the file that keeps an image's embedding; empty: none is kept, as there
        is no single one where each box is cut out for itself.
      counts: Counts embeddings as `reused` or `computed`.
    """
    region = roi.make(members[0].look.roi)
    predictors = [
        SamPredictor(sam._replace(look=dataclasses.replace(sam.look, roi="none")))
        for sam in members
    ]
    side = members[0].model.config.image_size

    def segment(name: str, image: Image) -> list[Found]:
        files = [file(image) for file in kept] or [None] * len(members)
        size, found, shown = image.shape[:2], [], None
        questions = asks[name](size, side)
        windows = _windows(region, image, questions)
        moved = [_within(q, w, size=size) for q, w in zip(questions, windows, strict=True)]
        for question, inner, window in zip(questions, moved, windows, strict=True):
            part = roi.crop(image, window)
            if window != shown:
                for predictor, file in zip(predictors, files, strict=True):
                    reused = _embed(predictor, part, file=file)
                    counts["reused" if reused else "computed"] += 1
                shown = window
            one = answer(predictors, part, inner, multimask=multimask, steps=steps)
            mask = roi.paste(one.mask, window, size=size)
            found.append(one._replace(question=question, mask=mask))
        return found

    return segment


def _windows(region: roi.Roi, image: Image, questions: Sequence[Question]) -> list[roi.Window]:
    if region.per == "box":
        return [region.window(image, question.box) for question in questions]
    return [region.window(image, None)] * len(questions)


def _within(question: Question, window: roi.Window, *, size: tuple[int, int]) -> Question:
    """The question in the window's frame, of an image of `size`; a box is clipped to it."""
    if window.size == size:
        return question
    shown = f"of which the model is shown {window}: give another --roi"
    if question.mask is not None:
        raise ValueError(f"a mask prompt lies in the frame of the whole image, {shown}")
    if question.points is not None:
        outside = ~roi.holds(question.points, window)
        if outside.any():
            x, y = question.points[outside.argmax()]
            raise ValueError(f"point ({x:g}, {y:g}) lies in a part of the image, {shown}")
        question = question._replace(points=roi.to_window(question.points, window))
    if question.box is not None:
        if not roi.meets(question.box, window):
            raise ValueError(f"box {question.box.tolist()} lies in a part of the image, {shown}")
        box = roi.clip_boxes(roi.to_window(question.box, window), size=window.size)
        question = question._replace(box=box)
    return question


def answer(
    predictors: Sequence[SamPredictor],
    image: Image,
    question: Question,
    *,
    multimask: bool,
    steps: Sequence[str],
) -> Found:
    """The refined mask of one object, with the scores of the mask before its refinement.

    Of several predictors, logits and predicted IoU are averaged before a mask is chosen. Scaling up
    is linear: the mean of logits that are scaled up is the mean of the low ones, scaled up.
    """
    each = [
        predictor.predict(
            question.points,
            question.labels,
            question.box,
            None if question.mask is None else question.mask[None],
            multimask_output=multimask,
            return_logits=True,
        )
        for predictor in predictors
    ]
    iou = mean([scores for _, scores, _ in each])
    best = int(np.argmax(iou))
    logits = mean([masks[best] for masks, _, _ in each])
    stability = float(stability_score(logits, offset=_STABILITY_OFFSET))
    return Found(question, refine(steps, logits, image), float(iou[best]), stability)


def make_automatic(sam: LoadedSam, config: AutomaticConfig, *, steps: Sequence[str]) -> Segment:
    """All objects that a grid of points finds in what the look's region of interest cuts out.

    A binary mask has no logits: refinements see +1 and -1. The function raises ValueError for a
    region that needs boxes.
    """
    region = roi.make(sam.look.roi)
    side = sam.model.config.image_size
    stage = make_stage(sam.look, side=side)

    def segment(name: str, image: Image) -> list[Found]:
        del name
        window = region.window(image, None)
        part = roi.crop(image, window)
        found = []
        for one in generate(sam.model, sam.variables, part, config, stage=stage):
            mask = refine(steps, 2 * one["segmentation"].astype(np.float32) - 1, part)
            whole = roi.paste(mask, window, size=image.shape[:2])
            scores = (one["predicted_iou"], one["stability_score"])
            found.append(Found(Question("auto"), whole, *scores))
        return found

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
        "roi": str(roi.parse(sam.look.roi)),
        "image_size": sam.model.config.image_size,
        "dtype": jnp.dtype(sam.model.dtype).name,
    }
    return lambda image: embedding_file(folder, image, facts=facts)


def _embed(predictor: SamPredictor, image: Image, *, file: Path | None) -> bool:
    """Whether the embedding that the predictor now holds was a saved one."""
    if file is None:
        predictor.set_image(image)
        return False
    config, size = predictor.sam.model.config, image.shape[:2]
    saved = read_embedding(file, shape=(1, config.grid, config.grid, config.out_dim))
    if saved is None:
        predictor.set_image(image)
        write_embedding(file, np.asarray(predictor.features))
        return False
    predictor.features = jnp.asarray(saved)
    predictor.original_size = size
    predictor.input_size = geometry.resized_shape(
        *size, longest=config.image_size, fit=predictor.transform.fit
    )
    predictor.is_image_set = True
    return True
