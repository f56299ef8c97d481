"""Which spacings are believed, and distances in millimetres."""

import csv
import gzip
import math

import numpy as np
import pytest
from scipy import ndimage

from pp_jax.evaluate import metrics
from pp_jax.evaluate.spacing import hd95_mm, plausible_spacing


def test_only_a_height_of_250_to_600_millimetres_is_a_chest_film():
    for spacing, accepted in ((0.249, False), (0.25, True), (0.6, True), (0.601, False)):
        want = (spacing, spacing) if accepted else None
        assert plausible_spacing((spacing, spacing), (1000, 5)) == want
    # Rows are what counts: 400 mm high, whatever the width.
    assert plausible_spacing((0.4, 0.2), (1000, 500)) == (0.4, 0.2)
    assert plausible_spacing((0.2, 0.4), (1000, 1000)) is None


@pytest.mark.parametrize(
    "spacing", [None, (0.0, 0.0), (math.nan, math.nan), (0.4, math.nan), (0.4, 0.0), (-0.4, 0.4)]
)
def test_a_spacing_that_is_none_is_not_believed(spacing):
    assert plausible_spacing(spacing, (1000, 1000)) is None


def test_no_spacing_of_the_rsna_challenge_is_believed(real_data):
    table = real_data / "rsna_csv" / "kaggle_stage_2_train_images_dicom_headers.csv.gz"
    with gzip.open(table, "rt") as file:
        spacings = [float(row["PixelSpacing"]) for row in csv.DictReader(file)]
    accepted = [plausible_spacing((value, value), (1024, 1024)) for value in spacings]
    assert len(accepted) == 26_684
    assert accepted == [None] * 26_684
    # They would be, if these were the rows of the matrix that the spacing belongs to.
    assert plausible_spacing((spacings[0],) * 2, (2544, 3056)) is not None


def masks() -> tuple[np.ndarray, np.ndarray]:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(80, 120)), 5)
    return noise > 0.04, np.roll(noise, 6, axis=1) > 0.05


def test_equal_spacings_scale_the_distance_in_per_cent():
    prediction, target = masks()
    per_cent = metrics.measure(prediction, target)["hd95"]
    got = hd95_mm(prediction, target, spacing=(0.3, 0.3))
    assert got == pytest.approx(per_cent / 100 * 120 * 0.3)


def test_rows_and_columns_have_spacings_of_their_own():
    prediction, target = masks()
    outlines = [mask ^ ndimage.binary_erosion(mask) for mask in (prediction, target)]
    away = [ndimage.distance_transform_edt(~outline, sampling=(2, 0.5)) for outline in outlines]
    want = max(np.percentile(away[1 - i][outlines[i]], 95) for i in (0, 1))
    assert hd95_mm(prediction, target, spacing=(2.0, 0.5)) == pytest.approx(want)


def test_an_empty_mask_is_the_diagonal_of_the_film_away_and_two_are_together():
    empty, full = np.zeros((300, 200), bool), np.ones((300, 200), bool)
    assert hd95_mm(empty, full, spacing=(1.0, 2.0)) == 500
    assert hd95_mm(full, empty, spacing=(1.0, 2.0)) == 500
    assert hd95_mm(empty, empty, spacing=(1.0, 2.0)) == 0
