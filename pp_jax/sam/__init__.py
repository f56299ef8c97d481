"""The Segment Anything Model, split and named as the official code."""

from pp_jax.sam.config import VARIANTS, SamConfig, sized
from pp_jax.sam.model import Sam, SamOutput

__all__ = ["VARIANTS", "Sam", "SamConfig", "SamOutput", "sized"]
