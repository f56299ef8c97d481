"""The official package's public names, on JAX: change the import and keep the code.

    from pp_jax.segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

    sam = sam_model_registry["vit_b"](checkpoint="checkpoints/vit_b")
    predictor = SamPredictor(sam)

The checkpoint is a converted one (`python -m convert`) or a run of `train.py`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from pp_jax import sharding
from pp_jax.finetune import runs
from pp_jax.predict import automatic
from pp_jax.predict.official import (
    LoadedSam,
    ResizeLongestSide,
    SamPredictor,
    require_whole_images,
)
from pp_jax.preprocess.stage import make_stage
from pp_jax.sam import VARIANTS, Sam, sized
from pp_jax.sam.model import init

__all__ = [
    "LoadedSam",
    "ResizeLongestSide",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "sam_model_registry",
]


class SamAutomaticMaskGenerator(automatic.SamAutomaticMaskGenerator):
    """The automatic mask generator, made from what the official one is made from."""

    def __init__(self, model: LoadedSam, points_per_side: int | None = 32, **official: Any):
        if model.look.preprocess != "sam":
            raise ValueError(
                f"weights whose images are prepared as {model.look.preprocess}: automatic masks "
                "need SAM's own preparation; use SamPredictor"
            )
        require_whole_images(model.look)
        stage = make_stage(model.look, side=model.model.config.image_size)
        super().__init__(
            model.model, model.variables, stage=stage, points_per_side=points_per_side, **official
        )


def build_sam(variant: str, checkpoint: str | Path | None = None) -> LoadedSam:
    """A SAM with the weights of `checkpoint`, or with random ones as the official builders do.

    Raises:
      ValueError: A checkpoint of another variant, or none at all.
    """
    model = Sam(VARIANTS[variant])
    if checkpoint is None:
        return LoadedSam(model, init(model, jax.random.key(0)))
    loaded = runs.load(Path(checkpoint), mesh=sharding.make_mesh(jax.devices()[:1]))
    if loaded.variant != variant:
        raise ValueError(f"{checkpoint}: weights of {loaded.variant}, not of {variant}")
    if loaded.config is None:
        return LoadedSam(model, loaded.variables, loaded.look)
    model = Sam(sized(variant, loaded.config.image_size))
    return LoadedSam(model, loaded.variables, loaded.look)


sam_model_registry: Mapping[str, Callable[..., LoadedSam]] = MappingProxyType(
    {"default": partial(build_sam, "vit_h"), **{v: partial(build_sam, v) for v in VARIANTS}}
)
