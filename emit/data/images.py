"""Flat pictures: any PNG, JPEG, TIFF or BMP becomes a normalised image or a mask of class numbers."""

import numpy as np
from PIL import Image

from emit.errors import InputError
from emit.files import check_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
COLOURS = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255),
    "yellow": (255, 255, 0), "cyan": (0, 255, 255), "magenta": (255, 0, 255),
}  # fmt: skip
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG
PERCENTILES = (0.5, 99.5)  # [authors' code]
MOST_SIDE = 8192  # [choice] pixels of a picture's longer side: its square fits in memory a few times
MOST_CLASSES = 64  # a grey mask with larger values than this is not a map of class numbers


def read_pair(path, masks=(), values=None):
    """Read (image, mask): a grey picture, `normalise`d, and the union of its masks as of `read_mask`, None without any."""
    pixels = decode(path)
    image = normalise(pixels @ LUMA if pixels.ndim == 3 else pixels)
    labels = [read_mask(name, values) for name in masks]
    return image, np.maximum.reduce(labels) if labels else None


def normalise(image, window=None):
    """Map [low, high] onto [-1, 1], clipped, as float32. window: (low, high), or None for `find_window(image)`."""
    low, high = window or find_window(image)
    if high <= low:
        return np.full(image.shape, -1, np.float32)
    scaled = (image.astype(np.float32) - low) * (2 / (high - low)) - 1
    return np.clip(scaled, -1, 1, out=scaled)


def find_window(image):
    """Return the 0.5 and 99.5 percentiles; the extremes where these are one value (a nearly blank picture)."""
    low, high = np.percentile(image, PERCENTILES)
    return (float(low), float(high)) if high > low else (float(image.min()), float(image.max()))


def read_mask(path, values):
    """Read a mask as uint8 (H, W) of class numbers. values: {grey level, palette index, or colour (name or RGB): class number}.

    0 is background; 255 (65535 in 16 bits) alone stands for 1; a grey JPEG is thresholded at 127. A pixel of a colour
    mask has the class of its dominant hue where it holds at least half of that colour's light, so anti-aliased borders
    stay where they are and no third class appears between two. Any other value is an InputError.
    """
    pixels = decode(path, indices=True)
    if is_coloured(pixels):
        return _match_colours(path, pixels, values)
    return number_classes(path, to_levels(path, pixels, values), values)


def number_classes(path, levels, values):
    """Turn the levels of a mask into class numbers, uint8. values: {level: class number}; 0 is background, others are refused."""
    small = levels.min() >= 0 and levels.max() < 2**16  # counting is faster than sorting
    found, known = np.flatnonzero(np.bincount(levels.ravel())) if small else np.unique(levels), {0: 0} | values
    strange = [value for value in found.tolist() if value not in known]
    if strange:
        raise InputError(f"{path}: mask value {strange[0]} is not a class; redraw it, or name it in labels")
    return np.array([known[value] for value in found.tolist()], np.uint8)[np.searchsorted(found, levels)]


def find_values(path):
    """Return the set of values in a mask, background left out: grey levels as int, or the names of pure colours."""
    pixels = decode(path, indices=True)
    if is_coloured(pixels):
        near = {name: np.abs(pixels.astype(np.int16) - np.array(rgb, np.int16)).max(-1) <= 32 for name, rgb in COLOURS.items()}
        return {name for name, hit in near.items() if hit.any()}
    values = set(np.unique(to_levels(path, pixels, {})).tolist()) - {0}
    if any(not 0 < value < MOST_CLASSES for value in values):
        raise InputError(f"{path}: mask values {min(values)} to {max(values)} are no class numbers; threshold it, or give labels")
    return values


def to_levels(path, pixels, values):
    """Undo the two ways to write a binary mask that are not 0 and 1: JPEG, and white for 1."""
    if pixels.ndim == 3:
        pixels = pixels.max(axis=2)
    if str(path).lower().endswith((".jpg", ".jpeg")):
        return (pixels > 127).astype(np.int64)
    if pixels.dtype.kind == "f" and not np.array_equal(pixels, np.rint(pixels)):
        raise InputError(f"{path}: the mask holds fractions; save class numbers")
    white = 65535 if pixels.max() > 255 else 255
    levels = pixels.astype(np.int64)
    return levels // white if white not in values and ((levels == 0) | (levels == white)).all() else levels


def is_coloured(pixels):
    """Tell whether pixels (H, W[, 3]) show a saturated colour; a JPEG's chroma noise is below 96 of 255."""
    return pixels.ndim == 3 and int(_spread(pixels).max()) > 96


def _spread(pixels):
    """Return the largest minus the smallest of three colours (H, W), by planes: numpy reduces a last axis of 3 slowly."""
    return np.ptp(np.moveaxis(pixels[..., :3], 2, 0).copy(), axis=0)


def _match_colours(path, pixels, values):
    classes = {COLOURS.get(value, value): number for value, number in values.items() if not isinstance(value, int)}
    if not classes:
        raise InputError(f"{path}: the mask is coloured, the classes are numbers; name its colours in labels")
    colours, numbers = np.array([*classes], np.float32), np.array([*classes.values()], np.uint8)
    light = pixels.astype(np.float32)
    along = light @ (colours / np.linalg.norm(colours, axis=1, keepdims=True)).T  # (H, W, colours)
    hue = along.argmax(axis=2)
    filled = light.sum(axis=2) >= 0.5 * colours.sum(axis=1)[hue]
    aside = np.sqrt(np.maximum((light**2).sum(axis=2) - along.max(axis=2) ** 2, 0))
    strays = filled & (aside > 64)  # far from every colour that is a class: borders at most
    if strays.sum() > 0.1 * filled.sum():
        strange = tuple(int(v) for v in pixels[strays][0])
        raise InputError(f"{path}: mask colour {strange} is not a class; redraw it, or name it in labels")
    return np.where(filled, numbers[hue], 0).astype(np.uint8)


def open_picture(path, pixels=True):
    """Return a picture's file, with its pixels or its header alone."""
    check_file(path)
    try:
        with Image.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")) as file:
            if not 0 < min(file.size) <= max(file.size) <= MOST_SIDE:
                raise ValueError(f"its sides are {file.size}, and at most {MOST_SIDE} pixels are read")
            if pixels:
                file.load()
            return file
    except Exception as error:  # what a damaged file raises is anything
        raise InputError(f"{path}: cannot be read as an image ({error}); replace the file") from error


def decode(path, indices=False):
    """Return pixels: (H, W) in the file's own depth, or (H, W, 3) uint8 when any pixel is not grey.

    An alpha channel that varies is laid over black, a constant one dropped. indices: of a coloured palette, return the
    numbers, not the colours, as masks are stored.
    """
    file = open_picture(path)
    if file.mode in ("I", "F", "L") or file.mode.startswith("I;16"):
        if not np.isfinite(pixels := np.asarray(file)).all():
            raise InputError(f"{path}: holds NaN or infinity; replace these pixels")
        return pixels
    if file.mode == "1":
        return np.asarray(file.convert("L"))
    pixels = np.asarray(file.convert("RGBA"))
    if np.ptp(pixels[..., 3]):
        pixels = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255)).astype(np.uint8)
    if not _spread(pixels).any():
        return pixels[..., 0]
    return np.asarray(file) if indices and file.mode == "P" else pixels[..., :3]
