import csv
import io
import re

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, apply_windowing

from data.dicom import DicomError, dicom_size, read_dicom
from tests.dicom_files import write_dicom


@pytest.fixture
def ramp():
    """12-bit levels over the whole range, in 16-bit words."""
    return np.linspace(0, 4095, 48 * 40).astype(np.uint16).reshape(48, 40)


def test_eight_bits_without_a_window_stay_untouched(tmp_path):
    pixels = np.arange(20, 220, dtype=np.uint8).reshape(10, 20)
    np.testing.assert_array_equal(read_dicom(write_dicom(tmp_path / "a.dcm", pixels)), pixels)


def test_monochrome1_is_shown_inverted(tmp_path):
    pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    path = write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_dicom(path), 255 - pixels)


def test_jpeg_baseline_is_what_pillow_decodes(tmp_path):
    pixels = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, jpeg=True)
    (frame,) = generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1)
    np.testing.assert_array_equal(read_dicom(path), np.array(Image.open(io.BytesIO(frame))))


def test_sixteen_bits_without_a_window_span_black_to_white(tmp_path):
    pixels = np.array([[100, 300], [500, 200]], np.uint16)
    grey = read_dicom(write_dicom(tmp_path / "a.dcm", pixels))
    np.testing.assert_array_equal(grey, [[0, 128], [255, 64]])


def test_a_flat_image_of_sixteen_bits_is_black(tmp_path):
    assert not read_dicom(write_dicom(tmp_path / "a.dcm", np.full((4, 4), 7, np.uint16))).any()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(1800, 900), (2048, 4096), (300.5, 2)])
def test_a_window_maps_levels_as_pydicom_does(tmp_path, ramp, function, centre, width):
    fields = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    path = write_dicom(tmp_path / "a.dcm", ramp, BitsStored=12, HighBit=11, **fields)
    want = apply_windowing(ramp, pydicom.dcmread(path)) / 4095 * 255
    np.testing.assert_allclose(read_dicom(path), want, atol=0.5 + 1e-6)


def test_the_window_counts_in_units_after_the_modality_lut(tmp_path):
    pixels = np.array([[0, 512, 1024, 2048]], np.int16)
    fields = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 0, "WindowWidth": 2049}
    grey = read_dicom(write_dicom(tmp_path / "a.dcm", pixels, **fields))
    np.testing.assert_array_equal(grey, [[0, 128, 255, 255]])


def test_of_several_windows_the_first_is_used(tmp_path, ramp):
    one = {"WindowCenter": 1000, "WindowWidth": 400}
    two = {"WindowCenter": [1000, 2000], "WindowWidth": [400, 4000]}
    np.testing.assert_array_equal(
        read_dicom(write_dicom(tmp_path / "a.dcm", ramp, **one)),
        read_dicom(write_dicom(tmp_path / "b.dcm", ramp, **two)),
    )


def test_a_voi_table_replaces_the_window(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 8], [10, 200, 30, 255]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    pixels = np.array([[0, 1, 2, 3, 9]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=[table])
    np.testing.assert_array_equal(read_dicom(path), [[10, 200, 30, 255, 255]])


def test_the_size_is_read_without_the_pixels(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((12, 34), np.uint8), PixelData=b"\0\0")
    assert dicom_size(path) == (12, 34)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "RGB pixels"),
        ({"PixelData": b"\0\0"}, r"Explicit VR Little Endian\) cannot be decoded"),
        ({"WindowCenter": 10, "WindowWidth": 0}, "window width 0"),
    ],
)
def test_an_error_names_file_and_reason(tmp_path, fields, reason):
    path = write_dicom(tmp_path / "odd.dcm", np.zeros((8, 8), np.uint8), **fields)
    with pytest.raises(DicomError, match=rf"odd\.dcm: .*{reason}"):
        read_dicom(path)


def test_a_truncated_jpeg_is_an_error(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = write_dicom(tmp_path / "cut.dcm", pixels, jpeg=True)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DicomError, match=r"cut\.dcm: .*cannot be (decoded|read)"):
        read_dicom(path)


def test_a_file_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "note.dcm").write_text("not an image")
    with pytest.raises(DicomError, match=r"note\.dcm: not a DICOM file"):
        read_dicom(tmp_path / "note.dcm")


def test_a_file_without_pixels_is_an_error(tmp_path):
    path = write_dicom(tmp_path / "report.dcm", None)
    for read in (read_dicom, dicom_size):
        with pytest.raises(DicomError, match=r"report\.dcm: no pixel data"):
            read(path)


def test_real_files_read_alike_in_every_lossless_coding(real_data):
    folder = real_data / "dicom" / "radiograph_wg04"
    plain = read_dicom(folder / "RG2_UNC.dcm")
    data = pydicom.dcmread(folder / "RG2_UNC.dcm")
    shown = apply_windowing(apply_modality_lut(data.pixel_array, data), data, 0)
    np.testing.assert_allclose(plain, shown / 1023 * 255, atol=0.5 + 1e-6)
    for coding in ("RLE", "J2KR"):
        np.testing.assert_array_equal(read_dicom(folder / f"RG2_{coding}.dcm"), plain)


@pytest.mark.filterwarnings("ignore:The pixel data is")
def test_real_greyscale_images_are_read_at_their_size_where_pillow_knows_the_coding(real_data):
    folder = real_data / "dicom"
    rows = csv.DictReader((folder / "index.csv").read_text().splitlines())
    for row in rows:
        single = row["pi"].startswith("MONOCHROME") and (row["fr"] or "1") == "1"
        if single and not row["ts"].startswith(("JPEG Lossless", "JPEG-LS", "JPEG Ext")):
            size = int(row["rows"]), int(row["cols"])
            assert (
                read_dicom(folder / row["file"]).shape == size == dicom_size(folder / row["file"])
            )
        else:
            with pytest.raises(DicomError, match=re.escape(row["file"])):
                read_dicom(folder / row["file"])
