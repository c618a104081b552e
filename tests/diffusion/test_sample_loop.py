"""The whole walk: a point and a Gaussian, whose every sample and variance is known, and what the loop promises."""

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from emit.diffusion.samplers import SAMPLERS, sample
from emit.diffusion.schedule import Schedule, eps_to_z0, to_v, z0_to_eps
from emit.seeds import SeededNoise
from tests.golden.make_samplers import FILE, SEED, SHAPE, network

SCHEDULE = Schedule.scaled_linear()
ZERO_SNR = SCHEDULE.rescale_zero_terminal_snr()
METHODS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("euler", 0.0), ("euler_ancestral", 0.0)]
METHODS += [("dpmpp_2m", 0.0), ("plms", 0.0)]
ETA = {"ddpm": 1.0, "euler_ancestral": 1.0}  # share of fresh noise, where it is not the caller's
WALKS = [  # spacing and the timesteps by hand
    ("trailing", [999, 856, 713, 570, 428, 285, 142]),
    ("leading", [853, 711, 569, 427, 285, 143, 1]),
    ("trailing", [999]),
]
ENDS_AT_0 = ("ddim", "plms")  # with leading spacing: set_alpha_to_one is false, and only their schedulers know it


def seeded_noise(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, dtype=torch.float64, generator=generator)


class OneRowEach:
    """Noise that is 1 in a row of its own at each call, 0 elsewhere: rows `first`, first + 1, ..."""

    def __init__(self, rows, first):
        self.rows, self.next = rows, first

    def __call__(self):
        noise = torch.zeros(self.rows, 1, 1, 1, dtype=torch.float64)
        noise[self.next] = 1
        self.next += 1
        return noise


def alpha_bar(t):
    return 1.0 if t == -1 else SCHEDULE.alpha_bar[t].item()


@pytest.mark.parametrize(("spacing", "kept"), WALKS)
@pytest.mark.parametrize(("method", "eta"), METHODS)
def test_every_state_of_the_walk_lies_on_the_marginal(method, eta, spacing, kept):
    # The denoiser knows z_0 (1 in row 0, 0 elsewhere). Row 0 must follow sqrt(alpha_bar); row 1 carries the first
    # noise, each later row one fresh draw: their squares must add up to 1 - alpha_bar at the timesteps written by hand.
    z_0 = torch.zeros(10, 1, 1, 1, dtype=torch.float64)
    z_0[0] = 1
    z_T = math.sqrt(alpha_bar(kept[0])) * z_0
    z_T[1] = math.sqrt(1 - alpha_bar(kept[0]))
    if method.startswith("euler") and spacing == "trailing":
        z_T /= math.sqrt(1 - alpha_bar(kept[0]))  # its start is sigma_T noise in x = z / sqrt(alpha_bar)
    twice = kept[1:2] if method == "plms" else []  # the first step is taken twice, if it is not the last
    walk = [kept[0], *twice, *kept[1:], 0 if spacing == "leading" and method in ENDS_AT_0 else -1]
    states, asked = [], []

    def denoiser(z_t, t):
        asked.append(t.tolist()), states.append(z_t)
        return z0_to_eps(z_t, z_0, alpha_bar(t[0].item()))

    noise = OneRowEach(10, first=2)
    states.append(sample(denoiser, z_T, SCHEDULE, len(kept), method, eta, noise, spacing))
    assert asked == [[t] * 10 for t in walk[:-1]]
    stochastic = ETA.get(method, eta) > 0
    assert noise.next - 2 == (sum(t >= 0 for t in walk[1:]) if stochastic else 0)
    for z_prev, t_prev in zip(states[1:], walk[1:], strict=True):
        ab = alpha_bar(t_prev)
        assert z_prev[0].item() == pytest.approx(math.sqrt(ab), abs=1e-12)
        assert z_prev[1:].square().sum().item() == pytest.approx(1 - ab, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize(("method", "eta"), METHODS)
def test_a_point_mass_is_reached_from_any_noise(method, eta, steps):
    point = seeded_noise((2, 4, 3, 3), seed=1)()
    noise = seeded_noise((2, 4, 3, 3), seed=2)
    z = sample(lambda z, t: z0_to_eps(z, point, SCHEDULE.at(t)), 3 * noise(), SCHEDULE, steps, method, eta, noise, "trailing")
    assert (z - point).abs().max() < 1e-12  # the last step is z0_hat itself: rounding times 1 / sqrt(1 - ab) <= 35


MEAN, SPREAD = 1.5, 0.45


def exact_eps(z_t, t):
    """Return E[eps | z_t] for z_0 ~ N(MEAN, SPREAD^2)."""
    ab = SCHEDULE.at(t)
    return (1 - ab).sqrt() * (z_t - ab.sqrt() * MEAN) / (ab * SPREAD**2 + 1 - ab)


def closed_recursion(walk, eta, variance=1.0):
    """Return mean and variance after the walk, from N(0, variance), step by step by Bayes' rule on the Gaussian.

    z0_hat = MEAN + gain (z_t - sqrt(ab) MEAN) is a line, so the step is one: z_prev = a z_t + b + sigma n.
    """
    mean = 0.0
    for t, t_prev in pairwise(walk):
        ab, ab_prev = alpha_bar(t), alpha_bar(t_prev)
        gain = math.sqrt(ab) * SPREAD**2 / (ab * SPREAD**2 + 1 - ab)
        sigma2 = eta**2 * (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)
        # z_prev = sqrt(ab_prev) z0_hat + turn (z_t - sqrt(ab) z0_hat) + sigma n
        turn = math.sqrt((1 - ab_prev - sigma2) / (1 - ab))
        a = math.sqrt(ab_prev) * gain + turn * (1 - math.sqrt(ab) * gain)
        b = (math.sqrt(ab_prev) - turn * math.sqrt(ab)) * MEAN * (1 - gain * math.sqrt(ab))
        mean, variance = a * mean + b, a * a * variance + sigma2
    return mean, variance


def exact_moments(method, eta, steps):
    """Return mean and variance of sample()'s result from z_T ~ N(0, 1), without drawing.

    The walk is affine: row 0 (all zero) is its mean, the other rows less row 0 the weights of z_T and of each draw.
    """
    z_T = torch.zeros(steps + 2, 1, 1, 1, dtype=torch.float64)
    z_T[1] = 1
    z = sample(exact_eps, z_T, SCHEDULE, steps, method, eta, OneRowEach(steps + 2, first=2), "trailing").flatten()
    return z[0].item(), (z[1:] - z[0]).square().sum().item()


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
@pytest.mark.parametrize(("method", "eta"), METHODS[:6])
def test_the_walk_on_a_gaussian_follows_the_closed_recursion(method, eta, steps):
    walk = [round(1000 * (steps - i) / steps) - 1 for i in range(steps)] + [-1]
    variance = 1 - alpha_bar(999) if method.startswith("euler") else 1.0
    expected = closed_recursion(walk, ETA.get(method, eta), variance)
    assert exact_moments(method, eta, steps) == pytest.approx(expected, abs=1e-10)  # a thousand steps of 1e-14


def test_random_samples_have_the_variance_of_the_recursion():
    # 40,000 samples: the standard error of a variance is variance * sqrt(2 / 40,000) = 0.7 %; four of them.
    noise = seeded_noise((10_000, 4, 1, 1))
    z = sample(exact_eps, noise(), SCHEDULE, 50, "ddpm", noise=noise)
    mean, variance = closed_recursion([*range(999, 0, -20), -1], eta=1.0)
    assert z.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / 40_000))
    assert z.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / 40_000))


def test_the_denoiser_gets_int64_timesteps_and_the_latents_dtype():
    asked, z_T = [], seeded_noise((3, 4, 2, 2))().float()

    def denoiser(z_t, t):
        assert (t.dtype, t.shape, z_t.dtype) == (torch.int64, (3,), torch.float32)
        asked.append(t[0].item())
        return 0.1 * z_t

    assert sample(denoiser, z_T, SCHEDULE, 4).dtype == torch.float32 and asked == [999, 749, 499, 249]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (dict(method="heun"), "method is ddim, ddpm"),
        (dict(method="ddpm"), "give noise"),
        (dict(method="euler_ancestral"), "give noise"),
        (dict(schedule=ZERO_SNR), "needs v-prediction"),
        (dict(eta=0.5), "give noise"),
        (dict(eta=1.5, noise=seeded_noise((1, 4, 2, 2))), "eta lies"),
        (dict(method="dpmpp_2m", eta=0.5, noise=seeded_noise((1, 4, 2, 2))), "eta lies"),
    ],
)
def test_contradictory_requests_are_refused(request_, message):
    with pytest.raises(ValueError, match=message):
        sample(lambda z, t: z, torch.zeros(1, 4, 2, 2), **{"schedule": SCHEDULE, "steps": 10, **request_})


@pytest.mark.parametrize("method", SAMPLERS)
def test_leading_steps_end_clean_but_for_those_that_public_settings_end_at_alpha_bar_0(method):
    z_T, estimates, noise = seeded_noise((2, 4, 2, 2))(), [], seeded_noise((2, 4, 2, 2), 1)

    def denoiser(z, t):
        estimates.append(eps_to_z0(z, z.tanh(), SCHEDULE.at(t)))
        return z.tanh()

    z = sample(denoiser, z_T, SCHEDULE, 20, method, noise=noise, spacing="leading")
    assert ((z - estimates[-1]).abs().max() < 1e-12) == (method not in ENDS_AT_0)


@pytest.mark.parametrize("name", load_file(FILE))
def test_a_walk_is_that_of_diffusers_from_the_same_integer_seed(name):
    # Both in float32. Theirs has alpha_bar itself in float32: a product of 1000 factors, each rounded by 6e-8 at random, is
    # off by 6e-8 sqrt(1000) = 2e-6 of itself. The largest error found is 3e-6.
    method, spacing, prediction, steps = name.split()
    schedule, spacing = (ZERO_SNR, "trailing") if spacing == "zero" else (SCHEDULE, spacing)
    spacing = None if spacing == SAMPLERS[method].spacing else spacing
    reference, noise, states = load_file(FILE)[name], SeededNoise([SEED], SHAPE), []

    def watched(z_t, t):
        states.append(z_t)
        return network(z_t, t)

    states.append(sample(watched, noise(), schedule, int(steps), method, noise=noise, spacing=spacing, prediction=prediction))
    ours = torch.cat(states)
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() < 1e-5 * reference.square().mean().sqrt()


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(("method", "eta"), METHODS)
def test_a_walk_from_zero_snr_is_finite_and_reaches_a_point_mass(method, eta, steps):
    # v at alpha_bar 0 is -z_0, so the first output says all. plms mixes v of several alpha_bars, and so errs on the way.
    point, noise = seeded_noise((2, 4, 3, 3), seed=1)(), seeded_noise((2, 4, 3, 3), seed=2)

    def denoiser(z_t, t):
        ab = ZERO_SNR.at(t)
        return to_v(point, z0_to_eps(z_t, point, ab), ab)

    z = sample(denoiser, noise(), ZERO_SNR, steps, method, eta, noise, "trailing", "v")
    assert z.isfinite().all()
    if method != "plms":
        assert (z - point).abs().max() < 1e-12
