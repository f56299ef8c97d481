"""What each policy trains, at which rates, and that the rest costs no gradient and no state."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pp_jax import tree
from pp_jax.config import TrainConfig, resolve
from pp_jax.finetune import recipe
from pp_jax.finetune.optimize import PARTS, decays, factors, make_optimizer, parse_lr_scale
from pp_jax.finetune.trainable import POLICIES, policy
from pp_jax.preprocess.stage import initial_fusion
from pp_jax.sam import VARIANTS
from pp_jax.sam.model import init
from tests.test_step import KEY, SMALL, disks, terms_of, variables

# Numbers of parameters by hand. The decoder: two layers, the last attention, transposed
# convolutions, four hypernetworks, the IoU head; 256 wide, 128 in attention to and from the image.
DECODER_KERNELS = (
    2 * (4 * 256 * 256 + 2 * 4 * 256 * 128 + 2 * 256 * 2048)
    + 4 * 256 * 128
    + 4 * (256 * 64 + 64 * 32)
    + 4 * (2 * 256 * 256 + 256 * 32)
    + (2 * 256 * 256 + 256 * 4)
)
ATTENTION = 3 * 128 + 256  # Biases of one to or from the image.
DECODER_SMALL = (  # Biases and norms.
    2 * (4 * 256 + 2 * ATTENTION + 4 * 2 * 256 + (2048 + 256))
    + (ATTENTION + 2 * 256)
    + (64 + 2 * 64 + 32)
    + 4 * (256 + 256 + 32)
    + (256 + 256 + 4)
)
DECODER = DECODER_KERNELS + DECODER_SMALL + 5 * 256  # Five tokens.
PROMPT_KERNELS = 2 * 2 * 1 * 4 + 2 * 2 * 4 * 16 + 16 * 256
PROMPT_SMALL = (4 + 16 + 256) + 2 * (4 + 16)
PROMPT = PROMPT_KERNELS + PROMPT_SMALL + 6 * 256  # Four kinds of points, none, no mask.
FUSION = (3 + 1) * 3 + 3  # Image and one response to three channels.


def block(width: int, reach: int, heads: int) -> int:
    """Of a transformer block whose attention reaches over `reach` x `reach` tokens."""
    relative = 2 * (2 * reach - 1) * (width // heads)
    return 12 * width**2 + 13 * width + relative  # 9 widths of biases, 4 of norms.


def neck(width: int) -> int:
    return 256 * width + 9 * 256 * 256 + 4 * 256


TINY, TINY_GLOBAL = block(192, 7, 6), block(192, 16, 6)
BASE, BASE_GLOBAL = block(768, 14, 12), block(768, 64, 12)
PATCH = 16 * 16 * 3 + 1  # Per channel.
TRAINED = {
    ("tiny", "decoder"): DECODER,
    ("tiny", "decoder+prompt"): DECODER + PROMPT,
    ("tiny", "lora"): DECODER + 6 * 2 * 2 * 8 * 192,
    ("tiny", "last-k"): DECODER + neck(192) + 2 * TINY + 2 * TINY_GLOBAL,
    ("tiny", "norm+bias"): DECODER_SMALL + PROMPT_SMALL + (6 * 13 + 1) * 192 + 4 * 256,
    ("tiny", "full"): DECODER
    + PROMPT
    + neck(192)
    + (4 * TINY + 2 * TINY_GLOBAL)
    + (PATCH + 16 * 16) * 192,
    ("vit_b", "decoder"): DECODER,
    ("vit_b", "decoder+prompt"): DECODER + PROMPT,
    ("vit_b", "lora"): DECODER + 12 * 2 * 2 * 8 * 768,
    ("vit_b", "last-k"): DECODER + neck(768) + 2 * BASE + 2 * BASE_GLOBAL,
    ("vit_b", "norm+bias"): DECODER_SMALL + PROMPT_SMALL + (12 * 13 + 1) * 768 + 4 * 256,
    ("vit_b", "full"): 93_735_472,  # As official SAM counts them.
}


def settings(variant: str, name: str, **choices: Any) -> TrainConfig:
    return resolve(TrainConfig(variant=variant, trainable=name, **choices))


@functools.cache
def shapes(chosen: TrainConfig) -> dict:
    model, look = recipe.model_of(chosen), recipe.look_of(chosen)
    return jax.eval_shape(lambda key: init(model, key) | initial_fusion(look), jax.random.key(0))


def size(leaves: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(leaves))


def test_the_decoder_and_the_prompt_encoder_are_as_large_as_officially() -> None:
    assert (DECODER, PROMPT) == (4_058_340, 6_220)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_leaf_is_trained_or_frozen_and_no_constant_is_trained(
    variant: str, name: str
) -> None:
    whole = shapes(chosen := settings(variant, name))
    trained, frozen = tree.partition(whole, recipe.rules_of(chosen))
    assert tree.flatten(tree.combine(trained, frozen)) == tree.flatten(whole)
    assert not tree.flatten(trained).keys() & tree.flatten(frozen).keys()
    assert frozen["constants"] == whole["constants"]
    if (variant, name) in TRAINED:
        assert size(recipe.trained_of(chosen)) == size(trained) == TRAINED[variant, name]


def test_every_policy_is_counted() -> None:
    assert {name for _, name in TRAINED} == POLICIES.keys()


@pytest.mark.parametrize("name", POLICIES)
def test_a_learned_fusion_is_trained_by_every_policy(name: str) -> None:
    chosen = settings("tiny", name, fusion="learned", filter="sobel")
    assert size(recipe.trained_of(chosen)) == TRAINED["tiny", name] + FUSION


def test_last_k_trains_the_last_blocks() -> None:
    paths = tree.flatten(recipe.trained_of(settings("vit_b", "last-k", last_blocks=3)))
    parts = {path.split("/")[2] for path in paths if path.startswith("params/image_encoder/")}
    assert parts == {"blocks_09", "blocks_10", "blocks_11", *(f"neck_{i}" for i in range(4))}
    assert all(path.startswith(("params/image_encoder/", "params/mask_decoder/")) for path in paths)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"name": "last-k", "last_blocks": 7}, "--last-blocks 7: the image encoder has 6 blocks"),
        ({"name": "lora", "lora_on": "q,w"}, "--lora-on q,w: give some of q, k, v"),
        ({"name": "decoder", "lr_scale": "image_encoder=0.1"}, "choose from mask_decoder, or ano"),
        ({"name": "full", "lr_scale": "lora=2"}, "--lr-scale lora=2: nothing of lora is trained"),
        ({"name": "full", "lr_scale": "fusion=2"}, "nothing of fusion is trained"),
        ({"name": "decoder+prompt", "layer_decay": 0.8}, "--layer-decay 0.8: no layer of the ima"),
    ],
)
def test_what_does_not_fit_the_model_is_named(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.check_rules(settings("tiny", **choices))


@pytest.mark.parametrize(
    "choices",
    [
        {"name": "lora", "lr_scale": "lora=2,mask_decoder=0.5", "layer_decay": 0.8},
        {"name": "last-k", "last_blocks": 6, "layer_decay": 0.8},
        {"name": "norm+bias", "lr_scale": "image_encoder=0,prompt_encoder=1e-2"},
        {"name": "decoder", "lr_scale": "fusion=2", "fusion": "learned", "filter": "sobel"},
    ],
)
def test_what_fits_is_accepted(choices: dict[str, Any]) -> None:
    recipe.check_rules(settings("tiny", **choices))


# No state and no gradient of what is frozen.


@pytest.mark.parametrize(
    ("optimizer", "copies"), [("adamw", 2), ("adam", 2), ("sgd-momentum", 1), ("lion", 1)]
)
@pytest.mark.parametrize("name", POLICIES)
def test_there_are_as_many_moments_as_trained_parameters(
    name: str, optimizer: str, copies: int
) -> None:
    chosen = settings("tiny", name, optimizer=optimizer)
    rule = recipe.optimizer_of(chosen, steps=10)
    state = jax.eval_shape(rule.init, recipe.trained_of(chosen))
    assert size([x for x in jax.tree.leaves(state) if x.ndim]) == copies * TRAINED["tiny", name]


def test_adafactor_keeps_rows_and_columns_of_large_kernels() -> None:
    chosen = settings("vit_b", "last-k", optimizer="adafactor")
    state = jax.eval_shape(recipe.optimizer_of(chosen, steps=10).init, recipe.trained_of(chosen))
    # A one stands wherever there is nothing to keep: three arrays for each parameter, two unused
    # with a whole moment and one with rows and columns.
    path = "params/image_encoder/blocks_11/mlp/lin1/kernel"
    factored = optax.tree.get(state, "v_row"), optax.tree.get(state, "v_col")
    assert [tree.flatten(x)[path].shape for x in factored] == [(768,), (3072,)]
    assert tree.flatten(optax.tree.get(state, "v"))[path].shape == (1,)
    assert size(state) < 0.5 * TRAINED["vit_b", "last-k"]


@functools.cache
def work(name: str) -> float:
    """Floating-point operations of the gradient on the smallest model, before any are fused."""
    rules = policy(name, depth=SMALL.depth, last_blocks=1)
    trained, frozen = tree.partition(variables(), rules)
    terms = terms_of("point")

    def slopes(trained: dict, *rest: Any) -> dict:
        return jax.grad(lambda x: terms(x, *rest).loss)(trained)

    lowered = jax.jit(slopes).lower(trained, frozen, disks(), np.arange(4), KEY, 0)
    return lowered.cost_analysis()["flops"]


def test_the_gradient_of_what_is_frozen_is_not_computed() -> None:
    """A dense layer's backward pass is a product for its kernel, and one for what is before it."""
    tokens, width = 4 * 16 * 16, SMALL.embed_dim
    blocks, end, patches = 2 * 12 * width**2, 10 * width**2, 16 * 16 * 3 * width
    encoder = 2 * tokens * (2 * (blocks + end) + patches)
    assert work("full") - work("decoder") > encoder
    # Of norms and biases the product for what is before it remains.
    kernels = 2 * tokens * (blocks + end + patches)
    assert work("full") - work("norm+bias") > kernels


# Decay and rates.


def test_decay_acts_on_kernels_and_pairs_positions_norms_tokens_and_biases_are_without() -> None:
    chosen = settings("tiny", "full")
    whole = tree.flatten(decays(recipe.trained_of(chosen)))
    sizes = {path: leaf.size for path, leaf in tree.flatten(recipe.trained_of(chosen)).items()}
    encoder = 6 * 12 * 192**2 + 16 * 16 * 3 * 192 + 256 * 192 + 9 * 256 * 256
    decayed = {path for path, decayed in whole.items() if decayed}
    assert sum(sizes[path] for path in decayed) == encoder + PROMPT_KERNELS + DECODER_KERNELS
    kept = ("bias", "scale", "_token", "_tokens", "_embed", "rel_pos_h", "rel_pos_w")
    free = {path for path in whole if path.endswith(kept) or "point_embeddings_" in path}
    assert free == whole.keys() - decayed
    pairs = decays(recipe.trained_of(settings("tiny", "lora"))["lora"])
    assert not any(jax.tree.leaves(pairs))
    fusion = recipe.trained_of(settings("tiny", "decoder", fusion="learned", filter="sobel"))
    assert not any(jax.tree.leaves(decays(fusion["fusion"])))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("encoder=0.1", "no part 'encoder'; choose from image_encoder, prompt_encoder, mask_dec"),
        ("image_encoder", "'image_encoder': give PART=FACTOR, such as image_encoder=0.1"),
        ("image_encoder=0.1,", "'': give PART=FACTOR"),
        ("image_encoder=-1", "--lr-scale image_encoder=-1: the factor must be a number from 0 up"),
        ("lora=nan", "lora=nan: the factor"),
        ("lora=inf", "lora=inf: the factor"),
        ("lora=x", "lora=x: the factor"),
        ("lora=1,lora=2", "lora is given twice"),
    ],
)
def test_a_wrong_factor_is_named_with_the_choices(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_lr_scale(spec)


def test_factors_are_read_by_part() -> None:
    assert parse_lr_scale("") == {}
    want = {"image_encoder": 0.1, "mask_decoder": 1.0}
    assert parse_lr_scale("image_encoder=0.1, mask_decoder=1") == want
    assert list(PARTS) == ["image_encoder", "prompt_encoder", "mask_decoder", "lora", "fusion"]


# Of a depth of 12, as ViTDet's `get_vit_lr_decay_rate(name, 0.5, 12)` gives it, times the parts'.
FACTORS = {
    "params/image_encoder/pos_embed": 0.1 * 0.5**13,
    "params/image_encoder/patch_embed/proj/kernel": 0.1 * 0.5**13,
    "params/image_encoder/blocks_00/attn/qkv/kernel": 0.1 * 0.5**12,
    "params/image_encoder/blocks_10/norm1/bias": 0.1 * 0.25,
    "params/image_encoder/blocks_11/mlp/lin1/kernel": 0.1 * 0.5,
    "params/image_encoder/neck_0/kernel": 0.1,
    "params/prompt_encoder/no_mask_embed": 1.0,
    "params/mask_decoder/iou_token": 3.0,
    "lora/image_encoder/blocks_11/attn/lora_q/a": 2 * 0.5,
    "fusion/mixing": 4.0,
}
SCALES = {"image_encoder": 0.1, "mask_decoder": 3.0, "lora": 2.0, "fusion": 4.0}


def test_rates_decay_by_layer_as_in_vitdet_and_are_scaled_by_part() -> None:
    params = tree.unflatten({path: jnp.zeros(2) for path in FACTORS})
    got = tree.flatten(factors(params, lr_scale=SCALES, layer_decay=0.5, depth=12))
    assert got == pytest.approx(FACTORS)


def test_three_steps_are_those_of_plain_adamw_with_a_rate_for_each_leaf() -> None:
    """Decay is scaled with the rest of the update."""
    rng, lr, decay = np.random.default_rng(0), 0.1, 0.2
    start = {path: rng.normal(size=3) for path in FACTORS}
    slopes = [{path: rng.normal(size=3) for path in FACTORS} for _ in range(3)]
    rule = make_optimizer(
        name="adamw",
        schedule="constant",
        lr=lr,
        warmup=0,
        steps=3,
        weight_decay=decay,
        clip=0.0,
        lr_scale=SCALES,
        layer_decay=0.5,
        depth=12,
    )
    params = tree.unflatten({path: jnp.float32(x) for path, x in start.items()})
    state, update = rule.init(params), jax.jit(rule.update)
    plain = {path: (x, 0.0, 0.0) for path, x in start.items()}
    for step, slope in enumerate(slopes, 1):
        gradient = tree.unflatten({path: jnp.float32(x) for path, x in slope.items()})
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for path, got in tree.flatten(updates).items():
            weight, mean, square = plain[path]
            mean = 0.9 * mean + 0.1 * slope[path]
            square = 0.999 * square + 0.001 * slope[path] ** 2
            own = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
            move = -lr * FACTORS[path] * (own + decay * path.endswith("kernel") * weight)
            plain[path] = (weight + move, mean, square)
            np.testing.assert_allclose(got, move, rtol=1e-4, err_msg=path)


@pytest.mark.parametrize("choices", [{}, {"lr_scale": "mask_decoder=0.25"}])
def test_the_settings_reach_the_update(choices: dict[str, Any]) -> None:
    chosen = settings("tiny", "decoder", lr=0.1, warmup=0, schedule="constant", **choices)
    params = {"params": {"mask_decoder": {"iou_token": jnp.zeros(3)}}}
    rule = recipe.optimizer_of(chosen, steps=10)
    updates, _ = rule.update(jax.tree.map(jnp.ones_like, params), rule.init(params), params)
    want = -0.1 * (0.25 if choices else 1.0)
    np.testing.assert_allclose(jax.tree.leaves(updates)[0], [want] * 3, rtol=1e-3)
