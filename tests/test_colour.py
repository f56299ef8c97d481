import cv2
import numpy as np
import pytest
from PIL import Image

from pp_jax.preprocess.colour import to_fractions, to_grey, to_rgb_uint8
from pp_jax.preprocess.fusion import luma

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def test_grey_fills_three_channels():
    want = np.stack([GREY] * 3, axis=-1)
    np.testing.assert_array_equal(to_rgb_uint8(GREY), want)
    np.testing.assert_array_equal(to_rgb_uint8(GREY[..., None]), want)


def test_sixteen_bits_are_the_exact_inverse_of_257_rounded_to_the_nearest():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = to_rgb_uint8(every)[..., 0].ravel()
    # 257 is odd, so no quotient lies in the middle of two numbers.
    np.testing.assert_array_equal(got, np.round(np.arange(65536) / 257))
    np.testing.assert_array_equal(
        to_rgb_uint8(GREY.astype(np.uint16) * np.uint16(257))[..., 0], GREY
    )
    assert to_rgb_uint8(np.array([[0, 128, 129, 4095, 65535]], np.uint16))[0, :, 0].tolist() == [
        *(0, 0, 1, 16, 255)
    ]


def test_bool_is_black_and_white_and_floats_are_fractions():
    assert to_rgb_uint8(np.array([[False, True]])).tolist() == [[[0] * 3, [255] * 3]]
    for dtype in (np.float16, np.float32, np.float64):
        fractions = np.array([[0, 0.25, 0.5, 1]], dtype)
        # 63.75, and 127.5, which goes to the even 128.
        assert to_rgb_uint8(fractions)[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_eight_bits_equal_pillows_rgb_and_drop_alpha(mode):
    pixels = RNG.integers(0, 256, (5, 7, len(mode)), dtype=np.uint8)
    picture = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
    assert picture.mode == mode
    np.testing.assert_array_equal(to_rgb_uint8(np.asarray(picture)), picture.convert("RGB"))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((2, 2), -0.5), r"a float image in \[-0.5, -0.5\]: scale it to \[0, 1\]"),
        (np.array([[0.0, 200.0]], np.float32), r"a float image in \[0, 200\]"),
        (np.array([[0.0, np.inf]]), r"a float image in \[0, inf\]"),
        (np.array([[0.0, np.nan]]), "the image holds NaN"),
        (np.zeros((2, 2), np.int32), "an image of int32 numbers"),
        (np.zeros((3, 20, 30), np.uint8), r"shape \(3, 20, 30\) is none.*channels last"),
        (np.zeros((2, 3, 4, 3), np.uint8), r"shape \(2, 3, 4, 3\) is none"),
        (np.zeros((2, 3, 0), np.uint8), r"shape \(2, 3, 0\) is none"),
        (np.zeros((0, 3), np.uint8), r"shape \(0, 3\) has no pixel"),
    ],
)
def test_what_has_no_one_meaning_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        to_rgb_uint8(image)


def test_luma_equals_opencv_and_the_device():
    image = RNG.integers(0, 256, (64, 65, 3), dtype=np.uint8)
    want = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(to_grey(image), want)
    np.testing.assert_array_equal(to_grey(image), luma(image))
    np.testing.assert_array_equal(to_grey(to_rgb_uint8(GREY)), GREY)
    np.testing.assert_allclose(to_fractions(image), want.astype(float) / 255, rtol=1e-15)
