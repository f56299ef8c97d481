"""SAM: encode images once, decode as many prompts as wanted."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pp_jax.lora import Lora
from pp_jax.sam.config import SamConfig
from pp_jax.sam.image_encoder import ImageEncoder
from pp_jax.sam.mask_decoder import MaskDecoder
from pp_jax.sam.prompt_encoder import PromptEncoder
from pp_jax.types import NEUTRAL, Prompts, check


class SamOutput(NamedTuple):
    """Every mask that SAM has a token for. Index 0 is the single mask, 1 to 3 the three."""

    logits: Float[Array, "B N M h w"]  # Low resolution, model frame; a mask is logits > 0.
    iou: Float[Array, "B N M"]  # Predicted, not clipped.

    def three(self) -> "SamOutput":
        """The three masks of an ambiguous prompt (`multimask_output=True`)."""
        return SamOutput(self.logits[:, :, 1:], self.iou[:, :, 1:])

    def single(self) -> "SamOutput":
        """The one mask meant for several prompts (`multimask_output=False`)."""
        return SamOutput(self.logits[:, :, :1], self.iou[:, :, :1])

    def best(self) -> "SamOutput":
        """Of these masks, the one with the highest predicted IoU."""
        index = jnp.argmax(self.iou, axis=-1, keepdims=True)  # B N 1
        logits = jnp.take_along_axis(self.logits, index[..., None, None], axis=2)
        return SamOutput(logits, jnp.take_along_axis(self.iou, index, axis=2))


class Sam(nn.Module):
    """The Segment Anything Model. Batched: `B` images, `N` prompts on each."""

    config: SamConfig
    # The image encoder's; all else is float32: the decoder takes a hundredth of the time, and in
    # bfloat16 it moves masks ten times as much.
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    attention: str = "auto"  # A row of ATTENTIONS, for the image encoder.
    lora: Lora | None = None  # Pairs of the image encoder, in a collection `lora` of their own.
    scan_blocks: bool = False  # Compile equal blocks of the image encoder once, as a loop.
    rows: jax.sharding.Sharding | None = None  # Where each image's features stay in that loop.

    def setup(self) -> None:
        """The three parts, under the official names."""
        self.image_encoder = ImageEncoder(
            self.config,
            dtype=self.dtype,
            remat=self.remat,
            attention=self.attention,
            lora=self.lora,
            scan_blocks=self.scan_blocks,
            rows=self.rows,
        )
        self.prompt_encoder = PromptEncoder(self.config)
        self.mask_decoder = MaskDecoder(self.config)

    def __call__(self, image: Float[Array, "B S S 3"], prompts: Prompts) -> SamOutput:
        """All masks for normalised, padded images."""
        return self.decode(self.encode(image), prompts)

    def encode(self, image: Float[Array, "B S S 3"]) -> Float[Array, "B h w D"]:
        """The image embedding, in float32."""
        return self.image_encoder(image).astype(jnp.float32)

    def decode(self, embedding: Float[Array, "B h w D"], prompts: Prompts) -> SamOutput:
        """All masks for images that were encoded before."""
        check(prompts)
        side = self.config.mask_side
        if prompts.masks.shape[-2:] not in ((side, side), (0, 0)):
            raise ValueError(f"mask prompts are {prompts.masks.shape[-2:]}, not {(side, side)}")
        sparse, dense = self.prompt_encoder(prompts)
        logits, iou = self.mask_decoder(
            embedding,
            self.prompt_encoder.dense_position(),
            sparse,
            prompts.labels != NEUTRAL,
            dense,
        )
        return SamOutput(logits, iou)


@partial(jax.jit, static_argnames="model")
def init(model: Sam, key: Array) -> dict:
    """Fresh variables `{"params", "constants"}`, with pairs also `{"lora"}`, drawn at random."""
    c = model.config
    image = jnp.zeros((1, c.image_size, c.image_size, 3))
    side = c.mask_side
    prompts = Prompts(
        points=jnp.zeros((1, 1, 1, 2)),
        labels=jnp.zeros((1, 1, 1), jnp.int32),
        masks=jnp.zeros((1, 1, side, side)),
        has_mask=jnp.zeros((1, 1), bool),
        valid=jnp.ones((1, 1), bool),
    )
    return model.init(key, image, prompts)
