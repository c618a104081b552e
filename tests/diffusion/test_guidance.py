"""Guidance is a straight line through two predictions; control scales are two public rules."""

from itertools import pairwise

import pytest
import torch

from emit.diffusion.guidance import classifier_free, control_scales


def test_guidance_is_a_line_through_the_two_predictions():
    uncond, cond = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at_0, at_1, at_2, at_5, at_8 = (classifier_free(uncond, cond, w) for w in (0, 1, 2, 5, 8))
    assert torch.equal(at_0, uncond) and (at_1 - cond).abs().max() < 1e-14  # two roundings of numbers below 8
    assert (at_5 - (at_2 + at_8) / 2).abs().max() < 1e-13  # rounding of numbers below 50
    # By hand: 2 + 9 (3 - 2) = 11; the sign or the order reversed gives -7 or -6.
    assert classifier_free(torch.tensor(2.0), torch.tensor(3.0), 9).item() == 11


def test_control_scales_follow_the_two_public_rules():
    assert control_scales(0.7) == [0.7] * 13
    # 0.825^12 = 0.09941 and 0.825^6 = 0.31530, 10^-1, 10^-0.5: by hand, to the digits written.
    original = control_scales(2.0, guess_mode="original")
    assert [original[0], original[6], original[12]] == pytest.approx([0.198828, 0.630600, 2.0], abs=1e-5)
    assert [low / high for low, high in pairwise(original)] == pytest.approx([0.825] * 12)
    public = torch.logspace(-1, 0, 13, dtype=torch.float64) * 2
    assert control_scales(2.0, guess_mode="diffusers") == pytest.approx(public.tolist(), rel=1e-12)
    # A smaller network keeps full strength in the middle.
    assert control_scales(1.0, count=3, guess_mode="original") == pytest.approx([0.680625, 0.825, 1.0])
    assert control_scales(1.0, count=3, guess_mode="diffusers") == pytest.approx([0.1, 0.1**0.5, 1.0])
    with pytest.raises(ValueError, match="guess_mode"):
        control_scales(1.0, guess_mode="guess")
