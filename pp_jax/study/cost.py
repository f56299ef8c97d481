"""About how long the stages take and how much they leave on the disk, from what was measured.

Seconds are of `vit_b` at 1024 px on two CPU cores, per image; `benchmarks/RESULTS.md` has each
under the heading named here. Other variants are scaled by the encoder's operations, other sides by
the number of pixels. No accelerator was measured.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pp_jax.sam import VARIANTS
from pp_jax.study.settings import Study

_SIDE = 1024
_MIB = 1 / 1024  # GiB.


class Cost(NamedTuple):
    """Seconds per unit, where they were measured, and whether they grow with the encoder."""

    seconds: float
    source: str
    encoder: bool = False


class Sizes(NamedTuple):
    """How much there is to work on."""

    images: int
    findings: int  # Images with a finding.
    patients: int


def seconds(study: Study, what: str, count: float) -> float:
    """The estimate for so many units of a row of `COSTS`."""
    cost = COSTS[what]
    return count * cost.seconds * (_scale(study) if cost.encoder else 1.0)


def trained(study: Study, what: str) -> float:
    """Seconds of one training, its start with it."""
    return seconds(study, what, study.steps * study.batch) + seconds(study, "start", 1)


def embedded(study: Study, images: int, *, looks: int) -> tuple[float, float]:
    """Seconds and GiB of the embeddings of all images under so many filters."""
    side = study.image_size or VARIANTS[study.variant].image_size
    gib = images * looks * 2 * _MIB * (side / _SIDE) ** 2
    return seconds(study, "encode", images * looks), gib


def of_run(study: Study) -> float:
    """GiB of a training's folder: frozen weights once, and a few checkpoints of the rest."""
    return file_size(study) + 0.15


def file_size(study: Study) -> float:
    """GiB of the weights."""
    return Path(study.sam).stat().st_size / 2**30


def prepared(sizes: Sizes) -> float:
    """GiB of the prepared set: 21 MiB of 61 images at 1024 px (Data)."""
    return sizes.images * 21 / 61 * _MIB


def _scale(study: Study) -> float:
    own = VARIANTS[study.variant].image_size
    return OPERATIONS[study.variant] * ((study.image_size or own) / own) ** 2


# GFLOP of the encoder (`benchmarks/flops.py`), by those of `vit_b`.
OPERATIONS: Mapping[str, float] = MappingProxyType(
    {"tiny": 0.002, "vit_b": 1.0, "vit_l": 3.03, "vit_h": 6.02}
)

COSTS: Mapping[str, Cost] = MappingProxyType(
    {
        "start": Cost(30.0, "assumed: start of a program and its compilation"),
        "convert": Cost(10.0, "Fine-tuning: a file of 2.4 GiB in 24 s; per GiB"),
        "prepare": Cost(0.076, "Data: 13.1 files/s"),
        "encode": Cost(3.4, "Encoder", encoder=True),
        "decode": Cost(0.028, "How cost grows: one prompt"),
        "automatic": Cost(56.7, "Automatic masks, grid of 32 x 32 points"),
        "decoder step": Cost(0.36, "A step on cached embeddings"),
        "decoder step from images": Cost(3.6, "A step on cached embeddings: images", encoder=True),
        "lora step": Cost(13.4, "Low-rank pairs: remat, scan-blocks", encoder=True),
        "unet step": Cost(0.45, "Baselines on real opacities: five times a step of tiny"),
        "classical": Cost(0.49, "Baselines on real opacities: all rows, no prompt"),
        "measures": Cost(0.036, "Metrics: an image of one method"),
    }
)
