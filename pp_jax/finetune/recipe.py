"""From a run's settings to the pure functions that train it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pp_jax import config, tree
from pp_jax.config import TrainConfig, look_of
from pp_jax.finetune.losses import Terms
from pp_jax.finetune.optimize import make_optimizer
from pp_jax.finetune.step import make_step, make_terms
from pp_jax.finetune.trainable import POLICIES
from pp_jax.lora import lora_of
from pp_jax.preprocess import augment
from pp_jax.preprocess.stage import make_stage
from pp_jax.prompts import Purpose
from pp_jax.sam import Sam, sized

_PAPER_WARMUP = 250


def model_of(settings: TrainConfig, *, mesh: Mesh | None = None) -> Sam:
    """The model as it is trained, for the devices of a mesh."""
    attention = settings.attention
    if attention == "auto" and mesh is not None and mesh.shape["tensor"] > 1:
        attention = "rows"  # The others loop over heads, or know of one device only.
    return Sam(
        sized(settings.variant, settings.image_size),
        dtype=jnp.dtype(settings.dtype),
        remat=settings.remat,
        attention=attention,
        lora=lora_of(settings),
    )


def rules_of(settings: TrainConfig) -> tree.Rules[bool]:
    """Which variables the settings train: ordered rules over their paths."""
    fusion = (("fusion/.*", True),) if settings.fusion == "learned" else ()
    return (*fusion, *POLICIES[settings.trainable])


def optimizer_of(settings: TrainConfig, *, steps: int) -> optax.GradientTransformation:
    """The update rule of a training of so many steps."""
    warmup = min(_PAPER_WARMUP, steps // 10) if settings.warmup is None else settings.warmup
    return make_optimizer(
        name=settings.optimizer,
        schedule=settings.schedule,
        lr=settings.lr,
        warmup=warmup,
        steps=steps,
        weight_decay=0.1 if settings.weight_decay is None else settings.weight_decay,
        clip=settings.clip,
    )


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
        weights={name: getattr(settings, name) for name in (*config.LOSS_WEIGHTS, "iou")},
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
