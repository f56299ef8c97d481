"""The one table between torch's names and layouts and ours, read in both directions."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pp_jax import tree

# Our path is the official name with `/` for `.`, and a sequence index joined by `_` (two digits for
# the encoder's blocks). So only the leaf's name and layout need a table.


class Layout(NamedTuple):
    """How one kind of tensor is stored: torch's array to ours of a given shape, and back."""

    to_flax: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _dense(inputs: int) -> Layout:
    """`(out, in)` to `(*in, *out)`, where our kernel's first `inputs` axes are the input."""

    def back(x: np.ndarray) -> np.ndarray:
        return x.reshape(int(np.prod(x.shape[:inputs])), -1).T

    return Layout(lambda x, shape: x.T.reshape(shape), back)


SAME = Layout(lambda x, shape: x, lambda x: x)
DENSE = _dense(1)
PROJECTION = _dense(2)  # (K, d, D): heads are an axis, so that they can be sharded.
HEADS_BIAS = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
CONV = Layout(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
UPCONV = Layout(lambda x, shape: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))

# Pattern of our path, leaf in torch's name (None: nothing to rename), layout. First match wins.
RULES: Sequence[tuple[str, tuple[str | None, Layout]]] = (
    (r".*/attn/qkv/kernel", ("weight", DENSE)),
    (r".*/attn/qkv/bias", ("bias", HEADS_BIAS)),
    (r".*/attn/proj/kernel", ("weight", PROJECTION)),
    (r".*/output_upscaling_[03]/kernel", ("weight", UPCONV)),
    (r".*/(patch_embed/proj|neck_[02]|mask_downscaling_[036])/kernel", ("weight", CONV)),
    (r".*/kernel", ("weight", DENSE)),
    (r".*/scale", ("weight", SAME)),
    (r".*/bias", ("bias", SAME)),
    (
        r".*/(point_embeddings_\d|not_a_point_embed|no_mask_embed|iou_token|mask_tokens)",
        ("+", SAME),
    ),
    (r".*/(pos_embed|rel_pos_[hw]|positional_encoding_gaussian_matrix)", (None, SAME)),
)


def torch_name(path: str, leaf: str | None) -> str:
    """The official name of the parameter at our `path`."""
    if leaf == "+":
        path, leaf = f"{path}/leaf", "weight"
    if leaf is not None:
        path = f"{path.rpartition('/')[0]}/{leaf}"
    return re.sub(r"_(\d+)(?=/|$)", lambda m: f".{int(m[1])}", path).replace("/", ".")


class Entry(NamedTuple):
    """One tensor in both worlds."""

    collection: str  # "params" or "constants"
    path: str
    shape: tuple[int, ...]
    layout: Layout
    torch_shape: tuple[int, ...]


def correspondence(variables: Mapping[str, Any]) -> dict[str, Entry]:
    """For each official name its entry, for the model whose (abstract) variables are given."""
    flat = tree.flatten(variables)
    entries: dict[str, Entry] = {}
    for path, (leaf, layout) in tree.match(RULES, list(flat)).items():
        collection, _, rest = path.partition("/")
        shape = tuple(flat[path].shape)
        there = layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape
        entries[torch_name(rest, leaf)] = Entry(collection, rest, shape, layout, there)
    return entries
