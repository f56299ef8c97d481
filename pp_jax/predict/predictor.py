"""Encode once, decode many: masks of any prompts on one image, in its original frame."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from pp_jax.preprocess import geometry
from pp_jax.prompts import make_prompts
from pp_jax.sam import Sam, SamOutput
from pp_jax.types import FOREGROUND, Prompts

_CANVAS = 256  # Original sizes are rounded up to it: few compilations for many sizes.
_SLOTS = 4  # So are the numbers of prompts.


class Marked(NamedTuple):
    """What is marked on one image, original frame: `N` boxes, or `N` single clicks, or neither.

    With neither, `N` is 1: the model is asked for the one object that it finds.
    """

    boxes: Float[np.ndarray, "N 4"]
    points: Float[np.ndarray, "N 2"]


class Masks(NamedTuple):
    """The masks of one image's prompts, original frame."""

    masks: Bool[np.ndarray, "N H W"]
    iou: Float[np.ndarray, " N"]  # Predicted, not clipped.


def embed(
    model: Sam,
    variables: Mapping[str, Any],
    image: UInt8[Array, "B S S 3"],
    size: Int[Array, "B 2"],
    *,
    stage: Callable,
) -> Float[Array, "B h w D"]:
    """The embedding of padded images, after their preprocessing by `stage`."""
    return model.apply(variables, stage(image, size), method="encode")


def predict(
    model: Sam,
    variables: Mapping[str, Any],
    embedding: Float[Array, "B h w D"],
    prompts: Prompts,
) -> SamOutput:
    """All masks of all prompts, low resolution, model frame."""
    return model.apply(variables, embedding, prompts, method="decode")


def make_segment(
    model: Sam, variables: Mapping[str, Any], *, stage: Callable
) -> Callable[[UInt8[np.ndarray, "H W 3"], Marked], Masks]:
    """A function from an image of any size and its marks to one mask per mark.

    Of the three masks of a prompt it takes the one with the highest predicted IoU. It compiles for
    each multiple of 256 of the image's sides and of 4 of the number of marks.
    """
    side = model.config.image_size

    @partial(jax.jit, static_argnames="canvas")
    def run(
        variables: Mapping[str, Any],
        image: UInt8[Array, "1 S S 3"],
        size: Int[Array, "1 2"],
        original: Int[Array, "2"],
        prompts: Prompts,
        canvas: tuple[int, int],
    ) -> tuple[Bool[Array, "N H W"], Float[Array, " N"]]:
        embedding = embed(model, variables, image, size, stage=stage)
        best = predict(model, variables, embedding, prompts).three().best()

        def up(logits: Float[Array, "1 h w"]) -> Bool[Array, "H W"]:
            # One prompt at a time: a 3000-pixel film with four objects would fill a laptop.
            return (
                geometry.postprocess_masks(
                    logits, side=side, size=size[0], original=original, canvas=canvas
                )[0]
                > 0
            )

        return jax.lax.map(up, best.logits[0]), best.iou[0, :, 0]

    def segment(image: UInt8[np.ndarray, "H W 3"], marked: Marked) -> Masks:
        height, width = image.shape[:2]
        resized = geometry.resize_image(image, longest=side)
        size = resized.shape[:2]
        prompts, count = _to_prompts(marked, original=(height, width), resized=size, model=model)
        canvas = tuple(-(-length // _CANVAS) * _CANVAS for length in (height, width))
        masks, iou = run(
            variables,
            geometry.pad_square(resized, side=side)[None],
            np.array([size], np.int32),
            np.array([height, width], np.int32),
            prompts,
            canvas,
        )
        return Masks(np.asarray(masks[:count, :height, :width]), np.asarray(iou[:count]))

    return segment


def _to_prompts(
    marked: Marked, *, original: tuple[int, int], resized: tuple[int, int], model: Sam
) -> tuple[Prompts, int]:
    count = max(len(marked.boxes), len(marked.points), 1)
    slots = -(-count // _SLOTS) * _SLOTS
    valid = jnp.asarray(np.arange(slots)[None] < count)

    def padded(x: np.ndarray) -> Array:
        return jnp.asarray(np.pad(x, ((0, slots - count), (0, 0)))[None])

    frames = {"original": original, "resized": resized}
    marks: dict[str, Any] = {}
    if len(marked.boxes):
        marks["boxes"] = padded(geometry.boxes_to_model(marked.boxes, **frames))
    if len(marked.points):
        points = padded(geometry.points_to_model(marked.points, **frames))[:, :, None]
        marks |= {"points": points, "labels": jnp.full(points.shape[:3], FOREGROUND)}
    return make_prompts(**marks, valid=valid, mask_side=model.config.mask_side), count
