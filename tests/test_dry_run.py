"""`--dry-run` tells what would be done, and writes nothing."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import prepare, splits
from data.rsna import read_rsna
from pp_jax import config
from pp_jax.config import TrainConfig
from pp_jax.finetune import dry_run
from tests.fronts import assert_refused, flags, front


def names(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.fixture
def paces(monkeypatch):
    """A step takes 100 s, an embedding 3 s: nothing is compiled."""
    monkeypatch.setattr(dry_run.pace, "seconds_of_step", lambda settings, mesh: 100.0)
    monkeypatch.setattr(dry_run, "_seconds_of_embedding", lambda embedder, settings: 3.0)


def foretold(data, run, *more, **options):
    ended = front("train.py", *flags(data, run, **options), "--dry-run", *more)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[-1] == "nothing was written (--dry-run)"
    return lines


def test_a_training_is_foretold_with_its_parts_steps_checkpoints_time_and_disk(
    paces, data, tmp_path
):
    lines = foretold(data, tmp_path / "run", steps=40, save_every=9)
    parts = splits.split_patients(read_rsna(data), test=0.2, seed=0, validation=0.1)
    counts = ", ".join(rf"{part}: \d+ images, {len(who)} patients" for part, who in parts.items())
    assert any(re.fullmatch(f"{tmp_path / 'run'}: {counts}", line) for line in lines)
    told = lines[-2].removeprefix(f"{tmp_path / 'run'}: ")
    # Five validations, of one batch each, beside 40 steps: 4500 s.
    whole = (
        r"40 steps of 4 images, 5 checkpoints and validations, about 75 min, 0\.\d\d GiB on disk"
    )
    assert re.fullmatch(whole, told)
    assert names(tmp_path) == []


def test_the_disk_is_that_of_the_run(paces, data, run):
    """The shared run went to its end: the same settings from the start leave as much."""
    fresh = run.parent / "fresh"
    told = foretold(data, fresh)[-2]
    held = [path for part in ("base", "steps") for path in (run / part).rglob("*")]
    gib = sum(path.stat().st_size for path in held if path.is_file()) / 2**30
    # Told before compression, which takes a little off random weights, and in hundredths.
    assert gib - 0.005 <= float(re.search(r"([\d.]+) GiB", told)[1]) <= 1.15 * gib + 0.005
    assert not fresh.exists()


def test_a_run_that_goes_on_is_foretold_what_is_left(paces, data, copied):
    shutil.rmtree(copied / "steps" / "00000004")
    before = names(copied)
    assert ": 2 steps after step 2 of 4 images, 1 checkpoints" in foretold(data, copied)[-2]
    assert names(copied) == before


def test_each_fold_is_foretold_and_none_begun(paces, data, tmp_path):
    lines = foretold(data, tmp_path / "run", folds=2)
    for fold in (0, 1):
        own = [line for line in lines if line.startswith(f"{tmp_path / 'run'}/fold{fold}: ")]
        assert len(own) == 2
    assert names(tmp_path) == []


def test_what_would_stop_the_training_stops_its_dry_run(paces, data, copied, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").touch()
    ended = front("train.py", *flags(data, tmp_path / "thesis"), "--dry-run")
    assert_refused(ended, "not empty and no run")
    ended = front("train.py", *flags(data, copied, lr=0.5), "--dry-run")
    assert_refused(ended, "holds a run with other settings", "lr")


def test_embeddings_are_foretold_and_none_computed(compiled, paces, data, tmp_path):
    kept = tmp_path / "kept"
    lines = foretold(data, tmp_path / "run", embeddings="bfloat16", cache_dir=kept)
    (line,) = [line for line in lines if line.startswith("embeddings: ")]
    found = re.search(r"0 of (\d+) images are in .*; (\d+) are computed now, .*, about (.*)", line)
    assert found[1] == found[2]
    assert int(found[2]) > 10
    assert abs(int(found[3].removesuffix(" s")) - 3 * int(found[2])) <= 5  # To tens of seconds.
    assert names(tmp_path) == []


def test_the_flag_is_no_part_of_a_run_or_of_its_command():
    settings = config.resolve(TrainConfig(dry_run=True, lr=0.5))
    assert "dry" not in config.command(settings)
    assert not config.differences(dataclasses.asdict(config.resolve(TrainConfig(lr=0.5))), settings)


def test_a_preparation_is_foretold_and_nothing_written(tmp_path, capsys):
    source = tmp_path / "set"
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
        for number in range(9):
            pixels = np.full((40, 50), 255 if name == "masks" else 20 * number, np.uint8)
            Image.fromarray(pixels).save(source / name / f"i{number}.png")
    rows = "".join(f"i{number}.png,p{number}\n" for number in range(9))
    (source / "patients.csv").write_text(f"image,patient\n{rows}")
    before = names(tmp_path)
    asked = prepare.Prepare("folder", source=source, out=tmp_path / "out", workers=0, dry_run=True)
    prepare.run(asked)
    told = capsys.readouterr().out
    assert "\n9 patients, 9 images: about 0.0 MiB to write to " in told
    assert re.search(r"/out, [\d.]+ .iB free; about [\d.]+ s in 1 processes\n$", told)
    assert names(tmp_path) == before
