"""The official torch SAM with random weights: what parity tests compare with. Not a test."""

import re

import torch

from convert.reference import Sam, build, get_rel_pos, listen, segment_anything, torchvision

__all__ = [
    "Sam",
    "build",
    "draw",
    "get_rel_pos",
    "listen",
    "randomise",
    "segment_anything",
    "torch",
    "torchvision",
]


def draw(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random value for one tensor, at a scale where it matters and no softmax saturates.

    Kernels and relative positions have variance 1 / fan-in, biases and norms vary by .2, codes and
    tokens are N(0, 1). SAM's own initial values would not do: positions and relative positions
    start at zero and hide a swap of height and width.
    """
    noise = torch.randn(tensor.shape, generator=generator)
    if "rel_pos" in name:
        return noise * tensor.shape[1] ** -0.5
    if re.search(r"pos_embed|_embed\.weight|point_embeddings|gaussian|_tokens?\.weight", name):
        return noise
    if tensor.ndim == 1:
        return 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
    upscaling = "output_upscaling" in name  # (in, out, 2, 2), all others (out, in, ...)
    fan_in = tensor.shape[0] if upscaling else tensor[0].numel()
    return noise * fan_in**-0.5


def randomise(module: torch.nn.Module, *, seed: int) -> torch.nn.Module:
    """The same module with every tensor of its state drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    module.load_state_dict({name: draw(name, x, generator) for name, x in state.items()})
    return module
