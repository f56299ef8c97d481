"""ImageNet encoders from the files of torchvision and timm, for `pp_jax.baselines`.

torchvision's names: `features.N` of vgg16; `conv1`, `bn1`, `layerL.B...` of resnet50. timm has the
same, but for the classifier, which is left out here: `pre_logits` and `head` (vgg16), `fc`.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convert.official import ConversionError, place
from convert.rules import CONV, SAME, Entry, Layout, torch_name
from pp_jax import tree
from pp_jax.baselines.backbones import BACKBONES

URL = "https://download.pytorch.org/models/"

# Our fourth channel, a prompt's box, is none of ImageNet's: zeros, so that training begins from
# what the file computes.
_FIRST_CONV = Layout(
    lambda x, shape: np.pad(CONV.to_flax(x, shape), ((0, 0), (0, 0), (0, 1), (0, 0))),
    lambda x: CONV.to_torch(x[:, :, :3]),
)

_LEAVES: Sequence[tuple[str, tuple[str, Layout]]] = (
    (r"(stage_0/conv_0|conv1)/kernel", ("weight", _FIRST_CONV)),
    (r".*/kernel", ("weight", CONV)),
    (r".*/scale", ("weight", SAME)),
    (r".*/bias", ("bias", SAME)),
    (r".*/mean", ("running_mean", SAME)),
    (r".*/var", ("running_var", SAME)),
)


class BackboneFile(NamedTuple):
    """One official file."""

    backbone: str  # A row of BACKBONES.
    sha256: str  # Its first digits, which torchvision puts into the name.


def backbone_name(names: Sequence[str]) -> str | None:
    """The backbone whose file has such tensors, by the first convolution's name; None: no backbone.

    Whether it is that very one is for `to_variables` to tell.
    """
    return next((key for name, key in _SIGNS.items() if name in names), None)


def correspondence(backbone: str) -> dict[str, Entry]:
    """For each official name its entry in our variables of the backbone, made for 4 channels."""
    model = BACKBONES[backbone]()
    image = jnp.zeros((1, 32, 32, 4))
    flat = tree.flatten(jax.eval_shape(model.init, jax.random.key(0), image))
    entries = {}
    for whole, leaf in flat.items():
        collection, _, path = whole.partition("/")
        name, layout = next(v for pattern, v in _LEAVES if re.fullmatch(pattern, path))
        shape = tuple(leaf.shape)
        there = layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape
        official = torch_name(re.sub(r"stage_(\d)/conv_(\d)", _vgg_layer, path), name)
        entries[official] = Entry(collection, path, shape, layout, there)
    return entries


def _vgg_layer(match: re.Match[str]) -> str:
    """`features_N` of a stage's convolution: each has a ReLU behind it, each stage a pooling."""
    stage, conv = int(match[1]), int(match[2])
    return f"features_{5 * min(stage, 2) + 7 * max(stage - 2, 0) + 2 * conv}"


def to_variables(
    state: Mapping[str, np.ndarray], *, backbone: str, source: str
) -> tuple[dict[str, Any], list[str]]:
    """Our variables, float32, from tensors under official names, and the names that were left out.

    Raises:
      ConversionError: Missing, unused or mis-shaped tensors, each named in the one message, or
        values that are not finite.
    """
    left_out = [name for name in state if re.fullmatch(_LEFT_OUT[backbone], name)]
    kept = {name: array for name, array in state.items() if name not in left_out}
    return place(kept, correspondence(backbone), model=backbone, source=source), left_out


def facts_of(backbone: str, *, name: str, digest: str, left_out: Sequence[str]) -> dict[str, Any]:
    """What the manifest says of a converted file.

    Raises:
      ConversionError: An official name whose digits are not those of the file's sha256.
    """
    wanted = FILES.get(name)
    if wanted and not digest.startswith(wanted.sha256):
        raise ConversionError(
            f"{name}: sha256 {digest[:12]}..., not {wanted.sha256}... as the name says; fetch it "
            f"again from {URL}{name}, or rename it if it is your own"
        )
    official = any(digest.startswith(file.sha256) for file in FILES.values())
    return {
        "kind": "backbone",
        "backbone": backbone,
        "source": name,
        "source_sha256": digest,
        "official": official,
        "licence": "BSD-3-Clause (torchvision), trained on ImageNet"
        if official
        else "that of the source",
        "left_out": list(left_out),
    }


_SIGNS: Mapping[str, str] = MappingProxyType(
    {"features.0.weight": "vgg16", "layer1.0.conv1.weight": "resnet50"}
)

# The classifiers of torchvision and timm, and a counter that only training reads.
_LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "vgg16": r"(classifier\.[036]|pre_logits\.fc[12]|head\.fc)\.(weight|bias)",
        "resnet50": r"fc\.(weight|bias)|.*\.num_batches_tracked",
    }
)

FILES: Mapping[str, BackboneFile] = MappingProxyType(
    {
        "vgg16-397923af.pth": BackboneFile("vgg16", "397923af"),
        "resnet50-0676ba61.pth": BackboneFile("resnet50", "0676ba61"),  # IMAGENET1K_V1
        "resnet50-11ad3fa6.pth": BackboneFile("resnet50", "11ad3fa6"),  # IMAGENET1K_V2
    }
)
