"""Arrays by name on disk, in ArrayRecord, for what is computed once and read in every epoch.

    FOLDER/about.json                 what the arrays are of; another answer is another folder
    FOLDER/<digest>.array_record      some arrays, one record each
    FOLDER/<digest>.json              their names, in order; written last: without it there is none

Shards are only ever added, whole, by one rename. So a killed run loses the shard it was at, and
several runs may write into one folder at a time.
"""

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Shaped

from data.array_records import read_at

ABOUT = "about.json"
_SUFFIX = ".array_record"
_STALE = 86400  # Seconds.
_DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
)


class CacheError(ValueError):
    """A cache that cannot be read; the message names the file and the remedy."""


class Cache(NamedTuple):
    """A folder of arrays of one shape and type, and where in it each of them is."""

    folder: Path
    shape: tuple[int, ...]
    dtype: str  # "float32" or "bfloat16".
    places: Mapping[str, tuple[str, int]]  # Name -> shard, row.

    @property
    def bytes_each(self) -> int:
        """Size of one array on disk."""
        return int(np.prod(self.shape)) * _DTYPES[self.dtype].itemsize


def open_cache(
    parent: Path, *, about: Mapping[str, Any], shape: tuple[int, ...], dtype: str
) -> Cache:
    """The cache of just these arrays below `parent`, made where there is none yet.

    Args:
      parent: Holds one folder for each different `about`.
      about: All that the arrays depend on, as JSON values.
      shape: Of each array.
      dtype: "float32" or "bfloat16".

    Raises:
      CacheError: A damaged file.
      ValueError: Another dtype.
    """
    cache, text = _find(parent, about=about, shape=shape, dtype=dtype)
    cache.folder.mkdir(parents=True, exist_ok=True)
    if not (cache.folder / ABOUT).is_file():
        _write(cache.folder / ABOUT, text.encode())
    return open_again(cache)


def find_cache(
    parent: Path, *, about: Mapping[str, Any], shape: tuple[int, ...], dtype: str
) -> Cache:
    """What `open_cache` would give, with nothing made or removed; empty where there is none yet.

    Raises:
      CacheError, ValueError: As `open_cache`.
    """
    cache, _ = _find(parent, about=about, shape=shape, dtype=dtype)
    return cache._replace(places=_places(cache.folder))


def _find(
    parent: Path, *, about: Mapping[str, Any], shape: tuple[int, ...], dtype: str
) -> tuple[Cache, str]:
    """The cache without its places, and what says of what it is."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r}: choose {' or '.join(_DTYPES)}")
    about = {**about, "shape": list(shape), "dtype": dtype}
    text = json.dumps(about, indent=2, sort_keys=True)
    folder = Path(parent) / hashlib.sha256(text.encode()).hexdigest()[:16]
    if (folder / ABOUT).is_file() and (folder / ABOUT).read_text() != text:
        raise CacheError(f"{folder / ABOUT}: damaged; delete {folder}, it is made anew")
    return Cache(folder, tuple(shape), dtype, {}), text


def open_again(cache: Cache) -> Cache:
    """The cache with all that is in its folder by now."""
    for partial in cache.folder.glob("*.partial"):
        # What a killed run left; another that writes now touches its own every few minutes.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime > _STALE:
                partial.unlink()
    return cache._replace(places=_places(cache.folder))


def _places(folder: Path) -> dict[str, tuple[str, int]]:
    places = {}
    for index in sorted(folder.glob("*.json")):
        if index.name != ABOUT:
            places |= {name: (index.stem, row) for row, name in enumerate(_names(index))}
    return places


def add(cache: Cache, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> Cache:
    """The cache with these arrays in it, on disk as one shard.

    Raises:
      ValueError: An array of another shape.
      OSError: The disk is full; nothing is left of the shard.
    """
    for name, array in arrays.items():
        if array.shape != cache.shape:
            raise ValueError(f"{name}: an array of {array.shape} in a cache of {cache.shape}")
    names = list(arrays)
    shard = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
    path, index = cache.folder / (shard + _SUFFIX), cache.folder / f"{shard}.json"
    partial = _partial(path)
    try:
        _write_records(partial, cache, arrays)
        partial.rename(path)
        _write(index, json.dumps(names).encode())
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{cache.folder}: {len(arrays)} arrays cannot be written ({error}); free some space"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
        if not index.is_file():
            path.unlink(missing_ok=True)
    return cache._replace(places={**cache.places, **{n: (shard, i) for i, n in enumerate(names)}})


def _write_records(path: Path, cache: Cache, arrays: Mapping[str, np.ndarray]) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        for array in arrays.values():
            writer.write(array.astype(_DTYPES[cache.dtype]).tobytes())
    finally:
        writer.close()
    # The disk may be full without a word from the writer.
    expected = cache.bytes_each * len(arrays)
    if path.stat().st_size < expected:
        raise OSError(f"{path}: {path.stat().st_size} of {expected} bytes were written")


def read(cache: Cache, name: str) -> Shaped[np.ndarray, "..."]:
    """The array of this name, in the cache's type.

    Raises:
      KeyError: There is none.
      CacheError: Its file is gone or damaged.
    """
    shard, row = cache.places[name]
    path = cache.folder / (shard + _SUFFIX)
    try:
        return np.frombuffer(read_at(path, row), _DTYPES[cache.dtype]).reshape(cache.shape)
    except Exception as error:  # The reader raises whatever its C++ says.
        raise CacheError(
            f"{path}: damaged ({' '.join(str(error).split())[:200]}); delete it and {shard}.json "
            "beside it, and the next run computes what they held"
        ) from error


def _names(index: Path) -> list[str]:
    try:
        names = json.loads(index.read_text())
    except ValueError as error:
        raise CacheError(f"{index}: damaged ({error}); delete it") from error
    return names if index.with_suffix(_SUFFIX).is_file() else []


def _write(path: Path, content: bytes) -> None:
    partial = _partial(path)
    try:
        partial.write_bytes(content)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
