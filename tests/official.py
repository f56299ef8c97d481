"""The official torch SAM: importing it, building it, randomising it, listening to its stages.

Not a test: what parity tests compare with.
"""

import functools
import re
from collections.abc import Callable

import numpy as np
import torch

try:
    import torchvision
except RuntimeError:
    # torchvision's wheel is built for the CUDA torch: beside the CPU build its operators are absent
    # and the import fails. SAM's model needs none of them, so two declarations are enough.
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

import segment_anything
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.modeling.image_encoder import get_rel_pos

from pp_jax.sam import SamConfig

__all__ = ["build", "get_rel_pos", "listen", "randomise", "segment_anything", "torchvision"]


def build(config: SamConfig) -> Sam:
    """The official modules with the sizes of `config`, as `build_sam.py` puts them together."""
    grid = config.grid
    encoder = ImageEncoderViT(
        depth=config.depth,
        embed_dim=config.embed_dim,
        img_size=config.image_size,
        mlp_ratio=config.mlp_ratio,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=config.global_blocks,
        window_size=config.window_size,
        out_chans=config.out_dim,
    )
    prompt_encoder = PromptEncoder(
        embed_dim=config.out_dim,
        image_embedding_size=(grid, grid),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=config.mask_channels,
    )
    transformer = TwoWayTransformer(
        depth=config.decoder_depth,
        embedding_dim=config.out_dim,
        mlp_dim=config.decoder_mlp_dim,
        num_heads=config.decoder_heads,
    )
    decoder = MaskDecoder(
        num_multimask_outputs=config.multimask_outputs,
        transformer=transformer,
        transformer_dim=config.out_dim,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
    return Sam(encoder, prompt_encoder, decoder).eval().requires_grad_(False)


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


def listen(
    module: torch.nn.Module, names: dict[str, str], run: Callable[[], object]
) -> dict[str, np.ndarray]:
    """What the submodules (our stage name -> theirs) return while `run` runs."""
    heard: dict[str, np.ndarray] = {}

    def keep(stage: str) -> Callable:
        def hook(_module: object, _args: object, out: torch.Tensor) -> None:
            heard[stage] = out.detach().numpy()

        return hook

    handles = [
        module.get_submodule(theirs).register_forward_hook(keep(ours))
        for ours, theirs in names.items()
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return heard
