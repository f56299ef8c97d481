"""The study: its stages, what is run and what is not, how filters are chosen, what is said."""

import dataclasses
import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tyro

import convert.__main__ as convert_front
import eval as eval_front
import train as train_front
from data.prepare import Prepare
from pp_jax import ablations, checkpoints, cli, config, jobs
from pp_jax.ablations import ABLATIONS, AblationConfig
from pp_jax.config import TrainConfig
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate.files import write_rows
from pp_jax.finetune import runs
from pp_jax.study import __main__ as front
from pp_jax.study import answer, settings
from pp_jax.study.answer import Pair, best_filters, differences, sentence, word_of
from pp_jax.study.cost import Sizes
from pp_jax.study.settings import PROMPTS, TUNED, ZERO_SHOT, Study
from pp_jax.study.stages import BLIND, CANDIDATES, STAGES, UNET, models, steps_of

SIZES = Sizes(images=60, findings=57, patients=50)


@pytest.fixture
def study(tmp_path):
    """Of a file of weights and a folder of tables: nothing is read but these."""
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"weights")
    rsna = tmp_path / "rsna"
    rsna.mkdir()
    labels = ["patientId,x,y,width,height,Target"]
    labels += [f"image{n},10,10,30,40,1" if n % 2 else f"image{n},,,,,0" for n in range(16)]
    (rsna / "stage_2_train_labels.csv").write_text("\n".join(labels) + "\n")
    people = [f"image{n},patient{n // 2}" for n in range(16)]
    (rsna / "patients.csv").write_text("\n".join(["patientId,patient", *people]) + "\n")
    sam = str(tmp_path / "sam_vit_b_01ec64.pth")
    return Study(sam=sam, rsna=str(rsna), out=str(tmp_path / "out"), variant="vit_b")


def words_of(study: Study) -> list[str]:
    told = {"--sam": study.sam, "--rsna": study.rsna, "--out": study.out}
    return [word for pair in told.items() for word in pair]


def all_jobs(study: Study, sizes: Sizes = SIZES) -> list[jobs.Job]:
    stages = steps_of(study, sizes, CANDIDATES[: study.best])
    return [step.job for steps in stages.values() for step in steps]


# Stages.


def test_every_job_stands_behind_those_that_it_needs(study):
    jobs.check(all_jobs(study))
    before = steps_of(study, SIZES, None)
    jobs.check([step.job for steps in before.values() for step in steps])
    assert [*before] == [*STAGES][: len(before)]


def test_stages_before_the_choice_do_not_depend_on_the_filters_chosen(study):
    before = steps_of(study, SIZES, None)
    for name, steps in steps_of(study, SIZES, ("musica",)).items():
        if name in before:
            assert [s.job.words for s in steps] == [s.job.words for s in before[name]]


def test_candidates_are_trained_and_scored_on_the_folds_of_the_choice_alone(study):
    stages = steps_of(study, SIZES, ())
    for step in (*stages["candidates"], *stages["choice"]):
        assert int(step.job.name[-1]) in (0, 1), step.job.name
    for step in stages["scores"]:
        assert not any("fold0" in word or "fold1" in word for word in step.job.words)


def parse_train(words: tuple[str, ...]) -> None:
    common = {"choices": train_front.CHOICES, "specs": train_front.CHECKED}
    if "--ablation" in words:
        flags = ABLATIONS[words[words.index("--ablation") + 1]].flags
        asked = cli.parse(
            AblationConfig, prog="train.py", args=[*words], presets={"": flags}, **common
        )
        assert len(ablations.cells(ablations.resolve(asked))) > len(CANDIDATES)
        return
    asked = cli.parse(TrainConfig, prog="train.py", args=[*words], **common)
    config.resolve(train_front.with_effect(asked, None))


def parse_eval(words: tuple[str, ...]) -> None:
    fronts = {"choices": eval_front.CHOICES, "specs": eval_front.CHECKED}
    asked = cli.parse(EvalConfig, prog="eval.py", args=[*words], **fronts)
    assert asked.methods
    assert asked.prompt


@pytest.mark.parametrize("more", [{}, {"masks": "masks", "embeddings": False, "image_size": 256}])
def test_every_command_is_one_that_its_program_takes(study, more):
    study = dataclasses.replace(study, folds=3, best=1, **more)
    for job in all_jobs(study, SIZES._replace(findings=20)):
        match job.words:
            case ("train.py", *rest):
                parse_train(tuple(rest))
            case ("eval.py", *rest):
                parse_eval(tuple(rest))
            case ("-m", "convert", *rest):
                assert tyro.cli(convert_front.Convert, args=rest).source == Path(study.sam)
            case ("-m", "data", "prepare", *rest):
                assert tyro.cli(Prepare, args=rest).out == study.data
            case _:
                pytest.fail(f"{job.words}: no program of the project")


# What is done.


def test_what_is_done_is_not_run_again(study, monkeypatch):
    ran = []
    planned = {job.name: job for job in all_jobs(study)}
    study.weights.mkdir(parents=True)
    (study.weights / "MANIFEST.json").write_text("{}")
    monkeypatch.setattr(jobs, "_run_one", lambda job, *rest: ran.append(job.name) or 1.0)
    jobs.run([planned["convert"], planned["prepare"]], folder=study.folder)
    assert ran == ["prepare"]


def test_a_report_is_done_when_it_is_of_the_methods_that_are_asked_for(study):
    job = next(job for job in all_jobs(study) if job.name == "reports/fold2")
    folder = study.report("fold2")
    folder.mkdir(parents=True)
    asked = list(itertools.takewhile(lambda word: word[:2] != "--", job.words[2:]))
    (folder / "settings.json").write_text(json.dumps({"settings": {"methods": asked}}))
    assert not job.done()  # The page is written last.
    (folder / "report.html").touch()
    assert job.done()
    (folder / "settings.json").write_text(json.dumps({"settings": {"methods": asked[1:]}}))
    assert not job.done()


def test_a_training_is_done_at_its_last_step(study):
    job = next(job for job in all_jobs(study) if job.name == "decoder/fold0")
    folder = study.run("decoder", 0)
    folder.mkdir(parents=True)
    assert not job.done()
    (folder / runs.CONFIG).write_text(json.dumps(dataclasses.asdict(TrainConfig(steps=2))))
    for step, done in ((1, False), (2, True)):
        place = checkpoints.step_folder(folder, step)
        checkpoints.save(place, {"x": np.zeros(1)}, facts={"last_step": 2})
        assert job.done() == done


# The front.


def test_a_dry_run_runs_nothing_and_tells_every_stage_and_command(study, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    front.main([*words_of(study), "--dry-run"])
    told = capsys.readouterr().out
    assert not study.folder.exists()
    for name, stage in STAGES.items():
        assert f"\n{name}: {stage.help}" in told
    commands = [line.split() for line in told.splitlines() if line.startswith("  python ")]
    assert len(commands) == len(all_jobs(study))
    assert "16 images of 8 patients, 8 with a finding; targets: ellipse" in told
    assert "GiB are free" in told


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("--sam", "", "--sam is missing"),
        ("--sam", "no_vit_b.pth", "no_vit_b.pth: no such file"),
        ("--rsna", "", "--rsna is missing"),
        ("--rsna", "nowhere", "nowhere: no such folder"),
        ("--masks", "nowhere", "nowhere: no folder with <patientId>.png"),
        ("--folds", "2", "--folds 2: two are for the choice"),
        ("--limit", "4", "4 patients for 5 folds"),
        ("--steps", "0", "--steps 0: must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(study, capsys, flag, value, named):
    with pytest.raises(SystemExit) as end:
        front.main([*words_of(study), flag, value, "--dry-run"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line


def test_the_variant_is_that_of_the_name_or_has_to_be_told(study, tmp_path):
    assert settings.resolve(dataclasses.replace(study, variant="")).variant == "vit_b"
    other = tmp_path / "weights.pth"
    other.touch()
    with pytest.raises(ValueError, match="give --variant"):
        settings.resolve(dataclasses.replace(study, variant="", sam=str(other)))


def test_a_study_of_other_settings_is_not_gone_on_with(study):
    front.begin(study)
    front.begin(dataclasses.replace(study, jobs=2, device="cpu"))
    with pytest.raises(ValueError, match="--steps 3000 -> 5"):
        front.begin(dataclasses.replace(study, steps=5))


def test_masks_stand_beside_the_users_files_without_touching_them(study, tmp_path):
    masks = tmp_path / "drawn"
    masks.mkdir()
    (masks / "image1.png").touch()
    before = sorted(Path(study.rsna).iterdir())
    front.begin(dataclasses.replace(study, masks=str(masks)))
    linked = study.folder / "rsna"
    assert (linked / "masks" / "image1.png").is_file()
    assert (linked / "patients.csv").read_text() == (Path(study.rsna) / "patients.csv").read_text()
    assert sorted(Path(study.rsna).iterdir()) == before


# The choice and the answer.


def rows(method: str, dice: np.ndarray, *, prompt: str = "centre", first: int = 0) -> list[dict]:
    """One image per patient."""
    keys = {"seed": "", "choice": "model", "dataset": "rsna", "objects": 1, "method": method}
    return [
        keys
        | {"protocol": prompt, "id": f"i{n}", "patient": f"p{n}"}
        | {"dice": float(value), "nsd_1": float(value) / 2}
        for n, value in enumerate(dice, first)
    ]


def scored(fold: int, means: dict[str, float]) -> list[dict]:
    return [
        row
        for (name, mean), prompt in itertools.product(means.items(), PROMPTS)
        for row in rows(name, np.full(3, mean), prompt=prompt, first=3 * fold)
    ]


def choice_of(study: Study, folds: dict[int, dict[str, float]]) -> list[str]:
    """What the front chooses from reports on the disk."""
    for fold, means in folds.items():
        folder = study.report(f"choice-fold{fold}")
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "images.csv", scored(fold, means))
    return [*front.choose(study)]


def test_filters_are_chosen_on_folds_0_and_1_alone(study):
    low = dict.fromkeys(CANDIDATES, 0.3) | {"none": 0.9}
    folds = {
        0: low | {"log": 0.5, "clahe": 0.4},
        1: low | {"log": 0.5, "clahe": 0.6, "canny": 0.4},
        **dict.fromkeys((2, 3, 4), low),
    }
    assert choice_of(study, folds) == ["log", "clahe"]  # Of equal ones the first in the table.
    tempting = dict.fromkeys((2, 3, 4), low | {"musica": 1.0, "sobel": 1.0, "log": 0.0})
    assert choice_of(study, folds | tempting) == ["log", "clahe"]
    assert choice_of(study, folds | {1: low | {"musica": 1.0}})[0] == "musica"


def test_a_filter_without_a_score_is_no_choice():
    means = dict.fromkeys(CANDIDATES[1:], 0.3)
    with pytest.raises(ValueError, match=CANDIDATES[0]):
        best_filters({fold: scored(fold, means) for fold in TUNED}, CANDIDATES, count=1)


BASE = np.linspace(0.3, 0.7, 20)
NOISE = np.resize([-1.0, 1.0], 20)


@pytest.mark.parametrize(
    ("word", "other", "said"),
    [
        ("better", BASE + 0.1 + 0.01 * NOISE, "a is better than b: Dice +0.100 ["),
        ("worse", BASE - 0.1 + 0.01 * NOISE, "a is worse than b: Dice -0.100 ["),
        ("equivalent", BASE + 0.002 * NOISE, "a and b are equivalent"),
        ("undecided", BASE + 0.2 * NOISE, "Whether a is better than b is undecided"),
    ],
)
def test_words_follow_the_interval(word, other, said):
    pair = Pair("centre", "a", "b")
    ((_, one),) = differences([*rows("a", other), *rows("b", BASE)], [pair]).items()
    low, high = one.difference.low, one.difference.high
    assert {"better": low > 0, "worse": high < 0}.get(word, low <= 0 <= high)
    assert word_of(one) == word
    assert sentence(pair, one).startswith(said)
    assert f"[{low:+.3f}, {high:+.3f}], 20 patients" in sentence(pair, one)


def test_a_difference_that_does_not_stand_after_the_correction_is_undecided():
    """Its interval excludes 0 by itself; beside many others its p is not small enough."""
    other = BASE + np.resize([0.05, 0.05, 0.05, -0.05], 20)
    table = [*rows("a", other), *rows("b", BASE)]
    alone = differences(table, [Pair("centre", "a", "b")])
    assert [word_of(one) for one in alone.values()] == ["better"]
    for n in range(9):
        table += rows(f"c{n}", BASE + 0.3 * NOISE)
    pairs = [Pair("centre", "a", "b"), *(Pair("centre", f"c{n}", "b") for n in range(9))]
    found = differences(table, pairs)
    assert word_of(found[pairs[0]]) == "undecided"
    assert found[pairs[0]].difference.low > 0


def test_images_without_a_finding_have_no_say():
    empty = [row | {"objects": 0, "id": f"e{row['id']}"} for row in rows("a", np.ones(20))]
    found = answer.mean_of([*rows("a", BASE), *empty], "a", "centre")
    assert found.mean == pytest.approx(BASE.mean())


def reports(study: Study, filters: tuple[str, ...]) -> None:
    """All that the study reads, with figures that are made up."""
    names = [ZERO_SHOT, *models(filters), "blind", UNET, "Otsu's threshold", "mean shape", "atlas"]
    names += [f"{name}, {answer.SWAPPED}" for name in (ZERO_SHOT, *models(filters))]
    means = {name: 0.3 + 0.02 * n for n, name in enumerate(reversed(names))}
    tables = {f"choice-fold{fold}": scored(fold, dict.fromkeys(CANDIDATES, 0.3)) for fold in TUNED}
    tables |= {f"fold{fold}": scored(fold, means) for fold in study.reported}
    tables["zero-shot-filters/report"] = scored(0, {"none": 0.3, "sobel-replace": 0.2})
    tables[ZERO_SHOT] = scored(0, {ZERO_SHOT: 0.3, "atlas": 0.2})
    for name, table in tables.items():
        study.report(name).mkdir(parents=True, exist_ok=True)
        write_rows(study.report(name) / "images.csv", table)


def test_the_report_answers_each_question_and_says_of_what_and_at_what_cost(study):
    reports(study, ("log",))
    (study.folder / jobs.SECONDS).write_text(json.dumps({"convert": 3600.0, "decoder/fold2": 1800}))
    study.weights.mkdir()
    (study.weights / "file").write_bytes(bytes(2**20))
    told = front.conclude(study, SIZES, {"log": 0.3}, ["a doubt"])
    for question in ("Does fine-tuning", "Do filters add", "How much comes from the image"):
        for prompt in ("With one click on the centre", "Without a prompt"):
            assert any(
                line.startswith(question) and prompt in line for line in told.splitlines()
            ), (question, prompt)
    assert "decoder-log is worse than decoder: Dice -0.020" in told
    text = (study.folder / "report.md").read_text()
    assert "targets are made of RSNA's boxes (ellipse)" in text
    assert "a doubt" in text
    assert "1.5 hours of computing" in text
    assert "Filters were chosen on folds 0 and 1 of 5" in text
    assert "U-Net" in told or UNET in text
    assert (study.folder / "report.html").is_file()


def test_the_family_is_each_training_and_each_filter_under_both_prompts():
    found = answer.family(("log", "clahe"))
    assert len(found) == len(set(found)) == 2 * 2 * 3
    assert {pair.prompt for pair in found} == set(PROMPTS)
    assert Pair("none", "lora-clahe", "lora") in found
    assert Pair("centre", "decoder", ZERO_SHOT) in found
    assert not any(BLIND in pair for pair in found)
