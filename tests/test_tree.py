"""Parameter trees and the rules over them."""

import pytest

from pp_jax import tree

NESTED = {"encoder": {"blocks_00": {"kernel": 1, "bias": 2}, "pos": 3}, "decoder": {"kernel": 4}}
FLAT = {
    "decoder/kernel": 4,
    "encoder/blocks_00/bias": 2,
    "encoder/blocks_00/kernel": 1,
    "encoder/pos": 3,
}


def test_paths_are_keys_joined_by_slashes_in_sorted_order() -> None:
    assert list(tree.flatten(NESTED).items()) == list(FLAT.items())
    assert tree.unflatten(FLAT) == NESTED


def test_the_first_rule_that_matches_the_whole_path_decides() -> None:
    rules = ((".*/bias", "b"), ("encoder/.*", "e"), (".*", "rest"))
    assert list(tree.match(rules, list(FLAT)).values()) == ["rest", "b", "e", "e"]
    # `decoder` alone is a part of a path, not a whole one.
    with pytest.raises(ValueError, match="decoder/kernel"):
        tree.match((("decoder", 0), ("encoder/.*", 1)), list(FLAT))


def test_a_path_without_a_rule_is_named() -> None:
    with pytest.raises(ValueError, match=r"no rule covers 'encoder/pos'.*\.\*/kernel"):
        tree.match(((".*/kernel", 0), (".*/bias", 1)), list(FLAT))


@pytest.mark.parametrize(
    "rules",
    [
        (("encoder/.*", 0), ("encodr/.*", 1), (".*", 2)),  # Matches nothing.
        (("encoder/.*", 0), ("encoder/pos", 1), (".*", 2)),  # Never reached.
        ((".*", 0), ("decoder/.*", 1)),
        (("(en|de)coder/.*", 0), (".*", 1), (".*", 2)),  # A catch-all may be idle at the end only.
    ],
)
def test_a_rule_that_decides_nothing_is_named(rules: tuple) -> None:
    with pytest.raises(ValueError, match="match no parameter") as caught:
        tree.match(rules, list(FLAT))
    assert repr(rules[1][0]) in str(caught.value)


def test_only_a_final_catch_all_may_be_idle() -> None:
    assert set(tree.match((("encoder/.*|decoder/.*", 0), (".*", 1)), list(FLAT)).values()) == {0}


def test_combine_undoes_partition() -> None:
    chosen, rest = tree.partition(NESTED, ((".*/kernel", True), (".*", False)))
    assert chosen == {"encoder": {"blocks_00": {"kernel": 1}}, "decoder": {"kernel": 4}}
    assert rest == {"encoder": {"blocks_00": {"bias": 2}, "pos": 3}}
    assert tree.combine(chosen, rest) == tree.combine(rest, chosen) == NESTED


def test_combine_refuses_a_leaf_that_two_trees_hold() -> None:
    with pytest.raises(ValueError, match="decoder/kernel"):
        tree.combine(NESTED, {"decoder": {"kernel": 5}})
