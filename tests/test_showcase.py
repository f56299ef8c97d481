"""Which images a report shows, and what is drawn on them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from PIL import Image

from pp_jax.evaluate import showcase
from pp_jax.evaluate.evidence import Evidence, pick
from pp_jax.evaluate.methods import Method, Outcome, Run, Source
from pp_jax.evaluate.overlays import Case
from pp_jax.evaluate.protocols import Drawn, to_plain
from pp_jax.evaluate.subjects import MODEL, ORACLE, Marks, Subject
from tests.report_world import FIRST, MODELS, evidence, model

SIZE = 24


def subject(name: str, patient: str) -> Subject:
    objects = np.zeros((1, SIZE, SIZE), bool)
    objects[0, 4:12, 4:12] = True
    return Subject(
        id=name,
        patient=patient,
        dataset="set",
        target="mask",
        label="",
        view="",
        sex="",
        age=None,
        spacing=None,
        image=np.full((SIZE, SIZE, 3), 90, np.uint8),
        objects=objects,
        boxes=np.array([[4.0, 4.0, 12.0, 12.0]]),
        findings=objects[0],
    )


def sources(found: Evidence) -> list[Source]:
    rows = {row["id"]: row["patient"] for row in found.scores.images}
    return [Source("set", n, p, lambda n=n, p=p: subject(n, p)) for n, p in rows.items()]


def method(
    label: str,
    column: int,
    *,
    seed: str = "",
    patients: Sequence[str] | None = None,
    opened: list[list[str]] | None = None,
) -> Method:
    """A method that answers with one column of pixels under whatever it is asked, and an oracle."""

    def run(shown: Subject, drawn: Mapping[str, Drawn]) -> Iterator[Outcome]:
        (spec,) = drawn
        specs = ["clicks:1", "clicks:2"] if spec.startswith("clicks") else [spec]
        for one in specs:
            for choice, at in ((ORACLE, 0), (MODEL, column + (one == "clicks:1"))):
                masks = np.zeros((1, SIZE, SIZE), bool)
                masks[0, :, at] = True
                yield Outcome(one, choice, True, masks, None, None, {}, None, None, 0.0)

    def start(given: Sequence[Source]) -> Run:
        if opened is not None:
            opened.append([source.id for source in given])
        return run

    return Method(label, seed, lambda p: patients is None or p in patients, start)


@pytest.fixture
def cases(monkeypatch) -> list[Case]:
    """What would be drawn."""
    seen: list[Case] = []
    monkeypatch.setattr(showcase.overlays, "overlay", lambda path, case: seen.append(case))
    monkeypatch.setattr(showcase.overlays, "overlay_sheet", lambda path, parts, title: None)
    return seen


@pytest.mark.parametrize(("metric", "sign"), [("dice", 1), ("hd95", -1), ("nsd_1", 1)])
def test_images_are_ranked_by_the_primary_metric_the_worst_first(metric, sign):
    found = evidence(12, primary=f"{metric}@box")
    rows = pick(found.scores.images, method=FIRST, protocol="box", choice=MODEL)
    ranked = [r["id"] for r in sorted(rows, key=lambda r: sign * r[metric])]
    shown = {k: [r["id"] for r in part] for k, part in showcase.choose(found, count=6).items()}
    assert shown["worst"] == ranked[:2]
    assert shown["best"] == ranked[-2:]
    middle = (len(ranked) - 2) // 2
    assert shown["median"] == ranked[middle : middle + 2]


def test_of_several_seeds_one_is_shown():
    found = evidence(6, models=tuple(m | {"seed": s} for s in "ab" for m in MODELS))
    rows = [row for part in showcase.choose(found, count=12).values() for row in part]
    assert {row["seed"] for row in rows} == {"a"}
    assert len({row["id"] for row in rows}) == len(rows)


def test_pictures_stand_in_the_folder_and_say_what_they_show(tmp_path):
    found = evidence(2, protocols="box")
    shown = showcase.draw(
        tmp_path, found, [method(FIRST, 5), method("mean shape", 7)], sources(found), count=3
    )
    for section in shown:
        for picture in section.pictures:
            with Image.open(picture.path) as image:
                assert image.width == 1200
    rows = pick(found.scores.images, method=FIRST, protocol="box", choice=MODEL)
    rows.sort(key=lambda r: r["dice"])
    assert [p.title for p in shown.single.pictures] == [
        f"{label}: {row['id']}"
        for label, row in zip(("worst", "median", "best"), rows, strict=True)
    ]
    for picture, row in zip(shown.single.pictures, rows, strict=True):
        assert picture.caption.startswith(f"Dice {row['dice']:.3f}, patient {row['patient']}, ")
        assert f"sex {row['sex']}, age {row['age']:g}" in picture.caption
    assert sorted(p.path for p in shown.single.pictures) == sorted(
        (tmp_path / "overlays").iterdir()
    )


def test_the_first_model_and_the_mean_shape_are_drawn_and_no_others(cases, tmp_path):
    found = evidence(4, protocols="box")
    others = [method(name, 9) for name in ("other", "atlas", f"{FIRST}, another patient's image")]
    shown = [method(FIRST, 5), *others, method("mean shape", 7)]
    showcase.draw(tmp_path, found, shown, sources(found), count=12)
    assert len(cases) == len({row["id"] for row in found.scores.images})
    for case in cases:
        assert list(case.predictions) == [FIRST, "mean shape"]
        columns = [np.flatnonzero(m.any(0)).tolist() for m in case.predictions.values()]
        assert columns == [[5], [7]]
        prompt = found.scores.prompts["box"][case.title]
        np.testing.assert_array_equal(case.boxes, prompt["boxes"])
        assert case.target.sum() == 64


def test_each_fold_draws_its_own_patients_and_is_opened_with_all_of_them(cases, tmp_path):
    folds = tuple(model(FIRST, folder=f"runs/fold{k}", fold=True) for k in range(2))
    found = evidence(9, protocols="box", models=folds[:1])
    names = sorted({row["patient"] for row in found.scores.images})
    opened: list[list[str]] = []
    halves = [names[::2], names[1::2]]
    shown = [method(FIRST, 5 + i, patients=h, opened=opened) for i, h in enumerate(halves)]
    showcase.draw(tmp_path, found, shown, sources(found), count=3)
    patient = {row["id"]: row["patient"] for row in found.scores.images}
    assert len(cases) == 3
    for case in cases:
        (column,) = np.flatnonzero(case.predictions[FIRST].any(0))
        assert patient[case.title] in halves[column - 5]
    # Whatever is shown: a rule that is fitted on them is then the one that was scored.
    for given in opened:
        own = {patient[name] for name in given}
        assert {n for n, p in patient.items() if p in own} == set(given)
        assert own in [set(half) for half in halves]


@pytest.mark.parametrize("seeds", ["ab", "ba"])
def test_the_run_of_the_seed_that_is_shown_is_drawn(seeds, cases, tmp_path):
    found = evidence(4, protocols="box", models=tuple(MODELS[0] | {"seed": s} for s in "ab"))
    shown = [method(FIRST, 5 + i, seed=s) for i, s in enumerate(seeds)]
    showcase.draw(tmp_path, found, shown, sources(found), count=3)
    assert {np.flatnonzero(c.predictions[FIRST].any(0))[0] for c in cases} == {5 + seeds.index("a")}


def test_after_two_of_three_clicks_two_are_drawn_with_the_answer_to_them(cases, tmp_path):
    found = evidence(3, protocols="clicks:3", models=MODELS[:1], primary="dice@clicks:2")
    names = list(found.scores.prompts["clicks:1"])
    first = Drawn(Marks(points=np.array([[[5.0, 5.0]]]), labels=np.array([[1]])), np.zeros((1, 3)))
    points = np.array([[[5.0, 5.0], [20.0, 2.0], [9.0, 9.0]]])
    clicks = Drawn(Marks(points=points, labels=np.array([[1, 0, 1]])), np.zeros((1, 3)))
    scores = found.scores._replace(
        prompts={"clicks:3": dict.fromkeys(names, to_plain(first))},
        clicks={FIRST: dict.fromkeys(names, to_plain(clicks))},
    )
    drawn = found._replace(scores=scores)
    showcase.draw(tmp_path, drawn, [method(FIRST, 5)], sources(found), count=3)
    for case in cases:
        assert case.points.tolist() == [[5.0, 5.0], [20.0, 2.0]]
        assert case.labels.tolist() == [1, 0]
        assert np.flatnonzero(case.predictions[FIRST].any(0)) == [5]


def test_without_an_answer_nothing_is_shown(tmp_path):
    found = evidence(3, protocols="box,none")
    scores = found.scores._replace(images=pick(found.scores.images, protocol="none"))
    assert showcase.draw(tmp_path, found._replace(scores=scores), [], [], count=3) is None
    assert not list(tmp_path.iterdir())
