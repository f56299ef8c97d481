"""Exact comparison of ratios of whole numbers that 32 bits do not hold.

Such a number is an array of *limbs*, the least first, each of 12 bits, so that int32 holds a sum of
100 products of two limbs.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int32

_BITS = 12


def limbs(numbers: Int32[Array, "*n"], *, count: int) -> Int32[Array, "limbs *n"]:
    """Non-negative numbers below 2 ** (12 `count`) as limbs."""
    return jnp.stack([numbers >> _BITS * i & (1 << _BITS) - 1 for i in range(count)])


def product(
    first: Int32[Array, "limbs *n"], second: Int32[Array, "limbs_2 *m"]
) -> Int32[Array, "limbs_3 *nm"]:
    """The products of numbers, which broadcast, with as many limbs as both factors have."""
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


def compare_ratios(
    numerators: Int32[Array, "limbs n"], denominators: Int32[Array, "limbs_2 n"]
) -> Int32[Array, "n n"]:
    """Sign of the i-th ratio less the j-th, in row i and column j; denominators are positive."""
    crossed = product(numerators[:, :, None], denominators[:, None, :])
    signs = jnp.sign(crossed - crossed.swapaxes(1, 2))
    order = signs[-1]
    for sign in signs[-2::-1]:  # The highest limb that differs decides.
        order = jnp.where(order == 0, sign, order)
    return order


def _carried(sums: Int32[Array, "limbs *n"]) -> Int32[Array, "limbs *n"]:
    """The same numbers with every limb in range again."""
    carry, result = 0, []
    for limb in sums:
        limb = limb + carry
        carry = limb >> _BITS
        result.append(limb & (1 << _BITS) - 1)
    return jnp.stack(result)
