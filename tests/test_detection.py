"""Found boxes against worked examples, a plain loop that counts pixels, scikit-image and MONAI."""

import csv
import re

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from pp_jax.evaluate.detection import (
    Froc,
    Scored,
    boxes_of,
    found_boxes,
    froc,
    mean_sensitivity,
    require_prompt_free,
    rsna_mean,
    rsna_score,
    write_submission,
)
from pp_jax.evaluate.subjects import Answer

NOTHING = np.zeros((0, 4))
THRESHOLDS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)


def scored(*boxes: tuple[float, ...]) -> Scored:
    """From (confidence, x0, y0, x1, y1)."""
    table = np.array(boxes, float).reshape(-1, 5)
    return Scored(table[:, 1:], table[:, 0])


def truth(*boxes: tuple[float, ...]) -> np.ndarray:
    return np.array(boxes, float).reshape(-1, 4)


FIVE = (
    # Found exactly: 1 at each threshold.
    (scored((0.9, 0, 0, 10, 10)), truth((0, 0, 10, 10))),
    # Three truths. IoU .6 with the first and 1 with the second; the third is missed. At .40 to .55
    # TP 2, FP 0, FN 1: 2/3. At .60, where .6 is not above, to .75: TP 1, FP 1, FN 2: 1/4.
    # (4 * 2/3 + 4 * 1/4) / 8 = 11/24.
    (
        scored((0.9, 0, 0, 10, 6), (0.5, 20, 0, 30, 10)),
        truth((0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)),
    ),
    # Something found where nothing is: 0.
    (scored((0.1, 0, 0, 10, 10)), truth()),
    # Nothing found where nothing is: left out.
    (scored(), truth()),
    # The surer box, given second, is first to choose: A by .8 (C by .75). The other would have had
    # A by 1, and is left C by .6: TP 2 at .40 to .55, 1; then TP 1, FP 1, FN 1: 1/3.
    # (4 * 1 + 4 * 1/3) / 8 = 2/3.
    (
        scored((0.5, 0, 0, 10, 10), (0.9, 0, 0, 10, 8)),
        truth((0, 0, 10, 10), (0, 0, 10, 6)),
    ),
)


def test_five_images_score_as_worked_out_by_hand():
    scores = [rsna_score(*image) for image in FIVE]
    assert scores == pytest.approx([1, 11 / 24, 0, None, 2 / 3])
    # (24 + 11 + 0 + 16) / 24 over the four that count.
    assert rsna_mean(scores) == pytest.approx((51 / 96, 4, 1))
    assert rsna_mean([None, None]) == (None, 0, 2)


def pixels(box: np.ndarray) -> set[tuple[int, int]]:
    x0, y0, x1, y1 = box.astype(int)
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


def claimed(predicted: Scored, true: np.ndarray, *, threshold: float) -> list[bool]:
    """Whether each box, in descending confidence, claims a true one; IoU by counting pixels."""
    free = [pixels(box) for box in true]
    answer = []
    for i in sorted(range(len(predicted.boxes)), key=lambda i: -predicted.confidences[i]):
        own = pixels(predicted.boxes[i])
        best = max(free, key=lambda other: len(own & other) / len(own | other), default=set())
        answer.append(len(own & best) / len(own | best) > threshold)
        if answer[-1]:
            free.remove(best)
    return answer


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """On a coarse grid, so that they overlap and an IoU falls on a threshold now and then."""
    corner, size = rng.integers(0, 4, (count, 2)) * 4, rng.integers(1, 4, (count, 2)) * 4
    return np.concatenate([corner, corner + size], axis=1).astype(float)


@pytest.fixture(scope="module")
def images() -> list[tuple[Scored, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (
            Scored(random_boxes(rng, n), rng.permutation(50)[:n] / 50),
            random_boxes(rng, rng.integers(0, 4)),
        )
        for n in rng.integers(0, 6, 150)
    ]


def test_the_score_is_that_of_a_loop_that_counts_pixels(images):
    exact = 0
    for predicted, true in images:
        if not len(predicted.boxes) and not len(true):
            assert rsna_score(predicted, true) is None
            continue
        parts = []
        for threshold in THRESHOLDS:
            hits = claimed(predicted, true, threshold=threshold)
            found, false, missed = sum(hits), len(hits) - sum(hits), len(true) - sum(hits)
            parts.append(found / (found + false + missed))
            exact += hits != claimed(predicted, true, threshold=threshold - 1e-9)
        assert rsna_score(predicted, true) == pytest.approx(np.mean(parts))
    assert exact > 5  # An IoU at the threshold is not above it, and this was put to the test.


def test_the_score_knows_neither_place_nor_order(images):
    for predicted, true in images[:40]:
        if not len(true):
            continue
        moved = Scored(predicted.boxes[::-1] + 7, predicted.confidences[::-1])
        assert rsna_score(moved, true + 7) == pytest.approx(rsna_score(predicted, true))


def test_a_submission_is_read_back_by_the_challenges_rules(tmp_path):
    path = tmp_path / "submission.csv"
    rows = [("a-1", scored((0.875, 10, 20, 110, 70.5), (0.25, 0, 0, 3, 4))), ("b", scored())]
    write_submission(path, rows)
    assert path.read_text().startswith("patientId,PredictionString\n")
    with path.open(newline="") as file:
        read = {row["patientId"]: row["PredictionString"] for row in csv.DictReader(file)}
    assert list(read) == ["a-1", "b"]
    assert read["b"] == ""
    numbers = [float(word) for word in read["a-1"].split(" ")]
    assert numbers == [0.875, 10, 20, 100, 50.5, 0.25, 0, 0, 3, 4]


def test_a_submission_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "submission.csv"
    write_submission(path, [("a", scored())])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(f"{path}: image b stands twice")):
        write_submission(path, [("b", scored()), ("c", scored()), ("b", scored())])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# The free-response curve.


def test_each_point_of_the_curve_is_what_a_threshold_finds(images):
    curve = froc(images, threshold=0.5)
    total = sum(len(true) for _, true in images)
    assert (curve.thresholds[0], len(curve.thresholds)) == (np.inf, 51)
    for false, sensitivity, threshold in list(zip(*curve, strict=True))[::5]:
        kept = [
            (
                Scored(
                    p.boxes[p.confidences >= threshold], p.confidences[p.confidences >= threshold]
                ),
                t,
            )
            for p, t in images
        ]
        hits = [claimed(*image, threshold=0.5) for image in kept]
        assert sensitivity == pytest.approx(sum(map(sum, hits)) / total)
        assert false == pytest.approx((sum(map(len, hits)) - sum(map(sum, hits))) / len(images))


@pytest.mark.slow  # To import MONAI takes seconds.
def test_the_curve_is_monais(images):
    monai = pytest.importorskip("monai.metrics")
    hits, confidences = [], []
    for predicted, true in images:
        hits += claimed(predicted, true, threshold=0.4)
        confidences += sorted(predicted.confidences, reverse=True)
    hit, confidence = np.array(hits), np.array(confidences)
    total = sum(len(true) for _, true in images)
    false, sensitivity = monai.compute_froc_curve_data(
        confidence[~hit], confidence[hit], total, len(images)
    )
    curve = froc(images)
    # MONAI leaves out the lowest threshold and begins with the next.
    np.testing.assert_allclose(curve.false_positives[-2::-1], false)
    np.testing.assert_allclose(curve.sensitivity[-2::-1], sensitivity)


def test_the_mean_sensitivity_is_read_between_the_points():
    # Half found without a false one; then .2 more per false box in an image, up to .9 at 2.
    curve = Froc(
        np.array([0, 0, 0.5, 1, 2]),
        np.array([0, 0.5, 0.6, 0.7, 0.9]),
        np.array([np.inf, 4, 3, 2, 1]),
    )
    want = (0.525 + 0.55 + 0.6 + 0.7 + 0.9 + 0.9 + 0.9) / 7
    assert mean_sensitivity(curve) == pytest.approx(want)


def test_of_several_points_with_as_many_false_boxes_the_most_sensitive_counts():
    curve = Froc(np.array([0, 0, 1, 1]), np.array([0, 0.2, 0.2, 1.0]), np.array([np.inf, 3, 2, 1]))
    assert mean_sensitivity(curve) == pytest.approx((0.3 + 0.4 + 0.6 + 4) / 7)


def test_extremes_of_the_curve():
    box = truth((0, 0, 9, 9))
    perfect = froc([(scored((0.5, 0, 0, 9, 9)), box)] * 3)
    assert mean_sensitivity(perfect) == 1
    blind = froc([(scored(), box)] * 3)
    assert [column.tolist() for column in blind] == [[0], [0], [np.inf]]
    assert mean_sensitivity(blind) == 0
    assert froc([(scored((0.5, 0, 0, 9, 9)), NOTHING)]) is None


# From masks to boxes.


def test_boxes_are_those_of_scikit_image_regions():
    rng = np.random.default_rng(1)
    for _ in range(5):
        field = ndimage.gaussian_filter(rng.normal(size=(90, 120)), 2)
        mask, logits = field > 0.1, field * 30
        found = found_boxes(mask, logits=logits, score=0.5)
        regions = [
            region
            for region in measure.regionprops(measure.label(mask, connectivity=2), logits)
            if region.area >= 0.001 * mask.size
        ]
        boxes = [(x0, y0, x1, y1) for y0, x0, y1, x1 in (region.bbox for region in regions)]
        sure = [
            np.mean(1 / (1 + np.exp(-region.image_intensity[region.image]))) for region in regions
        ]
        order = np.lexsort(np.array(boxes).T), np.lexsort(found.boxes.T)
        np.testing.assert_array_equal(found.boxes[order[1]], np.array(boxes)[order[0]])
        np.testing.assert_allclose(found.confidences[order[1]], np.array(sure)[order[0]] / 2)


def test_a_box_is_a_component_of_a_thousandth_of_the_image_or_more():
    mask = np.zeros((100, 100), bool)
    mask[3:5, 10:15] = True  # 10 pixels.
    mask[50:53, 20:23] = True  # 9 pixels.
    np.fill_diagonal(mask[70:81, 80:91], True)  # 11 pixels that touch by their corners.
    found = found_boxes(mask)
    assert found.boxes.tolist() == [[10, 3, 15, 5], [80, 70, 91, 81]]
    assert found.confidences.tolist() == [1, 1]


def test_an_empty_mask_has_no_box():
    found = found_boxes(np.zeros((9, 9), bool), logits=np.zeros((9, 9)))
    assert (found.boxes.shape, found.confidences.shape) == ((0, 4), (0,))


def test_an_answers_boxes_are_those_of_its_masks_each_with_its_own_score():
    masks = np.zeros((3, 10, 10), bool)
    masks[0, :2, :3], masks[0, 5:, 5:], masks[2, 4:6, :] = True, True, True
    logits = np.where(masks, np.log(3), -9.0)  # A probability of 3/4 within.
    logits[0, 5:, 5:] = 0  # And of one half.
    found = boxes_of(Answer(masks, np.array([0.8, 0.9, 1.3]), logits, None))
    assert found.boxes.tolist() == [[0, 0, 3, 2], [5, 5, 10, 10], [0, 4, 10, 6]]
    assert found.confidences == pytest.approx([0.6, 0.4, 0.75])  # 1.3 counts as 1.
    assert boxes_of(Answer(masks, None, None, None)).confidences.tolist() == [1, 1, 1]
    assert boxes_of(Answer(masks[:0], None, None, None)).boxes.shape == (0, 4)


def test_a_prompt_that_tells_the_truth_has_no_detection():
    require_prompt_free("auto", truth_in_prompt=False)
    with pytest.raises(ValueError, match=r"--prompt jitter:10: .* says that there is a finding"):
        require_prompt_free("jitter:10", truth_in_prompt=True)
