"""docs/paper.md is complete and true: what it names exists where it says, and the mathematics and the networks are all in it."""

import ast
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

import train_finetune
import train_pretrain
import train_seg
from emit import dataset, generate, sample

ROOT = Path(__file__).resolve().parents[1]
PAPER = (ROOT / "docs" / "paper.md").read_text()
PROGRAMS = (train_pretrain, train_finetune, train_seg, dataset, generate, sample)
FLAGS = {f.name for program in PROGRAMS for f in fields(program.Settings)}
MATHEMATICS = sorted(path for folder in ("diffusion", "networks") for path in (ROOT / "emit" / folder).glob("[!_]*.py"))


@cache
def names_of(path):
    """Return the names that a Python file defines: at its top, and Class.name within a class."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        for name in targets_of(node):
            names |= {name, *(f"{name}.{inner}" for one in getattr(node, "body", ()) for inner in targets_of(one))}
    return names


def targets_of(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def find(name, folder):
    """Return the file of a name such as diffusion/schedule.py: below the folder, or at the root."""
    return next((path for path in (ROOT / folder / name, ROOT / name) if path.is_file()), None)


def words_of(text):
    return [word.split("=")[0].split()[0] for word in re.findall(r"`([^`]+)`", text)]


def rows():
    """Yield (function column, test column) of the tables that have both."""
    for table in re.findall(r"^\|.*\| test \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAPER, re.M):
        for line in table.splitlines():
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            yield cells[1], cells[2]


def read_column(column, folder):
    """Return {file: names said to be in it}; a name belongs to the file last named before it."""
    found, file = {}, None
    for cell in column:
        for word in words_of(cell):
            if word.endswith(".py"):
                file = find(word, folder)
                assert file is not None, f"{word} is no file"
                found.setdefault(file, set())
            elif re.fullmatch(r"[A-Za-z_][\w.]*", word) and word not in FLAGS and not word.startswith("emit."):
                found[file].add(word)
    return found


FUNCTIONS = read_column([functions for functions, _ in rows()], "emit")
TESTS = read_column([tests for _, tests in rows()], "tests")


@pytest.mark.parametrize("found", [FUNCTIONS, TESTS], ids=["functions", "tests"])
def test_a_name_is_in_the_file_that_is_said_to_hold_it(found):
    assert len(found) > 15 and sum(map(len, found.values())) > 60
    for file, names in found.items():
        assert names <= names_of(file), f"{file.name} has no {', '.join(sorted(names - names_of(file)))}"


@pytest.mark.parametrize("path", MATHEMATICS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_public_function_or_class_is_left_out(path):
    public = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    missing = {name for name in public if not name.startswith("_")} - FUNCTIONS.get(path, set())
    assert not missing, f"docs/paper.md leaves out {', '.join(sorted(missing))}"


def test_whatever_else_it_names_exists():
    """Files, flags and modules anywhere in the text; names outside the tables somewhere in the program or its tests."""
    files = [*ROOT.glob("*.py"), *(ROOT / "emit").rglob("*.py"), *(ROOT / "tests").rglob("test_*.py")]
    defined = set().union(*map(names_of, files))
    members = {name.rpartition(".")[2] for name in defined}
    for word in words_of(PAPER):
        if word.startswith("--"):
            known = word[2:].replace("-", "_") in {*FLAGS, "help", "preset"}
        elif word.startswith("emit."):
            known = (ROOT / f"{word.replace('.', '/')}.py").is_file()
        elif word.endswith((".py", ".md", ".png")):
            known = find(word, "emit") or find(word, "tests")
        elif "/" in word:
            known = (ROOT / word).exists()
        else:
            known = word in defined | members | FLAGS or word.startswith("[")  # [choice]: a source
        assert known, f"docs/paper.md names {word}, which does not exist"
