"""NIH ChestX-ray14's layout, on files written here."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.records import load
from data.sources import open_dataset

# As the NIH writes it: brackets that hold commas, and an empty last column.
ENTRY = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
BOX = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
ROWS = {
    "00000001_000.png": "Infiltration|Effusion,0,1,058Y,M,PA,2682,2749,0.143,0.143,",
    "00000001_001.png": "No Finding,1,1,58,M,AP,2894,2729,0.143,0.143,",
    "00000002_000.png": "Effusion,0,2,414,F,PA,2500,2048,0.168,0.168,",
    "00000003_000.png": "Pneumonia,0,3,45,F,PA,2500,2048,0.168,0.168,",
    "00000004_000.png": "No Finding,0,4,45,F,PA,2500,2048,0.168,0.168,",
}
BOXES = (
    "00000001_000.png,Infiltrate,10.5,20,30,40,,,\n"
    "00000003_000.png,Pneumonia,50,60,20,10,,,\n"
    "00000003_000.png,Pneumonia,90,90,20,5,,,\n"
)
LEFT_OUT = pytest.mark.filterwarnings("ignore:.*left out")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four of five images of 100 x 100, in two folders."""
    for number, name in enumerate(list(ROWS)[:4]):
        part = tmp_path / f"images_00{number % 2 + 1}" / "images"
        part.mkdir(parents=True, exist_ok=True)
        Image.new("L", (100, 100), 7).save(part / name)
    entries = "".join(f"{name},{row}\n" for name, row in ROWS.items())
    (tmp_path / "Data_Entry_2017.csv").write_text(ENTRY + entries)
    (tmp_path / "BBox_List_2017.csv").write_text(BOX + BOXES)
    return tmp_path


def read(folder: Path, **options):
    return {record.id: record for record in open_dataset("nih", folder, **options)}


@LEFT_OUT
def test_images_whose_findings_have_places_are_read_and_boxes_clipped(folder):
    records = read(folder)
    assert list(records) == ["00000001_000", "00000001_001", "00000003_000"]
    first, normal, third = records.values()
    assert first.boxes == ((10.5, 20.0, 40.5, 60.0),)
    assert (first.label, first.notes) == ("Infiltration", ("finding without box: Effusion",))
    assert (normal.boxes, normal.label, normal.notes) == ((), "No Finding", ())
    assert third.boxes == ((50.0, 60.0, 70.0, 70.0), (90.0, 90.0, 100.0, 95.0))
    assert third.notes == ("box clipped",)
    assert {(r.target, r.mask) for r in records.values()} == {("box", None)}
    assert [r.patient for r in records.values()] == ["1", "1", "3"]
    assert load(third).objects.sum((1, 2)).tolist() == [200, 50]


@LEFT_OUT
def test_facts_are_those_of_the_entry_and_no_spacing_is_believed(folder):
    first, normal, _ = read(folder).values()
    assert (first.facts.view, first.facts.sex, first.facts.age) == ("PA", "M", 58.0)
    assert (normal.facts.view, normal.facts.age, normal.facts.spacing) == ("AP", 58.0, None)


def test_what_is_left_out_is_counted(folder):
    with (
        pytest.warns(UserWarning, match=r"no file for 1 \(00000004_000\.png\) images, left out"),
        pytest.warns(UserWarning, match=r"1 \(00000002_000\.png\) images have a finding and no"),
    ):
        read(folder)


@LEFT_OUT
def test_one_finding_makes_images_with_others_alone_negative(folder):
    records = read(folder, label="Pneumonia")
    assert {name: len(r.boxes) for name, r in records.items()} == {
        "00000001_000": 0,
        "00000001_001": 0,
        "00000002_000": 0,
        "00000003_000": 2,
    }
    assert list(read(folder, label="Effusion")) == ["00000001_001", "00000003_000"]
    with pytest.raises(
        ValueError, match="no 'Cough'; choose from Effusion, Infiltration, Pneumonia"
    ):
        read(folder, label="Cough")


@LEFT_OUT
def test_limit_counts_patients_and_one_folder_of_images_will_do(folder):
    (folder / "images").mkdir()
    for path in folder.glob("images_*/images/*.png"):
        path.rename(folder / "images" / path.name)
    (folder / "Data_Entry_2017.csv").rename(folder / "Data_Entry_2017_v2020.csv")
    assert list(read(folder, limit=1)) == ["00000001_000", "00000001_001"]
    image = load(next(iter(read(folder).values()))).image
    np.testing.assert_array_equal(image, np.full((100, 100, 3), 7))


def entries(*rows: str) -> bytes:
    return (ENTRY + "\n".join(rows)).encode()


BROKEN = {
    r"Data_Entry_2017\.csv: no such file; .*nihcc": ("Data_Entry_2017.csv", None),
    r"BBox_List_2017\.csv: no such file": ("BBox_List_2017.csv", None),
    r"Data_Entry_2017\.csv: needs the columns Image Index": ("Data_Entry_2017.csv", b"a,b\n"),
    r"line 3: a second row for 00000001_000\.png": (
        "Data_Entry_2017.csv",
        entries(*["00000001_000.png,No Finding,0,1"] * 2),
    ),
    r"line 2 \(00000001_000\.png\): .*Patient ID must be filled": (
        "Data_Entry_2017.csv",
        entries("00000001_000.png,No Finding,0,"),
    ),
    r"line 2 \(y\.png\): no row in Data_Entry": (
        "BBox_List_2017.csv",
        f"{BOX}y.png,A,1,1,1,1".encode(),
    ),
    r"line 2 .*could not convert .*'wide' in the box": (
        "BBox_List_2017.csv",
        f"{BOX}00000003_000.png,Pneumonia,1,1,wide,1".encode(),
    ),
    r"line 2 .*the box \(1\.0, nan, 4\.0, nan\) is not finite": (
        "BBox_List_2017.csv",
        f"{BOX}00000003_000.png,Pneumonia,1,nan,3,3".encode(),
    ),
    r"line 2 .*lies outside of the image of 100 x 100": (
        "BBox_List_2017.csv",
        f"{BOX}00000003_000.png,Pneumonia,100,5,3,3".encode(),
    ),
}


@LEFT_OUT
def test_a_set_without_images_says_where_they_are(folder):
    for path in folder.glob("images_*/images/*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"images: none of the images of .*nihcc"):
        read(folder)


@LEFT_OUT
@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_set_is_an_error_that_names_file_and_line(folder, message):
    name, content = BROKEN[message]
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        read(folder)
