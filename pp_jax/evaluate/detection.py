"""Whether findings are found: boxes against boxes.

These figures exist only where the prompt says nothing of the truth; see `require_prompt_free`.

Sources: RSNA Pneumonia Detection Challenge, evaluation page (the mean over thresholds of
TP / (TP + FP + FN)); Setio et al., Medical Image Analysis 2017 (LUNA16: FROC and its seven rates).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage, special

from pp_jax.evaluate import files
from pp_jax.evaluate.subjects import Answer

RSNA_THRESHOLDS = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75)
FROC_RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)  # False positives per image.
_SMALLEST = 0.001  # Of the image: smaller components are no finding.
_EIGHT = np.ones((3, 3), bool)  # Neighbours by side or corner.


class Scored(NamedTuple):
    """Boxes that were found in one image; higher is surer."""

    boxes: Float[np.ndarray, "N 4"]
    confidences: Float[np.ndarray, " N"]


class RsnaMean(NamedTuple):
    """The challenge's score over images."""

    mean: float | None  # In [0, 1]; None: no image counts.
    images: int
    left_out: int  # Images without truth in which nothing was predicted: right, but no score.


class Froc(NamedTuple):
    """Free-response curve: one point per confidence, from the surest boxes alone to all of them."""

    false_positives: Float[np.ndarray, " n"]  # Per image; begins with 0.
    sensitivity: Float[np.ndarray, " n"]  # Share of the true boxes that are found.
    thresholds: Float[np.ndarray, " n"]  # Boxes at least as sure count; begins with infinity.


def require_prompt_free(protocol: str, *, truth_in_prompt: bool) -> None:
    """Nothing, when figures of detection exist under a prompt protocol.

    Raises:
      ValueError: The prompt is drawn from the truth.
    """
    if truth_in_prompt:
        raise ValueError(
            f"--prompt {protocol}: no RSNA score, FROC, AUROC or AUPRC exists, for this prompt "
            "already says that there is a finding and where; use --prompt none or auto"
        )


def boxes_of(answer: Answer) -> Scored:
    """The boxes of all masks of an image, as `found_boxes` has them.

    A method without predicted IoU has 1 as the score of each mask.
    """
    count = len(answer.masks)
    scores = np.ones(count) if answer.predicted_iou is None else answer.predicted_iou
    logits = [None] * count if answer.logits is None else answer.logits
    found = [
        found_boxes(mask, logits=own, score=float(score))
        for mask, own, score in zip(answer.masks, logits, scores, strict=True)
    ]
    nothing = Scored(np.zeros((0, 4)), np.zeros(0))
    return Scored(*(np.concatenate(each) for each in zip(nothing, *found, strict=True)))


def found_boxes(
    mask: Bool[np.ndarray, "H W"],
    *,
    logits: Float[np.ndarray, "H W"] | None = None,
    score: float = 1.0,
) -> Scored:
    """The tight box of each component of a mask that covers at least 0.1 % of the image.

    Its confidence, in [0, 1], is the mean probability of its pixels, `sigmoid(logits)`, times the
    mask's score: two components of one mask differ, and so do equal components of two images.

    Args:
      mask: Pixels that touch by side or corner belong together.
      logits: Of the mask; without them the confidence is the score.
      score: The predicted IoU of the mask, clipped to [0, 1].
    """
    labels, count = ndimage.label(mask, _EIGHT)
    component = labels[mask] - 1
    areas = np.bincount(component, minlength=count)
    sure = np.ones(count)
    if logits is not None:
        probability = special.expit(logits[mask].astype(float))
        sure = np.bincount(component, weights=probability, minlength=count) / areas
    boxes = np.array(
        [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)], float
    ).reshape(-1, 4)
    large = areas >= _SMALLEST * mask.size
    return Scored(boxes[large], sure[large] * np.clip(score, 0, 1))


def rsna_score(predicted: Scored, truth: Float[np.ndarray, "M 4"]) -> float | None:
    """The challenge's score of one image, in [0, 1]; None where nothing is true or predicted.

    TP / (TP + FP + FN), the mean over eight thresholds `t`. Boxes in descending confidence claim
    the true box of highest IoU among those unclaimed, if that IoU is above `t`, not at it. An image
    without truth scores 0 if anything is predicted.
    """
    boxes = len(predicted.boxes) + len(truth)
    if not boxes:
        return None
    hits = (int(_hits(predicted, truth, threshold=t).sum()) for t in RSNA_THRESHOLDS)
    return float(np.mean([hit / (boxes - hit) for hit in hits]))


def rsna_mean(scores: Sequence[float | None]) -> RsnaMean:
    """The mean of `rsna_score` over the images that count."""
    counted = [score for score in scores if score is not None]
    mean = float(np.mean(counted)) if counted else None
    return RsnaMean(mean, len(counted), len(scores) - len(counted))


def write_submission(path: Path, found: Sequence[tuple[str, Scored]]) -> None:
    """Write the boxes of images, by their ids, as the challenge's submission.

    One line per image: `confidence x y width height` of each box, an empty cell without any.

    Raises:
      ValueError: No image, or one that stands twice.
    """
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: image {twice[0]} stands twice; a submission has it once")
    rows = [{"patientId": name, "PredictionString": _in_words(scored)} for name, scored in found]
    files.write_rows(path, rows)


def froc(
    images: Sequence[tuple[Scored, Float[np.ndarray, "M 4"]]], *, threshold: float = 0.4
) -> Froc | None:
    """Found boxes against false ones, as the least confidence falls; None without a true box.

    Args:
      images: What was found in each, and its true boxes. They match as in `rsna_score`: a second
        box on the same truth is a false positive.
      threshold: IoU that a match is above.
    """
    total = sum(len(truth) for _, truth in images)
    if not total:
        return None
    hits = np.concatenate([_hits(*image, threshold=threshold) for image in images])
    confidences = np.concatenate([scored.confidences for scored, _ in images])
    steps, place = np.unique(-confidences, return_inverse=True)
    false = np.cumsum(np.bincount(place, weights=~hits, minlength=len(steps)))
    true = np.cumsum(np.bincount(place, weights=hits, minlength=len(steps)))
    return Froc(
        np.concatenate([[0], false / len(images)]),
        np.concatenate([[0], true / total]),
        np.concatenate([[np.inf], -steps]),
    )


def mean_sensitivity(curve: Froc) -> float:
    """The mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image.

    Linear between the curve's points, constant beyond its last, as in LUNA16.
    """
    rates, first = np.unique(curve.false_positives, return_index=True)
    best = np.maximum.reduceat(curve.sensitivity, first)
    return float(np.mean(np.interp(FROC_RATES, rates, best)))


def _in_words(scored: Scored) -> str:
    x0, y0, x1, y1 = scored.boxes.T
    values = np.stack([scored.confidences, x0, y0, x1 - x0, y1 - y0], axis=1)
    return " ".join(f"{value:.8g}" for value in values.ravel())


def _hits(
    predicted: Scored, truth: Float[np.ndarray, "M 4"], *, threshold: float
) -> Bool[np.ndarray, " N"]:
    """Whether each predicted box claims a true one; equal confidences in their given order."""
    hits = np.zeros(len(predicted.boxes), bool)
    if not len(truth):
        return hits
    overlaps = _iou(predicted.boxes.astype(float), truth.astype(float))
    for box in np.argsort(-predicted.confidences, kind="stable"):
        best = np.argmax(overlaps[box])
        if overlaps[box, best] > threshold:
            hits[box] = True
            overlaps[:, best] = -1
    return hits


def _iou(a: Float[np.ndarray, "N 4"], b: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "N M"]:
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (a, b))
    union = np.add.outer(*areas) - common
    return common / np.where(union > 0, union, 1)  # Two boxes without area share nothing.
