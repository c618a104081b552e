"""What a file came from: the leak ledger survives an export and a mixed folder, and a folder has a fingerprint."""

import hashlib
import shutil

import numpy as np
import pytest

from emit import checkpoints
from emit.data.cases import Case
from emit.data.similarity import content_hash
from emit.files import sha256
from emit.ledger import Ledger, open_ledger


def make_case(name, grey):
    return Case(name, name, "", "", f"{name}.png", lambda path: (np.linspace(-1, grey, 16, dtype=np.float32).reshape(4, 4), None))


@pytest.mark.parametrize("layout", ["single", "diffusers"])
def test_a_planted_case_is_found_behind_an_export(tmp_path, small, header, command, layout):
    source, target = tmp_path / "source" / "model.safetensors", tmp_path / "export" / "target"
    seen = Ledger().add("pre-training", [content_hash(make_case("seen", 0.5).image)])
    seen.write(source.parent)
    checkpoints.write_single(source, {"vae": small["vae"]}, header | seen.header)
    command("export", source, "--to", layout, target)
    shutil.rmtree(source.parent)
    tests = [make_case("planted", 0.5), make_case("seen", -0.5)]  # the second: another picture of the same name
    assert open_ledger(target, checkpoints.read(target).header).find(tests) == [("planted", "pre-training")]


def test_an_export_without_its_ledger_is_refused(tmp_path, small, header, command, capsys):
    checkpoints.write_single(tmp_path / "model.safetensors", {"vae": small["vae"]}, header)
    with pytest.raises(SystemExit):
        command("export", tmp_path / "model.safetensors", "--to", "diffusers", tmp_path / "folder")
    assert "is missing, and tells what model.safetensors was trained on" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_a_mixed_folder_has_the_ancestry_and_the_sizes_of_every_part(tmp_path, small, header):
    """The unet/ of one model with the vae/ of another; what both came from is named once."""
    common, *stages = [{"stage": stage, "cases": 1, "hashes": "0" * 64} for stage in ("common", "one", "other")]
    for stage, scale, heads in zip(stages, (0.25, 0.75), (1, 2), strict=True):
        header["config"]["vae"]["scale"], header["config"]["unet"]["heads"] = scale, heads
        parts, given = {part: small[part] for part in ("unet", "vae")}, header | {"ancestry": [common, stage]}
        checkpoints.write_diffusers(tmp_path / stage["stage"], parts, header["config"], given)
    shutil.rmtree(tmp_path / "one" / "vae")
    shutil.move(tmp_path / "other" / "vae", tmp_path / "one" / "vae")
    found = checkpoints.read(tmp_path / "one")
    assert found.header["ancestry"] == [common, *stages]
    assert (found.config["vae"]["scale"], found.config["unet"]["heads"]) == (0.75, 1)
    assert checkpoints.read(tmp_path / "one" / "unet").header["ancestry"] == [common, stages[0]]


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
