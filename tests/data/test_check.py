"""The check of a set: every fault and every strange thing is one line with its file; what is sound says nothing."""

import json
import re
import shutil
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image

from emit import dataset, errors
from emit.data import __main__ as program
from emit.data import volumes
from emit.data.check import examine
from emit.data.splits import write_splits
from emit.dataset import SetSettings, find_cases, open_set, read_set
from emit.errors import Faults, InputError
from emit.training.settings import parse

SHAPE = (40, 48)
DISC = ((np.indices(SHAPE) - 20) ** 2).sum(axis=0) < 60


def draw(seed):
    """A smooth random picture: no two seeds look alike at 32 x 32."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    return np.asarray(Image.fromarray(noise).resize(SHAPE[::-1], Image.Resampling.BICUBIC))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def edit(path, change):
    save(path, change(np.asarray(Image.open(path))))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def call(monkeypatch, capsys, main, *words):
    """Run a program as its command; return its exit code, lines on stdout, and on stderr."""
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        errors.run(main)
        sys.exit(0)
    said = capsys.readouterr()
    return ended.value.code, said.out.splitlines(), said.err.splitlines()


@pytest.fixture
def check(monkeypatch, capsys):
    return lambda *words: call(monkeypatch, capsys, program.main, "check", *words)


@pytest.fixture
def busi(tmp_path):
    """Six benign, three malignant and three normal cases, all sound."""
    for number in range(12):
        stratum = ("benign", "malignant", "benign", "normal")[number % 4]
        save(tmp_path / f"busi/{stratum}/{stratum} ({number}).png", draw(number))
        save(tmp_path / f"busi/{stratum}/{stratum} ({number})_mask.png", DISC.astype(np.uint8) * 255 * (stratum != "normal"))
    return tmp_path / "busi"


def write_volumes(root, count=3):
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for name in "abcdef"[:count]:
        put(root, name, rng.integers(-900, 900, (12, 10, 4)).astype(np.int16), np.ones((12, 10, 4), np.uint8))
    (root / "dataset.json").write_text('{"name": "x", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ"}}')
    return root


def put(root, name, image, labels, affine=None):
    affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
    for part, array in (("imagesTr", image), ("labelsTr", labels)):
        nibabel.save(nibabel.Nifti1Image(array, affine), root / part / f"{name}.nii.gz")


def read(root, name):
    return np.asarray(nibabel.load(root / name).dataobj)


def paint_palette(path):
    image = Image.fromarray(DISC.astype(np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0, 250, 0, 0])
    image.save(path)


IMAGE, MASK, OTHER = "benign/benign (0).png", "benign/benign (0)_mask.png", "malignant/malignant (1).png"
BLACK, WHITE = DISC * np.uint8(0), DISC * np.uint8(255)
FLAT_ERRORS = {  # what is changed in a sound set, which file the line names, what it says
    "truncated": (lambda r: cut(r / IMAGE), IMAGE, "truncated"),
    "no mask": (lambda r: (r / MASK).unlink(), IMAGE, "has no mask; add"),
    "no image": (lambda r: (r / IMAGE).unlink(), MASK, "has no image; add"),
    "unlike": (lambda r: edit(r / MASK, np.transpose), MASK, r"is \(48, 40\) .* its image \(40, 48\)"),
    "label": (lambda r: edit(r / MASK, lambda mask: mask // 2), MASK, "value 127 is not"),
    "NaN": (lambda r: [(r / IMAGE).unlink(), save(r / "benign/benign (0).tif", BLACK * np.float32("nan"))], "(0).tif", "NaN"),
}
FLAT_WARNINGS = {
    "one level": (lambda r: save(r / IMAGE, BLACK), IMAGE, "is one grey level"),
    "unmarked": (lambda r: save(r / MASK, BLACK), IMAGE, "is benign, and its mask marks nothing"),
    "marked": (lambda r: save(r / "normal/normal (3)_mask.png", WHITE), "normal/normal (3).png", "is normal, .* something"),
    "copy": (lambda r: save(r / OTHER, draw(0)), OTHER, r"shows the same as benign/benign \(0\); keep"),
    "alike": (lambda r: save(r / OTHER, draw(0) // 2), OTHER, r"looks like benign/benign \(0\); keep"),
    "palette": (lambda r: paint_palette(r / MASK), MASK, "is a palette .*8 bits 11 times"),
    "16 bits": (lambda r: save(r / MASK, WHITE.astype(np.uint16) * 257), MASK, "is 16 bits"),
    "1 bit": (lambda r: save(r / MASK, DISC), MASK, "is 1 bit"),
    "RGBA": (lambda r: edit(r / MASK, lambda mask: np.dstack([mask] * 4)), MASK, "is RGBA"),
    "size": (lambda r: [edit(r / IMAGE, np.transpose), edit(r / MASK, np.transpose)], IMAGE, r"\(48, 40\) .*\(40, 48\) 11 times"),
}
CT, LABELS, TURNED = "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", np.diag([-2.0, 2.0, 3.0, 1.0])
SOLID_ERRORS = {
    "NaN": (lambda r: put(r, "a", read(r, CT) * np.float32("nan"), read(r, LABELS)), CT, "holds NaN"),
    "truncated": (lambda r: cut(r / CT), CT, "damaged|cannot be opened"),
    "label": (lambda r: put(r, "a", read(r, CT), read(r, LABELS) * 7), LABELS, "value 7 is not"),
}
SOLID_WARNINGS = {
    "unmarked": (lambda r: put(r, "a", read(r, CT), read(r, LABELS) * 0), CT, "is a volume, and its mask marks nothing"),
    "one level": (lambda r: put(r, "a", read(r, CT) * 0, read(r, LABELS)), CT, "is one grey level"),
    "copy": (lambda r: put(r, "b", read(r, CT), read(r, LABELS)), "imagesTr/b.nii.gz", "shows the same as a; give both one"),
    "voxel": (lambda r: put(r, "a", read(r, CT), read(r, LABELS), np.diag([2, 2, 9.0, 1])), CT, r"is \(2.0, 2.0, 9.0\)"),
    "orientation": (lambda r: put(r, "a", read(r, CT)[::-1], read(r, LABELS)[::-1], TURNED), CT, "is LAS .*RAS 2 times"),
}
TABLES = {"busi error": FLAT_ERRORS, "busi warning": FLAT_WARNINGS}
TABLES |= {"volumes error": SOLID_ERRORS, "volumes warning": SOLID_WARNINGS}


@pytest.mark.parametrize(("table", "name"), [(table, name) for table in TABLES for name in TABLES[table]])
def test_each_strange_thing_is_the_one_line_about_its_file(busi, tmp_path, check, table, name):
    (layout, kind), (change, file, said) = table.split(), TABLES[table][name]
    root = busi if layout == "busi" else write_volumes(tmp_path / "volumes")
    change(root)
    code, (line, last), _ = check(root, "--folds", "2", "--validation", "0")
    place, what = line.removeprefix(f"{kind}: ").split(": ", 1)
    assert place.startswith(str(root)) and place.endswith(file) and ";" in what and re.search(said, what), line
    assert (code, last.split("; ")[1]) == ((2, "1 errors, 0 warnings") if kind == "error" else (0, "0 errors, 1 warnings"))


def test_what_is_sound_says_nothing_but_its_number(busi, tmp_path, check):
    for number in range(3):
        save(tmp_path / f"tree/US/gb/{number}.png", draw(number))
    for root, count in ((busi, 12), (write_volumes(tmp_path / "volumes"), 12), (tmp_path / "tree", 3)):
        code, lines, _ = check(root, "--folds", "2", "--validation", "0")
        assert (code, lines) == (0, [f"{root}: {count} cases can be read; 0 errors, 0 warnings"])


def test_all_errors_are_told_at_once_and_each_volume_is_read_once(busi, tmp_path, check, monkeypatch):
    cut(busi / IMAGE)
    (busi / "benign/benign (2)_mask.png").unlink()
    for number in (4, 6):
        cut(busi / f"benign/benign ({number})_mask.png")
    cut(busi / "normal/normal (3).png")
    code, lines, _ = check(busi)
    bad = ("benign (2).png", "benign (0).png", "benign (4)_mask.png", "benign (6)_mask.png", "normal (3).png")
    assert code == 2 and [line.split(": ")[:2] for line in lines[:5]] == [["error", str(busi / n.split()[0] / n)] for n in bad]
    assert lines[-1].startswith(f"{busi}: 7 cases can be read; 5 errors, ") and all(line[:9] == "warning: " for line in lines[5:-1])
    root, seen = write_volumes(tmp_path / "volumes", 5), []
    put(root, "a", read(root, CT) * np.float32("inf"), read(root, LABELS))
    put(root, "b", read(root, "imagesTr/b.nii.gz"), read(root, LABELS) + 6 * (np.arange(4) == 3).astype(np.uint8))  # in one slice
    whole = volumes.read_array
    monkeypatch.setattr(volumes, "read_array", lambda path, channel=0: seen.append(path) or whole(path, channel))
    faults = Faults()
    looks = examine(find_cases(SetSettings(data=root), faults).cases, faults)
    assert sorted(faults.values()) == ["a", "b"] and {name[0] for name in looks} == set("cde")
    assert len(seen) == len(set(seen)) == 9  # image and labels, of a the image alone


def test_a_fold_without_a_class_and_a_label_without_a_case_are_named(busi, check):
    for path in [*busi.glob("benign/*_mask.png"), *busi.glob("malignant/*5)_mask.png"), *busi.glob("malignant/*9)_mask.png")]:
        edit(path, lambda mask: mask * 0)
    lines = check(busi, "--folds", "3", "--validation", "0")[1]
    assert sum(bool(re.match(r"warning: splits: fold \d: test: no case shows lesion; ", line)) for line in lines) == 2
    edit(busi / "malignant/malignant (1)_mask.png", lambda mask: mask * 0)
    lines = check(busi)[1]
    assert sum("no case shows" in line for line in lines) == 0
    assert "warning: labels: no mask shows lesion; correct the masks, or leave it out" in lines


def test_one_patient_on_two_sides_of_given_splits_is_an_error(tmp_path, check):
    root = write_volumes(tmp_path / "volumes", 4)
    for name, folds in {"good": "ab cd cd ab", "bad": "abc bcd bd a"}.items():
        parts = folds.split()
        content = [{"train": [*parts[k]], "val": [*parts[k + 1]]} for k in (0, 2)]
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    words = (root, "--validation", "0", "--splits")
    assert check(*words, tmp_path / "good.json")[0] == 0
    code, lines, _ = check(*words, tmp_path / "bad.json")
    place = f"error: {tmp_path / 'bad.json'}: fold"
    assert code == 2 and f"{place} 0: group 'b' is in train and test; move all its cases to one side" in lines
    assert f"{place} 1: case 'c/0000' is in no part; write the splits for these cases" in lines
    assert sum(line.startswith("error: ") for line in lines) == 8 + 2 + 4  # b and c twice, of 4 slices; their groups; c left out


def test_patients_that_share_a_picture_are_named(tmp_path, check):
    for number, seed in enumerate((0, 1, 0, 2, 3)):
        save(tmp_path / f"images/p{number // 2}_{number}.png", draw(seed) // (1 + number // 2))
        save(tmp_path / f"masks/p{number // 2}_{number}.png", DISC.astype(np.uint8))
    shutil.copy(tmp_path / "images/p0_0.png", tmp_path / "images/p0_1.png")  # within a patient it is no leak
    lines = [line for line in check(tmp_path, "--folds", "2", "--validation", "0")[1] if "looks like" in line or "same as" in line]
    assert lines == [f"warning: {tmp_path}/images/p1_2.png: looks like p0_0; give both one patient with --group, or keep one"]


def test_what_is_left_out_stays_out_and_new_faults_are_refused(busi, tmp_path, monkeypatch, capsys):
    cut(busi / "benign/benign (0).png"), (busi / "normal/normal (3)_mask.png").unlink()
    words = ("--data", busi, "--out", tmp_path / "set", "--folds", 2, "--validation", 0)
    code, _, said = call(monkeypatch, capsys, dataset.main, *words)
    assert code == 2 and not (tmp_path / "set").exists() and said[-1].startswith(f"error: {busi}: 2 faults ") and len(said) == 3
    code, lines, _ = call(monkeypatch, capsys, dataset.main, *words, "--skip-bad")
    assert code == 0 and [line.split(": ")[1] for line in lines[:2]] == [f"{busi}/normal/normal (3).png", f"{busi}/{IMAGE}"]
    left, first = {"benign/benign (0)", "normal/normal (3)"}, open_set(tmp_path / "set")
    assert len(first.cases) == 10 and set(first.left_out) == left and not left & {case.id for case in first.cases}
    shutil.copy(busi / "benign/benign (2).png", busi / "benign/benign (0).png")  # mended: the set is what it was
    busi.rename(tmp_path / "moved")
    again = open_set(tmp_path / "set", tmp_path / "moved")
    assert again.names == first.names and again.left_out.keys() == left
    cut(tmp_path / "moved/malignant/malignant (5).png")
    with pytest.raises(InputError, match=r"malignant \(5\).png: cannot be read as an image"):
        open_set(tmp_path / "set", tmp_path / "moved")


def test_what_is_wrong_with_the_whole_folder_is_told_beside_single_files_and_never_skipped(tmp_path, check):
    for number in range(4):
        save(tmp_path / f"images/{number}.png", draw(number))
        save(tmp_path / f"masks/{number}.png", np.dstack([WHITE] * 3))
    assert check(tmp_path)[1][0].split(": ")[1:] == [
        f"{tmp_path}/masks/0.png",
        "storage of masks is RGB (in this set RGB 4 times); they are read as class numbers; save these in 8 bits if in doubt",
    ]
    (tmp_path / "masks/0.png").unlink()
    (tmp_path / "prompts.csv").write_text("text")
    code, lines, _ = check(tmp_path)
    assert code == 2 and [line.split(": ")[1] for line in lines[:2]] == [f"{tmp_path}/images/0.png", f"{tmp_path}/prompts.csv"]
    with pytest.raises(InputError, match=r": 2 faults .*, the first: .*images/0.png: has no mask"):
        read_set(SetSettings(data=tmp_path), skip_bad=True)


def test_a_set_that_is_bad_throughout_is_refused_with_everything_left_out(busi):
    for path in busi.rglob("*).png"):
        cut(path)
    with pytest.raises(InputError, match=": 12 faults "):
        read_set(SetSettings(data=busi), skip_bad=True)


def test_given_splits_do_without_what_is_left_out(busi, tmp_path):
    about = SetSettings(data=busi, folds=2, validation=0)
    write_splits(tmp_path / "flat.json", read_set(about).splits)
    cut(busi / "benign/benign (0).png")
    root = write_volumes(tmp_path / "volumes", 4)
    solid = SetSettings(data=root, folds=2, validation=0)
    write_splits(tmp_path / "solid.json", read_set(solid).splits)
    folds = [{"train": [*"ab"], "val": [*"cd"]}, {"train": [*"cd"], "val": [*"ab"]}]
    (tmp_path / "nnunet.json").write_text(json.dumps(folds))
    SOLID_ERRORS["NaN"][0](root)
    volumes.load_image.cache_clear()
    for one, name, count in ((about, "flat", 11), (solid, "solid", 12), (solid, "nnunet", 12)):
        given = parse(SetSettings, ["--data", str(one.data), "--validation", "0", "--splits", str(tmp_path / f"{name}.json")])
        with pytest.raises(InputError):
            read_set(given)
        found = read_set(given, skip_bad=True)
        assert sum(len(split.test) for split in found.splits) == len(found.cases) == count


def test_a_program_prints_twenty_faults_and_the_number(busi, monkeypatch, capsys):
    for number in range(25):
        save(busi / f"benign/benign ({100 + number}).png", draw(number))
    code, _, said = call(monkeypatch, capsys, lambda: open_set(busi))
    assert code == 2 and len(said) == 22 and said[-2] == "error: and 5 more"
    assert said[-1].startswith(f"error: {busi}: 25 faults (python -m emit.data check lists all), the first: {said[0][7:]}")
    (busi / "benign/benign (100).png").rename(busi / "benign/benign (0)_mask_1.png")
    for number in range(1, 25):
        (busi / f"benign/benign ({100 + number}).png").unlink()
    assert call(monkeypatch, capsys, lambda: open_set(busi))[2][0].count("error: ") == 1
