"""The reverse process: three steps as pure functions, the timesteps to keep, and the one loop that runs them.

`ab` = alpha_bar (see schedule.py); t_prev is the next timestep of the walk, so ab_prev > ab_t. A step never knows
whether its timesteps are neighbours: every jump is between two alpha_bars. v-predicting networks: wrap in v_to_eps.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from emit.diffusion.schedule import AlphaBar, Schedule, combine, double, eps_to_z0, posterior


def ddpm_step(z_t: Tensor, eps_hat: Tensor, ab_t: AlphaBar, ab_prev: AlphaBar, noise: Tensor) -> Tensor:
    """Draw z_prev from q(z_prev | z_t, z0_hat), the posterior at the estimate.   (DDPM, 2006.11239, Eq. 11, Alg. 2)

    mean = (z_t - beta / sqrt(1 - ab_t) eps_hat) / sqrt(1 - beta);  variance = beta~, the fixed small one.
    At ab_prev = 1 the variance is 0: no noise on the last step.  No clipping: latents have no bounds.
    """
    mean, variance = posterior(eps_to_z0(z_t, eps_hat, ab_t), z_t, ab_t, ab_prev)
    return mean + combine((variance.sqrt(), noise))


def ddim_step(z_t: Tensor, eps_hat: Tensor, ab_t: AlphaBar, ab_prev: AlphaBar, eta: float, noise: Tensor) -> Tensor:
    """Move z_t to the next kept timestep.

    z_prev = sqrt(ab_prev) z0_hat + sqrt(1 - ab_prev - sigma^2) eps_hat + sigma noise     (DDIM, 2010.02502, Eq. 12)
    sigma  = eta sqrt((1 - ab_prev) / (1 - ab_t)) sqrt(1 - ab_t / ab_prev)                (Eq. 16; eta = 1 is DDPM)
    eta in [0, 1].  Their "alpha" is our ab (DDPM's alpha-bar).
    """
    ab_t, ab_prev = double(ab_t), double(ab_prev)
    sigma = eta * ((1 - ab_prev) / (1 - ab_t)).sqrt() * (1 - ab_t / ab_prev).sqrt()  # eta sqrt(beta~)
    z0_hat = eps_to_z0(z_t, eps_hat, ab_t)
    return combine((ab_prev.sqrt(), z0_hat), ((1 - ab_prev - sigma**2).sqrt(), eps_hat), (sigma, noise))


def dpmpp_2m_step(
    z_t: Tensor, z0_hat: Tensor, z0_before: Tensor | None, ab_t: AlphaBar, ab_prev: AlphaBar, ab_before: AlphaBar | None
) -> Tensor:
    """Move z_t by DPM-Solver++(2M), second order from two estimates of z_0.   (2211.01095, Algorithm 2)

    z_prev = sqrt((1 - ab_prev) / (1 - ab_t)) z_t + sqrt(ab_prev) (1 - e^-h) D
    D = (1 + 1 / 2r) z0_hat - 1 / 2r z0_before
    h = lambda_prev - lambda_t,  r = (lambda_t - lambda_before) / h,  lambda = log sqrt(ab / (1 - ab)).
    z0_before, ab_before: estimate and alpha_bar of the step before, or None, None: D = z0_hat, first order = DDIM.
    First order is a must at ab_prev = 1, where lambda is infinite.
    """
    ab_t, ab_prev = double(ab_t), double(ab_prev)
    h = half_log_snr(ab_prev) - half_log_snr(ab_t)
    direction = z0_hat  # first order: z0_hat is held for the whole step
    if z0_before is not None:
        r = (half_log_snr(ab_t) - half_log_snr(ab_before)) / h  # steps need not be equal in lambda
        direction = combine((1 + 0.5 / r, z0_hat), (-0.5 / r, z0_before))  # the line through both, half a step on
    shrink = ((1 - ab_prev) / (1 - ab_t)).sqrt()
    return combine((shrink, z_t), (ab_prev.sqrt() * -torch.expm1(-h), direction))  # expm1: no cancelling at small h


def half_log_snr(ab: AlphaBar) -> Tensor:
    """lambda = log(sqrt(ab) / sqrt(1 - ab)), DPM-Solver's time; infinite at ab = 1."""
    ab = double(ab)
    return 0.5 * (ab / (1 - ab)).log()


def timesteps(T: int, steps: int, spacing: str = "trailing") -> list[int]:
    """Return the kept timesteps, falling: `steps` ints within 0..T-1.

    "trailing" (default): T-1 down in steps of T / steps. Only at T-1, the noisiest timestep trained, is pure noise the
    right start, for any number of steps (2305.08891).
    "leading": 1 + i (T // steps), the public Stable Diffusion convention: starts below T-1, at 951 for 20 of 1000.
    Exactly `steps` of them as in diffusers; the original code takes one more where steps does not divide T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must lie in 1..{T}, not {steps}")
    if spacing == "trailing":
        return [round(T * (steps - i) / steps) - 1 for i in range(steps)]
    if spacing == "leading":
        if steps == T:
            raise ValueError(f'"leading" spacing starts at t = {T} for {T} steps, which does not exist; use "trailing"')
        return [1 + i * (T // steps) for i in reversed(range(steps))]
    raise ValueError(f'spacing is "trailing" or "leading", not {spacing!r}')


@torch.no_grad()
def sample(
    denoiser: Callable[[Tensor, Tensor], Tensor],  # (z_t, t int64 (B,)) -> eps_hat
    z_T: Tensor,  # (B, 4, h, w), standard normal
    schedule: Schedule,
    steps: int,
    method: str = "ddim",  # "ddpm", "ddim" or "dpmpp_2m" (first order at its first and last step, second between)
    eta: float = 0.0,  # of ddim
    noise: Callable[[], Tensor] | None = None,  # like z_T, once for each step that adds noise: ddpm, eta > 0
    spacing: str = "trailing",
    t_end: int = -1,  # where the last step goes: -1 clean; 0 with spacing "leading" reproduces public DDIM results
    callback: Callable[[dict], None] | None = None,  # after each step: t, t_prev, z_t, eps_hat, z0_hat, z_prev
) -> Tensor:
    """Walk from noise z_T to z_0 in `steps` calls of the denoiser. ValueError where settings contradict each other."""
    stochastic = method == "ddpm" or eta > 0
    check_request(method, eta, stochastic and noise is None)
    kept = timesteps(schedule.T, steps, spacing)
    if not -1 <= t_end < kept[-1]:
        raise ValueError(f"t_end must lie in -1..{kept[-1] - 1}, below the last kept timestep, not {t_end}")
    z_t, z0_hat, ab_before = z_T, None, None
    for t, t_prev in pairwise([*kept, t_end]):  # t falls
        ab_t, ab_prev = schedule.at(t), schedule.at(t_prev)
        eps_hat = denoiser(z_t, torch.full((len(z_t),), t, device=z_t.device))  # t: () -> (B,)
        z0_before, z0_hat = z0_hat, eps_to_z0(z_t, eps_hat, ab_t)
        fresh = noise() if stochastic and t_prev >= 0 else torch.zeros_like(z_t)  # none on the step to clean
        if method == "ddpm":
            z_prev = ddpm_step(z_t, eps_hat, ab_t, ab_prev, fresh)
        elif method == "ddim":
            z_prev = ddim_step(z_t, eps_hat, ab_t, ab_prev, eta, fresh)
        else:
            history = None if t_prev == t_end else z0_before  # lambda is infinite at clean
            z_prev = dpmpp_2m_step(z_t, z0_hat, history, ab_t, ab_prev, ab_before)
        if callback is not None:
            callback(dict(t=t, t_prev=t_prev, z_t=z_t, eps_hat=eps_hat, z0_hat=z0_hat, z_prev=z_prev))
        z_t, ab_before = z_prev, ab_t
    return z_t


def check_request(method: str, eta: float, lacks_noise: bool) -> None:
    """Raise ValueError where the settings of sample() contradict each other."""
    if method not in ("ddpm", "ddim", "dpmpp_2m"):
        raise ValueError(f'method is "ddpm", "ddim" or "dpmpp_2m", not {method!r}')
    if not 0 <= eta <= 1 or (eta > 0 and method != "ddim"):
        raise ValueError(f"eta lies in [0, 1] and belongs to ddim alone; got eta = {eta} with {method}")
    if lacks_noise:
        raise ValueError(f"{method} with eta = {eta} adds noise at every step: give noise")
