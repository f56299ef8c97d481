"""Masks as NIfTI files, for viewers such as ITK-SNAP and 3D Slicer."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool


def write_nifti(
    path: Path, mask: Bool[np.ndarray, "H W"], *, spacing: tuple[float, float] | None = None
) -> None:
    """Writes the mask as a volume of one slice, uint8, 0 and 1.

    Voxel `(x, y, 0)` holds pixel `mask[y, x]`. The affine turns the picture's axes, x to the right
    and y down, into NIfTI's, x and y negative: a radiological viewer shows the mask as the image
    lies on the screen. Where the image lies in the patient is not known; the origin is the first
    pixel.

    Args:
      path: Ends in `.nii` or `.nii.gz`.
      mask: Original frame.
      spacing: Millimetres from row to row and from column to column, as DICOM's `PixelSpacing`;
        default: 1, and the header leaves the unit open.

    Raises:
      ValueError: nibabel is missing, the name has another ending, or a distance is not positive.
    """
    try:
        import nibabel  # Optional, so not at the top.
    except ImportError as error:
        raise ValueError(f"{path}: NIfTI needs nibabel: pip install nibabel") from error
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: a NIfTI file ends in .nii or .nii.gz")
    rows, columns = spacing or (1.0, 1.0)
    if not (np.isfinite([rows, columns]).all() and min(rows, columns) > 0):
        raise ValueError(f"{path}: spacing {spacing} needs two positive numbers of millimetres")
    image = nibabel.Nifti1Image(
        mask.T[:, :, None].astype(np.uint8), np.diag([-columns, -rows, 1.0, 1.0])
    )
    image.header.set_xyzt_units("unknown" if spacing is None else "mm")
    nibabel.save(image, path)
