import math

import pytest

from data.facts import parse_age, parse_sex, parse_spacing


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("034Y", 34),
        ("51", 51),
        ("65.0", 65),
        (" 018M ", 1.5),
        ("002W", 2 * 7 / 365.25),
        ("010D", 10 / 365.25),
        ("155", None),  # As some of RSNA's headers say.
        ("", None),
        ("about 40", None),
        ("-3", None),
    ],
)
def test_an_age_is_in_years_or_unknown(text, years):
    assert parse_age(text) == (None if years is None else pytest.approx(years, rel=1e-3))


def test_a_sex_is_f_m_or_unknown():
    assert [parse_sex(text) for text in ("F", "male", " f ", "O", "")] == ["F", "M", "F", "", ""]


@pytest.mark.parametrize("values", [None, [0.1], [0.1, 0], [0.1, math.nan], ["a", "b"], 0.1])
def test_a_spacing_is_two_positive_numbers_or_unknown(values):
    assert parse_spacing(values) is None
    assert parse_spacing(["0.143", 0.15]) == (0.143, 0.15)
