"""The table of data sets, and what is written of it."""

import re
from itertools import permutations
from pathlib import Path

import pytest

from data.sources import DATASETS, check_apart, check_located, open_dataset

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_stands_on_the_page_with_its_licence_and_how_to_get_it(name):
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert DATASETS[name].licence in row
    obtain = DATASETS[name].obtain.replace("DIR", f"datasets/{name}")
    assert all(part in row for part in re.findall(r"`[^`]+`|https://\S+", obtain))
    assert all(source in row for source in DATASETS[name].source_of)


@pytest.mark.parametrize("name", DATASETS)
def test_a_folder_that_is_not_there_is_an_error_that_says_how_to_get_the_data(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        open_dataset(name, tmp_path / "none")
    obtain = DATASETS[name].obtain.replace("DIR", str(tmp_path / "none"))
    assert str(caught.value) == f"{tmp_path / 'none'}: no such folder; {obtain}"


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_is_one_clear_line(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        open_dataset(name, tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_sets_of_one_source_do_not_test_each_other():
    related = {("rsna", "nih"), ("cxr_seg", "rsna_like")}
    related |= {pair[::-1] for pair in related}
    for pair in permutations(DATASETS, 2):
        if pair in related:
            with pytest.raises(ValueError, match=f"trained on {pair[0]}, tested on {pair[1]}"):
                check_apart(*pair)
        else:
            check_apart(*pair)
    for name in DATASETS:
        check_apart(name, name)
    with pytest.raises(ValueError, match="both are made of nih-chestxray14"):
        check_apart("nih", "rsna")
    with pytest.raises(ValueError, match="unknown data set 'mnist'; choose from synthetic"):
        check_apart("mnist", "rsna")


def test_a_label_is_refused_where_there_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"cxr_seg has no labels .*'lung'.*; folder, nih have"):
        open_dataset("cxr_seg", tmp_path, label="lung")


def test_a_set_that_marks_nothing_is_no_target():
    for name in DATASETS:
        if name == "brain_yes_no":
            with pytest.raises(ValueError, match=r"brain_yes_no says what .* not where"):
                check_located(name)
        else:
            check_located(name)
