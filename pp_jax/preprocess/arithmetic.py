"""Arithmetic that must come out on every device, and in every compilation, as on the host."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, UInt32

Word = UInt32[Array, ""]


def multiply(count: Int[Array, ""], factor: float) -> tuple[Word, tuple[Word, Word]]:
    """`count * factor` as a whole number and the 64 bits after the point, in words, high first.

    `count` is in [0, 2**24), `factor` in [0, 1]. Bits of the factor below 2**-64 are dropped.
    """
    bits = int(factor * 2**64)
    number = count.astype(jnp.uint32)
    carry = high = low = jnp.uint32(0)
    for byte in range(8):  # 24 bits times 8 bits, and a carry of 24, fit into 32.
        product = number * jnp.uint32(bits >> 8 * byte & 255) + carry
        low = high << 24 | low >> 8
        high = product << 24 | high >> 8
        carry = product >> 8
    return carry + number * jnp.uint32(bits >> 64), (high, low)


def rounded(product: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """A finite product, itself, which XLA cannot fuse with a sum it goes into.

    A fused multiply-add skips the rounding in between, in some compilations and not in others.
    """
    largest = np.finfo(np.float32).max
    return jnp.clip(product, -largest, largest)
