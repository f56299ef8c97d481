import csv

import numpy as np
import pytest
from PIL import Image

from data.dicom import DicomError
from data.records import load
from data.rsna import find_patients, parse_labels, read_rsna
from data.sources import DATASETS, open_dataset
from data.splits import split_patients
from tests.dicom_files import HEADER, write_set

LABELS = "b,5,6,10,20,1\na,,,,,0\nb,30,1,20,8,1\nc,0,0,60,40,1\n"
PATIENTS = "patientId,patient\na,anna\nb,ben\nc,anna\n"


@pytest.fixture
def folder(tmp_path):
    """Three images of two patients, 60 x 40 pixels."""
    write_set(tmp_path / "set", LABELS)
    (tmp_path / "set" / "patients.csv").write_text(PATIENTS)
    return tmp_path / "set"


def test_rows_of_one_id_are_the_boxes_of_one_record_in_the_csv_s_order(folder):
    records = read_rsna(folder)
    assert [(record.id, record.boxes) for record in records] == [
        ("b", ((5, 6, 15, 26), (30, 1, 50, 9))),
        ("a", ()),
        ("c", ((0, 0, 60, 40),)),
    ]
    assert load(records[0]).objects.sum((1, 2)).tolist() == [200, 160]


def test_a_mask_file_makes_the_mask_the_target(folder):
    (folder / "masks").mkdir()
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(folder / "masks" / "a.png")
    assert [record.target for record in read_rsna(folder)] == ["box", "mask", "box"]
    assert [record.mask for record in read_rsna(folder)] == [None, folder / "masks" / "a.png", None]


def test_labels_come_from_the_class_table_where_it_has_the_id(folder):
    without = ["Lung Opacity", "No Lung Opacity", "Lung Opacity"]
    assert [record.label for record in read_rsna(folder)] == without
    (folder / "stage_2_detailed_class_info.csv").write_text("patientId,class\na,Normal\na,Normal\n")
    assert [record.label for record in read_rsna(folder)][1] == "Normal"


def test_patients_come_from_patients_csv_then_from_nih_then_from_the_id(folder):
    (folder / "rsna_to_nih.csv").write_text(
        "patientId,nih_image,mse\na,00000007_001.png,1\nb,00000007_012.png,1\nc,00000012_000.png,2\n"
    )
    assert [r.patient for r in read_rsna(folder)] == ["ben", "anna", "anna"]
    (folder / "patients.csv").unlink()
    assert [r.patient for r in read_rsna(folder)] == ["00000007", "00000007", "00000012"]
    (folder / "rsna_to_nih.csv").unlink()
    with pytest.warns(UserWarning, match="images of one person may be in two splits"):
        assert [r.patient for r in read_rsna(folder)] == ["b", "a", "c"]


def test_limit_counts_patients_and_keeps_all_their_images(folder):
    assert [r.id for r in read_rsna(folder, limit=1)] == ["b"]
    write_set(folder, "a,,,,,0\nb,5,6,10,20,1\nc,0,0,60,40,1\n")
    assert [r.id for r in read_rsna(folder, limit=1)] == ["a", "c"]
    assert len(read_rsna(folder, limit=9)) == 3
    with pytest.raises(ValueError, match="at least 1; got 0"):
        read_rsna(folder, limit=0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,5,6,ten,20,1", r"line 3 \(a\): .*'ten'"),
        ("a,5,6,nan,20,1", r"line 3 \(a\): .*nan.* is not finite"),
        ("a,5,6,0,20,1", r"line 3 \(a\): the box is empty, width 0.0 and height 20.0"),
        ("a,5,6,10,-2,1", r"line 3 \(a\): the box is empty, width 10.0 and height -2.0"),
        ("a,5,6,,20,1", r"line 3 \(a\): Target is 1 but the box is"),
        ("a,,,,,1", r"line 3 \(a\): Target is 1 but the box is"),
        ("a,5,6,10,20,0", r"line 3 \(a\): Target is 0 but there is a box"),
        ("a,5,6,10,20,2", r"line 3 \(a\): Target is '2', expected 0 or 1"),
        ("a,5,6,10", r"line 3 \(a\): Target is ''"),
        ("a,55,6,10,20,1", r"a: box .*\(55.0, 6.0, 65.0, 26.0\) leaves the image of 60 x 40"),
        ("a,-5,6,10,20,1", r"a: box .* leaves the image of 60 x 40"),
    ],
)
def test_a_wrong_row_is_an_error_that_names_file_place_and_value(folder, row, reason):
    text = LABELS.replace("a,,,,,0", row)
    (folder / "stage_2_train_labels.csv").write_text(HEADER + text)
    with pytest.raises(ValueError, match=r"stage_2_train_labels\.csv.*" + reason):
        read_rsna(folder)


def test_a_missing_column_is_an_error_that_names_it(folder):
    (folder / "stage_2_train_labels.csv").write_text("patientId,x,y,w,height,Target\na,,,,,0\n")
    with pytest.raises(
        ValueError, match=r"labels\.csv: no column width; it has patientId, x, y, w"
    ):
        read_rsna(folder)


def test_a_table_without_rows_is_an_error(folder):
    (folder / "stage_2_train_labels.csv").write_text(HEADER)
    with pytest.raises(ValueError, match=r"labels\.csv: no rows"):
        read_rsna(folder)


def test_an_id_without_a_patient_is_an_error(folder):
    (folder / "patients.csv").write_text("patientId,patient\na,anna\n")
    with pytest.raises(ValueError, match=r"patients\.csv: no patient for 2 ids \(b, c\)"):
        read_rsna(folder)


def test_ids_without_a_file_are_an_error_that_names_three_and_the_count(folder):
    with (folder / "stage_2_train_labels.csv").open("a") as file:
        file.writelines(f"lost{i},,,,,0\n" for i in range(5))
    with (folder / "patients.csv").open("a") as file:
        file.writelines(f"lost{i},x\n" for i in range(5))
    with pytest.raises(FileNotFoundError, match=r"5 ids \(lost0, lost1, lost2 and 2 more\)"):
        read_rsna(folder)


def test_a_file_that_is_no_image_is_found_when_reading_boxes(folder):
    (folder / "stage_2_train_images" / "c.dcm").write_text("lost in the download")
    with pytest.raises(DicomError, match=r"c\.dcm: not a DICOM file"):
        read_rsna(folder)


def test_a_byte_order_mark_and_spaces_do_not_matter(folder):
    text = "\ufeff" + HEADER + LABELS.replace(",", ", ")
    (folder / "stage_2_train_labels.csv").write_text(text.replace("patientId, ", "patientId,"))
    assert [record.id for record in read_rsna(folder)] == ["b", "a", "c"]


@pytest.mark.parametrize(("name", "how"), [("rsna", "kaggle"), ("synthetic", "data.synthetic")])
def test_a_missing_folder_is_an_error_that_says_how_to_get_the_data(tmp_path, name, how):
    with pytest.raises(FileNotFoundError, match=rf"nowhere: no such folder; .*{how}"):
        open_dataset(name, tmp_path / "nowhere")


def test_a_folder_without_labels_is_an_error_that_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"stage_2_train_labels\.csv: .*kaggle"):
        open_dataset("rsna", tmp_path)


def test_an_unknown_data_set_is_an_error_with_the_choices(tmp_path):
    with pytest.raises(ValueError, match=", ".join(DATASETS)):
        open_dataset("rnsa", tmp_path)


def test_the_real_tables_have_the_published_counts(real_data):
    folder = real_data / "rsna_csv"
    boxes = parse_labels(folder / "stage_2_train_labels.csv")
    patients = find_patients(folder, list(boxes))
    assert len(boxes) == 26_684
    assert sum(map(bool, boxes.values())) == 6_012
    assert sum(map(len, boxes.values())) == 9_555
    assert len(set(patients.values())) == 11_439


def test_real_files_are_read_with_their_masks_classes_and_patients(real_data):
    folder = real_data / "rsna_like"
    records = read_rsna(folder)
    rows = csv.DictReader((folder / "patients.csv").read_text().splitlines())
    people = {row["patientId"]: row["patient"] for row in rows}
    assert {r.id: r.patient for r in records} == people
    assert {r.target for r in records} == {"mask"}
    parts = split_patients(records, seed=0)
    assert sum(map(len, parts.values())) == len(set(people.values()))
    sample = load(records[0])
    np.testing.assert_array_equal(sample.findings, np.array(Image.open(records[0].mask)) > 127)
