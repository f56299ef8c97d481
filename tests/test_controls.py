"""Controls against OpenCV, SciPy, literals, symmetries and the figures known for real masks."""

import csv
from collections import defaultdict

import cv2
import numpy as np
import pytest
from PIL import Image

from pp_jax.evaluate import controls
from pp_jax.evaluate.metrics import dice

SHAPE = (96, 160)
BOXES = np.array([[10, 20, 60, 71], [40, 30, 90, 90], [100, 5, 159, 95]], float)


def lobe(shape, box) -> np.ndarray:
    """A pear inside its box: neither symmetric in x nor in y, touching all four sides."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    u = (x - box[0]) / (box[2] - box[0])
    v = (y - box[1]) / (box[3] - box[1])
    wide = (u - 0.5) ** 2 / 0.25 + (v - 0.65) ** 2 / 0.1225 <= 1
    stem = (u - 0.2) ** 2 / 0.04 + (v - 0.4) ** 2 / 0.16 <= 1
    return wide | stem


def atlas_of(shape: np.ndarray, threshold: float = 0.5) -> controls.Atlas:
    return controls.Atlas(np.asarray(shape, np.float32), threshold, 1)


def draw(name: str, shape, boxes):
    row = controls.CONTROLS[name]
    return row.function(shape, boxes, **({"atlas": SLOPE} if row.needs_atlas else {}))


SLOPE = atlas_of(np.stack([np.tile(np.linspace(0, 1, 64), (64, 1))] * 2))


def test_a_filled_box_is_the_slice_of_its_whole_pixels():
    want = np.zeros(SHAPE, bool)
    for x0, y0, x1, y1 in BOXES.astype(int):
        want[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(controls.filled_box(SHAPE, BOXES), want)


def test_a_pixel_is_inside_when_its_centre_is():
    box = np.array([[2.5, 1.51, 4.5, 3.49]])  # Centres 2.5 and 3.5 across; 2.5 alone down.
    rows, columns = np.nonzero(controls.filled_box((6, 7), box))
    assert set(rows) == {2}
    assert set(columns) == {2, 3}


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_a_control_is_the_union_of_its_objects_and_stays_in_their_boxes(name):
    union = draw(name, SHAPE, BOXES)
    alone = [draw(name, SHAPE, BOXES[i : i + 1]) for i in range(len(BOXES))]
    assert all(mask.any() for mask in alone)
    np.testing.assert_array_equal(union, np.any(alone, axis=0))
    assert not (union & ~controls.filled_box(SHAPE, BOXES)).any()


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_an_image_without_a_box_gets_an_empty_mask(name):
    assert not draw(name, SHAPE, np.zeros((0, 4))).any()


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_a_box_that_leaves_the_image_is_cut_and_not_moved(name):
    box = np.array([[-20, 50, 30, 120]], float)
    roomy = draw(name, (200, 200), box + 40)
    np.testing.assert_array_equal(draw(name, SHAPE, box), roomy[40:136, 40:200])


def test_the_ellipse_fills_pi_quarters_of_its_box_and_touches_its_sides():
    box = np.array([[101, 53, 701, 353]], float)
    mask = controls.inscribed_ellipse((500, 800), box)
    assert mask.sum() / (600 * 300) == pytest.approx(np.pi / 4, abs=1e-3)
    rows, columns = np.nonzero(mask)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (101, 53, 701, 353)
    drawn = cv2.ellipse(np.zeros((500, 800), np.uint8), (401, 203), (300, 150), 0, 0, 360, 1, -1)
    assert dice(mask, drawn > 0) > 0.995  # OpenCV rounds the centre to a pixel.


def test_the_mean_shape_is_opencvs_bilinear_resize_of_the_atlas_of_its_side():
    rng = np.random.default_rng(0)
    atlas = atlas_of(cv2.GaussianBlur(rng.random((64, 64, 2)), (0, 0), 6).transpose(2, 0, 1), 0.5)
    for side, (x0, y0, x1, y1) in ((0, (7, 3, 77, 93)), (1, (90, 10, 131, 77))):
        share = cv2.resize(atlas.shape[side], (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        clear = np.abs(share - 0.5) > 1e-5  # Ties may fall either way in float32.
        got = controls.mean_shape(SHAPE, np.array([[x0, y0, x1, y1]], float), atlas=atlas)
        got = got[y0:y1, x0:x1]
        assert clear.mean() > 0.99
        assert 0.05 < got.mean() < 0.95
        np.testing.assert_array_equal(got[clear], (share > 0.5)[clear])


def test_the_atlas_is_opencvs_area_average_of_the_crops():
    boxes = [np.array(box, float) for box in ((3, 5, 67, 69), (2, 9, 75, 90), (10, 1, 41, 60))]
    masks = [lobe(SHAPE, box) for box in boxes]
    want = np.mean(
        [
            # Enlarged by whole pixels first: OpenCV averages by area only where it shrinks.
            cv2.resize(
                np.kron(mask[int(y0) : int(y1), int(x0) : int(x1)], np.ones((8, 8))),
                (64, 64),
                interpolation=cv2.INTER_AREA,
            )
            for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True)
        ],
        axis=0,
    )
    atlas = controls.fit_mean_shape(zip(masks, boxes, strict=True))
    np.testing.assert_allclose(atlas.shape[controls.LEFT], want, atol=1e-5)
    assert atlas.count == 3


def test_a_side_without_an_example_is_the_mirror_image_of_the_other():
    box = BOXES[2]
    mirrored = np.array([SHAPE[1] - box[2], box[1], SHAPE[1] - box[0], box[3]])
    right = controls.fit_mean_shape([(lobe(SHAPE, box), box)])
    left = controls.fit_mean_shape([(lobe(SHAPE, box)[:, ::-1], mirrored)])
    np.testing.assert_allclose(right.shape, left.shape, atol=1e-6)
    assert np.abs(right.shape[0] - right.shape[1]).max() > 0.5


def test_sides_are_fitted_apart():
    pear, box = lobe(SHAPE, BOXES[2]), BOXES[2]
    filled = controls.filled_box(SHAPE, BOXES[:1])
    atlas = controls.fit_mean_shape([(filled, BOXES[0]), (pear, box)])
    np.testing.assert_allclose(atlas.shape[controls.LEFT], 1, atol=1e-6)
    again = controls.mean_shape(SHAPE, box[None], atlas=atlas)
    assert dice(again, pear) > 0.97  # Lost: what 64 cells cannot hold of 59 x 90 pixels.


def test_one_crop_is_found_again_in_a_box_of_another_size():
    small, large = np.array([5, 5, 69, 69.0]), np.array([10, 10, 310, 410.0])
    atlas = controls.fit_mean_shape([(lobe((80, 200), small), small)])
    got = controls.mean_shape((420, 900), large[None], atlas=atlas)
    assert dice(got, lobe((420, 900), large)) > 0.98


def test_the_threshold_is_the_best_of_all_levels_for_the_fitted_objects():
    rng = np.random.default_rng(3)
    box = np.array([8, 8, 72, 72.0])
    crops = []
    for _ in range(30):  # Discs of very different radius: the best level is far from one half.
        y, x = np.mgrid[:80, :200] + 0.5
        crops.append(((x - 40) ** 2 + (y - 40) ** 2 < (32 * rng.uniform(0.2, 1)) ** 2, box))
    atlas = controls.fit_mean_shape(crops)
    scores = []
    for threshold in controls.THRESHOLDS:
        guess = controls.mean_shape((80, 200), box[None], atlas=atlas._replace(threshold=threshold))
        scores.append(np.mean([dice(guess, mask) for mask, _ in crops]))
    chosen = scores[controls.THRESHOLDS.index(atlas.threshold)]
    assert chosen > max(scores) - 0.01
    assert chosen > min(scores) + 0.1


def test_the_threshold_weighs_the_sides_by_their_objects():
    left, right = np.array([0, 0, 64, 64.0]), np.array([100, 0, 164, 64.0])
    quarter, dot = np.array([[0, 0, 32, 32.0]]), np.array([[100, 0, 106, 6.0]])
    # Alone, the 50 on the left are served best above .3 and the 5 on the right up to .2.
    crops = [(controls.filled_box((64, 170), left[None]), left)] * 15
    crops += [(controls.filled_box((64, 170), quarter), left)] * 35
    crops += [(controls.filled_box((64, 170), right[None]), right)]
    crops += [(controls.filled_box((64, 170), dot), right)] * 4
    assert controls.fit_mean_shape(crops).threshold > 0.3
    assert controls.fit_mean_shape(crops[50:]).threshold <= 0.2


def test_leaving_a_patient_out_equals_fitting_on_all_others():
    rng = np.random.default_rng(1)
    patients = {"a": 2, "b": 1, "c": 3, "d": 0}
    crops = {
        name: [
            (rng.random(SHAPE) < 0.3 + 0.1 * i, BOXES[rng.integers(len(BOXES))])
            for i in range(count)
        ]
        for name, count in patients.items()
    }
    got = controls.leave_one_patient_out(crops)
    assert got.keys() == patients.keys()
    for name, atlas in got.items():
        others = [crop for other in crops if other != name for crop in crops[other]]
        want = controls.fit_mean_shape(others)
        np.testing.assert_allclose(atlas.shape, want.shape, atol=1e-6)
        assert (atlas.threshold, atlas.count) == (want.threshold, len(others))


def test_an_atlas_survives_a_file(tmp_path):
    atlas = controls.fit_mean_shape([(lobe(SHAPE, BOXES[0]), BOXES[0])])
    np.savez(tmp_path / "atlas.npz", **atlas.to_arrays())
    with np.load(tmp_path / "atlas.npz", allow_pickle=False) as file:
        again = controls.Atlas.from_arrays(file)
    np.testing.assert_array_equal(again.shape, atlas.shape)
    assert (again.threshold, again.count) == (atlas.threshold, atlas.count)


def test_nothing_to_fit_on_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="at least one object"):
        controls.fit_mean_shape([])
    with pytest.raises(ValueError, match="at least one object"):
        controls.leave_one_patient_out({"only": [(lobe(SHAPE, BOXES[0]), BOXES[0])], "none": []})
    with pytest.raises(ValueError, match=r"\[4\.0, 4\.0, 4\.0, 9\.0\] has no area"):
        controls.fit_mean_shape([(np.ones(SHAPE, bool), np.array([4, 4, 4, 9.0]))])


def test_real_lesions_give_the_dice_known_for_each_control(real_data):
    """57 positive X-rays of 46 patients; the figures were found without this code."""
    folder = real_data / "rsna_like"
    boxes = defaultdict(list)
    with open(folder / "stage_2_train_labels.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["Target"] == "1":
                x, y, width, height = (float(row[key]) for key in ("x", "y", "width", "height"))
                boxes[row["patientId"]].append((x, y, x + width, y + height))
    with open(folder / "patients.csv", newline="") as file:
        patient = {row["patientId"]: row["patient"] for row in csv.DictReader(file)}
    masks = {name: np.array(Image.open(folder / "masks" / f"{name}.png")) > 0 for name in boxes}
    crops = defaultdict(list)
    for name, mask in masks.items():
        crops[patient[name]] += [(mask, np.array(box)) for box in boxes[name]]
    atlases = controls.leave_one_patient_out(crops)
    assert (len(masks), len(atlases)) == (57, 46)

    scores = {
        name: np.mean(
            [
                dice(
                    row.function(
                        masks[image].shape,
                        np.array(boxes[image]),
                        **({"atlas": atlases[patient[image]]} if row.needs_atlas else {}),
                    ),
                    masks[image],
                )
                for image in masks
            ]
        )
        for name, row in controls.CONTROLS.items()
    }
    assert scores == pytest.approx(
        {"filled_box": 0.722, "inscribed_ellipse": 0.748, "mean_shape": 0.815}, abs=0.002
    )
