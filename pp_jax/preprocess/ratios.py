"""Exact comparison of ratios of whole numbers that 32 bits do not hold.

Such a number is an array of *limbs*, the least first, each of 12 bits, so that int32 holds a sum of
100 products of two limbs.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

_BITS = 12


def limbs(numbers: Int32[Array, "*n"], *, count: int) -> Int32[Array, "limbs *n"]:
    """Non-negative numbers below 2 ** (12 `count`) as limbs."""
    return jnp.stack([numbers >> _BITS * i & (1 << _BITS) - 1 for i in range(count)])


def product(
    first: Int32[Array, "limbs n"], second: Int32[Array, "limbs_2 m"]
) -> Int32[Array, "limbs_3 nm"]:
    """The products of numbers, or of one with each, with as many limbs as both factors have."""
    columns = [
        sum(first[i] * second[k - i] for i in range(len(first)) if 0 <= k - i < len(second))
        for k in range(len(first) + len(second) - 1)
    ]
    return _carried(jnp.stack([*columns, jnp.zeros_like(columns[0])]))


def difference(
    first: Int32[Array, "limbs *n"], second: Int32[Array, "limbs *n"]
) -> Int32[Array, "limbs *n"]:
    """First numbers less second ones, none of which may be the greater."""
    return _carried(first - second)


def first_least(
    numerators: Int32[Array, "limbs n"], denominators: Int32[Array, "limbs_2 n"]
) -> Int32[Array, ""]:
    """Index of the least ratio, of several the first; a ratio to 0 is infinite."""
    count = numerators.shape[1]
    places = jnp.arange(count, dtype=jnp.int32)

    def play(_, index: Int32[Array, " n"]) -> Int32[Array, " n"]:
        """Neighbours against each other, as in a tournament; the winners stand in front."""
        one, other = (
            index.at[2 * places].get(mode="clip"),
            index.at[2 * places + 1].get(mode="clip"),
        )
        is_less = _is_less(
            product(numerators[:, other], denominators[:, one]),
            product(numerators[:, one], denominators[:, other]),
        )
        return jnp.where(is_less, other, one)

    # Into a loop XLA cannot fuse: it would search again for each pixel that needs the result.
    return lax.fori_loop(0, (count - 1).bit_length(), play, places)[0]


def _is_less(first: Int32[Array, "limbs n"], second: Int32[Array, "limbs n"]) -> Bool[Array, " n"]:
    less = jnp.zeros(first.shape[1], bool)
    for one, other in zip(first, second, strict=True):  # The highest limb that differs decides.
        less = (one < other) | (one == other) & less
    return less


def _carried(sums: Int32[Array, "limbs *n"]) -> Int32[Array, "limbs *n"]:
    """The same numbers with every limb in range again."""
    carry, result = 0, []
    for limb in sums:
        limb = limb + carry
        carry = limb >> _BITS
        result.append(limb & (1 << _BITS) - 1)
    return jnp.stack(result)
