import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import ndimage

from pp_jax.config import LOSS_WEIGHTS
from pp_jax.distances import distances
from pp_jax.finetune.boundary import boundary, signed_distance
from pp_jax.finetune.losses import (
    BEST_MASKS,
    LOSSES,
    Terms,
    Wanted,
    bce,
    focal,
    hard_iou,
    sam_terms,
    soft_dice,
)
from pp_jax.sam import SamOutput
from tests.test_box_supervision import patches, torch_affinity, torch_projection

RNG = np.random.default_rng(0)
WEIGHTS = {"focal": 20.0, "dice": 1.0, "iou": 1.0}
ALL = WEIGHTS | {"bce": 2.0, "boundary": 3.0, "projection": 0.5, "affinity": 0.25}
SIDE = 12
COMPILER = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


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


def torch_bce(logits, targets, weight):
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (loss * weight).sum((-2, -1)) / weight.sum((-2, -1))


def reference_distance(target, weight) -> np.ndarray:
    """`one_hot2dist` of the authors' code, in which cells beyond the image are neither."""
    inside = (np.asarray(target) > 0.5) & (np.asarray(weight) > 0)
    outside = ~inside & (np.asarray(weight) > 0)
    if not inside.any() or not outside.any():
        return np.zeros(inside.shape)
    far = ndimage.distance_transform_edt(~inside) * outside
    return far - (ndimage.distance_transform_edt(~outside) - 1) * inside


def torch_boundary(logits, targets, weight):
    maps = [reference_distance(target, weight) for target in targets]
    loss = torch.sigmoid(logits) * torch.tensor(np.stack(maps)) * weight / SIDE
    return loss.sum((-2, -1)) / weight.sum()


REFERENCES = {
    focal: torch_focal,
    soft_dice: torch_dice,
    bce: torch_bce,
    boundary: torch_boundary,
}


def batch(*, masks: int = 3, seed: int = 1) -> tuple[SamOutput, Wanted]:
    """Two images with two prompts each; one is invalid, one target is empty."""
    rng = np.random.default_rng(seed)
    targets = np.clip(rng.normal(0.3, 1.0, (2, 2, SIDE, SIDE)), 0, 1).astype(np.float32)
    targets[0, 1] = 0
    weight = np.stack([cover(), np.ones((SIDE, SIDE), np.float32)])
    targets *= weight[:, None] > 0
    boxes = np.array([[[1.5, 2, 6, 9.25], [0, 0, 0, 0]], [[3, 2, 11, 8], [0, 0, 1, 1]]])
    output = SamOutput(
        jnp.asarray(rng.normal(scale=3, size=(2, 2, masks, SIDE, SIDE)), jnp.float32),
        jnp.asarray(rng.normal(size=(2, 2, masks)), jnp.float32),
    )
    return output, Wanted(
        targets=jnp.asarray(targets),
        cover=jnp.asarray(weight),
        valid=jnp.array([[True, True], [True, False]]),
        boxes=jnp.asarray(boxes, jnp.float32),
        image=jnp.stack([patches(1), patches(3)]),
    )


@functools.cache
def compiled(weights: tuple, best_mask: str):
    def loss(output: SamOutput, *rest) -> tuple[jax.Array, Terms]:
        wanted, allowed = rest
        sums = sam_terms(
            output, wanted, weights=dict(weights), best_mask=best_mask, allowed=allowed
        )
        return sums.loss, sums

    return jax.jit(jax.grad(loss, has_aux=True), compiler_options=COMPILER)


def slopes_and_terms(
    output: SamOutput, wanted: Wanted, *, best_mask="lowest-loss", allowed=None, **weights: float
) -> tuple[SamOutput, Terms]:
    chosen = tuple((WEIGHTS | weights).items())
    return compiled(chosen, best_mask)(output, wanted, allowed)


def gradient(*fields, **options) -> SamOutput:
    return slopes_and_terms(*fields, **options)[0]


def terms(*fields, **options) -> Terms:
    return slopes_and_terms(*fields, **options)[1]


def whole(logits: np.ndarray, target: np.ndarray, iou=(0.0, 0.0, 0.0)) -> tuple[SamOutput, Wanted]:
    """Three masks of one object in an image that fills its canvas."""
    return (
        SamOutput(jnp.asarray(logits)[None, None], jnp.asarray(iou)[None, None]),
        Wanted(
            jnp.asarray(target)[None, None],
            jnp.ones((1, *target.shape)),
            jnp.ones((1, 1), bool),
            jnp.zeros((1, 1, 4)),
        ),
    )


@pytest.mark.parametrize("loss", REFERENCES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("soft", [False, True])
def test_a_loss_and_its_gradient_equal_torchs_in_float64(loss, soft):
    logits, targets, weight = drawn(3, SIDE, SIDE), soft_targets(3, SIDE, SIDE), cover()
    targets = targets if soft else (targets > 0.5).astype(np.float32)
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    want = REFERENCES[loss](theirs, torch.tensor(targets).double(), torch.tensor(weight).double())
    want.sum().backward()

    got, pull = jax.vjp(jax.jit(lambda x: loss(x, targets, weight)), logits)
    np.testing.assert_allclose(got, want.detach(), rtol=4e-6)
    # Sums over 12 x 12 float32 pixels round some 1e-7 of the largest.
    slope = theirs.grad.numpy()
    np.testing.assert_allclose(
        pull(jnp.ones(3))[0], slope, rtol=1e-5, atol=1e-6 * np.abs(slope).max()
    )


@pytest.fixture(scope="module")
def monai_losses() -> dict:
    """MONAI's losses of each of several masks, in float64."""
    from monai.losses import DiceLoss, FocalLoss

    plain = {"include_background": True, "reduction": "none"}
    entropy = FocalLoss(gamma=2.0, alpha=0.25, use_softmax=False, **plain)
    dice = DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1, **plain)
    return {
        focal: lambda *masks: entropy(*masks).mean((-2, -1))[:, 0],
        soft_dice: lambda *masks: dice(*masks).flatten(),
    }


def test_focal_and_dice_are_monais(monai_losses):
    logits, targets = drawn(3, SIDE, SIDE), (soft_targets(3, SIDE, SIDE) > 0.5).astype(np.float32)
    one = np.ones((SIDE, SIDE), np.float32)
    for ours, theirs in monai_losses.items():
        want = theirs(*(torch.tensor(x).double()[:, None] for x in (logits, targets)))
        np.testing.assert_allclose(ours(logits, targets, one), want, rtol=2e-6)


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


def test_bce_of_a_literal_mask():
    one = jnp.ones((1, 2))
    got = bce(jnp.log(jnp.array([[4.0, 3.0]])), jnp.array([[1.0, 0.25]]), one)
    want = (-np.log(0.8) - 0.25 * np.log(0.75) - 0.75 * np.log(0.25)) / 2
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_hard_iou_of_literal_masks():
    logits = jnp.array([[1.0, 1e-3, 0.0], [-1.0, 2.0, -3.0]])  # Zero is outside.
    targets = jnp.array([[0.51, 0.5, 0.9], [0.0, 1.0, 0.2]])  # So is a half.
    weight = jnp.array([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]])
    assert float(hard_iou(logits, targets, weight)) == pytest.approx(1.5 / 3.5)


def test_two_empty_masks_agree_and_one_does_not():
    one = jnp.ones((4, 4))
    assert float(hard_iou(-one, 0.5 * one, one)) == 1
    assert float(hard_iou(-one, one, one)) == 0
    assert float(hard_iou(one, 0 * one, one)) == 0


def test_hard_iou_has_no_gradient():
    one = jnp.ones((4, 4))
    assert not jax.grad(lambda x: hard_iou(x, one, one))(drawn(4, 4)).any()


@pytest.mark.parametrize("share", [0.5, 0.01, 0.99])
def test_distances_are_scipys(share):
    marked = np.random.default_rng(5).random((2, 17, 23)) < share
    marked[0, 3, 4] = True
    want = [ndimage.distance_transform_edt(~mask) for mask in marked]
    found = jax.jit(distances)(np.stack([*marked, np.zeros((17, 23), bool)]))
    np.testing.assert_allclose(found[:2], want, rtol=1e-6)
    assert np.isfinite(found).all()  # Even where none is marked.


def test_signed_distances_of_a_literal_mask():
    target = jnp.array([[0, 0, 0, 0], [0.4, 0.6, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]])
    weight = jnp.ones((4, 4)).at[:, 3].set(0)  # The image ends there, and the object does not.
    root = 2**0.5
    want = [[root, 1, 1, 0], [1, 0, 0, 0], [1, 0, -1, 0], [1, 0, -1, 0]]
    found = jax.jit(signed_distance)(jnp.stack([target, 0.5 * target, jnp.ones((4, 4))]), weight)
    np.testing.assert_allclose(found[0], want, rtol=1e-6)
    assert not found[1:].any()  # Nothing inside, and nothing outside.


def test_the_boundary_loss_is_the_same_at_twice_the_resolution():
    y, x = np.mgrid[:48, :48] + 0.5
    logits, target = 0.6 * (18 - np.hypot(x - 20, y - 26)), np.hypot(x - 24, y - 24) < 6.0
    loss = jax.jit(boundary)
    fine = loss(logits, target.astype(np.float32), np.ones((48, 48)))
    coarse = loss(logits[1::2, 1::2], target[1::2, 1::2].astype(np.float32), np.ones((24, 24)))
    # The outline lies within half a coarse cell of where the fine one has it.
    assert abs(float(fine) - float(coarse)) < 0.5 / 24
    assert float(fine) > 3 * 0.5 / 24


def test_what_lies_beyond_the_image_changes_nothing_bit_for_bit():
    output, wanted = batch()
    outside = wanted.cover == 0
    assert outside.any()
    garbage = (
        output._replace(logits=jnp.where(outside[:, None, None], 1e4, output.logits)),
        wanted._replace(
            targets=jnp.where(outside[:, None], 7.0, wanted.targets),
            image=jnp.where(outside[..., None], 255.0, wanted.image),
        ),
    )
    slopes, sums = slopes_and_terms(output, wanted, **ALL)
    other, others = slopes_and_terms(*garbage, **ALL)
    for want, got in zip(sums, others, strict=True):
        assert float(want) == float(got)
    np.testing.assert_array_equal(other.iou, slopes.iou)
    np.testing.assert_array_equal(other.logits, slopes.logits)
    assert not slopes.logits[jnp.broadcast_to(outside[:, None, None], slopes.logits.shape)].any()


def of_one_prompt(output: SamOutput, wanted: Wanted, place: tuple[int, int]) -> dict:
    """What a prompt adds to the sums, and `mask_loss` of each of its masks, in float64."""
    b, n = place
    logits, iou = (torch.tensor(np.asarray(x[b, n]), dtype=torch.float64) for x in output)
    weight = torch.tensor(np.asarray(wanted.cover[b])).double()
    target = torch.tensor(np.asarray(wanted.targets[b, n])).double().expand_as(logits)
    box, image = np.asarray(wanted.boxes[b, n]), np.asarray(wanted.image[b])
    losses = {
        "focal": torch_focal(logits, target, weight),
        "bce": torch_bce(logits, target, weight),
    }
    if target.any():
        losses |= {
            "dice": torch_dice(logits, target, weight),
            "boundary": torch_boundary(logits, target, weight),
            "projection": torch.stack([torch_projection(mask, box, weight) for mask in logits]),
            "affinity": torch.stack([torch_affinity(mask, image, box, weight) for mask in logits]),
        }
    losses = {name: losses.get(name, torch.zeros(3)).numpy() for name in LOSSES}
    overlap = (((logits > 0) & (target > 0.5)) * weight).sum((1, 2))
    true = (overlap / (((logits > 0) | (target > 0.5)) * weight).sum((1, 2))).numpy()
    losses["mask_loss"] = sum(ALL[name] * losses[name] for name in LOSSES)
    best, trusted = np.argmin(losses["mask_loss"]), np.argmax(iou.numpy())
    found = {name: values[best] for name, values in losses.items()}
    found["iou_mse"] = ((iou.numpy() - true) ** 2).mean()
    found["hard_dice"] = 2 * true[trusted] / (1 + true[trusted])
    found["loss"] = found.pop("mask_loss") + ALL["iou"] * found["iou_mse"]
    return found


def test_terms_are_sums_over_images_of_means_over_objects_computed_one_by_one():
    fields = batch()
    first, empty, other = (of_one_prompt(*fields, place) for place in ((0, 0), (0, 1), (1, 0)))
    got = terms(*fields, **ALL)._asdict()
    assert got.pop("count") == 2
    assert set(got) == {*LOSSES, "iou_mse", "hard_dice", "loss"}
    for name, value in got.items():
        want = (first[name] + empty[name]) / 2 + other[name]
        np.testing.assert_allclose(value, want, rtol=1e-5, err_msg=name)
        assert value != 0


def test_an_image_with_many_objects_weighs_as_much_as_one_with_a_single_object():
    output, wanted = batch()
    alone = wanted._replace(valid=jnp.array([[True, False], [True, False]]))
    twice = jax.tree.map(lambda x: x.at[0, 1].set(x[0, 0]), (output, wanted.targets, wanted.boxes))
    repeated = wanted._replace(targets=twice[1], boxes=twice[2])
    for want, got in zip(terms(output, alone), terms(twice[0], repeated), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_loss_without_a_weight_is_not_computed():
    output, wanted = batch()
    blind = wanted._replace(image=None)  # Of which the affinity loss would complain.
    sums = terms(output, blind)
    assert [float(getattr(sums, name)) for name in LOSSES if name not in WEIGHTS] == [0] * 4
    for weights, there in ((ALL, True), (WEIGHTS | {"affinity": 0.0}, False)):
        program = jax.make_jaxpr(functools.partial(sam_terms, weights=weights))(output, wanted)
        # Of boundary, projection and affinity.
        assert [word in str(program) for word in ("cummax", "reduce_max", "cbrt")] == [there] * 3
    with pytest.raises(ValueError, match=r"--affinity cannot go with --embeddings.*leave one"):
        terms(output, blind, affinity=1.0)
    with pytest.raises(ValueError, match="no loss is called dise; there are focal, dice"):
        terms(output, blind, dise=1.0)


def test_every_loss_has_a_weight_in_the_settings_and_a_field_of_its_own():
    assert tuple(LOSSES) == LOSS_WEIGHTS
    assert set(LOSSES) < set(Terms._fields)


def test_only_the_best_mask_learns_its_shape_and_all_three_their_iou():
    output, wanted = batch()
    slopes = gradient(output, wanted)
    moved = np.asarray((slopes.logits != 0).any((-2, -1)))
    assert moved[0].sum(-1).tolist() == [1, 1]
    assert moved[1].sum(-1).tolist() == [1, 0]
    # The true IoU is a constant: the slope is 2/3 of the error, and nothing reaches the logits.
    truth = hard_iou(output.logits, wanted.targets[:, :, None], wanted.cover[:, None, None])
    want = 2 / 3 * (output.iou - truth) / jnp.array([2, 1])[:, None, None]
    valid = np.asarray(wanted.valid)
    np.testing.assert_allclose(slopes.iou[valid], want[valid], rtol=1e-6)
    assert (np.asarray(slopes.iou)[valid] != 0).all()
    assert not gradient(output, wanted, focal=0.0, dice=0.0).logits.any()


def square() -> np.ndarray:
    target = np.zeros((SIDE, SIDE), np.float32)
    target[3:9, 3:9] = 1
    return target


def test_weights_decide_which_mask_is_best():
    target = square()
    timid = np.full((SIDE, SIDE), -0.5, np.float32)  # Nowhere far off, yet no shape at all.
    bold = np.where(target > 0, 9.0, -9.0).astype(np.float32)
    bold[3:5, 3:9] = -9  # The shape, but very wrong in a third of it.
    fields = whole(np.stack([timid, bold, np.full_like(bold, 9)]), target)
    for weights, best in (({"focal": 1, "dice": 0}, 0), ({"focal": 0, "dice": 1}, 1)):
        moved = (gradient(*fields, **weights).logits != 0).any((-2, -1))[0, 0]
        assert moved.tolist() == [index == best for index in range(3)]


@pytest.mark.parametrize(("best_mask", "best"), [("lowest-loss", 1), ("highest-iou", 2)])
def test_the_best_mask_is_that_with_the_lowest_loss_or_the_highest_predicted_iou(best_mask, best):
    assert set(BEST_MASKS) == {"lowest-loss", "highest-iou"}
    target = square()
    fields = whole(np.stack([-target, target, 0 * target]), target, iou=(0.2, 0.1, 0.3))
    slopes, sums = slopes_and_terms(*fields, best_mask=best_mask)
    moved = (slopes.logits != 0).any((-2, -1))[0, 0]
    assert moved.tolist() == [index == best for index in range(3)]
    one = np.ones_like(target)
    assert float(sums.dice) == pytest.approx(
        float(soft_dice(fields[0].logits, target, one)[0, 0, best])
    )
    # Figures are of the mask that the model trusts, here an empty one, in either case.
    assert float(sums.hard_dice) == 0


@pytest.mark.parametrize("best_mask", BEST_MASKS)
def test_masks_that_are_not_allowed_count_as_if_they_were_not_there(best_mask):
    output, wanted = batch(masks=4)
    options = {"best_mask": best_mask}
    for some in ([0], [1, 2, 3], [1, 3]):
        allowed = jnp.isin(jnp.arange(4), jnp.array(some))
        spoilt = SamOutput(
            jnp.where(allowed[:, None, None], output.logits, jnp.nan),
            jnp.where(allowed, output.iou, jnp.inf),
        )
        slopes, sums = slopes_and_terms(spoilt, wanted, allowed=allowed, **options)
        part = SamOutput(*(x[:, :, jnp.array(some)] for x in output))
        want_slopes, want = slopes_and_terms(part, wanted, **options)
        for mine, theirs in zip(sums, want, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)
        for mine, theirs in zip(slopes, want_slopes, strict=True):
            np.testing.assert_allclose(mine[:, :, jnp.array(some)], theirs, rtol=1e-5, atol=1e-9)
            assert not mine[:, :, ~allowed].any()


def test_an_invalid_prompt_has_neither_loss_nor_gradient_whatever_it_holds():
    output, wanted = batch()
    here = (1, 1)
    garbage = (
        SamOutput(output.logits.at[here].set(1e4), output.iou.at[here].set(-1e4)),
        wanted._replace(
            targets=wanted.targets.at[here].set(-1e4), boxes=wanted.boxes.at[here].set(-1e4)
        ),
    )
    slopes, sums = slopes_and_terms(*garbage, **ALL)
    for want, got in zip(terms(output, wanted, **ALL), sums, strict=True):
        assert float(want) == float(got)
    assert not slopes.logits[here].any()
    assert not slopes.iou[here].any()
    assert np.isfinite(slopes.logits).all()


def test_no_valid_prompt_is_a_sum_of_zeros():
    output, wanted = batch()
    slopes, sums = slopes_and_terms(output, wanted._replace(valid=jnp.zeros((2, 2), bool)), **ALL)
    assert [float(x) for x in sums] == [0] * len(Terms._fields)
    assert not any(x.any() for x in slopes)


def test_an_empty_target_has_focal_cross_entropy_and_iou_alone_and_a_faint_one_has_more():
    output, wanted = batch()
    wanted = wanted._replace(
        valid=jnp.array([[False, True], [False, False]]),
        boxes=wanted.boxes.at[0, 1].set(jnp.array([2.0, 2, 3, 3])),
    )
    sums = terms(output, wanted, **ALL)
    found = {name for name in LOSSES if float(getattr(sums, name)) != 0}
    assert found == {"focal", "bce"}
    assert float(sums.iou_mse) > 0
    assert not gradient(output, wanted, focal=0.0).logits.any()
    faint = terms(output, wanted._replace(targets=wanted.targets.at[0, 1, 2, 2].set(0.25)), **ALL)
    assert float(faint.dice) > 0.9
    assert float(faint.projection) > 0.9


def test_parts_of_a_batch_add_up_to_the_whole():
    fields = batch()
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], fields) for i in (0, 1)]
    parts = [terms(*row) for row in rows]
    for together, *apart in zip(terms(*fields), *parts, strict=True):
        np.testing.assert_allclose(sum(map(float, apart)), together, rtol=1e-6)


@pytest.mark.parametrize("size", [100, 1e4])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_extreme_logits_on_flat_images_have_a_finite_loss_and_gradient(size, target):
    output, wanted = batch()
    wanted = wanted._replace(
        targets=jnp.full_like(wanted.targets, target), image=jnp.zeros_like(wanted.image)
    )
    for sign in (1, -1):
        extreme = output._replace(logits=sign * size * jnp.sign(output.logits))
        slopes, sums = slopes_and_terms(extreme, wanted, **ALL)
        assert all(np.isfinite(float(x)) for x in sums)
        assert all(np.isfinite(x).all() for x in slopes)
