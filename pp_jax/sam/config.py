"""Sizes of the model: one frozen record per variant."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

MIN_SIZE, MAX_SIZE = 256, 2048


@dataclass(frozen=True)
class SamConfig:
    """Sizes of one SAM. The defaults are those that all official variants share.

    Source: `build_sam.py` of facebookresearch/segment-anything.
    """

    image_size: int = 1024
    trained_size: int = 1024  # Image size of the position tables; others are interpolated.
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window_size: int = 14
    mlp_ratio: int = 4
    out_dim: int = 256  # Width of the image embedding, of the prompts and of the decoder.
    mask_channels: int = 16  # Width of the first layers that read a mask prompt.
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    multimask_outputs: int = 3

    def __post_init__(self) -> None:
        for size in (self.image_size, self.trained_size):
            if size % self.patch_size or not MIN_SIZE <= size <= MAX_SIZE:
                raise ValueError(
                    f"image size {size}: needs a multiple of {self.patch_size} "
                    f"from {MIN_SIZE} to {MAX_SIZE}"
                )
        if self.embed_dim % self.num_heads:
            raise ValueError(f"{self.embed_dim=} needs a multiple of {self.num_heads=}")
        if not all(0 <= i < self.depth for i in self.global_blocks):
            raise ValueError(f"{self.global_blocks=} must lie in [0, {self.depth})")

    @property
    def grid(self) -> int:
        """Side of the image embedding, in patches."""
        return self.image_size // self.patch_size

    @property
    def trained_grid(self) -> int:
        """Side of the grid of the position tables, in patches."""
        return self.trained_size // self.patch_size

    @property
    def mask_side(self) -> int:
        """Side of a low-resolution mask: four cells per patch."""
        return 4 * self.grid


def sized(variant: str, image_size: int | None = None) -> SamConfig:
    """A variant at another image size (None: its own); its tables are then interpolated.

    Raises:
      ValueError: No multiple of the patch size from 256 to 2048.
    """
    config = VARIANTS[variant]
    return config if image_size is None else replace(config, image_size=image_size)


VARIANTS: Mapping[str, SamConfig] = MappingProxyType(
    {
        # Ours, for tests and for learning on a laptop; there are no official weights.
        "tiny": SamConfig(
            image_size=256,
            trained_size=256,
            embed_dim=192,
            depth=6,
            num_heads=6,
            global_blocks=(2, 5),
            window_size=7,
        ),
        "vit_b": SamConfig(),
        "vit_l": SamConfig(embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)),
        "vit_h": SamConfig(embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
    }
)
