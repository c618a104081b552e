"""Masks for new files: what stage 3 scored, one world whatever the orientation, means of segmenters; sets of --test."""

import csv
import json
import runpy
import shutil
import sys

import nibabel
import numpy as np
import pytest
import torch
from nibabel import orientations
from PIL import Image

import train_seg
from emit import dataset, predict
from emit.checkpoints.writer import save
from emit.data.images import decode
from emit.data.phantom import write_busi
from emit.errors import InputError
from emit.networks.segmenter import Segmenter, SegmenterConfig
from emit.seeds import generator
from tests.helpers import call

SHORT = ["--steps", 2, "--warmup", 0, "--size", 16, "--channels", "2,4", "--arms", "baseline,mirror", "--device", "cpu"]


def balance(network):
    """Let a segmenter of few steps find every class somewhere."""
    image = torch.randn(1, 1, 16, 16, generator=generator("balance"))
    with torch.no_grad():
        network.eval().head.bias -= network(image).mean(dim=(0, 2, 3))
    return network


def save_balanced(path, weights, header):
    """Save what a training selects; its end, which adds the ancestry, leaves the weights as they are."""
    if "ancestry" not in header:
        network = Segmenter(SegmenterConfig(**header["config"]))
        network.load_state_dict(weights)
        weights = balance(network).state_dict()
    save(path, weights, header)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on two folds of one set of phantoms, tested on another."""
    folder = tmp_path_factory.mktemp("predict")
    write_busi(folder / "first", 32, 0, 8), write_busi(folder / "other", 32, 1, 5)
    call(dataset, "--data", folder / "first", "--folds", 2, "--out", folder / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_seg, "save", save_balanced)
        call(train_seg, "--data", folder / "set", "--test", folder / "other", *SHORT, "--out", folder / "seg")
    return folder


def read_masks(folder):
    return {path.stem: decode(path) for path in (folder / "masks").iterdir()}


@pytest.mark.parametrize(("test", "source"), [("", "first"), ("test_other", "other")])
def test_new_pictures_get_the_very_masks_that_stage_3_scored(folder, tmp_path, test, source):
    place = "baseline/fold1_seed0"
    with np.load(folder / "seg" / test / place / "predictions.npz") as stored:
        expected = {name.removeprefix("test_other/"): stored[name] for name in stored}
    files = [folder / source / f"{name}.png" for name in expected]
    words = ["--segmenter", folder / "seg" / place / "segmenter.safetensors", "--data", ",".join(map(str, files))]
    call(predict, *words, "--out", tmp_path / "masks", "--spacing", "0.5,2")
    found = read_masks(tmp_path / "masks")
    assert found.keys() == {name.split("/")[1] for name in expected} and any(0 < labels.mean() < 1 for labels in expected.values())
    assert all(np.array_equal(found[name.split("/")[1]], 255 * labels) for name, labels in expected.items())  # as in the files
    with open(tmp_path / "masks" / "sizes.csv") as file:
        sizes = {row["case"]: row for row in csv.DictReader(file)}
    assert all(float(sizes[name]["size"]) == np.count_nonzero(mask) for name, mask in found.items())  # 0.5 x 2 = 1 mm2
    assert {row["unit"] for row in sizes.values()} == {"mm2"}
    overlay = decode(tmp_path / "masks" / "overlays" / f"{next(iter(found))}.png")
    assert overlay.shape[:2] == (128, 512)  # 32 x 32, enlarged 16 times, of pixels that are 4 times as wide as high


def test_every_test_case_is_scored_by_every_fold_and_counts_once(folder):
    summary = json.loads((folder / "seg" / "test_other" / "summary.json").read_text())
    with open(folder / "seg" / "test_other" / "per_case.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "baseline"]
    assert len(rows) == 10 and summary["cases"] == 5 and summary["folds"] == 2
    assert json.loads((folder / "seg" / "summary.json").read_text())["folds"] == 1
    assert summary["arms"]["baseline"]["dice"]["mean"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]), abs=1e-12)
    assert (folder / "seg" / "test_other" / "figures" / "paired.png").exists()
    assert "by the segmenters of 2 folds" in (folder / "seg" / "test_other" / "report.html").read_text()


def test_a_resumed_run_scores_a_further_set_and_changes_no_other(folder, tmp_path):
    seg = shutil.copytree(folder / "seg", tmp_path / "seg")
    before = {path: path.read_bytes() for name in ("scores.json", "segmenter.safetensors") for path in seg.rglob(name)}
    for path in list(seg.rglob("scores.json"))[::2]:
        path.unlink()  # as a kill leaves it
    further = shutil.copytree(folder / "other", tmp_path / "further")
    tests = f"{folder / 'other'},{further}"
    call(train_seg, "--data", folder / "set", "--test", tests, *SHORT, "--out", seg, "--resume")
    assert {path: path.read_bytes() for path in before} == before
    other, again = (json.loads((seg / f"test_{name}" / "summary.json").read_text()) for name in ("other", "further"))
    assert other["arms"] == again["arms"]
    call(train_seg, "--data", folder / "set", "--test", tests, *SHORT, "--out", seg, "--resume")  # all is there already
    assert other["arms"] == json.loads((seg / "test_other" / "summary.json").read_text())["arms"]
    next(further.rglob("*_mask.png")).unlink()
    with pytest.raises(InputError, match=r"test_further changed since|has no mask"):
        call(train_seg, "--data", folder / "set", "--test", tests, *SHORT, "--out", seg, "--resume")


def test_a_planted_copy_is_refused_by_name_before_any_work(folder, tmp_path):
    other = shutil.copytree(folder / "other", tmp_path / "planted")
    source = next(path for path in sorted(folder.glob("first/benign/*.png")) if "mask" not in path.stem)
    shutil.copy(source, other / "benign" / "innocent.png")
    shutil.copy(source.with_name(f"{source.stem}_mask.png"), other / "benign" / "innocent_mask.png")
    with pytest.raises(InputError, match=r"^test_planted: 1 test cases .* such as test_planted/benign/innocent in the cases of"):
        call(train_seg, "--data", folder / "set", "--test", other, *SHORT, "--out", tmp_path / "seg")
    assert not (tmp_path / "seg").exists()


def test_one_fold_trains_on_everything_and_needs_a_test_set(folder, tmp_path):
    call(dataset, "--data", folder / "first", "--folds", 1, "--out", tmp_path / "set")
    (split,) = dataset.open_set(tmp_path / "set").splits
    assert len(split.train) + len(split.validation) == 8 and split.validation and split.test == ()
    with pytest.raises(InputError, match="first: has no test part; give --test"):
        call(train_seg, "--data", tmp_path / "set", *SHORT, "--out", tmp_path / "seg")
    call(train_seg, "--data", tmp_path / "set", "--test", folder / "other", *SHORT, "--out", tmp_path / "seg")
    assert json.loads((tmp_path / "seg" / "test_other" / "summary.json").read_text())["cases"] == 5
    assert not (tmp_path / "seg" / "summary.json").exists()


def test_sets_that_do_not_fit_are_refused(folder, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "flat" / kind).mkdir(parents=True)
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / "flat" / kind / "1.png")
    cases = {"classes: background,foreground": [tmp_path / "flat"], "two folders end in one name": [folder / "other"] * 2}
    for message, tests in cases.items():
        with pytest.raises(InputError, match=message):
            call(train_seg, "--data", folder / "set", "--test", ",".join(map(str, tests)), *SHORT, "--out", tmp_path / "seg")


def test_the_header_tells_what_was_learned_from(folder, capsys, monkeypatch):
    path = folder / "seg" / "baseline" / "fold0_seed0" / "segmenter.safetensors"
    header = predict.read_tensors(path)[1]
    split = dataset.open_set(folder / "set").splits[0]
    (entry,) = header["ancestry"]
    assert entry["stage"] == "segmentation, fold 0" and entry["cases"] == len(split.train) + len(split.validation)
    assert header["reading"]["values"] == [0, 255]
    monkeypatch.setattr(sys, "argv", ["checkpoints", "inspect", str(path)])
    runpy.run_module("emit.checkpoints", run_name="__main__")
    assert "segmentation, fold 0" in capsys.readouterr().out


# ---- volumes


READING = {"window": [-100.0, 300.0], "channel": 0, "axis": 2, "values": [0, 7, 300]}


def write_segmenter(path, seed=0, **change):
    """Write a segmenter of random weights."""
    torch.manual_seed(seed)
    network = balance(Segmenter(SegmenterConfig(1, 3, (2, 4))))
    config = {"in_channels": 1, "classes": 3, "channels": [2, 4], "variant": "attention"}
    header = {"config": config, "classes": ["background", "liver", "tumour"], "size": 16, "reading": READING} | change
    save(path, network.state_dict(), header)


def write_volume(path, codes):
    """Write one and the same oblique, anisotropic volume, stored along other axes."""
    voxels = torch.randn(9, 7, 4, generator=generator("volume")).numpy() * 100 + 100  # (R, A, S)
    turned, _ = np.linalg.qr(np.array([[1, 0.1, 0], [-0.1, 1, 0.05], [0, -0.05, 1]]))
    affine = np.eye(4)
    affine[:3, :3] = turned * np.sign(np.diag(turned)) * [1.0, 2.0, 3.0]
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))
    stored = orientations.apply_orientation(voxels.astype(np.float32), turn)
    file = nibabel.Nifti1Image(stored, affine @ orientations.inv_ornt_aff(turn, voxels.shape))
    nibabel.save(file, path)
    return file


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_in_five_orientations_gets_one_mask_in_world_coordinates(tmp_path, axis):
    write_segmenter(tmp_path / "segmenter.safetensors", reading=READING | {"axis": axis})
    (tmp_path / "data").mkdir()
    given = {codes: write_volume(tmp_path / "data" / f"{codes}.nii.gz", codes) for codes in ("RAS", "LPS", "ASR", "SPL", "IAR")}
    call(predict, "--segmenter", tmp_path / "segmenter.safetensors", "--data", tmp_path / "data", "--out", tmp_path / "out")
    masks = {codes: nibabel.load(tmp_path / "out" / "masks" / f"{codes}.nii.gz") for codes in given}
    canonical = []
    for codes, mask in masks.items():
        assert np.array_equal(mask.affine, nibabel.load(tmp_path / "data" / f"{codes}.nii.gz").affine)
        assert mask.shape == given[codes].shape and mask.get_data_dtype() == np.uint16
        canonical.append(np.asarray(nibabel.as_closest_canonical(mask).dataobj))
    assert all(np.array_equal(one, canonical[0]) for one in canonical)
    assert set(np.unique(canonical[0])) <= {0, 7, 300} and len(np.unique(canonical[0])) > 1
    with open(tmp_path / "out" / "sizes.csv") as file:
        for row in csv.DictReader(file):
            voxels = np.count_nonzero(canonical[0] == int(row["value"]))
            assert float(row["size"]) == pytest.approx(voxels * 6, rel=1e-5) and row["unit"] == "mm3"  # float32 in the header


def test_slices_are_put_back_where_they_were_cut():
    shape = (5, 4, 3)
    canonical = np.arange(60, dtype=np.uint8).reshape(shape)
    file = nibabel.Nifti1Image(canonical, np.eye(4))
    for axis in range(3):
        slices = np.stack([predict.np.take(canonical, i, axis=axis).T[::-1, ::-1] for i in range(shape[axis])])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predict.nibabel, "load", lambda path: file)
            assert np.array_equal(predict.to_native("x", slices, axis).dataobj, canonical)


# ---- several segmenters


def test_the_mean_is_of_probabilities():
    networks = [Fixed([0.0, 1.0]), Fixed([6.0, 0.0]), Fixed([0.0, 2.0])]
    probability = torch.stack([network.scores.softmax(0) for network in networks]).mean(0)
    found = predict.Ensemble(networks)(torch.zeros(1, 1, 1, 1))[0, :, 0, 0]
    assert torch.allclose(found.softmax(0), probability, atol=1e-6)  # float32
    assert probability[1] > 0.5 and sum(network.scores for network in networks)[1] < 6  # the mean of scores says class 0


class Fixed(torch.nn.Module):
    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor(scores))

    def forward(self, image):
        return self.scores.reshape(1, -1, 1, 1)


def test_a_folder_is_the_mean_of_what_lies_below_and_one_alone_is_itself(tmp_path):
    for number in range(2):
        write_segmenter(tmp_path / str(number) / "segmenter.safetensors", number)
    network, about = predict.load_segmenters(sorted(tmp_path.rglob("*.safetensors")))
    assert len(network.networks) == 2 and about["values"] == [0, 7, 300] and not network.training
    assert isinstance(predict.load_segmenters([tmp_path / "0" / "segmenter.safetensors"])[0], Segmenter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 32}, "1/segmenter.safetensors: its size: 32; of .*0/segmenter.safetensors: 16"),
        ({"classes": ["background", "liver", "cyst"]}, "its classes: background,liver,cyst"),
        ({"reading": READING | {"axis": 1}}, "its axis: 1"),
        ({"reading": {"layout": "busi"}}, "is no segmenter, or an earlier version's"),
    ],
)
def test_segmenters_that_differ_are_refused(tmp_path, change, message):
    for number, more in enumerate(({}, change)):
        write_segmenter(tmp_path / str(number) / "segmenter.safetensors", **more)
    with pytest.raises(InputError, match=message):
        predict.load_segmenters(sorted(tmp_path.rglob("*.safetensors")))


# ---- the program


@pytest.fixture
def words(tmp_path):
    write_segmenter(tmp_path / "segmenter.safetensors")
    (tmp_path / "data").mkdir()
    for codes in ("RAS", "LPS"):
        write_volume(tmp_path / "data" / f"{codes}.nii.gz", codes)
    return ["--segmenter", tmp_path / "segmenter.safetensors", "--data", tmp_path / "data", "--out", tmp_path / "out"]


def test_a_stopped_run_goes_on_and_another_is_refused(tmp_path, words, monkeypatch):
    made, segment = [], predict.segment

    def stop(network, slices, *others):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(slices[0].volume)
        return segment(network, slices, *others)

    monkeypatch.setattr(predict, "segment", stop)
    with pytest.raises(KeyboardInterrupt):
        call(predict, *words)
    with pytest.raises(InputError, match="out: is not empty; go on with --resume"):
        call(predict, *words)
    monkeypatch.setattr(predict, "segment", lambda *inputs: made.append(inputs[1][0].volume) or segment(*inputs))
    call(predict, *words, "--resume")
    assert made == ["LPS", "RAS"]
    with open(tmp_path / "out" / "sizes.csv") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["LPS", "LPS", "RAS", "RAS"]
    write_segmenter(tmp_path / "segmenter.safetensors", 1)
    with pytest.raises(InputError, match="segmenter 0 changed since the first run"):
        call(predict, *words, "--resume")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "nowhere.nii"], "nowhere.nii: is or holds no NIfTI volume"),
        (["--spacing", "1"], "--spacing: is 1.0; give two numbers"),
        (["--segmenter", "tests"], "tests: holds no segmenter.safetensors|tests: cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line(words, more, message):
    with pytest.raises(InputError, match=message):
        call(predict, *words, *more)


def test_labels_are_written_as_the_training_set_has_them():
    labels = np.array([[0, 1, 2]], np.uint8)
    assert predict.to_values(labels, [0, 5, 255]).tolist() == [[0, 5, 255]]
    assert predict.to_values(labels, [0, "red", [1, 2, 3]]).tolist() == [[[0, 0, 0], [255, 0, 0], [1, 2, 3]]]


def test_a_mask_beside_its_picture_is_no_picture(tmp_path):
    for name in ("a (1)", "a (1)_mask", "a (1)_mask_1", "b_mask"):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    settings = predict.Settings(segmenter=tmp_path, data=(tmp_path,), out=tmp_path / "out")
    assert sorted(predict.list_items(settings, {"axis": None})) == ["a (1)", "b_mask"]
