"""The metrics of an evaluation, and HD95 and NSD beside MONAI's.

    python -m benchmarks.metrics

Draws pictures of two objects each and a prediction for each object, and scores every object and
their union by all rows of `METRICS`, in `--workers` processes. Then times HD95 and NSD at 1 % on
some of the same objects, ours and MONAI's in turn, in one process and one thread. Prints Markdown.
Needs the extra `test`, for MONAI.
"""

import importlib.metadata
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from types import MappingProxyType

import numpy as np
import tyro
from jaxtyping import Bool
from PIL import Image, ImageDraw

from pp_jax.evaluate import metrics

OBJECTS = 2


@dataclass(frozen=True)
class Benchmark:
    """Time the metrics of many images, and two of them beside MONAI's."""

    images: int = 1000
    """Images of two objects, to score by all metrics."""
    side: int = 1024
    """Of the images, in pixels."""
    workers: int = 2
    """Processes that score."""
    pairs: int = 40
    """Objects to measure beside MONAI."""
    repeats: int = 5
    """Of which medians are taken."""


def main() -> None:
    """Measure, and print the figures."""
    settings = tyro.cli(Benchmark)
    packages = ("numpy", "scipy", "monai", "torch")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"- {settings}\n- Python {platform.python_version()}, {versions}, {os.cpu_count()} cores")
    begun = time.perf_counter()
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
        work = partial(score, side=settings.side)
        seconds = list(pool.map(work, range(settings.images), chunksize=20))
    print(
        f"- {settings.images} images of {OBJECTS} objects, each object and their union by "
        f"{len(metrics.METRICS)} metrics: {time.perf_counter() - begun:.1f} s in all, of which "
        f"{sum(seconds) / settings.workers:.1f} s scoring in each process (the rest: its start and "
        f"drawing the masks); median {1000 * statistics.median(seconds):.1f} ms per image"
    )
    print(table(compare(settings)))


def score(seed: int, *, side: int) -> float:
    """Seconds that all metrics of one image take, the drawing of its masks left out."""
    predictions, targets = draw(seed, side=side)
    begun = time.perf_counter()
    for prediction, target in zip(predictions, targets, strict=True):
        metrics.measure(prediction, target)
    metrics.measure(predictions.any(0), targets.any(0))
    return time.perf_counter() - begun


def draw(
    seed: int, *, side: int
) -> tuple[Bool[np.ndarray, "N side side"], Bool[np.ndarray, "N side side"]]:
    """Predicted and true masks: round shapes with bumps, one in each half of the image.

    A prediction has other bumps than its target, is a little moved, and has some specks around it.
    """
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for index in range(OBJECTS):
        center = side * np.array([(index + 0.5) / OBJECTS, 0.5]) + rng.normal(size=2) * side / 20
        radii = side * rng.uniform(0.06, 0.22, 2)
        bumps = rng.normal(size=(8, 2)) * 0.08
        targets.append(_outline(center, radii, bumps, side=side))
        moved = center + rng.normal(size=2) * side / 50
        prediction = _outline(moved, radii, bumps + rng.normal(size=(8, 2)) * 0.04, side=side)
        for x, y in rng.integers(side - 8, size=(10, 2)):
            prediction[y : y + 5, x : x + 5] = True
        predictions.append(prediction)
    return np.stack(predictions), np.stack(targets)


def _outline(
    center: np.ndarray, radii: np.ndarray, bumps: np.ndarray, *, side: int
) -> Bool[np.ndarray, "side side"]:
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    waves = np.arange(2, 2 + len(bumps))[:, None] * angle
    length = 1 + bumps[:, 0] @ np.cos(waves) + bumps[:, 1] @ np.sin(waves)
    points = center + radii * length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    canvas = Image.new("1", (side, side))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=1)
    return np.array(canvas)


Masks = Bool[np.ndarray, "H W"]


def ours(prediction: Masks, target: Masks) -> tuple[float, float]:
    """HD95 in per cent of the longest side, and NSD at 1 % of it."""
    masks = metrics.pair(prediction, target)
    hd95, nsd = (metrics.METRICS[name].function(masks) for name in ("hd95", "nsd_1"))
    return hd95, nsd


def peer(prediction: Masks, target: Masks) -> tuple[float, float]:
    """The same by MONAI."""
    # Only here: the scoring processes need neither.
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    torch.set_num_threads(1)
    side = max(target.shape)
    planes = [torch.from_numpy(mask)[None, None] for mask in (prediction, target)]
    hd95 = compute_hausdorff_distance(*planes, include_background=True, percentile=95)
    nsd = compute_surface_dice(*planes, class_thresholds=[side / 100], include_background=True)
    return 100 * hd95.item() / side, nsd.item()


def compare(settings: Benchmark) -> dict[str, float]:
    """Median milliseconds per object of each program; in each repeat all are timed in turn."""
    warnings.simplefilter("ignore")  # MONAI calls its own deprecated options.
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for seed in range(settings.pairs):
        predictions, targets = draw(seed, side=settings.side)
        masks = predictions[0], targets[0]
        np.testing.assert_allclose(*(program(*masks) for program in PROGRAMS.values()), rtol=1e-5)
        for _ in range(settings.repeats):
            for name, program in PROGRAMS.items():
                begun = time.perf_counter()
                program(*masks)
                seconds[name].append(time.perf_counter() - begun)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def table(rows: Mapping[str, float]) -> str:
    """Milliseconds, and ratios to ours."""
    lines = ["| HD95 and NSD of one object | ms | to ours |", "|---|---:|---:|"]
    lines += [f"| {name} | {ms:.2f} | {ms / rows['ours']:.1f} |" for name, ms in rows.items()]
    return "\n".join(lines)


PROGRAMS: Mapping[str, Callable[[Masks, Masks], tuple[float, float]]] = MappingProxyType(
    {"ours": ours, "MONAI": peer}
)


if __name__ == "__main__":
    main()
