"""What is compared: the model and the guesses that see no pixel, on the same images and marks."""

import zlib
from collections.abc import Callable, Mapping
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
    target: str  # "mask"; "box", "... from box": the true outline is unknown.
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


_NOTHING = Marked(np.zeros((0, 4), np.float32), np.zeros((0, 2), np.float32))


class Protocol(NamedTuple):
    """A row of `PROTOCOLS`: what the model is told of each object."""

    mark: Callable[[Subject, Float[np.ndarray, " N"]], Marked]  # Given a uniform per object.
    needs_objects: bool  # Without one there is nothing to mark, and the image is not scored.
    label: str


def draw_marks(prompt: str, subject: Subject, *, seed: int) -> Marked:
    """The marks of one protocol: drawn once per seed and image, whatever else is evaluated."""
    rng = np.random.default_rng([seed, zlib.crc32(subject.id.encode())])
    return PROTOCOLS[prompt].mark(subject, rng.random(len(subject.objects)))


def _exact_box(subject: Subject, uniforms: Float[np.ndarray, " N"]) -> Marked:
    del uniforms
    return _NOTHING._replace(boxes=subject.boxes)


def _one_click(subject: Subject, uniforms: Float[np.ndarray, " N"]) -> Marked:
    """The pixel number `floor(uniform * count)` of each object, in raster order."""
    points = []
    for pixels, uniform in zip(subject.objects, uniforms, strict=True):
        inside = np.flatnonzero(pixels)
        y, x = divmod(inside[int(uniform * len(inside))], pixels.shape[1])
        points.append((x, y))
    return _NOTHING._replace(points=np.array(points, np.float32).reshape(-1, 2))


def _nothing(subject: Subject, uniforms: Float[np.ndarray, " N"]) -> Marked:
    del subject, uniforms
    return _NOTHING


def compare(subject: Subject, marked: Marked, tools: Tools, *, prompt: str) -> list[dict[str, Any]]:
    """A row of figures for every method, on one image whose marks were drawn before."""
    rows = []
    for method in METHODS.values():
        prediction = method.predict(subject, marked, tools)
        figures = {
            name: metric.function(prediction.mask, subject.findings)
            for name, metric in METRICS.items()
        }
        rows.append(
            {
                "id": subject.id,
                "patient": subject.patient,
                "method": method.label,
                "protocol": PROTOCOLS[method.protocol or prompt].label,
                "target": subject.target,
                "objects": len(subject.objects),
                **figures,
                "predicted_iou": prediction.predicted_iou,
                "empty": emptiness(prediction.mask, subject.findings),
            }
        )
    return rows


def marks_to_plain(marked: Marked) -> dict[str, Any]:
    """The marks as lists, for a file."""
    points = [{"x": float(x), "y": float(y), "label": FOREGROUND} for x, y in marked.points]
    return {"boxes": marked.boxes.tolist(), "points": points}


class Method(NamedTuple):
    """A row of `METHODS`."""

    predict: Callable[[Subject, Marked, Tools], Prediction]
    label: str
    protocol: str  # What it is told, of `PROTOCOLS`; empty: the marks of the evaluation.


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

    return Method(predict, control.label, "box")


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "box": Protocol(_exact_box, True, "exact box"),
        "point": Protocol(_one_click, True, "one click"),
        "none": Protocol(_nothing, False, "nothing"),
    }
)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "sam": Method(_sam, "SAM (this checkpoint)", ""),
        **{name: _control(name) for name in CONTROLS},
    }
)
