import csv
import io
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing

from data.dicom import (
    DicomError,
    dicom_size,
    dicom_values,
    is_dicom,
    read_dicom,
    read_dicom_rgb,
)
from data.images import read_any
from tests.dicom_files import palette, table, without_meta, write_dicom

LOSSLESS = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.RLELossless,
)
COLOUR = (
    uid.ExplicitVRLittleEndian,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.RLELossless,
)


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


def test_sixteen_bits_without_a_window_span_the_pixels_but_half_a_per_cent_at_each_end(tmp_path):
    pixels = np.random.default_rng(0).normal(1000, 200, (50, 80)).astype(np.int16)
    low, high = np.percentile(pixels, [0.5, 99.5], method="inverted_cdf")
    want = np.rint(255 * np.clip((pixels - low) / (high - low), 0, 1))
    np.testing.assert_array_equal(read_dicom(write_dicom(tmp_path / "a.dcm", pixels)), want)


def test_what_is_rarer_than_the_percentiles_still_shows_on_a_flat_ground(tmp_path):
    pixels = np.full((40, 40), 7, np.uint16)
    pixels[3, 5] = 900
    grey = read_dicom(write_dicom(tmp_path / "a.dcm", pixels))
    np.testing.assert_array_equal(grey, np.where(pixels == 900, 255, 0))


def test_extremes_span_from_the_least_to_the_greatest_pixel_whatever_the_header_says(tmp_path):
    pixels = np.array([[100, 300], [500, 200]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=0, WindowWidth=10)
    np.testing.assert_array_equal(read_dicom(path, window="extremes"), [[0, 128], [255, 64]])


def test_a_percentile_window_replaces_that_of_the_header_and_stretches_eight_bits(tmp_path):
    ramp = np.arange(50, 150, dtype=np.uint8).reshape(10, 10)
    path = write_dicom(tmp_path / "a.dcm", ramp, WindowCenter=0, WindowWidth=10)
    grey = read_dicom(path, window="percentile")
    np.testing.assert_array_equal(grey, np.rint((ramp - 50.0) / 99 * 255))


def test_an_unknown_window_names_the_choices(tmp_path):
    with pytest.raises(ValueError, match="'lung': choose one of header, percentile, extremes"):
        read_dicom(tmp_path / "a.dcm", window="lung")


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


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_voi_table_replaces_the_window(tmp_path, syntax):
    fields = {"VOILUTSequence": [table([4, 0, 8], [10, 200, 30, 255])]}
    pixels = np.array([[0, 1, 2, 3, 9, 1]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, syntax=syntax, **fields)
    np.testing.assert_array_equal(read_dicom(path), [[10, 200, 30, 255, 255, 200]])


@pytest.mark.parametrize(
    ("slope", "intercept", "pixels"),
    [(1, -1024, [[0, 1, 2, 3, 9, 0]]), (-1, 3, [[1027, 1026, 1025, 1024, 0, 1030]])],
    ids=["intercept", "falling"],
)
@pytest.mark.parametrize(("kind", "first"), [("SS", -1024), ("US", 64512)])
def test_a_voi_table_begins_below_zero_where_rescaled_levels_do(
    tmp_path, kind, first, slope, intercept, pixels
):
    item = table([4, 0, 8], [10, 200, 30, 255])
    item["LUTDescriptor"].VR, item.LUTDescriptor = kind, [4, first, 8]
    fields = {"RescaleSlope": slope, "RescaleIntercept": intercept, "VOILUTSequence": [item]}
    path = write_dicom(tmp_path / "a.dcm", np.array(pixels, np.uint16), **fields)
    np.testing.assert_array_equal(read_dicom(path), [[10, 200, 30, 255, 255, 10]])


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_a_voi_table_after_a_modality_table_begins_at_its_unsigned_value(tmp_path, kind):
    modality = table([3, 0, 16], [40000, 40001, 40002])
    fields = {"RescaleIntercept": -1024, "RescaleSlope": 1, "ModalityLUTSequence": [modality]}
    fields["VOILUTSequence"] = [table([3, 40000, 8], [10, 200, 30])]
    path = write_dicom(tmp_path / "a.dcm", np.array([[0, 1, 2]], kind), **fields)
    np.testing.assert_array_equal(read_dicom(path), [[10, 200, 30]])


def test_a_modality_table_maps_levels_as_pydicom_does(tmp_path, ramp):
    entries = np.random.default_rng(0).integers(0, 2**16, 3000)
    fields = {"ModalityLUTSequence": [table([3000, 500, 16], entries.tolist())]}
    path = write_dicom(tmp_path / "a.dcm", ramp, **fields)
    values = apply_modality_lut(ramp, pydicom.dcmread(path)).astype(float)
    want = np.rint((values - values.min()) / (values.max() - values.min()) * 255)
    np.testing.assert_array_equal(read_dicom(path, window="extremes"), want)


def test_a_table_of_big_endian_words_is_read_in_their_order(tmp_path):
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [3, 0, 16], bytes.fromhex("0100 8000 ffff")
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    pixels = np.array([[0, 1], [2, 2]], np.uint16)
    fields = {"syntax": uid.ExplicitVRBigEndian, "VOILUTSequence": [item]}
    grey = read_dicom(write_dicom(tmp_path / "a.dcm", pixels, **fields))
    np.testing.assert_array_equal(grey, [[1, 128], [255, 255]])


@pytest.mark.parametrize(
    ("slope", "want"), [(2, [[0, 100, 255]]), (-1, [[255, 155, 0]])], ids=["rising", "falling"]
)
def test_rescaled_eight_bits_keep_their_range(tmp_path, slope, want):
    pixels = np.array([[0, 100, 255]], np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, RescaleSlope=slope, RescaleIntercept=-5)
    np.testing.assert_array_equal(read_dicom(path), want)


@pytest.mark.parametrize(
    ("photometric", "want"),
    [("MONOCHROME2", [[0, 0], [0, 255]]), ("MONOCHROME1", [[0, 0], [255, 0]])],
)
def test_padding_is_black_and_outside_every_range(tmp_path, photometric, want):
    pixels = np.array([[-2000, -1990], [0, 100]], np.int16)
    fields = {"PhotometricInterpretation": photometric, "PixelPaddingValue": -2000}
    fields |= {"PixelPaddingRangeLimit": -1980}
    for window in ("header", "percentile", "extremes"):
        path = write_dicom(tmp_path / "a.dcm", pixels, **fields)
        np.testing.assert_array_equal(read_dicom(path, window=window), want)


def test_a_padding_value_of_the_other_signedness_means_the_same_bits(tmp_path):
    pixels = np.array([[-2000, 50], [0, 100]], np.int16)
    path = write_dicom(tmp_path / "a.dcm", pixels)
    data = pydicom.dcmread(path)
    data.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    data.save_as(path)
    np.testing.assert_array_equal(read_dicom(path), [[0, 128], [0, 255]])


def test_an_image_of_padding_alone_is_black(tmp_path):
    pixels = np.full((4, 4), 7, np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, PixelPaddingValue=7)
    for window in ("header", "percentile", "extremes"):
        assert not read_dicom(path, window=window).any()


def test_unused_bits_hold_overlays_that_are_not_seen(tmp_path, ramp):
    fields = {"BitsStored": 12, "HighBit": 11}
    plain = read_dicom(write_dicom(tmp_path / "a.dcm", ramp, **fields))
    drawn = ramp | np.uint16(1 << 14) * (np.arange(40) % 3 == 0).astype(np.uint16)
    overlay = {"syntax": uid.RLELossless}
    for options in ({}, overlay):
        path = write_dicom(tmp_path / "b.dcm", drawn, **fields, **options)
        np.testing.assert_array_equal(read_dicom(path), plain)


def test_pixels_in_the_upper_bits_of_a_word_are_brought_down(tmp_path, ramp):
    shifted = (ramp << 4 | np.uint16(5)).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", shifted, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(dicom_values(path), ramp)


def test_signed_pixels_of_twelve_bits_keep_their_sign(tmp_path):
    pixels = np.array([[-2048, -1], [0, 2047]], np.int16)
    # The four bits above may hold anything.
    path = write_dicom(tmp_path / "a.dcm", pixels & 0xFFF, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(dicom_values(path), pixels)


def test_overlay_planes_leave_the_pixels_as_they_are(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    overlay = {"OverlayRows": 8, "OverlayColumns": 8, "OverlayData": b"\xff" * 8}
    path = write_dicom(tmp_path / "a.dcm", pixels)
    data = pydicom.dcmread(path)
    for (name, value), place in zip(overlay.items(), (0x10, 0x11, 0x3000), strict=True):
        data.add_new((0x6000, place), "OW" if name == "OverlayData" else "US", value)
    data.save_as(path)
    np.testing.assert_array_equal(read_dicom(path), pixels)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name[:24])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_lossless_coding_gives_back_the_values(tmp_path, syntax, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (23, 31), dtype, True)
    path = write_dicom(tmp_path / "a.dcm", pixels, syntax=syntax)
    np.testing.assert_array_equal(dicom_values(path), pixels)


def test_big_endian_bytes_written_as_words_are_put_in_order(tmp_path):
    pixels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    path = write_dicom(tmp_path / "a.dcm", pixels, syntax=uid.ExplicitVRBigEndian)
    data = pydicom.dcmread(path)
    data.PixelData = pixels.ravel().view(np.uint16).byteswap().tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(path)
    np.testing.assert_array_equal(read_dicom(path), pixels)


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
def test_floats_span_their_range_and_what_is_no_number_is_black(tmp_path, keyword):
    kind = np.float32 if keyword == "FloatPixelData" else np.float64
    pixels = np.array([[-1.5, 0.5], [2.5, np.nan], [np.inf, -1.5]], kind)
    path = write_dicom(tmp_path / "a.dcm", pixels)
    data = pydicom.dcmread(path)
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    setattr(data, keyword, pixels.tobytes())
    data.save_as(path)
    np.testing.assert_array_equal(read_dicom(path), [[0, 128], [255, 0], [0, 0]])


def test_numbers_of_32_bits_need_no_table_of_their_levels(tmp_path):
    pixels = np.array([[0, 2**31], [2**32 - 1, 0]], np.uint32)
    path = write_dicom(tmp_path / "a.dcm", pixels)
    np.testing.assert_array_equal(read_dicom(path), [[0, 128], [255, 0]])


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_of_several_frames_the_chosen_one_is_read(tmp_path, syntax):
    frames = np.random.default_rng(0).integers(0, 256, (4, 7, 5), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", frames, syntax=syntax)
    for index, want in enumerate(frames):
        np.testing.assert_array_equal(read_dicom(path, frame=index), want)


def test_frames_of_single_bits_are_black_and_white(tmp_path):
    frames = np.random.default_rng(0).integers(0, 2, (3, 7, 5), np.uint8)
    fields = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    content = np.packbits(frames, bitorder="little").tobytes()
    path = write_dicom(tmp_path / "a.dcm", frames, **fields, PixelData=content)
    for index, want in enumerate(frames):
        np.testing.assert_array_equal(read_dicom(path, frame=index), 255 * want)


def test_a_frame_is_shown_by_its_own_window(tmp_path):
    def group(centre):
        item, window = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = centre, 100
        item.FrameVOILUTSequence = [window]
        return item

    frames = np.tile(np.arange(0, 400, 10, dtype=np.uint16).reshape(5, 8), (2, 1, 1))
    groups = {"PerFrameFunctionalGroupsSequence": [group(100), group(300)]}
    path = write_dicom(tmp_path / "a.dcm", frames, **groups)
    for index, centre in enumerate((100, 300)):
        one = write_dicom(tmp_path / "b.dcm", frames[0], WindowCenter=centre, WindowWidth=100)
        np.testing.assert_array_equal(read_dicom(path, frame=index), read_dicom(one))


@pytest.mark.parametrize("syntax", COLOUR, ids=lambda syntax: syntax.name[:24])
def test_colours_are_read_as_rgb(tmp_path, syntax):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, syntax=syntax)
    np.testing.assert_array_equal(read_dicom_rgb(path), pixels)
    np.testing.assert_array_equal(read_any(path), pixels)


def test_colour_planes_and_ten_bits_span_the_range(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 1024, (9, 12, 3)).astype(np.uint16)
    fields = {"BitsStored": 10, "HighBit": 9, "PlanarConfiguration": 1}
    planes = pixels.transpose(2, 0, 1).tobytes()
    path = write_dicom(tmp_path / "a.dcm", pixels, **fields, PixelData=planes)
    np.testing.assert_array_equal(read_dicom_rgb(path), np.rint(pixels / 1023 * 255))


def test_a_jpeg_in_ybr_is_read_as_rgb(tmp_path):
    ramp = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    pixels = np.stack([ramp, 255 - ramp, ramp // 2], axis=-1)
    fields = {"PhotometricInterpretation": "YBR_FULL_422"}
    path = write_dicom(tmp_path / "a.dcm", pixels, jpeg=True, **fields)
    (frame,) = generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1)
    want = np.array(Image.open(io.BytesIO(frame)).convert("RGB"))
    np.testing.assert_allclose(read_dicom_rgb(path), want, atol=2)  # Two roundings to integers.


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_are_looked_up_as_pydicom_does(tmp_path, bits):
    entries = np.random.default_rng(0).integers(0, 2**bits, (3, 90)).astype(f"<u{bits // 8}")
    fields = palette(*(row.tobytes() for row in entries), descriptor=[90, 10, bits])
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12)
    path = write_dicom(tmp_path / "a.dcm", pixels, **fields)
    want = apply_color_lut(pixels, pydicom.dcmread(path)) >> (bits - 8)
    np.testing.assert_array_equal(read_dicom_rgb(path), want)


def test_segmented_palettes_are_expanded_as_pydicom_does(tmp_path):
    words = np.array([0, 3, 100, 5000, 65535, 1, 40, 20000, 0, 2, 7, 9, 1, 45, 60000], "<u2")
    fields = palette(*(3 * [words.tobytes()]), descriptor=[90, 0, 16], prefix="Segmented")
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12)
    path = write_dicom(tmp_path / "a.dcm", pixels, **fields)
    want = apply_color_lut(pixels, pydicom.dcmread(path)) >> 8
    np.testing.assert_array_equal(read_dicom_rgb(path), want)


def test_grey_levels_fill_three_channels(tmp_path, ramp):
    path = write_dicom(tmp_path / "a.dcm", ramp)
    np.testing.assert_array_equal(read_dicom_rgb(path), np.stack(3 * [read_dicom(path)], axis=-1))


@pytest.mark.parametrize(
    "syntax",
    [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian],
    ids=["implicit", "explicit"],
)
def test_a_file_without_preamble_is_read_with_one_warning(tmp_path, syntax, ramp):
    want = read_dicom(write_dicom(tmp_path / "a.dcm", ramp, syntax=syntax))
    path = without_meta(write_dicom(tmp_path / "bare", ramp, syntax=syntax))
    assert is_dicom(path)
    assert dicom_size(path) == ramp.shape
    with pytest.warns(
        UserWarning, match=rf"bare: names no transfer syntax; .*{syntax.name}"
    ) as caught:
        got = read_any(path)
    np.testing.assert_array_equal(got[..., 0], want)
    assert len(caught) == 1


def test_a_window_without_width_is_left_aside_with_a_warning(tmp_path, ramp):
    want = read_dicom(write_dicom(tmp_path / "a.dcm", ramp))
    path = write_dicom(tmp_path / "b.dcm", ramp, WindowCenter=0, WindowWidth=0)
    with pytest.warns(UserWarning, match=r"b\.dcm: has a window of width 0"):
        np.testing.assert_array_equal(read_dicom(path), want)


def test_the_size_is_read_without_the_pixels(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((12, 34), np.uint8), PixelData=b"\0\0")
    assert dicom_size(path) == (12, 34)


def test_threads_leave_the_warning_filters_as_they_were(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((8, 8, 3), np.uint8))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_dicom_rgb(path), range(200)))
    assert list(warnings.filters) == before


def test_a_truncated_jpeg_is_an_error(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = write_dicom(tmp_path / "cut.dcm", pixels, jpeg=True)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DicomError, match=r"cut\.dcm: .*cut off before the end"):
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
    for coding in ("RLE", "J2KR", "JLSL", "JPLL"):
        np.testing.assert_array_equal(read_dicom(folder / f"RG2_{coding}.dcm"), plain)


def test_every_real_file_gives_what_its_index_says(real_data):
    folder = real_data / "dicom"
    rows = list(csv.DictReader((folder / "index.csv").read_text().splitlines()))
    assert len(rows) == 39
    for row in rows:
        path = folder / row["file"]
        if row["px"].startswith("ERR"):
            with pytest.raises(DicomError, match=re.escape(str(path))):
                read_dicom_rgb(path)
            continue
        frames = int(row["fr"] or 1)
        read = [dicom_values(path, frame=index) for index in range(frames)]
        values = np.stack(read) if frames > 1 else read[0]
        kind, shape, low, high = re.match(r"(\S+?)\((.*)\) (\S+)\.\.(\S+)", row["px"]).groups()
        assert values.dtype == np.dtype(kind), path
        assert values.shape == tuple(int(side) for side in shape.split(",")), path
        # Lossy JPEG is exact to a level: decoders differ in the rounding of the cosine transform.
        slack = int(row["ts"] == "JPEG Baseline (Process 1)")
        np.testing.assert_allclose([values.min(), values.max()], [int(low), int(high)], atol=slack)
        assert read_any_frame(path, frames).shape == (int(row["rows"]), int(row["cols"]), 3), path
        assert dicom_size(path) == (int(row["rows"]), int(row["cols"])), path


def read_any_frame(path, frames):
    if frames == 1:
        return read_any(path)
    with pytest.raises(DicomError, match=f"{frames} frames; choose one"):
        read_any(path)
    return read_dicom_rgb(path, frame=frames - 1)
