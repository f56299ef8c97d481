"""What is compared: models and what stands beside them, on the same images and marks."""

import importlib.util
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from pp_jax.baselines.classical import CLASSICAL, Hint
from pp_jax.evaluate.controls import CONTROLS, ORACLES, Atlas, boxes_of
from pp_jax.evaluate.detection import Scored, found_boxes
from pp_jax.evaluate.protocols import Drawn, Protocol, parse_protocol
from pp_jax.evaluate.subjects import MODEL, Marks, Subject
from pp_jax.predict.refine import parse_refinements, refine

_LOOK = ("filter", "fusion", "blend", "roi")  # Fields of `Look` that a method may choose.

Masks = Bool[np.ndarray, "N H W"]


class Source(NamedTuple):
    """One image that can be read when it is needed: the pixels of all would fill the memory."""

    dataset: str
    id: str
    patient: str
    read: Callable[[], Subject]


class Outcome(NamedTuple):
    """One method's answer to one image under one protocol."""

    protocol: str  # Its spec, with the number of clicks that were given.
    choice: str  # Who chose among the masks of a prompt.
    prompted: bool  # One mask for each object; else as many masks as were found.
    masks: Masks
    predicted_iou: Float[np.ndarray, " N"] | None
    logits: Float[np.ndarray, "N H W"] | None
    confidences: Mapping[str, Sequence[float | None]]  # By name, one per mask.
    score: float | None  # That there is a finding; None where the prompt says so.
    found: Scored | None  # Boxes; None where the prompt says where they are.
    seconds: float
    clicks: Mapping[str, Any] | None = None  # Of rounds of correction: every click, plain.


Run = Callable[[Subject, Mapping[str, Drawn]], Iterator[Outcome]]


class Method(NamedTuple):
    """One line of the tables, or a part of it: one run of several seeds, one fold of several."""

    label: str
    seed: str  # Which of several runs; of a control, nothing.
    serves: Callable[[str], bool]  # Of a patient: a fold answers for its own test patients.
    open: Callable[[Sequence[Source]], Run]  # Given all images that it answers for.
    also: tuple[str, ...] = ()  # Protocols that it alone is asked under.
    guesses: bool = False  # By no model: quickly.


class Told(NamedTuple):
    """A model as the user names it."""

    name: str
    folders: tuple[str, ...]
    look: Mapping[str, str]  # Fields of `Look`.
    refine: tuple[str, ...]
    averaged: bool = False  # The folders are one model, whose logits are their mean; else seeds.


class Line(NamedTuple):
    """A row of `METHODS`."""

    label: str
    help: str
    guess: Callable[[Subject, Marks, Atlas], Masks] | None = None  # None: it is made of models.
    needs_marks: bool = False  # Says nothing of an image on which nothing is marked.
    needs_lungs: bool = False
    needs: str = ""  # A module that not every installation has.
    default: bool = True  # Stands in a report that names no row.


def parse_methods(texts: Sequence[str]) -> tuple[list[Told], list[str]]:
    """The models that are named, and the lines beside them, those by default if none is named.

    A model is `FOLDER`, `NAME=FOLDER` or, of several seeds, `NAME=FOLDER+FOLDER`, and after spaces
    `filter=`, `fusion=`, `blend=`, `roi=` or `refine=`. A line is a row of `METHODS`, or of
    `GROUPS` for several, and after spaces `refine=`; it is given back as `parse_line` reads it.

    Raises:
      ValueError: Two models of one name, or of the name of another line; no folder; or something
        that is no option of a model or a line.
    """
    beside = [text for text in texts if _first_word(text) in (*METHODS, *GROUPS)]
    lines = list(dict.fromkeys(line for text in beside for line in _expand(text)))
    models = [_parse_model(text) for text in texts if text not in beside]
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"--methods: {twice[0]!r} names {names.count(twice[0])} models; call each by a name of "
            f"its own, such as 'first={models[names.index(twice[0])].folders[0]}'"
        )
    own = {*(line.label for line in METHODS.values()), *map(label_of, lines)}
    if taken := sorted(own & set(names)):
        raise ValueError(f"--methods: {taken[0]!r} is a line of its own; name the model otherwise")
    return models, lines or [name for name, line in METHODS.items() if line.default]


def parse_line(text: str) -> tuple[str, tuple[str, ...]]:
    """The row of `METHODS` and the refinements of `ROW refine=STEP refine=STEP`.

    Raises:
      ValueError: Another option, a step that is none, or one of a row that is made of models.
    """
    row, *words = text.split()
    steps = []
    for word in words:
        key, _, value = word.partition("=")
        if key != "refine" or not value:
            raise ValueError(f"--methods {text!r}: {word!r} is no refine=VALUE")
        steps.append(value)
    if steps and METHODS[row].guess is None:
        raise ValueError(f"--methods {text!r}: {row} is refined as its model is; leave refine out")
    parse_refinements(steps)
    return row, tuple(steps)


def label_of(text: str) -> str:
    """What a line is called in tables: a refined one stands beside the plain one."""
    return " ".join([METHODS[_first_word(text)].label, *text.split()[1:]])


def needs_lungs(text: str) -> bool:
    """Whether a line can only be answered where an expert outlined the lungs."""
    return METHODS[_first_word(text)].needs_lungs


def answered(
    lines: Sequence[str],
    asked: Sequence[str],
    *,
    images: Collection[str],
    outlined: Collection[str],
    where: str,
) -> tuple[list[str], frozenset[str]]:
    """The lines to answer and the images to score, so that each line answers for each image.

    Methods are compared on the same images. An image whose lungs nobody outlined is therefore left
    out for all methods where a line that needs them is asked for by name; where it is only one of a
    group, the line is left out instead.

    Args:
      lines: From `parse_methods`.
      asked: What that was given.
      images: Those that would be scored.
      outlined: Those of which there are lungs.
      where: The data set's name, for messages.

    Raises:
      ValueError: A line that needs lungs is asked for by name, and no image has them.
    """
    whole, shared = frozenset(images), frozenset(images) & frozenset(outlined)
    needing = [line for line in lines if needs_lungs(line)]
    if not needing or shared == whole:
        return list(lines), whole
    if not any(_first_word(text) in METHODS and needs_lungs(text) for text in asked):
        if shared:  # Where none has lungs, no line that needs them is expected.
            warnings.warn(
                f"{', '.join(needing)}: left out, as nobody outlined the lungs in "
                f"{len(whole) - len(shared)} of {len(whole)} images; name a line to score the "
                "others",
                stacklevel=2,
            )
        return [line for line in lines if line not in needing], whole
    if not shared:
        raise ValueError(
            f"--methods {needing[0]}: nobody outlined the lungs in any image of {where} that would "
            f"be scored ({len(whole)}); leave it out, score more images, or the data set cxr_seg"
        )
    warnings.warn(
        f"--methods {needing[0]}: {len(whole) - len(shared)} images of {len(whole)} are left out "
        "for all methods, as nobody outlined their lungs",
        stacklevel=2,
    )
    return list(lines), shared


def _first_word(text: str) -> str:
    return (text.split() or [""])[0]


def _expand(text: str) -> list[str]:
    """The lines of a row or of a group, in the words that `parse_line` reads."""
    first, *words = text.split()
    rows = GROUPS.get(first, (first,))
    for row in filter(_lacks, rows):
        why = f"--methods {row}: {METHODS[row].needs} is not installed"
        if first == row:
            raise ValueError(f"{why}; install the extra `opencv`, or leave it out")
        warnings.warn(f"{why}, so it is left out of {first}", stacklevel=2)
    lines = [" ".join([row, *words]) for row in rows if not _lacks(row)]
    for line in lines:
        parse_line(line)
    return lines


def _lacks(row: str) -> bool:
    """Whether a row cannot be answered in this installation."""
    needs = METHODS[row].needs
    return bool(needs) and importlib.util.find_spec(needs) is None


def _parse_model(text: str) -> Told:
    words = text.split() or [""]
    # The first sign ends the name: a folder may be called lr=0.1.
    name, sign, told = words[0].partition("=")
    folders = tuple(part.rstrip("/") for part in (told if sign else name).split("+"))
    if not all(folders):
        raise ValueError(f"--methods {text!r}: a folder is missing; give NAME=FOLDER")
    look: dict[str, str] = {}
    refine: list[str] = []
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key == "refine" and value:
            refine.append(value)
        elif key in _LOOK and value:
            look[key] = value
        else:
            raise ValueError(
                f"--methods {text!r}: {word!r} is none of "
                f"{', '.join(f'{key}=VALUE' for key in (*_LOOK, 'refine'))}"
            )
    parse_refinements(refine)
    default = " ".join([folders[0].rsplit("/", 1)[-1], *words[1:]])
    return Told(name if sign and name else default, folders, look, tuple(refine))


def guess(text: str, atlas_of: Callable[[str], Atlas], *, also: tuple[str, ...] = ()) -> Method:
    """A line that is made of no model, told what the models are told.

    Under a protocol that marks nothing, those that need marks are left out; and under one that
    corrects answers all are, since none of them looks at a correction.

    Args:
      text: As `parse_line` reads it.
      atlas_of: Of a patient, what was fitted on others.
      also: Protocols that it is asked under beside those of the models.
    """
    row, steps = parse_line(text)
    line = METHODS[row]

    def run(subject: Subject, drawn: Mapping[str, Drawn]) -> Iterator[Outcome]:
        atlas = atlas_of(subject.patient)
        for spec, one in drawn.items():
            protocol = parse_protocol(spec)[1]
            if protocol.rounds or (line.needs_marks and _unmarked(one.marks)):
                continue
            start = perf_counter()
            masks = line.guess(subject, one.marks, atlas)
            if steps:
                masks = _refined(masks, steps, subject.image)
            yield _guessed(spec, protocol, masks, seconds=perf_counter() - start)

    return Method(label_of(text), "", lambda patient: True, lambda sources: run, also, True)


def _unmarked(marks: Marks) -> bool:
    return marks.boxes is None and marks.points is None


def _refined(masks: Masks, steps: Sequence[str], image: UInt8[np.ndarray, "H W 3"]) -> Masks:
    logits = np.where(masks, np.float32(1), np.float32(-1))
    refined = np.zeros_like(masks)
    for index, one in enumerate(logits):
        refined[index] = refine(steps, one, image)
    return refined


def _control(name: str, subject: Subject, marks: Marks, atlas: Atlas) -> Masks:
    return CONTROLS[name].function(subject.findings.shape, marks, atlas=atlas)


def _oracle(name: str, subject: Subject, marks: Marks, atlas: Atlas) -> Masks:
    return ORACLES[name].function(subject.lungs, marks, atlas=atlas)


def _classical(name: str, subject: Subject, marks: Marks, atlas: Atlas) -> Masks:
    """One mask per mark; without marks, one of the whole image."""
    function, shape = CLASSICAL[name].function, subject.findings.shape
    if _unmarked(marks):
        return function(subject.image, Hint())[None]
    boxes = boxes_of(shape, marks, atlas=atlas)
    masks = np.zeros((len(boxes), *shape), bool)
    for index, box in enumerate(boxes):
        points, labels = (None if x is None else x[index] for x in (marks.points, marks.labels))
        masks[index] = function(subject.image, Hint(box, points, labels))
    return masks


def _guessed(spec: str, protocol: Protocol, masks: Masks, *, seconds: float) -> Outcome:
    told = protocol.truth_in_prompt
    return Outcome(
        protocol=spec,
        choice=MODEL,
        prompted=protocol.needs_objects,
        masks=masks,
        predicted_iou=None,
        logits=None,
        confidences={},
        score=None,
        found=None if told else found_boxes(masks.any(0)),
        seconds=seconds,
    )


METHODS: Mapping[str, Line] = MappingProxyType(
    {
        **{
            name: Line(row.label, row.help, partial(_control, name), needs_marks=row.needs_marks)
            for name, row in CONTROLS.items()
        },
        **{
            name: Line(
                row.label,
                row.help,
                partial(_classical, name),
                needs=row.needs,
                default=row.default,
            )
            for name, row in CLASSICAL.items()
        },
        **{
            name: Line(
                row.label,
                row.help,
                partial(_oracle, name),
                needs_marks=row.needs_marks,
                needs_lungs=True,
                default=False,
            )
            for name, row in ORACLES.items()
        },
        "swap": Line("another patient's image", "each model, shown another patient's image"),
        "blind": Line("blind twin", "each run's twin that was trained on blank images"),
    }
)

# What stands for several lines at once.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"classical": tuple(CLASSICAL), "all": tuple(METHODS)}
)
