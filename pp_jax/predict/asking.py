"""A model bound to its weights, look and region: encode an image once, ask about it many times.

What is asked about is `Marks`, in the original frame; what comes back are all masks of each prompt,
in low resolution, so that a rule may choose among them before any is scaled up.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from pp_jax.predict.predictor import embed, predict, prompts_at_once
from pp_jax.preprocess import geometry
from pp_jax.preprocess import roi as regions
from pp_jax.prompts import make_prompts
from pp_jax.sam import Sam
from pp_jax.types import NEUTRAL

# Shapes are rounded up to these, so that few compile whatever is asked.
_PROMPTS = 4  # In one call, at most.
_POINTS = (1, 4, 12)  # One click, a scribble, ten clicks; beyond, multiples of the last.
_CANVAS = 256

# The logit of what the model was not shown. SAM's own are about 10 in size far from an outline; one
# much larger would spread when a refinement smooths logits.
UNSEEN = -32.0

Image = UInt8[np.ndarray, "H W 3"]
Box = Float[np.ndarray, " 4"]


class Marks(NamedTuple):
    """What is marked on one image: a prompt for each of `N` objects, original frame.

    Without boxes, points and logits, `N` is 1: the model is asked for the one object that it finds.
    """

    boxes: Float[np.ndarray, "N 4"] | None = None
    points: Float[np.ndarray, "N P 2"] | None = None
    labels: Int[np.ndarray, "N P"] | None = None  # 1, 0; -2 where there is no such point.
    logits: Float[np.ndarray, "N h w"] | None = None  # Raw, of an earlier answer, model frame.


class Embedded(NamedTuple):
    """What a model knows of one image, or of a window of it."""

    features: Any  # Of one model `1 h w D`, of an ensemble a tuple of these.
    size: tuple[int, int]  # Valid (height, width) in the model frame.
    original: tuple[int, int]  # Of the whole image.
    window: regions.Window  # What of it was shown.


class Decoded(NamedTuple):
    """All masks of each prompt; index 0 is the single mask, 1 to 3 are the three."""

    logits: Float32[np.ndarray, "N 4 h w"]  # Low resolution, model frame; a mask is logits > 0.
    iou: Float32[np.ndarray, "N 4"]  # Predicted, not clipped.


class Found(NamedTuple):
    """One mask per prompt, original frame: where `logits` are positive."""

    logits: Float32[np.ndarray, "N H W"]
    iou: Float32[np.ndarray, " N"]  # Predicted, not clipped.
    candidates: Bool[np.ndarray, "N M H W"]  # The masks that it was chosen from.


class Asker(NamedTuple):
    """A model that can be asked."""

    embed: Callable[..., Embedded]  # Of an image, and a box on it where each has its own window.
    decode: Callable[[Embedded, Marks], Decoded]
    upscale: Callable[[Embedded, Float[np.ndarray, "N h w"]], Float32[np.ndarray, "N H W"]]
    side: int  # Of the model frame.
    per: Literal["nothing", "image", "box"] = "nothing"  # What has a window of its own.


def make_asker(
    model: Sam,
    variables: Mapping[str, Any],
    *,
    stage: Callable,
    fit: geometry.Fit = "longest",
    roi: str = "none",
) -> Asker:
    """The model, ready to be asked about images of any size.

    The encoder is compiled once for each stage; the decoder for up to 1, 4 and 12 points in a
    prompt, however many prompts there are, with boxes or without; all askers of one model share
    both. The upscaling is compiled, within a second, for each multiple of 256 of the image's sides.

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
    encode = partial(_encode, model, stage=stage)

    def embed_image(image: Image, box: Box | None = None) -> Embedded:
        del box
        resized = geometry.resize_image(image, longest=side, fit=fit)
        size, whole = resized.shape[:2], regions.whole_window(image)
        padded = geometry.pad_square(resized, side=side)[None]
        return Embedded(
            encode(variables, padded, np.array([size], np.int32)), size, whole.size, whole
        )

    def upscale(
        embedded: Embedded, logits: Float[np.ndarray, "N h w"]
    ) -> Float32[np.ndarray, "N H W"]:
        height, width = embedded.window.size
        canvas = tuple(-(-length // _CANVAS) * _CANVAS for length in (height, width))
        size, original = np.array(embedded.size, np.int32), np.array((height, width), np.int32)
        frames = np.empty((len(logits), height, width), np.float32)
        for frame, low in zip(frames, logits, strict=True):
            # One mask at a time: a 3000-pixel film with four objects would fill a laptop.
            up = _upscale(low, size, original, side=side, canvas=canvas)
            frame[:] = np.asarray(up)[:height, :width]
        return frames

    decode = partial(_decode_marks, model, variables)
    return zoomed(Asker(embed_image, decode, upscale, side), roi=regions.make(roi))


def zoomed(asker: Asker, *, roi: regions.Roi) -> Asker:
    """`asker`, which sees whole images, on what is cut out of them; beyond, logits are `UNSEEN`.

    A box that leaves the window is clipped to it, a point outside of it is not told. A prompt whose
    box lies outside, or without a box all of whose points do, gets `UNSEEN` everywhere and a
    predicted IoU of 0, with a warning. `embed` raises ValueError for a region around a box where
    none is given.
    """
    if roi.per == "nothing":
        return asker

    def embed_window(image: Image, box: Box | None = None) -> Embedded:
        window = roi.window(image, box)
        shown = asker.embed(regions.crop(image, window))
        return shown._replace(original=image.shape[:2], window=window)

    def decode(embedded: Embedded, marks: Marks) -> Decoded:
        if embedded.window.size == embedded.original:
            return asker.decode(embedded, marks)
        moved, seen = _within(marks, embedded.window)
        if not seen.all():
            warnings.warn(
                f"{len(seen) - seen.sum()} of {len(seen)} marks lie outside of what the model is "
                f"shown of the image ({embedded.window}): their masks are empty",
                stacklevel=3,
            )
        low = asker.side // geometry.CELL
        every = Decoded(
            np.full((len(seen), 4, low, low), UNSEEN, np.float32),
            np.zeros((len(seen), 4), np.float32),
        )
        if seen.any():
            for whole, part in zip(every, asker.decode(embedded, _take(moved, seen)), strict=True):
                whole[seen] = part
        return every

    def upscale(
        embedded: Embedded, logits: Float[np.ndarray, "N h w"]
    ) -> Float32[np.ndarray, "N H W"]:
        frames = asker.upscale(embedded, logits)
        if embedded.window.size == embedded.original:
            return frames
        whole = np.full((len(logits), *embedded.original), UNSEEN, np.float32)
        whole[:, *embedded.window.slices] = frames
        return whole

    return Asker(embed_window, decode, upscale, asker.side, roi.per)


def embed_once(asker: Asker, image: Image) -> Embedded | None:
    """What all marks on the image share; None where each box has a window of its own."""
    return None if asker.per == "box" else asker.embed(image)


def answer_marks(
    asker: Asker, image: Image, marks: Marks, *, single: bool, embedded: Embedded | None = None
) -> Found:
    """One mask per prompt, chosen as `choose` does.

    Args:
      asker: The model.
      image: Original frame.
      marks: On it.
      single: The rule of choice.
      embedded: The image's, from `embed_once`, so that it is not encoded again.

    Raises:
      ValueError: A region around boxes, and there are none.
    """
    if asker.per == "box" and marks.boxes is not None:
        parts = [
            (asker.embed(image, box), _take(marks, np.arange(len(marks.boxes)) == i))
            for i, box in enumerate(marks.boxes)
        ]
    else:
        parts = [(asker.embed(image) if embedded is None else embedded, marks)]
    found = [
        in_frame(asker, shown, asker.decode(shown, part), single=single) for shown, part in parts
    ]
    return Found(*(np.concatenate(each) for each in zip(*found, strict=True)))


def in_frame(asker: Asker, embedded: Embedded, decoded: Decoded, *, single: bool) -> Found:
    """The chosen mask of each prompt in the original frame, with those that it was chosen from.

    These are the single mask alone, or the three.
    """
    index = choose(decoded, single=single)
    offered = (0,) if single else (1, 2, 3)
    logits = np.empty((len(index), *embedded.original), np.float32)
    candidates = np.empty((len(index), len(offered), *embedded.original), bool)
    for n, chosen in enumerate(index):
        frames = asker.upscale(embedded, decoded.logits[n, offered, :, :])
        logits[n], candidates[n] = frames[offered.index(chosen)], frames > 0
    return Found(logits, decoded.iou[np.arange(len(index)), index], candidates)


def choose(decoded: Decoded, *, single: bool) -> Int[np.ndarray, " N"]:
    """Which of its four masks counts for each prompt: an index from 0 to 3.

    The single mask, or of the three the one with the highest predicted IoU.
    """
    if single:
        return np.zeros(len(decoded.iou), int)
    return 1 + decoded.iou[:, 1:].argmax(1)


_encode = jax.jit(embed, static_argnames=("model", "stage"))


@partial(jax.jit, static_argnames=("side", "canvas"))
def _upscale(
    logits: Float[Array, "h w"],
    size: Int[Array, "2"],
    original: Int[Array, "2"],
    *,
    side: int,
    canvas: tuple[int, int],
) -> Float32[Array, "H W"]:
    return geometry.postprocess_masks(
        logits[None], side=side, size=size, original=original, canvas=canvas
    )[0]


@partial(jax.jit, static_argnames="model")
def _decode(
    model: Sam,
    variables: Mapping[str, Any],
    features: Float[Array, "1 h w D"],
    told: Mapping[str, Array],
) -> tuple[Float[Array, "N 4 h w"], Float[Array, "N 4"]]:
    output = predict(model, variables, features, make_prompts(**told))
    return output.logits[0], output.iou[0]


def _decode_marks(
    model: Sam, variables: Mapping[str, Any], embedded: Embedded, marks: Marks
) -> Decoded:
    count = _count(marks)
    frames = {"original": embedded.window.size, "resized": embedded.size}
    at_once = min(_PROMPTS, prompts_at_once())
    slots, low = -(-max(count, 1) // at_once) * at_once, model.config.mask_side
    width = 0 if marks.points is None else marks.points.shape[1]
    places = next((p for p in _POINTS if width <= p), -(-width // _POINTS[-1]) * _POINTS[-1])
    told = {
        "points": np.zeros((slots, places, 2), np.float32),
        "labels": np.full((slots, places), NEUTRAL, np.int32),
        "boxes": np.zeros((slots, 4), np.float32),
        "has_box": np.full(slots, marks.boxes is not None),
        "masks": np.zeros((slots, low, low), np.float32),
        "has_mask": np.full(slots, marks.logits is not None),
        "valid": np.arange(slots) < count,
    }
    if marks.boxes is not None:
        told["boxes"][:count] = geometry.boxes_to_model(marks.boxes, **frames)
    if marks.points is not None:
        told["points"][:count, :width] = geometry.points_to_model(marks.points, **frames)
        told["labels"][:count, :width] = marks.labels
    if marks.logits is not None:
        told["masks"][:count] = marks.logits
    answers = [
        _decode(model, variables, embedded.features, {k: x[None, i:j] for k, x in told.items()})
        for i, j in itertools.pairwise(range(0, slots + 1, at_once))
    ]
    return Decoded(*(np.concatenate(each)[:count] for each in zip(*answers, strict=True)))


def _within(marks: Marks, window: regions.Window) -> tuple[Marks, Bool[np.ndarray, " N"]]:
    """The marks in the window's frame, and whether the model is shown what a prompt marks."""
    seen = np.ones(_count(marks), bool)
    if marks.points is not None:
        given = marks.labels != NEUTRAL
        held = given & regions.holds(marks.points, window)
        seen = held.any(1) | ~given.any(1)
        marks = marks._replace(
            points=regions.to_window(marks.points, window),
            labels=np.where(held, marks.labels, NEUTRAL),
        )
    if marks.boxes is not None:
        seen = regions.meets(marks.boxes, window)
        inside = regions.clip_boxes(regions.to_window(marks.boxes, window), size=window.size)
        marks = marks._replace(boxes=inside)
    return marks, seen


def _take(marks: Marks, rows: Bool[np.ndarray, " N"]) -> Marks:
    return Marks(*(None if field is None else field[rows] for field in marks))


def _count(marks: Marks) -> int:
    """Of prompts."""
    given = (marks.boxes, marks.points, marks.logits)
    return next((len(field) for field in given if field is not None), 1)
