"""`python -m pp_jax.preprocess`: what SAM would be shown of your images.

OUT/sheets/NAME.png            every filter and every fusion on one image
OUT/distributions_001.png      grey levels before and after the chosen look, ten images a page
OUT/distributions_by_label.png mean and band of each class
OUT/statistics.csv             mean, deviation and entropy of each image, before and after
"""

import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jaxtyping import UInt8
from tqdm import tqdm

from data.folder import find_images
from data.images import read_any
from data.tables import read_rows
from pp_jax import checkpoints, cli
from pp_jax.evaluate.files import write_rows
from pp_jax.look import RECIPES, Look, override
from pp_jax.preprocess import gallery, geometry
from pp_jax.preprocess.colour import to_grey
from pp_jax.preprocess.filters import FILTERS, parse
from pp_jax.preprocess.fusion import FUSIONS, Fusion
from pp_jax.preprocess.gallery import Distribution
from pp_jax.preprocess.stage import SPECS, describe, make_shown

CHOICES = MappingProxyType({"recipe": ("", *RECIPES), "device": cli.DEVICES})
_SPECS = MappingProxyType({name: SPECS[name] for name in ("filter", "fusion")})
SETTINGS = "settings.json"
_NAME = 60  # Characters of an image's name in a file's.


@dataclass(frozen=True)
class Gallery:
    """Contact sheets of all filters and fusions, and grey-level distributions before and after."""

    images: Annotated[Path, tyro.conf.Positional]
    """An image (PNG, JPEG, DICOM), a folder of them, or a folder of class folders."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write; an older output of this command is replaced."""
    labels: Path | None = None
    """CSV with image,label, or RSNA's patientId,class: the classes, instead of folders."""
    recipe: str = ""
    """A name for a filter, a fusion and a weight that go together."""
    filter: str = "clahe"
    """The filter whose distributions are drawn, and which the fusions of the sheets fuse."""
    fusion: str = "replace"
    """The fusion whose distributions are drawn."""
    blend: float = 0.5
    """Weight of the response, in [0, 1]."""
    image_size: int = 1024
    """Longest side of the model frame: filter sizes are its pixels."""
    sheets: int = 10
    """Contact sheets are drawn for this many images, the first; distributions for all."""
    device: str = "auto"
    """Where to compute."""


def main(args: list[str] | None = None) -> None:
    """Draw as the command line says, or `args` instead of it."""
    with cli.one_line_errors():
        prog = "python -m pp_jax.preprocess"
        settings = cli.parse(Gallery, prog=prog, choices=CHOICES, specs=_SPECS, args=args)
        look = look_of(settings)
        cli.devices(settings.device)
        images = labelled(settings.images, labels=settings.labels)
        out = cli.fresh_folder(settings.out, ours=SETTINGS)
        try:
            drawn = draw(out, images, look, settings)
            checkpoints.write_json(out / SETTINGS, _plain(settings))
            shutil.rmtree(settings.out, ignore_errors=True)
            out.rename(settings.out)
        finally:
            shutil.rmtree(out, ignore_errors=True)
        print(f"{settings.out}: {drawn} of {len(images)} images")


def look_of(settings: Gallery) -> Look:
    """What the distributions are of; prints it.

    Raises:
      ValueError: A wrong value, named.
    """
    for name in ("image_size", "sheets"):
        value, least = getattr(settings, name), 1 if name == "image_size" else 0
        if not least <= value <= 4096:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must lie in [{least}, 4096]")
    if settings.fusion == "learned":
        raise ValueError("--fusion learned: has nothing to show before a run has trained it")
    if settings.recipe:
        look = override(Look(), recipe=settings.recipe)
    else:
        look = Look(settings.filter, settings.fusion, settings.blend)
    make_shown(look)
    print(describe(look, side=settings.image_size))
    return look


def labelled(given: Path, *, labels: Path | None = None) -> dict[str, tuple[str, Path]]:
    """`{name: (class, file)}`: a CSV names the classes, or class folders do, or the one folder.

    Raises:
      FileNotFoundError: Nothing there.
      ValueError: A CSV without the columns, or without a row for an image.
    """
    classes = None if labels is None else _classes(labels)
    images = _by_folder(given)
    if classes is None:
        return images
    found = {
        name: next((classes[key] for key in (path.stem, path.name) if key in classes), None)
        for name, (_, path) in images.items()
    }
    if missing := [name for name, label in found.items() if label is None]:
        raise ValueError(
            f"{labels}: no row for {len(missing)} of {len(images)} images, first: {missing[0]}"
        )
    return {name: (found[name], path) for name, (_, path) in images.items()}


def _by_folder(given: Path) -> dict[str, tuple[str, Path]]:
    classes = sorted(p for p in given.iterdir() if p.is_dir()) if given.is_dir() else []
    classes = [folder for folder in classes if any(p.is_file() for p in folder.iterdir())]
    alone = not given.is_dir() or any(map(_picture, given.iterdir())) or not classes
    if alone:
        label = given.name if given.is_dir() else given.absolute().parent.name
        return {name: (label, path) for name, path in find_images([given]).items()}
    return {
        f"{folder.name}/{name}": (folder.name, path)
        for folder in classes
        for name, path in find_images([folder]).items()
    }


def _classes(labels: Path) -> dict[str, str]:
    layouts = ("image", "label"), ("patientId", "class")
    return {
        row[name]: row[label]
        for _, row in read_rows(labels, *layouts)
        for name, label in layouts
        if name in row and label in row
    }


def _picture(path: Path) -> bool:
    return path.suffix.lower() in (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def draw(out: Path, images: Mapping[str, tuple[str, Path]], look: Look, settings: Gallery) -> int:
    """The number of images drawn into the folder `out`; one that cannot be read is skipped.

    Raises:
      ValueError: None could be read; the first reason.
    """
    side = settings.image_size
    (out / "sheets").mkdir()
    found: list[Distribution] = []
    failures: list[str] = []
    shown = _shower(look, side=side)
    rows = {
        heading: {name: _shower(one, side=side) for name, one in named.items()}
        for heading, named in looks(look).items()
    }
    for name, (label, path) in tqdm(images.items(), unit="image", disable=None):
        try:
            image = geometry.resize_image(read_any(path), longest=side)
        except (ValueError, OSError) as error:
            failures.append(" ".join(str(error).split()))
            if len(images) > 1:
                tqdm.write(f"skipped: {failures[-1]}", file=sys.stderr)
            continue
        if len(found) < settings.sheets:
            pictures = {
                heading: {name: show(image) for name, show in named.items()}
                for heading, named in rows.items()
            }
            figure = gallery.contact_sheet(f"{name} ({label})", pictures)
            figure.savefig(out / "sheets" / f"{_file_name(name)}.png")
        before, after = (gallery.histogram(to_grey(x)) for x in (image, shown(image)))
        found.append(Distribution(name, label, before, after))
    if not found:
        raise ValueError(failures[0])
    for number, start in enumerate(range(0, len(found), gallery.PAGE), start=1):
        page = found[start : start + gallery.PAGE]
        figure = gallery.distributions_page(f"{look.filter}, {look.fusion}", page)
        figure.savefig(out / f"distributions_{number:03d}.png")
    by_label = gallery.distributions_by_label(f"{look.filter}, {look.fusion}", found)
    by_label.savefig(out / "distributions_by_label.png")
    write_rows(out / "statistics.csv", [_row(one) for one in found])
    return len(found)


Picture = UInt8[np.ndarray, "H W 3"]


def _shower(look: Look, *, side: int) -> Callable[[Picture], Picture]:
    """From an image to what SAM sees of it; compiled once, for images of every size."""
    shown = jax.jit(partial(make_shown(look), parameters=None))

    def show(image: Picture) -> Picture:
        height, width = image.shape[:2]
        canvas = geometry.pad_square(image, side=side)
        levels = np.asarray(shown(canvas, np.array([height, width])))[:height, :width]
        return np.clip(np.round(levels), 0, 255).astype(np.uint8)

    return show


def looks(look: Look) -> dict[str, dict[str, Look]]:
    """What a contact sheet shows, by section and name: every filter, and every fusion of `look`'s.

    The learned fusion has nothing to show before it was trained.
    """
    first = look.filter.split(",")[0]
    fused = {
        name: Look(
            look.filter if takes(make(), look.filter) else f"{first},sobel", name, look.blend
        )
        for name, make in FUSIONS.items()
        if not make().learned
    }
    return {
        "filters": {name: Look(name) for name in FILTERS},
        "fusions": {f"{name}: {one.filter}": one for name, one in fused.items()},
    }


def takes(fusion: Fusion, spec: str) -> bool:
    """Whether the fusion takes as many chains as the spec has."""
    return fusion.fewest <= len(parse(spec)) <= fusion.most


def _row(one: Distribution) -> dict[str, str | float]:
    figures = {
        f"{name}_{when}": round(value, 4)
        for when in ("before", "after")
        for name, value in gallery.moments(getattr(one, when)).items()
    }
    return {"image": one.name, "label": one.label, **figures}


def _file_name(name: str) -> str:
    return name.replace("/", "_")[-_NAME:]


def _plain(settings: Gallery) -> dict[str, Any]:
    return {name: str(value) for name, value in dataclasses.asdict(settings).items()}


if __name__ == "__main__":
    main()
