"""The two-way transformer: prompt tokens and image places attend to each other.

An image has thousands of places and a prompt few tokens. So what is linear is computed on the
tokens' side: a query goes through the projection of the keys, instead of each place's key
(`q . (W x) = (q W) . x`), and values are projected after they were summed, or before they spread.
For a click this is less than half of the arithmetic; many prompts that share an image (`n` 1)
project it once instead. The equations are the official ones.

The image is `B n T D`: `n` is 1 until a prompt has changed it, then `N`. Scores have the places in
front, and the few tokens and heads behind.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from pp_jax.sam.config import SamConfig
from pp_jax.sam.image_encoder import layer_norm

_EPSILON = 1e-5  # torch's default; the image encoder uses 1e-6.


class Projection(nn.Module):
    """The weights of a dense layer, handed out to be multiplied from either side."""

    width: int
    features: int

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "D E"], Float[Array, " E"]]:
        """Kernel and bias."""
        shape = (self.width, self.features)
        kernel = self.param("kernel", nn.linear.default_kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernel, bias


class TokenAttention(nn.Module):
    """Multi-head attention that may run at a fraction of the width, in three directions."""

    num_heads: int
    width: int
    internal_dim: int

    def setup(self) -> None:
        """Parameters under the official names."""
        self.q_proj, self.k_proj, self.v_proj = (
            Projection(self.width, self.internal_dim) for _ in range(3)
        )
        self.out_proj = Projection(self.internal_dim, self.width)

    def among_tokens(
        self,
        query: Float[Array, "B N L D"],
        value: Float[Array, "B N L D"],
        attended: Bool[Array, "B N L"],
    ) -> Float[Array, "B N L D"]:
        """What tokens learn from those of their own prompt; queries are keys, too."""
        q, k, v = (
            self._project(x, projection)
            for x, projection in ((query, self.q_proj), (query, self.k_proj), (value, self.v_proj))
        )
        scores = jnp.einsum("BNLKd,BNPKd->BNKLP", q, k) / q.shape[-1] ** 0.5
        scores = jnp.where(attended[:, :, None, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1)
        return self._merge(jnp.einsum("BNKLP,BNPKd->BNLKd", weights, v))

    def to_image(
        self,
        tokens: Float[Array, "B N L D"],
        image: Float[Array, "B n T D"],
        position: Float[Array, "T D"],
    ) -> Float[Array, "B N L D"]:
        """What tokens learn from the image. Prompts that share an image are one row of queries."""
        B, n, _, D = image.shape
        query = self._project(tokens.reshape(B, n, -1, D), self.q_proj)  # B n Q K d
        query = query / query.shape[-1] ** 0.5
        place = image + position
        if few := query.shape[2] <= self._few:
            # The keys' bias adds the same to all scores of a query: the softmax does not see it.
            query = jnp.einsum("BnQKd,DKd->BnQKD", query, self._heads(self.k_proj)[0])
            scores = jnp.einsum("BnTD,BnQKD->BnTQK", place, query)
        else:
            scores = jnp.einsum("BnTKd,BnQKd->BnTQK", self._project(place, self.k_proj), query)
        weights = jax.nn.softmax(scores, axis=2)
        if few:
            seen = jnp.einsum("BnTQK,BnTD->BnQKD", weights, image)
            kernel, bias = self._heads(self.v_proj)
            out = jnp.einsum("BnQKD,DKd->BnQKd", seen, kernel) + bias
        else:
            out = jnp.einsum("BnTQK,BnTKd->BnQKd", weights, self._project(image, self.v_proj))
        return self._merge(out).reshape(tokens.shape)

    def to_tokens(
        self,
        image: Float[Array, "B n T D"],
        position: Float[Array, "T D"],
        key: Float[Array, "B N L D"],
        value: Float[Array, "B N L D"],
        attended: Bool[Array, "B N L"],
    ) -> Float[Array, "B N T D"]:
        """What each place of the image learns from a prompt's tokens."""
        B, N, L, D = key.shape
        n, K = image.shape[1], self.num_heads
        key = self._project(key, self.k_proj).reshape(B, n, N // n * L, K, -1)  # B n Q K d
        key = key / key.shape[-1] ** 0.5
        place = image + position
        if key.shape[2] <= self._few:
            kernel, bias = self._heads(self.q_proj)
            wide = jnp.einsum("BnQKd,DKd->BnQKD", key, kernel)
            scores = jnp.einsum("BnTD,BnQKD->BnTQK", place, wide)
            scores = scores + jnp.einsum("BnQKd,Kd->BnQK", key, bias)[:, :, None]
        else:
            scores = jnp.einsum("BnTKd,BnQKd->BnTQK", self._project(place, self.q_proj), key)
        scores = jnp.moveaxis(scores.reshape(B, n, -1, N // n, L, K), 3, 2)
        scores = scores.reshape(B, N, -1, L, K)
        scores = jnp.where(attended[:, :, None, :, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=3)
        kernel, bias = self.out_proj()
        kernel = kernel.reshape(K, -1, D)
        value = jnp.einsum("BNLKd,KdD->BNLKD", self._project(value, self.v_proj), kernel)
        return jnp.einsum("BNTLK,BNLKD->BNTD", weights, value) + bias

    @property
    def _few(self) -> int:
        """Tokens of one image up to which the tokens' side is the cheaper one."""
        return self.width * self.internal_dim // (self.num_heads * self.width - self.internal_dim)

    def _heads(self, projection: Projection) -> tuple[Float[Array, "D K d"], Float[Array, "K d"]]:
        kernel, bias = projection()
        return kernel.reshape(self.width, self.num_heads, -1), bias.reshape(self.num_heads, -1)

    def _project(self, x: Float[Array, "*n D"], projection: Projection) -> Float[Array, "*n K d"]:
        kernel, bias = self._heads(projection)
        return jnp.einsum("...D,DKd->...Kd", x, kernel) + bias

    def _merge(self, heads: Float[Array, "*n K d"]) -> Float[Array, "*n D"]:
        kernel, bias = self.out_proj()
        return jnp.matmul(heads.reshape(*heads.shape[:-2], -1), kernel) + bias


class TokenMlp(nn.Module):
    """Two dense layers with a ReLU between them."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """The transformed tokens."""
        hidden = nn.relu(nn.Dense(self.hidden, name="lin1")(x))
        return nn.Dense(x.shape[-1], name="lin2")(hidden)


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to tokens, tokens to image, MLP, image to tokens; post-norm throughout.

    The first layer's self-attention *replaces* the tokens, without positions and residual.
    """

    config: SamConfig
    first: bool

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B N L D"],
        image: Float[Array, "B n T D"],
        token_position: Float[Array, "B N L D"],
        image_position: Float[Array, "T D"],
        attended: Bool[Array, "B N L"],
    ) -> tuple[Float[Array, "B N L D"], Float[Array, "B N T D"]]:
        """Updated tokens and image places."""
        c = self.config

        def attention(width: int, name: str) -> TokenAttention:
            return TokenAttention(c.decoder_heads, c.out_dim, width, name=name)

        def norm(x: Array, name: str) -> Array:
            return layer_norm(epsilon=_EPSILON, name=name)(x)

        half = c.out_dim // 2
        self_attn = attention(c.out_dim, "self_attn")
        if self.first:
            tokens = self_attn.among_tokens(tokens, tokens, attended)
        else:
            tokens = tokens + self_attn.among_tokens(tokens + token_position, tokens, attended)
        tokens = norm(tokens, "norm1")

        to_image = attention(half, "cross_attn_token_to_image").to_image
        tokens = norm(tokens + to_image(tokens + token_position, image, image_position), "norm2")

        mlp = TokenMlp(c.decoder_mlp_dim, name="mlp")
        tokens = norm(tokens + mlp(tokens), "norm3")

        to_tokens = attention(half, "cross_attn_image_to_token").to_tokens
        key = tokens + token_position
        learned = to_tokens(image, image_position, key, tokens, attended)
        return tokens, norm(image + learned, "norm4")


class TwoWayTransformer(nn.Module):
    """The decoder's transformer: a stack of two-way blocks and a last look at the image."""

    config: SamConfig

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "B n T D"],
        image_position: Float[Array, "T D"],
        tokens: Float[Array, "B N L D"],
        attended: Bool[Array, "B N L"],
    ) -> tuple[Float[Array, "B N L D"], Float[Array, "B N T D"]]:
        """Tokens and image places after all layers; the tokens are their own positions."""
        c = self.config
        position = tokens
        for i in range(c.decoder_depth):
            layer = TwoWayAttentionBlock(c, first=i == 0, name=f"layers_{i}")
            tokens, image = layer(tokens, image, position, image_position, attended)
        last = TokenAttention(
            c.decoder_heads,
            c.out_dim,
            c.out_dim // 2,
            name="final_attn_token_to_image",
        )
        tokens = tokens + last.to_image(tokens + position, image, image_position)
        norm = layer_norm(epsilon=_EPSILON, name="norm_final_attn")
        return norm(tokens), image
