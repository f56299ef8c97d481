"""Boundary contrast on discs of known contrast and noise, and against SciPy's distances."""

import numpy as np
import pytest
from scipy import ndimage

from pp_jax.evaluate.ambiguity import boundary, contrast_to_noise


def disc(size=(200, 260), *, centre=(130, 100), radius=50) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return np.hypot(x - centre[0], y - centre[1]) <= radius


def film(mask, *, step: float, noise: float, seed: int = 0) -> np.ndarray:
    """Grey levels 100 outside and `100 + step` inside, with noise of this standard deviation."""
    return 100 + step * mask + np.random.default_rng(seed).normal(0, noise, mask.shape)


def plain(image, mask, others) -> float | None:
    """The definition, with whole distance maps."""
    near = 0.02 * max(mask.shape)
    inside = image[mask & (ndimage.distance_transform_edt(mask) <= near)]
    ring = image[~mask & ~others & (ndimage.distance_transform_edt(~mask) <= near)]
    if min(len(inside), len(ring)) < 10:
        return None
    return abs(inside.mean() - ring.mean()) / max(ring.std(), 1)


@pytest.mark.parametrize(("step", "noise", "ratio"), [(30, 10, 3), (-12, 6, 2), (5, 20, 0.25)])
def test_a_disc_on_noise_has_its_step_over_the_noise(step, noise, ratio):
    mask = disc((700, 900), centre=(450, 350), radius=180)
    image = np.rint(film(mask, step=step, noise=noise)).clip(0, 255).astype(np.uint8)
    # About 20,000 pixels on either side: the mean is known to 0.01 noise, the noise to 0.5 %.
    assert contrast_to_noise(image, mask) == pytest.approx(ratio, abs=0.03)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_what_whole_distance_maps_say(seed):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, 180, 230)), (0, 12, 12))
    mask, others = smooth > 0.5 * smooth.std()
    assert (mask[0] | mask[-1]).any() or mask[:, [0, -1]].any()  # Blobs at the border too.
    others = others & ~mask
    image = rng.integers(0, 256, mask.shape, np.uint8)
    got = contrast_to_noise(image, mask, others=others)
    assert got == pytest.approx(plain(image.astype(float), mask, others), rel=1e-9)


def test_a_small_object_and_its_ring_reach_as_far_as_the_disc_of_that_radius():
    mask = np.zeros((1000, 300), bool)  # Two per cent of the longest side: 20 pixels.
    mask[500, 150] = True
    y, x = np.mgrid[-500:500, -150:150]
    distance = np.hypot(x, y)
    image = np.where(distance <= 20, 60.0, 200.0)
    mask |= distance <= 3
    ring = image[(distance > 3) & (distance <= 23)]  # Roughly; the ring is cut by whole pixels.
    levels = boundary(image, mask)
    assert levels.inside == 60
    assert levels.outside == pytest.approx(ring.mean(), rel=0.02)


def test_brightness_and_contrast_of_the_whole_film_do_not_matter():
    mask = disc()
    image = film(mask, step=15, noise=8)
    want = contrast_to_noise(image, mask)
    for other in (image + 37, image - 20, 0.5 * image, 1.9 * image - 60, 255 - image):
        assert contrast_to_noise(other, mask) == pytest.approx(want, rel=1e-9)


def test_what_lies_farther_than_the_bands_does_not_matter():
    mask = disc()
    image = film(mask, step=15, noise=8)
    far = ~disc(radius=57) | disc(radius=43)  # Two per cent of 260 pixels are 5.2.
    assert contrast_to_noise(np.where(far, 0.0, image), mask) == contrast_to_noise(image, mask)


def test_the_ring_leaves_out_other_objects():
    mask, other = disc(), disc(centre=(182, 100), radius=30) & ~disc()
    image = film(mask, step=20, noise=5)
    bright = np.where(other, 250.0, image)
    assert contrast_to_noise(bright, mask) < 2
    without = contrast_to_noise(bright, mask, others=other)
    assert without == contrast_to_noise(image, mask, others=other)
    assert without == pytest.approx(4, abs=0.4)  # 900 pixels.


def test_a_drawn_object_without_noise_has_its_step_in_grey_levels():
    mask = disc()
    assert contrast_to_noise(np.where(mask, 130, 100).astype(np.uint8), mask) == 30


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_where_there_is_neither_a_difference_nor_noise_there_is_no_ratio(kind):
    assert contrast_to_noise(np.full(disc().shape, 87.3).astype(kind), disc()) is None


def test_too_few_pixels_on_a_side_are_not_judged():
    image = film(disc(), step=30, noise=10)
    empty, nine = np.zeros_like(disc()), np.zeros_like(disc())
    nine[50:53, 60:63] = True
    assert contrast_to_noise(image, empty) is None
    assert contrast_to_noise(image, nine) is None
    assert contrast_to_noise(image, ~empty) is None
    assert contrast_to_noise(image, disc(), others=~disc()) is None
    nine[53, 60] = True  # The tenth.
    assert contrast_to_noise(image, nine) is not None


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(200, 260\) pixels and a mask of \(200, 1\)"):
        contrast_to_noise(np.zeros((200, 260), np.uint8), np.ones((200, 1), bool))
