"""DeepLabV3+: features at several dilations, refined by those of an early stage.

Chen et al. 2018, arXiv 1802.02611, for output stride 16. Differences: plain convolutions where the
paper's Xception has separable ones, and no batch statistics: GroupNorm, or none.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pp_jax.baselines.unet import HE, norm_relu, resize

RATES = (6, 12, 18)  # Of the paper, for output stride 16.


class ConvNorm(nn.Module):
    """A convolution without bias, a norm and a ReLU."""

    features: int
    side: int = 1
    rate: int = 1
    norm: str = "group"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        """The features, as large as before."""
        x = nn.Conv(
            self.features,
            (self.side, self.side),
            kernel_dilation=self.rate,
            use_bias=self.norm == "none",
            kernel_init=HE,
            dtype=self.dtype,
            name="conv",
        )(x)
        return norm_relu(x, norm=self.norm, dtype=self.dtype, name="norm")


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling: one grid seen at several dilations and as a whole."""

    features: int
    norm: str = "group"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        """The branches side by side, projected."""
        D, norm, dtype = self.features, self.norm, self.dtype
        branches = [ConvNorm(D, norm=norm, dtype=dtype, name="point")(x)]
        for rate in RATES:
            atrous = ConvNorm(D, 3, rate, norm=norm, dtype=dtype, name=f"atrous_{rate}")
            branches.append(atrous(x))
        # No norm here: over a single cell it would leave little of the mean.
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True)
        pooled = ConvNorm(D, norm="none", dtype=dtype, name="pooled")(pooled)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = jnp.concatenate(branches, axis=-1)
        return ConvNorm(D, norm=norm, dtype=dtype, name="project")(x)


class DeepLab(nn.Module):
    """The network, for square images whose side is a multiple of 16."""

    backbone: nn.Module  # Answers with five stages: the second at 1/4, the last at 1/16.
    width: int = 256  # Channels of the pyramid and of the decoder.
    norm: str = "group"  # A row of NORMS.
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # Recompute each block in the backward pass: less memory, a third slower.

    @nn.compact
    def __call__(self, image: Float[Array, "B S S C"]) -> Float[Array, "B S S"]:
        """A logit for each pixel, interpolated from a quarter of the resolution, in float32."""
        side, D = image.shape[1], self.width
        aspp, conv = (nn.remat(m) if self.remat else m for m in (Aspp, ConvNorm))
        _, early, _, _, late = self.backbone(image.astype(self.dtype))
        x = aspp(D, norm=self.norm, dtype=self.dtype, name="aspp")(late)
        # 48 channels beside 256 in the paper: the early features shall not outweigh the pyramid.
        early = conv(3 * D // 16, norm=self.norm, dtype=self.dtype, name="low_level")(early)
        x = jnp.concatenate([resize(x, height=side // 4, width=side // 4), early], axis=-1)
        for i in range(2):
            x = conv(D, 3, norm=self.norm, dtype=self.dtype, name=f"decoder_{i}")(x)
        logits = nn.Conv(1, (1, 1), dtype=self.dtype, name="head")(x).astype(jnp.float32)
        return resize(logits, height=side, width=side)[..., 0]
