"""What the names in a folder say: which files belong together, what the label values mean."""

import csv
import os
import re
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path

from emit.data import images
from emit.errors import InputError
from emit.files import find_misfit, read_json, read_text

NAMED = {"channels": dict[str, str], "organ": str, "names": list[str]}  # of a dataset.json, all texts
FOREIGN = {".dcm": "DICOM", ".mha": "MetaImage", ".mhd": "MetaImage", ".nrrd": "NRRD", ".nhdr": "NRRD"}


def compose(name):
    """Write accents in one way (NFC), so that an id is the same on every file system. No line break, nothing but UTF-8."""
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise InputError(f"{name!r}: this name holds a line break, or no UTF-8; rename the file or folder")
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
    if not found:
        refuse_foreign(path for _, path in entries)
    return found


list_pictures = partial(list_files, suffixes=images.SUFFIXES)
list_volumes = partial(list_files, suffixes=(".nii.gz", ".nii"))


def refuse_foreign(paths):
    """Raise InputError at the first file of a type that must be converted; DICOM often has no ending, but "DICM" at byte 128."""
    for path in (path for path in paths if os.path.isfile(path) and os.access(path, os.R_OK)):
        with open(path, "rb") as file:
            kind = "DICOM" if file.read(132)[128:] == b"DICM" else FOREIGN.get(os.path.splitext(path)[1].lower())
        if kind:
            raise InputError(f"{path}: is {kind}; convert it to NIfTI with {'dcm2niix' if kind == 'DICOM' else 'SimpleITK'}")


def find_folder(root, names):
    """Return the path of the folder that has the first of these names, in any case; of a missing one where none has."""
    found = {name.lower(): name for name in sorted(os.listdir(root))}
    return os.path.join(root, next((found[name] for name in names if name in found), names[0]))


def match_masks(pictures, masks, way=None):
    """Return {picture's stem: [path]} of masks {stem: path} named in this way; None finds it, and keeps masks named otherwise."""
    if way is not None and way.count("{}") != 1:
        raise InputError(f'--mask-name: is {way}; write {{}} once for the name of the image, as "{{}}_tumor"')
    form = re.escape(compose(way or find_way(pictures, masks))).replace(r"\{\}", "(.+)")
    matches = {path: re.fullmatch(form, stem) for stem, path in masks.items()}
    return {match[1] if match else path: [path] for path, match in matches.items() if match or way is None}


def find_way(pictures, masks):
    """Return how masks are named: as their pictures, "{}", or with the one prefix or suffix that serves most pictures."""
    ways = Counter({"{}": len(pictures.keys() & masks.keys())})
    if ways["{}"] == len(pictures) or not masks:
        return "{}"
    for head, tail in ((stem[:cut], stem[cut:]) for stem in masks for cut in range(1, len(stem))):
        if (head in pictures or tail in pictures) and not (head[-1].isdigit() and tail[0].isdigit()):  # 12 is not made of 1
            ways.update(["{}" + tail] * (head in pictures) + [head + "{}"] * (tail in pictures))
    complete = [way for way, count in ways.items() if count == len(pictures)]
    if len(complete) > 1 or not any(ways.values()):
        ways = f"{len(complete)} ways to name masks serve all images ({', '.join(complete) or 'as {}_tumor would'})"
        raise InputError(f"{os.path.dirname(min(masks.values()))}: {ways}; give one as --mask-name")
    return max(ways, key=ways.get)


def check_pairs(pictures, masks, flat=True):
    """Raise InputError unless every picture {stem: path} has masks {stem: [path]}, and every mask a picture, flat: of its shape."""
    todo = "add one (empty where nothing is to be marked) or move the image"
    faults = [(path, "has no mask", todo) for stem, path in pictures.items() if stem not in masks]
    for stem, paths in masks.items():
        if stem not in pictures:
            faults += [(path, "has no image", "add the image or remove the mask") for path in paths]
        elif flat:
            shape, *others = (images.open_picture(path, pixels=False).size[::-1] for path in (pictures[stem], *paths))
            unlike = [(path, other) for path, other in zip(paths, others, strict=True) if other != shape]
            faults += [(path, f"is {own} (rows, columns), its image {shape}", "redraw it on this grid") for path, own in unlike]
    refuse(faults)


def refuse(faults):
    """Raise InputError if there are faults, (path, what is wrong, what to do): all are counted, ten are spelled out."""
    if len(faults) == 1:
        raise InputError("{}: {}; {}".format(*faults[0]))
    if faults:
        root = os.path.commonpath([path for path, *_ in faults])
        told = ", ".join([f"{os.path.relpath(path, root)} {what}" for path, what, _ in faults[:10]] + ["..."] * (len(faults) > 10))
        raise InputError(f"{root}: {len(faults)} files are bad: {told}; {', '.join(dict.fromkeys(todo for *_, todo in faults))}")


def read_prompts(path, pictures):
    """Return {stem: prompt} from a CSV with the columns name (with ending or not) and prompt; "" for all without this file."""
    if not os.path.lexists(path):
        return dict.fromkeys(pictures, "")
    try:
        head, *rows = filter(None, csv.reader(read_text(path, "give a table of name,prompt").splitlines()))
        texts = {compose(name.strip()): prompt.strip() for name, prompt in rows}
        if head != ["name", "prompt"] or len(texts) < len(rows):
            raise ValueError("other columns, or a name twice")
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: is no table of name,prompt ({error}); correct it, commas in a prompt need quotes") from error
    prompts = {stem: texts.get(stem, texts.get(compose(os.path.basename(name)))) for stem, name in pictures.items()}
    refuse([(pictures[stem], "has no prompt", f"add it to {path}") for stem in prompts if prompts[stem] is None])
    return prompts


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
    about = read_json(path, {"labels": dict[str, str | int | list]}, "give the dataset.json of nnU-Net and MSD folders")
    channels, labels, organ = about.get("channel_names", about.get("modality")), about["labels"], about.get("name") or ""
    try:
        for name in (name for name, values in labels.items() if isinstance(values, list)):
            raise InputError(f"{path}: label {name} is a region of several values; name each, and join them with --labels")
        if not all(str(key).isdigit() for key in labels):
            labels = {value: name for name, value in labels.items()}
        labels = {int(value): name for value, name in labels.items()}
        if fault := find_misfit({"channels": channels, "organ": organ, "names": [*labels.values()]}, NAMED):
            raise ValueError(fault)
        return organ or Path(path).parent.name, [channels[key] for key in sorted(channels, key=int)], labels
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: is no nnU-Net dataset.json with plain labels ({error!r}); correct it") from error
