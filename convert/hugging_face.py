"""The names of Hugging Face's `SamModel` for the official ones."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

# Pattern of a Hugging Face name, official name; first match wins. Layouts are the same.
RULES: Sequence[tuple[str, str]] = (
    (
        r"shared_image_embedding\.positional_embedding",
        r"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"vision_encoder\.patch_embed\.projection\.(.+)", r"image_encoder.patch_embed.proj.\1"),
    (r"vision_encoder\.layers\.(\d+)\.layer_norm(\d)\.(.+)", r"image_encoder.blocks.\1.norm\2.\3"),
    (r"vision_encoder\.layers\.(.+)", r"image_encoder.blocks.\1"),
    (r"vision_encoder\.neck\.conv1\.(.+)", r"image_encoder.neck.0.\1"),
    (r"vision_encoder\.neck\.layer_norm1\.(.+)", r"image_encoder.neck.1.\1"),
    (r"vision_encoder\.neck\.conv2\.(.+)", r"image_encoder.neck.2.\1"),
    (r"vision_encoder\.neck\.layer_norm2\.(.+)", r"image_encoder.neck.3.\1"),
    (r"vision_encoder\.(.+)", r"image_encoder.\1"),
    (r"prompt_encoder\.mask_embed\.conv1\.(.+)", r"prompt_encoder.mask_downscaling.0.\1"),
    (r"prompt_encoder\.mask_embed\.layer_norm1\.(.+)", r"prompt_encoder.mask_downscaling.1.\1"),
    (r"prompt_encoder\.mask_embed\.conv2\.(.+)", r"prompt_encoder.mask_downscaling.3.\1"),
    (r"prompt_encoder\.mask_embed\.layer_norm2\.(.+)", r"prompt_encoder.mask_downscaling.4.\1"),
    (r"prompt_encoder\.mask_embed\.conv3\.(.+)", r"prompt_encoder.mask_downscaling.6.\1"),
    (r"prompt_encoder\.point_embed\.(.+)", r"prompt_encoder.point_embeddings.\1"),
    (r"mask_decoder\.upscale_conv1\.(.+)", r"mask_decoder.output_upscaling.0.\1"),
    (r"mask_decoder\.upscale_layer_norm\.(.+)", r"mask_decoder.output_upscaling.1.\1"),
    (r"mask_decoder\.upscale_conv2\.(.+)", r"mask_decoder.output_upscaling.3.\1"),
    (r"(mask_decoder\..+)\.proj_in\.(.+)", r"\1.layers.0.\2"),
    (r"(mask_decoder\..+)\.proj_out\.(.+)", r"\1.layers.2.\2"),
    (r"(mask_decoder\.(?:output|iou).+)\.layers\.0\.(.+)", r"\1.layers.1.\2"),
    (r"(mask_decoder\.transformer\.)layer_(norm_final_attn\..+)", r"\1\2"),
    (r"(mask_decoder\.transformer\..+)\.layer_norm(\d)\.(.+)", r"\1.norm\2.\3"),
    (r"((?:prompt_encoder|mask_decoder)\..+)", r"\1"),
)

# The same tensor again: some files hold it, some do not.
TIED = "prompt_encoder.shared_embedding.positional_embedding"


def is_hugging_face(names: Mapping[str, T]) -> bool:
    """Whether the names are those of a `SamModel`."""
    return any(name.startswith("vision_encoder.") for name in names)


def to_official(state: Mapping[str, T]) -> dict[str, T]:
    """The same tensors under official names; a name that no rule knows keeps its own."""
    return {_official(name): tensor for name, tensor in state.items() if name != TIED}


def _official(name: str) -> str:
    for pattern, replacement in RULES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
