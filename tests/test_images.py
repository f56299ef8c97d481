import errno
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.annotated import read_image_header
from data.composed import Composed, read_numbers
from data.cxr_seg import Part, draw_parts
from data.folder import marked_file
from data.images import ImageError, opened_picture, read_image
from data.measures import stored_form

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_eight_bits_equals_pillows_rgb(tmp_path, mode):
    picture = Image.fromarray(PIXELS).convert("P" if mode == "PA" else mode).convert(mode)
    kind = "tiff" if mode in ("PA", "CMYK", "YCbCr") else "png"
    path = saved(tmp_path / f"x.{kind}", picture)
    with Image.open(path) as again:
        assert again.mode == mode
        np.testing.assert_array_equal(read_image(path), again.convert("RGB"))


def test_a_palette_with_transparent_colours_keeps_their_colours(tmp_path):
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for x, colour in enumerate([2, 0, 1]):
        picture.putpixel((x, 0), colour)
    path = saved(tmp_path / "x.png", picture, transparency=bytes([0, 128, 255]))
    assert read_image(path).tolist() == [[[70, 80, 90], [10, 20, 30], [40, 50, 60]]]


def test_grey_of_sixteen_bits_spans_the_full_range(tmp_path):
    path = saved(tmp_path / "x.png", Image.fromarray(np.array([[0, 257, 4095, 65535]], np.uint16)))
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 16, 255]


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: np.swapaxes(x, 0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.swapaxes(x[::-1, ::-1], 0, 1)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_exif_orientation_is_undone(tmp_path, kind, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"x.{kind}", Image.fromarray(PIXELS), exif=exif)
    with Image.open(path) as stored:
        want = upright(np.asarray(stored))
    np.testing.assert_array_equal(read_image(path), want)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_truncated_file_is_one_sentence_that_names_it(tmp_path, kind):
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path / f"x.{kind}", Image.fromarray(noise))
    whole = path.read_bytes()
    for part in (0, 1, 10, len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:part])
        with pytest.raises(ImageError, match=f"x.{kind}: not a readable picture: ") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
        assert "BytesIO" not in str(caught.value)


def test_what_is_no_picture_is_refused(tmp_path):
    text = tmp_path / "x.png"
    text.write_text("not a picture at all")
    with pytest.raises(ImageError, match=r"x\.png: not a readable picture: cannot identify"):
        read_image(text)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    stack = saved(tmp_path / "x.tiff", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"x\.tiff: 2 frames"):
        read_image(stack)
    integers = saved(tmp_path / "i.tiff", Image.fromarray(np.array([[0, 70000]], np.int32)))
    with pytest.raises(ImageError, match=r"i\.tiff: an image of int32 numbers"):
        read_image(integers)
    floats = saved(tmp_path / "f.tiff", Image.fromarray(np.array([[0, 2]], np.float32)))
    with pytest.raises(ImageError, match=r"f\.tiff: a float image in \[0, 2\]"):
        read_image(floats)


def vast() -> bytes:
    """A PNG of a few bytes that says it has 20000 x 20000 pixels."""
    header = struct.pack(">2I5B", 20000, 20000, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


READERS = {
    "header": read_image_header,
    "pixels": read_image,
    "numbers": read_numbers,
    "mask": marked_file,
    "part": lambda path: draw_parts((4, 6), [Part("Left Lung", path, 0, 0)]),
    "form": stored_form,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_picture_too_large_to_decode_is_one_line_for_every_reader(tmp_path, reader):
    (tmp_path / "x.png").write_bytes(vast())
    with pytest.raises(ImageError, match=r"^\S*x\.png: not a readable .*400000000 pixels.*remove"):
        READERS[reader](tmp_path / "x.png")


@pytest.mark.parametrize("reader", ["header", "pixels"])
def test_damaged_exif_is_one_line_that_names_the_file(tmp_path, reader):
    path = saved(tmp_path / "x.png", Image.fromarray(PIXELS), exif=b"Exif\0\0II*\0")
    with pytest.raises(ImageError, match=r"^\S*x\.png: not a readable picture: unpack requires"):
        READERS[reader](path)


def test_an_error_of_the_disk_is_none_of_the_picture():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    class Lost(Composed):
        def open(self, mode="rb"):
            return Failing()

    lost = Lost("far/x.png", "x.png", np.zeros, ())
    with pytest.raises(OSError, match=r"Input/output error: 'far/x\.png'"), opened_picture(lost):
        pass


def test_real_photographs_and_x_rays_equal_pillows(real_data):
    photographs = sorted((real_data / "sam_images").glob("*.jpg"))
    x_rays = sorted((real_data / "cxr_seg" / "images").iterdir())[:3]
    assert photographs
    assert x_rays
    for path in photographs + x_rays:
        with Image.open(path) as picture:
            np.testing.assert_array_equal(read_image(path), picture.convert("RGB"))
