"""What the names in a folder say: which files belong together, what the label values mean."""

import json
import os
import unicodedata
from functools import partial
from pathlib import Path

from emit.data import images
from emit.errors import InputError


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
        stem = compose(name[: -len(suffix)])
        if stem in found:
            raise InputError(f"{path}: {found[stem]} has the same name; keep one of the two")
        found[stem] = path
    return found


list_pictures = partial(list_files, suffixes=images.SUFFIXES)
list_volumes = partial(list_files, suffixes=(".nii.gz", ".nii"))


def check_pairs(pictures, masks):
    """Raise InputError unless every picture has a mask and every mask its picture; both {stem: path}."""
    for stem, path in pictures.items():
        if stem not in masks:
            raise InputError(f"{path}: has no mask; add one (empty where nothing is to be marked) or move the image")
    for stem, path in masks.items():
        if stem not in pictures:
            raise InputError(f"{path}: has no image {stem}; add the image or remove the mask")


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


def number_labels(root, labels, colours=()):
    """Return class names, background first, and {value: class number}; a value is an int, one of colours, or RGB with these."""
    for value in labels:
        if not (isinstance(value, int) or (colours and (value in colours or isinstance(value, tuple)))):
            raise InputError(f"{root}: label {value!r} is no {' nor '.join(['number', *colours])}; correct labels")
    classes = tuple(dict.fromkeys(["background", *labels.values()]))
    if not 2 <= len(classes) <= 256:
        raise InputError(f"{root}: labels name {len(classes)} classes; name between 2 and 256, background included")
    return classes, {value: classes.index(name) for value, name in labels.items()}


def read_description(path):
    """Return name, channels (list) and labels {value: name} of a dataset.json, in MSD's or nnU-Net's manner."""
    try:
        about = json.loads(Path(path).read_text(encoding="utf-8"))
        channels = about["channel_names"] if "channel_names" in about else about["modality"]
        labels = about["labels"]
        if not all(str(key).isdigit() for key in labels):
            labels = {value: name for name, value in labels.items()}
        labels = {int(value): name for value, name in labels.items()}
        return about.get("name") or Path(path).parent.name, [channels[key] for key in sorted(channels, key=int)], labels
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); nnU-Net and MSD folders have one") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: is no nnU-Net dataset.json with plain labels ({error!r}); correct it") from error
