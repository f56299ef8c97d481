"""A folder of images with a mask each, as a data set."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.folder import find_images
from data.pipeline import train_batches
from data.records import load
from data.sources import open_dataset
from data.splits import split_patients
from data.tables import read_rows
from tests.dicom_files import write_dicom

NOBODY = pytest.mark.filterwarnings("ignore:.*images of one person")


def colours(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([200 * (x > width // 2), y * 255 // height, 0 * x + 90], -1).astype(np.uint8)


def write(folder: Path, name: str, *boxes: tuple[int, int, int, int], size=(40, 60)) -> Path:
    """The folder with a colour image, and a mask of filled boxes (x0, y0, x1, y1)."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours(*size)).save(folder / "images" / f"{name}.png")
    mask = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = 255
    Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


def read(folder: Path, **options):
    return open_dataset("folder", folder, **options)


@NOBODY
def test_each_component_is_an_object_with_its_tight_box(tmp_path):
    boxes = {(2, 3, 10, 8), (30, 20, 60, 40), (10, 8, 12, 10)}  # The last touches at a corner.
    (record,) = read(write(tmp_path, "a", *boxes))
    assert set(record.boxes) == {(2.0, 3.0, 12.0, 10.0), (30.0, 20.0, 60.0, 40.0)}
    sample = load(record)
    areas = dict(zip(map(tuple, sample.boxes), sample.objects.sum((1, 2)), strict=True))
    assert areas == {(2, 3, 12, 10): 8 * 5 + 4, (30, 20, 60, 40): 600}
    assert (record.target, record.label, record.patient) == ("mask", "finding", "a")


@NOBODY
def test_a_component_below_a_thousandth_of_the_image_is_marked_but_no_object(tmp_path):
    folder = write(tmp_path, "a", (0, 0, 4, 1), (20, 20, 23, 21), size=(40, 100))
    (record,) = read(folder)
    assert record.boxes == ((0.0, 0.0, 4.0, 1.0),)
    sample = load(record)
    assert (len(sample.objects), sample.findings.sum()) == (1, 7)


@NOBODY
def test_an_all_black_mask_is_an_image_without_findings(tmp_path):
    (record,) = read(write(tmp_path, "a"))
    sample = load(record)
    assert (record.boxes, record.label) == ((), "no finding")
    assert not sample.findings.any()
    assert sample.objects.shape == (0, 40, 60)


@NOBODY
def test_pictures_keep_their_colours_and_dicom_is_read_as_well(tmp_path):
    folder = write(tmp_path, "a", (5, 5, 30, 30))
    shutil.copy(folder / "masks" / "a.png", folder / "masks" / "b.png")
    write_dicom(folder / "images" / "b.dcm", np.full((40, 60), 77, np.uint8))
    colour, grey = read(folder)
    np.testing.assert_array_equal(load(colour).image, colours(40, 60))
    assert (load(grey).image == 77).all()


@NOBODY
def test_a_batch_shows_images_of_any_shape_in_colour_as_pillow_resizes_them(tmp_path):
    sizes = {"a": (40, 60), "b": (300, 70), "c": (33, 31)}
    for name, size in sizes.items():
        write(tmp_path, name, (5, 5, 30, 30), size=size)
    batches = train_batches(read(tmp_path), side=64, batch=3, seed=0, max_objects=2, objects="each")
    batch = next(batches)
    for image, (height, width), row in zip(batch.image, batch.size, batch.index, strict=True):
        original = colours(*sizes["abc"[row]])
        want = Image.fromarray(original).resize((width, height), Image.Resampling.BILINEAR)
        assert max(height, width) == 64
        np.testing.assert_array_equal(image[:height, :width], want)
    assert batch.valid.tolist() == [[True, False]] * 3


@NOBODY
def test_a_photo_turned_by_exif_is_compared_with_its_mask_upright(tmp_path):
    folder = write(tmp_path, "a", (1, 1, 20, 30), size=(60, 40))
    (folder / "images" / "a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # A quarter turn to the right is needed.
    Image.fromarray(colours(40, 60)).save(folder / "images" / "a.jpg", exif=exif)
    assert load(*read(folder)).image.shape == (60, 40, 3)


def test_patients_come_from_their_csv_and_limit_counts_them(tmp_path):
    for name in "abcd":
        write(tmp_path, name, (5, 5, 30, 30))
    rows = "patient,image\nann,a.png\nbob,b\nann,c.png\ncarl,d\n"
    (tmp_path / "patients.csv").write_text(rows)
    assert [r.patient for r in read(tmp_path)] == ["ann", "bob", "ann", "carl"]
    assert [r.id for r in read(tmp_path, limit=1)] == ["a", "c"]
    (tmp_path / "patients.csv").write_text(rows.replace("carl", ""))
    with pytest.raises(ValueError, match=r"patients\.csv: no patient for 1 images \(first: d\)"):
        read(tmp_path)


def test_one_image_with_two_patients_is_an_error_that_names_both(tmp_path):
    write(tmp_path, "a", (5, 5, 30, 30))
    (tmp_path / "patients.csv").write_text("image,patient\na.png,ann\na,ann\n")
    assert [r.patient for r in read(tmp_path)] == ["ann"]
    (tmp_path / "patients.csv").write_text("image,patient\na.png,ann\n\na,bob\n")
    with pytest.raises(ValueError, match=r"csv, line 4 \(a\): patient 'bob', but 'ann' in a row"):
        read(tmp_path)


def test_a_cell_of_a_csv_names_an_image_by_its_known_suffix_only(tmp_path):
    write(tmp_path, "1.2.840", (5, 5, 30, 30))
    (tmp_path / "patients.csv").write_text("image,patient\n1.2.840.5,ann\n")
    with pytest.raises(ValueError, match=r"no patient for 1 images \(first: 1\.2\.840\)"):
        read(tmp_path)
    (tmp_path / "patients.csv").write_text("image,patient\nimages/1.2.840.PNG,ann\n")
    assert [r.patient for r in read(tmp_path)] == ["ann"]


def test_without_patients_there_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="images of one person may be in two"):
        read(write(tmp_path, "a"))


PROVENANCE = "image,object,accepted,machine_made\n"


@NOBODY
@pytest.mark.filterwarnings("ignore:.*(machine-made|left out)")
def test_an_image_with_a_rejected_mask_is_left_out_and_machine_made_ones_say_so(tmp_path):
    for name in "abcd":
        write(tmp_path, name, (5, 5, 30, 30))
    rows = "a.png,1,yes,yes\nb.png,1,yes,yes\nb.png,2,No,yes\nc.png,1,yes,no\n"
    (tmp_path / "provenance.csv").write_text(PROVENANCE + rows)
    (tmp_path / "masks" / "b.png").unlink()  # Nobody needs it.
    got = {record.id: record.target for record in read(tmp_path)}
    assert got == {"a": "machine-made", "c": "mask", "d": "mask"}
    assert len(split_patients(read(tmp_path), seed=0)["train"]) == 1


@NOBODY
def test_machine_made_and_rejected_masks_are_warned_of(tmp_path):
    for name in "abc":
        write(tmp_path, name)
    (tmp_path / "provenance.csv").write_text(PROVENANCE + "a,1,yes,yes\nb,1,no,yes\n")
    with (
        pytest.warns(UserWarning, match=r"provenance\.csv: 1 images left out"),
        pytest.warns(UserWarning, match="1 of 2 images are machine-made"),
    ):
        read(tmp_path)


def reject_all(folder: Path) -> None:
    (folder / "provenance.csv").write_text(PROVENANCE + "a,1,no,yes\n")


BROKEN = {
    r"images: no such folder; .*masks/<name>\.png": lambda f: shutil.rmtree(f / "images"),
    "images: no image in this folder": lambda f: (f / "images" / "a.png").unlink(),
    r"masks/a\.png: no mask for .*images/a\.png; draw one .*all black": lambda f: (
        f / "masks" / "a.png"
    ).unlink(),
    r"masks/a\.png: mask of 5 x 4 .* for an image of 60 x 40": lambda f: Image.new(
        "L", (5, 4)
    ).save(f / "masks" / "a.png"),
    r"masks/a\.png: a mask in colours; save it": lambda f: shutil.copy(
        f / "images" / "a.png", f / "masks" / "a.png"
    ),
    r"masks/a\.png: not a readable picture": lambda f: (f / "masks" / "a.png").write_bytes(
        (f / "masks" / "a.png").read_bytes()[:60]
    ),
    r"images/a\.png: not a readable picture": lambda f: (f / "images" / "a.png").write_text("x"),
    r"images/a\.jpg and .*a\.png: two images named a": lambda f: shutil.copy(
        f / "images" / "a.png", f / "images" / "a.jpg"
    ),
    r"provenance\.csv: needs the columns image,accepted,machine_made; it has image": lambda f: (
        f / "provenance.csv"
    ).write_text("image\n"),
    r"provenance\.csv, line 2: accepted is 'perhaps', not yes or no": lambda f: (
        f / "provenance.csv"
    ).write_text(PROVENANCE + "a,1,perhaps,yes\n"),
    r"provenance\.csv: every image was rejected": reject_all,
}


@NOBODY
@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_folder_is_an_error_that_names_the_file(tmp_path, message):
    folder = write(tmp_path, "a", (5, 5, 30, 30))
    BROKEN[message](folder)
    with pytest.raises((ValueError, OSError), match=message):
        read(folder)


def test_no_folder_at_all_is_an_error_that_says_what_belongs_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; .*masks/<name>\.png"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="limit is a number of patients"):
        read(write(tmp_path, "a"), limit=0)


def test_images_are_found_by_suffix_or_as_dicom_and_named_without_known_suffixes(tmp_path):
    write_dicom(tmp_path / "1.2.840.7", np.zeros((4, 4), np.uint8))
    for name in ("b.PNG", "c.jpeg", "d.txt", ".e.png"):
        (tmp_path / name).write_bytes(b"")
    assert set(find_images([tmp_path])) == {"1.2.840.7", "b", "c"}
    assert set(find_images([tmp_path / "d.txt", tmp_path / "b.PNG"])) == {"d.txt", "b"}


def test_rows_of_a_csv_are_cells_without_spaces_by_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeff b , a\n 1,2 \n\n,\n3\n".encode())
    want = [(2, {"b": "1", "a": "2"}), (5, {"b": "3", "a": ""})]
    assert list(read_rows(path, ("c",), ("a", "b"))) == want
    with pytest.raises(ValueError, match=r"a\.csv: needs the columns c or a,d; it has b,a"):
        list(read_rows(path, ("c",), ("a", "d")))
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.csv: not a CSV in UTF-8"):
        list(read_rows(path, ("a",)))
