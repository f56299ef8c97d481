import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.official import to_variables
from pp_jax.config import Look
from pp_jax.predict.asking import (
    Decoded,
    Embedded,
    Marks,
    answer_marks,
    choose,
    make_asker,
)
from pp_jax.preprocess import geometry, roi
from pp_jax.preprocess.stage import make_stage
from pp_jax.prompts import make_prompts
from pp_jax.sam import VARIANTS, Sam
from tests import official

TINY = VARIANTS["tiny"]
LOW = TINY.mask_side
SHAPE = (300, 421)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (*SHAPE, 3), np.uint8)
BOXES = np.array([[33.0, 41.0, 201.0, 187.0], [250.5, 20.0, 420.0, 299.0]], np.float32)
POINTS = np.array([[55.0, 77.0], [400.0, 11.0], [9.0, 250.0]], np.float32)


def clicks(points: np.ndarray, labels: int = 1) -> Marks:
    """One foreground click for each prompt."""
    return Marks(points=points[:, None], labels=np.full((len(points), 1), labels))


class Sides:
    """Our asker and the official predictor with the same random weights."""

    def __init__(self):
        sam = official.randomise(official.build(TINY), seed=1)
        # The mask for several prompts is predicted to be the best, and must not be taken.
        sam.mask_decoder.iou_prediction_head.layers[-1].bias[0] += 100
        self.variables = to_variables(
            {name: x.numpy() for name, x in sam.state_dict().items()}, variant="tiny", source="test"
        )
        self.traced = []

        def stage(images, sizes, fusion):
            self.traced.append(images.shape)  # Once per compilation.
            return make_stage(Look(), side=TINY.image_size)(images, sizes, fusion)

        self.asker = make_asker(Sam(TINY), self.variables, stage=stage)
        self.official = official.segment_anything.SamPredictor(sam)
        self.official.set_image(IMAGE)
        self.embedded = self.asker.embed(IMAGE)

    def theirs(self, *, single: bool, **prompt) -> tuple[np.ndarray, np.ndarray]:
        """The single mask or the three of the official predictor, and their scores."""
        with torch.no_grad():
            return self.official.predict(**prompt, multimask_output=not single)[:2]

    def plain(self, **told) -> Decoded:
        """The decoder's answer to marks in the model frame, without padding."""
        prompts = make_prompts(**{name: jnp.asarray(x)[None] for name, x in told.items()})
        decode = jax.jit(lambda v, x, p: Sam(TINY).apply(v, x, p, method="decode"))
        output = decode(self.variables, self.embedded.features, prompts)
        return Decoded(np.asarray(output.logits[0]), np.asarray(output.iou[0]))


@pytest.fixture(scope="module")
def sides() -> Sides:
    return Sides()


def prompts(kind: str) -> tuple[Marks, list[dict]]:
    """The same marks for us and, one by one, for the official predictor."""
    one = np.ones(1, np.int64)
    return {
        "box": (Marks(BOXES), [{"box": box} for box in BOXES]),
        "point": (
            clicks(POINTS),
            [{"point_coords": point[None], "point_labels": one} for point in POINTS],
        ),
        "box+point": (
            Marks(BOXES, POINTS[:2, None], np.zeros((2, 1), int)),
            [
                {"box": box, "point_coords": point[None], "point_labels": one - 1}
                for box, point in zip(BOXES, POINTS[:2], strict=True)
            ],
        ),
        "none": (Marks(), [{}]),
    }[kind]


# The model.


@pytest.mark.parametrize(
    ("kind", "single"),
    [("box", False), ("point", False), ("none", False), ("box", True), ("box+point", True)],
)
def test_masks_equal_the_official_predictors(sides, kind, single):
    marks, theirs = prompts(kind)
    want = [sides.theirs(single=single, **prompt) for prompt in theirs]
    found = answer_marks(sides.asker, IMAGE, marks, single=single, embedded=sides.embedded)
    assert found.logits.shape == (len(theirs), *SHAPE)
    for logits, score, masks, (their_masks, their_scores) in zip(*found, want, strict=True):
        best = their_scores.argmax()
        assert 0.01 < their_masks[best].mean() < 0.99
        assert ((logits > 0) == their_masks[best]).mean() >= 0.9999
        assert (masks == their_masks).mean() >= 0.9999
        assert score == pytest.approx(their_scores[best], rel=1e-6, abs=1e-4)


def test_padding_of_points_and_prompts_changes_nothing(sides):
    frames = {"original": SHAPE, "resized": sides.embedded.size}
    fed_back = 5 * RNG.normal(size=(2, LOW, LOW)).astype(np.float32)
    points = np.stack([POINTS[:2], POINTS[1:]])
    labels = np.array([[1, 0], [1, -2]])
    got = sides.asker.decode(sides.embedded, Marks(None, points, labels, fed_back))
    want = sides.plain(
        points=geometry.points_to_model(points, **frames), labels=labels, masks=fed_back
    )
    deviation = want.logits.std(axis=(-2, -1), keepdims=True)
    assert deviation.min() > 0
    assert (np.abs(got.logits - want.logits) / deviation).max() < 1e-5
    np.testing.assert_allclose(got.iou, want.iou, rtol=1e-5, atol=1e-5)


def test_a_mark_is_answered_alike_whatever_is_marked_beside_it(sides):
    points = np.concatenate([POINTS, POINTS[::-1] / 2, POINTS / 3])
    together = sides.asker.decode(sides.embedded, clicks(points))
    for n in range(len(points)):
        alone = sides.asker.decode(sides.embedded, clicks(points[n : n + 1]))
        np.testing.assert_allclose(alone.iou[0], together.iou[n], rtol=1e-5)
        np.testing.assert_allclose(alone.logits[0], together.logits[n], atol=1e-4)


def compiled(caplog: pytest.LogCaptureFixture, name: str) -> int:
    """How often a function was compiled since the last call."""
    count = len(re.findall(rf"Finished XLA compilation of jit\({name}\)", caplog.text))
    caplog.clear()
    return count


def test_the_model_is_compiled_once_for_images_of_all_sizes_and_most_marks(sides, caplog):
    caplog.set_level(logging.WARNING)
    marked = [
        *(Marks(boxes) for boxes in (BOXES / 8, BOXES[:1] / 8, np.repeat(BOXES / 8, 3, 0))),
        clicks(POINTS / 8),
        Marks(BOXES / 8, POINTS[:2, None] / 8, np.ones((2, 1), int)),
        Marks(),
    ]
    sides.asker.decode(sides.embedded, marked[0])
    before = len(sides.traced)
    with jax.log_compiles():
        for shape in ((300, 421), (421, 300), (64, 64), (600, 80)):
            image = RNG.integers(0, 256, (*shape, 3), np.uint8)
            embedded = sides.asker.embed(image)
            for marks in marked:
                sides.asker.decode(embedded, marks)
        assert len(sides.traced) == before
        assert compiled(caplog, "_decode") == 0
        other = make_asker(Sam(TINY), sides.variables, stage=None)
        other.decode(sides.embedded, marked[0])
        assert compiled(caplog, "_decode") == 0


def test_the_upscaling_is_compiled_once_per_canvas_of_256(sides, caplog):
    caplog.set_level(logging.WARNING)
    logits = np.zeros((1, LOW, LOW), np.float32)
    counts = []
    for size in ((1025, 100), (1280, 256), (1280, 257)):
        whole = roi.Window(0, 0, *size)
        with jax.log_compiles():
            sides.asker.upscale(Embedded(None, (256, 100), size, whole), logits)
        counts.append(compiled(caplog, "_upscale"))
    assert counts == [1, 0, 1]


def test_the_rule_takes_the_single_mask_or_the_best_scored_of_the_three():
    iou = np.float32([[9, 1, 3, 2], [0, 5, 4, 5], [1, 2, 3, 4]])
    decoded = Decoded(np.zeros((3, 4, 1, 1), np.float32), iou)
    assert choose(decoded, single=True).tolist() == [0, 0, 0]
    assert choose(decoded, single=False).tolist() == [2, 1, 3]
