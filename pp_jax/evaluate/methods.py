"""What is compared: the model and the guesses that see no pixel, on the same images and marks."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from pp_jax.evaluate.controls import CONTROLS, Atlas
from pp_jax.evaluate.metrics import METRICS, emptiness
from pp_jax.predict.predictor import Marked, Masks
from pp_jax.types import FOREGROUND


class Subject(NamedTuple):
    """One image to score, original frame."""

    id: str
    patient: str
    target: str  # "mask", or "box": the true outline is unknown.
    image: UInt8[np.ndarray, "H W 3"]
    objects: Bool[np.ndarray, "N H W"]
    boxes: Float[np.ndarray, "N 4"]
    findings: Bool[np.ndarray, "H W"]


class Tools(NamedTuple):
    """What the methods need beside the subject."""

    segment: Callable[[UInt8[np.ndarray, "H W 3"], Marked], Masks]
    atlas: Callable[[str], Atlas]  # Of a patient; fitted on others.


class Prediction(NamedTuple):
    """One method's answer for a whole image."""

    mask: Bool[np.ndarray, "H W"]
    predicted_iou: float | None


def draw_marks(prompt: str, subject: Subject, *, seed: int) -> Marked:
    """The marks of one protocol: drawn once per seed and image, whatever else is evaluated."""
    rng = np.random.default_rng([seed, zlib.crc32(subject.id.encode())])
    none = Marked(np.zeros((0, 4), np.float32), np.zeros((0, 2), np.float32))
    return MARKS[prompt](subject, rng.random(len(subject.objects)), none)


def _exact_box(subject: Subject, uniforms: np.ndarray, none: Marked) -> Marked:
    del uniforms
    return none._replace(boxes=subject.boxes)


def _one_click(subject: Subject, uniforms: np.ndarray, none: Marked) -> Marked:
    points = []
    for pixels, uniform in zip(subject.objects, uniforms, strict=True):
        inside = np.flatnonzero(pixels)
        index = inside[int(uniform * len(inside))]
        points.append((index % pixels.shape[1], index // pixels.shape[1]))
    return none._replace(points=np.array(points, np.float32).reshape(-1, 2))


def _nothing(subject: Subject, uniforms: np.ndarray, none: Marked) -> Marked:
    del subject, uniforms
    return none


def compare(
    subjects: Iterable[Subject], tools: Tools, *, prompt: str, seed: int
) -> Iterator[tuple[Subject, Marked, dict[str, Prediction], list[dict[str, Any]]]]:
    """For each subject its marks, every method's mask, and a row of figures per method."""
    for subject in subjects:
        marked = draw_marks(prompt, subject, seed=seed)
        predictions = {name: m.predict(subject, marked, tools) for name, m in METHODS.items()}
        rows = [
            {
                "id": subject.id,
                "patient": subject.patient,
                "method": METHODS[name].label,
                "protocol": METHODS[name].protocol or PROTOCOLS[prompt],
                "target": subject.target,
                "objects": len(subject.objects),
                **{
                    key: metric.function(prediction.mask, subject.findings)
                    for key, metric in METRICS.items()
                },
                "predicted_iou": prediction.predicted_iou,
                "empty": emptiness(prediction.mask, subject.findings),
            }
            for name, prediction in predictions.items()
        ]
        yield subject, marked, predictions, rows


def marks_to_plain(marked: Marked) -> dict[str, Any]:
    """The marks as lists, for a file."""
    points = [{"x": float(x), "y": float(y), "label": FOREGROUND} for x, y in marked.points]
    return {"boxes": marked.boxes.tolist(), "points": points}


class Method(NamedTuple):
    """A row of `METHODS`."""

    predict: Callable[[Subject, Marked, Tools], Prediction]
    label: str
    protocol: str  # What it is told; empty: the marks of the evaluation.


def _sam(subject: Subject, marked: Marked, tools: Tools) -> Prediction:
    """The union of the masks of all marks, and the mean of their predicted IoU."""
    masks, iou = tools.segment(subject.image, marked)
    return Prediction(masks.any(0), float(iou.mean()))


def _control(name: str) -> Method:
    control = CONTROLS[name]

    def predict(subject: Subject, marked: Marked, tools: Tools) -> Prediction:
        del marked  # A control is always told the exact boxes, so that it is hard to beat.
        more = {"atlas": tools.atlas(subject.patient)} if control.needs_atlas else {}
        return Prediction(control.function(subject.findings.shape, subject.boxes, **more), None)

    return Method(predict, control.label, PROTOCOLS["box"])


PROTOCOLS: Mapping[str, str] = MappingProxyType(
    {"box": "exact box", "point": "one click", "none": "nothing"}
)

MARKS: Mapping[str, Callable[[Subject, np.ndarray, Marked], Marked]] = MappingProxyType(
    {"box": _exact_box, "point": _one_click, "none": _nothing}
)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "sam": Method(_sam, "SAM (this checkpoint)", ""),
        **{name: _control(name) for name in CONTROLS},
    }
)
