"""Pairs leave a run merged, or alone beside the official weights, and torch computes the same."""

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert import __main__ as front
from convert.official import ConversionError, read_part, to_state_dict
from convert.reference import with_state
from pp_jax import checkpoints, tree
from pp_jax.config import TrainConfig, resolve
from pp_jax.finetune.recipe import rules_of
from pp_jax.lora import KERNELS, Lora, lora_of, merge
from pp_jax.prompts import make_prompts
from pp_jax.sam import VARIANTS, Sam, SamConfig
from pp_jax.sam.model import init
from tests.predict_world import drawn
from tests.test_step import COMPILER, SMALL

SETTINGS = resolve(
    TrainConfig(trainable="lora", lora_rank=2, lora_alpha=3.0, lora_on="v,q,k,proj,lin1,lin2")
)


def variables_of(config: SamConfig, lora: Lora, *, seed: int) -> dict:
    """Random weights and pairs, neither A nor B zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init(Sam(config, lora=lora), key), jax.random.key(0))
    leaves = tree.flatten(shapes).items()
    return tree.unflatten({path: drawn(path, x.shape, rng) for path, x in leaves})


def write_run(folder: Path, settings: TrainConfig, variables: dict) -> Path:
    """A run as a training leaves it after four steps."""
    trainable, frozen = tree.partition(variables, rules_of(settings))
    begun = folder.parent / "begun"
    held = {"kind": "converted", "source": "official.pth", "source_sha256": "12ab"}
    checkpoints.save(begun, {"params": {"x": np.ones(1)}}, facts=held)
    facts = {"kind": "base", "variant": "tiny", "source": str(begun)}
    checkpoints.save(folder / "base", frozen, facts=facts)
    facts = {
        "kind": "step",
        "variant": "tiny",
        "step": 4,
        "base_sha256": checkpoints.sha256(folder / "base" / checkpoints.MANIFEST),
    }
    state = {"trainable": trainable, "optimizer": {"count": np.int32(4)}, "step": np.int32(4)}
    checkpoints.save(folder / "steps" / "00000004", state, facts=facts)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(settings)))
    return folder


@pytest.fixture(scope="module")
def variables() -> dict:
    return variables_of(VARIANTS["tiny"], lora_of(SETTINGS), seed=3)


@pytest.fixture(scope="module")
def run(variables: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "lora", SETTINGS, variables)


@pytest.fixture(scope="module")
def merged(run: Path) -> dict[str, torch.Tensor]:
    front.export(run, run.parent / "merged.pth")
    return torch.load(run.parent / "merged.pth", weights_only=True)


def base_of(variables: dict, *, seed: int) -> dict[str, np.ndarray]:
    """The official weights that a run began from: all it trained was something else then."""
    plain = {name: held for name, held in variables.items() if name != "lora"}
    rng = np.random.default_rng(seed)
    return {
        name: x + rng.normal(size=x.shape).astype(np.float32)
        if name.startswith("mask_decoder.")
        else x
        for name, x in to_state_dict(plain).items()
    }


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_official_weights_and_the_pairs_alone_are_the_merged_model(
    run: Path,
    merged: dict,
    variables: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    suffix: str,
) -> None:
    out = tmp_path / f"pairs{suffix}"
    monkeypatch.setattr(sys, "argv", ["convert", str(run), str(out), "--part", "lora"])
    front.main()
    assert capsys.readouterr().out == f"{out}: tiny, step 4, pairs alone\n"
    part, lora, base, _ = read_part(out)
    assert (lora, lora.scale, base) == (lora_of(SETTINGS), 1.5, "official.pth, sha256 12ab")
    assert part["image_encoder.blocks.3.attn.qkv.lora_k.a"].shape == (2, 192)
    assert part["image_encoder.blocks.3.mlp.lin1.lora_lin1.b"].shape == (768, 2)
    whole = {name for name in part if ".lora_" not in name}
    assert whole == {name for name in merged if name.startswith("mask_decoder.")}
    begun = tmp_path / "official.pth"
    base = {name: torch.from_numpy(x) for name, x in base_of(variables, seed=4).items()}
    torch.save(base, begun)
    argv = ["convert", str(begun), str(tmp_path / "whole.pth"), "--add", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    front.main()
    assert "whole.pth: official.pth, sha256 12ab, with the pairs of " in capsys.readouterr().out
    found = torch.load(tmp_path / "whole.pth", weights_only=True)
    assert found.keys() == merged.keys()
    for name, want in merged.items():
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=1e-6, err_msg=name)
    base["image_encoder.blocks.3.attn.qkv.weight"][0, 0] += 1e-3  # Other weights.
    torch.save(base, begun)
    monkeypatch.setattr(sys, "argv", [*argv, "--force"])
    with pytest.raises(SystemExit):
        front.main()
    told = "not the weights that the pairs were trained on: official.pth, sha256 12ab; give those"
    assert told in capsys.readouterr().err


def test_a_step_of_a_run_has_pairs_too(run: Path, tmp_path: Path) -> None:
    for folder, name in ((run, "run"), (run / "steps" / "00000004", "step")):
        front.export(folder, tmp_path / f"{name}.pth", part="lora")
    one, other = (read_part(tmp_path / f"{name}.pth").tensors for name in ("run", "step"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_official_package_gives_the_logits_of_the_side_path_with_merged_weights() -> None:
    # The official head that predicts the IoU is 256 wide, whatever the rest is.
    config = replace(SMALL, trained_size=256, out_dim=256)
    lora = Lora(3, 5.0, tuple(KERNELS))
    held = variables_of(config, lora, seed=5)
    model = with_state(config, to_state_dict(merge(held, lora)))
    image = np.random.default_rng(6).normal(size=(1, 256, 256, 3)).astype(np.float32)
    points, labels = np.array([[[90.0, 60.0]]], np.float32), np.array([[1]], np.int32)
    prompts = make_prompts(points=jnp.asarray(points)[None], labels=jnp.asarray(labels)[None])
    run = jax.jit(Sam(config, lora=lora).apply, compiler_options=COMPILER)
    got = run(held, image, prompts).three().logits[0, 0]
    with torch.no_grad():
        embedding = model.image_encoder(torch.from_numpy(image).permute(0, 3, 1, 2))
        asked = tuple(torch.from_numpy(x) for x in (points, labels))
        sparse, dense = model.prompt_encoder(points=asked, boxes=None, masks=None)
        position = model.prompt_encoder.get_dense_pe()
        want, _ = model.mask_decoder(embedding, position, sparse, dense, multimask_output=True)
    want = want[0].numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * want.std())
    assert np.array_equal(np.asarray(got) > 0, want > 0)


def test_what_has_no_pairs_is_one_clear_line(variables: dict, tmp_path: Path) -> None:
    plain = {name: held for name, held in variables.items() if name != "lora"}
    weights = tmp_path / "weights"
    facts = {"kind": "converted", "variant": "tiny"}
    checkpoints.save(weights, plain, facts=facts)
    told = rf"--part lora: {weights} has no pairs; leave --part out"
    with pytest.raises(ValueError, match=told):
        front.export(weights, tmp_path / "x.pth", part="lora")
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    for name in ("x.pth", "none.safetensors"):
        with pytest.raises(ConversionError, match=f"{name}: no file that `--part lora` wrote"):
            read_part(tmp_path / name)
