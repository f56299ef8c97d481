"""One optimizer step, on a SAM of the smallest sizes: its graph is that of the large ones."""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pp_jax import sharding, tree
from pp_jax.config import Look
from pp_jax.finetune.iterative import draw_rounds
from pp_jax.finetune.optimize import make_optimizer
from pp_jax.finetune.step import State, make_step, make_terms
from pp_jax.finetune.trainable import POLICIES, policy
from pp_jax.preprocess.augment import augment, make_chain
from pp_jax.preprocess.stage import make_stage
from pp_jax.prompts import SAMPLERS, Purpose, example_keys, sample_prompts
from pp_jax.sam import VARIANTS, Sam, SamConfig
from pp_jax.sam.image_encoder import ImageEncoder
from pp_jax.sam.model import init
from pp_jax.types import Batch

SIDE = 256  # The smallest there is.
SMALL = SamConfig(
    image_size=SIDE,
    embed_dim=32,
    depth=2,
    num_heads=2,
    global_blocks=(1,),
    window_size=3,
    out_dim=32,
    mask_channels=4,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_dim=32,
)
# Each prompt has its own program, which is run a few times and need not be fast. Training all of
# the model takes twice as long to compile as training its decoder, so that one prompt does it.
COMPILER = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
WEIGHTS = {"focal": 20.0, "dice": 1.0, "iou": 1.0}
LR, DECAY = 3e-3, 0.1
KEY = jax.random.key(3)


def disks(count: int = 4) -> Batch:
    """Images of a bright disk in each of one or two slots, on canvases filled to some degree."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    image = rng.integers(0, 60, (count, SIDE, SIDE, 3), np.uint8)
    size = np.array([(SIDE, SIDE - 32 * (row % 3)) for row in range(count)], np.int32)
    objects = np.zeros((count, 2, SIDE, SIDE), bool)
    boxes = np.zeros((count, 2, 4), np.float32)
    valid = np.zeros((count, 2), bool)
    for row in range(count):
        for slot in range(1 + row % 2):
            cx, cy, radius = 56 + 24 * row, 64 + 112 * slot, 32 + 4 * row
            objects[row, slot] = np.hypot(x - cx, y - cy) < radius
            boxes[row, slot] = cx - radius, cy - radius, cx + radius, cy + radius
            valid[row, slot] = True
            image[row][objects[row, slot]] += 150
        image[row, :, size[row, 1] :] = 0
    targets = objects.reshape(count, 2, SIDE // 4, 4, SIDE // 4, 4).mean((3, 5))
    return Batch(
        image, size, targets.astype(np.float32), boxes, valid, np.arange(count, dtype=np.int32)
    )


def terms_of(prompt: str, spec: str = "none"):
    return make_terms(
        Sam(SMALL),
        make_stage(Look(), side=SIDE),
        prompting=prompt,
        purpose=Purpose.TRAIN_PROMPT,
        weights=WEIGHTS,
        rounds=4,
        chain=make_chain(spec),
    )


def rule() -> optax.GradientTransformation:
    return make_optimizer(
        name="adamw", schedule="constant", lr=LR, warmup=0, steps=1, weight_decay=DECAY, clip=1.0
    )


@functools.cache
def step_of(prompt: str):
    return jax.jit(make_step(terms_of(prompt), rule()), compiler_options=COMPILER)


@functools.cache
def sums_of(prompt: str):
    return jax.jit(terms_of(prompt), compiler_options=COMPILER)


@functools.cache
def variables() -> dict:
    """Random weights, drawn without compiling what would draw them."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init(Sam(SMALL), key), jax.random.key(0))
    return tree.unflatten(
        {
            path: jnp.asarray(
                rng.normal(path.endswith("scale"), max(leaf.shape[0], 4) ** -0.5, leaf.shape),
                jnp.float32,
            )
            for path, leaf in tree.flatten(shapes).items()
        }
    )


def policy_of(prompt: str) -> str:
    return "full" if prompt == "box" else "decoder"


def started(name: str) -> tuple[State, dict]:
    rules = policy(name, depth=SMALL.depth, last_blocks=1)
    trainable, frozen = tree.partition(variables(), rules)
    return State(jnp.int32(0), trainable, rule().init(trainable)), frozen


def one_step(
    prompt: str, batch: Batch, positions: np.ndarray
) -> tuple[State, State, dict[str, jax.Array]]:
    """The state before and after a step on one device, and what the step says."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    state, frozen = jax.device_put(started(policy_of(prompt)), sharding.replicated(mesh))
    placed = sharding.place_batch((batch, positions), mesh)
    return state, *step_of(prompt)(state, frozen, *placed, KEY)


def losses_on(count: int, prompt: str, *, steps: int, batch: Batch | None = None) -> list[float]:
    """The loss at each step on one repeated batch, shared out over `count` devices."""
    batch = disks() if batch is None else batch
    mesh = sharding.make_mesh(jax.devices()[:count])
    state, frozen = jax.device_put(started(policy_of(prompt)), sharding.replicated(mesh))
    batch, positions = sharding.place_batch((batch, np.arange(4)), mesh)
    losses = []
    for _ in range(steps):
        state, means = step_of(prompt)(state, frozen, batch, positions, KEY)
        losses.append(float(means["loss"]))
    assert len(state.step.sharding.device_set) == count
    return losses


def prompts_on(count: int) -> dict[str, str]:
    """A digest of what each sampler draws for a batch that is shared out over `count` devices."""

    def draw(batch: Batch, positions: jax.Array) -> dict[str, tuple]:
        keys = example_keys(KEY, purpose=Purpose.TRAIN_PROMPT, step=5, positions=positions)
        given = batch._asdict()
        marks = {name: given[name] for name in ("targets", "boxes", "valid", "size")}
        drawn = {name: sample_prompts(name, keys, side=SIDE, **marks) for name in SAMPLERS}
        return drawn | {"rounds": draw_rounds(keys, objects=2, rounds=11)}

    mesh = sharding.make_mesh(jax.devices()[:count])
    drawn = jax.jit(draw, compiler_options=COMPILER)(
        *sharding.place_batch((disks(), np.arange(4)), mesh)
    )
    return {
        name: hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in prompts)).hexdigest()
        for name, prompts in drawn.items()
    }


def report_four_devices() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    print(json.dumps({"losses": losses_on(4, "point", steps=3), "prompts": prompts_on(4)}))


@pytest.fixture(scope="module")
def four_devices():
    """Another process with four devices, at work while the tests of this one run."""
    script = "from tests.test_step import report_four_devices; report_four_devices()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


# One row for each kind of program: other marks are other numbers in the same one.
@pytest.mark.parametrize("prompt", ["box", "point", "none", "iterative"])
def test_the_loss_of_one_batch_falls(four_devices, prompt):
    losses = losses_on(1, prompt, steps=20)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.7 * losses[0], losses


def test_images_without_a_finding_train_the_model_that_is_asked_for_none():
    """Their masks lose what they hold, though an empty target has no Dice."""
    batch = disks()
    empty = np.zeros_like(batch.targets)
    batch = batch._replace(targets=empty, valid=np.arange(2)[None] < np.ones((4, 1)))
    losses = losses_on(1, "none", steps=20, batch=batch)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.5 * losses[0], losses


def test_training_the_decoder_moves_all_of_it_and_nothing_else():
    state, after, means = one_step("point", disks(), np.arange(4))
    before, now = tree.flatten(state.trainable), tree.flatten(after.trainable)
    assert now.keys() == before.keys() == {p for p in tree.flatten(variables()) if "decoder" in p}
    moved = {path for path in now if not np.array_equal(now[path], before[path])}
    # A mask that is nowhere the best has no loss, and so its own head has none; kernels decay.
    heads = [f"params/mask_decoder/output_hypernetworks_mlps_{i}/" for i in range(4)]
    still = {path for path in now.keys() - moved if not path.startswith(tuple(heads))}
    # A key's bias adds the same to all scores of a query, and the softmax takes it out again.
    assert all(path.endswith("token_to_image/k_proj/bias") for path in still), still
    biases = [{path for path in now if path.startswith(h) and "bias" in path} for h in heads]
    assert any(biases[i] <= moved for i in (1, 2, 3))
    assert not biases[0] & moved  # The mask for several prompts is none of the three.
    assert int(after.step) == 1
    assert float(means["gradient_norm"]) > 0


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"lora"}))  # Of a model with pairs.
def test_only_what_is_trained_has_moments(name):
    state, frozen = started(name)
    (adam,) = [
        part
        for part in jax.tree.leaves(
            state.optimizer, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
        )
        if isinstance(part, optax.ScaleByAdamState)
    ]
    shapes = {path: leaf.shape for path, leaf in tree.flatten(state.trainable).items()}
    for moments in (adam.mu, adam.nu):
        assert {path: leaf.shape for path, leaf in tree.flatten(moments).items()} == shapes
    assert not shapes.keys() & tree.flatten(frozen).keys()
    gaussian = "constants/prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"
    assert gaussian in tree.flatten(frozen)


def test_the_gradient_is_that_of_the_mean_over_prompts():
    """Half of the prompts twice: the same step as these prompts alone."""
    rows = np.array([0, 1, 0, 1])
    twice = jax.tree.map(lambda x: x[rows], disks())
    once = twice._replace(valid=twice.valid & (np.arange(4) < 2)[:, None])
    want, got = (one_step("point", batch, rows)[2] for batch in (once, twice))
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def test_rows_of_two_processes_draw_what_one_process_draws():
    """Process p holds rows p, p + 2, ... of the global batch, here in its own order."""
    trainable, frozen = tree.partition(variables(), POLICIES["decoder"])
    terms = sums_of("point")

    def sums(positions: list[int], valid: list[bool]) -> dict[str, float]:
        rows = np.array(positions)
        part = jax.tree.map(lambda x: x[rows], disks())
        part = part._replace(valid=part.valid & np.array(valid)[:, None])
        return terms(trainable, frozen, part, rows, KEY, 5)._asdict()

    whole = sums([0, 1, 2, 3], [True] * 4)
    one, two = (sums(rows, [True, True, False, False]) for rows in ([2, 0, 1, 1], [1, 3, 0, 0]))
    for name, value in whole.items():
        np.testing.assert_allclose(one[name] + two[name], value, rtol=1e-5, err_msg=name)
    elsewhere = terms(trainable, frozen, disks(), np.arange(4) + 1, KEY, 5)
    assert float(elsewhere.loss) != float(whole["loss"])


def test_the_loss_of_augmented_examples_is_that_of_the_same_examples_given():
    """With prompts drawn from what the augmentation made of the targets."""
    trainable, frozen = tree.partition(variables(), POLICIES["decoder"])
    spec, rows = "rotate:30>translate:0.2>contrast", np.arange(4)
    keys = example_keys(KEY, purpose=Purpose.AUGMENT, step=5, positions=rows)
    change = functools.partial(augment, chain=make_chain(spec))
    changed = jax.jit(change, compiler_options=COMPILER)(keys, disks())
    asked = jax.jit(terms_of("point", spec), compiler_options=COMPILER)
    want = sums_of("point")(trainable, frozen, changed, rows, KEY, 5)._asdict()
    got = asked(trainable, frozen, disks(), rows, KEY, 5)._asdict()
    for name, value in want.items():  # A grey level between two may round to either.
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
    plain = sums_of("point")(trainable, frozen, disks(), rows, KEY, 5)
    assert float(plain.loss) != pytest.approx(float(want["loss"]), rel=1e-2)


def test_the_mask_for_several_prompts_has_no_part_in_the_loss():
    trainable, frozen = tree.partition(variables(), POLICIES["decoder"])
    other = {
        path: leaf + ("output_hypernetworks_mlps_0" in path)
        for path, leaf in tree.flatten(trainable).items()
    }
    want, got = (
        sums_of("point")(params, frozen, disks(), np.arange(4), KEY, 5)
        for params in (trainable, tree.unflatten(other))
    )
    assert [float(x) for x in got] == [float(x) for x in want]


def test_a_batch_without_a_prompt_moves_nothing_but_by_decay():
    batch = disks()
    empty = batch._replace(valid=np.zeros_like(batch.valid))
    state, after, means = one_step("box", empty, np.arange(4))
    assert [float(value) for value in means.values()] == [0] * len(means)
    before, now = tree.flatten(state.trainable), tree.flatten(after.trainable)
    for path in now:
        want = (1 - LR * DECAY * path.endswith("kernel")) * before[path]
        np.testing.assert_allclose(now[path], want, rtol=1e-6, err_msg=path)


def test_four_devices_train_as_one(four_devices):
    out, errors = four_devices.communicate()
    assert four_devices.returncode == 0, errors
    report = json.loads(out)
    assert report["prompts"] == prompts_on(1)  # Of all samplers, bit for bit.
    # With all of the model trained on boxes: `tests/test_sharding.py`.
    np.testing.assert_allclose(report["losses"], losses_on(1, "point", steps=3), rtol=1e-5)


def test_padding_does_not_blow_up_the_first_gradient_of_random_weights():
    """A LayerNorm of equal numbers, such as an image's black border makes, has a huge slope."""
    encoder = ImageEncoder(dataclasses.replace(VARIANTS["tiny"], depth=2, global_blocks=(1,)))
    whole = jax.random.normal(KEY, (1, 256, 256, 3))
    params = jax.jit(encoder.init, compiler_options=COMPILER)(KEY, whole)

    @functools.partial(jax.jit, compiler_options=COMPILER)
    def slope(image):
        power = jax.grad(lambda params: (encoder.apply(params, image) ** 2).mean())
        return optax.tree.norm(power(params))

    assert slope(whole.at[:, 128:].set(0)) < 10 * slope(whole)
