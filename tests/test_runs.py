"""A run's folder: exact in every policy, loaded at its best step, gone on with or started from."""

import dataclasses
import functools
import json
import logging
import re
import shutil
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import train as train_front
from pp_jax import checkpoints, cli, sharding, tree
from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig, command, resolve
from pp_jax.finetune import card, models, recipe, runs, start
from pp_jax.finetune.step import State
from pp_jax.finetune.trainable import POLICIES
from pp_jax.lora import lora_of, merge
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init
from tests.fronts import assert_refused, flags, front
from tests.test_step import COMPILER, SMALL

MESH = sharding.make_mesh(jax.devices()[:1])
SPLIT = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
DRAWN = [((9, 9), [(np.ones((4, 3), bool), (1.0, 2.0, 4.0, 6.0))])]
ROW = {"split": "validation", "loss": 1.0}


@functools.cache
def shapes(model: Sam) -> dict:
    return jax.eval_shape(functools.partial(init, model), jax.random.key(0))


def drawn(model: Sam, key: jax.Array) -> dict:
    """Variables of a model that are no two the same, without the compilation of its layers."""
    shift = jax.random.uniform(key)
    paths, structure = jax.tree.flatten(shapes(model))
    leaves = [
        jnp.sin(jnp.arange(x.size, dtype=x.dtype) + n + shift).reshape(x.shape)
        for n, x in enumerate(paths)
    ]
    return structure.unflatten(leaves)


@pytest.fixture(scope="module")
def small():
    """The smallest SAM under the name of the small one."""
    variants = MappingProxyType(dict(VARIANTS) | {"tiny": SMALL})
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "VARIANTS", variants)
        patch.setattr(models, "sized", lambda *args: SMALL)
        patch.setattr(runs, "init", drawn)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def settings_of(run: Path, **more) -> TrainConfig:
    choices = {"variant": "tiny", "trainable": "decoder", "batch": 2, "steps": 4, "last_blocks": 1}
    return resolve(TrainConfig(**({**choices, "out": str(run), "warmup": 1} | more)))


def open_run(settings: TrainConfig, **more) -> Path:
    return start.open_run(settings, split=SPLIT, images=SPLIT, outlines=DRAWN, **more)


# Exactness.


def steps_of(settings: TrainConfig):
    """The update rule, and a step of another gradient each time, that compiles in no time.

    What a killed training of the real model ends with is compared in tests/test_training.py.
    """
    optimizer = recipe.optimizer_of(settings, steps=4)

    def step(state: State) -> State:
        slope = jax.tree.map(lambda x: jnp.sin(x + state.step), state.trainable)
        loss = optax.tree.norm(slope)
        updates, inner = optimizer.update(slope, state.optimizer, state.trainable, value=loss)
        return State(state.step + 1, optax.apply_updates(state.trainable, updates), inner)

    return optimizer, jax.jit(step, compiler_options=COMPILER)


@pytest.mark.parametrize("policy", POLICIES)
def test_twice_as_many_steps_are_the_same_bits_as_a_stop_on_the_way(small, policy, tmp_path):
    settings = settings_of(tmp_path / "run", trainable=policy)
    run = open_run(settings)
    optimizer, step = steps_of(settings)
    state, _, base = runs.begin(run, settings, optimizer, step=0, mesh=MESH)
    first = jax.device_get(state)
    for _ in range(2):
        state = step(state)
    runs.save_step(run, state, settings=settings, base=base)
    for _ in range(2):
        state = step(state)
    want = jax.device_get(state)
    del state
    again, _, same = runs.begin(run, settings, optimizer, step=2, mesh=MESH)
    for _ in range(2):
        again = step(again)
    got = jax.device_get(again)
    assert (same, int(got.step)) == (base, 4)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(want.trainable), jax.tree.leaves(first.trainable), strict=True
        )
    ]
    assert sum(moved) > len(moved) / 2  # It is no law of standing still.


@pytest.fixture(scope="module")
def paired(small, tmp_path_factory):
    """A run of pairs with a checkpoint of step 1, in which no pair's product is zero."""
    settings = settings_of(tmp_path_factory.mktemp("runs") / "paired", trainable="lora")
    run = open_run(settings)
    optimizer = recipe.optimizer_of(settings, steps=4)
    state, _, base = runs.begin(run, settings, optimizer, step=0, mesh=MESH)
    for step in (1, 2, 3):
        trainable = jax.tree.map(lambda x, n=step: x + 0.01 * n, state.trainable)
        later = state._replace(step=state.step + step, trainable=trainable)
        runs.save_step(run, later, settings=settings_of(run, keep=5), base=base)
    return run


@pytest.fixture(scope="module")
def parts(paired):
    """What it is loaded as, its pairs apart."""
    return runs.load_parts(paired, mesh=MESH).variables


@pytest.fixture
def pairs(paired, tmp_path):
    return Path(shutil.copytree(paired, tmp_path / "pairs"))


def test_pairs_are_merged_where_weights_are_loaded_and_apart_where_parts_are(paired, parts):
    parts = tree.flatten(parts)
    whole = tree.flatten(runs.load(paired, mesh=MESH).variables)
    assert whole.keys() == {path for path in parts if not path.startswith("lora/")}
    layer = "image_encoder/blocks_01/attn"
    want = np.array(parts[f"params/{layer}/qkv/kernel"])
    for place, name in ((0, "q"), (2, "v")):
        a, b = (np.asarray(parts[f"lora/{layer}/lora_{name}/{part}"]) for part in "ab")
        want[:, place] += 16 / 8 * np.einsum("Dr,rKd->DKd", a, b)
    np.testing.assert_allclose(whole[f"params/{layer}/qkv/kernel"], want, rtol=1e-5, atol=1e-6)


def test_a_new_run_starts_from_a_runs_weights_alone(paired, parts, tmp_path):
    settings = settings_of(tmp_path / "new", trainable="lora", init=str(paired))
    start.require_checkpoint(settings, flag="--init")
    run = open_run(settings)
    optimizer = recipe.optimizer_of(settings, steps=4)
    state, frozen, _ = runs.begin(run, settings, optimizer, step=0, mesh=MESH)
    got = tree.flatten(tree.combine(state.trainable, frozen))
    want = tree.flatten(merge(parts, lora_of(settings)))
    assert int(state.step) == 0
    fresh = {path for path in got if path.startswith("lora/")}
    assert got.keys() - fresh == want.keys()
    assert all(np.array_equal(got[path], want[path]) for path in want)
    pairs = tree.flatten(parts)
    assert fresh
    assert not any(np.array_equal(got[path], pairs[path]) for path in fresh)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert not any(np.any(x) for x in moments)


# The step that is loaded.


def flip_a_bit(folder: Path) -> Path:
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_run_is_loaded_at_its_best_step_or_with_a_warning_at_the_newest_sound_one(pairs, caplog):
    assert runs.load(pairs, mesh=MESH).step == 3  # Nothing was validated.
    assert runs.note_best(pairs, step=1, value=0.5)
    assert runs.load(pairs, mesh=MESH).step == runs.best_step(pairs) == 1
    caplog.clear()
    broken = flip_a_bit(checkpoints.step_folder(pairs, 1))
    with caplog.at_level(logging.WARNING):
        assert runs.loaded_step(pairs) == 3
    assert str(broken) in caplog.text
    assert "best checkpoint is damaged" in caplog.text
    assert "of step 3" in caplog.text
    flip_a_bit(checkpoints.step_folder(pairs, 3))
    assert runs.loaded_step(pairs) == 2


def test_a_step_is_loaded_by_its_folder(pairs):
    assert runs.note_best(pairs, step=1, value=0.5)
    step = checkpoints.step_folder(pairs, 2)
    loaded = runs.load_parts(step, mesh=MESH)
    assert (loaded.step, loaded.folder) == (2, step)
    kernel = "params/mask_decoder/iou_token"
    got, one = (
        tree.flatten(runs.load_parts(f, mesh=MESH).variables)[kernel] for f in (step, pairs)
    )
    np.testing.assert_allclose(got - one, 0.01, atol=1e-6)
    assert runs.is_run(step)
    assert runs.read_config(step) == runs.read_config(pairs)
    assert runs.read_split(step) == SPLIT
    with pytest.raises(CheckpointError, match=r"no such step; .* has checkpoints of \[1, 2, 3\]"):
        runs.load(pairs / "steps" / "00000007", mesh=MESH)
    flip_a_bit(step)
    with pytest.raises(CheckpointError, match="its size or sha256"):
        runs.load(step, mesh=MESH)  # What is named is not replaced by something else.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [lambda f: flip_a_bit(f.parent), truncate, Path.unlink])
def test_a_damaged_base_is_one_clear_error(pairs, damage):
    file = max(
        (p for p in (pairs / "base").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    damage(file)
    with pytest.raises(CheckpointError, match=f"{file}: .*restore a copy"):
        runs.load(pairs, mesh=MESH)


def test_a_base_without_a_manifest_is_named(pairs):
    (pairs / "base" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"base/MANIFEST.json: missing; restore"):
        runs.load(pairs, mesh=MESH)


# The best by validation.


def noted(run: Path, values: dict[int, float]) -> list[bool]:
    with (run / runs.METRICS).open("a") as file:
        for step, value in values.items():
            file.write(json.dumps({**ROW, "step": step, "dice_metric": value}) + "\n")
    return [runs.note_best(run, step=step, value=value) for step, value in values.items()]


def test_the_best_is_the_first_of_the_highest_and_never_not_a_number(pairs):
    got = noted(pairs, {1: float("nan"), 2: 0.5, 3: 0.5})
    assert got == [False, True, False]
    assert json.loads((pairs / "best.json").read_text()) == {
        "step": 2,
        "metric": "dice_metric",
        "value": 0.5,
    }


def test_the_best_is_not_pruned_and_the_rest_is(small, pairs):
    noted(pairs, {1: 0.9, 2: 0.2, 3: 0.3})
    settings = settings_of(pairs, trainable="lora", keep=1)
    begun = runs.begin(pairs, settings, recipe.optimizer_of(settings, steps=4), step=3, mesh=MESH)
    state = begun.state._replace(step=begun.state.step + 1)
    runs.save_step(pairs, state, settings=settings, base=begun.base)
    assert checkpoints.steps(pairs) == [1, 4]


def test_what_came_after_the_step_that_is_resumed_is_no_longer_the_best(small, pairs, monkeypatch):
    """As after damage to step 3; and where a kill came between a checkpoint and its note."""
    settings = settings_of(pairs, trainable="lora")
    noted(pairs, {1: 0.2, 2: 0.6, 3: 0.9})
    optimizer = recipe.optimizer_of(settings, steps=4)
    # What it goes on from is compared above.
    monkeypatch.setattr(runs.checkpoints, "load", lambda folder, like: like)
    runs.begin(pairs, settings, optimizer, step=2, mesh=MESH)
    assert runs.best_step(pairs) == 2
    assert checkpoints.steps(pairs) == [1, 2]
    (pairs / "best.json").unlink()
    runs.begin(pairs, settings, optimizer, step=1, mesh=MESH)
    assert runs.best_step(pairs) == 1
    (pairs / "best.json").write_text("{")
    assert runs.best_step(pairs) is None
    assert runs.loaded_step(pairs) == 1


# What a run says of itself.


def test_splits_that_were_edited_are_noticed(tmp_path):
    settings = settings_of(tmp_path / "run")
    run = open_run(settings)
    held = json.loads((run / "environment.json").read_text())
    assert held["splits_sha256"] == checkpoints.sha256(run / "splits.json")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert runs.read_split(open_run(settings)) == SPLIT  # Opened again, it is the same.
    (run / "splits.json").write_text(json.dumps(SPLIT | {"test": ["d", "a"]}))
    for read in (lambda: runs.read_split(run), lambda: open_run(settings)):
        with pytest.raises(CheckpointError, match=r"splits.json: edited since this run began"):
            read()


def test_a_card_says_what_the_weights_are_made_of_and_how_to_go_on(tmp_path):
    settings = settings_of(tmp_path / "run", data="rsna", data_dir="rsna")
    run = open_run(settings, licences={"rsna": "RSNA's terms: non-commercial"})
    noted(run, {2: 0.25, 4: 0.5})
    runs.write_card(run, settings)
    said = (run / "MODEL_CARD.md").read_text()
    environment = json.loads((run / "environment.json").read_text())
    for part in (
        "Not for diagnosis",
        "The strictest counts: non-commercial.",
        "| data set rsna | RSNA's terms: non-commercial | non-commercial |",
        "best step 4: Dice 0.500, loss 1.000 (n = 1 images of 1 patients)",
        environment["splits_sha256"],
        f"| jax | {jax.__version__} |",
        f"python train.py --resume {run}",
        f"python eval.py --checkpoint {run}",
        command(settings),
        "It began from random weights",
    ):
        assert part in said, part


def test_licences_pass_on_to_a_run_that_starts_from_a_runs_weights(paired, tmp_path):
    held = json.loads((paired / "environment.json").read_text())
    first = Path(shutil.copytree(paired, tmp_path / "first"))
    told = held | {"licences": {"data set secret": "local use only"}}
    (first / "environment.json").write_text(json.dumps(told))
    settings = settings_of(tmp_path / "second", init=str(first))
    open_run(settings, licences={"synthetic": "none needed"})
    second = json.loads((tmp_path / "second" / "environment.json").read_text())
    assert second["licences"] == {
        "data set secret": "local use only",
        "data set synthetic": "none needed",
    }
    assert card.strictest(second["licences"].values()) == "research or local use only"


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("none needed: drawn by the project", "permissive"),
        ("Apache-2.0 (Meta AI, Segment Anything)", "permissive"),
        ("unrestricted; cite Wang et al.", "attribution"),
        ("CC BY 4.0", "attribution"),
        ("CC BY-SA 4.0", "share-alike"),
        ("CC BY-NC-SA 4.0 (3), CC0 (2)", "non-commercial"),
        ("RSNA's and Kaggle's terms: non-commercial", "non-commercial"),
        ("masks CC BY 4.0; each image its own: non-commercial or unstated", "unknown"),
        ("that of the source", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_licence_is_of_the_strictest_kind_that_it_speaks_of(licence, kind):
    assert card.kind(licence) == kind


def test_nothing_known_is_the_strictest():
    assert card.strictest(["CC0", "local use only", "who knows"]) == "unknown"
    assert card.strictest([]) == "unknown"


# Going on, and starting anew.


def told(run: Path, *args: object) -> TrainConfig:
    """What `train.py --resume RUN ...` goes on with."""
    held = start.to_resume(str(run))
    args = ["--resume", str(run), *map(str, args)]
    return start.resumed(cli.parse(TrainConfig, prog="train.py", default=held, args=args), held)


@pytest.fixture
def written(tmp_path):
    """The folder of a run, as far as it is looked at."""
    settings = settings_of(tmp_path / "run", lr=0.5, optimizer="lion", seed=3, blind=True)
    return open_run(settings)


def test_a_run_goes_on_with_its_own_settings(written):
    held = runs.read_config(written)
    assert told(written) == held
    assert resolve(told(written)) == held
    got = told(written, "--workers", 2, "--device", "cpu", "--mesh", "data=1", "--keep", 7)
    want = dataclasses.replace(held, workers=2, device="cpu", mesh="data=1", keep=7)
    assert got == want
    moved = written.rename(written.with_name("moved"))
    assert told(moved).out == str(moved)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--lr", 0.1), "--lr 0.1 (it has 0.5)"),
        (("--seed", 0), "--seed 0 (it has 3)"),  # The default, but not this run's.
        (("--optimizer", "adamw"), "--optimizer adamw (it has lion)"),
        (("--steps", 9), "schedule ends where it was to end"),
        (("--epochs", 9), "schedule ends where it was to end"),
        (("--out", "elsewhere"), "goes on in its own folder"),
        (("--init", "runs/other"), "--init starts a new run from a run's weights alone"),
        (("--checkpoint", "runs/other"), "--resume goes on with a run where it stopped"),
        (("--preset", "cxr-tiny"), "settings of its own"),
    ],
)
def test_a_flag_that_would_make_it_another_run_is_named(written, args, named):
    with pytest.raises(ValueError, match=f"--resume {written}.*{re.escape(named)}"):
        told(written, *args)


def test_what_cannot_be_gone_on_with_is_named(written, tmp_path):
    for folder, named in (
        (tmp_path / "none", "no such folder"),
        (tmp_path, "no run"),
        (written / "steps" / "00000002", f"`--resume {written}`"),
    ):
        with pytest.raises(CheckpointError) as caught:
            start.to_resume(str(folder))
        assert str(folder) in str(caught.value)
        assert named in str(caught.value)


def test_a_cross_validation_goes_on_with_all_its_folds_or_one(data, tmp_path, monkeypatch):
    out, fitted = tmp_path / "cross", []
    monkeypatch.setattr(train_front.loop, "fit", lambda run, *_, **__: fitted.append(run))
    assert front("train.py", *flags(data, out, folds=3, fold=1)).code == 0
    for args in (("--resume", out), ("--resume", out, "--fold", 2), ("--resume", out / "fold1")):
        ended = front("train.py", *args)
        assert ended.code == 0, ended.err
    folds = [out / f"fold{n}" for n in range(3)]
    assert fitted == [folds[1], *folds, folds[2], folds[1]]
    assert (out / "fold1" / "MODEL_CARD.md").is_file()
    assert_refused(front("train.py", "--resume", out, "--seed", 1), "--seed 1 (it has 0)")


def test_weights_to_start_from_are_looked_at_first_under_the_flag_that_named_them(
    written, tmp_path
):
    for folder, variant, named in (
        (tmp_path / "none", "tiny", "no such folder"),
        (tmp_path, "tiny", "neither a run nor converted weights"),
        (written, "vit_b", "weights of tiny, not of vit_b; use --variant tiny"),
    ):
        settings = settings_of(tmp_path / "new", init=str(folder), variant=variant)
        with pytest.raises(CheckpointError, match=f"--init {folder}: {named}"):
            start.require_checkpoint(settings, flag="--init")
    own = settings_of(written, init=str(written))
    with pytest.raises(ValueError, match=f"--out {written}: the run whose weights .* --resume"):
        open_run(own)
