"""Where arrays live: one mesh over all devices, and placements from ordered rules over paths.

What used to be `pmap` and `pjit` is `jax.jit` with `NamedSharding`: the compiler splits the work.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pp_jax import tree

AXES = ("data", "fsdp", "tensor")


def default_device() -> jax.Device:
    """The device that jax computes on where nothing else is said."""
    chosen = jax.config.jax_default_device or jax.devices()[0]
    return jax.devices(chosen)[0] if isinstance(chosen, str) else chosen


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices along `data`; `fsdp` and `tensor` have size 1."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices).reshape(len(devices), 1, 1), AXES)


def placements(shapes: Mapping[str, Any], mesh: Mesh, name: str) -> dict[str, Any]:
    """The sharding of each leaf of a nested dict of arrays, by the rules of a row of `RULES`."""
    specs = tree.match(RULES[name], list(tree.flatten(shapes)))
    return tree.unflatten({path: NamedSharding(mesh, spec) for path, spec in specs.items()})


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Split along the first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """The batch's arrays, split along their first axis over `data` (and `fsdp`).

    Each process gives its own rows.

    Raises:
      ValueError: The global batch does not divide by the number of devices.
    """
    sharding = by_rows(mesh)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = len(jax.tree.leaves(batch)[0]) * jax.process_count()
    if rows % devices:
        raise ValueError(
            f"a batch of {rows} images cannot be split over {devices} devices: "
            f"choose --batch as a multiple of {devices}"
        )
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


RULES: Mapping[str, Sequence[tuple[str, P]]] = MappingProxyType(
    {
        # Data parallel: every device holds all parameters.
        "data": ((".*", P()),),
    }
)
