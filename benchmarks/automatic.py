"""Automatic masks of a grid of points, beside the official generator, in turn.

    python -m benchmarks.automatic --variant vit_b --shown 1024x1024 2048x1500 --repeats 3

Without the encoder: in both models one that answers a stored embedding takes its place, and nothing
else of the user's call is left out (preparing the image, prompts, decoder, masks at the image's
size, thresholds, suppression of duplicates, run lengths, masks in the host's memory).

Both have the same random weights, made to find smooth objects of a tenth of the image, and the same
thresholds, chosen beforehand on a coarse grid: `SHARES` of the masks pass each. Prints Markdown,
with the number of masks that each found.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from benchmarks import decoder, turns
from benchmarks.peers import Place
from benchmarks.weights import weigh
from pp_jax.sam import VARIANTS, SamConfig

if TYPE_CHECKING:
    from pp_jax.sam import Sam

PACKAGES = ("jax", "flax", "torch", "torchvision", "segment-anything")

SHARES = (0.4, 0.5)  # Above the threshold of the predicted IoU; of those, from the stability's on.
AREA = 0.1  # Of the image, in the mean mask.
_PER_SIDE = 8  # Points of the grid on which thresholds are chosen.

# Scales that turn random weights into ones that find objects: positions vary slowly, the tokens
# attend sharply, the image moves the masks a little, logits are larger than stability's offset.
_SCALES = (
    ("prompt_encoder.pe_layer.", "", 0.5),
    ("prompt_encoder.no_mask_embed.", "", 0.1),
    ("mask_decoder.transformer.", "q_proj.weight", 3.0),
    ("mask_decoder.transformer.", "k_proj.weight", 3.0),
    ("mask_decoder.output_upscaling.0.", "weight", 2.0),
    ("mask_decoder.output_upscaling.3.", "weight", 2.0),
    ("mask_decoder.output_hypernetworks_mlps.", "layers.2.weight", 200.0),
    ("mask_decoder.output_hypernetworks_mlps.", "layers.2.bias", 200.0),
)
_CONSTANT = 10.0  # What one channel of the fine features always is, so that masks can be shifted.

_IOU = 2.0  # Added to the predicted IoU: a threshold of 0 or less switches its filter off.

Generate = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Benchmark(turns.Settings):
    """Time automatic masks side by side."""

    variant: Literal[tuple(VARIANTS)] = "vit_b"
    """Of the model."""
    shown: tuple[str, ...] = ("1024x1024", "2048x1500")
    """Widths and heights of the images to search."""
    per_side: int = 32
    """Points on each side of the grid."""
    per_batch: int = 64
    """Points that are decoded in one call."""
    repeats: int = 3
    """Of which medians are taken."""
    iou: float = 0.0
    """Threshold of the predicted IoU; chosen by the benchmark."""
    stability: float = 0.0
    """Threshold of the stability; chosen by the benchmark."""
    shifts: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of the logits of the three masks; chosen by the benchmark."""
    counts: Path | None = None
    """Folder in which programs say how many masks they found; chosen by the benchmark."""


def main() -> None:
    """Measure, and print a table for each image."""
    settings = turns.read(Benchmark, make_programs)
    turns.print_machine(settings, PACKAGES)
    settings = tune(settings)
    masks = 3 * settings.per_side**2
    print(
        f"- {masks} masks: {SHARES[0]:.0%} of them have a predicted IoU above {settings.iou:.4g}, "
        f"of these {SHARES[1]:.0%} a stability from {settings.stability:.4g} on"
    )
    for shown in settings.shown:
        with tempfile.TemporaryDirectory() as folder:
            one = replace(settings, shown=(shown,), counts=Path(folder))
            rows = turns.take_turns("benchmarks.automatic", make_programs(one), one)
            found = {path.name: path.read_text() for path in sorted(Path(folder).iterdir())}
        print(
            f"\n`{settings.variant}`, {settings.per_side}² points on {shown}, encoder excluded:\n"
        )
        print(turns.table(rows, count=settings.per_side**2, unit="points"))
        print("\nMasks found: " + ", ".join(f"{name} {count}" for name, count in found.items()))


def make_programs(settings: Benchmark) -> Mapping[str, turns.Prepare]:
    """Both generators, on the first image."""
    return {name: partial(_prepare, settings, name) for name in GENERATORS}


def _prepare(settings: Benchmark, name: str) -> turns.Run:
    generate = GENERATORS[name](settings)

    def run() -> None:
        found = generate()
        if settings.counts is not None:
            (settings.counts / name).write_text(str(len(found)))

    return run


def tune(settings: Benchmark) -> Benchmark:
    """The settings with shifts and thresholds, from the masks of a coarse grid."""
    import jax

    from pp_jax.predict.masks import point_grid, stability_score
    from pp_jax.predict.predictor import predict
    from pp_jax.prompts import make_prompts

    jax.config.update("jax_platforms", "cpu")  # The device is for those that take turns.
    config = VARIANTS[settings.variant]
    model, variables = decoder.our_sam(config, weigh=partial(weigh_objects, shifts=settings.shifts))
    points = (config.image_size * point_grid(_PER_SIDE)).astype(np.float32)[None, :, None]
    prompts = make_prompts(points=points, labels=np.ones(points.shape[:3], np.int32))
    found = jax.jit(partial(predict, model))(variables, draw_embedding(config), prompts).three()
    logits, iou = np.asarray(found.logits[0]), np.asarray(found.iou[0])  # N 3 h w, N 3
    shifts = -np.quantile(logits, 1 - AREA, axis=(0, 2, 3))
    threshold = np.quantile(iou, 1 - SHARES[0])
    stability = np.asarray(stability_score(logits + shifts[:, None, None], offset=1.0))
    least = np.quantile(stability[iou > threshold], 1 - SHARES[1])
    if min(threshold, least) <= 0:
        raise ValueError(
            f"thresholds {threshold:.4g} of the IoU and {least:.4g} of the stability: at 0 or less "
            f"the generators filter nothing; change the scales of {weigh_objects.__name__}"
        )
    return replace(
        settings,
        iou=float(threshold),
        stability=float(least),
        shifts=tuple(map(float, settings.shifts + shifts)),
    )


def weigh_objects(
    name: str, shape: tuple[int, ...], *, shifts: tuple[float, float, float]
) -> Float32[np.ndarray, "..."]:
    """The weights under an official name, of a model that finds objects."""
    weights = weigh(name, shape)
    for start, end, scale in _SCALES:
        if name.startswith(start) and name.endswith(end):
            weights = weights * np.float32(scale)
    if name in ("mask_decoder.output_upscaling.0.weight", "mask_decoder.output_upscaling.3.weight"):
        # Equal in the 2 x 2 cells that a cell becomes: else masks are checkered.
        weights = np.broadcast_to(weights.mean((2, 3), keepdims=True), shape).copy()
    if name == "mask_decoder.iou_prediction_head.layers.2.bias":
        weights = weights + np.float32(_IOU)
    if name == "mask_decoder.output_upscaling.3.weight":
        weights[:, 0] = 0
    if name == "mask_decoder.output_upscaling.3.bias":
        weights[0] = _CONSTANT
    for mask, shift in enumerate(shifts, start=1):
        layer = f"mask_decoder.output_hypernetworks_mlps.{mask}.layers.2"
        if name == f"{layer}.weight":
            weights[0] = 0
        if name == f"{layer}.bias":
            weights[0] = shift / _CONSTANT
    return weights


def draw_embedding(config: SamConfig) -> Float32[np.ndarray, "1 h w D"]:
    """What an encoder might have said of an image: it varies slowly."""
    from pp_jax.sam.interpolate import linear_matrix

    coarse = np.random.default_rng(1).standard_normal((8, 8, config.out_dim), np.float32)
    finer = linear_matrix(8, config.grid)
    return (0.1 * np.einsum("hi,wj,ijD->hwD", finer, finer, coarse))[None].astype(np.float32)


def draw_image(shown: str) -> UInt8[np.ndarray, "H W 3"]:
    """Waves of three colours, for a size as in `2048x1500`."""
    width, height = map(int, shown.split("x"))
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 30 + y / 50), np.cos(x / 17 - y / 23), np.sin(x * y / 4000)]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def _parameters(settings: Benchmark) -> dict[str, Any]:
    """Under the official names, which ours are, too."""
    return {
        "points_per_side": settings.per_side,
        "points_per_batch": settings.per_batch,
        "pred_iou_thresh": settings.iou,
        "stability_score_thresh": settings.stability,
    }


def _ours(settings: Benchmark) -> Generate:
    from pp_jax.memory import keep_freed_memory
    from pp_jax.predict.automatic import SamAutomaticMaskGenerator

    keep_freed_memory()
    config = VARIANTS[settings.variant]
    model, variables = decoder.our_sam(config, weigh=partial(weigh_objects, shifts=settings.shifts))
    known = {"known": {"embedding": draw_embedding(config)}}
    generator = SamAutomaticMaskGenerator(
        known_sam(model.config), variables | known, **_parameters(settings)
    )
    return partial(generator.generate, draw_image(settings.shown[0]))


def known_sam(config: SamConfig) -> "Sam":
    """Our model, that has encoded the image before."""
    from pp_jax.sam import Sam

    class Known(Sam):
        def encode(self, image: Any) -> Any:
            # XLA deletes the input stage where nothing depends on it, be there a barrier or not.
            return self.get_variable("known", "embedding") + 0 * image.mean()

    return Known(config)


def _official(settings: Benchmark) -> Generate:
    import torch

    config = VARIANTS[settings.variant]
    place = Place(config, 1, "float32", settings.device)
    model = decoder.their_sam(place, weigh=partial(weigh_objects, shifts=settings.shifts))
    import torchvision
    from segment_anything import automatic_mask_generator as official

    class Known(torch.nn.Module):
        img_size = config.image_size

        def __init__(self) -> None:
            super().__init__()
            embedding = np.moveaxis(draw_embedding(config), -1, 1)
            self.register_buffer("embedding", torch.from_numpy(embedding.copy()))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.embedding

    model.image_encoder = Known().to(settings.device)
    if not torchvision.extension._has_ops():
        official.batched_nms = _batched_nms
    generator = official.SamAutomaticMaskGenerator(model, **_parameters(settings))
    generate = torch.inference_mode()(generator.generate)
    return partial(generate, draw_image(settings.shown[0]))


def _batched_nms(boxes: Any, scores: Any, _: Any, iou_threshold: float) -> Any:
    """For a torchvision that was built for another torch and so has no operators.

    A few milliseconds of a generator's seconds.
    """
    import torch

    kept = suppress(boxes.cpu().numpy(), scores.cpu().numpy(), threshold=iou_threshold)
    return torch.from_numpy(kept).to(boxes.device)


def suppress(
    boxes: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, " N"], *, threshold: float
) -> Int[np.ndarray, " kept"]:
    """Indices of the boxes that no better one overlaps by an IoU above `threshold`, best first."""
    x0, y0, x1, y1 = boxes.astype(np.float32).T
    area = (x1 - x0) * (y1 - y0)
    order = np.argsort(-scores, kind="stable")
    free: Bool[np.ndarray, " N"] = np.ones(len(order), bool)
    kept = []
    for i in order:
        if not free[i]:
            continue
        kept.append(i)
        width = np.minimum(x1[i], x1) - np.maximum(x0[i], x0)
        height = np.minimum(y1[i], y1) - np.maximum(y0[i], y0)
        common = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore"):  # 0 / 0 of boxes without area suppresses nothing.
            iou = common / (area[i] + area - common)
        free &= ~(iou.astype(np.float64) > threshold)
    return np.array(kept, np.int64)


GENERATORS: Mapping[str, Callable[[Benchmark], Generate]] = MappingProxyType(
    {"ours": _ours, "official": _official}
)


if __name__ == "__main__":
    main()
