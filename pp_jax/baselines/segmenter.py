"""Segmentation networks with the face of SAM: images are encoded, prompts are decoded.

Here to encode is to hand on, and to decode is the network, once for each prompt: all of the work is
in `decode`, and nothing is shared between prompts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pp_jax.baselines.backbones import ResNet50, Vgg16
from pp_jax.baselines.deeplab import DeepLab
from pp_jax.baselines.unet import NORMS, PADDINGS, UPS, BackboneUNet, UNet
from pp_jax.sam.model import SamOutput
from pp_jax.types import BOTTOM_RIGHT, TOP_LEFT, Prompts, check

MIN_SIZE, MAX_SIZE = 64, 2048
CELL = 4  # Pixels along each side of a low-resolution cell.
_MASKS = 4  # As many as SAM has tokens for.


@dataclass(frozen=True)
class SegmenterConfig:
    """Sizes of one network. A field that the network does not read must keep its default."""

    network: str = "unet"  # A row of NETWORKS.
    image_size: int = 256
    width: int = 64  # Channels of the first level.
    depth: int = 5  # Levels.
    padding: str = "same"  # A row of PADDINGS.
    up: str = "transposed"  # A row of UPS.
    skips: bool = True  # Whether levels of the same resolution are joined.
    norm: str = "none"  # A row of NORMS.

    def __post_init__(self) -> None:
        if self.image_size % 16 or not MIN_SIZE <= self.image_size <= MAX_SIZE:
            raise ValueError(
                f"image size {self.image_size}: needs a multiple of 16 "
                f"from {MIN_SIZE} to {MAX_SIZE}"
            )
        choices = {"network": NETWORKS, "padding": PADDINGS, "up": UPS, "norm": NORMS}
        for field, rows in choices.items():
            if getattr(self, field) not in rows:
                raise ValueError(
                    f"{field} {getattr(self, field)!r}: choose one of {', '.join(rows)}"
                )
        if not 1 <= self.depth <= 5:
            raise ValueError(f"{self.depth=} must lie in [1, 5]")
        if self.width < 1:
            raise ValueError(f"{self.width=} must be positive")
        read = {"network", "image_size", *NETWORKS[self.network].options}
        for field in fields(self):
            if field.name not in read and getattr(self, field.name) != field.default:
                raise ValueError(f"network {self.network!r} has no {field.name}: leave it out")

    @property
    def mask_side(self) -> int:
        """Side of a low-resolution mask."""
        return self.image_size // CELL


class Segmenter(nn.Module):
    """A network that answers as SAM does. It reads the box of a prompt and nothing else of it.

    The box is a fourth channel beside the image; without one that channel is 0, and all that is to
    be found is asked for.
    """

    config: SegmenterConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        """The network."""
        row = NETWORKS[self.config.network]
        options = {name: getattr(self.config, name) for name in row.options}
        self.network = row.make(**options, dtype=self.dtype, remat=self.remat)

    def __call__(self, image: Float[Array, "B S S 3"], prompts: Prompts) -> SamOutput:
        """The mask of each prompt, for normalised, padded images."""
        return self.decode(self.encode(image), prompts)

    def encode(self, image: Float[Array, "B S S 3"]) -> Float[Array, "B S S 3"]:
        """The image itself, in float32."""
        return image.astype(jnp.float32)

    def decode(self, image: Float[Array, "B S S 3"], prompts: Prompts) -> SamOutput:
        """One mask per prompt, the same for each of SAM's mask tokens.

        Logits are averaged over cells of 4 x 4 pixels. The IoU is the one to expect if each cell
        were foreground with its own probability: no gradient goes through it.
        """
        check(prompts)
        B, N = prompts.labels.shape[:2]
        side = self.config.image_size
        if image.shape[1:3] != (side, side):
            raise ValueError(f"images are {image.shape[1:3]}, not {(side, side)}")
        boxes = box_channel(prompts, side=side)  # B N S S
        images = jnp.broadcast_to(image[:, None], (B, N, *image.shape[1:]))
        inputs = jnp.concatenate([images, boxes[..., None]], axis=-1)
        logits = self.network(inputs.reshape(B * N, side, side, 4))
        cells = self.config.mask_side
        logits = logits.reshape(B, N, 1, cells, CELL, cells, CELL).mean(axis=(4, 6))
        iou = expected_iou(logits)
        shape = (B, N, _MASKS)
        return SamOutput(
            jnp.broadcast_to(logits, (*shape, cells, cells)), jnp.broadcast_to(iou, shape)
        )


def box_channel(prompts: Prompts, *, side: int) -> Float[Array, "B N S S"]:
    """The share of each pixel that lies in the prompt's box; 0 where there is no box."""
    corners = [
        jnp.sum(jnp.where((prompts.labels == label)[..., None], prompts.points, 0), axis=2)
        for label in (TOP_LEFT, BOTTOM_RIGHT)
    ]
    first, last = (corner[..., None] for corner in corners)  # B N 2 1
    pixel = jnp.arange(side)
    share = jnp.clip(jnp.minimum(last, pixel + 1) - jnp.maximum(first, pixel), 0, 1)  # B N 2 S
    return share[:, :, 1, :, None] * share[:, :, 0, None, :]


def expected_iou(logits: Float[Array, "*n h w"]) -> Float[Array, "*n"]:
    """IoU of each mask `logits > 0` with what the probabilities tell to expect, in [0, 1].

    Expected intersection over expected union, cells taken to be independent. No gradient.
    """
    logits = jax.lax.stop_gradient(logits)
    mask, probability = logits > 0, jax.nn.sigmoid(logits)
    inside = jnp.sum(probability * mask, axis=(-2, -1))
    union = jnp.sum(jnp.where(mask, 1, probability), axis=(-2, -1))
    return inside / jnp.maximum(union, jnp.finfo(jnp.float32).tiny)


def segmenter_config(name: str, image_size: int | None = None) -> SegmenterConfig:
    """A row of `SEGMENTERS` at another image size (None: its own).

    Raises:
      ValueError: An unknown name, or a size that is no multiple of 16 from 64 to 2048.
    """
    if name not in SEGMENTERS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(SEGMENTERS)}")
    config = SEGMENTERS[name]
    return config if image_size is None else replace(config, image_size=image_size)


def _on_vgg16(*, dtype: jnp.dtype, remat: bool, **options: Any) -> nn.Module:
    backbone = Vgg16(dtype=dtype, remat=remat)
    return BackboneUNet(backbone, first=0, dtype=dtype, remat=remat, **options)


def _on_resnet50(*, dtype: jnp.dtype, remat: bool, **options: Any) -> nn.Module:
    backbone = ResNet50(dtype=dtype, remat=remat)
    return BackboneUNet(backbone, first=1, dtype=dtype, remat=remat, **options)


def _deeplab(*, dtype: jnp.dtype, remat: bool, **options: Any) -> nn.Module:
    backbone = ResNet50(dilated=True, dtype=dtype, remat=remat)
    return DeepLab(backbone, dtype=dtype, remat=remat, **options)


class Network(NamedTuple):
    """How a network is made."""

    make: Callable[..., nn.Module]
    options: tuple[str, ...]  # The fields of SegmenterConfig that it reads.
    backbone: str = ""  # A row of BACKBONES, whose weights may be converted ones.


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "unet": Network(UNet, ("width", "depth", "padding", "up", "skips", "norm")),
        "vgg16": Network(_on_vgg16, ("width", "up", "norm"), "vgg16"),
        "resnet50": Network(_on_resnet50, ("width", "up", "norm"), "resnet50"),
        "deeplab": Network(_deeplab, ("width", "norm"), "resnet50"),
    }
)

SEGMENTERS: Mapping[str, SegmenterConfig] = MappingProxyType(
    {
        "unet": SegmenterConfig(),
        "unet-tiny": SegmenterConfig(width=16),  # For CPUs: a sixteenth of the work.
        # As the paper pads: of 256 pixels it sees 444, three times the work.
        "unet-2015": SegmenterConfig(padding="valid"),
        "unet-bilinear": SegmenterConfig(up="bilinear"),
        "unet-vgg16": SegmenterConfig("vgg16"),
        # 256 channels at 1/16 of the resolution, 16 at the image's: the backbone has 2048 and none.
        "unet-resnet": SegmenterConfig("resnet50", width=16),
        "fcn": SegmenterConfig(skips=False),
        "deeplabv3+": SegmenterConfig("deeplab", width=256, norm="group"),
    }
)
