import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.facts import Facts
from data.records import Record
from data.splits import FIELDS, parse_train_on, split_folds, split_held_out, split_patients

NOWHERE = Path("none")
BOX = ((0.0, 0.0, 1.0, 1.0),)
LABELS = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")


def people(positive, negative):
    """One image each."""
    names = [f"p{i}" for i in range(positive)] + [f"n{i}" for i in range(negative)]
    return [
        Record(f"{name}-image", name, NOWHERE, BOX if name[0] == "p" else (), None, "box", "")
        for name in names
    ]


def cohort(count):
    """Patients of one to dozens of images; the ill have more of them, most of these AP."""
    rng = np.random.default_rng(7)
    records = []
    for patient in range(count):
        ill = rng.random() < 0.3
        for image in range(min(60, int(rng.pareto(1.2) * (2 if ill else 1)) + 1)):
            label = LABELS[rng.choice(3, p=[0.1, 0.4, 0.5] if ill else [0.6, 0.35, 0.05])]
            facts = Facts(view="AP" if rng.random() < (0.8 if ill else 0.3) else "PA")
            boxes = BOX if label == "Lung Opacity" else ()
            name = f"{patient}-{image}"
            records.append(Record(name, str(patient), NOWHERE, boxes, None, "box", label, facts))
    return records


def invert(parts):
    return {name: part for part, names in parts.items() for name in names}


def tabulate(records, parts):
    """Images of each part (rows) and each label with each view (columns)."""
    part_of = invert(parts)
    kinds = sorted({(record.label, record.facts.view) for record in records})
    table = np.zeros((len(parts), len(kinds)), int)
    for record in records:
        place = list(parts).index(part_of[record.patient])
        table[place, kinds.index((record.label, record.facts.view))] += 1
    return table, kinds


@pytest.mark.parametrize(
    ("positive", "negative"), [(3, 0), (0, 3), (2, 2), (1, 2), (2, 9), (7, 4), (60, 40)]
)
def test_every_patient_is_in_exactly_one_part_and_no_part_is_empty(positive, negative):
    records = people(positive, negative)
    for seed in range(5):
        parts = split_patients(records, seed=seed)
        assert list(parts) == ["train", "validation", "test"]
        assert all(parts.values())
        assert sorted(sum(parts.values(), ())) == sorted({r.patient for r in records})


@pytest.mark.parametrize(("positive", "negative"), [(3, 0), (3, 1), (3, 90), (60, 40)])
def test_every_part_has_a_finding_where_three_patients_have_one(positive, negative):
    for seed in range(5):
        parts = split_patients(people(positive, negative), seed=seed)
        assert all(any(name.startswith("p") for name in part) for part in parts.values())


def test_the_parts_have_their_fractions_and_their_share_of_findings():
    for seed in range(5):
        parts = split_patients(people(60, 40), seed=seed, validation=0.1, test=0.2)
        counts = {
            part: [sum(n[0] == kind for n in names) for kind in "pn"]
            for part, names in parts.items()
        }
        assert counts == {"train": [42, 28], "validation": [6, 4], "test": [12, 8]}


@pytest.mark.parametrize("seed", range(3))
def test_images_labels_and_views_have_their_share_of_each_part_though_patients_are_uneven(seed):
    records = cohort(2000)
    fractions = {"validation": 0.15, "test": 0.25}
    parts = split_patients(records, seed=seed, **fractions)
    table, kinds = tabulate(records, parts)
    fair = np.outer([0.6, 0.15, 0.25], table.sum(0))
    # Patients of one image come last and even out what the large ones left uneven: of the six kinds
    # each ends within two images of its share, and what is left over mostly cancels in the sum.
    assert np.abs(table - fair).max() < 2, kinds
    assert np.abs(table.sum(1) - fair.sum(1)).max() < 4


def test_large_patients_are_shared_out_too_and_the_seed_moves_the_largest():
    giant = [Record(f"g{i}", "giant", NOWHERE, BOX, None, "box", LABELS[2]) for i in range(61)]
    records = cohort(500) + giant  # Larger than any other.
    sizes = Counter(record.patient for record in records)
    largest = [name for name, _ in sizes.most_common(50)]
    found = Counter()
    for seed in range(30):
        part_of = invert(split_patients(records, seed=seed, validation=0.2, test=0.3))
        found[part_of["giant"]] += 1
        shares = Counter(part_of[name] for name in largest)
        assert abs(shares["validation"] - 10) <= 4
        assert abs(shares["test"] - 15) <= 4
    assert len(found) == 3
    assert found["train"] > 10


def test_an_image_of_an_unknown_person_is_trained_on():
    records = people(20, 20)
    unknown = {record.patient for record in records[::5]}
    records = [
        replace(record, notes=("doubtful patient",)) if record.patient in unknown else record
        for record in records
    ]
    for seed in range(5):
        parts = split_patients(records, seed=seed)
        assert unknown <= set(parts["train"])
        assert min(map(len, parts.values())) > 0


def test_labels_that_are_all_different_do_not_spoil_the_sizes():
    records = [Record(f"i{i}", f"p{i}", NOWHERE, (), None, "box", f"label {i}") for i in range(100)]
    parts = split_patients(records, seed=1, validation=0.1, test=0.2)
    assert [len(names) for names in parts.values()] == [70, 10, 20]


def test_a_patient_with_most_images_still_leaves_the_others_theirs():
    records = [
        Record(f"i{i}", "many" if i < 50 else f"p{i}", NOWHERE, BOX, None, "box", "")
        for i in range(55)
    ]
    for seed in range(5):
        parts = split_patients(records, seed=seed)
        assert sum(map(len, parts.values())) == 6
        assert all(parts.values())


def test_the_split_depends_on_who_is_shown_and_the_seed_not_on_the_order():
    records = cohort(200)
    mixed = [records[index] for index in np.random.default_rng(0).permutation(len(records))]
    assert split_patients(records, seed=3) == split_patients(mixed, seed=3)
    assert split_patients(records, seed=3) != split_patients(records, seed=4)


@pytest.mark.parametrize(("validation", "test"), [(0.45, 0.5), (0.6, 0.3), (0.01, 0.02)])
@pytest.mark.parametrize("count", [3, 4, 5])
def test_lopsided_fractions_leave_no_part_empty(count, validation, test):
    for records in (people(count, 0), people(0, count), people(count, 40)):
        parts = split_patients(records, seed=0, validation=validation, test=test)
        kind = records[0].patient[0]
        assert all(any(name[0] == kind for name in names) for names in parts.values())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_patients_are_an_error(count):
    with pytest.raises(ValueError, match=rf"{count} patients cannot fill.*--limit"):
        split_patients(people(count, 0) * 2, seed=0)


@pytest.mark.parametrize(("validation", "test"), [(0, 0.2), (0.1, 0), (0.5, 0.5)])
def test_fractions_that_empty_a_part_are_an_error(validation, test):
    with pytest.raises(ValueError, match="leave something to train"):
        split_patients(people(5, 5), seed=0, validation=validation, test=test)


def folds_of(records, count, **more):
    return split_folds(records, count=count, seed=0, **more)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_every_patient_is_tested_in_one_fold_and_trained_or_validated_on_in_all_others(count):
    records = cohort(60)
    everybody = sorted({record.patient for record in records})
    folds = folds_of(records, count)
    assert len(folds) == count
    assert sorted(name for parts in folds for name in parts["test"]) == everybody
    for parts in folds:
        assert list(parts) == ["train", "validation", "test"]
        assert all(parts.values())
        assert sorted(sum(parts.values(), ())) == everybody
        assert all(list(names) == sorted(names) for names in parts.values())


def test_images_labels_and_views_have_their_share_of_each_fold():
    records = cohort(1000)
    folds = folds_of(records, 5, validation=0.1)
    tested, kinds = tabulate(records, {str(i): parts["test"] for i, parts in enumerate(folds)})
    assert np.abs(tested - tested.sum(0) / 5).max() < 2, kinds
    for parts in folds:
        table, _ = tabulate(records, parts)
        assert np.abs(table - np.outer([0.7, 0.1, 0.2], table.sum(0))).max() < 3, kinds


def test_every_fold_tests_and_validates_on_a_finding_where_there_are_enough():
    for parts in folds_of(people(6, 30), 5):
        assert any(name[0] == "p" for name in parts["test"])
        assert any(name[0] == "p" for name in parts["validation"])


def test_an_image_of_an_unknown_person_is_trained_on_in_every_fold_and_tested_in_none():
    records = [
        replace(record, notes=("doubtful patient",)) if index % 4 == 0 else record
        for index, record in enumerate(people(20, 20))
    ]
    unknown = {record.patient for record in records[::4]}
    folds = folds_of(records, 5)
    assert all(unknown <= set(parts["train"]) for parts in folds)
    tested = sorted(name for parts in folds for name in parts["test"])
    assert tested == sorted({record.patient for record in records} - unknown)


def test_folds_depend_on_who_is_shown_and_the_seed_not_on_the_order():
    records = cohort(100)
    mixed = [records[index] for index in np.random.default_rng(0).permutation(len(records))]
    assert folds_of(records, 4) == folds_of(mixed, 4)
    assert folds_of(records, 4) != split_folds(records, count=4, seed=1)


def test_folds_that_whole_patients_cannot_fill_are_an_error():
    with pytest.raises(ValueError, match="4 patients cannot fill 5 folds"):
        folds_of(people(4, 0), 5)
    assert len(folds_of(people(5, 0), 5)) == 5
    with pytest.raises(ValueError, match="of whom 2 are tested in one fold, leave nobody to"):
        folds_of(people(3, 0), 2)
    with pytest.raises(ValueError, match=r"validation=0\.5 must be above 0 and leave something"):
        folds_of(people(9, 9), 2, validation=0.5)


def labelled(*rows):
    """`patient:label:view` each."""
    split = [row.split(":") for row in rows]
    return [
        Record(f"i{i}", patient, NOWHERE, BOX, None, "box", label, Facts(view=view))
        for i, (patient, label, view) in enumerate(split)
    ]


def test_what_is_not_named_is_tested_and_a_patient_on_both_sides_is_trained_on_alone():
    records = labelled("a:X:AP", "b:X:PA", "b:Z:AP", "c:Y:PA", "d:Z:PA", "e:W:AP", "e:Z:PA")
    parts, used = split_held_out(records, train_on="finding=X,Y", seed=0)
    assert sorted(parts["train"] + parts["validation"]) == ["a", "b", "c"]
    assert parts["test"] == ("d", "e")
    assert all(parts.values())
    assert sorted(record.id for record in used) == ["i0", "i1", "i3", "i4", "i5", "i6"]
    parts, _ = split_held_out(records, train_on="view=PA", seed=0)
    assert parts["test"] == ("a",)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_tells_the_records_apart_by_what_it_is_named_for(field):
    facts = [Facts(view=str(i % 2), sex=str(i // 2 % 2)) for i in range(16)]
    records = [
        Record(f"{i}", f"{i}", NOWHERE, (), None, "box", str(i // 4 % 2), f, dataset=str(i // 8))
        for i, f in enumerate(facts)
    ]
    bit = {"view": 0, "sex": 1, "finding": 2, "dataset": 3}[field]
    parts, _ = split_held_out(records, train_on=f"{field}=1", seed=0, validation=0.25)
    assert parts["test"] == tuple(sorted(str(i) for i in range(16) if not i >> bit & 1))
    assert all(parts.values())


def test_an_unknown_person_is_not_tested_on_what_is_held_out():
    records = labelled(*[f"p{i}:{'XY'[i % 2]}:PA" for i in range(20)])
    for index in (0, 1):
        records[index] = replace(records[index], notes=("doubtful patient",))
    parts, used = split_held_out(records, train_on="finding=X", seed=0)
    assert "p0" in parts["train"]
    assert parts["test"] == tuple(sorted(f"p{i}" for i in range(3, 20, 2)))
    assert "i1" not in {record.id for record in used}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("X", "--train-on X: give FIELD=VALUE,VALUE,... with a field of finding, view, sex"),
        ("age=3", "--train-on age=3: give FIELD="),
        ("finding=", "--train-on finding=: give FIELD="),
        ("finding=X,V", "no image has finding 'V'; there are 'W', 'X', 'Y', 'Z'"),
        ("finding=W,X,Y,Z", "5 patients to train and validate on and 0 to test"),
        ("finding=W", "1 patients to train and validate on and 4 to test"),
    ],
)
def test_what_cannot_be_held_out_is_an_error_that_names_it(told, message):
    records = labelled("a:X:AP", "b:X:PA", "c:Y:PA", "d:Z:PA", "e:W:AP")
    with pytest.raises(ValueError, match=re.escape(message)):
        split_held_out(records, train_on=told, seed=0)


def test_a_value_may_hold_anything_but_a_comma():
    told = "finding=No Lung Opacity / Not Normal,a=b"
    assert parse_train_on(told) == ("finding", ("No Lung Opacity / Not Normal", "a=b"))
