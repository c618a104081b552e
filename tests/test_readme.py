"""README's numbers of lines are true, and its commands name flags that exist."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

import train_finetune
import train_pretrain
import train_seg
from emit import dataset, generate, sample
from emit.checkpoints import write_single
from emit.model import DEMO, DEMO_HED, EmitDiff
from emit.networks.hed import HED

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PROGRAMS = {
    "train_pretrain.py": train_pretrain,
    "train_finetune.py": train_finetune,
    "train_seg.py": train_seg,
    "emit.dataset": dataset,
    "emit.generate": generate,
    "emit.sample": sample,
}


def count(path):
    return len(path.read_text().splitlines())


def test_the_numbers_of_lines_are_true():
    stated = {name: int(lines) for name, lines in re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", README, re.M)}
    assert len(stated) > 20 and stated == {name: count(ROOT / name) for name in stated}
    program = sum(count(path) for path in (*ROOT.glob("*.py"), *(ROOT / "emit").rglob("*.py")))
    read, whole = (int(number.replace(",", "")) for number in re.search(r"These are ([\d,]+) of ([\d,]+) lines", README).groups())
    assert (read, whole) == (sum(stated.values()), program)


@pytest.mark.parametrize("text", ["README.md", "docs/real_data.md"])
def test_commands_have_flags_that_exist(text):
    found = 0
    for line in (ROOT / text).read_text().replace("`", "\n").splitlines():
        program = next((name for name in PROGRAMS if re.search(rf"(python|-m) {re.escape(name)} --", line)), None)
        if program is None:
            continue
        known = {"--" + f.name.replace("_", "-") for f in fields(PROGRAMS[program].Settings)} | {"--preset"}
        flags = {word.partition("=")[0] for word in shlex.split(line, comments=True) if word.startswith("--")}
        assert flags <= known, line
        found += 1
    assert found >= 4


def test_the_five_lines_run(tmp_path, monkeypatch):
    block = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len([line for line in block.splitlines() if line and "import" not in line]) == 5
    model, controlnet, picture, hed = re.findall(r'"(runs/[^"]+)"', block)
    for name in (model, controlnet, picture, hed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    EmitDiff(DEMO).save(tmp_path / model)
    EmitDiff(DEMO).save(tmp_path / controlnet, parts=["controlnet"])
    write_single(tmp_path / hed, {"hed": HED(DEMO_HED).state_dict()}, {})
    Image.effect_noise((70, 50), 60).save(tmp_path / picture)
    monkeypatch.chdir(tmp_path)
    names = {}
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    exec(block, names)
    assert shown[0].size == (192, 64)
