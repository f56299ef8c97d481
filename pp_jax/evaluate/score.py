"""Every image scored by every method: rows of figures, one per object and one per image."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from pp_jax import outlook
from pp_jax.evaluate import ambiguity, calibration, errors, journal, matching, spacing
from pp_jax.evaluate.detection import Scored
from pp_jax.evaluate.methods import Method, Outcome, Run, Source
from pp_jax.evaluate.metrics import emptiness, measure
from pp_jax.evaluate.protocols import Drawn, Protocol, draw_marks, parse_protocol, to_plain
from pp_jax.evaluate.subjects import CONFIDENCES, MODEL, Row, Subject
from pp_jax.preprocess.colour import to_grey


class Scores(NamedTuple):
    """All that an evaluation found."""

    objects: list[Row]
    images: list[Row]
    detections: list[dict[str, Any]]  # Of protocols that tell no truth.
    reliability: dict[tuple[str, str, str], calibration.Reliability]  # Method, seed, protocol.
    prompts: dict[str, dict[str, Any]]  # Protocol, image.
    clicks: dict[str, dict[str, Any]]  # Method, image: where its first seed was corrected.
    seconds: dict[tuple[str, str], list[float]]  # Method, protocol: of each image.


def score(
    book: journal.Journal,
    methods: Sequence[Method],
    sources: Sequence[Source],
    *,
    protocols: Mapping[str, Protocol],
    seed: int,
    stored: Mapping[str, Mapping[str, Drawn]],
) -> Scores:
    """The figures of all methods on all images, of which those in the journal are not made again.

    Args:
      book: Of this evaluation; a line is added for each method and image.
      methods: What is compared. One is opened after the other, so that one model fills the memory.
      sources: The images.
      protocols: By their specs.
      seed: Of the prompts.
      stored: Prompts by protocol and image, to be used in place of drawn ones.
    """
    contrasts: dict[tuple[str, str], list[float | None]] = {}
    asked = [(m, s) for m in methods for s in sources if m.serves(s.patient)]
    done = [(m, s) for m, s in asked if _key(m, s) in book.done]
    # Models are asked first, and beside them a guess takes no time.
    left = sum(not m.guesses for m, _ in asked) - sum(not m.guesses for m, _ in done)
    with tqdm(total=len(asked), initial=len(done), unit="image") as bar:
        answers = _to_ask(book, methods, sources, bar)
        for method, source, run in outlook.watched(answers, left, "images x models"):
            subject = source.read()
            specs = dict.fromkeys([*protocols, *method.also])
            drawn = _draw(subject, specs, seed=seed, stored=stored)
            one = (source.dataset, source.id)
            if one not in contrasts:
                contrasts[one] = _contrasts(subject)
            line = _line(method, subject, drawn, run(subject, drawn), contrasts[one])
            journal.write_line(book, _key(method, source), line)
            bar.update()
    return _collect(book, methods, sources)


def _key(method: Method, source: Source) -> journal.Key:
    return method.label, method.seed, source.dataset, source.id


def _to_ask(
    book: journal.Journal, methods: Sequence[Method], sources: Sequence[Source], bar: tqdm
) -> Iterator[tuple[Method, Source, Run]]:
    """Each method opened, with each image that it has not answered yet."""
    for method in methods:
        bar.set_description(method.label[:32])
        own = [source for source in sources if method.serves(source.patient)]
        left = [source for source in own if _key(method, source) not in book.done]
        if left:
            # Given all of them: what is fitted on them is the same after an interruption.
            run = method.open(own)
            for source in left:
                yield method, source, run


def _draw(
    subject: Subject,
    specs: Iterable[str],
    *,
    seed: int,
    stored: Mapping[str, Mapping[str, Drawn]],
) -> dict[str, Drawn]:
    """The prompts of one image, by protocol; none where there is nothing to mark."""
    drawn = {}
    for spec in specs:
        if parse_protocol(spec)[1].needs_objects and not len(subject.objects):
            continue
        held = stored.get(spec, {}).get(subject.id)
        if held is not None and len(held.uniforms) != len(subject.objects):
            raise ValueError(
                f"--prompts: {spec} marks {len(held.uniforms)} objects on {subject.id}, which has "
                f"{len(subject.objects)}; give the prompts of a report on the same data"
            )
        drawn[spec] = draw_marks(spec, subject, seed=seed) if held is None else held
    return drawn


def _line(
    method: Method,
    subject: Subject,
    drawn: Mapping[str, Drawn],
    outcomes: Iterator[Outcome],
    contrasts: Sequence[float | None],
) -> dict[str, Any]:
    """What one method's answers to one image are worth, ready for the journal."""
    line: dict[str, Any] = {
        "prompts": {spec: to_plain(one) for spec, one in drawn.items()},
        "objects": [],
        "images": [],
        "detections": [],
        "reliability": {},
        "clicks": {},
        "seconds": {},
    }
    for outcome in outcomes:
        key = {
            "method": method.label,
            "seed": method.seed,
            "protocol": outcome.protocol,
            "choice": outcome.choice,
        }
        line["objects"] += _object_rows(key, subject, outcome, contrasts)
        line["images"].append(_image_row(key, subject, outcome, contrasts))
        if outcome.choice != MODEL:
            continue
        line["seconds"][outcome.protocol] = outcome.seconds
        if outcome.found is not None:
            line["detections"].append(key | _detections(subject, outcome.found))
        if outcome.logits is not None and subject.findings.any():
            seen = calibration.reliability(outcome.logits.max(0), subject.findings)
            line["reliability"][outcome.protocol] = _plain(seen)
        if outcome.clicks is not None:
            line["clicks"] = outcome.clicks
    return line


def _facts(subject: Subject) -> dict[str, Any]:
    names = ("dataset", "id", "patient", "target", "label", "view", "sex", "age")
    return {name: getattr(subject, name) for name in names}


def _contrasts(subject: Subject) -> list[float | None]:
    """Of each object."""
    grey = to_grey(subject.image)
    return [
        ambiguity.contrast_to_noise(grey, pixels, others=subject.findings & ~pixels)
        for pixels in subject.objects
    ]


def _object_rows(
    key: Mapping[str, str],
    subject: Subject,
    outcome: Outcome,
    contrasts: Sequence[float | None],
) -> list[Row]:
    masks = outcome.masks
    if not outcome.prompted:
        masks = matching.assign_components(outcome.masks.any(0), subject.objects)
    rows = []
    for index, (mask, target) in enumerate(zip(masks, subject.objects, strict=True)):
        # A mask that nobody asked for belongs to no object.
        told = outcome.confidences if outcome.prompted else {}
        sure = {name: told[name][index] if name in told else None for name in CONFIDENCES}
        rows.append(
            {
                **key,
                **_facts(subject),
                "object": index,
                "area": 100 * float(target.mean()),
                "contrast": contrasts[index],
                **sure,
                "empty": emptiness(mask, target),
                "error": errors.classify(mask, target),
                **_figures(mask, target, subject),
            }
        )
    return rows


def _image_row(
    key: Mapping[str, str],
    subject: Subject,
    outcome: Outcome,
    contrasts: Sequence[float | None],
) -> Row:
    union = outcome.masks.any(0)
    known = [value for value in contrasts if value is not None]
    matched = matching.match(union, subject.objects)
    return {
        **key,
        **_facts(subject),
        "objects": len(subject.objects),
        "area": 100 * float(subject.findings.mean()),
        "contrast": float(np.mean(known)) if known else None,
        **{name: _mean(outcome.confidences.get(name, ())) for name in CONFIDENCES},
        "score": outcome.score,
        "tp": matched.tp,
        "fp": matched.fp,
        "fn": matched.fn,
        "matched_iou": matched.iou,
        "empty": emptiness(union, subject.findings),
        "error": errors.classify(union, subject.findings),
        **_figures(union, subject.findings, subject),
    }


def _figures(
    mask: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"], subject: Subject
) -> dict[str, float | None]:
    """All metrics, and the distance in millimetres where the spacing can be believed."""
    figures = measure(mask, target)
    told = spacing.plausible_spacing(subject.spacing, target.shape)
    figures["hd95_mm"] = None if told is None else spacing.hd95_mm(mask, target, spacing=told)
    return figures


def _detections(subject: Subject, found: Scored) -> dict[str, Any]:
    """The predicted boxes and the true ones, for scores of detection."""
    return {
        "dataset": subject.dataset,
        "id": subject.id,
        "patient": subject.patient,
        "label": subject.label,
        "boxes": np.asarray(found.boxes, float).tolist(),
        "confidences": np.asarray(found.confidences, float).tolist(),
        "truth": np.asarray(subject.boxes, float).tolist(),
    }


def _plain(seen: calibration.Reliability) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in seen._asdict().items()}


def _seen(plain: Mapping[str, Any]) -> calibration.Reliability:
    sums = {n: np.array(x) if isinstance(x, list) else x for n, x in plain.items()}
    return calibration.Reliability(**sums)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _collect(book: journal.Journal, methods: Sequence[Method], sources: Sequence[Source]) -> Scores:
    """The journal's lines in the order of methods and images, whatever order they were made in."""
    scores = Scores([], [], [], {}, {}, {}, {})
    for method in methods:
        for source in sources:
            if not method.serves(source.patient):
                continue
            line = book.done[(method.label, method.seed, source.dataset, source.id)]
            scores.objects.extend(line["objects"])
            scores.images.extend(line["images"])
            scores.detections.extend(line["detections"])
            for protocol, plain in line["reliability"].items():
                key = (method.label, method.seed, protocol)
                seen = _seen(plain)
                held = scores.reliability.get(key)
                scores.reliability[key] = seen if held is None else calibration.add(held, seen)
            for protocol, marks in line["prompts"].items():
                scores.prompts.setdefault(protocol, {})[source.id] = marks
            if line["clicks"]:
                clicks = scores.clicks.setdefault(method.label, {})
                clicks.setdefault(source.id, line["clicks"])
            for protocol, seconds in line["seconds"].items():
                scores.seconds.setdefault((method.label, protocol), []).append(seconds)
    return scores
