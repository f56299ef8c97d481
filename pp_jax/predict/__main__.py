"""`python -m pp_jax.predict IMAGES... --checkpoint WEIGHTS --out DIR`: masks of your own images.

This front may import `data`, as `train.py` does; `writing.py` says what it leaves behind.
"""

import dataclasses
import importlib.util
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from data.folder import find_images
from data.images import read_any
from data.nifti import write_nifti
from data.tables import read_rows
from pp_jax import checkpoints, cli, outlook, sharding
from pp_jax.config import DTYPES, SEGMENTERS, TrainConfig
from pp_jax.finetune import runs
from pp_jax.finetune.models import config_of, make_model
from pp_jax.look import RECIPES, Look, override
from pp_jax.predict import ensemble, marks, writing
from pp_jax.predict.answering import Segment, embedding_path, make_automatic, make_prompted
from pp_jax.predict.automatic import AutomaticConfig
from pp_jax.predict.ensemble import Member
from pp_jax.predict.marks import Ask
from pp_jax.predict.official import LoadedSam
from pp_jax.predict.refine import parse_refinements
from pp_jax.predict.writing import Rows
from pp_jax.preprocess import roi
from pp_jax.preprocess.colour import to_grey
from pp_jax.preprocess.stage import PREPARATIONS, SPECS, describe
from pp_jax.prompts import PROMPTINGS
from pp_jax.sam.attention import ATTENTIONS

CHOICES = MappingProxyType(
    {
        "recipe": ("", *RECIPES),
        "dtype": DTYPES,
        "attention": ("auto", *ATTENTIONS),
        "device": cli.DEVICES,
    }
)
_COMBINABLE = frozenset({"--box", "--point", "--mask-prompt"})


@dataclass(frozen=True)
class Predict:
    """Masks, boxes, scores and measurements of your own images (PNG, JPEG, DICOM).

    Coordinates are pixels of the original image. Say what to segment by one of --box, --point,
    --boxes, --scribble, --lasso, --mask-prompt, --auto, --prompt-free; a box, points and a mask
    prompt may be combined to mark one object.
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files, or folders of them."""
    checkpoint: tuple[Path, ...]
    """A run of train.py, one of its steps (`RUN/steps/00000120`), or a converted checkpoint; of
    several, such as `runs/X/fold*`, the logits are averaged: name those that were fine-tuned from
    the same weights. All of them lie on the device at once."""
    out: Path
    """Folder to write; an older output of this command is replaced."""
    box: Annotated[tuple[tuple[float, ...], ...], tyro.conf.UseAppendAction] = ()
    """X0 Y0 X1 Y1: one object per box, on every image."""
    point: Annotated[tuple[tuple[float, ...], ...], tyro.conf.UseAppendAction] = ()
    """X Y: all points mark one object."""
    label: Annotated[tuple[tuple[int, ...], ...], tyro.conf.UseAppendAction] = ()
    """1 for a point on the object, 0 for one beside it, in the order of the points; default: 1."""
    boxes: Path | None = None
    """CSV with image,x0,y0,x1,y1, or RSNA's patientId,x,y,width,height: one object per row."""
    scribble: Path | None = None
    """CSV with image,x,y, one vertex of a drawn line per row; `object` tells objects apart."""
    lasso: Path | None = None
    """CSV with image,x,y, one corner of a drawn outline per row; `object` tells objects apart."""
    mask_prompt: Path | None = None
    """A binary mask (above 127) of the image's size, or .npy logits of an earlier prediction."""
    auto: bool = False
    """Everything that a grid of points finds."""
    points_per_side: int = 32
    """With --auto: the grid."""
    pred_iou_thresh: float = 0.88
    """With --auto: masks of a lower predicted IoU are dropped."""
    stability_score_thresh: float = 0.95
    """With --auto: masks of a lower stability are dropped."""
    prompt_free: bool = False
    """No mark at all, for runs trained with `--prompt none`."""
    multimask: bool = True
    """Of the model's three masks the one it scores highest; else its single mask."""
    refine: tuple[str, ...] = ()
    """Steps on each mask in their order, such as `fill_holes keep_largest=1`."""
    recipe: str = ""
    """A name for a filter, a fusion and a weight that go together."""
    filter: str = ""
    """Default: what the run was trained with, or none."""
    fusion: str = ""
    """Default: what the run was trained with, or replace."""
    blend: float | None = None
    """Default: what the run was trained with, or 0.5."""
    roi: str = ""
    """What is cut out of the image before it is scaled: `content`, the largest region that is not
    black, or `box-context:SCALE` around each box; default: what the run was trained with, or
    none."""
    image_size: int | None = None
    """Side of the model's input, a multiple of 16 from 256 to 2048; default: as trained."""
    nifti: bool = False
    """Also masks/NAME.nii.gz, the union of an image's masks."""
    save_embeddings: Path | None = None
    """Folder that keeps image embeddings; those that are there are used."""
    as_dataset: Path | None = None
    """New folder for images and masks that `train.py --data folder --data-dir DIR` reads."""
    dtype: str = "float32"
    """Of the image encoder's compute; bfloat16 pays on accelerators."""
    attention: str = "auto"
    """The program of the image encoder's attention; auto: the one for the device."""
    device: str = "auto"
    """Where to compute."""


class Folders(NamedTuple):
    """What is being written, under temporary names."""

    out: Path
    dataset: Path | None


def main(args: list[str] | None = None) -> None:
    """Predict as the command line says, or `args` instead of it."""
    with cli.one_line_errors(less_memory=cli.SMALLER):
        settings = cli.parse(
            Predict, prog="python -m pp_jax.predict", choices=CHOICES, specs=SPECS, args=args
        )
        predict_all(settings)


def predict_all(settings: Predict) -> None:
    """Write the predictions of all images.

    Raises:
      ValueError: A user's mistake; or images that had to be skipped, after all others were written.
    """
    # The shell finds it as well where `runs/X/fold*` names the folds of a cross-validation.
    named = tuple(path for path in settings.checkpoint if path.name != runs.FOLDS)
    settings = dataclasses.replace(settings, checkpoint=named or settings.checkpoint)
    check(settings)
    if settings.as_dataset is not None:
        require_free(settings.as_dataset)
    images = find_images(settings.images)
    asks = None
    if not settings.auto:
        asks = read_marks(settings, images)
        images = {name: images[name] for name in asks}
    out = cli.fresh_folder(settings.out, ours=writing.SETTINGS)
    dataset = None
    if settings.as_dataset is not None:
        dataset = cli.fresh_folder(settings.as_dataset, ours=writing.SETTINGS)
    folders = Folders(out, dataset)
    try:
        members = load_members(settings)
        counts = Counter()
        segment = make_segment(settings, members, asks, counts=counts)
        rows, failures = process(images, segment, folders, nifti=settings.nifti)
        finish(settings, members, folders, rows, failures)
    finally:
        for folder in filter(None, folders):  # They are there only if something went wrong.
            shutil.rmtree(folder, ignore_errors=True)
    if settings.save_embeddings:
        print(f"embeddings: {counts['reused']} reused, {counts['computed']} computed")
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(failures) + len(rows)} images were skipped, first: "
            f"{failures[0]}; the others are in {settings.out}"
        )


def make_segment(
    settings: Predict,
    members: Sequence[Member],
    asks: Mapping[str, Ask] | None,
    *,
    counts: Counter,
) -> Segment:
    """From an image to its objects; counts reused embeddings."""
    if asks is None:
        config = AutomaticConfig(
            points_per_side=settings.points_per_side,
            pred_iou_thresh=settings.pred_iou_thresh,
            stability_score_thresh=settings.stability_score_thresh,
        )
        return make_automatic(members[0].sam, config, steps=settings.refine)
    folder = settings.save_embeddings
    kept = [
        embedding_path(folder, member.sam, weights=member.digest)
        for member in members
        if folder is not None
    ]
    options = {"multimask": settings.multimask, "steps": settings.refine}
    return make_prompted(
        [member.sam for member in members], asks, kept=kept, counts=counts, **options
    )


def process(
    images: Mapping[str, Path], segment: Segment, folders: Folders, *, nifti: bool
) -> tuple[list[Rows], list[str]]:
    """The rows of the images that went well, and a line for each that did not."""
    rows, failures, bar = [], [], tqdm(images.items(), unit="image", disable=None)
    for name, path in outlook.watched(bar, len(images), "images"):
        try:
            image = read_any(path)
            found = segment(name, image)
        except (ValueError, OSError) as error:
            text = " ".join(str(error).split())
            failures.append(text if str(path) in text else f"{path}: {text}")
            if len(images) > 1:
                tqdm.write(f"skipped: {failures[-1]}", file=sys.stderr)
            continue
        rows.append(writing.write_image(folders.out, name, image, found, file=path.name))
        if nifti:
            write_nifti(folders.out / "masks" / f"{name}.nii.gz", writing.union(image, found))
        if folders.dataset is not None:
            writing.write_example(folders.dataset, name, image, found)
    return rows, failures


def finish(
    settings: Predict,
    members: Sequence[Member],
    folders: Folders,
    rows: Sequence[Rows],
    failures: Sequence[str],
) -> None:
    """Write the tables and give the folders their names.

    Raises:
      ValueError: Every image was skipped; nothing is written.
    """
    if not rows:
        more = f" (and {len(failures) - 1} more images were skipped)" if len(failures) > 1 else ""
        raise ValueError(failures[0] + more)
    used = ensemble.facts(members)
    told = dataclasses.asdict(settings) | used | {"skipped": failures}
    writing.write_tables(folders.out, rows, settings=told)
    shutil.rmtree(settings.out, ignore_errors=True)
    folders.out.rename(settings.out)
    count = sum(len(part.objects) for part in rows)
    print(f"{settings.out}: {count} masks on {len(rows)} images")
    if folders.dataset is not None:
        writing.write_provenance(folders.dataset, rows, weights=used["weights"])
        shutil.rmtree(settings.as_dataset, ignore_errors=True)  # Empty.
        folders.dataset.rename(settings.as_dataset)
        print(
            f"{settings.as_dataset}: a data set of machine-made masks; look at the overlays, set "
            "`accepted` to no in provenance.csv where one is wrong, then "
            f"`python train.py --data folder --data-dir {settings.as_dataset}`"
        )


def check(settings: Predict) -> None:
    """Nothing, when the flags go together.

    Raises:
      ValueError: Names the flags that do not, or the value outside its range.
    """
    if not settings.images:
        raise ValueError("no image is named: give files or folders before the first flag")
    if settings.auto and len(settings.checkpoint) > 1:
        raise ValueError(
            f"--auto with {len(settings.checkpoint)} checkpoints: automatic masks are those of one "
            "model; name one, or mark boxes or points"
        )
    given = {
        "--box": settings.box,
        "--point": settings.point,
        "--mask-prompt": settings.mask_prompt,
        "--boxes": settings.boxes,
        "--scribble": settings.scribble,
        "--lasso": settings.lasso,
        "--auto": settings.auto,
        "--prompt-free": settings.prompt_free,
    }
    kinds = {flag for flag, value in given.items() if value}
    if settings.label and not settings.point:
        raise ValueError("--label without --point: a label belongs to a point, give --point X Y")
    if not kinds:
        raise ValueError(f"say what to segment by one of {', '.join(given)}")
    if len(kinds) > 1 and not kinds <= _COMBINABLE:
        raise ValueError(
            f"{' and '.join(sorted(kinds))} do not go together: give one of them; only "
            f"{', '.join(sorted(_COMBINABLE))} combine"
        )
    for name in ("points_per_side", "pred_iou_thresh", "stability_score_thresh"):
        value, default = getattr(settings, name), getattr(Predict, name)
        flag = f"--{name.replace('_', '-')} {value}"
        if value != default and not settings.auto:
            raise ValueError(f"{flag}: only --auto looks at it; add --auto or leave it out")
        if name != "points_per_side" and not 0 <= value <= 1:
            raise ValueError(f"{flag}: must lie in [0, 1]")
    if settings.points_per_side < 1:
        raise ValueError(f"--points-per-side {settings.points_per_side}: must be at least 1")
    if settings.auto and settings.save_embeddings:
        raise ValueError("--save-embeddings with --auto: automatic masks embed the image anew")
    if settings.nifti and importlib.util.find_spec("nibabel") is None:
        raise ValueError("--nifti needs nibabel: pip install nibabel")
    if settings.save_embeddings is not None and settings.save_embeddings.is_file():
        raise ValueError(
            f"--save-embeddings {settings.save_embeddings}: a file stands there; give a folder"
        )
    parse_refinements(settings.refine)


def read_marks(settings: Predict, images: Mapping[str, Path]) -> dict[str, Ask]:
    """What is asked about each image; images that a CSV does not name are missing, with a warning.

    Raises:
      ValueError: A malformed mark, or a CSV that names none of the images.
    """
    for name, sheet in marks.SHEETS.items():
        if (file := getattr(settings, name)) is not None:
            return _from_sheet(file, sheet, images)
    flat = (sum(x, ()) for x in (settings.box, settings.point, settings.label))
    boxes, points, labels = flat
    mask = None if settings.mask_prompt is None else read_mask_prompt(settings.mask_prompt)
    ask = marks.same_everywhere(marks.boxes(boxes), marks.clicks(points, labels), mask)
    return dict.fromkeys(images, ask)


def read_mask_prompt(path: Path) -> np.ndarray:
    """Logits of a `.npy` file as they are, or the pixels above 127 of a picture.

    Raises:
      ValueError: Neither.
    """
    if path.suffix.lower() != ".npy":
        return to_grey(read_any(path)) > 127
    try:
        return np.load(path)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an array saved by numpy.save ({error})") from error


def _from_sheet(file: Path, sheet: marks.Sheet, images: Mapping[str, Path]) -> dict[str, Ask]:
    by_cell: dict[str, list[marks.Row]] = {}
    for line, row in read_rows(file, *sheet.layouts):
        cell = next(row[layout[0]] for layout in sheet.layouts if set(layout) <= row.keys())
        by_cell.setdefault(cell, []).append((f"{file}, line {line}", row))
    asks, used = {}, set()
    for name, path in images.items():
        cells = [cell for cell in dict.fromkeys((path.name, name)) if cell in by_cell]
        if cells:
            asks[name] = sheet.ask([row for cell in cells for row in by_cell[cell]])
            used |= set(cells)
    if not asks:
        raise ValueError(f"{file}: names none of the {len(images)} images, such as {path.name}")
    for missing, what in (
        ([path.name for name, path in images.items() if name not in asks], "images without a row"),
        ([cell for cell in by_cell if cell not in used], "names without an image"),
    ):
        if missing:
            warnings.warn(
                f"{file}: {len(missing)} {what} are left out, first: {missing[0]}", stacklevel=2
            )
    return asks


def require_free(dataset: Path) -> None:
    """Nothing, when a data set may be written there.

    Raises:
      ValueError: It is not empty.
    """
    if dataset.is_file() or (dataset.is_dir() and any(dataset.iterdir())):
        raise ValueError(
            f"--as-dataset {dataset}: not empty, and what you corrected in a data set is never "
            "overwritten; choose another folder"
        )


def check_region(settings: Predict, look: Look) -> None:
    """Nothing, when the marks can be asked about what is cut out of an image.

    Raises:
      ValueError: They cannot; names the flag.
    """
    per = roi.make(look.roi).per
    masks = {"--mask-prompt": settings.mask_prompt, "--lasso": settings.lasso}
    if per != "nothing" and (flag := next((flag for flag, given in masks.items() if given), None)):
        raise ValueError(
            f"{flag} with --roi {look.roi}: its mask lies in the frame of the whole image; give "
            "--roi none, or mark boxes or points"
        )
    if per != "box":
        return
    if not (settings.box or settings.boxes):
        raise ValueError(
            f"--roi {look.roi} cuts around boxes: give --box or --boxes, or --roi none or content"
        )
    if settings.save_embeddings:
        raise ValueError(
            f"--save-embeddings with --roi {look.roi}: each box has an embedding of its own; leave "
            "the flag out, or give --roi none or content"
        )


def check_read(settings: Predict, run: TrainConfig) -> None:
    """Nothing, when a network can be asked by these marks.

    Raises:
      ValueError: It reads others; names the flag.
    """
    if settings.save_embeddings:
        raise ValueError(
            f"--save-embeddings: {run.variant} has none, it reads the image anew for every box; "
            "leave the flag out"
        )
    boxes = run.prompting == "box"
    fields = ("auto", "point", "scribble", "lasso", "mask_prompt")
    fields = (*fields, "prompt_free") if boxes else (*fields, "box", "boxes")
    if field := next((field for field in fields if getattr(settings, field)), None):
        raise ValueError(
            f"--{field.replace('_', '-')}: {run.variant} was trained with --prompting "
            f"{run.prompting} and reads nothing else; give {'--box' if boxes else '--prompt-free'}"
        )


def load_members(settings: Predict) -> list[Member]:
    """The model, or those that are averaged; prints what is shown to them.

    Raises:
      ValueError: No checkpoint, an image size that the model cannot take, marks that weights of
        this preparation cannot be given, or members whose masks cannot be averaged.
    """
    if not settings.checkpoint:
        raise ValueError("--checkpoint: name a run of train.py or converted weights")
    mesh = sharding.make_mesh(cli.devices(settings.device)[:1])
    members, told = [], []
    for folder in settings.checkpoint:
        loaded = runs.load(folder, mesh=mesh)
        member = _member(settings, folder, loaded)
        members.append(member)
        told.append(describe(member.shown.look, side=member.shown.side))
        if member.shown.look != loaded.look:
            trained = describe(loaded.look, side=member.shown.side)
            told.append(f"this is not what it was trained on; {trained}")
    ensemble.require_alike([member.shown for member in members])
    if len(members) > 1:
        told.insert(0, ensemble.label(settings.checkpoint))
    print("\n".join(dict.fromkeys(told)))
    return members


def _member(settings: Predict, folder: Path, loaded: runs.Loaded) -> Member:
    run = loaded.config
    told = run or TrainConfig()
    look = override(
        loaded.look,
        recipe=settings.recipe,
        filter=settings.filter,
        fusion=settings.fusion,
        blend=settings.blend,
        roi=settings.roi,
    )
    if PREPARATIONS[look.preprocess].fit == "square":
        needs = {"--auto": settings.auto, "--lasso": settings.lasso}
        if flag := next((flag for flag, given in needs.items() if given), None):
            raise ValueError(f"{flag}: not for {look.preprocess} weights; mark boxes or points")
        if settings.mask_prompt is not None and settings.mask_prompt.suffix.lower() != ".npy":
            raise ValueError(f"--mask-prompt: {look.preprocess} weights take .npy logits only")
    check_region(settings, look)
    if run is not None and loaded.variant in SEGMENTERS:
        check_read(settings, run)
    if settings.prompt_free and (run is None or PROMPTINGS[run.prompting].objects == "each"):
        warnings.warn(
            f"{folder}: not trained with --prompt none, so --prompt-free gives masks of nothing in "
            "particular",
            stacklevel=2,
        )
    size = settings.image_size if settings.image_size is not None else told.image_size
    model = make_model(
        config_of(loaded.variant, size),
        dtype=jnp.dtype(settings.dtype),
        attention=settings.attention,
    )
    digest = checkpoints.sha256(loaded.folder / checkpoints.MANIFEST)
    shown = ensemble.Shown(str(folder), loaded.variant, model.config.image_size, look)
    return Member(shown, loaded.step, digest, LoadedSam(model, loaded.variables, look))


if __name__ == "__main__":
    main()
