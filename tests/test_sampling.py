from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data.records import Record
from data.sampling import order_rows

BOX = ((0.0, 0.0, 1.0, 1.0),)


def named(**sets):
    """Records of data sets, given as counts of images with and without a finding."""
    return [
        Record(f"{name}{n}", "p", Path("x"), BOX * (n < found), None, "box", "", dataset=name)
        for name, (found, empty) in sets.items()
        for n in range(found + empty)
    ]


def shown(records, count, *, start=0, **how):
    """The rows at `count` positions from `start` on."""
    asked = {"batch": 1, "seed": 0, "mix": {}, "balance": False} | how
    order = order_rows(records, range(len(records)), **asked)
    return [order[position] for position in range(start, start + count)]


def epochs(rows, size):
    return [tuple(rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)]


@pytest.mark.parametrize(
    "mix",
    [{"a": 2, "b": 1}, {"a": 3, "b": 7}, {"a": 5, "b": 1, "c": 3}, {"a": 1, "b": 1}, {"b": 4}],
)
def test_every_cycle_holds_the_exact_shares_evenly_spread(mix):
    records = named(**{name: (70, 30) for name in mix})
    cycle = sum(mix.values())
    sets = [records[row].dataset for row in shown(records, 20 * cycle, mix=mix)]
    for first in range(0, len(sets), cycle):
        held = sets[first : first + cycle]
        assert {name: held.count(name) for name in mix} == mix
    for name, weight in mix.items():
        counts = np.cumsum([found == name for found in sets])
        fair = np.arange(1, len(sets) + 1) * weight / cycle
        assert np.abs(counts - fair).max() < 1


@pytest.mark.parametrize("balance", [False, True])
def test_each_stream_shows_all_its_images_before_any_again_and_then_in_another_order(balance):
    records = named(a=(50, 30), b=(40, 45))
    rows = shown(records, 900, mix={"a": 2, "b": 1}, balance=balance)
    classes = [(True,), (False,)] if balance else [(True, False)]
    for name in ("a", "b"):
        for kinds in classes:
            own = {
                row
                for row, record in enumerate(records)
                if record.dataset == name and bool(record.boxes) in kinds
            }
            passes = epochs([row for row in rows if row in own], len(own))
            assert len(passes) >= 3
            assert all(set(once) == own for once in passes)
            assert len(set(passes)) == len(passes)


def test_images_with_and_without_a_finding_take_turns():
    records = named(a=(30, 400))
    found = [bool(records[row].boxes) for row in shown(records, 300, balance=True)]
    assert found == [True, False] * 150


def test_both_classes_are_mixed_by_the_weights():
    records = named(a=(60, 40), b=(30, 90))
    rows = shown(records, 300, mix={"a": 1, "b": 2}, balance=True)
    for turns in (rows[::2], rows[1::2]):
        for first in range(0, 150, 3):
            assert sorted(records[row].dataset for row in turns[first : first + 3]) == list("abb")
    assert [bool(records[row].boxes) for row in rows] == [True, False] * 150


def test_without_weights_every_image_is_shown_as_often_as_any_other():
    records = named(a=(50, 30), b=(10, 10))
    passes = epochs(shown(records, 500), len(records))
    assert all(set(once) == set(range(100)) for once in passes)
    assert len(set(passes)) == 5


@pytest.mark.parametrize("how", [{}, {"mix": {"a": 2, "b": 1}}, {"balance": True}])
def test_a_position_holds_the_same_whatever_was_read_before(how):
    records = named(a=(50, 30), b=(40, 70))
    whole = shown(records, 200, **how)
    assert shown(records, 50, start=150, **how) == whole[150:]
    assert shown(records, 200, **how) == whole
    assert shown(records, 200, seed=1, **how) != whole


def test_the_order_of_a_set_does_not_depend_on_what_it_is_mixed_with():
    one, other = named(a=(50, 30), b=(40, 70)), named(a=(50, 30), b=(60, 20))
    mix = {"a": 2, "b": 1}
    kept = [[row for row in shown(rs, 300, mix=mix) if row < 80] for rs in (one, other)]
    assert kept[0] == kept[1]


def test_sets_of_one_size_and_seeds_side_by_side_do_not_share_their_orders():
    records = named(a=(30, 0), b=(30, 0))
    rows = shown(records, 60, mix={"a": 1, "b": 1})
    assert rows[::2] != [row - 30 for row in rows[1::2]]
    later = shown(records, 60, mix={"a": 1, "b": 1}, seed=1)
    assert rows[::2] != later[::2]
    classes = shown(named(a=(30, 30)), 60, balance=True)
    assert classes[::2] != [row - 30 for row in classes[1::2]]


def test_a_mixed_stream_has_no_end_that_a_training_could_reach():
    order = order_rows(
        named(a=(5, 3), b=(4, 7)),
        range(19),
        batch=4,
        seed=0,
        mix={"a": 2, "b": 1},
        balance=True,
    )
    stream = order[1::2].batch(4)[1 << 32 :].to_iter_dataset()
    assert len(list(islice(stream, 3))) == 3


@pytest.mark.parametrize(
    ("sets", "how", "message"),
    [
        ({"a": (3, 0)}, {"balance": True}, "--balance: 3 images with a finding and 0 without"),
        (
            {"a": (3, 2), "b": (0, 7)},
            {"mix": {"a": 1, "b": 1}, "balance": True},
            "--balance: data set b: 0 images with a finding and 7 without",
        ),
        ({"a": (3, 2)}, {"mix": {"a": 1, "b": 1}}, "--mix: data set b: no image to train on"),
    ],
)
def test_a_share_without_images_is_an_error_that_names_counts(sets, how, message):
    with pytest.raises(ValueError, match=message):
        shown(named(**sets), 1, **how)
