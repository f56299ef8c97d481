"""What a model is told of each object: prompts drawn once from a seed, kept, and played again.

Everything is in the original frame: points are `(x, y)` pixel indices, boxes `(x0, y0, x1, y1)` at
the edges of pixels. A *uniform* is a number in [0, 1); pixel number `floor(uniform * count)` in
raster order is the one that it draws from `count` pixels.
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy.ndimage import distance_transform_edt

from pp_jax.checkpoints import write_json
from pp_jax.evaluate.subjects import Answer, Marks, Row, Subject
from pp_jax.predict.asking import Asker, Embedded, Found, Image, answer_marks, choose
from pp_jax.predict.strokes import farthest
from pp_jax.preprocess.roi import clip_boxes
from pp_jax.types import BACKGROUND, FOREGROUND, NEUTRAL

_STROKE_CLICKS = 4  # Of a scribble, as in training.


class Drawn(NamedTuple):
    """What is told of one image's objects, and the numbers that it was drawn with."""

    marks: Marks
    uniforms: Float64[np.ndarray, "N K"]  # Of clicks, the later ones are still to be placed.


class Protocol(NamedTuple):
    """A row of `PROTOCOLS`."""

    label: str  # In tables.
    draw: Callable[[Subject, Float64[np.ndarray, "N K"]], Marks]
    uniforms: int  # Per object.
    needs_objects: bool  # Without one there is nothing to mark, and the image is not scored.
    truth_in_prompt: bool  # Where something is was told, so that it cannot be detected any more.
    rounds: int = 0  # Clicks in turn, each after an answer; 0: the model is asked once.


class Round(NamedTuple):
    """The answer after so many clicks, and all that was marked by then."""

    answer: Answer  # Its candidates are None: only the model's own choice can be corrected.
    marks: Marks  # With the logits that were fed back; labels are -2 where no click was needed.


class Curve(NamedTuple):
    """How an object gains from click to click."""

    clicks: tuple[int, ...]  # 1 to K.
    dice: tuple[float, ...]  # The mean after so many clicks.
    area: float  # The mean of `dice`.
    clicks_to_target: float | None  # The median over the objects that reach it; None: none does.
    never: float  # The share of objects that never do.
    objects: int


# Specs.


def parse_protocol(spec: str) -> tuple[str, Protocol]:
    """The canonical spec, `jitter:10` for `jitter`, and what it stands for.

    Raises:
      ValueError: An unknown name, or a number that it does not take.
    """
    name, colon, number = (part.strip() for part in spec.partition(":"))
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is unknown: choose one of {', '.join(PROTOCOLS)}")
    if name not in NUMBERED:
        if colon:
            raise ValueError(f"protocol {spec!r}: {name} takes no number")
        return name, PROTOCOLS[name]
    row = NUMBERED[name]
    number = number if colon else str(row.default)
    if not (number.isascii() and number.isdigit() and row.least <= int(number) <= row.most):
        raise ValueError(
            f"protocol {spec!r}: give {row.what} as a whole number from {row.least} to {row.most}, "
            f"such as {name}:{row.default}"
        )
    return f"{name}:{int(number)}", row.make(int(number))


def parse_protocols(specs: str) -> dict[str, Protocol]:
    """What a list such as `box,clicks:10` stands for, by canonical specs; `all` is every one.

    Raises:
      ValueError: As `parse_protocol`, or one that is given twice, or none.
    """
    told = ALL if specs.strip() == "all" else [part for part in specs.split(",") if part.strip()]
    if not told:
        raise ValueError(
            f"protocols {specs!r}: name at least one of {', '.join(PROTOCOLS)}, or all"
        )
    found: dict[str, Protocol] = {}
    for spec, protocol in map(parse_protocol, told):
        if spec in found:
            raise ValueError(f"protocols {specs!r}: {spec} is given twice")
        if protocol.rounds and any(other.rounds for other in found.values()):
            raise ValueError(
                f"protocols {specs!r}: {spec} beside other clicks, whose rounds are the same; give "
                "the highest number alone"
            )
        found[spec] = protocol
    return found


# Draws.


def draw_marks(spec: str, subject: Subject, *, seed: int) -> Drawn:
    """What a protocol tells of an image: the same for a seed, the image's id and the protocol.

    Raises:
      ValueError: A wrong spec, or no object to mark.
    """
    spec, protocol = parse_protocol(spec)
    if protocol.needs_objects and not len(subject.objects):
        raise ValueError(f"{subject.id}: no object to mark under {spec}: leave the image out")
    rng = np.random.default_rng([seed, *(zlib.crc32(x.encode()) for x in (subject.id, spec))])
    uniforms = rng.random((len(subject.objects), protocol.uniforms))
    return Drawn(protocol.draw(subject, uniforms), uniforms)


def pixel_at(pixels: Bool[np.ndarray, "H W"], uniform: float) -> tuple[int, int] | None:
    """The pixel `(x, y)` that a uniform draws from the true ones; None where none is."""
    inside = np.flatnonzero(pixels)
    if not len(inside):
        return None
    y, x = divmod(int(inside[int(uniform * len(inside))]), pixels.shape[1])
    return x, y


def _exact_box(subject: Subject, uniforms: Float64[np.ndarray, "N 0"]) -> Marks:
    del uniforms
    return Marks(boxes=subject.boxes.astype(np.float64))


def _moved_box(subject: Subject, uniforms: Float64[np.ndarray, "N 4"], *, percent: int) -> Marks:
    boxes = subject.boxes.astype(np.float64)
    extent = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + (2 * uniforms - 1) * percent / 100 * extent  # Up to 50 %: never swapped.
    return Marks(boxes=clip_boxes(moved, size=subject.objects.shape[1:]))


def _centre(subject: Subject, uniforms: Float64[np.ndarray, "N 0"]) -> Marks:
    del uniforms
    return _clicked([_deepest(pixels) for pixels in subject.objects])


def _one_click(subject: Subject, uniforms: Float64[np.ndarray, "N K"]) -> Marks:
    return _clicked([pixel_at(o, u) for o, u in zip(subject.objects, uniforms[:, 0], strict=True)])


def _box_and_click(subject: Subject, uniforms: Float64[np.ndarray, "N 1"]) -> Marks:
    return _one_click(subject, uniforms)._replace(boxes=subject.boxes.astype(np.float64))


def _scribble(subject: Subject, uniforms: Float64[np.ndarray, "N 1"]) -> Marks:
    """Each click but the first is the object's pixel farthest from all before it.

    An object of fewer pixels gets one click on each.
    """
    points = np.zeros((len(uniforms), _STROKE_CLICKS, 2))
    labels = np.full(points.shape[:2], NEUTRAL)
    for n, (pixels, uniform) in enumerate(zip(subject.objects, uniforms[:, 0], strict=True)):
        inside = np.argwhere(pixels)[:, ::-1].astype(np.float64)
        if len(inside):
            spread = farthest(inside, first=int(uniform * len(inside)), count=_STROKE_CLICKS)
            points[n, : len(spread)] = inside[spread]
            labels[n, : len(spread)] = FOREGROUND
    return Marks(points=points, labels=labels)


def _nothing(subject: Subject, uniforms: Float64[np.ndarray, "N 0"]) -> Marks:
    del subject, uniforms
    return Marks()


def _deepest(pixels: Bool[np.ndarray, "H W"]) -> tuple[int, int] | None:
    """The true pixel `(x, y)` farthest from a false one, or from beyond the image.

    Of equally far ones the first in raster order; None where no pixel is true.
    """
    if not pixels.any():
        return None
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    part = np.pad(pixels[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    y, x = np.unravel_index(distance_transform_edt(part).argmax(), part.shape)
    return left + int(x) - 1, top + int(y) - 1


def _clicked(pixels: Sequence[tuple[int, int] | None]) -> Marks:
    """One click on each object; none, labelled -2, where an object has no pixel."""
    points = np.array([pixel or (0, 0) for pixel in pixels], np.float64).reshape(-1, 1, 2)
    labels = np.array([NEUTRAL if pixel is None else FOREGROUND for pixel in pixels])
    return Marks(points=points, labels=labels.reshape(-1, 1))


# Files.


def to_plain(drawn: Drawn) -> dict[str, Any]:
    """The prompt as lists, for JSON; `from_plain` gives it back to the last bit."""
    told = {name: x.tolist() for name, x in drawn.marks._asdict().items() if x is not None}
    return told | {"uniforms": drawn.uniforms.tolist()}


def from_plain(plain: Mapping[str, Any]) -> Drawn:
    """The inverse of `to_plain`.

    Raises:
      ValueError: No such prompt; says what is wrong.
    """
    unknown = sorted(set(plain) - {*Marks._fields, "uniforms"})
    if unknown or "uniforms" not in plain:
        raise ValueError(f"unknown {unknown[0]!r}" if unknown else "'uniforms' is missing")
    told = {name: np.array(x, int if name == "labels" else float) for name, x in plain.items()}
    uniforms = told.pop("uniforms")
    marks, count = Marks(**told), len(uniforms)
    uniforms = uniforms.reshape(count, -1) if uniforms.size else np.zeros((count, 0))
    for name, array in told.items():
        if len(array) != count or array.shape[1:] != _row_shape(name, marks):
            raise ValueError(f"{name} of shape {array.shape} for {count} objects")
    if not all(np.isfinite(array).all() for array in told.values()):
        raise ValueError("numbers that are not finite")
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("uniforms outside [0, 1)")
    return Drawn(marks, uniforms)


def _row_shape(name: str, marks: Marks) -> tuple[int, ...]:
    """Of one object's part of a field."""
    clicks = () if marks.labels is None else marks.labels.shape[1:]
    grid = () if marks.logits is None else marks.logits.shape[1:]
    return {"boxes": (4,), "points": (*clicks, 2), "labels": clicks, "logits": grid}[name]


Prompts = Mapping[str, Mapping[str, Drawn]]  # By spec, then by the image's id.


def write_prompts(path: Path, prompts: Prompts, *, seed: int) -> None:
    """The prompts and the seed that drew them are in the file at `path`, never half of them."""
    plain = {s: {i: to_plain(drawn) for i, drawn in own.items()} for s, own in prompts.items()}
    write_json(path, {"seed": seed, "prompts": plain})


def read_prompts(path: Path) -> dict[str, dict[str, Drawn]]:
    """The prompts of a file that `write_prompts` wrote, to be played again.

    Raises:
      FileNotFoundError: There is none.
      ValueError: It holds something else; names the protocol and the image.
    """
    try:
        stored = json.loads(path.read_text())["prompts"].items()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file of prompts") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: no prompts of an evaluation; give its prompts.json") from None
    found: dict[str, dict[str, Drawn]] = {}
    for spec, own in stored:
        found[parse_protocol(spec)[0]] = kept = {}
        for name, plain in own.items():
            try:
                kept[name] = from_plain(plain)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}: {spec}, image {name!r}: {error}") from None
    return found


# Answers.


def answer(
    asker: Asker, image: Image, marks: Marks, *, single: bool, embedded: Embedded | None = None
) -> Answer:
    """One mask per mark; see `answer_marks`."""
    return _to_answer(answer_marks(asker, image, marks, single=single, embedded=embedded))


def _to_answer(found: Found) -> Answer:
    return Answer(found.logits > 0, found.iou, found.logits, found.candidates)


def click_rounds(
    asker: Asker,
    embedded: Embedded,
    drawn: Drawn,
    objects: Bool[np.ndarray, "N H W"],
    *,
    single_after_first: bool,
) -> Iterator[Round]:
    """The answers after 1, 2 ... K clicks on each object, for `drawn` with K uniforms.

    The first click is that of `drawn`. Each other is drawn from the pixels that the last mask and
    the object do not share: foreground where the object is missed, background where the mask is too
    large. With it goes the last mask, as low-resolution logits. A mask without an error stays, and
    gets no further click.

    Args:
      asker: The model.
      embedded: The image's.
      drawn: By the protocol `clicks`.
      objects: The targets.
      single_after_first: With several clicks the model's single mask counts; else the one of the
        three that it scores highest, as after the first.
    """
    marks = drawn.marks
    low, found = _ask(asker, embedded, marks, single=False)
    yield Round(found, marks)
    for uniforms in drawn.uniforms[:, 1:].T:
        points, labels = _correct(found.masks, objects, uniforms)
        wrong = labels != NEUTRAL
        marks = Marks(
            points=np.concatenate([marks.points, points[:, None]], axis=1),
            labels=np.concatenate([marks.labels, labels[:, None]], axis=1),
            logits=low,
        )
        if wrong.any():
            low, fresh = _ask(asker, embedded, marks, single=single_after_first)
            found = Answer(*map(partial(_where, wrong), fresh, found))
        yield Round(found, marks)


def _ask(
    asker: Asker, embedded: Embedded, marks: Marks, *, single: bool
) -> tuple[Float[np.ndarray, "N h w"], Answer]:
    """The chosen masks' raw logits, and the answer."""
    decoded = asker.decode(embedded, marks)
    rows, index = np.arange(len(decoded.iou)), choose(decoded, single=single)
    low = decoded.logits[rows, index]
    logits = asker.upscale(embedded, low)
    return low, Answer(logits > 0, decoded.iou[rows, index], logits, None)


def _correct(
    masks: Bool[np.ndarray, "N H W"],
    objects: Bool[np.ndarray, "N H W"],
    uniforms: Float64[np.ndarray, " N"],
) -> tuple[Float64[np.ndarray, "N 2"], Int[np.ndarray, " N"]]:
    """A click in each mask's error region, and its label; -2 where there is no error."""
    points, labels = np.zeros((len(objects), 2)), np.full(len(objects), NEUTRAL)
    for n, (mask, target, uniform) in enumerate(zip(masks, objects, uniforms, strict=True)):
        if pixel := pixel_at(mask != target, uniform):
            x, y = points[n] = pixel
            labels[n] = FOREGROUND if target[y, x] else BACKGROUND
    return points, labels


def _where(
    fresh: Bool[np.ndarray, " N"], new: np.ndarray | None, old: np.ndarray | None
) -> np.ndarray | None:
    if new is None or old is None:
        return None
    return np.where(fresh.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def click_curve(rows: Sequence[Row], *, target: float = 0.8) -> Curve:
    """How one method's Dice grows from click to click.

    Means are over the objects of an image, then the images of a patient, then patients; the clicks
    to `target` and the share that never reaches it are over objects.

    Args:
      rows: One per object (or image) and number of clicks, whose `protocol` is `clicks:1` ...
        `clicks:K`.
      target: Dice.

    Raises:
      ValueError: No row, another protocol, or an object that lacks a number of clicks.
    """
    by_object: dict[tuple, dict[int, float]] = defaultdict(dict)
    for row in rows:
        name, _, count = row["protocol"].partition(":")
        if name != "clicks":
            raise ValueError(f"protocol {row['protocol']!r}: a click curve is made of clicks:1 ...")
        key = tuple(row.get(k) for k in ("patient", "seed", "dataset", "id", "object"))
        by_object[key][int(count)] = row["dice"]
    if not by_object:
        raise ValueError("no row: a click curve needs an evaluation with --protocols clicks:10")
    clicks = tuple(range(1, 1 + max(max(own) for own in by_object.values())))
    for key, own in by_object.items():
        if set(own) != set(clicks):
            raise ValueError(f"{key}: answers after {sorted(own)} clicks, others after {clicks}")
    dice = np.array([[own[count] for count in clicks] for own in by_object.values()])  # objects K
    reached = dice >= target
    ever = reached.any(1)
    mean = _mean_of_patients(dice, [(key[0], key[:-1]) for key in by_object])
    return Curve(
        clicks,
        tuple(mean.tolist()),
        float(mean.mean()),
        float(np.median(1 + reached[ever].argmax(1))) if ever.any() else None,
        float(1 - ever.mean()),
        len(dice),
    )


def _mean_of_patients(
    values: Float64[np.ndarray, "N K"], owners: Sequence[tuple]
) -> Float64[np.ndarray, " K"]:
    """Over the rows of an image, the images of a patient, and patients; an owner is the two."""
    images: dict[tuple, list] = defaultdict(list)
    for owner, value in zip(owners, values, strict=True):
        images[owner].append(value)
    patients: dict[Any, list] = defaultdict(list)
    for (patient, _), own in images.items():
        patients[patient].append(np.mean(own, axis=0))
    return np.mean([np.mean(own, axis=0) for own in patients.values()], axis=0)


# Rows.


def _jitter(percent: int) -> Protocol:
    draw = partial(_moved_box, percent=percent)
    return Protocol(f"box, edges moved by up to {percent} %", draw, 4, True, True)


def _clicks(count: int) -> Protocol:
    label = "1 click" if count == 1 else f"{count} clicks"
    return Protocol(label, _one_click, count, True, True, rounds=count)


class Numbered(NamedTuple):
    """A row of `NUMBERED`: a protocol with a number behind a colon."""

    make: Callable[[int], Protocol]
    what: str  # The number.
    default: int
    least: int
    most: int


NUMBERED: Mapping[str, Numbered] = MappingProxyType(
    {
        "jitter": Numbered(_jitter, "per cent of the box's side", 10, 1, 50),
        "clicks": Numbered(_clicks, "how many clicks", 10, 1, 10),
    }
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "box": Protocol("exact box", _exact_box, 0, True, True),
        "jitter": _jitter(NUMBERED["jitter"].default),
        "centre": Protocol("click on the centre", _centre, 0, True, True),
        "point": Protocol("one click", _one_click, 1, True, True),
        "clicks": _clicks(NUMBERED["clicks"].default),
        "box+point": Protocol("exact box and one click", _box_and_click, 1, True, True),
        "scribble": Protocol("scribble", _scribble, 1, True, True),
        "auto": Protocol("automatic masks", _nothing, 0, False, False),
        "none": Protocol("nothing", _nothing, 0, False, False),
    }
)

BOXED = ("box", "jitter", "box+point")  # Those whose prompt is made of an object's box.

ALL = (
    "box",
    "jitter:5",
    "jitter:10",
    "jitter:20",
    "centre",
    "point",
    "clicks:10",
    "box+point",
    "scribble",
    "auto",
    "none",
)

HELP = (
    "all, or a list of: box (exact), jitter:P (each edge moved by up to P % of the side), centre, "
    "point (one random click), clicks:K (each further click where the mask is wrong), box+point, "
    "scribble (four clicks across the object), auto (automatic masks), none (no prompt)"
)
