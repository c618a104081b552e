"""What a file or a flag holds is returned as it is, or refused in one line: whatever stands in it."""

import json
import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from emit.checkpoints.reader import read_tensors
from emit.data.cases import Case, find_group
from emit.data.splits import Split, make_splits, read_splits, write_splits
from emit.dataset import SetSettings, read_set
from emit.errors import InputError
from emit.files import find_misfit, parse_json
from emit.generate import Settings
from emit.generated import LINE, read_left_out, read_manifest
from emit.training.settings import expand_sweep

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from([int, float, str, bool, list, dict, object, range(5), (None, int), [int], dict[str, int], {"a": str}])
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=8)
SLOW = settings(max_examples=40, derandomize=True, deadline=None, database=None)


def one_line(error):
    """Tell whether a refusal says where, what, and what to do, and is no wall of text."""
    message = str(error.value if hasattr(error, "value") else error)
    return ": " in message and "; " in message and len(message) < 1000


def returned_or_refused(function, *arguments):
    """Return what the function does, or None where it refuses; anything else is an error of ours."""
    try:
        return function(*arguments)
    except InputError as error:
        assert one_line(error), str(error)
        return None


@SLOW
@given(VALUES, KINDS)
def test_json_comes_back_as_it_was_or_is_refused_with_the_reason(value, kind):
    text = json.dumps(value)
    fault = find_misfit(value, kind)
    assert returned_or_refused(parse_json, text, kind, "x.json", "write it anew") == (None if fault else value)
    assert fault is None or (len(fault) < 200 and " is " in fault)
    for cut in {len(text) // 2, len(text) - 1}:  # a shorter number is a number
        returned_or_refused(parse_json, text[:cut], kind, "x.json", "write it anew")


@SLOW
@given(st.text(max_size=60))
def test_any_text_is_json_or_refused(text):
    returned_or_refused(parse_json, text, object, "x.json", "write it anew")


@SLOW
@given(lines=st.lists(st.tuples(NAMES, st.integers(0, 9)), unique=True, max_size=5), cut=st.integers(0, 400), fault=VALUES)
def test_the_lines_of_a_manifest_come_back_but_for_one_that_was_cut(tmp_path_factory, lines, cut, fault):
    folder = tmp_path_factory.getbasetemp()
    shared = {"prompt": "US", "size": 32, "sha256": dict.fromkeys(("images", "masks", "edges"), "0")}
    lines = [{"file": f"{n}.png", "case": case, "index": index} | shared for n, (case, index) in enumerate(lines)]
    assert all(find_misfit(line, LINE) is None for line in lines)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    kept = text[: max(0, len(text) - cut)]
    (folder / "manifest.jsonl").write_text(kept)
    whole = kept.count("\n") + (kept[kept.rfind("\n") + 1 :].endswith("}}"))  # the end of a line alone may be gone
    assert read_manifest(folder) == lines[:whole]
    (folder / "left_out.jsonl").write_text(json.dumps({"case": "a", "index": 1, "fault": fault}) + "\n" + json.dumps(fault) + "\n")
    found = returned_or_refused(read_left_out, folder)
    assert found is None or isinstance(fault, dict)


@SLOW
@given(
    sizes=st.lists(st.integers(1, 4), min_size=6, max_size=12),
    names=NAMES,
    folds=st.integers(2, 3),
    share=st.sampled_from([0, 0.2]),
)
def test_splits_come_back_as_they_were_written(tmp_path_factory, sizes, names, folds, share):
    path = tmp_path_factory.getbasetemp() / "splits.json"
    groups = [f"{names}{number}" for number, size in enumerate(sizes) for _ in range(size)]
    cases = [Case(f"{group}/{n}", group, "", "", "", None) for n, group in enumerate(groups)]
    splits = make_splits(cases, folds, 1, share)
    write_splits(path, splits)
    assert read_splits(path, cases) == splits
    moved = [Split(splits[0].train[1:], splits[0].validation, splits[0].test), *splits[1:]]  # a case is lost
    write_splits(path, moved)
    with pytest.raises(InputError, match="is in no part") as error:
        read_splits(path, cases)
    assert one_line(error)


@SLOW
@given(header=st.dictionaries(st.text(max_size=6), VALUES, max_size=3), at=st.integers(0, 300), byte=st.integers(0, 255))
def test_a_safetensors_file_with_any_byte_changed_is_read_or_refused(tmp_path_factory, header, at, byte):
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}, path, {"emit": json.dumps(header)})
    content = bytearray(path.read_bytes())
    found = returned_or_refused(read_tensors, path)
    assert found is None or (torch.equal(found[0]["a"], torch.arange(6.0).view(2, 3)) and found[1] == header)
    assert found is not None or header
    content[at % len(content)] = byte
    path.write_bytes(content)
    returned_or_refused(read_tensors, path)
    path.write_bytes(struct.pack("<Q", at) + bytes(content[8:]))  # a header of another length
    returned_or_refused(read_tensors, path)


@SLOW
@given(value=st.text(max_size=12), stem=NAMES)
def test_any_value_of_group_labels_and_sweep_is_taken_or_refused(tmp_path_factory, value, stem):
    root = tmp_path_factory.getbasetemp() / "empty"
    os.makedirs(root, exist_ok=True)
    group = returned_or_refused(find_group, Case(stem, stem, "", "", "", None), value)
    assert group is None or group in stem
    with pytest.raises(InputError) as error:
        read_set(SetSettings(data=root, labels=tuple(value.split(","))))
    assert one_line(error)
    paths = dict.fromkeys(("model", "finetuned", "hed", "out"), root)
    runs = returned_or_refused(expand_sweep, Settings(**paths, sweep=(f"guidance={value}", "3")), ("guidance",))
    assert runs is None or len(runs) == 2
