"""The prompt encoder: points, boxes and masks to tokens and a dense grid."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pp_jax.sam.config import SamConfig
from pp_jax.sam.image_encoder import gelu, layer_norm
from pp_jax.types import NOT_A_POINT, Prompts


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of positions, in float32 whatever the model computes in.

    The Gaussian is a constant, not a parameter: it lives in the collection `constants`, where
    neither a gradient nor weight decay can reach it.
    """

    features: int

    def setup(self) -> None:
        """The Gaussian under its official name."""
        self.gaussian = self.variable(
            "constants",
            "positional_encoding_gaussian_matrix",
            lambda: jax.random.normal(self.make_rng("params"), (2, self.features)),
        )

    def __call__(self, position: Float[Array, "*L 2"]) -> Float[Array, "*L D"]:
        """The code of positions `(x, y)` given in [0, 1]; width `2 features`."""
        angle = jnp.matmul(2 * position.astype(jnp.float32) - 1, 2 * jnp.pi * self.gaussian.value)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    def grid(self, side: int) -> Float[Array, "h w D"]:
        """The code of the centres of `side` x `side` equal cells.

        From the sines of the columns and of the rows, sin(a + b) = sin a cos b + cos a sin b: XLA's
        CPU takes 30 ms for the sines of all cells.
        """
        centre = 2 * (jnp.arange(side, dtype=jnp.float32) + 0.5) / side - 1
        angles = 2 * jnp.pi * centre[:, None] * self.gaussian.value[:, None]  # 2 side features
        # A loop, for XLA would fuse the sines with what follows and compute them for each cell.
        sin, cos = jax.lax.map(lambda angle: (jnp.sin(angle), jnp.cos(angle)), angles)
        (sin_x, sin_y), (cos_x, cos_y) = (sin[0], sin[1][:, None]), (cos[0], cos[1][:, None])
        sine = sin_x * cos_y + cos_x * sin_y
        return jnp.concatenate([sine, cos_x * cos_y - sin_x * sin_y], axis=-1)


class PromptEncoder(nn.Module):
    """Encodes `B` images times `N` prompts."""

    config: SamConfig

    def setup(self) -> None:
        """Parameters under the official names."""
        c = self.config
        normal = nn.initializers.normal(1.0)
        self.pe_layer = PositionEmbeddingRandom(c.out_dim // 2)
        self.point_embeddings = [
            self.param(f"point_embeddings_{i}", normal, (1, c.out_dim)) for i in range(4)
        ]
        self.not_a_point_embed = self.param("not_a_point_embed", normal, (1, c.out_dim))
        self.no_mask_embed = self.param("no_mask_embed", normal, (1, c.out_dim))
        two = {"kernel_size": (2, 2), "strides": (2, 2), "padding": "VALID"}
        self.mask_downscaling_0 = nn.Conv(c.mask_channels // 4, **two)
        self.mask_downscaling_1 = layer_norm(epsilon=1e-6)
        self.mask_downscaling_3 = nn.Conv(c.mask_channels, **two)
        self.mask_downscaling_4 = layer_norm(epsilon=1e-6)
        self.mask_downscaling_6 = nn.Conv(c.out_dim, (1, 1))

    def __call__(
        self, prompts: Prompts
    ) -> tuple[Float[Array, "B N P D"], Float[Array, "B n h w D"]]:
        """Sparse tokens, and the dense grid to add to the image embedding."""
        return self.embed_points(prompts), self.embed_masks(prompts)

    def embed_points(self, prompts: Prompts) -> Float[Array, "B N P D"]:
        """One token per point; a neutral slot gets zeros, and the decoder must not attend to it."""
        label = prompts.labels[..., None]  # B N P 1
        code = self.pe_layer((prompts.points + 0.5) / self.config.image_size)
        code = jnp.where(label >= 0, code, 0.0)
        for i, embedding in enumerate(self.point_embeddings):
            code = code + jnp.where(label == i, embedding, 0.0)
        return code + jnp.where(label == NOT_A_POINT, self.not_a_point_embed, 0.0)

    def embed_masks(self, prompts: Prompts) -> Float[Array, "B n h w D"]:
        """The downscaled mask prompt, or the learned "no mask" vector at each place.

        Where no prompt can have a mask (masks of side 0), that is one grid for all (`n` 1).
        """
        B, N, height, width = prompts.masks.shape
        if not height:
            grid = self.config.grid
            return jnp.broadcast_to(self.no_mask_embed[0], (B, 1, grid, grid, self.config.out_dim))
        x = prompts.masks.reshape(B * N, height, width, 1)
        x = self.mask_downscaling_1(self.mask_downscaling_0(x))
        x = self.mask_downscaling_4(self.mask_downscaling_3(gelu(x)))
        dense = self.mask_downscaling_6(gelu(x))
        dense = dense.reshape(B, N, *dense.shape[1:])
        return jnp.where(prompts.has_mask[..., None, None, None], dense, self.no_mask_embed[0])

    def dense_position(self) -> Float[Array, "h w D"]:
        """The positional code of each place of the embedding grid."""
        return self.pe_layer.grid(self.config.grid)
