"""The mask decoder: embeddings and prompt tokens to masks and their predicted quality."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from pp_jax.sam.config import SamConfig
from pp_jax.sam.image_encoder import layer_norm
from pp_jax.sam.transformer import TwoWayTransformer


class UpConv(nn.Module):
    """Transposed convolution with kernel 2 and stride 2: each cell becomes 2 x 2 cells.

    Nothing overlaps, so it is one product and a shuffle; torch's kernel fits without a flip.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B 2*h 2*w D"]:
        """The finer grid."""
        B, h, w, C = x.shape
        shape = (2, 2, C, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = jnp.einsum("BhwC,ijCD->BhiwjD", x.astype(self.dtype), kernel)
        return x.reshape(B, 2 * h, 2 * w, self.features) + bias


class TokenHead(nn.Module):
    """Three dense layers with ReLU between them."""

    hidden: int
    out: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        """The head's answer for each token."""
        for i in range(2):
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name=f"layers_{i}")(x))
        return nn.Dense(self.out, dtype=self.dtype, name="layers_2")(x)


class MaskDecoder(nn.Module):
    """Predicts every mask that SAM has a token for: 0 the single mask, 1 to 3 the three."""

    config: SamConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        embedding: Float[Array, "B h w D"],
        position: Float[Array, "h w D"],
        sparse: Float[Array, "B N P D"],
        attended: Bool[Array, "B N P"],
        dense: Float[Array, "B N h w D"],
    ) -> tuple[Float[Array, "B N M 4*h 4*w"], Float[Array, "B N M"]]:
        """Low-resolution logits and predicted IoU of all `M` = 1 + 3 masks, in float32."""
        c = self.config
        B, N, P, D = sparse.shape
        h, w = position.shape[:2]
        M = c.multimask_outputs + 1
        iou_token = self.param("iou_token", nn.initializers.normal(1.0), (1, D))
        mask_tokens = self.param("mask_tokens", nn.initializers.normal(1.0), (M, D))
        own = jnp.concatenate([iou_token, mask_tokens])  # 1 + M tokens
        own = jnp.broadcast_to(own, (B * N, M + 1, D))
        tokens = jnp.concatenate([own, sparse.reshape(B * N, P, D)], axis=1).astype(self.dtype)
        attended = jnp.pad(attended.reshape(B * N, P), ((0, 0), (M + 1, 0)), constant_values=True)
        image = (embedding[:, None] + dense).astype(self.dtype).reshape(B * N, h * w, D)
        transformer = TwoWayTransformer(c, dtype=self.dtype, name="transformer")
        place = position.reshape(h * w, D).astype(self.dtype)
        tokens, image = transformer(image, place, tokens, attended)

        x = image.reshape(B * N, h, w, D)
        x = UpConv(D // 4, dtype=self.dtype, name="output_upscaling_0")(x)
        x = layer_norm(epsilon=1e-6, dtype=self.dtype, name="output_upscaling_1")(x)
        x = nn.gelu(x, approximate=False)
        x = UpConv(D // 8, dtype=self.dtype, name="output_upscaling_3")(x)
        x = nn.gelu(x, approximate=False)  # BN 4h 4w D/8
        heads = [
            TokenHead(D, D // 8, dtype=self.dtype, name=f"output_hypernetworks_mlps_{i}")(
                tokens[:, 1 + i]
            )
            for i in range(M)
        ]
        weights = jnp.stack(heads, axis=1)  # BN M D/8
        masks = jnp.einsum("BMD,BhwD->BMhw", weights, x, preferred_element_type=jnp.float32)
        iou = TokenHead(D, M, dtype=self.dtype, name="iou_prediction_head")(tokens[:, 0])
        return (
            masks.reshape(B, N, M, 4 * h, 4 * w),
            iou.astype(jnp.float32).reshape(B, N, M),
        )
