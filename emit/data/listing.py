"""What the names in a folder say: which files belong together, whose they are, what the label values mean."""

import json
import os
import re
import unicodedata
from functools import partial
from pathlib import Path

from emit.data import images
from emit.errors import InputError

SOFT_TISSUE = (-160.0, 240.0)  # HU; [choice] the usual abdominal window, for CT when none is given


def compose(name):
    """Write accents in one way (NFC), so that an id is the same on every file system."""
    return unicodedata.normalize("NFC", name)


def list_files(folder, suffixes):
    """Return {name without suffix: path} in order; hidden files, such as macOS's ._ twins, and others are skipped."""
    try:
        entries = sorted((entry.name, entry.path) for entry in os.scandir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); check the path") from error
    found = {}
    for name, path in entries:
        suffix = next(filter(name.lower().endswith, suffixes), None)
        if suffix is None or name.startswith("."):
            continue
        stem = name[: -len(suffix)]
        if stem in found:
            raise InputError(f"{path}: {found[stem]} has the same name; keep one of the two")
        found[stem] = path
    return found


list_pictures = partial(list_files, suffixes=images.SUFFIXES)
list_volumes = partial(list_files, suffixes=(".nii.gz", ".nii"))


def check_pairs(pictures, masks):
    """Raise InputError unless every picture has its masks and every mask its picture: {stem: path}, {stem: paths}."""
    for stem, path in pictures.items():
        if stem not in masks:
            raise InputError(f"{path}: has no mask; add one (empty where nothing is to be marked) or move the image")
    for stem, (mask, *_) in masks.items():
        if stem not in pictures:
            raise InputError(f"{mask}: has no image {stem}; add the image or remove the mask")


def check_sizes(pictures, masks):
    """Raise InputError unless flat masks are as large as their pictures, from the headers."""
    for path, mask in ((path, mask) for stem, path in pictures.items() for mask in masks[stem]):
        size, expected = images.read_size(mask), images.read_size(path)
        if size != expected:
            raise InputError(f"{mask}: is {size[0]} x {size[1]}, its image {expected[0]} x {expected[1]} (rows x "
                             "columns); redraw it on the image's grid")  # fmt: skip


def find_group(stem, pattern, otherwise):
    """Return what the pattern finds in a name: its first group, or the whole match; `otherwise` without a pattern."""
    if pattern is None:
        return otherwise
    try:
        match = re.search(pattern, stem)
    except re.error as error:
        raise InputError(f"{pattern}: is not a regular expression ({error}); correct it") from error
    if not match:
        raise InputError(f"{stem}: the group pattern {pattern} is not in this file name; correct either")
    return compose(match[1] if match.re.groups else match[0])


def name_values(root, values):
    """Name the values found in masks: 1 alone is "foreground", numbers "class 2", colours by their name."""
    numbers = sorted(value for value in values if isinstance(value, int))
    colours = [name for name in images.COLOURS if name in values]
    if numbers and colours:
        raise InputError(f"{root}: some masks are coloured ({colours[0]}), some are grey; give labels")
    if not values:
        raise InputError(f"{root}: all masks are empty; give labels to name their classes")
    if numbers == [1]:
        return {1: "foreground"}
    return {number: f"class {number}" for number in numbers} | {name: name for name in colours}


def number_labels(root, labels, colours=True):
    """Return class names, background first, and {value: class number}; a value is an int, a colour name or RGB."""
    values = {int(value) if str(value).isdigit() else value: name for value, name in labels.items()}
    for value in values:
        if not (isinstance(value, int) or (colours and (value in images.COLOURS or isinstance(value, tuple)))):
            allowed = f"nor one of {', '.join(images.COLOURS)}" if colours else "as a volume's labels are"
            raise InputError(f"{root}: label {value!r} is no number {allowed}; correct labels")
    classes = tuple(dict.fromkeys(["background", *values.values()]))
    if len(classes) < 2 or len(classes) > 256:
        raise InputError(f"{root}: labels name {len(classes)} classes; name between 2 and 256, background included")
    return classes, {value: classes.index(name) for value, name in values.items()}


def read_description(path):
    """Return name, channels (list) and labels {value: name} of a dataset.json, in MSD's or nnU-Net's manner."""
    try:
        about = json.loads(Path(path).read_text(encoding="utf-8"))
        channels = about["channel_names"] if "channel_names" in about else about["modality"]
        labels = about["labels"]
        channels = [channels[key] for key in sorted(channels, key=int)]
        if all(str(key).isdigit() for key in labels):
            labels = {int(value): name for value, name in labels.items()}
        else:
            labels = {int(value): name for name, value in labels.items()}
        return {"name": about.get("name") or Path(path).parent.name, "channels": channels, "labels": labels}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); nnU-Net and MSD folders have one") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: is no nnU-Net dataset.json with plain labels ({error!r}); correct it") from error


def find_modality(channel):
    """Return "CT", "US" or "PET" where the channel is called so, else "MR" (T1, T2, ADC, FLAIR, MRI, ...)."""
    return channel.upper() if channel.upper() in ("CT", "US", "PET") else "MR"


def choose_window(modality, window):
    """Return the window as floats: the one given, soft tissue for CT, None (percentiles of the volume) for others."""
    if window is None:
        return SOFT_TISSUE if modality == "CT" else None
    low, high = (float(value) for value in window)
    if not low < high:
        raise InputError(f"window {low:g} {high:g}: is empty; give the lower value first")
    return low, high
