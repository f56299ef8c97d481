"""Boundaries, distances and openings against SciPy's and scikit-image's, and by hand."""

import math

import numpy as np
import pytest
from scipy import ndimage
from skimage import morphology

from pp_jax.evaluate import surfaces


def blobs(seed: int, *, size: tuple[int, int] = (90, 140), share: float = 0.4) -> np.ndarray:
    """Smooth patches, of which some touch the border of the image."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 5)
    return noise > np.quantile(noise, 1 - share)


def line(rows: slice, column: int) -> np.ndarray:
    mask = np.zeros((40, 30), bool)
    mask[rows, column] = True
    return mask


MASKS = {
    "blobs": blobs(0),
    "sparse": blobs(1, share=0.05),
    "speckled": blobs(2) ^ (np.random.default_rng(2).random((90, 140)) < 0.05),
    "full": np.ones((90, 140), bool),
    "pixel": np.pad(np.ones((1, 1), bool), ((0, 89), (50, 89))),
    "line": np.pad(np.ones((1, 140), bool), ((30, 59), (0, 0))),
}


@pytest.mark.parametrize("name", MASKS)
def test_edges_are_what_an_erosion_by_a_cross_takes(name):
    mask = MASKS[name]
    np.testing.assert_array_equal(surfaces.edges(mask), mask & ~ndimage.binary_erosion(mask))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 2.5)])
@pytest.mark.parametrize("name", MASKS)
def test_gaps_are_scipys_distance_transform_at_the_edges(name, spacing):
    prediction, target = MASKS[name], MASKS["blobs"][::-1]
    inner, outer = (mask ^ ndimage.binary_erosion(mask) for mask in (prediction, target))
    got = surfaces.gaps(prediction, target, spacing=spacing)
    away = ndimage.distance_transform_edt(~outer, sampling=spacing)[inner]
    back = ndimage.distance_transform_edt(~inner, sampling=spacing)[outer]
    np.testing.assert_allclose(got.to_target, away, rtol=1e-12)
    np.testing.assert_allclose(got.to_prediction, back, rtol=1e-12)


@pytest.mark.parametrize("name", MASKS)
def test_the_crop_changes_no_distance_and_no_thin_part(name):
    prediction, target = MASKS[name], MASKS["sparse"]
    cropped = surfaces.crop(prediction, target)
    for got, want in zip(surfaces.gaps(*cropped), surfaces.gaps(prediction, target), strict=True):
        np.testing.assert_array_equal(got, want)
    thin = [
        np.count_nonzero(mask & ~surfaces.opened(mask, radius=4.0)) for mask in (target, cropped[1])
    ]
    assert thin[0] == thin[1] > 0


def test_the_crop_leaves_one_pixel_around_both_masks_where_the_image_has_it():
    prediction, target = line(slice(0, 3), 10), line(slice(5, 8), 14)
    for got, want in zip(surfaces.crop(prediction, target), (prediction, target), strict=True):
        np.testing.assert_array_equal(got, want[0:9, 9:16])
    assert surfaces.crop(line(slice(0), 0), line(slice(0), 0))[0].size == 0


@pytest.mark.parametrize("radius", [0.9, 1.0, 2.3, 5.0, 11.0, 200.0])
@pytest.mark.parametrize("name", MASKS)
def test_an_opening_is_scikit_images_with_a_disc_that_may_leave_the_image(name, radius):
    reach = min(int(radius), 140)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # Distances from the complement, by SciPy, where the footprint would be huge.
    mask = MASKS[name]
    if radius > 20:
        want = _opened_by_distances(mask, radius)
    else:
        want = morphology.opening(mask, x**2 + y**2 <= radius**2, mode="ignore")
    np.testing.assert_array_equal(surfaces.opened(mask, radius=radius), want)


def _opened_by_distances(mask, radius):
    eroded = ndimage.distance_transform_edt(mask) > radius if not mask.all() else mask
    return ndimage.distance_transform_edt(~eroded) <= radius if eroded.any() else eroded


def test_two_pixels_are_as_far_apart_as_pythagoras_says():
    between = surfaces.gaps(line(slice(3, 4), 5), line(slice(6, 7), 9))
    assert (between.to_target.tolist(), between.to_prediction.tolist()) == ([5.0], [5.0])
    assert surfaces.hausdorff95(between) == 5
    assert surfaces.surface_dice(between, tolerance=5.0) == 1
    assert surfaces.surface_dice(between, tolerance=4.999) == 0


def test_lines_of_two_lengths_give_the_shares_and_percentiles_counted_by_hand():
    # 20 pixels beside the first 10 of a target of 21: those see 2, the rest sqrt(4 + k^2).
    prediction, target = line(slice(0, 20), 4), line(slice(10, 31), 6)
    between = surfaces.gaps(prediction, target)
    far = [math.hypot(2, k) for k in range(10, 0, -1)]
    assert between.to_target.tolist() == pytest.approx([*far, *[2] * 10])
    away = [math.hypot(2, k) for k in range(1, 12)]
    assert between.to_prediction.tolist() == pytest.approx([*[2] * 10, *away])
    # The 95th percentile of 21 ordered values is the 20th of them; of 20 it lies lower here.
    assert surfaces.hausdorff95(between) == pytest.approx(math.hypot(2, 10))
    assert surfaces.surface_dice(between, tolerance=2.0) == 20 / 41
    precision, recall = 10 / 20, 10 / 21
    want = 2 * precision * recall / (precision + recall)
    assert surfaces.boundary_f(between, tolerance=2.0) == pytest.approx(want)


def test_a_missing_boundary_is_infinitely_far_and_two_missing_ones_agree():
    nothing, something = line(slice(0), 0), line(slice(2, 9), 3)
    for one in (surfaces.gaps(nothing, something), surfaces.gaps(something, nothing)):
        assert np.concatenate(one).tolist() == [math.inf] * 7
        assert surfaces.hausdorff95(one) == math.inf
        assert surfaces.surface_dice(one, tolerance=1e9) == 0
        assert surfaces.boundary_f(one, tolerance=1e9) == 0
    both = surfaces.gaps(nothing, nothing)
    assert surfaces.hausdorff95(both) == 0
    assert (
        surfaces.surface_dice(both, tolerance=0.0) == surfaces.boundary_f(both, tolerance=0.0) == 1
    )
