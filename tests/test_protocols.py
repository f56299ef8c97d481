import json
import math
import statistics
import zlib

import numpy as np
import pytest

from pp_jax.evaluate.protocols import (
    ALL,
    PROTOCOLS,
    Drawn,
    answer,
    click_curve,
    click_rounds,
    draw_marks,
    from_plain,
    parse_protocol,
    parse_protocols,
    read_prompts,
    write_prompts,
)
from pp_jax.evaluate.subjects import Marks, Subject
from pp_jax.predict.asking import Asker, Decoded, Embedded
from pp_jax.preprocess.roi import Window

HEIGHT, WIDTH = 40, 56
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return (COLUMNS - x) ** 2 + (ROWS - y) ** 2 <= radius**2


OBJECTS = np.stack([disc(12, 14, 9), disc(40, 20, 12) & ~disc(44, 20, 7), disc(30, 36, 2)])
BOXES = np.float32([[3, 5, 22, 24], [28, 8, 52, 33], [28, 34, 33, 39]])


def subject(name: str = "a", objects: np.ndarray = OBJECTS, boxes: np.ndarray = BOXES) -> Subject:
    image = np.zeros((*objects.shape[1:], 3), np.uint8)
    facts = ("p", "set", "mask", "", "", "", None, None)
    return Subject(name, *facts, image, objects, boxes, objects.any(0))


def pixels(mask: np.ndarray) -> list[tuple[int, int]]:
    """`(x, y)` of the true pixels in raster order."""
    height, width = mask.shape
    return [(x, y) for y in range(height) for x in range(width) if mask[y, x]]


def same(left: Drawn, right: Drawn) -> bool:
    told = zip((*left.marks, left.uniforms), (*right.marks, right.uniforms), strict=True)
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b)) for a, b in told
    )


# Draws.


def test_a_draw_follows_from_seed_image_and_protocol_in_any_process():
    for spec in ALL:
        first = draw_marks(spec, subject(), seed=3)
        draw_marks(spec, subject("b"), seed=3)
        assert same(first, draw_marks(spec, subject(), seed=3))
        if parse_protocol(spec)[1].uniforms:
            for other in (
                draw_marks(spec, subject("b"), seed=3),
                draw_marks(spec, subject(), seed=4),
            ):
                assert not np.isin(first.uniforms, other.uniforms).any()
    five, ten = (draw_marks(f"jitter:{p}", subject(), seed=3).uniforms for p in (5, 10))
    assert not np.isin(five, ten).any()
    # Python's own hash of a text would change from process to process.
    rng = np.random.default_rng([3, zlib.crc32(b"a"), zlib.crc32(b"clicks:10")])
    told = draw_marks("clicks:10", subject(), seed=3).uniforms
    assert told.tolist() == rng.random((3, 10)).tolist()


def test_the_exact_box_is_the_objects_own():
    for spec in ("box", "box+point"):
        np.testing.assert_array_equal(draw_marks(spec, subject(), seed=0).marks.boxes, BOXES)


@pytest.mark.parametrize("percent", [5, 20, 50])
def test_a_jittered_boxs_edges_are_uniform_around_its_own_and_stay_in_the_image(percent):
    boxes = np.tile(np.float32([[20, 12, 40, 22]]), (2000, 1))
    many = subject(objects=np.repeat(OBJECTS[:1], 2000, 0), boxes=boxes)
    moved = draw_marks(f"jitter:{percent}", many, seed=1).marks.boxes - boxes
    reach = percent / 100 * np.array([20, 10, 20, 10])
    assert (np.abs(moved) <= reach).all()
    for edge, most in zip(moved.T, reach, strict=True):
        # The mean and deviation of a uniform, within 5 standard errors.
        assert abs(edge.mean()) < 5 * most / math.sqrt(3 * 2000)
        assert edge.std() == pytest.approx(most / math.sqrt(3), rel=0.05)
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.12
    at_border = subject(boxes=np.float32([[0, 0, WIDTH, HEIGHT]] * 3))
    boxes = draw_marks(f"jitter:{percent}", at_border, seed=1).marks.boxes
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [WIDTH, HEIGHT]).all()
    assert (boxes[:, :2] == 0).any()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_random_click_is_the_pixel_that_its_uniform_counts_to():
    for spec in ("point", "box+point", "clicks:4", "scribble"):
        marks, uniforms = draw_marks(spec, subject(), seed=7)
        for mask, points, labels, own in zip(
            OBJECTS, marks.points, marks.labels, uniforms, strict=True
        ):
            inside = pixels(mask)
            assert tuple(points[0]) == inside[math.floor(own[0] * len(inside))]
            assert labels[0] == 1


def test_the_centre_is_the_first_pixel_farthest_from_the_border():
    ring = np.zeros((9, 12), bool)
    ring[:, 2:10] = True  # It touches the image's border, which is one of its own.
    plate = np.zeros((9, 12), bool)
    plate[2:6, 3:9] = True  # Two rows and four columns lie equally deep.
    crowd = subject(objects=np.stack([ring, plate]), boxes=BOXES[:2])
    assert draw_marks("centre", crowd, seed=0).marks.points[:, 0].tolist() == [[5, 3], [4, 3]]
    for point, mask in zip(
        draw_marks("centre", subject(), seed=0).marks.points[:, 0], OBJECTS, strict=True
    ):
        outside = pixels(np.pad(~mask, 1, constant_values=True))
        depth = [
            min(math.dist((x + 1, y + 1), other) for other in outside) for x, y in pixels(mask)
        ]
        assert tuple(point) == pixels(mask)[depth.index(max(depth))]


def test_a_scribble_spreads_from_its_first_click_and_a_small_object_gets_one_click_per_pixel():
    small = np.zeros((1, HEIGHT, WIDTH), bool)
    small[0, 3, 4:7] = True
    told = subject(objects=np.concatenate([OBJECTS, small]), boxes=np.tile(BOXES[:1], (4, 1)))
    marks = draw_marks("scribble", told, seed=2).marks
    for mask, points, labels in zip(told.objects, marks.points, marks.labels, strict=True):
        inside, chosen = pixels(mask), [tuple(points[0])]
        while len(chosen) < min(4, len(inside)):
            chosen.append(max(inside, key=lambda p: min(math.dist(p, c) for c in chosen)))
        assert [tuple(p) for p in points[labels == 1]] == chosen
        assert labels.tolist() == [1] * len(chosen) + [-2] * (4 - len(chosen))


def test_an_object_without_a_pixel_gets_no_click_and_an_image_without_objects_no_prompt():
    empty = subject(objects=np.zeros_like(OBJECTS[:1]), boxes=BOXES[:1])
    for spec in ("point", "centre", "clicks:3", "scribble", "box+point"):
        assert (draw_marks(spec, empty, seed=0).marks.labels == -2).all()
    nothing = subject(objects=OBJECTS[:0], boxes=BOXES[:0])
    for spec in ALL:
        if parse_protocol(spec)[1].needs_objects:
            with pytest.raises(ValueError, match=r"^a: no object to mark under .*: leave"):
                draw_marks(spec, nothing, seed=0)
        else:
            assert draw_marks(spec, nothing, seed=0).marks == Marks()


# Specs.


def test_specs_are_canonical_and_all_names_every_protocol():
    assert list(parse_protocols(" jitter:05, clicks ,none")) == ["jitter:5", "clicks:10", "none"]
    assert tuple(parse_protocols("all")) == ALL
    assert {spec.partition(":")[0] for spec in ALL} == set(PROTOCOLS)
    rounds = {spec: own.rounds for spec, own in parse_protocols("all").items() if own.rounds}
    assert rounds == {"clicks:10": 10}
    told = {s for s, own in parse_protocols("all").items() if not own.truth_in_prompt}
    assert told == {"auto", "none"}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ("boxes", "protocol 'boxes' is unknown: choose one of box, jitter, centre"),
        ("box:3", "protocol 'box:3': box takes no number"),
        ("clicks:0", "'clicks:0': give how many clicks as a whole number from 1 to 10"),
        ("clicks:11", "from 1 to 10, such as clicks:10"),
        ("jitter:", "'jitter:': give per cent"),
        ("jitter:2.5", "whole number from 1 to 50"),
        ("jitter:-5", "whole number from 1 to 50"),
        ("jitter,jitter:10", "jitter:10 is given twice"),
        ("clicks:1,clicks:3", "clicks:3 beside other clicks"),
        (" , ", "name at least one of box, jitter"),
    ],
)
def test_a_wrong_spec_is_one_line_that_names_it(specs, message):
    with pytest.raises(ValueError, match=r"^protocol") as error:
        parse_protocols(specs)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Files.


def test_prompts_come_back_from_their_file_to_the_last_bit(tmp_path):
    odd = subject("b", boxes=np.float32([[0.1, 1 / 3, 20, 7.7]] * 3))
    drawn = {spec: {s.id: draw_marks(spec, s, seed=5) for s in (subject(), odd)} for spec in ALL}
    drawn["none"]["negative"] = draw_marks("none", subject(objects=OBJECTS[:0]), seed=5)
    write_prompts(tmp_path / "prompts.json", drawn, seed=5)
    read = read_prompts(tmp_path / "prompts.json")
    assert {s: list(own) for s, own in read.items()} == {s: list(own) for s, own in drawn.items()}
    for spec, own in drawn.items():
        assert all(same(read[spec][name], one) for name, one in own.items())
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uniforms": [[1.0]]}, r"point, image 'a': uniforms outside \[0, 1\)"),
        ({"points": [[[1, 2], [3, 4]]]}, r"points of shape \(1, 2, 2\) for 1 objects"),
        ({"points": [[[1, float("nan")]]]}, "not finite"),
        ({"labels": [[1], [1]]}, r"labels of shape \(2, 1\) for 1 objects"),
        ({"boxes": [[1, 2, 3]]}, r"boxes of shape \(1, 3\)"),
        ({"clicks": 3}, "unknown 'clicks'"),
        ({"points": "left"}, "image 'a'"),
    ],
)
def test_a_damaged_prompt_is_named_with_its_image(tmp_path, change, message):
    plain = {"points": [[[1, 2]]], "labels": [[1]], "uniforms": [[0.5]]}
    assert from_plain(plain).marks.points.tolist() == [[[1, 2]]]
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"seed": 0, "prompts": {"point": {"a": plain | change}}}))
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}: point, image 'a': ")


def test_a_file_of_something_else_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file of prompts"):
        read_prompts(tmp_path / "none.json")
    for content in ("", "[]", "{}", '{"prompts": 3}'):
        (tmp_path / "p.json").write_text(content)
        with pytest.raises(ValueError, match=r"p\.json: no prompts of an evaluation"):
            read_prompts(tmp_path / "p.json")


# Answers.


def evidence(points, labels, before) -> list[np.ndarray]:
    """Four low-resolution masks that follow from the clicks and from what was fed back."""
    total = np.full((HEIGHT, WIDTH), -1.0) if before is None else before / 4 - 0.2
    for k, ((x, y), label) in enumerate(zip(points, labels, strict=True)):
        if label != -2:
            bump = 3 * np.exp(-((COLUMNS - x) ** 2 + (ROWS - y) ** 2) / (2 * (6 - 0.4 * k) ** 2))
            total = total + (bump if label == 1 else -bump)
    return [np.float32(total + 0.15 * m) for m in range(4)]


def scores(points) -> list[float]:
    """Of the three the best is another one for each first click, the single mask above all."""
    return [9.0, *(float((points[0][0] * (m + 3)) % 7) for m in range(3))]


def fake_asker(calls: list) -> Asker:
    def embed(image, box=None):
        return Embedded(image, (HEIGHT, WIDTH), (HEIGHT, WIDTH), Window(0, 0, HEIGHT, WIDTH))

    def decode(embedded, marks):
        calls.append(marks)
        fed = [None] * len(marks.points) if marks.logits is None else marks.logits
        each = zip(marks.points, marks.labels, fed, strict=True)
        logits = np.array([evidence(*one) for one in each])
        return Decoded(logits, np.float32([scores(points) for points in marks.points]))

    return Asker(embed, decode, lambda embedded, logits: logits + np.float32(0.05), side=64)


def slowly(target, uniforms, single_after_first):
    """One object's rounds, pixel by pixel: masks, predicted IoU, points and labels."""
    inside = pixels(target)
    points, labels = [inside[math.floor(uniforms[0] * len(inside))]], [1]
    before, masks = None, []
    for k in range(len(uniforms)):
        if k:
            wrong = [(x, y) for x, y in pixels(mask | target) if mask[y, x] != target[y, x]]
            if not wrong:
                points.append((0, 0))
                labels.append(-2)
                masks.append(masks[-1])
                continue
            x, y = wrong[math.floor(uniforms[k] * len(wrong))]
            points.append((x, y))
            labels.append(int(target[y, x]))
        four, iou = evidence(points, labels, before), scores(points)
        chosen = 0 if k and single_after_first else max((1, 2, 3), key=lambda m: iou[m])
        before, mask = four[chosen], four[chosen] + np.float32(0.05) > 0
        masks.append((mask, iou[chosen]))
    return masks, points, labels


@pytest.mark.parametrize("single_after_first", [False, True])
def test_clicks_go_where_the_mask_is_wrong_and_the_mask_is_fed_back(single_after_first):
    drawn = draw_marks("clicks:6", subject(), seed=11)
    # The third object is what the fake makes of its first click: nothing is left to correct.
    (x, y), best = drawn.marks.points[2, 0], np.argmax(scores(drawn.marks.points[2])[1:]) + 1
    objects = OBJECTS.copy()
    objects[2] = evidence([(x, y)], [1], None)[best] + np.float32(0.05) > 0
    uniforms = drawn.uniforms.copy()
    uniforms[2, 0] = (pixels(objects[2]).index((x, y)) + 0.5) / objects[2].sum()
    asker = fake_asker([])
    rounds = list(
        click_rounds(
            asker,
            asker.embed(None),
            drawn._replace(uniforms=uniforms),
            objects,
            single_after_first=single_after_first,
        )
    )
    assert len(rounds) == 6
    signs = set()
    for n, target in enumerate(objects):
        masks, points, labels = slowly(target, uniforms[n], single_after_first)
        signs |= set(labels)
        for k, (found, marks) in enumerate(rounds):
            np.testing.assert_array_equal(found.masks[n], masks[k][0])
            np.testing.assert_array_equal(found.logits[n] > 0, masks[k][0])
            assert found.predicted_iou[n] == masks[k][1]
            assert [tuple(p) for p in marks.points[n]] == points[: k + 1]
            assert marks.labels[n].tolist() == labels[: k + 1]
            assert (marks.logits is None) == (k == 0)
    assert signs == {1, 0, -2}
    assert rounds[-1].marks.labels[2].tolist() == [1] + 5 * [-2]


def test_nothing_is_asked_when_every_mask_is_right():
    calls = []
    asker, drawn = fake_asker(calls), draw_marks("clicks:5", subject(), seed=1)
    first = next(click_rounds(asker, asker.embed(None), drawn, OBJECTS, single_after_first=True))
    calls.clear()
    rounds = [
        *click_rounds(asker, asker.embed(None), drawn, first.answer.masks, single_after_first=True)
    ]
    assert len(calls) == 1
    for found, _ in rounds:
        np.testing.assert_array_equal(found.masks, first.answer.masks)


def test_an_answer_is_the_best_scored_of_the_three_or_the_single_mask():
    asker, marks = fake_asker([]), draw_marks("point", subject(), seed=9).marks
    image = subject().image
    for single, offered in ((False, (1, 2, 3)), (True, (0,))):
        found = answer(asker, image, marks, single=single)
        for n, points in enumerate(marks.points):
            four = np.array(evidence(points, [1], None)) + np.float32(0.05)
            index = max(offered, key=scores(points).__getitem__)
            np.testing.assert_array_equal(found.logits[n], four[index])
            np.testing.assert_array_equal(found.masks[n], four[index] > 0)
            np.testing.assert_array_equal(found.candidates[n], four[list(offered)] > 0)
            assert found.predicted_iou[n] == scores(points)[index]


# The click curve.


def rows_of(dice: dict[tuple, list[float]]) -> list[dict]:
    return [
        {"patient": p, "seed": "0", "dataset": "s", "id": i, "object": o, "dice": value}
        | {"protocol": f"clicks:{k}"}
        for (p, i, o), values in dice.items()
        for k, value in enumerate(values, start=1)
    ]


def test_a_click_curve_weighs_patients_alike_and_counts_objects():
    dice = {
        ("p", "a", 0): [0.2, 0.6, 0.9],
        ("p", "a", 1): [0.4, 0.8, 0.7],
        ("p", "b", 0): [0.9, 0.9, 0.9],
        ("q", "c", 0): [0.1, 0.2, 0.3],
    }
    curve = click_curve(rows_of(dice)[::-1])
    assert curve.clicks == (1, 2, 3)
    want = [((0.3 + 0.9) / 2 + 0.1) / 2, ((0.7 + 0.9) / 2 + 0.2) / 2, ((0.8 + 0.9) / 2 + 0.3) / 2]
    assert curve.dice == pytest.approx(want)
    assert curve.area == pytest.approx(statistics.mean(want))
    assert curve.clicks_to_target == statistics.median([3, 2, 1])
    assert curve.never == 0.25
    assert curve.objects == 4
    assert click_curve(rows_of(dice), target=0.95).clicks_to_target is None
    assert click_curve(rows_of(dice), target=0.95).never == 1


def test_a_click_curve_is_refused_without_every_number_of_clicks():
    rows = rows_of({("p", "a", 0): [0.2, 0.6], ("p", "b", 0): [0.3]})
    with pytest.raises(ValueError, match=r"answers after \[1\] clicks"):
        click_curve(rows)
    with pytest.raises(ValueError, match="protocol 'box'"):
        click_curve([rows[0] | {"protocol": "box"}])
    with pytest.raises(ValueError, match="no row"):
        click_curve([])
