"""The labelled set: which cases, how they are read, how they are split, what the ControlNet sees of them.

Stage 2 writes it into its run folder (dataset.json and splits.json), the generator copies it into its own. The generator
reads it from --finetuned, stage 3 from --generated: so no two of them can read the set differently.
"""

import json
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from emit.data.cases import read_cases
from emit.data.edges import HINTS
from emit.data.similarity import near_duplicate_groups, with_groups
from emit.data.splits import make_splits, read_splits, select, write_splits
from emit.errors import InputError
from emit.files import write_json
from emit.seeds import generator
from emit.training.config import setting, to_plain


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """One segmentation set: where it is, how to read it, how to split it. None leaves a choice to the layout."""

    data: Path = setting(source="[choice] your folder", help="BUSI, nnU-Net / MSD, images + masks, or two NIfTI files")
    layout: str = setting("auto", "[choice] found from the names", help="busi, nnunet, folders, volume")
    prompt: str | None = setting(None, "[paper] from modality, organ, pathology", help="one text for all cases")
    modality: str | None = setting(None, "[choice] from the layout", help="CT or MR, of volumes")
    window: tuple[float, ...] = setting((), "[choice] by modality", help="HU low,high of CT volumes")
    channel: int | None = setting(None, "[choice] the first", help="channel of a 4D volume", low=0)
    axis: int | None = setting(None, "[choice] axial", help="slicing axis of volumes, 0 to 2", low=0, high=2)
    labels: tuple[str, ...] = setting((), "[choice] from the files", help="value:class,... in the masks, e.g. 1:spleen")
    group: str | None = setting(
        None, "[choice] by layout", help="regular expression: first group in the name = patient"
    )
    slabs: int = setting(
        0, "[choice] 0: none", help="cut volumes into slabs that count as patients; for one volume alone", low=0
    )
    size: int = setting(
        64, "[choice] CPU minutes; [authors' code]: 384", paper=384, help="side of the square images in pixels", low=16
    )
    folds: int = setting(3, "[paper]", help="cross-validation folds", low=2)
    splits: Path | None = setting(
        None, "[choice] made from the seed", help="splits.json or nnU-Net's splits_final.json"
    )
    validation: float = setting(
        0.2, "[choice] the test fold picks nothing", help="share of training cases for selection", low=0, below=1
    )
    real_cases: int | None = setting(
        None, "[paper] all there are", help="training cases kept per fold, drawn by the seed; fewer are among more", low=1
    )
    duplicates: float = setting(
        0.9, "[choice] as measured on BUSI", help="correlation from which images share a group", low=0, high=1
    )
    seed: int = setting(0, "[choice] any number", help="seed of splits, order and draws")


def write_dataset(folder, settings, splits, hint):
    """Write dataset.json (the data settings and the hint) and splits.json into a run folder."""
    values = {f.name: to_plain(getattr(settings, f.name)) for f in fields(DataSettings) if f.name != "splits"}
    write_splits(Path(folder) / "splits.json", splits)
    write_json(Path(folder) / "dataset.json", {"settings": {**values, "hint": hint}}, indent=2)


def inherit_dataset(flag):
    """Return, for `parse`, the function that takes the data settings over from the run folder given by a flag.

    It maps the given flags to ({field: value}, where they stand); without the flag there is nothing to take over.
    """

    def inherit(given):
        folder = given.get(flag)
        if folder is None:
            return {}, None
        found = [folder / "dataset.json", *sorted(folder.glob("*/dataset.json"))]  # below: the folders of a sweep
        path = next((path for path in found if path.is_file()), found[0])
        values = read_dataset(path)
        if "data" in given or not Path(values["data"]).exists():
            values.pop("data")  # the set may have moved: `open_data` compares what it holds
        if "seed" in given and values["real_cases"] is None:
            values.pop("seed")  # other draws from the same model: the splits are stored
        return values | {"splits": path.parent / "splits.json"}, path

    return inherit


def read_dataset(path):
    """Return dataset.json as {field of DataSettings, or hint: value}."""
    try:
        values = json.loads(Path(path).read_text())["settings"]
        kinds = {f.name: f.default for f in fields(DataSettings)} | {"hint": ""}
        values = {name: tuple(values[name]) if kinds[name] == () else values[name] for name in kinds if name != "splits"}
        if values["hint"] not in HINTS:
            raise ValueError(f"unknown hint {values['hint']}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a folder of stage 2 or of the generator") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is damaged ({error!r}); write it anew with stage 2") from error
    return values | {"data": Path(values["data"])}


def open_data(settings):
    """Return (case set, splits): the cases with near-duplicates grouped, and one Split per fold."""
    window = settings.window or None
    if window is not None and not (len(window) == 2 and window[0] < window[1]):
        raise InputError(f"--window: is {','.join(map(str, window))}; give the lower and the upper HU, as --window=-160,240")
    options = {name: getattr(settings, name) for name in ("prompt", "modality", "channel", "axis", "group")}
    cases = read_cases(settings.data, settings.layout, window=window, labels=_read_labels(settings.labels), **options)
    if not cases.classes:
        raise InputError(f"{settings.data}: has no masks; give a labelled set")
    if settings.slabs:
        cases = replace(cases, cases=cut_slabs(cases.cases, settings.slabs))
    if all(case.group == case.id for case in cases.cases):  # no patients known: look-alikes stand in for them
        groups = near_duplicate_groups(cases.cases, settings.duplicates)
        cases = replace(cases, cases=with_groups(cases.cases, groups))
    if settings.splits is not None:
        return cases, read_splits(settings.splits, cases.cases, settings.validation, settings.seed)
    return cases, make_splits(cases.cases, settings.folds, settings.seed, settings.validation)


def choose_training(cases, split, settings):
    """Return a fold's training cases: all, or `real_cases` of them in an order that the seed draws, so that sets nest."""
    chosen = select(cases.cases, split.train)
    if settings.real_cases is None:
        return chosen
    if not 1 <= settings.real_cases <= len(chosen):
        raise InputError(f"--real-cases: is {settings.real_cases}, and a fold has {len(chosen)}; give 1 to {len(chosen)}")
    order = torch.randperm(len(chosen), generator=generator(settings.seed, "real cases", *split.train)).tolist()
    return [chosen[i] for i in sorted(order[: settings.real_cases])]


def check_size(size, sizes):
    """Refuse a --size whose latents the UNet cannot halve as often as it does. sizes: `emit.model.Sizes`."""
    step = sizes.vae.factor * 2 ** (len(sizes.unet.channel_mult) - 1)
    if size % step:
        near = [str(value) for value in (size // step * step, size // step * step + step) if value]
        raise InputError(f"--size: is {size}, and the networks need a multiple of {step}; give {' or '.join(near)}")


def cut_slabs(cases, count):
    """Return the cases with every volume cut into `count` runs of slices, each a volume and a group of its own.

    Neighbouring slabs share their anatomy, so scores are optimistic: a way to run on one volume, not to make claims.
    """
    depth = Counter(case.volume for case in cases)
    if None in depth:
        raise InputError(f"{cases[0].path}: --slabs cuts volumes, and these are flat pictures; leave it out")
    first = {case.volume: min(c.index for c in cases if c.volume == case.volume) for case in cases}
    slabs = [f"{c.volume}/slab{(c.index - first[c.volume]) * count // depth[c.volume]}" for c in cases]
    return [replace(case, group=slab, volume=slab) for case, slab in zip(cases, slabs, strict=True)]


def choose_folds(fold, splits):
    """Return the fold numbers that "all" or one number asks for."""
    if fold == "all":
        return list(range(len(splits)))
    if not fold.isdigit() or int(fold) >= len(splits):
        raise InputError(f"--fold: is {fold}; give all or a number from 0 to {len(splits) - 1}")
    return [int(fold)]


def _read_labels(pairs):
    parts = [pair.partition(":") for pair in pairs]
    if any(not (value and name) for value, _, name in parts):
        raise InputError(
            f"--labels: {','.join(pairs)} is not value:class,value:class; write for instance 1:spleen,5:liver"
        )
    return {int(value) if value.isdigit() else value: name for value, _, name in parts} or None
