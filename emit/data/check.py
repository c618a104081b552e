"""Is a set sound? Every case is read once: what cannot be used is a fault, what can be but looks wrong a warning.

A warning is one line, as an InputError's: "FILE: what is strange; what to do".
"""

from collections import Counter
from itertools import groupby

import nibabel

from emit.data.images import open_picture
from emit.data.similarity import find_alike, look

STORED = {"1": "1 bit", "L": "8 bits", "I;16": "16 bits", "I": "32 bits", "P": "a palette"}  # by the mode that PIL names
MARKED = {"benign": True, "malignant": True, "normal": False}  # whether the masks of a stratum mark anything


def examine(cases, faults):
    """Read every case and return {id: Look}; of a volume with a bad slice, none."""
    looks = {}
    for name, slices in groupby(cases, key=lambda case: case.name):
        with faults.of(name):
            looks |= {case.id: look(case) for case in slices}
    return looks


def warn_of_files(cases, looks, classes, threshold):
    """Yield a warning about each file that is one grey level, marked against what it is, or like another patient's."""
    for _, (case, *others) in groupby(cases, key=lambda case: case.name):
        slices = [looks[one.id] for one in (case, *others)]
        marked = any(one.classes for one in slices)
        if not any(one.hash for one in slices):
            yield f"{case.path}: is one grey level; replace it, or leave it out"
        if classes and marked != MARKED.get(case.stratum, marked or case.volume is not None):
            words = f"is {case.stratum or 'a volume'}, and its mask marks {'something' if marked else 'nothing'}"
            yield f"{case.path}: {words}; look which is right"
    told, patients = set(), any(case.group != case.id for case in cases)
    todo = "give both one patient with --group, or keep one" if patients else "keep one, or both: they count as one patient"
    for i, j in find_alike([looks[case.id] for case in cases], threshold):
        first, other = cases[i], cases[j]
        if first.group != other.group and other.name not in told:
            told.add(other.name)
            alike = "shows the same as" if looks[first.id].hash == looks[other.id].hash else "looks like"
            yield f"{other.path}: {alike} {first.name}; {todo}"


def warn_of_differences(cases, looks):
    """Yield a warning about each property in which files differ, naming the rarest, and about masks that are not 8-bit grey."""
    files = {case.path: case for case in cases}.values()
    cubes = [case for case in files if case.volume is not None]
    masks = [path for case in cases for path in getattr(case.read, "keywords", {}).get("masks", ())]
    sizes = {case.path: looks[case.id].shape for case in files}
    voxels = {case.path: tuple(round(side, 3) for side in (*case.spacing, case.thickness)) for case in cubes}
    axes = {case.path: "".join(nibabel.aff2axcodes(nibabel.load(case.path).affine)) for case in cubes}
    modes = {path: open_picture(path, pixels=False).mode for path in masks}
    stored = {path: STORED.get(mode, mode) for path, mode in modes.items()}
    properties = (
        ("size (rows, columns)", sizes, "all become squares of --size"),
        ("voxel (row, column, slice in mm)", voxels, "networks see pixels; resample it if it is far off"),
        ("orientation", axes, "all are turned alike; look at one of each kind"),
        ("storage of masks", stored, "they are read as class numbers; save these in 8 bits if in doubt"),
    )
    for what, values, todo in properties:
        counts = Counter(values.values())
        if len(counts) > 1 or (counts and values is stored and STORED["L"] not in counts):
            rare = min(values, key=lambda path: counts[values[path]])
            kinds = ", ".join([f"{value} {number} times" for value, number in counts.most_common(3)] + ["..."] * (len(counts) > 3))
            yield f"{rare}: {what} is {values[rare]} (in this set {kinds}); {todo}"


def warn_of_folds(splits, looks, classes):
    """Yield a warning about each class that no mask shows, and each part of a fold where none does."""
    parts = {f"fold {fold}: {side}": names for fold, split in enumerate(splits) for side, names in vars(split).items() if names}
    for number, label in enumerate(classes[1:], start=1):
        bare = [part for part, names in parts.items() if not any(number in looks[name].classes for name in names)]
        if len(bare) == len(parts):
            yield f"labels: no mask shows {label}; correct the masks, or leave it out"
        else:
            yield from (f"splits: {part}: no case shows {label}; take fewer folds, or another seed" for part in bare)
