"""The doctor finds the fault that was planted."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from convert.official import to_variables
from pp_jax import checkpoints, doctor
from pp_jax.sam import VARIANTS, Sam
from tests import official

encode = jax.jit(lambda v, x: Sam(VARIANTS["tiny"]).apply(v, x, method="encode"))


@pytest.fixture(scope="module")
def variables() -> dict:
    model = official.randomise(official.build(VARIANTS["tiny"]), seed=8)
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    return to_variables(state, variant="tiny", source="random")


@pytest.fixture(scope="module")
def checkpoint(variables: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    facts = {"kind": "converted", "variant": "tiny", "source": "x.pth", "preprocess": "sam"}
    checkpoints.save(folder, variables, facts=facts)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor", *map(str, args)])
    doctor.main()


def test_a_sound_checkpoint_agrees_at_every_stage(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run(monkeypatch, checkpoint)
    printed = capsys.readouterr().out
    assert printed.endswith("every stage agrees with the official torch SAM on this machine\n")
    for told in ("variant: tiny", "preprocess: sam", "relative error", "image_encoder/blocks_05"):
        assert told in printed


@pytest.mark.parametrize("mistake", doctor.MISTAKES)
def test_an_embedding_made_with_a_mistake_is_traced_to_it(
    mistake: str, variables: dict, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 40, 3), np.uint8)
    pixels = doctor.MISTAKES[mistake](image, 256)
    embedding = np.asarray(encode(variables, pixels[None]))
    np.save(tmp_path / "theirs.npy", np.moveaxis(embedding, -1, 1))
    found = doctor.explain("tiny", variables, image, tmp_path / "theirs.npy")
    names = list(found)
    assert names[0] == mistake
    assert found[names[0]] < 1e-5
    assert found[names[1]] > 1e-3


def test_a_flipped_bit_is_found_before_anything_else(
    checkpoint: Path,
    variables: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = tmp_path / "damaged"
    checkpoints.save(folder, variables, facts=checkpoints.read_manifest(checkpoint))
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(SystemExit):
        run(monkeypatch, folder)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "sha256" in err
    assert largest.name in err


def test_what_is_no_embedding_is_one_clear_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    np.save(tmp_path / "small.npy", np.zeros((3, 3)))
    with pytest.raises(SystemExit):
        run(monkeypatch, checkpoint, "--embedding", tmp_path / "small.npy")
    assert "an array of (3, 3); tiny embeds to (16, 16, 256)" in capsys.readouterr().err
