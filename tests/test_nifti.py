import sys

import nibabel
import numpy as np
import pytest

from data.nifti import write_nifti

MASK = np.zeros((3, 5), bool)
MASK[0, 4] = MASK[2, 1] = True


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
def test_voxel_x_y_is_pixel_y_x(tmp_path, name):
    write_nifti(tmp_path / name, MASK)
    volume = nibabel.load(tmp_path / name)
    assert volume.get_data_dtype() == np.uint8
    voxels = np.asarray(volume.dataobj)
    assert voxels.shape == (5, 3, 1)
    assert np.argwhere(voxels).tolist() == [[1, 2, 0], [4, 0, 0]]
    assert volume.header.get_xyzt_units()[0] == "unknown"


def test_a_radiological_viewer_shows_the_mask_as_the_image_lies(tmp_path):
    write_nifti(tmp_path / "mask.nii", MASK, spacing=(0.5, 0.25))
    volume = nibabel.load(tmp_path / "mask.nii")
    # To the right in the image is to the patient's left and down is to the back.
    assert nibabel.aff2axcodes(volume.affine)[:2] == ("L", "P")
    # One row down is half a millimetre, one column right a quarter.
    origin = volume.affine @ [0, 0, 0, 1]
    assert (volume.affine @ [1, 0, 0, 1] - origin).tolist() == [-0.25, 0, 0, 0]
    assert (volume.affine @ [0, 1, 0, 1] - origin).tolist() == [0, -0.5, 0, 0]
    assert volume.header.get_xyzt_units()[0] == "mm"


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"mask\.png: a NIfTI file ends in \.nii or \.nii\.gz"):
        write_nifti(tmp_path / "mask.png", MASK)
    for spacing in ((0, 1), (1, np.nan), (-1, 1)):
        with pytest.raises(ValueError, match=r"mask\.nii: spacing .* two positive numbers"):
            write_nifti(tmp_path / "mask.nii", MASK, spacing=spacing)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ValueError, match=r"mask\.nii: NIfTI needs nibabel: pip install nibabel"):
        write_nifti(tmp_path / "mask.nii", MASK)
