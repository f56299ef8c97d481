"""The figures of a small set that is known to the pixel."""

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.facts import Facts
from data.fingerprint import age_group, fingerprint, to_json
from data.images import read_any
from data.measures import Measures, Unreadable, look, measure, position_map, spread
from data.page import page
from data.records import Record
from data.rsna import read_rsna
from data.sheet import choose, draw_tile, outline
from tests.test_duplicates import drawn

SIZE = (96, 64)


def record(folder: Path, name: str, *, pixels: np.ndarray, **more: object) -> Record:
    """One on disk; `mask` is an array."""
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    if (mask := more.pop("mask", None)) is not None:
        Image.fromarray(np.uint8(255) * mask).save(folder / f"{name}-mask.png")
        more["mask"] = folder / f"{name}-mask.png"
    plain = {"patient": name, "boxes": (), "mask": None, "target": "mask", "label": "none"}
    return Record(id=name, image=path, **(plain | more))


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    grey = [drawn(seed, size=SIZE) for seed in range(4)]
    colour = np.stack([grey[1], grey[2], grey[3]], axis=2)
    alpha = np.dstack([grey[2]] * 3 + [np.full(SIZE, 9, np.uint8)])
    two = square(10, 10, 20) | square(60, 30, 10)
    boxes = ((10.0, 10.0, 30.0, 30.0), (30.0, 60.0, 40.0, 70.0))
    film = Facts(view="PA", sex="F", age=61.5, spacing=(3.0, 3.0), licence="CC0")
    small = Facts(view="AP", sex="F", age=19.9, spacing=(1.0, 1.0), inverted=True, bits=12)
    made = [
        record(tmp_path, "a", pixels=grey[0], mask=two, boxes=boxes, facts=film, label="ill"),
        record(tmp_path, "b", pixels=colour, patient="a", facts=small, notes=("box clipped",)),
        record(tmp_path, "c", pixels=alpha, notes=("box clipped", "spacing missing")),
        record(tmp_path, "d", pixels=grey[0], mask=square(0, 0, 48), boxes=((0, 0, 48, 48),)),
        record(tmp_path, "e", pixels=grey[3].astype(np.uint16) * 257),
        record(tmp_path, "f", pixels=grey[3]),
        record(tmp_path, "g", pixels=grey[3]),
    ]
    made[5].image.write_bytes(made[5].image.read_bytes()[:200])
    made[6] = dataclasses.replace(made[6], boxes=((0.0, 0.0, 65.0, 9.0),), target="box")
    return made


@pytest.fixture
def figures(records: list[Record]) -> dict:
    return fingerprint(records, [measure(x) for x in records], name="small", licence="ours")


def test_counts_are_those_of_the_set(figures: dict) -> None:
    assert (figures["images"], figures["patients"]) == (7, 6)
    assert figures["images_per_patient"] == {"min": 1, "median": 1, "max": 2}
    assert [one["id"] for one in figures["unreadable"]] == ["f", "g"]
    assert figures["unreadable"][0]["reason"].startswith("not a readable picture")
    assert "leaves the image of 64 x 96" in figures["unreadable"][1]["reason"]
    assert figures["sizes"]["height"] == {"min": 96, "median": 96, "max": 96}
    assert figures["sizes"]["most_common"] == {"64 x 96": 5}
    assert figures["modes"] == {"L": 2, "I;16": 1, "RGB": 1, "RGBA": 1}
    assert (figures["grey"], figures["alpha"]) == (4, 1)
    assert figures["bits"] == {"8": 3, "12": 1, "16": 1}
    assert figures["labels"] == {"none": 4, "ill": 1}
    assert figures["targets"] == {"mask": 2}
    assert figures["spacing"]["known"] == 2
    assert figures["spacing"]["plausible"] == 1  # 288 mm; the other one has 96.
    assert figures["licences"] == {"unknown": 4, "CC0": 1}
    assert figures["licence"] == "ours"
    assert figures["notes"] == {"box clipped": 2, "spacing missing": 1}
    assert figures["polarity"]["monochrome1"] == 1


def test_the_balance_counts_each_image_once_a_column(figures: dict) -> None:
    view = figures["balance"]["view"]
    assert view["PA"] == {"images": 1, "with_finding": 1, "labels": {"ill": 1}}
    assert view["AP"] == {"images": 1, "with_finding": 0, "labels": {"none": 1}}
    assert figures["balance"]["sex"]["F"]["images"] == 2
    assert {group: one["images"] for group, one in figures["balance"]["age"].items()} == {
        "0-19": 1,
        "60-79": 1,
        "unknown": 3,
    }


def test_objects_are_counted_and_measured(figures: dict) -> None:
    objects, pixels = figures["objects"], SIZE[0] * SIZE[1]
    assert objects["total"] == 3
    assert objects["per_image"] == {"0": 3, "1": 1, "2": 1}
    assert objects["images_with_finding"] == 2
    shares = {name: round(value * pixels) for name, value in objects["share_of_image"].items()}
    assert shares == {"min": 100, "median": 400, "max": 48 * 48}


def test_positions_are_the_mean_over_the_images_with_a_finding(figures: dict) -> None:
    masks = [square(10, 10, 20) | square(60, 30, 10), square(0, 0, 48)]
    cells = np.mean([mask.reshape(32, 3, 32, 2).mean((1, 3)) for mask in masks], axis=0)
    np.testing.assert_allclose(figures["positions"], cells, atol=1e-4)


def test_a_position_map_keeps_the_share_of_any_size() -> None:
    rng = np.random.default_rng(0)
    for size in ((32, 32), (97, 61), (20, 300)):
        findings = rng.random(size) < 0.3
        assert position_map(findings).mean() == pytest.approx(findings.mean(), abs=2e-3)


def test_copies_are_grouped_and_told_if_of_several_patients_or_answers(figures: dict) -> None:
    exact, near = figures["duplicates"]["exact"], figures["duplicates"]["near"]
    assert exact["ids"] == [["a", "d"]]
    assert (exact["groups"], exact["redundant"]) == (1, 1)
    assert (exact["several_patients"], exact["several_answers"]) == (1, 1)
    assert ["a", "d"] in near["ids"]


def test_grey_levels_are_percentiles_averaged_over_images(figures: dict, records: list) -> None:
    levels = []
    for one in records[:5]:
        red, green, blue = np.moveaxis(read_any(one.image).astype(float), 2, 0)
        luma = np.floor(0.299 * red + 0.587 * green + 0.114 * blue + 0.5)
        levels.append(np.sort(luma.ravel())[[len(luma.ravel()) // 2 - 1, len(luma.ravel()) // 2]])
    medians = np.mean(levels, axis=1)
    found = figures["intensity"]["p50"]
    assert found["mean"] == pytest.approx(medians.mean(), abs=0.3)
    assert found["std"] == pytest.approx(medians.std(), abs=0.3)


def test_an_audit_of_a_few_images_is_refused(figures: dict) -> None:
    assert figures["shortcuts"]["positive"] == "a finding is marked"
    assert "10 are needed" in figures["shortcuts"]["outer_frame"]["refused"]


def test_the_file_holds_what_was_measured_and_the_page_says_it(figures: dict) -> None:
    assert json.loads(to_json(figures)) == figures
    text = page(figures)
    for told in (
        "| images | 7, 2 of them unreadable |",
        "| pixel spacing known | 2 images, 1 of them plausible for a chest film",
        "| 2 | box clipped |",
        "| 3 | pixel spacing unknown |",
        "| 2 | unreadable: f: not a readable picture",
        "| the same pixels | 1 | 1 | 1 | 1 |",
        "- a = d",
    ):
        assert told in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| 0 |" not in text.split("## Warnings")[1]
    assert all(line.endswith("|") for line in rows)


def test_what_did_not_happen_is_no_warning(records: list[Record]) -> None:
    text = page(fingerprint(records[:1], [measure(records[0])], name="one", licence=""))
    told = text.split("## Warnings")[1]
    assert "spacing" not in told
    assert "unreadable" not in told
    assert "copies" not in told


def test_a_set_without_one_readable_image_names_the_first_reason(records: list[Record]) -> None:
    lost = records[5:]
    with pytest.raises(ValueError, match="none of 2 images can be read, f: not a readable"):
        fingerprint(lost, [measure(x) for x in lost], name="small", licence="")


def test_of_a_film_and_its_negative_the_negative_looks_inverted(data: Path, tmp_path: Path) -> None:
    films = read_rsna(data)[:6]
    made = []
    for film in films:
        pixels = read_any(film.image)[..., 0]
        made.append(record(tmp_path, film.id, pixels=pixels))
        made.append(record(tmp_path, f"{film.id}-negative", pixels=255 - pixels))
    figures = fingerprint(made, [measure(x) for x in made], name="films", licence="")
    assert figures["polarity"]["ids"] == [f"{film.id}-negative" for film in films]
    assert {tuple(ids) for ids in figures["duplicates"]["near"]["ids"]} == {
        (film.id, f"{film.id}-negative") for film in films
    }


def test_a_dicom_has_its_photometric_interpretation_and_bits(data: Path) -> None:
    one = measure(read_rsna(data)[0])
    assert (one.mode, one.bits, one.alpha, one.grey) == ("MONOCHROME2", 8, False, True)


def test_warnings_of_one_kind_count_together(tmp_path: Path) -> None:
    """A box without a component is warned of with its numbers and its file."""
    made = [
        record(
            tmp_path,
            name,
            pixels=drawn(1, size=SIZE),
            mask=square(0, 0, 9),
            boxes=((0, 0, 9, 9), (20.0 + i, 20, 30, 30)),
        )
        for i, name in enumerate("xy")
    ]
    notes = Counter(note for one in made for note in measure(one).notes)
    assert list(notes.values()) == [2]
    assert next(iter(notes)).startswith("nothing is marked inside box")


def test_looking_at_an_image_sees_what_measuring_it_does(records: list[Record]) -> None:
    for one in records[:5]:
        seen, measured = look(one), measure(one)
        assert isinstance(measured, Measures)
        assert seen.digest == measured.appearance.digest
        np.testing.assert_array_equal(seen.thumbnail, measured.appearance.thumbnail)
    assert isinstance(look(records[5]), Unreadable)


@pytest.mark.parametrize(
    ("age", "group"),
    [(None, "unknown"), (0, "0-19"), (19.99, "0-19"), (20, "20-39"), (79, "60-79"), (80, "80+")],
)
def test_age_groups(age: float | None, group: str) -> None:
    assert age_group(age) == group


@pytest.mark.parametrize(("positive", "count"), [(3, 8), (50, 8), (0, 8), (60, 24), (30, 100)])
def test_a_sample_is_half_and_half_as_far_as_there_are(positive: int, count: int) -> None:
    found = [i % 2 == 0 and i < 2 * positive for i in range(60)]
    rows = choose(found, count=count)
    assert rows == sorted(set(rows))
    assert len(rows) == min(count, 60)
    there = sum(found)
    fewest = min(there, 60 - there, count // 2)
    drawn_positive = sum(found[row] for row in rows)
    assert min(drawn_positive, len(rows) - drawn_positive) >= fewest
    assert rows == choose(found, count=count)


def test_an_outline_is_the_edge_of_the_mask_in_the_small_picture() -> None:
    edge = outline(square(24, 16, 33), size=(32, 48))  # Half; the edge covers half cells.
    expected = np.zeros((48, 32), bool)
    expected[12:28, 8:24] = True
    expected[13:27, 9:23] = False
    np.testing.assert_array_equal(edge, expected)


def test_a_tile_shows_the_box_where_it_lies(records: list[Record]) -> None:
    tile = draw_tile(records[0])
    assert tile.lines == ("ill · PA", "a")
    assert tile.picture.shape == (240, 160, 3)
    blue = (tile.picture == (86, 180, 233)).all(2)
    rows, columns = np.flatnonzero(blue.any(1)), np.flatnonzero(blue.any(0))
    assert (rows[0], rows[-1]) == (25, 174)  # From 10 to 70, x 2.5.
    assert (columns[0], columns[-1]) == (25, 99)  # From 10 to 40.


def die(record: Record) -> None:
    os._exit(9)


def test_a_killed_worker_ends_in_one_line_that_says_what_to_do(tmp_path):
    one = record(tmp_path, "a", pixels=np.zeros(SIZE, np.uint8))
    with pytest.raises(OSError, match=r"killed.* fewer --workers") as caught:
        spread(die, [one], workers=1, title="reading")
    assert "\n" not in str(caught.value)
