"""Prompts on a stored embedding, beside the official package and transformers, in turn.

    python -m benchmarks.decoder --variant vit_b --prompts 1 16 64 256
    python -m benchmarks.decoder --prompts --clicks tiny vit_b       # One click alone.

First prompt encoder and mask decoder, for one positive point in each prompt and all prompts at
once: from points to the three masks in low resolution, on the device. Then one click, as a user
calls it: from a point in pixels of the image to three masks of its size in the host's memory.

Prints Markdown. All programs have the same random weights (`weigh`), so that they can be seen to do
the same work. Their encoder has one block: it never runs, and would only hide the decoder's memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Float32

from benchmarks import turns
from benchmarks.peers import Place, blocking, official_sam, start_torch, transformers_sam
from benchmarks.weights import Weigh, weigh, weighed
from pp_jax.sam import VARIANTS, SamConfig

if TYPE_CHECKING:
    import torch

    from pp_jax.sam import Sam

PACKAGES = ("jax", "flax", "torch", "segment-anything", "transformers")

Decode = Callable[[], tuple[Any, Any]]  # Three logits and predicted IoU of each prompt.
Click = Callable[[], np.ndarray]  # Three masks of the image's size.


@dataclass(frozen=True, kw_only=True)
class Benchmark(turns.Settings):
    """Time prompts on a stored embedding side by side."""

    variant: Literal[tuple(VARIANTS)] = "vit_b"
    """Of the model that decodes."""
    prompts: tuple[int, ...] = (1, 16, 64, 256)
    """Numbers of prompts on one embedding, each measured by itself."""
    clicks: tuple[Literal[tuple(VARIANTS)], ...] = ("tiny", "vit_b")
    """Variants to measure one click with."""
    shown: tuple[int, int] = (2048, 1500)
    """Width and height of the image that is clicked on."""

    turn_s: ClassVar[float] = 1.0


def main() -> None:
    """Measure, and print a table for each number of prompts and each variant clicked on."""
    settings = turns.read(Benchmark, make_programs)
    turns.print_machine(settings, PACKAGES)
    for count in settings.prompts:
        print(f"\n`{settings.variant}`, {count} prompts of one point, on one embedding:\n")
        rows = _measure(replace(settings, prompts=(count,), clicks=()))
        print(turns.table(rows, count=count, unit="prompts"))
    for variant in settings.clicks:
        width, height = settings.shown
        print(f"\n`{variant}`, one click on a stored embedding, image of {width} x {height}:\n")
        rows = _measure(replace(settings, prompts=(), clicks=(variant,)))
        print(turns.table(rows, count=1, unit="clicks"))


def _measure(settings: Benchmark) -> dict[str, turns.Measured | str]:
    programs = make_programs(settings)
    # Not every peer that decodes can be clicked on.
    keep = [name for name in settings.keep if name in programs]
    return turns.take_turns("benchmarks.decoder", programs, settings, keep=keep)


def make_programs(settings: Benchmark) -> Mapping[str, turns.Prepare]:
    """What takes turns: clicks with the first variant of `clicks`, if any; else decoders."""
    if settings.clicks:
        place = _place(settings, settings.clicks[0])
        return {
            name: partial(build, place, settings.shown)  # What is on the host has ended.
            for name, build in CLICKS.items()
        }
    place = _place(settings, settings.variant)
    points = draw_points(place.config, settings.prompts[0])
    return {name: partial(build, place, points) for name, build in DECODERS.items()}


def _place(settings: Benchmark, variant: str) -> Place:
    return Place(VARIANTS[variant], 1, "float32", settings.device)


# The same weights, points and embedding for all.


def draw_points(config: SamConfig, count: int) -> Float32[np.ndarray, "N 2"]:
    """Points anywhere on the image, model frame."""
    points = np.random.default_rng(0).uniform(0, config.image_size, (count, 2))
    return points.astype(np.float32)


def draw_embedding(config: SamConfig) -> Float32[np.ndarray, "1 h w D"]:
    """What an encoder might have said of an image."""
    shape = 1, config.grid, config.grid, config.out_dim
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def without_encoder(config: SamConfig) -> SamConfig:
    """As good as: an encoder of one block."""
    return replace(config, depth=1, global_blocks=())


def our_sam(config: SamConfig, *, weigh: Weigh = weigh) -> tuple["Sam", dict[str, Any]]:
    """`(model, variables)`, without an encoder to speak of."""
    from pp_jax.sam import Sam

    model = Sam(without_encoder(config))
    return model, weighed(model, weigh=weigh)


def their_sam(place: Place, *, weigh: Weigh = weigh) -> "torch.nn.Module":
    """The official model with the same weights, on the device."""
    device = start_torch(place)
    model = official_sam(without_encoder(place.config))
    _load(model, {name: name for name in model.state_dict()}, weigh)
    return model.to(device)


def _load(model: "torch.nn.Module", official: Mapping[str, str], weigh: Weigh) -> None:
    """Weights of their official names into the tensors of the model's own names."""
    import torch

    state = model.state_dict()
    for name, own in official.items():
        state[own] = torch.from_numpy(np.array(weigh(name, tuple(state[own].shape))))
    model.load_state_dict(state)


# Prompt encoder and mask decoder.


def _ours(place: Place, points: Float[np.ndarray, "N 2"], *, at_once: bool = False) -> Decode:
    """Our decoder, compiled; some prompts at a time, as is best on the device, or all at once."""
    import jax
    import jax.numpy as jnp

    from pp_jax.memory import keep_freed_memory
    from pp_jax.predict.predictor import predict
    from pp_jax.prompts import make_prompts
    from pp_jax.types import FOREGROUND

    keep_freed_memory()
    model, variables = our_sam(place.config)
    embedding, clicks = jax.device_put((draw_embedding(place.config), points[None, :, None]))

    @jax.jit
    def decode(variables: dict, embedding: jax.Array, clicks: jax.Array) -> tuple:
        prompts = make_prompts(points=clicks, labels=jnp.full(clicks.shape[:3], FOREGROUND))
        if at_once:
            output = model.apply(variables, embedding, prompts, method="decode")
        else:
            output = predict(model, variables, embedding, prompts)
        three = output.three()
        return three.logits[0], three.iou[0]

    return lambda: jax.block_until_ready(decode(variables, embedding, clicks))


def _official(place: Place, points: Float[np.ndarray, "N 2"]) -> Decode:
    import torch

    model = their_sam(place)
    embedding, clicks = _in_torch(place, points)
    labels = torch.ones(clicks.shape[:2], dtype=torch.int, device=clicks.device)

    @torch.inference_mode()
    def decode() -> tuple:
        sparse, dense = model.prompt_encoder(points=(clicks, labels), boxes=None, masks=None)
        return model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )

    return blocking(decode, clicks.device)


def _transformers(place: Place, points: Float[np.ndarray, "N 2"], *, attention: str) -> Decode:
    device = start_torch(place)
    c = without_encoder(place.config)
    settings = transformers_sam(c, attention=attention, dtype="float32").config
    import torch
    import transformers

    from convert.hugging_face import to_official

    settings.prompt_encoder_config.image_size = c.image_size
    settings.prompt_encoder_config.image_embedding_size = c.grid
    settings.mask_decoder_config.layer_norm_eps = 1e-5  # As in the official decoder.
    model = transformers.SamModel._from_config(settings, attn_implementation=attention)
    _load(model, to_official({name: name for name in model.state_dict()}), weigh)
    model = model.to(device).eval().requires_grad_(False)
    embedding, clicks = _in_torch(place, points)
    labels = torch.ones((1, *clicks.shape[:2]), dtype=torch.int, device=device)

    @torch.inference_mode()
    def decode() -> tuple:
        answer = model(
            image_embeddings=embedding,
            input_points=clicks[None],
            input_labels=labels,
            multimask_output=True,
        )
        return answer.pred_masks[0], answer.iou_scores[0]

    return blocking(decode, clicks.device)


def _in_torch(place: Place, points: np.ndarray) -> "tuple[torch.Tensor, torch.Tensor]":
    """The embedding `1 D h w`, and the points `N 1 2`."""
    import torch

    first = np.moveaxis(draw_embedding(place.config), -1, 1).copy()
    return tuple(torch.from_numpy(x).to(place.device) for x in (first, points[:, None].copy()))


# One click.


def _our_predictor(place: Place, shown: tuple[int, int]) -> Click:
    import jax

    from pp_jax.memory import keep_freed_memory
    from pp_jax.predict.official import LoadedSam, SamPredictor

    keep_freed_memory()
    predictor = SamPredictor(LoadedSam(*our_sam(place.config)))
    _remember(predictor, jax.device_put(draw_embedding(place.config)), place.config, shown)
    point, label = _point(shown)
    return lambda: predictor.predict(point, label)[0]


def _our_asker(place: Place, shown: tuple[int, int]) -> Click:
    import jax

    from pp_jax.config import Look
    from pp_jax.memory import keep_freed_memory
    from pp_jax.predict import asking
    from pp_jax.preprocess import geometry, roi
    from pp_jax.preprocess.stage import make_stage

    keep_freed_memory()
    model, variables = our_sam(place.config)
    side = place.config.image_size
    asker = asking.make_asker(model, variables, stage=make_stage(Look(), side=side))
    image = np.zeros((*shown[::-1], 3), np.uint8)
    embedded = asking.Embedded(
        jax.device_put(draw_embedding(place.config)),
        geometry.resized_shape(*image.shape[:2], longest=side),
        image.shape[:2],
        roi.whole_window(image),
    )
    point, label = _point(shown)
    marks = asking.Marks(points=point[None], labels=label[None])

    def click() -> np.ndarray:
        found = asking.answer_marks(asker, image, marks, single=False, embedded=embedded)
        return found.candidates[0]

    return click


def _official_predictor(place: Place, shown: tuple[int, int]) -> Click:
    import torch

    model = their_sam(place)
    from segment_anything import SamPredictor

    predictor = SamPredictor(model)
    embedding, _ = _in_torch(place, np.zeros((1, 2), np.float32))
    _remember(predictor, embedding, place.config, shown)
    point, label = _point(shown)

    @torch.inference_mode()
    def click() -> np.ndarray:
        return predictor.predict(point, label)[0]

    return click


def _remember(predictor: Any, embedding: Any, config: SamConfig, shown: tuple[int, int]) -> None:
    """The predictor as `set_image` would have left it."""
    from pp_jax.preprocess.geometry import resized_shape

    height, width = shown[::-1]
    predictor.features, predictor.original_size = embedding, (height, width)
    predictor.input_size = resized_shape(height, width, longest=config.image_size)
    predictor.is_image_set = True


def _point(shown: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[0.4 * shown[0], 0.6 * shown[1]]]), np.ones(1, np.int32)


DECODERS: Mapping[str, Callable[[Place, np.ndarray], Decode]] = MappingProxyType(
    {
        "ours": _ours,
        "ours, at once": partial(_ours, at_once=True),
        "official": _official,
        "transformers-eager": partial(_transformers, attention="eager"),
        "transformers-sdpa": partial(_transformers, attention="sdpa"),
    }
)

CLICKS: Mapping[str, Callable[[Place, tuple[int, int]], Click]] = MappingProxyType(
    {"ours": _our_predictor, "ours, asker": _our_asker, "official": _official_predictor}
)


if __name__ == "__main__":
    main()
