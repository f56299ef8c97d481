"""U-Net: a contracting path, an expanding path, and copies from one to the other.

Ronneberger, Fischer and Brox 2015, arXiv 1505.04597. Differences from the paper: no dropout at the
end of the contracting path, one logit (sigmoid) instead of two (softmax), and "same" padding beside
the paper's.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

PADDINGS = ("same", "valid")
UPS = ("transposed", "bilinear")
NORMS = ("none", "group")

# As in the paper: Gaussian, variance 2 / (fan in).
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# After a transposed convolution with stride 2 each pixel has seen one of the four taps, and no ReLU
# follows: variance 1 / C, which is 4 / (fan in).
_UP = nn.initializers.variance_scaling(4.0, "fan_in", "normal")
_GROUPS = 8


class ConvBlock(nn.Module):
    """3x3 convolutions, each with a ReLU."""

    features: int
    count: int = 2
    padding: str = "same"
    norm: str = "none"  # "group": over groups of channels, between each convolution and its ReLU.
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W D"]:
        """The features; with padding "valid" each convolution takes 2 pixels off."""
        for i in range(self.count):
            x = nn.Conv(
                self.features,
                (3, 3),
                padding=self.padding.upper(),
                kernel_init=HE,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x = norm_relu(x, norm=self.norm, dtype=self.dtype, name=f"norm_{i}")
        return x


class Up(nn.Module):
    """Twice the height and width, other channels."""

    features: int
    up: str = "transposed"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W D"]:
        """The larger grid."""
        if self.up == "transposed":
            return nn.ConvTranspose(
                self.features,
                (2, 2),
                strides=(2, 2),
                kernel_init=_UP,
                dtype=self.dtype,
                name="conv",
            )(x)
        # Before the interpolation, with which it commutes: a quarter of the work.
        x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="conv")(x)
        return resize(x, height=2 * x.shape[1], width=2 * x.shape[2])


class Decoder(nn.Module):
    """One level of the expanding path."""

    features: int
    padding: str = "same"
    up: str = "transposed"
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], skip: Float[Array, "B H W E"] | None
    ) -> Float[Array, "B H W D"]:
        """Features at twice the resolution, from those below and, if given, those copied."""
        x = Up(self.features, up=self.up, dtype=self.dtype, name="up")(x)
        if skip is not None:
            # With padding "valid" the copy is the larger one; on a backbone, whose sizes are
            # rounded up, the features from below may be.
            height, width = (min(x.shape[i], skip.shape[i]) for i in (1, 2))
            pair = [crop(grid, height=height, width=width) for grid in (skip, x)]
            x = jnp.concatenate(pair, axis=-1)
        return ConvBlock(
            self.features, padding=self.padding, norm=self.norm, dtype=self.dtype, name="block"
        )(x)


class UNet(nn.Module):
    """The network of the paper, for square images whose side is a multiple of `2 ** (depth - 1)`.

    With padding "valid" the image is first mirrored beyond its border, as the paper's overlap-tile
    strategy does, so far that the answer covers all of it.
    """

    width: int = 64  # Channels of the first level; each level below has twice as many.
    depth: int = 5  # Levels, the bottom included.
    padding: str = "same"  # A row of PADDINGS.
    up: str = "transposed"  # A row of UPS.
    skips: bool = True  # False: nothing is copied, a fully convolutional encoder and decoder.
    norm: str = "none"  # A row of NORMS.
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # Recompute each level in the backward pass: less memory, a third slower.

    @nn.compact
    def __call__(self, image: Float[Array, "B S S C"]) -> Float[Array, "B S S"]:
        """A logit for each pixel, in float32."""
        side = image.shape[1]
        x = image.astype(self.dtype)
        if self.padding == "valid":
            x = mirrored(x, before=valid_margin(side, depth=self.depth))
        block, decoder = (nn.remat(m) if self.remat else m for m in (ConvBlock, Decoder))
        shared: dict[str, Any] = {
            "padding": self.padding,
            "norm": self.norm,
            "dtype": self.dtype,
        }
        copies = []
        for level in range(self.depth):
            if level:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = block(self.width << level, **shared, name=f"encoder_{level}")(x)
            copies.append(x)
        for level in reversed(range(self.depth - 1)):
            skip = copies[level] if self.skips else None
            x = decoder(self.width << level, up=self.up, **shared, name=f"decoder_{level}")(x, skip)
        logits = nn.Conv(1, (1, 1), dtype=self.dtype, name="head")(x)[..., 0]
        return crop(logits[..., None], height=side, width=side)[..., 0].astype(jnp.float32)


class BackboneUNet(nn.Module):
    """An expanding path on the stages of a backbone, for sides that are multiples of 16."""

    backbone: nn.Module  # Answers with a list of features, each of half the resolution before.
    first: int  # Level of the first of these: 0 at the image's resolution, 1 at half of it.
    width: int = 64  # Channels of the expanding path at level 0, twice as many at each below.
    up: str = "transposed"  # A row of UPS.
    norm: str = "none"  # A row of NORMS; of the expanding path.
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # Recompute each level in the backward pass: less memory, a third slower.

    @nn.compact
    def __call__(self, image: Float[Array, "B S S C"]) -> Float[Array, "B S S"]:
        """A logit for each pixel, in float32."""
        decoder = nn.remat(Decoder) if self.remat else Decoder
        *copies, x = self.backbone(image.astype(self.dtype))
        copies = [None] * self.first + copies
        for level in reversed(range(len(copies))):
            x = decoder(
                self.width << level,
                up=self.up,
                norm=self.norm,
                dtype=self.dtype,
                name=f"decoder_{level}",
            )(x, copies[level])
        logits = nn.Conv(1, (1, 1), dtype=self.dtype, name="head")(x)[..., 0]
        return logits.astype(jnp.float32)


def norm_relu(
    x: Float[Array, "B h w C"], *, norm: str, dtype: jnp.dtype, name: str
) -> Float[Array, "B h w C"]:
    """A ReLU, of a row of NORMS: GroupNorm has eight groups where they divide the channels.

    Called in a module, whose child of this name the norm is.
    """
    if norm == "group":
        groups = math.gcd(_GROUPS, x.shape[-1])
        # With torch's two-pass variance.
        x = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)(x)
    return nn.relu(x)


def resize(x: Float[Array, "B h w C"], *, height: int, width: int) -> Float[Array, "B H W C"]:
    """Bilinear interpolation, as torch's with `align_corners=False`."""
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def crop(x: Float[Array, "B h w C"], *, height: int, width: int) -> Float[Array, "B H W C"]:
    """The middle; of an odd margin the larger half is cut off at the end."""
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]


def mirrored(x: Float[Array, "B S S C"], *, before: int) -> Float[Array, "B T T C"]:
    """The image with `before` pixels mirrored at each border, whose own pixels are not repeated."""
    return jnp.pad(x, ((0, 0), (before, before), (before, before), (0, 0)), mode="reflect")


def valid_margin(side: int, *, depth: int) -> int:
    """Pixels that "valid" padding needs at each border, so that the answer covers `side` pixels.

    At the bottom `b` cells remain; the answer has `f b - 4 (f - 1)` pixels and the input
    `f (b + 4) + 4 (f - 1)`, with `f = 2 ** (depth - 1)`. Of the paper's: 28, 388 and 572.
    """
    f = 2 ** (depth - 1)
    bottom = -(-(side + 4 * (f - 1)) // f)
    return (f * (bottom + 4) + 4 * (f - 1) - side) // 2
