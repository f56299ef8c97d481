"""The parity ladder: our SAM and the official one, stage by stage, on the same weights and pixels.

Below each rung both sides get the *same* input, so the first rung that differs names the fault.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float, UInt8

from convert import reference
from pp_jax.config import Look
from pp_jax.preprocess import geometry
from pp_jax.preprocess.stage import make_stage
from pp_jax.prompts import make_prompts
from pp_jax.sam import Sam, SamConfig, SamOutput
from pp_jax.types import NEUTRAL, Prompts

# What a stage may differ by, in units of the deviation of torch's answer. Both sides round each of
# some hundred float32 operations in another order: about 1e-6 a stage.
TOLERANCE = 1e-4
PIXELS = 1e-4  # Share of a mask's pixels.


class Case(NamedTuple):
    """One prompt in the model frame; what is None or empty is not given."""

    name: str
    points: Sequence[tuple[float, float]] = ()
    labels: Sequence[int] = ()
    box: tuple[float, float, float, float] | None = None
    mask: int | None = None  # Seed of the mask prompt's logits.


class Rung(NamedTuple):
    """How far the two sides are apart at one stage."""

    stage: str
    largest: float  # In units of the deviation of torch's answer, or a share of pixels.
    mean: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether they agree."""
        return self.largest <= self.tolerance


class Answer(NamedTuple):
    """Torch's answer to one prompt."""

    sparse: Float[np.ndarray, "P D"]
    dense: Float[np.ndarray, "h w D"]
    logits: Float[np.ndarray, "M h w"]
    iou: Float[np.ndarray, " M"]


def cases(side: int) -> list[Case]:
    """Every type of prompt and their mixes, on an image of `side`."""
    s = side / 1024
    box = (200.5 * s, 101.25 * s, 700.0 * s, 480.75 * s)
    three = [(500.0 * s, 375.0 * s), (1013.0 * s, 20.0 * s), (3.0 * s, 700.5 * s)]
    return [
        Case("one point", points=three[:1], labels=[1]),
        Case("three points", points=three, labels=[1, 0, 1]),
        Case("box", box=box),
        Case("points and box", points=three[:2], labels=[0, 1], box=box),
        Case("mask", mask=1),
        Case("point and mask", points=three[2:], labels=[0], mask=2),
        Case("box and mask", box=box, mask=3),
        Case("nothing"),
    ]


def mask_logits(seed: int, *, side: int) -> Float[np.ndarray, "h w"]:
    """A smooth mask prompt of raw logits."""
    coarse = np.random.default_rng(seed).normal(size=(1, 1, 8, 8)).astype(np.float32)
    up = torch.nn.functional.interpolate(torch.from_numpy(8 * coarse), (side, side), mode="bicubic")
    return up[0, 0].numpy()


def to_prompts(which: Sequence[Case], *, batch: int, mask_side: int) -> Prompts:
    """All cases as the `N` prompts of each image, in one padded record."""
    count, most = len(which), max(len(case.points) for case in which)
    points, labels = np.zeros((count, most, 2), np.float32), np.full((count, most), NEUTRAL)
    boxes, masks = np.zeros((count, 4), np.float32), np.zeros((count, mask_side, mask_side))
    for i, case in enumerate(which):
        if case.points:
            points[i, : len(case.points)], labels[i, : len(case.points)] = case.points, case.labels
        if case.box:
            boxes[i] = case.box
        if case.mask is not None:
            masks[i] = mask_logits(case.mask, side=mask_side)

    def many(x: np.ndarray, dtype: type) -> jax.Array:
        return jnp.asarray(np.broadcast_to(x, (batch, *x.shape)), dtype)

    return make_prompts(
        points=many(points, np.float32),
        labels=many(labels, np.int32),
        boxes=many(boxes, np.float32),
        has_box=many(np.array([case.box is not None for case in which]), bool),
        masks=many(masks, np.float32),
        has_mask=many(np.array([case.mask is not None for case in which]), bool),
        mask_side=mask_side,
    )


def channels_first(x: np.ndarray) -> torch.Tensor:
    """Our layout as torch's."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def official_answer(
    model: reference.Sam, embedding: Float[torch.Tensor, "D h w"], case: Case, *, mask_side: int
) -> Answer:
    """The encoding of one prompt, and all four masks for it on one image."""
    points = None
    if case.points:
        points = (torch.tensor([case.points]), torch.tensor([case.labels]))
    box = torch.tensor([case.box]) if case.box else None
    mask = None
    if case.mask is not None:
        mask = torch.from_numpy(mask_logits(case.mask, side=mask_side))[None, None]
    with torch.no_grad():
        sparse, dense = model.prompt_encoder(points=points, boxes=box, masks=mask)
        logits, iou = model.mask_decoder.predict_masks(
            image_embeddings=embedding[None],
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
    grid = dense[0].permute(1, 2, 0)
    return Answer(sparse[0].numpy(), grid.numpy(), logits[0].numpy(), iou[0].numpy())


def stage_names(config: SamConfig) -> dict[str, str]:
    """The encoder's stages: our module's name -> torch's."""
    names = {"patch_embed": "patch_embed"}
    names |= {f"blocks_{i:02d}": f"blocks.{i}" for i in range(config.depth)}
    return names | {f"neck_{i}": f"neck.{i}" for i in range(4)}


def our_stages(
    config: SamConfig, variables: Mapping[str, Any], image: Float[np.ndarray, "B S S 3"]
) -> dict[str, np.ndarray]:
    """The output of each stage of our encoder."""
    return jax.device_get(_our_stages(config, variables, image))


# One program for all checkpoints of a variant.
@functools.partial(jax.jit, static_argnames="config")
def _our_stages(
    config: SamConfig, variables: Mapping[str, Any], image: Float[jax.Array, "B S S 3"]
) -> dict[str, jax.Array]:
    _, kept = Sam(config).apply(
        variables, image, method="encode", capture_intermediates=True, mutable="intermediates"
    )
    encoder = kept["intermediates"]["image_encoder"]
    return {name: encoder[name]["__call__"][0] for name in stage_names(config)}


def official_stages(
    config: SamConfig, model: reference.Sam, image: Float[np.ndarray, "B S S 3"]
) -> dict[str, np.ndarray]:
    """The output of each stage of the official encoder, channels last."""
    encoder, pixels = model.image_encoder, channels_first(image)
    heard = reference.listen(encoder, stage_names(config), lambda: encoder(pixels))
    return {k: np.moveaxis(v, 1, -1) if k.startswith("neck") else v for k, v in heard.items()}


def climb(
    config: SamConfig,
    variables: Mapping[str, Any],
    model: reference.Sam,
    image: UInt8[np.ndarray, "H W 3"],
) -> Iterator[Rung]:
    """Each stage's difference, from the image file's pixels to masks at its size."""
    side = config.image_size
    transform = reference.segment_anything.utils.transforms.ResizeLongestSide(side)
    theirs = transform.apply_image(image)
    mine = geometry.resize_image(image, longest=side)
    yield _rung("resized pixels", mine.astype(float), theirs.astype(float), tolerance=0.0)

    size = np.array([mine.shape[:2]], np.int32)
    stage = make_stage(Look(), side=side)
    pixels = np.asarray(jax.jit(stage)(geometry.pad_square(mine, side=side)[None], size))
    wanted = model.preprocess(channels_first(theirs[None]).float())
    yield _rung("normalised pixels", pixels, np.moveaxis(wanted.numpy(), 1, -1), tolerance=0.0)

    ours, official = our_stages(config, variables, pixels), official_stages(config, model, pixels)
    for name, want in official.items():
        yield _rung(f"image_encoder/{name}", ours[name], want)

    yield from _prompted(config, variables, model, official["neck_3"], size[0], image.shape[:2])


def _prompted(
    config: SamConfig,
    variables: Mapping[str, Any],
    model: reference.Sam,
    embedding: Float[np.ndarray, "1 h w D"],
    size: np.ndarray,
    original: tuple[int, int],
) -> Iterator[Rung]:
    """The rungs from the embedding on, for each type of prompt."""
    which = cases(config.image_size)
    prompts = to_prompts(which, batch=1, mask_side=config.mask_side)
    labels = np.asarray(prompts.labels)
    position, (sparse, dense), output = jax.device_get(
        _decode(config, variables, embedding, prompts)
    )
    wanted = model.prompt_encoder.get_dense_pe()[0].permute(1, 2, 0)
    yield _rung("prompt_encoder/dense_position", position, wanted.numpy())
    for n, case in enumerate(which):
        features = channels_first(embedding)[0]
        want = official_answer(model, features, case, mask_side=config.mask_side)
        used = labels[0, n] != NEUTRAL
        if used.any():
            found = sparse[0, n][used]
            yield _rung(f"prompt_encoder/sparse ({case.name})", found, want.sparse)
        yield _rung(f"prompt_encoder/dense ({case.name})", dense[0, n], want.dense)
        yield _rung(f"mask_decoder/logits ({case.name})", output.logits[0, n], want.logits)
        yield _rung(f"mask_decoder/iou ({case.name})", output.iou[0, n], want.iou, unit=1.0)
        up = _upscale(output.logits[0, n], size, side=config.image_size, original=original)
        theirs = model.postprocess_masks(
            torch.from_numpy(want.logits)[None], tuple(size.tolist()), original
        )[0]
        odd = float(((np.asarray(up) > 0) != (theirs.numpy() > 0)).mean())
        yield Rung(f"masks, share of other pixels ({case.name})", odd, odd, PIXELS)


@functools.partial(jax.jit, static_argnames="config")
def _decode(
    config: SamConfig,
    variables: Mapping[str, Any],
    embedding: Float[jax.Array, "B h w D"],
    prompts: Prompts,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array], SamOutput]:
    """The positions, the encoded prompts, and the masks."""
    sam = Sam(config)
    position = sam.apply(variables, method=lambda m: m.prompt_encoder.dense_position())
    encoded = sam.apply(variables, prompts, method=lambda m, p: m.prompt_encoder(p))
    return position, encoded, sam.apply(variables, embedding, prompts, method="decode")


@functools.partial(jax.jit, static_argnames=("side", "original"))
def _upscale(
    logits: Float[jax.Array, "M h w"], size: np.ndarray, *, side: int, original: tuple[int, int]
) -> Float[jax.Array, "M H W"]:
    return geometry.postprocess_masks(
        logits, side=side, size=size, original=jnp.array(original), canvas=original
    )


def _rung(
    stage: str,
    got: Any,
    want: np.ndarray,
    *,
    tolerance: float = TOLERANCE,
    unit: float | None = None,
) -> Rung:
    unit = unit or float(want.std()) or 1.0
    difference = np.abs(np.asarray(got, np.float64) - want) / unit
    return Rung(stage, float(difference.max()), float(difference.mean()), tolerance)


def table(rungs: Sequence[Rung]) -> str:
    """The rungs as text, the first that fails marked."""
    width = max(len(rung.stage) for rung in rungs)
    lines = [f"{'stage':{width}}  largest   mean      allowed"]
    first = next((rung for rung in rungs if not rung.holds), None)
    for rung in rungs:
        mark = "" if rung.holds else ("  <- differs first" if rung is first else "  differs")
        figures = f"{rung.largest:.1e}   {rung.mean:.1e}   {rung.tolerance:.0e}"
        lines.append(f"{rung.stage:{width}}  {figures}{mark}")
    return "\n".join(lines)
