"""Checkpoints that verify: an Orbax tree, and a manifest with the hash of every file.

A checkpoint is a folder with `tree/` (Orbax) and `MANIFEST.json`. It is written under a temporary
name, the manifest last, and renamed: a folder under its final name is complete. Orbax alone does
not notice a flipped bit; the manifest does.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

MANIFEST = "MANIFEST.json"
_TREE = "tree"
_STEP_DIGITS = 8


class CheckpointError(ValueError):
    """A folder that is no checkpoint, or one that does not verify."""


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def write_json(path: Path, content: Any) -> None:
    """The file at `path` holds `content`, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.rename(path)


def save(folder: Path, tree: Mapping[str, Any], *, facts: Mapping[str, Any]) -> None:
    """A complete checkpoint stands at `folder`, replacing what stood there.

    Killed at any moment, the old or the new one is left whole: under its own name, or for the
    instant between two renames beside it, where `read_manifest` points to it.

    Args:
      tree: Nested dicts of arrays.
      facts: What the manifest shall say beside the files (variant, source, licence, step, ...).
    """
    folder = folder.absolute()
    partial = folder.with_name(folder.name + ".partial")
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    meet(f"begin {folder.name}")
    if jax.tree.leaves(tree):  # Orbax takes none without; the manifest alone stands for it.
        # Without a bound Orbax copies the whole tree before it writes: 5 GiB more for `vit_h`.
        handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(partial / _TREE, args=ocp.args.PyTreeSave(dict(tree)))
    meet(f"written {folder.name}")
    if first:
        files = {str(p.relative_to(partial)): _fingerprint(p) for p in _files(partial)}
        write_json(partial / MANIFEST, {**facts, "files": files})
        _replace(folder, partial)
    meet(f"committed {folder.name}")


def _replace(folder: Path, partial: Path) -> None:
    aside = _aside(folder)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    partial.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + ".replaced")


def meet(name: str) -> None:
    """All processes have come to this line."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest says, unverified.

    Raises:
      CheckpointError: No manifest at `folder`, or an unreadable one.
    """
    path = folder / MANIFEST
    if not folder.exists() and _aside(folder).exists():
        raise CheckpointError(
            f"{folder}: missing since a save over it was cut off; the older checkpoint is whole: "
            f"rename {_aside(folder)} to {folder.name}"
        )
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no checkpoint here ({MANIFEST} is missing); official weights are made into "
            "one by `python -m convert sam_vit_b_01ec64.pth checkpoints/vit_b`"
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not a readable manifest ({error})") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path}: not a readable manifest (it lists no files)")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, after every file was found with the size and hash that it names.

    Raises:
      CheckpointError: Names the first file that is missing, unexpected or changed.
    """
    manifest = read_manifest(folder)
    expected = manifest["files"]
    present = {str(p.relative_to(folder)): p for p in _files(folder)}
    odd = sorted(expected.keys() ^ present.keys())
    if odd:
        what = (
            "missing in this checkpoint; restore a copy of it"
            if odd[0] in expected
            else f"unexpected in this checkpoint, {MANIFEST} does not name it; move it elsewhere"
        )
        raise CheckpointError(f"{folder / odd[0]}: {what}")
    for name, path in present.items():
        if _fingerprint(path) != expected[name]:
            raise CheckpointError(
                f"{path}: its size or sha256 is not the one in {MANIFEST}; the file was changed or "
                "damaged: restore a copy of the checkpoint"
            )
    return manifest


def load(folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a verified checkpoint, placed as `like` says.

    Args:
      folder: The checkpoint.
      like: Nested dicts of `jax.ShapeDtypeStruct`, with a sharding where one is wanted.

    Raises:
      CheckpointError: It does not verify, or holds other leaves, shapes or dtypes than `like`.
    """
    return _restore(folder, like, keys=None)


def load_part(folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """As `load`, but only the top-level keys of `like`; the others are not read.

    Raises:
      CheckpointError: As `load`, for those keys.
    """
    return _restore(folder, like, keys=tuple(like))


def _restore(
    folder: Path, like: Mapping[str, Any], *, keys: tuple[str, ...] | None
) -> dict[str, Any]:
    verify(folder)
    path = folder.absolute() / _TREE
    if not path.exists():
        _compare(folder, {}, like)
        return {}
    with ocp.PyTreeCheckpointer() as checkpointer:
        held = checkpointer.metadata(path).item_metadata.tree
        _compare(folder, {k: held.get(k, {}) for k in keys} if keys else held, like)
        arguments = ocp.checkpoint_utils.construct_restore_args(dict(like))
        return checkpointer.restore(
            path,
            args=ocp.args.PyTreeRestore(
                dict(like), restore_args=arguments, partial_restore=keys is not None
            ),
        )


def _compare(folder: Path, held: Any, like: Any) -> None:
    have, want = _kinds(held), _kinds(like)
    if have != want:
        lines = [
            f"{name}: {have.get(name, 'absent')} in the file, {want.get(name, 'absent')} expected"
            for name in sorted(have.keys() | want.keys())
            if have.get(name) != want.get(name)
        ]
        raise CheckpointError(
            f"{folder}: other weights than expected, {len(lines)} differ; first: "
            + "; ".join(lines[:3])
        )


def _kinds(tree: Any) -> dict[str, str]:
    # The dtype too: Orbax would convert silently, say an int32 step to float.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def step_folder(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of one step."""
    return run / "steps" / f"{step:0{_STEP_DIGITS}d}"


def steps(run: Path) -> list[int]:
    """The steps that a run has checkpoints of, in order."""
    folder = run / "steps"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(n) for n in names if n.isdigit())


def step_verifies(run: Path, step: int) -> bool:
    """Whether a step's checkpoint verifies; the log names what is wrong with one that does not."""
    try:
        verify(step_folder(run, step))
    except CheckpointError as error:
        logging.getLogger(__name__).warning("skipping step %d: %s", step, error)
        return False
    return True


def newest_verified(run: Path) -> int | None:
    """The newest step whose checkpoint verifies; names in the log each newer one it skips."""
    return next((step for step in reversed(steps(run)) if step_verifies(run, step)), None)


def prune(run: Path, *, keep: int, also: Sequence[int] = ()) -> None:
    """Only the `keep` step checkpoints of a run that were written last remain, and those `also`.

    Not those of the highest steps: when a run goes on from before damaged ones, the damaged ones
    have the highest steps.
    """
    if jax.process_index() == 0:
        for step in sorted(steps(run), key=lambda step: _written(step_folder(run, step)))[:-keep]:
            if step not in also:
                shutil.rmtree(step_folder(run, step))


def _written(folder: Path) -> int:
    manifest = folder / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.is_file() else 0
