"""Rows of an evaluation: what is read back is what was written, and no file is half there."""

import csv

import numpy as np
import pytest

from pp_jax.evaluate.files import put, put_text, read_rows, write_rows

ROWS = [
    {
        **{"method": 'a "quoted", name', "seed": "", "id": "007", "patient": "1e5", "view": ""},
        **{"age": None, "dice": 0.1 + 0.2, "tp": 3, "predicted_iou": None, "finite": True},
    },
    {
        **{"method": "zwölf\nlines", "seed": "0", "id": "None", "patient": "", "view": "PA"},
        **{"age": 1.5, "dice": 1e-300, "tp": 0, "predicted_iou": 1.0, "finite": False},
    },
]


def test_rows_come_back_with_their_types_and_every_digit(tmp_path):
    write_rows(tmp_path / "rows.csv", ROWS)
    back = read_rows(tmp_path / "rows.csv")
    assert back == ROWS
    assert [[type(one) for one in row.values()] for row in back] == [
        [type(one) for one in row.values()] for row in ROWS
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "rows.csv"]


def test_other_programs_read_the_rows_too(tmp_path):
    write_rows(tmp_path / "rows.csv", ROWS)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert [row["method"] for row in back] == ['a "quoted", name', "zwölf\nlines"]
    assert [row["dice"] for row in back] == ["0.30000000000000004", "1e-300"]
    assert [row["predicted_iou"] for row in back] == ["", "1.0"]


def test_rows_that_fail_leave_the_old_file_whole(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("old")

    class Unprintable:
        def __str__(self):
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_rows(path, [{"a": 1}, {"a": Unprintable()}])
    with pytest.raises(ValueError, match=r"rows.csv has the columns \['b'\], the first \['a'\]"):
        write_rows(path, [{"a": 1}, {"b": 2}])
    with pytest.raises(ValueError, match="no rows"):
        write_rows(path, [])
    with pytest.raises(OSError, match="disk"):
        put(path, lambda temporary: (temporary.write_text("new"), fail()))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def fail():
    raise OSError("disk")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan")])
def test_a_number_that_is_none_is_refused_by_name(tmp_path, value):
    with pytest.raises(ValueError, match=r"row 1 for .*rows.csv: dice is (nan|inf)"):
        write_rows(tmp_path / "rows.csv", [{"dice": 1.0}, {"dice": value}])
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_named_with_its_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,dice\na,0.5\nb\n")
    with pytest.raises(ValueError, match=r"rows.csv, line 3: 1 cells for 2 columns"):
        read_rows(path)
    with pytest.raises(FileNotFoundError, match=r"missing.csv: no such table"):
        read_rows(tmp_path / "missing.csv")


def test_text_keeps_its_line_ends(tmp_path):
    put_text(tmp_path / "text", "ä\r\nb\n")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa4\r\nb\n"
