"""Where arrays live: one mesh over all devices, and placements from ordered rules over paths.

What used to be `pmap` and `pjit` is `jax.jit` with `NamedSharding`: the compiler splits the work.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pp_jax import tree

AXES = ("data", "fsdp", "tensor")
MESH_HELP = "sizes with commas, such as data=2,fsdp=4,tensor=1; data takes what the others leave"

Axes = tuple[str | None, ...]


def default_device() -> jax.Device:
    """The device that jax computes on where nothing else is said."""
    chosen = jax.config.jax_default_device or jax.devices()[0]
    return jax.devices(chosen)[0] if isinstance(chosen, str) else chosen


def parse_mesh(shape: str) -> dict[str, int]:
    """The sizes that `--mesh` names; an axis that it leaves out is absent.

    Raises:
      ValueError: Not `AXIS=SIZE` with commas, of the three axes, each at most once.

    Examples:
      >>> parse_mesh("data=2,fsdp=4")
      {'data': 2, 'fsdp': 4}
    """
    told = [part.split("=") for part in shape.split(",")] if shape else []
    good = all(len(p) == 2 and p[0] in AXES and p[1].isdecimal() and int(p[1]) for p in told)
    sizes = {part[0]: int(part[1]) for part in told} if good else {}
    if len(sizes) != len(told):
        raise ValueError(
            f"--mesh {shape}: give sizes of {', '.join(AXES)}, each once, such as "
            "data=2,fsdp=4,tensor=1"
        )
    return sizes


def make_mesh(devices: Sequence[jax.Device] | None = None, shape: str = "") -> Mesh:
    """The devices in the shape that `--mesh` names; `data` takes what the others leave.

    Raises:
      ValueError: The shape is for another number of devices, or splits heads between hosts.
    """
    devices = jax.devices() if devices is None else devices
    count, sizes = len(devices), parse_mesh(shape)
    rest = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    sizes = {"data": max(1, count // rest), "fsdp": 1, "tensor": 1} | sizes
    if math.prod(sizes.values()) != count:
        raise ValueError(
            f"--mesh {shape}: {math.prod(sizes.values())} devices, but {count} were found; choose "
            f"sizes whose product is {count}, such as data=1,fsdp={count},tensor=1"
        )
    mesh = Mesh(np.array(devices).reshape([sizes[axis] for axis in AXES]), AXES)
    hosts = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    if (hosts != hosts[:, :, :1]).any():
        # Each process feeds its own rows, and the devices along `tensor` share theirs.
        raise ValueError(
            f"--mesh {shape}: tensor={sizes['tensor']} would span processes, which have "
            f"{count // (hosts.max() + 1)} devices each; choose a divisor of that"
        )
    return mesh


def placements(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The sharding of each leaf of a nested dict of arrays, by `RULES`.

    A network that is not SAM goes by the last of them alone.

    Raises:
      ValueError: The mesh splits heads into unequal parts.
    """
    flat = tree.flatten(shapes)
    is_sam = any(path.startswith("params/image_encoder/") for path in flat)
    axes = tree.match(RULES if is_sam else RULES[-1:], list(flat))
    return tree.unflatten(
        {path: place(leaf.shape, mesh, axes[path], path=path) for path, leaf in flat.items()}
    )


def place(shape: Sequence[int], mesh: Mesh, axes: Axes = (), *, path: str = "") -> NamedSharding:
    """The sharding of one array, split along the axes that its sides allow.

    `fsdp` is moved to the longest other side where it does not divide the one it is meant for, or
    is meant for none; `tensor` is left out there.

    Raises:
      ValueError: Sides that are heads must divide, and do not.
    """
    spec: list[str | None] = [None] * len(shape)
    for side, axis in enumerate(axes):
        name = "tensor" if axis == "heads" else axis
        if name and mesh.shape[name] > 1 and shape[side] % mesh.shape[name] == 0:
            spec[side] = name
        elif axis == "heads" and mesh.shape["tensor"] > 1:
            good = [n for n in range(1, shape[side] + 1) if shape[side] % n == 0]
            raise ValueError(
                f"--mesh tensor={mesh.shape['tensor']}: {path} has {shape[side]} heads, which do "
                f"not divide by that; choose tensor from {', '.join(map(str, good))}"
            )
    size = mesh.shape["fsdp"]
    free = [i for i, name in enumerate(spec) if name is None and shape[i] % size == 0]
    if size > 1 and "fsdp" not in spec and free:
        spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return NamedSharding(mesh, P(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Split along the first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def check_batch(rows: int, mesh: Mesh, *, parts: int = 1) -> None:
    """Nothing, where so many images can be shared out, in each of so many parts of a batch.

    Raises:
      ValueError: They do not divide by the number of devices times the parts.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (devices * parts):
        each = f" in {parts} parts (--accumulate)" if parts > 1 else ""
        raise ValueError(
            f"a batch of {rows} images cannot be split over {devices} devices{each}: "
            f"choose --batch as a multiple of {devices * parts}"
        )


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """The batch's arrays, split along their first axis over `data` and `fsdp`.

    Each process gives its own rows.

    Raises:
      ValueError: The global batch does not divide by the number of devices.
    """
    sharding = by_rows(mesh)
    check_batch(len(jax.tree.leaves(batch)[0]) * jax.process_count(), mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


# What the sides of a parameter are split along: `fsdp` and `tensor`, where they divide, or `heads`,
# which is `tensor` and must. Between two rules with `tensor` only sums cross devices: what a layer
# gives is split, the next one takes it so. `fsdp` is a matter of memory alone.
RULES: tree.Rules[Axes] = (
    ("params/image_encoder/.*/attn/qkv/kernel", ("fsdp", None, "heads", None)),
    ("params/image_encoder/.*/attn/qkv/bias", (None, "heads", None)),
    ("params/image_encoder/.*/attn/proj/kernel", ("heads", None, "fsdp")),
    (".*/lin1/kernel", ("fsdp", "tensor")),
    (".*/lin1/bias", ("tensor",)),
    (".*/lin2/kernel", ("tensor", "fsdp")),
    (".*/[qkv]_proj/kernel", ("fsdp", "tensor")),
    (".*/[qkv]_proj/bias", ("tensor",)),
    (".*/out_proj/kernel", ("tensor", "fsdp")),
    # Along the longest side that `fsdp` divides; along none of the small ones.
    (".*", ()),
)
