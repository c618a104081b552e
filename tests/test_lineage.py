"""What made a file: the chain is read from the ledger, config.json and SHA-256 alone, and the rest is unknown."""

import json
import re
import runpy
import shutil
import sys

import pytest
import torch

from emit import __version__
from emit.checkpoints import write_single
from emit.files import sha256
from emit.ledger import Ledger
from emit.lineage import describe_lineage
from emit.networks.hed import HED
from emit.training.settings import RunSettings, save_config


def write(path, ledger, **header):
    """Write a small file of ours: what it holds does not matter here, what its header says does."""
    torch.manual_seed(len(str(path)))
    write_single(path, {"hed": HED((1, 1, 1, 1, 1)).state_dict()}, (ledger.header if ledger else {}) | header)


@pytest.fixture
def runs(tmp_path):
    """Public weights, a pre-training, two folds of a fine-tuning, and the images of one."""
    runs = tmp_path / "runs"
    write(runs / "public.safetensors", None)
    seen = Ledger().add("pre-training", range(1, 1235))
    write(runs / "pre" / "model.safetensors", seen)
    save_config(runs / "pre", RunSettings(steps=700, lr=3e-3), {"weights": runs / "public.safetensors"}, "trees", ["a"])
    folds = [seen.add(f"fine-tuning, fold {fold}", range(2000, 2008 + fold)) for fold in (0, 1)]
    for fold, ledger in enumerate(folds):
        write(runs / "fine" / f"fold{fold}" / "controlnet.safetensors", ledger, losses={"hint_true": 0.25, "fold": fold})
    save_config(runs / "fine", RunSettings(steps=200), {"model": runs / "pre" / "model.safetensors"}, "BUSI", ["b"])
    files = {f"fold{fold}": runs / "fine" / f"fold{fold}" / "controlnet.safetensors" for fold in (0, 1)}
    save_config(runs / "made", RunSettings(steps=12), files | {"model": runs / "pre" / "model.safetensors"}, "BUSI", ["b"])
    (runs / "made" / "fold0").mkdir(parents=True)
    (runs / "made" / "fold0" / "manifest.jsonl").write_text("{}\n")
    (runs / "made" / "fold0" / "ledger.json").write_text(json.dumps(folds[0].header))
    return runs


def sections(text):
    """Return [(file name, its lines)]."""
    parts = re.split(r"^## (.*)\n", text, flags=re.M)[1:]
    return [(name, body.strip().splitlines()) for name, body in zip(parts[::2], parts[1::2], strict=True)]


def test_the_chain_of_an_image_goes_back_to_the_public_weights(runs):
    found = sections(describe_lineage(runs / "made" / "fold0" / "manifest.jsonl"))
    assert [name for name, _ in found] == ["manifest.jsonl", "controlnet.safetensors", "model.safetensors", "public.safetensors"]
    images, control, model, public = (lines for _, lines in found)
    control_file = runs / "fine" / "fold0" / "controlnet.safetensors"
    assert f"- file: {control_file}, SHA-256 {sha256(control_file)}" in control
    assert f"- parent fold0: {control_file}, SHA-256 {sha256(control_file)}" in images
    other = runs / "fine" / "fold1" / "controlnet.safetensors"  # the run read it, for other images
    assert f"- input fold1: {other}, SHA-256 {sha256(other)}" in images
    assert '- losses: {"hint_true": 0.25, "fold": 0}' in control
    assert [line.split(", list")[0] for line in control if line.startswith("- pictures")] == [
        "- pictures in pre-training: 1,234",
        "- pictures in fine-tuning, fold 0: 8",
    ]
    assert any(line.startswith("- settings: steps 700, batch 16, lr 0.003") for line in model)
    assert any(line.startswith(f'- code, at the last start: {{"version": "{__version__}", "commit": ') for line in model)
    config = json.loads((runs / "pre" / "config.json").read_text())
    assert f"- input data: trees, SHA-256 {config['inputs']['data']['sha256']}" in model
    unknown = ["- pictures: unknown", "- format: 2", "- run: unknown", "- code, at the last start: unknown", "- settings: unknown"]
    assert public[1:] == unknown


def test_runs_that_were_moved_together_are_found_and_a_changed_parent_is_not(runs, tmp_path):
    shutil.move(runs, tmp_path / "elsewhere")
    file = tmp_path / "elsewhere" / "made" / "fold0" / "manifest.jsonl"
    assert [name for name, _ in sections(describe_lineage(file))] == [
        "manifest.jsonl",
        "controlnet.safetensors",
        "model.safetensors",
    ]  # the public file lay beside no run
    control = tmp_path / "elsewhere" / "fine" / "fold0" / "controlnet.safetensors"
    control.write_bytes(control.read_bytes()[:-1] + b"x")
    ((_, images), *others) = sections(describe_lineage(file))
    assert [name for name, _ in others] == ["model.safetensors"]
    (line,) = [line for line in images if line.startswith("- input fold0")]
    assert line.endswith("; not found as it was, so what made it is unknown")


@pytest.mark.parametrize("config", [None, '{"architectures": ["CLIPTextModel"]}', "{"])
def test_a_file_alone_is_known_by_its_header(runs, tmp_path, config):
    """Copied out of its folder, or beside another program's config.json."""
    (tmp_path / "alone").mkdir()
    shutil.copy(runs / "pre" / "model.safetensors", tmp_path / "alone" / "model.safetensors")
    if config is not None:
        (tmp_path / "alone" / "config.json").write_text(config)
    ((_, lines),) = sections(describe_lineage(tmp_path / "alone" / "model.safetensors"))
    assert [line.split(":")[1].split(",")[0] for line in lines[1:]] == [" 1", " 2", " unknown", " unknown", " unknown"]


def test_a_public_file_in_a_run_folder_is_not_that_runs(runs):
    write(runs / "pre" / "hed.safetensors", None)
    ((_, lines),) = sections(describe_lineage(runs / "pre" / "hed.safetensors"))
    assert lines[3] == "- run: unknown"


def test_two_files_of_a_run_tell_its_settings_once_and_the_command_writes_a_card(runs, tmp_path, monkeypatch, capsys):
    write(runs / "pre" / "hed.safetensors", Ledger().add("pre-training", range(1, 1235)))
    files = {"hed": runs / "pre" / "hed.safetensors", "model": runs / "pre" / "model.safetensors"}
    shutil.rmtree(runs / "fine")
    control = runs / "fine" / "fold0" / "controlnet.safetensors"
    write(control, Ledger().add("pre-training", range(1, 1235)))
    save_config(runs / "fine", RunSettings(), files, "BUSI", ["b"])
    words = ["emit.checkpoints", "lineage", str(control), "--card", str(tmp_path / "card.md")]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_module("emit.checkpoints", run_name="__main__")
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "card.md").read_text() and printed.startswith("# Model card: controlnet.safetensors\n")
    settings = {name: [line for line in lines if "settings" in line] for name, lines in sections(printed)}
    assert settings["model.safetensors"] == ["- settings: as above"] and "steps 700" in settings["hed.safetensors"][0]
    monkeypatch.setattr(sys, "argv", ["emit.checkpoints", "inspect", *words[2:]])
    with pytest.raises(SystemExit):
        runpy.run_module("emit.checkpoints", run_name="__main__")
