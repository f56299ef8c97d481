"""The networks of `pp_jax.baselines` written plainly in torch, over our tensors. Not a test."""

import numpy as np
import torch
from torch.nn import functional as F

from pp_jax import tree
from pp_jax.baselines.deeplab import DeepLab
from pp_jax.baselines.unet import BackboneUNet, UNet


class Layers:
    """torch's layers with the tensors of one of our networks, by name."""

    def __init__(self, variables: dict) -> None:
        self.tensors = {
            path: torch.from_numpy(np.array(x))
            for collection in variables.values()
            for path, x in tree.flatten(collection).items()
        }

    def conv(self, x: torch.Tensor, name: str, **how: int) -> torch.Tensor:
        kernel = self.tensors[f"{name}/kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, self.tensors.get(f"{name}/bias"), **how)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """By stored statistics or over groups, as there are tensors; without any as it is."""
        leaves = ("mean", "var", "scale", "bias")
        mean, var, scale, bias = (self.tensors.get(f"{name}/{leaf}") for leaf in leaves)
        if mean is not None:
            return F.batch_norm(x, mean, var, scale, bias)
        return x if scale is None else F.group_norm(x, min(8, len(scale)), scale, bias)

    def block(self, x: torch.Tensor, name: str, *, count: int = 2, pad: int = 1) -> torch.Tensor:
        for i in range(count):
            x = self.conv(x, f"{name}/conv_{i}", padding=pad)
            x = F.relu(self.norm(x, f"{name}/norm_{i}"))
        return x

    def up(self, x: torch.Tensor, name: str, *, how: str) -> torch.Tensor:
        if how == "bilinear":
            return self.conv(_resized(x, 2 * x.shape[-1]), name)
        # Flax does not flip the kernel of a transposed convolution, torch does.
        kernel = self.tensors[f"{name}/kernel"].flip(0, 1).permute(2, 3, 0, 1)
        return F.conv_transpose2d(x, kernel, self.tensors[f"{name}/bias"], stride=2)

    def level(
        self, x: torch.Tensor, copy: torch.Tensor | None, name: str, *, up: str, pad: int = 1
    ) -> torch.Tensor:
        """One of the expanding path: of a larger copy the middle, of larger features the start."""
        x = self.up(x, f"{name}/up/conv", how=up)
        if copy is not None:
            cut = max(0, copy.shape[-1] - x.shape[-1]) // 2
            copy = F.pad(copy, [-cut] * 4)
            x = torch.cat([copy, x[..., : copy.shape[-2], : copy.shape[-1]]], dim=1)
        return self.block(x, f"{name}/block", pad=pad)

    def unit(self, x: torch.Tensor, name: str, **how: int) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x, f"{name}/conv", **how), f"{name}/norm"))

    def pyramid(self, x: torch.Tensor, name: str) -> torch.Tensor:
        parts = [self.unit(x, f"{name}point")]
        parts += [self.unit(x, f"{name}atrous_{r}", padding=r, dilation=r) for r in (6, 12, 18)]
        pooled = self.unit(F.adaptive_avg_pool2d(x, 1), f"{name}pooled")
        parts.append(pooled.expand(-1, -1, *x.shape[2:]))
        return self.unit(torch.cat(parts, dim=1), f"{name}project")

    def vgg16(self, x: torch.Tensor) -> list[torch.Tensor]:
        stages = []
        for level, count in enumerate((2, 2, 3, 3, 3)):
            x = self.block(
                F.max_pool2d(x, 2) if level else x, f"backbone/stage_{level}", count=count
            )
            stages.append(x)
        return stages

    def resnet50(self, x: torch.Tensor, *, dilated: bool) -> list[torch.Tensor]:
        x = self.conv(x, "backbone/conv1", stride=2, padding=3)
        stages = [F.relu(self.norm(x, "backbone/bn1"))]
        x = F.max_pool2d(stages[0], 3, 2, 1)
        for level, count in enumerate((3, 4, 6, 3), start=1):
            for i in range(count):
                stride = 2 if level > 1 and i == 0 and not (dilated and level == 4) else 1
                gaps = 2 if dilated and level == 4 and i else 1
                x = self.bottleneck(x, f"backbone/layer{level}_{i}", stride=stride, gaps=gaps)
            stages.append(x)
        return stages

    def bottleneck(self, x: torch.Tensor, name: str, *, stride: int, gaps: int) -> torch.Tensor:
        y = F.relu(self.norm(self.conv(x, f"{name}/conv1"), f"{name}/bn1"))
        y = self.conv(y, f"{name}/conv2", stride=stride, padding=gaps, dilation=gaps)
        y = F.relu(self.norm(y, f"{name}/bn2"))
        y = self.norm(self.conv(y, f"{name}/conv3"), f"{name}/bn3")
        if name.endswith("_0"):
            x = self.conv(x, f"{name}/downsample_0", stride=stride)
            x = self.norm(x, f"{name}/downsample_1")
        return F.relu(x + y)


def unet(net: UNet, variables: dict, image: np.ndarray, *, margin: int = 0) -> np.ndarray:
    """The network of Ronneberger et al.; with "valid" padding `margin` pixels are mirrored."""
    layers, pad = Layers(variables), int(net.padding == "same")
    mirrored = np.pad(image, [(0, 0), (margin,) * 2, (margin,) * 2, (0, 0)], mode="reflect")
    x, copies = _grid(mirrored), []
    for level in range(net.depth):
        x = layers.block(F.max_pool2d(x, 2) if level else x, f"encoder_{level}", pad=pad)
        copies.append(x)
    for level in reversed(range(net.depth - 1)):
        copy = copies[level] if net.skips else None
        x = layers.level(x, copy, f"decoder_{level}", up=net.up, pad=pad)
    cut = (x.shape[-1] - image.shape[1]) // 2
    return F.pad(layers.conv(x, "head"), [-cut] * 4)[:, 0].numpy()


def unet_on_vgg16(net: BackboneUNet, variables: dict, image: np.ndarray) -> np.ndarray:
    """An expanding path on all five stages of VGG16."""
    layers = Layers(variables)
    *copies, x = layers.vgg16(_grid(image))
    return _expanded(layers, x, copies)


def unet_on_resnet50(net: BackboneUNet, variables: dict, image: np.ndarray) -> np.ndarray:
    """An expanding path on those of ResNet-50, the last level without a copy."""
    layers = Layers(variables)
    *copies, x = layers.resnet50(_grid(image), dilated=False)
    return _expanded(layers, x, [None, *copies])


def _expanded(layers: Layers, x: torch.Tensor, copies: list) -> np.ndarray:
    for level, copy in reversed(list(enumerate(copies))):
        x = layers.level(x, copy, f"decoder_{level}", up="transposed")
    return layers.conv(x, "head")[:, 0].numpy()


def deeplab(net: DeepLab, variables: dict, image: np.ndarray) -> np.ndarray:
    """DeepLabV3+ on the dilated ResNet-50."""
    layers = Layers(variables)
    _, early, _, _, late = layers.resnet50(_grid(image), dilated=True)
    x = _resized(layers.pyramid(late, "aspp/"), early.shape[-1])
    x = torch.cat([x, layers.unit(early, "low_level")], dim=1)
    for i in range(2):
        x = layers.unit(x, f"decoder_{i}", padding=1)
    return _resized(layers.conv(x, "head"), image.shape[1])[:, 0].numpy()


def _grid(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def _resized(x: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
