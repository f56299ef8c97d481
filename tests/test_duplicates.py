"""Copies are found however they were changed, and nothing else is."""

import csv
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data import duplicates
from data.duplicates import (
    NEAR,
    SIDE,
    TURNS,
    appearance,
    components,
    details,
    equal_pairs,
    near_pairs,
    near_pairs_within,
    perceptual_hash,
    without_margins,
)
from data.images import read_any

COUNT = 6


def drawn(seed: int, *, size: tuple[int, int] = (210, 170)) -> np.ndarray:
    """A grey picture with detail at several scales, none of its lines uniform."""
    rng = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(rng.normal(size=size), s) * s for s in (2, 6, 20)]
    levels = np.sum(layers, axis=0)
    return np.interp(levels, np.percentile(levels, (1, 99)), (20, 235)).astype(np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def thumbnails(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([appearance(rgb(picture)).thumbnail for picture in pictures])


def scaled(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def as_jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file))


def in_a_frame(picture: np.ndarray, level: int) -> np.ndarray:
    return np.pad(picture, ((31, 9), (0, 55)), constant_values=level)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda x: x,
    "smaller": lambda x: scaled(x, 105, 85),
    "larger": lambda x: scaled(x, 420, 340),
    "stretched to a square": lambda x: scaled(x, 256, 256),
    "in a black frame": lambda x: in_a_frame(x, 0),
    "in a white frame": lambda x: in_a_frame(x, 255),
    "recompressed": as_jpeg,
    "framed, scaled and recompressed": lambda x: as_jpeg(scaled(in_a_frame(x, 0), 300, 300)),
    "without contrast": lambda x: (x * 0.6 + 40).astype(np.uint8),
    "with another gamma": lambda x: (255 * (x / 255) ** 0.7).astype(np.uint8),
    "less 1 % at each side": lambda x: x[2:-2, 2:-2],
}


@pytest.mark.parametrize("name", COPIES)
def test_each_copy_is_found_and_no_other_picture(name: str) -> None:
    pictures = [drawn(seed) for seed in range(COUNT)]
    found = near_pairs(thumbnails(pictures), thumbnails([COPIES[name](x) for x in pictures]))
    assert [pair[:2] for pair in found] == [(i, i) for i in range(COUNT)]
    assert all(pair.correlation >= NEAR and pair.turned == "upright" for pair in found)


def test_a_negative_is_found_with_a_negative_correlation() -> None:
    pictures = [drawn(seed) for seed in range(COUNT)]
    found = near_pairs(thumbnails(pictures), thumbnails([255 - x for x in pictures]))
    assert [pair[:2] for pair in found] == [(i, i) for i in range(COUNT)]
    assert all(pair.correlation < -0.99 for pair in found)


@pytest.mark.parametrize("name", TURNS)
def test_a_turned_copy_is_found_if_looked_for_and_the_turn_undoes_it(name: str) -> None:
    picture = drawn(0, size=(180, 180))
    back = TURNS[name]
    turned = next(
        t(picture[None])[0] for t in TURNS.values() if (back(t(picture[None])) == picture).all()
    )
    first, second = thumbnails([picture, drawn(1)]), thumbnails([drawn(2), np.array(turned)])
    (pair,) = near_pairs(first, second, turns=tuple(TURNS))
    assert pair[:2] == (0, 1)
    assert pair.turned == name
    assert bool(near_pairs(first, second)) == (name == "upright")


def test_turns_do_what_their_names_say() -> None:
    picture = np.array([[[1, 2], [3, 4]]])
    assert TURNS["turned left"](picture).tolist() == [[[2, 4], [1, 3]]]
    assert TURNS["turned right"](picture).tolist() == [[[3, 1], [4, 2]]]
    assert TURNS["mirrored"](picture).tolist() == [[[2, 1], [4, 3]]]
    assert TURNS["mirrored, upside down"](picture).tolist() == [[[3, 4], [1, 2]]]


def test_near_pairs_are_those_that_a_plain_loop_finds() -> None:
    rng = np.random.default_rng(3)
    first = thumbnails([drawn(seed) for seed in range(8)])
    noisy = np.clip(
        first + rng.normal(0, np.linspace(1, 60, 8)[:, None, None], first.shape), 0, 255
    )
    second = noisy.round().astype(np.uint8)

    def fine(picture: np.ndarray) -> np.ndarray:
        levels = picture.astype(np.float64)
        return (levels - ndimage.gaussian_filter(levels, 1.0)).ravel()

    plain = {
        (i, j): r
        for i, one in enumerate(first)
        for j, other in enumerate(second)
        if abs(r := np.corrcoef(fine(one), fine(other))[0, 1]) >= 0.85
    }
    found = {pair[:2]: pair.correlation for pair in near_pairs(first, second)}
    assert 0 < len(plain) < 8  # The loudest noise hides a picture.
    assert found.keys() == plain.keys()
    for rows, correlation in found.items():
        assert correlation == pytest.approx(plain[rows], abs=1e-3)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = thumbnails([drawn(seed % 4) for seed in range(11)])
    whole = near_pairs_within(pictures)
    monkeypatch.setattr(duplicates, "_ROWS", 3)
    assert near_pairs_within(pictures) == whole
    expected = [(i, j) for i in range(11) for j in range(i + 1, 11) if i % 4 == j % 4]
    assert [pair[:2] for pair in whole] == expected


def test_uniform_pictures_are_near_nothing() -> None:
    flat = np.stack([np.full((SIDE, SIDE), level, np.uint8) for level in range(256)])
    assert not near_pairs(flat, flat)
    assert not details(flat).any()


def test_a_hash_of_a_negative_has_the_other_bits() -> None:
    pictures = thumbnails([drawn(seed) for seed in range(COUNT)])
    same = (perceptual_hash(pictures) == perceptual_hash(255 - pictures)).sum(1)
    assert (same <= 1).all()  # The median's own bit.
    assert (perceptual_hash(pictures).sum(1) == 31).all()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_margins_are_cut_to_the_pixel(level: int) -> None:
    picture = drawn(5)
    np.testing.assert_array_equal(without_margins(in_a_frame(picture, level)), picture)
    flat = np.full((7, 9), level, np.uint8)
    np.testing.assert_array_equal(without_margins(flat), flat)


def test_digests_are_equal_for_equal_pixels_of_equal_shape_alone() -> None:
    black = np.zeros((4, 6, 3), np.uint8)
    other = black.copy()
    other[3, 5, 2] = 1
    digests = [appearance(x).digest for x in (black, black.copy(), other, black.reshape(6, 4, 3))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert equal_pairs(digests, digests[:2]) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_components_are_the_classes_of_the_transitive_closure() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 30, (17, 2)).tolist()
    reach = np.eye(30, dtype=bool)
    for i, j in pairs:
        reach[i, j] = reach[j, i] = True
    for _ in range(5):
        reach = reach @ reach
    found = components(30, [tuple(pair) for pair in pairs])
    np.testing.assert_array_equal(found[:, None] == found, reach)


def test_thumbnails_have_one_size() -> None:
    for size in ((1, 1), (3, 500), (210, 170)):
        assert appearance(rgb(drawn(0, size=size))).thumbnail.shape == (SIDE, SIDE)


# Pictures that are the same, though the list does not say so: the margins differ.
UNLISTED = {
    ("yes/Y61.jpg", "yes/Y71.JPG"),
    ("yes/Y112.JPG", "yes/Y146.JPG"),
    ("yes/Y160.JPG", "yes/Y50.JPG"),
}


def test_copies_among_real_heads_are_those_of_the_list_and_three_that_it_lacks(real_data) -> None:
    folder = real_data / "brain_yes_no"
    rows = list(csv.DictReader((folder / "duplicates.csv").read_text().splitlines()))
    seen = np.stack([appearance(read_any(folder / row["file"])).thumbnail for row in rows])
    listed = {
        (one["file"], other["file"])
        for i, one in enumerate(rows)
        for other in rows[i + 1 :]
        if one["dup_group"] == other["dup_group"]
    }
    found = {(rows[i]["file"], rows[j]["file"]) for i, j, *_ in near_pairs_within(seen)}
    assert len(listed) == 33
    assert listed <= found
    assert {tuple(sorted(pair)) for pair in found - listed} == {tuple(sorted(x)) for x in UNLISTED}
