"""Embeddings of a frozen encoder: what they depend on, and how a batch of them is computed."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from pp_jax import sharding, tree
from pp_jax.config import TrainConfig, look_of
from pp_jax.finetune.recipe import model_of, trained_of
from pp_jax.preprocess import augment, filters, roi, specs
from pp_jax.preprocess.fusion import FUSIONS
from pp_jax.preprocess.stage import make_stage

_ENCODER = ("params/image_encoder/", "lora/")
_VERSION = 1  # To be raised when encoder, input stage or resizing compute something else.


class Embedder(NamedTuple):
    """What embeddings are of, and the function that computes them."""

    about: Mapping[str, Any]  # All that they depend on but the image and its reader: JSON values.
    shape: tuple[int, int, int]  # Of one: grid rows, grid columns, channels.
    compute: Callable[
        [UInt8[np.ndarray, "B S S 3"], Int[np.ndarray, "B 2"]], Float[np.ndarray, "B h w D"]
    ]


def check_fixed(settings: TrainConfig) -> None:
    """Nothing, where every image has one embedding throughout the training.

    Raises:
      ValueError: Names the choice that changes embeddings, and what to choose instead.
    """
    if settings.fusion == "learned":
        raise ValueError(
            "--embeddings with --fusion learned: the fusion is trained, so what SAM sees changes "
            "in every step; leave out --embeddings"
        )
    if augment.parse(settings.augment):
        raise ValueError(
            f"--embeddings with --augment {settings.augment}: every step sees other pixels; leave "
            "one of them out"
        )
    if any(path.startswith(_ENCODER) for path in tree.flatten(trained_of(settings))):
        raise ValueError(
            f"--embeddings with --trainable {settings.trainable}: it trains the image encoder; "
            "choose `--trainable decoder`, or leave out --embeddings"
        )


def make_embedder(settings: TrainConfig, variables: Mapping[str, Any], *, mesh: Mesh) -> Embedder:
    """The embedder of a run; `compute` takes this process's rows of a batch the mesh can share."""
    model = model_of(settings, mesh=mesh)
    config = model.config
    stage = make_stage(look_of(settings), side=config.image_size)

    def encode(variables, images, sizes):
        return model.apply(variables, stage(images, sizes), method="encode")

    encode = jax.jit(encode, out_shardings=sharding.by_rows(mesh))

    def compute(
        images: UInt8[np.ndarray, "B S S 3"], sizes: Int[np.ndarray, "B 2"]
    ) -> Float[np.ndarray, "B h w D"]:
        embedding = encode(variables, *sharding.place_batch((images, sizes), mesh))
        # Devices along `tensor` hold the same rows.
        own = [shard for shard in embedding.addressable_shards if shard.replica_id == 0]
        own = sorted(own, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in own])

    about = {
        "version": _VERSION,
        "weights": hash_weights(variables),
        "variant": settings.variant,
        "image_size": config.image_size,
        "compute": settings.dtype,
        "matmul": str(jax.config.jax_default_matmul_precision),
        "platform": mesh.devices.flat[0].platform,
        "filter": filters.canonical(settings.filter),
        "fusion": str(specs.parse_row(settings.fusion, FUSIONS, what="fusion")),
        "blend": settings.blend,
        "roi": str(roi.parse(settings.roi)),
        "preprocess": settings.preprocess,
    }
    return Embedder(about, (config.grid, config.grid, config.out_dim), compute)


def hash_weights(variables: Mapping[str, Any]) -> str:
    """The sha256 of the image encoder's parameters, with their names, shapes and types."""
    digest = hashlib.sha256()
    for path, leaf in sorted(tree.flatten(variables).items()):
        if path.startswith(_ENCODER):
            array = _whole(leaf)
            digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _whole(leaf: Any) -> np.ndarray:
    if getattr(leaf, "is_fully_addressable", True):
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
