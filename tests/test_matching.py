"""Components matched to objects, against every assignment there is and by hand."""

from itertools import permutations

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from pp_jax.evaluate import matching
from pp_jax.evaluate.matching import Matched

SIZE = (60, 100)  # 6,000 pixels: components under 6 are ignored.


def block(rows: slice | int, columns: slice | int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[rows, columns] = True
    return mask


def world(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask of a few patches, and boxes about them that may overlap."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=SIZE), 4)
    prediction = noise > np.quantile(noise, 0.88)
    regions = measure.regionprops(measure.label(prediction, connectivity=2))
    objects = []
    for index in rng.permutation(len(regions))[:4]:
        top, left, bottom, right = regions[index].bbox
        up, aside = rng.integers(0, 3, 2)
        objects.append(block(slice(max(top - up, 0), bottom), slice(max(left - aside, 0), right)))
    return prediction, np.stack(objects)


def ious(prediction: np.ndarray, objects: np.ndarray, *, least: int) -> list[list[float]]:
    labels = measure.label(prediction, connectivity=2)
    found = [labels == label for label in range(1, labels.max() + 1)]
    return [
        [
            (one & found_one).sum() / (one | found_one).sum()
            for found_one in found
            if found_one.sum() >= least
        ]
        for one in objects
        if one.sum() >= least
    ]


def best_sum(table: list[list[float]]) -> float:
    """Of all ways to give each object a column of its own, or none."""
    columns = [*range(len(table[0])), *[None] * len(table)]
    ways = set(permutations(columns, len(table)))
    return max(
        sum(row[column] for row, column in zip(table, way, strict=True) if column is not None)
        for way in ways
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_match_has_the_largest_sum_of_ious_above_a_half_of_all_assignments(seed):
    prediction, objects = world(seed)
    table = ious(prediction, objects, least=6)
    counted = [[value if value > 0.5 else 0 for value in row] for row in table]
    got = matching.match(prediction, objects)
    assert got.iou == pytest.approx(best_sum(counted))
    assert got.tp > 0
    assert (got.tp + got.fp, got.tp + got.fn) == (len(table[0]), len(table))


@pytest.mark.parametrize("seed", range(6))
def test_assigned_components_have_the_largest_sum_of_ious_of_all_assignments(seed):
    prediction, objects = world(seed)
    answers = matching.assign_components(prediction, objects)
    got = [
        (answer & one).sum() / (answer | one).sum()
        for answer, one in zip(answers, objects, strict=True)
    ]
    assert sum(got) == pytest.approx(best_sum(ious(prediction, objects, least=1)))
    assert answers.sum(0).max() == 1  # No component answers two objects.
    labels = measure.label(prediction, connectivity=2)
    for answer in answers[answers.any((1, 2))]:
        np.testing.assert_array_equal(answer, labels == labels[answer][0])


def test_four_objects_of_which_two_are_found_give_the_figures_counted_by_hand():
    objects = np.stack(
        [
            block(slice(0, 10), slice(0, 10)),  # Found whole: IoU 1.
            block(slice(0, 10), slice(20, 30)),  # Six of its ten rows: IoU 0.6.
            block(slice(0, 10), slice(40, 50)),  # Half of it: an IoU of 1/2 is no match.
            block(slice(30, 40), slice(0, 10)),  # Missed.
        ]
    )
    parts = [
        objects[0],
        block(slice(0, 6), slice(20, 30)),
        block(slice(0, 5), slice(40, 50)),
        block(slice(50, 60), slice(90, 100)),
    ]
    got = matching.match(np.any(parts, 0), objects)
    assert got == Matched(tp=2, fp=2, fn=2, iou=pytest.approx(1.6))
    assert matching.panoptic_quality(got) == pytest.approx(1.6 / 4)
    assert matching.sensitivity(got) == 0.5
    assert matching.false_positives(got, images=1) == 2


def test_a_pair_that_is_no_match_draws_no_component_away_from_one():
    wide, narrow = block(slice(0, 10), slice(0, 20)), block(slice(0, 10), slice(0, 5))
    left, right = block(slice(0, 10), slice(0, 11)), block(slice(0, 10), slice(12, 20))
    objects = np.stack([wide, narrow])
    assert ious(left | right, objects, least=6) == [[0.55, 0.4], [pytest.approx(5 / 11), 0]]
    # 0.4 and 5/11 are more than 0.55, but are no matches.
    assert matching.match(left | right, objects) == Matched(1, 1, 1, 0.55)
    answers = matching.assign_components(left | right, objects)
    np.testing.assert_array_equal(answers, [right, left])


def test_what_is_smaller_than_a_thousandth_of_the_image_counts_on_neither_side():
    five, six = block(0, slice(0, 5)), block(20, slice(0, 6))
    nothing = np.zeros(SIZE, bool)
    assert matching.match(five, nothing[None]) == Matched(0, 0, 0, 0)
    assert matching.match(nothing, five[None]) == Matched(0, 0, 0, 0)
    assert matching.match(six, nothing[None]) == Matched(0, 1, 0, 0)
    assert matching.match(nothing, six[None]) == Matched(0, 0, 1, 0)
    assert matching.match(five | six, np.stack([five, six])) == Matched(1, 0, 0, 1)
    # As an answer, a small component is as good as any.
    answers = matching.assign_components(five | six, np.stack([five, six]))
    np.testing.assert_array_equal(answers, [five, six])


def test_corners_join_and_an_object_may_be_of_two_pieces():
    corner = block(slice(0, 3), slice(0, 3)) | block(slice(3, 6), slice(3, 6))
    apart = block(slice(0, 3), slice(0, 3)) | block(slice(9, 12), slice(0, 2))
    assert matching.match(corner, corner[None]) == Matched(1, 0, 0, 1)
    assert matching.match(apart, apart[None]) == Matched(1, 1, 0, pytest.approx(9 / 15))
    answer = matching.assign_components(apart, apart[None])
    np.testing.assert_array_equal(answer[0], block(slice(0, 3), slice(0, 3)))


def test_without_objects_or_components_nothing_is_matched_and_an_answer_is_empty():
    nothing, none = np.zeros(SIZE, bool), np.zeros((0, *SIZE), bool)
    six = block(20, slice(0, 6))
    assert matching.match(six, none) == Matched(0, 1, 0, 0)
    assert matching.assign_components(six, none).shape == (0, *SIZE)
    assert not matching.assign_components(nothing, np.stack([six, ~six])).any()
    # Nothing in common is no answer either.
    assert not matching.assign_components(six, block(40, slice(0, 9))[None]).any()


def test_sums_over_images_give_the_quality_of_the_set():
    images = [Matched(2, 1, 0, 1.5), Matched(0, 3, 1, 0.0), Matched(1, 0, 0, 0.9)]
    summed = matching.total(images)
    assert summed == Matched(3, 4, 1, pytest.approx(2.4))
    assert matching.panoptic_quality(summed) == pytest.approx(2.4 / (3 + 2 + 0.5))
    assert matching.sensitivity(summed) == 3 / 4
    assert matching.false_positives(summed, images=3) == 4 / 3
    assert matching.total([]) == Matched(0, 0, 0, 0)
    assert matching.panoptic_quality(Matched(0, 0, 0, 0)) is None
    assert matching.sensitivity(Matched(0, 2, 0, 0)) is None
