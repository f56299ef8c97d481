"""How a model is asked: askers drawn by hand, pixels and seconds counted apart."""

import math

import numpy as np
import pytest
from scipy import ndimage

from pp_jax.evaluate import consistency, models
from pp_jax.evaluate.automatic import Found
from pp_jax.evaluate.models import Asked, answers, check_confidence, image_score
from pp_jax.evaluate.protocols import Drawn, draw_marks, parse_protocols
from pp_jax.evaluate.subjects import Answer, Marks, Subject
from pp_jax.predict.asking import Asker, Decoded, Embedded
from pp_jax.preprocess.roi import Window

HEIGHT, WIDTH, SIDE, STRIDE = 48, 64, 64, 4
LOW = SIDE // STRIDE
PROMPTED = "box,jitter:10,centre,point,box+point,scribble"


def subject(name: str = "a", *, seed: int = 0, boxes=((8, 8, 28, 24), (36, 20, 60, 44))) -> Subject:
    """Filled boxes with a corner cut off, on an image of black and white cells."""
    objects = np.zeros((len(boxes), HEIGHT, WIDTH), bool)
    for pixels, (x0, y0, x1, y1) in zip(objects, boxes, strict=True):
        pixels[y0:y1, x0:x1] = True
        pixels[y0 : y0 + 4, x0 : x0 + 4] = False
    cells = np.random.default_rng(seed).random((HEIGHT // STRIDE, WIDTH // STRIDE)) < 0.5
    image = np.kron(255 * cells.astype(np.uint8), np.ones((STRIDE, STRIDE), np.uint8))
    edges = np.array(boxes, np.float64).reshape(-1, 4)
    facts = (f"P{name}", "set", "mask", "", "", "", None, None)
    return Subject(name, *facts, np.repeat(image[..., None], 3, 2), objects, edges, objects.any(0))


class Fake:
    """A model that answers by a function of the image's cells and the marks, and is watched."""

    def __init__(self, think, *, iou=(0.9, 0.2, 0.8, 0.5), per="nothing"):
        self.think, self.iou, self.encoded, self.told = think, iou, [], []
        self.asker = Asker(self.embed, self.decode, self.upscale, SIDE, per)

    def embed(self, image, box=None):
        self.encoded.append(image)
        whole = Window(0, 0, *image.shape[:2])
        return Embedded(image[::STRIDE, ::STRIDE, 0], (HEIGHT, WIDTH), image.shape[:2], whole)

    def decode(self, embedded, marks):
        self.told.append(marks)
        given = next((x for x in (marks.boxes, marks.points) if x is not None), [None])
        logits = np.full((len(given), 4, LOW, LOW), 7.0, np.float32)
        for n, own in enumerate(logits):
            thought = self.think(embedded.features, _of(marks, n))
            own[:, : max(len(embedded.features), thought.shape[-2])] = thought
        return Decoded(logits, np.tile(np.float32(self.iou), (len(given), 1)))

    def upscale(self, embedded, logits):
        cell = np.ones((1, STRIDE, STRIDE), np.float32)
        return np.kron(logits, cell)[:, :HEIGHT, :WIDTH]


def _of(marks: Marks, n: int) -> Marks:
    return Marks(*(None if field is None else field[n] for field in marks))


def echo(cells, marks):
    """What is white in the image."""
    return np.where(cells > 127, 3.0, -3.0)


def nested(cells, marks):
    """Mask number m is the first m + 1 columns of cells."""
    return np.stack([np.where(np.arange(LOW) <= m, 1.0, -1.0) for m in range(4)])[:, None]


def noise(seed: int):
    rng = np.random.default_rng(seed)
    return lambda cells, marks: rng.normal(size=(4, HEIGHT // STRIDE, LOW))


def asked(fake: Fake, **chosen) -> Asked:
    told = {
        "filtered": (),
        "single": False,
        "refine": (),
        "confidence": frozenset(),
        "seed": 0,
        "shown": lambda one: one.image,
        "searcher": None,
    }
    return Asked(fake.asker, **(told | chosen))


def drawn(one: Subject, specs: str) -> dict[str, Drawn]:
    return {spec: draw_marks(spec, one, seed=0) for spec in parse_protocols(specs)}


def ask(fake: Fake, specs: str, one: Subject | None = None, **chosen) -> list:
    one = subject() if one is None else one
    return list(answers(asked(fake, **chosen), one, drawn(one, specs)))


def overlap(mask: np.ndarray, target: np.ndarray) -> float:
    """Dice, from sets of pixels."""
    a, b = (set(np.flatnonzero(one).tolist()) for one in (mask, target))
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def test_confidence_names_what_is_computed():
    assert check_confidence(" jitter, tta,,") == {"jitter", "tta"}
    assert check_confidence("") == frozenset()
    with pytest.raises(ValueError, match="--confidence 'entropy': choose among stability, jitter"):
        check_confidence("tta,entropy")


# What is asked and answered.


def test_an_image_is_encoded_once_whatever_is_asked_and_never_for_automatic_masks_alone():
    fake = Fake(noise(0))
    ask(fake, f"{PROMPTED},clicks:3,none")
    assert len(fake.encoded) == 1
    nothing = found(np.zeros((0, HEIGHT, WIDTH), bool), [])
    assert ask(fake, "auto", searcher=lambda image, one: nothing)
    assert len(fake.encoded) == 1


def test_the_model_is_told_what_was_drawn_and_its_best_mask_is_the_answer():
    one, fake = subject(), Fake(nested)
    told = drawn(one, f"{PROMPTED},none")
    got = [o for o in answers(asked(fake), one, told) if o.choice == "model"]
    assert [outcome.protocol for outcome in got] == list(told)
    for outcome, marks, spec in zip(got, fake.told, told, strict=True):
        assert marks is told[spec].marks
        # Of the three, number 2 has the highest score: three columns of cells.
        assert outcome.masks.sum((1, 2)).tolist() == [3 * STRIDE * HEIGHT] * len(outcome.masks)
        assert outcome.predicted_iou.tolist() == [np.float32(0.8)] * len(outcome.masks)
        assert len(outcome.masks) == (1 if spec == "none" else 2)


def test_boxes_and_scores_exist_only_where_the_prompt_tells_no_truth():
    for outcome in ask(Fake(nested), f"{PROMPTED},clicks:2,none"):
        free = outcome.protocol == "none"
        told = free and outcome.choice == "model"
        assert outcome.prompted == (not free)
        assert (outcome.score is not None, outcome.found is not None) == (told, told)
        if told:
            assert outcome.found.boxes.tolist() == [[0, 0, 12, 48]]
            # sigmoid(1) of every pixel, times the predicted IoU.
            assert outcome.score == pytest.approx(0.8 / (1 + math.exp(-1)))
            assert outcome.found.confidences == pytest.approx(0.8 / (1 + math.exp(-1)))


def test_the_score_of_an_image_is_that_of_its_surest_hundredth():
    logits = np.full((2, 20, 20), -4.0)
    logits[0, 3, :2], logits[1, 9, 5:7] = (3, 1), (2, -1)
    probability = [1 / (1 + math.exp(-x)) for x in (3, 2, 1, -1)]
    masks = logits > 0
    got = image_score(Answer(masks, np.array([0.25, 0.5]), logits, None))
    assert got == pytest.approx(0.5 * sum(probability) / 4)
    assert image_score(Answer(masks, np.array([-0.25, -0.5]), logits, None)) == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("refine", [(), ("convex_hull",)])
def test_an_oracle_takes_the_best_of_what_the_model_offers_and_is_never_worse(seed, refine):
    one = subject(seed=seed)
    got = ask(Fake(noise(seed)), f"{PROMPTED},none", one, refine=refine)
    chosen = {o.protocol: o for o in got if o.choice == "model"}
    best = {o.protocol: o for o in got if o.choice == "oracle"}
    assert chosen.keys() == best.keys() == parse_protocols(f"{PROMPTED},none").keys()
    better = 0
    for spec, oracle in best.items():
        targets = one.objects if spec != "none" else one.findings[None]
        for mask, own, target in zip(oracle.masks, chosen[spec].masks, targets, strict=True):
            assert overlap(mask, target) >= overlap(own, target)
            better += overlap(mask, target) > overlap(own, target)
        assert (oracle.predicted_iou, oracle.logits, oracle.confidences) == (None, None, {})
    assert better


def test_an_oracle_finds_the_mask_that_was_made_for_it():
    one = subject()
    cells = one.findings[::STRIDE, ::STRIDE]

    def hidden(image, marks):
        target = np.where(cells, 1.0, -1.0)
        return np.stack([-target, -target, 0 * target - 1, target])

    got = ask(Fake(hidden), "none")
    assert [overlap(o.masks[0], one.findings) for o in got] == [0, 1]


def test_sams_single_mask_counts_where_an_object_has_more_marks_than_a_box_and_it_was_trained():
    for single in (True, False):
        columns = {}
        offered = set()
        for outcome in ask(Fake(nested), f"{PROMPTED},clicks:3,none", single=single):
            if outcome.choice == "model":
                columns[outcome.protocol] = outcome.masks[0].sum() // (STRIDE * HEIGHT)
            else:
                offered.add(outcome.protocol)
        many = {"box+point", "scribble", "clicks:2", "clicks:3"}
        assert {spec for spec, count in columns.items() if count == 1} == (
            many if single else set()
        )
        assert set(columns.values()) <= {1, 3}
        # One mask alone leaves nothing to choose, and nor does a chain of corrections.
        clicks = {"clicks:1", "clicks:2", "clicks:3"}
        assert offered == columns.keys() - clicks - (many if single else set())


def test_two_clicks_are_more_than_one_mark():
    one = subject(boxes=((8, 8, 28, 24),))
    for count, columns in ((1, 3), (2, 1)):
        marks = Marks(points=np.ones((1, count, 2)), labels=np.ones((1, count), int))
        told = {"point": Drawn(marks, np.zeros((1, 1)))}
        outcome = next(iter(answers(asked(Fake(nested), single=True), one, told)))
        assert outcome.masks.sum() == columns * STRIDE * HEIGHT


def test_every_round_of_clicks_is_an_answer_and_the_last_keeps_all_clicks():
    one, fake = subject(), Fake(noise(1))
    told = drawn(one, "clicks:4")
    got = list(answers(asked(fake), one, told))
    assert [outcome.protocol for outcome in got] == [f"clicks:{k}" for k in range(1, 5)]
    assert [outcome.clicks is None for outcome in got] == [True, True, True, False]
    kept, first = got[-1].clicks, told["clicks:4"]
    assert kept["uniforms"] == first.uniforms.tolist()
    assert np.array(kept["points"]).shape == (2, 4, 2)
    assert np.array(kept["points"])[:, :1].tolist() == first.marks.points.tolist()
    assert "logits" not in kept
    for n, (points, labels) in enumerate(zip(kept["points"], kept["labels"], strict=True)):
        for k in range(1, 4):
            x, y = map(int, points[k])
            before, target = got[k - 1].masks[n], one.objects[n]
            inside = np.flatnonzero(before != target)
            assert y * WIDTH + x == inside[int(first.uniforms[n, k] * len(inside))]
            assert labels[k] == target[y, x]


def test_the_seconds_of_an_answer_are_the_models_own(monkeypatch):
    clock = [0.0]
    fake = Fake(noise(2))
    embed, decode = fake.asker.embed, fake.asker.decode

    def slowly(seconds, work):
        def wait(*args):
            clock[0] += seconds
            return work(*args)

        return wait

    monkeypatch.setattr(models, "perf_counter", lambda: clock[0])
    fake.asker = fake.asker._replace(embed=slowly(1, embed), decode=slowly(10, decode))
    seconds = {}
    confidence = frozenset({"jitter", "tta"})
    one = subject()
    told = drawn(one, "point,clicks:3")
    for outcome in answers(asked(fake, confidence=confidence), one, told):
        seconds[outcome.protocol] = outcome.seconds
        clock[0] += 1000  # Whoever reads an answer takes time of its own.
    assert seconds == {"point": 11, "clicks:1": 11, "clicks:2": 21, "clicks:3": 31}


def test_what_is_shown_in_the_place_of_an_image_is_what_the_model_sees():
    one, other = subject(seed=1), subject("b", seed=2)
    got = ask(Fake(echo), "box,none,clicks:2", one, shown=lambda own: other.image)
    for outcome in got:
        for mask in outcome.masks:
            np.testing.assert_array_equal(mask, other.image[..., 0] > 127)
    for outcome in ask(Fake(echo), "box,none,clicks:2", one):
        for mask in outcome.masks:
            np.testing.assert_array_equal(mask, one.image[..., 0] > 127)


def test_a_refined_answer_is_refined_in_every_protocol():
    """The largest of the white parts, which are many."""
    one = subject(seed=3)
    labels, _ = ndimage.label(one.image[..., 0] > 127, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    for outcome in ask(Fake(echo), "box,clicks:2,none", one, refine=("keep_largest",)):
        if outcome.choice == "model":
            for mask in outcome.masks:
                np.testing.assert_array_equal(mask, labels == areas.argmax())


# Confidence.


def told_by(outcomes: list, spec: str) -> dict:
    return next(o.confidences for o in outcomes if (o.protocol, o.choice) == (spec, "model"))


def test_nothing_is_computed_that_is_not_asked_for():
    fake = Fake(echo)
    for outcome in ask(fake, "box,clicks:2,none"):
        if outcome.choice == "model":
            assert list(outcome.confidences) == ["predicted_iou"]
    assert (len(fake.encoded), len(fake.told)) == (1, 4)


def test_stability_is_of_each_mask(monkeypatch):
    monkeypatch.setattr(consistency, "stability", lambda logits: float((logits > 0).sum()))
    for outcome in ask(Fake(noise(5)), "box,clicks:2", confidence=frozenset({"stability"})):
        if outcome.choice == "model":
            assert outcome.confidences["stability"] == outcome.masks.sum((1, 2)).tolist()


def test_a_model_that_hears_nothing_agrees_with_itself_within_the_image():
    """What it says beyond the image's lower edge changes at each draw and counts for nothing."""
    rng = np.random.default_rng(0)

    def deaf(cells, marks):
        beyond = rng.normal(size=(LOW - len(cells), LOW))
        return np.concatenate([echo(cells, marks), beyond])

    got = ask(Fake(deaf), "box,scribble,none", confidence=frozenset({"jitter"}))
    for spec in ("box", "scribble"):
        assert told_by(got, spec)["jitter"] == [1, 1]
        assert told_by(got, spec)["entropy"] == [0, 0]
    assert list(told_by(got, "none")) == ["predicted_iou"]


def test_jitter_is_the_mean_iou_of_the_answers_to_other_marks_of_the_same_object():
    def count(box) -> int:
        return 20 + round(10 * sum(box)) % 100

    def first(cells, marks):
        """The first cells, as many as the box says."""
        return np.where(np.arange(cells.size).reshape(cells.shape) < count(marks.boxes), 1.0, -1.0)

    def jitter(seed: int) -> tuple[list, Fake]:
        fake = Fake(first)
        got = ask(fake, "box", confidence=frozenset({"jitter"}), seed=seed)
        return told_by(got, "box")["jitter"], fake

    got, fake = jitter(0)
    boxes = fake.told[-1].boxes
    assert boxes.shape == (2 * models.JITTERED, 4)
    for n, exact in enumerate(subject().boxes):
        own = boxes[n::2]  # One draw of all objects after the other.
        assert np.abs(own - exact).max() <= 0.05 * 24
        counts = [count(box) for box in own]
        pairs = [(a, b) for i, a in enumerate(counts) for b in counts[:i]]
        assert got[n] == pytest.approx(np.mean([min(pair) / max(pair) for pair in pairs]))
        assert got[n] < 1
    assert jitter(0)[0] == got
    assert jitter(1)[0] != got


def test_a_mirrored_view_is_mirrored_back():
    """Who follows the image agrees under every view; who says left agrees in half of the pairs."""
    got = ask(Fake(echo), "box,point,none", confidence=frozenset({"tta"}))
    for spec in ("box", "point", "none"):
        assert told_by(got, spec)["tta"] == [1] * (1 if spec == "none" else 2)
    left = Fake(lambda cells, marks: np.where(np.arange(LOW) < LOW // 2, 1.0, -1.0)[None])
    got = ask(left, "box", confidence=frozenset({"tta"}))
    assert told_by(got, "box")["tta"] == [0.5, 0.5]
    assert [len(marks.boxes) for marks in left.told] == [2] * 4
    mirrored = WIDTH - subject().boxes[:, [2, 0]]
    np.testing.assert_allclose(left.told[1].boxes[:, [0, 2]], mirrored)


def test_filters_agree_by_the_mean_iou_of_what_each_of_them_shows():
    def half(cells, marks):
        return np.where((np.arange(LOW) < LOW // 2) & (cells > -1), 1.0, -1.0)

    def quarter(cells, marks):
        return np.where((np.arange(LOW) < LOW // 4) & (cells > -1), 1.0, -1.0)

    filtered = [Fake(think).asker for think in (half, half, quarter)]
    got = ask(Fake(echo), "box,none", confidence=frozenset({"filters"}), filtered=filtered)
    assert told_by(got, "box")["filters"] == pytest.approx([(1 + 0.5 + 0.5) / 3] * 2)
    assert told_by(got, "none")["filters"] == pytest.approx([2 / 3])


def test_where_each_box_has_a_window_each_is_encoded_and_nothing_is_shared():
    fake = Fake(echo, per="box")
    got = ask(fake, "box", confidence=frozenset({"jitter"}))
    assert len(fake.encoded) == 2
    assert [len(marks.boxes) for marks in fake.told] == [1, 1]
    assert list(told_by(got, "box")) == ["predicted_iou"]


# Automatic masks.


def found(masks: np.ndarray, taken: list[bool]) -> Found:
    count = len(masks)
    probability = np.linspace(0.1, 0.9, count)
    predicted, stability = np.linspace(0.5, 0.6, count), np.linspace(0.8, 1.0, count)
    return Found(masks, predicted, stability, probability, np.array(taken, bool), 3.5)


def auto(masks: np.ndarray, taken: list[bool], one: Subject) -> list:
    told = found(masks, taken)
    return ask(Fake(echo), "auto", one, searcher=lambda image, subject: told)


def test_automatic_masks_are_those_that_the_rule_takes():
    one = subject()
    masks = np.stack([one.objects[0], ~one.findings, one.objects[1]])
    own, oracle = auto(masks, [True, False, True], one)
    np.testing.assert_array_equal(own.masks, one.objects)
    assert own.confidences == {
        "predicted_iou": pytest.approx([0.5, 0.6]),
        "stability": pytest.approx([0.8, 1.0]),
    }
    assert (own.prompted, own.score, own.seconds) == (False, 0.9, 3.5)
    assert own.found.boxes.tolist() == one.boxes.tolist()
    assert own.found.confidences == pytest.approx([0.1, 0.9])
    assert (oracle.choice, oracle.score, oracle.found) == ("oracle", None, None)


def test_the_oracle_has_the_best_mask_for_each_object_or_the_models_own():
    one = subject()
    left, right = one.objects[0].copy(), one.objects[0].copy()
    left[:, 18:], right[:, :18] = False, False
    masks = np.stack([left, right, one.objects[1]])
    oracle = auto(masks, [False, False, True], one)[1]
    want = max((left, right), key=lambda mask: overlap(mask, one.objects[0]))
    np.testing.assert_array_equal(oracle.masks, np.stack([want, one.objects[1]]))
    assert oracle.prompted
    both = auto(masks, [True, True, False], one)[1]
    np.testing.assert_array_equal(both.masks, one.objects)


def test_no_proposal_is_an_empty_answer_and_a_score_of_nothing():
    own, oracle = auto(np.zeros((0, HEIGHT, WIDTH), bool), [], subject())
    assert not own.masks.any(0).any()
    assert own.masks.any(0).shape == (HEIGHT, WIDTH)
    assert (own.score, len(own.found.boxes)) == (0, 0)
    assert oracle.masks.shape == (2, HEIGHT, WIDTH)
    assert not oracle.masks.any()


def test_an_image_without_an_object_has_no_oracle_for_its_automatic_masks():
    one = subject(boxes=())
    got = auto(subject().objects, [True, True], one)
    assert [outcome.choice for outcome in got] == ["model"]
