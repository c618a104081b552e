"""The folder of generated images: what is no picture is named, what is not whole is not read."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from emit.errors import InputError
from emit.generated import Generated, find_fault, is_whole, read_manifest, save_pictures
from emit.seeds import generator

PICTURE = torch.linspace(-1, 1, 64 * 64).view(64, 64)


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (PICTURE, None),
        (torch.where(PICTURE > 0.9, PICTURE, -1.0), "black or white on 95%"),  # a nearly black picture
        (torch.where(PICTURE > 0.8, PICTURE, -1.0), None),  # a dark one
        (torch.full((64, 64), 0.1), "grey level 140 everywhere"),
        (0.0001 * PICTURE, "everywhere"),  # constant once it is 8 bits
        (PICTURE.masked_fill(PICTURE == 1, math.nan), "holds NaN"),
        (PICTURE.masked_fill(PICTURE == 1, math.inf), "infinity"),
        (torch.sign(PICTURE), "black or white on 100%"),
        (torch.stack([PICTURE, PICTURE, -PICTURE]), None),
        (torch.stack([PICTURE.sign(), -PICTURE.sign(), PICTURE.sign()]), "black or white on 100%"),  # its mean is grey
    ],
)
def test_what_is_no_picture_is_named(image, fault):
    assert find_fault(image) is None if fault is None else fault in find_fault(image)


@pytest.fixture
def folder(tmp_path):
    files = [np.full((4, 4), value, np.uint8) for value in (1, 2, 3)]
    lines = []
    for name in ("a_000.png", "b_000.png"):
        line = {"file": name, "case": name[0], "index": 0, "size": 4, "prompt": "US"}
        lines.append(line | {"sha256": save_pictures(tmp_path, name, *files)})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "ledger.json").write_text(json.dumps({"ancestry": []}))
    return tmp_path


@pytest.mark.parametrize("kind", ["images", "masks", "edges"])
@pytest.mark.parametrize("change", ["gone", "cut", "another"])
def test_a_picture_that_is_not_as_it_was_written_is_seen(folder, kind, change):
    path, lines = folder / kind / "b_000.png", read_manifest(folder)
    assert [is_whole(folder, line) for line in lines] == [True, True]
    other = folder / ("masks" if kind == "images" else "images") / "b_000.png"
    {"gone": path.unlink, "cut": lambda: path.write_bytes(path.read_bytes()[:-3]),
     "another": lambda: shutil.copy(other, path)}[change]()  # fmt: skip
    assert [is_whole(folder, line) for line in lines] == [True, False]
    with pytest.raises(InputError, match=r"b_000.png is missing or changed"):
        Generated(folder)


def test_a_line_that_a_kill_cut_off_is_none(folder):
    text = (folder / "manifest.jsonl").read_text()
    for bad in ("null", "{", text.partition("\n")[0].replace('"file": "', '"file": "../')):
        (folder / "manifest.jsonl").write_text(f"{bad}\n{text}")
        with pytest.raises(InputError, match=r"manifest.jsonl: (line 1: is damaged|../a_000.png is twice in it, or)"):
            read_manifest(folder)
    (folder / "manifest.jsonl").write_text(text[:-9])
    assert [line["file"] for line in read_manifest(folder)] == ["a_000.png"]
    assert read_manifest(folder / "nowhere") == []
    with pytest.raises(InputError, match="is missing or empty"):
        Generated(folder / "nowhere")
    with pytest.raises(InputError, match="holds no image for case b"):
        Generated(folder).draw(["a", "b"], None)


def test_the_best_are_kept_and_of_each_case_one(folder):
    lines = read_manifest(folder)
    files = [np.full((4, 4), value, np.uint8) for value in (3, 2, 1)]
    for index in (1, 2):  # of case a
        line = {"file": f"a_00{index}.png", "case": "a", "index": index, "size": 4, "prompt": "US"}
        lines.append(line | {"sha256": save_pictures(folder, line["file"], *files)})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "left_out.jsonl").write_text("".join(f'{{"case": "b", "index": {index}, "fault": "is black"}}\n' for index in (1, 2)))
    images = Generated(folder)
    assert images.keep([0.4, 0.1, 0.3, 0.5], 0.7) == [0, 1, 3]  # two of a's three, and b's only one, though the worst
    assert [case for case, *_ in images.pairs()] == ["a", "b", "a"]
    drawn, masks = images.draw(["a"] * 40, generator("keep"))
    assert drawn.shape == (40, 1, 4, 4) and masks.shape == (40, 4, 4) and masks.dtype == torch.long
    assert {round(127.5 * (level.item() + 1)) for level in drawn[:, 0, 0, 0]} == {1, 3} and (masks == 2).all()
    assert images.keep([0.4, 0.1, 0.3, 0.5], 0.1) == [1, 3]  # at least one
    assert images.keep([0.4, 0.1, 0.3, 0.5], 1.0) == [1, 3]  # what is left out stays out
    assert Generated(folder).keep([0.0] * 4, 0.34) == [0, 1]  # of equals the first, and no more than asked


@pytest.mark.parametrize(
    ("listed", "left_out", "limit", "refused"),
    [
        ("a0 a1 b0 b1", "", None, None),
        ("a0 a1 b0", "", None, "image 1 of case b is missing; run emit.generate --resume"),  # a run that was broken off
        ("a1 b0 b1", "", None, "image 0 of case a is missing"),
        ("a0 a1 b0", "b1", None, None),
        ("a0 a2 b0 b1 b2", "a1", None, None),
        ("a0 a1 b0 b1", "b2", None, "image 2 of case a is missing"),
        ("a0 a1", "b0 b1", None, "every image of case b was left out; run emit.generate --resume with a higher --n"),
        ("a0 a1 b1", "b0", None, None),
        ("a0 a1 b1", "b0", 1, "every image of case b was left out"),
        ("a0 a1 b0", "b1", 1, None),
        ("a0 a1 b0", "", 1, None),  # the second of b is not asked for
    ],
)
def test_an_image_may_be_missing_on_purpose_alone(folder, listed, left_out, limit, refused):
    lines, others = [], []
    for name in listed.split():
        line = {"file": f"{name}.png", "case": name[0], "index": int(name[1]), "size": 4, "prompt": "US"}
        lines.append(line | {"sha256": save_pictures(folder, f"{name}.png", *[np.full((4, 4), 1, np.uint8)] * 3)})
    for name in left_out.split():
        others.append({"case": name[0], "index": int(name[1]), "fault": "holds NaN", "seed": 3})
    for path, content in (("manifest.jsonl", lines), ("left_out.jsonl", others)):
        (folder / path).write_text("".join(json.dumps(line) + "\n" for line in content))
    if refused is None:
        assert len(Generated(folder, limit).lines) == sum(limit is None or line["index"] < limit for line in lines)
    else:
        with pytest.raises(InputError, match=refused):
            Generated(folder, limit)
