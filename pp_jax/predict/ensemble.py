"""Several checkpoints that answer as one: their logits and predicted IoU are averaged.

Masks are matched by their place among the model's four. That is sound only for members that were
fine-tuned from the same weights: trained from other random numbers, the second mask of one need not
be the second of another.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from pp_jax.look import Look
from pp_jax.predict.asking import Asker, Box, Decoded, Embedded, Image, Marks
from pp_jax.predict.official import LoadedSam
from pp_jax.preprocess import roi
from pp_jax.preprocess.stage import PREPARATIONS


class Shown(NamedTuple):
    """What a member is, as far as all members must agree."""

    name: str
    variant: str
    side: int  # Of the model's input, in pixels.
    look: Look


class Member(NamedTuple):
    """A model, alone or one of those that are averaged, and what is known of its weights."""

    shown: Shown
    step: int | None  # None: converted weights.
    digest: str  # sha256 of the manifest, which holds that of every file.
    sam: LoadedSam


def averaged(askers: Sequence[Asker]) -> Asker:
    """One model of several: each mask's logits and predicted IoU are the members' means.

    They are averaged at low resolution, before a mask is chosen; all that follows is as of one
    model. The embeddings of all members are kept for an image, and the weights of all of them are
    on the device.

    Args:
      askers: Of members that `require_alike` accepts; each may have a look of its own.
    """
    first, *others = askers
    if not others:
        return first

    def embed(image: Image, box: Box | None = None) -> Embedded:
        each = [asker.embed(image, box) for asker in askers]
        return each[0]._replace(features=tuple(one.features for one in each))

    def decode(embedded: Embedded, marks: Marks) -> Decoded:
        each = [
            asker.decode(embedded._replace(features=own), marks)
            for asker, own in zip(askers, embedded.features, strict=True)
        ]
        return Decoded(*map(mean, zip(*each, strict=True)))

    return first._replace(embed=embed, decode=decode)


def mean(arrays: Sequence[Float[np.ndarray, "*shape"]]) -> Float32[np.ndarray, "*shape"]:
    """Of equal arrays exactly their value, and whatever their order the same: summed in float64."""
    total = np.zeros(arrays[0].shape, np.float64)
    for array in arrays:
        total += array
    return (total / len(arrays)).astype(np.float32)


def require_alike(members: Sequence[Shown]) -> None:
    """Nothing, when the low-resolution masks of all members lie in one frame.

    Raises:
      ValueError: They do not; names two members and what they differ in.
    """
    first, *others = members
    for other in others:
        for what, wanted in _frame(first).items():
            if (got := _frame(other)[what]) != wanted:
                raise ValueError(
                    f"--checkpoint: {first.name} ({what} {wanted}) and {other.name} ({what} {got}) "
                    f"cannot be averaged: {_REMEDIES[what]}, or ask each for itself"
                )


def _frame(member: Shown) -> dict[str, str]:
    """Where the pixels of its low-resolution masks lie, in words."""
    return {
        "variant": member.variant,
        "image size": f"{member.side}",
        "fit": PREPARATIONS[member.look.preprocess].fit,
        "roi": str(roi.parse(member.look.roi)),
    }


def label(folders: Sequence[str | Path]) -> str:
    """What the members together are called."""
    return f"ensemble of {len(folders)}: {', '.join(short_names(folders))}"


def short_names(folders: Sequence[str | Path]) -> list[str]:
    """The last part of each folder, or the whole where two would be called alike."""
    names = [Path(folder).name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def facts(members: Sequence[Member]) -> dict[str, Any]:
    """What made a prediction, in plain values: all members', and each one's own."""
    looks = [dataclasses.asdict(member.shown.look) for member in members]
    alike = {k: v for k, v in looks[0].items() if all(look[k] == v for look in looks)}
    return alike | {
        "image_size": members[0].shown.side,
        "weights": joint_digest([member.digest for member in members]),
        "members": [
            {"checkpoint": one.shown.name, "step": one.step, "weights": one.digest, **look}
            for one, look in zip(members, looks, strict=True)
        ],
    }


def joint_digest(digests: Sequence[str]) -> str:
    """A hash of all members' weights, whatever their order; of one alone its own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "variant": "name checkpoints of one variant",
        "image size": "give --image-size",
        "fit": "name checkpoints of one preparation",
        "roi": "give --roi",
    }
)
