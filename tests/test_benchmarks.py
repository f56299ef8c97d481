"""Benchmarks: programs really take turns, and what is counted and compared is the same work."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops, peers, training, turns
from benchmarks.encoder import Benchmark
from pp_jax.finetune.losses import Wanted, sam_terms
from pp_jax.sam import VARIANTS, Sam, SamOutput
from pp_jax.sam.model import init
from tests import official, turning

ROOT = Path(__file__).resolve().parent.parent
TINY = VARIANTS["tiny"]
WHOLE = replace(TINY, window_size=8)  # Windows that need no padding.


@pytest.fixture(autouse=True)
def _threads_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


@dataclass(frozen=True)
class Turn:
    """A line that a program of `tests/turning.py` wrote."""

    name: str
    process: int
    begun: float
    ended: float
    held: int  # MiB after the work.


@pytest.fixture(scope="module")
def taken(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Mapping[str, turns.Measured | str], Sequence[Turn]]:
    """Rows of four rounds, and what the programs wrote."""
    log = tmp_path_factory.mktemp("turns") / "log"
    settings = turning.Settings(log=log, repeats=4, keep=("large",))
    programs = turning.programs(settings)
    rows = turns.take_turns("tests.turning", programs, settings)
    kinds = (str, int, float, float, int)
    lines = [line.split() for line in log.read_text().splitlines()]
    return rows, [Turn(*(kind(x) for kind, x in zip(kinds, line, strict=True))) for line in lines]


def test_each_program_runs_once_in_each_round_and_never_beside_another(taken) -> None:
    _, log = taken
    processes = {turn.process for turn in log}
    assert len(processes) == 3  # "small", "large" and "large, kept".
    rounds = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert len(rounds) == 5  # One of them unmeasured.
    assert all({turn.process for turn in round} == processes for round in rounds)
    assert all(a.ended <= b.begun for a, b in pairwise(log))
    assert len({tuple(turn.process for turn in round) for round in rounds}) > 1


def test_the_memory_that_a_program_takes_is_its_own(taken) -> None:
    rows, _ = taken
    assert 290 < rows["large"].peak_mib - rows["small"].peak_mib < 310
    assert rows["small"].peak_mib < 150
    assert rows["large"].peak_mib - rows["large"].before_mib > 290


def test_a_row_that_keeps_freed_memory_still_holds_it_after_its_turn(taken) -> None:
    rows, log = taken
    held = sorted({turn.held for turn in log if turn.name == "large"})
    assert held[0] < 150
    assert held[-1] > 300
    assert rows["large, kept"].peak_mib > 300


def test_a_program_that_cannot_run_is_a_row_that_says_why(taken) -> None:
    rows, _ = taken
    assert rows["absent"] == "ImportError: no such | package"
    assert rows["tired"] == "MemoryError: no second run"
    assert rows["gone"] == "ended, exit status 3"
    assert list(rows) == ["small", "large", "absent", "tired", "gone", "large, kept"]
    assert all(len(rows[name].seconds) == 4 for name in ("small", "large", "large, kept"))
    table = turns.table(rows, count=1, ours="small")
    assert "| absent | ImportError: no such / package |" in table


def test_to_keep_the_memory_of_an_unknown_program_is_one_clear_mistake() -> None:
    settings = turning.Settings(log=Path("unused"))
    with pytest.raises(ValueError, match=r"keep: larger is none of the programs small, large"):
        turns.take_turns("tests.turning", turning.programs(settings), settings, keep=["larger"])


@pytest.mark.parametrize(
    "settings",
    [
        Benchmark(),
        Benchmark(variant="tiny", image_size=512, programs=(), attention=("plain", "chunked")),
        Benchmark(batch=2, dtype="bfloat16", device="cuda", keep=("official",)),
        training.Benchmark(policy="full", remat=True),
        training.Benchmark(remat=False),
    ],
)
def test_workers_read_the_settings_that_the_driver_was_given(settings: turns.Settings) -> None:
    assert tyro.cli(type(settings), args=turns.options(settings)) == settings


def rows_of(table: str) -> Iterator[list[str]]:
    """The cells of a Markdown table, without its head."""
    for line in table.splitlines():
        if line.startswith("|") and "---" not in line and "| program |" not in line:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_compares_medians_with_ours_and_with_the_faster_product() -> None:
    def took(*seconds: float) -> turns.Measured:
        return turns.Measured(seconds, 10.0, 0.0, before_mib=4.0)

    rows = {
        "ours": took(1.0, 9.0, 2.0),
        "peer": took(5.0, 5.0, 5.0),
        "matmul jax": took(0.5),
        "matmul torch": took(0.25),
    }
    found = turns.table(rows, count=4, flops=6 * 10**12, product_flops=10**12)
    assert list(rows_of(found)) == [
        ["ours", "2", "1.00", "2", "3", "75 %", "10", "4"],
        ["peer", "5", "2.50", "0.8", "1.2", "30 %", "10", "4"],
        ["matmul jax", "0.5", "", "", "2", "50 %", "10", "4"],
        ["matmul torch", "0.25", "", "", "4", "100 %", "10", "4"],
    ]


def test_a_column_without_a_number_is_left_out() -> None:
    rows = {"ours": turns.Measured((2.0,), 10.0, 0.0), "peer": "ImportError: no peer"}
    assert turns.table(rows, count=4, unit="prompts").splitlines() == [
        "| program | s | times ours | prompts/s | peak MiB |",
        "|---|---:|---:|---:|---:|",
        "| ours | 2 | 1.00 | 2 | 10 |",
        "| peer | ImportError: no peer |  |  |  |",
    ]


def test_a_turn_of_some_length_repeats_the_call_and_takes_the_time_of_one() -> None:
    begun = []

    def run() -> None:
        begun.append(time.perf_counter())
        time.sleep(0.5 if len(begun) == 1 else 0.02)  # The first is not timed.

    seconds = turns.seconds_of(run, least=0.2)
    assert 3 <= len(begun) <= 11
    assert 0.02 <= seconds < 0.1
    assert seconds * (len(begun) - 1) >= 0.2
    assert turns.seconds_of(lambda: begun.append(0)) < 0.01
    assert begun.count(0) == 1


@pytest.mark.parametrize(("device", "most"), [("cpu", 3), ("cuda", 1)])
def test_processes_wait_for_their_turns_together_but_not_on_a_gpu(
    device: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, together = set(), []

    class Worker:
        def __init__(self, _: str, name: str, __: turns.Settings):
            self.name = name

        def __enter__(self) -> "Worker":
            there.add(self.name)
            return self

        def __exit__(self, *_: object) -> None:
            there.remove(self.name)

        def hear(self) -> dict:
            return {"first_s": 1.0, "before_mib": None}

        def turn(self) -> dict:
            together.append(len(there))
            return {"seconds": 1.0, "peak_mib": 1.0}

    monkeypatch.setattr(turns, "_Worker", Worker)
    monkeypatch.setattr(turns, "_PAUSE", 0)
    settings = turns.Settings(device=device, repeats=2, keep=("b",))
    rows = turns.take_turns("unused", dict.fromkeys("ab"), settings)
    assert list(rows) == ["a", "b", "b, kept"]
    assert together == [most] * 6
    assert all(len(row.seconds) == 2 for row in rows.values())


def test_the_encoder_benchmark_prints_a_table_that_agrees_with_itself() -> None:
    options = ["--variant", "tiny", "--repeats", "1", "--programs", "ours", "official"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.encoder", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = {name: cells for name, *cells in rows_of(done.stdout)}
    assert list(rows) == ["ours", "official", *turns.MATMULS], done.stdout
    ours, theirs = rows["ours"], rows["official"]
    assert ours[1] == "1.00"
    assert float(theirs[1]) == pytest.approx(float(theirs[0]) / float(ours[0]), rel=2e-3, abs=6e-3)
    best = max(float(rows[name][3]) for name in turns.MATMULS)
    for seconds, _, rate, teraflops, share, peak, before in (ours, theirs):
        assert float(rate) * float(seconds) == pytest.approx(1, rel=2e-3)
        done_in_a_second = flops.encoder_flops(TINY) / float(seconds) / 1e12
        assert float(teraflops) == pytest.approx(done_in_a_second, rel=1e-2)
        share_of_best = 100 * float(teraflops) / best
        assert float(share.removesuffix(" %")) == pytest.approx(share_of_best, rel=2e-2, abs=0.6)
        assert 50 < float(before) < float(peak) - 50 < 4000


def counted(run: object) -> int:
    """Operations that torch counts."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", ["tiny", "vit_b", "vit_h"])
def test_operations_of_the_encoder_are_those_that_torch_counts(variant: str) -> None:
    config = replace(VARIANTS[variant], window_size=8)
    with torch.device("meta"):
        encoder = official.build(config).image_encoder
        image = torch.empty(2, 3, config.image_size, config.image_size)
    assert flops.encoder_flops(config, 2) == counted(lambda: encoder(image))


@pytest.mark.parametrize(("variant", "tera"), [("vit_b", 0.93), ("vit_h", 5.9)])
def test_operations_of_the_encoder_are_near_the_published_ones(variant: str, tera: float) -> None:
    # Published counts have the padding of windows in them, 3.5 % of `vit_b` and 5.4 % of `vit_h`.
    assert flops.encoder_flops(VARIANTS[variant]) == pytest.approx(tera * 1e12, rel=0.05)


@pytest.mark.parametrize(("prompts", "points"), [(1, 2), (3, 7)])
def test_operations_of_the_decoder_are_those_that_torch_counts(prompts: int, points: int) -> None:
    with torch.device("meta"):
        model = official.build(TINY)
        grid = torch.empty(1, TINY.out_dim, TINY.grid, TINY.grid)
        sparse = torch.empty(prompts, points, TINY.out_dim)
        dense = grid.expand(prompts, -1, -1, -1)
    found = counted(lambda: model.mask_decoder(grid, grid, sparse, dense, multimask_output=True))
    # The official decoder projects the image to keys, values and queries for each prompt anew.
    again = (prompts - 1) * 3 * 2 * 256 * 256 * 128
    assert flops.decoder_flops(TINY, prompts, points) == found - again


@pytest.mark.parametrize("policy", list(flops.PASSES))
def test_operations_of_a_step_are_those_that_torch_counts(policy: str) -> None:
    place = peers.Place(WHOLE, batch=2, dtype="float32", device="cpu")
    step = training.official(place, policy=policy)
    # The first layer that is trained gives no gradient to what comes before it.
    assert flops.training_flops(WHOLE, policy, 2) == pytest.approx(counted(step), rel=0.05)


def test_operations_without_a_count_are_one_clear_mistake() -> None:
    with pytest.raises(ValueError, match="no count for policy half; there are decoder, lora, full"):
        flops.training_flops(TINY, "half", 1)


def test_operations_of_the_encoder_are_near_those_that_xla_counts() -> None:
    model = Sam(WHOLE, attention="plain")
    variables = jax.eval_shape(partial(init, model), jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, WHOLE.image_size, WHOLE.image_size, 3), jnp.float32)
    program = jax.jit(partial(model.apply, method="encode")).lower(variables, image)
    # XLA counts sums, softmax and norms as well, and no product with the padding of a convolution.
    assert flops.encoder_flops(WHOLE) == pytest.approx(program.cost_analysis()["flops"], rel=0.08)


def test_the_official_encoder_with_attention_of_torch_computes_the_same() -> None:
    plain = official.randomise(peers.official_sam(TINY), seed=1).image_encoder
    patched = official.randomise(peers.official_sam(TINY, sdpa=True), seed=1).image_encoder
    image = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    want = plain(image).numpy()
    np.testing.assert_allclose(patched(image).numpy(), want, rtol=1e-4, atol=1e-4 * want.std())
    other = official.randomise(peers.official_sam(TINY, sdpa=True), seed=3).image_encoder
    assert np.abs(other(image).numpy() - want).max() > want.std()


def test_a_batch_of_images_with_a_box_each_is_decoded_like_each_alone() -> None:
    model = official.randomise(peers.official_sam(TINY), seed=4)
    generator = torch.Generator().manual_seed(5)
    embedding = torch.randn(2, TINY.out_dim, TINY.grid, TINY.grid, generator=generator)
    boxes = torch.tensor([[10.0, 20, 90, 200], [60, 30, 250, 240]])
    sparse, dense = model.prompt_encoder(points=None, boxes=boxes, masks=None)
    for i, found in enumerate(zip(*training.decode(model, embedding, sparse, dense), strict=True)):
        alone = model.mask_decoder(
            image_embeddings=embedding[i : i + 1],
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse[i : i + 1],
            dense_prompt_embeddings=dense[i : i + 1],
            multimask_output=True,
        )
        for x, want in zip(found, alone, strict=True):
            np.testing.assert_allclose(x, want[0], rtol=1e-4, atol=1e-4 * float(want.std()))


def test_the_loss_in_torch_is_ours() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(2, 3, 16, 16)).astype(np.float32)
    iou = rng.uniform(size=(2, 3)).astype(np.float32)
    targets = rng.uniform(size=(2, 1, 16, 16)).astype(np.float32)
    sums = sam_terms(
        SamOutput(jnp.asarray(logits)[:, None], jnp.asarray(iou)[:, None]),
        Wanted(
            jnp.asarray(targets),
            jnp.ones((2, 16, 16)),
            jnp.ones((2, 1), bool),
            jnp.zeros((2, 1, 4)),
        ),
        weights={"focal": 20.0, "dice": 1.0, "iou": 1.0},
    )
    found = training.loss(*(torch.from_numpy(x) for x in (logits, iou, targets)))
    np.testing.assert_allclose(found, sums.loss / sums.count, rtol=1e-5)


@pytest.mark.parametrize("transformers", [False, True])
@pytest.mark.parametrize(("policy", "parts"), [("decoder", {"mask_decoder"}), ("full", None)])
def test_a_step_in_torch_changes_what_the_policy_trains(
    policy: str, parts: set[str] | None, transformers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = official.randomise(peers.official_sam(TINY), seed=7)
    other = peers.transformers_sam(TINY, attention="sdpa", dtype="float32")
    monkeypatch.setattr(training, "official_sam", lambda *_, **__: model)
    monkeypatch.setattr(training, "transformers_sam", lambda *_, **__: other)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    if transformers:
        named = other.vision_encoder.named_parameters("image_encoder")
        before |= {name: weight.clone() for name, weight in named}
    place = peers.Place(TINY, 1, "float32", "cpu")
    training.official(place, policy=policy, transformers=transformers)()
    changed = {
        name.split(".")[0]
        for name, weight in model.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert changed == (parts or {"image_encoder", "prompt_encoder", "mask_decoder"})


def test_a_step_of_pairs_in_torch_trains_them_and_no_weight_of_the_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = official.randomise(peers.official_sam(TINY), seed=8)
    monkeypatch.setattr(training, "official_sam", lambda *_, **__: model)
    before = {name: weight.clone() for name, weight in model.image_encoder.state_dict().items()}
    training.official(peers.Place(TINY, 1, "float32", "cpu"), policy="lora")()
    after = model.image_encoder.state_dict()
    pairs = {f"blocks.{i}.attn.qkv.{side}" for i in range(TINY.depth) for side in "ab"}
    held = {name.replace("qkv.qkv.", "qkv."): x for name, x in after.items() if name not in pairs}
    assert all(torch.equal(held.pop(name), weight) for name, weight in before.items())
    assert not held
    assert all(after[name].any() for name in pairs)  # B was zero.
    weights = dict(model.image_encoder.named_parameters())
    assert {name for name, weight in weights.items() if weight.requires_grad} == pairs


@pytest.mark.parametrize("variant", ["tiny", "vit_b", "vit_l", "vit_h"])
def test_the_encoders_of_peers_have_as_many_parameters_as_ours(variant: str) -> None:
    config = VARIANTS[variant]
    variables = jax.eval_shape(partial(init, Sam(config)), jax.random.key(0))
    ours = sum(x.size for x in jax.tree.leaves(variables["params"]["image_encoder"]))
    with torch.device("meta"):
        theirs = (
            peers.official_sam(config).image_encoder,
            peers.transformers_sam(config, attention="sdpa", dtype="float32").vision_encoder,
        )
    for encoder in theirs:
        assert sum(x.numel() for x in encoder.parameters()) == ours


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_has_the_sizes_of_the_official_model(attention: str) -> None:
    from convert.hugging_face import to_official

    model = peers.transformers_sam(TINY, attention=attention, dtype="float32")
    found = {name: x.shape for name, x in to_official(model.state_dict()).items()}
    want = {name: x.shape for name, x in official.build(TINY).state_dict().items()}
    encoders = [
        {name: shape for name, shape in shapes.items() if name.startswith("image_encoder.")}
        for shapes in (found, want)
    ]
    assert encoders[0] == encoders[1]
    # Of weights near zero come numbers below the smallest normal one, which a CPU is slow with.
    assert model.vision_encoder.layers[0].mlp.lin1.weight.std() > 0.01
