"""The probes ask what they say: wrong prompts are wrong, fixed cases are a random sample, nothing else changes."""

import pytest
import torch

from emit.diffusion.schedule import Schedule
from emit.model import EmitDiff, Sizes
from emit.networks.text import TextConfig
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig
from emit.probes import choose_fixed, condition_losses, find_faults

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
    found, faults = condition_losses(Model(prompts, hint), torch.zeros(2, 4, 1, 1), prompts, wrong, hint, rng())
    draws = torch.randint(0, 1000, (2,), generator=rng()).float().mean().item() / 1000
    names = ["hint_true", "hint_zero", "hint_other", "prompt_wrong", "prompt_empty"]
    expected = {name: float(name != "hint_true") + draws for name in names}
    if wrong is None:
        del expected["prompt_wrong"]
    t = torch.randint(0, 1000, (2,), generator=rng())
    expected |= {f"hint_gain_q{4 * int(one) // 1000 + 1}": 1.0 for one in t}  # the same at any timestep
    assert found == pytest.approx(expected) and faults == []


CUT, CONSTANT = "the hint is cut, ", "the text encoder answers one constant, "
TINY = Sizes(
    UNetConfig(4, 4, 8, (1, 2), 1, attention_levels=(1,), heads=2, context_dim=8, groups=4, hint_channels=(4, 4)),
    VAEConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, groups=4),
    TextConfig(width=8, layers=1, heads=1),
)


@pytest.mark.parametrize("broken", ["hint", "text"])
def test_a_cut_hint_and_a_constant_text_encoder_are_named(broken):
    """In a model of random weights, 16 cases; a new ControlNet's output convolutions are zero."""
    torch.manual_seed(0)
    model, normal = EmitDiff(TINY), torch.Generator().manual_seed(1)
    for network in (model.unet, model.controlnet):
        for name, weight in network.named_parameters():
            if broken == "text" or not name.startswith(("zero_convs", "middle_block_out")):
                torch.nn.init.normal_(weight, std=0.3)
    if broken == "text":
        model.text.encode = lambda prompts: torch.ones(len(prompts), 77, 8)
    z_0, hint = torch.randn(16, 4, 8, 8, generator=normal), torch.rand(16, 3, 16, 16, generator=normal)
    prompts, wrong = ["US, breast, benign"] * 16, ["CT, spleen, normal"] * 16
    _, faults = condition_losses(model, z_0, prompts, wrong, hint, normal)
    expected = {"hint": CUT, "text": CONSTANT}[broken]
    assert sum(fault.startswith(expected) and fault.endswith("every loss is the same within noise") for fault in faults) == 1


def test_noise_is_a_thousandth_of_the_loss_in_every_case():
    """100 cases of mean 1.1. Differences that cancel in the mean are none of noise, nor is one case that differs."""
    true = torch.linspace(0.1, 2.1, 100)
    changed = true + 0.1 * torch.tensor([1.0, -1.0]).repeat(50)
    one, small, large = true.clone(), true + 0.0010, true + 0.0012
    one[7] += 0.1

    def found(zero, wrong, empty):
        faults = find_faults({"hint_true": true, "hint_zero": zero, "prompt_wrong": wrong, "prompt_empty": empty})
        return [next(known for known in (CUT, CONSTANT) if fault.startswith(known)) for fault in faults]

    assert found(changed, changed, changed) == found(one, one, one) == found(large, large, large) == []
    assert found(changed, true, one) == []  # the empty prompt is told from the right one, as in the demo
    assert found(small, changed, true) == [CUT] and found(changed, small, true) == [CONSTANT]
    assert find_faults({"hint_true": true, "hint_zero": changed, "prompt_empty": true})[0].startswith(
        CONSTANT
    )  # one prompt in the set
