"""The rule for automatic masks against scikit-learn, brute force and discs of known brightness."""

import json

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import regionprops
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pp_jax.evaluate import selection
from pp_jax.evaluate.ambiguity import contrast_to_noise
from pp_jax.evaluate.selection import FEATURES

SIZE = (60, 80)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.hypot(columns - x, rows - y) <= radius


def named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURES, values, strict=True))


# Features.


def test_a_drawn_box_has_the_features_that_one_reads_off_it():
    image, mask = np.full(SIZE, 100, np.uint8), np.zeros(SIZE, bool)
    mask[10:20, 0:40] = True
    image[mask] = 90
    image[10:15, 0:40] = 110
    got = named(selection.features(image, mask, predicted_iou=0.75, stability=0.5))
    want = {
        "predicted_iou": 0.75,
        "stability": 0.5,
        "area": 1 / 12,
        "log_area": -2.4849066,
        "x": 0.25,
        "off_middle": 0.25,
        "y": 0.25,
        "mean": 100,
        "deviation": 10,
        "fill": 1,
        "border": 1,
    }
    assert got.pop("contrast") == 0  # As many brighter as darker pixels along its boundary.
    assert got == pytest.approx(want)


@pytest.mark.parametrize("seed", range(4))
def test_features_are_those_that_scikit_image_measures(seed):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=SIZE), 6) > 0.02
    image = rng.integers(0, 256, SIZE, np.uint8)
    (region,) = regionprops(mask.astype(int), image)
    got = named(selection.features(image, mask, predicted_iou=0.1, stability=0.2))
    y, x = (np.array(region.centroid) + 0.5) / SIZE
    assert got["area"] == pytest.approx(region.area / mask.size)
    assert (got["x"], got["y"]) == pytest.approx((x, y))
    assert got["off_middle"] == pytest.approx(abs(x - 0.5))
    assert got["fill"] == pytest.approx(region.extent)
    assert (got["mean"], got["deviation"]) == pytest.approx(
        (region.intensity_mean, region.intensity_std)
    )
    assert abs(got["contrast"]) == pytest.approx(contrast_to_noise(image, mask))
    top, left, bottom, right = region.bbox
    assert got["border"] == (top == 0 or left == 0 or (bottom, right) == SIZE)


def test_contrast_is_negative_for_what_is_darker_than_its_ring():
    mask = disc(40, 30, 9)
    film = np.random.default_rng(0).normal(100, 4, SIZE)
    bright, dark = (
        named(selection.features(film + step * mask, mask, predicted_iou=0, stability=0))
        for step in (20, -20)
    )
    assert bright["contrast"] > 3
    assert dark["contrast"] < -3


def test_a_mask_touches_the_border_on_any_side_of_the_image():
    inner = np.zeros(SIZE, bool)
    inner[1:-1, 1:-1] = True
    masks = {1: [], 0: [inner]}
    for sides in ((0, slice(None)), (-1, slice(None)), (slice(None), 0), (slice(None), -1)):
        mask = inner.copy()
        mask[sides] = True
        mask[[0, 0, -1, -1], [0, -1, 0, -1]] = False  # A corner touches two sides.
        masks[1].append(mask)
    for touches, drawn in masks.items():
        for mask in drawn:
            got = selection.features(np.ones(SIZE), mask, predicted_iou=1, stability=1)
            assert named(got)["border"] == touches


def test_an_empty_mask_has_no_features():
    with pytest.raises(ValueError, match="empty mask"):
        selection.features(np.ones(SIZE), np.zeros(SIZE, bool), predicted_iou=1, stability=1)


# The oracle.


@pytest.mark.parametrize("seed", range(3))
def test_the_oracle_takes_for_each_object_the_mask_of_the_highest_jaccard_index(seed):
    masks = np.random.default_rng(seed).random((7, *SIZE)) < 0.3
    objects = np.random.default_rng(seed + 9).random((3, *SIZE)) < 0.3
    scores = [[jaccard_score(o.ravel(), m.ravel()) for m in masks] for o in objects]
    np.testing.assert_array_equal(
        selection.oracle(masks, objects), masks[np.argmax(scores, axis=-1)]
    )
    np.testing.assert_allclose(selection.best_iou(masks, objects), np.max(scores, axis=0))


def test_without_a_mask_the_oracle_answers_nothing_and_without_an_object_no_mask_fits():
    objects, none = np.stack([disc(40, 30, 9)] * 2), np.zeros((0, *SIZE), bool)
    assert not selection.oracle(none, objects).any()
    assert selection.oracle(none, objects).shape == objects.shape
    assert selection.oracle(objects, none).shape == none.shape
    np.testing.assert_array_equal(selection.best_iou(objects, none), [0, 0])


# Fitting.


class World:
    """Images of discs, some bright, some dark; the bright ones are the finding."""

    def __init__(self, count: int, *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.masks, self.targets, features, ious = [], [], [], []
        for _ in range(count):
            places = rng.permutation([(x, y) for x in (10, 30, 50, 70) for y in (15, 45)])[:5]
            masks = np.stack([disc(x, y, rng.uniform(5, 8)) for x, y in places])
            bright = rng.permutation(5) < 2
            shift = rng.uniform(-20, 20)  # No grey level is the same in every image.
            image = 110 + shift + rng.normal(0, 4, SIZE)
            image += np.tensordot(np.where(bright, 30, -30), masks, 1)
            # The model is surest of dark discs: whoever follows it is misled.
            for mask, good in zip(masks, bright, strict=True):
                sure = rng.uniform(0.5, 0.8) + 0.2 * (not good)
                features.append(
                    selection.features(image, mask, predicted_iou=sure, stability=rng.random())
                )
            ious.append(selection.best_iou(masks, masks[bright]))
            self.masks.append(masks)
            self.targets.append(masks[bright].any(0))
        self.features, self.ious = np.stack(features), np.concatenate(ious)
        self.images = np.repeat(np.arange(count), 5)

    def union_dice(self, image: int, order: np.ndarray) -> np.ndarray:
        return selection.growing_dice(self.masks[image][order], self.targets[image])

    def fit(self, **changed) -> selection.Rule:
        given = {"features": self.features, "ious": self.ious, "images": self.images} | changed
        return selection.fit_rule(*given.values(), union_dice=self.union_dice)

    def mean_dice(self, rule: selection.Rule) -> float:
        """By the rule's answer itself, image by image."""
        scores = []
        for masks, target, own in zip(
            self.masks, self.targets, np.split(self.features, len(self.masks)), strict=True
        ):
            union = masks[selection.select(rule, own)].any(0)
            scores.append(2 * (union & target).sum() / (union.sum() + target.sum()))
        return float(np.mean(scores))


def test_a_rule_fitted_on_bright_discs_among_dark_ones_picks_the_bright_ones_of_new_images():
    rule, new = World(12, seed=0).fit(), World(10, seed=1)
    for features, ious in zip(np.split(new.features, 10), np.split(new.ious, 10), strict=True):
        np.testing.assert_array_equal(selection.select(rule, features), ious == 1)
        assert not ious[np.argmax(features[:, FEATURES.index("predicted_iou")])]


def test_the_probability_is_that_of_scikit_learns_own_pipeline():
    world = World(12, seed=2)
    noisy = np.random.default_rng(0).random(len(world.ious))  # Else the classes are separable.
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    want = pipeline.fit(world.features, noisy >= 0.5).predict_proba(world.features)[:, 1]
    rule = world.fit(ious=noisy)
    np.testing.assert_allclose(selection.probability(rule, world.features), want, rtol=1e-9)
    assert (rule.masks, rule.positives) == (60, np.count_nonzero(noisy >= 0.5))


@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_has_a_higher_mean_dice_than_the_fitted_one(seed):
    world = World(8, seed=seed)
    rng = np.random.default_rng(seed)
    noisy = 0.3 * world.ious + 0.7 * rng.random(40)
    world.features = np.zeros((40, len(FEATURES)))
    world.features[:, 0] = np.round(noisy + rng.normal(0, 0.2, 40), 1)  # Many equally likely.
    rule = world.fit(ious=noisy)
    best = world.mean_dice(rule)
    tried = np.append(np.linspace(0, 1, 400), selection.probability(rule, world.features))
    scores = [world.mean_dice(rule._replace(threshold=float(t))) for t in tried]
    assert best == pytest.approx(max(scores), abs=1e-12)
    assert min(scores) < best - 0.05


@pytest.mark.parametrize("seed", range(3))
def test_growing_unions_have_the_dice_of_each_union(seed):
    rng = np.random.default_rng(seed)
    masks, target = rng.random((6, *SIZE)) < 0.2, rng.random(SIZE) < 0.4
    want = []
    for count in range(1, 7):
        union = masks[:count].any(0)
        want.append(2 * (union & target).sum() / (union.sum() + target.sum()))
    np.testing.assert_allclose(selection.growing_dice(iter(masks), target), want)
    np.testing.assert_array_equal(selection.growing_dice(masks[:2] & False, target & False), [1, 1])


def test_where_no_mask_is_good_the_rule_takes_the_one_of_the_highest_predicted_iou():
    world = World(6, seed=3)
    rule = world.fit(ious=np.full(30, 0.49))
    assert rule.positives == 0
    assert world.fit(ious=np.full(30, 0.5)).positives == 30
    for own in np.split(world.features, 6):
        want = np.arange(5) == np.argmax(own[:, FEATURES.index("predicted_iou")])
        np.testing.assert_array_equal(selection.select(rule, own), want)


def test_where_every_mask_is_good_the_threshold_alone_is_fitted():
    world = World(6, seed=4)
    for image, masks in enumerate(world.masks):
        world.targets[image] = masks.any(0)
    rule = world.fit(ious=np.ones(30))
    assert world.mean_dice(rule) == 1


def test_a_rule_takes_at_least_one_mask_where_there_is_one():
    world = World(6, seed=5)
    rule = world.fit()._replace(threshold=2.0)
    for own in np.split(world.features, 6):
        assert selection.select(rule, own).sum() == 1
    assert selection.select(rule, world.features[:0]).shape == (0,)


def test_a_feature_that_is_the_same_everywhere_says_nothing():
    world = World(8, seed=6)
    world.features[:, FEATURES.index("border")] = 1
    rule = world.fit()
    other = world.features.copy()
    assert np.isfinite(selection.probability(rule, other)).all()
    assert rule.weights[FEATURES.index("border")] == pytest.approx(0, abs=1e-9)


def test_what_does_not_fit_together_is_refused():
    world = World(2, seed=0)
    with pytest.raises(ValueError, match="10 masks with features, 9 with an IoU, 10 with an image"):
        world.fit(ious=world.ious[:9])


# Rules as plain values.


def test_a_rule_survives_a_json_file():
    rule = World(6, seed=7).fit()
    back = selection.from_plain(json.loads(json.dumps(selection.to_plain(rule), allow_nan=False)))
    for name in selection.Rule._fields:
        np.testing.assert_array_equal(getattr(back, name), getattr(rule, name))


def test_a_rule_on_other_features_is_not_taken():
    plain = selection.to_plain(World(4, seed=8).fit())
    plain["features"][2] = "colour"
    with pytest.raises(ValueError, match="colour"):
        selection.from_plain(plain)
