"""Prepared images in files of many, written by several processes, each file whole or not there."""

import errno
import hashlib
import json
import multiprocessing
import os
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python import array_record_module
from tqdm import tqdm

from data.examples import encode, serialize
from data.files import File, Member
from data.prepared import FORMAT, describe, sha256
from data.records import Record
from pp_jax import outlook

# Images per shard: a kill costs some seconds of work, RSNA has 209 files, and a set of 100 images
# keeps several processes busy.
FEWEST, MOST = 8, 128
UNFINISHED = ".unfinished"


class Job(NamedTuple):
    """A shard to be written."""

    path: Path
    records: tuple[Record, ...]
    key: str  # Of all that the shard's bytes depend on.


class Shard(NamedTuple):
    """A shard that was written, as the file beside it says."""

    path: str  # No file is there if no image of it could be read.
    key: str
    bytes: int
    sha256: str
    rows: list[dict[str, Any]]  # `examples.encode`'s, in the order of the examples.
    skipped: list[tuple[str, str]]  # Id, reason.
    retry: bool  # One of them could not even be opened: perhaps it can the next time.
    warnings: dict[str, int]  # By kind.


def plan(records: Sequence[Record], folder: Path) -> list[Job]:
    """The shards of a set; of the sources' files only size and time are read."""
    step = min(MOST, max(FEWEST, len(records) // 8))
    parts = [records[start : start + step] for start in range(0, len(records), step)]
    return [
        Job(folder / f"{number:05d}.array_record", tuple(part), _key(part))
        for number, part in enumerate(parts)
    ]


def read_shard(job: Job, *, verify: bool) -> Shard | None:
    """The job's shard, if it was written before from the same source; None otherwise.

    Args:
      verify: Read it, to compare its hash.
    """
    try:
        shard = Shard(**json.loads(_beside(job.path).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    if shard.key != job.key or shard.retry:
        return None
    if shard.rows:
        if not job.path.is_file() or job.path.stat().st_size != shard.bytes:
            return None
        if verify and sha256(job.path) != shard.sha256:
            return None
    return shard._replace(path=str(job.path))


def write_shards(jobs: Sequence[Job], *, workers: int) -> list[Shard]:
    """All shards, in order; those that are there and verify are kept. Shows a progress bar.

    Args:
      workers: Processes; with 0 this one does the work.

    Raises:
      OSError: A shard cannot be written: `errno` is ENOSPC where the disk is full. Those that are
        finished stay.
    """
    images = sum(len(job.records) for job in jobs)
    found = sum(len(job.records) for job in jobs if read_shard(job, verify=False) is not None)
    watch = outlook.watch(images - found, "images")

    def advance(count: int) -> None:
        bar.update(count)
        watch(bar.n - found)  # What is found comes first, and is only read.

    with tqdm(total=images, unit="image", desc="prepare") as bar:
        if not workers:
            return [_shard(job, advance=advance) for job in jobs]
        written: dict[int, Shard] = {}
        # Spawned, not forked: the caller may have started JAX, whose threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        counter = context.Value("q", 0)
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)), context, initializer=_start, initargs=(counter,)
        )
        try:
            waiting = {pool.submit(_in_worker, job): place for place, job in enumerate(jobs)}
            for future in _ended(waiting, lambda: advance(counter.value - bar.n)):
                written[waiting[future]] = future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a process that decodes was killed, as happens when memory runs out; start the "
                "same command again with fewer --workers: what is finished stays"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
        return [written[place] for place in range(len(jobs))]


def is_full(error: OSError) -> bool:
    """Whether a disk, a quota or a limit left no space."""
    return error.errno in _FULL


def kind(warning: str) -> str:
    """A warning without its numbers, so that like ones are counted together; "8-bit" is none."""
    return re.sub(r"(?<![\w.])-?\d+(\.\d+)?(e[+-]\d+)?(?![\w-])", "#", " ".join(warning.split()))


def _ended(waiting: dict[Future, int], tick: Callable[[], None]) -> Iterator[Future]:
    left = set(waiting)
    while left:
        done, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
        tick()
        yield from done


def _start(counter: Synchronized) -> None:
    """In a worker: Ctrl-C is the parent's affair, and without a parent there is nothing to do."""
    global _COUNTER
    _COUNTER = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_worker(job: Job) -> Shard:
    def advance(count: int) -> None:
        with _COUNTER.get_lock():
            _COUNTER.value += count

    return _shard(job, advance=advance)


def _shard(job: Job, *, advance: Callable[[int], object]) -> Shard:
    found = read_shard(job, verify=True)
    if found is not None:
        advance(len(job.records))
        return found
    unfinished = job.path.with_suffix(f".{os.getpid()}{UNFINISHED}")
    try:
        shard = _write(job, unfinished, advance=advance)
        if shard.rows:
            unfinished.replace(job.path)
        # Last: without it, what is there counts for nothing.
        said = json.dumps(shard._asdict() | {"path": job.path.name})
        unfinished.write_text(said, encoding="utf-8")
        unfinished.replace(_beside(job.path))
    finally:
        unfinished.unlink(missing_ok=True)
    return shard


def _write(job: Job, path: Path, *, advance: Callable[[int], object]) -> Shard:
    rows, skipped, said, retry = [], [], Counter(), False
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in job.records:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                example, row = encode(record)
        except (ValueError, OSError) as error:
            skipped.append((record.id, " ".join(str(error).split())))
            retry = retry or isinstance(error, OSError)
        else:
            said.update(_kind(record, str(warning.message)) for warning in caught)
            rows.append(row)
            _written(writer.write, serialize(example))
        advance(1)
    _written(writer.close)
    return Shard(
        path=str(job.path),
        key=job.key,
        bytes=path.stat().st_size,
        sha256=sha256(path),
        rows=rows,
        skipped=skipped,
        retry=retry,
        warnings=dict(said),
    )


def _written(call: Callable[..., object], *content: bytes) -> None:
    """ArrayRecord's own errors have no number."""
    try:
        call(*content)
    except RuntimeError as error:
        said = [number for number in _FULL if os.strerror(number) in str(error)]
        raise OSError(*(said or [errno.EIO]), str(error)) from error


def _kind(record: Record, warning: str) -> str:
    for file in (record.image, record.mask, record.lungs):
        warning = warning.removeprefix(f"{file}: ")
    return kind(warning)


def _key(records: Sequence[Record]) -> str:
    known = [(describe(one), *map(_state, (one.image, one.mask, one.lungs))) for one in records]
    return hashlib.sha256(json.dumps([FORMAT, known]).encode()).hexdigest()


def _state(file: File | None) -> list[Any]:
    """What changes when a file's content does, without reading it if it lies on a disk."""
    if file is None:
        return []
    path = file.archive if isinstance(file, Member) else file
    if not isinstance(path, Path):
        return [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
    try:
        stat = path.stat()
    except OSError:
        return [file.name]
    return [file.name, stat.st_size, stat.st_mtime_ns]


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COUNTER: Synchronized  # In a worker: images that are done, of all workers.
