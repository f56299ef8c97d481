"""Rounds of clicks on the model's errors, against the paper's words written plainly in NumPy."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax import tree
from pp_jax.config import Look
from pp_jax.finetune.iterative import Asked, Task, click, draw_rounds
from pp_jax.finetune.losses import Wanted, sam_terms
from pp_jax.finetune.step import make_terms, wanted_of
from pp_jax.preprocess.stage import make_stage
from pp_jax.prompts import Marks, Purpose, example_keys, sample_prompts
from pp_jax.sam import Sam
from tests.test_step import COMPILER, KEY, SIDE, SMALL, WEIGHTS, disks, variables

ROUNDS, STEP = 6, 2
# With the encoder's last layers, to see that what flows into the embedding goes on from there.
LEARNED = (("params/(mask_decoder|prompt_encoder|image_encoder/neck_).*", True), (".*", False))
POSITIONS = np.arange(3)


class Recorded:
    """A SAM that notes what it is asked and what it answers while it runs."""

    config = SMALL

    def __init__(self):
        self.encoded, self.asked, self.answered = 0, [], []

    def apply(self, variables, *given, method):
        """What the SAM says."""
        output = Sam(SMALL).apply(variables, *given, method=method)
        if method == "encode":
            jax.debug.callback(self._count)
        else:
            jax.debug.callback(self._note, given[1], output, ordered=True)
        return output

    def _count(self):
        self.encoded += 1

    def _note(self, prompts, output):
        self.asked.append(jax.tree.map(np.asarray, prompts))
        self.answered.append(jax.tree.map(np.asarray, output))


def examples():
    """Disks; and one object of which nothing is left, as on an image without a finding."""
    batch = disks(3)
    valid, targets = batch.valid.copy(), batch.targets.copy()
    valid[2, 1], targets[2, 1] = True, 0
    return batch._replace(valid=valid, targets=targets)


def compiled(model, *, rounds: int):
    """The gradient of three times the loss, and the sums."""
    terms = make_terms(
        model,
        make_stage(Look(), side=SIDE),
        prompting="iterative",
        purpose=Purpose.TRAIN_PROMPT,
        weights=WEIGHTS,
        rounds=rounds,
    )

    def loss(*given):
        sums = terms(*given)
        return 3 * sums.loss, sums

    given = (*tree.partition(variables(), LEARNED), examples(), POSITIONS, KEY, STEP)
    program = jax.jit(jax.grad(loss, has_aux=True)).lower(*given).compile(COMPILER)
    return program, given


@pytest.fixture(scope="module")
def played():
    """What was asked and answered in each round, and what came of it."""
    model = Recorded()
    program, given = compiled(model, rounds=ROUNDS)
    slopes, sums = jax.block_until_ready(program(*given))
    jax.effects_barrier()
    slopes = {path: np.asarray(x) / 3 for path, x in tree.flatten(slopes).items()}
    return SimpleNamespace(
        model=model, slopes=slopes, sums=sums, memory=program.memory_analysis(), given=given
    )


@jax.jit
def keys(positions):
    return example_keys(KEY, purpose=Purpose.TRAIN_PROMPT, step=STEP, positions=positions)


draw = jax.jit(draw_rounds, static_argnames=("objects", "rounds"))


def errors(logits, target, size):
    """`(x, y, label)` of the cells of the image where the mask is wrong, in raster order."""
    return [
        (x, y, 1 if target[y, x] > 0.5 else 0)
        for y, x in np.ndindex(target.shape)
        if 4 * y < size[0] and 4 * x < size[1] and (logits[y, x] > 0) != (target[y, x] > 0.5)
    ]


def plainly(labels, points, answers, *, target, size, uniforms, pause):
    """What is asked about one object in each round: labels, points, the mask shown.

    Args:
      labels: Of its first point, and of the two slots after all points.
      points: Of the same.
      answers: The logits and predicted IoU of each round.
      target: The object.
      size: Of its image.
      uniforms: One after each round.
      pause: The round without a click.
    """
    (first, *corners), clicks, shown = zip(labels, points, strict=True), [], None
    for number, (logits, iou) in enumerate(answers):
        tokens = [first, *clicks, *[(-2, (0, 0))] * (ROUNDS - 3 - len(clicks))]
        if corners[0][0] != 2:
            marked = any(label >= 0 for label, _ in tokens)
            corners = [(-1 if marked else -2, (0, 0)), (-2, (0, 0))]
        yield [*tokens, *corners], shown
        shown = logits[1 + np.argmax(iou[1:])] if number == 0 else logits[0]
        if number + 1 not in (pause, ROUNDS - 1):
            wrong = errors(shown, target, size)
            x, y, label = wrong[int(np.float32(uniforms[number]) * np.float32(len(wrong)))]
            height, width = size
            clicks.append((label, (min(4 * x + 1.5, width - 1), min(4 * y + 1.5, height - 1))))


def test_each_round_asks_what_the_paper_says(played):
    """With clicks, labels and masks from NumPy, given what the model answered before."""
    batch, asked, answered = examples(), played.model.asked, played.model.answered
    assert len(asked) == len(answered) == ROUNDS

    @functools.partial(jax.jit, compiler_options=COMPILER)
    def chances(batch):
        given = {name: getattr(batch, name) for name in ("targets", "boxes", "valid", "size")}
        first = sample_prompts("mixed", keys(POSITIONS), side=SIDE, **given)
        return first, draw_rounds(keys(POSITIONS), objects=2, rounds=ROUNDS)

    first, draws = jax.tree.map(np.asarray, chances(batch))
    for one in zip(*np.nonzero(batch.valid), strict=True):
        rounds = plainly(
            first.labels[one].tolist(),
            first.points[one].tolist(),
            [(output.logits[one], output.iou[one]) for output in answered],
            target=batch.targets[one],
            size=batch.size[one[0]],
            uniforms=draws.uniforms[one],
            pause=draws.pause[one[0]],
        )
        for number, (prompts, (tokens, shown)) in enumerate(zip(asked, rounds, strict=True)):
            labels, points = zip(*tokens, strict=True)
            assert prompts.labels[one].tolist() == list(labels), (one, number)
            real = np.array(labels) >= 0
            np.testing.assert_array_equal(prompts.points[one][real], np.float32(points)[real])
            assert prompts.has_mask[one] == (number > 0)
            if number:
                np.testing.assert_array_equal(prompts.masks[one], shown)
    starts = {tuple(labels[labels != -2]) for labels in first.labels[batch.valid]}
    assert starts >= {(1, -1), (2, 3)}  # Both kinds are among them.
    for prompts in asked:
        assert (prompts.labels[~batch.valid] == -2).all()
        assert not prompts.has_mask[~batch.valid].any()


def test_the_image_is_encoded_once(played):
    assert played.model.encoded == 1


def test_the_gradient_is_that_of_the_mean_over_rounds_of_given_prompts(played):
    """Each round differentiated by itself, with the prompts that it was asked."""
    trainable, frozen, batch = played.given[:3]
    model, stage = Sam(SMALL), make_stage(Look(), side=SIDE)

    @functools.partial(jax.jit, compiler_options=COMPILER)
    @functools.partial(jax.grad, has_aux=True)
    def slope(trainable, prompts, ambiguous):
        every = tree.combine(trainable, frozen)
        embedding = model.apply(every, stage(batch.image, batch.size), method="encode")
        output = model.apply(every, embedding, prompts, method="decode")
        wanted = wanted_of(batch, side=SIDE)
        three, one = (
            sam_terms(masks, wanted, weights=WEIGHTS) for masks in (output.three(), output.single())
        )
        sums = jax.tree.map(lambda a, b: jnp.where(ambiguous, a, b), three, one)
        return sums.loss, sums

    rounds = [slope(trainable, prompts, i == 0) for i, prompts in enumerate(played.model.asked)]
    slopes, sums = zip(*rounds, strict=True)
    want = {
        path: np.mean([tree.flatten(one)[path] for one in slopes], axis=0)
        for path in tree.flatten(trainable)
    }
    assert played.slopes.keys() == want.keys()
    largest = max(np.abs(x).max() for x in want.values())
    for path, value in want.items():
        np.testing.assert_allclose(
            played.slopes[path], value, rtol=1e-3, atol=1e-6 * largest, err_msg=path
        )
    assert np.any(want["params/image_encoder/neck_0/kernel"])
    for name, value in played.sums._asdict().items():
        each = [getattr(one, name) for one in sums]
        mean = each[-1] if name == "hard_dice" else np.mean(each)
        np.testing.assert_allclose(value, mean, rtol=1e-5, err_msg=name)


def test_memory_does_not_grow_with_the_rounds(played):
    program, _ = compiled(Sam(SMALL), rounds=2 * ROUNDS)
    twice, once = program.memory_analysis(), played.memory
    assert twice.temp_size_in_bytes < 1.1 * once.temp_size_in_bytes


def test_a_mask_without_an_error_gets_no_click():
    """The other object of the image does."""
    targets = np.zeros((1, 2, 8, 8), np.float32)
    targets[:, :, 2:5, 3:6] = 1
    logits = np.where(targets > 0, 1.0, -1.0)
    logits[0, 1, 7, 1] = 1.0
    logits[:, :, :, 6:] = 1.0  # Beyond the image, where nothing is wrong.
    cover = (np.arange(8) < 6)[None, None] * np.ones((1, 8, 1), np.float32)
    asked = Asked(jnp.zeros((1, 2, 3, 2)), jnp.full((1, 2, 3), -2), jnp.zeros((1, 2, 8, 8)))
    wanted = Wanted(targets, cover, np.ones((1, 2), bool), np.zeros((1, 2, 4)))
    task = Task({}, Marks(), wanted, jnp.array([[32, 24]]), None)
    got = click(
        asked, jnp.asarray(logits), task, jnp.full((1, 2), 0.9), slot=jnp.array([1]), side=32
    )
    assert got.labels.tolist() == [[[-2, -2, -2], [-2, 0, -2]]]
    assert got.points[0, 1, 1].tolist() == [5.5, 29.5]
    np.testing.assert_array_equal(got.logits, logits)


def test_a_round_without_a_click_is_each_of_those_between_the_first_and_the_last_alike():
    draws = draw(keys(np.arange(900)), objects=2, rounds=11)
    numbers, counts = np.unique(draws.pause, return_counts=True)
    assert numbers.tolist() == list(range(1, 10))
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100)  # Five deviations of a count.


def test_chances_depend_on_the_position_and_neither_on_the_batch_nor_on_other_objects():
    together = draw(keys(np.arange(4)), objects=2, rounds=8)
    apart = draw(keys(np.array([3, 1])), objects=3, rounds=8)
    np.testing.assert_array_equal(apart.pause, together.pause[np.array([3, 1])])
    np.testing.assert_array_equal(apart.uniforms[:, :2], together.uniforms[np.array([3, 1])])
    assert len(np.unique(apart.uniforms)) == apart.uniforms.size
