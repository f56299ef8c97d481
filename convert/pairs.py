"""What a run of low-rank pairs trained, alone: with the weights it began from, the run's model.

image_encoder.blocks.0.attn.qkv.lora_q.a     (rank, in), as peft's `lora_A.weight`
image_encoder.blocks.0.attn.qkv.lora_q.b     (out, rank), as peft's `lora_B.weight`
image_encoder.blocks.0.attn.proj.lora_proj.a and so on
mask_decoder.iou_token.weight                whatever else was trained, under its official name

A projection's weight is then `weight + alpha / rank * b @ a`; q, k and v are the first, second and
third of the equal parts of the rows of `qkv.weight`. Rank, alpha, their ratio `scale` and the names
`on` stand in the metadata of a .safetensors, and under the key `lora` of a .pth.

A part fits the weights that its run began from, and no others: an official file, or what `python -m
convert` made of the run it went on from. `base` there names them. `frozen_sha256` is the hash of
those of their tensors that the part leaves as they are or adds a pair to; `--add` compares it.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from convert.rules import correspondence, torch_name
from pp_jax import tree
from pp_jax.lora import COLLECTION, KERNELS, Lora


class Part(NamedTuple):
    """A file of pairs."""

    tensors: dict[str, np.ndarray]
    lora: Lora
    base: str  # What the run began from, in words.
    frozen: str  # Hash of the tensors there that the run did not replace.


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


def hash_frozen(state: Mapping[str, np.ndarray], part: Mapping[str, np.ndarray]) -> str:
    """The sha256 of the official tensors in whose place the part puts no others."""
    digest = hashlib.sha256()
    for name in sorted(state.keys() - part.keys()):
        array = np.ascontiguousarray(state[name], np.float32)
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array)
    return digest.hexdigest()


def apply_part(state: Mapping[str, np.ndarray], held: Part) -> dict[str, np.ndarray]:
    """The official state dict `state` with a part: pairs added, all else in place of what was.

    Raises:
      ValueError: `state` is not what the part's run began from.
    """
    part = held.tensors
    if hash_frozen(state, part) != held.frozen:
        raise ValueError(
            f"these are not the weights that the pairs were trained on: {held.base}; give those"
        )
    changed = dict(state)
    for name, array in part.items():
        pair = _PAIR.fullmatch(name)
        if name.endswith(".b") and f"{name[:-1]}a" in part:
            continue
        if not pair:
            changed[name] = array
            continue
        target = f"{pair['layer']}.weight"
        added = (held.lora.scale * part[f"{name[:-1]}b"]) @ array  # (out, in)
        weight = np.array(changed[target], np.float32)
        first = "qkv".index(pair["name"]) * len(added) if pair["name"] in "qkv" else 0
        weight[first : first + len(added)] += added
        changed[target] = weight
    return changed


def to_facts(held: Part) -> dict[str, int | float | str]:
    """What a file of pairs says of them."""
    lora = held.lora
    return {
        "rank": lora.rank,
        "alpha": lora.alpha,
        "scale": lora.scale,
        "on": ",".join(lora.on),
        "base": held.base,
        "frozen_sha256": held.frozen,
    }


def from_facts(tensors: dict[str, np.ndarray], facts: Mapping[str, Any]) -> Part:
    """The part with these tensors; of the facts of `to_facts`, as numbers or as their text."""
    lora = Lora(int(facts["rank"]), float(facts["alpha"]), tuple(facts["on"].split(",")))
    return Part(tensors, lora, facts["base"], facts["frozen_sha256"])
