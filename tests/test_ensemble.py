"""Several checkpoints that answer as one: means by hand, what members share, who is scored."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import eval as eval_front
from pp_jax.checkpoints import CheckpointError
from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate.methods import Told
from pp_jax.evaluate.protocols import parse_protocols
from pp_jax.finetune import compared
from pp_jax.finetune.members import together
from pp_jax.look import Look
from pp_jax.predict import ensemble
from pp_jax.predict.answering import make_prompted
from pp_jax.predict.asking import Asker, Decoded, Embedded, Marks, choose, in_frame
from pp_jax.predict.ensemble import Shown, averaged, mean, require_alike
from pp_jax.predict.marks import boxes, same_everywhere
from pp_jax.predict.official import LoadedSam
from pp_jax.preprocess.roi import Window
from tests.test_compared import write_folds, write_run, write_weights

SIDE, SIZE = 16, (16, 16)


def drawn(seed: int) -> Decoded:
    """The answer to two prompts."""
    rng = np.random.default_rng(seed)
    logits = 20 * rng.normal(size=(2, 4, *SIZE)).astype(np.float32)
    return Decoded(logits, rng.random((2, 4)).astype(np.float32))


def asker(seed: int) -> Asker:
    """A model that answers with what was drawn, once it is given its own embedding."""

    def decode(embedded, marks):
        assert embedded.features == seed
        assert embedded.window == Window(0, 0, *SIZE)
        return drawn(seed)

    def embed(image, box=None):
        return Embedded(seed, SIZE, SIZE, Window(0, 0, *SIZE))

    return Asker(embed, decode, lambda embedded, low: low, SIDE)


def asked(*seeds: int) -> Decoded:
    one = averaged([asker(seed) for seed in seeds])
    return one.decode(one.embed(np.zeros((*SIZE, 3), np.uint8)), Marks(np.ones((2, 4))))


# The mean.


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_checkpoint_given_several_times_is_that_checkpoint(count):
    for got, want in zip(asked(*[7] * count), drawn(7), strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == np.float32


def test_an_ensemble_is_the_mean_of_its_members_whatever_their_order():
    each = [drawn(seed) for seed in (1, 2, 3)]
    for got, again, own in zip(
        asked(1, 2, 3), asked(3, 1, 2), zip(*each, strict=True), strict=True
    ):
        np.testing.assert_allclose(got, (own[0] + own[1] + own[2]) / 3, atol=1e-5)
        np.testing.assert_allclose(again, got, atol=1e-6)


def test_the_mask_is_chosen_after_the_mean_and_not_by_any_member():
    """One member prefers the first of the three masks, the other the second; together the third."""
    scores = {1: [0, 0.9, 0.1, 0.6], 2: [0, 0.1, 0.9, 0.7]}
    logits = {seed: drawn(seed).logits for seed in scores}

    def fake(seed: int) -> Asker:
        told = Decoded(logits[seed], np.float32([scores[seed]] * 2))
        return asker(seed)._replace(decode=lambda embedded, marks: told)

    one = averaged([fake(1), fake(2)])
    embedded = one.embed(np.zeros((*SIZE, 3), np.uint8))
    decoded = one.decode(embedded, Marks())
    assert choose(decoded, single=False).tolist() == [3, 3]
    found = in_frame(one, embedded, decoded, single=False)
    np.testing.assert_allclose(found.logits, (logits[1][:, 3] + logits[2][:, 3]) / 2, atol=1e-5)
    np.testing.assert_allclose(found.iou, [0.65, 0.65], atol=1e-6)


class Plain:
    """In the place of `SamPredictor`: answers that were drawn."""

    def __init__(self, sam: LoadedSam):
        self.sam, self.images = sam, []

    def set_image(self, image):
        self.images.append(image)

    def predict(self, *args, **options):
        answer = drawn(self.sam.variables["seed"])
        return answer.logits[0, 1:], answer.iou[0, 1:], None


def test_a_prediction_is_the_mean_of_the_members_predictions(monkeypatch):
    monkeypatch.setattr("pp_jax.predict.answering.SamPredictor", Plain)
    ask = {"a": same_everywhere(boxes([2, 3, 12, 14]), None, None)}
    found = {}
    for seeds in ((1,), (2,), (1, 1), (1, 2), (2, 1)):
        members = [LoadedSam(_Sized(), {"seed": seed}) for seed in seeds]
        options = {"multimask": True, "steps": (), "kept": [], "counts": {"computed": 0}}
        (found[seeds],) = make_prompted(members, ask, **options)("a", np.zeros((*SIZE, 3), "u1"))
    both = [(drawn(1)[k][0, 1:] + drawn(2)[k][0, 1:]) / 2 for k in (0, 1)]
    best = both[1].argmax()
    np.testing.assert_array_equal(found[1, 2].mask, both[0][best] > 0)
    assert found[1, 2].predicted_iou == pytest.approx(both[1][best], abs=1e-6)
    for one, other in (((1, 1), (1,)), ((1, 2), (2, 1))):
        np.testing.assert_array_equal(found[one].mask, found[other].mask)
        assert found[one][2:] == found[other][2:]
    assert (found[1, 2].mask != found[1,].mask).any()


class _Sized:
    """What is asked of a model that does not compute."""

    class config:  # noqa: N801
        image_size, grid, out_dim = SIDE, 1, 1

    dtype = jnp.float32


def test_a_mean_is_summed_wide_enough_to_forget_the_order():
    parts = [np.float32([1e8]), np.float32([1.0]), np.float32([-1e8])]
    assert mean(parts) == mean(parts[::-1]) == np.float32(1 / 3)


# What members share.

FIRST = Shown("a", "tiny", 256, Look(filter="canny", fusion="blend"))


def test_members_may_differ_in_filter_and_fusion():
    require_alike([FIRST, FIRST._replace(look=Look(filter="sobel")), FIRST])
    same = Look(roi="content:threshold=10"), Look(roi="content:10")
    require_alike([FIRST._replace(look=look) for look in same])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variant": "vit_b"}, r"a \(variant tiny\) and b \(variant vit_b\).*one variant"),
        ({"side": 320}, r"image size 256.*image size 320.*--image-size"),
        ({"look": Look(preprocess="medsam")}, r"fit longest.*fit square.*one preparation"),
        ({"look": Look(roi="content")}, r"roi none.*roi content.*--roi"),
    ],
)
def test_members_whose_masks_lie_in_other_frames_are_one_clear_line(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        require_alike([FIRST, FIRST, FIRST._replace(name="b", **change)])
    assert "\n" not in str(caught.value)


def test_members_of_one_name_are_told_apart_by_their_folders():
    assert ensemble.label(["r/x/fold0", "r/x/fold1"]) == "ensemble of 2: fold0, fold1"
    assert ensemble.label([Path("x/fold0"), Path("y/fold0")]) == "ensemble of 2: x/fold0, y/fold0"


def test_the_hash_of_members_forgets_their_order_and_no_member():
    digests = ["aa", "bb", "cc"]
    assert ensemble.joint_digest(digests) == ensemble.joint_digest(digests[::-1])
    assert len({ensemble.joint_digest(digests[:n]) for n in (1, 2, 3)}) == 3
    assert ensemble.joint_digest(["aa"]) == "aa"


# An evaluation.


def named(*folders: object, **flags: object):
    settings = EvalConfig(checkpoint=tuple(map(str, folders)), **flags)
    told, _ = eval_front.name_methods(settings)
    entries, missing = compared.line_up(told, settings, twins=True)
    return settings, told, entries, missing


def test_the_folds_that_a_shell_finds_are_one_model_without_the_file_beside_them(tmp_path):
    cross = write_folds(tmp_path / "c", count=3)
    _, told, [entry], _ = named(*sorted(cross.glob("fold*")))
    name = "ensemble of 3: fold0, fold1, fold2"
    assert told == [Told(name, tuple(f"{cross}/fold{n}" for n in range(3)), {}, (), averaged=True)]
    (member,) = entry.members
    assert (entry.name, member.label, member.seed, member.fold) == (name, name, "", False)
    assert [one.folder.name for one in together(member)] == ["fold0", "fold1", "fold2"]
    # One folder is one model, and the folder of the folds a cross-validation, as ever.
    assert not named(cross / "fold1")[2][0].members[0].beside
    assert len(named(cross)[2][0].members) == 3
    with pytest.raises(CheckpointError, match="3 runs, which share out the images; name it alone"):
        named(cross, write_folds(tmp_path / "d"))


def test_each_member_is_shown_what_it_was_trained_on_or_all_what_the_flags_say(tmp_path):
    runs = [write_run(tmp_path / name, filter=name) for name in ("canny", "sobel")]
    for flags, wanted in (({}, ["canny", "sobel"]), ({"filter": "clahe"}, ["clahe"] * 2)):
        [member] = named(*runs, **flags)[2][0].members
        assert [one.look.filter for one in together(member)] == wanted
    with pytest.raises(ValueError, match=f"{runs[1]}.*fit longest.*fit square"):
        named(runs[1], write_weights(tmp_path / "w", preprocess="medsam"))


def test_settings_name_every_member_with_its_step_and_its_weights(tmp_path):
    runs = [write_run(tmp_path / f"r{n}", step=n, seed=n) for n in (3, 4)]
    entries = named(*runs)[2]
    (told,) = compared.facts(entries, swapped=False)
    members = [(one["folder"], one["step"]) for one in told["members"]]
    assert members == [(str(run), n) for run, n in zip(runs, (3, 4), strict=True)]
    hashes = [one["weights"] for one in told["members"]]
    assert told["weights"] == ensemble.joint_digest(hashes)
    assert told["weights"] not in hashes
    assert (told["trained_on"], told["training_seed"]) == ("synthetic", None)
    json.dumps(told)
    assert "members" not in compared.facts(named(runs[0])[2], swapped=False)[0]


def test_the_twin_of_an_ensemble_is_that_of_all_members(tmp_path):
    runs = [write_run(tmp_path / name, seed=n) for n, name in enumerate("ab")]
    write_run(tmp_path / "a-blind", filter="blank", seed=0)
    _, _, entries, missing = named(*runs)
    assert (len(entries), len(missing)) == (1, 1)
    write_run(tmp_path / "b-blind", filter="blank", seed=1)
    twin = named(*runs)[2][1]
    folders = [one.folder.name for one in together(twin.members[0])]
    assert (twin.kind, folders) == ("blind", ["a-blind", "b-blind"])


def test_images_that_any_member_was_fitted_on_are_left_out(tmp_path):
    cross = write_folds(tmp_path / "c")
    entries = named(cross / "fold0", cross / "fold1")[2]
    served = {cross / "fold0": frozenset("abcd"), cross / "fold1": frozenset("cdef")}
    with pytest.warns(UserWarning, match="2 images may be scored by all runs, 4 or more by each"):
        assert compared.common_images(entries, served) == frozenset("cd")
    served[cross / "fold1"] = frozenset("ef")
    words = f"no image is left.*--checkpoint {cross} .the folder of the folds.*--data-dir"
    with pytest.raises(ValueError, match=words) as caught:
        compared.common_images(entries, served)
    assert "\n" not in str(caught.value)


def test_the_report_stands_beside_the_members_and_in_none_of_them(tmp_path):
    cross, other = write_folds(tmp_path / "c"), write_run(tmp_path / "r")
    for folders, wanted in (
        ((cross / "fold0", cross / "fold1"), f"{cross}/ensemble-fold0,fold1-eval-"),
        ((cross / "fold0", other), "runs/ensemble-fold0,r-eval-"),
        ((other / "steps" / "00000004", other), f"{tmp_path}/ensemble-00000004,r-eval-"),
    ):
        settings, told, [entry, *_], _ = named(*folders)
        out = eval_front.resolve(settings, told, entry.members[0]).out
        assert out == wanted + "synthetic-box-test"


def test_automatic_masks_are_asked_of_one_model_alone(tmp_path):
    entries = named(write_run(tmp_path / "a"), write_run(tmp_path / "b"))[2]
    everything = parse_protocols("all")
    assert "auto" in everything
    kept = compared.answerable(entries, everything, prompt="all")
    assert list(kept) == [spec for spec in everything if spec != "auto"]
    with pytest.raises(ValueError, match="--prompt auto: automatic masks are those of one model"):
        compared.answerable(entries, parse_protocols("box,auto"), prompt="box,auto")
    alone = named(tmp_path / "a")[2]
    assert compared.answerable(alone, everything, prompt="all") == everything
