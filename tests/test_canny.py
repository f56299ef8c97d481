import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage import feature

from pp_jax.preprocess import canny, hysteresis
from pp_jax.preprocess.responses import extend, respond
from tests import references_canny as references

CANVAS = (240, 320)
KINDS = list(itertools.product((3, 5, 7), ("l1", "l2")))

reached = jax.jit(hysteresis.hysteresis)


@partial(jax.jit, static_argnames=("aperture", "norm"))
def edges_on_canvas(canvas, size, limits, *, aperture, norm):
    padded = extend(canvas, size, border="replicate", margin=aperture // 2)
    return canny.integer_edges(padded, size, limits, aperture=aperture, norm=norm)


def opencv(image: np.ndarray, low: float, high: float, aperture: int, norm: str) -> np.ndarray:
    return cv2.Canny(image, low, high, apertureSize=aperture, L2gradient=norm == "l2") > 0


def serpentine(side: int, *, gap: int = 1, thick: int = 1) -> np.ndarray:
    """One path, left to right and back, from the upper left corner to the last row."""
    picture = np.zeros((side, side), bool)
    for turn, row in enumerate(range(0, side, gap + thick)):
        picture[row : row + thick] = True
        end = slice(-thick, None) if turn % 2 == 0 else slice(0, thick)
        picture[row : row + gap + thick, end] = True
    return picture


def spiral(side: int) -> np.ndarray:
    """One path from the upper left corner to the middle."""
    picture = np.zeros((side, side), bool)
    row, column = 0, -1
    lengths = [side, *np.repeat(np.arange(side - 1, 1, -2), 2)]
    for length, (dy, dx) in zip(lengths, itertools.cycle([(0, 1), (1, 0), (0, -1), (-1, 0)])):
        for _ in range(length):
            row, column = row + dy, column + dx
            picture[row, column] = True
    return picture


def zigzag(side: int) -> np.ndarray:
    """Diagonals, each joined to the next: one path from the lower left to the upper right."""
    row, column = np.indices((side, side))
    offset = column - row
    picture = offset % 4 == 0
    is_start, is_end = (row == 0) | (column == 0), (row == side - 1) | (column == side - 1)
    return picture | np.where(offset // 4 % 2 == 0, is_start, is_end)


def waves(side: int) -> np.ndarray:
    """Square waves three pixels high, each row joined to the next: a turn every second pixel."""
    picture = np.zeros((side, side), bool)
    for turn, row in enumerate(range(0, side - 6, 6)):
        picture[row : row + 3, ::2] = True
        picture[row, 1::4] = picture[row + 2, 3::4] = True
        picture[row + 2 : row + 7, -2 if turn % 2 == 0 else 0] = True
    return picture


PICTURES = {"serpentine": serpentine, "spiral": spiral, "zigzag": zigzag, "waves": waves}


@pytest.mark.parametrize("density", [0.05, 0.2, 0.35, 0.41, 0.5, 0.8, 1.0])
def test_hysteresis_keeps_the_components_with_a_strong_pixel(density):
    rng = np.random.default_rng(0)
    for share in (0, 0.002, 0.05):
        weak = rng.random((75, 94)) < density
        strong = rng.random((75, 94)) < share  # Also where nothing is weak.
        np.testing.assert_array_equal(reached(strong, weak), references.hysteresis(strong, weak))


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("transposed", [False, True])
def test_hysteresis_follows_a_path_through_1024_pixels_squared(name, transposed):
    weak = PICTURES[name](1024)
    assert weak.sum() > 250_000
    weak = weak.T if transposed else weak
    strong = np.zeros_like(weak)
    strong[0, 0] = True
    want = references.hysteresis(strong, weak)
    assert want.sum() > 250_000
    np.testing.assert_array_equal(reached(strong, weak), want)


def test_two_rounds_at_least_halve_the_trees_of_each_component():
    rng = np.random.default_rng(0)
    noise = [rng.random((256, 256)) < density for density in (0.2, 0.41, 0.6)]

    @jax.jit
    def two_rounds(roots, weak):
        links = hysteresis.find_links(weak)
        return hysteresis.merge(hysteresis.merge(roots, links), links)

    for weak in (*noise, *(make(256) for make in PICTURES.values())):
        labels, _ = ndimage.label(weak, np.ones((3, 3)))
        component = labels.reshape(128, 2, 128, 2).max(axis=(1, 3)).ravel()
        roots = np.arange(128 * 128, dtype=np.int32).reshape(128, 128)
        trees = np.bincount(component)[1:]
        while trees.max() > 1:
            roots = two_rounds(roots, weak)
            left = np.bincount(component[np.unique(roots)])[1:]
            assert (left <= np.maximum(trees // 2, 1)).all()
            trees = left


def test_a_batch_of_pictures_is_joined_as_each_alone():
    pictures = np.stack([make(64) for make in PICTURES.values()])
    strong = np.zeros_like(pictures)
    strong[:, 0, 0] = True
    want = list(map(references.hysteresis, strong, pictures))
    np.testing.assert_array_equal(jax.vmap(reached)(strong, pictures), want)


@pytest.mark.parametrize("make", [serpentine, spiral])
def test_canny_follows_a_faint_path_as_opencv_does(make):
    image = np.pad(np.kron(make(254), np.full((4, 4), 20, np.uint8)), 4)
    image[4:8, 4:8] = 255
    want = cv2.Canny(image, 50, 150) > 0
    assert want[500:524, 500:524].any()  # A long way from the only strong pixels.
    row = canny.canny()
    got = jax.jit(partial(respond, filter=row))(image.astype(np.float32), jnp.array(image.shape))
    np.testing.assert_array_equal(got, 255.0 * want)


def random_images(count: int) -> Iterator[np.ndarray]:
    """Noise of all scales, in few and in all levels, of all sizes up to the canvas."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        shape = rng.integers(1, np.array(CANVAS) + 1)
        noise = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 4), mode="nearest")
        levels = np.interp(noise, [noise.min(), noise.max() + 1e-9], [0, 255])
        step = rng.choice([1, 1, 40, 255])
        yield (levels // step * step).astype(np.uint8)


def real_images(folder: Path, count: int) -> Iterator[np.ndarray]:
    """X-rays and brain scans at differing scales, cut to the canvas."""
    rng = np.random.default_rng(0)
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix in (".png", ".jpg", ".jpeg")]
    for path in rng.permutation(paths)[:count]:
        image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        scale = rng.uniform(150, 600) / max(image.shape)
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        yield image[: CANVAS[0], : CANVAS[1]]


def assert_equal_to_opencv(images: Iterable[np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    for index, image in enumerate(images):
        canvas = rng.integers(0, 256, CANVAS).astype(np.float32)
        height, width = image.shape
        canvas[:height, :width] = image
        size = jnp.array(image.shape)
        for aperture, norm in KINDS:
            gain = 16 ** ((aperture - 3) // 2)
            low, high = np.sort(gain * 10 ** rng.uniform(-1, 3, 2))
            low, high = (0, high) if index % 10 == 0 else (low, high)
            low, high = (round(low), round(high)) if index % 2 else (low, high)
            limits = canny.thresholds(low, high, aperture=aperture, norm=norm)
            got = edges_on_canvas(canvas, size, limits, aperture=aperture, norm=norm)
            np.testing.assert_array_equal(
                np.asarray(got)[:height, :width],
                opencv(image, low, high, aperture, norm),
                f"image {index}, {low=}, {high=}, {aperture=}, {norm=}",
            )


def test_edges_equal_opencvs_at_any_size_and_thresholds():
    assert_equal_to_opencv(random_images(30))


def test_edges_of_real_images_equal_opencvs(real_data):
    assert_equal_to_opencv(real_images(real_data, 30))


@pytest.mark.slow
def test_edges_of_300_images_equal_opencvs(real_data):
    assert_equal_to_opencv(itertools.chain(random_images(150), real_images(real_data, 150)))


@pytest.mark.parametrize("low", [0, 2039.99, 2040, 40_000, 1e9])
@pytest.mark.parametrize(("aperture", "norm"), [(3, "l1"), (3, "l2"), (7, "l2")])
def test_thresholds_beyond_all_gradients_are_as_opencvs(low, aperture, norm):
    image = 255 * np.random.default_rng(0).integers(0, 2, CANVAS, dtype=np.uint8)
    got = edges_on_canvas(
        image.astype(np.float32),
        jnp.array(CANVAS),
        canny.thresholds(low, low, aperture=aperture, norm=norm),
        aperture=aperture,
        norm=norm,
    )
    np.testing.assert_array_equal(got, opencv(image, low, low, aperture, norm))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: canny.canny(low=200, high=100), "low=200 and high=100: choose finite"),
        (lambda: canny.canny(low=-1), "low=-1 and high=150.0: choose finite"),
        (lambda: canny.canny(low=float("nan")), "low=nan"),
        (lambda: canny.canny(high=float("inf")), "high=inf"),
        (lambda: canny.canny(aperture=4), "aperture=4: choose 3, 5 or 7"),
        (lambda: canny.canny(norm="max"), "norm='max': choose l1 or l2"),
        (lambda: canny.canny_quantile(sigma=-2), "sigma=-2: choose a number of pixels"),
        (lambda: canny.canny_quantile(sigma=float("nan")), "sigma=nan"),
        (lambda: canny.canny_quantile(low=0.9, high=0.8), "low=0.9 and high=0.8: choose quantiles"),
        (lambda: canny.canny_quantile(high=1.1), "low=0.8 and high=1.1"),
        (lambda: canny.canny_quantile(low=float("nan")), "low=nan"),
    ],
)
def test_a_wrong_parameter_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def xrays(folder: Path, count: int) -> Iterator[np.ndarray]:
    """At most 1024 pixels high and wide."""
    for path in sorted((folder / "cxr_seg" / "images").iterdir())[:count]:
        image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        scale = 1024 / max(image.shape)
        size = [round(scale * length) for length in image.shape[::-1]]
        yield cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def share_unlike_scikit_image(images: Iterable[np.ndarray], **parameters: float) -> float:
    """On a canvas of 1024x1024 pixels; the worst image counts."""
    response = jax.jit(partial(respond, filter=canny.canny_quantile(**parameters)))
    sigma, low, high = (parameters[name] for name in ("sigma", "low", "high"))
    worst = 0.0
    for image in images:
        height, width = image.shape
        canvas = np.random.default_rng(0).random((1024, 1024), np.float32) * 255
        canvas[:height, :width] = image
        got = np.asarray(response(canvas, jnp.array(image.shape)))[:height, :width]
        want = feature.canny(image.astype(np.float64), sigma, low, high, use_quantiles=True)
        assert 0.001 < want.mean() < 0.5
        worst = max(worst, (got != 255.0 * want).mean())
    return worst


def test_quantile_edges_of_xrays_are_scikit_images_but_for_1e5th(real_data):
    assert share_unlike_scikit_image(xrays(real_data, 5), sigma=2.0, low=0.8, high=0.9) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [1.0, 2.0, 5.0])
@pytest.mark.parametrize(("low", "high"), [(0.8, 0.9), (0.5, 0.99)])
def test_quantile_edges_of_all_xrays_are_scikit_images(real_data, sigma, low, high):
    share = share_unlike_scikit_image(xrays(real_data, 61), sigma=sigma, low=low, high=high)
    assert share < 1e-4


@pytest.mark.parametrize("shape", [(1024, 1024), (700, 1001), (9, 50)])
def test_quantile_edges_of_noise_are_scikit_images(shape):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1)
    levels = np.interp(noise, [noise.min(), noise.max()], [0, 255])
    share = share_unlike_scikit_image([levels.astype(np.float32)], sigma=1.0, low=0.6, high=0.9)
    assert share < 1e-5


def test_a_flat_image_has_no_edges():
    for row in (canny.canny(low=0, high=0), canny.canny_quantile(low=0, high=0)):
        response = jax.jit(partial(respond, filter=row))
        for level in (0, 77, 255, 0.1):
            assert not response(jnp.full(CANVAS, level), jnp.array(CANVAS)).any()
