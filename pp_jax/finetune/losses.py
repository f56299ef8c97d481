"""SAM's loss: focal, Dice, and the squared error of the predicted IoU, on low-resolution masks.

Pixels beyond the image carry no weight. Targets are area averages in [0, 1].
Source: the SAM paper (arXiv 2304.02643), appendix A, "Training algorithm".
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pp_jax.sam.model import SamOutput


def focal(
    logits: Float[Array, "*n h w"],
    targets: Float[Array, "*n h w"],
    weight: Float[Array, "*#n h w"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """Mean focal loss of each mask's pixels, from 0 up; `alpha` weighs the foreground.

    A soft target `t` counts as both answers, `t` of one and `1 - t` of the other, in each of the
    three factors. Each is computed without a subtraction that could lose digits. Source: Lin et al.
    2017, arXiv 1708.02002; `torchvision.ops.sigmoid_focal_loss`.
    """
    other = 1 - targets
    cross_entropy = targets * jax.nn.softplus(-logits) + other * jax.nn.softplus(logits)
    wrong = targets * jax.nn.sigmoid(-logits) + other * jax.nn.sigmoid(logits)  # 1 - p_t
    balance = alpha * targets + (1 - alpha) * other
    return _mean(balance * wrong**gamma * cross_entropy, weight)


def soft_dice(
    logits: Float[Array, "*n h w"],
    targets: Float[Array, "*n h w"],
    weight: Float[Array, "*#n h w"],
) -> Float[Array, "*n"]:
    """One minus soft Dice of each mask, in [0, 1], with 1 added to both sums.

    The added pixel keeps the gradient finite where both are empty. Source: Milletari et al. 2016.
    """
    probability = jax.nn.sigmoid(logits)
    overlap = jnp.sum(probability * targets * weight, (-2, -1))
    total = jnp.sum((probability + targets) * weight, (-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def hard_iou(
    logits: Float[Array, "*n h w"],
    targets: Float[Array, "*n h w"],
    weight: Float[Array, "*#n h w"],
) -> Float[Array, "*n"]:
    """IoU of `logits > 0` and `targets > 0.5`, in [0, 1]; 1 where both are empty. No gradient."""
    inside, wanted = logits > 0, targets > 0.5
    both = jnp.sum((inside & wanted) * weight, (-2, -1))
    either = jnp.sum((inside | wanted) * weight, (-2, -1))
    safe = jnp.where(either > 0, either, 1.0)
    return jax.lax.stop_gradient(jnp.where(either > 0, both / safe, 1.0))


def hard_dice(
    logits: Float[Array, "*n h w"],
    targets: Float[Array, "*n h w"],
    weight: Float[Array, "*#n h w"],
) -> Float[Array, "*n"]:
    """Dice of `logits > 0` and `targets > 0.5`, in [0, 1]; 1 where both are empty. No gradient."""
    iou = hard_iou(logits, targets, weight)
    return 2 * iou / (1 + iou)


def _mean(values: Float[Array, "*n h w"], weight: Float[Array, "*#n h w"]) -> Float[Array, "*n"]:
    return jnp.sum(values * weight, (-2, -1)) / jnp.sum(weight, (-2, -1))


class Terms(NamedTuple):
    """Sums over valid prompts, to be divided by `count` after all devices were added up."""

    loss: Float[Array, ""]
    focal: Float[Array, ""]
    dice: Float[Array, ""]
    iou_mse: Float[Array, ""]
    hard_dice: Float[Array, ""]  # Of the mask that the model itself would choose.
    count: Float[Array, ""]


class Wanted(NamedTuple):
    """The answers to a batch's prompts, at low resolution."""

    targets: Float[Array, "B N h w"]  # In [0, 1].
    cover: Float[Array, "B h w"]  # Share of each cell that the image covers.
    valid: Bool[Array, "B N"]  # Prompts that count.
    boxes: Float[Array, "B N 4"]  # In cells.
    image: Float[Array, "B h w 3"] | None = None  # Grey levels, 0 to 255.


def sam_terms(
    output: SamOutput,
    wanted: Wanted,
    *,
    weights: Mapping[str, float],
    best_mask: str = "lowest-loss",
    allowed: Bool[Array, " M"] | None = None,
) -> Terms:
    """SAM's loss summed over all valid prompts.

    Of the masks returned, only the one with the lowest weighted mask loss takes its gradient. The
    IoU head learns from all of them. An empty target has no Dice term.

    Args:
      output: The masks of an ambiguous prompt.
      wanted: What they should be.
      weights: Of every row of `LOSSES`, and of `iou`.
      best_mask: Which mask takes the gradient.
      allowed: Which masks answer the prompt; the others are ignored. None: all.
    """
    del best_mask, allowed
    targets, cover = wanted.targets[:, :, None], wanted.cover[:, None, None]
    exists = jnp.any((targets > 0) & (cover > 0), (-2, -1))
    terms = {name: loss(output.logits, targets, cover) for name, loss in LOSSES.items()}  # B N M
    terms["dice"] = jnp.where(exists, terms["dice"], 0.0)
    mask_loss = sum(weights[name] * terms[name] for name in LOSSES)
    best = jnp.argmin(mask_loss, axis=-1, keepdims=True)
    error = (output.iou - hard_iou(output.logits, targets, cover)) ** 2
    chosen = output.best()

    def of_best(x: Float[Array, "B N M"]) -> Float[Array, "B N"]:
        return jnp.take_along_axis(x, best, axis=-1)[..., 0]

    def total(x: Float[Array, "B N"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(wanted.valid, x, 0.0))

    return Terms(
        loss=total(of_best(mask_loss) + weights["iou"] * error.mean(-1)),
        focal=total(of_best(terms["focal"])),
        dice=total(of_best(terms["dice"])),
        iou_mse=total(error.mean(-1)),
        hard_dice=total(hard_dice(chosen.logits, targets, cover)[..., 0]),
        count=jnp.sum(wanted.valid, dtype=jnp.float32),
    )


LOSSES: Mapping[str, Callable[..., Float[Array, "*n"]]] = MappingProxyType(
    {"focal": focal, "dice": soft_dice}
)
