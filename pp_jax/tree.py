"""Parameter trees: paths, ordered rules, and the split into trainable and frozen leaves.

A tree is nested dicts of arrays. A path is its keys joined by `/`, as in
`image_encoder/blocks_07/attn/qkv/kernel`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Tree = Mapping[str, Any]
Rules = Sequence[tuple[str, T]]


def flatten(tree: Tree, *, prefix: str = "") -> dict[str, Any]:
    """Leaves by path, in sorted order of paths."""
    flat: dict[str, Any] = {}
    for key in sorted(tree):
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(tree[key], Mapping):
            flat |= flatten(tree[key], prefix=path)
        else:
            flat[path] = tree[key]
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested tree of `flatten`'s answer."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def match(rules: Rules[T], paths: Sequence[str]) -> dict[str, T]:
    """The value of the first rule whose pattern matches each whole path.

    Raises:
      ValueError: A path that no rule covers, or a rule that decides no path (a typo; only a final
        `.*` may be idle). Both are named.

    Examples:
      >>> rules = (("decoder/.*", True), (".*", False))
      >>> match(rules, ["decoder/kernel", "encoder/kernel"])
      {'decoder/kernel': True, 'encoder/kernel': False}
      >>> match((("decoder/.*", True),), ["decoder/kernel", "encoder/kernel"])
      Traceback (most recent call last):
      ValueError: no rule covers 'encoder/kernel'; rules: ['decoder/.*']
    """
    used: set[int] = set()
    values: dict[str, T] = {}
    for path in paths:
        index = next((i for i, (p, _) in enumerate(rules) if re.fullmatch(p, path)), None)
        if index is None:
            raise ValueError(f"no rule covers {path!r}; rules: {[p for p, _ in rules]}")
        used.add(index)
        values[path] = rules[index][1]
    last = len(rules) - 1
    idle = [p for i, (p, _) in enumerate(rules) if i not in used and (i, p) != (last, ".*")]
    if idle:
        raise ValueError(f"rules that match no parameter: {idle}; paths look like {paths[:3]}")
    return values


def partition(tree: Tree, rules: Rules[bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(chosen, rest)`: two nested trees that share no leaf and together hold all of `tree`.

    Examples:
      >>> weights = {"decoder": {"kernel": 1.0}, "encoder": {"kernel": 2.0}}
      >>> partition(weights, (("decoder/.*", True), (".*", False)))
      ({'decoder': {'kernel': 1.0}}, {'encoder': {'kernel': 2.0}})
    """
    flat = flatten(tree)
    chosen = match(rules, list(flat))
    return (
        unflatten({path: leaf for path, leaf in flat.items() if chosen[path]}),
        unflatten({path: leaf for path, leaf in flat.items() if not chosen[path]}),
    )


def combine(*trees: Tree) -> dict[str, Any]:
    """The inverse of `partition`.

    Raises:
      ValueError: Two trees hold the same leaf.
    """
    flat: dict[str, Any] = {}
    for tree in trees:
        leaves = flatten(tree)
        twice = sorted(flat.keys() & leaves.keys())
        if twice:
            raise ValueError(f"leaves held by two trees: {twice}")
        flat |= leaves
    return unflatten(flat)
