"""The page of methods: every row stands on it, its commands are understood, its pictures true."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.segmentation import SHEETS, TILE, Scene, layers_of, parse_runs, tile
from pp_jax.baselines.classical import CLASSICAL
from pp_jax.baselines.segmenter import SEGMENTERS
from pp_jax.evaluate.methods import METHODS, parse_methods
from pp_jax.finetune.models import MODELS

FOLDER = Path(__file__).resolve().parents[1] / "docs"
TEXT = (FOLDER / "segmentation.md").read_text()
SECTIONS = {
    row: section
    for section in re.split(r"\n##+ ", TEXT)
    for row in re.findall(r"`([^`]+)`", section.partition("\n")[0])
}
COMMANDS = [shlex.split(line) for line in re.findall(r"\.venv/bin/python [^`\n]+", TEXT)]


def values(words: list[str], flag: str) -> list[str]:
    """What stands behind a flag, up to the next one."""
    rest = words[words.index(flag) + 1 :] if flag in words else []
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), None)]


@pytest.mark.parametrize("row", CLASSICAL)
def test_every_classical_method_has_its_section_with_formula_and_command(row):
    assert re.search(r"\$[^$]+\$", SECTIONS[row])
    assert f"eval.py --methods runs/NAME {row} " in SECTIONS[row]
    assert f"| `{row}` | {METHODS[row].label} |" in TEXT


@pytest.mark.parametrize("row", SEGMENTERS)
def test_every_network_has_its_section_with_formula_and_source(row):
    assert re.search(r"\$[^$]+\$", SECTIONS[row])
    assert "https://arxiv.org/abs/" in SECTIONS[row]
    assert any(row in values(words, "--model") for words in COMMANDS)


def test_no_section_is_of_a_method_that_there_is_not():
    assert set(SECTIONS) == {*CLASSICAL, *SEGMENTERS}


def test_commands_of_the_page_name_methods_and_models_that_there_are():
    for words in COMMANDS:
        models, _ = parse_methods(values(words, "--methods"))
        assert {folder for model in models for folder in model.folders} <= {
            "runs/NAME",
            "runs/BOXES",
            "runs/NONE",
        }
        assert {*values(words, "--model"), *values(words, "--variant")} <= set(MODELS)


def test_every_picture_is_there_and_small_and_shown_once():
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", TEXT)
    there = [path for path in (FOLDER / "segmentation").iterdir() if path.is_file()]
    assert sorted(shown) == sorted(f"segmentation/{path.name}" for path in there)
    assert all(path.stat().st_size < 150_000 for path in there)


def test_sheets_hold_every_classical_method_once():
    assert sorted(row for rows in SHEETS.values() for row in rows) == sorted(CLASSICAL)
    assert all(f"(segmentation/{name}.jpg)" in TEXT for name in SHEETS)


def convolution(features: int, more: int, side: int) -> int:
    return side**2 * features * more + more


@pytest.mark.parametrize("name", ["unet", "fcn"])
def test_the_drawn_u_net_is_that_of_the_paper_and_the_other_copies_nothing(name):
    layers = layers_of(name)
    channels = [64, 128, 256, 512, 1024]
    assert layers.contracting == {level: (count,) for level, count in enumerate(channels)}
    assert layers.expanding == {0: (64, 1), 1: (128,), 2: (256,), 3: (512,)}
    copied = channels[:4] if name == "unet" else []
    assert layers.copied == dict(enumerate(copied))
    count = convolution(64, 1, 1)
    for before, here in zip([4, *channels], channels, strict=False):
        count += convolution(before, here, 3) + convolution(here, here, 3)
    for level, (here, below) in enumerate(pairwise(channels)):
        joined = here + layers.copied.get(level, 0)
        count += convolution(below, here, 2) + convolution(joined, here, 3)
        count += convolution(here, here, 3)
    assert layers.parameters == count


def test_the_drawn_deeplab_has_its_dilated_stage_and_one_copy_of_48_channels():
    layers = layers_of("deeplabv3+")
    assert layers.contracting == {1: (64,), 2: (256,), 3: (512,), 4: (1024, 2048)}
    assert layers.expanding == {4: (256,), 2: (256, 256, 1)}
    assert layers.copied == {2: 48}


def test_a_tile_shows_the_window_with_mask_outline_and_box():
    image = np.zeros((40 * TILE, 2 * TILE, 3), np.uint8)
    truth, mask = np.zeros((2, 40 * TILE, 2 * TILE), bool)
    truth[TILE + 20 : TILE + 100, 40:120] = True
    mask[TILE + 60 : TILE + 140, 40:120] = True
    window = np.s_[TILE : 2 * TILE, 20 : 20 + TILE]
    scene = Scene("", image, truth, np.array([40.0, TILE + 20, 120, TILE + 100]), window)
    shown = np.asarray(tile(scene, mask))
    assert shown.shape == (TILE, TILE, 3)
    assert shown[20, 60].tolist() == shown[60, 99].tolist() == [230, 159, 0]  # The truth's border.
    assert shown[40, 60].tolist() == [0, 0, 0]  # In the truth alone.
    assert shown[130, 60].tolist() == [0, 57, 89]  # In the mask: half of its colour.
    assert shown[30, 110].tolist() == [0, 0, 0]
    boxed = np.asarray(tile(scene, None))
    assert boxed[100, 60].tolist() == [86, 180, 233]  # The far edge.
    assert boxed[130, 60].tolist() == [0, 0, 0]


def test_runs_are_named():
    assert parse_runs(["a=runs/x=1", "b=y"]) == {"a": Path("runs/x=1"), "b": Path("y")}
    with pytest.raises(ValueError, match="--runs runs/x: give NAME=FOLDER"):
        parse_runs(["runs/x"])
