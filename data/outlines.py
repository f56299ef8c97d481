"""The objects of an image by their outlines, without its pixels where possible."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float32

from data.annotated import read_image_header
from data.records import Record, object_crops
from data.targets import TARGETS

Crop = tuple[Bool[np.ndarray, "H W"], Float32[np.ndarray, " 4"]]


def outlines(records: Iterable[Record]) -> Iterator[tuple[tuple[int, int], list[Crop]]]:
    """Of each image with an object: its height and width, and its objects as `object_crops`."""
    for record in records:
        crops = list(object_crops([record]))
        if crops:
            whole = not record.from_box or TARGETS[record.drawn].reads
            yield crops[0][0].shape if whole else read_image_header(record.image).size, crops
