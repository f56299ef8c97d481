"""Other people's SAM, with random weights: what ours is measured beside.

    pip install torch==2.13.0                      # First and exactly, from the index you want.
    pip install -c constraints.txt -e '.[test,bench]'
    pip install --no-deps keras-hub==0.32.0

keras-hub asks for tensorflow-text, and so for TensorFlow, which its image encoder on JAX never
imports: hence `--no-deps`. `torch.compile` needs a C++ compiler for a CPU. Each function here
imports its package itself, so that a process holds one framework; but jax, 160 MiB, is in all of
them, because the sizes of the model come with it.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType, MethodType
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.turns import MATMULS, Run
from pp_jax.sam import SamConfig

if TYPE_CHECKING:
    import torch

R = TypeVar("R")

# Products that a turn of `MATMULS` makes: a second or so on two cores, some 10 ms on a GPU.
PRODUCTS: Mapping[str, int] = MappingProxyType({"cpu": 8, "cuda": 256})


@dataclass(frozen=True)
class Place:
    """What a program is for, and where it runs."""

    config: SamConfig
    batch: int
    dtype: str  # "float32" or "bfloat16", of the compute.
    device: str  # "cpu" or "cuda".


def start_torch(place: Place) -> "torch.device":
    """The device, after torch was told how to work there.

    Raises:
      RuntimeError: No GPU that torch can use.
    """
    import torch

    if place.device == "cpu":
        torch.set_num_threads(os.cpu_count())  # XLA always takes all cores.
    elif not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no GPU")
    # XLA rounds float32 products to TF32 on a GPU: so may torch.
    torch.set_float32_matmul_precision("high")
    return torch.device(place.device)


def blocking(function: Callable[[], R], device: "torch.device") -> Callable[[], R]:
    """The function, ended when the device has ended."""
    import torch

    def run() -> R:
        found = function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    return run


def official_sam(config: SamConfig, *, sdpa: bool = False) -> "torch.nn.Module":
    """The official model for images of `config.image_size`, without gradients.

    With `sdpa`, its encoder's attention is torch's own, the relative terms written out as a mask.
    """
    from convert.reference import build

    model = build(replace(config, trained_size=config.image_size))
    if sdpa:
        for block in model.image_encoder.blocks:
            block.attn.forward = MethodType(_attend, block.attn)
    return model


def _attend(self: Any, x: "torch.Tensor") -> "torch.Tensor":
    """In place of `Attention.forward` of the official `image_encoder.py`."""
    import torch
    from segment_anything.modeling.image_encoder import get_rel_pos

    B, h, w, D = x.shape
    K = self.num_heads
    qkv = self.qkv(x).reshape(B, h * w, 3, K, D // K).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)  # B K L d
    on_grid = query.reshape(B, K, h, w, D // K)
    rows = torch.einsum("bkhwd,hyd->bkhwy", on_grid, get_rel_pos(h, h, self.rel_pos_h))
    columns = torch.einsum("bkhwd,wxd->bkhwx", on_grid, get_rel_pos(w, w, self.rel_pos_w))
    bias = (rows[..., :, None] + columns[..., None, :]).reshape(B, K, h * w, h * w)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return self.proj(out.transpose(1, 2).reshape(B, h, w, D))


def transformers_sam(config: SamConfig, *, attention: str, dtype: str) -> "torch.nn.Module":
    """Hugging Face's model with `attention` `eager` or `sdpa`, without gradients."""
    import torch
    import transformers

    import convert.reference  # noqa: F401  torchvision beside a torch without CUDA.

    vision = transformers.SamVisionConfig(
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        global_attn_indexes=list(config.global_blocks),
        window_size=config.window_size,
        image_size=config.image_size,
        patch_size=config.patch_size,
        mlp_ratio=float(config.mlp_ratio),
        output_channels=config.out_dim,
        num_pos_feats=config.out_dim // 2,
        initializer_range=0.02,  # Of 1e-10, its default, come numbers that a CPU is slow with.
    )
    model = transformers.SamModel._from_config(
        transformers.SamConfig(vision_config=vision.to_dict()),
        attn_implementation=attention,
        dtype=getattr(torch, dtype),
    )
    found = model.vision_encoder.config._attn_implementation
    if found != attention:
        raise RuntimeError(f"transformers chose attention {found}, not {attention}")
    return model.eval().requires_grad_(False)


def _official(place: Place, *, sdpa: bool = False, compiled: bool = False) -> Run:
    start_torch(place)
    return _encoder(place, official_sam(place.config, sdpa=sdpa).image_encoder, compiled=compiled)


def _transformers(place: Place, *, attention: str, compiled: bool = False) -> Run:
    start_torch(place)
    model = transformers_sam(place.config, attention=attention, dtype=place.dtype)
    return _encoder(place, model.vision_encoder, compiled=compiled)


def _encoder(place: Place, encoder: "torch.nn.Module", *, compiled: bool) -> Run:
    import torch

    device, side = torch.device(place.device), place.config.image_size
    encoder = encoder.to(device, getattr(torch, place.dtype))
    image = torch.randn(place.batch, 3, side, side).to(device, getattr(torch, place.dtype))
    if compiled:
        encoder = torch.compile(encoder)

    @torch.inference_mode()
    def forward() -> object:
        return encoder(image)

    return blocking(forward, device)


def _keras_hub(place: Place) -> Run:
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras
    import keras_hub

    c = place.config
    keras.config.set_dtype_policy(place.dtype)
    encoder = keras_hub.models.ViTDetBackbone(
        hidden_size=c.embed_dim,
        num_layers=c.depth,
        intermediate_dim=c.mlp_ratio * c.embed_dim,
        num_heads=c.num_heads,
        global_attention_layer_indices=list(c.global_blocks),
        image_shape=(c.image_size, c.image_size, 3),
        patch_size=c.patch_size,
        num_output_channels=c.out_dim,
        window_size=c.window_size,
    )
    shape = (place.batch, c.image_size, c.image_size, 3)
    image = jax.random.normal(jax.random.key(0), shape).astype(place.dtype)
    variables = [
        [variable.value for variable in group]
        for group in (encoder.trainable_variables, encoder.non_trainable_variables)
    ]
    forward = jax.jit(lambda variables, image: encoder.stateless_call(*variables, image)[0])
    return lambda: jax.block_until_ready(forward(variables, image))


def _matmul_jax(place: Place) -> Run:
    import jax
    import jax.numpy as jnp

    left, up, down = (
        jax.random.normal(key, shape, jnp.float32).astype(place.dtype) * scale
        for key, (shape, scale) in zip(
            jax.random.split(jax.random.key(0), 3), _products(place), strict=True
        )
    )

    @jax.jit
    def multiply(left: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, PRODUCTS[place.device] // 2, lambda _, x: x @ up @ down, left)

    return lambda: multiply(left, up, down).block_until_ready()


def _matmul_torch(place: Place) -> Run:
    import torch

    device = start_torch(place)
    left, up, down = (
        (scale * torch.randn(shape)).to(device, getattr(torch, place.dtype))
        for shape, scale in _products(place)
    )

    @torch.inference_mode()
    def multiply() -> None:
        x = left
        for _ in range(PRODUCTS[place.device] // 2):
            x = x @ up @ down

    return blocking(multiply, device)


def _products(place: Place) -> tuple[tuple[tuple[int, int], float], ...]:
    """Shapes and scales of the tokens of a batch, and of a layer that widens and one that narrows.

    At these scales the numbers stay of one size, however often they are multiplied.
    """
    c = place.config
    wide = c.mlp_ratio * c.embed_dim
    return (
        ((place.batch * c.grid**2, c.embed_dim), 1.0),
        ((c.embed_dim, wide), c.embed_dim**-0.5),
        ((wide, c.embed_dim), wide**-0.5),
    )


PRODUCT_PROGRAMS: Mapping[str, Callable[[Place], Run]] = MappingProxyType(
    dict(zip(MATMULS, (_matmul_jax, _matmul_torch), strict=True))
)

ENCODERS: Mapping[str, Callable[[Place], Run]] = MappingProxyType(
    {
        "official": _official,
        "official-sdpa": partial(_official, sdpa=True),
        "official-compiled": partial(_official, compiled=True),
        "official-sdpa-compiled": partial(_official, sdpa=True, compiled=True),
        "transformers-eager": partial(_transformers, attention="eager"),
        "transformers-sdpa": partial(_transformers, attention="sdpa"),
        "transformers-compiled": partial(_transformers, attention="sdpa", compiled=True),
        "keras-hub": _keras_hub,
    }
)
