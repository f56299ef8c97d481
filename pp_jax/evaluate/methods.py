"""What is compared: models, and guesses that see no pixel, on the same images and marks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from pp_jax.evaluate.controls import CONTROLS, SIMPLE, Atlas
from pp_jax.evaluate.detection import Scored, found_boxes
from pp_jax.evaluate.protocols import Drawn, Protocol, parse_protocol
from pp_jax.evaluate.subjects import MODEL, Marks, Subject
from pp_jax.predict.refine import parse_refinements

_LOOK = ("filter", "fusion", "blend", "roi")  # Fields of `Look` that a method may choose.


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
    masks: Bool[np.ndarray, "N H W"]
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


def parse_methods(texts: Sequence[str]) -> tuple[list[Told], list[str]]:
    """The models that are named, and the rows of `METHODS`; all rows if none is named.

    A model is `FOLDER`, `NAME=FOLDER` or, of several seeds, `NAME=FOLDER+FOLDER`, and after spaces
    `filter=`, `fusion=`, `blend=`, `roi=` or `refine=`.

    Raises:
      ValueError: Two models of one name, or of the name of another line; no folder; or something
        that is no option of a model.
    """
    rows = list(dict.fromkeys(text for text in texts if text in METHODS))
    models = [_parse_model(text) for text in texts if text not in METHODS]
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"--methods: {twice[0]!r} names {names.count(twice[0])} models; call each by a name of "
            f"its own, such as 'first={models[names.index(twice[0])].folders[0]}'"
        )
    if taken := sorted({line.label for line in METHODS.values()} & set(names)):
        raise ValueError(f"--methods: {taken[0]!r} is a line of its own; name the model otherwise")
    return models, rows or list(METHODS)


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


def guess(row: str, atlas_of: Callable[[str], Atlas], *, also: tuple[str, ...] = ()) -> Method:
    """A row of `CONTROLS` or of `SIMPLE`, told what the models are told.

    Under a protocol that marks nothing, those that need marks are left out; and under one that
    corrects answers all are, since none of them looks at a correction.

    Args:
      row: Its name.
      atlas_of: Of a patient, what was fitted on others.
      also: Protocols that it is asked under beside those of the models.
    """

    def run(subject: Subject, drawn: Mapping[str, Drawn]) -> Iterator[Outcome]:
        atlas = atlas_of(subject.patient)
        for spec, one in drawn.items():
            protocol = parse_protocol(spec)[1]
            unmarked = one.marks.boxes is None and one.marks.points is None
            if protocol.rounds or (unmarked and row in CONTROLS and CONTROLS[row].needs_marks):
                continue
            start = perf_counter()
            masks = _guess(row, subject, one.marks, atlas)
            yield _guessed(spec, protocol, masks, seconds=perf_counter() - start)

    return Method(METHODS[row].label, "", lambda patient: True, lambda sources: run, also)


def _guess(row: str, subject: Subject, marks: Marks, atlas: Atlas) -> Bool[np.ndarray, "N H W"]:
    if row in SIMPLE:
        return SIMPLE[row].function(subject.image, marks, atlas=atlas)
    return CONTROLS[row].function(subject.findings.shape, marks, atlas=atlas)


def _guessed(
    spec: str, protocol: Protocol, masks: Bool[np.ndarray, "N H W"], *, seconds: float
) -> Outcome:
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
        "box": Line("filled box", "the box of each mark"),
        "ellipse": Line("inscribed ellipse", "the ellipse in it"),
        "mean_shape": Line("mean shape", "the mean shape of training objects, pasted into it"),
        "atlas": Line("atlas", "where training findings lie, whatever is marked"),
        "otsu": Line("Otsu", "what is brighter than Otsu's threshold in the box"),
        "swap": Line("another patient's image", "each model, shown another patient's image"),
        "blind": Line("blind twin", "each run's twin that was trained on blank images"),
    }
)
