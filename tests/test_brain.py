"""Brain MRI: pictures with an answer, and slices with a mask."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.records import load
from data.sources import open_dataset


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def answers(tmp_path) -> Path:
    for answer, name, kind in (
        ("yes", "Y1.jpg", "JPEG"),
        ("yes", "Y2.JPG", "PNG"),
        ("no", "Y1.jpg", "JPEG"),
        ("no", "1 no.jpeg", "JPEG"),
    ):
        (tmp_path / answer).mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), (9, 9, 9)).save(tmp_path / answer / name, format=kind)
    rows = "yes/Y1.jpg,a,0\nyes/Y2.JPG,a,1\nno/Y1.jpg,b,0\nno/1 no.jpeg,c,0\n"
    (tmp_path / "duplicates.csv").write_text("file,dup_group,redundant\n" + rows)
    return tmp_path


def test_a_picture_has_an_answer_and_nothing_marked(answers):
    records = open_dataset("brain_yes_no", answers)
    assert [(r.id, r.label, r.patient) for r in records] == [
        ("yes-Y1.jpg", "yes", "a"),
        ("yes-Y2.JPG", "yes", "a"),
        ("no-1 no.jpeg", "no", "c"),
        ("no-Y1.jpg", "no", "b"),
    ]
    assert [r.notes for r in records] == [(), ("PNG named .jpg", "duplicate"), (), ()]
    assert all((r.boxes, r.mask) == ((), None) for r in records)
    assert load(records[1]).image.shape == (20, 30, 3)
    assert [r.id for r in open_dataset("brain_yes_no", answers, limit=2)] == [
        "yes-Y1.jpg",
        "yes-Y2.JPG",
        "no-1 no.jpeg",
    ]


def test_without_groups_of_duplicates_there_is_a_warning(answers):
    (answers / "duplicates.csv").unlink()
    with pytest.warns(UserWarning, match=r"duplicates\.csv: no such file .* may be in two"):
        records = open_dataset("brain_yes_no", answers)
    assert len({record.patient for record in records}) == 4


BROKEN = {
    r"no: no such folder; .*kaggle": lambda f: (
        [p.unlink() for p in (f / "no").iterdir()] and (f / "no").rmdir()
    ),
    r"duplicates\.csv: no dup_group for 1 images \(first: yes/Y3\.png\)": lambda f: Image.new(
        "L", (3, 3)
    ).save(f / "yes" / "Y3.png"),
    r"yes/Y1\.jpg: not a readable picture": lambda f: (f / "yes" / "Y1.jpg").write_bytes(b"x"),
    r"duplicates\.csv: needs the columns file,dup_group": lambda f: (
        f / "duplicates.csv"
    ).write_text("file\n"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_answers_are_an_error_that_names_the_file(answers, message):
    BROKEN[message](answers)
    with pytest.raises((ValueError, OSError), match=message):
        open_dataset("brain_yes_no", answers)


def test_the_real_pictures_have_their_answers_groups_and_belied_names(real_data):
    folder = real_data / "brain_yes_no"
    rows = rows_of(folder / "duplicates.csv")
    records = {f"{r.label}/{r.image.name}": r for r in open_dataset("brain_yes_no", folder)}
    assert {row["file"]: (row["label"], row["dup_group"]) for row in rows} == {
        name: (record.label, record.patient) for name, record in records.items()
    }
    notes = Counter(note for record in records.values() for note in record.notes)
    png = sum(
        (folder / row["file"]).read_bytes()[1:4] == b"PNG"
        for row in rows
        if not row["file"].endswith(".png")
    )
    assert notes == {
        "duplicate": sum(row["redundant"] == "1" for row in rows),
        "PNG named .jpg": png,
    }
    assert len({record.id for record in records.values()}) == 151


def test_the_real_slices_have_their_heads_and_tumours(real_data):
    folder = real_data / "brain_seg"
    groups = {Path(r["image"]).stem: r["group"] for r in rows_of(folder / "groups.csv")}
    records = open_dataset("brain_seg", folder)
    assert {record.id: record.patient for record in records} == groups
    for record in records[::6]:
        want = np.asarray(Image.open(folder / "masks" / f"{record.id}.png").convert("L")) > 127
        np.testing.assert_array_equal(load(record).findings, want)
        assert want.any()
        assert record.boxes


def test_slices_need_masks_and_heads(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "1.png")
    with (
        pytest.raises(FileNotFoundError, match=r"masks/1\.png: no mask for"),
        pytest.warns(UserWarning, match=r"groups\.csv: no such file \(columns image,group\)"),
    ):
        open_dataset("brain_seg", tmp_path)
