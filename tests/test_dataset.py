"""The labelled set: described once and read the same by every program; slabs, folds by name, labels by flag."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from emit import dataset
from emit.data.cases import Case
from emit.data.phantom import write_phantoms
from emit.data.splits import Split
from emit.dataset import LabelledSet, SetSettings, check_size, choose_folds, cut_slabs, inherit_set, open_set, read_set, write_set
from emit.errors import InputError
from emit.model import SD15, demo_sizes
from emit.training.settings import parse


def make_slices(volume, count, start=0):
    read = lambda path: (np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint8))  # noqa: E731
    return [Case(f"{volume}/{i}", volume, "", "", "x", read, (1.0, 1.0), 1.0, volume, i) for i in range(start, start + count)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_phantoms(folder, size=32, pretrain=1, busi=9, patients=4)
    return folder


def test_slabs_are_runs_of_neighbouring_slices():
    slabs = cut_slabs([*make_slices("a", 6, start=10), *make_slices("b", 4)], 2)
    assert [case.group for case in slabs] == ["a/slab0"] * 3 + ["a/slab1"] * 3 + ["b/slab0"] * 2 + ["b/slab1"] * 2
    assert all(case.group == case.volume for case in slabs)


def test_folds_by_name():
    assert choose_folds("all", [None] * 3) == [0, 1, 2] and choose_folds("2", [None] * 3) == [2]
    for fold in ("3", "-1", "one"):
        with pytest.raises(InputError, match="--fold"):
            choose_folds(fold, [None] * 3)


LABELS = ["--labels=1", "--labels=spleen", "--labels=:spleen"]
WINDOWS = ["--window=-160", "--window=1,2,3", "--window=240,-160", "--window=5,5", "--window=wide"]
NUMBERS = ["--folds=0", "--validation=1", "--validation=-0.1", "--duplicates=1.5", "--axis=3", "--slabs=-1", "--channel=-1"]


@pytest.mark.parametrize("words", [*LABELS, *WINDOWS, *NUMBERS, "--slabs=2"])
def test_what_cannot_be_is_refused_by_its_flag(images, words):
    with pytest.raises(InputError, match=words.partition("=")[0]):
        read_set(parse(SetSettings, ["--data", str(images / "BUSI"), words]))


@pytest.mark.parametrize(
    ("size", "sizes", "step"),
    [*((n, demo_sizes(n), step) for n, step in ((60, 8), (72, 16), (200, 32))), (32, SD15, 64)],  # more halvings from 65 on
)
def test_sizes_that_the_networks_cannot_halve(size, sizes, step):
    with pytest.raises(InputError, match=f"^--size: is {size}; give a multiple of {step}, "):
        check_size(size, sizes)


def test_sizes_that_the_networks_can_halve():
    for size in (16, 32, 56, 64, 80, 96, 128, 160, 256):
        check_size(size, demo_sizes(size))
    check_size(256, SD15), check_size(384, SD15)


def keep(count, seed=0):
    flat = [Case(f"case{i:02d}", f"case{i:02d}", "", "", "x.png", None) for i in range(30)]
    split = Split(tuple(case.id for case in flat[:20]), (), tuple(case.id for case in flat[20:]))
    labelled = LabelledSet(flat, ("background", "lesion"), [split], None, real_cases=count, seed=seed)
    return [case.id for case in labelled.training(0)]


def test_fewer_training_cases_are_among_more_and_are_drawn():
    everything = [f"case{i:02d}" for i in range(20)]
    assert keep(None) == keep(20) == everything
    assert len(keep(5)) == 5 and set(keep(5)) < set(keep(9)) < set(everything)
    assert keep(5) != everything[:5] and keep(5) != keep(5, seed=1) and keep(5) == sorted(keep(5))
    with pytest.raises(InputError, match=r"--real-cases: is 21, and fold 0 has 20"):
        keep(21)


# ---- one description for every program


def test_a_set_is_described_once_and_read_the_same(images, tmp_path, monkeypatch, capsys):
    words = ["--data", images / "Task09_Spleen", "--labels", "1:organ", "--window=-100,200", "--folds", 2]
    words += ["--out", tmp_path / "a"]
    monkeypatch.setattr(sys, "argv", ["dataset", *map(str, words)])
    dataset.main()
    said = capsys.readouterr().out
    first = open_set(tmp_path / "a")
    assert first.classes == ("background", "organ") and first.about.window == (-100.0, 200.0) and len(first.splits) == 2
    assert f"{len(first.cases)} cases in 4 groups; classes background, organ" in said and "fold 1: " in said
    fine = replace(first, size=128, hint="mask", hed_size=256, real_cases=3, seed=5)  # as stage 2 does
    write_set(tmp_path / "b", fine)
    again = open_set(tmp_path / "b")
    assert (again.size, again.hint, again.hed_size, again.real_cases, again.seed) == (128, "mask", 256, 3, 5)
    assert again.splits == first.splits and [c.id for c in again.training(0)] == [c.id for c in fine.training(0)]
    with pytest.raises(InputError, match=r"a/set.json: is there already"):
        dataset.main()


def test_a_plain_folder_is_the_set_with_every_default(images, tmp_path):
    plain = open_set(images / "BUSI")
    assert len(plain.splits) == 3 and plain.size is None and plain.real_cases is None
    write_set(tmp_path, plain)
    moved = (images / "BUSI").rename(images / "elsewhere")
    with pytest.raises(InputError, match="BUSI: is not a folder"):
        open_set(tmp_path)
    assert [case.id for case in open_set(tmp_path, moved).cases] == [case.id for case in plain.cases]
    moved.rename(images / "BUSI")
    with pytest.raises(InputError, match=r"splits.json: .* is unknown|in no part"):
        open_set(tmp_path, images / "Task09_Spleen")  # another set


def test_a_set_is_itself_wherever_it_lies_and_another_when_read_or_split_otherwise(images, tmp_path):
    plain = open_set(images / "BUSI")
    write_set(tmp_path / "x", plain)
    names = sorted(open_set(tmp_path / "x", images / "BUSI").names)
    assert names == sorted(plain.names) == sorted(replace(plain, about=replace(plain.about, data=tmp_path)).names)
    for other in (replace(plain.about, prompt="CT"), replace(plain.about, seed=1)):
        assert sorted(read_set(other).names) != names


def test_stage_3_takes_size_and_real_cases_over(images, tmp_path):
    assert inherit_set({}) == ({}, None)
    labelled = replace(open_set(images / "BUSI"), size=32, real_cases=3)
    write_set(tmp_path / "guidance_2", labelled)
    expected = {"size": 32, "real_cases": 3}, tmp_path / "guidance_2" / "set.json"
    assert inherit_set({"generated": tmp_path}) == inherit_set({"generated": tmp_path / "guidance_2"}) == expected


@pytest.mark.parametrize(
    "damage",
    [
        {"set": {}}, {"run": {}}, {"set": {"data": "x", "colour": 1}}, {"set": {"data": "x", "folds": 0}},
        {"run": {"seed": 0, "size": "x"}}, {"run": {"seed": 0, "hint": "hed"}}, {"run": {"seed": 0, "size": 10**6}},
    ],
)  # fmt: skip
def test_a_damaged_description_is_one_line(images, tmp_path, damage):
    with pytest.raises(InputError, match=r"set.json: cannot be read"):
        inherit_set({"generated": tmp_path})
    write_set(tmp_path, open_set(images / "BUSI"))
    path = tmp_path / "set.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(InputError, match=r"set.json: is damaged|--folds: is 0"):
        open_set(tmp_path)
