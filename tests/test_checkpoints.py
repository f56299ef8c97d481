"""Checkpoints: exact, complete or absent, and never silently damaged."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from pp_jax import checkpoints, sharding
from pp_jax.checkpoints import CheckpointError

FACTS = {"kind": "step", "variant": "tiny", "step": 7}


def make_tree(seed: int) -> dict:
    """Parameters and an optimizer state of NamedTuples, every leaf drawn."""
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {"kernel": jnp.zeros((128, 256)), "bias": jnp.zeros(5, jnp.bfloat16)},
        "decoder": {"tokens_0": jnp.zeros((1, 3))},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = {"step": jnp.int32(0), "trainable": params, "optimizer": optimizer.init(params)}
    return jax.tree.map(lambda x: np.asarray(100 * rng.normal(size=x.shape)).astype(x.dtype), state)


def abstract(state: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same(got: dict, want: dict) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert a.dtype == b.dtype, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


OLD, NEW = make_tree(0), make_tree(1)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "checkpoint"
    checkpoints.save(folder, OLD, facts=FACTS)
    return folder


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "checkpoint")


def array_file(folder: Path) -> Path:
    """The file with the arrays' bytes, by far the largest."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0b100
    path.write_bytes(content)


def zero_4_kib(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:12288] = bytes(4096)
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def test_every_leaf_comes_back_bit_for_bit_in_the_same_structure(pristine: Path) -> None:
    got = checkpoints.load(pristine, abstract(OLD))
    assert_same(got, OLD)
    assert isinstance(got["optimizer"][1][0], optax.ScaleByAdamState)
    assert got["trainable"]["encoder"]["bias"].dtype == ml_dtypes.bfloat16


def test_leaves_are_placed_where_the_template_says(pristine: Path) -> None:
    place = sharding.replicated(sharding.make_mesh())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), OLD)
    got = checkpoints.load(pristine, like)
    assert all(leaf.sharding == place for leaf in jax.tree.leaves(got))


def test_a_part_is_what_the_whole_holds_under_those_keys(pristine: Path) -> None:
    got = checkpoints.load_part(pristine, {"trainable": abstract(OLD)["trainable"]})
    assert_same(got, {"trainable": OLD["trainable"]})


def test_the_manifest_holds_the_facts_and_each_file(pristine: Path) -> None:
    manifest = json.loads((pristine / "MANIFEST.json").read_text())
    files = manifest.pop("files")
    assert manifest == FACTS
    on_disk = {
        str(p.relative_to(pristine)): p.stat().st_size for p in pristine.rglob("*") if p.is_file()
    }
    assert on_disk.pop("MANIFEST.json")
    assert {name: entry["bytes"] for name, entry in files.items()} == on_disk
    # `printf abc | sha256sum`
    (pristine.parent / "abc").write_text("abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checkpoints.sha256(pristine.parent / "abc") == known


@pytest.mark.parametrize("damage", [flip_bit, zero_4_kib, truncate, Path.unlink])
def test_a_damaged_array_file_is_named(checkpoint: Path, damage: Callable) -> None:
    path = array_file(checkpoint)
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(checkpoint, abstract(OLD))
    assert str(path) in str(caught.value)


def test_damage_to_any_file_is_named(checkpoint: Path) -> None:
    for path in [p for p in checkpoint.rglob("*") if p.is_file() and p.name != "MANIFEST.json"]:
        content = path.read_bytes()
        flip_bit(path)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.verify(checkpoint)
        assert str(path) in str(caught.value)
        path.write_bytes(content)
    checkpoints.verify(checkpoint)


def test_an_extra_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "tree" / "d" / "extra").write_text("")
    with pytest.raises(CheckpointError, match="tree/d/extra: unexpected"):
        checkpoints.verify(checkpoint)


def test_orbax_alone_restores_a_flipped_bit_in_silence(checkpoint: Path) -> None:
    """Why there is a manifest. Should this fail one day, Orbax has learnt to notice."""
    flip_bit(array_file(checkpoint))
    with ocp.PyTreeCheckpointer() as checkpointer:
        got = checkpointer.restore(
            checkpoint / "tree",
            args=ocp.args.PyTreeRestore(
                abstract(OLD),
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract(OLD)),
            ),
        )
    different = [
        np.asarray(a).tobytes() != np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(OLD), strict=True)
    ]
    assert sum(different) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": []}', "\xff"])
def test_an_unreadable_manifest_is_named(checkpoint: Path, content: str) -> None:
    (checkpoint / "MANIFEST.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json: not a readable manifest"):
        checkpoints.verify(checkpoint)


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="python -m convert"):
        checkpoints.load(tmp_path, abstract(OLD))


def change(state: dict, key: str, leaf: jax.ShapeDtypeStruct | None) -> dict:
    """The template with another leaf `trainable/decoder/KEY`."""
    other = abstract(state)
    decoder = dict(other["trainable"]["decoder"])
    if leaf is None:
        del decoder[key]
    else:
        decoder[key] = leaf
    return {**other, "trainable": {**other["trainable"], "decoder": decoder}}


@pytest.mark.parametrize(
    ("key", "leaf", "told"),
    [
        ("tokens_0", ((1, 4), jnp.float32), r"float32\[1, 3\] in the file, float32\[1, 4\] exp"),
        ("tokens_0", ((1, 3), jnp.bfloat16), r"float32\[1, 3\] in the file, bfloat16\[1, 3\] exp"),
        ("tokens_0", None, r"float32\[1, 3\] in the file, absent expected"),
        ("tokens_1", ((1, 3), jnp.float32), r"absent in the file, float32\[1, 3\] expected"),
    ],
    ids=["shape", "dtype", "left over", "missing"],
)
def test_other_leaves_than_expected_are_named(
    pristine: Path, key: str, leaf: tuple | None, told: str
) -> None:
    like = change(OLD, key, None if leaf is None else jax.ShapeDtypeStruct(*leaf))
    with pytest.raises(CheckpointError, match=f"trainable/decoder/{key}: {told}"):
        checkpoints.load(pristine, like)
    with pytest.raises(CheckpointError, match=f"trainable/decoder/{key}: {told}"):
        checkpoints.load_part(pristine, {"trainable": like["trainable"]})


class Killed(BaseException):
    """What no `except Exception` catches, like the end of a process."""


@pytest.mark.parametrize("moment", [1, 2, 3], ids=["manifest", "old aside", "new in place"])
def test_a_save_over_a_checkpoint_leaves_the_old_or_the_new_one(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    renames = []

    def rename(self: Path, target: Path) -> None:
        renames.append(target)
        if len(renames) == moment:
            raise Killed
        os.rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            checkpoints.save(checkpoint, NEW, facts=FACTS)

    aside = checkpoint.with_name("checkpoint.replaced")
    if moment < 3:
        assert_same(checkpoints.load(checkpoint, abstract(OLD)), OLD)
    else:
        with pytest.raises(CheckpointError, match=f"rename {aside} to checkpoint"):
            checkpoints.load(checkpoint, abstract(OLD))
        assert_same(checkpoints.load(aside, abstract(OLD)), OLD)
    checkpoints.save(checkpoint, NEW, facts=FACTS)
    assert_same(checkpoints.load(checkpoint, abstract(OLD)), NEW)
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_the_old_one_is_removed_only_when_the_new_one_stands(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = []
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **_: removed.append((Path(path).name, checkpoint.exists()))
    )
    checkpoints.save(checkpoint, NEW, facts=FACTS)
    assert removed[-1] == ("checkpoint.replaced", True)
    assert ("checkpoint", True) not in removed
    assert_same(checkpoints.load(checkpoint, abstract(OLD)), NEW)


def make_run(run: Path, pristine: Path, steps: list[int]) -> None:
    """Copies of one checkpoint, written in the order of `steps`."""
    for order, step in enumerate(steps):
        folder = checkpoints.step_folder(run, step)
        shutil.copytree(pristine, folder, dirs_exist_ok=True)
        os.utime(folder / "MANIFEST.json", (order, order))


def test_the_newest_that_verifies_is_found_and_the_skipped_are_named(
    pristine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path, pristine, [10, 20, 30])
    flip_bit(array_file(checkpoints.step_folder(tmp_path, 30)))
    (checkpoints.step_folder(tmp_path, 20) / "MANIFEST.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest_verified(tmp_path) == 10
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "skipping step 30",
        "skipping step 20",
    ]
    assert str(array_file(checkpoints.step_folder(tmp_path, 30))) in caplog.text


def test_a_run_without_a_checkpoint_that_verifies_has_none(pristine: Path, tmp_path: Path) -> None:
    assert checkpoints.newest_verified(tmp_path) is None
    make_run(tmp_path, pristine, [10])
    flip_bit(array_file(tmp_path))
    assert checkpoints.newest_verified(tmp_path) is None


def test_what_a_killed_save_leaves_is_no_step(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, pristine, [10])

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", killed)
        with pytest.raises(Killed):
            checkpoints.save(checkpoints.step_folder(tmp_path, 20), NEW, facts=FACTS)
    assert (tmp_path / "steps" / "00000020.partial").is_dir()
    assert checkpoints.steps(tmp_path) == [10]
    assert checkpoints.newest_verified(tmp_path) == 10
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoints.load(tmp_path / "steps" / "00000020.partial", abstract(OLD))


@pytest.mark.parametrize(
    ("written", "keep", "left"),
    [
        ([10, 20, 30], 2, [20, 30]),
        ([10, 20, 30], 5, [10, 20, 30]),
        # 20, 30 and 40 were damaged, the run went on from 10 and has just written 20 again.
        ([10, 30, 40, 20], 1, [20]),
        ([10, 30, 40, 20], 2, [20, 40]),
    ],
)
def test_pruning_keeps_what_was_written_last(
    pristine: Path, tmp_path: Path, written: list[int], keep: int, left: list[int]
) -> None:
    make_run(tmp_path, pristine, written)
    checkpoints.prune(tmp_path, keep=keep)
    assert checkpoints.steps(tmp_path) == left


def test_json_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    checkpoints.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        checkpoints.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
