"""PNG files that the project writes itself."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from data.png import to_png


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (31, 20), (5, 4, 3), (1, 1, 3)])
def test_a_png_is_decoded_by_others_to_the_same_pixels(shape):
    rng = np.random.default_rng(3)
    for pixels in (rng.integers(0, 256, shape, np.uint8), np.full(shape, 255, np.uint8)):
        content = to_png(pixels)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
        other = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(other[..., ::-1] if pixels.ndim == 3 else other, pixels)
