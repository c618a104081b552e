"""Cross-validation without leakage: by group, stratified, with train, validation and test cases in every fold."""

import dataclasses
import json
from collections import Counter

import numpy as np

from emit.errors import Faults, InputError
from emit.files import read_json, write_text
from emit.seeds import seed_from


@dataclasses.dataclass(frozen=True)
class Split:
    """One fold: three disjoint tuples of case ids. Train learns, validation selects, test is read once."""

    train: tuple
    validation: tuple
    test: tuple


def make_splits(cases, folds=3, seed=0, validation=0.2):
    """Split cases into folds: every case is tested once, no group is on two sides, strata are balanced. One fold tests none.

    validation: the share of a fold's other cases that is held out to select on, by group as well; 0 for none.
    Depends on ids, groups, strata and seed, not on the order of the cases. Raises InputError on too few groups.
    """
    fold_of = _stratify(cases, [1 / folds] * folds, seed_from("folds", seed)) if folds > 1 else {}
    splits = []
    for fold in range(folds):
        test = tuple(sorted(case.id for case in cases if fold_of.get(case.group) == fold))
        others = [case for case in cases if fold_of.get(case.group) != fold]
        splits.append(_hold_out_validation(others, validation, seed_from("validation", seed, fold), test))
    check_splits(splits, cases)
    return splits


def _hold_out_validation(cases, validation, seed, test):
    """Divide a fold's cases outside the test part by group; return the Split."""
    part_of = _stratify(cases, [1 - validation, validation] if validation else [1], seed)
    return Split(*(tuple(sorted(case.id for case in cases if part_of[case.group] == part)) for part in (0, 1)), test)


def _stratify(cases, shares, seed):
    """Deal groups of cases, largest first, into parts of the given shares; return {group: part}.

    Each goes where it lowers sum (n - share N)^2 / (share N) over the strata most (n, N: cases in the part, in all):
    so rare strata count as much as frequent ones. Equal groups are dealt in the seed's order; no part stays empty.
    """
    groups = {}  # {group: Counter of its cases' strata}
    for case in cases:
        groups.setdefault(case.group, Counter())[case.stratum] += 1
    if len(groups) < len(shares):
        raise InputError(f"splits: {len(groups)} groups cannot fill {len(shares)} parts; take fewer folds, "
                         "add patients, or set validation to 0")  # fmt: skip
    strata = sorted({case.stratum for case in cases})
    names = np.random.default_rng(seed).permutation(sorted(groups)).tolist()
    names = sorted(names, key=lambda name: -groups[name].total())
    sizes = {name: np.array([groups[name][stratum] for stratum in strata], float) for name in names}
    target = np.outer(shares, sum(sizes.values()))  # (parts, strata)
    filled = np.zeros_like(target)
    part_of = {}
    for position, name in enumerate(names):
        empty = np.flatnonzero(filled.sum(axis=1) == 0).tolist()
        choice = empty if len(names) - position == len(empty) else list(range(len(shares)))
        gain = ((filled + sizes[name] - target) ** 2 - (filled - target) ** 2) / target
        part = min(choice, key=lambda part: round(gain[part].sum(), 9))
        filled[part] += sizes[name]
        part_of[name] = part
    return part_of


def check_splits(splits, cases, path="splits"):
    """Raise InputError unless each fold holds every case once, no group on two sides, and no case is tested twice."""
    faults, group_of = Faults(), {case.id: case.group for case in cases}
    for fold, split in enumerate(splits):
        side_of = {}
        listed = Counter([*split.train, *split.validation, *split.test])
        for fault, names in (("is unknown", listed.keys() - group_of), ("is in no part", group_of.keys() - listed),
                             ("is listed twice", {name for name in listed if listed[name] > 1})):  # fmt: skip
            for name in sorted(names):
                faults[f"{path}: fold {fold}: case {name!r} {fault}; write the splits for these cases"] = name
        for side, names in dataclasses.asdict(split).items():
            for group in (group_of[name] for name in names if name in group_of):
                if side_of.setdefault(group, side) != side:
                    words = f"group {group!r} is in {side_of[group]} and {side}; move all its cases to one side"
                    faults[f"{path}: fold {fold}: {words}"] = group
        if not split.train or not (split.test or len(splits) == 1):
            faults[f"{path}: fold {fold}: train or test is empty; take other folds"] = fold
    tested = Counter(name for split in splits for name in split.test)
    for name in (name for name in tested if tested[name] > 1):
        faults[f"{path}: case {name!r} is tested in two folds; keep one"] = name
    faults.refuse(path)


def select(cases, ids):
    """Return the cases with these ids, in the order of the ids."""
    by_id = {case.id: case for case in cases}
    return [by_id[name] for name in ids]


def write_splits(path, splits):
    """Write the folds as a JSON list of {"train", "validation", "test"}."""
    folds = [dataclasses.asdict(split) for split in splits]
    write_text(path, json.dumps(folds, indent=1, ensure_ascii=False) + "\n")


def read_splits(path, cases, validation=0.2, seed=0, left_out=()):
    """Read folds of ours, or nnU-Net's splits_final.json, without the cases or volumes that are left out, and check them.

    nnU-Net lists volumes (or flat cases) under "train" and "val"; its "val" is what is scored, so it becomes our test
    part, and a validation part is held out of its "train" by group.
    """
    folds, splits = read_json(path, list[dict[str, list[str]]], "check the path, or write it anew"), []
    try:
        for fold, parts in enumerate(folds):
            kept = lambda name: name not in left_out and name.rpartition("/")[0] not in left_out  # noqa: E731
            parts = {side: list(filter(kept, names)) for side, names in parts.items()}
            if "val" in parts:
                splits.append(_from_nnunet(parts, cases, validation, seed_from("validation", seed, fold)))
            else:
                splits.append(Split(*(tuple(parts[side]) for side in ("train", "validation", "test"))))
        if not splits:
            raise ValueError("no folds")
        check_splits(splits, cases, path)
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: is no splits file of these cases ({error!r}); write it anew") from error
    return splits


def _from_nnunet(parts, cases, validation, seed):
    """Turn one fold of nnU-Net's into a Split."""
    members = {}
    for case in cases:
        members.setdefault(case.volume or case.id, []).append(case)
    test = tuple(sorted(case.id for name in parts["val"] for case in members[name]))
    others = [case for name in parts["train"] for case in members[name]]
    return _hold_out_validation(others, validation, seed, test)
