"""The four commands in order, a few steps each, on small phantoms: what one writes, the next reads."""

import csv
import json
import sys

import pytest
import torch

import train_finetune
import train_pretrain
import train_seg
from emit import generate
from emit.data.images import decode
from emit.data.phantom import write_phantoms
from emit.errors import InputError


def call(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    module.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run the four commands once; size 32, steps enough to run every line."""
    folder = tmp_path_factory.mktemp("run")
    patch = pytest.MonkeyPatch()
    write_phantoms(folder / "phantoms", size=32, pretrain=12, busi=18, patients=2)
    labelled = ["--data", folder / "phantoms" / "BUSI", "--size", 32, "--folds", 2]
    model = ["--model", folder / "pre" / "model.safetensors", "--hed", folder / "pre" / "hed.safetensors"]
    data = ["--data", folder / "phantoms" / "radiology_ai", "--boundaries", folder / "phantoms" / "boundaries"]
    steps = [f"--{part}-steps=2" for part in ("vae", "hed", "unet", "control")]
    steps += [f"--{part}-batch=2" for part in ("vae", "hed", "unet", "control")]
    call(patch, train_pretrain, *data, "--out", folder / "pre", "--size", 32, "--warmup", 1, *steps)
    call(patch, train_finetune, *labelled, *model, "--out", folder / "fine", "--steps", 2, "--batch", 2, "--warmup", 1)
    made = ["--finetuned", folder / "fine", "--out", folder / "made", "--n", 2, "--steps", 2]
    call(patch, generate, *labelled, *model, *made)
    arms = ["--arms", "baseline,mirror,ours", "--steps", 4, "--batch", 4, "--warmup", 1, "--select-every", 2]
    call(patch, train_seg, *labelled, "--generated", folder / "made", "--out", folder / "seg", *arms)
    patch.undo()
    return folder


def test_every_case_is_scored_once_in_every_arm(folder):
    with open(folder / "seg" / "per_case.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == {"baseline", "mirror", "ours"}
    for arm in ("baseline", "mirror", "ours"):
        assert len({row["case"] for row in rows if row["arm"] == arm}) == 18 == sum(row["arm"] == arm for row in rows)


def test_the_manifest_makes_an_image_again(folder, monkeypatch):
    before = (folder / "made" / "fold0" / "manifest.jsonl").read_text().splitlines()
    line = json.loads(before[-1])
    assert {"file", "case", "prompt", "seed", "sampling", "weights", "source", "hint"} <= line.keys()
    labelled = ["--data", folder / "phantoms" / "BUSI", "--size", 32, "--folds", 2, "--fold", 0]
    model = ["--model", folder / "pre" / "model.safetensors", "--hed", folder / "pre" / "hed.safetensors"]
    again = ["--finetuned", folder / "fine", "--out", folder / "again", "--n", 2, "--steps", 2, "--batch", 3]
    call(monkeypatch, generate, *labelled, *model, *again)
    lines = (folder / "again" / "fold0" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(a)["seed"] for a in lines] == [json.loads(b)["seed"] for b in before]
    differences = []
    for entry in map(json.loads, lines):
        one, two = (decode(folder / name / "fold0" / "images" / entry["file"]) for name in ("made", "again"))
        differences.append(abs(one.astype(int) - two.astype(int)).max())
    assert max(differences) <= 1  # other batch, other order of float32 sums: one grey level where rounding turns


def test_only_training_cases_are_generated_and_on_the_ledger(folder):
    splits = json.loads((folder / "made" / "splits.json").read_text())
    for fold, split in enumerate(splits):
        lines = (folder / "made" / f"fold{fold}" / "manifest.jsonl").read_text().splitlines()
        assert {json.loads(line)["case"] for line in lines} == set(split["train"])
        ledger = json.loads((folder / "made" / f"fold{fold}" / "ledger.json").read_text())["ancestry"]
        seen = {name for entry in ledger for name in entry["cases"]}
        assert set(split["train"]) <= seen and not seen & set(split["test"])


def test_used_folders_are_refused_and_nothing_changes(folder, monkeypatch):
    labelled = ["--data", folder / "phantoms" / "BUSI", "--size", 32, "--folds", 2, "--steps", 4, "--batch", 4]
    files = {path: path.stat().st_mtime_ns for path in (folder / "seg").rglob("*") if path.is_file()}
    with pytest.raises(InputError):
        call(monkeypatch, train_seg, *labelled, "--out", folder / "seg", "--arms", "baseline")
    assert files == {path: path.stat().st_mtime_ns for path in (folder / "seg").rglob("*") if path.is_file()}


def test_arms_share_every_setting_of_the_run(folder):
    states = [torch.load(folder / "seg" / arm / "fold0_seed0" / "state.pt", weights_only=True) for arm in ("baseline", "ours")]
    assert states[0]["settings"] == states[1]["settings"]
