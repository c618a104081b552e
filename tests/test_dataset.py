"""The shared data settings: slabs, folds by name, labels by flag."""

from dataclasses import replace

import numpy as np
import pytest

from emit.data.cases import Case, CaseSet
from emit.data.splits import Split
from emit.errors import InputError
from emit.model import SD15, demo_sizes
from emit.training.config import parse
from emit.dataset import (
    DataSettings,
    check_size,
    choose_folds,
    choose_training,
    cut_slabs,
    inherit_dataset,
    open_data,
    write_dataset,
)


def make_slices(volume, count, start=0):
    read = lambda path: (np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint8))  # noqa: E731
    return [
        Case(f"{volume}/{i}", volume, "", "", "x", read, (1.0, 1.0), 1.0, volume, i) for i in range(start, start + count)
    ]


def test_slabs_are_runs_of_neighbouring_slices():
    slabs = cut_slabs([*make_slices("a", 6, start=10), *make_slices("b", 4)], 2)
    assert [case.group for case in slabs] == ["a/slab0"] * 3 + ["a/slab1"] * 3 + ["b/slab0"] * 2 + ["b/slab1"] * 2
    assert all(case.group == case.volume for case in slabs)


def test_slabs_of_flat_pictures_are_refused():
    flat = [Case("a", "a", "", "", "a.png", None)]
    with pytest.raises(InputError, match=r"a\.png.*--slabs"):
        cut_slabs(flat, 2)


@pytest.mark.parametrize(("fold", "expected"), [("all", [0, 1, 2]), ("2", [2])])
def test_folds_by_name(fold, expected):
    assert choose_folds(fold, [None] * 3) == expected


@pytest.mark.parametrize("fold", ["3", "-1", "one"])
def test_unknown_folds_are_refused(fold):
    with pytest.raises(InputError, match="--fold"):
        choose_folds(fold, [None] * 3)


@pytest.mark.parametrize("labels", [("1",), ("spleen",), (":spleen",)])
def test_labels_need_value_and_class(labels, tmp_path):
    with pytest.raises(InputError, match="--labels"):
        open_data(DataSettings(data=tmp_path, labels=labels))


@pytest.mark.parametrize("window", [(-160.0,), (1.0, 2.0, 3.0), (240.0, -160.0), (5.0, 5.0)])
def test_a_window_is_two_ascending_numbers(window, tmp_path):
    with pytest.raises(InputError, match=r"--window: is .*; give the lower and the upper HU"):
        open_data(DataSettings(data=tmp_path, window=window))


@pytest.mark.parametrize(
    "words",
    [
        *["--folds=1", "--validation=1", "--validation=-0.1", "--duplicates=1.5", "--size=8", "--real-cases=0"],
        *["--axis=3", "--window=wide", "--slabs=-1", "--channel=-1"],
    ],
)
def test_bad_numbers_are_refused_when_read(words):
    with pytest.raises(InputError, match=f"^{words.partition('=')[0]}: "):
        parse(DataSettings, ["--data", "x", words])


@pytest.mark.parametrize(
    ("size", "words"),
    [(60, "8; give 56 or 64"), (72, "16; give 64 or 80"), (200, "32; give 192 or 224")],  # more halvings from 65 on
)
def test_sizes_that_the_networks_cannot_halve(size, words):
    with pytest.raises(InputError, match=f"^--size: is {size}, and the networks need a multiple of {words}$"):
        check_size(size, demo_sizes(size))


def test_sizes_that_the_networks_can_halve():
    for size in (16, 32, 56, 64, 80, 96, 128, 160, 256):
        check_size(size, demo_sizes(size))
    check_size(256, SD15), check_size(384, SD15)
    with pytest.raises(InputError, match=r"multiple of 64; give 64$"):
        check_size(32, SD15)


def keep(count, seed=0):
    flat = [Case(f"case{i:02d}", f"case{i:02d}", "", "", "x.png", None) for i in range(30)]
    split = Split(tuple(case.id for case in flat[:20]), (), tuple(case.id for case in flat[20:]))
    settings = DataSettings(data=None, real_cases=count, seed=seed)
    return [case.id for case in choose_training(CaseSet(flat, ("background", "lesion"), "busi", ""), split, settings)]


def test_fewer_training_cases_are_among_more_and_are_drawn():
    everything = [f"case{i:02d}" for i in range(20)]
    assert keep(None) == keep(20) == everything
    assert len(keep(5)) == 5 and set(keep(5)) < set(keep(9)) < set(everything)
    assert keep(5) != everything[:5] and keep(5) != keep(5, seed=1) and keep(5) == sorted(keep(5))


@pytest.mark.parametrize("count", [0, 21])
def test_impossible_numbers_of_training_cases_are_refused(count):
    with pytest.raises(InputError, match=r"--real-cases.*1 to 20"):
        keep(count)


def write_run(folder, **changes):
    settings = parse(DataSettings, ["--data", str(folder)])
    write_dataset(folder, replace(settings, **changes), [Split(("a",), (), ("b",))], "mask")


def test_a_later_program_reads_the_set_as_the_earlier_one_did(tmp_path):
    write_run(tmp_path / "fine", labels=("1:spleen",), size=128, window=(-100.0, 200.0), real_cases=3, data=tmp_path)
    values, path = inherit_dataset("finetuned")({"finetuned": tmp_path / "fine"})
    assert path == tmp_path / "fine" / "dataset.json"
    assert (values["labels"], values["size"], values["window"]) == (("1:spleen",), 128, (-100.0, 200.0))
    assert values["hint"] == "mask" and values["splits"] == tmp_path / "fine" / "splits.json"
    assert values["seed"] == 0 and values["data"] == tmp_path
    assert inherit_dataset("finetuned")({}) == ({}, None)


def test_what_may_differ_between_programs(tmp_path):
    """Another place of the data; another seed where no random subset of the cases hangs on it."""
    write_run(tmp_path)
    values, _ = inherit_dataset("generated")({"generated": tmp_path, "data": tmp_path / "moved", "seed": 7})
    assert "data" not in values and "seed" not in values
    write_run(tmp_path, real_cases=3)
    assert inherit_dataset("generated")({"generated": tmp_path, "seed": 7})[0]["seed"] == 0


def test_the_folder_of_a_sweep_and_a_folder_of_none(tmp_path):
    write_run(tmp_path / "guidance_2")
    assert inherit_dataset("generated")({"generated": tmp_path})[1] == tmp_path / "guidance_2" / "dataset.json"
    with pytest.raises(InputError, match=r"other/dataset.json: cannot be read"):
        inherit_dataset("generated")({"generated": tmp_path / "other"})
    (tmp_path / "guidance_2" / "dataset.json").write_text('{"settings": {"size": 3}}')
    with pytest.raises(InputError, match=r"dataset.json: is damaged"):
        inherit_dataset("generated")({"generated": tmp_path})
