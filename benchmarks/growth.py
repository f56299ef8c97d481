"""How time and memory of ours grow with the batch, the image, the prompts and the devices.

    python -m benchmarks.growth --variant vit_b
    python -m benchmarks.growth --variant tiny --curves prompts devices --fresh

Each point runs in a process of its own, so that its peak memory is its own: on a CPU that of the
whole process, its libraries and weights included. Batch, size and devices are of the encoder;
prompts are of the decoder, in calls of 64, as automatic masks are searched. Devices split one batch
of fixed size; on a CPU they are virtual and share its cores, so that at best nothing grows.

Writes a plot of each curve and `growth.csv`, and prints Markdown. A point that is in the CSV, of
the same code, versions, machine and settings, is not measured again.
"""

import csv
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from benchmarks import turns
from benchmarks.decoder import draw_embedding
from benchmarks.weights import weighed
from pp_jax.sam import VARIANTS, sized

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PACKAGES = ("jax", "jaxlib", "flax")
_CODE = (
    "sam",
    "predict/predictor.py",
    "prompts.py",
    "types.py",
    "memory.py",
    "sharding.py",
)  # What a point runs.
_COLOR, _FAILED = "#0072B2", "#D55E00"


@dataclass(frozen=True, kw_only=True)
class Benchmark(turns.Settings):
    """Measure how cost grows."""

    variant: Literal[tuple(VARIANTS)] = "vit_b"
    """Of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the compute."""
    curves: tuple[Literal["batch", "size", "prompts", "devices"], ...] = (
        "batch",
        "size",
        "prompts",
        "devices",
    )
    """What to vary."""
    batch: tuple[int, ...] = (1, 2, 4, 8)
    """Images in a batch."""
    size: tuple[int, ...] = (256, 512, 768, 1024, 1536, 2048)
    """Sides of the image."""
    prompts: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    """Prompts on one image."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """That share a batch."""
    shared: int = 8
    """Images in the batch that devices share."""
    at_once: int = 64
    """Prompts that are decoded in one call, at most."""
    repeats: int = 3
    """Of which medians are taken."""
    out: Path = Path("benchmarks/growth")
    """Folder of the plots and of `growth.csv`."""
    fresh: bool = False
    """Measure what is in the CSV again."""


class Point(NamedTuple):
    """A row of the CSV, all text; `seconds` and `peak_mib` are empty where it failed."""

    curve: str
    value: str
    seconds: str
    peak_mib: str
    failed: str
    settings: str
    versions: str
    code: str
    machine: str

    @property
    def name(self) -> tuple[str, ...]:
        """Of what it is the measurement."""
        return (*self[:2], *self[5:])


def main() -> None:
    """Measure, plot and print."""
    settings = turns.read(Benchmark, make_programs)
    turns.print_machine(settings, PACKAGES)
    for curve in settings.curves:
        points = [point(settings, curve, value) for value in getattr(settings, curve)]
        plot(points, settings.out / f"{curve}.svg", curve=curve, variant=settings.variant)
        print(f"\n{CURVES[curve].what}:\n\n{table(points, curve=curve)}")


def make_programs(settings: Benchmark) -> Mapping[str, turns.Prepare]:
    """The first value of the first curve."""
    curve = settings.curves[0]
    return {"ours": partial(CURVES[curve].prepare, settings, getattr(settings, curve)[0])}


def point(settings: Benchmark, curve: str, value: int) -> Point:
    """From the CSV, or measured and added to it."""
    path = settings.out / "growth.csv"
    unmeasured = Point(curve, str(value), "", "", "", *_circumstances(settings, curve))
    known = {point.name: point for point in _read(path)}
    if unmeasured.name in known and not settings.fresh:
        return known[unmeasured.name]
    one = replace(settings, curves=(curve,), **{curve: (value,)})
    programs = make_programs(one)
    (row,) = turns.take_turns("benchmarks.growth", programs, one).values()
    measured = (
        unmeasured._replace(failed=row)
        if isinstance(row, str)
        else unmeasured._replace(seconds=f"{row.median:.6g}", peak_mib=f"{row.peak_mib:.1f}")
    )
    _write(path, (known | {measured.name: measured}).values())
    return measured


def _circumstances(settings: Benchmark, curve: str) -> tuple[str, str, str, str]:
    """What else a point depends on: settings, versions, code and machine."""
    told = ["variant", "dtype", "repeats", *CURVES[curve].told]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    package = Path(__file__).resolve().parents[1] / "pp_jax"
    sources = [package / part for part in _CODE]
    files = [x for source in sources for x in (sorted(source.glob("*.py")) or [source])]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return (
        " ".join(f"{name}={getattr(settings, name)}" for name in told),
        ", ".join([f"Python {platform.python_version()}", *versions]),
        digest[:12],
        f"{turns.processor()}, {os.cpu_count()} cores, {settings.device}",
    )


def _read(path: Path) -> list[Point]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != list(Point._fields):
            raise SystemExit(
                f"{path} has the columns {rows.fieldnames}, not {list(Point._fields)}: remove it "
                "or give another --out"
            )
        return [Point(**row) for row in rows]


def _write(path: Path, points: Sequence[Point]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_name(path.name + ".partial")
    with partial_file.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Point._fields)
        rows.writerows(points)
    partial_file.replace(path)


# What is measured.


def _encode_batch(settings: Benchmark, batch: int) -> turns.Run:
    return _encoder(settings, batch=batch)


def _encode_size(settings: Benchmark, size: int) -> turns.Run:
    return _encoder(settings, batch=1, size=size)


def _encode_on_devices(settings: Benchmark, count: int) -> turns.Run:
    import jax

    if settings.device == "cpu":
        jax.config.update("jax_num_cpu_devices", count)
    if settings.shared % count:
        raise ValueError(f"--shared {settings.shared} images cannot be split over {count} devices")
    if len(jax.devices()) < count:
        raise RuntimeError(f"{count} devices are asked for, and there are {len(jax.devices())}")
    return _encoder(settings, batch=settings.shared, devices=count)


def _encoder(
    settings: Benchmark, *, batch: int, size: int | None = None, devices: int = 1
) -> turns.Run:
    import jax

    from pp_jax import sharding
    from pp_jax.memory import keep_freed_memory
    from pp_jax.sam import Sam

    keep_freed_memory()
    config = sized(settings.variant, size)
    model = Sam(config, dtype=jax.numpy.dtype(settings.dtype))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    variables = jax.device_put(weighed(model), sharding.replicated(mesh))
    shape = batch, config.image_size, config.image_size, 3
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    images = sharding.place_batch(pixels, mesh)
    encode = jax.jit(partial(model.apply, method="encode"))
    return lambda: encode(variables, images).block_until_ready()


def _decode_prompts(settings: Benchmark, count: int) -> turns.Run:
    import jax
    import jax.numpy as jnp

    from pp_jax.memory import keep_freed_memory
    from pp_jax.predict.predictor import predict
    from pp_jax.prompts import make_prompts
    from pp_jax.sam import Sam
    from pp_jax.types import FOREGROUND

    keep_freed_memory()
    config = VARIANTS[settings.variant]
    model = Sam(config, dtype=jnp.dtype(settings.dtype))
    variables = weighed(model)
    rng = np.random.default_rng(0)
    embedding = jax.device_put(draw_embedding(config))
    points = rng.uniform(0, config.image_size, (1, count, 1, 2)).astype(np.float32)

    @jax.jit
    def decode(variables: dict, embedding: jax.Array, points: jax.Array) -> object:
        labels = jnp.full(points.shape[:3], FOREGROUND)
        prompts = make_prompts(points=points, labels=labels)
        return predict(model, variables, embedding, prompts)

    def run() -> None:
        # As automatic masks are: of each call only what passes the filters is kept.
        for start in range(0, count, settings.at_once):
            part = points[:, start : start + settings.at_once]
            jax.block_until_ready(decode(variables, embedding, part))

    return run


# What is shown.


def plot(points: Sequence[Point], path: Path, *, curve: str, variant: str) -> None:
    """Draw seconds and MiB, with a dashed line for growth in proportion; failures are crosses."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, label, read in zip(
        figure.subplots(1, 2),
        ("seconds", "MiB"),
        (lambda point: point.seconds, lambda point: point.peak_mib),
        strict=True,
    ):
        values = [float(read(point)) if read(point) else None for point in points]
        _draw(axes, [int(point.value) for point in points], values, curve=curve)
        axes.set(xlabel=CURVES[curve].label, title=label)
    figure.suptitle(f"{variant}: {CURVES[curve].what}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "growth", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def _draw(axes: "Axes", xs: Sequence[int], values: Sequence[float | None], *, curve: str) -> None:
    there = [(x, value) for x, value in zip(xs, values, strict=True) if value is not None]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    if there:
        first, least = there[0]
        line = [least * (x / first) ** CURVES[curve].power for x, _ in there]
        axes.plot([x for x, _ in there], line, "--", color="grey", label=CURVES[curve].dashed)
        axes.plot(*zip(*there, strict=True), "o-", color=_COLOR, label="measured")
    failed = [x for x, value in zip(xs, values, strict=True) if value is None]
    if failed:
        height = max((value for _, value in there), default=1.0)
        axes.plot(failed, [height] * len(failed), "x", color=_FAILED, markersize=9, label="failed")
        for x in failed:
            axes.annotate(
                f"{x} failed", (x, height), (0, 8), textcoords="offset points", ha="right"
            )
    axes.set_xticks(xs, map(str, xs))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def table(points: Sequence[Point], *, curve: str) -> str:
    """Markdown: seconds, MiB, and both as multiples of the first point's."""
    lines = [
        f"| {CURVES[curve].label} | s | times the first | peak MiB | times the first |",
        "|---:|---:|---:|---:|---:|",
    ]
    first = next((point for point in points if not point.failed), None)
    for point in points:
        if point.failed:
            lines.append(f"| {point.value} | {point.failed.replace('|', '/')} | | | |")
            continue
        seconds, mib = float(point.seconds), float(point.peak_mib)
        times = seconds / float(first.seconds), mib / float(first.peak_mib)
        lines.append(
            f"| {point.value} | {seconds:.4g} | {times[0]:.2f} | {mib:.0f} | {times[1]:.2f} |"
        )
    return "\n".join(lines)


class Curve(NamedTuple):
    """What is varied, and what would be proportional."""

    prepare: Callable[[Benchmark, int], turns.Run]
    what: str
    label: str
    dashed: str
    power: int  # Of the value, in the dashed line.
    told: tuple[str, ...] = ()  # Settings that it depends on, besides those of all.


CURVES: Mapping[str, Curve] = MappingProxyType(
    {
        "batch": Curve(
            _encode_batch, "encoder", "images in the batch", "in proportion to the images", 1
        ),
        "size": Curve(
            _encode_size,
            "encoder, one image",
            "side of the image",
            "in proportion to the pixels",
            2,
        ),
        "prompts": Curve(
            _decode_prompts,
            "decoder, one embedding",
            "prompts",
            "in proportion to the prompts",
            1,
            ("at_once",),
        ),
        "devices": Curve(
            _encode_on_devices,
            "encoder, one batch split over devices",
            "devices",
            "no growth",
            0,
            ("shared",),
        ),
    }
)


if __name__ == "__main__":
    main()
