"""Every filter and the whole input stage, beside OpenCV and scikit-image, in one run.

    python -m benchmarks.preprocess --images DIR --repeats 7
    python -m benchmarks.preprocess --images DIR --encoder vit_b     # and the stage's share of it

Prints Markdown. Times are medians over the repeats, per image; in each repeat every program is
timed once before any is timed again, so that what else the machine does strikes all alike.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import skimage.exposure
import skimage.feature
import skimage.filters
import skimage.morphology
import skimage.restoration
import tyro
from jaxtyping import Array
from scipy import ndimage
from tqdm import tqdm

from benchmarks.turns import print_machine
from data.folder import find_images
from data.images import read_any
from pp_jax import prompts, sharding, tree
from pp_jax.config import Look
from pp_jax.finetune.step import State, make_step, make_terms
from pp_jax.finetune.trainable import POLICIES
from pp_jax.memory import keep_freed_memory
from pp_jax.preprocess import geometry, specs
from pp_jax.preprocess.colour import to_grey
from pp_jax.preprocess.filters import FILTERS
from pp_jax.preprocess.responses import respond
from pp_jax.preprocess.stage import make_stage
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init
from pp_jax.types import Batch

Peer = Callable[[np.ndarray], object]

PACKAGES = ("jax", "jaxlib", "numpy", "opencv-python-headless", "scikit-image", "scipy")


@dataclass(frozen=True)
class Benchmark:
    """Time filters and the stage beside OpenCV and scikit-image."""

    images: Path
    """A folder of pictures or DICOM files; the first COUNT are used."""
    count: int = 8
    """Images in the batch."""
    side: int = 1024
    """Of the model frame."""
    repeats: int = 7
    """Of which medians are taken."""
    filters: tuple[str, ...] = tuple(FILTERS)
    """Specs to time."""
    encoder: str = ""
    """Also time this variant's image encoder and decoder-only training step, on one image."""
    threads: int = 2
    """Of OpenCV."""


def main() -> None:
    """Measure, and print the tables."""
    settings = tyro.cli(Benchmark)
    cv2.setNumThreads(settings.threads)
    keep_freed_memory()  # As the fronts do; the peers gain by it, too.
    print_machine(settings, PACKAGES)
    print(f"- jax on {jax.devices()[0].device_kind}, OpenCV with {cv2.getNumThreads()} threads")
    batch, sizes = read_batch(settings)
    rows = {name: time_row(name, batch, sizes, settings) for name in tqdm(settings.filters)}
    print(filter_table(rows))
    if settings.encoder:
        costs = time_model(settings.encoder, batch, sizes)
        print(share_table(rows, costs, variant=settings.encoder))


def read_batch(settings: Benchmark) -> tuple[np.ndarray, np.ndarray]:
    """`(images B S S 3 uint8, sizes B 2)`: every picture stretched to the full frame."""
    paths = list(find_images([settings.images]).values())
    paths = [paths[index % len(paths)] for index in range(settings.count)]
    side = settings.side
    images = [
        geometry.resize_image(read_any(path), longest=side, fit="square") for path in tqdm(paths)
    ]
    return np.stack(images), np.full((settings.count, 2), side, np.int32)


@dataclass(frozen=True)
class Row:
    """Seconds per image; None where there is no such program."""

    ours: float
    stage: float
    opencv: float | None
    skimage: float | None


def time_row(spec: str, batch: np.ndarray, sizes: np.ndarray, settings: Benchmark) -> Row:
    """One filter by all programs, and the whole stage with it."""
    named = specs.parse_row(spec, FILTERS, what="filter")
    filter = specs.make_row(named, FILTERS)

    @jax.jit
    @jax.vmap
    def one(image: Array, size: Array) -> Array:
        return respond(image.astype(jnp.float32), size, filter=filter)

    stage = jax.jit(make_stage(Look(spec), side=settings.side))
    grey = np.stack([to_grey(image) for image in batch])
    on_device, where = jnp.asarray(grey), jnp.asarray(sizes)
    colours = jnp.asarray(batch)
    peers = PEERS.get(named.name, (None, None))
    # A peer that takes seconds per image is timed on two images, not eight.
    slow = named.name in SLOW
    programs: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: one(on_device, where).block_until_ready(), len(batch)),
        "stage": (lambda: stage(colours, where).block_until_ready(), len(batch)),
    }
    for name, peer in zip(("opencv", "skimage"), peers, strict=True):
        if peer is not None:
            used = grey[:1] if slow and name == "skimage" else grey
            programs[name] = (partial(_over, peer, used), len(used))
    seconds = interleaved(programs, repeats=settings.repeats)
    return Row(seconds["ours"], seconds["stage"], seconds.get("opencv"), seconds.get("skimage"))


def _over(peer: Peer, images: np.ndarray) -> None:
    for image in images:
        peer(image)


def interleaved(
    programs: Mapping[str, tuple[Callable[[], object], int]], *, repeats: int
) -> dict[str, float]:
    """Median seconds per image of each program, after one run unmeasured."""
    for run, _ in programs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, (run, images) in programs.items():
            begun = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - begun) / images)
    return {name: statistics.median(times) for name, times in seconds.items()}


def time_model(variant: str, batch: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Median seconds of the encoder alone, and of a training step of the decoder, on one image."""
    model = Sam(VARIANTS[variant])
    side = model.config.image_size
    variables = init(model, jax.random.key(0))
    shown = make_stage(Look(), side=side)(jnp.asarray(batch[:1]), jnp.asarray(sizes[:1]))
    encode = jax.jit(partial(model.apply, method="encode"))
    trainable, frozen = tree.partition(variables, POLICIES["decoder"])
    rule = optax.adamw(1e-4)
    terms = make_terms(
        model,
        make_stage(Look(), side=side),
        prompting="box",
        purpose=prompts.Purpose.TRAIN_PROMPT,
        weights={"focal": 20.0, "dice": 1.0, "iou": 1.0},
    )
    step = jax.jit(make_step(terms, rule))
    state = State(jnp.int32(0), trainable, rule.init(trainable))
    quarter = side // 4
    targets = np.zeros((1, 1, quarter, quarter), np.float32)
    targets[..., 20:60, 30:70] = 1
    boxes = np.array([[[120, 80, 280, 240]]], np.float32)
    one = Batch(batch[:1], sizes[:1], targets, boxes, np.ones((1, 1), bool), np.zeros(1, np.int32))
    placed = sharding.place_batch(
        (one, np.zeros(1, np.int32)), sharding.make_mesh(jax.devices()[:1])
    )
    key = jax.random.key(0)
    programs = {
        "encoder": (lambda: jax.block_until_ready(encode(variables, shown)), 1),
        "training step": (lambda: jax.block_until_ready(step(state, frozen, *placed, key)), 1),
    }
    return interleaved(programs, repeats=3)


def filter_table(rows: Mapping[str, Row]) -> str:
    """Milliseconds per image, images per second, and how many times faster than the peers."""
    lines = [
        "| filter | ms | images/s | OpenCV ms | ours/it | scikit-image ms | ours/it | stage ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [name, _ms(row.ours), f"{1 / row.ours:.0f}"]
        for peer in (row.opencv, row.skimage):
            cells += ["", ""] if peer is None else [_ms(peer), f"{row.ours / peer:.2f}"]
        lines.append(f"| {' | '.join([*cells, _ms(row.stage)])} |")
    return "\n".join(lines)


def share_table(rows: Mapping[str, Row], costs: Mapping[str, float], *, variant: str) -> str:
    """The stage's share of the encoder and of a training step, worst first."""
    facts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in costs.items())
    lines = [
        f"\n`{variant}`, one image: {facts}\n",
        f"| filter | {' | '.join(costs)} |",
        "|---|---|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1].stage):
        shares = (f"{100 * row.stage / seconds:.2f} %" for seconds in costs.values())
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _cv_gradient(kernel: Callable[[np.ndarray, int, int], np.ndarray]) -> Peer:
    return lambda x: cv2.magnitude(kernel(x, 1, 0), kernel(x, 0, 1))


def _cv_prewitt(x: np.ndarray) -> np.ndarray:
    across = np.array([[-1, 0, 1]] * 3, np.float32)
    dx, dy = (cv2.filter2D(x, cv2.CV_32F, kernel) for kernel in (across, across.T))
    return cv2.magnitude(dx, dy)


def _cv_blur(x: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(x.astype(np.float32), (0, 0), sigma)


def _cv_equalize_window(x: np.ndarray) -> np.ndarray:
    low, high = np.percentile(x, (1, 99))
    return cv2.convertScaleAbs(x, alpha=255 / (high - low), beta=-low * 255 / (high - low))


def _skimage_window(x: np.ndarray) -> np.ndarray:
    return skimage.exposure.rescale_intensity(x, in_range=tuple(np.percentile(x, (1, 99))))


def _skimage_canny(x: np.ndarray) -> np.ndarray:
    options = {"low_threshold": 0.8, "high_threshold": 0.9, "use_quantiles": True}
    return skimage.feature.canny(x, sigma=2.0, **options)


_CURVE = (255 * (np.arange(256) / 255) ** 0.5).astype(np.uint8)
_SQUARE = skimage.morphology.footprint_rectangle((3, 3))

SLOW = frozenset({"bilateral", "entropy"})

# The same work in OpenCV and in scikit-image (or SciPy, where that is what scikit-image calls).
PEERS: Mapping[str, tuple[Peer | None, Peer | None]] = MappingProxyType(
    {
        "sobel": (
            _cv_gradient(lambda x, i, j: cv2.Sobel(x, cv2.CV_32F, i, j)),
            skimage.filters.sobel,
        ),
        "scharr": (
            _cv_gradient(lambda x, i, j: cv2.Scharr(x, cv2.CV_32F, i, j)),
            skimage.filters.scharr,
        ),
        "prewitt": (_cv_prewitt, skimage.filters.prewitt),
        "laplacian": (lambda x: cv2.Laplacian(x, cv2.CV_32F), skimage.filters.laplace),
        "gaussian": (
            lambda x: cv2.GaussianBlur(x, (0, 0), 1.0),
            lambda x: skimage.filters.gaussian(x, 1.0),
        ),
        "unsharp": (
            lambda x: cv2.addWeighted(x.astype(np.float32), 2, _cv_blur(x, 2.0), -1, 0),
            lambda x: skimage.filters.unsharp_mask(x, 2.0, 1.0),
        ),
        "dog": (
            lambda x: _cv_blur(x, 1.0) - _cv_blur(x, 1.6),
            lambda x: skimage.filters.difference_of_gaussians(x, 1.0, 1.6),
        ),
        "log": (
            lambda x: cv2.Laplacian(_cv_blur(x, 2.0), cv2.CV_32F),
            lambda x: ndimage.gaussian_laplace(x.astype(np.float32), 2.0),
        ),
        "canny": (lambda x: cv2.Canny(x, 50, 150), lambda x: skimage.feature.canny(x, 1.0)),
        "canny_quantile": (None, _skimage_canny),
        "equalize": (cv2.equalizeHist, skimage.exposure.equalize_hist),
        "clahe": (
            lambda x: cv2.createCLAHE(2.0, (8, 8)).apply(x),
            skimage.exposure.equalize_adapthist,
        ),
        "window": (_cv_equalize_window, _skimage_window),
        "gamma": (
            lambda x: cv2.LUT(x, _CURVE),
            lambda x: skimage.exposure.adjust_gamma(x, 0.5),
        ),
        "median": (
            lambda x: cv2.medianBlur(x, 3),
            lambda x: skimage.filters.median(x, _SQUARE),
        ),
        "bilateral": (
            lambda x: cv2.bilateralFilter(x, 5, 25.0, 3.0),
            lambda x: skimage.restoration.denoise_bilateral(x, 5, 25.0 / 255, 3.0),
        ),
        "entropy": (
            None,
            lambda x: skimage.filters.rank.entropy(x, skimage.morphology.disk(5)),
        ),
        "otsu": (
            lambda x: cv2.threshold(x, 0, 255, cv2.THRESH_OTSU),
            lambda x: x > skimage.filters.threshold_otsu(x),
        ),
    }
)


if __name__ == "__main__":
    main()
