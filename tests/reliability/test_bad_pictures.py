"""No picture that is black, constant, clipped or not finite gets into a manifest; one that is lost is made again.

It is drawn once more with the next seed, and then left out, or stops the fold where more than one in twenty are bad.
"""

import functools
import json
import math
import shutil
import signal

import numpy as np
import pytest
from harness import Points, compare
from safetensors import safe_open
from safetensors.torch import save_file

from emit.data.images import decode
from emit.generated import KINDS
from emit.model import EmitDiff
from emit.seeds import seed_from

pytestmark = pytest.mark.slow


def spoil_decoder(source, target, scale, shift):
    """Copy a model file with the last layer of its decoder scaled, and its bias shifted."""
    with safe_open(source, "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    last = "first_stage_model.decoder.conv_out."
    tensors[f"{last}weight"] *= scale
    tensors[f"{last}bias"] = tensors[f"{last}bias"] * scale + shift
    save_file(tensors, target, header)


def spoil(seeds, pixels):
    """In the process of the generator: images of these seeds hold this value everywhere."""
    whole = EmitDiff.generate

    @functools.wraps(whole)
    def generate(self, prompts, hint, drawn, *arguments):
        images = whole(self, prompts, hint, drawn, *arguments).clone()
        images[[seed in seeds for seed in drawn]] = pixels
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
def test_a_bad_picture_in_the_middle_is_drawn_again_or_named_and_the_others_stay(programs, pixels):
    programs.begin("made")
    whole = lines_of(programs.root / "whole_made")
    bad, case = whole[2]["seed"], whole[2]["case"]
    assert programs.run("made", fault=functools.partial(spoil, [bad], pixels)) == 0, programs.said()
    lines = lines_of(programs.root / "made")
    assert [n for n, (one, other) in enumerate(zip(lines, whole, strict=True)) if one != other] == [2]
    assert lines[2]["seed"] == bad + 1
    shutil.rmtree(programs.root / "made")
    code = programs.run("made", fault=functools.partial(spoil, [bad, bad + 1], pixels))  # one of four is more than 5 %
    require_refusal(programs, code, f"fold0: image 0 of case {case} ", "with two seeds; look at --guidance")
    assert lines_of(programs.root / "made") == whole[:2]
    assert programs.run("made", "--resume") == 0 and programs.differences("made") == []


def test_a_picture_that_is_left_out_is_left_out_after_a_kill_and_by_stage_3(programs):
    programs.begin("made")
    made, seg, eight = programs.root / "made", programs.root / "seg_left_out", ["--n", "8"]  # 24 images: one may fail
    case = lines_of(programs.root / "whole_made")[2]["case"]
    seeds = [seed_from(0, case, 4), seed_from(0, case, 4) + 1, seed_from(0, case, 2)]
    fault = functools.partial(spoil, seeds, 0.25)
    assert programs.run("made", *eight, fault=fault, points=Points(made)) == 0, programs.said()
    writes, words = programs.log.with_suffix(".points").read_text().splitlines(), "of case"
    assert f"image 4 {words} {case} is grey level 159 everywhere, with two seeds: left out" in programs.said()
    (line,) = [json.loads(text) for text in (made / "fold0" / "left_out.jsonl").read_text().splitlines()]
    assert (line["case"], line["index"], line["seed"]) == (case, 4, seeds[1])
    given = ["--generated", str(made), "--out", str(seg), "--arms", "ours"]
    assert programs.run("seg", *given) == 0, programs.said()
    whole = made.rename(programs.root / "left_out_made")
    for at in [*range(0, len(writes), len(writes) // 5), *(n for n, write in enumerate(writes) if "left_out" in write)]:
        shutil.rmtree(made, ignore_errors=True)
        assert programs.run("made", *eight, fault=fault, points=Points(made, at)) == -signal.SIGKILL
        assert programs.run("made", *eight, "--resume", fault=fault) == 0, programs.said()
        assert compare(whole, made) == [], writes[at]
    (made / "fold0" / "left_out.jsonl").unlink()
    shutil.rmtree(seg), shutil.rmtree(whole)
    assert programs.run("seg", *given) == 2
    assert programs.said().endswith(f"manifest.jsonl: image 4 of case {case} is missing; run emit.generate --resume\n")


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
