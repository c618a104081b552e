"""The arms, the generated images they read, and the leak ledger."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from emit import arms
from emit.data.cases import Case
from emit.errors import InputError
from emit.ledger import find_leaks, record
from emit.seeds import generator

SETTINGS = SimpleNamespace(alpha=0.6, patches=6)


def make_case(name, image):
    return Case(name, name, "", "", f"{name}.png", lambda: (image, None))


def share_real(name, progress=0.0, count=2000):
    rng = generator("arms", name)
    return arms.ARMS[name].real(count, 60, progress, SETTINGS, rng).float().mean().item()


@pytest.mark.parametrize(
    ("name", "progress", "share"),
    [
        ("baseline", 0.0, 1.0),
        ("deepstack", 0.9, 1.0),
        ("generated only", 0.9, 0.0),
        ("generated first", 0.49, 0.0),
        ("generated first", 0.5, 1.0),
    ],
)
def test_share_of_real_pixels(name, progress, share):
    assert share_real(name, progress) == share


@pytest.mark.parametrize("name", ["ours", "mixed", "copies", "ours+deepstack"])
def test_share_of_real_pixels_is_alpha(name):
    # 2000 Bernoulli draws at least: standard error sqrt(0.24 / 2000) = 0.011; four of them
    assert share_real(name) == pytest.approx(0.6, abs=0.044)


def test_patches_are_squares_of_a_sixth():
    real = arms.by_patch(1, 60, 0.0, SETTINGS, generator("patch"))[0, 0]
    blocks = real.reshape(6, 10, 6, 10)
    assert (blocks.float().mean((1, 3)) % 1 == 0).all() and real.float().std() > 0


def test_baseline_comes_first_and_arms_without_images_are_left_out():
    assert arms.choose_arms(("mirror", "baseline"), None) == ["baseline", "mirror"]
    assert not any(arms.ARMS[name].needs_generated for name in arms.choose_arms(("paper",), None))
    assert "ours" in arms.choose_arms(("paper",), "folder")


@pytest.mark.parametrize("names", [("ours",), ("nonsense",)])
def test_arms_that_cannot_run_are_refused(names):
    with pytest.raises(InputError, match=r"--generated|--arms"):
        arms.choose_arms(names, None)


@pytest.fixture
def folder(tmp_path):
    """Two generated images of case a (grey 0 and 255), one of b (grey 51); c was seen in pre-training."""
    (tmp_path / "images").mkdir()
    lines = [("a", 0, 0), ("a", 1, 255), ("b", 0, 51)]
    for case, index, grey in lines:
        Image.fromarray(np.full((8, 8), grey, np.uint8)).save(tmp_path / "images" / f"{case}{index}.png")
    manifest = [{"file": f"{c}{i}.png", "case": c, "index": i, "size": 8} for c, i, _ in lines]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, manifest)))
    seen = record("pre-training", [make_case("c", np.eye(8, dtype=np.float32))])
    (tmp_path / "ledger.json").write_text(json.dumps(seen))
    return tmp_path


def test_generated_images_belong_to_their_case(folder):
    images = arms.Generated(folder, 8).images(["b", "a"] * 50, generator(0))
    assert images[::2] == pytest.approx(51 / 127.5 - 1, abs=1e-6)  # float32
    assert set(images[1::2].unique().tolist()) == {-1.0, 1.0}  # both samples of a are drawn
    assert arms.Generated(folder, 8, limit=1).images(["a"] * 20, generator(0)).unique().tolist() == [-1.0]


@pytest.mark.parametrize(("size", "case"), [(16, "a"), (8, "z")])
def test_wrong_size_and_missing_case_are_refused(folder, size, case):
    with pytest.raises(InputError, match=r"--size 8|case z"):
        arms.Generated(folder, size).images([case], generator(0))


def test_a_leak_is_found_by_content_under_another_name(folder):
    planted = make_case("renamed", np.eye(8, dtype=np.float32))
    clean = make_case("c", np.zeros((8, 8), np.float32))
    generated = arms.Generated(folder, 8)
    generated.refuse_leaks([clean])
    with pytest.raises(InputError, match=": renamed in pre-training as c;"):
        generated.refuse_leaks([clean, planted])
    with pytest.raises(InputError, match=r": renamed in .* and 2 more;"):
        generated.refuse_leaks([planted] * (arms.NAMED + 2))


def test_the_ledger_inherits_every_ancestor_once():
    case = make_case("x", np.ones((4, 4), np.float32) * torch.arange(4).numpy() / 4)
    first = record("hed", [case])
    second = record("pre-training", [], [first])
    third = record("fine-tuning", [], [first, second])
    assert [entry["stage"] for entry in third["ancestry"]] == ["hed", "pre-training", "fine-tuning"]
    assert find_leaks(third, [case]) == [("x", "hed", "x")]


@pytest.mark.parametrize("name", arms.ARMS)
@pytest.mark.parametrize(("setting", "value"), [("alpha", 0.3), ("patches", 3)])
def test_what_a_sweep_changes_is_told(name, setting, value):
    """An arm depends on a setting exactly where its choice of real pixels changes with it."""
    before, after = (
        arms.ARMS[name].real(50, 60, 0.2, settings, generator("sweep"))
        for settings in (SETTINGS, SimpleNamespace(**vars(SETTINGS) | {setting: value}))
    )
    assert arms.ARMS[name].depends_on(setting) == (not torch.equal(before, after))


def test_generated_images_matter_to_arms_that_read_them():
    for name, arm in arms.ARMS.items():
        reads = name.startswith(("ours", "mixed", "generated"))
        assert all(arm.depends_on(setting) == reads for setting in ("n", "guidance", "strength"))
        assert arm.depends_on("real_cases")
