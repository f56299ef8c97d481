"""From files to batches on the device, beside a torch DataLoader that reads the same files.

    python -m benchmarks.data --data rsna_like --data-dir DIR

Prepares the set in a temporary folder (and times that), then reads it by every route in turn, from
cold memory caches of ours to batches at `--side` pixels with their targets at a quarter of it.
Prints Markdown. Needs the extra `test`, for torch and OpenCV.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import cv2
import jax
import numpy as np
import psutil
import pydicom
import torch
import tyro
from PIL import Image

from data import pipeline, prepare, sources
from data.records import Record
from pp_jax import sharding
from pp_jax.memory import keep_freed_memory


@dataclass(frozen=True)
class Benchmark:
    """Time the input pipeline beside a torch DataLoader."""

    data_dir: Path
    """A data set of DICOM files."""
    data: str = "rsna_like"
    """Its name."""
    side: int = 1024
    """Of the model frame."""
    batch: int = 4
    """Images in a batch."""
    images: int = 240
    """Images to read in each measurement; a small set is read several times."""
    repeats: int = 5
    """Of which medians are taken."""
    workers: int = 2
    """Processes of the DataLoader, of the preparation, and of ours where it says so."""


def main() -> None:
    """Measure, and print the table."""
    settings = tyro.cli(Benchmark)
    keep_freed_memory()
    packages = ("jax", "grain", "array_record", "tensorflow-datasets", "torch", "pydicom")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"- {settings}\n- Python {platform.python_version()}, {versions}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        begun = time.perf_counter()
        prepare.run(
            prepare.Prepare(
                name=settings.data,
                source=settings.data_dir,
                out=prepared,
                workers=settings.workers,
            )
        )
        seconds = time.perf_counter() - begun
        direct = sources.open_dataset(settings.data, settings.data_dir)
        packed = sources.open_dataset(settings.data, prepared)
        size = sum(path.stat().st_size for path in prepared.iterdir()) / 2**20
        print(
            f"- preparation: {len(direct)} files in {seconds:.1f} s, {len(direct) / seconds:.1f} "
            f"files/s with {settings.workers} processes (their start is in it), {size:.0f} MiB"
        )
        rows = measure(settings, {"direct": direct, "packed": packed})
        print(table(rows))
        print(f"- {memory(settings, prepared)}")


def measure(settings: Benchmark, sets: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    """Median images per second of each route; in each repeat all are timed in turn."""
    rates: dict[str, list[float]] = {name: [] for name in ROUTES}
    for _ in range(settings.repeats):
        for name, (which, batches) in ROUTES.items():
            stream = batches(sets[which], settings)
            next(stream)  # Processes have started, threads read ahead.
            count = max(1, settings.images // settings.batch)
            begun = time.perf_counter()
            for batch in islice(stream, count):
                jax.block_until_ready(batch)
            rates[name].append(count * settings.batch / (time.perf_counter() - begun))
            del stream
    return {name: statistics.median(values) for name, values in rates.items()}


def ours(records: Sequence[Record], settings: Benchmark, *, workers: int = 0) -> Iterator:
    """Batches on the device, nothing kept in memory."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    batches = pipeline.train_batches(
        records,
        side=settings.side,
        batch=settings.batch,
        seed=0,
        max_objects=4,
        objects="each",
        workers=workers,
        cache_bytes=0,
    )
    for batch in batches:
        yield sharding.place_batch(batch, mesh)


def peer(records: Sequence[Record], settings: Benchmark) -> Iterator:
    """A DataLoader's batches without end."""
    usable = [record for record in records if record.boxes]
    data = TorchSet(usable, settings.side)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=settings.batch,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
        persistent_workers=True,
    )
    while True:
        yield from loader


class TorchSet(torch.utils.data.Dataset):
    """DICOM or PNG with its mask, as fine-tuners of SAM in torch read them."""

    def __init__(self, records: Sequence[Record], side: int):
        self.records, self.side = records, side

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        record = self.records[index]
        if record.image.suffix == ".dcm":
            image = pydicom.dcmread(record.image).pixel_array
        else:
            with record.image.open("rb") as file:
                image = np.asarray(Image.open(file))
        height, width = image.shape[:2]
        scale = self.side / max(height, width)
        size = round(width * scale), round(height * scale)
        if size != (width, height):
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        canvas = np.zeros((self.side, self.side, 3), np.uint8)
        canvas[: size[1], : size[0]] = image if image.ndim == 3 else image[..., None]
        with record.mask.open("rb") as file:
            mask = np.asarray(Image.open(file).convert("L")) > 127
        quarter = tuple(round(x / 4) for x in size)
        target = np.zeros((self.side // 4, self.side // 4), np.float32)
        target[: quarter[1], : quarter[0]] = cv2.resize(
            mask.astype(np.float32), quarter, interpolation=cv2.INTER_AREA
        )
        return torch.from_numpy(canvas).permute(2, 0, 1), torch.from_numpy(target)


def table(rows: Mapping[str, float]) -> str:
    """Images per second, and ratios to the DataLoader that reads DICOM."""
    base = rows["torch DataLoader, DICOM"]
    lines = ["| route | images/s | to the DataLoader reading DICOM |", "|---|---:|---:|"]
    lines += [f"| {name} | {rate:.1f} | {rate / base:.2f} |" for name, rate in rows.items()]
    return "\n".join(lines)


def memory(settings: Benchmark, prepared: Path) -> str:
    """How much more memory an epoch holds than its first batches, in a process of its own."""
    code = (
        "import json, sys; from benchmarks.data import grow; print(json.dumps(grow(*sys.argv[1:])))"
    )
    arguments = [settings.data, str(prepared), str(settings.side), str(settings.images)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    first, most = json.loads(done.stdout.splitlines()[-1])
    return (
        f"resident memory over {settings.images} images: {first:.0f} MiB after 20 batches, "
        f"{most:.0f} MiB at most later: {most - first:+.0f} MiB"
    )


def grow(data: str, folder: str, side: str, images: str) -> tuple[float, float]:
    """Resident MiB after 20 batches, and the largest later; nothing is kept in memory."""
    settings = Benchmark(Path(folder), data=data, side=int(side), batch=1)
    stream = ours(sources.open_dataset(data, Path(folder)), settings)
    seen = []
    for batch in islice(stream, max(60, int(images))):
        jax.block_until_ready(batch)
        seen.append(psutil.Process().memory_info().rss / 2**20)
    return seen[19], max(seen[20:])


Route = Callable[[Sequence[Record], Benchmark], Iterator]


def _ours_by_processes(records: Sequence[Record], settings: Benchmark) -> Iterator:
    return ours(records, settings, workers=settings.workers)


ROUTES: Mapping[str, tuple[str, Route]] = MappingProxyType(
    {
        "ours, prepared": ("packed", ours),
        "ours, DICOM": ("direct", ours),
        "ours, prepared, in processes": ("packed", _ours_by_processes),
        "ours, DICOM, in processes": ("direct", _ours_by_processes),
        "torch DataLoader, DICOM": ("direct", peer),
        "torch DataLoader, PNG": ("packed", peer),
    }
)


if __name__ == "__main__":
    main()
