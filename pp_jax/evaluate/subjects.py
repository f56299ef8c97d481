"""What is scored, and what is answered: the records that every part of an evaluation shares."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from pp_jax.predict.asking import Marks as Marks

Row = Mapping[str, Any]  # One line of a table: text, numbers, or None where nothing is known.

# What tells the rows of a table apart, and what is known of an image beside its pixels.
KEYS = ("method", "seed", "protocol", "choice", "dataset", "id", "patient")
FACTS = ("target", "label", "view", "sex", "age")
# What a method says of how sure it is; higher is surer, but for the entropy.
CONFIDENCES = ("predicted_iou", "stability", "jitter", "tta", "filters", "entropy")
MODEL, ORACLE = "model", "oracle"  # Who chose among a prompt's masks.


class Subject(NamedTuple):
    """One image to score, original frame."""

    id: str
    patient: str
    dataset: str
    target: str  # "mask"; "box", "... from box": the true outline is unknown.
    label: str  # The image's class, as its data set names it.
    view: str
    sex: str
    age: float | None
    spacing: tuple[float, float] | None  # Millimetres from row to row, column to column.
    image: UInt8[np.ndarray, "H W 3"]
    objects: Bool[np.ndarray, "N H W"]
    boxes: Float[np.ndarray, "N 4"]
    findings: Bool[np.ndarray, "H W"]
    lungs: Bool[np.ndarray, "H W"] | None = None  # As an expert outlined them; None: not read.


class Answer(NamedTuple):
    """One method's masks of one image: one per mark; without marks, as many as it found."""

    masks: Bool[np.ndarray, "N H W"]
    predicted_iou: Float[np.ndarray, " N"] | None  # None: the method predicts none.
    logits: Float[np.ndarray, "N H W"] | None  # Of `masks`, which are logits > 0.
    candidates: Bool[np.ndarray, "N M H W"] | None  # All masks of each mark, for an oracle.
