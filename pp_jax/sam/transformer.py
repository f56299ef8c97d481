"""The two-way transformer: prompt tokens and image places attend to each other."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from pp_jax.sam.config import SamConfig
from pp_jax.sam.image_encoder import layer_norm

_EPSILON = 1e-5  # torch's default; the image encoder uses 1e-6.


class TokenAttention(nn.Module):
    """Multi-head attention that may run at a fraction of the width."""

    num_heads: int
    internal_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B L D"],
        key: Float[Array, "B T D"],
        value: Float[Array, "B T D"],
        attended: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B L D"]:
        """The attended values; keys where `attended` is False do not exist for any query."""
        width = query.shape[-1]

        def heads(x: Array, name: str) -> Array:
            x = nn.Dense(self.internal_dim, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:-1], self.num_heads, -1)  # B L K d

        query, key, value = heads(query, "q_proj"), heads(key, "k_proj"), heads(value, "v_proj")
        scores = jnp.einsum("BLKd,BTKd->BKLT", query, key, preferred_element_type=jnp.float32)
        scores = scores / query.shape[-1] ** 0.5
        if attended is not None:
            scores = jnp.where(attended[:, None, None, :], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        out = jnp.einsum("BKLT,BTKd->BLKd", weights, value)
        out = out.reshape(*out.shape[:2], self.internal_dim)
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(out)


class TokenMlp(nn.Module):
    """Two dense layers with a ReLU between them."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The transformed tokens."""
        hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="lin1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="lin2")(hidden)


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to tokens, tokens to image, MLP, image to tokens; post-norm throughout.

    The first layer's self-attention *replaces* the tokens, without positions and residual.
    """

    config: SamConfig
    first: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        image: Float[Array, "B T D"],
        token_position: Float[Array, "B L D"],
        image_position: Float[Array, "T D"],
        attended: Bool[Array, "B L"],
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B T D"]]:
        """Updated tokens and image places."""
        c = self.config

        def attention(width: int, name: str) -> TokenAttention:
            return TokenAttention(c.decoder_heads, width, dtype=self.dtype, name=name)

        def norm(x: Array, name: str) -> Array:
            return layer_norm(epsilon=_EPSILON, dtype=self.dtype, name=name)(x)

        half = c.out_dim // 2
        self_attn = attention(c.out_dim, "self_attn")
        if self.first:
            tokens = self_attn(tokens, tokens, tokens, attended)
        else:
            query = tokens + token_position
            tokens = tokens + self_attn(query, query, tokens, attended)
        tokens = norm(tokens, "norm1")

        query, key = tokens + token_position, image + image_position
        to_image = attention(half, "cross_attn_token_to_image")
        tokens = norm(tokens + to_image(query, key, image), "norm2")

        mlp = TokenMlp(c.decoder_mlp_dim, dtype=self.dtype, name="mlp")
        tokens = norm(tokens + mlp(tokens), "norm3")

        query, key = image + image_position, tokens + token_position
        to_tokens = attention(half, "cross_attn_image_to_token")
        image = norm(image + to_tokens(query, key, tokens, attended), "norm4")
        return tokens, image


class TwoWayTransformer(nn.Module):
    """The decoder's transformer: a stack of two-way blocks and a last look at the image."""

    config: SamConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "B T D"],
        image_position: Float[Array, "T D"],
        tokens: Float[Array, "B L D"],
        attended: Bool[Array, "B L"],
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B T D"]]:
        """Tokens and image places after all layers; the tokens are their own positions."""
        c = self.config
        position = tokens
        for i in range(c.decoder_depth):
            layer = TwoWayAttentionBlock(c, first=i == 0, dtype=self.dtype, name=f"layers_{i}")
            tokens, image = layer(tokens, image, position, image_position, attended)
        last = TokenAttention(
            c.decoder_heads, c.out_dim // 2, dtype=self.dtype, name="final_attn_token_to_image"
        )
        tokens = tokens + last(tokens + position, image + image_position, image)
        norm = layer_norm(epsilon=_EPSILON, dtype=self.dtype, name="norm_final_attn")
        return norm(tokens), image
