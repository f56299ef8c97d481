"""Agreement and entropy against scikit-learn and SciPy; other marks and views against pictures."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import jaccard_score

from pp_jax.evaluate import consistency
from pp_jax.evaluate.consistency import VIEWS
from pp_jax.evaluate.subjects import Marks
from pp_jax.preprocess import filters

SIZE = (37, 51)  # Not a multiple of 8: masks are counted in packed bytes.


def random_masks(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *SIZE)) < 0.4


def painted(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """A film with a bright box between these edges."""
    image = np.full((*SIZE, 3), 40, np.uint8)
    image[y0:y1, x0:x1] = 200
    return image


# Agreement.


def test_agreement_is_the_mean_jaccard_index_of_all_pairs():
    masks = random_masks(5)
    pairs = itertools.combinations(masks, 2)
    want = np.mean([jaccard_score(a.ravel(), b.ravel()) for a, b in pairs])
    assert consistency.agreement(masks) == pytest.approx(want, rel=1e-12)


def test_empty_masks_agree_with_each_other_and_with_nothing_else():
    masks = np.zeros((3, *SIZE), bool)
    assert consistency.agreement(masks) == 1
    masks[2, 5] = True
    assert consistency.agreement(masks) == pytest.approx(1 / 3)


def test_one_mask_has_nothing_to_agree_with():
    with pytest.raises(ValueError, match="1 mask cannot agree"):
        consistency.agreement(random_masks(1))


def test_each_pixels_entropy_is_that_of_a_coin_with_the_share_of_masks_that_hold_it():
    masks = random_masks(6)
    share = masks.mean(0)
    want = stats.entropy(np.stack([share, 1 - share]), base=2, axis=0)
    np.testing.assert_allclose(consistency.entropy_map(masks), want, atol=1e-12)


def test_entropy_is_0_where_all_agree_and_1_where_half_do():
    masks = np.array([[[True, True, False]], [[True, False, False]]])
    np.testing.assert_array_equal(consistency.entropy_map(masks), [[0, 1, 0]])


def test_the_mean_entropy_does_not_depend_on_how_much_background_there_is():
    masks = np.array([[[True, True, False]], [[True, False, False]]])
    wide = np.pad(masks, ((0, 0), (3, 40), (9, 0)))
    assert consistency.mean_entropy(masks) == consistency.mean_entropy(wide) == 0.5
    assert consistency.mean_entropy(np.zeros((4, *SIZE), bool)) == 0


def test_stability_is_the_ratio_of_the_areas_above_and_below_the_threshold():
    logits = np.random.default_rng(0).normal(0.3, 2, SIZE).astype(np.float32)
    want = np.count_nonzero(logits > 0.5) / np.count_nonzero(logits > -0.5)
    assert consistency.stability(logits, offset=0.5) == pytest.approx(want, rel=1e-6)
    assert consistency.stability(np.full(SIZE, -3, np.float32)) == 0


# Other marks.

BOXES = np.array([[10, 12, 30, 20], [0, 0, 51, 37]], np.float32)
POINTS = np.array([[[20, 16], [25, 14]], [[0, 0], [50, 36]]], np.float32)
LABELS = np.array([[1, 0], [1, 1]])


def draws(share: float = 0.05, *, seed: int = 0, count: int = 400) -> list[Marks]:
    marks = Marks(boxes=BOXES, points=POINTS, labels=LABELS)
    rng = np.random.default_rng(seed)
    return consistency.jittered(marks, size=SIZE, rng=rng, count=count, share=share)


def test_each_edge_moves_by_its_own_uniform_share_of_its_side():
    moved = np.stack([marks.boxes[0] for marks in draws()]) - BOXES[0]
    share = moved / [20, 8, 20, 8]
    for edge in share.T:
        assert stats.kstest(edge, stats.uniform(-0.05, 0.1).cdf).pvalue > 1e-3
    assert np.abs(share).max() <= 0.05 + 1e-6
    assert np.abs(np.corrcoef(share.T) - np.eye(4)).max() < 0.2


def test_each_click_moves_by_a_uniform_of_two_per_cent_of_the_longest_side():
    moved = np.stack([marks.points[0, 1] for marks in draws()]) - POINTS[0, 1]
    for axis in moved.T:
        assert stats.kstest(axis, stats.uniform(-0.02 * 51, 0.04 * 51).cdf).pvalue > 1e-3


def test_moved_marks_stay_in_the_image_and_mean_what_they_meant():
    for marks in draws(share=0.49):
        x0, y0, x1, y1 = marks.boxes.T
        assert (x0 < x1).all()
        assert (y0 < y1).all()
        assert min(x0.min(), y0.min(), marks.points.min()) >= 0
        assert x1.max() <= 51
        assert y1.max() <= 37
        assert (marks.points <= [50, 36]).all()
        np.testing.assert_array_equal(marks.labels, LABELS)


def test_the_same_seed_draws_the_same_marks_and_leaves_the_given_ones():
    boxes = BOXES.copy()
    for a, b, c in zip(draws(count=3), draws(count=3), draws(count=3, seed=1), strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.points, b.points)
        assert (a.boxes != c.boxes).any()
    np.testing.assert_array_equal(BOXES, boxes)


@pytest.mark.parametrize(
    ("marks", "share", "message"),
    [(Marks(), 0.05, "without marks"), (Marks(boxes=BOXES), 0.5, "share=0.5")],
)
def test_what_cannot_be_moved_is_said(marks, share, message):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=message):
        consistency.jittered(marks, size=SIZE, rng=rng, count=2, share=share)


# Other views.


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_in_every_view_the_box_and_the_click_still_show_the_same_object(view):
    box = (4, 7, 19, 12)
    seen = view.image(painted(*box))
    marks = view.marks(
        Marks(np.array([box], float), np.array([[[4, 11], [19, 7]]]), np.array([[1, 0]])), SIZE[1]
    )
    bright = seen[..., 0] > 120
    rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_array_equal(marks.boxes, [tight])
    (inside, outside), (labels,) = marks.points[0], marks.labels
    assert bright[inside[1], inside[0]] == labels[0] == 1
    assert bright[outside[1], outside[0]] == labels[1] == 0


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_mask_drawn_in_a_view_comes_back_to_its_place(view):
    image = painted(4, 7, 19, 12)
    masks = np.stack([view.image(image)[..., channel] > 120 for channel in range(3)])
    np.testing.assert_array_equal(view.mask(masks), np.moveaxis(image > 120, -1, 0))


def test_no_two_views_show_the_same():
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    seen = [view.image(image) for view in VIEWS.values()]
    assert all((a != b).any() for a, b in itertools.combinations(seen, 2))


def test_the_darker_and_the_brighter_view_bend_grey_levels_by_their_powers():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    for name, power in {"brighter": 0.8, "darker": 1.25}.items():
        want = [round(255 * (level / 255) ** power) for level in range(256)]
        np.testing.assert_array_equal(VIEWS[name].image(levels)[..., 1].ravel(), want)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_leaves_the_given_marks_as_they_are(view):
    marks = Marks(BOXES.copy(), POINTS.copy(), LABELS.copy())
    view.marks(marks, SIZE[1])
    for got, want in zip(marks, (BOXES, POINTS, LABELS), strict=False):
        np.testing.assert_array_equal(got, want)


def test_what_is_not_marked_stays_unmarked_in_every_view():
    for view in VIEWS.values():
        assert view.marks(Marks(), SIZE[1]) == Marks()


# Other filters.


def test_compared_filters_leave_a_film_that_looks_like_itself_and_differ():
    y, x = np.mgrid[:96, :96]
    film = 90 + 60 * np.sin(x / 15) + 30 * (np.hypot(x - 60, y - 40) < 20)
    noisy = film + np.random.default_rng(0).normal(0, 3, film.shape)
    image = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    shown = {
        spec: filters.filter_image(image, spec=spec)[0] for spec in consistency.FILTERS_COMPARED
    }
    np.testing.assert_array_equal(shown["none"], image)
    for a, b in itertools.combinations(shown.values(), 2):
        assert np.abs(a - b).mean() > 0.5
    for film in shown.values():
        assert np.corrcoef(film.ravel(), image.ravel())[0, 1] > 0.7
