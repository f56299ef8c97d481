import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pp_jax.finetune.optimize import OPTIMIZERS, make_optimizer

LR, DECAY = 0.1, 0.5
RATE = 1e-4  # Adam divides by 1 - .999 ** step, which float32 knows to 6e-5.
PARAMS = {
    "block": {
        "attn": {"kernel": jnp.array([[2.0, -4.0]]), "bias": jnp.array([3.0])},
        "rel_pos_h": jnp.ones(2),
        "norm1": {"scale": jnp.array([1.5]), "bias": jnp.array([-1.0])},
    },
    "pos_embed": jnp.array([5.0]),
    "mask_tokens": jnp.array([6.0]),
}


def optimizer(**choices):
    defaults = {
        "name": "adamw",
        "schedule": "constant",
        "lr": LR,
        "warmup": 0,
        "steps": 10,
        "weight_decay": DECAY,
        "clip": 0.0,
    }
    return make_optimizer(**defaults | choices)


def one_step(gradient, **choices):
    rule = optimizer(**choices)
    updates, _ = jax.jit(rule.update)(gradient, rule.init(PARAMS), PARAMS)
    return updates


def rates(schedule: str, *, warmup: int, steps: int) -> list[float]:
    """The rate at each step: of equal gradients Adam takes the sign alone."""
    rule = optimizer(schedule=schedule, warmup=warmup, steps=steps)
    update, gradient = jax.jit(rule.update), jax.tree.map(jnp.ones_like, PARAMS)
    state, seen = rule.init(PARAMS), []
    for _ in range(steps):
        updates, state = update(gradient, state, PARAMS)
        seen.append(-float(updates["pos_embed"][0]))
    return seen


def test_the_rate_warms_up_linearly_and_falls_by_half_a_cosine():
    want = [0.025, 0.05, 0.075, 0.1]  # The fourth step is the first at the peak.
    # (1 + cos(pi * i / 4)) / 2 of the way from 1 % of the peak to the peak.
    want += [0.1, 0.08550126, 0.0505, 0.01549874]
    np.testing.assert_allclose(rates("cosine", warmup=4, steps=8), want, rtol=RATE)


def test_the_rate_stays_after_the_warm_up():
    want = [0.05, 0.1, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(rates("constant", warmup=2, steps=5), want, rtol=RATE)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_a_warm_up_the_first_step_is_at_the_peak(warmup):
    assert rates("cosine", warmup=warmup, steps=5)[0] == pytest.approx(LR, rel=RATE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_shrinks_kernels_and_nothing_else(name):
    updates = one_step(jax.tree.map(jnp.zeros_like, PARAMS), name=name)
    kernel = updates["block"]["attn"].pop("kernel")
    np.testing.assert_allclose(kernel, -LR * DECAY * np.array([[2.0, -4.0]]), rtol=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_gradients_are_clipped_by_their_common_norm():
    """A gradient of (3, 4) clipped to norm 1 must feed Adam's first moment with 0.1 * (.6, .8)."""
    gradient = jax.tree.map(jnp.zeros_like, PARAMS)
    gradient |= {"pos_embed": jnp.array([3.0]), "mask_tokens": jnp.array([-4.0])}

    def first_moment(**choices):
        rule = optimizer(**choices)
        _, state = rule.update(gradient, rule.init(PARAMS), PARAMS)
        (adam,) = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))[
            :1
        ]
        return [float(adam.mu["pos_embed"][0]), float(adam.mu["mask_tokens"][0])]

    np.testing.assert_allclose(first_moment(clip=1.0), [0.06, -0.08], rtol=1e-6)
    np.testing.assert_allclose(first_moment(clip=10.0), [0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(first_moment(clip=0.0), [0.3, -0.4], rtol=1e-6)
