"""How a model answers every protocol of one image, which it encodes once."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.special import expit

from pp_jax.evaluate import consistency
from pp_jax.evaluate.automatic import Found, Searcher
from pp_jax.evaluate.detection import Scored, boxes_of
from pp_jax.evaluate.methods import Outcome
from pp_jax.evaluate.metrics import dice
from pp_jax.evaluate.protocols import (
    Drawn,
    Protocol,
    answer,
    click_rounds,
    parse_protocol,
    to_plain,
)
from pp_jax.evaluate.subjects import MODEL, ORACLE, Answer, Marks, Subject
from pp_jax.predict.asking import Asker, Embedded, choose, embed_once
from pp_jax.predict.refine import refine

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
    searcher: Searcher | None  # For automatic masks; None: not asked for.


def answers(asked: Asked, subject: Subject, drawn: Mapping[str, Drawn]) -> Iterator[Outcome]:
    """The model's answer under each protocol, and beside it the best it could have chosen."""
    image = asked.shown(subject)
    start = perf_counter()
    embedded = embed_once(asked.asker, image)
    seconds = perf_counter() - start
    for spec, one in drawn.items():
        protocol = parse_protocol(spec)[1]
        if protocol.rounds:
            yield from _rounds(asked, subject, image, embedded, one, seconds=seconds)
        elif spec == "auto":
            yield from _automatic(asked, subject, image)
        else:
            once = partial(_once, asked, subject, image, embedded)
            yield from once(one, spec=spec, protocol=protocol, seconds=seconds)


def _once(
    asked: Asked,
    subject: Subject,
    image: Image,
    embedded: Embedded | None,
    drawn: Drawn,
    *,
    spec: str,
    protocol: Protocol,
    seconds: float,
) -> Iterator[Outcome]:
    start = perf_counter()
    single = asked.single and _several(drawn.marks)
    found = answer(asked.asker, image, drawn.marks, single=single, embedded=embedded)
    masks = _refined(asked, found, image)
    seconds += perf_counter() - start
    told = protocol.truth_in_prompt
    outcome = Outcome(
        protocol=spec,
        choice=MODEL,
        prompted=protocol.needs_objects,
        masks=masks,
        predicted_iou=found.predicted_iou,
        logits=found.logits,
        confidences=_confidences(asked, subject, image, embedded, drawn, found, spec=spec),
        score=None if told else image_score(found),
        found=None if told else boxes_of(found._replace(masks=masks)),
        seconds=seconds,
    )
    yield outcome
    if found.candidates.shape[1] > 1:
        targets = subject.objects if protocol.needs_objects else subject.findings[None]
        best = [
            max(offered, key=lambda mask: dice(mask, target))
            for offered, target in zip(found.candidates, targets, strict=True)
        ]
        yield _by_oracle(outcome, np.stack(best))


def _by_oracle(outcome: Outcome, masks: Bool[np.ndarray, "N H W"]) -> Outcome:
    """The same prompts, answered by whoever knows the target."""
    return outcome._replace(
        choice=ORACLE,
        masks=masks,
        predicted_iou=None,
        logits=None,
        confidences={},
        score=None,
        found=None,
        clicks=None,
    )


def _several(marks: Marks) -> bool:
    """Whether an object has more tokens than a box alone: then SAM's single mask is meant.

    The rule of the official `SamOnnxModel.select_masks`, where a box counts as two.
    """
    points = 0 if marks.points is None else marks.points.shape[1]
    return points + 2 * (marks.boxes is not None) > 2


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


def _rounds(
    asked: Asked,
    subject: Subject,
    image: Image,
    embedded: Embedded,
    drawn: Drawn,
    *,
    seconds: float,
) -> Iterator[Outcome]:
    rounds = click_rounds(
        asked.asker, embedded, drawn, subject.objects, single_after_first=asked.single
    )
    start = perf_counter()
    for count, (found, marks) in enumerate(rounds, 1):
        yield Outcome(
            protocol=f"clicks:{count}",
            choice=MODEL,
            prompted=True,
            masks=_refined(asked, found, image),
            predicted_iou=found.predicted_iou,
            logits=found.logits,
            confidences=_told(found, asked.confidence),
            score=None,
            found=None,
            seconds=seconds + perf_counter() - start,
            clicks=_plain_clicks(marks, drawn) if count == drawn.uniforms.shape[1] else None,
        )


def _plain_clicks(marks: Marks, drawn: Drawn) -> dict[str, Any]:
    return to_plain(Drawn(marks._replace(logits=None), drawn.uniforms))


def _automatic(asked: Asked, subject: Subject, image: Image) -> Iterator[Outcome]:
    """What the fitted rule takes of the automatic masks, and what an oracle would take."""
    start = perf_counter()
    found: Found = asked.searcher.find(image, subject)
    taken = found.masks[found.taken]
    outcome = Outcome(
        protocol="auto",
        choice=MODEL,
        prompted=False,
        masks=taken if len(taken) else np.zeros((1, *subject.findings.shape), bool),
        predicted_iou=found.predicted_iou[found.taken] if len(taken) else None,
        logits=None,
        confidences={
            "predicted_iou": found.predicted_iou[found.taken].tolist(),
            "stability": found.stability[found.taken].tolist(),
        },
        score=float(found.probability.max(initial=0.0)),
        found=_boxes(taken, found.probability[found.taken]),
        seconds=perf_counter() - start,
    )
    yield outcome
    if len(subject.objects):
        best = asked.searcher.best(found.masks, subject.objects)
        yield _by_oracle(outcome._replace(prompted=True), best)


def _boxes(masks: Bool[np.ndarray, "N H W"], sure: Float[np.ndarray, " N"]) -> Scored:
    return boxes_of(Answer(masks, sure, None, None))


# Confidence.


def _told(found: Answer, wanted: frozenset[str]) -> dict[str, list[float | None]]:
    """What an answer itself says of how sure it is."""
    told = {"predicted_iou": found.predicted_iou.tolist()}
    if "stability" in wanted:
        told["stability"] = [consistency.stability(logits) for logits in found.logits]
    return told


def _confidences(
    asked: Asked,
    subject: Subject,
    image: Image,
    embedded: Embedded | None,
    drawn: Drawn,
    found: Answer,
    *,
    spec: str,
) -> dict[str, list[float | None]]:
    told = _told(found, asked.confidence)
    marked = drawn.marks.boxes is not None or drawn.marks.points is not None
    if "jitter" in asked.confidence and marked and embedded is not None:
        key = [asked.seed, *(zlib.crc32(text.encode()) for text in (subject.id, spec))]
        masks = _other_marks(asked, embedded, drawn.marks, rng=np.random.default_rng(key))
        told["jitter"] = [consistency.agreement(own) for own in masks]
        told["entropy"] = [consistency.mean_entropy(own) for own in masks]
    if "tta" in asked.confidence:
        views = [
            view.mask(
                answer(
                    asked.asker,
                    np.ascontiguousarray(view.image(image)),
                    view.marks(drawn.marks, image.shape[1]),
                    single=asked.single and _several(drawn.marks),
                ).masks
            )
            for name, view in consistency.VIEWS.items()
            if name != "identity"
        ]
        told["tta"] = _agreements([found.masks, *views])
    if "filters" in asked.confidence:
        shown = [
            answer(asker, image, drawn.marks, single=asked.single and _several(drawn.marks)).masks
            for asker in asked.filtered
        ]
        told["filters"] = _agreements(shown)
    return told


def _agreements(masks: Sequence[Bool[np.ndarray, "N H W"]]) -> list[float | None]:
    """Of each object, over the ways in which it was shown."""
    return [consistency.agreement(own) for own in np.stack(masks, axis=1)]


def _other_marks(
    asked: Asked, embedded: Embedded, marks: Marks, *, rng: np.random.Generator
) -> Bool[np.ndarray, "N K h w"]:
    """The masks of each object under other draws of its marks, at low resolution."""
    size, count = embedded.original, len(marks.boxes if marks.points is None else marks.points)
    draws = consistency.jittered(marks, size=size, rng=rng, count=JITTERED)
    fields = zip(*draws, strict=True)
    told = Marks(*(None if one[0] is None else np.concatenate(one) for one in fields))
    decoded = asked.asker.decode(embedded, told)
    index = choose(decoded, single=asked.single and _several(marks))
    logits = decoded.logits[np.arange(len(index)), index]
    # Beyond the image the model's low-resolution masks mean nothing.
    stride = asked.asker.side // logits.shape[-1]
    rows, columns = (-(-length // stride) for length in embedded.size)
    masks = (logits > 0)[:, :rows, :columns]
    return masks.reshape(JITTERED, count, *masks.shape[1:]).swapaxes(0, 1)
