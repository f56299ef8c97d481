"""What was finished stays finished, wherever an evaluation is killed."""

import json
import os

import pytest

from pp_jax.evaluate.journal import SETTINGS, close, open_journal, write_line

ONE, TWO = ("a, b", "", "set", "1"), ("ä", "s0", "set", "2")


def journal_of(folder, settings=None):
    return open_journal(folder, settings or {"seed": 1, "path": folder})


def filled(folder):
    book = journal_of(folder)
    write_line(book, ONE, {"objects": [{"dice": 0.1 + 0.2, "sex": "♀", "age": None}]})
    write_line(book, TWO, {"objects": []})
    return book


def test_lines_come_back_to_the_last_bit(tmp_path):
    book = filled(tmp_path / "x")
    again = journal_of(tmp_path / "x")
    assert again == book
    assert list(again.done) == [ONE, TWO]
    assert again.done[ONE]["objects"][0] == {"dice": 0.30000000000000004, "sex": "♀", "age": None}


def test_settings_stand_before_the_first_line(tmp_path):
    journal_of(tmp_path / "a" / "x", {"b": (1, 2), "a": None})
    assert json.loads((tmp_path / "a" / "x" / SETTINGS).read_text()) == {"b": [1, 2], "a": None}


def test_wherever_the_last_line_is_cut_the_first_is_kept_and_the_next_fits(tmp_path):
    path = filled(tmp_path / "x").path
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        book = journal_of(tmp_path / "x")
        assert list(book.done) == [ONE]
        write_line(book, TWO, {"objects": []})
        assert path.read_bytes() == whole


def test_a_line_that_a_crash_left_as_zeros_is_made_again(tmp_path):
    path = filled(tmp_path / "x").path
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[:first] + bytes(20) + b"\n")
    assert list(journal_of(tmp_path / "x").done) == [ONE]
    assert path.read_bytes() == whole[:first]


@pytest.mark.parametrize("spoil", ["other settings", "no settings", "half of the settings"])
def test_what_was_made_under_other_settings_is_gone(tmp_path, spoil):
    filled(tmp_path / "x")
    (tmp_path / "x" / "overlays").mkdir()
    settings = {"seed": 1, "path": tmp_path / "x"}
    if spoil == "other settings":
        settings["seed"] = 2
    elif spoil == "no settings":
        (tmp_path / "x" / SETTINGS).unlink()
    else:
        os.truncate(tmp_path / "x" / SETTINGS, 5)
    assert journal_of(tmp_path / "x", settings).done == {}
    assert [path.name for path in (tmp_path / "x").iterdir()] == [SETTINGS]


def test_a_figure_that_is_not_finite_never_reaches_the_file(tmp_path):
    book = journal_of(tmp_path / "x")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_line(book, ONE, {"dice": float("nan")})
    assert not book.path.exists()
    assert book.done == {}


def test_a_closed_journal_leaves_the_settings(tmp_path):
    close(filled(tmp_path / "x"))
    assert [path.name for path in (tmp_path / "x").iterdir()] == [SETTINGS]
