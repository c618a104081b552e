"""Cross-validation without leakage: by group, stratified, with train, validation and test cases in every fold."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np

from emit.errors import InputError
from emit.files import write_text
from emit.seeds import seed_from


@dataclasses.dataclass(frozen=True)
class Split:
    """One fold: three disjoint tuples of case ids. Train learns, validation selects, test is read once."""

    train: tuple
    validation: tuple
    test: tuple


def make_splits(cases, folds=3, seed=0, validation=0.2):
    """Split cases into folds: every case is tested once, no group is on two sides, strata are balanced.

    validation: the share of a fold's other cases that is held out to select on, by group as well; 0 for none.
    Depends on ids, groups, strata and seed, not on the order of the cases. Raises InputError on too few groups.
    """
    if folds < 2 or not 0 <= validation < 1:
        raise InputError(f"splits: {folds} folds, validation {validation}; take at least 2 folds and a share in 0..1")
    fold_of = _stratify(_count_strata(cases), [1 / folds] * folds, seed_from("folds", seed))
    splits = []
    for fold in range(folds):
        test = tuple(sorted(case.id for case in cases if fold_of[case.group] == fold))
        others = [case for case in cases if fold_of[case.group] != fold]
        splits.append(Split(*_hold_out_validation(others, validation, seed_from("validation", seed, fold)), test))
    check_splits(splits, cases)
    return splits


def _count_strata(cases):
    """Return {group: Counter of its cases' strata}."""
    groups = {}
    for case in cases:
        groups.setdefault(case.group, Counter())[case.stratum] += 1
    return groups


def _hold_out_validation(cases, validation, seed):
    """Divide a fold's cases outside the test part by group: return the ids (train, validation)."""
    groups = _count_strata(cases)
    part_of = _stratify(groups, [1 - validation, validation], seed) if validation else dict.fromkeys(groups, 0)
    return (tuple(sorted(case.id for case in cases if part_of[case.group] == part)) for part in (0, 1))


def _stratify(groups, shares, seed):
    """Deal groups, largest first, into parts of the given shares; return {group: part}.

    Each goes where it lowers sum (n - share N)^2 / (share N) over the strata most (n, N: cases in the part, in all):
    so rare strata count as much as frequent ones. Equal groups are dealt in the seed's order; no part stays empty.
    """
    if len(groups) < len(shares):
        raise InputError(f"splits: {len(groups)} groups cannot fill {len(shares)} parts; take fewer folds, "
                         "add patients, or set validation to 0")  # fmt: skip
    strata = sorted({stratum for count in groups.values() for stratum in count})
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    names = sorted((names[i] for i in order), key=lambda name: -groups[name].total())
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


def check_splits(splits, cases):
    """Raise InputError unless each fold holds every case once, no group on two sides, and no case is tested twice."""
    group_of = {case.id: case.group for case in cases}
    tested = set()
    for fold, split in enumerate(splits):
        side_of, seen = {}, set()
        for side in ("train", "validation", "test"):
            for name in getattr(split, side):
                if name not in group_of:
                    raise InputError(f"splits: fold {fold}: case {name!r} is unknown; write the splits for these cases")
                if name in seen:
                    raise InputError(f"splits: fold {fold}: case {name!r} is listed twice; write the splits anew")
                seen.add(name)
                group = group_of[name]
                if side_of.setdefault(group, side) != side:
                    raise InputError(f"splits: fold {fold}: group {group!r} is in {side_of[group]} and {side}; "
                                     "move all its cases to one side")  # fmt: skip
        missing = group_of.keys() - seen
        if missing:
            raise InputError(f"splits: fold {fold}: case {min(missing)!r} is in no part; write the splits anew")
        if not split.train or not split.test:
            raise InputError(f"splits: fold {fold}: train or test is empty; take other folds")
        if tested & set(split.test):
            raise InputError(f"splits: case {min(tested & set(split.test))!r} is tested in two folds; keep one")
        tested |= set(split.test)


def select(cases, ids):
    """Return the cases with these ids, in the order of the ids."""
    by_id = {case.id: case for case in cases}
    return [by_id[name] for name in ids]


def write_splits(path, splits):
    """Write the folds as a JSON list of {"train", "validation", "test"}."""
    folds = [dataclasses.asdict(split) for split in splits]
    write_text(path, json.dumps(folds, indent=1, ensure_ascii=False) + "\n")


def read_splits(path, cases, validation=0.2, seed=0):
    """Read folds of ours, or nnU-Net's splits_final.json, and check them.

    nnU-Net lists volumes (or flat cases) under "train" and "val"; its "val" is what is scored, so it becomes our test
    part, and a validation part is held out of its "train" by group.
    """
    try:
        folds = json.loads(Path(path).read_text(encoding="utf-8"))
        splits = []
        for fold, parts in enumerate(folds):
            if "val" in parts:
                splits.append(_from_nnunet(parts, cases, validation, seed_from("validation", seed, fold)))
            else:
                splits.append(Split(*(tuple(parts[side]) for side in ("train", "validation", "test"))))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is no splits file ({error!r}); write it anew") from error
    try:
        check_splits(splits, cases)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return splits


def _from_nnunet(parts, cases, validation, seed):
    """Turn one fold of nnU-Net's into a Split."""
    members = {}
    for case in cases:
        members.setdefault(case.volume or case.id, []).append(case)
    unknown = [name for name in (*parts["train"], *parts["val"]) if name not in members]
    if unknown:
        raise InputError(f"splits: case {unknown[0]!r} is unknown; write the splits for these cases")
    test = tuple(sorted(case.id for name in parts["val"] for case in members[name]))
    others = [case for name in parts["train"] for case in members[name]]
    return Split(*_hold_out_validation(others, validation, seed), test)
