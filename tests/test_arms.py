"""The arms: which pixels stay real, and which arms run."""

from types import SimpleNamespace

import pytest

from emit import arms
from emit.errors import InputError
from emit.seeds import generator

SETTINGS = SimpleNamespace(alpha=0.6, patches=6)


@pytest.mark.parametrize(
    ("name", "progress", "share"),
    [
        ("baseline", 0.0, 1.0),
        ("deepstack", 0.9, 1.0),
        ("generated only", 0.9, 0.0),
        ("generated first", 0.49, 0.0),
        ("generated first", 0.5, 1.0),
        *((name, 0.0, 0.6) for name in ("ours", "mixed", "copies", "ours+deepstack")),
    ],
)
def test_share_of_real_pixels(name, progress, share):
    found = arms.ARMS[name].real(2000, 60, progress, SETTINGS, generator("arms", name)).float().mean().item()
    # 2000 Bernoulli draws at least: standard error sqrt(0.24 / 2000) = 0.011; four of them
    assert found == (pytest.approx(share, abs=0.044) if share == 0.6 else share)


def test_patches_are_squares_of_a_sixth():
    real = arms.by_patch(1, 60, 0.0, SETTINGS, generator("patch"))[0, 0]
    blocks = real.reshape(6, 10, 6, 10)
    assert (blocks.float().mean((1, 3)) % 1 == 0).all() and real.float().std() > 0


def test_baseline_comes_first_and_arms_without_images_are_left_out():
    assert arms.choose_arms(("mirror", "baseline"), None) == ["baseline", "mirror"]
    assert not any(arms.ARMS[name].source for name in arms.choose_arms(("paper",), None))
    assert "ours" in arms.choose_arms(("paper",), "folder")
    assert arms.choose_arms(("copies", "paper"), "folder") == ["baseline", "copies", *arms.PAPER[1:]]
    assert "ours" not in arms.choose_arms(("paper", "nnunet"), None)
    sources = [{arms.ARMS[name].source for name in arms.choose_arms(("all",), *folders)} for folders in ((None, "b"), ("a", "b"))]
    assert sources == [{"", "oracle"}, {"", "generated", "oracle"}]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ours",), "--generated: "),
        (("all", "ours"), "--generated: "),
        (("oracle+nnunet",), "--oracle: "),
        (("nonsense",), "--arms: nonsense "),
    ],
)
def test_arms_that_cannot_run_are_refused(names, message):
    with pytest.raises(InputError, match=f"^{message}"):
        arms.choose_arms(names, None)


@pytest.mark.parametrize("stack", ["", "+deepstack", "+nnunet"])
def test_an_oracle_differs_from_its_arm_by_the_images_alone(stack):
    for name, oracle in zip(arms.USES, arms.ORACLES, strict=True):
        one, other = arms.ARMS[name + stack], arms.ARMS[oracle + stack]
        assert (one.augmentation, one.real) == (other.augmentation, other.real) == (stack[1:] or "baseline", arms.USES[name])
        assert (one.source, other.source) == ("generated", "oracle")
