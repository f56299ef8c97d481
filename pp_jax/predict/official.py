"""The official package's predictor, so that code written for it runs after changing the import.

    from pp_jax.segment_anything import SamPredictor, sam_model_registry

Names, arguments, shapes and order of the answers are those of `segment_anything.SamPredictor`. It
holds the current image, as the official one does; `predictor.py` has the pure functions.
Differences: arrays are NumPy's, and a malformed prompt is an error instead of a silent guess.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from pp_jax.config import Look
from pp_jax.predict.predictor import embed, predict
from pp_jax.preprocess import geometry, roi
from pp_jax.preprocess.stage import PREPARATIONS, make_stage
from pp_jax.prompts import make_prompts
from pp_jax.sam import Sam, SamOutput
from pp_jax.types import NEUTRAL

_CANVAS, _POINTS, _PROMPTS = 256, 4, 4  # Shapes are rounded up to these: few compilations.


class LoadedSam(NamedTuple):
    """A model with its weights, what the official code calls `sam`."""

    model: Sam
    variables: Mapping[str, Any]
    look: Look = Look()  # What the weights were trained to see.


def require_whole_images(look: Look) -> None:
    """Nothing, when images are shown as a whole, as the official interface does.

    Raises:
      ValueError: They are cut first.
    """
    if roi.make(look.roi).per != "nothing":
        raise ValueError(
            f"weights whose images are cut first (roi {look.roi}): the official interface shows "
            "whole images; cut them and paste the masks back with pp_jax.preprocess.roi, and give "
            "the weights as sam._replace(look=dataclasses.replace(sam.look, roi='none')); or run "
            "python -m pp_jax.predict"
        )


class ResizeLongestSide:
    """The official transform, on arrays; `fit` "square" stretches, as MedSAM's weights expect."""

    def __init__(self, target_length: int, fit: geometry.Fit = "longest"):
        self.target_length = target_length
        self.fit: geometry.Fit = fit

    def apply_image(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The image with its longest side at `target_length`, bit for bit as the official one."""
        return geometry.resize_image(image, longest=self.target_length, fit=self.fit)

    def apply_coords(
        self, coords: Float[np.ndarray, "*n 2"], original_size: tuple[int, int]
    ) -> Float[np.ndarray, "*n 2"]:
        """Points `(x, y)` in the model frame; `original_size` is (height, width)."""
        resized = geometry.resized_shape(*original_size, longest=self.target_length, fit=self.fit)
        return geometry.points_to_model(
            np.asarray(coords, np.float64), original=original_size, resized=resized
        )

    def apply_boxes(
        self, boxes: Float[np.ndarray, "*n 4"], original_size: tuple[int, int]
    ) -> Float[np.ndarray, "n 4"]:
        """Boxes `(x0, y0, x1, y1)` in the model frame."""
        corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2)
        return self.apply_coords(corners, original_size).reshape(-1, 4)


class SamPredictor:
    """Embeds one image, then answers any number of prompts on it."""

    def __init__(self, sam_model: LoadedSam):
        require_whole_images(sam_model.look)
        self.sam = sam_model
        side = sam_model.model.config.image_size
        self.stage = make_stage(sam_model.look, side=side)
        self.transform = ResizeLongestSide(side, PREPARATIONS[sam_model.look.preprocess].fit)
        self.reset_image()

    def reset_image(self) -> None:
        """Forgets the current image."""
        self.is_image_set = False
        self.features: Array | None = None
        self.original_size: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None

    def set_image(self, image: UInt8[np.ndarray, "H W 3"], image_format: str = "RGB") -> None:
        """Embeds an image, to be prompted by `predict`.

        Raises:
          ValueError: Not uint8 `H W 3`, or a format other than RGB and BGR.
        """
        image = np.asarray(image)
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format {image_format!r}: must be 'RGB' or 'BGR'")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"image of {image.dtype} {image.shape}: SAM takes uint8 of (height, width, 3); "
                "pp_jax.preprocess.colour.to_rgb_uint8 converts grey, RGBA and 16-bit images"
            )
        image = image if image_format == "RGB" else image[..., ::-1]
        resized = self.transform.apply_image(np.ascontiguousarray(image))
        self.reset_image()
        self.original_size, self.input_size = image.shape[:2], resized.shape[:2]
        padded = geometry.pad_square(resized, side=self.transform.target_length)[None]
        size = np.array([self.input_size], np.int32)
        self.features = _embed(self.sam.model, self.sam.variables, padded, size, stage=self.stage)
        self.is_image_set = True

    def get_image_embedding(self) -> Float[np.ndarray, "1 D h w"]:
        """The current image's embedding, channels first as in the official package."""
        self._require_image()
        return np.moveaxis(np.asarray(self.features), -1, 1)

    def predict(
        self,
        point_coords: Float[np.ndarray, "P 2"] | None = None,
        point_labels: Int[np.ndarray, " P"] | None = None,
        box: Float[np.ndarray, " 4"] | None = None,
        mask_input: Float[np.ndarray, "1 h w"] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[
        Bool[np.ndarray, "M H W"] | Float[np.ndarray, "M H W"],
        Float[np.ndarray, " M"],
        Float[np.ndarray, "M h w"],
    ]:
        """Masks in the original frame, their predicted IoU, and their low-resolution logits.

        Args:
          point_coords: `(x, y)` in pixels of the original image.
          point_labels: 1 foreground, 0 background.
          box: `(x0, y0, x1, y1)` in pixels of the original image.
          mask_input: Raw logits of an earlier call, low resolution.
          multimask_output: Three masks, else one.
          return_logits: Logits instead of booleans.

        Raises:
          RuntimeError: No image was set.
          ValueError: A malformed prompt.
        """
        self._require_image()
        points = labels = boxes = None
        if point_coords is not None or point_labels is not None:
            checked = check_points(point_coords, point_labels)
            points = self.transform.apply_coords(checked[0], self.original_size)[None]
            labels = checked[1][None]
        if box is not None:
            boxes = self.transform.apply_boxes(
                check_boxes(box, size=self.original_size), self.original_size
            )
        masks = None if mask_input is None else np.asarray(mask_input, np.float32)[None]
        found, iou, low_res = self.predict_batch(
            points, labels, boxes, masks, multimask_output, return_logits
        )
        return found[0], iou[0], low_res[0]

    def predict_batch(
        self,
        point_coords: Float[np.ndarray, "N P 2"] | None,
        point_labels: Int[np.ndarray, "N P"] | None,
        boxes: Float[np.ndarray, "N 4"] | None = None,
        mask_input: Float[np.ndarray, "N 1 h w"] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`N` prompts at once: the counterpart of the official `predict_torch`.

        Points and boxes are in the model frame, as `transform.apply_coords` and `apply_boxes` give
        them. Returns masks `N M H W`, predicted IoU `N M` and low-resolution logits `N M h w`.

        Raises:
          RuntimeError: No image was set.
          ValueError: A malformed prompt.
        """
        self._require_image()
        side = self.sam.model.config.mask_side
        if mask_input is not None and np.shape(mask_input)[1:] != (1, side, side):
            raise ValueError(
                f"mask_input of shape {np.shape(mask_input)[1:]}: must be (1, {side}, {side}), the "
                "low-resolution logits of an earlier prediction"
            )
        told, count = _pad(point_coords, point_labels, boxes, mask_input, side=side)
        canvas = tuple(-(-length // _CANVAS) * _CANVAS for length in self.original_size)
        output, masks = _decode(
            self.sam.model,
            self.sam.variables,
            self.features,
            told,
            np.array(self.input_size, np.int32),
            np.array(self.original_size, np.int32),
            canvas=canvas,
            multimask=multimask_output,
            binary=not return_logits,
        )
        height, width = self.original_size
        return (  # Copies, which can be written to, as officially.
            np.asarray(masks)[:count, :, :height, :width].copy(),
            np.asarray(output.iou)[0, :count].copy(),
            np.asarray(output.logits)[0, :count].copy(),
        )

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise RuntimeError("An image must be set with .set_image(...) before mask prediction.")


# Both halves are compiled once for all predictors of one model.
_embed = jax.jit(embed, static_argnames=("model", "stage"))


@partial(jax.jit, static_argnames=("model", "canvas", "multimask", "binary"))
def _decode(
    model: Sam,
    variables: Mapping[str, Any],
    embedding: Float[Array, "1 h w D"],
    told: Mapping[str, Array],
    size: Int[Array, "2"],
    original: Int[Array, "2"],
    *,
    canvas: tuple[int, int],
    multimask: bool,
    binary: bool,  # On the device: a quarter of the bytes to fetch.
) -> tuple[SamOutput, Num[Array, "N M H W"]]:
    output = predict(model, variables, embedding, make_prompts(**told))
    output = output.three() if multimask else output.single()

    def up(logits: Float[Array, "M h w"]) -> Num[Array, "M H W"]:
        full = geometry.postprocess_masks(
            logits, side=model.config.image_size, size=size, original=original, canvas=canvas
        )
        return full > 0 if binary else full

    return output, jax.lax.map(up, output.logits[0])


def _pad(
    points: np.ndarray | None,
    labels: np.ndarray | None,
    boxes: np.ndarray | None,
    masks: np.ndarray | None,
    *,
    side: int,
) -> tuple[dict[str, np.ndarray], int]:
    """What `make_prompts` takes, and the number of prompts.

    Shapes are rounded up with neutral points and invalid prompts, and are the same whether there
    are points, boxes and masks or not: one program answers them all.
    """
    given = [x for x in (points, boxes, masks) if x is not None]
    count = len(given[0]) if given else 1
    if any(len(x) != count for x in given):
        raise ValueError(
            f"points, boxes and masks for different numbers of prompts: {[len(x) for x in given]}"
        )
    slots = 1 if count == 1 else -(-count // _PROMPTS) * _PROMPTS
    width = 0 if points is None else points.shape[1]
    places = -(-max(width, 1) // _POINTS) * _POINTS
    told = {
        "points": np.zeros((slots, places, 2), np.float32),
        "labels": np.full((slots, places), NEUTRAL, np.int32),
        "boxes": np.zeros((slots, 4), np.float32),
        "has_box": np.full(slots, boxes is not None),
        "masks": np.zeros((slots, side, side), np.float32),
        "has_mask": np.full(slots, masks is not None),
        "valid": np.arange(slots) < count,
    }
    if points is not None:
        told["points"][:count, :width], told["labels"][:count, :width] = points, labels
    if boxes is not None:
        told["boxes"][:count] = boxes
    if masks is not None:
        told["masks"][:count] = masks[:, 0]
    return {name: array[None] for name, array in told.items()}, count


def check_points(
    points: Any, labels: Any
) -> tuple[Float[np.ndarray, "P 2"], Int[np.ndarray, " P"]]:
    """The points and labels as arrays.

    Raises:
      ValueError: One without the other, wrong shapes, labels other than 0 and 1, or NaN.
    """
    if points is None or labels is None:
        raise ValueError("point_coords and point_labels go together: give both or neither")
    points, labels = np.asarray(points, np.float64), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
        raise ValueError(
            f"point_coords of shape {points.shape} with point_labels of shape {labels.shape}: must "
            "be (P, 2) with (P,)"
        )
    odd = sorted({value.item() for value in labels.ravel()} - {0, 1})
    if odd:
        raise ValueError(f"point label {odd[0]}: must be 1 (foreground) or 0 (background)")
    if not np.isfinite(points).all():
        raise ValueError(f"point_coords {points.tolist()}: must be finite numbers")
    return points, labels.astype(np.int32)


def check_boxes(boxes: Any, *, size: tuple[int, int]) -> Float[np.ndarray, "N 4"]:
    """The boxes as an array, `(x0, y0, x1, y1)` in pixels of the original image.

    Raises:
      ValueError: A wrong shape, NaN, swapped corners, no area, or a box that leaves the image.
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"box of shape {boxes.shape}: must be (x0, y0, x1, y1)")
    boxes = boxes.reshape(-1, 4)
    height, width = size
    for box in boxes:
        x0, y0, x1, y1 = box.tolist()
        if not np.isfinite(box).all():
            raise ValueError(f"box {box.tolist()}: must be finite numbers")
        if x0 >= x1 or y0 >= y1:
            raise ValueError(
                f"box {box.tolist()}: corners swapped or no area; give (x0, y0, x1, y1), left "
                "above right"
            )
        if min(x0, y0) < 0 or x1 > width or y1 > height:
            raise ValueError(
                f"box {box.tolist()} leaves the image of {width} x {height} (width x height); "
                "give pixels of the original image"
            )
    return boxes
