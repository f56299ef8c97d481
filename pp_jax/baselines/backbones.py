"""Encoders that were designed for ImageNet: VGG16 and ResNet-50, layer for layer as torchvision's.

Simonyan and Zisserman 2015, arXiv 1409.1556; He et al. 2016, arXiv 1512.03385 (with the stride in
the 3x3 convolution, as torchvision has it). Of the ResNets that of 50 layers is taken: DeepLab
needs its last stage dilated, which torchvision offers for bottlenecks alone.

Where the image has a fourth channel, pretrained kernels have zeros for it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pp_jax import tree
from pp_jax.baselines.unet import HE, ConvBlock

_VGG16 = (2, 2, 3, 3, 3)  # Convolutions of each stage.
_RESNET50 = (3, 4, 6, 3)  # Blocks of each stage.
_EXPANSION = 4  # Of a bottleneck: channels out, per channel of its 3x3 convolution.
_PATH = "network/backbone"  # Of a segmenter's variables.


class Vgg16(nn.Module):
    """`features` of torchvision's `vgg16`, without the last pooling."""

    width: int = 64  # As the files have it; tests take narrow ones.
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> list[Float[Array, "B h w D"]]:
        """What each of the five stages gives, at 1, 1/2, 1/4, 1/8 and 1/16 of the resolution."""
        stage = nn.remat(ConvBlock) if self.remat else ConvBlock
        stages = []
        for level, count in enumerate(_VGG16):
            if level:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            features = self.width << min(level, 3)
            x = stage(features, count, dtype=self.dtype, name=f"stage_{level}")(x)
            stages.append(x)
        return stages


class FrozenNorm(nn.Module):
    """Batch normalisation by stored statistics, which no batch changes.

    Batches of medical images are small; scale and offset are learned.
    """

    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """The normalised features."""
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("constants", "mean", jnp.zeros, shape).value
        var = self.variable("constants", "var", jnp.ones, shape).value
        factor = scale * jax.lax.rsqrt(var + 1e-5)
        return x * factor.astype(self.dtype) + (bias - mean * factor).astype(self.dtype)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    features: int
    stride: int = 1
    dilation: int = 1
    project: bool = False  # A convolution in the shortcut: the first block of each stage.
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W D"]:
        """The sum of both, after a ReLU."""
        out = _EXPANSION * self.features
        y = _conv(self.features, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(FrozenNorm(dtype=self.dtype, name="bn1")(y))
        y = _conv(
            self.features,
            3,
            stride=self.stride,
            dilation=self.dilation,
            dtype=self.dtype,
            name="conv2",
        )(y)
        y = nn.relu(FrozenNorm(dtype=self.dtype, name="bn2")(y))
        y = _conv(out, 1, dtype=self.dtype, name="conv3")(y)
        # Begun as the shortcut alone: without statistics of the batch, sums of sixteen random
        # blocks would grow.
        y = FrozenNorm(nn.initializers.zeros, dtype=self.dtype, name="bn3")(y)
        if self.project:
            x = _conv(out, 1, stride=self.stride, dtype=self.dtype, name="downsample_0")(x)
            x = FrozenNorm(dtype=self.dtype, name="downsample_1")(x)
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """torchvision's `resnet50` before its pooling, batch statistics frozen."""

    width: int = 64  # As the files have it; tests take narrow ones.
    dilated: bool = False  # The last stage keeps the resolution and dilates instead.
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> list[Float[Array, "B h w D"]]:
        """The stem's features and those of the four stages, at 1/2, 1/4, ... 1/32.

        The last is at 1/16 if dilated.
        """
        block = nn.remat(Bottleneck) if self.remat else Bottleneck
        x = _conv(self.width, 7, stride=2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(FrozenNorm(dtype=self.dtype, name="bn1")(x))
        stages = [x]
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for level, count in enumerate(_RESNET50):
            for i in range(count):
                first, dilated = i == 0, self.dilated and level == 3
                x = block(
                    self.width << level,
                    stride=2 if first and level and not dilated else 1,
                    dilation=2 if dilated and not first else 1,
                    project=first,
                    dtype=self.dtype,
                    name=f"layer{level + 1}_{i}",
                )(x)
            stages.append(x)
        return stages


def _conv(
    features: int,
    side: int,
    *,
    dtype: jnp.dtype,
    name: str,
    stride: int = 1,
    dilation: int = 1,
) -> nn.Conv:
    """A convolution without bias, padded as torch pads it: alike at both ends at any stride."""
    pad = dilation * (side // 2)
    return nn.Conv(
        features,
        (side, side),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        kernel_dilation=dilation,
        use_bias=False,
        kernel_init=HE,
        dtype=dtype,
        name=name,
    )


def backbone_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Of a segmenter's variables those of its backbone, `{"params"}` or `{"params", "constants"}`.

    Raises:
      ValueError: It has none.
    """
    flat = tree.flatten(variables)
    inner = {
        path.replace(f"/{_PATH}/", "/", 1): leaf
        for path, leaf in flat.items()
        if path.partition("/")[2].startswith(f"{_PATH}/")
    }
    if not inner:
        raise ValueError(
            "this network has no backbone, so pretrained weights of one cannot be put into it: "
            "choose unet-vgg16, unet-resnet or deeplabv3+"
        )
    return tree.unflatten(inner)


def with_backbone(
    variables: Mapping[str, Any], backbone_variables: Mapping[str, Any]
) -> dict[str, Any]:
    """A segmenter's variables, its backbone replaced.

    Args:
      variables: Of a segmenter.
      backbone_variables: As `python -m convert` stores them; `backbone_of` tells what fits.

    Raises:
      ValueError: No backbone, or one with other tensors; the first of these are named.
    """
    have, want = tree.flatten(backbone_variables), tree.flatten(backbone_of(variables))
    faults = [
        f"{path}: {_shape(have.get(path))} given, {_shape(want.get(path))} expected"
        for path in sorted(have.keys() | want.keys())
        if _shape(have.get(path)) != _shape(want.get(path))
    ]
    if faults:
        raise ValueError(
            f"this backbone does not fit the network, {len(faults)} tensors differ; first: "
            + "; ".join(faults[:3])
        )
    placed = {}
    for path, leaf in have.items():
        collection, _, rest = path.partition("/")
        placed[f"{collection}/{_PATH}/{rest}"] = leaf
    return tree.unflatten(tree.flatten(variables) | placed)


def _shape(leaf: Any) -> str:
    return "none" if leaf is None else str(tuple(leaf.shape))


BACKBONES: Mapping[str, type[nn.Module]] = MappingProxyType({"vgg16": Vgg16, "resnet50": ResNet50})
