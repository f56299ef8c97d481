"""`python -m pp_jax.doctor CHECKPOINT [IMAGE]`: the answer to "my result differs".

It checks the files, shows how the image is read, measures this device's arithmetic, and climbs the
parity ladder beside the official torch SAM, where torch is installed. This front may import `data`
and `convert`; nothing else in `pp_jax` does.
"""

import importlib.util
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, UInt8
from PIL import Image

from data.images import read_any
from pp_jax import checkpoints, cli, sharding
from pp_jax.config import Look
from pp_jax.finetune import runs
from pp_jax.preprocess import geometry
from pp_jax.preprocess.stage import MEAN, STD, make_stage
from pp_jax.sam import VARIANTS, Sam

_PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "numpy", "pillow", "torch")
_LADDER_NEEDS = ("torch", "torchvision", "segment_anything")
_PRECISE = 1e-5  # Relative error of a float32 product that was not rounded to fewer bits.


@dataclass(frozen=True)
class Doctor:
    """Find out why a result differs: files, image, arithmetic, and every stage beside torch."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A converted checkpoint or a run of train.py."""
    image: Annotated[Path | None, tyro.conf.Positional] = None
    """The image that gives another result; default: a picture drawn from a seed."""
    embedding: Path | None = None
    """An embedding (.npy, 1 x 256 x h x w or h x w x 256) of this image from your own code: the
    doctor looks for the mistake in preprocessing that explains it best."""
    device: str = "auto"
    """Where to compute."""


def main() -> None:
    """The command line."""
    args = cli.parse(Doctor, prog="python -m pp_jax.doctor", choices={"device": cli.DEVICES})
    with cli.one_line_errors():
        examine(args)


def examine(args: Doctor) -> None:
    """Print every check; the last line says what was found.

    Raises:
      ValueError: A checkpoint that does not verify, or a file that is no image.
    """
    _section("This machine")
    mesh = sharding.make_mesh(cli.devices(args.device)[:1])
    print(f"python {platform.python_version()}, " + ", ".join(_versions()))
    error = matmul_error()
    print(f"float32 product at default precision: relative error {error:.1e}")
    if error > _PRECISE:
        print(
            "  this device rounds inputs (TF32 or bfloat16): compare results under "
            'jax.config.update("jax_default_matmul_precision", "highest"), as below'
        )

    _section("Weights")
    loaded = runs.load(args.checkpoint, mesh=mesh)
    facts = {"kind": f"run, step {loaded.step}", "variant": loaded.variant}
    if loaded.config is None:
        facts = checkpoints.read_manifest(args.checkpoint)
    for key in ("kind", "variant", "source", "source_sha256", "official", "licence", "preprocess"):
        if key in facts:
            print(f"{key}: {facts[key]}")
    print(f"every file's sha256 is that of {checkpoints.MANIFEST}; {_extent(loaded.variables)}")

    _section("Image")
    if loaded.variant not in VARIANTS:
        raise ValueError(
            f"{args.checkpoint}: a network ({loaded.variant}), which the official package has not; "
            f"name weights of {', '.join(VARIANTS)}"
        )
    config = VARIANTS[loaded.variant]
    image = drawn_image() if args.image is None else read_any(args.image)
    print("\n".join(describe(image, source=args.image, side=config.image_size)))

    faults: dict[str, float] = {}
    with jax.default_matmul_precision("highest"):
        if args.embedding is not None:
            _section("Your embedding")
            faults = explain(loaded.variant, loaded.variables, image, args.embedding)
            for name, distance in faults.items():
                print(f"{distance:9.2e}  {name}")
        missing = [name for name in _LADDER_NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            _section("Parity ladder")
            print(f"not climbed: {', '.join(missing)} not installed (pip install -e '.[test]')")
            verdict = "files and image read well; install torch to compare the stages"
        else:
            verdict = _climb(loaded.variant, loaded.variables, image)
    if faults:
        verdict += f"; your embedding is closest to: {next(iter(faults))}"
    print(f"\n{verdict}")


def _climb(variant: str, variables: Mapping[str, Any], image: UInt8[np.ndarray, "H W 3"]) -> str:
    """Print the ladder; returns the verdict."""
    from convert import ladder, reference
    from convert.official import to_state_dict

    _section("Parity ladder (same weights, same pixels, float32; deviations of torch's answer)")
    state = to_state_dict(variables)
    config = VARIANTS[variant]
    rungs = list(ladder.climb(config, variables, reference.with_state(config, state), image))
    print(ladder.table(rungs))
    first = next((rung for rung in rungs if not rung.holds), None)
    if first is None:
        return "every stage agrees with the official torch SAM on this machine"
    return f"first stage that differs: {first.stage} ({first.largest:.1e})"


def matmul_error() -> float:
    """Relative error of a float32 product on this device at the default precision."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(256, 256)) for _ in range(2))
    got = np.asarray(jnp.matmul(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)))
    want = a.astype(np.float32).astype(np.float64) @ b.astype(np.float32)
    return float(np.abs(got - want).max() / np.abs(want).max())


def drawn_image() -> UInt8[np.ndarray, "H W 3"]:
    """A picture with edges and colours, not square, the same for everyone."""
    y, x = np.mgrid[:310, :450]
    waves = np.stack([np.sin(x / 17 + y / 31), np.cos(y / 11), np.sin((x + y) / 23)], axis=-1)
    return np.clip(127 + 80 * waves + 30 * (x > y)[..., None], 0, 255).astype(np.uint8)


def describe(image: UInt8[np.ndarray, "H W 3"], *, source: Path | None, side: int) -> list[str]:
    """What the model gets to see of an image, and what in it often goes wrong."""
    height, width = image.shape[:2]
    resized = geometry.resized_shape(height, width, longest=side)
    means = image.mean((0, 1))
    lines = [
        f"{source or 'a drawn picture'}: {width} x {height} (width x height), grey levels "
        f"{image.min()} to {image.max()}",
        f"resized by Pillow to {resized[1]} x {resized[0]}, then padded right and below to {side}",
    ]
    if (image == image[..., :1]).all():
        lines.append("all three channels are equal: RGB or BGR makes no difference")
    else:
        lines.append(
            f"mean of R, G, B: {means[0]:.1f}, {means[1]:.1f}, {means[2]:.1f}; OpenCV reads B, G, R"
        )
    if image.max() <= 1:
        lines.append("warning: no grey level above 1; was an image in [0, 1] saved as uint8?")
    elif image.max() - image.min() < 32:
        lines.append("warning: fewer than 32 grey levels are used; check the window")
    return lines


def explain(
    variant: str,
    variables: Mapping[str, Any],
    image: UInt8[np.ndarray, "H W 3"],
    path: Path,
) -> dict[str, float]:
    """For each usual mistake the distance of its embedding from the user's, nearest first.

    The distance is the root mean square difference in units of the embedding's deviation.

    Raises:
      ValueError: The file holds no embedding of this model.
    """
    config = VARIANTS[variant]
    shape = (config.grid, config.grid, config.out_dim)
    try:
        theirs = np.load(path).squeeze().astype(np.float64)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not an array saved by numpy.save ({error})") from error
    if theirs.shape == (shape[2], *shape[:2]):
        theirs = np.moveaxis(theirs, 0, -1)
    if theirs.shape != shape:
        raise ValueError(f"{path}: an array of {theirs.shape}; {variant} embeds to {shape}")
    distances = {}
    for name, preprocess in MISTAKES.items():
        pixels = preprocess(image, config.image_size)
        ours = np.asarray(_encode(Sam(config), variables, pixels), np.float64)
        distances[name] = float(np.sqrt(np.mean((ours - theirs) ** 2)) / ours.std())
    return dict(sorted(distances.items(), key=lambda pair: pair[1]))


Pixels = Float[np.ndarray, "S S 3"]


@partial(jax.jit, static_argnames="model")
def _encode(model: Sam, variables: Mapping[str, Any], image: Pixels) -> Float[jax.Array, "h w D"]:
    return model.apply(variables, image[None], method="encode")[0]


def _right(image: np.ndarray, side: int) -> Pixels:
    resized = geometry.resize_image(image, longest=side)
    stage = make_stage(Look(), side=side)
    canvas = geometry.pad_square(resized, side=side)[None]
    return np.asarray(stage(jnp.asarray(canvas), jnp.array([resized.shape[:2]]))[0])


def _swapped(image: np.ndarray, side: int) -> Pixels:
    return _right(np.ascontiguousarray(image[..., ::-1]), side)


def _padded_first(image: np.ndarray, side: int) -> Pixels:
    canvas = geometry.pad_square(geometry.resize_image(image, longest=side), side=side)
    return ((canvas - MEAN) / STD).astype(np.float32)


def _unit_range(image: np.ndarray, side: int) -> Pixels:
    canvas = geometry.pad_square(geometry.resize_image(image, longest=side), side=side)
    return (canvas / 255).astype(np.float32)


def _stretched(image: np.ndarray, side: int) -> Pixels:
    return _right(np.array(Image.fromarray(image).resize((side, side))), side)


def _min_max(image: np.ndarray, side: int) -> Pixels:
    square = np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    low, high = square.min(), square.max()
    return ((square - low) / max(float(high) - low, 1e-8)).astype(np.float32)


def _aliased(image: np.ndarray, side: int) -> Pixels:
    height, width = geometry.resized_shape(*image.shape[:2], longest=side)
    rows = np.minimum((np.arange(height) + 0.5) * image.shape[0] / height, image.shape[0] - 1)
    columns = np.minimum((np.arange(width) + 0.5) * image.shape[1] / width, image.shape[1] - 1)
    return _right(image[rows.astype(int)][:, columns.astype(int)], side)


MISTAKES = MappingProxyType(
    {
        "no mistake: as the official code": _right,
        "channels swapped (BGR given as RGB)": _swapped,
        "padded before normalising": _padded_first,
        "scaled to [0, 1] without mean and deviation": _unit_range,
        "stretched to a square": _stretched,
        "MedSAM's preprocessing (stretched, min-max)": _min_max,
        "resized without antialiasing (nearest)": _aliased,
    }
)


def _section(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")


def _versions() -> list[str]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return found


def _extent(variables: Mapping[str, Any]) -> str:
    leaves = jax.tree.leaves(variables)
    largest = max(float(jnp.abs(leaf).max()) for leaf in leaves)
    return f"{sum(leaf.size for leaf in leaves):,} values, largest magnitude {largest:.3g}"


if __name__ == "__main__":
    main()
