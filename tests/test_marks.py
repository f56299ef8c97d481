"""What a user marks becomes questions to the model."""

from pathlib import Path

import numpy as np
import pytest

from pp_jax.predict import marks, strokes
from pp_jax.predict.__main__ import Predict, read_marks

HEIGHT, WIDTH = 97, 150


def rows_of(text: str, *columns: str) -> list[marks.Row]:
    cells = (dict(zip(columns, line.split(","), strict=True)) for line in text.split())
    return [(f"f.csv, line {i}", row) for i, row in enumerate(cells, start=2)]


def test_boxes_come_in_both_layouts_and_rsna_has_rows_without() -> None:
    rsna = marks.boxes_of_rows(rows_of("1,2,3,4 ,,, 10,20,1,2", "x", "y", "width", "height"))(
        (30, 40), 256
    )
    assert [q.box.tolist() for q in rsna] == [[1, 2, 4, 6], [10, 20, 11, 22]]
    plain = marks.boxes_of_rows(rows_of("1,2,3,4", "x0", "y0", "x1", "y1"))((30, 40), 256)
    assert [q.box.tolist() for q in plain] == [[1, 2, 3, 4]]


def test_a_scribble_is_clicks_on_the_drawn_line_one_object_each() -> None:
    rows = rows_of("2,3,one 30,3,one 5,20,two 5,8,two", "x", "y", "object")
    across, down = marks.scribbles_of_rows(rows)((40, 50), 256)
    assert {tuple(p) for p in across.points} >= {(2, 3), (30, 3)}
    assert (across.points[:, 1] == 3).all()
    assert (down.points[:, 0] == 5).all()
    assert (across.labels == 1).all()
    assert across.mask is None


def test_a_lasso_is_clicks_and_a_mask_on_the_images_that_its_csv_names(tmp_path) -> None:
    corners = np.array([(20, 10), (120, 15), (90, 80), (25, 70)])
    lines = "".join(f"a,{x},{y},left\n" for x, y in corners)
    (tmp_path / "lasso.csv").write_text("image,x,y,object\n" + lines + "b,1,1,\n")
    settings = Predict((), Path("w"), Path("o"), lasso=tmp_path / "lasso.csv")
    with (
        pytest.warns(UserWarning, match=r"1 images without a row are left out, first: c\.png"),
        pytest.warns(UserWarning, match="1 names without an image are left out, first: b"),
    ):
        asks = read_marks(settings, {"a": Path("a.png"), "c": Path("c.png")})
    assert list(asks) == ["a"]
    (question,) = asks["a"]((HEIGHT, WIDTH), 256)
    want = strokes.lasso_prompt(corners.astype(float), shape=(HEIGHT, WIDTH), side=256)
    np.testing.assert_array_equal(question.points, want.points)
    np.testing.assert_array_equal(question.mask, want.mask)
    assert (question.labels == 1).all()
    assert (question.prompt, question.box) == ("lasso", None)


def test_a_mask_prompt_is_a_binary_mask_or_logits_as_they_are() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:70, 30:90] = True
    got = marks.mask_logits(mask, size=(HEIGHT, WIDTH), side=256)
    np.testing.assert_array_equal(got, strokes.mask_to_prompt(mask, side=256))
    logits = np.random.default_rng(0).normal(size=(1, 64, 64))
    same = marks.mask_logits(logits, size=(HEIGHT, WIDTH), side=256)
    np.testing.assert_array_equal(same, logits[0].astype(np.float32))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((5, 4), bool), "mask prompt of 4 x 5 pixels for an image of 150 x 97"),
        (np.zeros((HEIGHT, WIDTH), bool), "without a marked pixel"),
        (np.zeros((63, 64)), r"logits are \(64, 64\)"),
        (np.full((64, 64), np.nan), "must be finite"),
        (np.full((64, 64), "x"), r"logits are \(64, 64\)"),
    ],
)
def test_a_mask_prompt_of_another_size_or_kind_is_an_error(mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        marks.mask_logits(mask, size=(HEIGHT, WIDTH), side=256)
