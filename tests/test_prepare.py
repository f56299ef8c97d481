"""Preparation: the set equals its source, is whole or not there, and a killed run goes on."""

import csv
import dataclasses
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data import builder as data_builder
from data import examples, prepare, shards
from data.builder import PixelPerfect
from data.examples import FEATURES
from data.images import read_any
from data.prepared import INDEX, MANIFEST, REPORT, Entry, describe, is_prepared, read_prepared
from data.records import Record, load
from data.sources import open_dataset
from tests.dicom_files import write_dicom, write_set

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 30  # In shards of 8, 8, 8 and 6.


def write_source(folder: Path) -> Path:
    """Images of every depth and polarity, grey and in colours, three to a patient."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(IMAGES):
        height, width = 30 + number, 44
        path = folder / "images" / f"i{number:02d}.png"
        match number % 5:
            case 0:
                pixels = rng.integers(0, 4096, (height, width), np.uint16)
                fields = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12}
                fields |= {"HighBit": 11, "PatientSex": "F", "PatientAge": "034Y"}
                fields |= {"ViewPosition": "AP", "PixelSpacing": [0.139, 0.143]}
                write_dicom(path.with_suffix(".dcm"), pixels, **fields)
            case 1:
                Image.fromarray(rng.integers(0, 256, (height, width), np.uint8)).save(path)
            case 2:
                Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
            case 3:
                Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16)).save(path)
            case 4:
                pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
                Image.fromarray(pixels).save(path)
        mask = np.zeros((height, width), np.uint8)
        if number % 3:
            mask[4:9, 5 : 6 + number] = 255
            mask[20:25, 30:40] = 200  # Any level above 127 is marked.
        Image.fromarray(mask).save(folder / "masks" / f"i{number:02d}.png")
        rows.append((f"i{number:02d}", f"p{number // 3}"))
    with (folder / "patients.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "patient"), *rows])
    return folder


def settings(source: Path, out: Path, **more) -> prepare.Prepare:
    return prepare.Prepare("folder", source=source, out=out, workers=0, **more)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "folder")


@pytest.fixture(scope="module")
def direct(source):
    return open_dataset("folder", source)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "folder-prepared"
    prepare.run(settings(source, out))
    return out


@pytest.fixture
def copied(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def without_files(record: Record) -> Record:
    return dataclasses.replace(record, image=None, mask=None)


def assert_same_content(records: list[Record], others: list[Record]) -> None:
    assert list(map(without_files, records)) == list(map(without_files, others))
    for record, other in zip(records, others, strict=True):
        assert (record.mask is None) == (other.mask is None)
        for one, two in zip(load(record), load(other), strict=True):
            np.testing.assert_array_equal(one, two, strict=True)


def test_a_prepared_record_is_the_direct_one_pixel_for_pixel_and_box_for_box(whole, direct):
    prepared = read_prepared(whole)
    assert len(prepared) == IMAGES
    assert {record.facts.age for record in prepared} == {None, 34.0}
    assert_same_content(prepared, direct)


def test_boxes_without_a_mask_keep_their_fractions(tmp_path):
    labels = "a,1.1,2.3,7.7,9.123456789,1\na,3,4,5,6,1\nb,,,,,0\n"
    source = write_set(tmp_path / "rsna", labels)
    (source / "patients.csv").write_text("patientId,patient\na,1\nb,2\n")
    out = tmp_path / "out"
    prepare.run(prepare.Prepare("rsna", source=source, out=out, workers=0))
    records = read_prepared(out)
    assert records[0].boxes[0] == (1.1, 2.3, 1.1 + 7.7, 2.3 + 9.123456789)
    assert [record.mask for record in records] == [None, None]
    assert_same_content(records, open_dataset("rsna", source))


def test_tfds_reads_what_was_prepared(whole, direct):
    source = tfds.builder_from_directory(whole).as_data_source("images")
    assert len(source) == IMAGES
    for example, record in zip(source, direct, strict=True):
        np.testing.assert_array_equal(example["image"], read_any(record.image))
        np.testing.assert_array_equal(example["boxes"], np.reshape(record.boxes, (-1, 4)))
        assert example["patient"].decode() == record.patient
        assert example["facts"]["view"].decode() == record.facts.view
        np.testing.assert_equal(example["facts"]["age"], record.facts.age or np.nan)


def test_grey_is_stored_as_one_channel_and_colour_as_three(whole, direct):
    modes = set()
    for prepared, record in zip(read_prepared(whole), direct, strict=True):
        pixels = read_any(record.image)
        with prepared.image.open() as file, Image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.mode == ("L" if np.ptp(pixels, axis=2).max() == 0 else "RGB")
            modes.add(picture.mode)
    assert modes == {"L", "RGB"}


def test_an_entry_is_read_after_pickling_and_by_many_threads(whole, direct):
    records = pickle.loads(pickle.dumps(read_prepared(whole)))
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(IMAGES), 8))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda place: read_any(records[place].image), order))
    for place, image in zip(order, images, strict=True):
        np.testing.assert_array_equal(image, read_any(direct[place].image))


def test_an_entry_is_named_by_its_id():
    entry = Entry(Path("set/shard"), 3, "a/b.1", "image")
    assert (entry.name, entry.stem, entry.suffix) == ("b.1.png", "b.1", ".png")
    assert str(entry) == "set: image of a/b.1"


def test_the_builder_prepares_from_a_manual_folder_and_says_how_to_get_it(source, whole, tmp_path):
    builder = PixelPerfect(config="folder", data_dir=tmp_path / "tfds")
    where = tfds.download.DownloadConfig(manual_dir=source)
    builder.download_and_prepare(download_config=where)
    ours = tfds.builder_from_directory(whole).as_data_source("images")
    for one, two in zip(builder.as_data_source("images"), ours, strict=True):
        np.testing.assert_equal(one, two)
    assert not (tmp_path / "tfds" / "pixel_perfect" / "folder.partial").exists()
    instructions = PixelPerfect(config="rsna", data_dir=tmp_path).MANUAL_DOWNLOAD_INSTRUCTIONS
    assert "kaggle competitions download" in instructions


def test_the_builder_says_that_a_set_has_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr(data_builder, "open_dataset", lambda name, folder: [])
    builder = PixelPerfect(config="folder", data_dir=tmp_path / "tfds")
    where = tfds.download.DownloadConfig(manual_dir=tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: no image of 'folder' in it"):
        builder.download_and_prepare(download_config=where)


def test_without_hard_links_the_shards_are_copied_and_stay(source, tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError("no hard links on this disk")

    monkeypatch.setattr(os, "link", link)
    records = open_dataset("folder", source)[:3]
    (tmp_path / "shards").mkdir()
    (shard,) = shards.write_shards(shards.plan(records, tmp_path / "shards"), workers=0)
    builder = PixelPerfect(config="folder", data_dir=tmp_path / "tfds", shards=[shard])
    builder.download_and_prepare()
    (placed,) = Path(builder.data_path).glob("*array_record*")
    assert placed.read_bytes() == Path(shard.path).read_bytes()
    assert len(builder.as_data_source("images")) == 3


def test_a_limit_is_a_number_of_patients(source, whole, tmp_path):
    names = [record.id for record in read_prepared(whole, limit=2)]
    assert names == ["i00", "i01", "i02", "i03", "i04", "i05"]
    prepare.run(settings(source, tmp_path / "two", limit=2))
    assert [record.id for record in read_prepared(tmp_path / "two")] == names
    with pytest.raises(ValueError, match="at least 1; got 0"):
        read_prepared(whole, limit=0)


def test_a_set_is_not_read_as_another(whole):
    read_prepared(whole, data="folder")
    with pytest.raises(ValueError, match="prepared with the data 'folder', not 'rsna'"):
        read_prepared(whole, data="rsna")
    with pytest.raises(ValueError, match="prepared with the label '', not 'nodule'"):
        read_prepared(whole, label="nodule")


def test_what_is_there_is_left_as_it_is(source, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    prepare.run(settings(source, whole))
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before
    assert "holds this set already" in capsys.readouterr().out


def test_another_source_or_folder_is_not_overwritten(source, whole, tmp_path):
    changed = Path(shutil.copytree(source, tmp_path / "source"))
    (changed / "images" / "i01.png").touch()
    with pytest.raises(ValueError, match="prepared from another source"):
        prepare.run(settings(changed, whole))
    with pytest.raises(ValueError, match="holds something else"):
        prepare.run(settings(source, changed))


class Killed(BaseException):
    """Not an error that anything would catch."""


def count_encoded(monkeypatch, *, killed_after: int | None = None) -> list[str]:
    """Ids of the images that are encoded for a shard, until the process is killed."""
    seen = []

    def encode(record):
        if len(seen) == killed_after:
            raise Killed
        seen.append(record.id)
        return examples.encode(record)

    monkeypatch.setattr(shards, "encode", encode)
    return seen


def test_a_killed_preparation_goes_on_with_the_first_unfinished_shard(
    source, whole, tmp_path, monkeypatch
):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    count_encoded(monkeypatch, killed_after=20)
    with pytest.raises(Killed):
        prepare.run(settings(source, out))
    assert not out.exists()
    assert sorted(path.name for path in (partial / "shards").glob("*.json")) == [
        "00000.json",
        "00001.json",
    ]
    seen = count_encoded(monkeypatch)
    prepare.run(settings(source, out))
    assert seen == [f"i{number:02d}" for number in range(16, 30)]
    assert not partial.exists()
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("damage", ["bit", "cut", "source"])
def test_a_finished_shard_that_is_damaged_or_outdated_is_written_anew(
    source, tmp_path, monkeypatch, damage
):
    source = Path(shutil.copytree(source, tmp_path / "source"))
    out, partial = tmp_path / "out", tmp_path / "out.partial" / "shards"
    count_encoded(monkeypatch, killed_after=20)
    with pytest.raises(Killed):
        prepare.run(settings(source, out))
    content = bytearray((partial / "00001.array_record").read_bytes())
    if damage == "bit":
        content[3000] ^= 1
    elif damage == "cut":
        del content[-1:]
    else:
        Image.fromarray(np.full((38, 44), 77, np.uint8)).save(source / "images" / "i08.png")
        (source / "images" / "i08.png").touch()
    (partial / "00001.array_record").write_bytes(content)
    seen = count_encoded(monkeypatch)
    prepare.run(settings(source, out))
    assert seen == [f"i{number:02d}" for number in range(8, 30)]
    assert_same_content(read_prepared(out), open_dataset("folder", source))


def unreadable(source: Path, folder: Path, count: int) -> Path:
    """A copy of the source, `count` DICOM files cut off within their pixels: i00, i05, ..."""
    copy = Path(shutil.copytree(source, folder))
    for path in sorted((copy / "images").glob("*.dcm"))[:count]:
        path.write_bytes(path.read_bytes()[:-100])
    return copy


def test_an_unreadable_image_is_left_out_and_listed(source, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.run(settings(unreadable(source, tmp_path / "source", 2), out))
    names = [record.id for record in read_prepared(out)]
    assert len(names) == IMAGES - 2
    assert not {"i00", "i05"} & set(names)
    report = (out / REPORT).read_text()
    assert report in capsys.readouterr().out
    assert "| skipped | 2 |" in report
    (line,) = [line for line in report.splitlines() if line.startswith("| i05 |")]
    assert "cut off" in line or "cannot be decoded" in line


def test_an_image_that_could_not_be_opened_is_tried_again(source, tmp_path, monkeypatch):
    out, tried = tmp_path / "out", []

    def encode(record):
        tried.append(record.id)
        if record.id == "i09" and tried.count("i09") == 1:
            raise PermissionError("i09: not now")
        if len(tried) == 20:
            raise Killed
        return examples.encode(record)

    monkeypatch.setattr(shards, "encode", encode)
    with pytest.raises(Killed):
        prepare.run(settings(source, out))
    prepare.run(settings(source, out))
    assert tried[20:] == [f"i{number:02d}" for number in range(8, 30)]
    assert len(read_prepared(out)) == IMAGES


def test_more_than_a_tenth_unreadable_is_an_error_unless_it_is_wanted(source, tmp_path):
    source, out = unreadable(source, tmp_path / "source", 4), tmp_path / "out"
    with pytest.raises(ValueError, match=r"4 of 30 images cannot be read.*i00.*--keep-going"):
        prepare.run(settings(source, out))
    assert not out.exists()
    prepare.run(settings(source, out, keep_going=True))
    assert len(read_prepared(out)) == 26


def test_the_report_counts_what_was_prepared_and_what_was_odd(whole):
    report = (whole / REPORT).read_text()
    for line in (
        "| images | 30 |",
        "| patients | 10 |",
        "| images with a box | 20 |",
        "| boxes | 40 |",
        "| images with a mask | 30 |",
        "| known outlines | 30 mask |",
        "| labels | 20 finding, 10 no finding |",
        "| width x height | 30, 44 x 30 to 44 x 59 |",
        "| skipped | 0 |",
        "| inverted (stored with white as 0), shown upright | 6 |",
        "| more than 8 bits, shown in 8 | 6 |",
        "| pixel spacing missing | 24 |",
    ):
        assert line in report.splitlines()


def test_warnings_of_a_kind_are_counted_together(tmp_path):
    source = write_set(tmp_path / "rsna", "".join(f"{name},1,1,5,5,1\n" for name in "abcd"))
    (source / "patients.csv").write_text("patientId,patient\na,1\nb,2\nc,3\nd,4\n")
    (source / "masks").mkdir()
    for name in "abc":
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(source / "masks" / f"{name}.png")
    out = tmp_path / "out"
    prepare.run(prepare.Prepare("rsna", source=source, out=out, workers=0))
    assert "| nothing is marked inside box (#, #, #, #) | 3 |" in (out / REPORT).read_text()


def test_numbers_in_words_make_kinds_of_warnings():
    assert shards.kind("box (1.5, -2, 3e-07) of 12\n  left out") == "box (#, #, #) of # left out"
    assert shards.kind("mask brought to 8-bit grey") == "mask brought to 8-bit grey"


@pytest.mark.parametrize("name", ["features.json", INDEX, "*00002-of*", REPORT])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_set_that_lacks_anything_is_not_read(copied, name, damage):
    (path,) = copied.glob(name)
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-1])
    assert is_prepared(copied)
    with pytest.raises(ValueError, match=rf"{path.name}: .*prepare the set again"):
        read_prepared(copied)


def test_a_flipped_bit_is_found_on_request_and_when_it_is_read(copied):
    read_prepared(copied, verify=True)
    path = next(copied.glob("*00000-of*"))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    records = read_prepared(copied)
    with pytest.raises(ValueError, match=rf"{path.name}: not what was written"):
        read_prepared(copied, verify=True)
    with pytest.raises(OSError, match="image of i00 cannot be read"):
        records[0].image.read_bytes()


def test_a_flipped_bit_in_the_index_is_always_found(copied):
    path = copied / INDEX
    path.write_bytes(path.read_bytes().replace(b'"p3"', b'"p4"', 1))
    with pytest.raises(ValueError, match=f"{INDEX}: not what was written"):
        read_prepared(copied)


def test_a_manifest_of_another_format_or_none_is_refused_in_one_line(copied):
    path = copied / MANIFEST
    content = json.loads(path.read_text())
    for text, reason in ((json.dumps(content | {"format": 99}), "format 99"), ("[", "damaged")):
        path.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_prepared(copied)
    path.unlink()
    assert not is_prepared(copied)


def test_a_disk_that_is_too_small_is_refused_before_the_start(source, tmp_path, monkeypatch):
    def usage(path):
        return shutil._ntuple_diskusage(2**30, 2**30 - 5000, 5000)

    seen = count_encoded(monkeypatch)
    monkeypatch.setattr(prepare.shutil, "disk_usage", usage)
    with pytest.raises(OSError, match=r"out: about 0\.\d MiB are needed, 0\.0 MiB are free"):
        prepare.run(settings(source, tmp_path / "out"))
    assert not seen
    assert not (tmp_path / "out").exists()


def test_every_field_of_a_record_is_prepared():
    """A new field of `Record` or `Facts` would be lost silently."""
    known = describe(Record("a", "p", Path("a.png"), (), None, "box", ""))
    chosen_by_the_run = {"drawn", "dataset"}
    fields = {field.name for field in dataclasses.fields(Record)}
    assert fields == known.keys() | {"image", "mask", "lungs"} | chosen_by_the_run
    assert known["facts"].keys() == FEATURES["facts"].keys()


IN_A_PROCESS = """
import resource, sys, warnings
from pathlib import Path
import data.shards
assert not {"jax", "tensorflow", "torch"} & set(sys.modules), "a worker imports too much"
from data import prepare
from data.prepared import read_prepared
from data.records import load

def run(out, **more):
    prepare.run(prepare.Prepare("folder", source=Path(sys.argv[1]), out=out, **more))

if __name__ == "__main__":
    folder = Path(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, resource.RLIM_INFINITY))
    try:
        run(folder / "full", workers=2)
    except OSError as error:
        print("error:", error)
    left = [path.name for path in (folder / "full.partial").rglob("*") if path.is_file()]
    print("left:", (folder / "full").exists(), left)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    run(folder / "full", workers=2)
    for record in read_prepared(folder / "full"):
        load(record)
    assert not {"jax", "tensorflow", "torch"} & set(sys.modules)
    print("done")
"""


def test_a_full_disk_leaves_nothing_under_the_final_name_and_tensorflow_is_never_imported(
    source, whole, tmp_path
):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, source, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    (error,) = [line for line in lines if line.startswith("error:")]
    assert re.search(
        r"/full: no space left: about 0\.\d MiB more are needed, [\d.]+ .iB are", error
    )
    assert "start the same command again" in error
    assert "left: False []" in lines
    assert lines[-1] == "done"
    # Two processes write the same bytes as one.
    for path in whole.iterdir():
        assert (tmp_path / "full" / path.name).read_bytes() == path.read_bytes()
