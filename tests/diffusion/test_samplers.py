"""One step at a time: coefficients probed one by one, identities between methods, order of convergence."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from emit.diffusion import samplers
from emit.diffusion.samplers import Estimate, ddim_step, ddpm_step, dpmpp_2m_step, plms_step
from emit.diffusion.schedule import Schedule, eps_to_z0, q_sample, to_v
from tests.helpers import column

SCHEDULE = Schedule.scaled_linear()
ROUNDING = 1e-12  # float64; the largest amplification is 1 / sqrt(alpha_bar) <= 15 a step


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


def take(step, before=0, eta=0.0, prediction="eps"):
    """Return (z_t, eps, noise, ab_t, ab_prev) -> z_prev, with as many estimates before it that say the same z_0 and eps."""

    def taken(z, eps, noise, ab_t, ab_prev):
        now = Estimate(z, eps if prediction == "eps" else to_v(eps_to_z0(z, eps, ab_t), eps, ab_t), ab_t, prediction)
        earlier = []
        for ab in (0.9**i * ab_t for i in range(1, 1 + before)):
            state = q_sample(now.z0_hat, ab, eps)
            earlier.append(Estimate(state, eps if prediction == "eps" else to_v(now.z0_hat, eps, ab), ab, prediction))
        return step(now, earlier, ab_prev, eta, noise)

    return taken


def again(z, eps, noise, ab_t, ab_prev):
    """The second look of plms: from the start z, with a state at ab_prev that has no say itself."""
    return plms_step(Estimate(torch.full_like(z, 1e3), eps, ab_prev), [Estimate(z, eps, ab_t)], ab_prev, 0.0, noise)


STEPS = {
    "ddpm": take(ddpm_step),
    "ddim 0": take(ddim_step),
    "ddim 0.5": take(ddim_step, eta=0.5),
    "ddim 1": take(ddim_step, eta=1.0),
    "dpmpp first order": take(dpmpp_2m_step),
    "dpmpp second order": take(dpmpp_2m_step, 1),
    **{f"plms after {before}": take(plms_step, before) for before in (0, 3)},
    "plms again": again,
}


@pytest.mark.parametrize(
    ("steps", "spacing"), [(1, "trailing"), (7, "trailing"), (1000, "trailing"), (1, "leading"), (7, "leading"), (50, "leading")]
)
@pytest.mark.parametrize("name", STEPS)
def test_every_step_lands_on_the_marginal(name, steps, spacing):
    # True z_0 and eps in: the result must be distributed as q(z_prev | z_0), whatever share of the noise is fresh.
    for ab_t, ab_prev in jumps(steps, spacing):
        of_z_0, of_eps, of_noise = probe(STEPS[name], ab_t, ab_prev)
        assert of_z_0 == pytest.approx(math.sqrt(ab_prev), abs=ROUNDING)
        assert of_eps**2 + of_noise**2 == pytest.approx(1 - ab_prev.item(), abs=ROUNDING)


def random_latents(count):
    return torch.randn(count, 2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_ddim_with_eta_1_is_ddpm_and_ddpm_is_its_printed_formula(steps):
    z_t, eps_hat, noise = random_latents(3)
    for ab_t, ab_prev in jumps(steps, "trailing"):
        ddpm, ddim = (STEPS[name](z_t, eps_hat, noise, ab_t, ab_prev) for name in ("ddpm", "ddim 1"))
        beta = 1 - ab_t / ab_prev
        mean = (z_t - beta / (1 - ab_t).sqrt() * eps_hat) / (1 - beta).sqrt()
        printed = mean + ((1 - ab_prev) / (1 - ab_t) * beta).sqrt() * noise
        # All three divide by up to sqrt(alpha_bar) = 0.07; inputs reach 4.
        assert (ddpm - printed).abs().max() < 1e-11
        assert (ddim - printed).abs().max() < 1e-11


@pytest.mark.parametrize("name", ["dpmpp first order", "plms after 0"])
def test_first_order_is_deterministic_ddim(name):
    latents = random_latents(3)
    for jump in jumps(1000, "trailing"):
        assert (STEPS[name](*latents, *jump) - STEPS["ddim 0"](*latents, *jump)).abs().max() < 1e-11


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_euler_in_sigma_and_with_eta_1_euler_ancestral(eta):
    # As k-diffusion writes it, in x = z / sqrt(ab) and sigma = sqrt((1 - ab) / ab), which reaches 15 as x does 60.
    z_t, eps_hat, noise = random_latents(3)
    for ab_t, ab_prev in jumps(30, "linspace"):
        sigma, sigma_prev = (((1 - ab) / ab).sqrt() for ab in (ab_t, ab_prev))
        up = eta * (sigma_prev**2 * (sigma**2 - sigma_prev**2) / sigma**2).sqrt()
        down = (sigma_prev**2 - up**2).sqrt()
        x_t = z_t * (1 + sigma**2).sqrt()
        slope = (x_t - (x_t - sigma * eps_hat)) / sigma
        x_prev = x_t + (down - sigma) * slope + up * noise
        found = take(ddim_step, eta=eta)(z_t, eps_hat, noise, ab_t, ab_prev)
        assert (found - x_prev / (1 + sigma_prev**2).sqrt()).abs().max() < 1e-11


@pytest.mark.parametrize("step", [ddpm_step, ddim_step, dpmpp_2m_step, plms_step])
def test_a_step_is_the_same_where_the_output_is_v(step):
    latents, before = random_latents(3), step is dpmpp_2m_step
    for jump in jumps(20, "trailing"):
        from_v = take(step, before, prediction="v")(*latents, *jump)
        assert (from_v - take(step, before)(*latents, *jump)).abs().max() < 1e-11


@pytest.mark.parametrize("before", range(4))
def test_plms_mixes_outputs_so_that_polynomials_are_integrated_exactly(before):
    # dx / dsigma = eps. With eps = sigma^k, k <= before, and even steps in sigma, x ends at x_t + the integral.
    for k in range(before + 1):
        now, *earlier = (Estimate(column(0.3), column(s**k), 1 / (1 + s**2)) for s in (2.0, 2.5, 3.0, 3.5)[: 1 + before])
        z_prev = plms_step(now, earlier, 1 / (1 + 1.5**2), 0.0, column(0)).item()
        x_prev = 0.3 * math.sqrt(1 + 2.0**2) + (1.5 ** (k + 1) - 2.0 ** (k + 1)) / (k + 1)
        assert z_prev == pytest.approx(x_prev / math.sqrt(1 + 1.5**2), abs=ROUNDING)


@pytest.mark.parametrize("k", [0, 1])
def test_plms_takes_its_first_step_again_by_the_mean_of_both_ends(k):
    start, end = Estimate(column(0.3), column(2.0**k), 1 / (1 + 2.0**2)), Estimate(column(9), column(1.5**k), 1 / (1 + 1.5**2))
    x_prev = 0.3 * math.sqrt(1 + 2.0**2) + (1.5 ** (k + 1) - 2.0 ** (k + 1)) / (k + 1)
    assert plms_step(end, [start], end.ab, 0.0, column(0)).item() == pytest.approx(x_prev / math.sqrt(1 + 1.5**2), abs=ROUNDING)


def test_dpmpp_extrapolates_z0_in_lambda():
    # If z0_hat is linear in lambda, D is its value half a step ahead of lambda_t; by hand on unequal steps.
    ab = [1 / (1 + math.exp(-2 * lam)) for lam in (-1.0, -0.7, 0.2)]  # lambda = log(ab / (1 - ab)) / 2
    before, now = (Estimate(q_sample(column(z_0), at, column(0)), column(0), at) for z_0, at in zip((-1.0, -0.7), ab, strict=False))
    z_prev = dpmpp_2m_step(replace(now, z_t=column(0), out=column(0.7 * math.exp(-0.7))), [before], ab[2], 0.0, column(0)).item()
    assert z_prev == pytest.approx(math.sqrt(ab[2]) * (1 - math.exp(-0.9)) * (-0.7 + 0.45), abs=1e-14)


def exact_eps(z, ab):
    return (1 - ab).sqrt() / (ab * 0.25 + 1 - ab) * z


def walk(step, z, ab):
    """Take the step along ab, (steps + 1,); plms takes its first step twice, as sample() has it."""
    before, ab = [], ab.tolist()
    for ab_t, ab_prev in pairwise([ab[0], *(ab[1:2] if step is plms_step else []), *ab[1:]]):
        now = Estimate(z, exact_eps(z, torch.tensor(ab_t, dtype=torch.float64)), ab_t)
        z = step(now, before, ab_prev, 0.0, torch.zeros_like(z))
        before = before if ab_t == ab_prev else [now, *before[:2]]
    return z


def slope_of_error(step, even):
    """Return the fitted order p of error ~ steps^-p, over 40 to 320 steps, even in "lambda" or "sigma".

    From alpha_bar 0.0047 to 0.99. The denoiser is exact for z_0 ~ N(0, 0.5^2), whose deterministic path is known: it
    keeps z_t / sqrt(0.25 ab + 1 - ab).
    """
    ends = torch.tensor([0.0047, 0.99], dtype=torch.float64)
    low, high = (0.5 * (ends / (1 - ends)).log() if even == "lambda" else ((1 - ends) / ends).sqrt()).tolist()
    counts, errors = [40, 80, 160, 320], []
    for count in counts:
        grid = torch.linspace(low, high, count + 1, dtype=torch.float64)
        ab = torch.sigmoid(2 * grid) if even == "lambda" else 1 / (1 + grid**2)
        path = (ab * 0.25 + 1 - ab).sqrt()
        z = walk(step, path[0].reshape(1, 1, 1, 1), ab)
        errors.append((z.flatten()[0] - path[-1]).abs().item())
    x, y = torch.tensor(counts).log().double(), torch.tensor(errors, dtype=torch.float64).log()
    return -((x - x.mean()) * (y - y.mean())).sum().item() / ((x - x.mean()) ** 2).sum().item()


@pytest.mark.parametrize(
    ("step", "even", "order"), [(ddim_step, "lambda", 1), (dpmpp_2m_step, "lambda", 2), (plms_step, "lambda", 2)]
)
def test_order_of_convergence(step, even, order):
    # The next order's share shrinks with the steps and moves the slope by a few percent.
    assert slope_of_error(step, even) == pytest.approx(order, abs=0.1)


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
    assert samplers.timesteps(1000, 5, "linspace") == [999, 749.25, 499.5, 249.75, 0]
    assert samplers.timesteps(1000, 1, "linspace") == [999]  # diffusers and numpy say 0, where nothing is left to do
    thirty = samplers.timesteps(1000, 30, "leading")  # 33 apart and 30 of them, where the original code takes 31
    assert (len(thirty), thirty[0], thirty[1], thirty[-1]) == (30, 958, 925, 1)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps_fall_and_exist_for_every_count(spacing):
    for steps in range(1, 1000):
        kept = samplers.timesteps(1000, steps, spacing)
        assert len(kept) == steps
        assert all(t > t_prev for t, t_prev in pairwise(kept))
        assert kept[-1] >= 0 and (kept[0] <= 999 if spacing == "leading" else kept[0] == 999)


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
