"""Segmentation networks against torch, and the laws that their face of SAM promises."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen as nn
from jaxtyping import Array

from pp_jax import tree
from pp_jax.baselines import segmenter as module
from pp_jax.baselines.deeplab import Aspp
from pp_jax.baselines.segmenter import (
    SEGMENTERS,
    Segmenter,
    SegmenterConfig,
    box_channel,
    expected_iou,
    segmenter_config,
)
from pp_jax.baselines.unet import BackboneUNet, UNet, mirrored, valid_margin
from pp_jax.prompts import make_prompts
from pp_jax.sam.model import SamOutput, init
from pp_jax.types import FOREGROUND, Prompts
from tests import torch_networks

SMALL = SegmenterConfig(image_size=64, width=4, depth=2)


def drawn(variables: dict, *, seed: int = 0) -> dict:
    """Variables of the same shapes, every tensor random: zeros would hide what they multiply."""
    generator = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = generator.normal(size=shape) * max(np.prod(shape[:-1]), 4) ** -0.5
        if path.endswith("var"):  # Positive.
            return np.float32(np.exp(noise))
        return np.float32(noise + path.endswith("scale"))

    return tree.unflatten({p: draw(p, x.shape) for p, x in tree.flatten(variables).items()})


def images(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# The plain network of each row, and fields of its backbone and of its own that make it small;
# `unet-tiny` is `unet` made small.
WHOLE = {
    "unet": (torch_networks.unet, {}, {"width": 4}),
    # The margin is the paper's own arithmetic, which its figure has at depth 5: see the next test.
    "unet-2015": (partial(torch_networks.unet, margin=20), {}, {"width": 4, "depth": 3}),
    "unet-bilinear": (torch_networks.unet, {}, {"width": 4, "depth": 3, "norm": "group"}),
    "unet-vgg16": (torch_networks.unet_on_vgg16, {"width": 4}, {"width": 4}),
    "unet-resnet": (torch_networks.unet_on_resnet50, {"width": 4}, {"width": 4}),
    "fcn": (torch_networks.unet, {}, {"width": 4, "depth": 3}),
    "deeplabv3+": (torch_networks.deeplab, {"width": 4}, {"width": 128}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_network_of_a_row_is_torchs(name: str) -> None:
    plain, backbone, narrow = WHOLE[name]
    config = replace(segmenter_config(name), **narrow)
    net = Segmenter(config).bind({}).network.unbind()[0]
    if backbone:
        net = net.clone(backbone=net.backbone.clone(**backbone))
    image = images(1, 48, 48, 4)  # Of which 1/32 is rounded up.
    variables = drawn(jax.eval_shape(net.init, jax.random.key(0), image))
    got, want = net.apply(variables, image), plain(net, variables, image)
    assert want.shape == (1, 48, 48)
    assert want.std() > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * want.std())


def test_valid_padding_needs_the_papers_margin_and_covers_every_canvas() -> None:
    assert valid_margin(388, depth=5) == (572 - 388) // 2
    for side in range(64, 2049, 16):
        size = side + 2 * valid_margin(side, depth=5)
        for _ in range(4):
            assert size % 2 == 0
            size = (size - 4) // 2
        size -= 4
        for _ in range(4):
            size = 2 * size - 4
        assert side <= size < side + 16


def test_mirroring_repeats_no_border_however_far_it_goes() -> None:
    image = images(1, 5, 5, 2)
    want = np.pad(image, [(0, 0), (11, 11), (11, 11), (0, 0)], mode="reflect")
    np.testing.assert_array_equal(mirrored(jnp.asarray(image), before=11), want)


@pytest.mark.parametrize("skips", [True, False])
def test_without_copies_all_goes_through_the_bottom(skips: bool) -> None:
    net = UNet(width=2, depth=3, skips=skips)
    image = images(1, 16, 16, 4)
    variables = drawn(jax.eval_shape(net.init, jax.random.key(0), image))
    # A bottom that says nothing: what still depends on the image has gone around it.
    variables["params"]["encoder_2"]["conv_1"] = {
        "kernel": np.zeros((3, 3, 8, 8), np.float32),
        "bias": np.ones(8, np.float32),
    }
    slope = jax.jit(jax.grad(lambda x: jnp.sum(net.apply(variables, x) ** 2)))(image)
    assert bool(np.any(slope != 0)) == skips


def test_shifting_the_image_by_the_stride_shifts_the_answer_away_from_borders() -> None:
    net, stride, reach = UNet(width=4, depth=3), 4, 24
    image = images(1, 64, 64, 4)
    variables = drawn(jax.eval_shape(net.init, jax.random.key(0), image))
    apply = jax.jit(net.apply)
    here = apply(variables, image)
    there = apply(variables, np.roll(image, (stride, 2 * stride), axis=(1, 2)))
    moved = np.roll(here, (stride, 2 * stride), axis=(1, 2))
    inner = slice(reach + 2 * stride, 64 - reach)
    np.testing.assert_allclose(there[:, inner, inner], moved[:, inner, inner], atol=1e-5)
    assert np.abs(there - moved).max() > 1e-3  # Borders do differ.
    odd = apply(variables, np.roll(image, 1, axis=1))
    assert np.abs(odd - np.roll(here, 1, axis=1))[:, inner, inner].max() > 1e-3


class Given(nn.Module):
    """A backbone whose stages are its parameters."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        return [
            self.param(f"stage_{i}", nn.initializers.normal(1.0), (1, side, side, 3))
            for i, side in enumerate(self.sizes)
        ]


@pytest.mark.parametrize(("sizes", "first"), [((48, 24, 12), 0), ((24, 12, 6, 3, 2), 1)])
def test_every_stage_of_a_backbone_is_read_at_sizes_that_were_rounded_up_too(
    sizes: tuple[int, ...], first: int
) -> None:
    net = BackboneUNet(Given(sizes), first=first, width=4)
    image = jnp.zeros((1, 48, 48, 4))
    variables = drawn(jax.eval_shape(net.init, jax.random.key(0), image), seed=2)

    def total(variables: dict) -> Array:
        logits = net.apply(variables, image)
        assert logits.shape == (1, 48, 48)
        return jnp.sum(logits**2)

    slopes = jax.jit(jax.grad(total))(variables)
    for i in range(len(sizes)):
        assert np.any(slopes["params"]["backbone"][f"stage_{i}"] != 0)


def test_the_pyramid_is_torchs_at_every_rate() -> None:
    net, x = Aspp(4, norm="none"), images(1, 20, 22, 3)
    variables = drawn(jax.eval_shape(net.init, jax.random.key(0), x))
    want = torch_networks.Layers(variables).pyramid(torch.from_numpy(x).permute(0, 3, 1, 2), "")
    got = jax.jit(net.apply)(variables, x)
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return Segmenter(SMALL)


@pytest.fixture(scope="module")
def variables(model: Segmenter) -> dict:
    return drawn(jax.eval_shape(lambda key: init(model, key), jax.random.key(0)))


Ask = Callable[[Prompts], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def ask(model: Segmenter, variables: dict) -> Ask:
    """Logits and IoU of prompts on two images."""
    image = images(2, 64, 64, 3)
    return jax.jit(lambda prompts: tuple(model.apply(variables, image, prompts)))


BOXES = jnp.array([[[8, 12, 40, 30]], [[0, 0, 64, 20]]], jnp.float32)


def test_without_a_box_the_network_sees_three_channels(
    model: Segmenter, variables: dict, ask: Ask
) -> None:
    logits, _ = ask(make_prompts(boxes=BOXES, has_box=jnp.zeros((2, 1), bool)))
    three = jax.tree.map(lambda x: x, variables["params"]["network"])
    kernel = three["encoder_0"]["conv_0"]["kernel"]
    three["encoder_0"]["conv_0"] |= {"kernel": kernel[:, :, :3]}
    full = jax.jit(UNet(width=4, depth=2).apply)({"params": three}, images(2, 64, 64, 3))
    # Cells of 4 x 4 pixels, by plain slices.
    cells = sum(full[:, i::4, j::4] for i in range(4) for j in range(4)) / 16
    np.testing.assert_allclose(logits[:, 0, 0], cells, atol=1e-5)
    boxed, _ = ask(make_prompts(boxes=BOXES))
    assert np.all(np.abs(boxed - logits).max(axis=(1, 2, 3, 4)) > 1e-3)


def test_each_prompt_is_answered_by_its_own_box_and_image(ask: Ask) -> None:
    both = jnp.concatenate([BOXES, BOXES[::-1]], axis=1)
    together, _ = ask(make_prompts(boxes=both))
    for i in range(2):
        alone, _ = ask(make_prompts(boxes=both[:, i : i + 1]))
        np.testing.assert_allclose(together[:, i : i + 1], alone, atol=1e-5)
    assert np.abs(together[:, 0] - together[:, 1]).max() > 1e-3


def test_points_and_masks_are_not_read(ask: Ask) -> None:
    want, _ = ask(make_prompts(boxes=BOXES))
    marked = make_prompts(
        boxes=BOXES,
        points=jnp.full((2, 1, 1, 2), 20.0),
        labels=jnp.full((2, 1, 1), FOREGROUND),
        masks=jnp.ones((2, 1, 16, 16)),
    )
    np.testing.assert_array_equal(ask(marked)[0], want)


def test_all_of_sams_tokens_give_the_one_mask(model: Segmenter, variables: dict) -> None:
    image = images(1, 64, 64, 3)
    out = jax.jit(model.apply)(variables, image, make_prompts(boxes=BOXES[:1]))
    assert out.logits.shape == (1, 1, 4, 16, 16)
    for view in (out.three().best(), out.single()):
        np.testing.assert_array_equal(view.logits[:, :, 0], out.logits[:, :, 2])
        np.testing.assert_array_equal(view.iou, out.iou[:, :, :1])


def test_a_box_fills_each_pixel_by_its_share() -> None:
    boxes = jnp.array([[[2.25, 1, 4.5, 3], [0, 0, 0, 0]], [[5, 5, 5.5, 5.5], [-3, -3, 9, 9]]])
    has_box = jnp.array([[True, False], [True, True]])
    got = box_channel(make_prompts(boxes=boxes, has_box=has_box), side=8)
    want = np.zeros((2, 2, 8, 8), np.float32)
    want[0, 0, 1:3, 2:5] = 0.75, 1, 0.5
    want[1, 0, 5, 5] = 0.25
    want[1, 1] = 1
    np.testing.assert_array_equal(got, want)
    invalid = make_prompts(boxes=boxes, valid=jnp.zeros((2, 2), bool))
    np.testing.assert_array_equal(box_channel(invalid, side=8), 0)


def test_the_iou_is_that_of_many_masks_drawn_from_the_probabilities() -> None:
    logits = 2 * images(2, 64, 64)
    generator = np.random.default_rng(0)
    truth = generator.random((200, 2, 64, 64)) < 1 / (1 + np.exp(-logits))
    mask = logits > 0
    drawn_iou = (truth & mask).sum((2, 3)) / (truth | mask).sum((2, 3))
    # 4096 cells: the ratio of means is the mean ratio to a few 1e-4, as is the mean of 200 draws.
    np.testing.assert_allclose(expected_iou(jnp.asarray(logits)), drawn_iou.mean(0), atol=2e-3)


def test_the_iou_is_finite_where_nothing_is_and_takes_no_gradient() -> None:
    for level in (-200.0, -1.0):
        assert expected_iou(jnp.full((3, 3), level)) == 0
    assert expected_iou(jnp.full((3, 3), 200.0)) == 1
    slope = jax.grad(lambda x: expected_iou(x))(jnp.asarray(images(4, 4)))
    np.testing.assert_array_equal(slope, 0)


def traced(name: str, size: int, dtype: jnp.dtype, *, remat: bool) -> tuple[SamOutput, dict]:
    """Abstract answer and variables."""
    network = Segmenter(segmenter_config(name, size), dtype=dtype, remat=remat)
    image, prompts = jnp.zeros((2, size, size, 3), dtype), make_prompts(batch=2, count=1)
    return jax.eval_shape(network.init_with_output, jax.random.key(0), image, prompts)


# Each kind of block is in one of these.
@pytest.mark.parametrize("name", ["unet-2015", "unet-vgg16", "deeplabv3+"])
def test_size_type_and_recomputing_change_no_parameter_and_answers_stay_float32(name: str) -> None:
    out, variables = traced(name, 144, jnp.bfloat16, remat=True)
    assert (out.logits.dtype, out.iou.dtype) == (jnp.float32, jnp.float32)
    assert all(x.dtype == jnp.float32 for x in tree.flatten(variables).values())
    assert variables == traced(name, 64, jnp.float32, remat=False)[1]


def test_recomputing_levels_changes_no_number(model: Segmenter, variables: dict) -> None:
    image, prompts = images(1, 64, 64, 3), make_prompts(boxes=BOXES[:1])

    def slope(network: Segmenter) -> dict:
        return jax.jit(jax.grad(lambda v: jnp.sum(network.apply(v, image, prompts).logits ** 2)))(
            variables
        )

    again = slope(model.clone(remat=True))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-2), slope(model), again)


def test_fresh_weights_learn_discs_within_a_few_steps() -> None:
    network = Segmenter(SegmenterConfig(image_size=64, width=8, depth=4))
    # Of this kind of key the draws compile in a quarter of the time.
    variables = init(network, jax.random.key(0, impl="rbg"))
    generator = np.random.default_rng(0)
    grid = np.mgrid[:64, :64]
    middle, radius = generator.uniform(20, 44, (4, 2, 1, 1)), generator.uniform(8, 16, (4, 1, 1))
    discs = ((grid - middle) ** 2).sum(1) < radius**2
    image = jnp.float32(discs[..., None] + 0.7 * generator.normal(size=(4, 64, 64, 3)))
    target = jnp.float32(discs.reshape(4, 16, 4, 16, 4).mean((2, 4)))
    prompts, optimizer = make_prompts(batch=4, count=1), optax.adam(1e-3)

    def loss(params: dict) -> Array:
        logits = network.apply({"params": params}, image, prompts).logits[:, 0, 0]
        return optax.sigmoid_binary_cross_entropy(logits, target).mean()

    @jax.jit
    def step(params: dict, state: optax.OptState) -> tuple[dict, optax.OptState, Array]:
        value, slopes = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, value

    params, values = variables["params"], []
    state = optimizer.init(params)
    for _ in range(30):
        params, state, value = step(params, state)
        values.append(float(value))
    # A constant reaches the entropy of the share that the discs fill.
    share = float(target.mean())
    constant = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert values[-1] < 0.7 * constant < values[0]


def test_a_size_and_a_name_that_do_not_exist_are_refused() -> None:
    assert segmenter_config("unet", 512).mask_side == 128
    assert segmenter_config("unet-tiny") == SEGMENTERS["unet-tiny"]
    with pytest.raises(ValueError, match="unknown network 'u-net': choose one of unet, "):
        segmenter_config("u-net")
    for size in (48, 100, 2064):
        with pytest.raises(ValueError, match=f"image size {size}: needs a multiple of 16 from 64"):
            segmenter_config("fcn", size)
    with pytest.raises(ValueError, match="padding 'full': choose one of same, valid"):
        SegmenterConfig(padding="full")
    with pytest.raises(ValueError, match="network 'vgg16' has no skips: leave it out"):
        SegmenterConfig("vgg16", skips=False)
    with pytest.raises(ValueError, match=r"self.depth=6 must lie in \[1, 5\]"):
        SegmenterConfig(depth=6)
    with pytest.raises(ValueError, match=r"images are \(32, 32\), not \(64, 64\)"):
        Segmenter(SMALL).apply({}, jnp.zeros((1, 32, 32, 3)), make_prompts(batch=1, count=1))


def test_every_row_is_held_against_torch_and_every_network_is_in_some_row() -> None:
    assert {*WHOLE, "unet-tiny"} == set(SEGMENTERS)
    assert {config.network for config in SEGMENTERS.values()} == set(module.NETWORKS)
