"""What a report says first: figures as plain NumPy has them, claims only where they are shown."""

import csv
import re

import numpy as np
import pytest
import scipy.stats

from pp_jax.evaluate import analysis, files
from pp_jax.evaluate.evidence import Evidence, compare, differences, pick, primary_family
from pp_jax.evaluate.sections import Table
from pp_jax.evaluate.statistics import Interval
from tests.report_world import (
    FIRST,
    GUESSES,
    LEVELS,
    MODELS,
    OTHER,
    SWAPPED,
    TWIN,
    evidence,
    mean_of,
    model,
)

SEEDS = tuple(m | {"seed": seed} for m in MODELS for seed in ("a", "b"))
TWINS = (*MODELS, model(TWIN, kind="blind", of=FIRST))


@pytest.fixture(scope="module")
def ten() -> Evidence:
    """Ten patients, a blind twin, every kind of method, three prompts."""
    return evidence(12, protocols="box,clicks:2,none", models=TWINS)


def cells(table: Table, name: str) -> dict[str, object]:
    """A column, by the first cell of its row."""
    at = [column.name for column in table.columns].index(name)
    return {row[0]: row[at] for row in table.rows}


def told(found: Evidence) -> str:
    return "\n".join(analysis.answer(found).paragraphs)


def test_the_primary_mean_is_that_of_the_rows_on_disk(tmp_path):
    found = evidence(9, models=SEEDS)
    files.write_rows(tmp_path / "images.csv", found.scores.images)
    with (tmp_path / "images.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["protocol"] == "box"]
    rows = [r for r in rows if r["choice"] == "model"]
    table = analysis.answer(found).tables[0]
    shown = cells(table, "Dice")
    assert set(shown) == {FIRST, OTHER, SWAPPED, *GUESSES}
    for name, cell in shown.items():
        own = [r for r in rows if r["method"] == name]
        assert cell.mean == pytest.approx(mean_of(own), abs=1e-12)
    # Patients have one image or two: a mean over images is another figure.
    first = [float(r["dice"]) for r in rows if r["method"] == FIRST]
    assert abs(np.mean(first) - shown[FIRST].mean) > 1e-4
    assert f"It is {shown[FIRST].mean:.3f} [" in told(found)
    assert cells(table, "seeds") == dict.fromkeys(shown, 1) | dict.fromkeys(
        (FIRST, OTHER, SWAPPED), 2
    )


@pytest.mark.parametrize("protocol", ["box", "clicks:2", "none"])
def test_every_row_of_a_main_table_has_its_objects_images_and_patients(ten, protocol):
    rows = [r for r in ten.scores.images if (r["protocol"], r["choice"]) == (protocol, "model")]
    table = analysis.main_table(ten, protocol)
    assert [row[0] for row in table.rows] == list(dict.fromkeys(r["method"] for r in rows))
    for name in dict.fromkeys(r["method"] for r in rows):
        own = {r["id"]: r for r in rows if r["method"] == name}
        counts = [cells(table, column)[name] for column in ("objects", "images", "patients")]
        patients = {r["patient"] for r in own.values()}
        assert counts == [sum(r["objects"] for r in own.values()), len(own), len(patients)]
        for cell in (c for row in table.rows if row[0] == name for c in row):
            assert not isinstance(cell, Interval) or (cell.images, cell.patients) == tuple(
                counts[1:]
            )


def test_an_image_without_a_value_is_counted_in_a_note():
    found = evidence(9, primary="thin_recall@box")
    rows = pick(found.scores.images, protocol="box", choice="model", method=FIRST)
    known = [r for r in rows if r["thin_recall"] is not None]
    assert 0 < len(known) < len(rows)
    table = analysis.main_table(found, "box")
    assert cells(table, "Recall of thin parts")[FIRST].images == len(known)
    assert cells(table, "images")[FIRST] == len(rows)
    patients = len({r["patient"] for r in known})
    note = f"Recall of thin parts: {len(known)} images of {patients} patients have it."
    assert note in table.notes
    # And where it is one of the other metrics.
    notes = analysis.details_section(evidence(9), "box").tables[0].notes
    assert [one for one in notes if "have it" in one] == [note]


def test_an_exchanged_image_never_enters_the_family_and_p_is_that_of_holm(ten):
    family = primary_family(ten)
    assert [one.b for one in family] == [OTHER, TWIN, *GUESSES]
    assert all(one.a == FIRST for one in family)
    rows = pick(ten.scores.images, protocol="box", choice="model")
    patients = sorted({r["patient"] for r in rows})

    def by_patient(name):
        own = [r for r in rows if r["method"] == name]
        return np.array([np.mean([r["dice"] for r in own if r["patient"] == p]) for p in patients])

    raw = [scipy.stats.wilcoxon(by_patient(FIRST) - by_patient(one.b)).pvalue for one in family]
    order = np.argsort(raw)
    wanted, highest = {}, 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, raw[at] * (len(raw) - rank)))
        wanted[family[at].b] = highest
    assert {one.b: one.holm for one in family} == pytest.approx(wanted)
    table = analysis.answer(ten).tables[1]
    assert cells(table, "p after Holm") == {
        name: f"{p:.3f}" if p >= 0.001 else "< 0.001" for name, p in wanted.items()
    }
    # Elsewhere nothing is adjusted, so nothing says so.
    assert {one.holm for one in differences(ten, "none")} == {None}


def test_the_best_guess_is_one_that_sees_no_pixel(ten):
    blind = [name for name in GUESSES if name != "Otsu"]
    assert LEVELS["Otsu"] > LEVELS["mean shape"]
    assert f"sees no pixel, {max(blind, key=lambda n: LEVELS.get(n, 0))}: " in told(ten)
    lowest = evidence(12, primary="hd95@box")
    rows = pick(lowest.scores.images, protocol="box", choice="model")
    best = min(blind, key=lambda n: mean_of([r for r in rows if r["method"] == n], "hd95"))
    assert f"sees no pixel, {best}: " in told(lowest)


def test_under_clicks_there_is_no_guess_and_the_answer_says_so():
    found = evidence(12, protocols="clicks:2")
    assert "No guess that sees no pixel was scored under this prompt." in told(found)
    assert "is better than the best guess" in told(found).split("it may not be said")[1]
    assert "see those of the exact box" in told(evidence(12, protocols="clicks:2,box"))


def test_only_what_is_shown_may_be_said(ten):
    line = [one for one in analysis.answer(ten).paragraphs if one.startswith("What these")]
    assert line == [
        f"What these data allow: it may be said that {FIRST} is better than the best guess that "
        "sees no pixel and uses the image and is better than its blind twin."
    ]
    # The same rows, with the guess in the place of the model.
    flipped = {FIRST: "mean shape", "mean shape": FIRST, SWAPPED: SWAPPED}
    rows = [r | {"method": flipped.get(r["method"], r["method"])} for r in ten.scores.images]
    rows.sort(key=lambda r: r["method"] != FIRST)
    weak = ten._replace(scores=ten.scores._replace(images=rows))
    (line,) = [one for one in analysis.answer(weak).paragraphs if one.startswith("What these")]
    yes, no = line.split("; ")
    assert "uses the image" in yes
    assert "than the best guess" in no
    assert "than the best guess" not in yes


def test_a_twin_that_is_missing_is_asked_for_by_its_command():
    command = "python train.py --filter blank --out 'runs/a b'"
    found = evidence(12, missing={FIRST: command})
    paragraphs = analysis.answer(found).paragraphs
    assert f"$ {command}" in paragraphs
    assert f"it may not be said that {FIRST} is better than its blind twin." in told(found)
    # Weights that were not trained here can have none.
    assert "twin" not in told(evidence(12))


def test_without_exchanged_images_it_is_not_known_whether_the_image_was_used():
    found = evidence(12, models=(MODELS[0],))
    assert "Whether the image was used was not measured" in told(found)
    assert f"it may not be said that {FIRST} uses the image" in told(found)
    assert analysis.contribution_section(found) is None


def test_five_patients_allow_no_conclusion():
    # Of every four patients one has no finding, and nothing to mark.
    assert "no conclusion, 5 patients are too few for a test." in told(evidence(6))
    assert "no conclusion" not in told(evidence(8))


def test_one_patient_of_one_image_is_said_to_be_one():
    found = evidence(2, protocols="box,clicks:2,none", models=TWINS)
    one = {"id": "i1_0", "patient": "p1"}
    scores = found.scores._replace(
        objects=pick(found.scores.objects, **one), images=pick(found.scores.images, **one)
    )
    single = found._replace(scores=scores)
    assert "[1 patient] (2 objects, 1 image, 1 patient)" in told(single)
    assert "no conclusion, 1 patient is too few for a test." in told(single)
    assert "[1 patient]" in "\n".join(
        analysis.tables.to_markdown(t) for t in analysis.contribution_section(single).tables
    )
    assert analysis.every_prompt_section(single).tables[0].rows[0][1] == "2 / 1 / 1"


def test_empty_predictions_are_counted_and_the_image_is_not_used():
    found = evidence(12, models=MODELS[:2], empty=True)
    table = analysis.answer(found).tables[0]
    # The drawn rows of marked images: each has a finding.
    images = cells(table, "images")[FIRST]
    assert cells(table, "empty: both / one")[FIRST] == f"0 / {images}"
    assert cells(table, "Dice")[FIRST][:3] == (0, 0, 0)
    assert "the image was not used (interval contains 0)" in told(found)
    free = analysis.main_table(found, "none")
    negatives = {r["id"] for r in found.scores.images if not r["objects"]}
    positives = {r["id"] for r in found.scores.images if r["objects"]}
    assert cells(free, "empty: both / one")[FIRST] == f"{len(negatives)} / {len(positives)}"
    assert negatives


def test_random_weights_and_parts_that_were_trained_on_are_warned_of():
    plain = told(evidence(8))
    assert "random numbers" not in plain
    assert "no test" not in plain
    random = evidence(8, models=(model(FIRST, from_random=True), *MODELS[1:]))
    assert f"The weights of {FIRST} began as random numbers" in told(random)
    everyone = told(evidence(8, part="all"))
    assert "no conclusion. Among the patients of part all may be some that a model" in everyone
    assert "may be said" not in everyone
    converted = (model(FIRST, trained_on=None, trained_under=None),)
    assert "no test" not in told(evidence(8, models=converted, part="all"))


def test_without_an_image_under_the_primary_protocol_the_answer_says_so():
    found = evidence(4)
    scores = found.scores._replace(images=pick(found.scores.images, protocol="none"))
    section = analysis.answer(found._replace(scores=scores))
    assert "could not be computed" in section.paragraphs[0]
    assert not section.tables


def test_every_prompt_has_the_mean_of_every_method(ten):
    (table,) = analysis.every_prompt_section(ten).tables
    names = [re.sub(r" \(trained under: \w+\)", "", c.name) for c in table.columns[2:]]
    assert names == [FIRST, OTHER, TWIN, *GUESSES]
    assert table.columns[2].name == f"{FIRST} (trained under: box)"
    for spec, row in zip(("box", "clicks:2", "none"), table.rows, strict=True):
        rows = pick(ten.scores.images, protocol=spec, choice="model")
        for name, cell in zip(names, row[2:], strict=True):
            own = [r for r in rows if r["method"] == name]
            assert cell == (pytest.approx(mean_of(own)) if own else None)
    values, models, specs = analysis.training_matrix(ten)
    assert models == [f"{FIRST} (box)", f"{OTHER} (box)"]
    assert specs == ["box", "clicks:2", "none"]
    np.testing.assert_allclose(values[:, 0], [row for row in table.rows[0][2:4]])
    assert analysis.every_prompt_section(evidence(4, protocols="box")) is None


def test_the_drop_is_the_mean_difference_of_the_same_patients(ten):
    drops, twins = analysis.contribution_section(ten).tables
    for spec, row in zip(("box", "clicks:2", "none"), drops.rows, strict=True):
        rows = pick(ten.scores.images, protocol=spec, choice="model")
        means = [mean_of([r for r in rows if r["method"] == n]) for n in (FIRST, SWAPPED)]
        assert row[2].mean == pytest.approx(means[0] - means[1])
        assert row[3:5] == (len(pick(rows, method=FIRST)), len({r["patient"] for r in rows}))
    # What is said of the twin is what the adjusted family says.
    (family,) = [one for one in primary_family(ten) if one.b == TWIN]
    assert twins.rows[0][0] == TWIN
    assert twins.rows[0][5] == analysis.p_value(family.holm)


def test_a_choice_is_compared_with_an_oracle_on_the_same_images(ten):
    (table,) = analysis.choice_section(ten).tables
    assert [row[:2] for row in table.rows] == [("exact box", n) for n in (FIRST, OTHER, TWIN)]
    for row in table.rows:
        for cell, choice in zip(row[3:], ("model", "oracle"), strict=True):
            own = pick(ten.scores.images, protocol="box", method=row[1], choice=choice)
            assert cell.mean == pytest.approx(mean_of(own))
    assert analysis.choice_section(evidence(4, protocols="none")) is None


def test_figures_of_the_primary_prompt_stand_once(ten):
    primary = [table.title for table in analysis.details_section(ten, "box").tables]
    other = [table.title for table in analysis.details_section(ten, "none").tables]
    assert primary == [
        "All other metrics, prompt: exact box",
        "Objects matched at IoU 0.5, prompt: exact box",
    ]
    assert other[0] == "Prompt: nothing"
    assert other[-1] == f"Paired differences, prompt: nothing, {FIRST} minus each"
    named = [c.name for table in analysis.details_section(ten, "box").tables for c in table.columns]
    assert "Dice" not in named
    assert "F1" not in named


def test_matched_objects_are_summed_before_they_are_divided(ten):
    table = analysis.details_section(ten, "none").tables[2]
    for name in (FIRST, "atlas"):
        own = pick(ten.scores.images, protocol="none", choice="model", method=name)
        tp, fp, fn, iou = (sum(r[c] for r in own) for c in ("tp", "fp", "fn", "matched_iou"))
        assert cells(table, "panoptic quality")[name] == pytest.approx(iou / (tp + (fp + fn) / 2))
        assert cells(table, "sensitivity")[name] == pytest.approx(tp / (tp + fn))
        assert cells(table, "false positives per image")[name] == pytest.approx(fp / len(own))


def test_methods_that_share_no_image_are_not_compared(ten):
    assert compare(ten, [], pick(ten.scores.images, method=OTHER), "dice") is None


@pytest.mark.parametrize(
    ("p", "printed"), [(None, None), (0.0004, "< 0.001"), (0.001, "0.001"), (0.0496, "0.050")]
)
def test_small_p_are_not_printed_as_zero(p, printed):
    assert analysis.p_value(p) == printed
