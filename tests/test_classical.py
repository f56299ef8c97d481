"""Classical methods against scikit-image, plain loops, symmetries and drawn discs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import filters, segmentation

from pp_jax.baselines import classical, regions
from pp_jax.baselines.classical import CLASSICAL, Hint
from pp_jax.types import BACKGROUND, FOREGROUND, NEUTRAL

ROWS = tuple(CLASSICAL)
# Each grows from one place: of two findings without a mark they know one. Canny's knows both.
ONE_PLACE = ("region-growing", "flood-fill")
# Ties on ridges are broken by the order of a queue, and mixtures start from draws.
ABOUT_SYMMETRIC = ("watershed", "grabcut")


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def find(name: str, grey: np.ndarray, hint: Hint = Hint()) -> np.ndarray:  # noqa: B008
    return CLASSICAL[name].function(rgb(grey), hint)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def box_of(mask: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def clicked(box: np.ndarray | None, *points, labels=None) -> Hint:
    told = [FOREGROUND] * len(points) if labels is None else labels
    return Hint(box, np.array(points, float).reshape(-1, 2), np.array(told, int))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / max(one.sum() + other.sum(), 1)


def noisy(seed: int, shape: tuple[int, int] = (48, 56)) -> np.ndarray:
    """A bright lopsided blob in noise, so that every method finds something and nothing is tied."""
    rng = np.random.default_rng(seed)
    blob = disc(shape, (26, 22), 12) | disc(shape, (33, 27), 8)
    return np.clip(60 + 110 * blob + rng.normal(0, 12, shape), 0, 255).astype(np.uint8)


def phantom(centre: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on a ground of two dark tissues, for methods of two classes and of three."""
    shape = (72, 90)
    mask = disc(shape, centre, 20)
    ground = np.where(np.arange(90) < 45, 40, 70)
    noise = np.random.default_rng(0).normal(0, 3, shape)
    return np.where(mask, 180, ground) + noise, mask


BLOB = Hint(np.array([13, 9, 42, 36], float))


@pytest.fixture(scope="module")
def lungs(real_data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three real images, small, each with the box of a finding."""
    folder = real_data / "cxr_seg"
    pairs = []
    for path in sorted((folder / "expected").glob("*__lesion.png"))[:12]:
        image = next((folder / "images").glob(path.name.replace("__lesion.png", ".*")))
        with Image.open(path) as lesion, Image.open(image) as grey:
            mask = np.asarray(lesion.convert("L").resize((32, 30))) > 0
            if mask.any() and len(pairs) < 3:
                pairs.append((np.asarray(grey.convert("L").resize((32, 30))), box_of(mask)))
    return pairs


def window(grey: np.ndarray, box: np.ndarray) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box.astype(int)
    return slice(y0, y1), slice(x0, x1)


# Against other people's code.


@pytest.mark.parametrize("seed", range(3))
def test_otsu_and_its_many_classes_are_scikit_images(seed: int) -> None:
    grey = noisy(seed)
    part = window(grey, BLOB.box)
    inside = grey[part]
    assert np.array_equal(find("otsu", grey, BLOB)[part], inside > filters.threshold_otsu(inside))
    brightest = inside > filters.threshold_multiotsu(inside, 3)[-1]
    assert np.array_equal(find("multi-otsu", grey, BLOB)[part], brightest)


def test_otsu_growing_and_k_means_agree_with_the_libraries_on_real_images(lungs) -> None:
    assert len(lungs) == 3
    for grey, box in lungs:
        part = window(grey, box)
        inside, hint = grey[part], Hint(box)
        assert np.array_equal(
            find("otsu", grey, hint)[part], inside > filters.threshold_otsu(inside)
        )
        # Both seek the least variance within three classes; the library sums in float32.
        brightest = inside > filters.threshold_multiotsu(inside, 3)[-1]
        assert dice(find("k-means", grey, hint)[part], brightest) > 0.99
        seed = tuple(np.array(inside.shape) // 3)
        flooded = segmentation.flood(inside, seed, tolerance=int(inside.std()), connectivity=1)
        hint = clicked(box, (box[0] + seed[1], box[1] + seed[0]))
        assert np.array_equal(find("flood-fill", grey, hint)[part], flooded)
        grown = find("region-growing", grey, hint)[part]
        assert np.array_equal(grown, grown_slowly(inside, [seed], tolerance=inside.std()))


def grown_slowly(grey, seeds, *, tolerance, barred=()) -> np.ndarray:
    """All neighbours of the region at once, each asked by itself, until none joins."""
    region, refused = set(seeds) - set(barred), set(barred)
    while region:
        mean = sum(int(grey[place]) for place in region) / len(region)
        joining = {
            beside
            for y, x in region
            for beside in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if 0 <= beside[0] < grey.shape[0]
            and 0 <= beside[1] < grey.shape[1]
            and beside not in region | refused
            and abs(int(grey[beside]) - mean) < tolerance
        }
        if not joining:
            break
        region |= joining
    mask = np.zeros(grey.shape, bool)
    for place in region:
        mask[place] = True
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_a_region_grows_as_in_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 256, (12, 12), np.uint8)
    starts = [tuple(place) for place in rng.integers(0, 12, (1 + seed % 3, 2))]
    closed = [tuple(place) for place in rng.integers(0, 12, (seed % 5, 2))]
    seeds, barred = np.zeros((2, 12, 12), bool)
    for mask, places in ((seeds, starts), (barred, closed)):
        for place in places:
            mask[place] = True
    tolerance = 40 + 10 * (seed % 6)
    grown = regions.grow(grey, seeds, tolerance=tolerance, barred=barred)
    slowly = grown_slowly(grey, starts, tolerance=tolerance, barred=closed)
    assert np.array_equal(grown, slowly)


def test_what_was_refused_joins_when_the_mean_has_moved() -> None:
    grey = np.array([[130, 100, 110, 120, 125, 125]], np.uint8)
    seeds = grey == 100
    grown = regions.grow(grey, seeds, tolerance=20, barred=np.zeros_like(seeds))
    assert grown.all()


@pytest.mark.parametrize("seed", range(6))
def test_a_flood_is_scikit_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 256, (12, 12), np.uint8)
    places, nothing = rng.integers(0, 12, (2, 2)), np.zeros((12, 12), bool)
    seeds = nothing.copy()
    seeds[tuple(places.T)] = True
    want = nothing.copy()
    for place in places:
        want |= segmentation.flood(grey, tuple(place), tolerance=70, connectivity=1)
    assert np.array_equal(regions.flood(grey, seeds, tolerance=70, barred=nothing), want)


def test_a_threshold_at_the_mean_is_that() -> None:
    grey = np.array([[10, 20, 30], [40, 50, 200]])
    assert find("threshold", grey).tolist() == [[False] * 3, [False, False, True]]
    assert find("threshold", grey, Hint(np.array([0, 0, 3, 1.0])))[0].tolist() == [0, 0, 1]


def test_an_adaptive_threshold_is_the_gaussian_mean_around_each_pixel() -> None:
    grey = noisy(6)
    part = window(grey, BLOB.box)
    inside = grey[part].astype(float)
    away = np.arange(-40, 41)
    sigma = round(classical.REACH * max(inside.shape))
    weights = np.exp(-0.5 * (away / sigma) ** 2)
    weights *= np.abs(away) <= 4 * sigma
    weights /= weights.sum()
    mean = np.pad(inside, 40, mode="symmetric")
    for axis in (0, 1):
        mean = np.apply_along_axis(np.convolve, axis, mean, weights, mode="valid")
    assert np.array_equal(find("adaptive", grey, BLOB)[part], inside > mean)


# Laws of every row.


@pytest.mark.parametrize("name", ROWS)
def test_a_bright_disc_is_found_in_its_box_and_with_a_click(name: str) -> None:
    grey, mask = phantom((48, 33))
    box = box_of(mask)
    assert dice(find(name, grey, Hint(box)), mask) > 0.9
    assert dice(find(name, grey, clicked(box, (42, 30))), mask) > 0.9
    # A loose box, and a disc that the image's border cuts.
    assert dice(find(name, grey, Hint(box + np.array([-4, -4, 4, 4]))), mask) > 0.9
    grey, mask = phantom((48, 14))
    assert dice(find(name, grey, Hint(np.array([28, -6, 68, 34.0]))), mask) > 0.9


@pytest.mark.parametrize("name", ROWS)
def test_a_large_image_is_seen_small_and_its_mask_is_large(name: str) -> None:
    mask = disc((420, 600), (320, 200), 150)
    found = find(name, 50 + 120 * mask, Hint(box_of(mask)))
    assert found.shape == mask.shape
    assert dice(found, mask) > 0.95


@pytest.mark.parametrize("name", ROWS)
def test_without_a_mark_all_findings_are_found(name: str) -> None:
    one, other = disc((72, 90), (18, 20), 12), disc((72, 90), (70, 52), 14)
    found = find(name, 50 + 120 * (one | other))
    if name in ONE_PLACE:
        assert max(dice(found, one), dice(found, other)) > 0.9
    else:
        assert dice(found, one | other) > 0.9


@pytest.mark.parametrize("name", ROWS)
def test_a_mask_stays_in_its_box_and_off_the_background(name: str) -> None:
    grey = noisy(1)
    for box in ((5, 4, 40, 30), (10.6, 9.5, 30.4, 40.5), (-20, -9, 25, 21), (30, 20, 99, 80)):
        inside = np.zeros(grey.shape, bool)
        first, last = np.ceil(np.array(box).reshape(2, 2) - 0.5).clip(0).astype(int)
        inside[first[1] : last[1], first[0] : last[0]] = True
        hint = Hint(np.array(box, float))
        found = find(name, grey, hint)
        assert found.any()
        assert not (found & ~inside).any()
        rows, columns = np.nonzero(found)
        off = (columns[len(columns) // 2], rows[len(rows) // 2])
        again = find(name, grey, clicked(hint.box, off, labels=[BACKGROUND]))
        assert not again[off[::-1]]


@pytest.mark.parametrize("name", ROWS)
def test_image_and_marks_moved_together_move_the_mask(name: str) -> None:
    grey = noisy(2, (56, 56))[4:52]
    hint = clicked(BLOB.box, (24, 20), (38, 12), labels=[FOREGROUND, BACKGROUND])
    by = np.array([5, 12])
    wide = np.pad(grey, ((12, 3), (5, 9)), mode="edge")
    # Enough of the image stands around the box for all that a method shows itself.
    moved = Hint(hint.box + np.tile(by, 2), hint.points + by, hint.labels)
    found = find(name, grey, hint)
    assert found.any()
    assert np.array_equal(find(name, wide, moved)[12:-3, 5:-9], found)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("marked", [True, False])
def test_a_mirrored_image_has_the_mirrored_mask(name: str, marked: bool) -> None:
    grey = noisy(3)
    hint, mirrored = Hint(), Hint()
    if marked:
        hint = clicked(BLOB.box + np.array([0, 0, 1, 0]), (24, 20))
        x0, y0, x1, y1 = hint.box
        mirrored = clicked(np.array([56 - x1, y0, 56 - x0, y1]), (55 - 24, 20))
    found = find(name, grey, hint)
    turned = find(name, grey[:, ::-1], mirrored)[:, ::-1]
    if name in ABOUT_SYMMETRIC:
        assert dice(turned, found) > 0.95
    else:
        assert np.array_equal(turned, found)


FULL = np.array([0, 0, 9, 9.0])
DEGENERATE = {
    "a constant image": (np.full((9, 9), 77), Hint(FULL)),
    "a constant image without a mark": (np.full((9, 9), 77), Hint()),
    "two levels": (np.eye(9) * 200, Hint()),
    "one pixel": (np.full((1, 1), 200), Hint()),
    "one row": (np.arange(9)[None] * 20, Hint(np.array([2, 0, 7, 1.0]))),
    "three pixels a side": (np.arange(9).reshape(3, 3), Hint()),
    "three pixels a side, clicked": (
        np.arange(9).reshape(3, 3),
        clicked(np.array([0, 0, 3, 3.0]), (1, 1)),
    ),
    "a box of one pixel": (noisy(4, (40, 40)), Hint(np.array([20, 20, 21, 21.0]))),
    "a box of a line": (noisy(4, (40, 400)), Hint(np.array([2, 20, 398, 21.0]))),
    "a box around the image": (noisy(4, (40, 40)), Hint(np.array([-9, -9, 99, 99.0]))),
    "a click on the background alone": (
        noisy(4, (40, 40)),
        clicked(np.array([5, 5, 30, 30.0]), (17, 17), labels=[BACKGROUND]),
    ),
    "clicks beyond the box": (
        noisy(4, (40, 40)),
        clicked(np.array([5, 5, 30, 30.0]), (38, 38), (-4, 90), labels=[FOREGROUND, BACKGROUND]),
    ),
    "clicks without a box": (noisy(4, (40, 40)), clicked(None, (20, 20))),
    "no points": (noisy(4, (40, 40)), clicked(np.array([5, 5, 30, 30.0]))),
}
EMPTY = {
    "beyond the image": (50, 50, 60, 60),
    "without area": (5, 5, 5, 20),
    "turned round": (20, 20, 5, 5),
    "between centres": (5.6, 5, 6.4, 20),
}


@pytest.mark.parametrize("name", ROWS)
def test_nothing_raises_or_warns_on_a_degenerate_image_or_mark(name: str) -> None:
    for case, (grey, hint) in DEGENERATE.items():
        found = find(name, grey, hint)
        assert found.shape == grey.shape, case
        assert found.dtype == bool, case
    for case, box in EMPTY.items():
        assert not find(name, noisy(4, (40, 40)), Hint(np.array(box, float))).any(), case


@pytest.mark.parametrize("name", ROWS)
def test_a_second_call_answers_as_the_first_and_leaves_the_image_alone(name: str) -> None:
    image = rgb(noisy(5))
    image.flags.writeable = False
    first = CLASSICAL[name].function(image, BLOB)
    assert np.array_equal(CLASSICAL[name].function(image, BLOB), first)
    ignored = clicked(BLOB.box, (20, 20), labels=[NEUTRAL])
    assert np.array_equal(CLASSICAL[name].function(image, ignored), first)


# Marks.


@pytest.mark.parametrize("name", ["region-growing", "flood-fill", "canny-regions"])
def test_a_click_says_which_of_two_discs_in_the_box(name: str) -> None:
    one, other = disc((72, 90), (22, 30), 14), disc((72, 90), (64, 40), 16)
    grey, box = 50 + 120 * (one | other), box_of(one | other)
    assert dice(find(name, grey, clicked(box, (22, 30))), one) > 0.9
    assert dice(find(name, grey, clicked(box, (64, 40))), other) > 0.9
    assert dice(find(name, grey, clicked(box, (64, 40), (22, 30))), one | other) > 0.9
    padded = clicked(box, (22, 30), (64, 40), labels=[FOREGROUND, NEUTRAL])
    assert dice(find(name, grey, padded), one) > 0.9


def test_without_a_mark_edges_do_not_close_what_the_border_cuts() -> None:
    cut, whole = disc((72, 90), (20, 2), 16), disc((72, 90), (62, 44), 16)
    found = find("canny-regions", 50 + 120 * (cut | whole))
    assert dice(found, whole) > 0.9
    assert not (found & cut).any()


def test_a_middle_between_two_pixels_is_in_both() -> None:
    halves = np.tile(np.repeat([100, 200], 5), (9, 1))
    assert find("flood-fill", halves, Hint(np.array([0, 0, 10, 9.0]))).all()


def test_grabcut_without_opencv_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"opencv") as refused:
        find("grabcut", noisy(0))
    assert "\n" not in str(refused.value)


def test_rounds_of_snakes_are_even() -> None:
    """Or the state that scikit-image keeps between calls would turn."""
    assert classical.ROUNDS * classical.SNAKE_SMOOTHING % 2 == 0
