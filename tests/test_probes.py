"""The probes ask what they say: wrong prompts are wrong, fixed cases are a random sample, nothing else changes."""

import pytest
import torch

from emit.diffusion.schedule import Schedule
from emit.probes import choose_fixed, condition_losses

BUSI = ["benign"] * 40 + ["malignant"] * 25 + ["normal"] * 24  # cases come sorted by class


def test_fixed_cases_are_a_sample_of_all_and_each_wrong_prompt_is_wrong():
    numbers, wrong = choose_fixed(BUSI, seed=3)
    assert len(set(numbers)) == 32 and {BUSI[number] for number in numbers} == set(BUSI)
    assert all(other != BUSI[number] for number, other in zip(numbers, wrong, strict=True))
    assert set(wrong) == set(BUSI)
    assert choose_fixed(BUSI, seed=3) == (numbers, wrong) and choose_fixed(BUSI, seed=4)[0] != numbers


def test_one_prompt_alone_has_no_wrong_one():
    assert choose_fixed(["CT"] * 5, seed=0)[1] is None


class Model:
    """Its loss is 1 for each condition that is not the true one, and t / 1000 on top."""

    schedule = Schedule.scaled_linear()

    def __init__(self, prompts, hint):
        self.prompts, self.hint = prompts, hint

    def draw(self, z_0, rng):
        return torch.randint(0, 1000, (len(z_0),), generator=rng), torch.randn(z_0.shape, generator=rng)

    def losses(self, z_0, t, eps, prompts, hint):
        wrong = torch.tensor([float(a != b) for a, b in zip(prompts, self.prompts, strict=True)])
        return wrong + (hint != self.hint).flatten(1).any(1) + t / 1000


@pytest.mark.parametrize("wrong", [["b", "a"], None])
def test_each_loss_has_its_own_condition_and_the_same_draws(wrong):
    hint, prompts = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), ["a", "b"]
    rng = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    found = condition_losses(Model(prompts, hint), torch.zeros(2, 4, 1, 1), prompts, wrong, hint, rng())
    draws = torch.randint(0, 1000, (2,), generator=rng()).float().mean().item() / 1000
    names = ["hint_true", "hint_zero", "hint_other", "prompt_wrong", "prompt_empty"]
    expected = {name: float(name != "hint_true") + draws for name in names}
    if wrong is None:
        del expected["prompt_wrong"]
    assert found == pytest.approx(expected)
