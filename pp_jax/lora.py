"""Low-rank adaptation: which projections of the image encoder get a pair, and pairs made one with
their kernels.

In training a pair is a side path of its projection (`pp_jax/sam/low_rank.py`): to merge there would
form the dense gradient of every frozen kernel. Source: Hu et al., LoRA (arXiv 2106.09685).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pp_jax import tree
from pp_jax.config import TrainConfig

COLLECTION = "lora"  # Of the pairs, beside `params`, which stays SAM's own.


@dataclass(frozen=True)
class Lora:
    """Pairs A, B of one rank: a projection adds `alpha / rank * (x A) B`."""

    rank: int
    alpha: float
    on: tuple[str, ...]  # Rows of KERNELS; q, k and v have a pair each.

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"--lora-rank {self.rank}: must be at least 1")
        wrong = [name for name in self.on if name not in KERNELS]
        if wrong or not self.on or len(set(self.on)) < len(self.on):
            raise ValueError(
                f"--lora-on {','.join(self.on)}: give some of {', '.join(KERNELS)}, each once, "
                "with commas and without spaces"
            )

    @property
    def scale(self) -> float:
        """What a pair's product is multiplied by."""
        return self.alpha / self.rank


def lora_of(settings: TrainConfig) -> Lora | None:
    """The pairs that the settings train; None unless they train pairs.

    Raises:
      ValueError: A rank below 1, or names that are no projections.
    """
    if settings.trainable != "lora":
        return None
    return Lora(settings.lora_rank, settings.lora_alpha, tuple(settings.lora_on.split(",")))


def merge(variables: Mapping[str, Any], lora: Lora) -> dict[str, Any]:
    """The variables of the same model without pairs: each is added to its kernel, in float32."""
    rest = {name: held for name, held in variables.items() if name != COLLECTION}
    flat, pairs = tree.flatten(rest), tree.flatten(variables[COLLECTION])
    for path in sorted({path.rpartition("/")[0] for path in pairs}):
        layer, _, name = path.rpartition("/lora_")
        kernel = f"params/{layer}/{KERNELS[name]}/kernel"
        dense = lora.scale * product(pairs[f"{path}/a"], pairs[f"{path}/b"])
        if KERNELS[name] == "qkv":
            flat[kernel] = jnp.asarray(flat[kernel]).at[:, "qkv".index(name)].add(dense)
        else:
            flat[kernel] = flat[kernel] + dense
    return tree.unflatten(flat)


def product(a: Float[Array, "*inputs r"], b: Float[Array, "r *outputs"]) -> Float[Array, "*n"]:
    """`A B` with all axes of the inputs and the outputs."""
    return jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)


# Projections that may have a pair, and the layer that holds their kernel.
KERNELS: Mapping[str, str] = MappingProxyType(
    {"q": "qkv", "k": "qkv", "v": "qkv", "proj": "proj", "lin1": "lin1", "lin2": "lin2"}
)
