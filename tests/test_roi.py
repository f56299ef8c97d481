import pickle
import re

import numpy as np
import pytest
from skimage.measure import label, regionprops

from pp_jax.predict.asking import (
    UNSEEN,
    Asker,
    Decoded,
    Embedded,
    Found,
    Marks,
    answer_marks,
    zoomed,
)
from pp_jax.preprocess import roi
from pp_jax.preprocess.roi import Window, content_window, context_window

RNG = np.random.default_rng(0)
LOW = 64  # Side of a low-resolution mask, in which an image lies as it is.
FILM = (slice(8, 31), slice(12, 51))


def framed() -> np.ndarray:
    """A film of 23 x 39 with black lungs, on a noisy black frame with a bright letter."""
    image = RNG.integers(0, 6, (40, 60, 1), np.uint8).repeat(3, axis=2)
    image[FILM] = RNG.integers(60, 200, (23, 39, 3), np.uint8)
    image[12:25, 16:28] = image[12:25, 34:46] = 0
    image[2:6, 54:58] = 255
    return image


# Windows.


def test_content_is_the_film_without_its_frame_and_its_letter():
    assert content_window(framed()) == Window(top=8, left=12, bottom=31, right=51)
    assert content_window(framed(), threshold=200) == Window(2, 54, 6, 58)


def test_content_is_the_box_of_the_largest_region_by_scikit_image():
    for threshold in (100, 140, 160, 180):
        grey = RNG.integers(0, 256, (37, 53), np.uint8)
        largest = max(regionprops(label(grey > threshold, connectivity=2)), key=lambda r: r.area)
        window = content_window(grey[..., None].repeat(3, axis=2), threshold=threshold)
        assert (window.top, window.left, window.bottom, window.right) == largest.bbox


def test_a_black_image_is_kept_whole_and_so_is_one_without_black():
    assert content_window(np.full((7, 9, 3), 5, np.uint8)) == Window(0, 0, 7, 9)
    assert content_window(np.full((7, 9, 3), 6, np.uint8)) == Window(0, 0, 7, 9)


@pytest.mark.parametrize(
    ("box", "scale", "window"),
    [
        ((40, 30, 50, 50), 1.5, Window(25, 37, 55, 53)),
        ((0, 0, 10, 20), 1.5, Window(0, 0, 25, 13)),
        ((70.5, 90, 80, 100), 2.0, Window(85, 65, 100, 80)),
        ((3, 4, 7.3, 9), 1.0, Window(4, 3, 9, 8)),
        ((10.25, 20.5, 10.5, 20.75), 1.0, Window(20, 10, 21, 11)),
        ((80, 100, 80, 100), 3.0, Window(99, 79, 100, 80)),
        ((-20, -20, -10, -10), 1.0, Window(0, 0, 1, 1)),
        ((10, 20, 30, 40), 1e9, Window(0, 0, 100, 80)),
    ],
)
def test_context_is_the_scaled_box_in_whole_pixels_within_the_image(box, scale, window):
    assert context_window(np.array(box, np.float32), size=(100, 80), scale=scale) == window


# To the window and back.


def test_what_is_pasted_is_cut_out_again_and_nothing_lies_around_it():
    window = Window(3, 5, 17, 16)
    masks = RNG.random((2, 14, 11)) > 0.5
    whole = roi.paste(masks, window, size=(20, 30))
    np.testing.assert_array_equal(whole[:, 3:17, 5:16], masks)
    assert whole.sum() == masks.sum()
    for mask, again in zip(masks, whole, strict=True):
        np.testing.assert_array_equal(roi.crop(again, window), mask)
    with pytest.raises(ValueError, match=r"masks of \(1, 1\) do not fill a window of \(14, 11\)"):
        roi.paste(masks[:, :1, :1], window, size=(20, 30))


@pytest.mark.parametrize("width", [2, 4])
def test_marks_come_back_exactly_whether_they_lie_in_the_window_or_not(width):
    marks = (RNG.random((500, width)) * RNG.choice([1e-3, 1, 4000], (500, 1))).astype(np.float32)
    window = Window(1023, 517, 2999, 2500)
    np.testing.assert_array_equal(roi.to_frame(roi.to_window(marks, window), window), marks)


def test_a_moved_point_is_on_the_pixel_that_it_was_on():
    image, window = framed(), Window(8, 12, 31, 51)
    points = np.array([(x, y) for y in range(40) for x in range(60)], np.float64)
    held = roi.holds(points, window)
    assert held.sum() == 23 * 39
    x, y = roi.to_window(points[held], window).astype(int).T
    rows, columns = points[held].astype(int).T[::-1]
    np.testing.assert_array_equal(roi.crop(image, window)[y, x], image[rows, columns])


def test_a_box_meets_a_window_with_which_it_shares_an_area():
    boxes = np.array([[0, 0, 5, 5], [0, 0, 5.1, 3.1], [4, 9, 9, 20], [16, 3, 20, 9], [6, 4, 7, 5]])
    assert roi.meets(boxes, Window(3, 5, 17, 16)).tolist() == [False, True, True, False, True]
    clipped = roi.clip_boxes(roi.to_window(boxes[2], Window(3, 5, 17, 16)), size=(14, 11))
    assert clipped.tolist() == [0, 6, 4, 14]


# Asking.


def clicks(points: np.ndarray) -> Marks:
    """One foreground click for each prompt."""
    return Marks(points=points[:, None], labels=np.ones((len(points), 1), int))


def fake_embed(image: np.ndarray, box: np.ndarray | None = None) -> Embedded:
    assert box is None
    return Embedded(image, image.shape[:2], image.shape[:2], Window(0, 0, *image.shape[:2]))


def fake_decode(embedded: Embedded, marks: Marks) -> Decoded:
    """Per prompt what is brighter than the image's mean, inside of its box and left of its points.

    Of its four masks each is a pixel to the right of the one before, and scored the lower.
    """
    grey = embedded.features[..., 0].astype(np.float32)
    low = np.full((LOW, LOW), -1, np.float32)
    low[: grey.shape[0], : grey.shape[1]] = grey - grey.mean()
    count = next((len(x) for x in (marks.boxes, marks.points) if x is not None), 1)
    masks = np.repeat(low[None], count, axis=0)
    for n, mask in enumerate(masks):
        if marks.boxes is not None:
            x0, y0, x1, y1 = marks.boxes[n].astype(int)
            inside = np.zeros_like(mask, bool)
            inside[y0:y1, x0:x1] = True
            mask[~inside] = -1
        if marks.points is not None:
            mask[:, marks.points[n, marks.labels[n] == 1, 0].astype(int).min(initial=LOW) :] = -1
    iou = (masks > 0).mean((1, 2))[:, None] - np.arange(4) / 100
    shifted = np.stack([np.roll(masks, m, axis=2) for m in range(4)], axis=1)
    return Decoded(shifted, iou.astype(np.float32))


def fake_upscale(embedded: Embedded, logits: np.ndarray) -> np.ndarray:
    height, width = embedded.window.size
    return logits[:, :height, :width]


FAKE = Asker(fake_embed, fake_decode, fake_upscale, side=4 * LOW)


def never_asked(embedded: Embedded, marks: Marks) -> Decoded:
    raise AssertionError("the model was asked for nothing")


def asked(image: np.ndarray, marks: Marks, spec: str = "") -> Found:
    """What the fake finds in the region, or without a spec in the image as it is given."""
    asker = zoomed(FAKE, roi=roi.make(spec)) if spec else FAKE
    return answer_marks(asker, image, marks, single=False)


def assert_same(got: Found, want: Found) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def expected(image: np.ndarray, answers: list[tuple[tuple[slice, slice], Found]]) -> Found:
    """The answers on slices of the image, in its frame."""
    logits, candidates = [], []
    for where, answer in answers:
        for low, masks in zip(answer.logits, answer.candidates, strict=True):
            logits.append(np.full(image.shape[:2], -32, np.float32))
            logits[-1][where] = low
            candidates.append(np.zeros((len(masks), *image.shape[:2]), bool))
            candidates[-1][:, *where] = masks
    iou = np.concatenate([answer.iou for _, answer in answers])
    return Found(np.array(logits), iou, np.array(candidates))


def test_with_content_the_answer_is_that_of_the_slice():
    image = framed()
    box, points = np.float32([[15, 10, 40, 20]]), np.float32([[20, 9], [50, 30]])
    inner_box = np.float32([[3, 2, 28, 12]])
    for marks, inner in (
        (Marks(box), Marks(inner_box)),
        (clicks(points), clicks(np.float32([[8, 1], [38, 22]]))),
        (clicks(points[:1])._replace(boxes=box), Marks(inner_box, np.float32([[[8, 1]]]), [[1]])),
        (Marks(), Marks()),
    ):
        inner = inner._replace(labels=None if inner.labels is None else np.array(inner.labels))
        want = expected(image, [(FILM, asked(image[FILM], inner))])
        assert want.candidates.any((2, 3)).all()
        assert_same(asked(image, marks, "content"), want)


def test_with_box_context_each_box_is_answered_on_a_slice_of_its_own():
    image = framed()
    boxes = np.float32([[14, 10, 24, 20], [40, 20, 50, 30]])
    slices = [(slice(5, 25), slice(9, 29)), (slice(15, 35), slice(35, 55))]
    inner = Marks(np.float32([[5, 5, 15, 15]]))
    want = expected(image, [(where, asked(image[where], inner)) for where in slices])
    assert want.candidates.any((2, 3)).all()
    assert_same(asked(image, Marks(boxes), "box-context:2"), want)


def test_without_a_region_or_without_black_the_answer_is_the_plain_one():
    image = np.maximum(framed(), 6)
    marks = clicks(np.float32([[59, 39], [0, 0], [70, 9]]))  # The last beyond it.
    for spec in ("none", "content"):
        assert_same(asked(image, marks, spec), asked(image, marks))


def test_a_mark_beyond_the_content_has_an_empty_mask_and_a_box_that_leaves_it_is_clipped():
    image = framed()
    boxes = np.float32([[54, 2, 58, 6], [0, 0, 40, 20]])
    with pytest.warns(UserWarning, match=r"1 of 2 marks .* \(columns 12 to 50, rows 8 to 30\)"):
        got = asked(image, Marks(boxes), "content")
    clipped = asked(image[FILM], Marks(np.float32([[0, 0, 28, 12]])))
    nothing = np.full((1, 23, 39), UNSEEN, np.float32)
    empty = Found(nothing, np.zeros(1, np.float32), np.zeros((1, 3, 23, 39), bool))
    assert_same(got, expected(image, [(FILM, empty), (FILM, clipped)]))
    asker = zoomed(FAKE._replace(decode=never_asked), roi=roi.make("content"))
    for marks in (Marks(boxes[:1]), clicks(np.float32([[56, 3]]))):
        with pytest.warns(UserWarning, match="1 of 1 marks"):
            got = answer_marks(asker, image, marks, single=False)
        assert_same(got, expected(image, [(FILM, empty)]))


def test_a_click_beyond_the_content_is_not_told_beside_one_that_is_in_it():
    image = framed()
    points = np.float32([[[56, 3], [30, 20]], [[40, 25], [5, 9]], [[0, 0], [0, 0]]])
    marks = Marks(points=points, labels=np.array([[0, 1], [1, 1], [-2, -2]]))
    inner = np.float32([[[0, 0], [18, 12]], [[28, 17], [0, 0]], [[0, 0], [0, 0]]])
    labels = np.array([[-2, 1], [1, -2], [-2, -2]])
    want = asked(image[FILM], Marks(points=inner, labels=labels))
    assert_same(asked(image, marks, "content"), expected(image, [(FILM, want)]))


def test_box_context_without_a_box_is_refused():
    for marks in (Marks(), clicks(np.float32([[20, 20]]))):
        with pytest.raises(ValueError, match="cuts around a box, and none is marked"):
            asked(framed(), marks, "box-context")


# Specs.


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("box-context:0.9", "roi 'box-context:0.9': scale=0.9: choose a number from 1 up"),
        ("box-context:nan", "scale=nan"),
        ("box-context:scale=inf", "scale=inf"),
        ("content:-1", "roi 'content:-1': threshold=-1: choose a grey level from 0 to 254"),
        ("content:255", "threshold=255"),
        ("content:nan", "threshold='nan' must be a whole number"),
        ("none:1", "none takes no parameters"),
        ("lungs", "roi 'lungs' is unknown: choose one of none, content, box-context"),
    ],
)
def test_a_wrong_spec_is_refused_by_value(spec, message):
    for read in (roi.parse, roi.make, roi.make_for_images):
        with pytest.raises(ValueError, match=re.escape(message)):
            read(spec)


def test_a_training_is_refused_a_region_of_each_box_and_sends_others_to_its_workers():
    with pytest.raises(ValueError, match="prediction and evaluation only, since in training seve"):
        roi.make_for_images("box-context:2")
    image = framed()
    for spec, window in (
        ("none", Window(0, 0, 40, 60)),
        ("content", Window(8, 12, 31, 51)),
        ("content:200", Window(2, 54, 6, 58)),
    ):
        assert pickle.loads(pickle.dumps(roi.make_for_images(spec)))(image) == window
