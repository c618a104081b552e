"""One step at a time: coefficients probed one by one, identities between methods, order of convergence."""

import math
from itertools import pairwise

import pytest
import torch

from emit.diffusion import samplers
from emit.diffusion.schedule import Schedule, eps_to_z0, q_sample

SCHEDULE = Schedule.scaled_linear()
ROUNDING = 1e-12  # float64; the largest amplification is 1 / sqrt(alpha_bar) <= 15 a step


def column(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def jumps(steps, spacing):
    """Return all (ab_t, ab_prev) of a walk to clean."""
    kept = samplers.timesteps(1000, steps, spacing)
    return [(SCHEDULE.at(t), SCHEDULE.at(t_prev)) for t, t_prev in pairwise([*kept, -1])]


def probe(step, ab_t, ab_prev):
    """Return the coefficients of z_0, eps and noise in step(z_t, eps, noise, ab_t, ab_prev).

    z_t is the marginal of z_0 and eps. A step is linear: row 0 has z_0 = 1 alone, row 1 eps = 1, row 2 noise = 1.
    """
    z_0, eps, noise = column(1, 0, 0), column(0, 1, 0), column(0, 0, 1)
    return step(q_sample(z_0, ab_t, eps), eps, noise, ab_t, ab_prev).flatten().tolist()


STEPS = {
    "ddpm": lambda z, eps, noise, ab_t, ab_prev: samplers.ddpm_step(z, eps, ab_t, ab_prev, noise),
    "ddim 0": lambda z, eps, noise, ab_t, ab_prev: samplers.ddim_step(z, eps, ab_t, ab_prev, 0.0, noise),
    "ddim 0.5": lambda z, eps, noise, ab_t, ab_prev: samplers.ddim_step(z, eps, ab_t, ab_prev, 0.5, noise),
    "ddim 1": lambda z, eps, noise, ab_t, ab_prev: samplers.ddim_step(z, eps, ab_t, ab_prev, 1.0, noise),
    "dpmpp first order": lambda z, eps, noise, ab_t, ab_prev: samplers.dpmpp_2m_step(
        z, eps_to_z0(z, eps, ab_t), None, ab_t, ab_prev, None
    ),
    "dpmpp second order": lambda z, eps, noise, ab_t, ab_prev: samplers.dpmpp_2m_step(
        z, eps_to_z0(z, eps, ab_t), eps_to_z0(z, eps, ab_t), ab_t, ab_prev, 0.9 * ab_t
    ),
}


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
@pytest.mark.parametrize("name", STEPS)
def test_every_step_lands_on_the_marginal(name, steps, spacing):
    # True z_0 and eps in: the result must be distributed as q(z_prev | z_0), whatever share of the noise is fresh.
    for ab_t, ab_prev in jumps(min(steps, 999) if spacing == "leading" else steps, spacing):
        if name == "dpmpp second order" and ab_prev == 1:
            continue  # lambda is infinite: first order only
        of_z_0, of_eps, of_noise = probe(STEPS[name], ab_t, ab_prev)
        assert of_z_0 == pytest.approx(math.sqrt(ab_prev), abs=ROUNDING)
        assert of_eps**2 + of_noise**2 == pytest.approx(1 - ab_prev.item(), abs=ROUNDING)


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_the_share_of_fresh_noise_is_eta(steps):
    for ab_t, ab_prev in jumps(steps, "trailing"):
        beta_tilde = (1 - ab_prev) / (1 - ab_t) * (1 - ab_t / ab_prev)
        for name, eta in [("ddim 0", 0), ("ddim 0.5", 0.5), ("ddim 1", 1), ("ddpm", 1)]:
            assert probe(STEPS[name], ab_t, ab_prev)[2] == pytest.approx(eta * math.sqrt(beta_tilde), abs=ROUNDING)


def random_latents(count):
    return torch.randn(count, 2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_ddim_with_eta_1_is_ddpm_and_ddpm_is_its_printed_formula(steps):
    z_t, eps_hat, noise = random_latents(3)
    for ab_t, ab_prev in jumps(steps, "trailing"):
        ddpm = samplers.ddpm_step(z_t, eps_hat, ab_t, ab_prev, noise)
        ddim = samplers.ddim_step(z_t, eps_hat, ab_t, ab_prev, 1.0, noise)
        beta = 1 - ab_t / ab_prev
        mean = (z_t - beta / (1 - ab_t).sqrt() * eps_hat) / (1 - beta).sqrt()
        printed = mean + ((1 - ab_prev) / (1 - ab_t) * beta).sqrt() * noise
        # All three divide by up to sqrt(alpha_bar) = 0.07; inputs reach 4.
        assert (ddpm - printed).abs().max() < 1e-11
        assert (ddim - printed).abs().max() < 1e-11


def test_dpmpp_first_order_is_deterministic_ddim():
    z_t, eps_hat, noise = random_latents(3)
    for ab_t, ab_prev in jumps(1000, "trailing"):
        z0_hat = eps_to_z0(z_t, eps_hat, ab_t)
        dpmpp = samplers.dpmpp_2m_step(z_t, z0_hat, None, ab_t, ab_prev, None)
        assert (dpmpp - samplers.ddim_step(z_t, eps_hat, ab_t, ab_prev, 0.0, noise)).abs().max() < 1e-11


def test_dpmpp_extrapolates_z0_in_lambda():
    # If z0_hat is linear in lambda, D is its value half a step ahead of lambda_t; by hand on unequal steps.
    ab = [1 / (1 + math.exp(-2 * lam)) for lam in (-1.0, -0.7, 0.2)]  # lambda = log(ab / (1 - ab)) / 2
    z_prev = samplers.dpmpp_2m_step(column(0.0), column(-0.7), column(-1.0), ab[1], ab[2], ab[0]).item()
    assert z_prev == pytest.approx(math.sqrt(ab[2]) * (1 - math.exp(-0.9)) * (-0.7 + 0.45), abs=1e-14)


def slope_of_error(step_all_the_way):
    """Return the fitted order p of error ~ steps^-p, over 40 to 320 even steps in lambda.

    From alpha_bar 0.0047 to 0.99. The denoiser is exact for z_0 ~ N(0, 0.5^2), whose deterministic path is known: it
    keeps z_t / sqrt(0.25 ab + 1 - ab).
    """
    low, high = (0.5 * math.log(ab / (1 - ab)) for ab in (0.0047, 0.99))
    counts, errors = [40, 80, 160, 320], []
    for count in counts:
        lambdas = torch.linspace(low, high, count + 1, dtype=torch.float64)
        ab = torch.sigmoid(2 * lambdas)
        path = (ab * 0.25 + 1 - ab).sqrt()
        z = step_all_the_way(path[0].reshape(1, 1, 1, 1), ab)
        errors.append((z.flatten()[0] - path[-1]).abs().item())
    x, y = torch.tensor(counts).log().double(), torch.tensor(errors, dtype=torch.float64).log()
    return -((x - x.mean()) * (y - y.mean())).sum().item() / ((x - x.mean()) ** 2).sum().item()


def exact_eps(z, ab):
    return (1 - ab).sqrt() / (ab * 0.25 + 1 - ab) * z


def walk_ddim(z, ab):
    for ab_t, ab_prev in pairwise(ab):
        z = samplers.ddim_step(z, exact_eps(z, ab_t), ab_t, ab_prev, 0.0, torch.zeros_like(z))
    return z


def walk_dpmpp(z, ab):
    before, ab_before = None, None
    for ab_t, ab_prev in pairwise(ab):
        z0_hat = eps_to_z0(z, exact_eps(z, ab_t), ab_t)
        z, before, ab_before = samplers.dpmpp_2m_step(z, z0_hat, before, ab_t, ab_prev, ab_before), z0_hat, ab_t
    return z


def test_dpmpp_is_of_second_order_and_ddim_of_first():
    # The next order's share shrinks with the steps and moves the slope by a few percent.
    assert slope_of_error(walk_ddim) == pytest.approx(1, abs=0.1)
    assert slope_of_error(walk_dpmpp) == pytest.approx(2, abs=0.1)


def test_steps_keep_float32():
    z, eps, noise = (latent.float() for latent in random_latents(3))
    ab_t, ab_prev = SCHEDULE.at(torch.tensor([999, 500])), SCHEDULE.at(torch.tensor([900, 400]))
    for name, step in STEPS.items():
        in_float32 = step(z, eps, noise, ab_t, ab_prev)
        in_float64 = step(z.double(), eps.double(), noise.double(), ab_t, ab_prev)
        assert in_float32.dtype == torch.float32
        # float32 keeps 6e-8; z0_hat is 15 times larger than z_t and cancels, inputs reach 4: 6e-8 * 15 * 4 * 3 terms.
        assert (in_float32 - in_float64).abs().max() < 1e-5, name


def test_timesteps_are_these():
    assert samplers.timesteps(1000, 7, "trailing") == [999, 856, 713, 570, 428, 285, 142]
    assert samplers.timesteps(1000, 1, "trailing") == [999]
    assert samplers.timesteps(1000, 1000, "trailing") == list(range(999, -1, -1))
    twenty = samplers.timesteps(1000, 20, "leading")
    assert twenty == [951, 901, 851, 801, 751, 701, 651, 601, 551, 501, 451, 401, 351, 301, 251, 201, 151, 101, 51, 1]
    thirty = samplers.timesteps(1000, 30, "leading")  # 33 apart and 30 of them, where the original code takes 31
    assert (len(thirty), thirty[0], thirty[1], thirty[-1]) == (30, 958, 925, 1)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_timesteps_fall_and_exist_for_every_count(spacing):
    for steps in range(1, 1000):
        kept = samplers.timesteps(1000, steps, spacing)
        assert len(kept) == steps
        assert all(t > t_prev for t, t_prev in pairwise(kept))
        assert kept[-1] >= 0 and (kept[0] == 999 if spacing == "trailing" else kept[0] <= 999)


@pytest.mark.parametrize(("steps", "spacing"), [(0, "trailing"), (1001, "trailing"), (1000, "leading"), (10, "even")])
def test_impossible_timesteps_are_refused(steps, spacing):
    with pytest.raises(ValueError):
        samplers.timesteps(1000, steps, spacing)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_computes_a_bfloat16_estimate_in_float32(name):
    z_t, eps, noise = torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for ab_t, ab_prev in jumps(20, "trailing")[:-1]:
        estimates = eps.bfloat16(), eps.bfloat16().float()
        low, high = (STEPS[name](z_t, estimate, noise, ab_t, ab_prev) for estimate in estimates)
        assert low.dtype == torch.float32 and torch.equal(low, high)
