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


def keep_pairs(pictures, masks, faults, flat=True):
    """Return the pictures {stem: path} that have masks {stem: [path]}, flat: of their shape; the others go to faults."""
    words = "has no image; add the image or remove the mask"
    faults.update({f"{mask}: {words}": stem for stem in masks if stem not in pictures for mask in masks[stem]})
    for stem, path in pictures.items():
        if stem not in masks:
            faults[f"{path}: has no mask; add one (empty where nothing is to be marked) or move the image"] = stem
        elif flat:
            with faults.of(stem):
                shape, *others = (images.open_picture(one, pixels=False).size[::-1] for one in (path, *masks[stem]))
                unlike = [(mask, own) for mask, own in zip(masks[stem], others, strict=True) if own != shape]
                words = f"(rows, columns), its image {shape}; redraw it on this grid"
                faults.update({f"{mask}: is {own} {words}": stem for mask, own in unlike})
    bad = set(faults.values())
    return {stem: path for stem, path in pictures.items() if stem not in bad}


def read_prompts(path, pictures, faults):
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
    for stem in (stem for stem in prompts if prompts[stem] is None):
        faults[f"{pictures[stem]}: has no prompt; add it to {path}"] = stem
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
