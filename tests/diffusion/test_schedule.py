"""The forward process against products, Bayes' rule on a grid, and numbers known from the public model."""

import math

import pytest
import torch

from emit.diffusion import schedule as s
from tests.helpers import column

SCHEDULE = s.Schedule.scaled_linear()
ROUNDING = 1e-12  # float64 keeps 16 digits; a thousand products and 1 / sqrt(alpha_bar) <= 15 cost less than four


def test_scaled_linear_is_the_product_of_the_printed_betas_and_has_the_public_numbers():
    # To the digits that are known: 0.99915 is 1 - 8.5e-4 exactly, 0.0046601 has five.
    assert (SCHEDULE.T, SCHEDULE.alpha_bar.dtype) == (1000, torch.float64)
    assert SCHEDULE.alpha_bar[0].item() == pytest.approx(0.99915, abs=1e-15)
    assert SCHEDULE.alpha_bar[999].item() == pytest.approx(0.0046601, abs=5e-8)
    low, high = math.sqrt(8.5e-4), math.sqrt(1.2e-2)
    product = 1.0
    for t in range(1000):
        product *= 1 - (low + (high - low) * t / 999) ** 2
        assert SCHEDULE.at(t).item() == pytest.approx(product, rel=ROUNDING)


def test_at_answers_one_for_clean_and_refuses_what_does_not_exist():
    assert SCHEDULE.at(-1).item() == 1.0
    batch = SCHEDULE.at(torch.tensor([-1, 0, 999]))
    assert batch.shape == (3, 1, 1, 1)
    assert batch.flatten().tolist() == [1.0, SCHEDULE.alpha_bar[0].item(), SCHEDULE.alpha_bar[999].item()]
    for t in (-2, 1000, torch.tensor([0, 1000])):
        with pytest.raises(IndexError, match="lies outside"):
            SCHEDULE.at(t)


def test_between_timesteps_sigma_is_a_line():
    sigma = [math.sqrt((1 - ab) / ab) for ab in SCHEDULE.alpha_bar.tolist()]
    for t, expected in [(0.5, (sigma[0] + sigma[1]) / 2), (946.25, 0.75 * sigma[946] + 0.25 * sigma[947]), (999.0, sigma[999])]:
        assert SCHEDULE.at(t).item() == pytest.approx(1 / (1 + expected**2), rel=ROUNDING)
    batch = SCHEDULE.at(torch.tensor([-1.0, 0.0, 998.0, 999.0]))
    assert torch.equal(batch, SCHEDULE.at(torch.tensor([-1, 0, 998, 999])))
    with pytest.raises(IndexError, match="lies outside"):
        SCHEDULE.at(999.5)


def test_zero_terminal_snr_keeps_the_first_and_ends_in_pure_noise():
    # By Algorithm 1 sqrt(alpha_bar) becomes a line of itself, through (first, first) and (last, 0).
    zero = SCHEDULE.rescale_zero_terminal_snr()
    first, last = SCHEDULE.alpha_bar[0].sqrt(), SCHEDULE.alpha_bar[999].sqrt()
    assert zero.alpha_bar[999].item() == 0
    assert zero.alpha_bar[0].item() == pytest.approx(SCHEDULE.alpha_bar[0].item(), abs=1e-15)
    middle = (SCHEDULE.alpha_bar[500].sqrt() - last) / (first - last) * first
    assert zero.alpha_bar[500].sqrt().item() == pytest.approx(middle.item(), abs=1e-15)
    assert torch.equal(zero.at(torch.tensor([0.0, 998.0, 998.5, 999.0])).flatten(), zero.alpha_bar[[0, 998, 999, 999]])
    zero.check("v")
    SCHEDULE.check("eps")
    with pytest.raises(ValueError, match="needs v-prediction"):
        zero.check("eps")


def test_forward_steps_compose_to_the_marginal():
    # Row 0 starts at z_0 = 1 without noise; row 1 + k starts at 0 and gets unit noise at step k only. As steps are
    # linear, row 0 ends at the coefficient of z_0, and the squares of the others add up to the variance.
    z = torch.zeros(1001, 1, 1, 1, dtype=torch.float64)
    z[0] = 1
    table = [1.0, *SCHEDULE.alpha_bar.tolist()]
    for t in range(1000):
        noise = torch.zeros_like(z)
        noise[1 + t] = 1
        z = s.q_step(z, 1 - table[t + 1] / table[t], noise)
        signal = s.q_sample(column(1), SCHEDULE.at(t), column(0))
        spread = s.q_sample(column(0), SCHEDULE.at(t), column(1))
        assert z[0].item() == pytest.approx(signal.item(), rel=ROUNDING)
        assert z[1:].square().sum().item() == pytest.approx(spread.item() ** 2, rel=ROUNDING)


def test_marginal_by_hand():
    # alpha_bar 0.36: 0.6 * 2 + 0.8 * -1 = 0.4
    assert s.q_sample(column(2), 0.36, column(-1)).item() == pytest.approx(0.4, abs=1e-15)
    # beta 0.36: 0.8 * 2 + 0.6 * -1 = 1.0
    assert s.q_step(column(2), 0.36, column(-1)).item() == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize(("t", "t_prev"), [(1, 0), (500, 499), (999, 998), (999, 0), (600, 200), (50, 3)])
def test_posterior_is_bayes_rule_on_a_grid(t, t_prev):
    # q(z_prev | z_t, z_0) is proportional to q(z_t | z_prev) q(z_prev | z_0). The narrowest result has a standard
    # deviation of 0.02, 67 grid steps: there the sum over a grid is exact to rounding for a Gaussian.
    z_0, z_t = 0.7, -0.4
    ab_t, ab_prev = SCHEDULE.at(t).item(), SCHEDULE.at(t_prev).item()
    alpha = ab_t / ab_prev
    z = torch.linspace(-6, 6, 40001, dtype=torch.float64)
    log_density = -((z_t - math.sqrt(alpha) * z) ** 2) / (2 * (1 - alpha))
    log_density -= (z - math.sqrt(ab_prev) * z_0) ** 2 / (2 * (1 - ab_prev))
    density = torch.softmax(log_density, 0)
    mean = (density * z).sum().item()
    variance = (density * (z - mean) ** 2).sum().item()

    ours, our_variance = s.posterior(column(z_0), column(z_t), ab_t, ab_prev)
    assert ours.item() == pytest.approx(mean, abs=1e-10)
    assert our_variance.item() == pytest.approx(variance, rel=1e-9)
    last, no_variance = s.posterior(column(z_0), column(z_t), ab_t, 1.0)  # the step to clean
    assert last.item() == pytest.approx(z_0, abs=1e-14) and no_variance.item() == 0


def test_conversions_agree_with_the_marginal_and_with_v_as_a_derivative():
    t = torch.tensor([0, 1, 250, 500, 750, 999])
    ab = SCHEDULE.at(t)
    z_0, eps = torch.randn(2, 6, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z_t = ab.sqrt() * z_0 + (1 - ab).sqrt() * eps
    assert (s.eps_to_z0(z_t, eps, ab) - z_0).abs().max() < ROUNDING
    assert (s.z0_to_eps(z_t, z_0, ab) - eps).abs().max() < ROUNDING
    v = s.to_v(z_0, eps, ab)
    assert (s.v_to_z0(z_t, v, ab) - z_0).abs().max() < ROUNDING
    assert (s.v_to_eps(z_t, v, ab) - eps).abs().max() < ROUNDING
    # v = dz/dphi where sqrt(ab) = cos phi: the central difference with step 1e-5 errs by 1e-10 |z| / 6 and rounding.
    phi, step = ab.sqrt().acos(), 1e-5
    ahead = (phi + step).cos() * z_0 + (phi + step).sin() * eps
    behind = (phi - step).cos() * z_0 + (phi - step).sin() * eps
    assert ((ahead - behind) / (2 * step) - v).abs().max() < 1e-9


def test_coefficients_are_float64_and_the_result_keeps_the_latents_dtype():
    # ab = 1 - 1e-9 rounds to 1 in float32, where sqrt(1 - ab) would be 0; float64 keeps 7 digits of 1e-9.
    one, zero = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    for ab in (1 - 1e-9, torch.tensor(1 - 1e-9, dtype=torch.float64).reshape(1, 1, 1, 1)):
        z_t = s.q_sample(zero, ab, one)
        assert z_t.flatten()[0].item() == pytest.approx(math.sqrt(1e-9), rel=1e-6)
        mean, variance = s.posterior(one, one, 0.5, ab)
        converted = [convert(one, one, ab) for convert in (s.eps_to_z0, s.z0_to_eps, s.to_v, s.v_to_z0, s.v_to_eps)]
        assert {z.dtype for z in (z_t, mean, s.q_step(one, ab, one), *converted)} == {torch.float32}
        assert variance.dtype == torch.float64
