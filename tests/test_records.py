import dataclasses
import warnings

import numpy as np
import pytest
from PIL import Image

from data.boxes import fill_boxes
from data.records import (
    Record,
    assign_components,
    check_boxes,
    draw_as,
    load,
    object_crops,
    tight_boxes,
)
from data.rsna import read_rsna
from data.targets import TARGETS
from pp_jax.evaluate.controls import filled_box, inscribed_ellipse
from tests.dicom_files import write_dicom


def drawn(*lines):
    return np.array([list(line) for line in lines]) == "#"


@pytest.fixture
def record(tmp_path):
    """A record of an 8 x 10 image with level 90; a mask is drawn into its top left corner."""

    def make(lines, *boxes):
        image = write_dicom(tmp_path / "a.dcm", np.full((8, 10), 90, np.uint8))
        if lines is None:
            return Record("a", "p", image, boxes, None, "box", "")
        corner = drawn(*lines)
        mask = np.zeros((8, 10), np.uint8)
        mask[: corner.shape[0], : corner.shape[1]] = 255 * corner
        Image.fromarray(mask).save(tmp_path / "a.png")
        return Record("a", "p", image, boxes, tmp_path / "a.png", "mask", "")

    return make


def test_a_filled_box_holds_the_pixels_whose_centre_is_inside():
    (filled,) = fill_boxes([(1.5, 0.6, 3.5, 2.5)], size=(4, 6))
    want = np.zeros((4, 6), bool)
    want[1:2, 1:3] = True  # Centres 1.5 and 2.5 in x; 1.5 in y: 0.5 is above, 2.5 on the far edge.
    np.testing.assert_array_equal(filled, want)


def test_the_tight_box_of_a_filled_box_is_the_box():
    boxes = [(1, 2, 5, 7), (0, 0, 10, 8), (9, 7, 10, 8)]
    np.testing.assert_array_equal(tight_boxes(fill_boxes(boxes, size=(8, 10))), boxes)


def test_without_a_mask_the_objects_are_the_filled_boxes(record):
    sample = load(record(None, (1.0, 1.0, 4.0, 3.0), (6.25, 2.0, 9.0, 8.0)))
    assert sample.objects.sum((1, 2)).tolist() == [6, 18]
    np.testing.assert_array_equal(sample.boxes, [(1, 1, 4, 3), (6.25, 2, 9, 8)])
    np.testing.assert_array_equal(sample.findings, sample.objects[0] | sample.objects[1])
    assert (sample.image == 90).all()


def test_a_box_that_holds_no_pixel_centre_is_no_object(record):
    sample = load(record(None, (2.6, 1.0, 2.9, 3.0), (4.0, 1.0, 6.0, 3.0)))
    assert sample.boxes.tolist() == [[4, 1, 6, 3]]
    assert sample.objects.sum((1, 2)).tolist() == [4]


SPOT = ("....", ".##.", ".#..")


@pytest.mark.parametrize("name", ["box", "ellipse"])
def test_objects_drawn_from_boxes_forget_the_mask_and_keep_the_annotated_boxes(record, name):
    boxes = ((1.0, 1.0, 6.0, 5.0), (6.5, 2.0, 9.5, 8.0))
    (asked,) = draw_as([record(SPOT, *boxes)], name)
    sample = load(asked)
    shapes = {"box": filled_box, "ellipse": inscribed_ellipse}
    for pixels, box in zip(sample.objects, boxes, strict=True):
        np.testing.assert_array_equal(pixels, shapes[name]((8, 10), np.array([box], np.float32)))
    np.testing.assert_array_equal(sample.boxes, boxes)
    np.testing.assert_array_equal(sample.findings, sample.objects.any(0))


@pytest.mark.parametrize(
    ("known", "row", "kind", "from_box"),
    [
        ("mask", "mask", "mask", False),
        ("machine-made", "mask", "machine-made", False),
        ("box", "mask", "box", True),
        ("mask", "box", "box", True),
        ("box", "ellipse", "ellipse from box", True),
        ("machine-made", "otsu", "otsu from box", True),
    ],
)
def test_a_record_and_its_sample_say_what_the_target_is(record, known, row, kind, from_box):
    given = record(None if known == "box" else SPOT, (0.0, 0.0, 4.0, 3.0))
    (asked,) = draw_as([dataclasses.replace(given, target=known)], row)
    assert (asked.kind, asked.from_box) == (kind, from_box)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load(asked).target == kind


def test_an_object_that_could_not_be_drawn_as_asked_is_told_in_its_sample(record):
    (asked,) = draw_as([record(None, (1.0, 1.0, 7.0, 6.0))], "otsu")
    with pytest.warns(UserWarning, match=r"^a: otsu: ellipse in its place"):
        sample = load(asked)  # All pixels are 90.
    assert sample.notes == (
        "otsu: ellipse in its place, too little found in box (1.0, 1.0, 7.0, 6.0)",
    )
    assert load(record(None, (1.0, 1.0, 7.0, 6.0))).notes == ()


def test_an_unknown_target_is_an_error_that_names_the_choices():
    with pytest.raises(ValueError, match="unknown target 'circle'; choose from mask, box"):
        draw_as([], "circle")


@pytest.mark.parametrize("name", TARGETS)
def test_a_crop_is_the_object_in_its_box_as_it_is_loaded(tmp_path, name):
    y, x = np.indices((50, 70))
    bumps = ((np.hypot(x - 20, y - 17) < 9) | (np.hypot(x - 45, y - 32) < 14)) * 120
    pixels = (60 + bumps + (x + y) % 7).astype(np.uint8)
    image = write_dicom(tmp_path / "a.dcm", pixels)
    boxes = ((3.0, 4.0, 40.0, 30.0), (20.5, 15.5, 69.0, 49.5))
    (record,) = draw_as([Record("a", "p", image, boxes, None, "box", "")], name)
    sample = load(record)
    crops = list(object_crops([record]))
    assert len(crops) == 2
    for (drawn, box), whole, told in zip(crops, sample.objects, sample.boxes, strict=True):
        np.testing.assert_array_equal(box, told)
        assert drawn.sum() == whole.sum() > 0
        held = whole[: drawn.shape[0], : drawn.shape[1]]
        np.testing.assert_array_equal(drawn, held)


def test_a_component_belongs_whole_to_the_box_with_most_of_its_pixels():
    findings = drawn("####....", "........", "...##...")
    left, right = assign_components(findings, [(0, 0, 3, 3), (2, 0, 8, 3)])
    np.testing.assert_array_equal(left, drawn("####....", "........", "........"))
    np.testing.assert_array_equal(right, drawn("........", "........", "...##..."))


def test_a_small_finding_within_the_box_of_a_large_one_keeps_its_own():
    findings = drawn("######", "#.....", "#..##.", "#..##.", "#.....")
    boxes = [(0, 0, 6, 5), (3, 2, 5, 4)]
    for order in ((0, 1), (1, 0)):
        objects = assign_components(findings, [boxes[i] for i in order])
        assert [objects[order.index(i)].sum() for i in (0, 1)] == [10, 4]


def test_pixels_that_touch_at_a_corner_are_one_component():
    (whole,) = assign_components(drawn("#..", ".#.", "..#"), [(0, 0, 2, 2)])
    assert whole.sum() == 3


def test_a_component_in_no_box_counts_in_the_findings_only(record):
    sample = load(record(("##...#", "##...#"), (0.0, 0.0, 3.0, 3.0)))
    assert sample.objects.sum((1, 2)).tolist() == [4]
    assert sample.findings.sum() == 6


def test_the_box_of_a_masked_object_is_tight(record):
    sample = load(record((".##.", ".##."), (0.0, 0.0, 6.0, 6.0)))
    np.testing.assert_array_equal(sample.boxes, [(1, 0, 3, 2)])


def test_a_box_around_nothing_is_left_out_with_a_warning(record):
    with pytest.warns(UserWarning, match=r"a\.png: nothing is marked inside box \(5\.0"):
        sample = load(record(("##",), (5.0, 5.0, 8.0, 8.0), (0.0, 0.0, 3.0, 3.0)))
    assert sample.objects.sum((1, 2)).tolist() == [2]


def test_an_image_without_findings_has_no_objects(record):
    for sample in (load(record(None)), load(record(("..",)))):
        assert sample.objects.shape == (0, 8, 10)
        assert sample.boxes.shape == (0, 4)
        assert not sample.findings.any()


def test_grey_up_to_127_is_background(record):
    marked = record(("##",), (0.0, 0.0, 3.0, 3.0))
    Image.fromarray(np.uint8([[127, 128] + [0] * 8] + [[0] * 10] * 7)).save(marked.mask)
    assert np.argwhere(load(marked).findings).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.new("L", (8, 10)), "mask of 8 x 10 pixels for an image of 10 x 8"),
        (Image.new("RGB", (10, 8)), "has mode RGB"),
        (None, "not a readable picture"),
    ],
)
def test_a_mask_of_another_size_or_kind_is_an_error(record, picture, reason):
    marked = record(("##",))
    marked.mask.write_text("no picture") if picture is None else picture.save(marked.mask)
    with pytest.raises(ValueError, match=rf"a\.png: .*{reason}"):
        load(marked)


@pytest.mark.parametrize(
    "box",
    [(-1.0, 0.0, 3.0, 3.0), (0.0, -0.5, 3.0, 3.0), (5.0, 5.0, 10.5, 8.0), (5.0, 5.0, 9.0, 9.0)],
)
def test_a_box_outside_the_image_is_an_error(record, box):
    with pytest.raises(ValueError, match=rf"a\.dcm: box .*{box[0]}.*10 x 8"):
        load(record(None, (0.0, 0.0, 10.0, 8.0), box))


def test_a_box_that_fills_the_image_is_inside():
    check_boxes([(0, 0, 10, 8)], size=(8, 10), where="")


def test_real_masks_give_the_boxes_of_the_csv(real_data):
    for record in read_rsna(real_data / "rsna_like"):
        sample = load(record)
        np.testing.assert_array_equal(sample.boxes, np.reshape(record.boxes, (-1, 4)))
        assert not (sample.objects.any(0) & ~sample.findings).any()
