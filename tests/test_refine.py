import cv2
import numpy as np
import pytest
import scipy.ndimage
from skimage.morphology import convex_hull_object, remove_small_objects

from pp_jax.predict.refine import (
    REFINEMENTS,
    closed,
    convex_hull,
    fill_holes,
    guided,
    keep_largest,
    opened,
    parse_refinements,
    refine,
    remove_small,
    smooth,
    snake,
)

RNG = np.random.default_rng(0)
SHAPE = (60, 84)
LOGITS = cv2.GaussianBlur(RNG.normal(size=SHAPE), (0, 0), 2).astype(np.float32) * 30 - 1
MASK = LOGITS > 0
IMAGE = RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
EMPTY, FULL = np.full(SHAPE, -3, np.float32), np.full(SHAPE, 3, np.float32)


def disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def opencv_regions():
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        MASK.astype(np.uint8), connectivity=8
    )
    assert count > 8
    return labels, stats[:, cv2.CC_STAT_AREA]


@pytest.mark.parametrize("area", [1, 20, 60, 10**6])
def test_small_regions_go_as_in_opencv_and_scikit_image(area):
    labels, areas = opencv_regions()
    want = np.isin(labels, [n for n in range(1, len(areas)) if areas[n] >= area])
    got = remove_small(LOGITS, IMAGE, area=area)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        got, remove_small_objects(MASK, max_size=area - 1, connectivity=2)
    )


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_the_largest_regions_stay_as_in_opencv(count):
    labels, areas = opencv_regions()
    largest = 1 + np.argsort(areas[1:])[::-1][:count]
    got = keep_largest(LOGITS, IMAGE, count=count)
    np.testing.assert_array_equal(got, np.isin(labels, largest))


def test_of_equal_regions_the_first_in_raster_order_stay():
    logits = np.full((13, 21), -1, np.float32)
    logits[::2, ::2] = 1  # 77 single pixels.
    got = keep_largest(logits, np.zeros((13, 21, 3), np.uint8), count=13)
    assert np.argwhere(got).tolist() == [[0, x] for x in range(0, 21, 2)] + [[2, 0], [2, 2]]


def test_holes_are_what_no_flood_from_the_border_reaches():
    flooded = np.pad(MASK.astype(np.uint8), 1)
    cv2.floodFill(flooded, None, (0, 0), 2, flags=4)
    want = flooded[1:-1, 1:-1] != 2
    assert want.sum() > MASK.sum()
    np.testing.assert_array_equal(fill_holes(LOGITS, IMAGE), want)


@pytest.mark.parametrize("radius", [1, 2, 3, 5])
def test_opening_and_closing_equal_opencv_up_to_the_border(radius):
    pixels = MASK.astype(np.uint8)
    for function, operation in ((opened, cv2.MORPH_OPEN), (closed, cv2.MORPH_CLOSE)):
        want = cv2.morphologyEx(pixels, operation, disc(radius))
        assert (want != pixels).any()
        np.testing.assert_array_equal(function(LOGITS, IMAGE, radius=radius), want)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 3.0])
def test_smoothing_equals_opencvs_gaussian_of_the_logits(sigma):
    size = 2 * int(4 * sigma + 0.5) + 1
    blurred = cv2.GaussianBlur(
        LOGITS.astype(np.float64), (size, size), sigma, borderType=cv2.BORDER_REPLICATE
    )
    assert np.abs(blurred).min() > 1e-5  # Far from where float32 could decide.
    got = smooth(LOGITS, IMAGE, sigma=sigma)
    np.testing.assert_array_equal(got, blurred > 0)
    assert (got != MASK).any()


def test_hulls_hold_exactly_the_centres_inside_opencvs_hull_of_each_region():
    labels, areas = opencv_regions()
    want = np.zeros(SHAPE, bool)
    for number in range(1, len(areas)):
        y, x = np.nonzero(labels == number)
        # Twice the coordinates, so that the middles of edges are whole numbers.
        ends = [(2 * x + 1, 2 * y), (2 * x - 1, 2 * y), (2 * x, 2 * y + 1), (2 * x, 2 * y - 1)]
        corners = cv2.convexHull(np.concatenate([np.stack(e, -1) for e in ends]).astype(np.int32))
        for row, column in np.ndindex(SHAPE):
            place = (2.0 * column, 2.0 * row)
            want[row, column] |= cv2.pointPolygonTest(corners, place, False) >= 0
    got = convex_hull(LOGITS, IMAGE)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, convex_hull_object(MASK, connectivity=2))


def plain_snake(image: np.ndarray, mask: np.ndarray, *, steps: int, sigma: float, alpha: float):
    """Marquez-Neila et al. 2014, equations 34 and 35 without balloon, with OpenCV's morphology."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) / 255
    slope = scipy.ndimage.gaussian_gradient_magnitude(grey, sigma, mode="nearest")
    pull = np.gradient(1 / np.sqrt(1 + alpha * slope))
    diagonal = np.eye(3, dtype=np.uint8)
    row = np.zeros((3, 3), np.uint8)
    row[1] = 1
    lines = [diagonal, row.T, diagonal[::-1].copy(), row]
    border = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}

    def sup_inf(u):
        return np.max([cv2.erode(u, line, **border) for line in lines], axis=0)

    def inf_sup(u):
        return np.min([cv2.dilate(u, line, **border) for line in lines], axis=0)

    u = mask.astype(np.uint8)
    for step in range(steps):
        force = sum(p * s for p, s in zip(pull, np.gradient(u.astype(np.int8)), strict=True))
        u = np.where(force > 0, 1, np.where(force < 0, 0, u)).astype(np.uint8)
        u = sup_inf(inf_sup(u)) if step % 2 == 0 else inf_sup(sup_inf(u))
    return u.astype(bool)


def scene(centre: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.mgrid[:64, :72]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_a_snake_does_not_depend_on_those_before():
    rng = np.random.default_rng(3)
    image = np.repeat(rng.integers(0, 256, (24, 24, 1), np.uint8), 3, axis=2)
    logits = rng.standard_normal((24, 24)).astype(np.float32)
    first, again = (snake(logits, image, iterations=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_snake_is_the_papers_and_finds_the_edge():
    truth, guess = scene((36, 32), 18), scene((38, 34), 16)
    grey = np.where(truth, 170, 60) + RNG.normal(0, 10, truth.shape)
    image = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    logits = np.where(guess, 2, -2).astype(np.float32)
    got = snake(logits, image, iterations=25, sigma=3.0, alpha=200.0)
    want = plain_snake(image, guess, steps=25, sigma=3.0, alpha=200.0)
    np.testing.assert_array_equal(got, want)
    assert iou(got, truth) > 0.95 > 0.8 > iou(guess, truth)


def plain_guided(p: np.ndarray, grey: np.ndarray, *, radius: int, epsilon: float) -> np.ndarray:
    """He et al. 2010, equations 4, 5 and 8: a ridge regression per window, then means."""
    height, width = p.shape
    total, number = np.zeros_like(p), np.zeros_like(p)
    for y, x in np.ndindex(p.shape):
        window = (
            slice(max(y - radius, 0), min(y + radius + 1, height)),
            slice(max(x - radius, 0), min(x + radius + 1, width)),
        )
        guide, value = grey[window].ravel(), p[window].ravel()
        # Least squares of (a * guide + b - value) and, once per pixel, of sqrt(epsilon) * a.
        design = np.stack([guide, np.ones_like(guide)], axis=1)
        design = np.vstack([design, [np.sqrt(epsilon * len(guide)), 0]])
        (a, b), *_ = np.linalg.lstsq(design, np.append(value, 0), rcond=None)
        total[window] += a * grey[window] + b
        number[window] += 1
    return total / number


def test_the_guided_filter_is_a_ridge_regression_in_every_window():
    rows, columns = slice(0, 24), slice(0, 30)
    logits, image = LOGITS[rows, columns], IMAGE[rows, columns]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) / 255
    want = plain_guided(1 / (1 + np.exp(-logits.astype(float))), grey, radius=3, epsilon=0.02)
    assert np.abs(want - 0.5).min() > 1e-6
    got = guided(logits, image, radius=3, epsilon=0.02)
    np.testing.assert_array_equal(got, want > 0.5)
    assert (got != (logits > 0)).any()


def test_the_guided_filter_draws_a_blurred_mask_to_the_images_edge():
    truth = scene((36, 32), 18)
    image = np.repeat(np.where(truth, 170, 60).astype(np.uint8)[..., None], 3, axis=-1)
    guess = scene((38, 33), 17)
    got = guided(np.where(guess, 2, -2).astype(np.float32), image)
    assert iou(got, truth) > 0.95 > 0.9 > iou(guess, truth)


@pytest.mark.parametrize("name", REFINEMENTS)
def test_an_empty_mask_stays_empty_and_a_full_one_full(name):
    image = np.full((*SHAPE, 3), 100, np.uint8)
    assert not refine([name], EMPTY, image).any()
    assert refine([name], FULL, image).all()


@pytest.mark.parametrize("name", REFINEMENTS)
def test_a_step_changes_neither_logits_nor_image_and_knows_no_left_or_right(name):
    logits, image = LOGITS.copy(), cv2.GaussianBlur(IMAGE, (0, 0), 3)
    before = image.copy()
    got = refine([name], logits, image)
    assert got.dtype == bool
    np.testing.assert_array_equal(logits, LOGITS)
    np.testing.assert_array_equal(image, before)
    mirrored = refine([name], logits[:, ::-1], image[:, ::-1])
    np.testing.assert_array_equal(mirrored[:, ::-1], got)


def test_without_a_step_the_mask_is_where_logits_are_positive():
    np.testing.assert_array_equal(refine([], LOGITS, IMAGE), MASK)
    assert not refine([], np.zeros(SHAPE, np.float32), IMAGE).any()


def test_steps_are_applied_in_their_order_with_their_values():
    pixels = cv2.morphologyEx(MASK.astype(np.uint8), cv2.MORPH_CLOSE, disc(2))
    pixels = cv2.morphologyEx(pixels, cv2.MORPH_OPEN, disc(3))
    got = refine(["close=2", "open=3"], LOGITS, IMAGE)
    np.testing.assert_array_equal(got, pixels)
    assert (got != refine(["open=3", "close=2"], LOGITS, IMAGE)).any()
    two = refine(["guided=3,0.02"], LOGITS, IMAGE)
    np.testing.assert_array_equal(two, guided(LOGITS, IMAGE, radius=3, epsilon=0.02))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("opening", "unknown refinement 'opening': choose from remove_small, keep_largest, fill_"),
        ("", "unknown refinement '': choose from"),
        ("open=", "refinement 'open=': radius needs a number above 0, not ''"),
        ("open=-1", "refinement 'open=-1': radius needs a number above 0, not '-1'"),
        ("open=nan", "radius needs a number above 0"),
        ("smooth=inf", "sigma needs a number above 0"),
        ("keep_largest=1.5", "count needs a whole number above 0, not '1.5'"),
        ("keep_largest=0", "count needs a whole number above 0"),
        ("fill_holes=3", "refinement 'fill_holes=3': fill_holes takes no value"),
        ("guided=8,0.1,2", "refinement 'guided=8,0.1,2': give guided=RADIUS,EPSILON"),
    ],
)
def test_a_wrong_step_is_named_before_anything_is_computed(step, message):
    with pytest.raises(ValueError, match=message):
        parse_refinements(["smooth", step])


def test_logits_and_an_image_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"logits of \(60, 84\) on an image of \(84, 60\)"):
        refine([], LOGITS, np.zeros((84, 60, 3), np.uint8))
