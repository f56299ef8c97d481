"""Optimizers, learning-rate schedules and rates of parts of the model: one row each."""

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pp_jax import tree


class Optimizer(NamedTuple):
    """A row of `OPTIMIZERS`."""

    make: Callable[..., optax.GradientTransformation]  # Of the rate, weight_decay and its mask.
    weight_decay: float  # Where the user says nothing.


class Schedule(NamedTuple):
    """A row of `SCHEDULES`."""

    rate: Callable[..., optax.Schedule]  # Of the peak, warmup and steps; the warm-up is apart.
    # Of steps: what lowers the rate by what happens, as a last factor of the updates.
    reduce: Callable[[int], optax.GradientTransformation] | None = None


def make_optimizer(
    *,
    name: str,
    schedule: str,
    lr: float,
    warmup: int,
    steps: int,
    weight_decay: float | None,
    clip: float,
    lr_scale: Mapping[str, float] = MappingProxyType({}),
    layer_decay: float = 1.0,
    depth: int = 0,
) -> optax.GradientTransformation:
    """The update rule: clipped gradients, the named optimizer, decay of kernels alone.

    Args:
      weight_decay: None for the optimizer's own.
      lr_scale: Factors of the rate of rows of `PARTS`.
      layer_decay: Factor of the rate from one block of the image encoder to the one before it.
      depth: Blocks of the image encoder.
    """
    row, course = OPTIMIZERS[name], SCHEDULES[schedule]
    rate = warm_up(course.rate(lr, warmup=warmup, steps=steps), warmup=warmup)
    decay = row.weight_decay if weight_decay is None else weight_decay
    rules = [optax.clip_by_global_norm(clip)] if clip else []
    rules.append(row.make(rate, weight_decay=decay, mask=decays))
    if lr_scale or layer_decay != 1:
        rules.append(
            # Last, so that decoupled decay is scaled with the rest of the update.
            optax.stateless(
                lambda updates, _: jax.tree.map(
                    jnp.multiply,
                    updates,
                    factors(updates, lr_scale=lr_scale, layer_decay=layer_decay, depth=depth),
                )
            )
        )
    if course.reduce:
        rules.append(course.reduce(steps))
    return optax.with_extra_args_support(optax.chain(*rules))


def decays(params: Any) -> Any:
    """Which leaves weight decay acts on: kernels, not biases, norms, tokens, positions or pairs."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


# Schedules.


def warm_up(schedule: optax.Schedule, *, warmup: int) -> optax.Schedule:
    """Linear from 1 / `warmup` of the schedule to all of it in `warmup` steps."""
    if not warmup:
        return schedule
    return lambda step: schedule(step) * jnp.minimum((step + 1) / warmup, 1.0)


def paper_steps(lr: float, *, warmup: int, steps: int) -> optax.Schedule:
    """A tenth after 2/3 of the training and a hundredth after 26/27, the warm-up included.

    These are the paper's 60,000 and 86,666 of 90,000 steps (arXiv 2304.02643, appendix A).
    """
    del warmup
    first, second = (max(1, steps * part // 27) for part in (18, 26))
    return lambda step: lr * jnp.where(step < first, 1.0, jnp.where(step < second, 0.1, 0.01))


def cosine(lr: float, *, warmup: int, steps: int) -> optax.Schedule:
    """Half a cosine from the end of the warm-up down to a hundredth."""
    fall = optax.cosine_decay_schedule(lr, max(steps - warmup, 1), alpha=0.01)
    return lambda step: fall(jnp.maximum(step - warmup, 0))


def constant(lr: float, *, warmup: int, steps: int) -> optax.Schedule:
    """The peak throughout."""
    del warmup, steps
    return optax.constant_schedule(lr)


def halve_on_plateau(steps: int) -> optax.GradientTransformation:
    """Half the rate whenever the training loss no longer falls, down to a hundredth.

    The loss is averaged over windows of a hundredth of the training; five windows in a row without
    a new lowest mean halve the rate. It is read as `value` of `update`.
    """
    return optax.contrib.reduce_on_plateau(
        factor=0.5, patience=5, accumulation_size=max(1, steps // 100), min_scale=0.01
    )


# Rates of parts of the model.


def parse_lr_scale(spec: str) -> dict[str, float]:
    """Factors by part, of `PART=FACTOR,...`; empty for an empty text.

    Raises:
      ValueError: No such part, a part given twice, or a factor that is no number from 0 up.
    """
    scales: dict[str, float] = {}
    for told in spec.split(",") if spec else ():
        part, equals, factor = told.strip().partition("=")
        if not equals:
            raise ValueError(f"--lr-scale {told!r}: give PART=FACTOR, such as {_EXAMPLE}")
        if part not in PARTS:
            raise ValueError(f"--lr-scale {told}: no part {part!r}; choose from {', '.join(PARTS)}")
        if part in scales:
            raise ValueError(f"--lr-scale {spec}: {part} is given twice; give it once")
        scales[part] = _factor(factor, told=told)
    return scales


def _factor(text: str, *, told: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 <= factor < math.inf:
        raise ValueError(f"--lr-scale {told}: the factor must be a number from 0 up")
    return factor


def check_scales(params: tree.Tree, *, lr_scale: Mapping[str, float], layer_decay: float) -> None:
    """Nothing, where every factor has a parameter to act on.

    Args:
      params: What is trained.

    Raises:
      ValueError: A part, or the image encoder's layers, without a trained parameter.
    """
    paths = list(tree.flatten(params))
    trained = [part for part in PARTS if any(map(PARTS[part].match, paths))]
    for part, factor in lr_scale.items():
        if part not in trained:
            raise ValueError(
                f"--lr-scale {part}={factor:g}: nothing of {part} is trained; choose from "
                f"{', '.join(trained)}, or another --trainable"
            )
    layers = [path for path in paths if _BLOCK.match(path) or _STEM.match(path)]
    if layer_decay != 1 and not layers:
        raise ValueError(
            f"--layer-decay {layer_decay:g}: no layer of the image encoder is trained; leave it "
            "out, or choose --trainable full, last-k or lora"
        )


def factors(
    params: tree.Tree, *, lr_scale: Mapping[str, float], layer_decay: float, depth: int
) -> dict[str, Any]:
    """The factor of each leaf's rate: its part's, times the decay of its layer."""

    def of(path: str) -> float:
        part = next((name for name, pattern in PARTS.items() if pattern.match(path)), "")
        return lr_scale.get(part, 1.0) * layer_decay ** _depth_of(path, depth=depth)

    return tree.unflatten({path: of(path) for path in tree.flatten(params)})


def _depth_of(path: str, *, depth: int) -> int:
    """How many layers of the image encoder a leaf lies below its end, as ViTDet counts them.

    Block i of n lies n - i below, so that the last has one factor; the patches' embedding and
    their positions n + 1; the neck and all else 0.
    Source: `get_vit_lr_decay_rate` in projects/ViTDet of facebookresearch/detectron2.
    """
    if block := _BLOCK.match(path):
        return depth - int(block[1])
    return depth + 1 if _STEM.match(path) else 0


# A pair of LoRA lies as deep as the projection that it stands beside.
_BLOCK = re.compile(r"(?:params|lora)/image_encoder/blocks_(\d+)/")
_STEM = re.compile(r"params/image_encoder/(?:patch_embed/|pos_embed$)")
_EXAMPLE = "image_encoder=0.1,mask_decoder=1"


# The tables.


def _adam(rate: optax.Schedule, *, weight_decay: float, mask: Any) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.adam(rate))


def _sgd(rate: optax.Schedule, *, weight_decay: float, mask: Any) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.sgd(rate, momentum=0.9))


def _adafactor(
    rate: optax.Schedule, *, weight_decay: float, mask: Any
) -> optax.GradientTransformation:
    """Not `optax.adafactor`, whose decay does not follow the rate.

    The rate is absolute, not relative to a parameter's size: LoRA's zeros would hardly move.
    """
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(rate),
    )


# Decay is decoupled (the rate times the decay times the weight is taken off the weight) but of adam
# and sgd-momentum, where it is L2: it is added to the clipped gradient before any moments.
OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "adamw": Optimizer(optax.adamw, 0.1),  # The paper's, with its betas .9 and .999.
        "adam": Optimizer(_adam, 0.0),
        "sgd-momentum": Optimizer(_sgd, 0.0),  # Momentum .9 without dampening, as torch's.
        # Betas .9 and .99 (arXiv 2302.06675), which asks for a third to a tenth of AdamW's rate.
        "lion": Optimizer(optax.lion, 0.1),
        # Arrays of two axes of 128 and more keep a row and a column (arXiv 1804.04235).
        "adafactor": Optimizer(_adafactor, 0.0),
    }
)

SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "paper": Schedule(paper_steps),
        "cosine": Schedule(cosine),
        "constant": Schedule(constant),
        "plateau": Schedule(constant, halve_on_plateau),
    }
)

PARTS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "image_encoder": re.compile("params/image_encoder/"),
        "prompt_encoder": re.compile("params/prompt_encoder/"),
        "mask_decoder": re.compile("params/mask_decoder/"),
        "lora": re.compile("lora/"),
        "fusion": re.compile("fusion/"),
    }
)

LR_SCALE_HELP = f"PART=FACTOR,... with a part of {', '.join(PARTS)}"
