import numpy as np
import pytest

from pp_jax.evaluate import methods
from pp_jax.evaluate.controls import CONTROLS, Atlas
from pp_jax.evaluate.methods import METHODS, PROTOCOLS, Subject, Tools, compare, draw_marks
from pp_jax.evaluate.score import score
from pp_jax.predict.predictor import Masks
from pp_jax.prompts import SAMPLERS

SHAPE = (40, 50)
SQUARE = Atlas(np.ones((2, 8, 8), np.float32), 0.5, 1)


def subject(name: str = "a", *, rectangles=((4, 6, 14, 30), (20, 35, 38, 49))) -> Subject:
    """Objects `(y0, x0, y1, x1)` with their upper left corner cut off."""
    objects = np.zeros((len(rectangles), *SHAPE), bool)
    for pixels, (y0, x0, y1, x1) in zip(objects, rectangles, strict=True):
        pixels[y0:y1, x0:x1] = True
        pixels[y0 : y0 + 3, x0 : x0 + 3] = False
    boxes = np.array([(x0, y0, x1, y1) for y0, x0, y1, x1 in rectangles], np.float32)
    image = np.zeros((*SHAPE, 3), np.uint8)
    return Subject(name, f"P{name}", "mask", image, objects, boxes.reshape(-1, 4), objects.any(0))


def told(answers: list) -> Tools:
    """A model that notes its marks and answers with the left half, then with the upper half."""

    def segment(image, marked):
        answers.append(marked)
        masks = np.zeros((2, *SHAPE), bool)
        masks[0, :, :25], masks[1, :20] = True, True
        return Masks(masks, np.array([0.25, 0.75], np.float32))

    return Tools(segment, lambda patient: SQUARE)


@pytest.mark.parametrize("prompt", PROTOCOLS)
def test_marks_follow_from_seed_and_image_alone(prompt):
    first, again = (draw_marks(prompt, subject("a"), seed=3) for _ in range(2))
    draw_marks(prompt, subject("b"), seed=3)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_clicks_differ_between_seeds_images_and_objects():
    twice = subject(rectangles=((4, 6, 14, 30), (4, 6, 14, 30)))
    clicks = [
        tuple(point)
        for seed in (0, 1)
        for name in ("a", "b")
        for point in draw_marks("point", twice._replace(id=name), seed=seed).points
    ]
    assert len(set(clicks)) == len(clicks) == 8


def test_a_click_lies_on_its_object_and_reaches_all_of_it():
    small = subject(rectangles=((4, 6, 8, 11), (30, 0, 34, 5)))
    seen = [set(), set()]
    for seed in range(200):
        points = draw_marks("point", small, seed=seed).points
        for clicks, pixels, (x, y) in zip(seen, small.objects, points, strict=True):
            assert pixels[int(y), int(x)]
            clicks.add((x, y))
    assert (
        [len(clicks) for clicks in seen] == [pixels.sum() for pixels in small.objects] == [11] * 2
    )


def test_a_box_is_exact_and_nothing_is_nothing():
    np.testing.assert_array_equal(draw_marks("box", subject(), seed=0).boxes, subject().boxes)
    assert draw_marks("box", subject(), seed=0).points.shape == (0, 2)
    assert draw_marks("point", subject(), seed=0).boxes.shape == (0, 4)
    assert [field.shape for field in draw_marks("none", subject(), seed=0)] == [(0, 4), (0, 2)]


def test_the_model_gets_the_marks_and_is_scored_by_the_union_of_its_masks():
    answers = []
    marked = draw_marks("point", subject(), seed=0)
    row = compare(subject(), marked, told(answers), prompt="point")[0]
    assert answers == [marked]
    union = np.zeros(SHAPE, bool)
    union[:, :25], union[:20] = True, True
    target = subject().findings
    want = 2 * (union & target).sum() / (union.sum() + target.sum())
    assert row["dice"] == pytest.approx(want)
    assert row["iou"] == pytest.approx((union & target).sum() / (union | target).sum())
    assert row["predicted_iou"] == 0.5
    assert (row["protocol"], row["objects"], row["patient"]) == ("one click", 2, "Pa")


@pytest.mark.parametrize("prompt", PROTOCOLS)
def test_controls_always_get_the_exact_boxes(prompt):
    marked = draw_marks(prompt, subject(), seed=0)
    rows = compare(subject(), marked, told([]), prompt=prompt)
    assert [row["method"] for row in rows] == [method.label for method in METHODS.values()]
    controls = {row["method"]: row for row in rows[1:]}
    assert {row["protocol"] for row in controls.values()} == {"exact box"}
    assert {row["predicted_iou"] for row in controls.values()} == {None}
    assert len(controls) == len(CONTROLS)
    # The boxes hold 240 + 252 pixels, the objects 9 less each; a full atlas is the filled box.
    want = 2 * (492 - 18) / (492 + 492 - 18)
    for name in ("filled_box", "mean_shape"):
        assert controls[CONTROLS[name].label]["dice"] == pytest.approx(want)


def test_an_atlas_is_asked_for_by_the_patient():
    asked = []
    tools = told([])._replace(atlas=lambda patient: asked.append(patient) or SQUARE)
    compare(subject("b"), draw_marks("box", subject("b"), seed=0), tools, prompt="box")
    assert asked == ["Pb"]


def test_what_is_prompted_for_in_evaluation_can_be_trained():
    assert PROTOCOLS.keys() <= SAMPLERS.keys()


def test_an_image_with_nothing_to_prompt_for_is_left_out_and_named(tmp_path):
    def evaluate(prompt: str) -> list[str]:
        out = tmp_path / prompt
        out.mkdir()
        readers = [
            lambda: subject("a"),
            lambda: subject("empty", rectangles=()),
            lambda: subject("c"),
        ]
        options = {"seed": 0, "pictures": 3, "title": "t", "settings": {}}
        score(out, readers, told([]), prompt=prompt, **options)
        drawn = {path.stem.split("_")[-1] for path in (out / "overlays").iterdir()}
        rows = (out / "per_image.csv").read_text().splitlines()[1:]
        assert drawn == {row.split(",")[0] for row in rows}
        return [row.split(",")[0] for row in rows if methods.METHODS["sam"].label in row]

    with pytest.warns(UserWarning, match="empty: no object to prompt for"):
        assert evaluate("point") == ["a", "c"]
    assert evaluate("none") == ["a", "empty", "c"]
