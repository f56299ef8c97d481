"""Meshes, where parameters lie on them, and training on eight devices of every shape."""

import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from pp_jax import config, sharding, tree
from pp_jax.finetune import recipe, runs
from pp_jax.finetune.losses import Terms
from pp_jax.finetune.step import State, make_step
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam import config as sizes
from pp_jax.sam.model import init
from tests.test_step import COMPILER, KEY, SMALL, disks

ROWS = 8
# Of data alone: `test_four_devices_train_as_one`.
MESHES = ("data=2,fsdp=4", "data=2,fsdp=2,tensor=2")
ONE = "one device"
FIRST = MESHES[0]  # Draws the weights, and writes the checkpoint that the others start from.


@dataclass(frozen=True)
class Seat:
    """All that a mesh asks of a device."""

    id: int
    process_index: int
    platform: str = "cpu"


def seats(count: int, *, each: int) -> list[Seat]:
    """So many devices of processes that have so many each."""
    return [Seat(i, i // each) for i in range(count)]


def abstract(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), sharding.AXES)


@functools.cache
def shapes(variant: str) -> dict:
    return jax.eval_shape(lambda key: init(Sam(VARIANTS[variant]), key), jax.random.key(0))


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ("", (8, 1, 1)),
        ("fsdp=8", (1, 8, 1)),
        ("fsdp=4", (2, 4, 1)),
        ("data=2,fsdp=4,tensor=1", (2, 4, 1)),
        ("tensor=2,data=1,fsdp=4", (1, 4, 2)),
    ],
)
def test_a_mesh_is_what_its_name_says_and_data_takes_the_rest(shape, want):
    mesh = sharding.make_mesh(seats(8, each=8), shape)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), want, strict=True))
    assert [seat.id for seat in mesh.devices.flat] == list(range(8))


@pytest.mark.parametrize("shape", ["8", "data=", "data=0", "model=2", "data=2,data=4", "fsdp=-1"])
def test_what_is_no_mesh_is_refused_with_an_example(shape):
    with pytest.raises(ValueError, match=re.escape(f"--mesh {shape}: ") + ".*data=2,fsdp=4"):
        sharding.parse_mesh(shape)


@pytest.mark.parametrize("shape", ["data=3", "fsdp=16", "data=8,tensor=2", "fsdp=3"])
def test_a_mesh_of_another_number_of_devices_is_refused(shape):
    with pytest.raises(ValueError, match=re.escape(shape) + ".* 8 were found; .*fsdp=8"):
        sharding.make_mesh(seats(8, each=8), shape)


def test_heads_are_not_split_between_processes():
    assert sharding.make_mesh(seats(8, each=2), "tensor=2").shape["data"] == 4
    with pytest.raises(ValueError, match=r"tensor=4 would span processes, which have 2 devices"):
        sharding.make_mesh(seats(8, each=2), "tensor=4")


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_of_the_model_are_whole(variant):
    placed = sharding.placements(shapes(variant), abstract(8, 1, 1))
    assert jax.tree.structure(placed) == jax.tree.structure(shapes(variant))
    assert all(place.is_fully_replicated for place in jax.tree.leaves(placed))


@pytest.mark.parametrize("variant", VARIANTS)
def test_eight_devices_hold_an_eighth_each(variant):
    placed = sharding.placements(shapes(variant), abstract(1, 8, 1))
    leaves = list(zip(jax.tree.leaves(shapes(variant)), jax.tree.leaves(placed), strict=True))
    held = sum(math.prod(place.shard_shape(x.shape)) for x, place in leaves)
    whole = sum(x.size for x, _ in leaves)
    assert whole / 8 <= held <= 1.1 * whole / 8


def test_tensor_splits_heads_and_the_inner_width():
    placed = sharding.placements(shapes("vit_b"), abstract(1, 2, 4))
    block = placed["params"]["image_encoder"]["blocks_07"]
    got = {path: tuple(place.spec) for path, place in tree.flatten(block).items()}
    assert got["attn/qkv/kernel"] == ("fsdp", None, "tensor", None)  # D, 3, K, d
    assert got["attn/qkv/bias"][1] == "tensor"
    assert got["attn/proj/kernel"] == ("tensor", None, "fsdp")  # K, d, D
    assert got["mlp/lin1/kernel"] == ("fsdp", "tensor")  # D, 4 D
    assert got["mlp/lin2/kernel"] == ("tensor", "fsdp")
    split = {path for path, spec in got.items() if "tensor" in spec}
    assert split == {
        "attn/qkv/kernel",
        "attn/qkv/bias",
        "attn/proj/kernel",
        "mlp/lin1/kernel",
        "mlp/lin1/bias",
        "mlp/lin2/kernel",
    }


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"--mesh tensor=4: .* 6 heads.* from 1, 2, 3, 6"):
        sharding.placements(shapes("tiny"), abstract(2, 1, 4))


def test_a_batch_is_placed_unchanged():
    rows = np.arange(4 * jax.device_count() * 3.0).reshape(-1, 3).astype(np.float32)
    placed = sharding.place_batch((rows,), sharding.make_mesh())[0]
    np.testing.assert_array_equal(placed, rows)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"4 images .* 3 devices: .*--batch .* multiple of 3"):
        sharding.place_batch((np.zeros((4, 2)),), abstract(3, 1, 1))
    sharding.check_batch(8, abstract(2, 2, 2), parts=2)  # Devices along tensor share their rows.
    with pytest.raises(ValueError, match=r"8 images .* 4 devices in 4 parts \(--accum.* of 16"):
        sharding.check_batch(8, abstract(2, 2, 2), parts=4)


# Eight devices, in a process of their own.


def linear(trainable, frozen, batch, positions, key, step) -> Terms:
    """Sums of a regression's squared errors over valid rows, in place of SAM."""
    x, y, valid = batch
    error = jnp.where(valid, (x @ trainable["w"] - y) ** 2, 0.0)
    zeros = Terms(*[jnp.float32(0)] * len(Terms._fields))
    return zeros._replace(loss=error.sum(), count=valid.sum().astype(jnp.float32))


def accumulated(parts: int, mesh: jax.sharding.Mesh) -> tuple[np.ndarray, str]:
    """The weights after a step on a batch whose first part of two or four is empty; the program."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(16, 5)), rng.normal(size=16)
    valid = (np.arange(16) % 4 > 0) & (rng.random(16) < 0.6)
    batch = sharding.place_batch((x.astype(np.float32), y.astype(np.float32), valid), mesh)
    weights = {"params": {"w": jnp.ones(5)}}
    optimizer = optax.sgd(0.1)
    state = State(jnp.int32(0), weights["params"], optimizer.init(weights["params"]))
    placed = jax.device_put(state, sharding.replicated(mesh))
    step = jax.jit(make_step(linear, optimizer, accumulate=parts))
    arguments = (placed, {}, batch, batch[2], KEY)
    program = step.lower(*arguments).compile()
    return np.asarray(program(*arguments)[0].trainable["w"]), program.as_text()


def regressed() -> np.ndarray:
    """The same by NumPy, in float64."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(16, 5)), rng.normal(size=16)
    valid = (np.arange(16) % 4 > 0) & (rng.random(16) < 0.6)
    error = (x.sum(1) - y) * valid
    return 1 - 0.1 * 2 * (error @ x) / valid.sum()


def test_parts_of_a_batch_give_its_update():
    mesh = sharding.make_mesh(jax.devices()[:1])
    for parts in (1, 2, 4):
        np.testing.assert_allclose(accumulated(parts, mesh)[0], regressed(), rtol=1e-6)


def mesh_of(name: str) -> jax.sharding.Mesh:
    if name == ONE:
        return sharding.make_mesh(jax.devices()[:1])
    return sharding.make_mesh(jax.devices(), name)


def compiled(settings: config.TrainConfig, begun: runs.Begun, mesh: jax.sharding.Mesh, data: tuple):
    """The step for what was begun, made for these very placements."""
    places = (jax.tree.map(lambda x: x.sharding, begun.state), sharding.replicated(mesh))
    step = jax.jit(recipe.step_of(settings, steps=3, mesh=mesh), out_shardings=places)
    return step.lower(begun.state, begun.frozen, *data, KEY).compile(compiler_options=COMPILER)


def bits(state: State) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def report_eight_devices() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    for module in (sizes, recipe, runs):
        module.VARIANTS = {"tiny": SMALL}
    report = {"losses": {}, "flops": {}, "same bits": {}}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        settings = config.resolve(config.TrainConfig(out=folder, steps=3))
        optimizer = recipe.optimizer_of(settings, steps=3)
        drawn = runs.begin(run, settings, optimizer, step=0, mesh=mesh_of(FIRST))
        leaves = jax.tree.leaves((drawn.state, drawn.frozen))
        report["share"] = sum(x.addressable_shards[0].data.nbytes for x in leaves) / sum(
            x.nbytes for x in leaves
        )
        state = drawn.state._replace(step=drawn.state.step + 1)
        runs.save_step(run, state, settings=settings, base=drawn.base)
        for name in (ONE, *MESHES):
            mesh = mesh_of(name)
            begun = runs.begin(run, settings, optimizer, step=1, mesh=mesh)
            report["same bits"][name] = bits(begun.state) == bits(state)
            data = sharding.place_batch((disks(ROWS), np.arange(ROWS)), mesh)
            step = compiled(settings, begun, mesh, data)
            report["flops"][name] = step.cost_analysis()["flops"]
            now, losses = begun.state, []
            for _ in range(2):
                now, means = step(now, begun.frozen, *data, KEY)
                losses.append(float(means["loss"]))
            report["losses"][name] = losses
    four = sharding.make_mesh(jax.devices()[:4], "data=2,fsdp=2")
    weights, text = zip(*(accumulated(parts, four) for parts in (1, 2, 4)), strict=True)
    report["weights"] = [own.tolist() for own in weights]
    report["moved"] = sorted(set(re.findall(r"all-gather|all-to-all|permute", "".join(text))))
    print(json.dumps(report))


@pytest.fixture(scope="module")
def eight_devices():
    script = "from tests.test_sharding import report_eight_devices; report_eight_devices()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_has_the_losses_of_one_device(eight_devices, name):
    losses = eight_devices["losses"]
    assert losses[ONE][1] < losses[ONE][0]
    np.testing.assert_allclose(losses[name], losses[ONE], rtol=1e-5)


def test_devices_compute_their_own_rows_only(eight_devices):
    """Parameters are gathered for that, not images; and with tensor only a part of what they ask.

    What is not split over tensor, most of a decoder with two heads, is computed twice.
    """
    flops = eight_devices["flops"]
    for name, share in zip(MESHES, (1.1 / 8, 0.9 / 4), strict=True):
        assert flops[name] < share * flops[ONE], name


def test_a_state_is_drawn_in_parts(eight_devices):
    assert eight_devices["share"] < 1.1 / 4


def test_a_checkpoint_of_one_mesh_is_restored_on_any_bit_for_bit(eight_devices):
    assert eight_devices["same bits"] == dict.fromkeys((ONE, *MESHES), True)


def test_parts_of_a_batch_give_its_update_on_four_devices_and_leave_rows_where_they_are(
    eight_devices,
):
    for weights in eight_devices["weights"]:
        np.testing.assert_allclose(weights, regressed(), rtol=1e-6)
    assert eight_devices["moved"] == []
