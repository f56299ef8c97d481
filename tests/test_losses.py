import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pp_jax.finetune.losses import (
    LOSSES,
    Terms,
    focal,
    hard_dice,
    hard_iou,
    sam_terms,
    soft_dice,
)
from pp_jax.sam import SamOutput

RNG = np.random.default_rng(0)
WEIGHTS = {"focal": 20.0, "dice": 1.0, "iou": 1.0}
SIDE = 12


def drawn(*shape: int, scale: float = 4.0) -> np.ndarray:
    return RNG.normal(scale=scale, size=shape).astype(np.float32)


def soft_targets(*shape: int) -> np.ndarray:
    """Area averages as they come: many zeros and ones, and shares between them at the border."""
    return np.clip(RNG.normal(0.5, 1.0, shape), 0, 1).astype(np.float32)


def cover() -> np.ndarray:
    """An image of 10.5 x 7 cells: the row it covers by half counts half."""
    weight = np.zeros((SIDE, SIDE), np.float32)
    weight[:10, :7], weight[10, :7] = 1, 0.5
    return weight


def torch_focal(logits, targets, weight, *, alpha=0.25, gamma=2.0):
    """The body of `torchvision.ops.sigmoid_focal_loss`, then the mean over what is covered."""
    p = torch.sigmoid(logits)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none"
    )
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = cross_entropy * (1 - p_t) ** gamma
    loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return (loss * weight).sum((-2, -1)) / weight.sum((-2, -1))


def torch_dice(logits, targets, weight):
    p = torch.sigmoid(logits)
    both = (p * targets * weight).sum((-2, -1))
    return 1 - (2 * both + 1) / ((p * weight).sum((-2, -1)) + (targets * weight).sum((-2, -1)) + 1)


REFERENCES = {"focal": torch_focal, "dice": torch_dice}


def batch(*, masks: int = 3, seed: int = 1) -> dict:
    """Two images with two prompts each; one is invalid, one target is empty."""
    rng = np.random.default_rng(seed)
    targets = np.clip(rng.normal(0.3, 1.0, (2, 2, SIDE, SIDE)), 0, 1).astype(np.float32)
    targets[0, 1] = 0
    weight = np.stack([cover(), np.ones((SIDE, SIDE), np.float32)])
    targets *= weight[:, None] > 0
    return {
        "output": SamOutput(
            jnp.asarray(rng.normal(scale=3, size=(2, 2, masks, SIDE, SIDE)), jnp.float32),
            jnp.asarray(rng.normal(size=(2, 2, masks)), jnp.float32),
        ),
        "targets": jnp.asarray(targets),
        "weight": jnp.asarray(weight),
        "valid": jnp.array([[True, True], [True, False]]),
    }


@jax.jit
def slopes_and_terms(output: SamOutput, rest: dict, weights: dict) -> tuple[SamOutput, Terms]:
    def loss(output: SamOutput) -> tuple[jax.Array, Terms]:
        sums = sam_terms(output, **rest, weights=weights)
        return sums.loss, sums

    return jax.grad(loss, has_aux=True)(output)


def both(fields: dict, **weights: float) -> tuple[SamOutput, Terms]:
    rest = {name: value for name, value in fields.items() if name != "output"}
    return slopes_and_terms(fields["output"], rest, WEIGHTS | weights)


def gradient(fields: dict, **weights: float) -> SamOutput:
    return both(fields, **weights)[0]


def terms(fields: dict, **weights: float) -> Terms:
    return both(fields, **weights)[1]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_a_loss_and_its_gradient_equal_torchs_in_float64(name, soft):
    logits, targets, weight = drawn(3, SIDE, SIDE), soft_targets(3, SIDE, SIDE), cover()
    targets = targets if soft else (targets > 0.5).astype(np.float32)
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    want = REFERENCES[name](theirs, torch.tensor(targets).double(), torch.tensor(weight).double())
    want.sum().backward()

    got, pull = jax.vjp(jax.jit(lambda x: LOSSES[name](x, targets, weight)), logits)
    np.testing.assert_allclose(got, want.detach(), rtol=2e-6)
    # Sums over 12 x 12 float32 pixels round some 1e-7 of the largest.
    slope = theirs.grad.numpy()
    np.testing.assert_allclose(
        pull(jnp.ones(3))[0], slope, rtol=1e-5, atol=1e-6 * np.abs(slope).max()
    )


def test_focal_weighs_foreground_by_alpha_and_forgives_by_gamma():
    one = jnp.ones((1, 1))
    want = 0.3 * 0.2**3 * -np.log(0.8)
    got = focal(jnp.log(4.0) * one, one, one, alpha=0.3, gamma=3.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    got = focal(-jnp.log(4.0) * one, 0 * one, one, alpha=0.3, gamma=3.0)
    np.testing.assert_allclose(got, want * 0.7 / 0.3, rtol=1e-6)


def test_soft_dice_of_literal_masks():
    one = jnp.ones((2, 2))
    sure = 50 * (2 * jnp.eye(2) - 1)
    # Both have 2 pixels; (2 * overlap + 1) / (2 + 2 + 1) is 1, 1 / 5 and, half sure, 3 / 5.
    assert float(soft_dice(sure, jnp.eye(2), one)) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice(-sure, jnp.eye(2), one)) == pytest.approx(0.8, abs=1e-6)
    assert float(soft_dice(0 * sure, jnp.eye(2), one)) == pytest.approx(0.4, abs=1e-6)


def test_hard_figures_of_literal_masks():
    logits = jnp.array([[1.0, 1e-3, 0.0], [-1.0, 2.0, -3.0]])  # Zero is outside.
    targets = jnp.array([[0.51, 0.5, 0.9], [0.0, 1.0, 0.2]])  # So is a half.
    weight = jnp.array([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]])
    assert float(hard_iou(logits, targets, weight)) == pytest.approx(1.5 / 3.5)
    assert float(hard_dice(logits, targets, weight)) == pytest.approx(2 * 1.5 / (2.5 + 2.5))


def test_two_empty_masks_agree_and_one_does_not():
    one = jnp.ones((4, 4))
    for figure in (hard_iou, hard_dice):
        assert float(figure(-one, 0.5 * one, one)) == 1
        assert float(figure(-one, one, one)) == 0
        assert float(figure(one, 0 * one, one)) == 0


def test_hard_figures_have_no_gradient():
    one = jnp.ones((4, 4))
    for figure in (hard_iou, hard_dice):
        assert not jax.grad(lambda x, f=figure: f(x, one, one))(drawn(4, 4)).any()


def test_what_lies_beyond_the_image_changes_nothing_bit_for_bit():
    fields = batch()
    outside = fields["weight"] == 0
    assert outside.any()
    garbage = {
        "output": fields["output"]._replace(
            logits=jnp.where(outside[:, None, None], 1e4, fields["output"].logits)
        ),
        "targets": jnp.where(outside[:, None], 7.0, fields["targets"]),
    }
    for want, got in zip(terms(fields), terms(fields | garbage), strict=True):
        assert float(want) == float(got)
    want, got = gradient(fields), gradient(fields | garbage)
    np.testing.assert_array_equal(got.iou, want.iou)
    np.testing.assert_array_equal(got.logits, want.logits)
    assert not want.logits[jnp.broadcast_to(outside[:, None, None], want.logits.shape)].any()


def test_terms_are_the_sums_over_valid_prompts_computed_one_by_one():
    fields = batch()
    want = dict.fromkeys(Terms._fields, 0.0)
    for b, n in ((0, 0), (0, 1), (1, 0)):
        logits, iou = (np.asarray(x[b, n], np.float64) for x in fields["output"])
        target, weight = (
            np.asarray(x, np.float64) for x in (fields["targets"][b, n], fields["weight"][b])
        )
        inputs = [torch.tensor(x) for x in (logits, np.tile(target, (3, 1, 1)), weight)]
        focals = torch_focal(*inputs).numpy()
        dices = torch_dice(*inputs).numpy() if target.any() else np.zeros(3)
        overlap = ((logits > 0) & (target > 0.5)) * weight
        union = ((logits > 0) | (target > 0.5)) * weight
        true = overlap.sum((1, 2)) / union.sum((1, 2))
        best, trusted = np.argmin(20 * focals + dices), np.argmax(iou)
        want["focal"] += focals[best]
        want["dice"] += dices[best]
        want["iou_mse"] += ((iou - true) ** 2).mean()
        want["hard_dice"] += 2 * true[trusted] / (1 + true[trusted])
        want["count"] += 1
    want["loss"] = 20 * want["focal"] + want["dice"] + want["iou_mse"]
    for name, got in terms(fields)._asdict().items():
        np.testing.assert_allclose(got, want[name], rtol=1e-5, err_msg=name)


def test_only_the_best_mask_learns_its_shape_and_all_three_their_iou():
    fields = batch()
    slopes = gradient(fields)
    moved = np.asarray((slopes.logits != 0).any((-2, -1)))
    assert moved[0].sum(-1).tolist() == [1, 1]
    assert moved[1].sum(-1).tolist() == [1, 0]
    valid = np.asarray(fields["valid"])
    assert (np.asarray(slopes.iou)[valid] != 0).all()
    # The true IoU is a constant: the slope is 2/3 of the error, and nothing reaches the logits.
    iou = hard_iou(
        fields["output"].logits, fields["targets"][:, :, None], fields["weight"][:, None, None]
    )
    want = 2 / 3 * (fields["output"].iou - iou)
    np.testing.assert_allclose(slopes.iou[valid], want[valid], rtol=1e-6)
    assert not gradient(fields, focal=0.0, dice=0.0).logits.any()


def test_weights_decide_which_mask_is_best():
    target = np.zeros((SIDE, SIDE), np.float32)
    target[3:9, 3:9] = 1
    timid = np.full((SIDE, SIDE), -0.5, np.float32)  # Nowhere far off, yet no shape at all.
    bold = np.where(target > 0, 9.0, -9.0).astype(np.float32)
    bold[3:5, 3:9] = -9  # The shape, but very wrong in a third of it.
    logits = np.stack([timid, bold, np.full_like(bold, 9)])[None, None]
    fields = {
        "output": SamOutput(jnp.asarray(logits), jnp.zeros((1, 1, 3))),
        "targets": jnp.asarray(target)[None, None],
        "weight": jnp.ones((1, SIDE, SIDE)),
        "valid": jnp.ones((1, 1), bool),
    }
    for weights, best in (({"focal": 1, "dice": 0}, 0), ({"focal": 0, "dice": 1}, 1)):
        moved = (gradient(fields, **weights).logits != 0).any((-2, -1))[0, 0]
        assert moved.tolist() == [index == best for index in range(3)]


def test_an_invalid_prompt_has_neither_loss_nor_gradient_whatever_it_holds():
    fields = batch()
    here = (1, 1)
    garbage = {
        "output": SamOutput(
            fields["output"].logits.at[here].set(1e4), fields["output"].iou.at[here].set(-1e4)
        ),
        "targets": fields["targets"].at[here].set(-1e4),
    }
    for want, got in zip(terms(fields), terms(fields | garbage), strict=True):
        assert float(want) == float(got)
    slopes = gradient(fields | garbage)
    assert not slopes.logits[here].any()
    assert not slopes.iou[here].any()
    assert np.isfinite(slopes.logits).all()


def test_no_valid_prompt_is_a_sum_of_zeros():
    fields = batch() | {"valid": jnp.zeros((2, 2), bool)}
    assert [float(x) for x in terms(fields)] == [0] * len(Terms._fields)
    assert not any(x.any() for x in gradient(fields))


def test_an_empty_target_has_no_dice_and_a_faint_one_has():
    fields = batch() | {"valid": jnp.array([[False, True], [False, False]])}
    assert float(terms(fields).dice) == 0
    assert float(terms(fields).focal) > 0
    assert not gradient(fields, focal=0.0, iou=0.0).logits.any()
    faint = fields | {"targets": fields["targets"].at[0, 1, 2, 2].set(0.25)}
    assert float(terms(faint).dice) > 0.9


def test_parts_of_a_batch_add_up_to_the_whole():
    fields = batch()
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], fields) for i in (0, 1)]
    for whole, *parts in zip(terms(fields), *map(terms, rows), strict=True):
        np.testing.assert_allclose(sum(map(float, parts)), whole, rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_extreme_logits_have_a_finite_loss_and_gradient(sign, target):
    fields = batch()
    fields["output"] = fields["output"]._replace(
        logits=sign * 1e4 * jnp.sign(fields["output"].logits)
    )
    fields["targets"] = jnp.full_like(fields["targets"], target)
    assert all(np.isfinite(float(x)) for x in terms(fields))
    assert all(np.isfinite(x).all() for x in gradient(fields))
