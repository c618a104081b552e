"""emit.sample draws what diffusers' pipelines draw, and the same picture again from its own PNG."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from emit import sample
from emit.checkpoints import write_single
from emit.errors import InputError
from emit.model import DEMO_HED
from emit.networks.hed import HED
from tests.golden.files import HERE, write_original
from tests.golden.rule import normal

METHODS = ["plms", "ddim", "ddpm", "euler", "euler_ancestral", "dpmpp_2m"]
WORDS = ["--prompt", "MRI of the liver", "--negative", "blurred", "--guidance", 3, "--guided", "text", "--steps", 8]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Public files of small random weights, a grey picture, a mask, and an edge map that make_pictures.py used too."""
    folder = tmp_path_factory.mktemp("sample")
    write_original(folder, "sd1")
    Image.fromarray((255 * (normal("edges", (32, 48)) > 1)).astype(np.uint8)).save(folder / "edges.png")
    y, x = np.mgrid[:70, :101]
    disc = (y - 30) ** 2 + (x - 50) ** 2 < 400
    Image.fromarray((60 + 120 * disc + x).clip(0, 255).astype(np.uint8)).save(folder / "picture.png")
    Image.fromarray((255 * disc).astype(np.uint8)).save(folder / "mask.png")
    Image.new("L", (48, 32), 1).save(folder / "black.png")
    torch.manual_seed(0)
    write_single(folder / "hed.safetensors", {"hed": HED(DEMO_HED).state_dict()}, {})
    return folder


def draw(monkeypatch, folder, out, *words):
    known = [] if "--again" in words else ["--prediction", "eps"]
    model = ["--model", folder / "model.safetensors", "--out", out]
    monkeypatch.setattr(sys, "argv", ["sample", *map(str, [*model, *known, *words])])
    sample.main()
    return np.asarray(Image.open(sorted(out.glob("0000_*.png"))[0])).astype(int)


@pytest.mark.parametrize("control", [False, True], ids=["text", "control"])
@pytest.mark.parametrize("method", METHODS)
def test_pictures_are_those_of_diffusers(files, tmp_path, monkeypatch, method, control):
    spacing = {"ddim": "leading", "ddpm": "leading"}.get(method, "none")
    condition = ["--controlnet", files / "control.safetensors", "--edges", files / "edges.png", "--strength", 0.7]
    words = [*WORDS, "--size", "48x32", "--seeds", 11, "--method", method, "--spacing", spacing, *condition * control]
    expected = load_file(HERE / "pictures.safetensors")[f"{method} control" if control else method].numpy().astype(int)
    # Both round to 8 bits: sums that differ in their last bits may fall on two sides of a half.
    assert np.abs(draw(monkeypatch, files, tmp_path / "out", *words) - expected).max() <= 1


def test_a_picture_is_made_again_from_its_own_file(files, tmp_path, monkeypatch, capsys):
    condition = ["--controlnet", files / "control.safetensors", "--edges", files / "edges.png", "--method", "euler_ancestral"]
    drawn = draw(monkeypatch, files, tmp_path / "first", *WORDS, *condition, "--seeds", "3,4", "--size", "48x32")
    assert len(list((tmp_path / "first").glob("0000_*.png"))) == 2
    for name in ("model", "control", "edges"):  # moved files are found by flags, and known by their content
        file = next(files.glob(f"{name}.*"))
        (tmp_path / file.name).write_bytes(file.read_bytes())
    words = ["--again", tmp_path / "first" / "0000_3.png", "--edges", tmp_path / "edges.png", "--attention"]
    again = draw(monkeypatch, tmp_path, tmp_path / "again", *words)
    assert np.array_equal(again, drawn) and "the same pixels" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "again" / "0000_3_attention.png")).shape[1] > 500  # the picture and four words
    (tmp_path / "edges.png").write_bytes((files / "mask.png").read_bytes())
    with pytest.raises(InputError, match=r"edges.png: is not the file that .*0000_3.png was made from"):
        draw(monkeypatch, tmp_path, tmp_path / "other", *words)


def test_conditions(files, tmp_path, monkeypatch):
    """The sheet's first column is the condition: HED's edges, the mask's contour, or both; by default of their own size."""
    sheets = {}
    for name in ("picture", "mask", "both"):
        words = ["--controlnet", files / "control.safetensors", "--steps", 1]
        words += ["--hed", files / "hed.safetensors"] * (name != "mask")
        for kind in ("picture", "mask"):
            words += [f"--{kind}", files / f"{kind}.png"] * (name in (kind, "both"))
        assert draw(monkeypatch, files, tmp_path / name, *words).shape == (64, 96, 3)  # 70 x 101, cut down to multiples of 16
        sheets[name] = np.asarray(Image.open(tmp_path / name / "sheet.png")).astype(int)
        assert sheets[name].shape == (64, 194, 3)  # a white line between them
        sheets[name] = sheets[name][:, :96, 0]
    assert set(np.unique(sheets["mask"])) == {0, 255} and sheets["mask"][32, 48] == 0  # lines alone
    assert np.abs(sheets["both"] - (sheets["picture"] + sheets["mask"]).clip(0, 255)).max() <= 1  # two roundings


def test_like_sd15_leaves_what_a_flag_says():
    values, _ = sample.inherit({"like": "sd15", "steps": 20})
    assert values == {"method": "plms", "spacing": "leading", "guidance": 7.5, "guided": "text", "size": "512x512"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "48x33"], "--size: is 48x33; give WIDTHxHEIGHT, both multiples of 16"),
        (["--prompt", "a"], "--size: is needed here"),
        (["--edges", "edges.png"], "has no trained ControlNet"),
        (["--picture", "picture.png", "--controlnet", "control.safetensors"], "--picture: its edges are found by HED"),
        (["--edges", "edges.png", "--mask", "mask.png", "--controlnet", "control.safetensors"], "leave out --picture and --mask"),
        (["--again", "mask.png"], "mask.png: is no picture of emit.sample"),
        (["--size", "16x16", "--controlnet", "control.safetensors"], "--controlnet or --hed: would do nothing"),
        (["--size", "16x16", "--hed", "hed.safetensors"], "--controlnet or --hed: would do nothing"),
        (["--size", "16x16", "--attention"], "--attention: is a map for each word, and a prompt has none; give --prompt"),
        (["--size", "16x16", "--seeds", ""], "--seeds: is empty; give at least one number"),
        (["--size", "16x16", "--seeds", "3,3"], "--seeds: is 3,3; give different numbers"),
        (["--size", "16x16", "--method", "plms", "--steps", "1000"], "--spacing: leading takes at most 999 steps"),
        (["--edges", "black.png", "--controlnet", "control.safetensors"], "black.png: is black as a condition"),
        (
            ["--picture", "picture.png", "--hed", "hed.safetensors", "--mask", "edges.png", "--controlnet", "control.safetensors"],
            "edges.png: its size is not that of .*picture.png",
        ),
    ],
)
def test_what_cannot_be_is_one_line(files, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(files)
    with pytest.raises(InputError, match=message):
        draw(monkeypatch, files, tmp_path / "out", *words)
    assert not list(tmp_path.rglob("*.png"))
