"""What a file came from: the leak ledger survives an export and a mixed folder, and a folder has a fingerprint."""

import hashlib
import json
import runpy
import shutil
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from emit import checkpoints
from emit.data.cases import Case
from emit.data.similarity import content_hash
from emit.files import sha256
from emit.ledger import Ledger, open_ledger


def make_case(name, grey):
    return Case(name, name, "", "", f"{name}.png", lambda path: (np.linspace(-1, grey, 16, dtype=np.float32).reshape(4, 4), None))


def export(monkeypatch, source, layout, target):
    """Run `python -m emit.checkpoints export` in this process."""
    monkeypatch.setattr(sys, "argv", ["emit.checkpoints", "export", str(source), "--to", layout, str(target)])
    runpy.run_module("emit.checkpoints", run_name="__main__")


@pytest.mark.parametrize("layout", ["single", "diffusers"])
def test_a_planted_case_is_found_behind_an_export(tmp_path, small, header, monkeypatch, layout):
    source, target = tmp_path / "source" / "model.safetensors", tmp_path / "export" / "target"
    seen = Ledger().add("pre-training", [content_hash(make_case("seen", 0.5).image)])
    seen.write(source.parent)
    checkpoints.write_single(source, {"vae": small["vae"]}, header | seen.header)
    export(monkeypatch, source, layout, target)
    exported, fingerprint = checkpoints.read(target).header, sha256(source)
    assert exported["made_from"] == [{"file": "model.safetensors", "sha256": fingerprint}]
    shutil.rmtree(source.parent)
    tests = [make_case("planted", 0.5), make_case("seen", -0.5)]  # the second: another picture of the same name
    assert open_ledger(target, exported).find(tests) == [("planted", "pre-training")]


def test_an_export_without_its_ledger_is_refused(tmp_path, small, header, monkeypatch, capsys):
    checkpoints.write_single(tmp_path / "model.safetensors", {"vae": small["vae"]}, header)
    with pytest.raises(SystemExit):
        export(monkeypatch, tmp_path / "model.safetensors", "diffusers", tmp_path / "folder")
    assert "is missing, and tells what model.safetensors was trained on" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def write_mixed(folder, small, header):
    """Write unet/ and vae/ of one model, and put the vae/ of another in place; return the stages of both."""
    parts = {part: small[part] for part in ("unet", "vae")}
    stages = [[{"stage": stage, "cases": 1, "hashes": "0" * 64}] for stage in ("common", "first", "second")]
    for name, own in (("one", stages[1]), ("other", stages[2])):
        given = {**header, "ancestry": stages[0] + own, "made_from": [{"file": name, "sha256": "0" * 64}]}
        checkpoints.write_diffusers(folder / name, parts, header["config"], given)
    shutil.rmtree(folder / "one" / "vae")
    shutil.move(folder / "other" / "vae", folder / "one" / "vae")
    return [entry for own in stages for entry in own]


def test_a_mixed_folder_has_the_ancestry_of_every_part(tmp_path, small, header):
    entries = write_mixed(tmp_path, small, header)
    found = checkpoints.read(tmp_path / "one").header
    assert found["ancestry"] == entries  # and what both came from once
    assert [source["file"] for source in found["made_from"]] == ["one", "other"]
    assert found["config"] == header["config"]
    assert checkpoints.read(tmp_path / "one" / "unet").header["ancestry"] == entries[:2]


def test_every_parts_sizes_are_those_of_its_own_folder(tmp_path, small, header):
    for name, scale, heads in (("one", 0.25, 1), ("other", 0.75, 2)):
        header["config"]["vae"]["scale"], header["config"]["unet"]["heads"] = scale, heads
        parts = {part: small[part] for part in ("unet", "vae")}
        checkpoints.write_diffusers(tmp_path / name, parts, header["config"], header)
    shutil.rmtree(tmp_path / "one" / "vae")
    shutil.move(tmp_path / "other" / "vae", tmp_path / "one" / "vae")
    config = checkpoints.read(tmp_path / "one").config
    assert (config["vae"]["scale"], config["unet"]["heads"]) == (0.75, 1)


def test_every_shard_is_asked_for_its_ancestry(tmp_path, small, header):
    checkpoints.write_diffusers(tmp_path, {"unet": small["unet"]}, header["config"])
    whole = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    names, tensors = {}, load_file(whole)
    whole.unlink()
    for shard in ("first", "second"):
        own = sorted(tensors)[shard == "second" :: 2]
        said = header | {"ancestry": [{"stage": shard, "cases": 1, "hashes": "0" * 64}]}
        save_file({name: tensors[name].clone() for name in own}, whole.with_name(shard), {"emit": json.dumps(said)})
        names |= dict.fromkeys(own, shard)
    (tmp_path / "unet" / "a.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    found = checkpoints.read(tmp_path)
    assert [entry["stage"] for entry in found.header["ancestry"]] == ["first", "second"]


def test_sha256_of_a_folder_is_that_of_its_files_lines(tmp_path):
    for name in ("unet/b", "a", "unet/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    lines = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("a", "unet/a", "unet/b")]
    before = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert sha256(tmp_path) == sha256(str(tmp_path)) == before
    (tmp_path / "unet" / "b").write_text("unet/c")  # one byte
    changed = sha256(tmp_path)
    (tmp_path / "unet" / "b").write_text("unet/b")
    assert sha256(tmp_path) == before
    (tmp_path / "unet" / "b").rename(tmp_path / "unet" / "c")
    assert len({before, changed, sha256(tmp_path)}) == 3
