"""Classical methods against scikit-image, plain loops, symmetries and drawn discs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import feature, filters, segmentation
from sklearn.cluster import KMeans

from data.annotated import component_boxes
from pp_jax.baselines import classical, regions
from pp_jax.baselines.classical import CLASSICAL, Hint
from pp_jax.baselines.clusters import kmeans
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


LARGE = np.array([60, 40, 460, 360], float)
BLOB = Hint(np.array([13, 9, 42, 36], float))


@pytest.fixture(scope="module")
def pictures(real_data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three real images at full resolution and one of noise, each with the box of a finding."""
    folder = real_data / "cxr_seg"
    pairs = [(np.random.default_rng(0).integers(0, 256, (400, 500), np.uint8), LARGE)]
    for path in sorted((folder / "expected").glob("*__lesion.png")):
        image = next((folder / "images").glob(path.name.replace("__lesion.png", ".*")))
        with Image.open(path) as lesion, Image.open(image) as grey:
            if lesion.size == grey.size and lesion.getbbox() and len(pairs) < 4:
                box = component_boxes(np.asarray(lesion.convert("L")) > 0)[0]
                pairs.append((np.asarray(grey.convert("L")), np.array(box, float)))
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


def test_thresholds_and_flood_fill_are_scikit_images_at_full_resolution(pictures) -> None:
    assert max(grey.size for grey, _ in pictures) > 10**6
    for grey, box in pictures:
        part = window(grey, box)
        inside, hint = grey[part], Hint(box)
        assert np.array_equal(
            find("otsu", grey, hint)[part], inside > filters.threshold_otsu(inside)
        )
        brightest = inside > filters.threshold_multiotsu(inside, 3)[-1]
        assert np.array_equal(find("multi-otsu", grey, hint)[part], brightest)
        seed, hint = click_within(box)
        flooded = segmentation.flood(inside, seed, tolerance=int(inside.std()), connectivity=1)
        assert np.array_equal(find("flood-fill", grey, hint)[part], flooded)


def test_k_means_is_where_scikit_learn_stays_and_nothing_is_better(pictures) -> None:
    for grey, box in pictures:
        part = window(grey, box)
        ours = kmeans(np.bincount(grey[part].ravel(), minlength=256), 3)
        pixels = grey[part].reshape(-1, 1).astype(float)
        theirs = KMeans(3, init=ours.centres[:, None], n_init=1, tol=0).fit(pixels)
        assert np.array_equal(ours.levels[grey[part]].ravel(), theirs.labels_)
        assert ours.wcss == pytest.approx(theirs.inertia_, rel=1e-9)
        own_start = KMeans(3, init="k-means++", n_init=1, random_state=0).fit(pixels)
        assert ours.wcss <= own_start.inertia_ * (1 + 1e-9)
        brightest = (theirs.labels_ == 2).reshape(grey[part].shape)
        assert np.array_equal(find("k-means", grey, Hint(box))[part], brightest)


def test_a_region_grows_at_full_resolution_as_in_a_plain_loop(pictures) -> None:
    """The criterion of the running mean has no counterpart in scikit-image; its flood gives bounds.

    From below the flood over what the last mean admits, from above that up to the level farthest
    from the seed's.
    """
    for grey, whole in pictures:
        box = np.minimum(whole, np.tile(whole[:2] + 280, 2))  # Python takes seconds for more.
        part = window(grey, box)
        inside, (seed, hint) = grey[part], click_within(box)
        tolerance = inside.std()
        grown = find("region-growing", grey, hint)[part]
        assert np.array_equal(grown, grown_slowly(inside, [seed], tolerance=tolerance))
        near = np.abs(inside - inside[grown].mean()) < tolerance
        if near[seed]:
            assert not (segmentation.flood(near, seed, connectivity=1) & ~grown).any()
        away = np.abs(inside.astype(int) - int(inside[seed]))[grown].max()
        within = segmentation.flood(inside, seed, tolerance=int(away), connectivity=1)
        assert not (grown & ~within).any()


def test_where_the_mean_cannot_move_a_region_grows_as_a_flood(pictures) -> None:
    """Between levels of which no two differ by less than T, it stays the seed's."""
    for grey, box in pictures:
        coarse = grey[window(grey, box)] // 64 * 64
        seed, _ = click_within(box)
        seeds = np.zeros(coarse.shape, bool)
        seeds[seed] = True
        grown = regions.grow(coarse, seeds, tolerance=64, barred=np.zeros_like(seeds))
        assert np.array_equal(grown, segmentation.flood(coarse, seed, connectivity=1))


def click_within(box: np.ndarray) -> tuple[tuple[int, int], Hint]:
    """A pixel of the box's window, and the hint of a click there."""
    x0, y0, x1, y1 = box.astype(int)
    seed = (y1 - y0) // 3, (x1 - x0) // 3
    return seed, clicked(box, (x0 + seed[1], y0 + seed[0]))


def grown_slowly(grey, seeds, *, tolerance, barred=()) -> np.ndarray:
    """All neighbours of the region at once, each asked by itself, until none joins."""
    levels, (height, width) = grey.tolist(), grey.shape
    taken, joining = set(barred), set(seeds) - set(barred)
    mask, border = np.zeros(grey.shape, bool), set()
    total = count = 0
    while joining:
        for y, x in joining:
            mask[y, x] = True
            total, count = total + levels[y][x], count + 1
        taken |= joining
        around = {
            beside
            for y, x in joining
            for beside in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if 0 <= beside[0] < height and 0 <= beside[1] < width
        }
        border = (border - joining) | (around - taken)
        mean = total / count
        joining = {(y, x) for y, x in border if abs(levels[y][x] - mean) < tolerance}
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


def test_a_click_on_an_edge_stands_for_the_region_beside_it() -> None:
    """Of the two sides of an outline that is the brighter one, unless a click says otherwise."""
    shape, box = (72, 90), np.array([0, 0, 90, 72], float)
    mask = disc(shape, (45, 36), 18)
    grey = 50 + 120 * mask
    edges = feature.canny(grey / 255, classical.CANNY_SIGMA, mode="nearest")
    places = np.argwhere(edges)[::7]
    assert len(places) > 8
    for y, x in places:
        assert dice(find("canny-regions", grey, clicked(box, (x, y))), mask) > 0.9
        told = find("canny-regions", grey, clicked(box, (x, y), (4, 4)))
        assert dice(told, ~mask) > 0.97


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
