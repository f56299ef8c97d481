"""Masks composed from cut-out structures, against composed ones and by hand."""

import csv
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import prepare
from data.cxr_seg import LESION, LUNGS, draw_parts, parse_structure
from data.records import Record, load, read_mask
from data.sources import open_dataset
from eval import to_source
from pp_jax.eval_config import EvalConfig

STRUCTURE = "Filename,Template Name,Mask,Resolution,Top,Left\n"
METADATA = "patientid,sex,age,finding,view,filename,license\n"
LUNG_ROWS = "a.png,Left Lung,masks/l.png,60x40,0,30\na.png,Right Lung,masks/l.png,60x40,0,0\n"
GGO = "a.png,Ground Glass Opacities,masks/ggo.png,60x40,5,7\n"


def rgba(pixels: np.ndarray, path: Path) -> None:
    """A mask as the set has it: opaque, nearly black blue where something is marked."""
    picture = np.zeros((*pixels.shape, 4), np.uint8)
    picture[..., 2], picture[..., 3] = pixels * 1, 255
    Image.fromarray(picture).save(path)


def expected_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "expected" / "index.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def real_records(real_data) -> list[Record]:
    return read(real_data / "cxr_seg")


@pytest.fixture
def folder(tmp_path) -> Path:
    """One image of 60 x 40 with lungs and an opacity of 12 x 10 that lacks its corner."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    Image.new("L", (60, 40), 77).save(tmp_path / "images" / "a.png")
    rgba(np.ones((40, 20), bool), tmp_path / "masks" / "l.png")
    opacity = np.ones((10, 12), bool)
    opacity[0, 0] = False
    rgba(opacity, tmp_path / "masks" / "ggo.png")
    (tmp_path / "structure.csv").write_text(STRUCTURE + LUNG_ROWS + GGO)
    row = "p7,F,65.0,COVID-19,AP,a.png,CC BY\n"
    (tmp_path / "metadata.csv").write_text(METADATA + row)
    return tmp_path


def read(folder: Path, **options):
    return open_dataset("cxr_seg", folder, **options)


def test_every_composed_mask_is_the_expected_one_to_the_pixel(real_data, real_records):
    """61 images; lesion, lungs, ground glass and consolidation each where it is expected."""
    folder = real_data / "cxr_seg"
    annotated = parse_structure(folder / "structure.csv")
    kinds = {"lesion": LESION, "lungs": LUNGS, "ggo": LESION[:1], "cons": LESION[1:]}
    records = {record.id: record for record in real_records}
    rows = expected_rows(folder)
    assert set(records) == {row["stem"] for row in rows}
    assert len(rows) == 61
    compared = 0
    for row in rows:
        size = int(row["h"]), int(row["w"])
        annotation = annotated[row["file"]]
        for kind, templates in kinds.items():
            path = folder / "expected" / f"{row['stem']}__{kind}.png"
            if kind == "lesion":
                got = read_mask(records[row["stem"]].mask, size=size)
                assert got.mean() == pytest.approx(float(row["lesion_frac"]), abs=1e-5)
            elif kind == "lungs":
                got = records[row["stem"]].lungs.pixels()
            else:
                marked = (part for part in annotation.parts if part.template in templates)
                got = draw_parts(size, [part for part in marked if part.mask])
            if path.is_file():
                want = np.asarray(Image.open(path)) > 0
                assert (got == want).all(), (row["stem"], kind)
            assert path.is_file() or not got.any(), (row["stem"], kind)
            compared += path.is_file()
    assert compared == len(list((folder / "expected").glob("*.png")))


def test_patients_and_facts_are_those_of_the_index_and_the_flagged_image_says_what_it_lacks(
    real_data, real_records
):
    records = {record.image.name: record for record in real_records}
    flagged = []
    for row in expected_rows(real_data / "cxr_seg"):
        record = records[row["file"]]
        facts = record.facts
        age = float(row["age"]) if row["age"] else None
        assert (facts.view, facts.sex, facts.age, facts.licence) == (
            row["view"],
            row["sex"],
            age,
            row["license"],
        )
        assert (record.patient, record.label) == (row["patient"], row["finding"])
        assert bool(record.boxes) == (float(row["lesion_frac"]) > 0)
        if row["flag"] or record.notes:
            flagged.append((row["flag"], record.notes))
    assert flagged == [("right-lung mask missing", ("no mask: Right Lung",))]


def test_a_structure_is_pasted_at_its_place_and_the_record_travels(folder):
    (record,) = pickle.loads(pickle.dumps(read(folder)))
    sample = load(record)
    want = np.zeros((40, 60), bool)
    want[5:15, 7:19] = True
    want[5, 7] = False
    np.testing.assert_array_equal(sample.findings, want)
    assert record.boxes == ((7.0, 5.0, 19.0, 15.0),)
    assert (record.id, record.patient, record.label) == ("a", "p7", "COVID-19")
    assert (record.facts.sex, record.facts.age, record.facts.licence) == ("F", 65.0, "CC BY")
    assert record.mask.name == "a.png"
    lungs = np.ones((40, 60), bool)
    lungs[:, 20:30] = lungs[:, 50:] = False
    np.testing.assert_array_equal(read_mask(record.lungs, size=(40, 60)), lungs)
    assert (sample.image == 77).all()


def test_an_evaluation_reads_the_lungs_only_where_a_line_needs_them(folder):
    (record,) = read(folder)
    told, alone = (to_source(record, EvalConfig(), lungs=one).read() for one in (True, False))
    np.testing.assert_array_equal(told.lungs, record.lungs.pixels())
    assert alone.lungs is None
    np.testing.assert_array_equal(told.findings, alone.findings)


def test_a_prepared_copy_keeps_the_lungs_and_their_absence(folder, tmp_path):
    Image.new("L", (60, 40), 50).save(folder / "images" / "b.png")
    with (folder / "structure.csv").open("a") as file:
        file.write(GGO.replace("a.png", "b.png"))
    with (folder / "metadata.csv").open("a") as file:
        file.write("p8,M,70.0,COVID-19,PA,b.png,CC BY\n")
    out = tmp_path / "prepared"
    prepare.run(prepare.Prepare("cxr_seg", source=folder, out=out, workers=0))
    (own, none), (lunged, _) = read(out), read(folder)
    assert none.lungs is None
    assert (own.lungs.suffix, str(own.lungs)) == (".png", f"{out}: lungs of a")
    kept = read_mask(own.lungs, size=(40, 60))
    np.testing.assert_array_equal(kept, read_mask(lunged.lungs, size=(40, 60)))
    assert kept.any()
    np.testing.assert_array_equal(load(own).findings, load(lunged).findings)
    assert "| images with lungs | 1 |" in (out / "preparation.md").read_text()
    rgba(np.ones((40, 10), bool), folder / "masks" / "l.png")
    with pytest.raises(ValueError, match="prepared from another source"):
        prepare.run(prepare.Prepare("cxr_seg", source=folder, out=out, workers=0))


def test_structures_of_both_kinds_are_one_target_and_others_are_none(folder):
    consolidation = GGO.replace("Ground Glass Opacities", "Consolidation").replace("5,7", "10,7")
    effusion = GGO.replace("Ground Glass Opacities", "Pleural Effusion").replace("5,7", "25,40")
    text = STRUCTURE + LUNG_ROWS + GGO + consolidation + effusion
    (folder / "structure.csv").write_text(text)
    rows, columns = np.nonzero(load(*read(folder)).findings)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 19, 7, 18)
    assert len(rows) == 15 * 12 - 1  # The other missing corner lies on the first structure.


def test_what_is_not_drawn_is_noted_and_an_image_without_person_is_a_patient(folder):
    empty = "a.png,Consolidation,,60x40,0,0\na.png,Monitoring Probes,,60x40,0,0\n"
    (folder / "structure.csv").write_text(STRUCTURE + LUNG_ROWS.split("\n")[0] + "\n" + empty)
    (folder / "metadata.csv").write_text(METADATA)
    (record,) = read(folder)
    assert record.notes == (
        "no mask: Right Lung",
        "no mask: Consolidation",
        "no row in metadata.csv",
    )
    assert (record.patient, record.label, record.boxes) == ("a", "no finding", ())
    assert record.lungs.pixels().sum() == 40 * 20  # The left one alone.
    (folder / "structure.csv").write_text(STRUCTURE + empty)
    (record,) = read(folder)
    assert record.lungs is None


def test_an_image_without_rows_or_of_another_size_is_left_out_with_a_warning(folder):
    Image.new("L", (60, 40)).save(folder / "images" / "b.png")
    Image.new("L", (30, 20)).save(folder / "images" / "c.png")
    text = STRUCTURE + LUNG_ROWS + GGO + LUNG_ROWS.replace("a.png", "c.png")
    (folder / "structure.csv").write_text(text)
    with (
        pytest.warns(UserWarning, match=r"structure\.csv: no row for 1 \(b\) images, left out"),
        pytest.warns(UserWarning, match=r"annotated at another size for 1 \(c\) images, left out"),
    ):
        assert [record.id for record in read(folder)] == ["a"]


def test_limit_counts_patients(folder):
    rows = LUNG_ROWS + GGO
    for name in "bc":
        shutil.copy(folder / "images" / "a.png", folder / "images" / f"{name}.png")
        rows += LUNG_ROWS.replace("a.png", f"{name}.png")
    (folder / "structure.csv").write_text(STRUCTURE + rows)
    people = "".join(f"{who},,,,,{name}.png,\n" for name, who in zip("abc", "pqp", strict=True))
    (folder / "metadata.csv").write_text(METADATA + people)
    assert [record.id for record in read(folder, limit=1)] == ["a", "c"]
    with pytest.raises(ValueError, match="limit is a number of patients"):
        read(folder, limit=0)


BROKEN = {
    r"structure\.csv: not there; .*git clone": ("structure.csv", None),
    r"metadata\.csv: not there": ("metadata.csv", None),
    r"images/a\.png: not a readable picture": ("images/a.png", b"x"),
    r"masks/ggo\.png: not a readable picture": ("masks/ggo.png", b"x"),
    r"masks/ggo\.png: no such file, but .*line 4 names it": ("masks/ggo.png", None),
    r"structure\.csv, line 2: Resolution is 'big'": (
        "structure.csv",
        (STRUCTURE + LUNG_ROWS.replace("60x40", "big")).encode(),
    ),
    r"line 2: Top 'nan' and Left '7'": (
        "structure.csv",
        (STRUCTURE + GGO.replace("5,7", "nan,7")).encode(),
    ),
    r"line 3: a\.png has another Resolution above": (
        "structure.csv",
        (STRUCTURE + GGO + GGO.replace("60x40", "61x40")).encode(),
    ),
    r"ggo\.png: at Top 35, Left 7 its 12 x 10 pixels leave the image of 60 x 40": (
        "structure.csv",
        (STRUCTURE + GGO.replace("5,7", "35,7")).encode(),
    ),
    r"ggo\.png: at Top 5, Left -1": (
        "structure.csv",
        (STRUCTURE + GGO.replace("5,7", "5,-1")).encode(),
    ),
    r"masks/secret\.png: no such file": (
        "structure.csv",
        (STRUCTURE + GGO.replace("masks/ggo", "../../secret")).encode(),
    ),
    r"structure\.csv: annotates none of the images": ("structure.csv", STRUCTURE.encode()),
}


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_set_is_an_error_that_names_the_file(folder, message):
    name, content = BROKEN[message]
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    (folder.parent / "secret.png").write_bytes(b"x")
    with pytest.raises((ValueError, OSError), match=message):
        read(folder)
