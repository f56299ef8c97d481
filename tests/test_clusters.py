"""Optimal clusters of grey levels, the choice of their number, and the front that draws them."""

import csv
import time
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures
from sklearn.cluster import KMeans
from sklearn.metrics import calinski_harabasz_score, silhouette_score

from pp_jax.baselines import __main__ as front
from pp_jax.baselines.clusters import (
    CRITERIA,
    KS,
    Selection,
    average,
    calinski_harabasz,
    colour_mask,
    kmeans,
    kmeans_all,
    select,
    silhouette,
)
from pp_jax.preprocess.kmeans import PALETTE, colour_labels

RNG = np.random.default_rng(0)
LEVELS = np.arange(256)


def mixed(*parts: tuple[int, int, int]) -> np.ndarray:
    """A histogram of (mean, deviation, pixels)."""
    drawn = [RNG.normal(mean, deviation, count) for mean, deviation, count in parts]
    return np.bincount(np.clip(np.concatenate(drawn).round(), 0, 255).astype(int), minlength=256)


HISTOGRAMS = {
    "three humps": mixed((30, 9, 4000), (110, 20, 2500), (200, 12, 900)),
    "noise": RNG.integers(0, 4000, 256),
    "camera": np.bincount(pictures.camera().ravel(), minlength=256),
    "moon": np.bincount(pictures.moon().ravel(), minlength=256),
}


def squares(values: np.ndarray) -> float:
    return float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    """An image of few pixels, for what looks at pairs of them."""
    return np.concatenate(
        [RNG.normal(mean, 9, (5, 20)) for mean in (40, 120, 130, 220)]
    ).round().clip(0, 255).astype(np.uint8)  # fmt: skip


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_scikit_learn_finds_nothing_better_from_any_start_and_stays_at_ours(name):
    histogram = HISTOGRAMS[name]
    everything = kmeans_all(histogram, 6)
    for k in (2, 3, 6):
        ours = everything[k - 1]
        drawn = KMeans(k, n_init=8, tol=0, random_state=0)
        drawn.fit(LEVELS[:, None], sample_weight=histogram)
        assert ours.wcss <= drawn.inertia_ * (1 + 1e-9)
        # Lloyd's steps end at the first clusters that stay; some starts end at the best ones.
        assert drawn.inertia_ < ours.wcss * (1 + (1e-9 if name == "camera" and k < 6 else 1e-2))
        told = KMeans(k, n_init=1, init=ours.centres[:, None], tol=0)
        told.fit(LEVELS[:, None], sample_weight=histogram)
        assert ours.wcss == pytest.approx(told.inertia_, rel=1e-9)
        np.testing.assert_array_equal(ours.levels, told.labels_)


def test_no_cut_of_a_tiny_histogram_has_a_lower_sum():
    for _ in range(30):
        histogram = RNG.integers(0, 5, 9) * (RNG.random(9) < 0.8)
        values = np.repeat(np.arange(9), histogram)
        for k in range(1, 6):
            least = min(
                sum(squares(values[(values >= a) & (values < b)]) for a, b in pairwise(ends))
                for cuts in combinations(range(1, 9), k - 1)
                for ends in [(0, *cuts, 9)]
            )
            assert kmeans(histogram, k).wcss == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_sums_are_those_of_the_pixels_and_add_up_to_the_total(name):
    histogram = HISTOGRAMS[name] // 20  # Pixels one by one.
    pixels = np.repeat(LEVELS, histogram)
    for found in kmeans_all(histogram, 7):
        own = found.levels[pixels]
        groups = [pixels[own == cluster] for cluster in range(len(found.centres))]
        between = sum(len(g) * (g.mean() - pixels.mean()) ** 2 for g in groups)
        np.testing.assert_allclose(found.centres, [g.mean() for g in groups], rtol=1e-12)
        assert found.wcss == pytest.approx(sum(map(squares, groups)), rel=1e-9)
        assert found.bcss == pytest.approx(between, rel=1e-9, abs=1e-6)
        assert found.wcss + found.bcss == pytest.approx(squares(pixels), rel=1e-12)


def test_every_level_has_the_nearest_centre_even_without_pixels():
    histogram = HISTOGRAMS["three humps"] * (RNG.random(256) < 0.2)
    for found in kmeans_all(histogram, 8):
        nearest = np.abs(LEVELS[:, None] - found.centres).argmin(1)
        np.testing.assert_array_equal(found.levels, nearest)


def test_a_constant_on_all_levels_shifts_the_centres_and_nothing_else():
    histogram = RNG.integers(0, 300, 180)
    shifted = np.pad(histogram, (70, 0))
    for here, there in zip(kmeans_all(histogram, 9), kmeans_all(shifted, 9), strict=True):
        assert (here.wcss, here.bcss) == (there.wcss, there.bcss)
        np.testing.assert_allclose(here.centres + 70, there.centres, rtol=1e-14)
        np.testing.assert_array_equal(here.levels, there.levels[70:])
    one, other = select(histogram), select(shifted)
    assert one.chosen == other.chosen
    np.testing.assert_allclose(one.silhouette, other.silhouette, rtol=1e-9)


def test_sums_of_a_huge_image_keep_their_digits():
    histogram = np.zeros(65536, int)
    histogram[[65000, 65001, 65534]] = 2**29, 2**29, 2**20 - 1
    assert kmeans(histogram, 2).wcss == 2**28


@pytest.mark.parametrize("k", [3, 9])
def test_too_few_levels_are_one_cluster_each(k):
    found = kmeans(np.array([0, 3, 0, 0, 0, 2, 0]), k)
    np.testing.assert_array_equal(found.centres, [1, 5])
    np.testing.assert_array_equal(found.levels, [0, 0, 0, 0, 1, 1, 1])
    assert (found.wcss, found.bcss) == (0, pytest.approx(squares(np.array([1, 1, 1, 5, 5]))))


def test_no_pixels_have_no_centre():
    found = kmeans(np.zeros(4, int), 3)
    assert len(found.centres) == found.wcss == found.bcss == found.levels.max() == 0


@pytest.mark.parametrize(
    ("histogram", "k", "named"),
    [([1, 2], 0, "0 clusters"), ([1, -2], 2, "counts"), ([2**31, 1], 2, "2\\*\\*31")],
)
def test_what_is_no_histogram_and_no_number_of_clusters_is_refused(histogram, k, named):
    with pytest.raises(ValueError, match=named):
        kmeans(np.array(histogram), k)


def test_all_numbers_of_clusters_take_less_than_a_tenth_of_a_second():
    least = np.inf
    for _ in range(5):
        start = time.process_time()
        kmeans_all(HISTOGRAMS["noise"], 20)
        least = min(least, time.process_time() - start)
    assert least < 0.1


@pytest.mark.parametrize("k", [2, 3, 5, 11, 40])
def test_indices_are_those_of_scikit_learn_over_all_pixels(small, k):
    histogram = np.bincount(small.ravel(), minlength=256)
    found = kmeans(histogram, k)
    pixels, labels = small.reshape(-1, 1), found.levels[small].ravel()
    assert silhouette(histogram, found) == pytest.approx(silhouette_score(pixels, labels), abs=1e-9)
    theirs = calinski_harabasz_score(pixels.astype(np.float64), labels)
    assert calinski_harabasz(histogram, found) == pytest.approx(theirs, rel=1e-9)


def test_pixels_alone_in_their_cluster_have_no_silhouette():
    histogram = np.array([1, 0, 0, 4, 0, 0, 3])
    pixels = np.repeat(np.arange(7), histogram)
    found = kmeans(histogram, 3)
    theirs = silhouette_score(pixels[:, None], found.levels[pixels])
    assert silhouette(histogram, found) == pytest.approx(theirs)
    assert theirs == pytest.approx(7 / 8)


def test_one_cluster_has_no_index():
    one = kmeans(np.array([2, 3]), 1)
    for index in (silhouette, calinski_harabasz):
        with pytest.raises(ValueError, match="1 clusters"):
            index(np.array([2, 3]), one)


def test_clear_humps_are_counted_by_elbow_silhouette_and_explained_variance():
    found = select(mixed((20, 2, 3000), (80, 2, 3000), (150, 2, 3000), (230, 2, 3000)))
    assert found.ks == KS == tuple(range(2, 21))
    assert [found.chosen[name] for name in ("elbow", "bcss", "silhouette")] == [4, 4, 4]


def test_each_criterion_chooses_by_its_rule():
    found = select(HISTOGRAMS["camera"])
    ks, total = np.array(found.ks), found.wcss + found.bcss
    corner = np.array([1, (found.wcss[0] - found.wcss[-1]) / (ks[-1] - ks[0])])
    points = np.stack([(ks - ks[0]) * corner[1], found.wcss[0] - found.wcss])
    distance = np.abs(points[0] - points[1])  # From the chord, the diagonal here.
    assert found.chosen["elbow"] == ks[distance.argmax()]
    assert found.chosen["bcss"] == next(
        k for k, share in zip(ks, found.bcss / total, strict=True) if share >= 0.95
    )
    assert found.chosen["silhouette"] == ks[found.silhouette.argmax()]
    assert found.chosen["calinski-harabasz"] == ks[found.calinski_harabasz.argmax()]
    assert (np.diff(found.wcss) < 0).all()
    assert (np.diff(found.bcss) > 0).all()
    assert select(HISTOGRAMS["noise"], (2, 3)).chosen["bcss"] == 3  # Neither explains enough.


def test_numbers_of_clusters_ascend_from_two():
    for ks in ((), (1, 2), (3, 3), (4, 2)):
        with pytest.raises(ValueError, match="ascend"):
            select(HISTOGRAMS["noise"], ks)


def test_an_image_of_few_levels_has_no_indices_beyond_them():
    found = select(np.array([5, 0, 9, 2]), (2, 3, 4, 5))
    assert np.isfinite(found.silhouette).tolist() == [True, True, False, False]
    assert found.calinski_harabasz[1] == np.inf
    assert found.chosen["calinski-harabasz"] == 3
    assert found.wcss[1:].tolist() == [0, 0, 0]
    assert set(select(np.array([0, 7]), (2, 3)).chosen.values()) == {2}


def test_an_average_weighs_a_large_image_as_a_small_one():
    one, other = select(HISTOGRAMS["camera"]), select(HISTOGRAMS["noise"])
    both = average([one, other, select(np.array([0, 7]))])
    large = average([select(HISTOGRAMS["camera"] * 50), other])
    for name in ("wcss", "bcss"):
        shares = [getattr(x, name) / (x.wcss + x.bcss) for x in (one, other)]
        np.testing.assert_allclose(getattr(both, name), np.mean(shares, 0), rtol=1e-12)
        np.testing.assert_allclose(getattr(both, name), getattr(large, name), rtol=1e-9)
    np.testing.assert_allclose(both.silhouette, (one.silhouette + other.silhouette) / 2)
    np.testing.assert_allclose(both.calinski_harabasz, large.calinski_harabasz, rtol=1e-3)
    assert both.chosen == large.chosen


def test_an_average_is_of_selections_over_the_same_numbers():
    one: Selection = select(HISTOGRAMS["noise"], (2, 3))
    for some in ([], [one, one._replace(ks=(2, 4))]):
        with pytest.raises(ValueError, match="selections"):
            average(some)


def test_ten_clusters_have_the_ten_colours_from_black_to_red(small):
    found = kmeans(np.bincount(small.ravel(), minlength=256), 10)
    got = colour_mask(small, found)
    assert got.dtype == np.uint8
    named = {0: (0, 0, 0), 1: (128, 0, 128), 2: (0, 0, 255), 8: (255, 165, 0), 9: (255, 0, 0)}
    for cluster, colour in named.items():
        here = got[found.levels[small] == cluster]
        assert len(here)
        assert (here == colour).all()


def test_fewer_clusters_have_the_colours_of_the_filter_and_more_have_their_own(small):
    histogram = np.bincount(small.ravel(), minlength=256)
    for k in (2, 3, 7):
        found = kmeans(histogram, k)
        want = colour_labels(found.levels[small], clusters=k)
        np.testing.assert_array_equal(colour_mask(small, found), want)
    colours = np.unique(colour_mask(small, kmeans(histogram, 19)).reshape(-1, 3), axis=0)
    assert len(colours) == 19
    assert {tuple(c) for c in PALETTE} <= {tuple(c) for c in colours}  # Every other one of them.


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        picture = pictures.camera()[number * 40 :: 8, ::6]
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def coarse(monkeypatch):
    """Pictures of few pixels."""
    monkeypatch.setattr(front, "_DPI", 40)


def run(*args: object) -> None:
    front.main(list(map(str, args)))


def test_the_front_draws_and_lists_every_image(tmp_path, capsys, coarse):
    images = write(tmp_path / "images", "a", "b")
    (images / "broken.png").write_bytes(b"no picture")
    run(images, "--out", tmp_path / "out", "--rows", 1, "--k", 12)
    said = capsys.readouterr()
    rows = list(csv.DictReader((tmp_path / "out" / "clusters.csv").read_text().splitlines()))
    assert [(row["image"], int(row["k"])) for row in rows] == [(n, k) for n in "ab" for k in KS]
    want = select(np.bincount(pictures.camera()[::8, ::6].ravel(), minlength=256))
    for criterion in CRITERIA.values():
        got = [float(row[criterion.curve]) for row in rows if row["image"] == "a"]
        np.testing.assert_array_equal(got, getattr(want, criterion.curve))
    line = next(line for line in said.out.splitlines() if line.startswith("| a "))
    assert [int(cell) for cell in line.split("|")[2:-1]] == list(want.chosen.values())
    assert "average" in said.out
    assert "2 of 3 images" in said.out
    assert "broken.png" in said.err
    drawn = np.asarray(Image.open(tmp_path / "out" / "clusters.png").convert("RGB"))
    assert {(0, 0, 0), (255, 0, 0)} <= {tuple(c) for c in np.unique(drawn.reshape(-1, 3), axis=0)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out"]


def test_an_image_of_one_level_is_drawn_and_has_empty_cells(tmp_path, coarse):
    Image.new("L", (8, 6), 77).save(tmp_path / "flat.png")
    run(tmp_path / "flat.png", "--out", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "clusters.csv").read_text().splitlines()))
    assert {row["silhouette"] for row in rows} == {row["calinski_harabasz"] for row in rows} == {""}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["{}/images", "--k", "300"], "--k 300"),
        (["{}/images", "--rows", "0"], "--rows 0"),
        (["{}/missing"], "missing"),
        (["{}/text.png"], "text.png"),
        (["{}/images", "--out", "{}/images"], "not empty"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, capsys, flags, named):
    write(tmp_path / "images", "a")
    (tmp_path / "text.png").write_text("no picture")
    out = [] if "--out" in flags else ["--out", tmp_path / "out"]
    with pytest.raises(SystemExit) as end:
        run(*(flag.replace("{}", str(tmp_path)) for flag in flags), *out)
    errors = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert [line for line in errors if line.startswith("error:") and named in line]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "text.png"]
