"""The leak ledger: a picture is found by its content, wherever it was seen; the lists stay small and whole."""

import hashlib
import json
import time

import numpy as np
import pytest
import torch

from emit import ledger
from emit.data.cache import TrainingImages
from emit.data.cases import Case
from emit.errors import InputError
from emit.ledger import Ledger, join, open_ledger


def make_case(name, grey):
    return Case(name, name, "", "", f"{name}.png", lambda path: (np.linspace(-1, grey, 16, dtype=np.float32).reshape(4, 4), None))


def hashes_of(*cases, read=None):
    pictures = TrainingImages(list(cases), 8)
    pictures.batch(list(range(len(cases))) if read is None else read)
    return pictures.hashes


def test_a_picture_is_found_by_its_content_in_every_ancestor(tmp_path):
    first = Ledger().add("pre-training", hashes_of(make_case("seen", 0.5)))
    other = Ledger().add("hed", hashes_of(make_case("a", 0.1), make_case("b", 0.2)))
    whole = join([first, other, first]).add("fine-tuning", hashes_of(make_case("c", 0.3)))
    assert [entry["stage"] for entry in whole.entries] == ["pre-training", "hed", "fine-tuning"]
    assert [entry["cases"] for entry in whole.entries] == [1, 2, 1]
    whole.write(tmp_path)
    (tmp_path / "fold0").mkdir()
    found = open_ledger(tmp_path / "fold0" / "controlnet.safetensors", json.loads(json.dumps(whole.header)))
    tests = [make_case("planted", 0.5), make_case("seen", -0.5), make_case("x", 0.2), make_case("y", 0.3)]
    assert found.find(tests) == [("planted", "pre-training"), ("x", "hed"), ("y", "fine-tuning")]


def test_only_pictures_that_were_read_are_on_it_and_blank_ones_are_no_leak():
    """The first slices of two volumes are black and equal, and say nothing of a patient."""
    blank = Case("first", "p", "", "", "x", lambda path: (np.full((4, 4), -1, np.float32), None))
    cases = [make_case("a", 0.1), make_case("b", 0.2), blank]
    written = Ledger().add("x", hashes_of(*cases, read=[1, 2]))
    assert written.entries[0]["cases"] == 2 and written.find(cases) == [("b", "x")]
    assert Ledger().find(cases) == [] and Ledger().add("x", torch.zeros(3, dtype=torch.int64)).find(cases) == []


@pytest.mark.parametrize("fault", ["gone", "cut", "another", "no list", "of another length"])
def test_a_list_that_is_not_whole_is_refused(tmp_path, fault):
    written = Ledger().add("x", hashes_of(make_case("a", 0.1)))
    written.write(tmp_path)
    (path,) = (tmp_path / "ledger").iterdir()
    {"gone": path.unlink, "cut": lambda: path.write_bytes(path.read_bytes()[:-1]),
     "another": lambda: path.write_bytes(path.read_bytes()[:-1] + b"x"), "of another length": lambda: None,
     "no list": lambda: path.with_stem(hashlib.sha256(b"x").hexdigest()).write_bytes(b"x")}[fault]()  # fmt: skip
    (entry,) = written.entries
    entry |= {"no list": {"hashes": hashlib.sha256(b"x").hexdigest()}, "of another length": {"cases": 2}}.get(fault, {})
    with pytest.raises(InputError, match=r"ledger/[0-9a-f]{64}.npy: is (missing|damaged)"):
        open_ledger(tmp_path / "model.safetensors", written.header)


@pytest.mark.parametrize(
    "ancestry",
    [
        None, ["x"], [{"stage": "x", "cases": 1}], {"stage": "x"}, [{"stage": "x", "cases": 1, "hashes": "../../x"}],
        [{"stage": 1, "cases": 1, "hashes": 64 * "a"}],
    ],
)  # fmt: skip
def test_a_damaged_ancestry_is_refused(tmp_path, ancestry):
    (tmp_path / "ledger.json").write_text(json.dumps({"ancestry": ancestry}))
    with pytest.raises(InputError, match=r"(ancestry|ledger.json:) is damaged"):
        ledger.read(tmp_path / "ledger.json")


def test_the_papers_pre_training_fits(tmp_path):
    """1.35 million hashes: 10.8 MB a list, the header some hundred bytes, processor seconds to write and read (bar: 3 each)."""
    hashes = torch.randint(-(2**62), 2**62, (1_350_000,), generator=torch.Generator().manual_seed(0))
    began = time.process_time()
    seen = Ledger().add("pre-training", hashes)
    seen.write(tmp_path)
    middle = time.process_time()
    again = open_ledger(tmp_path / "model.safetensors", seen.header)
    assert again.find([make_case("a", 0.1)]) == []
    end = time.process_time()
    assert len(json.dumps(seen.header)) < 300
    assert sum(file.stat().st_size for file in (tmp_path / "ledger").iterdir()) < 10.9e6
    assert middle - began < 3 and end - middle < 3
