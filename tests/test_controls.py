"""Controls against OpenCV, SciPy, literals, symmetries and the figures known for real masks."""

import csv
from collections import defaultdict

import cv2
import numpy as np
import pytest
from PIL import Image

from pp_jax.evaluate import controls
from pp_jax.evaluate.subjects import Marks

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


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / max(one.sum() + other.sum(), 1)


def atlas_of(shape: np.ndarray, threshold: float = 0.5, **more) -> controls.Atlas:
    return controls.Atlas(np.asarray(shape, np.float32), threshold, 1, **more)


def fit(crops) -> controls.Atlas:
    """All objects lie in images of their own."""
    return controls.fit_atlas([(mask.shape, [(mask, box)]) for mask, box in crops])


SLOPE = atlas_of(np.stack([np.tile(np.linspace(0, 1, 64), (64, 1))] * 2))
FITTED = SLOPE._replace(
    frame=cv2.GaussianBlur(np.random.default_rng(0).random((64, 64)), (0, 0), 8).astype(np.float32),
    frame_threshold=0.5,
    extent=np.array([[0.25, 0.5], [0.125, 0.75]], np.float32),
)
IN_BOXES = ("box", "ellipse", "mean_shape")


def draw(name: str, shape, boxes, atlas=FITTED):
    return controls.CONTROLS[name].function(shape, Marks(boxes=boxes), atlas=atlas)


def click(*points, labels=None) -> Marks:
    """One object that is marked by all the points."""
    told = np.ones(len(points), int) if labels is None else np.array(labels)
    return Marks(points=np.array([points], float), labels=told[None])


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


@pytest.mark.parametrize("name", IN_BOXES)
def test_each_mark_has_a_guess_of_its_own_that_stays_in_its_box(name):
    masks = draw(name, SHAPE, BOXES)
    assert masks.shape == (3, *SHAPE)
    for mask, box in zip(masks, BOXES, strict=True):
        assert mask.any()
        np.testing.assert_array_equal(mask, draw(name, SHAPE, box[None])[0])
        assert not (mask & ~controls.filled_box(SHAPE, box[None])).any()


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_no_object_gets_no_mask(name):
    assert draw(name, SHAPE, np.zeros((0, 4))).shape == (0, *SHAPE)


@pytest.mark.parametrize("name", IN_BOXES)
def test_a_box_that_leaves_the_image_is_cut_and_not_moved(name):
    box = np.array([[-20, 50, 30, 120]], float)
    (roomy,) = draw(name, (200, 200), box + 40)
    np.testing.assert_array_equal(draw(name, SHAPE, box)[0], roomy[40:136, 40:200])


@pytest.mark.parametrize("name", IN_BOXES)
@pytest.mark.parametrize(
    ("marks", "box"),
    [
        # A quarter of 160 wide and half of 96 high around the pixel's centre on the left half.
        (click((59, 47)), (39.5, 23.5, 79.5, 71.5)),
        # An eighth and three quarters on the right half, cut at the image's lower edge.
        (click((99, 79)), (89.5, 43.5, 109.5, 96)),
        (click((49, 40), (69, 54)), (39.5, 23.5, 79.5, 71.5)),
        (click((59, 47), (150, 90), (1, 1), labels=(1, 0, -2)), (39.5, 23.5, 79.5, 71.5)),
    ],
)
def test_a_click_is_a_box_of_the_mean_extent_on_its_side(name, marks, box):
    got = controls.CONTROLS[name].function(SHAPE, marks, atlas=FITTED)
    np.testing.assert_array_equal(got, draw(name, SHAPE, np.array([box])))
    assert got.any()


def test_a_box_beside_a_click_is_the_box_and_a_click_on_the_background_says_nothing():
    marks = click((5, 5))._replace(boxes=BOXES[:1])
    np.testing.assert_array_equal(controls.boxes_of(SHAPE, marks, atlas=SLOPE), BOXES[:1])
    outside = click((50, 50), labels=(0,))
    for name in IN_BOXES:
        assert not controls.CONTROLS[name].function(SHAPE, outside, atlas=FITTED).any()


def test_the_atlas_of_the_frame_is_opencvs_resize_whatever_is_marked():
    share = cv2.resize(FITTED.frame, SHAPE[::-1], interpolation=cv2.INTER_LINEAR)
    clear = np.abs(share - 0.5) > 1e-5
    assert 0.1 < (share > 0.5).mean() < 0.9
    for marks, count in ((Marks(), 1), (Marks(boxes=BOXES), 3), (click((3, 3), (9, 9)), 1)):
        masks = controls.CONTROLS["atlas"].function(SHAPE, marks, atlas=FITTED)
        assert len(masks) == count
        for mask in masks:
            np.testing.assert_array_equal(mask[clear], (share > 0.5)[clear])


def test_what_is_guessed_of_marks_needs_them_and_a_row_says_so():
    assert [name for name, row in controls.CONTROLS.items() if not row.needs_marks] == ["atlas"]
    for name in IN_BOXES:
        with pytest.raises(ValueError, match="nothing is marked"):
            controls.CONTROLS[name].function(SHAPE, Marks(), atlas=FITTED)


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
    atlas = fit(zip(masks, boxes, strict=True))
    np.testing.assert_allclose(atlas.shape[controls.LEFT], want, atol=1e-5)
    assert atlas.count == 3


def test_a_side_without_an_example_is_the_mirror_image_of_the_other():
    box = BOXES[2]
    mirrored = np.array([SHAPE[1] - box[2], box[1], SHAPE[1] - box[0], box[3]])
    right = fit([(lobe(SHAPE, box), box)])
    left = fit([(lobe(SHAPE, box)[:, ::-1], mirrored)])
    np.testing.assert_allclose(right.shape, left.shape, atol=1e-6)
    assert np.abs(right.shape[0] - right.shape[1]).max() > 0.5


def test_sides_are_fitted_apart():
    pear, box = lobe(SHAPE, BOXES[2]), BOXES[2]
    filled = controls.filled_box(SHAPE, BOXES[:1])
    atlas = fit([(filled, BOXES[0]), (pear, box)])
    np.testing.assert_allclose(atlas.shape[controls.LEFT], 1, atol=1e-6)
    again = controls.mean_shape(SHAPE, box[None], atlas=atlas)
    assert dice(again, pear) > 0.97  # Lost: what 64 cells cannot hold of 59 x 90 pixels.


def test_one_crop_is_found_again_in_a_box_of_another_size():
    small, large = np.array([5, 5, 69, 69.0]), np.array([10, 10, 310, 410.0])
    atlas = fit([(lobe((80, 200), small), small)])
    got = controls.mean_shape((420, 900), large[None], atlas=atlas)
    assert dice(got, lobe((420, 900), large)) > 0.98


def test_the_threshold_is_the_best_of_all_levels_for_the_fitted_objects():
    rng = np.random.default_rng(3)
    box = np.array([8, 8, 72, 72.0])
    crops = []
    for _ in range(15):  # Discs of very different radius: the best level is far from one half.
        y, x = np.mgrid[:80, :200] + 0.5
        crops.append(((x - 40) ** 2 + (y - 40) ** 2 < (32 * rng.uniform(0.2, 1)) ** 2, box))
    atlas = fit(crops)
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
    assert fit(crops).threshold > 0.3
    assert fit(crops[50:]).threshold <= 0.2


def test_the_frame_is_opencvs_area_average_of_the_images_and_the_extent_that_of_the_boxes():
    rng = np.random.default_rng(5)
    images, frames, extents = [], [], {controls.LEFT: [], controls.RIGHT: []}
    for scale in (1, 2, 3):
        size = (64 * scale, 128 * scale)
        crops, union = [], np.zeros(size, bool)
        for _ in range(2):
            x0, y0 = rng.integers(0, (100, 40)) * scale
            width, height = rng.integers(8, 24, 2) * scale
            mask = np.zeros(size, bool)
            mask[y0 : y0 + height, x0 : x0 + width] = True
            union |= mask
            # As a shape in a box is given: no pixel beyond the box.
            box = np.array([x0, y0, x0 + width, y0 + height], float)
            crops.append((mask[: y0 + height, : x0 + width], box))
            side = int(x0 + width / 2 >= size[1] / 2)
            extents[side].append((width / size[1], height / size[0]))
        images.append((size, crops))
        enlarged = np.kron(union, np.ones((2, 2)))  # OpenCV averages only where it shrinks.
        frames.append(cv2.resize(enlarged, (64, 64), interpolation=cv2.INTER_AREA))
    atlas = controls.fit_atlas([*images, ((50, 50), [])])
    np.testing.assert_allclose(atlas.frame, np.mean(frames, axis=0), atol=1e-5)
    want = [np.mean(extents[side], axis=0) for side in (controls.LEFT, controls.RIGHT)]
    np.testing.assert_allclose(atlas.extent, want, rtol=1e-6)
    mean = np.mean(frames, axis=0)
    level = {t: dice_of_shares(mean, mean >= t) for t in controls.FRAME_THRESHOLDS}
    assert level[atlas.frame_threshold] == pytest.approx(max(level.values()), abs=1e-6)


def dice_of_shares(mean: np.ndarray, said: np.ndarray) -> float:
    return 2 * mean[said].sum() / (mean.sum() + said.sum())


def test_leaving_a_patient_out_equals_fitting_on_all_others():
    rng = np.random.default_rng(1)
    patients = {"a": 2, "b": 1, "c": 3, "d": 0}
    images = {
        name: [
            (SHAPE, [(rng.random(SHAPE) < 0.3 + 0.1 * i, BOXES[rng.integers(len(BOXES))])])
            for i in range(count)
        ]
        for name, count in patients.items()
    }
    got = controls.leave_one_patient_out(images)
    assert got.keys() == patients.keys()
    for name, atlas in got.items():
        others = [image for other in images if other != name for image in images[other]]
        want = controls.fit_atlas(others)
        for field in ("shape", "frame", "extent"):
            np.testing.assert_allclose(getattr(atlas, field), getattr(want, field), atol=1e-6)
        assert (atlas.threshold, atlas.count) == (want.threshold, len(others))
        assert atlas.frame_threshold == want.frame_threshold


def test_an_atlas_survives_a_file(tmp_path):
    atlas = fit([(lobe(SHAPE, BOXES[0]), BOXES[0])])
    np.savez(tmp_path / "atlas.npz", **atlas.to_arrays())
    with np.load(tmp_path / "atlas.npz", allow_pickle=False) as file:
        again = controls.Atlas.from_arrays(file)
    for field, value in atlas._asdict().items():
        np.testing.assert_array_equal(getattr(again, field), value, field)
    assert (type(again.threshold), type(again.count)) == (float, int)


def test_an_atlas_of_an_older_version_lacks_only_what_needs_the_frame(tmp_path):
    np.savez(tmp_path / "atlas.npz", shape=SLOPE.shape, threshold=0.5, count=1)
    with np.load(tmp_path / "atlas.npz", allow_pickle=False) as file:
        old = controls.Atlas.from_arrays(file)
    np.testing.assert_array_equal(
        draw("mean_shape", SHAPE, BOXES, old), draw("mean_shape", SHAPE, BOXES, FITTED)
    )
    with pytest.raises(ValueError, match="has no frame; train the run anew"):
        controls.CONTROLS["atlas"].function(SHAPE, Marks(), atlas=old)
    with pytest.raises(ValueError, match="has no extent; train the run anew"):
        controls.CONTROLS["box"].function(SHAPE, click((3, 3)), atlas=old)


def test_nothing_to_fit_on_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="at least one object"):
        controls.fit_atlas([])
    one = [(SHAPE, [(lobe(SHAPE, BOXES[0]), BOXES[0])])]
    with pytest.raises(ValueError, match="at least one object"):
        controls.leave_one_patient_out({"only": one, "none": []})
    with pytest.raises(ValueError, match=r"\[4\.0, 4\.0, 4\.0, 9\.0\] has no area"):
        fit([(np.ones(SHAPE, bool), np.array([4, 4, 4, 9.0]))])


def test_real_lesions_give_the_dice_known_for_each_control(real_data):
    """57 positive X-rays of 46 patients; the figures were found without this code."""
    images = real_outlines(real_data / "rsna_like")
    assert (sum(map(len, images.values())), len(images)) == (57, 46)
    atlases = controls.leave_one_patient_out(images)
    scores = defaultdict(list)
    for patient, own in images.items():
        for size, crops in own:
            found = np.any([mask for mask, _ in crops], axis=0)
            inmost = [cv2.distanceTransform(np.pad(m, 1).astype(np.uint8), 2, 5) for m, _ in crops]
            points = [np.unravel_index(depth.argmax(), depth.shape)[::-1] for depth in inmost]
            protocols = {
                "box": Marks(boxes=np.array([box for _, box in crops])),
                "click": Marks(
                    points=np.array(points, float)[:, None] - 1,
                    labels=np.ones((len(crops), 1), int),
                ),
                "none": Marks(),
            }
            for protocol, name in KNOWN:
                function = controls.CONTROLS[name].function
                masks = function(size, protocols[protocol], atlas=atlases[patient])
                scores[protocol, name].append(dice(masks.any(0), found))
    means = {key: np.mean(values) for key, values in scores.items()}
    assert means == pytest.approx(KNOWN, abs=0.003)


def real_outlines(folder):
    """Of each patient the lesions, at every fourth pixel and boxes in units of those."""
    boxes, images = defaultdict(list), defaultdict(list)
    with open(folder / "stage_2_train_labels.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["Target"] == "1":
                x, y, width, height = (float(row[key]) for key in ("x", "y", "width", "height"))
                boxes[row["patientId"]].append(np.array([x, y, x + width, y + height]) / 4)
    with open(folder / "patients.csv", newline="") as file:
        patient = {row["patientId"]: row["patient"] for row in csv.DictReader(file)}
    for name, edges in boxes.items():
        mask = np.array(Image.open(folder / "masks" / f"{name}.png"))[2::4, 2::4] > 0
        inside = [mask & controls.filled_box(mask.shape, box[None]) for box in edges]
        images[patient[name]].append((mask.shape, list(zip(inside, edges, strict=True))))
    return images


KNOWN = {
    ("box", "box"): 0.722,
    ("box", "ellipse"): 0.748,
    ("box", "mean_shape"): 0.815,
    ("click", "mean_shape"): 0.586,
    ("none", "atlas"): 0.434,
}
