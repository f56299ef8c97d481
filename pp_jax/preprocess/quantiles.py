"""Quantiles of the valid pixels, exact for any float32 values and blind to the rest of a canvas."""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int, Int32, UInt16, UInt32

from pp_jax.preprocess.arithmetic import multiply, rounded
from pp_jax.preprocess.batching import image_by_image
from pp_jax.preprocess.histograms import count_keys

_LARGEST = np.uint32(0xFFFF0000)  # Above all numbers: a NaN.


def masked_quantiles(
    x: Float32[Array, "H W"], valid: Bool[Array, "H W"], *, shares: Sequence[float]
) -> Float32[Array, " shares"]:
    """The values below which these shares, each in [0, 1], of the valid values lie.

    Equals `np.quantile(x[valid], shares)` with its linear interpolation, to 1 ulp of the larger of
    the two values each lies between. At least one value must be valid, and none NaN. They have no
    gradient: `jax.lax.stop_gradient` stands on the input.

    Raises:
      ValueError: A share outside [0, 1], or more than 2**24 pixels or 2**16 - 1 columns.
    """
    for share in shares:
        if not 0 <= share <= 1:
            raise ValueError(f"q={share}: choose a share in [0, 1]")
    if x.size > 2**24 or x.shape[1] >= 2**16:
        raise ValueError(f"{x.shape}: a quantile takes 2**24 pixels, in rows of less than 2**16")
    return image_by_image(partial(_quantiles, shares=shares))(x, valid)


def _quantiles(
    x: Float32[Array, "H W"], valid: Bool[Array, "H W"], *, shares: Sequence[float]
) -> Float32[Array, " shares"]:
    keys = jnp.where(valid, _ordered_bits(x), _LARGEST)
    upper, lower = (keys >> 16).astype(jnp.uint16), (keys & 0xFFFF).astype(jnp.uint16)
    counts = count_keys(upper).reshape(256, 256)
    last = _count(valid) - 1

    def quantile(share: float) -> Float32[Array, ""]:
        whole, (high, _) = multiply(last, share)
        rank, fraction = whole.astype(jnp.int32), high.astype(jnp.float32) * 2.0**-32
        below = _smallest(upper, lower, rank, counts=counts)
        is_twice = _count(keys <= below) > jnp.minimum(rank + 1, last)
        above = jnp.where(keys > below, keys, _LARGEST).min(axis=1).min()
        a, b = _from_ordered_bits(below), _from_ordered_bits(jnp.where(is_twice, below, above))
        # From the nearer end, as NumPy does.
        return jnp.where(
            fraction < 0.5, a + rounded((b - a) * fraction), b - rounded((b - a) * (1 - fraction))
        )

    return jnp.stack([quantile(share) for share in shares])


def _smallest(
    upper: UInt16[Array, "H W"],
    lower: UInt16[Array, "H W"],
    rank: Int32[Array, ""],
    *,
    counts: Int32[Array, "256 256"],
) -> UInt32[Array, ""]:
    """The key that would stand at `rank` after sorting, from the counts of all upper halves."""
    row, rank = _at_rank(counts.sum(1), rank)
    column, rank = _at_rank(counts[row], rank)
    found = (row << 8 | column).astype(jnp.uint16)
    # Integers up to 256 and bfloat16 numbers have no lower half.
    bits = jnp.where((lower != 0).any(), 16, 0)
    rest = _smallest_half(jnp.where(upper == found, lower, 0xFFFF), rank, bits=bits)
    return found.astype(jnp.uint32) << 16 | rest.astype(jnp.uint32)


def _at_rank(
    counts: Int32[Array, "256"], rank: Int32[Array, ""]
) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Which bin holds the value at `rank`, and its rank among those of this bin."""
    sums = jnp.cumsum(counts)
    found = jnp.argmax(sums > rank).astype(jnp.int32)
    return found, rank - (sums[found] - counts[found])


def _smallest_half(
    keys: UInt16[Array, "H W"], rank: Int32[Array, ""], *, bits: Int[Array, ""]
) -> UInt16[Array, ""]:
    """The key at `rank`, by one count per bit, from the highest: far faster than XLA's sort."""

    def add_bit(step: Int32[Array, ""], prefix: UInt16[Array, ""]) -> UInt16[Array, ""]:
        larger = prefix | jnp.uint16(1) << (15 - step).astype(jnp.uint16)
        return jnp.where(_count(keys < larger) <= rank, larger, prefix)

    return lax.fori_loop(0, bits, add_bit, jnp.uint16(0))


def _count(chosen: Bool[Array, "H W"]) -> Int32[Array, ""]:
    # On a CPU sums are the faster the narrower their numbers; a row fits into 16 bits.
    return chosen.sum(axis=1, dtype=jnp.uint16).astype(jnp.int32).sum()


def _ordered_bits(x: Float32[Array, "H W"]) -> UInt32[Array, "H W"]:
    """Integers in the order of the values."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _from_ordered_bits(keys: UInt32[Array, ""]) -> Float32[Array, ""]:
    bits = jnp.where(keys >> 31 == 1, keys ^ jnp.uint32(1 << 31), ~keys)
    return lax.bitcast_convert_type(bits, jnp.float32)
