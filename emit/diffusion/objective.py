"""What is minimised: the simple loss, and term by term the variational bound behind it.   (DDPM, 2006.11239)"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from emit.diffusion.schedule import Schedule, eps_to_z0, posterior, posterior_variance, q_sample, raise_precision


def per_sample_loss(eps: Tensor, eps_hat: Tensor) -> Tensor:
    """Return || eps - eps_hat ||^2 / dimensions of each sample, (B,), in float32 or better.   (DDPM Eq. 14; EMIT-Diff's loss)"""
    return (raise_precision(eps) - raise_precision(eps_hat)).square().flatten(1).mean(1)  # (B, C, h, w) -> (B,)


def loss_by_quartile(loss: Tensor, t: Tensor, T: int) -> dict[str, float]:
    """Return {"q1": mean loss over 0 <= t < T/4, .., "q4": over 3T/4 <= t < T}; a quartile without samples is absent.

    loss, t: (B,).  The noisiest timesteps (q4) are the easiest; a condition shows first in q3 and q4, detail in q1.
    """
    quartile = 4 * t.to(loss.device) // T  # 0..3, (B,)
    return {f"q{q + 1}": loss[quartile == q].mean().item() for q in range(4) if (quartile == q).any()}


def gaussian_kl(mean_q: Tensor, variance_q: Tensor, mean_p: Tensor | float, variance_p: Tensor | float) -> Tensor:
    """Return KL(N(mean_q, variance_q) || N(mean_p, variance_p)), elementwise, in nats."""
    ratio = variance_q / variance_p
    return 0.5 * ((mean_q - mean_p) ** 2 / variance_p + ratio - 1 - ratio.log())


def gaussian_nll(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return -log N(z; mean, variance), elementwise, in nats."""
    return 0.5 * ((z - mean) ** 2 / variance + (2 * math.pi * variance).log())


def large_variance(ab_t: Tensor, ab_prev: Tensor) -> Tensor:
    """sigma_t^2 = beta_t: the exact reverse variance where z_0 ~ N(0, I).   (DDPM Sec. 3.2)"""
    return 1 - ab_t / ab_prev


def small_variance(ab_t: Tensor, ab_prev: Tensor) -> Tensor:
    """sigma_t^2 = beta~_t, the sampler's; on the step to clean, where beta~ is 0 and no density exists, beta_0."""
    return large_variance(ab_t, ab_prev) if ab_prev == 1 else posterior_variance(ab_t, ab_prev)


@torch.no_grad()
def variational_bound(
    denoiser: Callable, z_0: Tensor, schedule: Schedule, noise: Callable, variance: Callable = small_variance
) -> dict[str, Tensor]:
    """Return the terms of -log p(z_0) <= L_T + sum_t L_{t-1} + L_0, in nats per latent dimension.   (DDPM Eq. 5)

    L_T = KL(q(z_T | z_0) || N(0, I)): (B,).  L_{t-1} = KL(q(z_{t-1} | z_t, z_0) || p(z_{t-1} | z_t)): (B, T-1),
    column t-1 the step from t = 1..T-1.  L_0 = -log p(z_0 | z_1), a Gaussian density: (B,).  total: (B,).
    The paper counts t = 1..T, we 0..T-1.  denoiser(z_t, t (B,)) -> eps; noise() -> like z_0, drawn anew for each t,
    each term one draw of its expectation; variance(ab_t, ab_prev) -> sigma_t^2.  Bits: divide by ln 2.
    """
    schedule.check("eps")
    last = schedule.at(schedule.T - 1).to(z_0)
    prior = gaussian_kl(last.sqrt() * z_0, 1 - last, 0.0, 1.0).flatten(1).mean(1)  # (B, C, h, w) -> (B,)
    terms = []
    for t in range(schedule.T):
        ab_t, ab_prev = schedule.at(t), schedule.at(t - 1)
        z_t = q_sample(z_0, ab_t, noise())  # straight from z_0: the terms need no walk
        eps_hat = denoiser(z_t, torch.full((len(z_0),), t, device=z_0.device))
        mean_p, _ = posterior(eps_to_z0(z_t, eps_hat, ab_t), z_t, ab_t, ab_prev)
        variance_p = variance(ab_t, ab_prev).to(z_0)
        if t == 0:  # to clean: q is a point, so the KL would be infinite; a density takes its place
            term = gaussian_nll(z_0, mean_p, variance_p)
        else:
            mean_q, variance_q = posterior(z_0, z_t, ab_t, ab_prev)
            term = gaussian_kl(mean_q, variance_q.to(z_0), mean_p, variance_p)
        terms.append(term.flatten(1).mean(1))
    reconstruction, steps = terms[0], torch.stack(terms[1:], dim=1)  # (B,), (B, T-1)
    return {"L_T": prior, "L_t": steps, "L_0": reconstruction, "total": prior + steps.sum(1) + reconstruction}
