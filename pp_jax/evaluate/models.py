"""How a model answers every protocol of one image, which it encodes once."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from scipy.special import expit

from pp_jax.evaluate import consistency, selection
from pp_jax.evaluate.automatic import Found, Search
from pp_jax.evaluate.detection import boxes_of
from pp_jax.evaluate.matching import assign_components
from pp_jax.evaluate.methods import Outcome
from pp_jax.evaluate.metrics import dice
from pp_jax.evaluate.protocols import (
    Drawn,
    answer,
    click_rounds,
    parse_protocol,
    to_plain,
)
from pp_jax.evaluate.subjects import MODEL, ORACLE, Answer, Marks, Subject
from pp_jax.predict.asking import Asker, Embedded, choose, embed_once
from pp_jax.predict.refine import refine

AUTOMATIC = "auto"  # The protocol of masks that are searched for.
JITTERED = 6  # Draws of other marks, for the agreement among their masks.
_TOP = 0.01  # Share of an image's pixels that its score as a whole is read from.

COMPUTED = ("stability", "jitter", "tta", "filters")
CONFIDENCE_HELP = ", ".join(COMPUTED)

Image = UInt8[np.ndarray, "H W 3"]


def check_confidence(spec: str) -> frozenset[str]:
    """The scores of confidence that a list with commas names.

    Raises:
      ValueError: An unknown one.
    """
    names = [name.strip() for name in spec.split(",") if name.strip()]
    for name in names:
        if name not in COMPUTED:
            raise ValueError(f"--confidence {name!r}: choose among {', '.join(COMPUTED)}")
    return frozenset(names)


class Asked(NamedTuple):
    """A model, and how it is asked."""

    asker: Asker
    filtered: Sequence[Asker]  # The same weights behind other filters, for `filters`.
    single: bool  # With several marks on an object, SAM's single mask counts (as it was trained).
    refine: Sequence[str]
    confidence: frozenset[str]
    seed: int
    shown: Callable[[Subject], Image]  # The subject's image, or another's in its place.
    searcher: Search | None  # For automatic masks; None: not asked for.


class Seen(NamedTuple):
    """What a model sees of a subject."""

    subject: Subject
    image: Image
    embedded: Embedded | None  # None: each box has a window of its own.
    seconds: float  # That this took.


def answers(asked: Asked, subject: Subject, drawn: Mapping[str, Drawn]) -> Iterator[Outcome]:
    """The model's answer under each protocol, and beside it the best it could have chosen."""
    image, embedded = asked.shown(subject), None
    start = perf_counter()
    if any(spec != AUTOMATIC for spec in drawn):
        embedded = embed_once(asked.asker, image)
    seen = Seen(subject, image, embedded, perf_counter() - start)
    for spec, one in drawn.items():
        if spec == AUTOMATIC:
            yield from _automatic(asked, seen)
        elif parse_protocol(spec)[1].rounds:
            yield from _rounds(asked, seen, one)
        else:
            yield from _once(asked, seen, one, spec=spec)


def _once(asked: Asked, seen: Seen, drawn: Drawn, *, spec: str) -> Iterator[Outcome]:
    protocol = parse_protocol(spec)[1]
    start = perf_counter()
    single = asked.single and _several(drawn.marks)
    found = answer(asked.asker, seen.image, drawn.marks, single=single, embedded=seen.embedded)
    masks = _refined(asked, found, seen.image)
    seconds = seen.seconds + perf_counter() - start
    told = protocol.truth_in_prompt
    outcome = Outcome(
        protocol=spec,
        choice=MODEL,
        prompted=protocol.needs_objects,
        masks=masks,
        predicted_iou=found.predicted_iou,
        logits=found.logits,
        confidences=_confidences(asked, seen, drawn, found, spec=spec, single=single),
        score=None if told else image_score(found),
        found=None if told else boxes_of(found._replace(masks=masks)),
        seconds=seconds,
    )
    yield outcome
    if found.candidates.shape[1] > 1:
        subject = seen.subject
        targets = subject.objects if protocol.needs_objects else subject.findings[None]
        yield _by_oracle(outcome, found.candidates, targets)


def _by_oracle(
    outcome: Outcome, offered: Bool[np.ndarray, "N M H W"], targets: Bool[np.ndarray, "N H W"]
) -> Outcome:
    """The same prompts, answered by whoever knows the targets: each with the mask of highest Dice.

    The model's own mask, which may have been refined, is offered too: for each target this answer
    is at least as good as the model's.
    """
    masks = np.zeros_like(targets)
    for mask, others, own, target in zip(masks, offered, outcome.masks, targets, strict=True):
        mask[:] = max((own, *others), key=lambda one: dice(one, target))
    return outcome._replace(
        choice=ORACLE,
        masks=masks,
        predicted_iou=None,
        logits=None,
        confidences={},
        score=None,
        found=None,
    )


def _several(marks: Marks) -> bool:
    """Whether an object has more tokens than a box alone: then SAM's single mask is meant.

    The rule of the official `SamOnnxModel.select_masks`: a box is two tokens, and where there is
    none a point that pads is one.
    """
    points = 0 if marks.points is None else marks.points.shape[1]
    return points + (1 if marks.boxes is None else 2) > 2


def _refined(asked: Asked, found: Answer, image: Image) -> Bool[np.ndarray, "N H W"]:
    if not asked.refine:
        return found.masks
    return np.stack([refine(asked.refine, logits, image) for logits in found.logits])


def image_score(found: Answer) -> float:
    """How sure a model is that an image shows a finding: the mean probability of its surest pixels.

    These are 1 % of the image, so that the score orders images whose mask is empty as well. It is
    multiplied by the highest predicted IoU, cut off at 0.
    """
    logits = found.logits.max(0).ravel()
    count = max(1, int(_TOP * logits.size))
    surest = np.partition(logits, -count)[-count:]
    return float(expit(surest).mean()) * max(float(found.predicted_iou.max()), 0.0)


def _rounds(asked: Asked, seen: Seen, drawn: Drawn) -> Iterator[Outcome]:
    rounds = click_rounds(
        asked.asker, seen.embedded, drawn, seen.subject.objects, single_after_first=asked.single
    )
    seconds, last = seen.seconds, drawn.uniforms.shape[1]
    for count in range(1, last + 1):
        start = perf_counter()  # Whoever is told of a round takes time of its own.
        found, marks = next(rounds)
        masks = _refined(asked, found, seen.image)
        seconds += perf_counter() - start
        yield Outcome(
            protocol=f"clicks:{count}",
            choice=MODEL,
            prompted=True,
            masks=masks,
            predicted_iou=found.predicted_iou,
            logits=found.logits,
            confidences=_told(found, asked.confidence),
            score=None,
            found=None,
            seconds=seconds,
            clicks=_plain_clicks(marks, drawn) if count == last else None,
        )


def _plain_clicks(marks: Marks, drawn: Drawn) -> dict[str, Any]:
    return to_plain(Drawn(marks._replace(logits=None), drawn.uniforms))


def _automatic(asked: Asked, seen: Seen) -> Iterator[Outcome]:
    """What the fitted rule takes of the automatic masks, and what an oracle would take."""
    subject = seen.subject
    found: Found = asked.searcher(seen.image, subject)
    masks, sure = found.masks[found.taken], found.probability[found.taken]
    told = {"predicted_iou": found.predicted_iou, "stability": found.stability}
    outcome = Outcome(
        protocol=AUTOMATIC,
        choice=MODEL,
        prompted=False,
        masks=masks,
        predicted_iou=found.predicted_iou[found.taken],
        logits=None,
        confidences={name: values[found.taken].tolist() for name, values in told.items()},
        score=float(found.probability.max(initial=0.0)),
        found=boxes_of(Answer(masks, sure, None, None)),
        seconds=found.seconds,
    )
    yield outcome
    if len(subject.objects):
        # Here each object is answered, though nobody marked it.
        own = assign_components(masks.any(0), subject.objects)
        best = selection.oracle(found.masks, subject.objects)
        answered = outcome._replace(prompted=True, masks=own)
        yield _by_oracle(answered, best[:, None], subject.objects)


# Confidence.


def _told(found: Answer, wanted: frozenset[str]) -> dict[str, list[float | None]]:
    """What an answer itself says of how sure it is."""
    told = {"predicted_iou": found.predicted_iou.tolist()}
    if "stability" in wanted:
        told["stability"] = [consistency.stability(logits) for logits in found.logits]
    return told


def _confidences(
    asked: Asked, seen: Seen, drawn: Drawn, found: Answer, *, spec: str, single: bool
) -> dict[str, list[float | None]]:
    told, marks, image = _told(found, asked.confidence), drawn.marks, seen.image
    marked = marks.boxes is not None or marks.points is not None
    if "jitter" in asked.confidence and marked and seen.embedded is not None:
        key = [asked.seed, *(zlib.crc32(text.encode()) for text in (seen.subject.id, spec))]
        rng = np.random.default_rng(key)
        masks = _other_marks(asked.asker, seen.embedded, marks, rng=rng, single=single)
        told["jitter"] = [consistency.agreement(own) for own in masks]
        told["entropy"] = [consistency.mean_entropy(own) for own in masks]
    if "tta" in asked.confidence:
        others = [view for name, view in consistency.VIEWS.items() if name != "identity"]
        views = [_viewed(asked.asker, image, marks, view, single=single) for view in others]
        told["tta"] = _agreements([found.masks, *views])
    if "filters" in asked.confidence:
        shown = [answer(asker, image, marks, single=single).masks for asker in asked.filtered]
        told["filters"] = _agreements(shown)
    return told


def _viewed(
    asker: Asker, image: Image, marks: Marks, view: consistency.View, *, single: bool
) -> Bool[np.ndarray, "N H W"]:
    """The masks of the image seen in another way, brought back."""
    shown = np.ascontiguousarray(view.image(image))
    return view.mask(answer(asker, shown, view.marks(marks, image.shape[1]), single=single).masks)


def _agreements(masks: Sequence[Bool[np.ndarray, "N H W"]]) -> list[float | None]:
    """Of each object, over the ways in which it was shown."""
    return [consistency.agreement(own) for own in np.stack(masks, axis=1)]


def _other_marks(
    asker: Asker, embedded: Embedded, marks: Marks, *, rng: np.random.Generator, single: bool
) -> Bool[np.ndarray, "N K h w"]:
    """The masks of each object under other draws of its marks, at low resolution."""
    size, count = embedded.original, len(marks.boxes if marks.points is None else marks.points)
    draws = consistency.jittered(marks, size=size, rng=rng, count=JITTERED)
    fields = zip(*draws, strict=True)
    told = Marks(*(None if one[0] is None else np.concatenate(one) for one in fields))
    decoded = asker.decode(embedded, told)
    index = choose(decoded, single=single)
    logits = decoded.logits[np.arange(len(index)), index]
    # Beyond the image the model's low-resolution masks mean nothing.
    stride = asker.side // logits.shape[-1]
    rows, columns = (-(-length // stride) for length in embedded.size)
    masks = (logits > 0)[:, :rows, :columns]
    return masks.reshape(JITTERED, count, *masks.shape[1:]).swapaxes(0, 1)
