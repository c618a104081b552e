"""No picture that is black, constant, clipped or not finite gets into a manifest; one that is lost is made again."""

import functools
import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from emit.data.images import decode
from emit.generated import KINDS
from emit.model import EmitDiff


def spoil_decoder(source, target, spoil):
    """Copy a model file with the last layer of its decoder changed in place by spoil(name, tensor)."""
    with safe_open(source, "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    last = [name for name in tensors if name.startswith("first_stage_model.decoder.conv_out.")]
    assert len(last) == 2
    for name in last:
        spoil(name, tensors[name])
    save_file(tensors, target, header)


def huge(name, tensor):
    tensor.mul_(1e30)


def lost(name, tensor):
    tensor.fill_(float("nan"))


def dead(name, tensor):
    tensor.fill_(0.3 if name.endswith("bias") else 0)


def black(name, tensor):
    tensor.fill_(-9 if name.endswith("bias") else 0)


def spoil_third(pixels):
    """In the process of the generator: the second batch's first image holds this value everywhere."""
    whole, calls = EmitDiff.generate, []

    @functools.wraps(whole)
    def generate(*arguments, **options):
        images = whole(*arguments, **options).clone()
        calls.append(1)
        if len(calls) == 2:
            images[0] = pixels
        return images

    EmitDiff.generate = generate


def overflow():
    spoil_third(float("inf"))


def not_a_number():
    spoil_third(float("nan"))


def grey():
    spoil_third(0.25)


def lines_of(folder):
    return [json.loads(line) for path in folder.rglob("manifest.jsonl") for line in path.read_text().splitlines()]


def require_refusal(programs, code, case=""):
    said = programs.said().strip().splitlines()[-1]
    assert code == 2 and said.startswith("error: ") and case in said, programs.said()
    for path in (programs.root / "made").rglob("images/*.png"):
        assert np.ptp(decode(path)) > 2, path
    return said


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [huge, lost, dead, black])
def test_a_spoilt_decoder_makes_no_picture(programs, spoil):
    programs.begin("made")
    spoilt = programs.root / "pre" / "spoilt.safetensors"  # beside the ledger of the model that it comes from
    spoil_decoder(programs.root / "pre" / "model.safetensors", spoilt, spoil)
    code = programs.run("made", "--model", str(spoilt))
    require_refusal(programs, code)
    assert lines_of(programs.root / "made") == []
    programs.restore("made")


@pytest.mark.slow
def test_guidance_without_bounds_makes_no_picture(programs):
    programs.begin("made")
    require_refusal(programs, programs.run("made", "--guidance", "1e30"))
    assert lines_of(programs.root / "made") == []
    programs.restore("made")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [overflow, not_a_number, grey])
def test_a_bad_picture_in_the_middle_is_named_and_the_others_stay(programs, fault):
    whole = lines_of(programs.root / "made")
    programs.begin("made")
    said = require_refusal(programs, programs.run("made", fault=fault), f"image 0 of case {whole[2]['case']} ")
    assert "made/fold0" in said and lines_of(programs.root / "made") == whole[:2]
    assert programs.run("made", "--resume") == 0 and programs.differences("made") == []
    programs.restore("made")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_gone_or_cut_is_made_again(programs, kind):
    made = programs.root / "made"
    programs.begin("made")
    shutil.copytree(programs.root / "whole_made", made)
    files = sorted((made / "fold1" / kind).iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:40])
    assert programs.differences("made")
    assert programs.run("made", "--resume") == 0, programs.said()
    assert programs.differences("made") == []
    programs.restore("made")
