"""The side path of a projection: a product of low rank, added to what the frozen kernel gives."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pp_jax.lora import COLLECTION, Lora


def with_side_path(
    y: Float[Array, "*n_out"],
    x: Float[Array, "*n_in"],
    *,
    lora: Lora | None,
    name: str,
    inputs: int = 1,
) -> Float[Array, "*n_out"]:
    """A projection's answer `y` to `x`, with its side path where it has one.

    Args:
      y: Its leading axes are those of `x`.
      x: Its last `inputs` axes are the projection's input.
      lora: Which projections have one.
      name: This projection's, a row of `KERNELS`.
      inputs: How many.
    """
    if lora is None or name not in lora.on:
        return y
    outputs = y.shape[x.ndim - inputs :]
    return y + LowRank(lora, inputs, outputs, dtype=y.dtype, name=f"lora_{name}")(x)


class LowRank(nn.Module):
    """`scale * (x A) B`, whose pair are variables of the collection `lora`."""

    lora: Lora
    inputs: int  # Number of axes.
    outputs: tuple[int, ...]  # Their sizes.
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n_in"]) -> Float[Array, "*n_out"]:
        """The side path alone; zero before training, since B begins at zero."""
        rank, sizes = self.lora.rank, x.shape[-self.inputs :]

        def uniform() -> Array:
            # As peft's `kaiming_uniform_(a=sqrt(5))`.
            bound = math.prod(sizes) ** -0.5
            return jax.random.uniform(
                self.make_rng("params"), (*sizes, rank), minval=-bound, maxval=bound
            )

        a = self.variable(COLLECTION, "a", uniform).value.astype(self.dtype)
        b = self.variable(COLLECTION, "b", jnp.zeros, (rank, *self.outputs)).value
        low = jnp.tensordot(x.astype(self.dtype), a, axes=self.inputs) * self.lora.scale
        return jnp.tensordot(low, b.astype(self.dtype), axes=1)
