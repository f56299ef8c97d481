"""From a run's settings to the pure functions that train it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pp_jax import config, tree
from pp_jax.config import TrainConfig, look_of
from pp_jax.finetune.losses import Terms
from pp_jax.finetune.models import Model, config_of, depth_of, make_model
from pp_jax.finetune.optimize import (
    SCHEDULES,
    check_scales,
    make_optimizer,
    parse_lr_scale,
    warm_up,
)
from pp_jax.finetune.step import make_step, make_terms
from pp_jax.finetune.trainable import policy
from pp_jax.lora import lora_of
from pp_jax.preprocess import augment
from pp_jax.preprocess.stage import initial_fusion, make_stage
from pp_jax.prompts import Purpose
from pp_jax.sam.model import init
from pp_jax.sharding import by_rows

_PAPER_WARMUP = 250


def model_of(settings: TrainConfig, *, mesh: Mesh | None = None) -> Model:
    """The model as it is trained, for the devices of a mesh."""
    attention = settings.attention
    if attention == "auto" and mesh is not None and mesh.shape["tensor"] > 1:
        attention = "rows"  # The others loop over heads, or know of one device only.
    return make_model(
        config_of(settings.variant, settings.image_size),
        dtype=jnp.dtype(settings.dtype),
        remat=settings.remat,
        attention=attention,
        lora=lora_of(settings),
        scan_blocks=settings.scan_blocks,
        rows=None if mesh is None else by_rows(mesh),
    )


def rules_of(settings: TrainConfig) -> tree.Rules[bool]:
    """Which variables the settings train: ordered rules over their paths.

    Raises:
      ValueError: More last blocks than the variant has.
    """
    depth = depth_of(settings.variant)
    rules = policy(settings.trainable, depth=depth, last_blocks=settings.last_blocks)
    return (("fusion/.*", True), *rules) if settings.fusion == "learned" else tuple(rules)


def trained_of(settings: TrainConfig) -> dict[str, Any]:
    """Shapes of the variables that the settings train."""
    model, look = model_of(settings), look_of(settings)
    shapes = jax.eval_shape(lambda key: init(model, key) | initial_fusion(look), jax.random.key(0))
    return tree.partition(shapes, rules_of(settings))[0]


def check_rules(settings: TrainConfig) -> None:
    """Nothing, where what is trained and at which rates fits the model.

    Raises:
      ValueError: Names the flag, its value and what to choose instead.
    """
    rules_of(settings)
    lora_of(settings)
    scales = parse_lr_scale(settings.lr_scale)
    if scales or settings.layer_decay != 1:
        check_scales(trained_of(settings), lr_scale=scales, layer_decay=settings.layer_decay)


def optimizer_of(settings: TrainConfig, *, steps: int) -> optax.GradientTransformation:
    """The update rule of a training of so many steps."""
    warmup = _warmup(settings, steps)
    return make_optimizer(
        name=settings.optimizer,
        schedule=settings.schedule,
        lr=settings.lr,
        warmup=warmup,
        steps=steps,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        lr_scale=parse_lr_scale(settings.lr_scale),
        layer_decay=settings.layer_decay,
        depth=depth_of(settings.variant),
    )


def rate_of(settings: TrainConfig, *, steps: int) -> optax.Schedule:
    """The learning rate by step, before what parts, layers and a plateau make of it."""
    warmup = _warmup(settings, steps)
    course = SCHEDULES[settings.schedule].rate(settings.lr, warmup=warmup, steps=steps)
    return warm_up(course, warmup=warmup)


def _warmup(settings: TrainConfig, steps: int) -> int:
    return min(_PAPER_WARMUP, steps // 10) if settings.warmup is None else settings.warmup


def terms_of(
    settings: TrainConfig, purpose: Purpose, *, mesh: Mesh | None = None
) -> Callable[..., Terms]:
    """The loss's sums of a batch; see `make_terms`.

    Only training has rounds of clicks and augmentation: what validates is one prompt on the image.
    """
    training = purpose is Purpose.TRAIN_PROMPT
    model = model_of(settings, mesh=mesh)
    return make_terms(
        model,
        make_stage(look_of(settings), side=model.config.image_size),
        prompting=settings.prompting,
        purpose=purpose,
        weights=config.weights_of_losses(settings),
        best_mask=settings.best_mask,
        rounds=settings.rounds if training else 1,
        chain=augment.make_chain(settings.augment if training else "none"),
    )


def step_of(
    settings: TrainConfig, *, steps: int, mesh: Mesh | None = None
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """The optimizer step of a training of so many steps; see `make_step`."""
    return make_step(
        terms_of(settings, Purpose.TRAIN_PROMPT, mesh=mesh),
        optimizer_of(settings, steps=steps),
        accumulate=settings.accumulate,
    )
