import numpy as np
import pytest
from PIL import Image

from data.records import (
    Record,
    assign_components,
    check_boxes,
    fill_boxes,
    load,
    tight_boxes,
)
from data.rsna import read_rsna
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
        (None, "not a picture"),
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
