"""Which images a run may be scored on."""

from dataclasses import replace
from pathlib import Path

import pytest

from data import sources
from data.held_out import Fitted, find_sets, unknown_to, unseen
from data.records import Record

PATIENTS = {"train": ["p", "q"], "validation": ["r"], "test": ["s"]}
IMAGES = {"train": ["a", "b", "c"], "validation": ["d"], "test": ["e"]}
SHOWN = dict(zip("abcdef", "pqqrst", strict=True))  # Whom each image shows.


def fitted(*, data: str = "folder", where: str = "x", prefix: str = "", images=IMAGES) -> Fitted:
    """A run on data sets, in the first of which names have a prefix."""
    patients, images = (
        {part: [prefix + name for name in names] for part, names in parts.items()}
        for parts in (PATIENTS, images)
    )
    return Fitted("RUN", sources.name_sets(data, where), patients, images)


def known(people: dict[str, str]) -> list[Record]:
    return [Record(i, p, Path(i), ((0, 0, 1, 1),), None, "box", "") for i, p in people.items()]


def scored(run: Fitted, people: dict[str, str], *, data: str = "folder", where: str = "copy", **of):
    found = unseen(known(people), sources.name_sets(data, where), run, **({"part": "test"} | of))
    return "".join(sorted(found))


@pytest.mark.parametrize(
    ("part", "wanted"), [("train", "abc"), ("validation", "d"), ("test", "e"), ("all", "abcdef")]
)
def test_of_its_own_data_a_run_is_scored_on_a_part(part, wanted):
    assert scored(fitted(), SHOWN, where="x", part=part) == wanted
    # The same folder by another way.
    assert scored(fitted(), SHOWN, where="y/../x", part=part) == wanted


def test_images_that_a_hold_out_left_out_are_in_no_part_of_their_patient():
    """Of an old run nothing is known but its patients."""
    people = SHOWN | {"g": "p", "h": "s"}
    assert scored(fitted(), people, where="x", part="train") == "abc"
    assert scored(fitted(), people, where="x", part="test") == "e"
    assert scored(fitted(), people, where="x", part="all") == "abcdefgh"
    assert scored(fitted(images={}), people, where="x", part="train") == "abcg"


@pytest.mark.parametrize("prefix", ["", "rsna."])
def test_of_a_copy_of_its_data_a_run_is_scored_without_whom_it_was_fitted_on(prefix):
    more = {"data": "rsna,brain_seg", "where": "x,y", "prefix": prefix} if prefix else {}
    run = fitted(**({"data": "rsna"} | more))
    with pytest.warns(UserWarning, match="4 of 6 images are left out: RUN was trained or valid"):
        assert scored(run, SHOWN, data="rsna") == "ef"
    # Without a map of the patients each image is one, and is known by its id.
    with pytest.warns(UserWarning, match="4 of 6"):
        assert scored(run, {name: name for name in "abcdef"}, data="rsna") == "ef"
    # And whom an id shows is left out with all images.
    with pytest.warns(UserWarning, match="2 of 3"):
        assert scored(run, {"a": "w", "g": "w", "h": "v"}, data="rsna") == "h"


@pytest.mark.parametrize("part", ["test", "all"])
def test_another_folder_is_a_copy_if_it_has_most_of_the_images(part):
    with pytest.warns(UserWarning, match="4 of 6"):
        assert scored(fitted(), SHOWN, part=part) == "ef"
    # Three names of four are not the run's: another folder, of other people.
    assert scored(fitted(), {"a": "p", "x": "q", "y": "z"}, part=part) == "axy"


def test_of_a_copy_beside_other_data_only_the_copy_is_thinned():
    run = fitted(data="rsna")
    everything = [
        replace(one, id=f"{name}.{one.id}", patient=f"{name}.{one.patient}", dataset=name)
        for name in ("rsna", "brain_seg")
        for one in known(SHOWN)
    ]
    sets = sources.name_sets("rsna,brain_seg", "copy,b")
    with pytest.warns(UserWarning, match="4 of 12"):
        found = unseen(everything, sets, run, part="test")
    assert found == {"rsna.e", "rsna.f", *(f"brain_seg.{name}" for name in "abcdef")}


def test_whom_a_run_began_from_does_not_know_are_all_but_those_it_was_fitted_on():
    own = sources.name_sets("folder", "x")
    with pytest.warns(UserWarning, match="5 of 8"):
        found = unknown_to(known(SHOWN | {"g": "p", "h": "u"}), own, fitted())
    assert found == set("efh")


# Data sets.


def test_other_data_are_scored_whole_and_mixtures_of_own_and_other_not_at_all():
    run = sources.name_sets("synthetic", "a")
    other = sources.name_sets("synthetic", "b")
    assert find_sets(other, [run]) == find_sets(other, []) == {"": ("synthetic", Path("b"))}
    with pytest.raises(ValueError, match="trained on synthetic alone; score them apart"):
        find_sets(sources.name_sets("synthetic,synthetic", "a,b"), [run])


def test_sets_go_by_the_names_of_the_first_run_that_has_them():
    plain, mixed = sources.name_sets("rsna", "a"), sources.name_sets("folder,rsna", "f,a")
    asked = sources.name_sets("rsna", "./a")
    other = sources.name_sets("brain_seg", "b")
    assert list(find_sets(asked, [other, mixed, plain])) == ["rsna"]
    assert list(find_sets(asked, [plain, mixed])) == [""]


def test_data_that_share_pictures_with_any_run_are_refused():
    asked = sources.name_sets("rsna_like", "r")
    apart, mixed = sources.name_sets("folder", "f"), sources.name_sets("brain_seg,cxr_seg", "b,c")
    assert find_sets(asked, [apart]) == asked
    for fitted_on in ([mixed], [apart, mixed], [asked, mixed]):
        with pytest.raises(ValueError, match="trained on cxr_seg, tested on rsna_like"):
            find_sets(asked, fitted_on)
