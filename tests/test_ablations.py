"""Ablations: a grid whose cells differ in what they name alone, and what is said of its report."""

import dataclasses
import shlex

import numpy as np
import pytest

import train
from pp_jax import ablations, cli, config, ranges
from pp_jax.ablations import ABLATIONS, BLIND, NONE, AblationConfig
from pp_jax.config import TrainConfig, look_of
from pp_jax.evaluate import ablation, statistics
from pp_jax.evaluate.ablation import Compared
from pp_jax.finetune import grid, recipe
from pp_jax.preprocess.stage import make_shown
from pp_jax.presets import PRESETS
from tests.report_world import figures

CELLS = ("none", "sobel", "log")


def asked_of(name: str, **told) -> AblationConfig:
    flags = {"data_dir": "datasets/x", **ABLATIONS[name].flags, "ablation": name, **told}
    return ablations.resolve(AblationConfig(**flags))


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
    jobs = grid.make_jobs(asked_of("filters"))
    folds = [job.name for job in jobs if "--fold" in job.words]
    assert sum(not name.startswith(BLIND) for name in folds) == 6 * 2 * 5
    assert sum(name.startswith(BLIND) for name in folds) == 2 * 5
    assert sum(job.name.startswith("before/") for job in jobs) == 6 * 2
    assert jobs[-1].name == grid.REPORT
    assert set(jobs[-1].after) == {job.name for job in jobs[:-1]}
    of_seed = [job for job in jobs if job.name.startswith("log/seed1/")]
    assert {job.after for job in of_seed} == {("before/log/seed1",)}


def test_given_weights_are_where_all_begin():
    asked = asked_of("filters", init="runs/mine")
    jobs = grid.make_jobs(asked)
    assert not any(job.name.startswith("before/") or job.name == "data" for job in jobs)
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
    ],
)
def test_flags_that_the_grid_sets_are_refused(told, says):
    with pytest.raises(ValueError, match=says):
        asked_of("filters", **told)


@pytest.mark.parametrize("filters", [("none",), ("none", "sobel", "sobel")])
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


def test_presets_lend_their_flags_to_a_grid(monkeypatch):
    """A preset's flags stand above the ablation's own, and what is typed above both."""
    flags = ABLATIONS["filters"].flags
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


COMPARED = Compared("which filter helps", CELLS, BLIND, 1.5)
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


def test_the_answer_says_what_helped_what_did_not_and_what_the_image_gave(tmp_path):
    (tmp_path / "report").mkdir()
    rows = rows_of(LEVELS)
    ablation.files.write_rows(tmp_path / "report" / "images.csv", rows)
    text = ablation.write(tmp_path, COMPARED)
    assert "better than none: sobel by +0.100 [+0.100, +0.100]" in text
    assert "equivalent to none within 0.02: log by +0.000" in text
    plain = [r for r in rows if r["method"] == NONE and r["protocol"] == "none"]
    own = statistics.interval_of(plain, "dice", samples=1).mean
    # Both prompts have the same figures here.
    share = f"{(own - (own - 0.3)) / own:.0%} of the Dice come from the image"
    assert text.count(share) == 2
    assert (tmp_path / "ablation.html").is_file()
    markdown = (tmp_path / "ablation.md").read_text()
    assert "differences-centre.png" in markdown
    assert "1.5 hours of computing" in markdown
