"""Benchmarks of the decoder, of automatic masks and of growth: all programs do the same work."""

import csv
import functools
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import tyro

from benchmarks import automatic, decoder, growth, turns
from benchmarks.peers import Place
from pp_jax.predict.masks import box_nms
from pp_jax.sam import VARIANTS

TINY = Place(VARIANTS["tiny"], 1, "float32", "cpu")
SHOWN = (300, 200)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What benchmarks set for a whole process is undone, or not done."""
    monkeypatch.setattr("pp_jax.memory.keep_freed_memory", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    precision = torch.get_float32_matmul_precision()
    platforms = jax.config.jax_platforms
    yield
    torch.set_float32_matmul_precision(precision)
    jax.config.update("jax_platforms", platforms)


def here(
    module: str,
    programs: Mapping[str, turns.Prepare],
    settings: turns.Settings,
    *,
    keep: tuple[str, ...] = (),
) -> dict[str, turns.Measured | str]:
    """As `take_turns`, in this process."""
    del keep
    assert module in sys.modules
    for prepare in programs.values():
        prepare()()
    return {name: turns.Measured((1.0,) * settings.repeats, 1.0, 1.0) for name in programs}


def told(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])


# Decoder.


@functools.cache
def answers(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Three logits and predicted IoU of each of two prompts."""
    logits, iou = decoder.DECODERS[name](TINY, decoder.draw_points(TINY.config, 2))()
    return np.asarray(logits), np.asarray(iou)


@pytest.mark.parametrize("name", [name for name in decoder.DECODERS if name != "official"])
def test_each_decoder_answers_as_the_official_one(name: str) -> None:
    logits, iou = answers(name)
    want, scores = answers("official")
    assert logits.shape == (2, 3, 64, 64)
    assert want.std(axis=(0, 2, 3)).min() > 0.1 * want.std() > 0
    np.testing.assert_allclose(logits, want, atol=1e-4 * want.std())
    np.testing.assert_allclose(iou, scores, atol=1e-5)


def test_each_way_of_clicking_gives_the_same_masks() -> None:
    masks = {name: click(TINY, SHOWN) for name, click in decoder.CLICKS.items()}
    found = {name: np.asarray(click()) for name, click in masks.items()}
    want = found["official"]
    assert want.shape == (3, *SHOWN[::-1])
    assert 0.1 < want.mean() < 0.9
    for got in found.values():
        assert got.dtype == bool
        assert (got != want).mean() < 1e-4


def test_the_decoder_benchmark_prints_a_table_for_each_number_of_prompts_and_for_clicks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(turns, "take_turns", here)
    for table in ("DECODERS", "CLICKS"):  # Nothing of ours: it takes long to compile.
        official = getattr(decoder, table)["official"]
        monkeypatch.setattr(decoder, table, {"ours": official, "official": official})
    counts = ("--prompts", 1, 3, "--clicks", "tiny", "--shown", 60, 40)
    told(monkeypatch, "--variant", "tiny", "--repeats", 1, *counts)
    decoder.main()
    printed = capsys.readouterr().out
    titles = [line for line in printed.splitlines() if line.startswith("`tiny`")]
    assert titles == [
        "`tiny`, 1 prompts of one point, on one embedding:",
        "`tiny`, 3 prompts of one point, on one embedding:",
        "`tiny`, one click on a stored embedding, image of 60 x 40:",
    ]
    for made in (1, 3):
        assert f"| official | 1 | 1.00 | {made} | 1 |" in printed


def test_a_program_runs_in_a_process_of_its_own() -> None:
    settings = decoder.Benchmark(variant="tiny", prompts=(1,), clicks=(), repeats=1)
    programs = {"ours": decoder.make_programs(settings)["ours"]}
    (row,) = turns.take_turns("benchmarks.decoder", programs, settings).values()
    assert isinstance(row, turns.Measured), row
    assert row.first_s > row.median > 0
    assert row.peak_mib > 100


# Automatic masks.


@functools.cache
def tuned() -> automatic.Benchmark:
    return automatic.tune(automatic.Benchmark(variant="tiny", shown=("300x200",), per_side=9))


@functools.cache
def found(name: str) -> list[dict]:
    return automatic.GENERATORS[name](tuned())()


@functools.cache
def found_by_official() -> tuple[list[dict], int]:
    """The records, and how many masks passed both thresholds."""
    generate = automatic.GENERATORS["official"](tuned())  # It imports what is patched below.
    from segment_anything import automatic_mask_generator as official

    passed = []

    def score(*args: Any) -> torch.Tensor:
        stability = original(*args)
        passed.append(int((stability >= tuned().stability).sum()))
        return stability

    original = official.calculate_stability_score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "calculate_stability_score", score)
        return generate(), sum(passed)


def test_the_input_stage_has_work_although_the_embedding_is_known() -> None:
    known = {"known": {"embedding": automatic.draw_embedding(TINY.config)}}
    encode = jax.jit(partial(automatic.known_sam(TINY.config).apply, method="encode"))
    image = np.zeros((1, TINY.config.image_size, TINY.config.image_size, 3), np.float32)
    np.testing.assert_array_equal(encode(known, image), known["known"]["embedding"])
    image[0, -1, -1, -1] = np.nan
    assert np.isnan(encode(known, image)).all()


def test_both_generators_filter_by_thresholds_above_zero() -> None:
    assert tuned().iou > 0
    assert tuned().stability > 0


def test_both_generators_find_the_same_masks() -> None:
    ours, (theirs, _) = found("ours"), found_by_official()
    assert len(ours) == len(theirs) >= 10
    sizes = [mask["area"] / np.prod(SHOWN) for mask in theirs]
    assert 0.001 < np.median(sizes) < 0.25
    for mine in ours:
        same = [one for one in theirs if one["point_coords"] == mine["point_coords"]]
        differ = [(one["segmentation"] != mine["segmentation"]).mean() for one in same]
        assert min(differ) < 1e-4
        assert mine["predicted_iou"] > tuned().iou
        assert mine["stability_score"] >= tuned().stability


def test_a_realistic_share_of_the_masks_passes() -> None:
    """Of a grid that is not the one that the thresholds were chosen on."""
    _, passed = found_by_official()
    assert 0.1 <= passed / (3 * tuned().per_side ** 2) <= 0.25


def test_the_automatic_benchmark_prints_what_each_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(turns, "take_turns", here)
    monkeypatch.setattr(automatic, "tune", lambda settings: replace(tuned(), shown=settings.shown))
    generators = {"ours": lambda _: lambda: [{}] * 5, "official": lambda _: lambda: [{}] * 7}
    monkeypatch.setattr(automatic, "GENERATORS", generators)
    told(monkeypatch, "--variant", "tiny", "--shown", "300x200", "20x30", "--repeats", 1)
    automatic.main()
    printed = capsys.readouterr().out
    assert printed.count("| official | 1 | 1.00 | 81 |") == 2
    assert printed.count("Masks found: official 7, ours 5") == 2


def test_suppression_is_that_of_box_nms() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 40, (300, 2, 2))
    boxes = np.sort(corners, axis=1).reshape(-1, 4).astype(np.float32)
    scores = rng.integers(0, 50, 300).astype(np.float32)  # With equal ones, and boxes of no area.
    for threshold in (0.3, 0.7):
        want = box_nms(boxes, scores, threshold=threshold)
        assert 20 < len(want) < 280
        np.testing.assert_array_equal(automatic.suppress(boxes, scores, threshold=threshold), want)


# Growth.


def grown(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: object) -> None:
    told(monkeypatch, "--variant", "tiny", "--repeats", 1, "--out", out, *arguments)
    growth.main()


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "growth.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Turns:
    """In place of `take_turns`: counts, and answers without a process."""

    def __init__(self, answer: Callable[[growth.Benchmark], turns.Measured | str]):
        self.asked: list[tuple[str, int]] = []
        self.answer = answer

    def __call__(self, module: str, programs: Mapping, settings: growth.Benchmark, **_: object):
        (name,) = programs
        (curve,) = settings.curves
        (value,) = getattr(settings, curve)
        self.asked.append((curve, value))
        return {name: self.answer(settings)}


def proportional(settings: growth.Benchmark) -> turns.Measured | str:
    value = getattr(settings, settings.curves[0])[0]
    if value == 8:
        return "killed, which is what happens when memory is out"
    return turns.Measured((0.5 * value,), 100.0 * value, 9.0)


def test_a_point_is_measured_in_a_process_and_one_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    grown(monkeypatch, tmp_path, "--curves", "devices", "--devices", 2, 3, "--shared", 2)
    two, three = rows(tmp_path)
    assert (two["curve"], two["value"], two["failed"]) == ("devices", "2", "")
    assert float(two["seconds"]) > 0
    assert float(two["peak_mib"]) > 100
    assert (three["seconds"], three["peak_mib"]) == ("", "")
    assert three["failed"] == "ValueError: --shared 2 images cannot be split over 3 devices"
    assert "| 3 | ValueError: --shared 2 images cannot" in capsys.readouterr().out
    texts = "".join(ElementTree.parse(tmp_path / "devices.svg").getroot().itertext())
    assert texts.count("3 failed") == 2  # Seconds and MiB.


def test_what_is_in_the_csv_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = Turns(proportional)
    monkeypatch.setattr(turns, "take_turns", asked)
    some = ("--curves", "batch", "prompts", "--batch", 1, 8, "--prompts", 1, 4)
    grown(monkeypatch, tmp_path, *some)
    first = (tmp_path / "growth.csv").read_bytes()
    assert asked.asked == [("batch", 1), ("batch", 8), ("prompts", 1), ("prompts", 4)]
    again = Turns(proportional)
    monkeypatch.setattr(turns, "take_turns", again)
    grown(monkeypatch, tmp_path, *some)
    assert again.asked == []
    assert (tmp_path / "growth.csv").read_bytes() == first
    grown(monkeypatch, tmp_path, "--curves", "prompts", "--prompts", 1, 16)
    assert again.asked == [("prompts", 16)]
    # A setting that one curve depends on and the other does not.
    grown(monkeypatch, tmp_path, *some, "--at-once", 2)
    assert again.asked[1:] == [("prompts", 1), ("prompts", 4)]
    grown(monkeypatch, tmp_path, "--curves", "batch", "--batch", 1, "--fresh")
    assert again.asked[3:] == [("batch", 1)]
    monkeypatch.setattr(growth, "_CODE", ("sam",))
    grown(monkeypatch, tmp_path, "--curves", "batch", "--batch", 1)
    assert again.asked[4:] == [("batch", 1)]


def test_growth_is_told_as_multiples_of_the_first_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(turns, "take_turns", Turns(proportional))
    grown(monkeypatch, tmp_path, "--curves", "batch", "--batch", 1, 4, 8)
    printed = capsys.readouterr().out
    assert "| 4 | 2 | 4.00 | 400 | 4.00 |" in printed
    assert "| 8 | killed, which is what happens when memory is out | | | |" in printed


def test_another_csv_is_not_written_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "growth.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="remove it or give another --out"):
        grown(monkeypatch, tmp_path, "--curves", "batch", "--batch", 1)
    assert (tmp_path / "growth.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    "settings",
    [
        decoder.Benchmark(prompts=(3,), clicks=(), shown=(30, 20)),
        decoder.Benchmark(prompts=(), clicks=("tiny",), keep=("official",)),
        automatic.Benchmark(iou=0.1 + 0.2, shifts=(-226.25, 1e-7, 3.0), counts=Path("a b")),
        automatic.Benchmark(),
        growth.Benchmark(curves=("size",), size=(512,), fresh=True),
    ],
)
def test_a_worker_reads_the_settings_that_its_driver_has(settings: turns.Settings) -> None:
    assert tyro.cli(type(settings), args=turns.options(settings)) == settings
