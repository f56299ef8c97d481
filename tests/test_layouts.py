"""The layouts of a user's folder beside images and masks: nnU-Net, COCO, a table of boxes."""

import json
import pickle
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.draw import polygon as skimage_polygon

from data.boxes import fill_boxes
from data.composed import read_marked, read_numbers
from data.records import load
from data.regions import Runs, draw_outlines, fill_polygon, fill_runs, parse_outline, unpack_counts
from data.sources import open_dataset
from pp_jax.predict.masks import encode_rle, to_coco
from tests.dicom_files import write_dicom

pytestmark = pytest.mark.filterwarnings("ignore:.*images of one person")


def read(folder: Path, **options):
    return open_dataset("folder", folder, **options)


def picture(path: Path, *, black: bool = False, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (60, 40), 0 if black else 50).save(path, **options)


def blob(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Boxes numbered from 1 on, in an image of 60 x 40."""
    mask = np.zeros((40, 60), np.uint8)
    for value, (x0, y0, x1, y1) in enumerate(boxes, 1):
        mask[y0:y1, x0:x1] = value
    return mask


# Masks as people have them.

MASKS = {
    "zero and one": lambda m: Image.fromarray(m),
    "colour": lambda m: Image.fromarray(m * 255).convert("RGB"),
    "opaque": lambda m: Image.fromarray(m * 255).convert("RGBA"),
    "bits": lambda m: Image.fromarray(m.astype(bool)),
    "grey and opaque": lambda m: Image.fromarray(m * 255).convert("LA"),
    "palette": lambda m: Image.fromarray(m).convert("P"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_that_can_only_mean_one_thing_is_taken_for_it_and_noted(tmp_path, kind):
    mask = blob((5, 6, 25, 30))
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    MASKS[kind](mask).save(tmp_path / "masks" / "a.png")
    (record,) = pickle.loads(pickle.dumps(read(tmp_path)))
    np.testing.assert_array_equal(load(record).findings, mask == 1)
    assert (record.boxes, record.notes) == (
        ((5.0, 6.0, 25.0, 30.0),),
        ("mask brought to 8-bit grey",),
    )


UNCLEAR = {
    "largest value is 3": Image.fromarray(blob((0, 0, 9, 9), (9, 9, 20, 20), (20, 20, 30, 30))),
    "a mask in colours": Image.new("RGB", (60, 40), (255, 0, 0)),
    "transparent parts": Image.new("RGBA", (60, 40), (0, 0, 0, 90)),
    "has mode I;16": Image.fromarray(blob((0, 0, 9, 9)).astype(np.uint16)),
}


@pytest.mark.parametrize("message", UNCLEAR)
def test_a_mask_that_may_mean_anything_is_an_error(tmp_path, message):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    UNCLEAR[message].save(tmp_path / "masks" / "a.png")
    with pytest.raises(ValueError, match=rf"masks/a\.png: .*{message}"):
        read(tmp_path)


def test_a_picture_is_read_as_what_it_is_and_the_name_that_belies_it_noted(tmp_path):
    picture(tmp_path / "images" / "a.jpg", format="PNG")
    picture(tmp_path / "images" / "b.JPG", format="JPEG")
    for name in "ab":
        picture(tmp_path / "masks" / f"{name}.png", black=True)
    a, b = read(tmp_path)
    assert (a.notes, b.notes) == (("PNG named .jpg",), ())
    assert (load(a).image == 50).all()


def test_the_layout_that_was_taken_is_said_and_masks_come_first(tmp_path, capsys):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\na.png,1,2,3,4\n")
    assert read(tmp_path)[0].target == "box"
    assert capsys.readouterr().out == f"{tmp_path}: 1 images, layout box table (boxes.csv)\n"
    (tmp_path / "masks").mkdir()
    Image.new("L", (60, 40), 255).save(tmp_path / "masks" / "a.png")
    assert read(tmp_path)[0].target == "mask"
    assert capsys.readouterr().out == f"{tmp_path}: 1 images, layout masks (masks)\n"
    with pytest.raises(ValueError, match="masks have no labels, so there is no 'x'"):
        read(tmp_path, label="x")


def test_numbers_of_a_mask_are_those_that_were_saved(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8)
    Image.fromarray(numbers).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_numbers(tmp_path / "a.png"), numbers)
    np.testing.assert_array_equal(read_marked(tmp_path / "a.png"), numbers >= 128)


# nnU-Net


def nnunet(folder: Path, *boxes, labels=None, ending=".png", **fields) -> Path:
    picture(folder / "imagesTr" / f"case_1_0000{ending}")
    (folder / "labelsTr").mkdir(exist_ok=True)
    Image.fromarray(blob(*boxes)).save(folder / "labelsTr" / f"case_1{ending}")
    named = {"background": 0, "lung": 1, "tumour": 2} if labels is None else labels
    content = {"labels": named, "file_ending": ending, "channel_names": {"0": "grey"}, **fields}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


LUNG, TUMOUR = (2, 3, 22, 33), (30, 10, 50, 20)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_nnunet_marks_every_label_above_zero_or_the_one_that_is_named(tmp_path, ending):
    folder = nnunet(tmp_path, LUNG, TUMOUR, ending=ending)
    (record,) = pickle.loads(pickle.dumps(read(folder)))
    assert (record.id, record.label) == ("case_1", "lung|tumour")
    assert record.boxes == (tuple(map(float, LUNG)), tuple(map(float, TUMOUR)))
    np.testing.assert_array_equal(load(record).findings, blob(LUNG, TUMOUR) > 0)
    (record,) = read(folder, label="tumour")
    assert (record.boxes, record.label) == ((tuple(map(float, TUMOUR)),), "tumour")
    np.testing.assert_array_equal(load(record).findings, blob(LUNG, TUMOUR) == 2)


def test_nnunet_regions_are_several_numbers_and_ignored_pixels_are_noted(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    folder = nnunet(tmp_path, LUNG, TUMOUR, (55, 0, 60, 40), labels=labels)
    (record,) = read(folder, label="whole")
    np.testing.assert_array_equal(load(record).findings, blob(LUNG, TUMOUR) > 0)
    assert record.notes == ("pixels to ignore",)
    assert load(*read(folder)).findings.sum() == 20 * 30 + 20 * 10
    assert load(*read(folder, label="core")).findings.sum() == 20 * 10


def test_nnunet_patients_and_the_promised_number_are_compared(tmp_path):
    folder = nnunet(tmp_path, LUNG, numTraining=2)
    (folder / "patients.csv").write_text("image,patient\ncase_1,ann\n")
    with pytest.warns(UserWarning, match="numTraining is 2, .* holds 1 images"):
        (record,) = read(folder)
    assert record.patient == "ann"


BROKEN_NNUNET = {
    r"dataset\.json: no such file": lambda f: (f / "dataset.json").unlink(),
    r"dataset\.json: not a JSON": lambda f: (f / "dataset.json").write_text("{"),
    r"dataset\.json: needs labels": lambda f: (f / "dataset.json").write_text("[1]"),
    r"file_ending is '\.nii\.gz'; only 2-D": lambda f: (f / "dataset.json").write_text(
        '{"labels": {"a": 1}, "file_ending": ".nii.gz"}'
    ),
    r"label 'lung' is 'one'": lambda f: nnunet(f, LUNG, labels={"lung": "one"}),
    r"no label above 0": lambda f: nnunet(f, LUNG, labels={"background": 0}),
    r"case_1\.png: label 1 is not among": lambda f: nnunet(f, LUNG, labels={"a": 0, "b": 2}),
    r"imagesTr: 1 \(case_1_0001\.png\) not named": lambda f: picture(
        f / "imagesTr" / "case_1_0001.png"
    ),
    r"imagesTr: no image; expected": lambda f: (f / "imagesTr" / "case_1_0000.png").unlink(),
    r"labelsTr/case_1\.png: no label picture": lambda f: (f / "labelsTr" / "case_1.png").unlink(),
    r"case_1\.png: mask of 9 x 8 .* image of 60 x 40": lambda f: Image.new("L", (9, 8)).save(
        f / "labelsTr" / "case_1.png"
    ),
}


@pytest.mark.parametrize("message", BROKEN_NNUNET)
def test_a_broken_nnunet_folder_is_an_error_that_names_the_file(tmp_path, message):
    BROKEN_NNUNET[message](nnunet(tmp_path, LUNG))
    with pytest.raises((ValueError, OSError), match=message):
        read(tmp_path)
    with pytest.raises(ValueError, match="no label 'liver'; choose from lung, tumour"):
        read(nnunet(tmp_path / "whole", LUNG), label="liver")


# COCO

RECTANGLE = [[10, 5, 30, 5, 30, 25, 10, 25]]


def coco(folder: Path, *annotations: dict, name="a.png", where="labels.json", **image) -> Path:
    picture(folder / "images" / "a.png")
    rows = [{"id": n, "image_id": 7, "category_id": 3, **a} for n, a in enumerate(annotations)]
    content = {
        "images": [{"id": 7, "file_name": name, "width": 60, "height": 40, **image}],
        "annotations": rows,
        "categories": [{"id": 3, "name": "opacity"}, {"id": 4, "name": "tube"}],
    }
    (folder / where).parent.mkdir(exist_ok=True)
    (folder / where).write_text(json.dumps(content))
    return folder


def plain_runs(mask: np.ndarray) -> dict:
    """Run lengths down the columns by `groupby`."""
    values = mask.T.ravel().tolist()
    counts = [len(list(run)) for _, run in groupby(values)]
    return {"size": list(mask.shape), "counts": counts if not values[0] else [0, *counts]}


@pytest.mark.parametrize("where", ["labels.json", "annotations/instances.json"])
def test_outlines_are_drawn_as_polygons_or_runs_and_objects_are_their_components(tmp_path, where):
    tube = blob((40, 0, 44, 40)).astype(bool)
    folder = coco(
        tmp_path,
        {"segmentation": RECTANGLE, "bbox": [10, 5, 20, 20]},
        {"segmentation": plain_runs(tube), "category_id": 4, "iscrowd": 1},
        where=where,
    )
    (record,) = pickle.loads(pickle.dumps(read(folder)))
    assert record.boxes == ((40.0, 0.0, 44.0, 40.0), (10.0, 5.0, 30.0, 25.0))
    assert (record.target, record.label, record.id) == ("mask", "opacity|tube", "a")
    np.testing.assert_array_equal(load(record).findings, tube | (blob((10, 5, 30, 25)) > 0))
    (record,) = read(folder, label="tube")
    np.testing.assert_array_equal(load(record).findings, tube)
    with pytest.raises(ValueError, match="no category 'lung'; choose from opacity, tube"):
        read(folder, label="lung")


def test_boxes_alone_are_a_target_of_boxes_and_clipped(tmp_path):
    folder = coco(
        tmp_path, {"bbox": [-5, 10, 20, 8]}, {"bbox": [30.5, 2, 4, 4], "segmentation": []}
    )
    (record,) = read(folder)
    assert record.boxes == ((0.0, 10.0, 15.0, 18.0), (30.5, 2.0, 34.5, 6.0))
    assert (record.target, record.mask, record.notes) == ("box", None, ("box clipped",))


def test_an_image_of_which_one_outline_is_missing_has_boxes_only(tmp_path):
    outlined = {"segmentation": RECTANGLE, "bbox": [10, 5, 20, 20]}
    (record,) = read(coco(tmp_path, outlined, {"bbox": [1, 1, 4, 4]}))
    assert (record.target, len(record.boxes), record.notes) == ("box", 2, ("outline unused",))


def test_an_outline_without_a_box_gives_its_own_where_boxes_are_what_is_known(tmp_path):
    beyond = [[50, 30, 70, 30, 70, 50, 50, 50]]
    outlines = [RECTANGLE, plain_runs(blob((40, 0, 44, 40)).astype(bool)), beyond]
    rows = ({"segmentation": outline} for outline in outlines)
    (record,) = read(coco(tmp_path, *rows, {"bbox": [1, 1, 4, 4]}))
    want = {(10, 5, 30, 25), (40, 0, 44, 40), (50, 30, 60, 40), (1, 1, 5, 5)}
    assert (set(record.boxes), record.target) == (want, "box")
    assert all(type(edge) is float for box in record.boxes for edge in box)
    nothing = {"segmentation": [[70, 0, 80, 0, 80, 9]]}
    with pytest.raises(ValueError, match="annotation 0: the outline holds no pixel"):
        read(coco(tmp_path, nothing, {"bbox": [1, 1, 4, 4]}))


def test_names_of_coco_images_lose_known_suffixes_alone_and_patients_find_them(tmp_path):
    (tmp_path / "images").mkdir()
    files = ["1.2.840.5", "1.2.840.6", "c.png", "sub/b.png"]
    for file in files:
        if file.endswith(".png"):
            picture(tmp_path / "images" / file)
        else:
            write_dicom(tmp_path / "images" / file, np.zeros((40, 60), np.uint8))
    content = {
        "images": [{"id": n, "file_name": file} for n, file in enumerate(files)],
        "annotations": [],
        "categories": [],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    people = dict(zip(files, ("ann", "bob", "carl", "dora"), strict=True))
    rows = "".join(f"{file},{person}\n" for file, person in people.items())
    (tmp_path / "patients.csv").write_text("image,patient\n" + rows)
    got = {record.id: record.patient for record in read(tmp_path)}
    assert got == {"1.2.840.5": "ann", "1.2.840.6": "bob", "c": "carl", "sub-b": "dora"}


def test_an_image_without_annotation_is_without_finding(tmp_path):
    (record,) = read(coco(tmp_path))
    assert (record.boxes, record.label, record.target) == ((), "no finding", "box")


def test_run_lengths_packed_by_another_writer_are_read(tmp_path):
    mask = np.random.default_rng(1).random((40, 60)) > 0.6
    packed = to_coco(encode_rle(mask))
    assert isinstance(packed["counts"], str)
    (record,) = read(coco(tmp_path, {"segmentation": packed, "bbox": [0, 0, 60, 40]}))
    np.testing.assert_array_equal(load(record).findings, mask)


def test_packed_counts_are_five_bits_a_character_and_differences_from_the_fourth_on():
    # 5; 3; 40 = 8 + 32 * 1; 1 = 3 - 2, and -2 is 0b11110; each plus 48, a continued one plus 32.
    assert unpack_counts("53X1N") == [5, 3, 40, 1]


def test_a_polygon_fills_the_pixels_whose_centre_it_holds_as_skimage_does():
    rng = np.random.default_rng(3)
    for _ in range(40):
        corners = rng.uniform(-15, 70, (int(rng.integers(3, 9)), 2))
        got = fill_polygon(tuple(map(tuple, corners)), size=(40, 60))
        want = np.zeros((40, 60), bool)
        want[skimage_polygon(corners[:, 1] - 0.5, corners[:, 0] - 0.5, (40, 60))] = True
        np.testing.assert_array_equal(got, want)


def test_a_polygon_that_is_a_box_is_the_box():
    rng = np.random.default_rng(4)
    for _ in range(40):
        (x0, x1), (y0, y1) = np.sort(rng.integers(0, 120, (2, 2)) / 2)
        polygon = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        want = fill_boxes([(x0, y0, x1, y1)], size=(40, 60))[0]
        np.testing.assert_array_equal(fill_polygon(polygon, size=(40, 60)), want)


def test_runs_go_down_the_columns():
    want = np.array([[0, 1, 0], [0, 0, 0]], bool)
    np.testing.assert_array_equal(fill_runs(Runs((2, 3), (2, 1, 3))), want)


def test_polygons_of_one_outline_are_all_filled():
    inner = [[12, 8, 20, 8, 20, 20, 12, 20]]
    outline = parse_outline(RECTANGLE + inner, where="x")
    assert draw_outlines((40, 60), (outline,)).sum() == 400


BROKEN_COCO = {
    r"labels\.json: not a JSON": lambda f: (f / "labels.json").write_text(
        '{"images": [], "annotations": '
    ),
    r"labels\.json: categories is not a list": lambda f: (f / "labels.json").write_text(
        '{"images": [], "annotations": []}'
    ),
    r"several COCO JSONs \(a\.json, labels\.json\)": lambda f: (f / "a.json").write_bytes(
        (f / "labels.json").read_bytes()
    ),
    r"file_name '\.\./a\.png' may leave the folder": lambda f: coco(f, name="../a.png"),
    r"file_name '/etc/a\.png' may leave": lambda f: coco(f, name="/etc/a.png"),
    r"file_name 'x/\.\./\.\./\.\./a' may leave": lambda f: coco(f, name="x/../../../a"),
    r"file_name '' may leave": lambda f: coco(f, name=""),
    r"no b\.png, which labels\.json lists": lambda f: coco(f, name="b.png"),
    r"image 0: file_name is None, expected str": lambda f: coco(f, name=None),
    r"a\.png is listed with 61 x 40 pixels and has 60 x 40": lambda f: coco(f, width=61),
    r"annotation 0: of an image that is not listed": lambda f: coco(
        f, {"bbox": [1, 1, 2, 2], "image_id": 8}
    ),
    r"annotation 0: category 9 is not": lambda f: coco(f, {"category_id": 9, "bbox": [1, 1, 2, 2]}),
    r"annotation 0: neither segmentation nor bbox": lambda f: coco(f, {}),
    r"annotation 0: bbox is \[1, 2, 3\]": lambda f: coco(f, {"bbox": [1, 2, 3]}),
    r"annotation 0: bbox is \[1, nan, 3, 3\], not numbers": lambda f: coco(
        f, {"bbox": [1, float("nan"), 3, 3]}
    ),
    r"annotation 0: the box .* is empty": lambda f: coco(f, {"bbox": [1, 1, 0, 3]}),
    r"annotation 0: the box .* lies outside": lambda f: coco(f, {"bbox": [60, 1, 2, 3]}),
    r"annotation 0: a polygon is a list of three": lambda f: coco(f, {"segmentation": [[1, 2, 3]]}),
    r"annotation 0: a polygon's corner is not": lambda f: coco(
        f, {"segmentation": [[1, 2, 3, float("inf"), 5, 6]]}
    ),
    r"annotation 0: a polygon's corner is not a": lambda f: coco(
        f, {"segmentation": [[1, 2, 3, 10**400, 5, 6]]}
    ),
    r"annotation 0: segmentation is neither": lambda f: coco(f, {"segmentation": 5}),
    r"annotation 0: run lengths add up to 5 pixels, not to 60 x 40": lambda f: coco(
        f, {"segmentation": {"size": [40, 60], "counts": [2, 3]}}
    ),
    r"annotation 0: run lengths of 3 x 2 pixels for an image of 60 x 40": lambda f: coco(
        f, {"segmentation": {"size": [2, 3], "counts": [2, 4]}}
    ),
    r"annotation 0: run lengths need size": lambda f: coco(
        f, {"segmentation": {"size": [40, 60], "counts": [-1, 2401]}}
    ),
    r"annotation 0: packed run lengths are cut off": lambda f: coco(
        f, {"segmentation": {"size": [40, 60], "counts": "P"}}
    ),
    r"annotation 0: character '\\x7f'": lambda f: coco(
        f, {"segmentation": {"size": [40, 60], "counts": "\x7f"}}
    ),
}


@pytest.mark.parametrize("message", BROKEN_COCO)
def test_a_broken_coco_folder_is_an_error_that_names_file_and_entry(tmp_path, message):
    BROKEN_COCO[message](coco(tmp_path))
    with pytest.raises((ValueError, OSError), match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


# A table of boxes

HEADER = "image,x0,y0,x1,y1,label,patient\n"


def table(folder: Path, rows: str, *, header=HEADER, names="ab") -> Path:
    for name in names:
        picture(folder / "images" / f"{name}.png")
    (folder / "findings.csv").write_text(header + rows)
    return folder


def test_rows_are_boxes_with_label_and_patient_and_an_empty_row_is_no_finding(tmp_path):
    rows = "a.png,1,2,11,12,opacity,ann\na,5.5,6,20,22,tube,ann\nb.png,,,,,,bob\n"
    a, b = read(table(tmp_path, rows))
    assert a.boxes == ((1.0, 2.0, 11.0, 12.0), (5.5, 6.0, 20.0, 22.0))
    assert (a.label, a.patient, a.target, a.notes) == ("opacity|tube", "ann", "box", ())
    assert (b.boxes, b.label, b.patient) == ((), "no finding", "bob")
    assert load(a).objects.sum((1, 2)).tolist() == [
        100,
        16 * 15,
    ]  # Column 5's centre is on the edge.
    a, b = read(tmp_path, label="tube")
    assert (len(a.boxes), a.label) == (1, "tube")
    assert [r.id for r in read(tmp_path, limit=1)] == ["a"]
    with pytest.raises(ValueError, match="no label 'lung'; choose from opacity, tube"):
        read(tmp_path, label="lung")


def test_images_may_lie_beside_the_table_and_patients_in_their_csv(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("x0,image,y0,y1,x1\n1,a.png,2,4,3\n")
    (tmp_path / "patients.csv").write_text("image,patient\na.png,ann\n")
    (record,) = read(tmp_path)
    assert (record.boxes, record.patient) == (((1.0, 2.0, 3.0, 4.0),), "ann")


def test_boxes_half_outside_are_clipped_double_rows_dropped_and_both_noted(tmp_path):
    rows = "a,-3,2,11,50,,p\nb,1,1,9,9,x,q\nb,1,1,9,9,x,q\n"
    a, b = read(table(tmp_path, rows))
    assert (a.boxes, a.notes) == (((0.0, 2.0, 11.0, 40.0),), ("box clipped",))
    assert (b.boxes, b.notes) == (((1.0, 1.0, 9.0, 9.0),), ("double row dropped",))


def test_an_image_without_a_row_is_left_out_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"findings\.csv: no row for 1 images, left out"):
        assert [r.id for r in read(table(tmp_path, "a,1,1,2,2,,p\n"))] == ["a"]


BROKEN_TABLE = {
    r"no image for 2 \(c\.png, \.\./secret\)": "c.png,1,1,2,2,,\n../secret,1,1,2,2,,\n",
    r"findings\.csv, line 2 \(a\): could not convert .*'wide'": "a,1,1,wide,2,,\n",
    r"findings\.csv, line 2 \(a\): could not convert .*''": "a,1,1,,2,,\n",
    r"findings\.csv, line 2 \(a\.png\): the box \(nan, .* not finite": "a,nan,1,2,2,,\nb,,,,,,\n",
    r"line 2 \(a\.png\): the box .* is empty": "a,3,1,2,2,,\nb,,,,,,\n",
    r"line 2 \(a\.png\): the box .* lies outside": "a,60,1,70,2,,\nb,,,,,,\n",
    r"a has two patients, p and q": "a,1,1,2,2,,p\na,3,3,4,4,,q\n",
    r"no patient for 1 \(b\); fill the column": "a,1,1,2,2,,p\nb,3,3,4,4,,\n",
    r"no rows below the header": "",
}


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("message", BROKEN_TABLE)
def test_a_broken_table_is_an_error_that_names_file_and_line(tmp_path, message):
    picture(tmp_path.parent / "secret.png")
    with pytest.raises((ValueError, OSError), match=message) as caught:
        read(table(tmp_path, BROKEN_TABLE[message]))
    assert "\n" not in str(caught.value)


def test_two_tables_are_one_too_many(tmp_path):
    folder = table(tmp_path, "a,1,1,2,2,,p\n")
    (folder / "boxes.csv").write_text(HEADER)
    with pytest.raises(ValueError, match=r"several CSVs of boxes \(boxes\.csv, findings\.csv\)"):
        read(folder)
