"""Embeddings of a data set's images: what is not on disk yet is computed, all others are read."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from data.cache import Cache, add, open_again, read
from data.files import File, free_space
from data.images import read_any
from data.pipeline import Cut
from data.records import Record
from pp_jax import outlook
from pp_jax.preprocess import geometry, roi

Compute = Callable[
    [UInt8[np.ndarray, "B S S 3"], Int[np.ndarray, "B 2"]], Float[np.ndarray, "B h w D"]
]
READER = 1  # To be raised when `data.images` or `data.dicom` give other pixels for a file.
_SHARD = 64  # Arrays, or this many seconds' worth of them: what a kill may cost.
_SECONDS = 120
_THREADS = 4


class Embedded(NamedTuple):
    """From a record to its embedding."""

    cache: Cache
    names: Mapping[str, str]  # Record id -> name in the cache.

    def __call__(self, record: Record) -> Float[np.ndarray, "h w D"]:
        """The embedding; errors as `cache.read`."""
        return read(self.cache, self.names[record.id])


def embed(
    records: Sequence[Record],
    cache: Cache,
    compute: Compute,
    *,
    side: int,
    fit: geometry.Fit,
    cut: Cut,
    batch: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Embedded:
    """The embeddings of all records, by the content of their image files.

    Says first how many are computed and how large they are. What was computed is kept, whenever
    this is interrupted.

    Args:
      records: Two with the same file share an embedding.
      cache: Of what `compute` gives, and of nothing else.
      compute: From this process's rows of a batch, model frame, to their embeddings.
      side: Of the model frame.
      fit: How an image is brought to `side`.
      cut: What is cut out of an image before.
      batch: Images at a time, over all processes.
      process_index: Of this process, below `process_count`.
      process_count: Divides `batch`; all processes see the cache's folder.

    Raises:
      OSError: Too little space, or an image that cannot be opened.
      ImageError, DicomError: An image that cannot be read.
    """
    names, images = _by_content(records)
    is_there = np.array([name in cache.places for name in images], bool)
    if process_count > 1:  # All compute together, so all must miss the same.
        is_there = np.asarray(multihost_utils.broadcast_one_to_all(is_there))
    missing = [name for name, held in zip(images, is_there, strict=True) if not held]
    told = _announce(cache, missing=len(missing), total=len(images))
    if process_index == 0:
        print(told)

    def canvas(name: str | None) -> tuple[UInt8[np.ndarray, "S S 3"], tuple[int, int]]:
        if name is None:
            return np.zeros((side, side, 3), np.uint8), (side, side)
        image = read_any(images[name])
        image = roi.crop(image, cut(image))
        image = geometry.resize_image(image, longest=side, fit=fit)
        return geometry.pad_square(image, side=side), image.shape[:2]

    rows: list[str | None] = [*missing, *[None] * (-len(missing) % batch)]
    own = rows[process_index::process_count]
    share, hidden = batch // process_count, process_index > 0
    with (
        ThreadPoolExecutor(_THREADS) as threads,
        tqdm(total=len(missing), desc="embedding", unit="image", disable=hidden or not rows) as bar,
    ):
        pending: dict[str, np.ndarray] = {}
        begun = time.monotonic()
        quiet: Callable[[str], object] = (lambda text: None) if hidden else tqdm.write
        tell = outlook.watch(len(missing), "images", devices=True, say=quiet)
        try:
            for number, drawn in enumerate(_in_batches(threads, canvas, own, share)):
                found = compute(
                    np.stack([image for image, _ in drawn]),
                    np.array([size for _, size in drawn], np.int32),
                )
                chosen = own[number * share : (number + 1) * share]
                pending |= {n: f for n, f in zip(chosen, found, strict=True) if n is not None}
                bar.update(min(batch, len(missing) - bar.n))
                tell(min((number + 1) * batch, len(missing)))
                if len(pending) >= _SHARD or time.monotonic() - begun > _SECONDS:
                    cache, pending, begun = add(cache, pending), {}, time.monotonic()
        finally:
            if pending:
                cache = add(cache, pending)
    if process_count > 1:
        multihost_utils.sync_global_devices("embeddings written")
        cache = open_again(cache)
    return Embedded(cache, names)


def foresee(records: Sequence[Record], cache: Cache, *, seconds: float) -> str:
    """What `embed` would do, in words; nothing is written.

    Args:
      records: As in `embed`.
      cache: From `cache.find_cache`.
      seconds: Of one image.

    Raises:
      OSError: Too little space, or an image that cannot be opened.
    """
    _, images = _by_content(records)
    missing = sum(name not in cache.places for name in images)
    told = _announce(cache, missing=missing, total=len(images))
    return f"{told}, about {outlook.in_words(missing * seconds)}" if missing else told


def _by_content(records: Sequence[Record]) -> tuple[dict[str, str], dict[str, File]]:
    """The name of each record in a cache, and a file of each name."""
    names, images = {}, {}
    for record in tqdm(records, desc="looking for embeddings", unit="image", delay=2, leave=False):
        names[record.id] = hashlib.sha256(record.image.read_bytes()).hexdigest()
        images.setdefault(names[record.id], record.image)
    return names, images


def _in_batches(
    threads: ThreadPoolExecutor, draw: Callable, rows: Sequence[str | None], size: int
) -> Iterator[list]:
    """The rows drawn, `size` at a time, the next ones while the last are at work."""
    ahead = iter([threads.submit(draw, row) for row in rows[: 2 * size]])
    waiting = [list(islice(ahead, size)), list(islice(ahead, size))]
    for start in range(0, len(rows), size):
        futures = waiting.pop(0)
        following = rows[start + 2 * size : start + 3 * size]
        waiting.append([threads.submit(draw, row) for row in following])
        yield [future.result() for future in futures]


def _announce(cache: Cache, *, missing: int, total: int) -> str:
    """What is there and what is to come, before a disk is filled in vain."""
    need, free = missing * cache.bytes_each, free_space(cache.folder)
    if need > free:
        raise OSError(
            f"{cache.folder}: {need / 2**30:.1f} GiB of embeddings, {free / 2**30:.1f} GiB free: "
            "choose another --cache-dir, --embeddings bfloat16, or a --limit"
        )
    return (
        f"embeddings: {total - missing} of {total} images are in {cache.folder}; {missing} are "
        f"computed now, {need / 2**30:.2f} GiB in {cache.dtype}"
    )
