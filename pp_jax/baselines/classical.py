"""Segmentation without learning: from one image and what is marked on it.

Findings are taken to be brighter than what is around them, as opacities in an X-ray are. Where a
box is marked, the object is looked for in the box; without any mark the whole image is, for all
findings at once. Lengths are shares of the box, or pixels of a view of at most 256 or 128 a side.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy import ndimage
from skimage import feature, filters, segmentation

from pp_jax.baselines.clusters import kmeans
from pp_jax.baselines.regions import flood, grow
from pp_jax.baselines.views import (
    Hint,
    Mask,
    View,
    core,
    ellipse,
    in_view,
    inside,
    outside,
    pixels,
    seed_pixels,
    shrunk,
)

CLASSES = 3  # Of multi-Otsu and k-means: air, tissue, and what is denser.
# Standard deviation of the adaptive threshold's Gaussian, as a share of the box's longer side: wide
# enough that the middle of an object which fills its box still sees what is around it.
REACH = 0.25
# Region growing and flood fill: T in standard deviations of the box's levels, and at least one
# level, less than which integers cannot differ.
TOLERANCE = 1.0
LEAST_TOLERANCE = 1.0
SMOOTH_PLACE = 0.02  # Sigma of the search for a seed, as a share of the image's longer side.
CORE = 0.25  # Of each side of the box around a seed: surely the object.

MARGIN = 0.25  # Shown around the box, as a share of its longer side, to methods that compare.
LONGEST = 256  # Side of the view of methods that read edges.
CONTOUR_LONGEST = 128  # The same of slow ones, whose outlines are smooth at any size.
WATERSHED_SIGMA = 2.0  # Before the gradient, or each grain of noise is a basin.
# Even: scikit-image's smoothing alternates between two operators and goes on where the last call
# stopped, so that after an odd number the next call would answer differently.
ROUNDS = 40
SNAKE_SMOOTHING = 1
EDGE_SIGMA, EDGE_ALPHA = 2.0, 100.0  # Of the geodesic snake; scikit-image's alpha.
SNAKE_FRAME = 8  # Pixels repeated around the view: to a snake, all beyond is outside.
GRABCUT_ROUNDS = 5
GRABCUT_FEWEST = 5  # Pixels on each side: it mixes five Gaussians.
CANNY_SIGMA = 2.0
CANNY_LOW = 0.5  # Of the high threshold, which is Otsu's of the gradient.
EDGE_REACH = 2  # Pixels from a seed on an edge to the region that it stands for.


class Classical(NamedTuple):
    """A row of `CLASSICAL`."""

    function: Callable[[UInt8[np.ndarray, "H W 3"], Hint], Bool[np.ndarray, "H W"]]
    label: str  # Name in tables.
    help: str  # Half a sentence for `--help`.
    needs: str = ""  # A module that not every installation has.
    default: bool = False  # Stands in a report that names no row: some take seconds an image.


# Thresholds and classes of grey levels.


def threshold(view: View) -> Mask:
    """What is brighter than the mean."""
    return view.grey > view.grey.mean()


def otsu(view: View) -> Mask:
    """What is brighter than Otsu's threshold; nothing where all is equal.

    N. Otsu, A threshold selection method from gray-level histograms, 1979.
    """
    return view.grey > filters.threshold_otsu(view.grey)


def multi_otsu(view: View) -> Mask:
    """The brightest of three classes by Otsu's criterion; of as many as there are levels, if fewer.

    The criterion is that of k-means, so that this and `k_means` find the same but for ties.
    """
    thresholds = _multi_otsu(view)
    return view.grey > thresholds[-1] if len(thresholds) else np.zeros(view.grey.shape, bool)


def adaptive(view: View) -> Mask:
    """What is brighter than the Gaussian mean around it.

    The mean is taken at 256 pixels and enlarged: it is too smooth for more to change it.
    """
    small = shrunk(view, LONGEST).grey.astype(float)
    block = 6 * max(1, round(REACH * max(small.shape))) + 1  # The library's sigma is a sixth.
    means = Image.fromarray(filters.threshold_local(small, block).astype(np.float32))
    wide = means.resize(view.grey.shape[::-1], Image.Resampling.BILINEAR)
    return view.grey > np.asarray(wide) + 1e-3  # Rounding is no contrast.


def k_means(view: View) -> Mask:
    """The brightest of three clusters of grey levels, the optimum; nothing where all is equal."""
    clusters = kmeans(_histogram(view), CLASSES)
    last = len(clusters.centres) - 1
    return clusters.levels[view.grey] == last if last else np.zeros(view.grey.shape, bool)


# Regions around a seed.


def region_growing(view: View) -> Mask:
    """What joins the seeds as long as its level is near the mean of the region; `grow`."""
    return grow(view.grey, _seeds(view), tolerance=_tolerance(view), barred=_barred(view))


def flood_fill(view: View) -> Mask:
    """What is joined to a seed by levels near the seed's own; `flood`."""
    return flood(view.grey, _seeds(view), tolerance=_tolerance(view), barred=_barred(view))


def watershed(view: View) -> Mask:
    """The basin of the object's marker on the gradient, against that of the surroundings.

    Markers are the middle of the box, or a like region around each point, and all outside the box.
    Without a mark they are the brightest and the darkest of three classes.

    S. Beucher and F. Meyer, The morphological approach to segmentation, 1993.
    """
    slope = filters.sobel(_smooth(view, WATERSHED_SIGMA))
    sure, never = core(view, CORE), outside(view)
    if not view.marked:
        thresholds = _multi_otsu(view)
        never = view.grey <= thresholds[0] if len(thresholds) else np.ones_like(never)
        sure = multi_otsu(view)
    markers = np.where(sure, 2, never.astype(int))
    return segmentation.watershed(slope, markers) == 2


def canny_regions(view: View) -> Mask:
    """The region without an edge of Canny's that holds the seed, and the edges around it.

    A seed on an edge stands for the region beside it. Without a mark, all regions brighter than the
    mean that edges close. The high threshold is Otsu's of the gradient, the low one half of it: M.
    Fang, G. Yue and Q. Yu, The study on an application of Otsu method in Canny operator, 2009. A
    gap in the edges lets the region out.
    """
    grey = view.grey / 255
    smooth = ndimage.gaussian_filter(grey, CANNY_SIGMA, mode="nearest")
    slope = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1))
    if slope.max() < 1e-6:  # Rounding alone: no edge anywhere.
        return inside(view) if view.marked else np.zeros(grey.shape, bool)
    high = float(filters.threshold_otsu(slope))
    edges = feature.canny(
        grey, CANNY_SIGMA, CANNY_LOW * high, high, mode="nearest", use_quantiles=False
    )
    if view.marked:
        found = _around_seeds(view, edges)
    else:
        regions, count = ndimage.label(~edges)
        rim = np.concatenate([regions[[0, -1]].ravel(), regions[:, [0, -1]].ravel()])
        kept = _means(view.grey, regions, count) > view.grey.mean()
        kept[rim], kept[0] = False, False
        found = kept[regions]
    return found | (ndimage.binary_dilation(found, np.ones((3, 3), bool)) & edges)


def _around_seeds(view: View, edges: Mask) -> Mask:
    """The regions without an edge that hold the seeds.

    Of a seed on an edge it is the nearest region within `EDGE_REACH` pixels. An edge has a region
    on either side of it: one that another seed holds counts, else the brighter one.
    """
    regions, count = ndimage.label(~edges)
    seeds, near = seed_pixels(view), np.where(inside(view), regions, 0)
    means = _means(view.grey, regions, count)
    held = set(regions[seeds].tolist()) - {0}
    moved = set()
    for y, x in np.argwhere(seeds & edges):
        for reach in range(1, EDGE_REACH + 1):
            window = near[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
            if beside := set(window.ravel().tolist()) - {0}:
                moved |= beside & held or {max(beside, key=means.__getitem__)}
                break
    return np.isin(regions, [*held, *moved])


def _means(
    grey: UInt8[np.ndarray, "h w"], regions: Int[np.ndarray, "h w"], count: int
) -> Float[np.ndarray, " n"]:
    """The mean level of each region, 0 of one without a pixel."""
    pixels = np.bincount(regions.ravel(), minlength=count + 1)
    return np.bincount(regions.ravel(), grey.ravel(), count + 1) / np.maximum(pixels, 1)


# Contours.


def chan_vese(view: View) -> Mask:
    """A contour that parts the levels into two even groups; the start says which is the object.

    It starts as the ellipse in the box, without a mark around Otsu's mask. Morphological: P.
    Marquez-Neila, L. Baumela and L. Alvarez, PAMI 2014; the energy is Chan and Vese's, 2001.
    """
    frame = partial(np.pad, pad_width=SNAKE_FRAME, mode="edge")
    moved = segmentation.morphological_chan_vese(
        frame(view.grey / 255), ROUNDS, _start(view), smoothing=SNAKE_SMOOTHING
    )
    return _unframed(moved)


def geodesic(view: View) -> Mask:
    """A contour that is drawn to near edges, from where `chan_vese` starts, without a balloon.

    An edge has to be within about twice the Gaussian's sigma to be seen. Morphological, as there;
    V. Caselles, R. Kimmel and G. Sapiro, Geodesic active contours, 1997.
    """
    framed = np.pad(view.grey / 255, SNAKE_FRAME, mode="edge")
    stopping = segmentation.inverse_gaussian_gradient(framed, alpha=EDGE_ALPHA, sigma=EDGE_SIGMA)
    moved = segmentation.morphological_geodesic_active_contour(
        stopping, ROUNDS, _start(view), smoothing=SNAKE_SMOOTHING
    )
    return _unframed(moved)


def grabcut(view: View) -> Mask:
    """The foreground by OpenCV's GrabCut: two mixtures of levels, and a cut along edges.

    The background is what lies outside the box, and the foreground its middle: from the box alone,
    GrabCut finds nothing around most opacities. Without a mark it starts from multi-Otsu's mask,
    of which nothing is sure.

    C. Rother, V. Kolmogorov and A. Blake, GrabCut, SIGGRAPH 2004.

    Raises:
      ValueError: OpenCV is not installed.
    """
    cv2 = _opencv()
    bright = inside(view) if view.marked else multi_otsu(view)
    labels = np.where(bright, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    if view.marked:
        labels[outside(view)] = cv2.GC_BGD
        labels[core(view, CORE)] = cv2.GC_FGD
    front = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if min(front.sum(), (~front).sum()) < GRABCUT_FEWEST:
        return front
    cv2.setRNGSeed(0)  # The mixtures start from k-means, which draws.
    models = np.zeros((2, 1, 65))  # Of background and foreground; GrabCut works in them.
    colours = np.repeat(view.grey[:, :, None], 3, 2)
    cv2.grabCut(colours, labels, None, *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            "grabcut needs OpenCV: pip install -c constraints.txt -e '.[opencv]', or leave this "
            "method out"
        ) from error
    return cv2


# What several of them share.


def _histogram(view: View) -> Int[np.ndarray, " 256"]:
    return np.bincount(view.grey.ravel(), minlength=256)


def _multi_otsu(view: View) -> Float[np.ndarray, " t"]:
    """Thresholds between the classes, ascending; none where all is equal."""
    classes = min(CLASSES, np.count_nonzero(_histogram(view)))
    if classes < 2:
        return np.zeros(0)
    return filters.threshold_multiotsu(view.grey, classes)


def _smooth(view: View, sigma: float) -> Float[np.ndarray, "h w"]:
    return ndimage.gaussian_filter(view.grey.astype(float), sigma, mode="nearest")


def _tolerance(view: View) -> float:
    return max(LEAST_TOLERANCE, TOLERANCE * float(view.grey.std()))


def _barred(view: View) -> Mask:
    mask = np.zeros(view.grey.shape, bool)
    mask[pixels(view, view.background)] = True
    return mask


def _seeds(view: View) -> Mask:
    """The marks, or the middle of the box; without a mark the brightest place once smoothed."""
    if view.marked:
        return seed_pixels(view)
    small = shrunk(view, LONGEST)
    bright = _smooth(small, SMOOTH_PLACE * max(small.grey.shape))
    place = np.unravel_index(bright.argmax(), bright.shape)
    scale = np.divide(view.grey.shape, bright.shape)
    mask = np.zeros(view.grey.shape, bool)
    mask[tuple(((np.array(place) + 0.5) * scale).astype(int))] = True
    return mask


def _start(view: View) -> Mask:
    """Where a snake starts, in its frame."""
    start = ellipse(view, (view.box[:2] + view.box[2:]) / 2) if view.marked else otsu(view)
    return np.pad(start, SNAKE_FRAME)


def _unframed(moved: np.ndarray) -> Mask:
    return moved[SNAKE_FRAME:-SNAKE_FRAME, SNAKE_FRAME:-SNAKE_FRAME] > 0


def _around(
    method: Callable[[View], Mask], *, longest: int
) -> Callable[[UInt8[np.ndarray, "H W 3"], Hint], Bool[np.ndarray, "H W"]]:
    return partial(in_view, method, margin=MARGIN, longest=longest)


CLASSICAL: Mapping[str, Classical] = MappingProxyType(
    {
        "threshold": Classical(
            partial(in_view, threshold), "mean threshold", "brighter than the box's mean"
        ),
        "otsu": Classical(
            partial(in_view, otsu),
            "Otsu's threshold",
            "brighter than Otsu's threshold of the box",
            default=True,
        ),
        "multi-otsu": Classical(
            partial(in_view, multi_otsu), "multi-Otsu", "the brightest of Otsu's three classes"
        ),
        "adaptive": Classical(
            partial(in_view, adaptive),
            "adaptive threshold",
            "brighter than the Gaussian mean around it",
        ),
        "region-growing": Classical(
            partial(in_view, region_growing),
            "region growing",
            "grown from the clicks or the middle of the box, while near the region's mean",
        ),
        "flood-fill": Classical(
            partial(in_view, flood_fill),
            "flood fill",
            "joined to the clicks or the middle of the box by levels like theirs",
        ),
        "k-means": Classical(
            partial(in_view, k_means), "k-means", "the brightest of three clusters of levels"
        ),
        "watershed": Classical(
            _around(watershed, longest=LONGEST), "watershed", "the middle's basin on the gradient"
        ),
        "chan-vese": Classical(
            _around(chan_vese, longest=CONTOUR_LONGEST),
            "Chan-Vese snake",
            "a contour between two even groups of levels",
        ),
        "geodesic": Classical(
            _around(geodesic, longest=CONTOUR_LONGEST),
            "geodesic snake",
            "the box's ellipse, drawn to near edges",
        ),
        "grabcut": Classical(
            _around(grabcut, longest=CONTOUR_LONGEST),
            "GrabCut",
            "cut from the surroundings by mixtures; needs OpenCV",
            needs="cv2",
        ),
        "canny-regions": Classical(
            _around(canny_regions, longest=LONGEST),
            "Canny regions",
            "the region around the middle that edges close",
        ),
    }
)
