"""Encode once, decode many: masks of any prompts on one image, in its original frame."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from pp_jax.preprocess import geometry
from pp_jax.preprocess import roi as regions
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


Segment = Callable[[UInt8[np.ndarray, "H W 3"], Marked], Masks]


def embed(
    model: Sam,
    variables: Mapping[str, Any],
    image: UInt8[Array, "B S S 3"],
    size: Int[Array, "B 2"],
    *,
    stage: Callable,
) -> Float[Array, "B h w D"]:
    """The embedding of padded images, after their preprocessing by `stage`."""
    shown = stage(image, size, variables.get("fusion"))
    return model.apply(variables, shown, method="encode")


def predict(
    model: Sam,
    variables: Mapping[str, Any],
    embedding: Float[Array, "B h w D"],
    prompts: Prompts,
) -> SamOutput:
    """All masks of all prompts, low resolution, model frame."""
    return model.apply(variables, embedding, prompts, method="decode")


def make_segment(
    model: Sam,
    variables: Mapping[str, Any],
    *,
    stage: Callable,
    fit: geometry.Fit = "longest",
    roi: str = "none",
) -> Segment:
    """A function from an image of any size and its marks to one mask per mark.

    Of the three masks of a prompt it takes the one with the highest predicted IoU. The model is
    compiled for each multiple of 4 of the number of marks, whatever the image's size; the upscaling
    alone, within a second, for each multiple of 256 of the image's sides.

    Args:
      model: SAM.
      variables: Its weights.
      stage: From images to the model's input.
      fit: How an image is brought to the model's side.
      roi: A spec of `pp_jax.preprocess.roi.ROIS`: what is cut out before, see `zoomed`.

    Raises:
      ValueError: A wrong spec.
    """
    side = model.config.image_size

    @jax.jit
    def answer(
        variables: Mapping[str, Any],
        image: UInt8[Array, "1 S S 3"],
        size: Int[Array, "1 2"],
        prompts: Prompts,
    ) -> tuple[Float[Array, "N h w"], Float[Array, " N"]]:
        embedding = embed(model, variables, image, size, stage=stage)
        best = predict(model, variables, embedding, prompts).three().best()
        return best.logits[0, :, 0], best.iou[0, :, 0]

    @partial(jax.jit, static_argnames="canvas")
    def to_original(
        logits: Float[Array, "h w"],
        size: Int[Array, "2"],
        original: Int[Array, "2"],
        canvas: tuple[int, int],
    ) -> Bool[Array, "H W"]:
        # One mask at a time: a 3000-pixel film with four objects would fill a laptop.
        frame = geometry.postprocess_masks(
            logits[None], side=side, size=size, original=original, canvas=canvas
        )
        return frame[0] > 0

    def segment(image: UInt8[np.ndarray, "H W 3"], marked: Marked) -> Masks:
        height, width = image.shape[:2]
        resized = geometry.resize_image(image, longest=side, fit=fit)
        size, original = np.array(resized.shape[:2]), np.array([height, width])
        prompts, count = _to_prompts(
            marked, original=(height, width), resized=resized.shape[:2], model=model
        )
        logits, iou = answer(
            variables, geometry.pad_square(resized, side=side)[None], size[None], prompts
        )
        canvas = tuple(-(-length // _CANVAS) * _CANVAS for length in (height, width))
        masks = [np.asarray(to_original(logits[i], size, original, canvas)) for i in range(count)]
        return Masks(np.stack(masks)[:, :height, :width], np.asarray(iou[:count]))

    return zoomed(segment, roi=regions.make(roi))


def zoomed(segment: Segment, *, roi: regions.Roi) -> Segment:
    """`segment` on what is cut out of an image, its masks pasted back into the original frame.

    A box that leaves the window is clipped to it. A mark wholly outside has an empty mask and a
    predicted IoU of 0, with a warning. The function raises ValueError for a region that needs boxes
    where none is marked.
    """

    def segment_image(image: UInt8[np.ndarray, "H W 3"], marked: Marked) -> Masks:
        parts = [(marked, None)]
        if roi.per == "box" and len(marked.boxes):
            parts = [(marked._replace(boxes=box[None]), box) for box in marked.boxes]
        answers = [
            _segment_window(segment, image, part, window=roi.window(image, box))
            for part, box in parts
        ]
        return Masks(*(np.concatenate(each) for each in zip(*answers, strict=True)))

    return segment_image


def _segment_window(
    segment: Segment,
    image: UInt8[np.ndarray, "H W 3"],
    marked: Marked,
    *,
    window: regions.Window,
) -> Masks:
    size = image.shape[:2]
    if window.size == size:
        return segment(image, marked)
    boxes, points = regions.meets(marked.boxes, window), regions.holds(marked.points, window)
    seen = np.concatenate([boxes, points]) if len(boxes) + len(points) else np.ones(1, bool)
    answer = Masks(np.zeros((len(seen), *size), bool), np.zeros(len(seen), np.float32))
    if not seen.all():
        warnings.warn(
            f"{len(seen) - seen.sum()} of {len(seen)} marks lie outside of what the model is "
            f"shown of the image ({window}): their masks are empty",
            stacklevel=3,
        )
    if seen.any():
        inner = Marked(
            regions.clip_boxes(regions.to_window(marked.boxes[boxes], window), size=window.size),
            regions.to_window(marked.points[points], window),
        )
        masks, iou = segment(regions.crop(image, window), inner)
        answer.masks[seen] = regions.paste(masks, window, size=size)
        answer.iou[seen] = iou
    return answer


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
