"""Quantiles of the valid pixels, exact for any float32 values and blind to the rest of a canvas."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32, UInt16, UInt32

from pp_jax.preprocess.arithmetic import multiply, rounded

_LARGEST = np.uint32(0xFFFF0000)  # Above all numbers: a NaN.


def masked_quantile(
    x: Float32[Array, "H W"], valid: Bool[Array, "H W"], *, q: float
) -> Float32[Array, ""]:
    """The value below which a share `q`, in [0, 1], of the valid values lies.

    Equals `np.quantile(x[valid], q)` with its linear interpolation, to 1 ulp of the larger of the
    two values it lies between. At least one value must be valid, and none NaN. It has no gradient:
    `jax.lax.stop_gradient` stands on the input.

    Raises:
      ValueError: `q` is outside [0, 1], or there are more than 2**24 pixels or 2**16 - 1 columns.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q={q}: choose a share in [0, 1]")
    if x.size > 2**24 or x.shape[1] >= 2**16:
        raise ValueError(f"{x.shape}: a quantile takes 2**24 pixels, in rows of less than 2**16")
    keys = jnp.where(valid, _ordered_bits(jax.lax.stop_gradient(x)), _LARGEST)
    last = _count(valid) - 1
    whole, (high, _) = multiply(last, q)
    rank, fraction = whole.astype(jnp.int32), high.astype(jnp.float32) * 2.0**-32
    lower = _smallest(keys, rank)
    is_twice = _count(keys <= lower) > jnp.minimum(rank + 1, last)
    upper = jnp.where(is_twice, lower, jnp.where(keys > lower, keys, _LARGEST).min(axis=1).min())
    a, b = _from_ordered_bits(lower), _from_ordered_bits(upper)
    # From the nearer end, as NumPy does.
    return jnp.where(
        fraction < 0.5, a + rounded((b - a) * fraction), b - rounded((b - a) * (1 - fraction))
    )


def _smallest(keys: UInt32[Array, "H W"], rank: Int32[Array, ""]) -> UInt32[Array, ""]:
    """The key that would stand at `rank` after sorting: its upper half, then its lower one."""
    upper = (keys >> 16).astype(jnp.uint16)
    lower = (keys & 0xFFFF).astype(jnp.uint16)
    found = _smallest_half(upper, rank, bits=16)
    rank = rank - _count(upper < found)
    # Integers up to 256 and bfloat16 numbers have no lower half.
    bits = jnp.where((lower != 0).any(), 16, 0)
    rest = _smallest_half(jnp.where(upper == found, lower, 0xFFFF), rank, bits=bits)
    return found.astype(jnp.uint32) << 16 | rest.astype(jnp.uint32)


def _smallest_half(
    keys: UInt16[Array, "H W"], rank: Int32[Array, ""], *, bits: int | Int[Array, ""]
) -> UInt16[Array, ""]:
    """The key at `rank`, by one count per bit, from the highest: far faster than XLA's sort."""

    def add_bit(step: Int32[Array, ""], prefix: UInt16[Array, ""]) -> UInt16[Array, ""]:
        larger = prefix | jnp.uint16(1) << (15 - step).astype(jnp.uint16)
        return jnp.where(_count(keys < larger) <= rank, larger, prefix)

    return jax.lax.fori_loop(0, bits, add_bit, jnp.uint16(0))


def _count(chosen: Bool[Array, "H W"]) -> Int32[Array, ""]:
    # On a CPU sums are the faster the narrower their numbers; a row fits into 16 bits.
    return chosen.sum(axis=1, dtype=jnp.uint16).astype(jnp.int32).sum()


def _ordered_bits(x: Float32[Array, "H W"]) -> UInt32[Array, "H W"]:
    """Integers in the order of the values."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _from_ordered_bits(keys: UInt32[Array, ""]) -> Float32[Array, ""]:
    bits = jnp.where(keys >> 31 == 1, keys ^ jnp.uint32(1 << 31), ~keys)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
