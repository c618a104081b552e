"""Cases: labelled slices out of the folders people have. One function, `read_cases`, and five layouts.

radimagenet  [radiology_ai/]CT|MR|US/<anatomy>[/<pathology>]/*.png, no masks
busi         benign|malignant|normal/*.png, masks *_mask.png, *_mask_1.png, ...
folders      images/ and masks/ with the same names, any picture format
nnunet       imagesTr/ labelsTr/ dataset.json with NIfTI volumes: Medical Segmentation Decathlon, nnU-Net 1 and 2
volume       a folder with two NIfTI files: an image, and labels ("seg", "label" or "mask" in the name)
"""

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from emit.data import images, listing, volumes
from emit.data.prompts import describe
from emit.errors import InputError

MODALITIES = ("CT", "MR", "US")
BUSI_CLASSES = ("benign", "malignant", "normal")
BUSI_FOLDER = "Dataset_BUSI_with_GT"
PATIENT_LAST = re.compile(r"\d+_[^\W\d_]+_(\d+)")  # 10024_spleen_59 is of patient 59
SLICE_LAST = re.compile(r"(.*\d.*)_\d+")  # 100005_18 is slice 18 of 100005; img_001 has no patient


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
    read: Callable = field(default=images.read_plain, repr=False, compare=False)
    spacing: tuple | None = None
    thickness: float | None = None
    volume: str | None = None
    index: int = 0

    def load(self):
        """Read (image float32 (H, W) in [-1, 1], mask uint8 (H, W) in 0..K-1 or None) on the native grid."""
        return self.read(self.path)

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
    layout: str
    root: str


def read_cases(root, layout="auto", *, prompt=None, modality=None, window=None, channel=None, labels=None, axis=None,
               group=None):  # fmt: skip
    """List the cases under root; pictures are read when a case is loaded. None leaves an option to the layout.

    prompt: text for every case. labels: {value in the masks: class name}, equal names merge. group: regular expression
    whose first group, searched in the file name, is the patient. For volumes: modality ("CT", "MR"), window (HU low,
    high), channel, axis (0 sagittal, 1 coronal, 2 axial). Raises InputError, also for an option the layout lacks.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: is not a folder; check the path")
    layout = find_layout(root) if layout == "auto" else layout
    if layout not in LAYOUTS:
        raise InputError(f"{root}: unknown layout {layout!r}; choose from auto, {', '.join(LAYOUTS)}")
    options = {"prompt": prompt, "modality": modality, "window": window, "channel": channel, "labels": labels,
               "axis": axis, "group": group}  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    surplus = options.keys() - inspect.signature(LAYOUTS[layout]).parameters
    if surplus:
        raise InputError(f"{root}: layout {layout} has no option {min(surplus)}; leave it out")
    cases, classes = LAYOUTS[layout](root, **options)
    if not cases:
        raise InputError(f"{root}: holds no picture in the layout {layout}; check the path")
    return CaseSet(cases, classes, layout, str(root))


def find_layout(root):
    """Name the layout of a folder, from the names in it."""
    names = {entry.name for entry in os.scandir(root)}
    if {"dataset.json", "imagesTr"} & names:
        return "nnunet"
    if {"images", "masks"} <= names:
        return "folders"
    if {BUSI_FOLDER, *BUSI_CLASSES} & names:
        return "busi"
    if {"radiology_ai", *MODALITIES} & names:
        return "radimagenet"
    if listing.list_volumes(root):
        return "volume"
    raise InputError(f"{root}: no known layout (CT|MR|US/, benign|malignant|normal/, images/ and masks/, imagesTr/, "
                     "or two NIfTI files); name a folder one level up or down")  # fmt: skip


def list_radimagenet(root, prompt=None, group=None):
    """List modality/anatomy[/pathology]/picture; the prompt says the path."""
    base = root / "radiology_ai" if (root / "radiology_ai").is_dir() else root
    cases = []
    for modality in MODALITIES:
        for folder, subfolders, _ in os.walk(base / modality):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            levels = os.path.relpath(folder, base).split(os.sep)
            pictures = listing.list_pictures(folder)
            if not pictures:
                continue
            if not 2 <= len(levels) <= 3:
                raise InputError(f"{folder}: pictures lie {len(levels)} levels deep; "
                                 "the tree is modality/anatomy[/pathology]/picture")  # fmt: skip
            place, text = "/".join(levels), describe(*levels) if prompt is None else prompt
            for stem, path in pictures.items():
                name = listing.compose(f"{place}/{stem}")
                cases.append(Case(name, listing.find_group(stem, group, name), text, place, path))
    return cases, ()


def list_busi(root, prompt=None, group=None):
    """List class/picture and its masks; several masks of one picture are one label, their union."""
    base = root / BUSI_FOLDER if (root / BUSI_FOLDER).is_dir() else root
    cases = []
    for stratum in BUSI_CLASSES:
        if not (base / stratum).is_dir():
            continue
        pictures, masks = {}, {}
        for stem, path in listing.list_pictures(base / stratum).items():
            match = re.fullmatch(r"(.+)_mask(_\d+)?", stem)
            if match:
                masks.setdefault(match[1], []).append(path)
            else:
                pictures[stem] = path
        listing.check_pairs(pictures, masks)
        listing.check_sizes(pictures, masks)
        for stem, path in pictures.items():
            name = listing.compose(f"{stratum}/{stem}")
            text = describe("US", "breast", stratum) if prompt is None else prompt
            read = partial(images.read_pair, masks=tuple(masks[stem]), values={1: 1})
            cases.append(Case(name, listing.find_group(stem, group, name), text, stratum, path, read))
    return cases, ("background", "lesion")


def list_folders(root, prompt="", labels=None, group=None):
    """List images/x.* with masks/x.*; without labels, every mask is read once to find the classes."""
    pictures = listing.list_pictures(root / "images")
    masks = {stem: [path] for stem, path in listing.list_pictures(root / "masks").items()}
    listing.check_pairs(pictures, masks)
    listing.check_sizes(pictures, masks)
    if labels is None:
        labels = listing.name_values(root, set().union(*(images.find_values(path) for (path,) in masks.values())))
    classes, values = listing.number_labels(root, labels)
    cases = []
    for stem, path in pictures.items():
        name = listing.compose(stem)
        match = None if group else PATIENT_LAST.fullmatch(name) or SLICE_LAST.fullmatch(name)
        owner = match[1] if match else listing.find_group(stem, group, name)
        read = partial(images.read_pair, masks=tuple(masks[stem]), values=values)
        cases.append(Case(name, owner, prompt, "", path, read))
    return cases, classes


def list_nnunet(root, prompt=None, modality=None, window=None, channel=0, labels=None, axis=2, group=None):
    """List the slices of imagesTr/x.nii.gz (channels in the 4th axis) or x_0000.nii.gz, x_0001.nii.gz, ..."""
    about = listing.read_description(root / "dataset.json")
    declared = {value for value in about["labels"] if value}
    classes, values = listing.number_labels(root, about["labels"] if labels is None else labels, colours=False)
    surplus = sorted(values.keys() - {0} - declared)
    if surplus:
        raise InputError(f"{root / 'dataset.json'}: does not declare label {surplus[0]}; correct it or labels")
    if not 0 <= channel < len(about["channels"]):
        raise InputError(f"{root / 'dataset.json'}: names {len(about['channels'])} channels, not channel {channel}; "
                         "choose one from 0")  # fmt: skip
    modality = modality or listing.find_modality(about["channels"][channel])
    organ = re.sub(r"^(task|dataset)?\d+_", "", about["name"].lower())
    text = describe(modality, organ) if prompt is None else prompt
    pictures, masks = listing.list_volumes(root / "imagesTr"), listing.list_volumes(root / "labelsTr")
    chosen = {}  # case name: (path, channel in the file)
    for stem, path in pictures.items():
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if stem in masks or not match:
            chosen[stem] = path, channel
        elif int(match[2]) == channel:
            chosen[match[1]] = path, 0
    listing.check_pairs({stem: path for stem, (path, _) in chosen.items()}, {stem: [masks[stem]] for stem in masks})
    cut = partial(_list_slices, text=text, window=listing.choose_window(modality, window), values=values,
                  declared=frozenset(declared), axis=axis)  # fmt: skip
    cases = []
    for stem, (path, number) in chosen.items():
        name = listing.compose(stem)
        cases += cut(name, listing.find_group(stem, group, name), path, masks[stem], number)
    return cases, classes


def list_volume(root, prompt=None, modality=None, window=None, channel=0, labels=None, axis=2):
    """List the slices of the one image in a folder; labels picks its classes, every other label is background."""
    found = listing.list_volumes(root)
    masks = {stem: path for stem, path in found.items() if re.search("seg|label|mask", stem.lower())}
    pictures = {stem: path for stem, path in found.items() if stem not in masks}
    if len(masks) != 1 or len(pictures) != 1:
        raise InputError(f"{root}: has {len(pictures)} images and {len(masks)} label files (seg, label or mask in the "
                         "name); it must have one of each")  # fmt: skip
    if modality is None:
        raise InputError(f'{root}: NIfTI does not say whether this is CT or MR; give modality="CT" or "MR"')
    ((stem, path),), (mask_path,) = pictures.items(), masks.values()
    labels = labels or listing.name_values(root, volumes.find_labels(mask_path))
    classes, values = listing.number_labels(root, labels, colours=False)
    text = describe(modality, *classes[1:2]) if prompt is None else prompt
    name, window = listing.compose(stem), listing.choose_window(modality, window)
    return _list_slices(name, name, path, mask_path, channel, text, window, values, None, axis), classes


LAYOUTS = {
    "radimagenet": list_radimagenet, "busi": list_busi, "folders": list_folders, "nnunet": list_nnunet,
    "volume": list_volume,
}  # fmt: skip


def _list_slices(name, owner, path, mask_path, channel, text, window, values, declared, axis):
    if axis not in (0, 1, 2):
        raise InputError(f"{path}: has no axis {axis}; choose 0 sagittal, 1 coronal or 2 axial")
    volumes.check_same_grid(path, mask_path)
    grid = volumes.read_grid(path, channel)
    column, row = (grid.spacing[a] for a in range(3) if a != axis)
    read = partial(volumes.load_slice, mask_path=mask_path, channel=channel, window=window,
                   values=tuple(values.items()), declared=declared, axis=axis)  # fmt: skip
    return [Case(f"{name}/{index:04d}", owner, text, "", path, partial(read, index=index), (row, column),
                 grid.spacing[axis], name, index) for index in range(grid.shape[axis])]  # fmt: skip
