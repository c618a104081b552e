"""The generator's images one by one: what is no picture is drawn again once, left out, or stops a broken model."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from emit import generate
from emit.data.cases import Case
from emit.data.images import decode
from emit.dataset import LabelledSet, SetSettings
from emit.errors import InputError
from emit.files import sha256
from emit.generated import Generated
from emit.seeds import seed_from
from emit.training.settings import to_plain


class Noise(nn.Module):
    """A model whose image depends on its seed alone; the seeds in `bad` give NaN, one grey level, or black."""

    def __init__(self, bad=None):
        super().__init__()
        self.weight, self.bad, self.calls = nn.Parameter(torch.ones(())), bad or {}, []

    def generate(self, prompts, hint, seeds, size, *_):
        self.calls.append(seeds)
        images = [torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        images = [torch.full_like(i, self.bad[seed]) if seed in self.bad else i for i, seed in zip(images, seeds, strict=True)]
        return torch.stack(images)


class Edges(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image):
        return (image[:, :1] + 1) / 2


def seed_of(case, index):
    return seed_from(0, case, index)


def describe(folder, n=20, batch=3):
    """Return two cases of 16 pixels, their set, and settings that make n images of each."""
    folder.mkdir(exist_ok=True)
    (folder.parent / "case.png").touch()
    picture = np.linspace(-0.5, 0.5, 256, dtype=np.float32).reshape(16, 16)
    read = lambda path: (picture, np.ones((16, 16), np.uint8))  # noqa: E731
    cases = [Case(name, name, "US", "", str(folder.parent / "case.png"), read) for name in ("a", "b")]
    labelled = LabelledSet(cases, ("background", "lesion"), [], SetSettings(data=folder), 16, "hed", 16)
    paths = dict.fromkeys(("model", "finetuned", "hed", "out"), folder)
    return cases, labelled, generate.Settings(**paths, n=n, batch=batch, vary=0.0, texture=0.0)


def make(folder, model, n=20, batch=3):
    """Fill a folder with images."""
    generate.generate_fold(model, Edges(), *describe(folder, n, batch), {}, folder)
    (folder / "ledger.json").write_text('{"ancestry": []}')


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("level", [math.nan, 0.25, -1.0])
def test_a_bad_picture_is_drawn_once_more_with_the_next_seed_which_its_line_keeps(tmp_path, level):
    first, made = tmp_path / "first", tmp_path / "made"
    make(first, Noise())
    make(made, model := Noise({seed_of("a", 4): level}))
    whole, lines = lines_of(first / "manifest.jsonl"), lines_of(made / "manifest.jsonl")
    assert model.calls[:3] == [[seed_of("a", i) for i in range(3)], [seed_of("a", i) for i in (3, 4, 5)], [seed_of("a", 4) + 1]]
    assert len(lines) == 40 and not (made / "left_out.jsonl").exists()
    assert [n for n in range(40) if lines[n] != whole[n]] == [4] and lines[4]["seed"] == whole[4]["seed"] + 1
    assert Noise().generate(None, None, [lines[4]["seed"]], 16).isfinite().all()


def test_a_picture_that_is_bad_twice_is_named_left_out_and_counted_as_done(tmp_path, capsys):
    first, made = tmp_path / "first", tmp_path / "made"
    bad = {seed_of("b", 7): 0.25, seed_of("b", 7) + 1: math.inf, seed_of("a", 2): math.nan, seed_of("a", 2) + 1: -1.0}
    make(first, Noise())
    make(made, Noise(bad))
    said = capsys.readouterr().out
    assert f"{made}: image 7 of case b holds NaN or infinity, with two seeds: left out" in said and "38 images, 2 left out" in said
    left_out = lines_of(made / "left_out.jsonl")
    assert [(line["case"], line["index"], line["seed"]) for line in left_out] == [
        ("a", 2, seed_of("a", 2) + 1), ("b", 7, seed_of("b", 7) + 1)]  # fmt: skip
    assert left_out[0]["fault"] == "is black or white on 100% of its area" or "everywhere" in left_out[0]["fault"]
    whole = [line for line in lines_of(first / "manifest.jsonl") if (line["case"], line["index"]) not in (("a", 2), ("b", 7))]
    assert lines_of(made / "manifest.jsonl") == whole and len(Generated(made).lines) == 38
    before = files_of(made)
    make(made, again := Noise(bad))  # resumed: nothing is left to do
    assert again.calls == [] and files_of(made) == before
    for path in (made / "manifest.jsonl", made / "left_out.jsonl"):  # as a kill in the middle leaves them
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: 1 if path.stem == "left_out" else 9]))
    (made / "images" / "a_000.png").unlink()
    make(made, Noise(bad))
    assert files_of(made) == before


@pytest.mark.parametrize(
    ("n", "failing", "stops"), [(20, 2, False), (20, 3, True), (500, 500, True), (60, 5, False), (60, 6, True)]
)
def test_more_than_one_in_twenty_stop_a_fold_and_a_broken_model_soon(tmp_path, n, failing, stops):
    """Of 40 images 2 may fail, of the first hundred of 120 five; of 1,000 that all fail five are drawn twice."""
    bad = {seed_of("a", index) + again: math.nan for index in range(failing) for again in (0, 1)}
    model = Noise(bad)
    if not stops:
        make(tmp_path / "made", model, n)
        return
    with pytest.raises(InputError, match=r"made: image \d+ of case a holds NaN or infinity, with two seeds; look at --guidance"):
        make(tmp_path / "made", model, n)
    assert sum(map(len, model.calls)) <= 12 and len(lines_of(tmp_path / "made" / "left_out.jsonl")) == min(failing - 1, 5)
    assert lines_of(tmp_path / "made" / "manifest.jsonl") == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of images, and what makes them again."""
    folder = tmp_path_factory.mktemp("made")
    make(folder / "made", Noise(), 2)
    return folder / "made", generate.Maker(Noise(), Edges(), *describe(folder / "made", 2), {})


@pytest.mark.parametrize(
    ("kind", "levels", "difference"),
    [("images", 0, 0), ("images", 1, 1), ("edges", 30, 30), ("masks", 1, 255), ("images", None, 255)],
)
def test_the_difference_of_a_picture_is_in_grey_levels_and_a_mask_is_the_same_or_another(made, tmp_path, kind, levels, difference):
    folder, maker = shutil.copytree(made[0], tmp_path / "made"), made[1]
    line, again = lines_of(folder / "manifest.jsonl")[3], maker.make(maker.chunks[1])[0]
    path = folder / kind / line["file"]
    if levels is None:
        path.write_bytes(path.read_bytes()[:-9])
    else:
        pixels = decode(path).copy()
        pixels[5, 6] += levels if pixels[5, 6] < 200 else -levels
        Image.fromarray(pixels).save(path)
        line["sha256"][kind] = sha256(path)[:16]
    assert generate.measure_difference(folder, line, to_plain(again[0]), again[1]) == difference


@pytest.mark.parametrize("change", [{"seed": 1}, {"prompt": "MR"}, {"weights": {"hed": "x"}}, {"source": None}, None])
def test_a_line_that_says_something_else_is_of_another_image(made, change):
    folder, maker = made
    line, again = lines_of(folder / "manifest.jsonl")[3], maker.make(maker.chunks[1])[0]
    line = None if change is None else line | change
    assert generate.measure_difference(folder, line, to_plain(again[0]), again[1]) == 255
    assert generate.measure_difference(folder, lines_of(folder / "manifest.jsonl")[3], None, again[1]) == 255  # a bad one again
