"""Ablations: a grid whose cells differ in what they name alone, and what is said of its report."""

import dataclasses
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import train
from pp_jax import ablations, cli, config, jobs, ranges
from pp_jax.ablations import ABLATIONS, BLIND, NONE, AblationConfig
from pp_jax.config import TrainConfig, look_of
from pp_jax.evaluate import ablation, statistics
from pp_jax.evaluate.ablation import Compared
from pp_jax.evaluate.methods import parse_methods
from pp_jax.finetune import grid, recipe
from pp_jax.preprocess.stage import make_shown
from pp_jax.presets import PRESETS
from tests.report_world import figures


def asked_of(name: str, **told) -> AblationConfig:
    usual = ablations.flags_of(name, variant=told.get("variant", "tiny"))
    flags = {"data_dir": "datasets/x", **usual, "ablation": name, **told}
    return ablations.resolve(AblationConfig(**flags))


ROOT = Path(__file__).resolve().parents[1]
TRAINED = [name for name, row in ABLATIONS.items() if row.trains]


@pytest.mark.parametrize("name", TRAINED)
def test_every_cell_is_a_training_that_can_be_typed(name):
    asked = asked_of(name)
    runs_of = [ablations.run_of(asked, cell, 0) for cell in ablations.cells(asked)]
    runs_of += [ablations.before_of(asked, cell, 0) for cell in ablations.cells(asked)]
    for run in runs_of:
        make_shown(look_of(run))
        recipe.check_rules(run)
        typed = cli.parse(
            TrainConfig,
            prog="train.py",
            choices=train.CHOICES,
            specs=train.CHECKED,
            aliases=train.ALIASES,
            args=shlex.split(config.command(run))[2:],
        )
        assert not config.differences(dataclasses.asdict(config.resolve(typed)), run)


@pytest.mark.parametrize("name", TRAINED)
def test_cells_differ_in_what_they_name_and_in_nothing_else(name):
    asked = asked_of(name)
    first, *others = (ablations.run_of(asked, cell, 3) for cell in ablations.cells(asked))
    named = {"filter", "fusion", "trainable", "checkpoint"}
    for other in others:
        changed = config.differences(dataclasses.asdict(first), other)
        assert changed.keys() <= named
        assert changed.keys() & {"filter", "fusion", "trainable"}
    folders = [first.out, *(one.out for one in others)]
    assert len(set(folders)) == len(folders)


def test_none_stands_once_beside_all_fusions_and_policies_each_have_theirs():
    cells = ablations.cells(
        asked_of("fusions", filters=("none", "log"), fusions=("blend", "add-edges"))
    )
    assert [cell.name for cell in cells] == ["none", "log-blend", "log-add-edges"]
    cells = ablations.cells(asked_of("policies", filters=("none",), policies=("decoder", "full")))
    assert [(cell.name, cell.policy) for cell in cells] == [
        ("none-decoder", "decoder"),
        ("none-full", "full"),
    ]


def test_a_response_by_itself_stands_beside_the_image_in_channels():
    cells = {cell.name: cell.filter for cell in ablations.cells(asked_of("filters"))}
    assert cells["sobel"] == "none,sobel"
    assert cells["none"] == "none"


def test_the_grid_of_the_issue_is_sixty_trainings_ten_twins_and_what_they_begin_from():
    planned = grid.make_jobs(asked_of("filters"))
    folds = [job.name for job in planned if "--fold" in job.words]
    assert sum(not name.startswith(BLIND) for name in folds) == 6 * 2 * 5
    assert sum(name.startswith(BLIND) for name in folds) == 2 * 5
    assert sum(job.name.startswith("before/") for job in planned) == 6 * 2
    assert planned[-1].name == grid.REPORT
    assert set(planned[-1].after) == {job.name for job in planned[:-1]}
    of_seed = [job for job in planned if job.name.startswith("log/seed1/")]
    assert {job.after for job in of_seed} == {("before/log/seed1",)}


def test_policies_begin_with_the_same_weights_and_stand_beside_their_own_filter_none():
    asked = asked_of("policies")
    starts = {ablations.run_of(asked, cell, 0).checkpoint for cell in ablations.cells(asked)}
    assert len(starts) == 2  # Of none and of sobel.
    before = [ablations.before_of(asked, cell, 0) for cell in ablations.cells(asked)]
    assert {one.trainable for one in before} == {"full"}
    names = [job.name for job in grid.make_jobs(asked)]
    assert len(set(names)) == len(names)
    assert ablations.pairs_of(asked) == {
        "sobel-decoder": "none-decoder",
        "none-lora": "none-decoder",
        "sobel-lora": "none-lora",
        "none-full": "none-decoder",
        "sobel-full": "none-full",
    }


@pytest.mark.parametrize("name", TRAINED)
def test_the_report_is_asked_for_the_folders_that_the_grid_trains(name):
    asked = asked_of(name, filters=("none", "clahe>sobel"))
    *trained, report = grid.make_jobs(asked)
    words = report.words[report.words.index("--methods") + 1 : report.words.index("--prompt")]
    models, lines = parse_methods(words)
    assert lines == list(grid.BESIDE)
    named = {folder for model in models for folder in model.folders}
    folds = [job for job in trained if "--fold" in job.words]
    assert named == {str(Path(asked.out) / job.name).rpartition("/")[0] for job in folds}
    assert not any("+" in folder for folder in named)


def test_what_the_recipe_of_tiny_is_stays_with_tiny():
    asked = asked_of("filters", variant="vit_b")
    assert (asked.steps, asked.lr, asked.best_mask) == (None, None, "lowest-loss")
    assert asked_of("filters").steps == 80


def test_a_report_of_other_images_is_made_again(tmp_path):
    told = {"checkpoint": "checkpoints/vit_b", "out": str(tmp_path)}
    (job,) = grid.make_jobs(asked_of("zero-shot-filters", **told, limit=5))
    report = tmp_path / "report"
    report.mkdir()
    words = job.words[job.words.index("--methods") + 1 : job.words.index("--prompt")]
    held = {"methods": list(words), "prompt": "centre,none", "data": "cxr_seg", "limit": 5}
    held |= {"data_dir": "datasets/x", "seed": 0, "target": "mask", "image_size": None}
    grid.runs.checkpoints.write_json(report / "settings.json", {"settings": held})
    assert not job.done()
    (report / "report.html").touch()
    assert job.done()
    (job,) = grid.make_jobs(asked_of("zero-shot-filters", **told))
    assert not job.done()


def test_cores_of_this_process_are_shared_where_nobody_says_how_many():
    asked = asked_of("filters")
    assert grid.at_once(asked, backend="cpu") == jobs.count_cores()
    assert grid.at_once(asked, backend="gpu") == 1
    assert grid.at_once(asked_of("filters", variant="vit_b"), backend="cpu") == 1
    assert grid.at_once(asked_of("filters", jobs=3), backend="gpu") == 3


def test_time_is_told_from_trainings_that_are_done(tmp_path):
    asked = asked_of("filters", out=str(tmp_path))
    planned = grid.make_jobs(asked)
    told = grid.describe(asked, planned, side_by_side=2)
    assert told.endswith(
        "left are 70 trainings on folds and 12 before them: 2 at a time, then a report"
    )
    took = {"data": 1.0, "before/none/seed0": 300.0, "none/seed0/fold0": 60.0}
    grid.runs.checkpoints.write_json(tmp_path / jobs.SECONDS, took)
    told = grid.describe(asked, planned, side_by_side=2)
    assert "about 65 min, 2 at a time" in told  # (12 * 300 + 70 * 60) / 2 s


def test_given_weights_are_where_all_begin():
    asked = asked_of("filters", init="runs/mine")
    planned = grid.make_jobs(asked)
    assert not any(job.name.startswith("before/") or job.name == "data" for job in planned)
    assert {ablations.run_of(asked, cell, 0).checkpoint for cell in ablations.cells(asked)} == {
        "runs/mine"
    }


def test_without_training_one_report_compares_the_filters():
    asked = asked_of("zero-shot-filters", checkpoint="checkpoints/vit_b")
    (job,) = grid.make_jobs(asked)
    told = [word for word in job.words if "checkpoints/vit_b" in word]
    assert told[0] == "none=checkpoints/vit_b filter=none fusion=replace"
    assert "sobel-blend=checkpoints/vit_b filter=sobel fusion=blend" in told
    with pytest.raises(ValueError, match="give --checkpoint FOLDER"):
        grid.make_jobs(asked_of("zero-shot-filters"))


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"filter": "sobel"}, "--filter sobel with --ablation: name it among --filters"),
        ({"fold": 1}, "all folds are trained"),
        ({"seeds": 0}, "--seeds 0: must be at least 1"),
        ({"folds": None}, "give --folds 2 or more"),
        ({"out": "runs/my out"}, "--out 'runs/my out': no spaces"),
        ({"init": "runs/a+b"}, "--init 'runs/a.b': no spaces and no"),
    ],
)
def test_flags_that_the_grid_sets_are_refused(told, says):
    with pytest.raises(ValueError, match=says):
        asked_of("filters", **told)


def test_where_nothing_is_trained_policies_and_seeds_are_refused():
    for told in ({"policies": ("decoder", "full")}, {"seeds": 3}):
        with pytest.raises(ValueError, match="it trains nothing"):
            asked_of("zero-shot-filters", **told)


@pytest.mark.parametrize(
    "filters", [("none",), ("none", "sobel", "sobel"), ("none", "sobel", "none,sobel")]
)
def test_a_comparison_of_one_or_of_the_same_is_refused(filters):
    with pytest.raises(ValueError, match="two cells or more, each once"):
        ablations.cells(asked_of("filters", filters=filters))


def test_an_unknown_ablation_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="--ablation flters: choose one of filters, fusions"):
        ablations.check("flters")


def test_a_run_with_other_settings_stops_the_grid(tmp_path):
    asked = asked_of("filters", out=str(tmp_path), init="runs/mine")
    run = config.fold_of(ablations.run_of(asked, ablations.cells(asked)[1], 0), 2)
    folder = tmp_path / "sobel" / "seed0" / "fold2"
    folder.mkdir(parents=True)
    held = dataclasses.asdict(dataclasses.replace(run, lr=1e-9, preprocess="sam"))
    grid.runs.checkpoints.write_json(folder / "config.json", held)
    with pytest.raises(ValueError, match=r"fold2: holds a run with other settings \(lr: 1e-09"):
        grid.make_jobs(asked)


def test_presets_lend_their_flags_to_a_grid():
    """A preset's flags stand above the ablation's own, and what is typed above both."""
    flags = ablations.flags_of("filters", variant="vit_b")
    words = ["--ablation", "filters", "--preset", "rsna-vit_b-decoder", "--epochs", "3"]
    asked = cli.parse(
        AblationConfig,
        prog="train.py",
        choices=train.CHOICES,
        specs=train.CHECKED,
        presets={name: {**flags, **one.flags} for name, one in PRESETS.items()},
        alternatives=ranges.ALTERNATIVES,
        args=words,
    )
    assert (asked.variant, asked.data, asked.epochs, asked.steps) == ("vit_b", "rsna", 3, None)
    assert not ablations.begins_anew(asked)


# What is said of a report.


def rows_of(level: dict[str, float], *, protocols=("centre", "none"), patients: int = 12):
    """A row per image, method, seed and protocol; the same noise for all methods."""
    rows = []
    for number in range(patients):
        for seed in ("seed0", "seed1"):
            for protocol in protocols:
                for method, mean in level.items():
                    rng = np.random.default_rng([number, len(seed) + int(seed[-1])])
                    values = figures(rng, 0.5, thin=False, empty=False)
                    values["dice"] = float(np.clip(values["dice"] + mean - 0.5, 0, 1))
                    rows.append(
                        {
                            "method": method,
                            "seed": seed,
                            "protocol": protocol,
                            "choice": "model",
                            "dataset": "set",
                            "id": f"i{number}",
                            "patient": f"p{number}",
                            "objects": 1,
                            **values,
                        }
                    )
    return rows


PAIRS = {"sobel": "none", "log": "none"}
COMPARED = Compared("Which helps?", "none", PAIRS, BLIND, ("centre", "none"), {"time": "1.5 hours"})
LEVELS = {"none": 0.5, "sobel": 0.6, "log": 0.5, BLIND: 0.2, "none, another patient's image": 0.3}


def test_each_cell_is_compared_with_the_first_in_one_family_over_all_prompts():
    rows = rows_of(LEVELS)
    found = ablation.family(rows, COMPARED)
    assert list(found) == ["centre", "none"]
    told = [one for family in found.values() for one in family]
    assert [(one.a, one.b) for one in told] == [("sobel", "none"), ("log", "none")] * 2
    assert [one.holm for one in told] == statistics.holm([one.wilcoxon for one in told])
    assert found["none"][0].difference.mean == pytest.approx(0.1, abs=1e-6)


def test_images_without_a_finding_change_nothing():
    rows = rows_of(LEVELS)
    empty = [
        {**row, "id": "empty", "patient": "healthy", "objects": 0, "dice": 1.0} for row in rows
    ]
    assert ablation.family([*rows, *empty[:10]], COMPARED) == ablation.family(rows, COMPARED)


def test_guesses_under_another_prompt_are_no_cells():
    rows = rows_of(LEVELS)
    guesses = [{**row, "protocol": "box", "method": "atlas"} for row in rows[:1]]
    assert list(ablation.family([*rows, *guesses], COMPARED)) == ["centre", "none"]


def test_a_cell_without_rows_is_no_smaller_family_but_an_error():
    rows = [row for row in rows_of(LEVELS) if row["method"] != "log"]
    with pytest.raises(ValueError, match="no rows of log with a finding, centre"):
        ablation.family(rows, COMPARED)


def test_what_differs_by_chance_is_undecided():
    rng = np.random.default_rng(0)
    rows = [
        {**row, "dice": float(np.clip(row["dice"] + rng.normal(0, 0.3), 0, 1))}
        for row in rows_of(LEVELS)
    ]
    told = ablation._answer(
        {"centre": ablation.family(rows, COMPARED)["centre"]}, COMPARED, {}
    ).paragraphs
    assert "Undecided (before correction, 0." in told[0]
    assert "log minus none" in told[0].partition("Undecided")[2]


def test_the_answer_says_what_helped_what_did_not_and_what_the_image_gave(tmp_path):
    (tmp_path / "report").mkdir()
    rows = rows_of(LEVELS)
    ablation.files.write_rows(tmp_path / "report" / "images.csv", rows)
    text = ablation.write(tmp_path, COMPARED)
    assert "Better: sobel minus none +0.100 [+0.100, +0.100]." in text
    assert "Equivalent within 0.02: log minus none +0.000 [+0.000, +0.000]." in text
    plain = [r for r in rows if r["method"] == NONE and r["protocol"] == "none"]
    own = statistics.interval_of(plain, "dice", samples=1).mean
    twin = [r["dice"] for r in rows if r["method"] == BLIND and r["protocol"] == "none"]
    # Both prompts have the same figures here; each patient has one image, so the mean is plain.
    blind = float(np.mean(twin))
    less = f"less by {own - blind:.3f} ["
    share = f"], {(own - blind) / own:.0%} of it"
    for line in text.splitlines()[2:]:
        head, tail = line.split(f"in grey: {blind:.3f}, ")
        assert head.startswith(("Prompt: nothing. Dice of none", "Prompt: click on the centre."))
        assert tail.startswith(less)
        assert share in tail
    assert (tmp_path / "ablation.html").is_file()
    markdown = (tmp_path / "ablation.md").read_text()
    assert "differences-centre.png" in markdown
    assert "1.5 hours" in markdown


@pytest.mark.slow
def test_a_grid_that_was_killed_ends_in_the_same_report_and_repeats_nothing(tmp_path):
    """Two grids of six trainings each, one killed by SIGKILL: ten minutes on two cores."""
    data = tmp_path / "phantoms"
    run_front("-m", "data.synthetic", "--out", data, "--images", 24, "--side", 128)
    words = (
        *("train.py", "--ablation", "filters", "--filters", "none", "sobel", "--seeds", 1),
        *("--folds", 2, "--steps", 2, "--save-every", 1, "--batch", 2, "--init", "random"),
        *("--data", "synthetic", "--data-dir", data, "--jobs", 2, "--out"),
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_front(*words, whole)
    process = subprocess.Popen([sys.executable, *map(str, words), str(killed)], cwd=ROOT)
    try:
        end = time.monotonic() + 600
        while not jobs.read_seconds(killed) and time.monotonic() < end:
            time.sleep(0.1)
        process.kill()
        process.wait()
    finally:
        process.kill()
    done = jobs.read_seconds(killed)
    assert done
    assert "report" not in done
    logs = {name: (killed / name / "metrics.jsonl").stat().st_mtime_ns for name in done}
    run_front(*words, killed)
    again = {name: (killed / name / "metrics.jsonl").stat().st_mtime_ns for name in done}
    assert again == logs
    assert done.items() <= jobs.read_seconds(killed).items()
    reports = [(folder / "report" / "results.csv").read_bytes() for folder in (whole, killed)]
    assert reports[0] == reports[1]
    told = [
        (folder / "ablation.md").read_text().partition("## Settings")[0]
        for folder in (whole, killed)
    ]
    assert told[0] == told[1]


def run_front(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)
