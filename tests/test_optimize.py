"""Update rules against torch's and against the papers' formulas, schedules against literals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from pp_jax import checkpoints, tree
from pp_jax.finetune.optimize import OPTIMIZERS, SCHEDULES, check_scales, make_optimizer

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


# Update rules.

_RNG = np.random.default_rng(0)
# The large kernel is one that adafactor factors.
WEIGHTS = {
    "large": {"kernel": _RNG.normal(size=(128, 130)).astype(np.float32)},
    "small": {
        "kernel": _RNG.normal(size=(2, 3)).astype(np.float32),
        "bias": _RNG.normal(size=3).astype(np.float32),
    },
}
_SLOPE = {path: _RNG.normal(size=x.shape) for path, x in tree.flatten(WEIGHTS).items()}
# Lion's third sign depends on how much of the first two its momentum kept.
SLOPES = [{path: factor * x for path, x in _SLOPE.items()} for factor in (1, 2, -1)]


def three_steps(**choices) -> dict[str, np.ndarray]:
    """The weights after three gradients, the last against the others."""
    rule, weights = optimizer(**choices), WEIGHTS
    state, update = rule.init(weights), jax.jit(rule.update)
    for slopes in SLOPES:
        gradient = tree.unflatten({path: np.float32(x) for path, x in slopes.items()})
        updates, state = update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
    return tree.flatten(weights)


@pytest.mark.parametrize(
    ("name", "peer", "extra"),
    [
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999)}),
        ("sgd-momentum", torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_three_steps_are_those_of_torch(name, peer, extra):
    flat = {p: torch.nn.Parameter(torch.tensor(x)) for p, x in tree.flatten(WEIGHTS).items()}
    groups = [
        {"params": [x], "weight_decay": DECAY * path.endswith("kernel")} for path, x in flat.items()
    ]
    rule = peer(groups, lr=LR, **extra)
    for slopes in SLOPES:
        for path, leaf in flat.items():
            leaf.grad = torch.tensor(slopes[path], dtype=torch.float32)
        rule.step()
    got = three_steps(name=name)
    for path, leaf in flat.items():
        want = leaf.detach().numpy()
        np.testing.assert_allclose(got[path], want, rtol=1e-4, atol=1e-5, err_msg=path)


def lion(weight: np.ndarray, slopes: list[np.ndarray], *, decay: float) -> np.ndarray:
    """Algorithm 2 of arXiv 2302.06675."""
    momentum = np.zeros_like(weight)
    for slope in slopes:
        update = np.sign(0.9 * momentum + 0.1 * slope)
        weight = weight - LR * (update + decay * weight)
        momentum = 0.99 * momentum + 0.01 * slope
    return weight


def adafactor(weight: np.ndarray, slopes: list[np.ndarray], *, decay: float) -> np.ndarray:
    """Algorithms 4 and 5 of arXiv 1804.04235, with a given rate and decoupled decay."""
    rows, columns, whole = 0.0, 0.0, 0.0
    for step, slope in enumerate(slopes, 1):
        beta = 1 - step**-0.8
        square = slope**2 + 1e-30
        rows = beta * rows + (1 - beta) * square.sum(-1)
        columns = beta * columns + (1 - beta) * square.sum(0)
        whole = beta * whole + (1 - beta) * square
        factored = slope.ndim == 2 and min(slope.shape) >= 128
        moment = np.outer(rows, columns) / rows.sum() if factored else whole
        update = slope / np.sqrt(moment)
        update /= max(1.0, np.sqrt(np.mean(update**2)))
        weight = weight - LR * (update + decay * weight)
    return weight


@pytest.mark.parametrize(("name", "formula"), [("lion", lion), ("adafactor", adafactor)])
def test_three_steps_are_those_of_the_papers_formula(name, formula):
    got = three_steps(name=name)
    for path, weight in tree.flatten(WEIGHTS).items():
        slopes = [slope[path] for slope in SLOPES]
        want = formula(np.float64(weight), slopes, decay=DECAY * path.endswith("kernel"))
        np.testing.assert_allclose(got[path], want, rtol=1e-4, atol=1e-5, err_msg=path)


def test_every_optimizer_is_compared():
    assert OPTIMIZERS.keys() == {"adamw", "adam", "sgd-momentum", "lion", "adafactor"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_shrinks_kernels_and_nothing_else(name):
    updates = one_step(jax.tree.map(jnp.zeros_like, PARAMS), name=name)
    kernel = np.asarray(updates["block"]["attn"].pop("kernel"))
    want = -LR * DECAY * np.array([[2.0, -4.0]])
    if name == "adam":  # Its decay is a gradient like any other, of which the sign is left.
        want = -LR * np.array([[1.0, -1.0]])
    np.testing.assert_allclose(kernel, want, rtol=RATE)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("name", "decay"),
    [("adamw", 0.1), ("lion", 0.1), ("adam", 0.0), ("sgd-momentum", 0.0), ("adafactor", 0.0)],
)
def test_decay_is_the_optimizers_own_unless_it_is_given(name, decay):
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    own, given = (one_step(gradient, name=name, weight_decay=x) for x in (None, decay))
    other = one_step(gradient, name=name, weight_decay=decay + 1)
    kernels = [x["block"]["attn"]["kernel"] for x in (own, given, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.any(np.asarray(kernels[0]) != kernels[2])


def test_gradients_are_clipped_by_their_common_norm():
    """A gradient of (3, 4) clipped to norm 1 must feed Adam's first moment with 0.1 * (.6, .8)."""
    gradient = jax.tree.map(jnp.zeros_like, PARAMS)
    gradient |= {"pos_embed": jnp.array([3.0]), "mask_tokens": jnp.array([-4.0])}

    def first_moment(**choices):
        rule = optimizer(**choices)
        _, state = rule.update(gradient, rule.init(PARAMS), PARAMS)
        mu = optax.tree.get(state, "mu")
        return [float(mu["pos_embed"][0]), float(mu["mask_tokens"][0])]

    np.testing.assert_allclose(first_moment(clip=1.0), [0.06, -0.08], rtol=1e-6)
    np.testing.assert_allclose(first_moment(clip=10.0), [0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(first_moment(clip=0.0), [0.3, -0.4], rtol=1e-6)


# Schedules.


def rates(schedule: str, *, warmup: int, steps: int, losses=None) -> list[float]:
    """The rate at each step: of equal gradients Adam takes the sign alone."""
    rule = optimizer(schedule=schedule, warmup=warmup, steps=steps)
    weight = {"pos_embed": jnp.ones(1)}

    def step(state, loss):
        updates, state = rule.update(weight, state, weight, value=loss)
        return state, -updates["pos_embed"][0]

    losses = jnp.float32(np.ones(steps) if losses is None else losses)
    return jax.lax.scan(step, rule.init(weight), losses)[1].tolist()


def test_the_rate_warms_up_linearly_and_falls_by_half_a_cosine():
    want = [0.025, 0.05, 0.075, 0.1]  # The fourth step is the first at the peak.
    # (1 + cos(pi * i / 4)) / 2 of the way from 1 % of the peak to the peak.
    want += [0.1, 0.08550126, 0.0505, 0.01549874]
    np.testing.assert_allclose(rates("cosine", warmup=4, steps=8), want, rtol=RATE)


def test_the_rate_stays_after_the_warm_up():
    want = [0.05, 0.1, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(rates("constant", warmup=2, steps=5), want, rtol=RATE)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1])
def test_without_a_warm_up_the_first_step_is_at_the_peak(schedule, warmup):
    assert rates(schedule, warmup=warmup, steps=1)[0] == pytest.approx(LR, rel=RATE)


def test_the_papers_rate_is_divided_by_ten_after_60000_and_86666_of_90000_steps():
    rate = SCHEDULES["paper"].rate(8e-4, warmup=250, steps=90_000)
    got = [float(rate(step)) for step in (249, 59_999, 60_000, 86_665, 86_666, 89_999)]
    np.testing.assert_allclose(got, [8e-4, 8e-4, 8e-5, 8e-5, 8e-6, 8e-6], rtol=1e-6)
    want = [0.05, *[0.1] * 17, *[0.01] * 8, 0.001]
    np.testing.assert_allclose(rates("paper", warmup=2, steps=27), want, rtol=2 * RATE)


def test_the_rate_halves_when_the_loss_has_not_fallen_for_five_windows():
    """With 200 steps a window is two: of the first comes the best mean, of the next five none."""
    losses = [1.0, 3.0] * 14  # Below the mean at every other step: single steps do not count.
    want = [0.1] * 11 + [0.05] * 10 + [0.025] * 7  # Windows 6 and 11 end at steps 12 and 22.
    got = rates("plateau", warmup=0, steps=200, losses=losses)
    np.testing.assert_allclose(got, want, rtol=RATE)
    falling = rates("plateau", warmup=0, steps=200, losses=np.linspace(2, 1, 28))
    np.testing.assert_allclose(falling, [0.1] * 28, rtol=RATE)


def test_the_rate_of_a_plateau_stays_above_a_hundredth():
    got = rates("plateau", warmup=0, steps=100)
    np.testing.assert_allclose(got[-1], 0.01 * LR, rtol=RATE)


def test_a_decay_of_layers_needs_a_layer_whatever_its_number():
    def check(path):
        params = tree.unflatten({f"params/{path}": jnp.ones(1)})
        check_scales(params, lr_scale={}, layer_decay=0.8)

    for layer in ("blocks_00/norm1", "blocks_01/norm1", "blocks_31/norm1", "patch_embed"):
        check(f"image_encoder/{layer}/bias")
    for other in ("image_encoder/neck/bias", "mask_decoder/iou_token"):
        with pytest.raises(ValueError, match=r"--layer-decay 0\.8: no layer of the image encoder"):
            check(other)


# State.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_state_goes_on_bit_for_bit(tmp_path, name):
    rule = optimizer(name=name, schedule="plateau", clip=1.0)
    update, value = jax.jit(rule.update), jnp.float32(2)
    gradient = jax.tree.map(jnp.ones_like, WEIGHTS)
    _, state = update(gradient, rule.init(WEIGHTS), WEIGHTS, value=value)
    checkpoints.save(tmp_path / "state", {"optimizer": state}, facts={"kind": "test"})
    # As the folder of a run places moments: like the parameters that they are of.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = optax.tree_utils.tree_map_params(
        rule, lambda _, x: here, state, WEIGHTS, transform_non_params=lambda _: here
    )
    like = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, places
    )
    held = checkpoints.load(tmp_path / "state", {"optimizer": like})["optimizer"]
    assert jax.tree.structure(held) == jax.tree.structure(state)
    want, got = (update(gradient, x, WEIGHTS, value=value) for x in (state, held))
    jax.tree.map(np.testing.assert_array_equal, got, want)
