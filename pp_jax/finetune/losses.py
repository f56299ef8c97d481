"""SAM's loss: focal, Dice, and the squared error of the predicted IoU, on low-resolution masks.

Beside them other rows of `LOSSES`, each with a weight of its own. Every loss is of one mask, never
of a batch: an image's is the mean over its objects, a batch's the mean over its images. Pixels
beyond the image carry no weight. Targets are area averages in [0, 1].
Source: the SAM paper (arXiv 2304.02643), appendix A, "Training algorithm".
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pp_jax.finetune.boundary import boundary
from pp_jax.finetune.box_supervision import box_projection, pairwise_affinity
from pp_jax.sam.model import SamOutput


def focal(
    logits: Float[Array, "*n h w"],
    targets: Float[Array, "*#n h w"],
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
    wrong = targets * jax.nn.sigmoid(-logits) + other * jax.nn.sigmoid(logits)  # 1 - p_t
    balance = alpha * targets + (1 - alpha) * other
    return _mean(balance * wrong**gamma * _cross_entropy(logits, targets), weight)


def soft_dice(
    logits: Float[Array, "*n h w"],
    targets: Float[Array, "*#n h w"],
    weight: Float[Array, "*#n h w"],
) -> Float[Array, "*n"]:
    """One minus soft Dice of each mask, in [0, 1], with 1 added to both sums.

    The added pixel keeps the gradient finite where both are empty. Source: Milletari et al. 2016.
    """
    probability = jax.nn.sigmoid(logits)
    overlap = jnp.sum(probability * targets * weight, (-2, -1))
    total = jnp.sum((probability + targets) * weight, (-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def bce(
    logits: Float[Array, "*n h w"],
    targets: Float[Array, "*#n h w"],
    weight: Float[Array, "*#n h w"],
) -> Float[Array, "*n"]:
    """Mean binary cross-entropy of each mask's pixels, in nats; at least that of the target."""
    return _mean(_cross_entropy(logits, targets), weight)


def hard_iou(
    logits: Float[Array, "*n h w"],
    targets: Float[Array, "*#n h w"],
    weight: Float[Array, "*#n h w"],
) -> Float[Array, "*n"]:
    """IoU of `logits > 0` and `targets > 0.5`, in [0, 1]; 1 where both are empty. No gradient."""
    inside, wanted = logits > 0, targets > 0.5
    both = jnp.sum((inside & wanted) * weight, (-2, -1))
    either = jnp.sum((inside | wanted) * weight, (-2, -1))
    safe = jnp.where(either > 0, either, 1.0)
    return jax.lax.stop_gradient(jnp.where(either > 0, both / safe, 1.0))


def _cross_entropy(
    logits: Float[Array, "*n h w"], targets: Float[Array, "*#n h w"]
) -> Float[Array, "*n h w"]:
    return targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)


def _mean(values: Float[Array, "*n h w"], weight: Float[Array, "*#n h w"]) -> Float[Array, "*n"]:
    return jnp.sum(values * weight, (-2, -1)) / jnp.sum(weight, (-2, -1))


class Terms(NamedTuple):
    """Sums over images, to be divided by `count` after all devices were added up.

    Each image that has a valid prompt adds the mean over its valid prompts. Losses are those of the
    mask that takes the gradient, without their weights.
    """

    loss: Float[Array, ""]
    focal: Float[Array, ""]
    dice: Float[Array, ""]
    bce: Float[Array, ""]
    boundary: Float[Array, ""]
    projection: Float[Array, ""]
    affinity: Float[Array, ""]
    iou_mse: Float[Array, ""]
    hard_dice: Float[Array, ""]  # Of the mask that the model itself would choose.
    count: Float[Array, ""]  # Images with a valid prompt.


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
    """SAM's loss summed over all images that have a valid prompt.

    Of the masks returned, only the best takes the gradient of the mask losses. The IoU head learns
    from all of them. An empty target has nothing but its focal loss, cross-entropy and IoU.

    Args:
      output: The masks of an ambiguous prompt.
      wanted: What they should be.
      weights: Of rows of `LOSSES`, and of `iou`; numbers, not traced. A row without one, or with 0,
        is not computed, and its field is 0.
      best_mask: Which mask takes the gradient, a row of `BEST_MASKS`.
      allowed: Which masks answer the prompt; the others are neither chosen nor trained. None: all.

    Raises:
      ValueError: A weight of no loss, or of one that needs the image, where there is none.
    """
    if unknown := set(weights) - {*LOSSES, "iou"}:
        raise ValueError(f"no loss is called {min(unknown)}; there are {', '.join(LOSSES)}, iou")
    allowed = jnp.ones(output.iou.shape[-1], bool) if allowed is None else allowed
    # Others are replaced before anything is computed: nothing they hold can spoil a gradient.
    logits = jnp.where(allowed[:, None, None], output.logits, 0.0)
    iou = jnp.where(allowed, output.iou, 0.0)
    used = {name: weights[name] for name in LOSSES if weights.get(name, 0.0) != 0}
    found = {name: LOSSES[name](logits, wanted) for name in used}  # B N M
    mask_loss = sum((used[name] * found[name] for name in used), jnp.zeros_like(iou))
    truth = hard_iou(logits, wanted.targets[:, :, None], wanted.cover[:, None, None])
    error = jnp.sum(jnp.where(allowed, (iou - truth) ** 2, 0.0), -1) / jnp.sum(allowed)

    def chosen_by(score: Float[Array, "B N M"]) -> Callable[[Array], Float[Array, "B N"]]:
        best = jnp.argmax(jnp.where(allowed, score, -jnp.inf), -1, keepdims=True)
        return lambda x: jnp.take_along_axis(x, best, -1)[..., 0]

    of_best, of_trusted = chosen_by(BEST_MASKS[best_mask](mask_loss, iou)), chosen_by(iou)
    shared = of_trusted(truth)
    prompts = jnp.maximum(jnp.sum(wanted.valid, -1), 1)  # B

    def total(x: Float[Array, "B N"]) -> Float[Array, ""]:
        return jnp.sum(jnp.sum(jnp.where(wanted.valid, x, 0.0), -1) / prompts)

    nothing = dict.fromkeys(LOSSES, jnp.zeros(()))
    return Terms(
        **nothing | {name: total(of_best(loss)) for name, loss in found.items()},
        loss=total(of_best(mask_loss) + weights.get("iou", 0.0) * error),
        iou_mse=total(error),
        hard_dice=total(2 * shared / (1 + shared)),
        count=jnp.sum(wanted.valid.any(-1), dtype=jnp.float32),
    )


# Each row of LOSSES: from the masks and what is wanted to one number for each mask.

Masks = Float[Array, "B N M h w"]
Row = Callable[[Masks, Wanted], Float[Array, "B N M"]]


def _focal(logits: Masks, wanted: Wanted) -> Float[Array, "B N M"]:
    return focal(logits, *_cells(wanted))


def _bce(logits: Masks, wanted: Wanted) -> Float[Array, "B N M"]:
    return bce(logits, *_cells(wanted))


def _dice(logits: Masks, wanted: Wanted) -> Float[Array, "B N M"]:
    return _of_findings(soft_dice(logits, *_cells(wanted)), wanted)


def _boundary(logits: Masks, wanted: Wanted) -> Float[Array, "B N M"]:
    return _of_findings(boundary(logits, *_cells(wanted)), wanted)


def _projection(logits: Masks, wanted: Wanted) -> Float[Array, "B N M"]:
    _, cover = _cells(wanted)
    return _of_findings(box_projection(logits, wanted.boxes[:, :, None], cover), wanted)


def _affinity(logits: Masks, wanted: Wanted) -> Float[Array, "B N M"]:
    if wanted.image is None:
        raise ValueError(
            "--affinity cannot go with --embeddings, which hold no pixels to compare: leave one of "
            "them out"
        )
    _, cover = _cells(wanted)
    image = wanted.image[:, None, None]
    return _of_findings(pairwise_affinity(logits, image, wanted.boxes[:, :, None], cover), wanted)


def _cells(wanted: Wanted) -> tuple[Float[Array, "B N 1 h w"], Float[Array, "B 1 1 h w"]]:
    """Targets and weights of cells, the same for all masks of a prompt."""
    return wanted.targets[:, :, None], wanted.cover[:, None, None]


def _of_findings(loss: Float[Array, "B N M"], wanted: Wanted) -> Float[Array, "B N M"]:
    """The loss of prompts whose target is not empty, 0 of the others."""
    targets, cover = _cells(wanted)
    return jnp.where(jnp.any((targets > 0) & (cover > 0), (-2, -1)), loss, 0.0)


def _lowest_loss(
    mask_loss: Float[Array, "B N M"], iou: Float[Array, "B N M"]
) -> Float[Array, "B N M"]:
    del iou
    return -mask_loss


def _highest_iou(
    mask_loss: Float[Array, "B N M"], iou: Float[Array, "B N M"]
) -> Float[Array, "B N M"]:
    del mask_loss
    return iou


LOSSES: Mapping[str, Row] = MappingProxyType(
    {
        "focal": _focal,
        "dice": _dice,
        "bce": _bce,
        "boundary": _boundary,
        "projection": _projection,
        "affinity": _affinity,
    }
)

# A score of each mask: that with the highest takes the gradient.
BEST_MASKS: Mapping[str, Callable[..., Float[Array, "B N M"]]] = MappingProxyType(
    {"lowest-loss": _lowest_loss, "highest-iou": _highest_iou}  # The paper's; the model's own.
)
