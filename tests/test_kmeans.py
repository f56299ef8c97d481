import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.cluster.vq import kmeans2
from skimage.filters import threshold_otsu

from pp_jax.preprocess.kmeans import PALETTE, colour_labels, kmeans_labels

RNG = np.random.default_rng(0)
SHAPE = (40, 37)

_labels = jax.jit(kmeans_labels, static_argnames="clusters")


def labels(image, clusters):
    image = jnp.asarray(image, jnp.float32)
    return np.asarray(_labels(image, jnp.array(image.shape), clusters=clusters))


def spread(values, of):
    """The within-cluster sum of squares."""
    groups = (values[of == label].astype(np.float64) for label in np.unique(of))
    return sum(((group - group.mean()) ** 2).sum() for group in groups)


@pytest.mark.parametrize("clusters", [2, 3, 4])
def test_no_cut_of_the_levels_has_less_spread(clusters):
    neighbours = 100 + np.arange(14)
    for levels in (RNG.choice(256, 14, replace=False), *[neighbours] * 5):
        image = RNG.choice(levels, SHAPE, p=RNG.dirichlet(np.ones(14)))
        cuts = itertools.combinations(np.unique(image)[1:], clusters - 1)
        best = min(spread(image, np.digitize(image, cut)) for cut in cuts)
        # Rounding may take the second best of two cuts that are this close.
        np.testing.assert_allclose(spread(image, labels(image, clusters)), best, rtol=1e-5)


@pytest.mark.parametrize("clusters", [5, 10])
def test_no_start_of_lloyds_algorithm_ends_with_less_spread(clusters):
    image = RNG.normal(120, 40, SHAPE).clip(0, 255).round()
    points = image.reshape(-1, 1)
    starts = (
        kmeans2(points, clusters, iter=100, minit="++", rng=np.random.default_rng(start))[1]
        for start in range(10)
    )
    best = min(spread(image, start.reshape(SHAPE)) for start in starts)
    assert spread(image, labels(image, clusters)) <= best * (1 + 1e-5)


def test_two_clusters_of_an_x_ray_part_at_otsus_threshold(real_data):
    path = min((real_data / "cxr_seg").rglob("*.png"))
    image = np.asarray(Image.open(path).convert("L"))
    np.testing.assert_array_equal(labels(image, 2), image > threshold_otsu(image))


def test_labels_rise_with_the_level():
    image = RNG.integers(0, 256, SHAPE)
    got = labels(image, 5)
    assert np.unique(got).tolist() == [0, 1, 2, 3, 4]
    order = np.argsort(image, axis=None)
    assert (np.diff(got.ravel()[order]) >= 0).all()


def test_an_image_of_few_levels_has_the_first_labels_alone():
    np.testing.assert_array_equal(labels(np.full(SHAPE, 90), 5), 0)
    two = RNG.choice([3, 250], SHAPE)
    np.testing.assert_array_equal(labels(two, 5), two == 250)


def test_labels_do_not_know_the_canvas():
    canvas = (RNG.random(SHAPE) * 255).astype(np.float32)
    for height, width in ((1, 1), (7, 37), (33, 12)):
        got = _labels(jnp.asarray(canvas), jnp.array([height, width]), clusters=5)
        want = labels(canvas[:height, :width], 5)
        np.testing.assert_array_equal(got[:height, :width], want)
        assert got.min() >= 0
        assert got.max() <= 4


def test_labels_of_fractions_are_those_of_the_nearest_levels():
    image = RNG.integers(0, 255, SHAPE).astype(np.float32)
    np.testing.assert_array_equal(labels(image + 0.4, 5), labels(image, 5))


def test_colours_are_spread_over_the_palette():
    black, purple, *_, orange, red = PALETTE.tolist()
    assert (black, purple) == ([0, 0, 0], [128, 0, 128])
    assert (orange, red) == ([255, 165, 0], [255, 0, 0])
    everything = jnp.arange(10, dtype=jnp.int32)[None]
    np.testing.assert_array_equal(colour_labels(everything, clusters=10)[0], PALETTE)
    four = colour_labels(everything[:, :4], clusters=4)[0]
    np.testing.assert_array_equal(four, PALETTE[[0, 3, 6, 9]])


@pytest.mark.parametrize("clusters", [1, 11])
@pytest.mark.parametrize(
    "function",
    [
        partial(kmeans_labels, jnp.zeros(SHAPE), jnp.array(SHAPE)),
        partial(colour_labels, jnp.zeros(SHAPE, jnp.int32)),
    ],
)
def test_a_wrong_number_of_clusters_is_named(function, clusters):
    with pytest.raises(
        ValueError, match=f"clusters={clusters}: choose a whole number from 2 to 10"
    ):
        function(clusters=clusters)
