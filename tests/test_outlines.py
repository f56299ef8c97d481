from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.outlines import outlines
from data.records import Record, load
from data.targets import TARGETS
from tests.dicom_files import write_dicom

BOXES = ((3.0, 4.0, 30.0, 28.0), (41.5, 15.0, 66.0, 45.0))


@pytest.fixture
def record(tmp_path):
    y, x = np.indices((50, 70))
    bumps = ((np.hypot(x - 16, y - 15) < 9) | (np.hypot(x - 53, y - 30) < 11)) * 120
    image = write_dicom(tmp_path / "a.dcm", (60 + bumps + (x + y) % 7).astype(np.uint8))
    return Record("a", "p", image, BOXES, None, "box", "")


@pytest.mark.parametrize("drawn", [*TARGETS, "of a file"])
def test_an_outline_is_the_object_as_it_is_loaded_in_an_image_of_its_size(record, drawn, tmp_path):
    if drawn == "of a file":
        mask = load(record).findings
        Image.fromarray(mask).save(tmp_path / "mask.png")
        record = replace(record, mask=tmp_path / "mask.png", target="mask")
    else:
        record = replace(record, drawn=drawn)
    nothing = replace(record, boxes=(), mask=None)
    ((size, crops),) = outlines([nothing, record, nothing])
    sample = load(record)
    assert size == (50, 70)
    assert len(crops) == len(BOXES)
    for (mask, box), whole, told in zip(crops, sample.objects, sample.boxes, strict=True):
        np.testing.assert_array_equal(box, told)
        canvas = np.zeros(size, bool)
        canvas[: mask.shape[0], : mask.shape[1]] = mask
        np.testing.assert_array_equal(canvas, whole)
