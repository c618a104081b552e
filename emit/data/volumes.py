"""NIfTI volumes: one orientation whatever the file's, one normalisation per volume, slices cut for display.

Arrays are canonical: axes point to the patient's Right, Anterior, Superior (nibabel's closest to RAS+). Slices are
shown as radiologists see them: axial anterior up, coronal superior up, both with the patient's right on the left;
sagittal superior up, facing left.
"""

import math
import os
from functools import lru_cache

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.affines import voxel_sizes

from emit.data.images import find_window, normalise, number_classes
from emit.errors import InputError
from emit.files import check_file

CACHED = 8  # volumes kept in memory in the file's own number type: about 50 MB each for CT of 512 x 512 x 90
MOST_VOXELS = 2**28  # [choice] of a channel: 512 x 512 x 1024
PACKED = 1032  # bytes that deflate packs into one at most


def _open(path, channel=0):
    """Return the file, the turn that makes it canonical, and the canonical shape (3,) and affine (4, 4) in mm."""
    check_file(path)
    try:
        file = nibabel.load(path)
        turn = nibabel.io_orientation(file.affine)
        size = math.prod(file.shape) * file.get_data_dtype().itemsize
        if size > os.path.getsize(path) * (PACKED if str(path).lower().endswith("gz") else 1):
            raise ValueError(f"too short for a shape of {file.shape}")
    except Exception as error:  # what a damaged file raises is anything
        raise InputError(f"{path}: cannot be opened as NIfTI ({error}); replace the file") from error
    if not 3 <= len(file.shape) <= 4 or not np.isfinite([*turn.flat, *file.affine.flat]).all() or min(file.shape) < 1:
        raise InputError(f"{path}: shape {file.shape} or affine is not a volume's; export it as 3D or 4D NIfTI")
    if math.prod(file.shape[:3]) > MOST_VOXELS or file.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: shape {file.shape} of {file.get_data_dtype()} is too large or no numbers; crop or convert it")
    channels = file.shape[3] if len(file.shape) == 4 else 1
    if not 0 <= channel < channels:
        raise InputError(f"{path}: has {channels} channels, not channel {channel}; choose one from 0")
    shape = tuple(file.shape[axis] for axis in np.argsort(turn[:, 0]))
    return file, turn, shape, file.affine @ orientations.inv_ornt_aff(turn, file.shape[:3])


def read_array(path, channel=0):
    """Read one channel as a canonical (R, A, S) array; integers stay integers unless the header scales them."""
    file, turn, *_ = _open(path, channel)
    try:
        array = np.asanyarray(file.dataobj[..., channel] if len(file.shape) == 4 else file.dataobj)
    except Exception as error:
        raise InputError(f"{path}: is damaged ({error}); replace the file") from error
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{path}: holds NaN or infinity; replace these voxels")
    return orientations.apply_orientation(array, turn)


def read_grid(path, channel, mask_path):
    """Return a volume's canonical shape and its spacing in mm, (R, A, S), from the header alone.

    Raises InputError without this channel, or unless the mask has the same grid, to half a voxel at every corner.
    """
    (*_, shape, affine), (*_, mask_shape, mask_affine) = _open(path, channel), _open(mask_path)
    if shape != mask_shape:
        raise InputError(f"{mask_path}: shape {mask_shape} is not its image's {shape} (axes R, A, S); resample it to {path}")
    corners = np.array([[*np.multiply(np.array(shape) - 1, corner), 1] for corner in np.ndindex(2, 2, 2)])
    shift = np.linalg.norm(corners @ (affine - mask_affine).T, axis=1).max()
    spacing = voxel_sizes(affine).tolist()
    if shift > 0.5 * min(spacing):
        raise InputError(f"{mask_path}: its affine puts it {shift:.3g} mm beside {path}; resample it, or copy the image's affine")
    return shape, spacing


@lru_cache(maxsize=CACHED)
def load_image(path, channel, window):
    """Return (canonical array, window): the given (low, high), or one pair of percentiles for the whole volume."""
    array = read_array(path, channel)
    return array, window or find_window(array)


@lru_cache(maxsize=CACHED)
def load_labels(path):
    """Return a canonical array of label values, in the smallest unsigned integer type."""
    array = read_array(path)
    if array.min() < 0 or array.max() > 65535 or not np.array_equal(array, np.rint(array)):
        raise InputError(f"{path}: labels {array.min()} to {array.max()} are not whole numbers in 0..65535; redraw it")
    return array.astype(np.min_scalar_type(int(array.max())))


def cut(array, axis, index):
    """Return slice `index` along a canonical axis (0 sagittal, 1 coronal, 2 axial), rows downwards, as displayed."""
    return np.moveaxis(array, axis, 0)[index].T[::-1, ::-1]  # a view: numpy.take would copy the whole volume first


def load_slice(path, channel, window, mask_path, values, axis, index):
    """Return image float32 (H, W) in [-1, 1] and mask uint8 (H, W) of class numbers, None without a mask_path.

    values: {label: class number}.
    """
    array, window = load_image(path, channel, window)
    image = normalise(cut(array, axis, index), window)
    return image, mask_path and number_classes(mask_path, cut(load_labels(mask_path), axis, index), values)
