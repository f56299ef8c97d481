import dataclasses
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

import eval as eval_front
from data.records import Record, draw_as, load
from data.rsna import read_rsna
from data.targets import LEAST, TARGETS, draw_objects
from pp_jax.config import TrainConfig, differences, look_of, resolve
from pp_jax.eval_config import EvalConfig, resolve_eval
from pp_jax.evaluate.controls import inscribed_ellipse
from pp_jax.evaluate.metrics import dice
from pp_jax.evaluate.protocols import parse_protocols
from pp_jax.evaluate.tables import target_notes

DERIVED = [name for name, row in TARGETS.items() if row.reads]
BOXES = [(20.0, 30.0, 100.0, 90.0), (3.4, 2.6, 17.5, 40.2), (0.0, 0.0, 128.0, 96.0)]


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (96, 128), np.uint8)


def blob(shape=(160, 200), box=(50, 40, 150, 130), *, pointed=0.2):
    """A bright finding on grey with soft noise, and what it covers: a diamond between the sides of
    the box for 0.2, and the ellipse for 1.
    """
    y, x = np.indices(shape) + 0.5
    x0, y0, x1, y1 = box
    u, v = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
    covered = np.abs(u) ** (1 + pointed) + np.abs(v) ** (1 + pointed) <= 1
    grey = np.where(covered, 170, 80) + np.random.default_rng(1).normal(0, 6, shape)
    return grey.clip(0, 255).astype(np.uint8), covered


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("box", BOXES)
def test_an_object_lies_in_its_box_and_is_a_tenth_of_it_at_least(noise, name, box):
    (drawn,), _ = draw_objects(noise, [box], target=name)
    ys, xs = np.nonzero(drawn)
    assert (xs + 0.5 >= box[0]).all()
    assert (xs + 0.5 < box[2]).all()
    assert (ys + 0.5 >= box[1]).all()
    assert (ys + 0.5 < box[3]).all()
    assert drawn.sum() >= LEAST * (box[2] - box[0] - 1) * (box[3] - box[1] - 1)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("box", [(10.6, 10.6, 10.9, 10.9), (0.0, 0.0, 0.4, 90.0)])
def test_the_object_of_a_box_without_a_pixels_centre_is_empty(noise, name, box):
    drawn, notes = draw_objects(noise, [box, BOXES[0]], target=name)
    assert [pixels.any() for pixels in drawn] == [False, True]
    assert not any(str(box) in note for note in notes)


@pytest.mark.parametrize("name", ["mask", "box"])
def test_a_filled_box_is_opencvs_filled_rectangle(noise, name):
    (drawn,), notes = draw_objects(noise, [BOXES[0]], target=name)
    want = cv2.rectangle(np.zeros((96, 128), np.uint8), (20, 30), (99, 89), 1, cv2.FILLED)
    np.testing.assert_array_equal(drawn, want.astype(bool))
    assert not notes


def test_an_ellipse_is_that_of_the_controls_and_touches_the_box(noise):
    drawn, notes = draw_objects(noise, BOXES, target="ellipse")
    for pixels, box in zip(drawn, BOXES, strict=True):
        np.testing.assert_array_equal(
            pixels, inscribed_ellipse((96, 128), np.array([box], np.float32))
        )
    (region,) = measure.regionprops(drawn[0].astype(int))
    assert region.bbox == (30, 20, 90, 100)
    assert drawn[0].mean() * 96 * 128 == pytest.approx(np.pi / 4 * 80 * 60, rel=0.01)
    assert not notes


@pytest.mark.parametrize("name", DERIVED)
def test_a_pseudo_mask_is_nearer_to_a_plain_finding_than_any_shape(name):
    # A contour goes to edges that are near.
    grey, covered = blob(pointed=0.5 if name == "edges" else 0.2)
    box = (50.0, 40.0, 150.0, 130.0)
    (drawn,), notes = draw_objects(grey, [box], target=name)
    (shape,), _ = draw_objects(grey, [box], target="ellipse")
    assert not notes
    assert dice(shape, covered) < 0.94
    assert dice(drawn, covered) > 0.96


def test_otsu_splits_where_opencvs_does():
    grey, _ = blob()
    level, _ = cv2.threshold(grey[40:130, 50:150].copy(), 0, 255, cv2.THRESH_OTSU)
    (drawn,), _ = draw_objects(grey, [(50.0, 40.0, 150.0, 130.0)], target="otsu")
    labels = measure.label(grey[40:130, 50:150] > level, connectivity=1)
    (largest,) = [r for r in measure.regionprops(labels) if r.label == labels[45, 50]]
    want = np.zeros(grey.shape, bool)
    want[40:130, 50:150][largest.slice] = largest.image_filled
    np.testing.assert_array_equal(drawn, want)


def test_otsu_keeps_the_central_one_of_two_bright_parts_and_fills_its_holes():
    grey = np.full((60, 80), 50, np.uint8)
    grey[0:60, 0:18] = 200  # Larger, along the border of the box: a rib, the heart.
    grey[15:45, 28:58] = 200
    grey[25:30, 38:44] = 50
    (drawn,), _ = draw_objects(grey, [(0.0, 0.0, 80.0, 60.0)], target="otsu")
    want = np.zeros((60, 80), bool)
    want[15:45, 28:58] = True
    np.testing.assert_array_equal(drawn, want)


@pytest.mark.parametrize("name", DERIVED)
def test_a_pseudo_mask_turns_with_its_image(name):
    grey, _ = blob()
    box = (50.0, 40.0, 150.0, 130.0)
    mirrored = (50.0, 40.0, 150.0, 130.0)  # 200 wide: 50 from either side.
    (drawn,), _ = draw_objects(grey, [box], target=name)
    (turned,), _ = draw_objects(grey[:, ::-1].copy(), [mirrored], target=name)
    assert dice(turned[:, ::-1], drawn) > 0.99


@pytest.mark.parametrize("name", DERIVED)
def test_the_same_image_at_twice_the_size_gives_the_same_shape(name):
    grey, _ = blob()
    box = (50.0, 40.0, 150.0, 130.0)
    (drawn,), _ = draw_objects(grey, [box], target=name)
    twice = grey.repeat(2, 0).repeat(2, 1)
    (large,), _ = draw_objects(twice, [tuple(2 * edge for edge in box)], target=name)
    assert dice(large, drawn.repeat(2, 0).repeat(2, 1)) > 0.97


@pytest.mark.parametrize("name", DERIVED)
def test_what_lies_far_from_a_box_does_not_change_its_target(name):
    grey, _ = blob()
    box = (80.0, 60.0, 130.0, 110.0)  # A quarter of 50 around it: 67 to 143, 47 to 123.
    (drawn,), _ = draw_objects(grey, [box], target=name)
    far = np.ones(grey.shape, bool)
    far[47:123, 67:143] = False
    (again,), _ = draw_objects(np.where(far, 255, grey).astype(np.uint8), [box], target=name)
    np.testing.assert_array_equal(again, drawn)


def test_grabcut_draws_the_same_whatever_was_drawn_before():
    """On clouds its clusters, and with them the answer, depend on where k-means starts."""
    clouds = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(96, 128)), 5)
    y, x = np.indices(clouds.shape)
    spot = np.exp(-((x - 60) ** 2 + (y - 45) ** 2) / 800)
    grey = (120 + 30 * clouds / clouds.std() + 60 * spot).clip(0, 255).astype(np.uint8)
    box = (30.0, 20.0, 90.0, 70.0)
    answers = []
    for seed in (1, 2, 3):
        cv2.setRNGSeed(seed)
        answers.append(draw_objects(grey, [box], target="grabcut"))
    for (drawn,), notes in answers:
        assert not notes
        np.testing.assert_array_equal(drawn, answers[0][0][0])


@pytest.mark.parametrize(
    ("name", "grey", "box"),
    [
        ("otsu", np.full((60, 80), 90, np.uint8), (10.0, 10.0, 50.0, 40.0)),
        ("grabcut", np.full((60, 80), 90, np.uint8), (0.0, 0.0, 80.0, 60.0)),
        ("otsu", np.eye(60, 80, dtype=np.uint8) * 200, (0.0, 0.0, 60.0, 60.0)),
    ],
    ids=["flat", "nothing around", "a thin line"],
)
def test_where_nothing_is_found_the_ellipse_stands_and_a_note_says_so(name, grey, box):
    drawn, notes = draw_objects(grey, [box], target=name)
    np.testing.assert_array_equal(drawn, draw_objects(grey, [box], target="ellipse")[0])
    assert notes == (f"{name}: ellipse in its place, too little found in box {box}",)


def test_an_ellipse_between_pixel_centres_gives_way_to_the_filled_box():
    box = (0.4, 0.4, 1.6, 1.6)  # Four centres in its corners.
    (drawn,), notes = draw_objects(np.zeros((4, 4), np.uint8), [box], target="otsu")
    assert np.argwhere(drawn).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert notes == (f"otsu: box in its place, too little found in box {box}",)


@pytest.mark.parametrize("name", TARGETS)
def test_a_box_without_a_pixel_centre_is_empty_and_one_of_a_pixel_is_not(noise, name):
    drawn, _ = draw_objects(noise, [(2.6, 1.0, 2.9, 9.0), (4.0, 4.0, 5.0, 5.0)], target=name)
    assert not drawn[0].any()
    assert np.argwhere(drawn[1]).tolist() == [[4, 4]]


def test_without_opencv_grabcut_says_what_to_install(noise, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"--target grabcut needs OpenCV.*\[opencv\]"):
        draw_objects(noise, BOXES[:1], target="grabcut")


def test_no_kind_of_target_from_a_box_is_called_a_mask():
    assert {row.kind for row in TARGETS.values()}.isdisjoint({"mask", "machine-made"})
    kinds = [row.kind for row in TARGETS.values() if not row.outline]
    assert len(set(kinds)) == len(kinds)


# What the fronts make of them.


def scored(settings):
    """What `eval.py` scores of two patients with an outline and a box each."""
    known = [
        Record(name, name, Path(name), ((0.0, 0.0, 9.0, 9.0),), Path(name), "mask", "")
        for name in ("a", "b")
    ]
    drawn = draw_as(known, settings.target)
    protocols = parse_protocols(settings.prompt)
    chosen = eval_front.choose(drawn, protocols, settings, allowed=frozenset("ab"))
    return chosen, eval_front.askable(protocols, chosen, settings)


@pytest.mark.parametrize("name", TARGETS)
def test_a_box_prompt_is_refused_wherever_the_target_is_made_of_the_box(name):
    settings = EvalConfig(data_dir="set", target=name, prompt="jitter:5,box,point")
    if name == "mask":
        chosen, protocols = scored(settings)
        assert (len(chosen), list(protocols)) == (2, ["jitter:5", "box", "point"])
        return
    with pytest.raises(ValueError, match=rf"set: 2 images \(first: a\).*{TARGETS[name].kind}"):
        scored(settings)
    for prompt in ("point", "none", "all"):
        chosen, protocols = scored(dataclasses.replace(settings, prompt=prompt))
        assert {record.kind for record in chosen} == {TARGETS[name].kind}
    marked = ["centre", "point", "clicks:10", "scribble", "auto", "none"]
    assert list(protocols) == marked  # All but those that are made of the box.


def test_a_table_says_of_each_target_from_a_box_that_nobody_drew_it():
    for row in TARGETS.values():
        told = " ".join(target_notes(["mask", row.kind]))
        assert (f"Target {row.kind}: " in told) == (row.kind != "mask")
        assert ("not drawn" in told) == (row.kind.endswith("from box"))


def test_the_target_is_in_the_names_of_runs_and_reports_and_in_what_makes_them_differ():
    runs, reports = set(), set()
    for name in TARGETS:
        run = resolve(TrainConfig(target=name))
        runs.add(run.out)
        looks = {"trained": look_of(run), "shown": look_of(run)}
        reports.add(resolve_eval(EvalConfig(target=name), folder="w", run=run, **looks).out)
        assert ("target" in differences({}, run)) == (name != "mask")
    assert len(runs) == len(reports) == len(TARGETS)
    assert "runs/tiny-synthetic-box-none" in runs


def test_on_real_boxes_every_row_draws_every_object_within_its_box(real_data):
    records = [record for record in read_rsna(real_data / "rsna_like") if record.boxes][:4]
    for record in records:
        sample = load(record)
        boxes = [tuple(map(float, box)) for box in sample.boxes]
        filled, _ = draw_objects(sample.image[:, :, 0], boxes, target="box")
        for name in TARGETS:
            drawn, _ = draw_objects(sample.image[:, :, 0], boxes, target=name)
            assert not (drawn & ~filled).any()
            assert (drawn.sum((1, 2)) >= LEAST * filled.sum((1, 2))).all()
