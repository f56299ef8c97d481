import csv
import json

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from data import synthetic
from data.dicom import read_dicom
from data.records import load
from data.rsna import read_rsna
from data.splits import split_patients
from data.synthetic import generate

SMALL = {"images": 24, "seed": 5, "side": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("phantoms") / "set", **SMALL, workers=0)


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_seed_gives_the_same_files_however_many_workers_draw(folder, tmp_path):
    assert files(generate(tmp_path / "again", **SMALL, workers=2)) == files(folder)


def test_another_seed_gives_other_pictures(folder, tmp_path):
    other = generate(tmp_path / "other", images=1, seed=6, side=128, workers=0)
    (image,) = (other / "stage_2_train_images").iterdir()
    assert all(
        not np.array_equal(read_dicom(image), read_dicom(r.image)) for r in read_rsna(folder)
    )


def test_more_images_continue_the_same_series(folder, tmp_path):
    few = files(generate(tmp_path / "few", **{**SMALL, "images": 7}, workers=0))
    many = files(folder)
    pictures = [path for path in few if path.suffix in (".dcm", ".png")]
    assert len(pictures) == 14
    assert all(few[path] == many[path] for path in pictures)


def test_every_opacity_is_one_component_and_its_box_is_tight(folder):
    for record in read_rsna(folder):
        mask = np.array(Image.open(record.mask))
        assert set(np.unique(mask)) <= {0, 255}
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        want = {(x, y, x + w, y + h) for x, y, w, h, _ in stats[1:].tolist()}
        assert count - 1 == len(record.boxes) <= 3
        assert set(record.boxes) == want


def test_every_opacity_is_brighter_than_the_same_place_across_the_spine(folder):
    # A lung is dark and the chest nearly symmetric, so most opacities outshine their mirror image.
    gains = []
    for record in read_rsna(folder):
        sample = load(record)
        grey = sample.image[:, :, 0].astype(float)
        for pixels in sample.objects & ~sample.findings[:, ::-1]:
            if pixels.any():
                gains.append(grey[pixels].mean() - grey[:, ::-1][pixels].mean())
    assert len(gains) > 10
    assert np.mean(np.array(gains) > 0) > 0.8
    assert np.median(gains) > 20


def test_filled_boxes_and_ellipses_are_poor_answers(folder):
    boxes, ellipses = [], []
    for record in read_rsna(folder):
        for pixels, (x0, y0, x1, y1) in zip(*load(record)[1:3], strict=True):
            share = pixels.sum() / ((x1 - x0) * (y1 - y0))
            boxes.append(2 * share / (1 + share))
            ellipse = np.zeros(pixels.shape, np.uint8)
            middle, axes = ((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2), (x1 - x0, y1 - y0)
            cv2.ellipse(ellipse, (tuple(map(float, middle)), tuple(map(float, axes)), 0.0), 1, -1)
            ellipses.append(2 * (ellipse * pixels).sum() / (ellipse.sum() + pixels.sum()))
    assert 0.63 < np.mean(boxes) < 0.74
    assert 0.68 < np.mean(ellipses) < 0.80


def test_positives_are_the_class_lung_opacity_and_the_others_are_of_both_kinds(folder):
    records = read_rsna(folder)
    for record in records:
        assert bool(record.boxes) == (record.label == "Lung Opacity")
    labels = {record.label for record in records}
    assert labels == {"Lung Opacity", "No Lung Opacity / Not Normal", "Normal"}


def test_some_people_have_several_images_and_stay_in_one_part(folder):
    records = read_rsna(folder)
    people = [record.patient for record in records]
    assert len(records) / 2 < len(set(people)) < len(records)
    assert max(map(people.count, people)) <= 3
    parts = split_patients(records, seed=0)
    assert sum(map(len, parts.values())) == len(set(people))


def test_a_person_keeps_sex_and_age_and_another_seed_draws_other_people(folder, tmp_path):
    def people(folder):
        found = {}
        for record in read_rsna(folder):
            header = pydicom.dcmread(record.image, stop_before_pixels=True)
            # RSNA's ages lack the standard's zeros and unit; the raw value needs no check.
            age = header.get_item("PatientAge").value
            found.setdefault(record.patient, set()).add((header.PatientSex, age))
        return found

    ours = people(folder)
    assert all(len(traits) == 1 for traits in ours.values())
    theirs = people(generate(tmp_path / "other", images=8, seed=6, side=64, workers=0))
    assert any(traits != ours[name] for name, traits in theirs.items())


def test_the_header_has_the_fields_of_rsna_s_files(folder, real_data):
    (real, *_) = (real_data / "rsna_like" / "stage_2_train_images").glob("*.dcm")
    ours, theirs = pydicom.dcmread(read_rsna(folder)[0].image), pydicom.dcmread(real)
    assert [element.keyword for element in ours] == [element.keyword for element in theirs]
    same = ("Modality", "ConversionType", "PhotometricInterpretation", "BitsStored", "HighBit")
    assert [ours[name].value for name in same] == [theirs[name].value for name in same]
    assert ours.file_meta.TransferSyntaxUID == theirs.file_meta.TransferSyntaxUID


def test_a_finished_set_is_left_as_it_is(folder, monkeypatch):
    monkeypatch.setattr(synthetic, "_draw", None)
    assert generate(folder, **SMALL) == folder


@pytest.mark.parametrize("change", [{"images": 25}, {"seed": 6}, {"side": 256}])
def test_a_set_of_other_parameters_is_not_overwritten(folder, change):
    before = files(folder)
    with pytest.raises(ValueError, match=r"set holds .*\"side\": 128.*choose another folder"):
        generate(folder, **(SMALL | change), workers=0)
    assert files(folder) == before


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no data set"):
        generate(tmp_path, **SMALL, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_run_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_tables", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", images=1, side=64, workers=0)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    generate(tmp_path / "set", images=1, side=64, workers=0)
    recipe = json.loads((tmp_path / "set" / "generator.json").read_text())
    assert recipe == {"version": synthetic.VERSION, "images": 1, "seed": 0, "side": 64}


@pytest.mark.parametrize("wrong", [{"images": 0}, {"side": 32}, {"seed": -1}])
def test_sizes_that_cannot_be_drawn_are_an_error(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        generate(tmp_path / "set", **(SMALL | wrong))
