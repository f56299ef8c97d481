"""`python -m data` describes a set and compares two, whole or not at all."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import describe
from data.__main__ import COMMANDS, main
from data.images import read_any
from data.rsna import read_rsna
from tests.fronts import ROOT, Ended, assert_refused

FILES = ["fingerprint.json", "fingerprint.md", "positions.png", "sheet.png"]


@pytest.fixture
def start(capsys: pytest.CaptureFixture):
    def started(*args: object) -> Ended:
        code = 0
        try:
            main([*map(str, args)])
        except SystemExit as end:
            code = end.code
        return Ended(code, *capsys.readouterr())

    return started


@pytest.fixture
def copies(data: Path, tmp_path: Path) -> Path:
    """Three of the set's pictures, scaled and framed, among two others, in folder layout."""
    folder = tmp_path / "copies"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    shown = {one.id: read_any(one.image)[..., 0] for one in read_rsna(data)[:3]}
    rng = np.random.default_rng(0)
    coarse = {f"other{i}": rng.integers(0, 256, (9, 9), np.uint8) for i in range(2)}
    for name, pixels in (shown | coarse).items():
        picture = Image.fromarray(pixels).resize((150, 170), Image.Resampling.BICUBIC)
        framed = np.pad(np.asarray(picture), ((0, 0), (10, 10)))
        Image.fromarray(framed).save(folder / "images" / f"copy-of-{name}.png")
        Image.new("L", framed.shape[::-1]).save(folder / "masks" / f"copy-of-{name}.png")
    (folder / "patients.csv").write_text(
        "image,patient\n" + "".join(f"copy-of-{name},{name}\n" for name in shown | coarse)
    )
    return folder


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "damaged"))


def test_describe_writes_four_files_and_prints_the_page(start, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    ended = start("describe", "synthetic", "--data-dir", data, "--out", out, "--workers", 0)
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    figures = json.loads((out / "fingerprint.json").read_text())
    records = read_rsna(data)
    assert figures["images"] == len(records) == 20
    assert figures["patients"] == len({one.patient for one in records})
    assert figures["objects"]["total"] == sum(len(one.boxes) for one in records)
    assert figures["name"] == "synthetic"
    text = (out / "fingerprint.md").read_text()
    assert text.split("![")[0].strip() in ended.out
    assert {name for name in FILES[2:] if f"]({name})" in text} == set(FILES[2:])
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 6 * 240
        assert sheet.height > 4 * 240  # Twenty pictures in rows of six.


def test_workers_change_nothing(start, data: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        out = tmp_path / str(workers)
        ended = start("describe", "rsna", "--data-dir", data, "--out", out, "--workers", workers)
        assert ended.code == 0, ended.err
    for name in FILES:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_an_older_fingerprint_is_replaced_and_anything_else_refused(
    start, data: Path, tmp_path: Path
) -> None:
    args = ("describe", "rsna", "--data-dir", data, "--workers", 0, "--limit", 3, "--out")
    old = tmp_path / "old"
    old.mkdir()
    (old / "fingerprint.json").write_text("{}")
    (old / "left.txt").write_text("")
    assert start(*args, old).code == 0
    assert sorted(path.name for path in old.iterdir()) == FILES
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("")
    assert_refused(start(*args, thesis), str(thesis), "choose another folder")
    assert [path.name for path in thesis.iterdir()] == ["chapter.tex"]


def test_a_fingerprint_that_cannot_be_finished_leaves_the_old_one(
    start, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    old = tmp_path / "old"
    old.mkdir()
    (old / "fingerprint.json").write_text("{}")
    monkeypatch.setattr(describe, "contact_sheet", full)
    ended = start(
        "describe", "rsna", "--data-dir", data, "--out", old, "--workers", 0, "--limit", 2
    )
    assert_refused(ended, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (old / "fingerprint.json").read_text() == "{}"


def test_check_finds_the_copies_and_says_so_by_its_exit_code(
    start, data: Path, copies: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pairs.csv"
    sets = f"synthetic={data}", f"folder={copies}"
    ended = start("check", *sets, "--workers", 0, "--out", out)
    assert ended.code == 1, ended.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [one.id for one in read_rsna(data)[:3]]
    assert [(row["first"], row["second"]) for row in rows] == [(x, f"copy-of-{x}") for x in names]
    assert all(row["same_pixels"] == "no" and row["turned"] == "upright" for row in rows)
    assert "3 pairs among 20 images" in ended.out
    back = start("check", *sets[::-1], "--workers", 0)
    assert back.code == 1
    assert all(f"copy-of-{name}  {name}" in back.out for name in names)


def test_check_of_sets_that_share_nothing_ends_well(start, data: Path, copies: Path) -> None:
    for path in (copies / "images").glob("copy-of-*"):
        if "other" not in path.name:
            path.unlink()
            (copies / "masks" / path.name).unlink()
    ended = start("check", f"rsna={data}", f"folder={copies}", "--workers", 0)
    assert ended.code == 0
    assert "no picture is shared by 20 images" in ended.out


def test_mistakes_are_one_line(start, data: Path, tmp_path: Path) -> None:
    one = f"rsna={data}"
    assert_refused(start("describe", "rnsa"), "unknown data set 'rnsa'", "synthetic")
    assert_refused(start("describe", "rsna", "--data-dir", tmp_path / "no"), "no such folder")
    assert_refused(start("describe", "rsna", "--sample", 0), "--sample 0", "at least 1")
    assert_refused(start("check", one, f"rsna={data}/"), "one folder", "data describe")
    assert_refused(start("check", one, "rsna="), "no folder after the =")
    assert_refused(start("check", one, f"nix={tmp_path}"), "unknown data set 'nix'")
    assert_refused(start("check", one, "rsna", "--workers", -1), "--workers -1")
    assert_refused(start("describes"), "'describes' is no command", *COMMANDS)


def cut_off(folder: Path, count: int | None) -> list[Path]:
    """The first DICOM files less the second half of their pixels."""
    paths = [one.image for one in read_rsna(folder)][:count]
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return paths


def test_a_set_without_a_readable_image_is_refused(start, copies: Path, damaged: Path) -> None:
    cut_off(damaged, None)
    ended = start("describe", "rsna", "--data-dir", damaged, "--workers", 0)
    assert_refused(ended, "none of 20 images can be read")
    ended = start("check", f"rsna={damaged}", f"folder={copies}", "--workers", 0)
    assert_refused(ended, "rsna: none of 20 images can be read")


@pytest.mark.filterwarnings("default")  # Shown, as to a user.
def test_unreadable_images_are_named_and_left_out(
    start, copies: Path, damaged: Path, tmp_path: Path
) -> None:
    lost = [path.stem for path in cut_off(damaged, 2)]
    ended = start("check", f"rsna={damaged}", f"folder={copies}", "--workers", 0)
    assert ended.code == 1
    assert f"rsna: 2 images that cannot be read are left out, first {lost[0]}: " in ended.err
    assert "1 pairs among 18 images" in ended.out
    out = tmp_path / "out"
    ended = start("describe", "rsna", "--data-dir", damaged, "--workers", 0, "--out", out)
    assert ended.code == 0
    figures = json.loads((out / "fingerprint.json").read_text())
    assert [one["id"] for one in figures["unreadable"]] == lost
    assert str(damaged) not in (out / "fingerprint.md").read_text()


def test_the_program_lists_its_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "data", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_the_real_set_in_two_packagings_is_found_whole(start, real_data: Path, tmp_path) -> None:
    out = tmp_path / "pairs.csv"
    sets = (f"{name}={real_data / name}" for name in ("rsna_like", "cxr_seg"))
    assert start("check", *sets, "--out", out).code == 1
    with out.open(newline="") as file:
        found = {(row["first"], row["second"]) for row in csv.DictReader(file)}
    with (real_data / "rsna_like" / "patients.csv").open(newline="") as file:
        told = {(row["patientId"], Path(row["source_image"]).stem) for row in csv.DictReader(file)}
    assert len(told) == 61
    assert found == told


def test_real_films_of_two_sources_share_nothing(start, real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for path in sorted((real_data / "jsrt_lung" / "Demo" / "Data").glob("?.jpg")):
        (tmp_path / "images" / path.name).symlink_to(path)
        (tmp_path / "masks" / f"{path.stem}.png").symlink_to(
            path.with_name(f"{path.stem}-mask.png")
        )
    (tmp_path / "patients.csv").write_text("image,patient\n1,1\n2,2\n3,3\n4,4\n")
    others = f"rsna_like={real_data / 'rsna_like'}"
    ended = start("check", f"folder={tmp_path}", others, "--turned", "--workers", 0)
    assert ended.code == 0, ended.err
    assert "no picture is shared by 4 images" in ended.out
    assert "and 61 of" in ended.out
