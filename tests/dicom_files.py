"""Small DICOM files and RSNA folders for the tests of `data`."""

import io
from pathlib import Path

import jpeg_ls
import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

HEADER = "patientId,x,y,width,height,Target\n"


def write_dicom(
    path: Path,
    pixels: np.ndarray | None,
    *,
    jpeg: bool = False,
    syntax: uid.UID = uid.ExplicitVRLittleEndian,
    **fields,
) -> Path:
    """The path, holding `pixels` under a minimal header with `fields` on top.

    Pixels are `H W`, frames `F H W` or colours `H W 3`, of 8 to 64 bits, in any coding of `_CODERS`
    or none.
    """
    syntax = uid.JPEGBaseline8Bit if jpeg else syntax
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    if pixels is not None:
        _describe(data, pixels)
        if syntax in _CODERS:
            frames = pixels if "NumberOfFrames" in data else [pixels]
            data.PixelData = encapsulate([_CODERS[syntax](frame) for frame in frames])
        else:
            order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
            data.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
            data.PixelData += b"\0" * (len(data.PixelData) % 2)
        data["PixelData"].VR = "OB" if syntax in _CODERS or pixels.itemsize == 1 else "OW"
    for name, value in fields.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def without_meta(path: Path) -> Path:
    """The path, its preamble and file meta information cut off."""
    content = path.read_bytes()
    # (0002,0000) counts the bytes of the group from behind itself.
    path.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    return path


def write_set(folder: Path, labels: str, *, shape: tuple[int, int] = (40, 60)) -> Path:
    """The folder, with a grey image for every id in the rows of `labels` (without the header)."""
    (folder / "stage_2_train_images").mkdir(parents=True, exist_ok=True)
    (folder / "stage_2_train_labels.csv").write_text(HEADER + labels)
    for name in {line.split(",")[0] for line in labels.splitlines()}:
        pixels = np.random.default_rng(len(name)).integers(0, 256, shape, np.uint8)
        write_dicom(folder / "stage_2_train_images" / f"{name}.dcm", pixels)
    return folder


def table(descriptor: list[int], entries: list[int]) -> pydicom.Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = descriptor, entries
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    return item


def palette(red: bytes, green: bytes, blue: bytes, descriptor: list[int], *, prefix="") -> dict:
    """The fields of a PALETTE COLOR image, for `write_dicom`."""
    fields = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, entries in (("Red", red), ("Green", green), ("Blue", blue)):
        fields[f"{name}PaletteColorLookupTableDescriptor"] = descriptor
        fields[f"{prefix}{name}PaletteColorLookupTableData"] = entries
    return fields


def jpeg_lossless(pixels: np.ndarray) -> bytes:
    """Grey levels as JPEG process 14, selection value 1 (ISO 10918-1, annex H)."""
    bits = 8 * pixels.dtype.itemsize
    levels = pixels.astype(np.int64)
    left = np.roll(levels, 1, axis=1)
    left[1:, 0] = levels[:-1, 0]
    left[0, 0] = 2 ** (bits - 1)
    # Differences count modulo 2**16. Seventeen categories, all with codes of five bits.
    steps = ((levels - left + 2**15) % 2**16 - 2**15).ravel().tolist()
    code = "".join(_difference(step) for step in steps)
    code += "1" * (-len(code) % 8)
    scan = int(code, 2).to_bytes(len(code) // 8).replace(b"\xff", b"\xff\0")
    height, width = (side.to_bytes(2) for side in pixels.shape)
    lengths = bytes([0, 0, 0, 0, 17] + [0] * 11)
    return (
        b"\xff\xd8\xff\xc3\0\x0b" + bytes([bits]) + height + width + b"\1\1\x11\0"
        b"\xff\xc4\0\x24\0"
        + lengths
        + bytes(range(17))
        + b"\xff\xda\0\x08\1\1\0\1\0\0"
        + scan
        + b"\xff\xd9"
    )


def _difference(step: int) -> str:
    category = abs(step).bit_length()
    low = step if step > 0 else step + 2**category - 1
    return f"{category:05b}" + (f"{low:0{category}b}" if 0 < category < 16 else "")


def _describe(data: pydicom.Dataset, pixels: np.ndarray) -> None:
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.ndim == 3 and not colour:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")


def _pillow(pixels: np.ndarray, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, **options)
    return buffer.getvalue()


def _run_lengths(pixels: np.ndarray) -> bytes:
    bits = 8 * pixels.dtype.itemsize
    colour = pixels.ndim == 3
    return get_encoder(uid.RLELossless).encode(
        pixels,
        encoding_plugin="pydicom",
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        number_of_frames=1,
        samples_per_pixel=3 if colour else 1,
        photometric_interpretation="RGB" if colour else "MONOCHROME2",
        planar_configuration=0,
        bits_allocated=bits,
        bits_stored=bits,
        pixel_representation=int(pixels.dtype.kind == "i"),
    )


_CODERS = {
    uid.JPEGBaseline8Bit: lambda pixels: _pillow(pixels, "JPEG", quality=90),
    uid.JPEGLosslessSV1: jpeg_lossless,
    uid.JPEGLSLossless: lambda pixels: bytes(jpeg_ls.encode_array(pixels)),
    uid.JPEG2000Lossless: lambda pixels: _pillow(pixels, "JPEG2000", no_jp2=True),
    uid.RLELossless: _run_lengths,
}
