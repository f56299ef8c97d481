"""Random weights that are the same in every process, for ours and for the peers' models."""

import re
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

if TYPE_CHECKING:
    from pp_jax.sam import Sam

Weigh = Callable[[str, tuple[int, ...]], Float32[np.ndarray, "..."]]


def weigh(name: str, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """The random weights under an official name, the same in every process.

    Kernels have variance 1 / fan-in, biases and norms vary by .2, codes and tokens are N(0, 1).
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.standard_normal(shape, np.float32)
    if re.search(r"_embed(\.weight)?$|_embeddings\.|gaussian|_tokens?\.weight", name):
        return noise
    if len(shape) < 2:
        return 0.2 * noise + np.float32(name.endswith("weight"))
    fan_in = shape[0] if "output_upscaling" in name else np.prod(shape[1:])
    return noise * np.float32(fan_in) ** -0.5


def weighed(model: "Sam", *, weigh: Weigh = weigh) -> dict[str, Any]:
    """Our variables, without the compilation of `init`, which takes more memory than a decoder."""
    import jax

    from convert.rules import correspondence
    from pp_jax import tree
    from pp_jax.sam.model import init

    shapes = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
    flat = {
        # One at a time, so that they are never in memory twice.
        f"{entry.collection}/{entry.path}": jax.device_put(
            entry.layout.to_flax(weigh(name, entry.torch_shape), entry.shape)
        )
        for name, entry in correspondence(shapes).items()
    }
    return tree.unflatten(flat)
