"""Operations that the model needs: a product and its sum are two.

Only products count: no softmax, norm or activation. What a program computes again, or in vain (the
padding of windows, the gradient of a frozen weight), does not count: a program that avoids it is
not the slower one for it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pp_jax.lora import Lora
from pp_jax.sam.config import SamConfig

PAIRS = Lora(rank=8, alpha=16.0, on=("q", "v"))  # Of the policy `lora`.


def encoder_flops(config: SamConfig, batch: int = 1) -> int:
    """Of the embeddings of `batch` images."""
    c, tokens = config, config.grid**2
    patches = 2 * tokens * c.embed_dim * 3 * c.patch_size**2
    blocks = sum(_dense(c) + 2 * _scores(c, i) + _terms(c, i) for i in range(c.depth))
    return batch * (patches + blocks + _neck(c))


def _neck(c: SamConfig) -> int:
    return 2 * c.grid**2 * (c.embed_dim * c.out_dim + 9 * c.out_dim**2)


def _dense(c: SamConfig) -> int:
    """qkv and proj, then the two layers of the MLP, of one block."""
    return 2 * c.grid**2 * c.embed_dim**2 * (4 + 2 * c.mlp_ratio)


def _scores(c: SamConfig, block: int) -> int:
    """Of all heads of a block together; the sums of values are as many."""
    return 2 * c.grid**2 * c.embed_dim * _side(c, block) ** 2


def _terms(c: SamConfig, block: int) -> int:
    """Relative terms of both axes."""
    return 2 * c.grid**2 * c.embed_dim * 2 * _side(c, block)


def _side(c: SamConfig, block: int) -> int:
    return c.grid if block in c.global_blocks else c.window_size


def _encoder_with_pairs(c: SamConfig) -> int:
    """Forward, then back to the inputs of all that comes after a pair, and to the pairs.

    No gradient of a kernel or of a table of relative positions; none of the first block's input,
    nor of its keys, before which nothing is trained.
    """
    forward = encoder_flops(c)
    # A product of two activations has two gradients, one with what is frozen has one.
    blocks = sum(_dense(c) + 4 * _scores(c, i) + _terms(c, i) for i in range(c.depth))
    unasked = 2 * c.grid**2 * c.embed_dim * 3 * c.embed_dim + _scores(c, 0)
    half = 2 * c.grid**2 * c.embed_dim * PAIRS.rank  # x A or (x A) B.
    pairs = len(PAIRS.on) * (c.depth * 6 - 1) * half
    return forward + _neck(c) + blocks - unasked + pairs


def decoder_flops(config: SamConfig, prompts: int, points: int) -> int:
    """Of all masks of `prompts` prompts on one image, each of `points` points and no mask.

    As the official decoder is written; ours needs fewer. But the projections of the image in the
    first layer are the same for all prompts and count once: the official one repeats them for each.
    The point that is added to prompts without a box counts as one; a box is two.
    """
    c, places = config, config.grid**2
    D, half, masks = c.out_dim, c.out_dim // 2, c.multimask_outputs + 1
    tokens = 1 + masks + points
    cross = 4 * (tokens + places) * D * half + 4 * tokens * places * half  # Either way.
    itself = 8 * tokens * D**2 + 4 * tokens**2 * D
    mlp = 4 * tokens * D * c.decoder_mlp_dim
    transformer = c.decoder_depth * (itself + mlp + 2 * cross) + cross
    shared = 3 * 2 * places * D * half  # Keys and values for the tokens, and queries to them.
    finer = 2 * places * D**2 + 2 * 4 * places * (D // 4) * (D // 2)
    heads = 2 * masks * (2 * D**2 + D * D // 8) + 2 * (2 * D**2 + D * masks)
    product = 2 * masks * 16 * places * (D // 8)
    return prompts * (transformer - shared + finer + heads + product) + shared


def product_flops(config: SamConfig, *, batch: int, products: int) -> int:
    """Of `products` products of the sizes of an MLP layer: tokens x D by D x 4D, or back."""
    return products * 2 * batch * config.grid**2 * config.mlp_ratio * config.embed_dim**2


def training_flops(config: SamConfig, policy: str, batch: int) -> int:
    """Of one step on `batch` images with a box on each, whose decoder is trained.

    A trained part costs three forward passes.

    Raises:
      ValueError: The policy has no row in `PASSES`.
    """
    if policy not in PASSES:
        raise ValueError(f"no count for policy {policy}; there are {', '.join(PASSES)}")
    return batch * (PASSES[policy](config) + 3 * decoder_flops(config, 1, 2))


# Operations of the encoder for one image.
PASSES: Mapping[str, Callable[[SamConfig], int]] = MappingProxyType(
    {
        "decoder": encoder_flops,
        "lora": _encoder_with_pairs,
        "full": lambda config: 3 * encoder_flops(config),
    }
)
