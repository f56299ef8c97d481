"""What a plan says of a training is what the training does."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks.flops import PASSES, encoder_flops
from pp_jax import config, sharding
from pp_jax.finetune import plan
from pp_jax.prompts import make_prompts
from pp_jax.sam import Sam, sized
from pp_jax.sam.model import init
from tests.fronts import ROOT, assert_refused, front

SIDE = 448  # Windows of `tiny` fill its grid: none is padded, which the formula does not count.
BATCH = 2


def settings_of(**more: object) -> config.TrainConfig:
    return config.resolve(config.TrainConfig(batch=BATCH, max_objects=1, steps=10, **more))


def counted(function, *shapes: object) -> float:
    return plan.flops(jax.make_jaxpr(function)(*shapes))


def zeros(*shape: int, dtype: object = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def test_products_in_loops_branches_and_convolutions_count_as_often_as_they_run():
    x, w = zeros(2, 3), zeros(3, 3)
    once = 2 * 2 * 3 * 3

    def loop(x, w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.dot)(x, w), None), x, length=5)[0]

    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x + 1)

    def convolve(image, kernel):
        return jax.lax.conv(image, kernel, (2, 2), "VALID")

    assert counted(jnp.dot, x, w) == once
    assert counted(loop, x, w) == 5 * once
    assert counted(branch, x, w) == 2 * once
    # 4 x 4 places, each the product of 3 channels of 2 x 2 pixels with 7 kernels.
    assert counted(convolve, zeros(1, 3, 8, 8), zeros(7, 3, 2, 2)) == 2 * 16 * 12 * 7


@pytest.fixture(scope="module")
def forward() -> tuple[float, float]:
    """FLOPs of encoder and decoder."""
    c = sized("tiny", SIDE)
    model = Sam(c, attention="plain")
    variables = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))

    def decode(variables, embedding, points, labels, valid):
        prompts = make_prompts(points=points, labels=labels, valid=valid)
        return model.apply(variables, embedding, prompts, method="decode")

    def encode(variables, image):
        return model.apply(variables, image, method="encode")

    marks = zeros(BATCH, 1, 2, 2), zeros(BATCH, 1, 2, dtype=jnp.int32), zeros(BATCH, 1, dtype=bool)
    return (
        counted(encode, variables, zeros(BATCH, SIDE, SIDE, 3)),
        counted(decode, variables, zeros(BATCH, c.grid, c.grid, c.out_dim), *marks),
    )


def test_the_encoder_counts_as_the_formula_of_the_benchmarks(forward):
    # Tables of positions are resized, which the formula leaves out.
    assert forward[0] == pytest.approx(encoder_flops(sized("tiny", SIDE), BATCH), rel=1e-3)


@pytest.mark.parametrize("policy", PASSES)
def test_a_step_counts_as_the_formula_of_its_policy(forward, policy):
    settings = settings_of(trainable=policy, image_size=SIDE)
    shapes = plan.shapes_of(settings, sharding.make_mesh(jax.devices()[:1]), steps=10)
    # The formula's decoder is the official one, which computes more than ours.
    wanted = BATCH * PASSES[policy](sized("tiny", SIDE)) + 3 * forward[1]
    # The first products of what is trained need no gradient of what they are given.
    assert plan.model_flops(settings, shapes) == pytest.approx(wanted, rel=0.06)


# Compiles for two devices, and then places a real state on them.
SCRIPT = """
import contextlib, dataclasses, io, json, sys
from functools import partial
from pathlib import Path
import train
from pp_jax import sharding
from pp_jax.finetune import plan, recipe, runs
from pp_jax.sam import config as sizes

# Not of `tests.test_step`, which starts jax before the plan has said on how many devices.
small = dataclasses.replace(sizes.VARIANTS["tiny"], embed_dim=32, depth=2, num_heads=2,
                            global_blocks=(1,), decoder_depth=1, decoder_mlp_dim=32)
for module in (sizes, recipe, runs):
    module.VARIANTS = {"tiny": small}
out = Path(sys.argv.pop())
made, make = [], plan.make_plan

def keep(settings, *rest):
    made.append((settings, make(settings, *rest)))
    return made[-1][1]

plan.make_plan = keep
text = io.StringIO()
try:
    with contextlib.redirect_stdout(text):
        train.main()
except SystemExit as end:
    code = end.code
settings, told = made[0]
written = [str(path) for path in out.iterdir()]

import jax
# Zeros lie where random weights lie, and take no time to compile.
def zeros(model, key, draw=runs.init):
    shapes = jax.eval_shape(partial(draw, model), key)
    return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shapes)

runs.init = zeros
mesh = sharding.make_mesh(jax.devices(), settings.mesh)
optimizer = recipe.optimizer_of(settings, steps=10)
state, frozen, _ = runs.begin(out / "run", settings, optimizer, step=0, mesh=mesh)

def on(device, arrays):
    shards = [s for x in jax.tree.leaves(arrays) for s in x.addressable_shards]
    return sum(s.data.nbytes for s in shards if s.device == device)

last = jax.devices()[-1]
real = {plan.TRAINED: on(last, state.trainable), plan.FROZEN: on(last, frozen),
        plan.OPTIMIZER: on(last, state.optimizer)}
print(json.dumps({"code": code, "text": text.getvalue(), "written": written, "real": real,
                  "held": told.held, "devices": told.devices, "fits": told.fits}))
"""


def test_a_plan_holds_what_a_real_state_holds_and_reads_and_writes_nothing(tmp_path):
    flags = ["--plan", "cpu:2", "--mesh", "data=1,fsdp=2", "--trainable", "decoder"]
    flags += ["--data-dir", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    flags += ["--batch", "2", "--max-objects", "1", "--steps", "10"]
    (tmp_path / "work").mkdir()
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, *flags, str(tmp_path / "work")],
        cwd=ROOT,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert (told["code"], told["devices"], told["fits"]) == (plan.FITS, 2, True)
    assert {kind: told["held"][kind] for kind in told["real"]} == told["real"]
    assert all(told["real"].values())
    assert told["held"][plan.TEMPORARY] > told["held"][plan.BATCHES] > 0
    assert "it fits" in told["text"]
    assert told["written"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["work"]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("cpu:0", "cpu:COUNT"),
        ("v5e:4x4", "tpu:KIND:TOPOLOGY"),
        ("tpu:v5e:4", "tpu:KIND:TOPOLOGY"),
        ("tpu:v1:2x2", "choose one of v4, v5e, v5p, v6e"),
    ],
)
def test_a_plan_of_no_known_device_is_refused_before_anything_is_read(spec, named):
    assert_refused(front("train.py", "--plan", spec), spec, named)


def test_a_mesh_for_other_devices_and_a_batch_they_cannot_share_are_refused():
    assert_refused(front("train.py", "--plan", "cpu:1", "--mesh", "fsdp=2"), "fsdp=2", "1 were")
    device, _ = plan.find("cpu:1")
    devices = [jax.devices()[0]] * 3
    with pytest.raises(ValueError, match="a batch of 2 images cannot be split over 3 devices"):
        plan.make_plan(settings_of(), device, devices)


def test_more_virtual_devices_than_jax_has_started_with_are_refused():
    jax.devices()
    with pytest.raises(ValueError, match="--plan cpu:64: jax runs already, on fewer devices"):
        plan.find("cpu:64")


def test_without_the_compiler_for_tpus_its_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    missing = lambda name, *rest: None if name == "libtpu" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert_refused(front("train.py", "--plan", "tpu:v5e:2x2"), "tpu:v5e:2x2", "[tpu-plan]")


PLAN = plan.Plan(
    device=plan.Device(16 * plan.GIB, 200e12),
    mesh={"data": 1, "fsdp": 4, "tensor": 1},
    batch=32,
    trained=3,
    frozen=5,
    useful=320e12,
    executed=400e12,
    held={plan.TRAINED: 2 * plan.GIB, plan.TEMPORARY: 13 * plan.GIB},
    refused="",
)


def test_time_is_that_of_useful_products_at_the_utilisation():
    # 80 TFLOP a device, of which it does 0.4 x 200 in a second.
    assert PLAN.seconds == pytest.approx(1.0)
    assert "step: 1 s at 40% utilisation, 32 images/s" in plan.describe(PLAN)


def test_what_does_not_fit_ends_with_one_and_says_what_to_try(monkeypatch):
    large = PLAN._replace(held=PLAN.held | {plan.TEMPORARY: 15 * plan.GIB})
    refused = PLAN._replace(refused="RESOURCE_EXHAUSTED: Ran out of memory")
    assert (PLAN.fits, large.fits, refused.fits) == (True, False, False)
    monkeypatch.setattr(plan, "make_plan", lambda *_: refused)
    ended = front("train.py", "--plan", "cpu:1")
    assert ended.code == plan.DOES_NOT_FIT
    assert "Ran out of memory" in ended.out
    assert ended.out.endswith(
        "it does not fit; try --remat, --dtype bfloat16, --accumulate 2, a smaller --batch\n"
    )
    spread = PLAN._replace(mesh={"data": 4, "fsdp": 1, "tensor": 1}, batch=4)
    frugal = dataclasses.replace(settings_of(), remat=True, dtype="bfloat16")
    assert plan.advice(spread, frugal) == "--mesh data=1,fsdp=4, more devices"


def test_the_refusal_of_the_compiler_tells_how_much_it_would_take():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."

    class Step:
        def lower(self):
            raise jax.errors.JaxRuntimeError(text)

    held, refused = plan._compile(Step(), {plan.TRAINED: plan.GIB, plan.BATCHES: plan.GIB})
    assert refused == text
    assert held[plan.TEMPORARY] == 18.5 * plan.GIB


@pytest.mark.slow  # Without libtpu it is skipped, and nothing of the quick tests may be.
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu (tpu-plan)")
def test_a_topology_of_tpus_has_its_chips_and_an_unknown_one_is_named():
    for spec, chips in (("tpu:v5e:4x4", 16), ("tpu:v4:2x2x1", 4), ("tpu:v5p:2x2x2", 8)):
        assert len(plan.find(spec)[1]) == chips
    assert_refused(front("train.py", "--plan", "tpu:v5e:3x3"), "tpu:v5e:3x3", "no such topology")
