"""The reverse process: the steps as pure functions, the table of samplers, the timesteps to keep, and the one loop.

Every step is step(now, before, ab_prev, eta, noise) -> z_prev, and reads of these what it needs. now: the Estimate at
z_t; before: those of the timesteps before it, newest first; ab_prev: alpha_bar of the next timestep of the walk, above
now.ab; noise: like z_t, the fresh noise, of which eta is the share. A step never knows whether its timesteps are
neighbours: every jump is between two alpha_bars.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from emit.diffusion.schedule import AlphaBar, Schedule, combine, double, eps_to_z0, posterior, q_sample, v_to_eps, v_to_z0


@dataclass(frozen=True)
class Estimate:
    """What the network puts out for z_t at alpha_bar ab, and what this says of z_0 and eps."""

    z_t: Tensor
    out: Tensor
    ab: AlphaBar
    prediction: str = "eps"  # what `out` is: "eps" or "v"

    @property
    def z0_hat(self) -> Tensor:
        convert = v_to_z0 if self.prediction == "v" else eps_to_z0
        return convert(self.z_t, self.out, self.ab)

    @property
    def eps_hat(self) -> Tensor:
        return v_to_eps(self.z_t, self.out, self.ab) if self.prediction == "v" else self.out


def ddpm_step(now: Estimate, before: list[Estimate], ab_prev: AlphaBar, eta: float, noise: Tensor) -> Tensor:
    """Draw z_prev from q(z_prev | z_t, z0_hat), the posterior at the estimate.   (DDPM, 2006.11239, Eq. 11, Alg. 2)

    mean = (z_t - beta / sqrt(1 - ab_t) eps_hat) / sqrt(1 - beta);  variance = beta~, the fixed small one.
    At ab_prev = 1 the variance is 0: no noise on the last step.  No clipping: latents have no bounds.
    """
    mean, variance = posterior(now.z0_hat, now.z_t, now.ab, ab_prev)
    return mean + combine((variance.sqrt(), noise))


def ddim_step(now: Estimate, before: list[Estimate], ab_prev: AlphaBar, eta: float, noise: Tensor) -> Tensor:
    """Move z_t to the next kept timestep; also Euler's step (eta = 0) and Euler ancestral's (eta = 1).

    z_prev = sqrt(ab_prev) z0_hat + sqrt(1 - ab_prev - sigma^2) eps_hat + sigma noise     (DDIM, 2010.02502, Eq. 12)
    sigma  = eta sqrt((1 - ab_prev) / (1 - ab_t)) sqrt(1 - ab_t / ab_prev)                (Eq. 16; eta = 1 is DDPM)
    eta in [0, 1].  Their "alpha" is our ab (DDPM's alpha-bar).
    The same in the terms of Karras et al. (2206.00364), x = z / sqrt(ab) with noise s = sqrt((1 - ab) / ab), dx / ds = eps:
    x_prev = x_t + (s_down - s_t) eps_hat + s_up noise,  s_up = eta s_prev sqrt(1 - s_prev^2 / s_t^2),
    s_down^2 = s_prev^2 - s_up^2.  Ours is finite where ab_t = 0.
    """
    ab_t, ab_prev = double(now.ab), double(ab_prev)
    sigma = eta * ((1 - ab_prev) / (1 - ab_t)).sqrt() * (1 - ab_t / ab_prev).sqrt()  # eta sqrt(beta~)
    along = (1 - ab_prev - sigma**2).clamp(min=0).sqrt()  # at ab_t = 0 and eta = 1 all noise is fresh
    return combine((ab_prev.sqrt(), now.z0_hat), (along, now.eps_hat), (sigma, noise))


def dpmpp_2m_step(now: Estimate, before: list[Estimate], ab_prev: AlphaBar, eta: float, noise: Tensor) -> Tensor:
    """Move z_t by DPM-Solver++(2M), second order from two estimates of z_0.   (2211.01095, Algorithm 2)

    z_prev = sqrt((1 - ab_prev) / (1 - ab_t)) z_t + sqrt(ab_prev) (1 - e^-h) D
    D = (1 + 1 / 2r) z0_hat - 1 / 2r z0_before
    h = lambda_prev - lambda_t,  r = (lambda_t - lambda_before) / h,  lambda = log sqrt(ab / (1 - ab)).
    With nothing before, and at ab_prev = 1 where lambda is infinite, D = z0_hat: first order = DDIM.
    """
    ab_t, ab_prev = double(now.ab), double(ab_prev)
    h = half_log_snr(ab_prev) - half_log_snr(ab_t)
    direction = now.z0_hat  # first order: z0_hat is held for the whole step
    if before and (ab_prev < 1).all():
        r = (half_log_snr(ab_t) - half_log_snr(before[0].ab)) / h  # steps need not be equal in lambda
        direction = combine((1 + 0.5 / r, now.z0_hat), (-0.5 / r, before[0].z0_hat))  # the line through both, half a step on
    shrink = ((1 - ab_prev) / (1 - ab_t)).sqrt()
    return combine((shrink, now.z_t), (ab_prev.sqrt() * -torch.expm1(-h), direction))  # expm1: no cancelling at small h


def half_log_snr(ab: AlphaBar) -> Tensor:
    """lambda = log(sqrt(ab) / sqrt(1 - ab)), DPM-Solver's time; infinite at ab = 0 and 1."""
    ab = double(ab)
    return 0.5 * (ab / (1 - ab)).log()


ADAMS_BASHFORTH = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms_step(now: Estimate, before: list[Estimate], ab_prev: AlphaBar, eta: float, noise: Tensor) -> Tensor:
    """Take DDIM's step with a mix of the last outputs: PNDM without its Runge-Kutta start.   (2202.09778)

    out = (55 out_t - 59 out_1 + 37 out_2 - 9 out_3) / 24, with fewer before (23, -16, 5) / 12, (3, -1) / 2, 1: the
    Adams-Bashforth rules for even steps.  What is mixed is what the network puts out, eps or v.
    ab_prev = now.ab: the first step, taken by DDIM, is taken again from its start with the mean of the outputs at its two ends.
    """
    if torch.equal(double(ab_prev), double(now.ab)):
        start, half = before[0], double(0.5)
        return ddim_step(replace(start, out=combine((half, start.out), (half, now.out))), [], ab_prev, eta, noise)
    outs = [estimate.out for estimate in (now, *before)]
    mix = combine(*((double(weight), out) for weight, out in zip(ADAMS_BASHFORTH[len(before)], outs, strict=True)))
    return ddim_step(replace(now, out=mix), [], ab_prev, eta, noise)


@dataclass(frozen=True)
class Sampler:
    """A step and how its walk goes, for plms and euler as in the public pipelines of Stable Diffusion 1.5."""

    step: Callable[[Estimate, list[Estimate], AlphaBar, float, Tensor], Tensor]
    eta: float = 0.0  # share of fresh noise; ddim takes the caller's
    spacing: str = "trailing"  # where the caller names none
    leading_end: int = -1  # where "leading" spacing ends: clean, or 0 (`set_alpha_to_one` false)
    start_at_sigma: bool = False  # x_T is sigma_T noise, not sqrt(sigma_T^2 + 1) noise; but for "leading"


SAMPLERS = {
    "ddim": Sampler(ddim_step, leading_end=0),
    "ddpm": Sampler(ddpm_step, eta=1.0),
    "dpmpp_2m": Sampler(dpmpp_2m_step),
    "plms": Sampler(plms_step, spacing="leading", leading_end=0),
    "euler": Sampler(ddim_step, spacing="linspace", start_at_sigma=True),
    "euler_ancestral": Sampler(ddim_step, eta=1.0, spacing="linspace", start_at_sigma=True),
}


def timesteps(T: int, steps: int, spacing: str = "trailing") -> list[int] | list[float]:
    """Return the kept timesteps, falling: `steps` ints within 0..T-1, or floats for "linspace".

    "trailing": T-1 down in steps of T / steps. Only at T-1, the noisiest timestep trained, is pure noise the
    right start, for any number of steps (2305.08891).
    "leading": 1 + i (T // steps), the public Stable Diffusion convention: starts below T-1, at 951 for 20 of 1000.
    Exactly `steps` of them as in diffusers; the original code takes one more where steps does not divide T.
    "linspace": even from T-1 to 0, between the timesteps too, as in k-diffusion.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must lie in 1..{T}, not {steps}")
    if spacing == "trailing":
        return [round(T * (steps - i) / steps) - 1 for i in range(steps)]
    if spacing == "leading":
        if steps == T:
            raise ValueError(f'"leading" spacing starts at t = {T} for {T} steps, which does not exist; use "trailing"')
        return [1 + i * (T // steps) for i in reversed(range(steps))]
    if spacing == "linspace":
        return torch.linspace(T - 1, 0, steps, dtype=torch.float64).tolist()
    raise ValueError(f'spacing is "trailing", "leading" or "linspace", not {spacing!r}')


@torch.no_grad()
def sample(
    denoiser: Callable[[Tensor, Tensor], Tensor],  # (z_t, t (B,), int64, or float32 with "linspace") -> eps_hat or v_hat
    z_T: Tensor,  # (B, 4, h, w), standard normal
    schedule: Schedule,
    steps: int,
    method: str = "ddim",  # a name in SAMPLERS
    eta: float = 0.0,  # of ddim
    noise: Callable[[], Tensor] | None = None,  # like z_T, once for each step that adds noise
    spacing: str | None = None,  # None: the method's
    prediction: str = "eps",  # what the denoiser returns
) -> Tensor:
    """Walk from noise z_T to z_0 in `steps` calls of the denoiser, one more for plms. ValueError for contradicting settings."""
    if method not in SAMPLERS:
        raise ValueError(f"method is {', '.join(SAMPLERS)}, not {method!r}")
    sampler = SAMPLERS[method]
    if not 0 <= eta <= 1 or (eta > 0 and method != "ddim"):
        raise ValueError(f"eta lies in [0, 1] and belongs to ddim alone; got eta = {eta} with {method}")
    if noise is None and (eta or sampler.eta) > 0:
        raise ValueError(f"{method} with eta = {eta} adds noise at every step: give noise")
    schedule.check(prediction)
    eta, spacing = eta or sampler.eta, spacing or sampler.spacing
    kept = timesteps(schedule.T, steps, spacing)
    end = sampler.leading_end if spacing == "leading" else -1
    twice = kept[1:2] if method == "plms" else []  # the timestep where its first step ends, to take that step again
    z_t, before = z_T, []
    if sampler.start_at_sigma and spacing != "leading":
        z_t = q_sample(torch.zeros_like(z_T), schedule.at(kept[0]), z_T)
    for t, t_prev in pairwise([kept[0], *twice, *kept[1:], end]):  # t falls
        ab_prev = schedule.at(t_prev)
        out = denoiser(z_t, torch.full((len(z_t),), t, device=z_t.device))  # t: () -> (B,)
        now = Estimate(z_t, out, schedule.at(t), prediction)
        fresh = noise() if eta > 0 and t_prev >= 0 else torch.zeros_like(z_t)  # none on the step to clean
        z_t = sampler.step(now, before, ab_prev, eta, fresh)
        if t != t_prev:
            before = [now, *before[:2]]  # three, as many as any step reads
    return z_t
