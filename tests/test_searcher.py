"""Automatic masks of an evaluation: what is proposed, and who the rule that chooses has seen."""

import numpy as np
import pytest

from pp_jax.evaluate import automatic, selection
from pp_jax.evaluate.automatic import FITTED, make_searcher, propose
from pp_jax.evaluate.methods import Source
from pp_jax.evaluate.subjects import Subject
from pp_jax.predict.masks import decode_rle, encode_rle

SIZE = (40, 60)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(COLUMNS - x, ROWS - y) <= radius


def subject(name: str, patient: str, *, seed: int = 0) -> Subject:
    """A bright disc, which is the object, beside a dark one."""
    rng = np.random.default_rng([seed, len(name), *name.encode()])
    bright, dark = (disc(x, *rng.uniform((12, 5), (28, 9))) for x in (15, 43))
    grey = rng.integers(90, 110, SIZE)
    grey[bright] += 60
    grey[dark] -= 60
    image = np.repeat(grey[..., None].astype(np.uint8), 3, 2)
    box = np.array([[0, 0, 30, 40]], np.float64)
    facts = (patient, "set", "mask", "", "", "", None, None)
    return Subject(name, *facts, image, bright[None], box, bright)


def source(name: str, patient: str) -> Source:
    one = subject(name, patient)
    return Source("set", name, patient, lambda: one)


class Generator:
    """Proposes both discs and nothing else, all with the same scores; watched."""

    def __init__(self):
        self.shown = []

    def __call__(self, image):
        self.shown.append(image)
        grey = image[..., 0].astype(int)
        masks = [grey > 130, grey < 70, np.zeros(SIZE, bool)]
        return [
            {"segmentation": encode_rle(m), "predicted_iou": 0.75, "stability_score": 0.9}
            for m in masks
        ]


@pytest.fixture
def fitted(monkeypatch) -> list[list[np.ndarray]]:
    """The findings that each rule was fitted on."""
    seen = []
    fit = automatic.fit_rule

    def spy(images):
        seen.append([one.findings for one in images])
        return fit(images)

    monkeypatch.setattr(automatic, "fit_rule", spy)
    return seen


def sources(count: int, *, start: int = 0) -> list[Source]:
    """Two images of each patient."""
    return [
        source(f"{n}{side}", f"P{n}") for n in range(start, start + count) for side in ("a", "b")
    ]


def owners(findings: list[np.ndarray], known: list[Source]) -> set[str]:
    return {s.patient for s in known for one in findings if one is s.read().findings}


def test_the_rule_never_saw_the_patient_that_it_chooses_for(fitted):
    scored = sources(7)
    search = make_searcher(Generator(), fit=[], scored=scored)
    for one in scored:
        count = len(fitted)
        search(one.read().image, one.read())
        # Later images of the same part use the rule of the first: it must spare all of them.
        rule_of = fitted[count] if len(fitted) > count else None
        if rule_of is not None:
            assert one.patient not in owners(rule_of, scored)
    assert len(fitted) == 5
    spared = [{s.patient for s in scored} - owners(seen, scored) for seen in fitted]
    assert sorted(p for part in spared for p in part) == [f"P{n}" for n in range(7)]


def test_training_images_are_used_where_there_are_any_but_none_of_a_scored_patient(fitted):
    scored, training = sources(3), sources(4, start=2)
    search = make_searcher(Generator(), fit=training, scored=scored)
    for one in scored:
        search(one.read().image, one.read())
    assert [owners(seen, scored + training) for seen in fitted] == [{"P3", "P4", "P5"}]


def test_training_images_of_scored_patients_alone_are_as_none(fitted):
    scored = sources(3)
    search = make_searcher(Generator(), fit=scored[:2], scored=scored)
    search(scored[0].read().image, scored[0].read())
    assert [owners(seen, scored) for seen in fitted] == [{"P1", "P2"}]


def test_the_rule_takes_what_fitted_before_where_all_scores_are_equal():
    scored = sources(6)
    search = make_searcher(Generator(), fit=[], scored=scored)
    for one in scored:
        found = search(one.read().image, one.read())
        assert found.masks.shape == (2, *SIZE)  # An empty proposal is none.
        np.testing.assert_array_equal(found.masks[found.taken], one.read().objects)
        assert found.probability[found.taken].min() > found.probability[~found.taken].max()
        assert found.predicted_iou.tolist() == [0.75] * 2
        assert found.stability.tolist() == [0.9] * 2


def test_an_image_is_searched_once_and_another_in_its_place_for_itself():
    scored, generator = sources(5), Generator()
    search = make_searcher(generator, fit=[], scored=scored)
    for one in scored:
        search(one.read().image, one.read())
    assert len(generator.shown) == len(scored)
    other = subject("other", "Q")
    found = search(other.image, scored[0].read())
    assert generator.shown[-1] is other.image
    np.testing.assert_array_equal(found.masks[found.taken], other.objects)


def test_what_is_chosen_does_not_depend_on_what_was_asked_before():
    scored = sources(3)

    def ask(order) -> dict:
        search = make_searcher(Generator(), fit=[], scored=scored)
        return {one.id: search(one.read().image, one.read()) for one in order}

    whole, late = ask(scored), ask(reversed(scored[-3:]))
    for name, found in late.items():
        np.testing.assert_array_equal(found.masks, whole[name].masks)
        np.testing.assert_array_equal(found.probability, whole[name].probability)
        np.testing.assert_array_equal(found.taken, whole[name].taken)


def test_a_rule_is_fitted_on_at_most_twenty_images_that_lie_evenly(fitted):
    training = [source(str(n), f"T{n}") for n in range(100)]
    one = source("own", "P")
    make_searcher(Generator(), fit=training, scored=[one])(one.read().image, one.read())
    names = [int(name[1:]) for seen in fitted for name in sorted(owners(seen, training))]
    assert len(names) == FITTED == 20
    gaps = np.diff(sorted(names))
    assert (gaps.min(), gaps.max(), min(names)) == (5, 5, 0)


def test_where_nothing_is_proposed_nothing_is_found_and_nothing_breaks():
    scored = sources(3)
    search = make_searcher(lambda image: [], fit=[], scored=scored)
    found = search(scored[0].read().image, scored[0].read())
    assert found.masks.shape == (0, *SIZE)
    assert [len(x) for x in found[1:5]] == [0] * 4


@pytest.mark.parametrize("alone", [True, False])
def test_a_rule_that_saw_no_proposal_takes_the_one_of_the_highest_predicted_iou(alone):
    """Of one patient there is no other to fit on; of several, the others' images may be empty."""
    one = subject("own", "P")
    scored = [Source("set", "own", "P", lambda: one)] + ([] if alone else sources(6))

    def generate(image):
        if image is not one.image:
            return []
        told = zip(
            (disc(9, 9, 3), disc(40, 20, 4), disc(20, 30, 5)), (0.5, 0.75, 0.25), strict=True
        )
        return [
            {"segmentation": encode_rle(m), "predicted_iou": iou, "stability_score": 1.0}
            for m, iou in told
        ]

    found = make_searcher(generate, fit=[], scored=scored)(one.image, one)
    assert found.taken.tolist() == [False, True, False]
    assert 0 <= found.probability.min() < found.probability.max() <= 1


def test_the_seconds_are_those_of_the_search_even_where_it_was_made_for_the_rule(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(automatic, "perf_counter", lambda: clock[0])
    generate = Generator()

    def slowly(image):
        clock[0] += 7
        return generate(image)

    scored = sources(5)
    search = make_searcher(slowly, fit=[], scored=scored)
    assert [search(s.read().image, s.read()).seconds for s in scored] == [7] * len(scored)


def test_a_proposal_keeps_its_pixels_and_what_a_rule_may_know():
    one = subject("a", "P")
    got = propose(Generator(), one.image)
    np.testing.assert_array_equal(decode_rle(got.rles[0]), one.objects[0])
    assert got.features.shape == (2, len(selection.FEATURES))
    area = got.features[:, selection.FEATURES.index("area")]
    assert area[0] == pytest.approx(one.findings.mean())


def test_masks_of_an_image_larger_than_sam_sees_are_searched_small_and_given_whole():
    tall = np.zeros((2400, 900, 3), np.uint8)
    tall[600:1200, 300:600] = 200
    shown = []

    def bright(image):
        shown.append(image.shape)
        mask = image[..., 0] > 100
        return [{"segmentation": encode_rle(mask), "predicted_iou": 0.75, "stability_score": 0.9}]

    found = propose(bright, tall)
    assert shown == [(1024, 384, 3)]
    mask = decode_rle(found.rles[0])
    assert mask.shape == (2400, 900)
    assert np.count_nonzero(mask != (tall[..., 0] > 100)) < 3 * (600 + 300)  # 2.3 pixels to one.
    area = found.features[0, selection.FEATURES.index("area")]
    assert area == pytest.approx(1 / 12, rel=0.01)
