"""The neutral padding law: what is not there, in a slot, a prompt or an image, has no influence."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.official import to_variables
from pp_jax.predict import predictor
from pp_jax.sam import VARIANTS, Sam, SamOutput
from pp_jax.types import (
    BACKGROUND,
    BOTTOM_RIGHT,
    FOREGROUND,
    NEUTRAL,
    NOT_A_POINT,
    TOP_LEFT,
    Prompts,
)
from tests import official

CONFIG = VARIANTS["tiny"]
SIDE, MASK_SIDE = CONFIG.image_size, CONFIG.mask_side

# Another batch shape means the same sums in another order: float32's 6e-8 per rounding, grown by
# some ten layers to at most 7e-6 of the logits' deviation and 8e-7 of an IoU near 1, over three
# draws of the weights.
LOGITS, IOU = 1e-5, 3e-6


class Case(NamedTuple):
    """Slots of one prompt, and the seed of its mask prompt (None: no mask)."""

    points: list[tuple[float, float]]
    labels: list[int]
    mask: int | None = None


CASES = (
    Case([(100.0, 30.5), (0.0, 0.0)], [FOREGROUND, NOT_A_POINT]),
    Case([(20.0, 40.0), (200.5, 180.0)], [TOP_LEFT, BOTTOM_RIGHT], mask=1),
    Case([(7.0, 250.0), (120.0, 9.0)], [BACKGROUND, FOREGROUND]),
)
PADDED_SLOTS, PADDED_PROMPTS = 5, 6


@pytest.fixture(scope="module")
def variables() -> dict:
    """Every tensor drawn: SAM's own initial values hold zeros, which would hide a fault."""
    state = official.randomise(official.build(CONFIG), seed=5).state_dict()
    arrays = {name: x.numpy() for name, x in state.items()}
    return to_variables(arrays, variant="tiny", source="random")


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, SIDE, SIDE, 3)), jnp.float32)


encode = jax.jit(lambda v, image: Sam(CONFIG).apply(v, image, method="encode"))
decode = jax.jit(lambda v, x, prompts: Sam(CONFIG).apply(v, x, prompts, method="decode"))


def mask_prompt(seed: int) -> np.ndarray:
    return 5 * np.random.default_rng(seed).normal(size=(MASK_SIDE, MASK_SIDE))


def alone(case: Case) -> Prompts:
    """The case as the only prompt on one image, without a slot too many."""
    masks = np.zeros((MASK_SIDE, MASK_SIDE)) if case.mask is None else mask_prompt(case.mask)
    return Prompts(
        points=jnp.asarray([[case.points]], jnp.float32),
        labels=jnp.asarray([[case.labels]], jnp.int32),
        masks=jnp.asarray(masks[None, None], jnp.float32),
        has_mask=jnp.asarray([[case.mask is not None]]),
        valid=jnp.ones((1, 1), bool),
    )


def padded(order: tuple[int, ...] = (4, 0, 2)) -> Prompts:
    """All cases on each of three images, at the prompts `order`, their points in slots 1 and 3.

    The other slots are neutral, the other prompts invalid; both hold garbage.
    """
    rng = np.random.default_rng(2)
    shape = (3, PADDED_PROMPTS)
    points = 1e3 * rng.normal(size=(*shape, PADDED_SLOTS, 2))
    labels = np.full((*shape, PADDED_SLOTS), NEUTRAL)
    masks = 1e2 * rng.normal(size=(*shape, MASK_SIDE, MASK_SIDE))
    has_mask, valid = np.zeros(shape, bool), np.zeros(shape, bool)
    invalid = [n for n in range(PADDED_PROMPTS) if n not in order]
    labels[:, invalid[0]] = rng.integers(NEUTRAL, 4, (3, PADDED_SLOTS))
    has_mask[:, invalid[0]] = True
    for n, case in zip(order, CASES, strict=True):
        marked = np.array(case.labels)[:, None] != NOT_A_POINT  # That one has no place.
        points[:, n, 1::2] = np.where(marked, case.points, points[:, n, 1::2])
        labels[:, n, 1::2], valid[:, n] = case.labels, True
        if case.mask is not None:
            masks[:, n], has_mask[:, n] = mask_prompt(case.mask), True
    return Prompts(
        jnp.asarray(points, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(masks, jnp.float32),
        jnp.asarray(has_mask),
        jnp.asarray(valid),
    )


@pytest.fixture(scope="module")
def together(variables: dict, images: jax.Array) -> SamOutput:
    """The answer to three images and all padded prompts at once."""
    return decode(variables, encode(variables, images), padded())


def assert_same(got: SamOutput, want: SamOutput) -> None:
    deviation = np.std(want.logits, axis=(-2, -1), keepdims=True)
    assert deviation.min() > 0
    assert np.abs((got.logits - want.logits) / deviation).max() < LOGITS
    assert np.abs(got.iou - want.iou).max() < IOU


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("image", [0, 2])
def test_a_prompt_alone_and_among_padding_get_the_same_answer(
    variables: dict, images: jax.Array, together: SamOutput, image: int, case: int
) -> None:
    embedding = encode(variables, images[image : image + 1])
    want = decode(variables, embedding, alone(CASES[case]))
    n = (4, 0, 2)[case]
    got = jax.tree.map(lambda x: x[image : image + 1, n : n + 1], together)
    assert_same(got, want)


def test_the_cases_and_images_differ_so_that_a_mix_up_would_show(together: SamOutput) -> None:
    answers = np.asarray(together.logits[:, jnp.array([4, 0, 2])]).reshape(9, -1)
    for i in range(9):
        for j in range(i):
            assert np.abs(answers[i] - answers[j]).max() > 1e-2 * answers[i].std()


def test_invalid_and_all_neutral_prompts_get_finite_answers(together: SamOutput) -> None:
    assert all(np.isfinite(x).all() for x in together)


def test_permuted_prompts_get_the_permuted_answer(
    variables: dict, images: jax.Array, together: SamOutput
) -> None:
    order = jnp.array([3, 5, 0, 4, 1, 2])
    prompts = jax.tree.map(lambda x: x[:, order], padded())
    got = decode(variables, encode(variables, images), prompts)
    assert_same(got, jax.tree.map(lambda x: x[:, order], together))


def test_permuted_images_get_the_permuted_answer(
    variables: dict, images: jax.Array, together: SamOutput
) -> None:
    order = jnp.array([2, 0, 1])
    prompts = jax.tree.map(lambda x: x[order], padded())
    got = decode(variables, encode(variables, images[order]), prompts)
    assert_same(got, jax.tree.map(lambda x: x[order], together))


def test_permuted_points_of_a_prompt_do_not_change_the_answer(
    variables: dict, images: jax.Array, together: SamOutput
) -> None:
    order = jnp.array([4, 3, 0, 1, 2])
    prompts = padded()
    prompts = prompts._replace(
        points=prompts.points[:, :, order], labels=prompts.labels[:, :, order]
    )
    assert_same(decode(variables, encode(variables, images), prompts), together)


def test_gradients_are_finite_when_every_slot_is_neutral(
    variables: dict, images: jax.Array
) -> None:
    prompts = padded()
    prompts = prompts._replace(labels=jnp.full_like(prompts.labels, NEUTRAL))
    embedding = encode(variables, images)

    def loss(params: dict) -> jax.Array:
        out = decode({**variables, "params": params}, embedding, prompts)
        return jnp.mean(out.logits**2) + jnp.mean(out.iou**2)

    gradient = jax.grad(loss)(variables["params"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert np.abs(gradient["mask_decoder"]["mask_tokens"]).max() > 0
    # No slot has a label, so no label's embedding has an influence.
    assert not np.any(gradient["prompt_encoder"]["point_embeddings_1"])
    assert not np.any(gradient["prompt_encoder"]["not_a_point_embed"])


def test_masks_of_side_0_are_masks_that_nobody_gave(variables: dict, images: jax.Array) -> None:
    embedding = encode(variables, images)
    prompts = padded()
    without = prompts._replace(has_mask=jnp.zeros_like(prompts.has_mask))
    want = decode(variables, embedding, without)
    got = decode(variables, embedding, without._replace(masks=jnp.zeros((3, PADDED_PROMPTS, 0, 0))))
    assert_same(got, want)


@pytest.mark.parametrize(("at_once", "with_masks"), [(1, True), (4, False)])
def test_some_prompts_at_a_time_answer_as_all_at_once(
    variables: dict,
    images: jax.Array,
    at_once: int,
    with_masks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six prompts: by one, and by four, the last four of which are filled up."""
    monkeypatch.setattr(predictor, "_AT_ONCE_ON_CPU", at_once)
    prompts = padded()
    if not with_masks:
        none = jnp.zeros_like(prompts.has_mask)
        prompts = prompts._replace(has_mask=none, masks=prompts.masks[..., :0, :0])
    embedding = encode(variables, images)
    got = jax.jit(partial(predictor.predict, Sam(CONFIG)))(variables, embedding, prompts)
    assert_same(got, decode(variables, embedding, prompts))
