import csv
import io

import cv2
import numpy as np
import pytest
import scipy.stats

from pp_jax.predict.measure import (
    Measurement,
    component_boxes,
    label_components,
    mask_boxes,
    measure,
)

RNG = np.random.default_rng(0)


def blobs(shape=(60, 80)) -> np.ndarray:
    noise = cv2.GaussianBlur(RNG.normal(size=shape), (0, 0), 3)
    return noise > 0.05


MASK = blobs()
INTENSITY = RNG.integers(0, 256, MASK.shape, dtype=np.uint8)


def test_components_are_opencvs_with_eight_neighbours_in_raster_order():
    count, want = cv2.connectedComponents(MASK.astype(np.uint8), connectivity=8)
    got = label_components(MASK)
    assert count > 5
    assert got.max() == count - 1
    # The same partition, whatever the numbers.
    assert len(set(zip(got.ravel(), want.ravel(), strict=True))) == count
    firsts = [np.flatnonzero(got == number)[0] for number in range(1, count)]
    assert firsts == sorted(firsts)


def test_area_box_centroid_and_grey_levels_equal_opencv_numpy_and_scipy():
    rows = measure(label_components(MASK), INTENSITY)
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(MASK.astype(np.uint8))
    assert len(rows) == count - 1
    for row in rows:
        y, x = np.argwhere(label_components(MASK) == row.label)[0]
        number = labels[y, x]
        left, top, width, height, area = stats[number].tolist()
        assert row.area == area
        assert (row.x0, row.y0, row.x1, row.y1) == (left, top, left + width, top + height)
        np.testing.assert_allclose((row.centroid_x, row.centroid_y), centroids[number], rtol=1e-12)
        values = INTENSITY[labels == number].astype(float)
        want = (np.mean(values), np.std(values), scipy.stats.skew(values) if area > 1 else np.nan)
        got = (row.intensity_mean, row.intensity_sd, row.intensity_skewness)
        np.testing.assert_allclose(got, want, rtol=1e-9)


def test_literal_shapes_have_their_textbook_perimeter_and_eccentricity():
    mask = np.zeros((40, 60), bool)
    mask[2:7, 3:13] = True  # 5x10: the border pixels' centres run 2 * (4 + 9).
    mask[20, 20:31] = True  # A line.
    mask[30:36, 40:46] = True  # A square has equal second moments.
    box, line, square = measure(label_components(mask), np.zeros(mask.shape, np.uint8))
    assert (box.area, box.perimeter) == (50, 26)
    # The second moment of n points in a row is (n^2 - 1) / 12.
    np.testing.assert_allclose(box.eccentricity, np.sqrt(1 - (5**2 - 1) / (10**2 - 1)), rtol=1e-6)
    assert line.eccentricity == 1
    assert square.eccentricity == pytest.approx(0, abs=1e-6)
    assert (square.centroid_x, square.centroid_y) == (42.5, 32.5)
    assert np.isnan(square.intensity_skewness)  # All pixels are equal.


def test_a_whole_mask_is_one_object_and_an_empty_one_none():
    (whole,) = measure(MASK.astype(int), INTENSITY)
    assert whole.area == MASK.sum()
    assert whole.intensity_mean == pytest.approx(INTENSITY[MASK].mean())
    assert measure(np.zeros_like(MASK, int), INTENSITY) == []


def test_a_row_can_be_written_to_a_table():
    (row,) = measure(np.ones((2, 2), int), np.array([[0.0, 0.0], [0.0, 4.0]]))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([Measurement._fields, row])
    (read,) = csv.DictReader(io.StringIO(text.getvalue()))
    assert float(read["intensity_mean"]) == 1
    # Deviations -1, -1, -1, 3: m2 = 3, m3 = 6, 6 / 3^1.5.
    assert float(read["intensity_skewness"]) == pytest.approx(6 / 3**1.5)
    assert float(read["intensity_sd"]) == pytest.approx(np.sqrt(3))


def test_boxes_lie_at_the_edges_of_pixels():
    mask = np.zeros((10, 12), bool)
    mask[5, 3] = mask[6, 4] = True  # Connected by a corner.
    mask[0, 11] = True
    assert component_boxes(mask).tolist() == [[11, 0, 12, 1], [3, 5, 5, 7]]
    empty = np.zeros_like(mask)
    assert mask_boxes(np.stack([mask, empty])).tolist() == [[3, 0, 12, 7], [0, 0, 0, 0]]
    assert component_boxes(empty).shape == mask_boxes(np.zeros((0, 4, 4), bool)).shape == (0, 4)


def test_boxes_equal_opencvs_bounding_rectangles():
    x, y, width, height = cv2.boundingRect(MASK.astype(np.uint8))
    np.testing.assert_array_equal(mask_boxes(MASK[None]), [[x, y, x + width, y + height]])
    _, _, stats, _ = cv2.connectedComponentsWithStats(MASK.astype(np.uint8))
    want = {(x, y, x + w, y + h) for x, y, w, h, _ in stats[1:].tolist()}
    assert {tuple(box) for box in component_boxes(MASK).tolist()} == want


def test_a_mask_and_an_image_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"a mask of \(60, 80\) on an image of \(80, 60\)"):
        measure(label_components(MASK), INTENSITY.T)
