"""One image as it stands in a prepared set: a `tf.train.Example`, written without TensorFlow."""

import hashlib
import io
import math
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool
from PIL import Image
from tensorflow_datasets.core import example_serializer

from data.files import File
from data.png import to_png
from data.prepared import describe
from data.records import Record, load, read_mask


def encode(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(example, row)`: the fields of `FEATURES`, and the line of the index.

    The image is the PNG of what `read_any` gives, grey as one channel; masks are black and white.

    Raises:
      ValueError, OSError: Whatever `records.load` finds wrong, in the image or its annotation.
    """
    sample = load(record)
    image = sample.image
    grey = (image == image[:, :, :1]).all()
    mask, lungs = (
        b"" if file is None else _to_bilevel_png(read_mask(file, size=image.shape[:2]))
        for file in (record.mask, record.lungs)
    )
    row = describe(record)
    facts = row["facts"]
    example = row | {
        "image": to_png(image[:, :, 0] if grey else image),
        "mask": mask,
        "lungs": lungs,
        "boxes": np.array(record.boxes, np.float64).reshape(-1, 4),
        "facts": facts
        | {
            "age": math.nan if facts["age"] is None else facts["age"],
            "spacing": np.array(facts["spacing"] or (), np.float64),
            "bits": facts["bits"] or 0,
        },
        "source": {
            "name": record.image.name,
            "image_sha256": _sha256(record.image),
            "mask_sha256": _sha256(record.mask),
            "lungs_sha256": _sha256(record.lungs),
        },
    }
    said = {"size": image.shape[:2], "mask": bool(mask), "lungs": bool(lungs)}
    return example, row | said | {"source": example["source"]}


def serialize(example: dict[str, Any]) -> bytes:
    """The bytes of a `tf.train.Example`; the same in every process, as TFDS's own are not."""
    encoded = FEATURES.encode_example(example)
    serializer = example_serializer.ExampleSerializer(FEATURES.get_serialized_info())
    return serializer.get_tf_example(encoded).SerializeToString(deterministic=True)


def _to_bilevel_png(mask: Bool[np.ndarray, "H W"]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _sha256(file: File | None) -> str:
    return "" if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


_text = tfds.features.Text
FEATURES = tfds.features.FeaturesDict(
    {
        "id": _text(),
        "patient": _text(),
        # TFDS gives a grey PNG three equal channels, as `read_any` does.
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "mask": _text(doc="A PNG of 1 bit, white where marked; empty where no outline is known."),
        "lungs": _text(doc="A PNG like the mask's; empty where no expert outlined the lungs."),
        "boxes": tfds.features.Tensor(
            shape=(None, 4),
            dtype=np.float64,
            encoding="bytes",  # Else floats have 32 bits.
            doc="(x0, y0, x1, y1), edges of pixels.",
        ),
        "target": _text(doc="What is known of the true outline: mask, machine-made or box."),
        "label": _text(),
        "facts": {
            "view": _text(),
            "sex": _text(),
            "age": tfds.features.Tensor(
                shape=(), dtype=np.float64, encoding="bytes", doc="Years; NaN: unknown."
            ),
            "spacing": tfds.features.Tensor(
                shape=(None,),
                dtype=np.float64,
                encoding="bytes",
                doc="Millimetres from row to row and column to column; empty: unknown.",
            ),
            "bits": tfds.features.Scalar(np.int64, doc="Of the source; 0: unknown."),
            "inverted": tfds.features.Scalar(np.bool_, doc="The source holds white as 0."),
            "licence": _text(),
        },
        "notes": tfds.features.Sequence(_text()),
        "source": {
            "name": _text(),
            "image_sha256": _text(),
            "mask_sha256": _text(),
            "lungs_sha256": _text(),
        },
    }
)
