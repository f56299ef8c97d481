"""Weights and images for tests of `python -m pp_jax.predict`, and how it is run. Not a test."""

import csv
import warnings
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from pp_jax import checkpoints, tree
from pp_jax.predict.__main__ import main
from pp_jax.sam import Sam, sized
from pp_jax.sam.model import init
from tests.dicom_files import write_dicom
from tests.test_official_api import photo

HEIGHT, WIDTH = 97, 150
BOXES = {"a.png": [(10, 20, 100, 90), (60, 5, 80.5, 50)], "film.dcm": [(5, 8, 70, 60)]}
TOLD = "image,x0,y0,x1,y1\n" + "".join(
    f"{image},{','.join(map(str, box))}\n" for image in BOXES for box in BOXES[image]
)


def drawn(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random values of one parameter; those of the mask head are large, so that logits pass 1."""
    noise = rng.normal(size=shape).astype(np.float32)
    if path.endswith("scale"):
        return 1 + 0.1 * noise
    if len(shape) < 2:
        return 0.1 * noise
    head = "output_hypernetworks" in path and "layers_2" in path
    return noise * np.float32(np.prod(shape[:-1]) ** -0.5 * (20 if head else 1))


def write_world(folder: Path) -> Path:
    """The folder with weights, two images and their boxes."""
    shapes = jax.eval_shape(lambda key: init(Sam(sized("tiny")), key), jax.random.key(0))
    rng = np.random.default_rng(0)
    leaves = tree.flatten(shapes).items()
    variables = tree.unflatten({path: drawn(path, x.shape, rng) for path, x in leaves})
    facts = {"kind": "converted", "variant": "tiny", "preprocess": "sam"}
    checkpoints.save(folder / "weights", variables, facts=facts)
    (folder / "images").mkdir()
    Image.fromarray(photo(HEIGHT, WIDTH)).save(folder / "images" / "a.png")
    write_dicom(folder / "images" / "film.dcm", photo(80, 120)[..., 0])
    (folder / "boxes.csv").write_text(TOLD)
    return folder


def run(
    world: Path,
    *args: object,
    images: str = "images",
    out: str = "out",
    weights: tuple[Path, ...] = (),
) -> None:
    paths = ["--checkpoint", *(weights or [world / "weights"]), "--out", world / out]
    with warnings.catch_warnings():
        warnings.filterwarnings("default", module="pp_jax.predict.__main__")
        main([str(x) for x in (world / images, *paths, *args)])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def image_of(name: str) -> np.ndarray:
    """The pixels as they were drawn."""
    return photo(HEIGHT, WIDTH) if name == "a.png" else photo(80, 120)[..., :1].repeat(3, axis=2)


def failed(capsys) -> str:
    """The one line that a user sees."""
    (line,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning")]
    assert line.startswith("error: ")
    return line
