"""The files of a report: the same for the same rows, and true to them wherever they are read."""

import csv
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pp_jax import cli
from pp_jax.evaluate import analysis, breakdown, files, report
from pp_jax.evaluate.evidence import Evidence, pick
from pp_jax.evaluate.protocols import ALL
from pp_jax.evaluate.sections import Column, Table
from pp_jax.evaluate.subjects import CONFIDENCES
from pp_jax.predict import __main__ as predict
from tests.report_world import (
    FIRST,
    MODELS,
    OTHER,
    SWAPPED,
    evidence,
    make_plan,
    mean_of,
    model,
)

EVIL = "50%_<script>alert(1)</script> & $x$ | co"
RECTANGLES = "Target box: the true outline is unknown, Dice is against rectangles."
ALONE = (model(FIRST),)


def renamed(found: Evidence, old: str, new: str) -> Evidence:
    """The same evaluation of a method with another name."""
    rows = [
        [row | {"method": row["method"].replace(old, new)} for row in part]
        for part in found.scores[:3]
    ]
    held = {(k[0].replace(old, new), *k[1:]): v for k, v in found.scores.reliability.items()}
    seconds = {(k[0].replace(old, new), k[1]): v for k, v in found.scores.seconds.items()}
    scores = found.scores._replace(
        objects=rows[0], images=rows[1], detections=rows[2], reliability=held, seconds=seconds
    )
    return Evidence(scores, json.loads(json.dumps(found.plan).replace(old, new)))


@pytest.fixture(scope="module")
def world() -> Evidence:
    found = evidence(
        9,
        protocols="box,none",
        models=MODELS[:2],
        guesses=("mean shape", "atlas"),
        target="box",
        by="view",
    )
    return renamed(found, FIRST, EVIL)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory) -> Path:
    """The report of it."""
    made = tmp_path_factory.mktemp("report")
    report.write(made, world.scores, world.plan, [], [], count=0)
    return made


# Files.


def test_the_same_rows_make_the_same_bytes(tmp_path):
    found = evidence(6, protocols="box", models=ALONE, guesses=("atlas",), by="view")
    rows = [row | dict.fromkeys(CONFIDENCES) for row in found.scores.objects]  # Fewer plots.
    scores = found.scores._replace(objects=rows, reliability={})
    made = []
    for name in "ab":
        (tmp_path / name).mkdir()
        report.write(tmp_path / name, scores, found.plan, [], [], count=0)
        paths = sorted((tmp_path / name).rglob("*.*"))
        made.append({path.relative_to(tmp_path / name): path.read_bytes() for path in paths})
    assert {path.suffix for path in made[0]} == {
        *(".csv", ".json", ".md", ".tex", ".html", ".png", ".svg")
    }
    assert made[0] == made[1]


def test_no_cell_of_a_table_on_disk_is_nan_and_rows_come_back_as_they_were(world, folder):
    for path in folder.glob("*.csv"):
        with path.open(newline="") as file:
            assert not {"nan", "inf", "-inf", "None"} & {
                cell.lower() for row in csv.reader(file) for cell in row
            }
    assert files.read_rows(folder / "images.csv") == world.scores.images
    assert files.read_rows(folder / "results.csv") == world.scores.objects
    assert json.loads((folder / "detections.json").read_text()) == world.scores.detections
    prompts = json.loads((folder / "prompts.json").read_text())
    assert prompts == {"seed": 0, "prompts": world.scores.prompts}


def test_every_plot_stands_in_the_page_and_beside_itself_as_svg(folder):
    drawn = sorted((folder / "plots").glob("*.png"))
    assert [p.with_suffix(".svg") for p in drawn] == sorted((folder / "plots").glob("*.svg"))
    assert {p.stem for p in drawn} == {
        *("methods", "differences", "training_against_test", "ambiguity", "strata", "froc"),
        *("predicted_iou", "iou_head", "pixels", "risk_coverage"),
    }
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(drawn)
    text = (folder / "table.md").read_text()
    assert sorted(re.findall(r"\(<(plots/\w+\.png)>\)", text)) == [f"plots/{p.name}" for p in drawn]


class Page(HTMLParser):
    """What a browser shows, and the tags that it obeys."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_a_name_is_text_in_every_format(folder):
    page = Page((folder / "report.html").read_text())
    assert page.tags.count("script") == 1
    assert EVIL in page.text
    text = (folder / "table.md").read_text()
    cell = EVIL.replace("|", r"\|").replace("<", r"\<")
    assert f"| {cell} " in text
    latex = (folder / "table.tex").read_text()
    escaped = r"50\%\_\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \&"
    assert rf"{escaped} \$x\$ \textbar{{}} co" in latex
    assert "<script" not in latex


def test_tables_of_dice_say_that_targets_are_rectangles_and_those_of_detection_do_not(world):
    for section in report.find_sections(world):
        for table in section.tables:
            told = section.heading != breakdown.DETECTION
            assert (RECTANGLES in table.notes) == told, table.title
    assert RECTANGLES in analysis.answer(world).paragraphs
    tables = [t for s in report.find_sections(evidence(6)) for t in s.tables]
    assert not [note for t in tables for note in t.notes if "ectangles" in note]


def test_the_order_is_answer_first_and_what_to_do_last(folder):
    text = (folder / "table.md").read_text()
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == [
        *("Answer", "Every prompt", "Image contribution", "Detection without a prompt"),
        *("Contrast of the boundary", "Strata", "Errors", "Confidence and calibration"),
        *("The model's choice and an oracle's", "All figures: exact box", "All figures: nothing"),
        *("How to apply it", "Settings"),
    ]


def cells_of(line: str) -> list[str]:
    """Those of a line of a table in Markdown."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_median_of_the_seconds_is_on_disk_on_the_page_and_beside_dice(tmp_path, monkeypatch):
    monkeypatch.setattr(report.pictures, "illustrate", lambda folder, found, sections: sections)
    seconds = {(FIRST, "box"): [1.0, 9.0, 2.0], (FIRST, "none"): [0.0004], (OTHER, "none"): [8.0]}
    found = evidence(6, protocols="box,none", models=MODELS, guesses=("atlas",))
    scores = found.scores._replace(seconds=seconds)
    report.write(tmp_path, scores, found.plan, [], [], count=0)
    assert files.read_rows(tmp_path / "seconds.csv", text=("method", "protocol")) == [
        {"method": FIRST, "protocol": "box", "images": 3, "median seconds": 2.0},
        {"method": FIRST, "protocol": "none", "images": 1, "median seconds": 0.0004},
        {"method": OTHER, "protocol": "none", "images": 1, "median seconds": 8.0},
    ]
    told = {}
    lines = (tmp_path / "table.md").read_text().splitlines()
    for number, line in enumerate(lines):
        if "seconds per image" in line and line.startswith("|"):
            heads, rows = cells_of(line), map(cells_of, lines[number + 2 : number + 4])
            assert {"Dice [95 %]", "NSD at 1 % [95 %]"} <= set(heads)
            prompt = next(one for one in reversed(lines[:number]) if one.startswith("### "))
            named = (dict(zip(heads, row, strict=True)) for row in rows)
            told[prompt] = {row["method"]: row["seconds per image"] for row in named}
    assert told == {
        "### Prompt: exact box": {FIRST: "2.0000", SWAPPED: ""},
        "### Prompt: nothing": {FIRST: "0.0004", SWAPPED: ""},
    }
    shown = Page((tmp_path / "report.html").read_text()).text
    assert {"2.0000", "0.0004", "8.0000"} <= {text.strip() for text in shown}
    untimed = analysis.main_table(found._replace(scores=scores._replace(seconds={})), "box")
    assert "seconds" not in " ".join(untimed.notes)


@pytest.mark.parametrize("changed", [{"empty": True}, {"models": ALONE, "guesses": ()}])
def test_every_section_can_be_made_of_empty_answers_and_of_one_model_alone(changed):
    found = evidence(6, protocols="box,clicks:2,none", **changed)
    sections = report.find_sections(found)
    assert sections[0].heading == "Answer"
    assert report.winner_section(found).paragraphs[0].endswith(f": {FIRST}.")


def test_every_section_can_be_made_of_one_image():
    found = evidence(2, protocols="box,clicks:2,none")
    rows = [[r for r in part if r["id"] == "i1_0"] for part in found.scores[:3]]
    scores = found.scores._replace(objects=rows[0], images=rows[1], detections=rows[2])
    sections = report.find_sections(found._replace(scores=scores))
    text = "\n".join(report.tables.to_latex(t) for s in sections for t in s.tables)
    assert "[1 patient]" in text
    assert "nan" not in text


def test_columns_in_which_nothing_stands_are_left_out_and_no_others():
    table = Table(
        "t",
        (Column("a"), Column("b"), Column("c"), Column("d"), Column("e")),
        [("x", None, 0, "", False), ("y", "", None, "z", None)],
        ("note",),
    )
    kept = report._finished(table, ("more",))
    assert [column.name for column in kept.columns] == ["a", "c", "d", "e"]
    assert [list(row) for row in kept.rows] == [["x", 0, "", False], ["y", None, "z", None]]
    assert kept.notes == ("note", "more")


# The plan.


def test_a_primary_endpoint_that_is_not_asked_for_is_refused():
    with pytest.raises(ValueError, match=r"--primary iou@point: point is not among .* box, none"):
        evidence(3, primary="iou@point")
    with pytest.raises(ValueError, match="clicks:3 is not among"):
        evidence(3, protocols="clicks:2", primary="dice@clicks:3")
    assert evidence(3, primary="nsd_1@none").primary == ("nsd_1", "none")
    assert evidence(3, protocols="clicks:3,box", primary="dice@clicks:2").primary[1] == "clicks:2"
    assert evidence(3, protocols="none,box").primary == ("dice", "none")


@pytest.mark.parametrize("spec", ["dice", "dise@box", "@box"])
def test_a_primary_endpoint_names_a_metric_and_a_protocol(spec):
    with pytest.raises(ValueError, match=f"--primary '{spec}': give METRIC@PROTOCOL"):
        report.parse_primary(spec)


def test_what_is_laid_down_knows_images_and_nothing_that_changes_no_figure():
    plan = evidence(9).plan
    other = evidence(9, out="elsewhere", device="gpu", pictures=3).plan
    assert plan == other
    assert (plan["images"]["count"], plan["images"]["patients"]) == (12, 9)
    assert evidence(6).plan["images"]["sha256"] != plan["images"]["sha256"]
    assert evidence(9, samples=201).plan != plan
    assert plan["title"] == f"{FIRST}, {OTHER} on synthetic, part: test"
    json.dumps(plan)


# The submission.


def test_a_submission_needs_a_prompt_that_tells_nothing():
    with pytest.raises(
        ValueError, match=r"--prompt box: no RSNA score.* use --prompt none or auto"
    ):
        evidence(3, protocols="box,clicks:2", kaggle_submission="a.csv")
    evidence(3, protocols="box,none", kaggle_submission="a.csv")


def test_a_submission_has_the_boxes_of_the_first_model_and_seed(tmp_path):
    seeds = tuple(m | {"seed": seed} for m in MODELS for seed in ("a", "b"))
    found = evidence(9, protocols="box,none,auto", models=seeds)
    report.write_submission(tmp_path / "new" / "s.csv", found.scores, found.plan)
    with (tmp_path / "new" / "s.csv").open(newline="") as file:
        told = {row["patientId"]: row["PredictionString"] for row in csv.DictReader(file)}
    held = pick(found.scores.detections, method=FIRST, protocol="none", seed="a")
    assert list(told) == [one["id"] for one in held]
    assert any(told.values())
    for one in held:
        numbers = np.array(told[one["id"]].split(), float).reshape(-1, 5)
        wanted = [
            [sure, x0, y0, x1 - x0, y1 - y0]
            for sure, (x0, y0, x1, y1) in zip(one["confidences"], one["boxes"], strict=True)
        ]
        np.testing.assert_allclose(numbers, np.reshape(wanted, (-1, 5)), rtol=1e-7)


# The winner.


def command(found: Evidence) -> list[str]:
    (line,) = [p for p in report.winner_section(found).paragraphs if p.startswith("$ ")]
    words = shlex.split(line[2:])
    assert words[:3] == ["python", "-m", "pp_jax.predict"]
    return words[3:]


@pytest.mark.parametrize("spec", ALL)
def test_the_command_of_the_winner_is_understood(spec):
    look = MODELS[0]["look"] | {"filter": "clahe", "fusion": "blend", "blend": 0.25}
    refine = ["fill_holes", "keep_largest=1"]
    models = (model(FIRST, look=look, refine=refine), model(OTHER))
    found = evidence(3, protocols=spec, models=models, image_size=512, auto_points=8)
    numbers = {"X0": "1", "Y0": "2", "X1": "30", "Y1": "40", "X": "5", "Y": "6"}
    words = [numbers.get(word, word) for word in command(found)]
    asked = cli.parse(
        predict.Predict,
        prog="predict",
        choices=predict.CHOICES,
        specs=predict.SPECS,
        args=words,
    )
    predict.check(asked)
    assert (asked.images, asked.checkpoint) == ((Path("IMAGES"),), (Path(f"runs/{FIRST}"),))
    assert (asked.filter, asked.fusion, asked.roi, asked.blend) == ("clahe", "blend", "none", 0.25)
    assert (asked.image_size, asked.refine) == (512, tuple(refine))
    name = spec.partition(":")[0]
    marks = {
        "boxes": name in ("box", "jitter"),
        "point": name in ("centre", "point", "clicks", "box+point"),
        "box": name == "box+point",
        "scribble": name == "scribble",
        "auto": name == "auto",
        "prompt_free": name == "none",
    }
    assert {field: bool(getattr(asked, field)) for field in marks} == marks
    if name == "auto":
        limits = (asked.points_per_side, asked.pred_iou_thresh, asked.stability_score_thresh)
        assert limits == (8, 0.5, 0.8)


@pytest.mark.parametrize(
    ("spec", "single"), [("box", False), ("point", False), ("scribble", True), ("box+point", True)]
)
def test_of_converted_weights_the_command_asks_for_the_mask_that_was_scored(spec, single):
    converted = (model(FIRST, trained_on=None, trained_under=None),)
    assert ("--no-multimask" in command(evidence(3, protocols=spec, models=converted))) == single
    assert "--no-multimask" not in command(evidence(3, protocols=spec, models=ALONE))


def test_the_winner_is_the_model_of_the_best_mean_at_the_primary_endpoint():
    for metric, best in (("dice", max), ("hd95", min)):
        found = evidence(9, primary=f"{metric}@box")
        rows = pick(found.scores.images, protocol="box", choice="model")
        means = {
            name: mean_of([r for r in rows if r["method"] == name], metric)
            for name in (FIRST, OTHER)
        }
        assert f"runs/{best(means, key=means.get)}" in command(found)
    # A guess is no model, and neither is a model with another's image.
    flipped = {FIRST: OTHER, OTHER: FIRST}
    images = [r | {"method": flipped.get(r["method"], r["method"])} for r in found.scores.images]
    other = Evidence(found.scores._replace(images=images), evidence(9).plan)
    assert f"runs/{OTHER}" in command(other)
    folds = tuple(model(FIRST, folder=f"runs/cv/fold{k}", fold=True) for k in range(3))
    section = report.winner_section(
        Evidence(evidence(6, models=ALONE).scores, make_plan([], folds, "box,none"))
    )
    assert "over 3 runs; this is the first" in section.paragraphs[1]
    assert "runs/cv/fold0" in section.paragraphs[-1]


# The checklist.


def test_nothing_is_claimed_of_parts_that_is_not_known():
    facts = report.claim_facts(evidence(6))
    assert "none of those who were trained" in facts["disjoint"]
    assert facts["internal"].startswith("8 images of 6 patients that the models were not trained")
    for found in (
        evidence(6, part="all"),
        evidence(6, models=(MODELS[0], model(OTHER, trained_on=None))),
    ):
        assert not {"disjoint", "internal"} & set(report.claim_facts(found))
    random = evidence(6, models=(model(FIRST, from_random=True), model(OTHER, trained_on=None)))
    assert report.claim_facts(random)["initialisation"] == (
        f"{FIRST}: random numbers; {OTHER}: converted weights, as they are"
    )


def test_settings_name_every_weight_once_and_nothing_that_is_empty(folder):
    text = (folder / "table.md").read_text().split("## Settings\n")[1]
    lines = [line for line in text.splitlines() if line]
    assert lines[0] == "- primary endpoint: dice@box"
    shown = EVIL.replace("|", r"\|").replace("<", r"\<")  # As text, not as a tag.
    assert [line for line in lines if "sha256" in line] == [
        f"- {shown}, runs/{shown}: sha256 0123456789ab"
    ]
    assert not [line for line in lines if line.endswith(": ") or line.endswith("()")]
    told = {line[2:].split(":")[0] for line in lines}
    assert {"data", "samples", "margin", "seed", "numpy"} <= told
    assert not {"out", "device", "pictures", "recipe", "methods"} & told
    assert SWAPPED not in text


def test_the_terminal_shows_the_answer_and_every_prompt(world, tmp_path, monkeypatch):
    monkeypatch.setattr(report.pictures, "illustrate", lambda folder, found, sections: sections)
    shown = report.write(tmp_path, world.scores, world.plan, [], [], count=0)
    assert re.findall(r"^## (.*)$", shown, flags=re.MULTILINE) == ["Answer", "Every prompt"]
    assert "Primary comparisons" in shown
