from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.preprocess.quantiles import masked_quantiles

RNG = np.random.default_rng(0)
SHAPE = (40, 33)
KINDS = {
    "fractional": RNG.normal(size=SHAPE) * 1e3,
    "signed by a sliver": RNG.normal(size=SHAPE) * 1e-30,
    "integer": RNG.integers(0, 256, SHAPE),
    "two values": RNG.integers(0, 2, SHAPE) * 255,
    "flat": np.full(SHAPE, 77.3),
}
QUANTILES = (0.0, 1e-4, 0.01, 1 / 3, 0.5, 0.9, 0.99, 1.0)
quantiles = jax.jit(partial(masked_quantiles, shares=QUANTILES))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantile_equals_numpys_of_the_valid_values(kind):
    x = KINDS[kind].astype(np.float32)
    one = np.zeros(SHAPE, bool)
    one[7, 5] = True
    for valid in (np.ones(SHAPE, bool), RNG.random(SHAPE) < 0.3, RNG.random(SHAPE) < 0.01, one):
        chosen = x[valid].astype(np.float64)
        want = np.quantile(chosen, QUANTILES)
        # Two roundings, of a difference no larger than twice the largest value beside the quantile.
        ends = [np.quantile(chosen, QUANTILES, method=end) for end in ("lower", "higher")]
        ulp = np.spacing(np.abs(ends).max(axis=0).astype(np.float32))
        got = np.asarray(quantiles(x, valid), np.float64)
        assert (np.abs(got - want) <= ulp).all(), (kind, valid.sum(), got, want)


def test_a_quantile_of_a_million_values_equals_numpys():
    x = (RNG.random((1024, 1021)) * 255).astype(np.float32)
    valid = np.ones(x.shape, bool)
    valid[1000:] = valid[:, 1013:] = False
    want = [np.quantile(x[valid], q) for q in QUANTILES]  # One by one: in float32 throughout.
    np.testing.assert_array_max_ulp(np.asarray(quantiles(x, valid)), np.array(want), 1)


def test_batched_quantiles_equal_those_one_by_one():
    x = RNG.normal(size=(3, *SHAPE)).astype(np.float32)
    valid = RNG.random(x.shape) < 0.5
    want = [quantiles(*pair) for pair in zip(x, valid, strict=True)]
    np.testing.assert_array_equal(jax.vmap(quantiles)(x, valid), want)


def test_a_quantile_has_no_gradient():
    x = jnp.asarray(KINDS["fractional"], jnp.float32)
    median = partial(masked_quantiles, valid=jnp.ones(SHAPE, bool), shares=[0.5])
    np.testing.assert_array_equal(jax.grad(lambda x: median(x)[0])(x), np.zeros(SHAPE))


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(q):
    with pytest.raises(ValueError, match=f"q={q}"):
        masked_quantiles(jnp.zeros((2, 2)), jnp.ones((2, 2), bool), shares=[0.5, q])
