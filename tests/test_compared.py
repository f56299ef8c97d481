"""From names to models: seeds, folds, blind twins, what each is shown, who is scored by whom."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pp_jax.checkpoints import CheckpointError
from pp_jax.config import TrainConfig, resolve
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate.methods import METHODS, Source, Told, parse_methods
from pp_jax.evaluate.subjects import Subject
from pp_jax.finetune import compared
from pp_jax.finetune.compared import Entry
from pp_jax.finetune.members import Member
from pp_jax.look import Look
from pp_jax.predict.masks import decode_rle, encode_rle
from pp_jax.preprocess import roi

BESIDE = ", ".join(METHODS)


def write_run(folder: Path, *, step: int = 4, **choices) -> Path:
    """The folder of a run, as far as it is looked at before weights are loaded."""
    settings = resolve(TrainConfig(**({"out": str(folder), "steps": 4} | choices)))
    done = folder / "steps" / f"{step:08d}"
    done.mkdir(parents=True)
    (done / "MANIFEST.json").write_text(json.dumps({"files": {}, "of": str(folder)}))
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(settings)))
    return folder


def write_weights(folder: Path, *, preprocess: str = "sam") -> Path:
    folder.mkdir()
    facts = {"files": {}, "kind": "converted", "variant": "tiny", "preprocess": preprocess}
    (folder / "MANIFEST.json").write_text(json.dumps(facts))
    return folder


def write_folds(folder: Path, *, count: int = 2, **choices) -> Path:
    names = [f"fold{n}" for n in range(count)]
    for n, name in enumerate(names):
        write_run(folder / name, folds=count, fold=n, **choices)
    (folder / "folds.json").write_text(json.dumps({"runs": names}))
    return folder


def line_up(*texts: object, twins: bool = True, **flags):
    told, _ = parse_methods([str(text) for text in texts])
    settings = EvalConfig(methods=tuple(map(str, texts)), **flags)
    return compared.line_up(told, settings, twins=twins)


def looks(entries: list[Entry]) -> list[str]:
    return [member.look.filter for entry in entries for member in entry.members]


# Names.


def test_a_run_is_one_member_that_is_shown_what_it_was_trained_on(tmp_path):
    run = write_run(tmp_path / "r", filter="sobel", fusion="blend", blend=0.25, roi="content")
    [entry], missing = line_up(run)
    (member,) = entry.members
    assert (entry.name, entry.kind, member.seed, member.fold) == ("r", "model", "", False)
    assert member.look == member.trained == Look("sobel", "blend", 0.25, "content", "sam")
    assert (member.variant, member.step, member.run.data) == ("tiny", 4, "synthetic")
    assert list(missing) == ["r"]


def test_weights_are_prepared_as_they_expect(tmp_path):
    [entry], missing = line_up(write_weights(tmp_path / "w", preprocess="medsam"))
    (member,) = entry.members
    assert (member.run, member.step, member.look) == (None, 0, Look(preprocess="medsam"))
    assert missing == {}


def test_several_runs_of_a_name_are_its_seeds(tmp_path):
    a, b = write_run(tmp_path / "a" / "x"), write_run(tmp_path / "a" / "y")
    [entry], _ = line_up(f"mine={a}+{b}/")
    assert [(m.label, m.seed, m.folder) for m in entry.members] == [
        ("mine", "x", a),
        ("mine", "y", b),
    ]
    other = write_run(tmp_path / "b" / "x")
    [entry], _ = line_up(f"mine={a}+{other}")
    assert [member.seed for member in entry.members] == [str(a), str(other)]
    with pytest.raises(ValueError, match="'mine' has the same run twice among its seeds"):
        line_up(f"mine={a}+{a.parent}/../a/x")


def test_folds_are_one_seed_and_folds_of_seeds_one_each(tmp_path):
    cross, again = write_folds(tmp_path / "c"), write_folds(tmp_path / "d", seed=1)
    [entry], _ = line_up(cross)
    assert [(m.seed, m.fold, m.folder.name) for m in entry.members] == [
        ("", True, "fold0"),
        ("", True, "fold1"),
    ]
    [entry], _ = line_up(f"x={cross}+{again}")
    assert [(m.seed, m.folder.name) for m in entry.members] == [
        ("c", "fold0"),
        ("c", "fold1"),
        ("d", "fold0"),
        ("d", "fold1"),
    ]
    # One fold by its own folder is a run like any other.
    assert not line_up(cross / "fold1")[0][0].members[0].fold


def test_a_folder_that_is_no_model_is_named_with_the_choices(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, why in (("elipse", "no such folder"), ("empty", "neither a run nor converted")):
        with pytest.raises(CheckpointError) as caught:
            line_up(tmp_path / name)
        told = str(caught.value)
        assert told.startswith(f"--methods {tmp_path / name}: {why}")
        assert all(part in told for part in ("train.py", "`python -m convert`", BESIDE))
    settings = EvalConfig(checkpoint=("nowhere",))
    with pytest.raises(CheckpointError, match="--checkpoint nowhere: no such folder; give a run"):
        compared.line_up([Told("nowhere", ("nowhere",), {}, ())], settings, twins=True)
    (tmp_path / "empty" / "MANIFEST.json").write_text('{"files": {}, "kind": "base"}')
    with pytest.raises(CheckpointError, match="neither a run nor converted weights"):
        line_up(tmp_path / "empty")


def test_a_run_without_a_checkpoint_is_named(tmp_path):
    run = write_run(tmp_path / "r")
    (run / "steps" / "00000004" / "MANIFEST.json").rename(tmp_path / "gone")
    (run / "steps" / "00000004").rmdir()
    with pytest.raises(CheckpointError, match=f"{run}: a run without a checkpoint yet"):
        line_up(run)


def test_two_lines_of_the_tables_never_share_a_name(tmp_path):
    atlas, run = METHODS["atlas"].label, write_run(tmp_path / "r")
    told = [Told(atlas, (str(run),), {}, ())]
    with pytest.raises(ValueError, match=f"'{atlas}' would be the name of two lines"):
        compared.line_up(told, EvalConfig(), twins=True)


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["a/b"], ""),
        (["mine=a/b"], ""),
        (["a/b", "x/y=c"], "b,x_y"),
        (["mine=a+b"], "mine"),
        (["a filter=sobel", "a"], "a filter=sobel,a"),
    ],
)
def test_several_models_or_seeds_have_a_name_together(texts, wanted):
    assert compared.joint_name(parse_methods(texts)[0]) == wanted


# What is shown.


def test_flags_reach_all_models_and_words_in_quotes_their_own(tmp_path):
    run = write_run(tmp_path / "r", filter="canny", fusion="blend", blend=0.25)
    weights = write_weights(tmp_path / "w")
    own = f"x={weights} filter=clahe fusion=blend blend=0.75 roi=content refine=fill_holes"
    entries, _ = line_up(run, weights, own)
    assert looks(entries) == ["canny", "none", "clahe"]
    assert entries[2].members[0].look == Look("clahe", "blend", 0.75, "content")
    assert entries[2].members[0].refine == ("fill_holes",)
    entries, _ = line_up(run, weights, own, filter="sobel", blend=0.5)
    assert looks(entries) == ["sobel", "sobel", "clahe"]
    assert [entry.members[0].look.blend for entry in entries] == [0.5, 0.5, 0.75]
    assert [entry.members[0].trained.filter for entry in entries] == ["canny", "none", "none"]
    entries, _ = line_up(run, weights, recipe="contrast")
    assert looks(entries) == ["clahe", "clahe"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("filter=cany", "'cany' is unknown.*canny"),
        ("filter=sobel,canny", "fusion 'replace' takes 1 .*not the 2 of 'sobel,canny'"),
        ("fusion=mix", "'mix' is unknown.*blend"),
        ("blend=much", "blend=much of .* is no number"),
        ("blend=2", "blend 2.0: must lie in"),
        ("roi=box", "'box' is unknown.*content"),
        ("filter=sobel fusion=learned", "fusion learned of the filters sobel was not learned"),
    ],
)
def test_a_look_that_does_not_fit_is_refused_before_weights_are_loaded(tmp_path, words, named):
    with pytest.raises(ValueError, match=named):
        line_up(f"x={write_weights(tmp_path / 'w')} {words}")


def test_a_learned_fusion_is_shown_the_filters_that_it_was_learned_on(tmp_path):
    run = write_run(tmp_path / "r", filter="sobel", fusion="learned")
    assert looks(line_up(run)[0]) == ["sobel"]
    with pytest.raises(ValueError, match=r"not learned in its training \(filter sobel"):
        line_up(run, filter="canny")


# Blind twins.


def test_a_blind_twin_is_found_and_else_its_command_told(tmp_path):
    run = write_run(tmp_path / "r", filter="sobel", seed=3)
    entries, missing = line_up(run)
    assert [entry.kind for entry in entries] == ["model"]
    want = f"python train.py --preprocess sam --out {tmp_path}/r-blind --filter blank"
    assert missing == {"r": f"{want} --steps 4 --seed 3".replace("--preprocess sam ", "")}
    write_run(tmp_path / "r-blind", filter="blank", seed=3)
    entries, missing = line_up(run)
    assert missing == {}
    assert [(entry.name, entry.kind, entry.of) for entry in entries] == [
        ("r", "model", ""),
        ("r, blind twin", "blind", "r"),
    ]
    (twin,) = entries[1].members
    assert (twin.label, twin.folder) == ("r, blind twin", tmp_path / "r-blind")
    assert twin.weights != entries[0].members[0].weights
    assert [entry.kind for entry in line_up(run, twins=False)[0]] == ["model"]


@pytest.mark.parametrize("change", [{"steps": 9}, {"lr": 0.5}, {"seed": 4}, {"step": 2}])
def test_a_twin_of_another_training_is_none(tmp_path, change):
    run = write_run(tmp_path / "r")
    write_run(tmp_path / "r-blind", **({"filter": "blank"} | change))
    entries, missing = line_up(run)
    assert (len(entries), list(missing)) == (1, ["r"])


def write_rows(run: Path, dices: dict[int, float]) -> None:
    rows = [{"step": k, "split": "validation", "dice_metric": v} for k, v in dices.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_with_patience_a_twin_may_have_ended_at_another_step(tmp_path):
    run = write_run(tmp_path / "r", steps=9, patience=1, step=9)
    twin = write_run(tmp_path / "r-blind", filter="blank", steps=9, patience=1, step=6)
    write_rows(run, {3: 0.1, 6: 0.2, 9: 0.3})
    write_rows(twin, {3: 0.1, 6: 0.2})  # Killed there: it was to go on.
    assert line_up(run)[1].keys() == {"r"}
    write_rows(twin, {3: 0.1, 6: 0.1})
    entries, missing = line_up(run)
    assert (len(entries), missing) == (2, {})


@pytest.mark.parametrize(("last", "found"), [(9, True), (12, False), (None, False)])
def test_of_a_run_of_epochs_the_checkpoint_says_whether_it_is_the_last(tmp_path, last, found):
    run = write_run(tmp_path / "r", steps=None, epochs=3, patience=1, step=9)
    manifest = run / "steps" / "00000009" / "MANIFEST.json"
    facts = {"last_step": last} if last else {}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | facts))
    twin = write_run(tmp_path / "r-blind", filter="blank", steps=None, epochs=3, patience=1, step=6)
    write_rows(twin, {3: 0.1, 6: 0.1})
    assert (len(line_up(run)[0]) == 2) == found


def test_a_twin_is_shown_nothing_whatever_the_filter_but_the_same_region(tmp_path):
    run = write_run(tmp_path / "r")
    write_run(tmp_path / "r-blind", filter="blank")
    shown = {"filter": "sobel", "fusion": "blend", "roi": "content"}
    model, twin = (entry.members[0].look for entry in line_up(run, **shown)[0])
    assert (model.filter, model.fusion, model.roi) == ("sobel", "blend", "content")
    assert (twin.filter, twin.fusion, twin.roi) == ("blank", "replace", "content")


def test_a_blind_model_has_no_twin_and_neither_have_weights(tmp_path):
    run, weights = write_run(tmp_path / "r", filter="blank"), write_weights(tmp_path / "w")
    entries, missing = line_up(run, weights)
    assert (len(entries), missing) == (2, {})
    for one in (run, weights):
        with pytest.raises(ValueError, match=f"blind: {one.name} was not trained here on images"):
            line_up(one, "blind")


def test_a_twin_that_is_asked_for_by_name_must_be_there(tmp_path):
    run = write_run(tmp_path / "r")
    with pytest.raises(ValueError, match=r"--methods blind: r has no blind twin; .*`python train"):
        line_up(run, "blind")
    write_run(tmp_path / "r-blind", filter="blank")
    assert len(line_up(run, "blind")[0]) == 2


def test_the_twin_of_a_cross_validation_is_one(tmp_path):
    cross = write_folds(tmp_path / "c")
    _, missing = line_up(cross)
    command = missing["c"]
    assert f"--out {tmp_path}/c-blind " in command
    assert "--folds 2" in command
    assert "--fold " not in command
    write_folds(tmp_path / "c-blind", filter="blank")
    twin = line_up(cross)[0][1]
    assert [member.folder for member in twin.members] == [
        tmp_path / "c-blind" / "fold0",
        tmp_path / "c-blind" / "fold1",
    ]
    assert all(member.fold for member in twin.members)


def test_every_seed_needs_a_twin(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    write_run(tmp_path / "a-blind", filter="blank")
    entries, missing = line_up(f"m={a}+{b}")
    assert len(entries) == 1
    assert missing["m"].count("python train.py") == 2
    write_run(tmp_path / "b-blind", filter="blank", seed=1)
    entries, _ = line_up(f"m={a}+{b}")
    assert [member.seed for member in entries[1].members] == ["a", "b"]


# Who is scored by whom.


def member(folder: str, *, seed: str = "", fold: bool = False) -> Member:
    return Member("m", seed, Path(folder), fold, "tiny", None, 0, "", Look(), Look(), ())


def test_folds_that_share_out_the_images_are_one_run_and_others_are_told_apart_as_seeds():
    entry = Entry("m", "model", "", (member("c/f0", fold=True), member("c/f1", fold=True)))
    own = {Path("c/f0"): frozenset("ab"), Path("c/f1"): frozenset("cd")}
    other = dict.fromkeys(own, frozenset("xy"))
    assert compared.apart(entry, own) == entry
    assert [m.seed for m in compared.apart(entry, other).members] == ["f0", "f1"]
    of_seed = Entry("m", "model", "", tuple(m._replace(seed="s") for m in entry.members))
    assert [m.seed for m in compared.apart(of_seed, other).members] == ["s/f0", "s/f1"]


def test_an_image_is_scored_if_every_model_may_be_under_each_of_its_seeds():
    cross = Entry("c", "model", "", (member("f0", fold=True), member("f1", fold=True)))
    seeds = Entry("s", "model", "", (member("a", seed="a"), member("b", seed="b")))
    held = {"f0": "abc", "f1": "def", "a": "abcdeg", "b": "bcdef"}
    served = {Path(name): frozenset(images) for name, images in held.items()}
    assert compared.common_images([cross], served) == frozenset("abcdef")
    for entries in ([seeds], [cross, seeds]):
        with pytest.warns(UserWarning, match="4 images may be scored by all runs, 5 or more by"):
            assert compared.common_images(entries, served) == frozenset("bcde")


# Weights.


def test_a_model_is_loaded_once_for_own_and_exchanged_images_and_only_the_last_is_kept(monkeypatch):
    loaded = []

    def load(wanted, one, fit, scored):
        loaded.append((one.folder.name, len(fit), len(scored)))
        return compared.Ready(None, (), frozenset(), None)

    monkeypatch.setattr(compared, "_load", load)
    load = compared.make_load(compared.Wanted(EvalConfig(), frozenset(), False, None))
    sources = [source("a", "p"), source("z", "q")]
    swap = compared.swap_partners(sources, seed=0)
    options = {"patients": frozenset("pq"), "fit": sources[:1], "seed": 0}
    methods = [
        compared.make_method(member(name), load, **options, **more)
        for name in ("f0", "f1")
        for more in ({}, {"swap": swap})
    ]
    assert [method.label for method in methods] == ["m", "m, another patient's image"] * 2
    assert loaded == []
    for method in (*methods, methods[0]):
        method.open(sources)
    assert loaded == [("f0", 1, 2), ("f1", 1, 2), ("f0", 1, 2)]


# Regions.


def test_automatic_masks_of_a_region_lie_where_it_was_cut_out():
    """The film of 4 x 5 pixels lies in a black frame; the generator sees the film alone."""
    image = np.zeros((9, 8, 3), np.uint8)
    image[2:6, 3:8] = 200
    drawn = np.random.default_rng(0).random((2, 4, 5)) < 0.5

    def propose(film):
        assert film.shape == (4, 5, 3)
        assert film.min() == 200
        return [{"segmentation": encode_rle(mask), "score": n} for n, mask in enumerate(drawn)]

    found = compared._in_region(roi.make("content"), propose, image)
    want = np.pad(drawn, ((0, 0), (2, 3), (3, 0)))
    np.testing.assert_array_equal([decode_rle(one["segmentation"]) for one in found], want)
    assert [one["score"] for one in found] == [0, 1]


# Exchanged images.


def source(name: str, patient: str, size: tuple[int, int] = (4, 6)) -> Source:
    def read() -> Subject:
        image = np.full((*size, 3), ord(name), np.uint8)
        nothing = np.zeros((0, *size), bool)
        facts = {"target": "mask", "label": "", "view": "", "sex": "", "age": None, "spacing": None}
        known = {"objects": nothing, "boxes": np.zeros((0, 4)), "findings": np.zeros(size, bool)}
        return Subject(id=name, patient=patient, dataset="d", image=image, **facts, **known)

    return Source("d", name, patient, read)


def test_every_image_has_one_of_another_patient_and_a_seed_says_which():
    sources = [source(name, f"p{'abcdefg'.index(name) // 2}") for name in "abcdefg"]
    patient_of = {one.id: one.patient for one in sources}
    found = []
    for seed in range(20):
        partners = compared.swap_partners(sources, seed=seed)
        assert {name for _, name in partners} == set(patient_of)
        for (_, name), other in partners.items():
            assert other.patient != patient_of[name]
        # Patients are exchanged in a ring: each gives images to one other.
        given = {(patient_of[name], other.patient) for (_, name), other in partners.items()}
        assert len(given) == len({to for _, to in given}) == 4
        found.append(frozenset(given))
    assert len(set(found)) > 3


def test_images_of_one_patient_alone_are_not_exchanged():
    with pytest.raises(ValueError, match="1 patient: no other's image"):
        compared.swap_partners([source("a", "p"), source("b", "p")], seed=0)


def test_anothers_image_is_stretched_to_the_size_of_the_own():
    here, other = source("a", "p", (4, 6)).read(), source("z", "q", (9, 5))
    shown = compared._other_image({("d", "a"): other}, here)
    np.testing.assert_array_equal(shown, np.full((4, 6, 3), ord("z"), np.uint8))


def test_a_run_that_goes_on_from_random_numbers_says_so_however_many_runs_lie_between(tmp_path):
    weights = write_weights(tmp_path / "weights")
    first = write_run(tmp_path / "first")
    second = write_run(tmp_path / "second", checkpoint=str(first))
    third = write_run(tmp_path / "third", checkpoint=str(second))
    tuned = write_run(tmp_path / "tuned", checkpoint=str(weights))
    entries, _ = line_up(first, second, third, tuned, weights, twins=False)
    told = {one["label"]: one["from_random"] for one in compared.facts(entries, swapped=False)}
    assert told == {
        "first": True,
        "second": True,
        "third": True,
        "tuned": False,
        "weights": False,
    }


@pytest.mark.parametrize(("prompting", "known"), [("box", False), ("iterative", True)])
def test_a_run_knows_the_single_mask_if_it_was_asked_in_rounds(prompting: str, known: bool) -> None:
    assert compared.knows_single(None)
    assert compared.knows_single(TrainConfig(prompting=prompting)) == known
