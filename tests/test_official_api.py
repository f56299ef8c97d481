"""Code written for the official `SamPredictor` gets the same answers from ours."""

import functools
import re

import jax
import numpy as np
import pytest

from convert.official import to_variables
from pp_jax.config import Look
from pp_jax.sam import VARIANTS, Sam
from pp_jax.segment_anything import LoadedSam, SamAutomaticMaskGenerator, SamPredictor
from tests import official

POINTS = {"point_coords": np.array([[40, 60], [100, 20]]), "point_labels": np.array([1, 0])}
BOX = {"box": np.array([10, 20, 120, 90])}
PROMPTS = {
    "points": POINTS,
    "one point": {"point_coords": np.array([[70.5, 33.0]]), "point_labels": np.array([1])},
    "box": BOX,
    "points and box": POINTS | BOX,
    "nothing": {},
}


@functools.cache
def weights(variant: str):
    config = VARIANTS[variant]
    theirs = official.randomise(official.build(config), seed=0)
    state = {name: x.numpy() for name, x in theirs.state_dict().items()}
    variables = to_variables(state, variant=variant, source="random")
    return LoadedSam(Sam(config), variables), theirs


def pair(variant: str):
    ours, theirs = weights(variant)
    return SamPredictor(ours), official.segment_anything.SamPredictor(theirs)


def photo(height: int, width: int) -> np.ndarray:
    """Smooth colours with an edge, so that neighbouring pixels are alike as in a photo."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17 + y / 31), np.cos(y / 11), np.sin((x + y) / 23)]
    image = 127 + 80 * np.stack(waves, axis=-1) + 30 * (x > y)[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def big(variant: str) -> object:
    return pytest.param(variant, marks=[pytest.mark.parity, pytest.mark.timeout(1800)])


@pytest.fixture(scope="module", params=["tiny", big("vit_b")])
def predictors(request: pytest.FixtureRequest):
    ours, theirs = pair(request.param)
    image = photo(97, 150)
    ours.set_image(image)
    theirs.set_image(image)
    return ours, theirs


def assert_same(got: tuple, want: tuple) -> None:
    assert got[0].shape == want[0].shape
    assert all(array.flags.writeable for array in got)
    assert (got[0] == want[0]).mean() >= 0.9999
    np.testing.assert_allclose(got[1], want[1], atol=1e-4)
    assert np.abs(got[2] - want[2]).max() / want[2].std() < 1e-3


def test_embedding_and_sizes_equal(predictors) -> None:
    ours, theirs = predictors
    want = theirs.get_image_embedding().numpy()
    assert np.abs(ours.get_image_embedding() - want).max() < 1e-3 * want.std()
    assert ours.original_size == theirs.original_size
    assert ours.input_size == tuple(theirs.input_size)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_prompt_gives_the_same_masks_scores_and_logits(predictors, prompt, multimask) -> None:
    ours, theirs = predictors
    asked = PROMPTS[prompt] | {"multimask_output": multimask}
    assert_same(ours.predict(**asked), theirs.predict(**asked))


def test_all_prompts_and_all_predictors_of_a_model_share_one_program(predictors, caplog) -> None:
    ours, _ = predictors
    ours.predict(**BOX)
    with jax.log_compiles():
        for asked in PROMPTS.values():
            ours.predict(**asked)
        other = SamPredictor(ours.sam)
        other.set_image(photo(150, 97))
        other.predict(**POINTS)
    assert not re.findall(r"compilation of jit\((_decode|embed)\)", caplog.text)


def test_a_mask_of_an_earlier_call_as_a_prompt_gives_the_same(predictors) -> None:
    ours, theirs = predictors
    earlier = theirs.predict(**POINTS, multimask_output=False)[2]
    for asked in (POINTS | {"mask_input": earlier}, {"mask_input": earlier}):
        assert_same(ours.predict(**asked), theirs.predict(**asked))


def test_logits_in_the_original_frame_equal(predictors) -> None:
    ours, theirs = predictors
    got = ours.predict(**POINTS, return_logits=True)[0]
    want = theirs.predict(**POINTS, return_logits=True)[0]
    assert np.abs(got - want).max() / want.std() < 1e-3


def test_a_batch_of_boxes_equals_the_official_torch_route(predictors) -> None:
    ours, theirs = predictors
    boxes = np.array([[10, 20, 120, 90], [0, 0, 150, 97], [60, 5, 80, 50.5]])
    size = ours.original_size
    got = ours.predict_batch(None, None, ours.transform.apply_boxes(boxes, size))
    tensor = official.torch.from_numpy(boxes)
    moved = theirs.transform.apply_boxes_torch(tensor, size)
    want = [x.numpy() for x in theirs.predict_torch(None, None, moved)]
    assert_same(got, tuple(want))


def test_bgr_is_rgb_reversed() -> None:
    ours, theirs = pair("tiny")
    image = photo(64, 48)
    ours.set_image(image, image_format="BGR")
    theirs.set_image(image, image_format="BGR")
    want = theirs.get_image_embedding().numpy()
    assert np.abs(ours.get_image_embedding() - want).max() < 1e-3 * want.std()
    with pytest.raises(ValueError, match="image_format 'XYZ'"):
        ours.set_image(image, image_format="XYZ")


BAD = {
    "point_coords and point_labels go together": {"point_coords": np.array([[1, 2]])},
    "point label 2": {"point_coords": np.array([[1, 2]]), "point_labels": np.array([2])},
    "must be finite": {"point_coords": np.array([[np.nan, 2]]), "point_labels": np.array([1])},
    r"must\s+be \(P, 2\)": {"point_coords": np.array([1, 2]), "point_labels": np.array([1])},
    "corners swapped": {"box": np.array([120, 20, 10, 90])},
    r"leaves the image of 150 x 97": {"box": np.array([10, 20, 151, 90])},
    r"mask_input of shape": {"mask_input": np.zeros((1, 7, 7))},
}


@pytest.mark.parametrize("message", BAD)
def test_a_malformed_prompt_is_an_error_that_names_it(message: str) -> None:
    ours, _ = pair("tiny")
    with pytest.raises(RuntimeError, match="set_image"):
        ours.predict(**BAD[message])
    ours.original_size, ours.input_size, ours.is_image_set = (97, 150), (166, 256), True
    with pytest.raises(ValueError, match=message):
        ours.predict(**BAD[message])


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)]
)
def test_an_image_that_is_no_uint8_rgb_is_an_error_that_says_how_to_convert(image) -> None:
    ours, _ = pair("tiny")
    with pytest.raises(ValueError, match="to_rgb_uint8"):
        ours.set_image(image)


def test_reset_image_forgets_the_image() -> None:
    ours, _ = pair("tiny")
    ours.set_image(photo(20, 30))
    ours.reset_image()
    assert (ours.features, ours.original_size, ours.input_size) == (None, None, None)
    with pytest.raises(RuntimeError, match="set_image"):
        ours.get_image_embedding()


def test_the_automatic_generator_is_made_as_the_official_one(monkeypatch) -> None:
    """Its masks are compared in `test_automatic`; here, that the same call gives the same."""
    module = official.segment_anything.automatic_mask_generator
    # At a threshold of 1 nothing is suppressed: torchvision's operator may be absent.
    monkeypatch.setattr(
        module, "batched_nms", lambda b, scores, *_, iou_threshold: scores.argsort(descending=True)
    )
    ours, theirs = weights("tiny")
    told = {"pred_iou_thresh": -9.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    told["points_per_side"] = 3
    image = photo(64, 96)
    got = SamAutomaticMaskGenerator(ours, **told).generate(image)
    want = official.segment_anything.SamAutomaticMaskGenerator(theirs, **told).generate(image)
    assert len(got) == len(want) > 0
    assert got[0].keys() == want[0].keys()
    for mine, other in zip(got, want, strict=True):
        assert (mine["segmentation"] == other["segmentation"]).mean() >= 0.9999
        assert mine["bbox"] == other["bbox"]
    with pytest.raises(ValueError, match="prepared as medsam"):
        SamAutomaticMaskGenerator(ours._replace(look=Look(preprocess="medsam")))
