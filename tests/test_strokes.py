import itertools

import cv2
import numpy as np
import pytest

from pp_jax.predict.strokes import (
    farthest,
    lasso_pixels,
    lasso_prompt,
    mask_to_prompt,
    polyline_pixels,
    scribble_clicks,
)
from pp_jax.preprocess.geometry import low_res_target

RNG = np.random.default_rng(0)
SHAPE = (60, 90)
ZIGZAG = np.array([[5.0, 50.0], [30.0, 10.0], [50.0, 48.0], [84.2, 8.7]])
STAR = np.array([[45.2, 4.1], [60.3, 28.7], [85.9, 31.2], [62.4, 40.8], [52.1, 56.3], [10.6, 50.2]])


def brute_force(points: np.ndarray, *, first: int, count: int) -> list[int]:
    """Every point's distance to every chosen one, anew for each choice."""
    chosen = [first]
    while len(chosen) < min(count, len(points)):
        nearest = [min(np.hypot(*(p - points[c])) for c in chosen) for p in points]
        chosen.append(int(np.argmax(nearest)))
    return chosen


def distance_to_line(point: np.ndarray, corners: np.ndarray) -> float:
    nearest = np.inf
    for start, end in itertools.pairwise(corners):
        along = np.clip(np.dot(point - start, end - start) / np.sum((end - start) ** 2), 0, 1)
        nearest = min(nearest, np.hypot(*(point - start - along * (end - start))))
    return nearest


def test_farthest_points_equal_brute_force_and_their_distances_never_grow():
    points = RNG.integers(0, 1000, (80, 2)).astype(np.float32)
    got = farthest(points, first=17, count=12)
    assert got.tolist() == brute_force(points, first=17, count=12)
    apart = [
        min(np.hypot(*(points[got[k]] - points[c])) for c in got[:k]) for k in range(1, len(got))
    ]
    assert all(np.diff(apart) <= 0)
    assert len(set(farthest(points, first=0, count=1000).tolist())) == 80


def test_a_line_becomes_opencvs_pixels():
    corners = np.rint(ZIGZAG).astype(np.int32)
    want = cv2.polylines(np.zeros(SHAPE, np.uint8), [corners], isClosed=False, color=1)
    got = polyline_pixels(ZIGZAG, shape=SHAPE)
    # Two pixels may lie equally near to a line: then the two may choose differently.
    near = cv2.dilate(want, np.ones((3, 3), np.uint8)).astype(bool)
    assert not (got & ~near).any()
    assert got.sum() == want.sum()
    assert got[corners[:, 1], corners[:, 0]].all()
    assert np.argwhere(polyline_pixels(ZIGZAG[:1], shape=SHAPE)).tolist() == [[50, 5]]


def test_clicks_of_a_straight_scribble_are_its_ends_then_its_middle():
    drawn = polyline_pixels(np.array([[10.0, 20.0], [50.0, 20.0]]), shape=SHAPE)
    got = scribble_clicks(drawn, count=3).tolist()
    assert got == [[10, 20], [50, 20], [30, 20]]


def test_clicks_lie_on_the_scribble_and_in_the_middle_of_a_brush():
    corners = np.rint(ZIGZAG).astype(np.int32)
    brush = np.zeros(SHAPE, np.uint8)
    cv2.polylines(brush, [corners], isClosed=False, color=1, thickness=7)
    clicks = scribble_clicks(brush.astype(bool), count=8)
    assert clicks.shape == (8, 2)
    x, y = clicks.astype(int).T
    assert brush[y, x].all()
    assert max(distance_to_line(click, ZIGZAG) for click in clicks) < 2  # The brush reaches 3.5.
    # A dot has a skeleton of less pixels than clicks asked for.
    dot = np.zeros(SHAPE, bool)
    dot[7, 9] = True
    assert scribble_clicks(dot, count=4).tolist() == [[9, 7]]


def test_a_lasso_holds_the_pixels_whose_centres_lie_in_the_polygon():
    polygon = STAR.astype(np.float32)[:, None]
    want = np.zeros(SHAPE, bool)
    for y, x in np.ndindex(SHAPE):
        want[y, x] = cv2.pointPolygonTest(polygon, (float(x), float(y)), False) > 0
    got = lasso_pixels(STAR, shape=SHAPE)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, lasso_pixels(np.roll(STAR, 2, axis=0)[::-1], shape=SHAPE))


def test_a_lassos_clicks_lie_inside_and_the_first_is_about_as_deep_as_any_pixel():
    got = lasso_prompt(STAR, shape=SHAPE, side=64, count=5)
    assert got.points.shape == (5, 2)
    polygon = STAR.astype(np.float32)[:, None]

    def depth(x, y):
        return cv2.pointPolygonTest(polygon, (float(x), float(y)), True)

    depths = [depth(*click) for click in got.points]
    assert min(depths) > 0
    deepest = max(depth(x, y) for y, x in np.argwhere(lasso_pixels(STAR, shape=SHAPE)))
    assert depths[0] > deepest - 1


def test_a_lassos_logits_are_positive_inside_and_negative_outside():
    got = lasso_prompt(STAR, shape=SHAPE, side=64).mask
    assert got.shape == (16, 16)
    assert got.dtype == np.float32
    polygon = STAR.astype(np.float32)[:, None]
    scale = 90 / 64  # The longest side is 90.
    checked = 0
    for row, column in np.ndindex(16, 16):
        # The cell's centre in original pixel indices, and how far it is inside.
        x, y = (4 * column + 2) * scale - 0.5, (4 * row + 2) * scale - 0.5
        depth = cv2.pointPolygonTest(polygon, (x, y), True)
        if abs(depth) > 4 * scale:  # Farther than a cell's diagonal: all in or all out.
            assert got[row, column] == (10 if depth > 0 else -10)
            checked += 1
    assert checked > 100
    assert (got == 10).any()


def test_a_lasso_around_the_whole_image_is_clicked_in_its_middle():
    corners = np.array([[-9.0, -9.0], [-9.0, 99.0], [99.0, 99.0], [99.0, -9.0]])
    got = lasso_prompt(corners, shape=SHAPE, side=64)
    assert np.abs(got.points[0] - [44.5, 29.5]).max() < 16
    assert 29 <= got.points[0, 1] <= 30
    # 60 of 90 rows fill 43 of 64, that is 10.67 cells; what lies below is no image.
    assert (got.mask[:11] == 10).all()
    assert (got.mask[11:] == -10).all()


def test_depth_in_a_lasso_ends_at_the_images_border():
    wedge = np.array([[20.0, 30.0], [99.0, 5.0], [99.0, 55.0]])  # Widest beyond the border.
    padded = np.pad(lasso_pixels(wedge, shape=SHAPE), 1).astype(np.uint8)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    x, y = lasso_prompt(wedge, shape=SHAPE, side=64).points[0].astype(int)
    assert depth[y, x] > depth.max() - 1


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64)])
def test_the_sign_of_a_mask_prompt_is_the_low_resolution_mask(shape):
    mask = cv2.GaussianBlur(RNG.normal(size=shape), (0, 0), 4) > 0
    filled = low_res_target(mask, side=64)
    got = mask_to_prompt(mask, side=64)
    np.testing.assert_array_equal(got > 0, filled > 0.5)
    np.testing.assert_array_equal(got < 0, filled < 0.5)
    np.testing.assert_allclose(got, 20 * filled - 10, atol=1e-5)
    lopsided = mask_to_prompt(mask, side=64, inside=2.0, outside=-30.0)
    np.testing.assert_array_equal(lopsided > 0, filled > 0.5)
    assert (lopsided.min(), lopsided.max()) == (-30, 2)


def test_a_mask_prompt_of_literal_squares_has_literal_logits():
    mask = np.zeros((64, 64), bool)
    mask[8:16, 20:26] = True  # Rows 2 and 3, column 5, and half of column 6.
    got = mask_to_prompt(mask, side=64)
    want = np.full((16, 16), -10)
    want[2:4, 5], want[2:4, 6] = 10, 0
    np.testing.assert_array_equal(got, want)


def test_a_mask_that_fills_no_cell_by_half_is_still_seen():
    mask = np.zeros((64, 64), bool)
    mask[9, 21:23] = True  # An eighth of a cell.
    mask[30, 40] = True  # A sixteenth: half of the fullest.
    got = mask_to_prompt(mask, side=64)
    assert (got[2, 5], got[7, 10]) == (10, 0)
    assert (np.delete(got.ravel(), [2 * 16 + 5, 7 * 16 + 10]) == -10).all()
    assert (mask_to_prompt(np.zeros((64, 64), bool), side=64) == -10).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scribble_clicks(np.zeros(SHAPE, bool)), "the scribble holds no pixel"),
        (lambda: scribble_clicks(np.ones(SHAPE, bool), count=0), "count=0: ask for at least one"),
        (lambda: polyline_pixels(np.zeros((0, 2)), shape=SHAPE), "give at least 1 finite"),
        (lambda: polyline_pixels(ZIGZAG * np.nan, shape=SHAPE), "give at least 1 finite"),
        (
            lambda: polyline_pixels(np.array([[3.0, 4.0], [90.0, 10.0]]), shape=SHAPE),
            r"the scribble's point \(90, 10\) lies outside the image of 90x60",
        ),
        (lambda: polyline_pixels(np.array([[3.0, -0.6]]), shape=SHAPE), r"point \(3, -0.6\)"),
        (lambda: lasso_pixels(STAR[:2], shape=SHAPE), "a lasso of .* give at least 3 finite"),
        (lambda: lasso_prompt(STAR + 500, shape=SHAPE, side=64), "the lasso holds no pixel"),
        (
            lambda: mask_to_prompt(np.ones(SHAPE, bool), side=64, inside=1.0, outside=0.0),
            "inside=1.0 must be above 0 and outside=0.0 below",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
