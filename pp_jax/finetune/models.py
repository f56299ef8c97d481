"""Every model that can be trained, by name: the variants of SAM, and the networks beside it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pp_jax.baselines.segmenter import SEGMENTERS, Segmenter, SegmenterConfig, segmenter_config
from pp_jax.sam import VARIANTS, Sam, SamConfig, sized

Model = Sam | Segmenter
ModelConfig = SamConfig | SegmenterConfig


def config_of(name: str, image_size: int | None = None) -> ModelConfig:
    """The sizes of a row of `MODELS` at another image size (None: its own).

    Raises:
      ValueError: An image size that the model cannot have.
    """
    if name in SEGMENTERS:
        return segmenter_config(name, image_size)
    return sized(name, image_size)


def make_model(config: ModelConfig, *, remat: bool = False, dtype: Any, **sam: Any) -> Model:
    """The model of these sizes.

    Args:
      config: From `config_of`.
      remat: Recompute parts in the backward pass.
      dtype: Of the image encoder's compute; of a network's as a whole.
      sam: Further fields of `Sam`; networks have no use for them.
    """
    if isinstance(config, SegmenterConfig):
        return Segmenter(config, dtype=dtype, remat=remat)
    return Sam(config, dtype=dtype, remat=remat, **sam)


def depth_of(name: str) -> int:
    """Blocks of the image encoder, which rates and rules may count; 0 of a network."""
    return VARIANTS[name].depth if name in VARIANTS else 0


MODELS: Mapping[str, ModelConfig] = MappingProxyType({**VARIANTS, **SEGMENTERS})
