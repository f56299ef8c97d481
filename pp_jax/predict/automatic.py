"""Automatic masks: a grid of points on an image and its crops, filtered to one mask per object.

The parameters, their defaults, the order of operations and the answer are those of the official
`SamAutomaticMaskGenerator`. Differences: the stability of an empty mask is 0 instead of NaN; masks
are upscaled one at a time, and only those that survive the suppression of duplicates in their crop
become run lengths, so that memory does not grow with the number of points times the image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from pp_jax.config import Look
from pp_jax.predict.masks import (
    Crop,
    Rle,
    box_nms,
    crop_boxes,
    decode_rle,
    encode_rle,
    fill_small_holes,
    layer_grids,
    mask_boxes,
    near_crop_edge,
    remove_small_islands,
    rle_area,
    to_coco,
)
from pp_jax.predict.predictor import embed, predict
from pp_jax.preprocess.geometry import (
    pad_square,
    points_to_model,
    postprocess_masks,
    resize_image,
)
from pp_jax.preprocess.stage import Stage, make_stage
from pp_jax.prompts import make_prompts
from pp_jax.sam import Sam
from pp_jax.types import FOREGROUND

_CANVAS = 256  # Sizes of crops are rounded up to it: few compilations for many sizes.
_CHUNK = 16  # Masks that leave the device at once.

Rows = TypeVar("Rows", bound=NamedTuple)
Grid = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class AutomaticConfig:
    """The official generator's parameters.

    `point_grids` holds one grid of points (x, y) in [0, 1] for the whole image and one for each
    layer of crops; it takes the place of `points_per_side`.
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88  # A mask passes above it; 0: all pass.
    stability_score_thresh: float = 0.95  # A mask passes from it on; 0: all pass.
    stability_score_offset: float = 1.0  # In logits.
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: tuple[Grid, ...] | None = None
    min_mask_region_area: int = 0  # Pixels of the image; smaller holes and islands vanish.
    output_mode: str = "binary_mask"

    def __post_init__(self) -> None:
        side, grids, layers = self.points_per_side, self.point_grids, self.crop_n_layers
        factor = self.crop_n_points_downscale_factor
        if (side is None) == (grids is None):
            both = "are both None" if side is None else f"are both given ({side} and {grids})"
            raise ValueError(f"points_per_side and point_grids {both}: give exactly one")
        if self.output_mode not in OUTPUT_MODES:
            raise ValueError(
                f"unknown {self.output_mode=}: choose one of {', '.join(OUTPUT_MODES)}"
            )
        if self.points_per_batch < 1 or layers < 0 or factor < 1:
            raise ValueError(
                f"{self.points_per_batch=} needs 1 or more, {self.crop_n_layers=} 0 or more, "
                f"{self.crop_n_points_downscale_factor=} 1 or more"
            )
        if side is not None and side < factor**layers:
            raise ValueError(
                f"{self.points_per_side=} leaves no point for crop layer {layers}: raise it or "
                f"lower {self.crop_n_points_downscale_factor=}"
            )
        if grids is not None and (len(grids) <= layers or not all(grids)):
            raise ValueError(
                f"point_grids with {[len(grid) for grid in grids]} points do not serve "
                f"{self.crop_n_layers=}: give points for the whole image and for each layer"
            )

    def grids(self) -> list[Float[np.ndarray, "points 2"]]:
        """The points (x, y) in [0, 1] of the whole image and of each layer of crops."""
        if self.point_grids is not None:
            return [np.asarray(grid, np.float64).reshape(-1, 2) for grid in self.point_grids]
        return layer_grids(
            self.points_per_side,
            layers=self.crop_n_layers,
            downscale=self.crop_n_points_downscale_factor,
        )


class Limits(NamedTuple):
    """The filters' numbers; minus infinity lets everything pass."""

    iou: np.float32
    stability: np.float32
    offset: np.float32


class Frame(NamedTuple):
    """Where a crop lies and how large it is in each frame; all traced, but the canvas."""

    size: Int[np.ndarray, "2"]  # Valid (height, width) in the model frame.
    original: Int[np.ndarray, "2"]  # (height, width) of the crop.
    crop: Int[np.ndarray, "4"]  # The crop's box, frame of the whole image.
    image: Int[np.ndarray, "2"]  # (height, width) of the whole image.


class Candidates(NamedTuple):
    """Masks and all that is known of them, one row each; reordered only as a whole."""

    logits: Float[Array, "N h w"]  # Low resolution, model frame.
    iou: Float[Array, " N"]
    stability: Float[Array, " N"]
    boxes: Int[Array, "N 4"]  # Frame of the crop, both ends included.
    point: Int[Array, " N"]  # Index in the crop's grid.
    passed: Bool[Array, " N"]


class Found(NamedTuple):
    """Masks in the frame of the whole image, one row each; reordered only as a whole."""

    rle: np.ndarray  # Of objects: each an `Rle`.
    iou: Float[np.ndarray, " N"]
    stability: Float[np.ndarray, " N"]
    boxes: Int[np.ndarray, "N 4"]
    points: Float[np.ndarray, "N 2"]
    crops: Int[np.ndarray, "N 4"]


class SamAutomaticMaskGenerator:
    """The official class's counterpart: its parameters by name, and `generate`."""

    def __init__(
        self,
        model: Sam,
        variables: Mapping[str, Any],
        *,
        stage: Stage | None = None,
        point_grids: Sequence[Float[np.ndarray, "points 2"]] | None = None,
        **parameters: Any,
    ) -> None:
        if point_grids is not None:
            point_grids = tuple(tuple(map(tuple, np.asarray(g).tolist())) for g in point_grids)
        self.model, self.variables = model, variables
        self.config = AutomaticConfig(point_grids=point_grids, **parameters)
        self.stage = stage or make_stage(Look(), side=model.config.image_size)

    def generate(self, image: UInt8[np.ndarray, "H W 3"]) -> list[dict[str, Any]]:
        """The image's masks; see `generate`."""
        return generate(self.model, self.variables, image, self.config, stage=self.stage)


def generate(
    model: Sam,
    variables: Mapping[str, Any],
    image: UInt8[np.ndarray, "H W 3"],
    config: AutomaticConfig,
    *,
    stage: Stage,
) -> list[dict[str, Any]]:
    """One record per mask: all objects that the points find, without duplicates.

    A record has the official keys: `segmentation` (a mask `H W`, or its run lengths), `area` in
    pixels, `bbox` (x, y, width, height) between the centres of the outermost pixels,
    `predicted_iou`, `point_coords` (the one click, in pixels), `stability_score`, and `crop_box`
    (x, y, width, height). The best masks come first; with crops those of the smallest crops.
    It compiles for each multiple of 256 of the crops' sides.

    Raises:
      ValueError: The image is not RGB in bytes, or a crop is too slim for the model.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise ValueError(
            f"an image of shape {image.shape} and dtype {image.dtype} cannot be searched: give "
            "uint8 of shape (height, width, 3)"
        )
    crops = crop_boxes(
        *image.shape[:2], layers=config.crop_n_layers, overlap_ratio=config.crop_overlap_ratio
    )
    search = partial(_search_crop, model, variables, image, config=config, stage=stage)
    found = _concatenate([search(crop) for crop in crops])
    if len(crops) > 1:
        sides = found.crops[:, 2:] - found.crops[:, :2]
        smaller_first = 1 / sides.prod(axis=-1).astype(np.float32)
        found = _select(
            found, box_nms(found.boxes, smaller_first, threshold=config.crop_nms_thresh)
        )
    if config.min_mask_region_area > 0:
        threshold = max(config.box_nms_thresh, config.crop_nms_thresh)
        found = _clean(found, min_area=config.min_mask_region_area, threshold=threshold)
    return [_record(Found(*row), config.output_mode) for row in zip(*found, strict=True)]


def _search_crop(
    model: Sam,
    variables: Mapping[str, Any],
    image: UInt8[np.ndarray, "H W 3"],
    crop: Crop,
    *,
    config: AutomaticConfig,
    stage: Stage,
) -> Found:
    x0, y0, x1, y1 = crop.box
    part, side = image[y0:y1, x0:x1], model.config.image_size
    resized = resize_image(part, longest=side)
    numbers = (resized.shape[:2], part.shape[:2], crop.box, image.shape[:2])
    frame = Frame(*(np.array(x, np.int32) for x in numbers))
    canvas = tuple(-(-length // _CANVAS) * _CANVAS for length in part.shape[:2])
    padded = pad_square(resized, side=side)[None]
    embedding = _encode(variables, padded, frame.size[None], model=model, stage=stage)
    points = config.grids()[crop.layer] * np.array([x1 - x0, y1 - y0])
    clicks = points_to_model(points, original=part.shape[:2], resized=resized.shape[:2])
    examine = partial(
        _examine, variables, embedding, frame=frame, limits=_limits(config), model=model
    )
    passed = []
    for start in range(0, len(clicks), config.points_per_batch):
        slots = np.arange(start, start + min(config.points_per_batch, len(clicks)))
        index = np.minimum(slots, len(clicks) - 1)
        batch = examine(clicks[index], index, slots < len(clicks), canvas=canvas)
        passed += [_to_host(batch, rows) for rows in _chunks(np.flatnonzero(batch.passed))]
    if not passed:
        return _NOTHING
    best = _concatenate(passed)
    best = _select(best, box_nms(best.boxes, best.iou, threshold=config.box_nms_thresh))
    return Found(
        rle=_to_rles(best.logits, frame, canvas=canvas, side=side),
        iou=best.iou,
        stability=best.stability,
        boxes=best.boxes + np.array([x0, y0, x0, y0]),
        points=points[best.point] + np.array([x0, y0]),
        crops=np.tile(np.array(crop.box), (len(best.iou), 1)),
    )


@partial(jax.jit, static_argnames=("model", "stage"))
def _encode(
    variables: Mapping[str, Any],
    image: UInt8[Array, "1 S S 3"],
    size: Int[Array, "1 2"],
    *,
    model: Sam,
    stage: Stage,
) -> Float[Array, "1 h w D"]:
    return embed(model, variables, image, size, stage=stage)


@partial(jax.jit, static_argnames=("model", "canvas"))
def _examine(
    variables: Mapping[str, Any],
    embedding: Float[Array, "1 h w D"],
    clicks: Float[Array, "P 2"],
    index: Int[Array, " P"],
    valid: Bool[Array, " P"],
    *,
    frame: Frame,
    limits: Limits,
    model: Sam,
    canvas: tuple[int, int],
) -> Candidates:
    """The three masks of each click, with the verdict of all filters."""
    points = clicks[None, :, None]  # 1 P 1 2
    prompts = make_prompts(
        points=points,
        labels=jnp.full(points.shape[:3], FOREGROUND),
        valid=valid[None],
    )
    three = predict(model, variables, embedding, prompts).three()
    logits, iou = three.logits.reshape(-1, *three.logits.shape[-2:]), three.iou.reshape(-1)
    masks_per_click = three.iou.shape[-1]
    worth = jnp.repeat(valid, masks_per_click) & (iou > limits.iou)
    side = model.config.image_size
    stability, boxes = _measure(worth, logits, frame, limits.offset, canvas=canvas, side=side)
    inside = ~near_crop_edge(boxes, crop=frame.crop, image=frame.image)
    return Candidates(
        logits=logits,
        iou=iou,
        stability=stability,
        boxes=boxes,
        point=jnp.repeat(index, masks_per_click),
        passed=worth & (stability >= limits.stability) & inside,
    )


def _measure(
    worth: Bool[Array, " N"],
    logits: Float[Array, "N h w"],
    frame: Frame,
    offset: Float[Array, ""],
    *,
    canvas: tuple[int, int],
    side: int,
) -> tuple[Float[Array, " N"], Int[Array, "N 4"]]:
    """Stability and box of each mask at the size of the crop; zeros where it is not worth it.

    A few masks at a time: 192 of a 3000-pixel film would fill a laptop. First these few are scaled
    up, then all are measured: in one step XLA would scale each mask up anew for each measure.
    """

    def levels(low: Float[Array, "h w"]) -> UInt8[Array, "H W"]:
        full = _upscale(low, frame, canvas=canvas, side=side)
        return sum((full > x).astype(jnp.uint8) << i for i, x in enumerate((0, offset, -offset)))

    def measure(level: UInt8[Array, "H W"]) -> tuple[Float[Array, ""], Int[Array, "4"]]:
        inner, outer = (jnp.sum(level >> i & 1, dtype=jnp.int32) for i in (1, 2))
        return inner / jnp.maximum(outer, 1), mask_boxes(level & 1 > 0)

    def where_worth(run: Callable, worth: Array, x: Array) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(run, x[0]))
        return jax.lax.map(
            lambda row: jax.lax.cond(row[0], run, lambda _: zeros, row[1]), (worth, x)
        )

    def some(part: tuple[Array, Array]) -> tuple[Array, Array]:
        worth, low = part
        return where_worth(measure, worth, where_worth(levels, worth, low))

    # Any number of masks is a multiple of 3.
    group = next(n for n in (8, 6, 3, 2, 1) if len(logits) % n == 0)
    parts = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), (worth, logits))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(some, parts))


def _upscale(
    low: Float[Array, "h w"], frame: Frame, *, canvas: tuple[int, int], side: int
) -> Float[Array, "H W"]:
    """Logits at the size of the crop; minus infinity beyond it, where nothing counts."""
    full = postprocess_masks(
        low[None], side=side, size=frame.size, original=frame.original, canvas=canvas
    )[0]
    rows, columns = (jnp.arange(n) < frame.original[i] for i, n in enumerate(canvas))
    return jnp.where(rows[:, None] & columns, full, -jnp.inf)


@partial(jax.jit, static_argnames=("canvas", "side"))
def _masks(
    logits: Float[Array, "N h w"], frame: Frame, *, canvas: tuple[int, int], side: int
) -> Bool[Array, "N H W"]:
    return jax.lax.map(lambda low: _upscale(low, frame, canvas=canvas, side=side) > 0, logits)


@jax.jit
def _take(candidates: Candidates, rows: Int[Array, " n"]) -> Candidates:
    return _select(candidates, rows)


def _chunks(rows: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " chunk"]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]


def _to_host(candidates: Candidates, rows: Int[np.ndarray, " chunk"]) -> Candidates:
    taken = _take(candidates, np.pad(rows, (0, _CHUNK - len(rows)), mode="edge"))
    return jax.tree.map(lambda x: np.asarray(x)[: len(rows)], taken)


def _to_rles(
    logits: Float[np.ndarray, "N h w"], frame: Frame, *, canvas: tuple[int, int], side: int
) -> np.ndarray:
    """Run lengths in the frame of the whole image, of masks given in the crop's model frame."""
    x0, y0, x1, y1 = frame.crop
    rles = np.empty(len(logits), object)
    for rows in _chunks(np.arange(len(logits))):
        padded = np.pad(logits[rows], ((0, _CHUNK - len(rows)), (0, 0), (0, 0)))
        masks = np.asarray(_masks(padded, frame, canvas=canvas, side=side))
        for row, mask in zip(rows, masks, strict=False):
            whole = np.zeros(frame.image, bool)
            whole[y0:y1, x0:x1] = mask[: y1 - y0, : x1 - x0]
            rles[row] = encode_rle(whole)
    return rles


def _clean(found: Found, *, min_area: int, threshold: float) -> Found:
    """The masks without small holes and islands, and without the duplicates that this makes.

    Of two duplicates the one that needed no change stays.
    """
    rles, boxes = found.rle.copy(), found.boxes.copy()
    untouched = np.ones(len(rles), np.float32)
    for i, rle in enumerate(found.rle):
        mask, had_holes = fill_small_holes(decode_rle(rle), min_area=min_area)
        mask, had_islands = remove_small_islands(mask, min_area=min_area)
        if had_holes or had_islands:
            rles[i], boxes[i], untouched[i] = encode_rle(mask), mask_boxes(mask), 0
    kept = box_nms(boxes, untouched, threshold=threshold)
    return _select(found._replace(rle=rles, boxes=boxes), kept)


def _record(found: Found, output_mode: str) -> dict[str, Any]:
    """The official record of one row."""
    return {
        "segmentation": OUTPUT_MODES[output_mode](found.rle),
        "area": rle_area(found.rle),
        "bbox": _xywh(found.boxes),
        "predicted_iou": float(found.iou),
        "point_coords": [found.points.tolist()],
        "stability_score": float(found.stability),
        "crop_box": _xywh(found.crops),
    }


def _xywh(box: Int[np.ndarray, "4"]) -> list[int]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _limits(config: AutomaticConfig) -> Limits:
    def limit(threshold: float) -> np.float32:
        return np.float32(threshold if threshold > 0 else -np.inf)

    return Limits(
        limit(config.pred_iou_thresh),
        limit(config.stability_score_thresh),
        np.float32(config.stability_score_offset),
    )


def _select(records: Rows, rows: Int[Array | np.ndarray, " n"]) -> Rows:
    return jax.tree.map(lambda x: x[rows], records)


def _concatenate(parts: Sequence[Rows]) -> Rows:
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


_NOTHING = Found(
    rle=np.empty(0, object),
    iou=np.empty(0, np.float32),
    stability=np.empty(0, np.float32),
    boxes=np.empty((0, 4), int),
    points=np.empty((0, 2)),
    crops=np.empty((0, 4), int),
)

OUTPUT_MODES: Mapping[str, Callable[[Rle], Any]] = MappingProxyType(
    {"binary_mask": decode_rle, "uncompressed_rle": dict, "coco_rle": to_coco}
)
