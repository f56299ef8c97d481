"""Classical methods, oracles and refined lines beside the models, on a small drawn image."""

import csv
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

import eval as eval_front
import train as train_front
from benchmarks import baselines as comparison
from data.annotated import component_boxes
from data.records import Record
from pp_jax import cli
from pp_jax.baselines.classical import CLASSICAL
from pp_jax.config import TrainConfig
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate import methods
from pp_jax.evaluate.controls import ORACLES, Atlas
from pp_jax.evaluate.methods import GROUPS, METHODS, Source, answered, guess, parse_methods
from pp_jax.evaluate.protocols import Drawn, draw_marks, parse_protocols
from pp_jax.evaluate.subjects import Marks, Subject
from pp_jax.finetune import compared
from pp_jax.presets import PRESETS

SHAPE = (40, 50)
BOXES = np.array([[6, 4, 30, 14], [35, 20, 49, 38]], float)
ATLAS = Atlas(
    np.ones((2, 8, 8), np.float32),
    0.5,
    1,
    np.ones((8, 8), np.float32),
    0.5,
    np.full((2, 2), 0.25, np.float32),
)
EVERYWHERE = np.array([[0, 0, SHAPE[1], SHAPE[0]]])


def make_subject(**changed) -> Subject:
    """Two bright ellipses on a dark noisy ground, the lungs being all but the lowest rows."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    objects = np.zeros((2, *SHAPE), bool)
    for pixels, (x0, y0, x1, y1) in zip(objects, BOXES, strict=True):
        u, v = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
        pixels[:] = u**2 + v**2 <= 1
    findings, lungs = objects.any(0), y < 30
    noise = np.random.default_rng(0).integers(0, 40, SHAPE)
    image = (np.where(findings, 180, 30) + noise).astype(np.uint8)[..., None].repeat(3, 2)
    facts = ("a", "p", "set", "mask", "", "", "", None, None)
    return Subject(*facts, image, objects, BOXES, findings, lungs)._replace(**changed)


def run(text: str, subject: Subject, told: dict[str, Drawn] | str) -> dict:
    if isinstance(told, str):
        told = {spec: draw_marks(spec, subject, seed=0) for spec in parse_protocols(told)}
    source = Source(subject.dataset, subject.id, subject.patient, lambda: subject)
    begun = guess(text, lambda patient: ATLAS).open([source])
    return {outcome.protocol: outcome for outcome in begun(subject, told)}


def inside(box) -> np.ndarray:
    """The pixels of a whole-numbered box."""
    mask = np.zeros(SHAPE, bool)
    x0, y0, x1, y1 = (int(edge) for edge in box)
    mask[y0:y1, x0:x1] = True
    return mask


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


# Rows.


def test_every_classical_method_is_a_row_under_its_own_label_and_labels_differ():
    assert list(GROUPS["classical"]) == list(CLASSICAL)
    for name, row in CLASSICAL.items():
        assert (METHODS[name].label, METHODS[name].help) == (row.label, row.help)
    assert len({line.label for line in METHODS.values()}) == len(METHODS)
    assert len(METHODS) == 4 + len(CLASSICAL) + 2 + 2


@pytest.mark.parametrize("row", CLASSICAL)
def test_a_classical_row_answers_each_mark_within_its_box_and_an_unmarked_image_once(row):
    subject = make_subject()
    got = run(row, subject, "box,box+point,point,none,clicks:2")
    assert list(got) == ["box", "box+point", "point", "none"]
    for spec in ("box", "box+point"):
        assert got[spec].masks.shape == subject.objects.shape
        assert got[spec].prompted
        for mask, box in zip(got[spec].masks, BOXES, strict=True):
            assert not (mask & ~inside(box)).any()
    assert got["point"].masks.shape == subject.objects.shape
    assert got["none"].masks.shape == (1, *SHAPE)
    assert not got["none"].prompted
    _, count = ndimage.label(got["none"].masks[0], np.ones((3, 3)))
    assert len(got["none"].found.boxes) <= count
    assert all(outcome.seconds > 0 for outcome in got.values())


def test_a_row_is_told_the_box_the_clicks_and_nothing_else(monkeypatch):
    """Where only clicks are given, the box is a quarter of the image's sides around them."""
    hints = []

    def note(image, hint):
        hints.append(hint)
        return np.ones(image.shape[:2], bool)

    fake = {"otsu": CLASSICAL["otsu"]._replace(function=note)}
    monkeypatch.setattr(methods, "CLASSICAL", fake)
    points = np.array([[[25.0, 20.0], [0.0, 0.0]], [[10.0, 10.0], [40.0, 12.0]]])
    labels = np.array([[1, -2], [1, 0]])
    marks = Marks(points=points, labels=labels)
    masks = run("otsu", make_subject(), {"point": Drawn(marks, np.zeros((2, 1)))})["point"].masks
    assert masks.all()
    for hint, own, told in zip(hints, points, labels, strict=True):
        x, y = own[0] + 0.5
        np.testing.assert_allclose(hint.box, [x - 6.25, y - 5, x + 6.25, y + 5])
        np.testing.assert_array_equal(hint.points, own)
        np.testing.assert_array_equal(hint.labels, told)
    hints.clear()
    run("otsu", make_subject(), "none")
    assert [tuple(hint) for hint in hints] == [(None, None, None)]


@pytest.mark.parametrize(
    "marks",
    [
        Marks(points=np.array([[[25.0, 20.0]]]), labels=np.array([[0]])),
        Marks(boxes=np.array([[3.6, 4, 4.4, 20]])),
    ],
)
@pytest.mark.parametrize("row", CLASSICAL)
def test_a_click_on_the_background_and_a_box_without_a_pixel_ask_for_nothing(row, marks):
    ((_, outcome),) = run(row, make_subject(), {"box": Drawn(marks, np.zeros((1, 0)))}).items()
    assert outcome.masks.shape == (1, *SHAPE)
    assert not outcome.masks.any()


def test_otsu_cuts_the_pixels_of_each_box_by_their_own_threshold():
    grey = np.random.default_rng(2).integers(0, 120, SHAPE).astype(np.uint8)
    grey[8:12, 10:20] += 100
    grey[:, 40:44] += 60
    subject = make_subject(image=np.repeat(grey[..., None], 3, axis=2))
    got = run("otsu", subject, "box,none")
    for mask, box in zip(
        [*got["box"].masks, got["none"].masks[0]], [*BOXES, *EVERYWHERE], strict=True
    ):
        pixels = inside(box)
        np.testing.assert_array_equal(mask, pixels & (grey > threshold_otsu(grey[pixels])))
    flat = make_subject(image=np.full((*SHAPE, 3), 7, np.uint8))
    assert not run("otsu", flat, "box")["box"].masks.any()


def test_otsu_finds_bright_ellipses_to_the_pixel():
    subject = make_subject()
    got = run("otsu", subject, "box,none")
    np.testing.assert_array_equal(got["box"].masks, subject.objects)
    np.testing.assert_array_equal(got["none"].masks[0], subject.findings)
    assert len(got["none"].found.boxes) == 2


# Oracles.


def test_the_lungs_are_the_answer_to_whatever_is_marked_and_a_box_is_cut_by_them():
    subject = make_subject()
    got = run("lungs", subject, "box,point,none,clicks:1")
    assert {spec: len(one.masks) for spec, one in got.items()} == {"box": 2, "point": 2, "none": 1}
    for one in got.values():
        np.testing.assert_array_equal(one.masks, subject.lungs[None].repeat(len(one.masks), 0))
    got = run("box+lungs", subject, "box,none")
    assert list(got) == ["box"]
    whole, cut = got["box"].masks
    np.testing.assert_array_equal(whole, inside(BOXES[0]))
    np.testing.assert_array_equal(cut, inside([35, 20, 49, 30]))
    assert all("oracle" in METHODS[name].label for name in ORACLES)


def test_real_lungs_give_the_dice_known_for_each_oracle(real_data):
    """57 positive X-rays, means over images; the figures were found without this code."""
    folder = real_data / "cxr_seg" / "expected"
    rows = list(csv.DictReader((folder / "index.csv").read_text().splitlines()))
    scores = {name: [] for name in ORACLES}
    for stem in [row["stem"] for row in rows if float(row["lesion_frac"])]:
        lesion, lungs = (
            np.asarray(Image.open(folder / f"{stem}__{kind}.png"))[2::4, 2::4] > 0
            for kind in ("lesion", "lungs")
        )
        boxes = Marks(boxes=np.array(component_boxes(lesion)))
        for name, row in ORACLES.items():
            scores[name].append(dice(row.function(lungs, boxes, atlas=ATLAS).any(0), lesion))
    assert len(scores["lungs"]) == 57
    means = {name: np.mean(values) for name, values in scores.items()}
    assert means == pytest.approx({"lungs": 0.448, "box+lungs": 0.801}, abs=0.002)


ASK = {"images": "abc", "where": "a_set"}


def test_lines_that_need_lungs_shrink_the_images_if_named_and_give_way_in_a_group():
    lines = ["box", "lungs refine=fill_holes"]
    assert answered(lines, lines, outlined="cabd", **ASK) == (lines, frozenset("abc"))
    with pytest.warns(UserWarning, match="lungs.*: 1 images of 3 are left out for all methods"):
        assert answered(lines, lines, outlined="ab", **ASK) == (lines, frozenset("ab"))
    with pytest.raises(
        ValueError, match=r"lungs.*: nobody outlined .* of a_set that .*\(3\); leave"
    ):
        answered(lines, lines, outlined="d", **ASK)
    assert answered(lines, ["all"], outlined="", **ASK) == (["box"], frozenset("abc"))
    with pytest.warns(UserWarning, match="lungs.*: left out, .* in 1 of 3 images"):
        assert answered(lines, ["all"], outlined="ab", **ASK) == (["box"], frozenset("abc"))
    for outlined in ("ab", ""):
        assert answered(["otsu"], ["otsu"], outlined=outlined, **ASK) == (
            ["otsu"],
            frozenset("abc"),
        )


def test_images_that_are_not_scored_take_no_line_away(recwarn):
    """One without a finding under a prompt that marks findings, and one beyond the limit."""
    told = zip("abcd", (1, 0, 1, 1), (1, 0, 1, 0), strict=True)
    everything = [
        Record(
            *(name, name, Path(name), ((0, 0, 9, 9),) * n, Path(name), "mask", ""),
            lungs=Path(name) if lungs else None,
        )
        for name, n, lungs in told
    ]
    lines = ["otsu", "lungs"]

    def scored(prompt: str, limit: int | None, asked: tuple[str, ...]) -> tuple[str, list[str]]:
        settings = EvalConfig(data="set", prompt=prompt, limit=limit, methods=asked)
        allowed, protocols = frozenset("abcd"), parse_protocols(prompt)
        chosen = eval_front.choose(everything, protocols, settings, allowed=allowed)
        chosen, kept = eval_front.shared(chosen, lines, settings)
        return "".join(record.id for record in chosen), kept

    assert scored("box", 2, ("all",)) == ("ac", lines)
    assert scored("box", 2, ("otsu", "lungs")) == ("ac", lines)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="lungs: left out, .* in 1 of 3 images"):
        assert scored("box", None, ("all",)) == ("acd", ["otsu"])
    with pytest.warns(UserWarning, match="--methods lungs: 2 images of 4 are left out for all"):
        assert scored("none", None, ("lungs",)) == ("ac", lines)
    everything = everything[1:2]
    with pytest.raises(ValueError, match=r"any image of set that would be scored \(1\)"):
        scored("none", 1, ("lungs",))


def test_a_method_whose_library_is_missing_is_left_out_of_a_group_and_refused_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="grabcut: cv2 is not installed, so it is left out"):
        assert "grabcut" not in parse_methods(["classical"])[1]
    with pytest.raises(ValueError, match="grabcut: cv2 is not installed; install the extra"):
        parse_methods(["grabcut"])


def test_a_model_is_told_apart_by_the_prompts_that_it_does_not_read(monkeypatch):
    entries = [SimpleNamespace(name=name, members=[name]) for name in ("sam", "net")]
    monkeypatch.setattr(compared, "reads", lambda member, spec: (member, spec) != ("net", "point"))
    assert compared.unread(entries, ["box", "point"]) == {"net": ["point"]}
    assert compared.unread(entries, ["box"]) == {}


# The comparison on real images.


@pytest.fixture
def typed(monkeypatch, tmp_path) -> list[list[str]]:
    """What the comparison would type; instead of a report it leaves one patient's figures."""
    monkeypatch.chdir(tmp_path)
    told: list[list[str]] = []

    def call(*words: object) -> None:
        told.append(list(map(str, words)))
        if words[0] == "eval.py":
            report = Path(words[words.index("--out") + 1])
            report.mkdir(parents=True)
            head, row = "method,protocol,choice,objects,patient,dice,nsd_1", "o,box,model,1,p,0.5,"
            (report / "images.csv").write_text(f"{head}\n{row}0.25\n{row}0.75\n")
            seconds = "method,protocol,images,median seconds\no,box,2,0.0125\n"
            (report / "seconds.csv").write_text(seconds)

    monkeypatch.setattr(comparison, "call", call)
    monkeypatch.setattr(comparison, "pretrain", lambda: told.append(["phantoms"]))
    return told


def compare(monkeypatch, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["baselines", "--data-dir", "D", *flags])
    comparison.main()


@pytest.mark.parametrize("data", comparison.TASKS)
def test_one_command_trains_on_folds_of_a_data_set_and_scores_what_it_trained(
    monkeypatch, typed, capsys, data
):
    task = comparison.TASKS[data]
    compare(monkeypatch, "--data", data)
    (first, *trainings, last) = typed
    assert (first, last[0]) == (["phantoms"], "eval.py")
    runs = []
    for program, *words in trainings:
        run = cli.parse(
            TrainConfig,
            prog=program,
            choices=train_front.CHOICES,
            specs=train_front.CHECKED,
            aliases=train_front.ALIASES,
            presets={name: preset.flags for name, preset in PRESETS.items()},
            args=words,
        )
        if not run.out.endswith("-phantoms"):
            assert (run.data, run.data_dir, run.folds) == (data, "D", 5)
            runs.append(run.out)
    asked = cli.parse(
        EvalConfig,
        prog="eval.py",
        choices=eval_front.CHOICES,
        specs=eval_front.CHECKED,
        args=last[1:],
    )
    models, lines = parse_methods(asked.methods)
    assert [one.folders for one in models] == [(out,) for out in runs]
    assert [one.name for one in models] == list(task.models)
    assert bool({"lungs", "box+lungs"} & set(lines)) == (data == "cxr_seg")
    assert set(CLASSICAL) < set(lines)
    assert (asked.data, asked.data_dir, asked.prompt) == (data, "D", task.prompt)
    assert "| box | o | 0.500 [0.500, 0.500] | 0.500 [0.500, 0.500] | 12.5 | 1 |" in (
        capsys.readouterr().out
    )


def test_scoring_alone_trains_nothing_and_what_is_scored_is_shown_again(monkeypatch, typed, capsys):
    flags = ("--data", "brain_seg", "--only", "score", "--models", "unet-box")
    compare(monkeypatch, *flags)
    assert [words[0] for words in typed] == ["eval.py"]
    assert "unet-box=runs/brain/unet-box" in typed[0]
    compare(monkeypatch, *flags)
    assert len(typed) == 1
    assert capsys.readouterr().out.count("| box | o |") == 2


# Names and refinements.


def test_groups_stand_for_their_rows_once_and_only_otsu_is_there_unasked():
    assert parse_methods(["runs/a", "classical", "otsu", "box"])[1] == [*CLASSICAL, "box"]
    assert parse_methods(["all"])[1] == list(METHODS)
    unasked = parse_methods([])[1]
    assert [name for name in CLASSICAL if name in unasked] == ["otsu"]
    assert not set(ORACLES) & set(unasked)
    refined = parse_methods(["classical refine=fill_holes"])[1]
    assert refined == [f"{name} refine=fill_holes" for name in CLASSICAL]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("otsu filter=clahe", "'filter=clahe' is no refine=VALUE"),
        ("otsu refine=", "'refine=' is no refine=VALUE"),
        ("classical refine=sharper", "sharper"),
        ("swap refine=fill_holes", "swap is refined as its model is"),
        ("all refine=fill_holes", "swap is refined as its model is"),
    ],
)
def test_a_wrong_option_of_a_line_is_named_in_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_methods([text])
    assert "\n" not in str(caught.value)


def test_a_model_may_not_be_called_as_a_refined_line():
    with pytest.raises(ValueError, match="'atlas refine=fill_holes' is a line of its own"):
        parse_methods(["atlas refine=fill_holes", "runs/atlas refine=fill_holes"])


def test_a_refined_line_stands_beside_the_plain_one_with_its_specks_and_holes_gone():
    subject = make_subject()
    image = subject.image.copy()
    image[9, 18] = 0  # A hole in the first object.
    image[20, 35] = 255  # A speck in the second one's corner.
    subject = subject._replace(image=image)
    text = "otsu refine=remove_small=4 refine=fill_holes"
    assert parse_methods(["otsu", f"  {text} "])[1] == ["otsu", text]
    plain, refined = (run(line, subject, "box")["box"].masks for line in ("otsu", text))
    assert (plain != subject.objects).sum() == 2
    np.testing.assert_array_equal(refined, subject.objects)
    label = METHODS["otsu"].label
    assert [guess(line, lambda patient: ATLAS).label for line in ("otsu", text)] == [
        label,
        f"{label} refine=remove_small=4 refine=fill_holes",
    ]
