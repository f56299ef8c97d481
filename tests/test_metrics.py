"""Every metric against an independent program, by hand, and where masks are empty."""

import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import dice as dice_distance
from scipy.spatial.distance import jaccard
from skimage import measure, morphology
from sklearn.metrics import f1_score, precision_score, recall_score

from pp_jax.evaluate import metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # What MONAI imports is deprecated here and there.
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

EMPTY = np.zeros((50, 70), bool)
FULL = np.ones((50, 70), bool)
REAL = (  # Small ones, for speed.
    "41591_2020_819_Fig1_HTML.webp-day5",
    "ARDSSevere",
    "all14238-fig-0001-m-c",
    "ciaa199.pdf-001-a",
    "gr1_lrg-b",
    "kjr-21-e24-g001-l-a",
    "pneumocystis-carinii-pneumonia-1-PA",
)
DIAGONAL = 100 * math.hypot(50, 70) / 70

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")


def blobs(seed: int, *, size: tuple[int, int] = (120, 190), share: float = 0.3) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 6)
    return noise > np.quantile(noise, 1 - share)


def only(*places: tuple[slice | int, slice | int]) -> np.ndarray:
    mask = np.zeros((120, 190), bool)
    for place in places:
        mask[place] = True
    return mask


def speckled(mask: np.ndarray) -> np.ndarray:
    return mask ^ (np.random.default_rng(0).random(mask.shape) < 0.01)


CASES = {
    "blobs": (blobs(0), blobs(1)),
    "the same": (blobs(0), blobs(0)),
    "moved": (np.roll(blobs(2), (2, 1), (0, 1)), blobs(2)),
    "speckled": (speckled(blobs(3)), blobs(3)),
    "small and large": (blobs(4, share=0.01), blobs(4, share=0.6)),
    "at the border": (only((slice(0, 30), slice(0, 190))), only((slice(2, 120), slice(180, 190)))),
    "all of the image": (np.ones((120, 190), bool), blobs(5)),
    "pixels": (only((3, 7)), only((60, 180))),
    "lines": (only((slice(0, 120), 70)), only((50, slice(20, 190)), (slice(50, 90), 20))),
    "upright": (blobs(6, size=(190, 120)), blobs(7, size=(190, 120))),
}


def by_monai(function, prediction, target, **options):
    planes = [torch.from_numpy(mask.copy())[None, None] for mask in (prediction, target)]
    return function(*planes, include_background=True, **options).item()


def monai_hd95(prediction, target):
    pixels = by_monai(compute_hausdorff_distance, prediction, target, percentile=95)
    return 100 * pixels / max(target.shape)


def monai_nsd(percent):
    def nsd(prediction, target):
        tolerance = percent * max(target.shape) / 100
        return by_monai(compute_surface_dice, prediction, target, class_thresholds=[tolerance])

    return nsd


def by_scikit_learn(function):
    return lambda prediction, target: function(target.ravel(), prediction.ravel())


def area_similarity(prediction, target):
    a, b = int(prediction.sum()), int(target.sum())
    return 1 - abs(a - b) / (a + b)


def boundary_f(prediction, target):
    outlines = [mask ^ ndimage.binary_erosion(mask) for mask in (prediction, target)]
    near = [
        ndimage.distance_transform_edt(~outline) <= max(target.shape) / 100 for outline in outlines
    ]
    shares = [(outlines[i] & near[1 - i]).sum() / outlines[i].sum() for i in (0, 1)]
    return 2 * shares[0] * shares[1] / sum(shares) if any(shares) else 0


def thin_recall(prediction, target):
    radius = max(target.shape) / 100  # 1.9 pixels: a disc of 9.
    y, x = np.mgrid[-1:2, -1:2]
    thin = target & ~morphology.opening(target, y**2 + x**2 <= radius**2, mode="ignore")
    return recall_score(thin.ravel(), prediction.ravel()) if thin.any() else None


def spurious(prediction, target):
    regions = measure.regionprops(measure.label(prediction, connectivity=2), target.astype(float))
    return [region.area for region in regions if region.intensity_max == 0]


INDEPENDENT = {
    "dice": lambda *masks: 1 - dice_distance(*(mask.ravel() for mask in masks)),
    "iou": lambda *masks: 1 - jaccard(*(mask.ravel() for mask in masks)),
    "precision": by_scikit_learn(precision_score),
    "recall": by_scikit_learn(recall_score),
    "f1": by_scikit_learn(f1_score),
    "area_similarity": area_similarity,
    "boundary_f": boundary_f,
    "nsd_05": monai_nsd(0.5),
    "nsd_1": monai_nsd(1),
    "nsd_2": monai_nsd(2),
    "hd95": monai_hd95,
    "thin_recall": thin_recall,
    "spurious_count": lambda *masks: len(spurious(*masks)),
    "spurious_area": lambda *masks: 100 * sum(spurious(*masks)) / masks[0].size,
}


def known(figures):
    """The figures with -1 for None, which `pytest.approx` does not know."""
    return {name: -1.0 if figure is None else figure for name, figure in figures.items()}


def test_every_metric_has_an_independent_answer():
    assert metrics.METRICS.keys() == INDEPENDENT.keys()


@pytest.mark.parametrize("case", CASES)
def test_every_metric_is_what_another_program_computes(case):
    prediction, target = CASES[case]
    got = metrics.measure(prediction, target)
    assert {type(figure) for figure in got.values()} <= {float, type(None)}
    want = {name: function(prediction, target) for name, function in INDEPENDENT.items()}
    assert known(got) == pytest.approx(known(want), rel=1e-6, abs=1e-6)


def test_surfaces_and_shares_agree_on_real_outlines_too(real_data):
    for index, stem in enumerate(REAL):
        with Image.open(real_data / "cxr_seg" / "expected" / f"{stem}__lesion.png") as picture:
            target = np.asarray(picture) > 0
        assert target.any()
        # The lesions of the image turned round, or a little moved.
        prediction = np.roll(target, (7, -4), (0, 1)) if index % 2 else target[::-1, ::-1]
        got = metrics.measure(prediction, target)
        for metric in ("nsd_1", "hd95", "precision", "recall"):
            want = INDEPENDENT[metric](prediction, target)
            assert got[metric] == pytest.approx(want, rel=1e-6, abs=1e-6), (stem, metric)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_where_masks_are_empty_a_metric_has_the_value_of_the_convention(name):
    agreement = {
        "hd95": (0, DIAGONAL, DIAGONAL),
        "thin_recall": (None, None, None),  # A full image has no thin part.
        "spurious_count": (0, 0, 1),
        "spurious_area": (0, 0, 100),
    }
    got = [
        metrics.measure(*masks)[name] for masks in ((EMPTY, EMPTY), (EMPTY, FULL), (FULL, EMPTY))
    ]
    assert got == pytest.approx(agreement.get(name, (1, 0, 0)))


def test_a_missed_object_is_the_diagonal_of_the_image_away_however_small_it_is():
    missed = metrics.measure(np.zeros((120, 190), bool), only((10, slice(20, 30))))
    assert missed["hd95"] == pytest.approx(100 * math.hypot(120, 190) / 190)


@pytest.mark.parametrize("case", CASES)
def test_turning_the_image_changes_nothing_and_changing_places_little(case):
    prediction, target = CASES[case]
    straight = metrics.measure(prediction, target)
    turned = metrics.measure(prediction[::-1].T, target[::-1].T)
    assert known(turned) == pytest.approx(known(straight))
    swapped = metrics.measure(target, prediction)
    one_way = ("precision", "recall", "thin_recall", "spurious_count", "spurious_area")
    assert (swapped["precision"], swapped["recall"]) == (straight["recall"], straight["precision"])
    for name in INDEPENDENT.keys() - set(one_way):
        assert swapped[name] == pytest.approx(straight[name]), name


def test_a_distance_is_in_per_cent_of_the_longest_side_or_of_the_one_that_is_given():
    hd95 = metrics.METRICS["hd95"].function
    assert hd95(metrics.pair(only((10, 20)), only((10, 39)))) == pytest.approx(10)
    assert hd95(metrics.pair(only((10, 20)), only((10, 39)), side=380)) == pytest.approx(5)
    assert metrics.measure(only((10, 20)), only((10, 21)))["nsd_05"] == 0  # 0.95 pixels.
    assert metrics.measure(only((10, 20)), only((10, 21)))["nsd_1"] == 1  # 1.9 pixels.


def test_a_thin_tail_is_recalled_by_what_covers_it_alone():
    # A disc of radius 1.9 is three by three pixels; a square with a tail of 20 that is two wide.
    square, tail = (slice(20, 60), slice(20, 60)), (slice(40, 42), slice(60, 80))
    target = only(square, tail)
    function = metrics.METRICS["thin_recall"].function
    corners = 0  # A square is filled by squares.
    assert function(metrics.pair(only(square), target)) == corners
    assert function(metrics.pair(only((slice(40, 42), slice(60, 70))), target)) == 0.5
    assert function(metrics.pair(only(tail), target)) == 1
    assert function(metrics.pair(only(tail), only(square))) is None


def test_a_component_that_touches_the_target_by_a_corner_of_itself_is_not_spurious():
    target = only((slice(50, 60), slice(50, 60)))
    # One pixel inside; two joined to it by corners; a pair and a single one elsewhere.
    prediction = only((59, 59), (60, 60), (61, 61), (5, slice(5, 7)), (100, 100))
    got = metrics.measure(prediction, target)
    assert got["spurious_count"] == 2
    assert got["spurious_area"] == pytest.approx(100 * 3 / (120 * 190))


def test_hand_counted_pixels_give_the_textbook_numbers():
    prediction = np.array([[1, 1, 0], [1, 0, 0]], bool)
    target = np.array([[0, 1, 1], [1, 1, 0]], bool)
    got = metrics.measure(prediction, target)
    assert metrics.dice(prediction, target) == got["dice"] == got["f1"] == 4 / 7
    assert metrics.iou(prediction, target) == got["iou"] == 2 / 5
    assert (got["precision"], got["recall"]) == (2 / 3, 2 / 4)
    assert got["area_similarity"] == pytest.approx(1 - 1 / 7)


@pytest.mark.parametrize("name", ["dice", "iou"])
def test_a_function_of_two_masks_is_the_row_of_its_name(name):
    function = getattr(metrics, name)
    masks = [*CASES.values(), (EMPTY, EMPTY), (EMPTY, FULL), (FULL, EMPTY)]
    for prediction, target in masks:
        assert function(prediction, target) == metrics.measure(prediction, target)[name]


def test_emptiness_counts_the_empty_masks():
    assert metrics.emptiness(EMPTY, EMPTY) == "both"
    assert metrics.emptiness(EMPTY, FULL) == "one"
    assert metrics.emptiness(FULL, EMPTY) == "one"
    assert metrics.emptiness(FULL, FULL) == "neither"


@pytest.mark.parametrize("function", [metrics.dice, metrics.iou, metrics.pair, metrics.measure])
def test_masks_of_two_sizes_are_refused_even_where_numpy_would_broadcast(function):
    # A TypeError where shapes are checked at run time, before the function sees them.
    with pytest.raises((ValueError, TypeError), match=r"1, ?70"):
        function(FULL[:1], FULL)
