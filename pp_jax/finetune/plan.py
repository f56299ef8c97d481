"""What a training takes of devices that are not there: its step, compiled for them and never run.

Shapes and placements are those of the training itself; there are no weights and no data.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh

from pp_jax import sharding
from pp_jax.config import TrainConfig
from pp_jax.finetune import recipe, runs
from pp_jax.finetune.embeddings import check_fixed
from pp_jax.finetune.models import config_of
from pp_jax.finetune.step import State
from pp_jax.prompts import PROMPTINGS
from pp_jax.types import Batch, slots

HELP = (
    "cpu:COUNT or tpu:KIND:TOPOLOGY, such as cpu:8 (which tells no time of a step) or tpu:v5e:4x4 "
    "(needs the extra tpu-plan)"
)
UTILISATION = 0.4
FITS, DOES_NOT_FIT = 0, 1  # What the command ends with; a mistake ends with 2.
GIB = 2**30

# Kinds of bytes.
TRAINED, FROZEN, OPTIMIZER = "trained parameters", "frozen parameters", "optimizer state"
BATCHES, TEMPORARY, RESULTS = "this batch and the next", "gradients, temporaries", "results"
PADDING, CODE = "padding of these", "program"

# What libtpu asks a cloud's server for, with complaints where there is none.
_NO_TPU = (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
)
_STEPS = 1000  # Where `--steps` says none: how long the schedule is changes no shape.


class Device(NamedTuple):
    """One kind of device."""

    memory: int  # Bytes.
    peak: float | None  # FLOP/s of products in bfloat16; None: not known.
    options: Mapping[str, Any] = MappingProxyType({})  # Of its topologies.


class Plan(NamedTuple):
    """What one step takes."""

    device: Device
    mesh: dict[str, int]
    batch: int
    trained: int  # Parameters.
    frozen: int
    useful: float  # FLOPs of all devices, each product once.
    executed: float  # With what is computed again to save memory.
    held: dict[str, int]  # Bytes per device by kind.
    refused: str  # What the compiler says where the device has no room for the step; else empty.

    @property
    def devices(self) -> int:
        """How many."""
        return math.prod(self.mesh.values())

    @property
    def total(self) -> int:
        """Bytes per device."""
        return sum(self.held.values())

    @property
    def fits(self) -> bool:
        """Whether each device has room for its part."""
        return not self.refused and self.total <= self.device.memory

    @property
    def seconds(self) -> float | None:
        """Of a step, where `UTILISATION` of the peak is spent on useful FLOPs."""
        if self.device.peak is None:
            return None
        return self.useful / self.devices / (UTILISATION * self.device.peak)


def parse(spec: str) -> tuple[str, str]:
    """`("cpu", "8")` of `cpu:8`, `("v5e", "4x4")` of `tpu:v5e:4x4`.

    Raises:
      ValueError: Neither form, or an unknown kind.
    """
    match = re.fullmatch(r"cpu:([1-9]\d*)|tpu:(\w+):(\d+(?:x\d+)+)", spec)
    if not match:
        raise ValueError(f"--plan {spec}: give {HELP}")
    count, kind, topology = match.groups()
    if count:
        return "cpu", count
    if kind not in DEVICES:
        raise ValueError(f"--plan {spec}: no figures of {kind}; choose one of {', '.join(DEVICES)}")
    return kind, topology


def find(spec: str) -> tuple[Device, list[Any]]:
    """The kind of device, and as many devices as `--plan` names.

    Raises:
      ValueError: There is no such topology; libtpu is missing; jax runs already, with fewer CPUs.
    """
    kind, size = parse(spec)
    # Else jax looks for TPUs and complains of not finding any. Once it runs, this changes nothing.
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu":
        return _cpu(int(size)), _cpus(int(size))
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--plan {spec}: the compiler for TPUs is not installed; get it by "
            "`pip install -e .[tpu-plan]`"
        )
    for name, value in _NO_TPU:
        os.environ.setdefault(name, value)
    device = DEVICES[kind]
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{size}", **device.options
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--plan {spec}: no such topology ({error})") from error
    return device, list(found.devices)


def _cpu(count: int) -> Device:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(whole // count, None)


def _cpus(count: int) -> list[Any]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if len(jax.devices("cpu")) < count:
            raise ValueError(f"--plan cpu:{count}: jax runs already, on fewer devices") from error
    return jax.devices("cpu")[:count]


def make_plan(settings: TrainConfig, device: Device, devices: list[Any]) -> Plan:
    """The plan of a training on these devices; compiles its step.

    Raises:
      ValueError: The mesh does not fit the devices, or the batch the mesh.
    """
    mesh = sharding.make_mesh(devices, settings.mesh)
    sharding.check_batch(settings.batch, mesh, parts=settings.accumulate)
    settings = _as_there(settings, mesh)
    steps = settings.steps or _STEPS
    shapes = shapes_of(settings, mesh, steps=steps)
    state, frozen, *fed, _ = shapes
    where = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        recipe.step_of(settings, steps=steps, mesh=mesh),
        donate_argnums=0,
        out_shardings=(where, sharding.replicated(mesh)),
    ).trace(*shapes)
    held, refused = _compile(step, _held(state, frozen, fed))
    return Plan(
        device,
        dict(mesh.shape),
        settings.batch,
        *(sum(x.size for x in jax.tree.leaves(own)) for own in (state.trainable, frozen)),
        model_flops(settings, shapes),
        flops(step.jaxpr),
        held,
        refused,
    )


def model_flops(settings: TrainConfig, shapes: tuple[Any, ...]) -> float:
    """FLOPs of the settings' step on what has these shapes, with each product once."""
    once = dataclasses.replace(settings, remat=False, attention="plain", accumulate=1)
    steps = settings.steps or _STEPS
    return flops(jax.make_jaxpr(recipe.step_of(once, steps=steps))(*shapes))


def shapes_of(settings: TrainConfig, mesh: Mesh, *, steps: int) -> tuple[Any, ...]:
    """Shapes and placements of all that a step takes: state, frozen, batch, positions, key."""
    optimizer = recipe.optimizer_of(settings, steps=steps)
    state, frozen = runs.shapes_of(settings, optimizer, mesh=mesh)
    key = jax.eval_shape(lambda: jax.random.key(settings.seed))
    return state, frozen, *batch_shapes(settings, mesh), key


def _as_there(settings: TrainConfig, mesh: Mesh) -> TrainConfig:
    """The settings with the attention that `auto` is on the devices of the mesh."""
    if settings.attention == "auto" and mesh.devices.flat[0].platform == "tpu":
        return dataclasses.replace(settings, attention="rows")
    return settings


def batch_shapes(settings: TrainConfig, mesh: Mesh) -> tuple[Batch, jax.ShapeDtypeStruct]:
    """Shapes and placements of a global batch, and of its rows' positions."""
    model, B = config_of(settings.variant, settings.image_size), settings.batch
    side, quarter = model.image_size, model.image_size // 4
    N = slots(PROMPTINGS[settings.prompting].objects, most=settings.max_objects)

    def rows(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((B, *shape), dtype, sharding=sharding.by_rows(mesh))

    shown, features = side, None
    if settings.embeddings:
        shape = (model.grid, model.grid, model.out_dim)
        shown, features = 0, rows(*shape, dtype=jnp.dtype(settings.embeddings))
    batch = Batch(
        image=rows(shown, shown, 3, dtype=jnp.uint8),
        size=rows(2, dtype=jnp.int32),
        targets=rows(N, quarter, quarter),
        boxes=rows(N, 4),
        valid=rows(N, dtype=jnp.bool_),
        index=rows(dtype=jnp.int32),
        features=features,
    )
    return batch, rows(dtype=jnp.int32)


def _held(state: State, frozen: Any, fed: Any) -> dict[str, int]:
    """Bytes that each device holds between steps."""
    return {
        TRAINED: bytes_of(state.trainable),
        FROZEN: bytes_of(frozen),
        OPTIMIZER: bytes_of(state.optimizer),
        BATCHES: 2 * bytes_of(fed),  # The next one is placed while the devices compute.
    }


def bytes_of(arrays: Any) -> int:
    """Bytes per device of placed arrays, or of their shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )


def _compile(step: Any, held: dict[str, int]) -> tuple[dict[str, int], str]:
    """All bytes by kind, and what the compiler says if the device has no room for them."""
    try:
        told = step.lower().compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return held | {TEMPORARY: _used(str(error), held)}, str(error).split("\n")[0]
    given = sum(held.values()) - held[BATCHES] // 2
    more = {
        # Rows of a device's memory have fixed lengths, which narrow arrays do not fill.
        PADDING: max(0, told.argument_size_in_bytes - given),
        TEMPORARY: told.temp_size_in_bytes,
        RESULTS: told.output_size_in_bytes - told.alias_size_in_bytes,
        CODE: told.generated_code_size_in_bytes,
    }
    return held | more, ""


def _used(error: str, held: dict[str, int]) -> int:
    """Bytes beside those held that a program would take, by the words it is refused with."""
    match = re.search(r"Used ([\d.]+)([KMG]) of", error)
    used = float(match[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[match[2]] if match else 0
    return max(0, int(used) - sum(held.values()))


def flops(program: ClosedJaxpr | Jaxpr) -> float:
    """FLOPs of all products and convolutions; a product and its sum are two.

    The body of a loop counts as often as it runs, or once where only data tell; of alternatives
    the longest counts.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    total = 0.0
    for equation in jaxpr.eqns:
        name, own = equation.primitive.name, [flops(x) for x in _inner(equation.params)]
        if name == "dot_general":
            total += _product(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(own)
        else:
            total += sum(own) * (equation.params["length"] if name == "scan" else 1)
    return total


def _inner(params: Mapping[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item


def _product(equation: Any) -> float:
    (summed, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in summed)


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    # A dilated image is zeros for the most part, which no product needs.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs / zeros


def describe(plan: Plan) -> str:
    """The plan in lines for a terminal."""
    share = plan.devices * 1e12
    lines = [
        f"parameters: {plan.trained:,} trained, {plan.frozen:,} frozen",
        f"TFLOP per step and device: {plan.useful / share:.4g} of the model, "
        f"{plan.executed / share:.4g} with what is computed again",
        "GiB per device:",
        *(f"  {kind:<24} {count / GIB:9.3f}" for kind, count in plan.held.items()),
        f"  {'together':<24} {plan.total / GIB:9.3f} of {plan.device.memory / GIB:.3f}",
    ]
    if plan.seconds is None:
        lines.append("step: no estimate, since the peak of this kind of device is not known")
    else:
        lines.append(
            f"step: {plan.seconds:.3g} s at {UTILISATION:.0%} utilisation, "
            f"{plan.batch / plan.seconds:.4g} images/s"
        )
    return "\n".join(lines)


def advice(plan: Plan, settings: TrainConfig) -> str:
    """What to try where a plan does not fit."""
    tries = []
    if plan.mesh["fsdp"] < plan.devices and plan.devices > 1:
        tries.append(f"--mesh data=1,fsdp={plan.devices}")
    if not settings.remat:
        tries.append("--remat")
    if settings.dtype != "bfloat16":
        tries.append("--dtype bfloat16")
    rows = plan.batch // (plan.mesh["data"] * plan.mesh["fsdp"])
    if rows > settings.accumulate:
        tries.append(f"--accumulate {2 * settings.accumulate}")
    tries.append("a smaller --batch" if rows > 1 else "more devices")
    return ", ".join(tries)


def tell(settings: TrainConfig) -> int:
    """What `train.py --plan` ends with, after the plan is printed: `FITS` or `DOES_NOT_FIT`.

    Raises:
      ValueError: As `find` and `make_plan`.
    """
    device, devices = find(settings.plan)
    recipe.check_rules(settings)
    if settings.embeddings:
        check_fixed(settings)
    print(
        f"plan: {settings.variant}, {settings.trainable}, batch {settings.batch}, on "
        f"{len(devices)} x {devices[0].device_kind}"
    )
    print("compiling, which takes minutes for a large variant ...", flush=True)
    plan = make_plan(settings, device, devices)
    print(describe(plan))
    if plan.fits:
        print("it fits")
        return FITS
    if plan.refused:
        print(f"the compiler: {plan.refused}")
    print(f"it does not fit; try {advice(plan, settings)}")
    return DOES_NOT_FIT


# Memory and peak of a chip. Source: cloud.google.com/tpu/docs, the pages of each version.
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        # Both cores of a chip are one device, as they are where jax runs on it.
        "v4": Device(32 * GIB, 275e12, MappingProxyType({"chip_config_name": "megacore"})),
        "v5e": Device(16 * GIB, 197e12),
        "v5p": Device(95 * GIB, 459e12),
        "v6e": Device(32 * GIB, 918e12),
    }
)
