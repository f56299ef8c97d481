"""What cannot be read is named, with its reason, before memory is reserved for it."""

import tracemalloc

import numpy as np
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate

from data.dicom import DicomError, dicom_size, read_dicom, read_dicom_rgb
from tests.dicom_files import table, write_dicom


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"NumberOfFrames": 3, "PixelData": b"\0" * 192}, "3 frames; choose one with frame=0 to 2"),
        ({"PhotometricInterpretation": "HSV", "SamplesPerPixel": 3}, "HSV pixels, expected RGB"),
        ({"PhotometricInterpretation": "RGB"}, "RGB pixels of 1 samples"),
        ({"PixelData": b"\0\0"}, r"Little Endian\) cannot be decoded: 2 bytes .* 64 expected"),
        ({"WindowCenter": 10, "WindowWidth": 8, "VOILUTFunction": "ODD"}, "function 'ODD'"),
        ({"BitsAllocated": 12}, "12 bits allocated"),
        ({"BitsStored": 9}, "9 bits stored in 8"),
        ({"Rows": 0}, "0 rows"),
        ({"BitsStored": 5000, "HighBit": 4999}, "5000 bits stored in"),
        ({"VOILUTSequence": [table([9, 0, 8], [1, 2, 3])]}, "table of 3 entries"),
        ({"VOILUTSequence": [table([3, 0, 40], [1, 2, 3])]}, "table of 40 bits"),
        ({"WindowCenter": ["1"] * 9000, "WindowWidth": 4}, "WindowCenter of 18000 bytes"),
    ],
)
def test_an_error_names_file_and_reason(tmp_path, fields, reason):
    path = write_dicom(tmp_path / "odd.dcm", np.zeros((8, 8), np.uint8), **fields)
    with pytest.raises(DicomError, match=rf"odd\.dcm: .*{reason}"):
        read_dicom(path)


def test_colours_are_no_grey_levels(tmp_path):
    path = write_dicom(tmp_path / "odd.dcm", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DicomError, match=r"odd\.dcm: RGB pixels.*read_dicom_rgb"):
        read_dicom(path)


def test_a_frame_that_is_not_there_is_an_error(tmp_path):
    path = write_dicom(tmp_path / "odd.dcm", np.zeros((3, 8, 8), np.uint8))
    for frame in (3, -1):
        with pytest.raises(DicomError, match=rf"odd\.dcm: frame {frame} of 3"):
            read_dicom(path, frame=frame)


def test_a_coding_that_nobody_reads_is_named(tmp_path):
    path = write_dicom(
        tmp_path / "odd.dcm",
        np.zeros((8, 8), np.uint8),
        syntax=uid.MPEG2MPML,
        PixelData=encapsulate([b"00"]),
    )
    with pytest.raises(DicomError, match=r"odd\.dcm: pixels \(MPEG2 .*not read; convert"):
        read_dicom(path)


def test_the_licence_of_a_missing_decoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("data.dicom_decode._LIBJPEG", False)
    path = write_dicom(tmp_path / "a.dcm", np.zeros((8, 8), np.uint8), syntax=uid.JPEGLosslessSV1)
    with pytest.raises(DicomError, match=r"pylibjpeg-libjpeg \(GPL-3\.0\): pip install"):
        read_dicom(path)


@pytest.mark.parametrize(
    ("syntax", "fields", "reason"),
    [
        (uid.ExplicitVRLittleEndian, {"Rows": 65535, "Columns": 65535}, "64 bytes of pixel data"),
        (uid.ExplicitVRLittleEndian, {"NumberOfFrames": 2**31 - 1}, "64 bytes of pixel data"),
        (uid.ExplicitVRLittleEndian, {"BitsAllocated": 65528}, "65528 bits allocated"),
        (uid.JPEG2000Lossless, {"Rows": 65535, "Columns": 65535}, "more than the 67108864"),
        (uid.RLELossless, {"Rows": 65535, "Columns": 65535}, "more than the 67108864"),
        (uid.JPEGLSLossless, {"Rows": 8000, "Columns": 8000}, "codestream holds 8 x 8 x 1"),
        (uid.JPEGBaseline8Bit, {"Rows": 8000, "Columns": 8000}, "codestream holds 8 x 8 x 1"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_reserved(tmp_path, syntax, fields, reason):
    path = write_dicom(tmp_path / "odd.dcm", np.zeros((8, 8), np.uint8), syntax=syntax, **fields)
    tracemalloc.start()
    with pytest.raises(DicomError, match=rf"odd\.dcm: .*{reason}"):
        read_dicom(path, frame=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_a_length_beyond_the_file_reserves_nothing(tmp_path):
    path = write_dicom(tmp_path / "odd.dcm", np.zeros((8, 8), np.uint8))
    head, tail = path.read_bytes().split(b"\xe0\x7f\x10\0OB\0\0")
    path.write_bytes(head + b"\xe0\x7f\x10\0OB\0\0" + b"\xf0\xff\xff\xff" + tail[4:])
    tracemalloc.start()
    np.testing.assert_array_equal(read_dicom(path), np.zeros((8, 8)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_a_deflated_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data.dicom_header.MAX_INFLATED", 2**24)
    pixels = np.zeros((64, 512, 1024), np.uint8)
    path = write_dicom(tmp_path / "odd.dcm", pixels, syntax=uid.DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    with pytest.raises(DicomError, match=r"odd\.dcm: inflates to more than 16777216 bytes"):
        read_dicom(path, frame=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_a_missing_file_is_the_callers_mistake(tmp_path):
    for read in (read_dicom, read_dicom_rgb, dicom_size):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none.dcm")
