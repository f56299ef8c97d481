"""What `--methods` means, and guesses against pixels counted by hand."""

import numpy as np
import pytest

from pp_jax.evaluate.controls import Atlas
from pp_jax.evaluate.methods import Source, Told, guess, parse_methods
from pp_jax.evaluate.protocols import Drawn, draw_marks, parse_protocols
from pp_jax.evaluate.subjects import Marks, Subject

SHAPE = (40, 50)
GUESSES = ("box", "ellipse", "mean_shape", "atlas")
DEFAULT = [*GUESSES, "otsu", "swap", "blind"]
# Objects fill their boxes, a sixteenth of the image each, and lie in its lower half.
ATLAS = Atlas(
    np.ones((2, 8, 8), np.float32),
    0.5,
    1,
    np.repeat([0.0, 1.0], 4)[:, None].repeat(8, 1).astype(np.float32),
    0.5,
    np.full((2, 2), 0.25, np.float32),
)


def subject(name: str = "a", *, boxes=((6, 4, 30, 14), (35, 20, 49, 38))) -> Subject:
    """Filled boxes `(x0, y0, x1, y1)` without their upper left corner, which are bright."""
    objects = np.zeros((len(boxes), *SHAPE), bool)
    for pixels, (x0, y0, x1, y1) in zip(objects, boxes, strict=True):
        pixels[y0:y1, x0:x1] = True
        pixels[y0 : y0 + 3, x0 : x0 + 3] = False
    findings = objects.any(0)
    image = np.where(findings, 200, 20).astype(np.uint8)[..., None].repeat(3, 2)
    edges = np.array(boxes, np.float64).reshape(-1, 4)
    facts = (f"P{name}", "set", "mask", "", "", "", None, None)
    return Subject(name, *facts, image, objects, edges, findings)


def drawn(one: Subject, specs: str) -> dict[str, Drawn]:
    return {spec: draw_marks(spec, one, seed=0) for spec in parse_protocols(specs)}


def run(row: str, one: Subject, told: dict[str, Drawn]) -> dict:
    source = Source(one.dataset, one.id, one.patient, lambda: one)
    begun = guess(row, lambda patient: ATLAS).open([source])
    return {outcome.protocol: outcome for outcome in begun(one, told)}


# Names.


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("runs/a", Told("a", ("runs/a",), {}, ())),
        ("runs/a/", Told("a", ("runs/a",), {}, ())),
        ("edges=runs/a", Told("edges", ("runs/a",), {}, ())),
        ("three=r/0+r/1+r/2", Told("three", ("r/0", "r/1", "r/2"), {}, ())),
        ("low=runs/lr=0.1", Told("low", ("runs/lr=0.1",), {}, ())),
        ("r/a filter=clahe", Told("a filter=clahe", ("r/a",), {"filter": "clahe"}, ())),
        (
            "n=r/a fusion=blend blend=0.3 roi=content filter=canny,sobel",
            Told(
                "n",
                ("r/a",),
                {"fusion": "blend", "blend": "0.3", "roi": "content", "filter": "canny,sobel"},
                (),
            ),
        ),
        (
            "n=r/a refine=close=2 refine=keep_largest",
            Told("n", ("r/a",), {}, ("close=2", "keep_largest")),
        ),
    ],
)
def test_a_model_is_a_name_folders_and_options(text, want):
    assert parse_methods([text]) == ([want], DEFAULT)


def test_lines_are_told_from_models_kept_in_order_and_counted_once():
    models, lines = parse_methods(["swap", "runs/b", "box", "runs/a", "swap"])
    assert [model.name for model in models] == ["b", "a"]
    assert lines == ["swap", "box"]
    assert parse_methods([]) == ([], DEFAULT)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a/x", "b/x"], "'x' names 2 models.*first=a/x"),
        (["x=a", "x=b"], "'x' names 2 models"),
        (["atlas=runs/a"], "'atlas' is a line of its own"),
        ([""], "a folder is missing"),
        (["x="], "'x=': a folder is missing"),
        (["x=a++b"], "a folder is missing"),
        (["runs/a filtre=clahe"], "'filtre=clahe' is none of filter=VALUE.*refine=VALUE"),
        (["runs/a filter="], "'filter=' is none of"),
        (["runs/a clahe"], "'clahe' is none of"),
        (["runs/a refine=sharper"], "sharper"),
    ],
)
def test_a_wrong_method_is_named_in_one_line(texts, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_methods(texts)
    assert "\n" not in str(caught.value)


# Guesses.


@pytest.mark.parametrize(
    ("row", "pixels"),
    [("box", (240, 252)), ("mean_shape", (240, 252)), ("atlas", (1000,) * 2)],
)
def test_a_guess_answers_each_mark_with_the_pixels_that_one_counts(row, pixels):
    outcome = run(row, subject(), drawn(subject(), "box"))["box"]
    assert tuple(outcome.masks.sum((1, 2))) == pixels
    assert outcome.prompted
    assert (outcome.choice, outcome.score, outcome.found) == ("model", None, None)


def test_the_ellipse_has_pi_quarters_of_its_box():
    masks = run("ellipse", subject(), drawn(subject(), "box"))["box"].masks
    np.testing.assert_allclose(masks.sum((1, 2)), np.pi / 4 * np.array([240, 252]), rtol=0.03)


def test_a_guess_gets_the_marks_of_the_models_and_not_the_true_boxes():
    """Of a click it makes a box of the mean extent around it: 12.5 pixels by 10 here."""
    click = Marks(points=np.array([[[25.0, 20.0]]]), labels=np.array([[1]]))
    masks = run("box", subject(), {"point": Drawn(click, np.zeros((1, 1)))})["point"].masks
    rows, columns = np.nonzero(masks[0])
    assert masks.shape == (1, *SHAPE)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (15, 24, 19, 31)
    moved = drawn(subject(), "jitter:20")
    masks = run("box", subject(), moved)["jitter:20"].masks
    for mask, (x0, y0, x1, y1) in zip(masks, moved["jitter:20"].marks.boxes, strict=True):
        assert mask.sum() == (round(x1) - round(x0)) * (round(y1) - round(y0))
        assert mask.sum() not in (240, 252)


@pytest.mark.parametrize("row", GUESSES)
def test_no_guess_looks_at_corrections_and_none_needs_marks_where_nothing_is_marked(row):
    got = run(row, subject(), drawn(subject(), "clicks:3,box,auto,none"))
    assert list(got) == (["box", "auto", "none"] if row == "atlas" else ["box"])
    for spec in ("auto", "none"):
        if spec in got:
            assert not got[spec].prompted
            assert len(got[spec].masks) == 1
            assert len(got[spec].found.boxes) == 1


def test_an_atlas_is_asked_for_by_the_patient():
    asked = []
    method = guess("box", lambda patient: asked.append(patient) or ATLAS, also=("box",))
    list(method.open([])(subject("b"), drawn(subject("b"), "box")))
    assert asked == ["Pb"]
    assert (method.seed, method.also) == ("", ("box",))
    assert method.serves("anyone")
