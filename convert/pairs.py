"""What a run of low-rank pairs trained, alone: with the official base it gives the run's model.

image_encoder.blocks.0.attn.qkv.lora_q.a     (rank, in), as peft's `lora_A.weight`
image_encoder.blocks.0.attn.qkv.lora_q.b     (out, rank), as peft's `lora_B.weight`
image_encoder.blocks.0.attn.proj.lora_proj.a and so on
mask_decoder.iou_token.weight                whatever else was trained, under its official name

A projection's weight is then `weight + alpha / rank * b @ a`; q, k and v are the first, second and
third of the equal parts of the rows of `qkv.weight`. Rank, alpha, their ratio `scale` and the names
`on` stand in the metadata of a .safetensors, and under the key `lora` of a .pth.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.rules import correspondence, torch_name
from pp_jax import tree
from pp_jax.lora import COLLECTION, KERNELS, Lora

_PAIR = re.compile(r"(?P<layer>.+)\.lora_(?P<name>\w+)\.a")


def to_part(trained: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The trained leaves in torch's names and layouts.

    Args:
      trained: Nested, its pairs not merged.
      variables: All of the model, or their shapes; pairs may be among them.
    """
    flat, part = tree.flatten(trained), {}
    for path, leaf in tree.flatten(trained[COLLECTION]).items():
        layer, _, rest = path.rpartition("/lora_")
        name, side = rest.split("/")
        array = np.asarray(leaf, np.float32)
        rank = array.shape[-1 if side == "a" else 0]
        array = array.reshape((-1, rank) if side == "a" else (rank, -1)).T
        official = torch_name(f"{layer}/{KERNELS[name]}", None)
        part[f"{official}.lora_{name}.{side}"] = np.array(array, order="C")
    model = {name: held for name, held in variables.items() if name in ("params", "constants")}
    for name, entry in correspondence(model).items():
        path = f"{entry.collection}/{entry.path}"
        if path in flat:
            array = entry.layout.to_torch(np.asarray(flat[path], np.float32))
            part[name] = np.array(array, order="C")
    return part


def apply_part(
    state: Mapping[str, np.ndarray], part: Mapping[str, np.ndarray], lora: Lora
) -> dict[str, np.ndarray]:
    """The official state dict `state` with a part: pairs added, all else in place of what was.

    Raises:
      ValueError: A tensor of the part that `state` has no place for.
    """
    changed = dict(state)
    for name, array in part.items():
        pair = _PAIR.fullmatch(name)
        target = f"{pair['layer']}.weight" if pair else name
        if name.endswith(".b") and f"{name[:-1]}a" in part:
            continue
        if target not in state:
            raise ValueError(f"{name}: the weights it is applied to have no {target}")
        if not pair:
            changed[name] = array
            continue
        added = (lora.scale * part[f"{name[:-1]}b"]) @ array  # (out, in)
        weight = np.array(changed[target], np.float32)
        first = "qkv".index(pair["name"]) * len(added) if pair["name"] in "qkv" else 0
        weight[first : first + len(added)] += added
        changed[target] = weight
    return changed


def to_facts(lora: Lora) -> dict[str, int | float | str]:
    """What a file of pairs says of them."""
    return {
        "rank": lora.rank,
        "alpha": lora.alpha,
        "scale": lora.scale,
        "on": ",".join(lora.on),
    }


def from_facts(facts: Mapping[str, Any]) -> Lora:
    """The inverse of `to_facts`, of numbers or of their text."""
    return Lora(int(facts["rank"]), float(facts["alpha"]), tuple(facts["on"].split(",")))
