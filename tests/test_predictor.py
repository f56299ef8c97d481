import jax
import numpy as np
import pytest
import torch

from convert.official import to_variables
from pp_jax.config import Look
from pp_jax.predict.predictor import Marked, make_segment
from pp_jax.preprocess.stage import make_stage
from pp_jax.sam import VARIANTS, Sam
from tests import official

TINY = VARIANTS["tiny"]
SHAPE = (300, 421)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (*SHAPE, 3), np.uint8)
BOXES = np.array([[33.0, 41.0, 201.0, 187.0], [250.5, 20.0, 420.0, 299.0]], np.float32)
POINTS = np.array([[55.0, 77.0], [400.0, 11.0], [9.0, 250.0]], np.float32)
NO_BOXES, NO_POINTS = np.zeros((0, 4), np.float32), np.zeros((0, 2), np.float32)


class Sides:
    """Our segmenter and the official predictor with the same random weights."""

    def __init__(self):
        sam = official.randomise(official.build(TINY), seed=1)
        # The mask for several prompts is predicted to be the best, and must not be taken.
        sam.mask_decoder.iou_prediction_head.layers[-1].bias[0] += 100
        variables = to_variables(
            {name: x.numpy() for name, x in sam.state_dict().items()}, variant="tiny", source="test"
        )
        self.traced = []

        def stage(images, sizes, fusion):
            self.traced.append(images.shape)  # Once per compilation.
            return make_stage(Look(), side=TINY.image_size)(images, sizes, fusion)

        self.segment = make_segment(Sam(TINY), variables, stage=stage)
        self.official = official.segment_anything.SamPredictor(sam)
        self.official.set_image(IMAGE)

    def best(self, **prompt) -> tuple[np.ndarray, float]:
        masks, scores, _ = self.official.predict(**prompt, multimask_output=True)
        return masks[scores.argmax()], scores.max()


@pytest.fixture(scope="module")
def sides() -> Sides:
    return Sides()


def prompts(kind: str) -> tuple[Marked, list[dict]]:
    """The same marks for us and, one by one, for the official predictor."""
    one = np.ones(1, np.int64)
    return {
        "box": (Marked(BOXES, NO_POINTS), [{"box": box} for box in BOXES]),
        "point": (
            Marked(NO_BOXES, POINTS),
            [{"point_coords": point[None], "point_labels": one} for point in POINTS],
        ),
        "none": (Marked(NO_BOXES, NO_POINTS), [{}]),
    }[kind]


@pytest.mark.parametrize("kind", ["box", "point", "none"])
def test_masks_equal_the_official_predictors(sides, kind):
    marked, theirs = prompts(kind)
    with torch.no_grad():
        want = [sides.best(**prompt) for prompt in theirs]
    masks, iou = sides.segment(IMAGE, marked)
    assert masks.shape == (len(theirs), *SHAPE)
    for mask, score, (their_mask, their_score) in zip(masks, iou, want, strict=True):
        assert 0.01 < their_mask.mean() < 0.99
        assert (mask == their_mask).mean() >= 0.9999
        assert score == pytest.approx(their_score, abs=1e-4)


def test_a_mark_is_answered_alike_whatever_is_marked_beside_it(sides):
    together = sides.segment(IMAGE, Marked(NO_BOXES, POINTS))
    alone = sides.segment(IMAGE, Marked(NO_BOXES, POINTS[2:]))
    np.testing.assert_allclose(alone.iou[0], together.iou[2], rtol=1e-5)
    assert (alone.masks[0] == together.masks[2]).mean() >= 0.9999


def test_the_model_is_compiled_once_for_images_of_all_sizes(sides):
    sides.segment(IMAGE, Marked(BOXES, NO_POINTS))
    before = len(sides.traced)
    for shape in ((300, 421), (299, 421), (421, 300), (64, 64), (600, 80)):
        image = RNG.integers(0, 256, (*shape, 3), np.uint8)
        for boxes in (BOXES / 8, BOXES[:1] / 8, np.repeat(BOXES / 8, 2, 0)):
            masks, iou = sides.segment(image, Marked(boxes, NO_POINTS))
            assert masks.shape == (len(boxes), *shape)
            assert iou.shape == (len(boxes),)
    assert len(sides.traced) == before
    sides.segment(IMAGE, Marked(np.repeat(BOXES, 3, 0), NO_POINTS))  # Six need eight slots.
    assert len(sides.traced) == before + 1


def test_the_upscaling_is_compiled_once_per_canvas_of_256(sides, caplog):
    def compiled(height: int, width: int) -> int:
        caplog.clear()
        image = RNG.integers(0, 256, (height, width, 3), np.uint8)
        with jax.log_compiles():
            sides.segment(image, Marked(BOXES / 8, NO_POINTS))
        return caplog.text.count("Finished XLA compilation of jit(to_original)")

    assert compiled(1025, 100) == 1
    assert compiled(1280, 256) == 0
    assert compiled(1280, 257) == 1
