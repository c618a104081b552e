"""Cases: labelled slices out of the folders people have. One function, `read_cases`, and five layouts.

radimagenet  [radiology_ai/]CT|MR|US/<anatomy>[/<pathology>]/*.png, no masks
busi         benign|malignant|normal/*.png, masks *_mask.png, *_mask_1.png, ...
folders      images/ and masks/ with the same names, or masks with one prefix or suffix; prompts.csv (name, prompt) if wanted
nnunet       imagesTr/ labelsTr/ dataset.json with NIfTI volumes: Medical Segmentation Decathlon, nnU-Net 1 and 2
volume       a folder with two NIfTI files: an image, and labels ("seg", "label" or "mask" in the name)
"""

import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import regex

from emit.data import images, listing, volumes
from emit.data.prompts import describe
from emit.errors import Faults, InputError

MODALITIES = ("CT", "MR", "US")
BUSI_CLASSES = ("benign", "malignant", "normal")
BUSI_FOLDER = "Dataset_BUSI_with_GT"
MASK = re.compile(r"(.+)_mask(_\d+)?")  # benign (1)_mask_1 is the second mask of benign (1)
FOLDERS = ("images", "image"), ("masks", "mask", "labels", "gt")  # of pictures, of masks; in any case
PATIENT_LAST = re.compile(r"\d+_[^\W\d_]+_(\d+)")  # 10024_spleen_59 is of patient 59
SLICE_LAST = re.compile(r"(.*\d.*)_\d+")  # 100005_18 is slice 18 of 100005; img_001 has no patient
SOFT_TISSUE = (-160.0, 240.0)  # HU; [choice] the usual abdominal window, for CT when none is given


@dataclass(frozen=True, slots=True)
class Case:
    """One slice of a data set; its pixels are read when they are asked for.

    read: function of the path that returns image and mask; the default is for a flat picture without a mask.
    group: the patient, or a set of near-duplicates; never on two sides of a split. stratum: what splits balance.
    spacing: (row, column) in mm, thickness: mm from slice to slice, both None if unknown.
    volume, index: which slice of which volume, in canonical order; volume is None for a flat picture.
    """

    id: str
    group: str
    prompt: str
    stratum: str
    path: str
    read: Callable = field(default=images.read_pair, repr=False, compare=False)
    spacing: tuple | None = None
    thickness: float | None = None
    volume: str | None = None
    index: int = 0

    def load(self):
        """Read (image float32 (H, W) in [-1, 1], mask uint8 (H, W) in 0..K-1 or None) on the native grid."""
        return self.read(self.path)

    @property
    def name(self):
        """What is left out whole when it is bad: the volume, or the flat picture."""
        return self.volume or self.id

    @property
    def image(self):
        return self.load()[0]

    @property
    def mask(self):
        return self.load()[1]


@dataclass(frozen=True)
class CaseSet:
    """The cases of one root in a fixed order; classes: names, background first, empty where there are no masks."""

    cases: list
    classes: tuple


def read_cases(root, layout="auto", *, prompt=None, group=None, faults=None, **options):
    """List the cases under root; pictures are read when a case is loaded. None leaves an option to the layout.

    prompt: text for every case. group: regular expression whose first group, searched in the file name, is the patient.
    faults: takes what is wrong with single cases, which are left out then; None: it is refused.
    options: labels, {value in the masks: class name}, equal names merge; mask_name, {} in it stands for the picture's. For
    volumes: modality ("CT", "MR"), window (HU low, high), channel, axis (0 sagittal, 1 coronal, 2 axial). Raises InputError.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: is not a folder; check the path")
    layout = find_layout(root) if layout == "auto" else layout
    if layout not in LAYOUTS:
        raise InputError(f"{root}: unknown layout {layout!r}; choose from auto, {', '.join(LAYOUTS)}")
    options = {name: value for name, value in options.items() if value is not None}
    surplus = options.keys() - inspect.signature(LAYOUTS[layout]).parameters
    if surplus:
        raise InputError(f"{root}: layout {layout} has no option {min(surplus)}; leave it out")
    cases, classes, found = [], (), Faults() if faults is None else faults
    with found.of(root):
        cases, classes = LAYOUTS[layout](root, found, **options)
    bad = set(found.values())
    if faults is None or root in bad:
        found.refuse(root)
    cases = [case for case in cases if case.name not in bad]
    if not cases and not found:
        raise InputError(f"{root}: holds no picture in the layout {layout}; check the path")
    if prompt is not None:
        cases = [replace(case, prompt=prompt) for case in cases]
    elif cases and not any(case.prompt for case in cases):
        print(f"{root}: every prompt is empty; give --prompt, or prompts.csv with the columns name and prompt", file=sys.stderr)
    if group is not None:
        cases = [replace(case, group=find_group(case, group)) for case in cases]
    return CaseSet(cases, classes)


def find_layout(root):
    """Name the layout of a folder, from the names in it."""
    names = {entry.name for entry in os.scandir(root)}
    if {"dataset.json", "imagesTr"} & names:
        return "nnunet"
    if all(os.path.isdir(listing.find_folder(root, kind)) for kind in FOLDERS):
        return "folders"
    if {BUSI_FOLDER, *BUSI_CLASSES} & names:
        return "busi"
    if {"radiology_ai", *MODALITIES} & names:
        return "radimagenet"
    if listing.list_volumes(root):
        return "volume"
    for folder, _, files in os.walk(root):
        listing.refuse_foreign(os.path.join(folder, name) for name in sorted(files)[:10])
    raise InputError(f"{root}: no known layout (CT|MR|US/, benign|malignant|normal/, images/ and masks/, imagesTr/, "
                     "or two NIfTI files); name a folder one level up or down")  # fmt: skip


def find_group(case, pattern):
    """Return what the pattern finds in the name of a case's file: its first group, or the whole match."""
    stem = case.volume or case.id.split("/")[-1]
    try:
        match = regex.search(pattern, stem, timeout=1)  # seconds: some patterns try every way to cut a name
    except (regex.error, TimeoutError) as error:
        raise InputError(f"{pattern}: is not a regular expression, or takes for ever ({error}); correct it") from error
    if not match:
        raise InputError(f"{stem}: the group pattern {pattern} is not in this file name; correct either")
    return match[1] if match.re.groups else match[0]


def list_radimagenet(root, faults):
    """List modality/anatomy[/pathology]/picture; the prompt says the path."""
    base = root / "radiology_ai" if (root / "radiology_ai").is_dir() else root
    cases = []
    for folder, subfolders, _ in chain.from_iterable(os.walk(base / modality, followlinks=True) for modality in MODALITIES):
        above = {*map(os.path.realpath, (folder, *Path(folder).parents))}  # a link to one of these goes in circles
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and os.path.realpath(f"{folder}/{name}") not in above)
        place, pictures = listing.compose(os.path.relpath(folder, base)), listing.list_pictures(folder)
        levels = place.split(os.sep)
        if pictures and not 2 <= len(levels) <= 3:
            raise InputError(f"{folder}: pictures lie {len(levels)} levels deep; the tree is modality/anatomy[/pathology]/picture")
        for stem in (stem for stem in pictures if not ((mask := MASK.fullmatch(stem)) and mask[1] in pictures)):
            cases.append(Case(f"{place}/{stem}", f"{place}/{stem}", describe(*levels), place, pictures[stem]))
    return cases, ()


def list_busi(root, faults):
    """List class/picture and its masks; several masks of one picture are one label, their union."""
    base = root / BUSI_FOLDER if (root / BUSI_FOLDER).is_dir() else root
    cases, pictures, masks = [], {}, {}
    for stratum in (name for name in BUSI_CLASSES if (base / name).is_dir()):
        for stem, path in listing.list_pictures(base / stratum).items():
            match = MASK.fullmatch(stem)
            if match:
                masks.setdefault(f"{stratum}/{match[1]}", []).append(path)
            else:
                pictures[f"{stratum}/{stem}"] = path
    for name, path in listing.keep_pairs(pictures, masks, faults).items():
        stratum, read = name.split("/")[0], partial(images.read_pair, masks=masks[name], values={1: 1})
        cases.append(Case(name, name, describe("US", "breast", stratum), stratum, path, read))
    return cases, ("background", "lesion")


def list_folders(root, faults, labels=None, mask_name=None):
    """List images/x.* with masks/x.*; without labels, every mask is read once to find the classes."""
    pictures, masks = (listing.list_pictures(listing.find_folder(root, kind)) for kind in FOLDERS)
    masks = listing.match_masks(pictures, masks, mask_name)
    pictures = listing.keep_pairs(pictures, masks, faults)
    prompts = listing.read_prompts(root / "prompts.csv", pictures, faults)
    if not labels:
        found = set()
        for stem in pictures:
            with faults.of(stem):
                found = found.union(*map(images.find_values, masks[stem]))
        if not found:
            faults.refuse(root)  # the bad masks may be the only ones with a label
        labels = listing.name_values(root, found)
    classes, values = listing.number_labels(root, labels, images.COLOURS)
    cases = []
    for stem, path in pictures.items():
        match = PATIENT_LAST.fullmatch(stem) or SLICE_LAST.fullmatch(stem)
        read = partial(images.read_pair, masks=masks[stem], values=values)
        cases.append(Case(stem, match[1] if match else stem, prompts[stem], "", path, read))
    return cases, classes


def list_nnunet(root, faults, modality=None, window=None, channel=0, labels=None, axis=2):
    """List the slices of imagesTr/x.nii.gz (channels in the 4th axis) or x_0000.nii.gz, x_0001.nii.gz, ..."""
    about = root / "dataset.json"
    dataset, channels, declared = listing.read_description(about)
    classes, values = listing.number_labels(root, labels or declared)
    surplus = values.keys() - {0, *declared}
    if surplus:
        raise InputError(f"{about}: does not declare label {min(surplus)}; correct it or labels")
    if not channel < len(channels):
        raise InputError(f"{about}: names {len(channels)} channels, not channel {channel}; choose one from 0")
    if modality is None:  # T1, T2, ADC, FLAIR, MRI, ... are all MR
        modality = next((kind for kind in ("CT", "US", "PET") if kind == channels[channel].upper()), "MR")
    pictures, masks = listing.list_volumes(root / "imagesTr"), listing.list_volumes(root / "labelsTr")
    chosen = {}
    for stem, path in pictures.items():
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if stem in masks or not match:
            chosen[stem] = path
        elif int(match[2]) == channel:
            chosen[match[1]] = path
    chosen = listing.keep_pairs(chosen, {name: [path] for name, path in masks.items()}, faults, flat=False)
    files = [(name, path, channel if pictures.get(name) == path else 0, masks[name]) for name, path in chosen.items()]
    organ = re.sub(r"^(task|dataset)?\d+_", "", dataset.lower())
    return list_slices(files, faults, dict.fromkeys(declared, 0) | values, modality, organ, window, axis), classes


def list_volume(root, faults, modality=None, window=None, channel=0, labels=None, axis=2):
    """List the slices of the one image in a folder; labels picks its classes, every other label is background."""
    found = listing.list_volumes(root)
    masks = [path for stem, path in found.items() if re.search("seg|label|mask", stem.lower())]
    pictures = {stem: path for stem, path in found.items() if path not in masks}
    if len(masks) != 1 or len(pictures) != 1:
        raise InputError(f"{root}: has {len(pictures)} images and {len(masks)} label files (seg, label or mask in the "
                         "name); it must have one of each")  # fmt: skip
    if modality is None:
        raise InputError(f'{root}: NIfTI does not say whether this is CT or MR; give modality="CT" or "MR"')
    present = np.unique(volumes.load_labels(*masks)).tolist()
    classes, values = listing.number_labels(root, labels or listing.name_values(root, set(present) - {0}))
    files = [(stem, path, channel, *masks) for stem, path in pictures.items()]
    return list_slices(files, faults, dict.fromkeys(present, 0) | values, modality, classes[1], window, axis), classes


LAYOUTS = {
    "radimagenet": list_radimagenet, "busi": list_busi, "folders": list_folders, "nnunet": list_nnunet,
    "volume": list_volume,
}  # fmt: skip


def list_slices(files, faults, values, modality, organ, window, axis):
    """List the slices of every (name, path, channel, path of the mask or None)."""
    window = window or (SOFT_TISSUE if modality == "CT" else None)  # None: percentiles of the volume
    cases = []
    for name, path, channel, mask_path in files:
        with faults.of(name):
            shape, spacing = volumes.read_grid(path, channel, mask_path or path)
            column, row = (spacing[a] for a in range(3) if a != axis)
            for index in range(shape[axis]):
                read = partial(volumes.load_slice, channel=channel, window=window, mask_path=mask_path, values=values, axis=axis,
                               index=index)  # fmt: skip
                cases.append(Case(f"{name}/{index:04d}", name, describe(modality, organ), "", path, read, (row, column),
                                  spacing[axis], name, index))  # fmt: skip
    return cases
