"""Small DICOM files and RSNA folders for the tests of `data`."""

import io
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

HEADER = "patientId,x,y,width,height,Target\n"


def write_dicom(path: Path, pixels: np.ndarray | None, *, jpeg: bool = False, **fields) -> Path:
    """The path, holding `pixels` (8 or 16 bits) under a minimal header with `fields` on top."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    if pixels is not None:
        bits = 8 * pixels.dtype.itemsize
        data.Rows, data.Columns = pixels.shape[-2:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelData = encapsulate([_jpeg(pixels)]) if jpeg else pixels.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def write_set(folder: Path, labels: str, *, shape: tuple[int, int] = (40, 60)) -> Path:
    """The folder, with a grey image for every id in the rows of `labels` (without the header)."""
    (folder / "stage_2_train_images").mkdir(parents=True, exist_ok=True)
    (folder / "stage_2_train_labels.csv").write_text(HEADER + labels)
    for name in {line.split(",")[0] for line in labels.splitlines()}:
        pixels = np.random.default_rng(len(name)).integers(0, 256, shape, np.uint8)
        write_dicom(folder / "stage_2_train_images" / f"{name}.dcm", pixels)
    return folder


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
