"""`python -m pp_jax.preprocess`: what it draws, and of which images."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pp_jax.config import Look
from pp_jax.preprocess import __main__ as front
from pp_jax.preprocess import gallery
from pp_jax.preprocess.filters import FILTERS, parse
from pp_jax.preprocess.fusion import FUSIONS
from pp_jax.preprocess.stage import make_shown

RNG = np.random.default_rng(0)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eleven pictures of the side that is asked for, in two class folders."""
    for number in range(11):
        folder = tmp_path / "images" / ("ill" if number < 3 else "well")
        folder.mkdir(parents=True, exist_ok=True)
        blurred = cv2.GaussianBlur(RNG.integers(0, 256, (48, 64), dtype=np.uint8), (9, 9), 0)
        cv2.imwrite(str(folder / f"{number}.png"), blurred)
    return tmp_path / "images"


def run(images: Path, out: Path, *flags: object) -> None:
    front.main([str(images), str(out), "--image-size", "64", *map(str, flags)])


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_moments_equal_those_of_the_pixels():
    image = RNG.integers(0, 60, (31, 17), dtype=np.uint8)
    got = gallery.moments(gallery.histogram(image))
    share = np.unique(image, return_counts=True)[1] / image.size
    assert got["mean"] == pytest.approx(image.mean())
    assert got["deviation"] == pytest.approx(image.std())
    assert got["entropy"] == pytest.approx((share * np.log2(1 / share)).sum())


def test_statistics_are_those_of_the_pixels_before_and_after(images, tmp_path):
    run(images, tmp_path / "out", "--filter", "sobel:part=x:norm=l1", "--sheets", 0)
    rows = table(tmp_path / "out" / "statistics.csv")
    assert [row["image"] for row in rows][:3] == ["ill/0", "ill/1", "ill/2"]
    assert {row["label"] for row in rows} == {"ill", "well"}
    for row in rows[:4]:
        before = cv2.imread(str(images / f"{row['image']}.png"), cv2.IMREAD_GRAYSCALE)
        after = np.round((cv2.Sobel(before, cv2.CV_64F, 1, 0) + 1020) / 2040 * 255)
        for when, pixels in (("before", before), ("after", after)):
            assert float(row[f"mean_{when}"]) == pytest.approx(pixels.mean(), abs=2e-4)
            assert float(row[f"deviation_{when}"]) == pytest.approx(pixels.std(), abs=2e-4)
    pages = sorted(path.name for path in (tmp_path / "out").glob("distributions_*.png"))
    assert pages == ["distributions_001.png", "distributions_002.png", "distributions_by_label.png"]


def test_a_sheet_is_drawn_for_as_many_images_as_asked(images, tmp_path, monkeypatch):
    few = {"filters": {"sobel": Look("sobel")}, "fusions": {"blend": Look("sobel", "blend")}}
    monkeypatch.setattr(front, "looks", lambda look: few)
    run(images, tmp_path / "out", "--filter", "sobel", "--sheets", 2)
    sheets = sorted((tmp_path / "out" / "sheets").iterdir())
    assert [path.name for path in sheets] == ["ill_0.png", "ill_1.png"]
    drawn = cv2.imread(str(sheets[0]))
    assert min(drawn.shape[:2]) > 200
    assert np.unique(drawn).size > 50


def test_a_sheet_shows_every_filter_and_every_fusion():
    sections = front.looks(Look("median:3", blend=0.3))
    assert list(sections["filters"].values()) == [Look(name) for name in FILTERS]
    shown = {look.fusion for look in sections["fusions"].values()}
    assert shown == set(FUSIONS) - {"learned"}
    for look in sections["fusions"].values():
        make_shown(look)  # Raises where the fusion cannot take the filters.
        assert str(parse(look.filter)[0][0]) == "median:aperture=3"


def test_a_sheet_draws_each_picture_under_its_name():
    picture = np.full((8, 12, 3), 200, np.uint8)
    figure = gallery.contact_sheet(
        "t", {"a": {"one": picture, "two": picture // 2}, "b": {"c": picture}}
    )
    axes = {axes.get_title(): axes for part in figure.subfigs for axes in part.axes}
    assert {"one", "two", "c"} <= axes.keys()
    np.testing.assert_array_equal(axes["two"].images[0].get_array(), picture // 2)


def test_a_class_is_drawn_by_its_mean_and_the_band_of_its_images():
    histograms = RNG.dirichlet(np.ones(256), size=12)
    ill = [gallery.Distribution(f"{i}", "ill", h, h[::-1]) for i, h in enumerate(histograms)]
    well = [gallery.Distribution("w", "well", histograms[0], histograms[1])]
    figure: Figure = gallery.distributions_by_label("t", ill + well)
    assert isinstance(figure.canvas, FigureCanvasAgg)
    left, right = figure.axes[:2]
    assert left.get_title(loc="left") == "ill: 12 images"
    np.testing.assert_allclose(left.lines[0].get_ydata(), histograms.mean(0))
    np.testing.assert_allclose(right.lines[1].get_ydata(), histograms[:, ::-1].cumsum(1).mean(0))
    band = left.collections[0].get_paths()[0].vertices
    assert np.isclose(band[:, 1], np.quantile(histograms[:, 7], 0.9)).any()


def test_a_csv_names_the_classes(images, tmp_path):
    sheet = tmp_path / "labels.csv"
    sheet.write_text(
        "patientId,class\n" + "".join(f"{i},{'even' if i % 2 == 0 else 'odd'}\n" for i in range(3))
    )
    run(images / "ill", tmp_path / "out", "--labels", sheet, "--sheets", 0, "--filter", "none")
    rows = table(tmp_path / "out" / "statistics.csv")
    assert [row["label"] for row in rows] == ["even", "odd", "even"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--filter", "sobel:4"), "filter 'sobel:4': aperture=4"),
        (("--fusion", "learned"), "--fusion learned: has nothing to show"),
        (("--blend", 2), "blend=2.0 is no weight"),
        (("--image-size", 0), "--image-size 0: must lie in"),
        (("--labels", "README.md"), "README.md"),
    ],
)
def test_a_wrong_choice_is_one_line_and_writes_nothing(images, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        run(images, tmp_path / "out", "--filter", "none", *flags)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out*"))


def test_a_broken_image_is_named_and_the_others_are_drawn(images, tmp_path, capsys):
    (images / "ill" / "0.png").write_bytes(b"no picture")
    run(images, tmp_path / "out", "--filter", "none", "--sheets", 0)
    told = capsys.readouterr()
    assert "skipped: " in told.err
    assert "0.png" in told.err
    assert "10 of 11 images" in told.out
