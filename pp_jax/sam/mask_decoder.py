"""The mask decoder: embeddings and prompt tokens to masks and their predicted quality."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from pp_jax.sam.config import SamConfig
from pp_jax.sam.image_encoder import gelu, layer_norm
from pp_jax.sam.transformer import TwoWayTransformer


class UpConv(nn.Module):
    """Transposed convolution with kernel 2 and stride 2: each cell becomes 2 x 2 cells.

    Nothing overlaps, so it is one product; torch's kernel fits without a flip. The new cells stay
    beside each other, in an axis of their own: `interlace` puts them into their places at the end,
    where there are fewer numbers to move.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*n C"]) -> Float[Array, "*n 4 D"]:
        """The four cells of each, row by row."""
        C, D = x.shape[-1], self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (2, 2, C, D))
        bias = self.param("bias", nn.initializers.zeros, (D,))
        kernel = jnp.moveaxis(kernel, 2, 0).reshape(C, 4 * D)
        cells = jnp.matmul(x, kernel)
        return cells.reshape(*x.shape[:-1], 4, D) + bias


def interlace(
    cells: Float[Array, "*n T 4 4"], *, height: int, width: int
) -> Float[Array, "*n H W"]:
    """A grid of `T = height width` cells, each cut twice into 2 x 2, as one grid."""
    batch = cells.shape[:-3]
    x = cells.reshape(*batch, height, width, 2, 2, 2, 2)  # h w, rows and columns of each cut.
    x = jnp.moveaxis(x, (-4, -2), (-5, -4))  # h i k w j l
    return x.reshape(*batch, 4 * height, 4 * width)


class TokenHead(nn.Module):
    """Three dense layers with ReLU between them."""

    hidden: int
    out: int

    @nn.compact
    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n E"]:
        """The head's answer for each token."""
        for i in range(2):
            x = nn.relu(nn.Dense(self.hidden, name=f"layers_{i}")(x))
        return nn.Dense(self.out, name="layers_2")(x)


class MaskDecoder(nn.Module):
    """Predicts every mask that SAM has a token for: 0 the single mask, 1 to 3 the three."""

    config: SamConfig

    @nn.compact
    def __call__(
        self,
        embedding: Float[Array, "B h w D"],
        position: Float[Array, "h w D"],
        sparse: Float[Array, "B N P D"],
        attended: Bool[Array, "B N P"],
        dense: Float[Array, "B n h w D"],
    ) -> tuple[Float[Array, "B N M 4*h 4*w"], Float[Array, "B N M"]]:
        """Low-resolution logits and predicted IoU of all `M` = 1 + 3 masks, in float32.

        `dense` is one for all prompts (`n` 1), or one for each.
        """
        c = self.config
        B, N, _, D = sparse.shape
        h, w = position.shape[:2]
        M = c.multimask_outputs + 1
        iou_token = self.param("iou_token", nn.initializers.normal(1.0), (1, D))
        mask_tokens = self.param("mask_tokens", nn.initializers.normal(1.0), (M, D))
        own = jnp.concatenate([iou_token, mask_tokens])  # 1 + M tokens
        own = jnp.broadcast_to(own, (B, N, M + 1, D))
        tokens = jnp.concatenate([own, sparse], axis=2)
        attended = jnp.pad(attended, ((0, 0), (0, 0), (M + 1, 0)), constant_values=True)
        image = embedding[:, None] + dense
        transformer = TwoWayTransformer(c, name="transformer")
        place = position.reshape(h * w, D)
        tokens, x = transformer(image.reshape(B, -1, h * w, D), place, tokens, attended)

        x = UpConv(D // 4, name="output_upscaling_0")(x)  # B N T 4 D/4
        x = gelu(layer_norm(epsilon=1e-6, name="output_upscaling_1")(x))
        x = UpConv(D // 8, name="output_upscaling_3")(x)
        x = gelu(x)  # B N T 4 4 D/8
        heads = [
            TokenHead(D, D // 8, name=f"output_hypernetworks_mlps_{i}")(tokens[:, :, 1 + i])
            for i in range(M)
        ]
        weights = jnp.stack(heads, axis=2)  # B N M D/8
        masks = jnp.einsum("BNTijD,BNMD->BNTijM", x, weights)
        masks = jnp.moveaxis(masks, -1, 2)
        iou = TokenHead(D, M, name="iou_prediction_head")(tokens[:, :, 0])
        return interlace(masks, height=h, width=w), iou
