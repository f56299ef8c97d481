"""The audit sees a shortcut that is there, none that is not, and no patient twice."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data import shortcuts
from data.shortcuts import area, audit, classes, outer_frame, size_and_mode


def test_the_area_is_scikit_learns_ties_included() -> None:
    rng = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        scores = rng.integers(0, levels, 60).astype(float)
        positive = rng.random(60) < 0.3
        assert area(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_a_feature_that_tells_the_classes_apart_is_found_and_noise_is_chance() -> None:
    rng = np.random.default_rng(1)
    positive = np.arange(200) % 2 == 0
    groups = np.arange(200)
    telling = np.stack([positive + rng.normal(0, 0.1, 200), rng.normal(size=200)], axis=1)
    found = audit(telling, positive, groups)
    assert found.auroc > 0.99
    assert found.low <= found.auroc <= found.high
    assert (found.images, found.positive, found.groups, found.refused) == (200, 100, 200, "")
    chance = audit(rng.normal(size=(200, 3)), positive, groups)
    assert chance.low < 0.5 < chance.high


def test_what_only_tells_patients_apart_predicts_nothing() -> None:
    """Ten images of a patient have one random feature and one random class."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(40), 10)
    positive = np.repeat(rng.permutation(np.arange(40) % 2 == 0), 10)
    features = np.eye(40)[groups]
    assert audit(features, positive, np.arange(400)).auroc > 0.95
    assert audit(features, positive, groups).auroc < 0.6


def test_an_audit_of_too_few_patients_is_refused_in_words() -> None:
    rng = np.random.default_rng(3)
    groups = np.concatenate([np.arange(30), np.full(20, 30)])
    positive = groups < 30  # Twenty negatives, all of one patient.
    refused = audit(rng.normal(size=(50, 2)), positive, groups)
    assert refused.auroc is refused.low is refused.high is None
    assert refused.refused == "1 patients of the negative class, 10 are needed"
    assert (refused.images, refused.positive, refused.groups) == (50, 30, 31)


def test_a_wider_interval_of_fewer_patients() -> None:
    """Copies of an image add nothing to what is known."""
    rng = np.random.default_rng(4)
    positive = np.arange(40) % 2 == 0
    features = (positive + rng.normal(0, 1.5, 40))[:, None]
    one = audit(features, positive, np.arange(40))
    groups = np.repeat(np.arange(40), 6)
    grouped = audit(np.repeat(features, 6, 0), np.repeat(positive, 6), groups)
    alone = audit(np.repeat(features, 6, 0), np.repeat(positive, 6), np.arange(240))
    assert grouped.high - grouped.low == pytest.approx(one.high - one.low, rel=0.35)
    assert alone.high - alone.low < 0.6 * (grouped.high - grouped.low)


def test_the_frame_is_the_ring_and_nothing_within() -> None:
    cells = np.random.default_rng(5).integers(0, 256, (3, 20, 20)).astype(np.uint8)
    inner = cells.copy()
    inner[:, 1:-1, 1:-1] = 0
    np.testing.assert_array_equal(outer_frame(cells), outer_frame(inner))
    for side, line in enumerate((cells[1, 0], cells[1, -1], cells[1, :, 0], cells[1, :, -1])):
        quarters = [np.mean(line[5 * k : 5 * k + 5]) for k in range(4)]
        np.testing.assert_allclose(outer_frame(cells)[1, 4 * side : 4 * side + 4], quarters)


def test_size_and_mode_are_logarithms_the_square_and_a_column_per_mode() -> None:
    found = size_and_mode(np.array([[100, 200], [50, 50]]), ["RGB", "L"])
    expected = [
        [np.log(100), np.log(200), np.log(2), 0, 0, 1],
        [np.log(50), np.log(50), 0, 1, 1, 0],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_classes_are_findings_else_two_labels() -> None:
    found, meaning = classes(np.array([True, False, True]), ["a", "b", "c"])
    assert found.tolist() == [True, False, True]
    assert meaning == "a finding is marked"
    found, meaning = classes(np.zeros(3, bool), ["yes", "no", "yes"])
    assert found.tolist() == [True, False, True]
    assert meaning == "yes, not no"
    with pytest.raises(ValueError, match="every image has a finding, and there are 1 labels"):
        classes(np.ones(2, bool), ["x", "x"])


def test_shortcuts_known_on_real_heads_are_found(real_data) -> None:
    """Size and mode alone reach .75 there, the frame alone .73."""
    from data.fingerprint import fingerprint
    from data.measures import measure
    from data.sources import open_dataset

    records = open_dataset("brain_yes_no", real_data / "brain_yes_no")
    figures = fingerprint(records, [measure(x) for x in records], name="heads", licence="")
    for kind, known in (("size_and_mode", 0.75), ("outer_frame", 0.73)):
        found = figures["shortcuts"][kind]
        assert found["low"] < known < found["high"]
        assert found["low"] > 0.5
        assert found["auroc"] == pytest.approx(known, abs=0.05)
    assert figures["shortcuts"]["positive"] == "yes, not no"
    assert (figures["images"], figures["labels"]) == (151, {"yes": 93, "no": 58})
    assert figures["modes"] == {"RGB": 129, "L": 17, "RGBA": 4, "P": 1}
    assert shortcuts.FEWEST == 10
