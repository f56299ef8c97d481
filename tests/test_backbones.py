"""Encoders of ImageNet: every stage is torchvision's, and files of weights arrive whole or not."""

import dataclasses
import functools
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert import __main__ as front
from convert import backbones as converter
from convert.official import ConversionError
from pp_jax import checkpoints, sharding, tree
from pp_jax.baselines import segmenter
from pp_jax.baselines.backbones import (
    BACKBONES,
    Bottleneck,
    ResNet50,
    Vgg16,
    backbone_of,
    with_backbone,
)
from pp_jax.baselines.segmenter import Segmenter, SegmenterConfig, segmenter_config
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig, resolve
from pp_jax.finetune import recipe, runs, start
from pp_jax.sam.model import init
from tests.official import torchvision

State = dict[str, np.ndarray]


def drawn(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random value at which activations stay of one size, and no tensor can be left out."""
    if tensor.ndim == 0:  # num_batches_tracked
        return tensor
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim > 1:
        return noise * (2 / tensor[0].numel()) ** 0.5
    if name.endswith("running_var"):
        return torch.exp(0.3 * noise)
    return 0.2 * noise + float(name.endswith("weight"))


@functools.cache
def reference(kind: str) -> torch.nn.Module:
    """torchvision's network with every tensor drawn; of vgg16 the features alone."""
    models = torchvision.models
    if kind == "vgg16":
        net = torch.nn.Module()
        net.features = models.vgg.make_layers(models.vgg.cfgs["D"])
    else:
        block = models.resnet.Bottleneck
        stride = [False, False, kind == "dilated"]
        net = models.ResNet(block, [3, 4, 6, 3], num_classes=2, replace_stride_with_dilation=stride)
    generator = torch.Generator().manual_seed(5)
    net.load_state_dict({k: drawn(k, x, generator) for k, x in net.state_dict().items()})
    return net.eval()


def state_of(kind: str) -> State:
    state = {name: x.numpy() for name, x in reference(kind).state_dict().items()}
    if kind == "vgg16":
        state |= {f"classifier.{i}.{leaf}": np.zeros(1) for i in (0, 3, 6) for leaf in LEAVES}
    return state


LEAVES = ("weight", "bias")


def stages(kind: str, image: torch.Tensor) -> list[torch.Tensor]:
    """What torchvision's stages give before each pooling or halving."""
    net, found = reference(kind), []
    with torch.no_grad():
        if kind == "vgg16":
            for layer in net.features:
                if isinstance(layer, torch.nn.MaxPool2d):
                    found.append(image.clone())
                image = layer(image)
            return found
        found.append(net.relu(net.bn1(net.conv1(image))))
        image = net.maxpool(found[0])
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            image = layer(image)
            found.append(image)
    return found


@pytest.mark.parametrize("kind", ["vgg16", "resnet50", "dilated"])
def test_every_stage_is_torchvisions_whatever_the_box_channel_holds(kind: str) -> None:
    name = "vgg16" if kind == "vgg16" else "resnet50"
    model = ResNet50(dilated=True) if kind == "dilated" else BACKBONES[name]()
    variables, _ = converter.to_variables(state_of(kind), backbone=name, source="drawn")
    # Higher than wide, so that a swap of the two cannot hide.
    image = np.random.default_rng(0).normal(size=(1, 64, 48, 4)).astype(np.float32)
    got = model.apply(variables, image)  # Equal layers are compiled once, unlike under `jit`.
    want = stages(kind, torch.from_numpy(image[..., :3]).permute(0, 3, 1, 2))
    assert len(got) == len(want) == 5
    for ours, theirs in zip(got, want, strict=True):
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", ["vgg16", "resnet50"])
def test_the_classifier_and_counters_alone_are_left_out_and_named(kind: str) -> None:
    state = state_of(kind)
    variables, left_out = converter.to_variables(state, backbone=kind, source="drawn")
    known = r"classifier\..*" if kind == "vgg16" else r"fc\..*|.*num_batches_tracked"
    assert left_out == [name for name in state if re.fullmatch(known, name)]
    # Every other tensor is there, and beside them only zeros, the fourth channel's kernel.
    kept = sum(x.size for name, x in state.items() if name not in left_out)
    first = state["features.0.weight" if kind == "vgg16" else "conv1.weight"]
    leaves = tree.flatten(variables).values()
    assert sum(np.asarray(x).size for x in leaves) == kept + first[:, 0].size
    nonzero = sum(np.count_nonzero(x) for name, x in state.items() if name not in left_out)
    assert sum(np.count_nonzero(x) for x in leaves) == nonzero


def test_timms_names_of_the_classifier_are_known() -> None:
    state = state_of("vgg16")
    want, _ = converter.to_variables(state, backbone="vgg16", source="drawn")
    timm = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2"}
    timm |= {"classifier.6": "head.fc"}
    for ours, theirs in timm.items():
        for leaf in LEAVES:
            state[f"{theirs}.{leaf}"] = state.pop(f"{ours}.{leaf}")
    got, left_out = converter.to_variables(state, backbone="vgg16", source="drawn")
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(left_out) == 6


@pytest.mark.parametrize("kind", ["vgg16", "resnet50"])
def test_a_missing_an_unknown_and_a_misshapen_tensor_are_one_message(kind: str) -> None:
    state = state_of(kind)
    first, second, third = [name for name, x in state.items() if x.ndim == 4][:3]
    shape = state[second].shape
    state["stranger.weight"] = state.pop(first)
    state[second] = state[second][:-1]
    state[third] = np.full_like(state[third], np.nan)
    with pytest.raises(ConversionError) as caught:
        converter.to_variables(state, backbone=kind, source="x.pth")
    message = str(caught.value)
    assert message.startswith(f"x.pth is no {kind}: ")
    assert f"1 missing: {first};" in message
    assert "1 unused: stranger.weight;" in message
    assert f"{second} {(shape[0] - 1, *shape[1:])} instead of {shape}" in message
    state |= state_of(kind) | {third: state[third]}
    del state["stranger.weight"]
    with pytest.raises(ConversionError, match=f"{re.escape(third)} holds values that are not"):
        converter.to_variables(state, backbone=kind, source="x.pth")


def test_another_network_of_the_family_is_refused() -> None:
    shallow = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    state = {name: x.numpy() for name, x in shallow.state_dict().items()}
    name = converter.backbone_name(list(state))
    assert name == "resnet50"
    with pytest.raises(ConversionError, match=r"is no resnet50: .*missing: .*of another shape: "):
        converter.to_variables(state, backbone=name, source="resnet10.pth")


@functools.cache
def abstract(name: str) -> dict:
    model = Segmenter(segmenter_config(name, 64))
    return jax.eval_shape(lambda key: init(model, key), jax.random.key(0))


def test_a_file_becomes_a_folder_that_fits_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source, out = tmp_path / "mine.pth", tmp_path / "vgg16"
    # torch would write to NumPy's arrays.
    torch.save({name: torch.from_numpy(x.copy()) for name, x in state_of("vgg16").items()}, source)
    monkeypatch.setattr(sys, "argv", ["convert", str(source), str(out)])
    front.main()
    assert "vgg16, sha256" in capsys.readouterr().out
    manifest = checkpoints.verify(out)
    assert (manifest["kind"], manifest["backbone"]) == ("backbone", "vgg16")
    assert not manifest["official"]
    assert "classifier.6.bias" in manifest["left_out"]

    held = checkpoints.load(out, backbone_of(abstract("unet-vgg16")))
    placed = tree.flatten(with_backbone(abstract("unet-vgg16"), held))
    kernel = placed["params/network/backbone/stage_4/conv_2/kernel"]
    official = state_of("vgg16")["features.28.weight"]
    np.testing.assert_array_equal(kernel, official.transpose(2, 3, 1, 0))


NARROW = [2, 2, "M", 4, 4, "M", 8, 8, 8, "M", 16, 16, 16, "M", 16, 16, 16, "M"]


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """torchvision's vgg16 with 1/32 of the channels, converted into `vgg16`, and so our network."""
    small = functools.partial(Vgg16, 2)
    monkeypatch.setattr(converter, "BACKBONES", {"vgg16": small})
    monkeypatch.setattr(segmenter, "Vgg16", small)
    row = {"unet-vgg16": SegmenterConfig("vgg16", width=2)}
    monkeypatch.setattr(segmenter, "SEGMENTERS", segmenter.SEGMENTERS | row)
    net = torch.nn.Module()
    net.features = torchvision.models.vgg.make_layers(NARROW)
    torch.save(net.state_dict(), tmp_path / "narrow.pth")
    front.convert(tmp_path / "narrow.pth", tmp_path / "vgg16")
    return net


def test_a_training_starts_from_the_files_encoder_and_from_a_random_decoder(
    narrow: torch.nn.Module, tmp_path: Path
) -> None:
    told = TrainConfig(variant="unet-vgg16", prompting="none", steps=1)
    settings = resolve(dataclasses.replace(told, init=str(tmp_path / "vgg16")))
    start.require_checkpoint(settings, flag="--init")
    settings = start.with_preprocess(settings)
    assert (settings.preprocess, settings.trainable) == ("sam", "full")
    mesh, optimizer = sharding.make_mesh(jax.devices()[:1]), recipe.optimizer_of(settings, steps=1)
    with jax.default_prng_impl("rbg"):  # Its draws compile in a quarter of the time.
        begun = runs.begin(tmp_path / "run", settings, optimizer, step=0, mesh=mesh)
    assert not jax.tree.leaves(begun.frozen)
    held = tree.flatten(begun.state.trainable["params"]["network"])
    layers = [layer for layer in narrow.features if isinstance(layer, torch.nn.Conv2d)]
    names = [path.removesuffix("/kernel") for path in held if re.search("backbone.*kernel", path)]
    assert len(layers) == len(names) == 13
    for name, layer in zip(names, layers, strict=True):
        kernel = layer.weight.detach().permute(2, 3, 1, 0).numpy()
        ours = np.asarray(held.pop(f"{name}/kernel"))
        np.testing.assert_array_equal(ours[:, :, : kernel.shape[2]], kernel)
        assert not ours[:, :, kernel.shape[2] :].any()
        np.testing.assert_array_equal(held.pop(f"{name}/bias"), layer.bias.detach().numpy())
    # The first convolution alone has a fourth channel, and what is left is the way up.
    assert all(re.match(r"decoder_\d/|head/", path) for path in held)
    assert all(np.std(x) > 0 for path, x in held.items() if path.endswith("kernel"))


def test_an_encoder_that_a_model_does_not_have_is_refused_and_its_networks_are_named(
    narrow: torch.nn.Module, tmp_path: Path
) -> None:
    folder = tmp_path / "vgg16"
    assert runs.is_backbone(folder)
    assert not runs.is_backbone(tmp_path)
    for name in ("unet-resnet", "deeplabv3+", "unet", "tiny"):
        settings = resolve(TrainConfig(variant=name, init=str(folder)))
        told = f"--init {folder}: a vgg16, which {name} does not have; use --variant unet-vgg16, or"
        with pytest.raises(CheckpointError, match=re.escape(told)):
            start.require_checkpoint(settings, flag="--init")


@pytest.mark.parametrize("name", ["unet-resnet", "deeplabv3+"])
def test_a_backbone_replaces_the_encoder_and_its_statistics_and_nothing_else(name: str) -> None:
    given, _ = converter.to_variables(state_of("resnet50"), backbone="resnet50", source="drawn")
    before, after = abstract(name), with_backbone(abstract(name), given)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    inner = backbone_of(after)
    jax.tree.map(np.testing.assert_array_equal, inner, given)
    same = [path for path, x in tree.flatten(after).items() if x is tree.flatten(before)[path]]
    assert len(same) == len(tree.flatten(before)) - len(tree.flatten(given))
    assert not any("backbone" in path for path in same)


def test_a_backbone_of_another_kind_is_refused_by_name() -> None:
    vgg, _ = converter.to_variables(state_of("vgg16"), backbone="vgg16", source="drawn")
    with pytest.raises(ValueError, match=r"does not fit the network.*constants/bn1/mean: none"):
        with_backbone(abstract("unet-resnet"), vgg)
    with pytest.raises(ValueError, match=r"this network has no backbone.*unet-vgg16"):
        with_backbone(abstract("unet"), vgg)
    vgg["params"]["stage_0"]["conv_0"]["bias"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"stage_0/conv_0/bias: \(3,\) given, \(64,\) expected"):
        with_backbone(abstract("unet-vgg16"), vgg)


def test_official_files_are_those_that_torchvision_links() -> None:
    models = torchvision.models
    weights = (
        models.VGG16_Weights.IMAGENET1K_V1,
        models.ResNet50_Weights.IMAGENET1K_V1,
        models.ResNet50_Weights.IMAGENET1K_V2,
    )
    assert [converter.URL + name for name in converter.FILES] == [w.url for w in weights]
    for name, file in converter.FILES.items():
        assert name == f"{file.backbone}-{file.sha256}.pth"


def test_an_official_name_is_held_to_its_digits_and_its_absence_tells_the_address(
    tmp_path: Path,
) -> None:
    make = functools.partial(converter.facts_of, "vgg16", left_out=())
    facts = make(name="vgg16-397923af.pth", digest="397923af" + 56 * "0")
    assert facts["official"]
    assert make(name="renamed.pth", digest="397923af" + 56 * "0")["official"]
    with pytest.raises(ConversionError, match="not 397923af"):
        make(name="vgg16-397923af.pth", digest=64 * "0")
    with pytest.raises(ValueError, match=r"no such file; fetch https://\S+/resnet50-0676ba61\.pth"):
        front.convert(tmp_path / "resnet50-0676ba61.pth", tmp_path / "out")


def test_a_fresh_block_is_its_shortcut_and_yet_learns() -> None:
    block = Bottleneck(2)
    x = jax.random.normal(jax.random.key(1), (1, 5, 4, 8))
    variables = block.init(jax.random.key(0), x)
    np.testing.assert_array_equal(block.apply(variables, x), np.maximum(x, 0))

    def total(params: dict) -> jax.Array:
        return jnp.sum(block.apply(variables | {"params": params}, x) ** 2)

    assert np.all(jax.grad(total)(variables["params"])["bn3"]["scale"] != 0)
