"""No file, however broken, gives anything but an image or a `DicomError` that names it."""

import json
import multiprocessing
import random
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from data.dicom import DicomError, dicom_size, read_dicom_rgb
from tests.dicom_files import palette, table, without_meta, write_dicom

if sys.platform != "linux":
    pytest.skip("memory is limited and measured as Linux does", allow_module_level=True)
import resource  # noqa: E402: Windows has none.

# A decoder that reserves what a broken header asks for meets this limit.
MEMORY = 2**29
SECONDS = 10


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    """One small file of every kind that is read."""
    folder = tmp_path_factory.mktemp("sources")
    draw = np.random.default_rng(0)
    words = draw.integers(0, 4096, (24, 20)).astype(np.uint16)
    ramp = np.add.outer(np.arange(24), np.arange(20)).astype(np.uint8)
    colours = draw.integers(0, 256, (12, 10, 3), np.uint8)
    luts = {
        "ModalityLUTSequence": [table([64, 0, 16], list(range(0, 6400, 100)))],
        "VOILUTSequence": [table([32, 0, 8], list(range(32)))],
        "PixelPaddingValue": 3,
    }
    window = {"WindowCenter": [40, 80], "WindowWidth": [400, 90], "RescaleSlope": 2}
    window |= {"RescaleIntercept": -1024, "PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4}
    segments = np.array([0, 2, 7, 9, 1, 250, 60000], "<u2").tobytes()
    files = [
        ("luts", words, luts),
        ("window", words.astype(np.int16), window | {"BitsStored": 12, "HighBit": 11}),
        ("frames", draw.integers(0, 256, (3, 12, 10), np.uint8), {}),
        ("colours", colours, {}),
        ("palette", ramp, palette(*(3 * [bytes(range(64))]), descriptor=[64, 0, 8])),
        (
            "segments",
            ramp,
            palette(*(3 * [segments]), descriptor=[252, 0, 16], prefix="Segmented"),
        ),
        ("bits", np.ones((16, 8), np.uint8), {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}),
    ]
    paths = [write_dicom(folder / name, pixels, **fields) for name, pixels, fields in files]
    for syntax in CODINGS:
        for pixels in (ramp, words, colours):
            if syntax == uid.JPEGBaseline8Bit and pixels is words:
                continue
            if syntax == uid.JPEGLosslessSV1 and pixels is colours:
                continue
            paths.append(write_dicom(folder / f"{len(paths)}", pixels, syntax=syntax, **window))
    jpeg_frames = np.stack([ramp, ramp[::-1], ramp.max() - ramp])
    paths.append(write_dicom(folder / "jpegs", jpeg_frames, jpeg=True))
    paths.append(without_meta(write_dicom(folder / "bare", words)))
    return paths


def test_broken_files_give_an_image_or_an_error_that_names_them(sources, tmp_path):
    check(sources, tmp_path, seeds=range(2000))


@pytest.mark.slow
def test_twenty_thousand_broken_files_give_an_image_or_an_error(sources, tmp_path):
    check(sources, tmp_path, seeds=range(2000, 22000))


def test_broken_real_files_give_an_image_or_an_error(real_data, tmp_path):
    paths = sorted((real_data / "dicom").rglob("*.dcm"))
    check([path for path in paths if path.stat().st_size < 2**17], tmp_path, seeds=range(400))


@pytest.mark.slow
def test_broken_large_real_files_give_an_image_or_an_error(real_data, tmp_path):
    check(sorted((real_data / "dicom").rglob("*.dcm")), tmp_path, seeds=range(400, 1400))


def check(sources: list[Path], folder: Path, *, seeds: range) -> None:
    """Reads one mutant for each seed in a process of its own, which a decoder may bring down."""
    report = folder / "report.json"
    process = multiprocessing.get_context("spawn").Process(
        target=read_mutants, args=(sources, folder / "broken.dcm", report, seeds)
    )
    process.start()
    process.join(timeout=max(60, len(seeds) / 20))
    alive = process.is_alive()
    if alive:
        process.kill()
    assert not alive, f"not done in time; {report.with_suffix('.seed').read_text()} is being read"
    assert process.exitcode == 0, f"died at seed {report.with_suffix('.seed').read_text()}"
    result = json.loads(report.read_text())
    assert result["wrong"] == []
    assert result["images"] > len(seeds) / 10  # The mutants are neither all harmless
    assert result["errors"] > len(seeds) / 10  # nor all hopeless.
    assert result["slowest"] < SECONDS
    assert result["grown"] < MEMORY


def read_mutants(sources: list[Path], path: Path, report: Path, seeds: range) -> None:
    """Writes to `report` what came of them, and beside it the seed being read."""
    started = _resident()
    limit = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    contents = [source.read_bytes() for source in sources]
    result = {"images": 0, "errors": 0, "slowest": 0.0, "wrong": []}
    for seed in seeds:
        report.with_suffix(".seed").write_text(str(seed))
        path.write_bytes(mutant(contents[seed % len(contents)], random.Random(seed)))
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for outcome in (outcome_of(read_dicom_rgb, path), outcome_of(dicom_size, path)):
                result[outcome if outcome in ("images", "errors") else "wrong"] += (
                    1 if outcome in ("images", "errors") else [f"seed {seed}: {outcome}"]
                )
        if len(said) > 1 or any(not str(one.message).startswith(f"{path}: ") for one in said):
            result["wrong"].append(f"seed {seed}: {[str(one.message) for one in said]}")
        result["slowest"] = max(result["slowest"], time.perf_counter() - start)
    report.write_text(json.dumps(result | {"grown": _resident() - started}))


def outcome_of(read, path: Path) -> str:
    """`images`, `errors`, or what is neither."""
    options = {"frame": 0} if read is read_dicom_rgb else {}
    try:
        read(path, **options)
    except DicomError as error:
        named = str(error).startswith(f"{path}: ") and len(str(error)) > len(str(path)) + 5
        return "errors" if named else f"an error that says {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "images"


def mutant(content: bytes, draw: random.Random) -> bytes:
    """The file with flipped bits, cut short, with an absurd field, length or frame header."""
    kind = draw.choice(("anywhere", "header", "pixels", "codestream", "cut", "field", "field"))
    if kind == "cut":
        return content[: draw.randrange(len(content))]
    broken = bytearray(content)
    pixels = max(content.rfind(b"\xe0\x7f\x10\x00"), 0)
    if kind == "field":
        for _ in range(draw.choice((1, 1, 2, 3))):
            _absurd(broken, draw)
        return bytes(broken)
    first, last = {
        "anywhere": (0, len(broken)),
        "header": (128, max(pixels, 200)),
        "pixels": (pixels, len(broken)),
        "codestream": (pixels + 20, pixels + 130),
    }[kind]
    last = min(last, len(broken))
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(min(first, last - 1), last)
        flipped = broken[place] ^ 1 << draw.randrange(8)
        broken[place] = draw.choice((flipped, flipped, draw.randrange(256), 255, 0))
    return bytes(broken)


def _absurd(broken: bytearray, draw: random.Random) -> None:
    """Another value or another length for one of the elements that sizes depend on."""
    places = [(place, tag) for tag in FIELDS if (place := broken.find(tag)) >= 0]
    if not places:
        return
    place, tag = draw.choice(places)
    if tag == FRAMES and draw.random() < 0.8:
        digits = draw.choice((b"99999999", b"-1", b"0", b"1e9", b"2147483648", b"\xff\xff", b"3"))
        broken[place + 6 : place + 8] = len(digits).to_bytes(2, "little")
        broken[place + 8 : place + 10] = digits
        return
    offset = draw.choice((4, 6, 8, 8, 8, 8))
    value = draw.choice((b"\0\0", b"\1\0", b"\xff\xff", b"\xfe\xff", b"\0\x80", b"\x40\0"))
    broken[place + offset : place + offset + 2] = value
    if offset == 8 and draw.random() < 0.3:
        broken[place + 8 : place + 12] = draw.choice((b"\xff\xff\xff\xff", b"\xf0\xff\xff\x7f"))


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


CODINGS = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEGBaseline8Bit,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.RLELossless,
)
FRAMES = b"\x28\0\x08\0"
# Samples, frames, planes, rows, columns, bits (0100 to 0103), tables and pixels.
FIELDS = (
    *(b"\x28\0" + bytes(place) for place in ((2, 0), (6, 0), (16, 0), (17, 0))),
    *(b"\x28\0" + bytes((place, 1)) for place in range(4)),
    FRAMES,
    b"\x28\0\x20\x01",
    b"\x28\0\x00\x30",
    b"\x28\0\x02\x30",
    b"\x28\0\x06\x30",
    b"\x28\0\x10\x30",
    b"\x28\0\x50\x10",
    b"\x28\0\x01\x11",
    b"\x28\0\x21\x12",
    b"\x02\0\x10\x00",
    b"\xe0\x7f\x10\x00",
)
