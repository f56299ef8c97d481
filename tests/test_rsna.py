import csv
import dataclasses
import gzip
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from data import rsna
from data.dicom import DicomError, dicom_facts
from data.facts import Facts
from data.records import Record, load
from data.rsna import (
    find_files,
    find_patients,
    parse_classes,
    parse_labels,
    parse_nih,
    read_rsna,
)
from data.sources import DATASETS, open_dataset
from data.splits import split_patients
from tests.dicom_files import HEADER, write_dicom, write_set

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
        ("a,1e308,6,1e308,20,1", r"line 3 \(a\): .*1e308.* is not finite; correct or remove"),
        ("a,60,6,10,20,1", r"line 3 \(a\): .*\(60.0, 6.0, 70.0, 26.0\) lies outside .*60 x 40"),
        ("a,5,-30,10,20,1", r"line 3 \(a\): .*\(5.0, -30.0, .* lies outside .*correct or remove"),
        ("b,,,,,0", r"line 3 \(b\): Target is 0, but 1 in a row above; remove one"),
    ],
)
def test_a_wrong_row_is_an_error_that_names_file_place_and_value(folder, row, reason):
    text = LABELS.replace("a,,,,,0", row)
    (folder / "stage_2_train_labels.csv").write_text(HEADER + text)
    with pytest.raises(ValueError, match=r"stage_2_train_labels\.csv.*" + reason):
        read_rsna(folder)


def test_a_missing_column_is_an_error_that_names_it(folder):
    (folder / "stage_2_train_labels.csv").write_text("patientId,x,y,w,height,Target\na,,,,,0\n")
    with pytest.raises(ValueError, match=r"labels\.csv: needs the columns .*: no column width$"):
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


def test_a_row_that_stands_twice_counts_once_and_is_noted(folder):
    (folder / "stage_2_train_labels.csv").write_text(
        HEADER + LABELS + "a,,,,,0\nb,30.0,1,20,8.0,1\nc,0,0,60,40,1\nc,0,0,60,39,1\n"
    )
    records = read_rsna(folder)
    assert [len(record.boxes) for record in records] == [2, 0, 2]
    assert ["duplicate row" in record.notes for record in records] == [True, True, True]


def test_a_box_half_outside_is_cut_at_the_edge_and_noted(folder):
    rows = "b,-5.5,30,10,20,1\nb,1,2,3,4,1\na,50,-1,10.5,6,1\nc,0,0,60,40,1\n"
    (folder / "stage_2_train_labels.csv").write_text(HEADER + rows)
    records = read_rsna(folder)
    assert [record.boxes for record in records] == [
        ((0, 30, 4.5, 40), (1, 2, 4, 6)),
        ((50, 0, 60, 5),),
        ((0, 0, 60, 40),),
    ]
    assert [record.notes.count("box clipped") for record in records] == [1, 1, 0]
    assert load(records[1]).objects.sum() == 50


@pytest.mark.parametrize(
    "name",
    ["../../x", "..", ".", "", "/etc/x", "p/x", "p\\x", "..\\x", "C:x", "x\x07", "x\x00y", "x/"],
)
def test_an_id_that_is_no_plain_file_name_is_refused(folder, name):
    write_dicom(folder.parent / "x.dcm", np.zeros((40, 60), np.uint8))  # "../../x.dcm"
    text = HEADER + LABELS + f"{name},1,1,2,2,1\n"
    (folder / "stage_2_train_labels.csv").write_text(text)
    with pytest.raises(ValueError, match=r"labels\.csv, line 6: patientId '.*' is no plain file"):
        read_rsna(folder)


def test_dots_and_spaces_within_an_id_are_harmless(folder):
    write_set(folder, "1.2..840 b,,,,,0\n")
    (folder / "patients.csv").write_text("patientId,patient\n1.2..840 b,p\n")
    assert [record.id for record in read_rsna(folder)] == ["1.2..840 b"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("a,Normal\na,Lung Opacity\n", r"line 3 \(a\): class 'Lung Opacity', but 'Normal' in"),
        ("a,normal\n", r"line 2 \(a\): unknown class 'normal'; choose from 'Normal', 'No Lung"),
        ("a\n", r"line 2 \(a\): unknown class ''"),
    ],
)
def test_classes_that_disagree_or_are_unknown_are_an_error(folder, rows, reason):
    (folder / "stage_2_detailed_class_info.csv").write_text("patientId,class\n" + rows)
    with pytest.raises(ValueError, match=r"class_info\.csv, " + reason):
        read_rsna(folder)


def test_a_table_that_is_no_text_is_an_error(folder):
    (folder / "patients.csv").write_bytes(b"patientId,patient\na,\xff\n")
    with pytest.raises(ValueError, match=r"patients\.csv: not a CSV in UTF-8"):
        read_rsna(folder)


# The headers.


def test_facts_come_from_the_header_with_notes_of_what_is_odd(folder):
    said = {"ViewPosition": "PA", "PatientSex": "F", "PatientAge": "051Y"}
    pixels = np.zeros((40, 60), np.uint16)
    images = folder / "stage_2_train_images"
    spaced = {"PixelSpacing": [0.14, 0.2]}
    write_dicom(images / "b.dcm", pixels, BitsStored=12, **said, **spaced)
    write_dicom(images / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **spaced)
    b, a, c = read_rsna(folder)
    assert b.facts == Facts(view="PA", sex="F", age=51, spacing=(0.14, 0.2), bits=12)
    assert a.facts == Facts(spacing=(0.14, 0.2), bits=16, inverted=True)
    assert c.facts == Facts(bits=8)
    assert [record.notes for record in (b, a, c)] == [(), ("inverted",), ("no spacing",)]


def test_each_chosen_header_is_read_once(folder, monkeypatch):
    read = []

    def counted(path):
        read.append(path.stem)
        return dicom_facts(path)

    monkeypatch.setattr(rsna, "dicom_facts", counted)
    write_set(folder, "a,1,1,5,5,1\na,2,2,5,5,1\nb,,,,,0\nc,,,,,0\n")
    read_rsna(folder, limit=1)
    assert read == ["a", "c"]


# The archive.


def pack(folder, archive, *, root=""):
    """Everything in the folder moves into the archive, below `root`."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path != archive:
                packed.write(path, root + path.relative_to(folder).as_posix())
                path.unlink()


def contents(records):
    """What can be told without saying where the files lie."""
    rest = [dataclasses.replace(record, image=None, mask=None) for record in records]
    return rest, [load(record).image.tolist() for record in records]


@pytest.mark.parametrize("root", ["", "stage 2/all/"])
@pytest.mark.parametrize("name", ["rsna-pneumonia-detection-challenge.zip", "mine.zip"])
def test_a_packed_set_reads_as_the_unpacked_one(folder, name, root):
    (folder / "masks").mkdir()
    Image.fromarray(np.eye(40, 60, dtype=np.uint8) * 255).save(folder / "masks" / "c.png")
    (folder / "stage_2_detailed_class_info.csv").write_text("patientId,class\na,Normal\n")
    want = contents(read_rsna(folder))
    pack(folder, folder / name, root=root)
    assert contents(read_rsna(folder)) == want
    assert contents(read_rsna(folder / name)) == want
    assert load(read_rsna(folder)[2]).findings.sum() == 40


def test_what_lies_beside_the_archive_counts_first(folder):
    pack(folder, folder / "all.zip")
    (folder / "stage_2_train_labels.csv").write_text(HEADER + "c,,,,,0\na,,,,,0\n")
    (folder / "patients.csv").write_text("patientId,patient\na,dora\nc,emil\n")
    assert [(r.id, r.patient, r.boxes) for r in read_rsna(folder)] == [
        ("c", "emil", ()),
        ("a", "dora", ()),
    ]


def test_an_unpacked_set_is_read_without_opening_archives(folder):
    (folder / "rsna-pneumonia-detection-challenge.zip").write_bytes(b"PK half a download")
    assert len(read_rsna(folder)) == 3


def test_archives_that_are_damaged_or_several_or_hold_no_labels_are_errors(folder):
    pack(folder, folder / "one.zip")
    shutil.copy(folder / "one.zip", folder / "two.zip")
    with pytest.raises(ValueError, match=r"one\.zip/.*labels\.csv and .*two\.zip/.*several sets"):
        read_rsna(folder)
    kaggle = folder / "rsna-pneumonia-detection-challenge.zip"
    shutil.copy(folder / "one.zip", kaggle)
    assert str(find_files(folder)["patients.csv"]) == f"{kaggle}/patients.csv"
    kaggle.unlink()
    (folder / "two.zip").write_bytes((folder / "one.zip").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"two\.zip: not a whole zip archive"):
        read_rsna(folder)
    with zipfile.ZipFile(folder / "empty.zip", "w"):
        pass
    with pytest.raises(FileNotFoundError, match=r"labels\.csv: .*nor a zip archive.*kaggle"):
        read_rsna(folder / "empty.zip")


# Patients.


def write_map(folder, *rows):
    (folder / "patients.csv").unlink(missing_ok=True)
    (folder / "rsna_to_nih.csv").write_text("\n".join(["patientId,nih_image,mse", *rows]))


def test_patients_that_one_image_may_show_are_one_named_by_the_smallest(folder):
    write_map(
        folder,
        "a,00000012_001.png,1",
        "a,00000030_000.png,2",
        "b,00000030_004.png,1",
        "b,00000007_000.png,3",
        "c,00000031_000.png,1",
    )
    records = {record.id: record for record in read_rsna(folder)}
    assert [records[name].patient for name in "abc"] == ["00000007", "00000007", "00000031"]
    assert [("doubtful patient" in records[name].notes) for name in "abc"] == [True, True, False]


@pytest.mark.parametrize(
    ("rows", "doubtful"),
    [
        (("a,1_1.png,10", "b,1_2.png,0", "c,2_1.png,7.2"), ""),
        (("a,1_1.png,10.5", "b,1_2.png,0", "c,2_1.png,nan"), "ac"),
        (("a,1_1.png,1", "b,1_1.png,90", "c,2_1.png,1"), "ab"),
        (("a,1_1.png,1", "a,1_1.png,1", "b,3_1.png,", "c,2_1.png,1"), ""),
        (("a,1_1.png,1", "a,1_2.png,1", "b,3_1.png,", "c,2_1.png,1"), "a"),
    ],
)
def test_an_id_is_doubtful_by_its_error_or_by_more_than_one_pairing(folder, rows, doubtful):
    write_map(folder, *rows)
    noted = {record.id for record in read_rsna(folder) if "doubtful patient" in record.notes}
    assert noted == set(doubtful)


def test_groups_are_the_connected_components_of_images_and_patients(tmp_path):
    rng = np.random.default_rng(0)
    pairs = np.stack([rng.permutation(300), rng.integers(0, 200, 300)], axis=1)
    pairs = np.concatenate([pairs, rng.integers(0, 200, (60, 2))])
    rows = [f"{image},{patient:03}_{place}.png," for place, (image, patient) in enumerate(pairs)]
    write_map(tmp_path, *rows)
    patients = parse_nih(tmp_path / "rsna_to_nih.csv").patients
    graph = sparse.coo_array((np.ones(360), (pairs[:, 0], 300 + pairs[:, 1])), shape=(500, 500))
    _, component = csgraph.connected_components(graph, directed=False)
    for image, patient in patients.items():
        shown = [
            f"{other:03}"
            for other in pairs[:, 1]
            if component[int(image)] == component[300 + other]
        ]
        assert patient == min(shown)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,chest.png,1", r"line 2 \(a\): nih_image is 'chest.png', expected e.g. 00019124_092"),
        ("a,00000001_001.png,low", r"line 2 \(a\): mse: 'low' is no number"),
        ("a,,1", r"no patient for 1 ids \(a\)"),
    ],
)
def test_a_wrong_row_of_the_map_is_an_error(folder, row, reason):
    write_map(folder, row, "b,1_1.png,1", "c,1_2.png,1")
    with pytest.raises(ValueError, match=r"rsna_to_nih\.csv.*" + reason):
        read_rsna(folder)


def test_two_patients_for_one_id_are_an_error(folder):
    (folder / "patients.csv").write_text(PATIENTS + "b,carl\n")
    with pytest.raises(ValueError, match=r"patients\.csv, line 5 \(b\): patient 'carl', but 'ben'"):
        read_rsna(folder)


# The real ones.


@pytest.fixture(scope="module")
def real_tables(real_data):
    """Labels, classes, people and views, from the CSVs alone."""
    files = find_files(real_data / "rsna_csv")
    labels = parse_labels(files["stage_2_train_labels.csv"])
    classes = parse_classes(files["stage_2_detailed_class_info.csv"])
    path = real_data / "rsna_csv" / "kaggle_stage_2_train_images_dicom_headers.csv.gz"
    with gzip.open(path, "rt") as file:
        views = {row["PatientID"]: row["ViewPosition"] for row in csv.DictReader(file)}
    return labels, classes, find_patients(files, list(labels)), views


def test_the_real_tables_have_the_published_counts(real_tables):
    labels, classes, _, views = real_tables
    assert len(labels) == len(classes) == len(views) == 26_684
    boxes = [len(labelled.boxes) for labelled in labels.values()]
    assert (sum(map(bool, boxes)), sum(boxes)) == (6_012, 9_555)
    assert {name for name in labels if labels[name].boxes} == {
        name for name in classes if classes[name] == "Lung Opacity"
    }


def test_doubtful_ids_join_no_patients_of_the_real_map_which_gives_one_file_each(
    real_tables, real_data
):
    people = real_tables[2]
    rows = csv.DictReader((real_data / "rsna_csv" / "rsna_to_nih.csv").read_text().splitlines())
    assert people.patients == {row["patientId"]: row["nih_image"][:8] for row in rows}
    assert len(set(people.patients.values())) == 11_439
    # 98 match no NIH file, 42 share one with another, 22 of these are among the 98.
    assert len(people.doubtful) == 98 + 42 - 22


def test_real_labels_are_split_by_patient_with_equal_shares_of_class_and_view(real_tables):
    labels, classes, people, views = real_tables
    records = [
        Record(
            name,
            people.patients[name],
            Path("unread"),
            labels[name].boxes,
            None,
            "box",
            classes[name],
            Facts(view=views[name]),
            ("doubtful patient",) if name in people.doubtful else (),
        )
        for name in labels
    ]
    unknown = {people.patients[name] for name in people.doubtful}
    for seed, fractions in ((0, (0.7, 0.1, 0.2)), (1, (0.8, 0.05, 0.15))):
        _, validation, test = fractions
        parts = split_patients(records, seed=seed, validation=validation, test=test)
        counts = Counter(name for names in parts.values() for name in names)
        assert counts.keys() == set(people.patients.values())
        assert set(counts.values()) == {1}
        assert unknown <= set(parts["train"])
        part_of = {name: part for part, names in parts.items() for name in names}
        parted = np.array([part_of[people.patients[name]] for name in labels])
        for values in (classes, views):
            column = np.array([values[name] for name in labels])
            for value in set(values.values()):
                for part in parts:
                    share = np.mean(column[parted == part] == value)
                    assert abs(share - np.mean(column == value)) < 0.01
        sizes = [np.mean(parted == part) for part in parts]
        np.testing.assert_allclose(sizes, fractions, atol=0.01)
