"""`python -m data prepare`: a data set decoded once, into files that training reads fast."""

import contextlib
import hashlib
import io
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from data.builder import PixelPerfect
from data.examples import encode, serialize
from data.files import free_space
from data.prepared import (
    REPORT,
    is_prepared,
    read_manifest,
    read_prepared,
    write_index,
    write_manifest,
)
from data.records import Record
from data.shards import UNFINISHED, Job, Shard, is_full, kind, plan, read_shard, write_shards
from data.sources import DATASETS, open_dataset
from pp_jax import outlook

_PROBES = 8  # Images encoded to estimate the size of all.
_RESERVE = 1.1  # Of the estimate, to be free before it starts.
_MOST_SKIPPED = 0.1


@dataclass(frozen=True)
class Prepare:
    """Decode a data set once, so that training need not.

    Without it everything works, too, from the files themselves. Of JPEG 2000 and lossless JPEG in
    DICOM files that is 2 to 10 times slower; RSNA's own JPEG is decoded as fast as a prepared set.
    A run that was stopped goes on where it was when it is started again.
    """

    name: tyro.conf.Positional[str]
    """The data set."""
    source: Path | None = None
    """Its folder; by default `datasets/NAME`."""
    out: Path | None = None
    """The folder to write; by default `datasets/NAME-prepared`."""
    limit: int | None = None
    """Number of patients: the first ones, with all their images."""
    label: str = ""
    """What alone is to be found, in a set whose annotations have labels; by default all."""
    workers: int = 2
    """Processes that decode; 0: this one."""
    keep_going: bool = False
    """Finish even if more than 10 % of the images cannot be read."""
    dry_run: bool = False
    """Say how much there is to do and about how long it takes, and stop."""


def run(settings: Prepare) -> None:
    """Write the prepared set and print what is in it; nothing to do if it is there already.

    Raises:
      ValueError: A wrong name or source, a folder `out` that holds something else, or more than
        10 % of the images unreadable.
      OSError: A folder is missing, or the disk is too small or full; what is finished stays in
        `OUT.partial`.
    """
    name = settings.name
    folder = DATASETS[name].folder if name in DATASETS else name
    source = settings.source or Path("datasets", folder)
    out = settings.out or Path("datasets", f"{folder}-prepared")
    if settings.workers < 0:
        raise ValueError(f"--workers {settings.workers}: a number of processes, 0 or more")
    records, said = _listed(source, settings)
    partial = out.with_name(f"{out.name}.partial")
    jobs = plan(records, partial / "shards")
    key = hashlib.sha256("".join([name, *(job.key for job in jobs)]).encode()).hexdigest()
    if _is_there(out, key):
        print(f"{out} holds this set already:\n\n{(out / REPORT).read_text(encoding='utf-8')}")
        return
    if settings.dry_run:
        print(_foresee(jobs, out, workers=settings.workers))
        return
    (partial / "shards").mkdir(parents=True, exist_ok=True)
    for left in (partial / "shards").glob(f"*{UNFINISHED}"):
        left.unlink()
    with _one_line_if_full(jobs, out, partial):
        _check_space(jobs, out)
        shards = write_shards(jobs, workers=settings.workers)
        _check_skipped(shards, keep_going=settings.keep_going)
        report = _report(name, shards, said)
        _assemble(settings, shards, report, key=key, partial=partial, out=out)
    print(f"{out}:\n\n{report}")


def _listed(source: Path, settings: Prepare) -> tuple[list[Record], Counter[str]]:
    """The records, and what the reader warned of, which is shown, too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = open_dataset(settings.name, source, limit=settings.limit, label=settings.label)
    for warning in caught:
        warnings.warn(str(warning.message), stacklevel=2)
    if not records:
        raise ValueError(f"{source}: no images in this set")
    texts = [str(w.message).removeprefix(f"{source}/").removeprefix(f"{source}: ") for w in caught]
    return records, Counter(map(kind, texts))


def _is_there(out: Path, key: str) -> bool:
    """Whether `out` holds the set whole; a ValueError if it holds anything else."""
    if is_prepared(out):
        if read_manifest(out)["key"] != key:
            raise ValueError(
                f"--out {out}: prepared from another source, or by another version; choose another "
                "folder or remove this one"
            )
        read_prepared(out)
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: holds something else; choose another folder")
    return False


@contextlib.contextmanager
def _one_line_if_full(jobs: Sequence[Job], out: Path, partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise OSError(
            f"{out}: no space left: about {_size(_unwritten(jobs).bytes)} more are needed, "
            f"{_size(free_space(partial))} are free; make room and start the same "
            f"command again: it goes on from what is finished in {partial}"
        ) from error


def _check_space(jobs: Sequence[Job], out: Path) -> None:
    """Print what is needed; an OSError if the disk has less."""
    left = _unwritten(jobs)
    print(_need(jobs, left, out), flush=True)
    free = free_space(out)
    if left.bytes * _RESERVE > free:
        raise OSError(
            f"{out}: about {_size(left.bytes * _RESERVE)} are needed, {_size(free)} are free; make "
            "room, choose a folder on another disk with --out, or take fewer patients with --limit"
        )


def _foresee(jobs: Sequence[Job], out: Path, *, workers: int) -> str:
    """What a preparation would do."""
    left = _unwritten(jobs)
    patients = len({record.patient for job in jobs for record in job.records})
    processes = min(max(1, workers), len(jobs))
    took = outlook.in_words(left.seconds / processes)
    return f"{patients:,} patients, {_need(jobs, left, out)}; about {took} in {processes} processes"


class _Left(NamedTuple):
    """What is in no finished shard; bytes and seconds of one process by those of a few images."""

    images: int
    bytes: float
    seconds: float


def _need(jobs: Sequence[Job], left: _Left, out: Path) -> str:
    images = sum(len(job.records) for job in jobs)
    finished = f", {images - left.images:,} of them finished" if left.images < images else ""
    size, free = _size(left.bytes), _size(free_space(out))
    return f"{images:,} images{finished}: about {size} to write to {out}, {free} free"


def _unwritten(jobs: Sequence[Job]) -> _Left:
    left = [
        record for job in jobs if read_shard(job, verify=False) is None for record in job.records
    ]
    sizes, begun = [], time.perf_counter()
    for record in left[:: max(1, len(left) // _PROBES)]:
        with contextlib.suppress(ValueError, OSError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sizes.append(len(serialize(encode(record)[0])))
    each = len(left) / max(1, len(sizes))
    return _Left(len(left), sum(sizes) * each, (time.perf_counter() - begun) * each)


def _check_skipped(shards: Sequence[Shard], *, keep_going: bool) -> None:
    skipped = [image for shard in shards for image in shard.skipped]
    images = len(skipped) + sum(len(shard.rows) for shard in shards)
    if len(skipped) > _MOST_SKIPPED * images and (not keep_going or len(skipped) == images):
        name, reason = skipped[0]
        advice = "" if len(skipped) == images else ", or leave them out with --keep-going"
        raise ValueError(
            f"{len(skipped)} of {images} images cannot be read, more than "
            f"{_MOST_SKIPPED:.0%} (the first, {name}: {reason}); get them anew{advice}"
        )


def _assemble(
    settings: Prepare, shards: Sequence[Shard], report: str, *, key: str, partial: Path, out: Path
) -> None:
    """The folder `out`, which appears as a whole; `partial` disappears."""
    name = settings.name
    shutil.rmtree(partial / "tfds", ignore_errors=True)
    builder = PixelPerfect(shards=shards, config=name, data_dir=partial / "tfds")
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells of a "download".
        builder.download_and_prepare()
    whole = Path(builder.data_dir)
    kept = [shard for shard in shards if shard.rows]
    names = sorted(path.name for path in whole.glob("*.array_record-*"))
    rows = [
        {**row, "shard": number, "position": position}
        for number, shard in enumerate(kept)
        for position, row in enumerate(shard.rows)
    ]
    write_index(whole, rows)
    (whole / REPORT).write_text(report, encoding="utf-8")
    hashes = {file: shard.sha256 for file, shard in zip(names, kept, strict=True)}
    sources = "".join(f"{row['id']} {row['source']}\n" for row in rows)
    write_manifest(
        whole,
        hashes,
        shards=names,
        data=name,
        label=settings.label,
        licence=DATASETS[name].licence,
        key=key,
        records=len(rows),
        source_sha256=hashlib.sha256(sources.encode()).hexdigest(),
    )
    whole.replace(out)
    shutil.rmtree(partial, ignore_errors=True)


def _report(name: str, shards: Sequence[Shard], said: Counter[str]) -> str:
    """The page of a preparation: counts, warnings by kind, what was skipped and why."""
    rows = [row for shard in shards for row in shard.rows]
    skipped = [image for shard in shards for image in shard.skipped]
    sizes = sorted({tuple(row["size"]) for row in rows}, key=lambda size: size[0] * size[1])
    ends = [f"{width} x {height}" for height, width in (sizes[0], sizes[-1])]
    counts = [
        ("images", f"{len(rows):,}"),
        ("patients", f"{len({row['patient'] for row in rows}):,}"),
        ("images with a box", f"{sum(bool(row['boxes']) for row in rows):,}"),
        ("boxes", f"{sum(len(row['boxes']) for row in rows):,}"),
        ("images with a mask", f"{sum(row['mask'] for row in rows):,}"),
        ("images with lungs", f"{sum(row['lungs'] for row in rows):,}"),
        ("known outlines", _counted(row["target"] for row in rows)),
        ("labels", _counted(row["label"] for row in rows)),
        ("width x height", ends[0] if len(sizes) == 1 else f"{len(sizes)}, " + " to ".join(ends)),
        ("on disk", _size(sum(shard.bytes for shard in shards if shard.rows))),
        ("skipped", f"{len(skipped):,}"),
        ("licence", DATASETS[name].licence),
    ]
    warned = _warnings(rows) + said + sum((Counter(s.warnings) for s in shards), Counter())
    parts = [f"# {name}, prepared", _table(("", ""), counts)]
    parts.append("## Warnings\n\n" + _table(("what", "count"), warned.most_common()))
    if skipped:
        parts.append("## Skipped\n\n" + _table(("image", "reason"), skipped))
    return "\n\n".join(parts) + "\n"


def _warnings(rows: Iterable[dict[str, Any]]) -> Counter[str]:
    """How many images have something that a reader should know of."""
    counted = Counter()
    for row in rows:
        facts = row["facts"]
        counted.update({kind(note) for note in row["notes"]})
        counted["inverted (stored with white as 0), shown upright"] += facts["inverted"]
        counted["more than 8 bits, shown in 8"] += (facts["bits"] or 0) > 8
        counted["pixel spacing missing"] += facts["spacing"] is None
    return +counted


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in Counter(names).most_common())


def _table(head: tuple[str, str], lines: Sequence[tuple[Any, Any]]) -> str:
    if not lines:
        return "None."
    cells = [head, ("---", "---"), *lines]
    return "\n".join(f"| {' | '.join(str(c).replace('|', '/') for c in row)} |" for row in cells)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
