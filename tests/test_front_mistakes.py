"""A user's mistake at `train.py` or `eval.py` ends in one line that says what to do."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import train as train_front
from data.rsna import read_rsna
from pp_jax.finetune import recipe, runs
from tests.dicom_files import HEADER, write_dicom, write_set
from tests.fronts import (
    FRONTS,
    ROOT,
    assert_refused,
    flags,
    front,
)


def labels(*changed: str) -> str:
    """Six patients with a box each; then the rows given."""
    plain = [f"p{i},4,6,20,12,1" for i in range(6)]
    return "\n".join([*plain, *changed]) + "\n"


def write_patients(folder: Path, text: str) -> Path:
    names = dict.fromkeys(line.split(",")[0] for line in text.splitlines())
    rows = "".join(f"{name},{name}\n" for name in names)
    (folder / "patients.csv").write_text("patientId,patient\n" + rows)
    return folder


def bad_set(folder: Path, *changed: str) -> Path:
    return write_patients(write_set(folder, labels(*changed)), labels(*changed))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("bad,60,6,20,12,1", ["line 8 (bad)", "(60.0, 6.0, 80.0, 18.0)", "60 x 40", "correct or"]),
        ("bad,4,6,0,12,1", ["line 8 (bad)", "width 0.0"]),
        ("bad,4,6,twenty,12,1", ["line 8 (bad)", "twenty"]),
    ],
)
@pytest.mark.parametrize("name", FRONTS)
def test_a_bad_row_names_file_line_and_value(name, row, named, converted, tmp_path):
    folder = bad_set(tmp_path / "set", row)
    more = ["--checkpoint", converted, "--data", "rsna", "--data-dir", folder]
    ended = front(name, *more, "--out", tmp_path / "out")
    assert_refused(ended, str(folder / "stage_2_train_labels.csv"), *named)
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_named(tmp_path):
    folder = bad_set(tmp_path / "set")
    file = folder / "stage_2_train_labels.csv"
    file.write_text(file.read_text().replace(HEADER, HEADER.replace("width", "w")))
    assert_refused(front("train.py", "--data-dir", folder), str(file), "no column width")


def test_an_image_without_a_file_is_named(tmp_path):
    folder = bad_set(tmp_path / "set")
    (folder / "stage_2_train_images" / "p3.dcm").unlink()
    assert_refused(front("train.py", "--data-dir", folder), "p3", "unzip all images")


@pytest.mark.filterwarnings("default")
def test_a_file_without_pixels_is_named(compiled, data, tmp_path):
    folder = Path(shutil.copytree(data, tmp_path / "set"))
    for record in read_rsna(folder):
        write_dicom(record.image, None, Rows=256, Columns=256)
    ended = front("train.py", *flags(folder, tmp_path / "run"))
    assert_refused(ended, str(folder), ".dcm", "no pixel data")


def test_folders_that_are_not_there_are_named(tmp_path):
    assert_refused(front("train.py", "--data-dir", tmp_path / "none"), str(tmp_path / "none"))
    missing = ("--checkpoint", tmp_path / "none")
    assert_refused(front("train.py", *missing), str(tmp_path / "none"), "converted checkpoint")
    assert_refused(front("eval.py", *missing), str(tmp_path / "none"), "no such folder")
    ended = front("eval.py", "--checkpoint", tmp_path)
    assert_refused(ended, str(tmp_path), "neither a run nor converted weights")


@pytest.fixture
def unconverted(converted, tmp_path):
    """A file of torch's, alone and in a folder such as the hub's, and where it would be found."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "sam"}')
    shutil.copy(converted.parent / "tiny.pth", tmp_path / "hub" / "model.pth")
    return [tmp_path / "hub" / "model.pth", tmp_path / "hub"]


@pytest.mark.parametrize("name", FRONTS)
def test_weights_that_are_not_converted_are_refused_with_the_command_that_does_it(
    name, unconverted, data
):
    command = f"`python -m convert {unconverted[0]} checkpoints/model`"
    for path in unconverted:
        for flag in ("--checkpoint", "--init")[: 1 + (name == "train.py")]:
            ended = front(name, flag, path, "--data-dir", data)
            assert_refused(ended, f"{flag} {path}: weights that are not converted yet", command)


def test_a_file_of_torch_beside_a_run_or_converted_weights_does_no_harm(run, converted, tmp_path):
    for folder in (run, converted):
        copy = Path(shutil.copytree(folder, tmp_path / folder.name))
        (copy / "exported.pth").touch()
        runs.refuse_unconverted(copy)


@pytest.mark.parametrize("name", FRONTS)
def test_a_folder_without_rsnas_table_says_where_to_get_it(name, converted, tmp_path):
    (tmp_path / "images").mkdir()
    more = ("--checkpoint", converted, "--data", "rsna", "--data-dir", tmp_path)
    missing = f"{tmp_path}/stage_2_train_labels.csv: no such file"
    assert_refused(front(name, *more), missing, "`kaggle competitions download -c rsna-")


@pytest.mark.parametrize("name", FRONTS)
def test_a_device_that_jax_does_not_see_says_what_to_install(name, converted):
    absent = next(kind for kind in ("tpu", "gpu") if kind != jax.default_backend())
    ended = front(name, "--checkpoint", converted, "--device", absent)
    assert_refused(
        ended, f"--device {absent}: jax {jax.__version__} sees no such device", "install"
    )


@pytest.mark.parametrize("name", FRONTS)
def test_memory_that_runs_out_names_the_flags_that_need_less(name, monkeypatch):
    def fill(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(FRONTS[name].cli, "devices", fill)
    asked = () if name == "train.py" else ("--checkpoint", "runs/none")
    flags_ = ("--batch", "--accumulate", "--remat", "--mesh fsdp") if name == "train.py" else ()
    ended = front(name, *asked)
    assert_refused(ended, "out of memory (Out of memory allocating 9 bytes.): give", *flags_)
    assert_refused(ended, "--image-size", "--dtype bfloat16")


def test_large_variants_name_the_commands_that_get_their_weights(monkeypatch):
    for variant in ("vit_b", "vit_l", "vit_h"):
        if not Path("checkpoints", variant).exists():
            file = train_front.start.OFFICIAL[variant]
            ended = front("train.py", "--variant", variant)
            commands = (f"segment_anything/{file}`", f"`python -m convert {file}", "--init random")
            assert_refused(ended, f"checkpoints/{variant}", *commands)


def test_weights_of_another_variant_are_refused(converted, data, tmp_path):
    choices = flags(data, tmp_path / "run", variant="vit_b", checkpoint=converted)
    assert_refused(front("train.py", *choices), str(converted), "weights of tiny", "--variant tiny")


def test_too_few_patients_are_refused(data, tmp_path):
    ended = front("train.py", *flags(data, tmp_path / "run", limit=2))
    assert_refused(ended, "2 patients", "--limit")
    assert not (tmp_path / "run").exists()


def test_an_unknown_flag_or_choice_is_named():
    for name, flag, value in (
        ("train.py", "--varant", "tiny"),
        ("eval.py", "--prompt", "boxes"),
        ("train.py", "--lr", "fast"),
    ):
        ended = front(name, flag, value)
        assert ended.code == 2
        assert (flag if flag == "--varant" else value) in ended.err
        assert "Traceback" not in ended.err


def test_a_box_prompt_on_box_targets_is_refused_in_evaluation(converted, tmp_path):
    folder = bad_set(tmp_path / "set")
    where = ("--checkpoint", converted, "--data", "rsna", "--data-dir", folder)
    ended = front("eval.py", *where, "--prompt", "box", "--out", tmp_path / "out")
    assert_refused(ended, str(folder), "6 images", "--prompt point or none")


def test_a_region_around_each_box_is_refused_before_data_are_read(converted, tmp_path):
    roi, nowhere = ("--roi", "box-context:2"), ("--data-dir", tmp_path / "nowhere")
    ended = front("train.py", *nowhere, *roi)
    assert_refused(ended, "roi 'box-context:2'", "prediction and evaluation only", "or content")
    for prompt in ("point", "none"):
        asked = ("--checkpoint", converted, *nowhere, "--prompt", prompt)
        ended = front("eval.py", *asked, *roi)
        assert_refused(ended, "--roi box-context:2", f"--prompt {prompt} marks none")


def test_a_box_prompt_on_box_targets_is_marked_in_training(tmp_path, monkeypatch):
    feeds = []
    monkeypatch.setattr(
        train_front.loop, "fit", lambda run, settings, feed, **options: feeds.append(feed)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [])
        ended = front("train.py", *flags(bad_set(tmp_path / "set"), tmp_path / "run"))
    assert ended.code == 0, ended.err
    assert feeds[0].facts == {"prompt_is_target": True}
    assert "warning: 4 training images have no masks as targets (target: box)" in ended.err


def test_a_batch_that_the_devices_cannot_share_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_front.cli, "devices", lambda name: jax.devices()[:1] * 3)
    ended = front("train.py", *flags(data, tmp_path / "run"))
    assert_refused(ended, "a batch of 4 images", "3 devices", "multiple of 3")


def test_a_folder_that_is_not_ours_is_left_alone(run, data, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    ended = front("train.py", *flags(data, tmp_path, force=True)[:-1])
    assert_refused(ended, f"--out {tmp_path}", "not empty and no run")
    ended = front("eval.py", "--checkpoint", run, "--out", tmp_path)
    assert_refused(ended, f"--out {tmp_path}", "no older report")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_without_a_checkpoint_cannot_be_scored(copied):
    shutil.rmtree(copied / "steps")
    assert_refused(front("eval.py", "--checkpoint", copied), str(copied), "without a checkpoint")


@pytest.mark.parametrize("name", FRONTS)
def test_a_start_outside_of_the_clone_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(front(name), f"cd {ROOT}")


@pytest.mark.parametrize("file", ["config.json", "splits.json"])
def test_a_damaged_file_of_a_run_is_named(file, copied, data):
    (copied / file).write_text('{"half": ')
    ended = front("train.py", *flags(data, copied))
    assert_refused(ended, str(copied / file), "damaged")


def test_a_base_of_other_weights_is_refused(copied, data):
    manifest = json.loads((copied / "base" / "MANIFEST.json").read_text())
    (copied / "base" / "MANIFEST.json").write_text(json.dumps(manifest | {"source": "other"}))
    assert_refused(front("eval.py", "--checkpoint", copied), "other frozen weights")


def test_a_diverged_training_ends_in_one_line_and_its_last_good_checkpoint_stands(
    compiled, data, copied, monkeypatch
):
    def falling_apart(state, *rest):
        state = jax.tree.map(lambda x: x * jnp.nan, state)._replace(step=state.step + 1)
        return state, {"loss": jnp.nan, "hard_dice": jnp.nan}

    shutil.rmtree(copied / "steps" / "00000004")
    monkeypatch.setattr(recipe, "step_of", lambda *args, **options: falling_apart)
    ended = front("train.py", *flags(data, copied))
    assert_refused(ended, str(copied), "the loss is nan at step 3", "lower --lr")
    assert runs.newest_step(copied) == runs.best_step(copied) == 2
    going_on = []
    monkeypatch.setattr(train_front.loop, "fit", lambda run, *_, **__: going_on.append(run))
    assert front("train.py", "--resume", copied).code == 0
    assert going_on == [copied]
