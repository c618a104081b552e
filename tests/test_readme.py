"""README's numbers of lines are true, and its commands name flags that exist."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import train_finetune
import train_pretrain
import train_seg
from emit import dataset, generate

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PROGRAMS = {
    "train_pretrain.py": train_pretrain,
    "train_finetune.py": train_finetune,
    "train_seg.py": train_seg,
    "emit.dataset": dataset,
    "emit.generate": generate,
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
