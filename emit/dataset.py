"""The labelled set: which cases, how they are read, how they are split. Written once, read by every later program.

    python -m emit.dataset --data MSD/Task09_Spleen --labels 1:spleen --out sets/spleen
    python train_finetune.py --data sets/spleen ...

Writes set.json and splits.json; programs copy both into their run folders. A plain folder of images as --data is the
set with every default. Stage 2 adds the size and what the ControlNet sees; the generator and stage 3 take all of it over
from --finetuned and --generated: no two programs can read a set differently.
"""

import json
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch

from emit import errors
from emit.data.cases import read_cases
from emit.data.check import examine
from emit.data.edges import HINTS
from emit.data.images import MOST_SIDE, decode
from emit.data.similarity import join_near_duplicates
from emit.data.splits import make_splits, read_splits, select, write_splits
from emit.errors import Faults, InputError
from emit.files import read_json, write_json
from emit.seeds import generator
from emit.training.settings import Limited, check_values, parse, setting, show, to_plain

DATASET, SPLITS = "set.json", "splits.json"  # dataset.json is nnU-Net's
SIDES = (None, range(1, MOST_SIDE + 1))
RUN = {"size": SIDES, "hint": (None, Literal[*HINTS]), "hed_size": SIDES, "real_cases": (None, range(1, 2**31)), "seed": int}
TAKEN_OVER = tuple(RUN)  # from one program to the next
RUN |= {"left_out": (None, dict[str, str])}
VOLUMES = ("window", "channel", "axis")  # how slices are cut, in LabelledSet.reading


@dataclass(frozen=True, kw_only=True)
class SetSettings(Limited):
    """One segmentation set: where it is, how to read it, how to split it. None leaves a choice to the layout."""

    data: Path = setting(source="[choice] your folder", help="BUSI, nnU-Net / MSD, images + masks, or two NIfTI files")
    layout: str = setting("auto", "[choice] found from the names", help="busi, nnunet, folders, volume")
    prompt: str | None = setting(None, "[paper] from modality, organ, pathology", help="one text for all cases, else prompts.csv")
    modality: str | None = setting(None, "[choice] from the layout", help="CT or MR, of volumes")
    window: tuple[float, ...] = setting((), "[choice] by modality", help="lower,upper HU of CT volumes, as --window=-160,240")
    channel: int | None = setting(None, "[choice] the first", help="channel of a 4D volume", low=0)
    axis: int | None = setting(None, "[choice] axial", help="slicing axis of volumes, 0 to 2", low=0, high=2)
    mask_name: str | None = setting(None, "[choice] from the names", help="names in masks/, as {}_tumor; {} is the image")
    labels: tuple[str, ...] = setting((), "[choice] from the files", help="value:class,... in the masks, as 1:spleen")
    group: str | None = setting(None, "[choice] by layout", help="regular expression: first group in the name = patient")
    slabs: int = setting(0, "[choice] 0: none", help="cut volumes into slabs that count as patients; for one volume", low=0)
    folds: int = setting(3, "[paper]", help="cross-validation folds; 1: no test part", low=1)
    splits: Path | None = setting(None, "[choice] made from the seed", help="splits.json or nnU-Net's splits_final.json")
    validation: float = setting(0.2, "[choice] the test fold picks nothing", help="share of training cases", low=0, below=1)
    duplicates: float = setting(0.9, "[choice] as measured on BUSI", help="correlation of one group's images", low=0, high=1)
    seed: int = setting(0, "[choice] any number", help="seed of the splits")


@dataclass(frozen=True)
class LabelledSet:
    """cases: all Cases; classes: names, background first; splits: one Split per fold; about: how it was read.

    Stage 2 adds: size in pixels; hint, a kind of `emit.data.edges.HINTS`; hed_size, the longer side that HED sees;
    real_cases, how many training cases a fold keeps (None: all), drawn by seed. left_out: bad cases or volumes {name: why}.
    """

    cases: list
    classes: tuple
    splits: list
    about: SetSettings
    size: int | None = None
    hint: str | None = None
    hed_size: int | None = None
    real_cases: int | None = None
    seed: int = 0
    left_out: dict | None = None

    @property
    def description(self) -> dict:
        """How the set is read and split, as JSON has it."""
        about = {f.name: to_plain(getattr(self.about, f.name)) for f in fields(SetSettings) if f.name not in ("data", "splits")}
        return about | {"folds": len(self.splits)}

    @property
    def reading(self) -> dict:
        """How pictures become images, as JSON has it, and values: what stands for each class in the mask files.

        Of volumes: window (HU; None: percentiles), channel in the file, axis.
        """
        options = getattr(self.cases[0].read, "keywords", {}) if self.cases else {}
        about = {name: getattr(self.about, name) for name in ("layout", "window", "channel", "axis", "labels")}
        value_of = {number: value for value, number in reversed(options.get("values", {}).items())}  # of merged labels the first
        values = [0, *(value_of.get(number, number) for number in range(1, len(self.classes)))]
        if values == [0, 1] and "masks" in options:
            levels = (int(decode(path, indices=True).max()) for case in self.cases for path in case.read.keywords["masks"])
            values[1] = 255 if next(filter(None, levels), 1) > 1 else 1  # a binary mask may be 1 or white
        return to_plain(about | {name: options[name] for name in VOLUMES if name in options} | {"values": values})

    @property
    def names(self) -> list[str]:
        """What identifies the set wherever it lies."""
        return [*(f"{case.id}: {case.prompt}" for case in self.cases), json.dumps(self.description), *map(str, self.splits)]

    def training(self, fold: int) -> list:
        """Return a fold's training cases: all, or real_cases of them in an order that the seed draws, so that sets nest."""
        ids = self.splits[fold].train
        chosen = select(self.cases, ids)
        if self.real_cases is None:
            return chosen
        if self.real_cases > len(chosen):
            raise InputError(f"--real-cases: is {self.real_cases}, and fold {fold} has {len(chosen)}; give at most as many")
        order = torch.randperm(len(chosen), generator=generator(self.seed, "real cases", *ids)).tolist()
        return [chosen[i] for i in sorted(order[: self.real_cases])]


def open_set(path: Path, data: Path | None = None) -> LabelledSet:
    """Return the LabelledSet of a folder that holds set.json, or of a folder of images with every default.

    data: where the images are now, if they were moved. Raises InputError for a set without masks and for other cases.
    """
    if not (Path(path) / DATASET).is_file():
        return read_set(SetSettings(data=Path(data or path)))
    about, run = read_description(Path(path) / DATASET)
    if data is not None:
        described = Path(data) / DATASET
        about = replace(about, data=read_description(described)[0].data if described.is_file() else Path(data))
    return replace(read_set(replace(about, splits=Path(path) / SPLITS), run["left_out"]), **run)


def open_test(path: Path, labelled: LabelledSet, name: str) -> LabelledSet:
    """Return the set with all cases of another one, of this folder, as the test part of every fold; name begins their ids.

    Raises InputError where the classes differ, or the window or axis of volumes.
    """
    described = (Path(path) / DATASET).is_file()
    given = open_set(path) if described else read_set(SetSettings(data=Path(path), folds=1, validation=0))
    found, wanted = (one.reading | {"classes": one.classes} for one in (given, labelled))
    shared = ("classes",) if None in (found["axis"], wanted["axis"]) else ("classes", "window", "axis")
    for key in (key for key in shared if found[key] != wanted[key]):
        words = f"its {key}: {show(found[key])}; of {labelled.about.data}: {show(wanted[key])}"
        raise InputError(f"{path}: {words}; describe it with emit.dataset so that they agree, and give that folder")
    rename = lambda text: f"{name}/{text}" if text else None  # noqa: E731
    own = [replace(c, id=rename(c.id), group=rename(c.group), volume=rename(c.volume)) for c in given.cases]
    splits = [replace(split, test=tuple(case.id for case in own)) for split in labelled.splits]
    return replace(labelled, cases=[*labelled.cases, *own], splits=splits, about=given.about)


def read_set(about: SetSettings, left_out: dict | None = None, skip_bad: bool = False) -> LabelledSet:
    """Read every case of a set once, and split it. Raises one InputError about all bad ones that are not left out.

    left_out: {name of a bad case or volume: why}; skip_bad: leave out all bad ones that are found.
    """
    faults, left_out = Faults(), left_out or {}
    found = find_cases(about, faults)
    if not found.classes:
        raise InputError(f"{about.data}: has no masks; give a labelled set")
    looks = examine([case for case in found.cases if case.name not in left_out], faults)
    if not (skip_bad and looks):
        faults.refuse(about.data, left_out)
    left_out = left_out | {name: line for line, name in faults.items()}
    cases, splits = split_cases([case for case in found.cases if case.id in looks], looks, about, left_out)
    return LabelledSet(cases, found.classes, splits, about, left_out=left_out)


def find_cases(about, faults):
    """Return the CaseSet of a folder; what is wrong with single cases goes to faults."""
    window = about.window or None
    if window is not None and not (len(window) == 2 and window[0] < window[1]):
        raise InputError(f"--window: is {','.join(map(str, window))}; give the lower and the upper HU, as --window=-160,240")
    pairs = [pair.partition(":") for pair in about.labels]
    if not all(value and name for value, _, name in pairs):
        raise InputError(f"--labels: {','.join(about.labels)} is not value:class,value:class; write 1:spleen,5:liver, say")
    labels = {int(value) if value.isdecimal() else value: name for value, _, name in pairs}
    options = {name: getattr(about, name) for name in ("prompt", "modality", "channel", "axis", "mask_name", "group")}
    return read_cases(about.data, about.layout, window=window, labels=labels or None, faults=faults, **options)


def split_cases(cases, looks, about, left_out):
    """Return the cases, grouped, and their splits."""
    cases = cut_slabs(cases, about.slabs) if about.slabs else cases
    if all(case.group == case.id for case in cases):  # no patients known: look-alikes stand in for them
        cases = join_near_duplicates(cases, looks, about.duplicates)
    if about.splits is not None:
        return cases, read_splits(about.splits, cases, about.validation, about.seed, left_out)
    return cases, make_splits(cases, about.folds, about.seed, about.validation)


def write_set(folder: Path, labelled: LabelledSet):
    """Write set.json (how the set is read, and what later programs take over) and splits.json."""
    about = {"data": str(labelled.about.data.absolute()), **labelled.description}
    write_splits(Path(folder) / SPLITS, labelled.splits)
    write_json(Path(folder) / DATASET, {"set": about, "run": {name: getattr(labelled, name) for name in RUN}}, indent=2)


def read_description(path):
    """Return set.json: (SetSettings without splits, {field of LabelledSet: value} that later programs take over)."""
    content = read_json(path, {"set": dict, "run": RUN}, "give a folder of stage 2 or of the generator, or write it anew")
    about = {name: tuple(value) if isinstance(value, list) else value for name, value in content["set"].items()}
    check_values(SetSettings, about, path, [f.name for f in fields(SetSettings) if f.name != "splits"])
    run = {name: content["run"].get(name) for name in RUN}
    if run["hint"] and None in (run["size"], run["hed_size"]):
        raise InputError(f"{path}: is damaged (a hint without its size); run stage 2 anew")
    return SetSettings(**about | {"data": Path(about["data"])}), run


def inherit_set(given):
    """Return, for `parse`, the size and the number of real cases that the images of --generated were made with.

    given: {field: value} of the flags given. Returns ({field: value}, where they stand).
    """
    folder = given.get("generated")
    if folder is None:
        return {}, None
    found = [folder / DATASET, *sorted(folder.glob(f"*/{DATASET}"))]  # below: the folders of a sweep
    path = next((path for path in found if path.is_file()), found[0])
    run = read_description(path)[1]
    return {name: run[name] for name in ("size", "real_cases")}, path


def check_size(size, sizes):
    """Refuse a --size whose latents the UNet cannot halve as often as it does. sizes: `emit.model.Sizes`."""
    if size % sizes.step:
        raise InputError(f"--size: is {size}; give a multiple of {sizes.step}, as the networks need it")


def cut_slabs(cases, count):
    """Return the cases with every volume cut into `count` runs of slices, each a volume and a group of its own.

    Neighbouring slabs share their anatomy, so scores are optimistic: a way to run on one volume, not to make claims.
    """
    depth = Counter(case.volume for case in cases)
    if None in depth:
        raise InputError(f"{cases[0].path}: --slabs cuts volumes, and these are flat pictures; leave it out")
    first = {case.volume: case.index for case in sorted(cases, key=lambda case: -case.index)}
    slabs = [f"{c.volume}/slab{(c.index - first[c.volume]) * count // depth[c.volume]}" for c in cases]
    return [replace(case, group=slab, volume=slab) for case, slab in zip(cases, slabs, strict=True)]


def choose_folds(fold, splits):
    """Return the fold numbers that "all" or one number asks for."""
    if fold == "all":
        return list(range(len(splits)))
    if fold not in map(str, range(len(splits))):
        raise InputError(f"--fold: is {fold}; give all or a number from 0 to {len(splits) - 1}")
    return [int(fold)]


@dataclass(frozen=True, kw_only=True)
class Settings(SetSettings):
    """Describe a labelled set once: how it is read and split. A folder of images and masks in, set.json out."""

    out: Path = setting(source="[choice] your folder", help="new folder for set.json and splits.json")
    skip_bad: bool = setting(False, "[choice] nothing unseen", help="leave out what cannot be read; later programs do so too")


def main():
    """Read the set once, write how, and say what is in it."""
    settings = parse(Settings)
    if (settings.out / DATASET).exists():
        raise InputError(f"{settings.out / DATASET}: is there already; choose another folder")
    labelled = read_set(settings, skip_bad=settings.skip_bad)
    for line in labelled.left_out.values():
        print(f"left out: {' '.join(line.split())}")
    write_set(settings.out, labelled)
    groups = len({case.group for case in labelled.cases})
    print(f"{settings.out}: {len(labelled.cases)} cases in {groups} groups; classes {', '.join(labelled.classes)}")
    for number, split in enumerate(labelled.splits):
        print(f"fold {number}: {len(split.train)} training, {len(split.validation)} validation, {len(split.test)} test")


if __name__ == "__main__":
    errors.run(main, again="")
