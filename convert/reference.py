"""The official torch SAM, as the reference to compare with: import it, build it, listen to it."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import library

try:
    import torchvision
except RuntimeError:
    # torchvision's wheel is built for the CUDA torch: beside the CPU build its operators are absent
    # and the import fails. SAM's model needs none of them, so two declarations are enough.
    _operators = library.Library("torchvision", "DEF")
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
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

__all__ = ["Sam", "build", "get_rel_pos", "listen", "segment_anything", "torchvision", "with_state"]


def build(config: SamConfig) -> Sam:
    """The official modules with the sizes of `config`, as `build_sam.py` puts them together."""
    grid = config.trained_grid
    encoder = ImageEncoderViT(
        depth=config.depth,
        embed_dim=config.embed_dim,
        img_size=config.trained_size,
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
        input_image_size=(config.trained_size, config.trained_size),
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


def with_state(config: SamConfig, state: Mapping[str, np.ndarray]) -> Sam:
    """The official model with these tensors, all of them and no others."""
    model = build(config)
    model.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in state.items()})
    return model


def listen(
    module: torch.nn.Module, names: Mapping[str, str], run: Callable[[], object]
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
