"""No picture that is black, constant, clipped or not finite gets into a manifest; one that is lost is made again."""

import functools
import json
import math
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from emit.data.images import decode
from emit.generated import KINDS
from emit.model import EmitDiff

pytestmark = pytest.mark.slow


def spoil_decoder(source, target, scale, shift):
    """Copy a model file with the last layer of its decoder scaled, and its bias shifted."""
    with safe_open(source, "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    last = "first_stage_model.decoder.conv_out."
    tensors[f"{last}weight"] *= scale
    tensors[f"{last}bias"] = tensors[f"{last}bias"] * scale + shift
    save_file(tensors, target, header)


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


def lines_of(folder):
    return [json.loads(line) for path in folder.rglob("manifest.jsonl") for line in path.read_text().splitlines()]


def require_refusal(programs, code, *words):
    """Require exit code 2, one line with these words, and no constant picture in the folder."""
    said = programs.said().strip().splitlines()[-1]
    assert code == 2 and said.startswith("error: ") and all(word in said for word in words), programs.said()
    assert all(np.ptp(decode(path)) > 2 for path in (programs.root / "made").rglob("images/*.png"))


@pytest.mark.parametrize(
    ("scale", "shift", "fault"),
    [
        (1e30, 0, "is black or white on"),
        (math.nan, 0, "holds NaN"),
        (0, 0.3, "is grey level 166 everywhere"),
        (0, -9, "level 0 every"),
    ],
)
def test_a_spoilt_decoder_makes_no_picture(programs, scale, shift, fault):
    programs.begin("made")
    spoilt = programs.root / "pre" / "spoilt.safetensors"  # beside the ledger of the model that it comes from
    spoil_decoder(programs.root / "pre" / "model.safetensors", spoilt, scale, shift)
    require_refusal(programs, programs.run("made", "--model", str(spoilt)), fault)
    assert lines_of(programs.root / "made") == []


def test_guidance_without_bounds_makes_no_picture(programs):
    programs.begin("made")
    require_refusal(programs, programs.run("made", "--guidance", "1e30"), "fold0: image 0 of case", "holds NaN")
    assert lines_of(programs.root / "made") == []


@pytest.mark.parametrize("pixels", [math.inf, math.nan, 0.25])
def test_a_bad_picture_in_the_middle_is_named_and_the_others_stay(programs, pixels):
    programs.begin("made")
    whole = lines_of(programs.root / "whole_made")
    code = programs.run("made", fault=functools.partial(spoil_third, pixels))
    require_refusal(programs, code, f"fold0: image 0 of case {whole[2]['case']} ")
    assert lines_of(programs.root / "made") == whole[:2]
    assert programs.run("made", "--resume") == 0 and programs.differences("made") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_gone_or_cut_is_made_again(programs, kind):
    programs.begin("made")
    shutil.copytree(programs.root / "whole_made", programs.root / "made")
    gone, cut, *_ = sorted((programs.root / "made" / "fold1" / kind).iterdir())
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:40])
    assert programs.differences("made")
    assert programs.run("made", "--resume") == 0, programs.said()
    assert programs.differences("made") == []
