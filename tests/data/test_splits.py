"""Splits: no leak over random structures, balance against what is possible, files that round-trip."""

import json
from collections import Counter

import numpy as np
import pytest

from emit.data.cases import Case
from emit.data.splits import Split, check_splits, make_splits, read_splits, select, write_splits
from emit.errors import InputError


def make_case(name, group=None, stratum="", volume=None):
    return Case(name, group or name, "", stratum, f"{name}.png", None, volume=volume)


def draw_cases(rng):
    """A random structure: 6 to 40 groups of 1 to 12 cases, 1 to 4 strata, in random order."""
    cases = []
    for g in range(rng.integers(6, 41)):
        strata = rng.integers(0, rng.integers(1, 5), rng.integers(1, 13))
        cases += [make_case(f"g{g}/{i}", f"g{g}", f"s{s}") for i, s in enumerate(strata)]
    return [cases[i] for i in rng.permutation(len(cases))]


@pytest.mark.parametrize("seed", range(60))
def test_no_group_on_two_sides_and_every_case_tested_once(seed):
    rng = np.random.default_rng(seed)
    cases = draw_cases(rng)
    group_of = {case.id: case.group for case in cases}
    folds = int(rng.integers(2, 5))
    splits = make_splits(cases, folds, seed, validation=float(rng.choice([0.1, 0.2, 0.4])))
    assert len(splits) == folds
    for split in splits:
        parts = [split.train, split.validation, split.test]
        assert sorted(name for part in parts for name in part) == sorted(group_of)
        assert all(parts)
        sides = [{group_of[name] for name in part} for part in parts]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert Counter(name for split in splits for name in split.test) == Counter(list(group_of))  # each exactly once


def test_strata_are_balanced_to_one_case_when_every_case_is_its_own_group():
    cases = [make_case(f"{s}{i}", stratum=s) for s, n in (("benign", 437), ("malignant", 210), ("normal", 133))
             for i in range(n)]  # fmt: skip
    for split in make_splits(cases, folds=3, seed=0):
        test = Counter(name.rstrip("0123456789") for name in split.test)
        held = Counter(name.rstrip("0123456789") for name in split.validation)
        for stratum, count in (("benign", 437), ("malignant", 210), ("normal", 133)):
            assert abs(test[stratum] - count / 3) <= 1
            assert abs(held[stratum] - 0.2 * (count - test[stratum])) <= 1


def test_equal_groups_are_balanced_in_every_stratum():
    pair = [make_case(f"{s}{i}", f"{s}{i // 4}", s) for s in "ab" for i in range(24)]  # 6 equal groups in each stratum
    for split in make_splits(pair, folds=3, seed=0):
        assert Counter(name[0] for name in split.test) == {"a": 8, "b": 8}


def test_large_groups_are_dealt_first():
    sizes = [12] * 3 + [1] * 12
    cases = [make_case(f"g{g}/{i}", f"g{g}") for g, n in enumerate(sizes) for i in range(n)]
    for seed in range(10):
        assert [len(split.test) for split in make_splits(cases, seed=seed)] == [16, 16, 16]


def test_a_rare_stratum_counts_as_much_as_a_frequent_one():
    """Frequent cases per group 62, 50, 50, 10, 10, 10; the last three hold the rare ones, which go to three folds.

    By hand, for the last group: to the fold of 62, (72 - 64)^2 - (62 - 64)^2 = 60, to one of 60 frequent and 1 rare,
    (70 - 64)^2 - (60 - 64)^2 = 20. Divided by the target 64, and the rare by theirs, 1: 60/64 - 1 < 20/64 + 1.
    """
    cases = [make_case(f"g{g}/{i}", f"g{g}", "often") for g, n in enumerate((62, 50, 50, 10, 10, 10)) for i in range(n)]
    cases += [make_case(f"g{g}/rare", f"g{g}", "rare") for g in (3, 4, 5)]
    for split in make_splits(cases):
        assert sum(name.endswith("rare") for name in split.test) == 1


def test_splits_depend_on_the_seed_and_not_on_the_order():
    cases = draw_cases(np.random.default_rng(5))
    assert make_splits(cases, seed=1) == make_splits(cases[::-1], seed=1)
    assert make_splits(cases, seed=1) != make_splits(cases, seed=2)


def test_few_groups_still_fill_every_part_or_say_so():
    cases = [make_case(f"g{g}/{i}", f"g{g}") for g, n in enumerate((30, 1, 1)) for i in range(n)]
    for split in make_splits(cases, folds=3):
        assert split.train and split.validation and split.test
    for folds, said in ((3, "2 groups cannot fill 3 parts"), (2, "1 groups cannot fill 2 parts")):
        with pytest.raises(InputError, match=said):
            make_splits(cases[:31], folds=folds)
    assert [split.validation for split in make_splits(cases[:31], folds=2, validation=0)] == [(), ()]


A, B, C = (tuple(f"g{g}/{i}" for i in range(2)) for g in range(3))


@pytest.mark.parametrize(("splits", "said"), [
    ([(("g0/0", "g1/0"), ("g0/1", "g1/1"), C)], "group 'g0' is in train and validation"),
    ([(("g0/0", "g2/1"), B, ("g2/0", "g0/1"))], "group 'g2' is in train and test"),
    ([((*A, "g9/0"), B, C)], "'g9/0' is unknown"),
    ([((*A, "g0/0"), B, C)], "'g0/0' is listed twice"),
    ([(A, ("g1/0",), C)], "'g1/1' is in no part"),
    ([((), A + B, C)], "is empty"),
    ([(A, B + C, ())] * 2, "is empty"),
    ([(A, B, C)] * 2, "tested in two folds"),
])  # fmt: skip
def test_leaks_and_unknown_cases_are_refused(splits, said):
    cases = [make_case(name, name[:2]) for name in A + B + C]
    check_splits([Split(A, B, C)], cases)
    with pytest.raises(InputError, match=said):
        check_splits([Split(*parts) for parts in splits], cases)


def test_files_round_trip(tmp_path):
    cases = [make_case(f"Müller {g}/{i}", f"g{g}") for g in range(6) for i in range(2)]
    splits = make_splits(cases)
    write_splits(tmp_path / "a" / "splits.json", splits)
    assert read_splits(tmp_path / "a" / "splits.json", cases) == splits
    assert "Müller" in (tmp_path / "a" / "splits.json").read_text(encoding="utf-8")
    assert [case.id for case in select(cases, splits[0].test)] == list(splits[0].test)
    with pytest.raises(InputError, match=r"splits.json: .*is unknown"):
        read_splits(tmp_path / "a" / "splits.json", cases[1:])
    for text in ("{", "[1]", '[{"train": []}]', "[]", '[{"train": [["a"]], "validation": [], "test": ["b"]}]'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=r"bad.json: is (damaged|no splits file)"):
            read_splits(tmp_path / "bad.json", cases)
    with pytest.raises(InputError, match=r"none.json: cannot be read"):
        read_splits(tmp_path / "none.json", cases)


def test_nnunet_splits_score_val_and_carve_validation_from_train(tmp_path):
    cases = [make_case(f"spleen_{v}/{i:04d}", f"p{v}", volume=f"spleen_{v}") for v in range(6) for i in range(4)]
    folds = [{"train": [f"spleen_{v}" for v in range(6) if v % 2 != k], "val": [f"spleen_{v}" for v in range(k, 6, 2)]}
             for k in range(2)]  # fmt: skip
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    for k, split in enumerate(read_splits(tmp_path / "splits_final.json", cases)):
        assert {name[:8] for name in split.test} == set(folds[k]["val"])
        train, held = ({name[:8] for name in part} for part in (split.train, split.validation))
        assert train | held == set(folds[k]["train"]) and not train & held and train and held
    again = read_splits(tmp_path / "splits_final.json", cases)
    assert again == read_splits(tmp_path / "splits_final.json", cases[::-1])
    leak = [make_case(f"spleen_{v}/0000", f"p{v // 2}", volume=f"spleen_{v}") for v in range(6)]  # 0 and 1: one patient
    with pytest.raises(InputError, match=r"splits_final.json: .*group 'p\d' is in"):
        read_splits(tmp_path / "splits_final.json", leak)
    with pytest.raises(InputError, match=r"no splits file of these cases.*spleen_5"):
        read_splits(tmp_path / "splits_final.json", cases[:-4])
