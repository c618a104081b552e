"""NIfTI volumes: one orientation whatever the file's, one normalisation per volume, slices cut for display.

Arrays are canonical: axes point to the patient's Right, Anterior, Superior (nibabel's closest to RAS+). Slices are
shown as radiologists see them: axial anterior up, coronal superior up, both with the patient's right on the left;
sagittal superior up, facing left.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError

from emit.data.images import find_window, normalise
from emit.errors import InputError

CACHED = 8  # volumes kept in memory in the file's own number type: about 50 MB each for CT of 512 x 512 x 90
BROKEN = (OSError, EOFError, ValueError, zlib.error, ImageFileError)  # what reading a damaged file raises


@dataclass(frozen=True)
class Grid:
    """The canonical grid of a file: shape (3,), affine (4, 4) in mm, spacing (3,) in mm."""

    shape: tuple
    affine: np.ndarray
    spacing: tuple


def read_grid(path, channel=0):
    """Read the grid from the header alone; raise InputError if it lacks the channel."""
    return _open(path, channel)[2]


def _open(path, channel):
    try:
        file = nibabel.load(path)
        turn = nibabel.io_orientation(file.affine)
    except BROKEN as error:
        raise InputError(f"{path}: cannot be opened as NIfTI ({error}); replace the file") from error
    if not 3 <= len(file.shape) <= 4 or np.isnan(turn).any():
        raise InputError(f"{path}: shape {file.shape} or affine is not a volume's; export it as 3D or 4D NIfTI")
    channels = file.shape[3] if len(file.shape) == 4 else 1
    if not 0 <= channel < channels:
        raise InputError(f"{path}: has {channels} channels, not channel {channel}; choose one from 0")
    shape = [0, 0, 0]
    for axis in range(3):
        shape[int(turn[axis, 0])] = file.shape[axis]
    affine = file.affine @ orientations.inv_ornt_aff(turn, file.shape[:3])
    spacing = tuple(float(size) for size in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    return file, turn, Grid(tuple(shape), affine, spacing)


def read_array(path, channel=0):
    """Read one channel as a canonical (R, A, S) array; integers stay integers unless the header scales them."""
    file, turn, _ = _open(path, channel)
    try:
        array = np.asanyarray(file.dataobj[..., channel] if len(file.shape) == 4 else file.dataobj)
    except BROKEN as error:
        raise InputError(f"{path}: is damaged ({error}); replace the file") from error
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{path}: holds NaN or infinity; replace these voxels")
    return orientations.apply_orientation(array, turn)


def check_same_grid(image_path, mask_path):
    """Raise InputError unless image and mask are the same canonical grid, to half a voxel at every corner."""
    image, mask = read_grid(image_path), read_grid(mask_path)
    if image.shape != mask.shape:
        raise InputError(f"{mask_path}: shape {mask.shape} is not its image's {image.shape} (axes R, A, S); "
                         f"resample it to {image_path}")  # fmt: skip
    corners = np.array([[*np.multiply(np.array(image.shape) - 1, corner), 1] for corner in np.ndindex(2, 2, 2)])
    shift = np.linalg.norm(corners @ (image.affine - mask.affine).T, axis=1).max()
    if shift > 0.5 * min(image.spacing):
        raise InputError(f"{mask_path}: its affine puts it {shift:.3g} mm beside {image_path}; "
                         "resample it, or copy the image's affine if the voxels do agree")  # fmt: skip


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


def find_labels(path):
    """Return the set of label values of a volume, background 0 left out."""
    return set(np.unique(load_labels(path)).tolist()) - {0}


def cut(array, axis, index):
    """Return slice `index` along a canonical axis (0 sagittal, 1 coronal, 2 axial), rows downwards, as displayed."""
    return np.take(array, index, axis=axis).T[::-1, ::-1]


def load_slice(image_path, mask_path, channel, window, values, declared, axis, index):
    """Return image float32 (H, W) in [-1, 1] and mask uint8 (H, W), the class number of every label value.

    values: pairs (label, class number); other labels are background. declared: labels that may occur, or None for any.
    """
    array, window = load_image(image_path, channel, window)
    image = normalise(cut(array, axis, index), window)
    labels = cut(load_labels(mask_path), axis, index)
    mask = np.zeros(labels.shape, np.uint8)
    strange = [] if declared is None else sorted(set(np.unique(labels).tolist()) - {0, *declared})
    if strange:
        raise InputError(f"{mask_path}: label {strange[0]} is not in dataset.json; redraw it or declare it there")
    for label, number in values:
        mask[labels == label] = number
    return image, mask
