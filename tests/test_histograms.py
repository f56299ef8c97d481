import jax
import numpy as np

from pp_jax.preprocess.histograms import histogram, nearest_levels

RNG = np.random.default_rng(0)


def test_a_histogram_counts_the_valid_pixels_alone():
    levels = RNG.integers(0, 256, (40, 33), dtype=np.int32)
    valid = RNG.random((40, 33)) < 0.7
    want = np.bincount(levels[valid], minlength=256)
    np.testing.assert_array_equal(jax.jit(histogram)(levels, valid), want)


def test_counts_of_a_batch_are_those_of_each_image():
    levels = RNG.integers(0, 256, (3, 7, 9), dtype=np.int32)
    valid = RNG.random(levels.shape) < 0.5
    want = [np.bincount(x[v], minlength=256) for x, v in zip(levels, valid, strict=True)]
    np.testing.assert_array_equal(jax.jit(jax.vmap(histogram))(levels, valid), want)


def test_nearest_levels_are_within_a_half():
    image = np.float32([[0, 0.4, 0.5, 1.5, 254.6, 255]])
    np.testing.assert_array_equal(nearest_levels(image), [[0, 0, 0, 2, 255, 255]])
