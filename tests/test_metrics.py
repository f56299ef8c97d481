"""Dice and IoU against SciPy's distances, literals and each other."""

import numpy as np
import pytest
from scipy.spatial.distance import dice as dice_distance
from scipy.spatial.distance import jaccard

from pp_jax.evaluate import metrics

INDEPENDENT = {"dice": dice_distance, "iou": jaccard}
EMPTY = np.zeros((5, 7), bool)
FULL = np.ones((5, 7), bool)


def masks(seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((37, 23)) < share, rng.random((37, 23)) < 0.4


def test_every_metric_has_an_independent_answer():
    assert metrics.METRICS.keys() == INDEPENDENT.keys()


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize(("seed", "share"), [(0, 0.5), (1, 0.01), (2, 0.99)])
def test_a_metric_is_one_minus_scipys_distance(name, seed, share):
    prediction, target = masks(seed, share)
    want = 1 - INDEPENDENT[name](prediction.ravel(), target.ravel())
    assert metrics.METRICS[name].function(prediction, target) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_two_empty_masks_agree_and_one_empty_mask_does_not(name):
    score = metrics.METRICS[name].function
    assert score(EMPTY, EMPTY) == 1
    assert score(EMPTY, FULL) == 0
    assert score(FULL, EMPTY) == 0
    assert score(FULL, FULL) == 1


def test_hand_counted_pixels_give_the_textbook_numbers():
    prediction = np.array([[1, 1, 0], [1, 0, 0]], bool)
    target = np.array([[0, 1, 1], [1, 1, 0]], bool)
    assert metrics.dice(prediction, target) == 4 / 7
    assert metrics.iou(prediction, target) == 2 / 5


def test_emptiness_counts_the_empty_masks():
    assert metrics.emptiness(EMPTY, EMPTY) == "both"
    assert metrics.emptiness(EMPTY, FULL) == "one"
    assert metrics.emptiness(FULL, EMPTY) == "one"
    assert metrics.emptiness(FULL, FULL) == "neither"


@pytest.mark.parametrize("name", INDEPENDENT)
def test_masks_of_two_sizes_are_refused_even_where_numpy_would_broadcast(name):
    # A TypeError where shapes are checked at run time, before the function sees them.
    with pytest.raises((ValueError, TypeError), match=r"1, ?7"):
        metrics.METRICS[name].function(FULL[:1], FULL)
