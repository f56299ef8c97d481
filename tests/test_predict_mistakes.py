"""A user's mistake is one clear line, and nothing of the user's is lost."""

import re
import shutil
from pathlib import Path

import jax
import pytest
from PIL import Image

from pp_jax.predict import __main__ as front
from pp_jax.predict.__main__ import main
from tests.predict_world import TOLD, failed, run, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("predict"))


BOX = ("--box", 10, 20, 100, 90)
MISTAKES = {
    "say what to segment by one of --box, --point": (),
    "--auto and --box do not go together": ("--auto", *BOX),
    "--box 1 2 3: give X0 Y0 X1 Y1": ("--box", 1, 2, 3),
    "box [100.0, 20.0, 10.0, 90.0]: corners swapped": ("--box", 100, 20, 10, 90),
    "box [nan, 20.0, 10.0, 90.0]: must be finite": ("--box", "nan", 20, 10, 90),
    "a.png: box [10.0, 20.0, 151.0, 90.0] leaves the image of 150 x 97": (
        *("--box", 10, 20, 151, 90),
    ),
    "a.png: box [-1.0, 20.0, 100.0, 90.0] leaves the image": ("--box", -1, 20, 100, 90),
    "a.png: point (150, 5) lies outside the image": ("--point", 150, 5),
    "--label 1 0: 2 labels for 1 points": ("--point", 1, 2, "--label", 1, 0),
    "--label without --point": (*BOX, "--label", 1),
    "point label 2: must be 1": ("--point", 1, 2, "--label", 2),
    "point_coords [[nan, 2.0]]: must be finite": ("--point", "nan", 2),
    "--point 1 2 3: give pairs": ("--point", 1, 2, 3),
    "2 boxes with points": (*BOX, *BOX, "--point", 1, 2),
    "unknown refinement 'sharpen': choose from": (*BOX, "--refine", "sharpen"),
    "image size 250: needs a multiple of 16 from 256 to 2048": (*BOX, "--image-size", 250),
    "--blend 2.0: must lie in [0, 1]": (*BOX, "--blend", 2),
    "roi 'content:256': threshold=256: choose a grey level": (*BOX, "--roi", "content:256"),
    "--roi box-context cuts around boxes: give --box": ("--auto", "--roi", "box-context"),
    "--roi box-context:2 cuts around boxes": ("--point", 40, 60, "--roi", "box-context:2"),
    "--save-embeddings with --roi box-context: each box": (
        *(*BOX, "--save-embeddings", "kept", "--roi", "box-context"),
    ),
    "a.png: point (140, 5) lies in a part of the image, of which the model is shown columns": (
        *(*BOX, "--point", 140, 5, "--roi", "box-context:1"),
    ),
    "--pred-iou-thresh 0.5: only --auto looks at it": (*BOX, "--pred-iou-thresh", 0.5),
    "--stability-score-thresh nan: must lie in [0, 1]": (
        *("--auto", "--stability-score-thresh", "nan"),
    ),
    "--points-per-side 0: must be at least 1": ("--auto", "--points-per-side", 0),
    "error: nowhere.csv: no such file or folder; check the path": ("--boxes", "nowhere.csv"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(world, capsys, message) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(world, *MISTAKES[message], images="images/a.png", out="bad")
    assert message.lower() in failed(capsys).lower()
    assert not list(world.glob("bad*"))


def csv_of_others(world: Path) -> tuple:
    (world / "other.csv").write_text(TOLD.replace("a.png", "c.png").replace("film", "d"))
    return ("--boxes", world / "other.csv")


def csv_with_a_swapped_row(world: Path) -> tuple:
    (world / "swapped.csv").write_text(TOLD + "a.png,9,9,3,10\n")
    return ("--boxes", world / "swapped.csv")


def csv_without_columns(world: Path) -> tuple:
    (world / "columns.csv").write_text("image,x\na.png,1\n")
    return ("--boxes", world / "columns.csv")


def csv_with_words(world: Path) -> tuple:
    (world / "words.csv").write_text("image,x,y\na.png,left,3\n")
    return ("--scribble", world / "words.csv")


def logits_in_a_text(world: Path) -> tuple:
    (world / "text.npy").write_text("logits")
    return ("--mask-prompt", world / "text.npy")


def medsam(world: Path) -> Path:
    """The same weights, said to be MedSAM's."""
    if not (world / "medsam").exists():
        shutil.copytree(world / "weights", world / "medsam")
        manifest = world / "medsam" / "MANIFEST.json"
        manifest.write_text(manifest.read_text().replace('"sam"', '"medsam"'))
    return world / "medsam"


@pytest.mark.parametrize("flag", ["--auto", "--mask-prompt"])
def test_marks_that_stretched_images_cannot_have_are_one_clear_line(world, capsys, flag) -> None:
    values = [world / "images" / "a.png"] if flag == "--mask-prompt" else []
    args = (world / "images", flag, *values, "--checkpoint", medsam(world), "--out", world / "bad")
    with pytest.raises(SystemExit, match="2"):
        main([str(x) for x in args])
    assert re.match(f"error: {flag}: .*medsam weights", failed(capsys))


def small_mask(world: Path) -> tuple:
    Image.new("L", (20, 10), 255).save(world / "small.png")
    return ("--mask-prompt", world / "small.png")


def lasso_of_the_content(world: Path) -> tuple:
    (world / "lasso.csv").write_text("image,x,y\na.png,9,9\na.png,40,9\na.png,40,60\n")
    return ("--lasso", world / "lasso.csv", "--roi", "content")


def mask_around_a_box(world: Path) -> tuple:
    return (*BOX, "--mask-prompt", world / "images" / "a.png", "--roi", "box-context")


FILES = {
    "--lasso with --roi content: its mask lies in the frame of the": lasso_of_the_content,
    "--mask-prompt with --roi box-context: its mask lies in the frame of": mask_around_a_box,
    "other.csv: names none of the 2 images": csv_of_others,
    "swapped.csv, line 5: box [9.0, 9.0, 3.0, 10.0]: corners swapped": csv_with_a_swapped_row,
    "columns.csv: needs the columns image,x0,y0,x1,y1 or patientId,x,y": csv_without_columns,
    "words.csv, line 2: x 'left', y '3': must be finite": csv_with_words,
    "text.npy: not an array saved by numpy.save": logits_in_a_text,
}


@pytest.mark.parametrize("message", FILES)
def test_a_bad_file_of_marks_is_one_clear_line(world, capsys, message) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(world, *FILES[message](world), out="bad")
    assert message in failed(capsys)


def test_a_mask_prompt_of_another_size_is_one_clear_line(world, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(world, *small_mask(world), images="images/a.png", out="bad")
    assert "a.png: mask prompt of 20 x 10 pixels for an image of 150 x 97" in failed(capsys)


def test_weights_that_are_not_converted_name_the_command_that_does_it(world, capsys) -> None:
    file = world / "sam_vit_b_01ec64.pth"
    file.touch()
    with pytest.raises(SystemExit, match="2"):
        run(world, *BOX, weights=(file,), out="bad")
    command = f"`python -m convert {file} checkpoints/sam_vit_b_01ec64` and give that folder"
    assert f"{file}: weights that are not converted yet; run {command}" in failed(capsys)
    file.unlink()


def test_a_device_that_jax_does_not_see_says_what_to_install(world, capsys) -> None:
    absent = next(kind for kind in ("tpu", "gpu") if kind != jax.default_backend())
    with pytest.raises(SystemExit, match="2"):
        run(world, *BOX, "--device", absent, out="bad")
    assert f"--device {absent}: jax" in (line := failed(capsys))
    assert "install" in line
    assert not list(world.glob("bad*"))


def test_memory_that_runs_out_names_the_flags_that_need_less(world, capsys, monkeypatch) -> None:
    def fill(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(front, "make_segment", fill)
    with pytest.raises(SystemExit, match="2"):
        run(world, *BOX, out="bad")
    line = failed(capsys)
    assert line.startswith(
        "error: out of memory (Out of memory allocating 9 bytes.): give a smaller"
    )
    assert "--image-size" in line
    assert not list(world.glob("bad*"))


def test_what_is_not_an_older_output_is_never_replaced(world, capsys) -> None:
    foreign = world / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for folder, flags in (("foreign", ()), ("fresh", ("--as-dataset", foreign))):
        with pytest.raises(SystemExit, match="2"):
            run(world, *BOX, *flags, out=folder)
        assert "not empty" in failed(capsys)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert not (world / "fresh").exists()


def test_no_image_two_of_one_name_and_no_weights_are_one_clear_line(world, capsys) -> None:
    (world / "empty").mkdir()
    shutil.copytree(world / "images", world / "twins")
    shutil.copy(world / "images" / "a.png", world / "twins" / "a.jpg")
    for images, message in (
        ("empty", "empty: no image in this folder"),
        ("nowhere", "nowhere: no such file or folder"),
        ("twins", "two images named a would share one mask"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(world, *BOX, images=images, out="bad")
        assert message in failed(capsys)
    with pytest.raises(SystemExit, match="2"):
        main(
            [str(x) for x in (world / "images", "--checkpoint", world, "--out", world / "b", *BOX)]
        )
    assert "no checkpoint here" in failed(capsys)
    assert not (world / "b").exists()
