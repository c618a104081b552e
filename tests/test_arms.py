"""The arms: which pixels stay real, which arms run, and what each depends on."""

from types import SimpleNamespace

import pytest

from emit import arms
from emit.errors import InputError
from emit.seeds import generator

SETTINGS = SimpleNamespace(alpha=0.6, patches=6)


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


@pytest.mark.parametrize(("names", "message"), [(("ours",), "--generated: "), (("nonsense",), "--arms: nonsense ")])
def test_arms_that_cannot_run_are_refused(names, message):
    with pytest.raises(InputError, match=f"^{message}"):
        arms.choose_arms(names, None)


@pytest.mark.parametrize("name", arms.ARMS)
@pytest.mark.parametrize(("setting", "value"), [("alpha", 0.3), ("patches", 5)])
def test_an_arm_depends_on_what_changes_its_choice_of_real_pixels(name, setting, value):
    before, after = (
        arms.ARMS[name].real(50, 60, 0.2, settings, generator("sweep"))
        for settings in (SETTINGS, SimpleNamespace(**vars(SETTINGS) | {setting: value}))
    )
    assert arms.ARMS[name].depends_on(setting) == (not before.equal(after))


def test_generated_images_matter_to_arms_that_read_them():
    for name, arm in arms.ARMS.items():
        reads = name.startswith(("ours", "mixed", "generated"))
        assert all(arm.depends_on(setting) == reads for setting in ("n", "guidance", "strength"))
        assert arm.depends_on("real_cases") and not arm.depends_on(None)
