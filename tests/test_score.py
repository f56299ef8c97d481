"""The rows of an evaluation against pixels counted apart, and an evaluation that is killed."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pp_jax.evaluate import score as scoring
from pp_jax.evaluate.detection import Scored
from pp_jax.evaluate.files import write_rows
from pp_jax.evaluate.journal import open_journal
from pp_jax.evaluate.methods import Method, Outcome, Source
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.protocols import draw_marks, parse_protocol, parse_protocols, to_plain
from pp_jax.evaluate.score import score
from pp_jax.evaluate.subjects import CONFIDENCES, KEYS, Subject

SIZE = (40, 60)
FACTS = {"target": "mask", "label": "Opacity", "view": "PA", "sex": "F", "age": 61.5}
LEFT, RIGHT = (4, 6, 20, 18), (36, 10, 56, 30)  # (x0, y0, x1, y1), of 192 and 400 pixels.


def filled(*boxes) -> np.ndarray:
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def subject(name: str, patient: str = "P", *, boxes=(LEFT, RIGHT), **facts) -> Subject:
    rng = np.random.default_rng(len(name))
    objects = filled(*boxes)
    findings = objects.any(0)
    grey = (100 + 50 * findings + rng.integers(0, 20, SIZE)).astype(np.uint8)
    edges = np.array(boxes, np.float64).reshape(-1, 4)
    image = np.repeat(grey[..., None], 3, 2)
    told = {"spacing": None, **FACTS, **facts}
    return Subject(
        id=name,
        patient=patient,
        dataset="set",
        image=image,
        objects=objects,
        boxes=edges,
        findings=findings,
        **told,
    )


def to_source(one: Subject) -> Source:
    return Source(one.dataset, one.id, one.patient, lambda: one)


def outcome(masks: np.ndarray, **chosen) -> Outcome:
    told = {
        "protocol": "box",
        "choice": "model",
        "prompted": True,
        "predicted_iou": None,
        "logits": None,
        "confidences": {},
        "score": None,
        "found": None,
        "seconds": 1.5,
    }
    return Outcome(masks=masks, **(told | chosen))


class Watched:
    """A method that answers by a function, and notes what it was opened with and asked."""

    def __init__(self, answer: Callable, *, serves=lambda patient: True):
        self.answer, self.serves, self.opened, self.asked = answer, serves, [], []

    def method(self, label: str = "model", seed: str = "", also: tuple[str, ...] = ()) -> Method:
        def begin(sources):
            self.opened.append([source.id for source in sources])

            def run(one, drawn):
                self.asked.append((one.id, list(drawn)))
                yield from self.answer(one, drawn)

            return run

        return Method(label, seed, self.serves, begin, also)


def always(*outcomes) -> Callable:
    return lambda one, drawn: iter(outcomes)


def scored(folder, methods, subjects, *, specs="box", stored=None):
    book = open_journal(folder / "x", {"specs": specs})
    protocols = parse_protocols(specs)
    sources = [to_source(one) for one in subjects]
    return score(book, methods, sources, protocols=protocols, seed=0, stored=stored or {})


def one_image(folder, one: Subject, *outcomes):
    """The rows of objects and of the image, of each outcome."""
    found = scored(folder, [Watched(always(*outcomes)).method()], [one])
    return found.objects, found.images


# Rows.


def test_rows_have_the_columns_that_reports_read_and_the_facts_of_the_image(tmp_path):
    one = subject("a", "P7")
    objects, images = one_image(tmp_path, one, outcome(one.objects))
    shared = [*KEYS, *FACTS, "area", "contrast", *CONFIDENCES, "empty", *METRICS, "hd95_mm"]
    assert set(objects[0]) == {*shared, "object", "error"}
    assert set(images[0]) == {
        *shared,
        *("objects", "tp", "fp", "fn", "matched_iou", "score", "error"),
    }
    for row in (*objects, *images):
        assert {name: row[name] for name in FACTS} == FACTS
        keys = ("model", "", "box", "model", "set", "a", "P7")
        assert tuple(row[name] for name in KEYS) == keys


def test_each_object_has_a_row_and_the_image_one_of_their_union(tmp_path):
    """The left object is found by half; the right one is found, and 100 pixels besides."""
    one = subject("a")
    masks = filled((4, 6, 20, 12), (36, 10, 56, 35))
    objects, (image,) = one_image(tmp_path, one, outcome(masks))
    assert [row["object"] for row in objects] == [0, 1]
    assert [row["dice"] for row in objects] == [2 * 96 / (96 + 192), 2 * 400 / (500 + 400)]
    assert [row["recall"] for row in objects] == [0.5, 1]
    assert [row["area"] for row in objects] == pytest.approx([8, 100 / 6])
    assert [row["error"] for row in objects] == ["under", ""]
    assert image["dice"] == 2 * 496 / (596 + 592)
    assert (image["iou"], image["area"]) == pytest.approx((496 / 692, 100 * 592 / 2400))
    assert (image["objects"], image["tp"], image["fp"], image["fn"]) == (2, 1, 1, 1)
    assert image["matched_iou"] == 400 / 500
    # Both objects are 50 grey levels brighter, beside a spread of 20 levels' uniform noise.
    for row in (*objects, image):
        assert row["contrast"] == pytest.approx(50 / math.sqrt((20**2 - 1) / 12), rel=0.1)
    assert image["contrast"] == pytest.approx(np.mean([row["contrast"] for row in objects]))


def test_a_mask_beside_its_object_is_wrong_but_not_empty(tmp_path):
    one = subject("a")
    (left, right), _ = one_image(tmp_path, one, outcome(filled((4, 30, 20, 36), RIGHT)))
    assert (left["empty"], left["error"], left["dice"]) == ("neither", "missed", 0)
    assert (right["empty"], right["error"], right["dice"]) == ("neither", "", 1)


def test_the_contrast_of_an_object_is_not_with_its_neighbour(tmp_path):
    """The halves of the left object touch: to each the other is no background."""
    one = subject("a", boxes=((4, 6, 12, 18), (12, 6, 20, 18)))
    for row in one_image(tmp_path, one, outcome(one.objects))[0]:
        assert row["contrast"] == pytest.approx(50 / math.sqrt((20**2 - 1) / 12), rel=0.1)


def test_confidences_are_those_of_each_mask_and_their_mean_and_unknown_ones_are_none(tmp_path):
    one = subject("a")
    told = {"predicted_iou": [0.25, 0.75], "jitter": [None, 0.5], "entropy": [None, None]}
    objects, (image,) = one_image(tmp_path, one, outcome(one.objects, confidences=told))
    assert [row["predicted_iou"] for row in objects] == [0.25, 0.75]
    assert [row["jitter"] for row in objects] == [None, 0.5]
    assert (image["predicted_iou"], image["jitter"], image["entropy"]) == (0.5, 0.5, None)
    assert [row["tta"] for row in (*objects, image)] == [None] * 3


def test_without_marks_each_object_is_answered_by_the_component_that_fits_it(tmp_path):
    one = subject("a")
    # Of one mask: a part of the left object, something above and below, nothing on the right one.
    mask = filled((4, 6, 20, 12), (36, 0, 56, 8), (0, 34, 10, 40)).any(0)[None]
    told = {"predicted_iou": [0.5]}
    free = outcome(mask, protocol="none", prompted=False, score=0.25, confidences=told)
    objects, (image,) = one_image(tmp_path, one, free)
    assert [row["dice"] for row in objects] == [2 * 96 / (96 + 192), 0]
    assert [row["empty"] for row in objects] == ["neither", "one"]
    assert [row["predicted_iou"] for row in (*objects, image)] == [None, None, 0.5]
    assert (image["score"], image["precision"]) == (0.25, 96 / (96 + 160 + 60))
    assert (image["tp"], image["fp"], image["fn"], image["matched_iou"]) == (0, 3, 2, 0)


def test_no_figure_is_nan_whatever_is_empty(tmp_path):
    nothing, whole = np.zeros((1, *SIZE), bool), np.ones((1, *SIZE), bool)
    cases = {
        "both": (subject("a", boxes=()), nothing),
        "one": (subject("bb", boxes=()), whole),
        "none found": (subject("ccc"), np.zeros((0, *SIZE), bool)),
        "all": (subject("dddd", boxes=((0, 0, 60, 40),)), whole),
    }
    rows = {}
    for name, (one, masks) in cases.items():
        free = outcome(masks, protocol="none", prompted=False, score=0.0)
        objects, (rows[name],) = one_image(tmp_path / name, one, free)
        for row in (*objects, rows[name]):
            figures = [row[metric] for metric in METRICS]
            assert all(x is None or math.isfinite(x) for x in figures)
            assert [n for n in METRICS if row[n] is None] in ([], ["thin_recall"])
        assert len(objects) == len(one.objects)
    assert [rows[name]["empty"] for name in cases] == ["both", "one", "one", "neither"]
    assert [rows[name]["dice"] for name in cases] == [1, 0, 0, 1]
    diagonal = 100 * math.hypot(*SIZE) / 60
    want = [0, diagonal, diagonal, 0]
    assert [rows[name]["hd95"] for name in cases] == pytest.approx(want)
    assert [rows[name]["objects"] for name in cases] == [0, 0, 2, 1]


def test_millimetres_stand_where_the_spacing_can_be_believed(tmp_path):
    """The left object is missed by two columns; the film would be 400 mm high, or 40."""
    masks = filled((6, 6, 20, 18), RIGHT)
    for spacing, want in (((10.0, 5.0), 10.0), ((1.0, 1.0), None), (None, None)):
        one = subject("a", spacing=spacing)
        (left, _), _ = one_image(tmp_path / str(spacing), one, outcome(masks))
        assert left["hd95_mm"] == want
        assert left["hd95"] == pytest.approx(100 * 2 / 60)


def test_boxes_are_kept_where_no_prompt_tells_them_and_of_the_models_choice_alone(tmp_path):
    one = subject("a", "P7")
    found = Scored(np.array([[1.0, 2.0, 30.0, 20.5]]), np.array([0.125]))
    free = {"protocol": "none", "prompted": False}
    told = scored(
        tmp_path,
        [
            Watched(
                always(
                    outcome(one.objects),
                    outcome(one.objects, found=found, **free),
                    outcome(one.objects, choice="oracle", seconds=99.0, **free),
                )
            ).method("m", "s1")
        ],
        [one],
    )
    assert told.detections == [
        {
            "method": "m",
            "seed": "s1",
            "protocol": "none",
            "choice": "model",
            "dataset": "set",
            "id": "a",
            "patient": "P7",
            "label": "Opacity",
            "boxes": [[1, 2, 30, 20.5]],
            "confidences": [0.125],
            "truth": [list(map(float, LEFT)), list(map(float, RIGHT))],
        }
    ]
    assert told.seconds == {("m", "box"): [1.5], ("m", "none"): [1.5]}
    assert [(row["protocol"], row["choice"]) for row in told.images] == [
        ("box", "model"),
        ("none", "model"),
        ("none", "oracle"),
    ]


def test_reliability_over_images_is_that_of_one_pass_over_all_their_pixels(tmp_path):
    rng = np.random.default_rng(0)
    subjects = [subject("a"), subject("bb", boxes=(RIGHT,)), subject("ccc", boxes=())]
    logits = {one.id: rng.normal(size=(len(one.objects) or 1, *SIZE)) for one in subjects}

    def answer(one, drawn):
        shown = logits[one.id]
        yield outcome(shown > 0, logits=shown, protocol="none", prompted=False, score=0.5)

    found = scored(tmp_path, [Watched(answer).method("m", "s")], subjects, specs="none")
    (key,) = found.reliability
    got = found.reliability[key]
    probability, truth = [], []
    for one in subjects[:2]:
        inside = np.argwhere(one.findings)
        padded = np.pad(one.findings, 1, constant_values=True)
        edge = [p for p in inside if not all(padded[p[0] + a, p[1] + b] for a, b in _CROSS)]
        places = np.argwhere(np.ones(SIZE))
        near = places[cdist(places, np.array(edge)).min(1) <= 0.05 * 60]
        own = 1 / (1 + np.exp(-logits[one.id].max(0)))
        probability += [own[y, x] for y, x in near]
        truth += [float(one.findings[y, x]) for y, x in near]
    assert key == ("m", "s", "none")
    assert int(got.images) == 2
    assert got.counts.sum() == len(truth)
    counts, _ = np.histogram(probability, bins=15, range=(0, 1))
    assert got.counts.tolist() == counts.tolist()
    error = sum((p - t) ** 2 for p, t in zip(probability, truth, strict=True))
    assert got.sum_squared_error.sum() == pytest.approx(error)
    assert got.sum_truth.sum() == sum(truth)


_CROSS = ((0, 1), (2, 1), (1, 0), (1, 2))  # The neighbours by side, in a frame one pixel wider.


# Prompts.


def test_prompts_are_drawn_once_for_all_methods_and_kept(tmp_path):
    one, seen = subject("a"), []

    def answer(_, drawn):
        seen.append(drawn)
        yield outcome(one.objects)

    watched = [Watched(answer) for _ in range(2)]
    methods = [watched[0].method("m"), watched[1].method("guess", also=("box",))]
    found = scored(tmp_path, methods, [one], specs="point,clicks:3")
    assert [list(drawn) for drawn in seen] == [
        ["point", "clicks:3"],
        ["point", "clicks:3", "box"],
    ]
    for spec in ("point", "clicks:3", "box"):
        plain = to_plain(draw_marks(spec, one, seed=0))
        assert found.prompts[spec] == {"a": plain}
        assert all(to_plain(drawn[spec]) == plain for drawn in seen if spec in drawn)


def test_where_nothing_can_be_marked_only_prompts_that_mark_nothing_are_asked(tmp_path):
    watched = Watched(lambda one, drawn: iter(()))
    specs = "box,clicks:2,auto,none"
    scored(tmp_path, [watched.method()], [subject("a"), subject("bb", boxes=())], specs=specs)
    assert watched.asked == [("a", specs.split(",")), ("bb", ["auto", "none"])]
    assert [not parse_protocol(s)[1].needs_objects for s in specs.split(",")] == [
        False,
        False,
        True,
        True,
    ]


def test_stored_prompts_are_played_again_and_must_fit_the_image(tmp_path):
    one, seen = subject("a"), []
    kept = draw_marks("point", one, seed=77)

    def answer(_, drawn):
        seen.append(drawn["point"])
        yield outcome(one.objects)

    methods, told = [Watched(answer).method()], {"specs": "point", "stored": {"point": {"a": kept}}}
    scored(tmp_path, methods, [one, subject("bb")], **told)
    assert seen[0] is kept
    assert to_plain(seen[1]) == to_plain(draw_marks("point", subject("bb"), seed=0))
    other = subject("a", boxes=(LEFT,))
    with pytest.raises(ValueError, match="point marks 2 objects on a, which has 1"):
        scored(tmp_path / "y", methods, [other], **told)


def test_clicks_are_those_of_the_first_seed(tmp_path):
    def made(value):
        return Watched(always(outcome(subject("a").objects, clicks={"points": value})))

    methods = [made(1).method("m", "s0"), made(2).method("m", "s1"), made(3).method("n")]
    found = scored(tmp_path, methods, [subject("a"), subject("bb")])
    assert found.clicks == {
        "m": {"a": {"points": 1}, "bb": {"points": 1}},
        "n": {"a": {"points": 3}, "bb": {"points": 3}},
    }


# Folds, seeds and interruptions.


def test_each_fold_answers_for_its_own_patients_and_is_opened_with_all_of_them(tmp_path):
    folds = [
        Watched(always(outcome(subject("a").objects)), serves=serves)
        for serves in ({"P0", "P2"}.__contains__, {"P1"}.__contains__)
    ]
    subjects = [subject(f"i{n}", f"P{n}") for n in range(3)]
    found = scored(tmp_path, [fold.method("m") for fold in folds], subjects)
    assert [fold.opened for fold in folds] == [[["i0", "i2"]], [["i1"]]]
    assert [[name for name, _ in fold.asked] for fold in folds] == [["i0", "i2"], ["i1"]]
    assert [row["id"] for row in found.images] == ["i0", "i2", "i1"]


def noisy(seed: int) -> Callable:
    """Answers that differ from image to image, with everything that a line may hold."""

    def answer(one, drawn):
        rng = np.random.default_rng([seed, *one.id.encode()])
        logits = rng.normal(size=one.objects.shape) + one.objects
        told = {"predicted_iou": rng.random(len(logits)).tolist()}
        yield outcome(logits > 0, logits=logits, confidences=told, clicks={"n": [1]})

    return answer


def tables(folder, found) -> bytes:
    write_rows(folder / "results.csv", found.objects)
    write_rows(folder / "images.csv", found.images)
    return (folder / "results.csv").read_bytes() + (folder / "images.csv").read_bytes()


def test_an_evaluation_killed_within_a_line_goes_on_to_the_same_tables(tmp_path):
    subjects = [subject(name, f"P{name}") for name in ("a", "bb", "ccc")]

    def begin(folder):
        watched = [Watched(noisy(n)) for n in range(2)]
        methods = [one.method(f"m{n}", f"s{n}") for n, one in enumerate(watched)]
        return watched, scored(folder, methods, subjects)

    _, whole = begin(tmp_path / "whole")
    want = tables(tmp_path, whole)
    lines = (tmp_path / "whole" / "x" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    for done in (0, 2, 3, 5, 6):
        folder = tmp_path / str(done)
        begin(folder)
        cut = b"".join(lines[:done]) + (lines[done][: len(lines[done]) // 2] if done < 6 else b"")
        (folder / "x" / "journal.jsonl").write_bytes(cut)
        watched, again = begin(folder)
        assert tables(tmp_path, again) == want
        names = [(n, name) for n, one in enumerate(watched) for name, _ in one.asked]
        assert names == [(n, s.id) for n in range(2) for s in subjects][done:]
        # A rule that is fitted on the images knows all of them again.
        assert [one.opened for one in watched] == [
            [["a", "bb", "ccc"]] if done < last else [] for last in (3, 6)
        ]
        for key, seen in whole.reliability.items():
            for one, other in zip(seen, again.reliability[key], strict=True):
                np.testing.assert_array_equal(one, other)
        assert (again.prompts, again.clicks, again.seconds) == (
            whole.prompts,
            whole.clicks,
            whole.seconds,
        )


def test_an_evaluation_that_fails_keeps_what_it_finished(tmp_path):
    subjects = [subject("a"), subject("bb"), subject("ccc")]

    def fails(one, drawn):
        if one.id == "ccc":
            raise OSError("no space left")
        yield outcome(one.objects)

    with pytest.raises(OSError, match="no space"):
        scored(tmp_path, [Watched(fails).method()], subjects)
    watched = Watched(always(outcome(subject("a").objects)))
    found = scored(tmp_path, [watched.method()], subjects)
    assert [name for name, _ in watched.asked] == ["ccc"]
    assert [row["id"] for row in found.images] == ["a", "bb", "ccc"]


def test_the_contrast_of_an_image_is_measured_once_for_all_methods(tmp_path, monkeypatch):
    counted = []
    measure = scoring.ambiguity.contrast_to_noise
    monkeypatch.setattr(
        scoring.ambiguity,
        "contrast_to_noise",
        lambda *args, **told: counted.append(1) or measure(*args, **told),
    )
    methods = [Watched(noisy(n)).method(f"m{n}") for n in range(3)]
    found = scored(tmp_path, methods, [subject("a"), subject("bb")])
    assert len(counted) == 4
    by_method = [[r["contrast"] for r in found.objects if r["method"] == m.label] for m in methods]
    assert by_method[0] == by_method[1] == by_method[2]
    assert len(set(by_method[0])) == 4
