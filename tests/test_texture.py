from fractions import Fraction
from functools import cache, partial
from itertools import permutations
from math import inf

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.filters import threshold_otsu

from pp_jax.preprocess.ratios import difference, first_least, limbs, product
from pp_jax.preprocess.responses import respond
from pp_jax.preprocess.texture import entropy
from pp_jax.preprocess.thresholds import otsu, otsu_threshold
from tests import references_texture

RNG = np.random.default_rng(0)
SHAPE = (70, 37)


ENTROPY, OTSU = entropy(), otsu()


def response(row, image):
    return np.asarray(compiled(row)(jnp.asarray(image, jnp.float32), jnp.array(image.shape)))


@cache
def compiled(row):
    return jax.jit(partial(respond, filter=row))


@pytest.mark.parametrize(("row", "radius"), [(entropy(radius=1), 1), (ENTROPY, 5)])
def test_entropy_equals_scikit_images(row, radius):
    noise = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
    for image in (noise, noise // 100, cv2.GaussianBlur(noise, (9, 9), 0)):
        want = references_texture.entropy(image, radius)
        np.testing.assert_allclose(response(row, image), want, atol=1e-5)


def test_entropy_equals_scikit_images_across_the_bands_in_which_it_is_scanned():
    image = RNG.integers(0, 9, (600, 6), dtype=np.uint8)
    want = references_texture.entropy(image)
    np.testing.assert_allclose(response(ENTROPY, image), want, atol=1e-5)


def test_entropy_of_the_widest_disk_does_not_overflow():
    """A disk of 709 equal pixels has the largest sum."""
    row = entropy(radius=15)
    speck = np.zeros(SHAPE, np.uint8)
    speck[30:40, 3:8] = 9
    for image in (np.zeros(SHAPE, np.uint8), speck):
        want = references_texture.entropy(image, 15)
        np.testing.assert_allclose(response(row, image), want, atol=1e-5)


def test_entropy_has_its_extremes_where_all_pixels_are_equal_and_where_all_differ():
    row = entropy(radius=3)
    np.testing.assert_array_equal(response(row, np.full((9, 9), 200)), 0)
    different = np.arange(81).reshape(9, 9) * 3
    assert response(row, different).max() == np.float32(row.high) == np.float32(np.log2(29))


def test_entropy_rounds_to_levels():
    image = RNG.integers(0, 250, SHAPE).astype(np.float32)
    want = references_texture.entropy(image)
    np.testing.assert_allclose(response(ENTROPY, image + 0.4), want, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (69, 36)])
def test_entropy_crops_the_disk_to_the_valid_part(shape):
    canvas = RNG.integers(0, 256, SHAPE)
    valid = canvas[: shape[0], : shape[1]].astype(np.uint8)
    got = compiled(ENTROPY)(jnp.asarray(canvas, jnp.float32), jnp.array(shape))
    got = got[: shape[0], : shape[1]]
    np.testing.assert_allclose(got, references_texture.entropy(valid), atol=1e-5)


@pytest.mark.parametrize("radius", [0, 16, -1])
def test_a_wrong_radius_is_named(radius):
    with pytest.raises(ValueError, match=f"radius={radius}: choose a whole number from 1 to 15"):
        entropy(radius=radius)


def two_humps():
    """Bone and soft tissue, say, of any shares."""
    levels = np.where(
        RNG.random(SHAPE) < 0.3, RNG.normal(60, 20, SHAPE), RNG.normal(170, 30, SHAPE)
    )
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def test_otsu_cuts_where_scikit_image_and_opencv_do():
    humps = two_humps()
    for image in (humps, humps // 30, RNG.integers(0, 256, SHAPE, dtype=np.uint8)):
        got = response(OTSU, image)
        np.testing.assert_array_equal(got, references_texture.otsu(image))
        cut = cv2.threshold(image, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
        np.testing.assert_array_equal(got, cut)


def test_otsu_cuts_an_x_ray_where_scikit_image_does(real_data):
    path = min((real_data / "cxr_seg").rglob("*.png"))
    image = np.asarray(Image.open(path).convert("L"))
    np.testing.assert_array_equal(response(OTSU, image), references_texture.otsu(image))


@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_constant_image_is_not_above_its_threshold(level):
    constant = np.full(SHAPE, level, np.uint8)
    assert threshold_otsu(constant) == level
    np.testing.assert_array_equal(response(OTSU, constant), 0)


def test_otsus_threshold_is_the_first_exact_maximum():
    symmetric = RNG.integers(0, 2, 128)
    million = RNG.integers(0, 2**15, 256)
    cases = [
        np.concatenate([symmetric, symmetric[::-1]]),
        np.concatenate([million[:128], million[127::-1]]),
        million,
        np.insert(np.zeros(253, int), [100, 150, 200], [2**21, 2**20, 2**21 - 1]),
        np.insert(np.zeros(253, int), [80, 160, 240], 5),
        np.insert(np.zeros(254, int), [0, 254], 2**22),
    ]
    threshold = jax.jit(otsu_threshold)
    for counts in cases:
        assert threshold(jnp.asarray(counts, jnp.int32)) == exact_otsu(counts.tolist())


def exact_otsu(counts):
    pixels, total = sum(counts), sum(level * count for level, count in enumerate(counts))
    best, threshold, dark, dark_sum = Fraction(-1), None, 0, 0
    for level, count in enumerate(counts):
        dark, dark_sum = dark + count, dark_sum + level * count
        if 0 < dark < pixels:
            means = Fraction(dark_sum, dark) - Fraction(total - dark_sum, pixels - dark)
            variance = dark * (pixels - dark) * means**2
            if variance > best:
                best, threshold = variance, level
    return threshold


def test_limbs_compute_as_pythons_integers():
    first, second = (RNG.integers(0, 2**31, 50) for _ in range(2))
    first, second = np.maximum(first, second), np.minimum(first, second)
    a, b = (limbs(jnp.asarray(n, jnp.int32), count=3) for n in (first, second))
    assert values(a) == first.tolist()
    assert values(difference(a, b)) == (first - second).tolist()
    squares = [int(x) ** 2 * int(y) for x, y in zip(first, second, strict=True)]
    assert values(product(product(a, a), b)) == squares


def values(numbers):
    return [sum(int(limb) << 12 * i for i, limb in enumerate(n)) for n in np.asarray(numbers).T]


def test_the_least_ratio_is_found_exactly():
    numerators = [5, 1, 2, 2**31 - 1, 2**31 - 2, 10**9, 10**9 - 1]
    denominators = [0, 3, 6, 2**31 - 2, 2**31 - 3, 10**9 - 1, 10**9 - 2]

    @jax.jit
    def found(chosen):
        both = (jnp.array(x, jnp.int32)[chosen] for x in (numerators, denominators))
        return first_least(*(limbs(x, count=3) for x in both))

    for chosen in permutations(range(7), 3):
        ratios = [
            Fraction(numerators[i], denominators[i]) if denominators[i] else inf for i in chosen
        ]
        assert found(jnp.array(chosen)) == ratios.index(min(ratios)), chosen
    assert found(jnp.arange(7)) == 1
