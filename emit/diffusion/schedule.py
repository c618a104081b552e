"""The forward process: noise schedule, marginal, posterior, and the three ways to name one prediction (eps, z_0, v).

Sources: DDPM (Ho et al. 2020, 2006.11239); latent diffusion for the schedule (2112.10752); v from 2202.00512.
`ab` is alpha_bar at one timestep. Coefficients are computed in float64 and cast last, to float32 or float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

AlphaBar = float | Tensor  # a float, a 0-dim tensor or (B, 1, 1, 1)


@dataclass(frozen=True, eq=False)
class Schedule:
    """alpha_bar_t = prod_{s <= t} (1 - beta_s) for t = 0..T-1: (T,) float64, on the CPU, falling within [0, 1)."""

    alpha_bar: Tensor

    @classmethod
    def scaled_linear(cls, T: int = 1000, start: float = 8.5e-4, end: float = 1.2e-2) -> "Schedule":
        """Return Stable Diffusion's schedule ("linear" in its code): beta from start to end, evenly spaced in sqrt(beta)."""
        beta = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1 - beta, dim=0))

    def rescale_zero_terminal_snr(self) -> "Schedule":
        """Return the schedule with sqrt(alpha_bar) shifted and scaled, from its first down to 0.   (2305.08891, Alg. 1)"""
        root = self.alpha_bar.sqrt()
        return Schedule(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)

    def check(self, prediction: str) -> None:
        """Raise ValueError where eps is predicted and alpha_bar ends at 0: there z_t is eps and says nothing of z_0."""
        if prediction == "eps" and self.alpha_bar[-1] == 0:
            raise ValueError("eps says nothing of z_0 where alpha_bar is 0; a zero-terminal-SNR schedule needs v-prediction")

    @property
    def T(self) -> int:
        """Number of timesteps."""
        return len(self.alpha_bar)

    def at(self, t: float | Tensor) -> Tensor:
        """Return alpha_bar at t, and 1 at t = -1 (clean), in float64 on the CPU.

        t: one number, or (B,) whose answer is (B, 1, 1, 1), ready to meet latents.  IndexError outside -1..T-1.
        Between two timesteps sigma = sqrt((1 - ab) / ab) is a straight line.
        """
        t = torch.as_tensor(t).cpu()
        if t.min() < -1 or t.max() > self.T - 1:
            raise IndexError(f"timestep {t.tolist()} lies outside -1..{self.T - 1}")
        low = t.floor().long().clamp(min=0)  # index -1 would be the last, the noisiest
        ab = torch.where(t >= 0, self.alpha_bar[low], 1.0)
        if t.is_floating_point():
            sigma = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
            between = sigma[low] + (t.double() - low) * (sigma[(low + 1).clamp(max=self.T - 1)] - sigma[low])
            ab = torch.where(t > low, 1 / (1 + between**2), ab)
        return ab if t.ndim == 0 else ab.reshape(-1, 1, 1, 1)


def double(number: float | Tensor) -> Tensor:
    """Return the number, or tensor of numbers, in float64."""
    return torch.as_tensor(number, dtype=torch.float64)


def combine(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum of coefficient * tensor over the (coefficient, tensor) pairs, on the tensors' device.

    In float32 or better: bfloat16 has 8 bits, and 1000 steps of its rounding are 166 % of a step's coefficient.
    """
    return sum(coefficient.to(raise_precision(tensor)) * raise_precision(tensor) for coefficient, tensor in terms)


def raise_precision(tensor: Tensor) -> Tensor:
    """Return bfloat16 and float16 as float32, float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def q_step(z_prev: Tensor, beta: float | Tensor, eps: Tensor) -> Tensor:
    """Add one step of noise: z_t = sqrt(1 - beta) z_prev + sqrt(beta) eps draws q(z_t | z_{t-1}).   (DDPM Eq. 2)"""
    beta = double(beta)
    return combine(((1 - beta).sqrt(), z_prev), (beta.sqrt(), eps))


def q_sample(z_0: Tensor, ab: AlphaBar, eps: Tensor) -> Tensor:
    """Add all noise up to t at once: z_t = sqrt(ab) z_0 + sqrt(1 - ab) eps draws q(z_t | z_0).   (DDPM Eq. 4)"""
    ab = double(ab)
    return combine((ab.sqrt(), z_0), ((1 - ab).sqrt(), eps))


def posterior(z_0: Tensor, z_t: Tensor, ab_t: AlphaBar, ab_prev: AlphaBar) -> tuple[Tensor, Tensor]:
    """Return mean (like z_t) and variance (float64, shape of ab) of q(z_prev | z_t, z_0).   (DDPM Eq. 6-7)

    mean     = sqrt(ab_prev) beta / (1 - ab_t) z_0 + sqrt(1 - beta) (1 - ab_prev) / (1 - ab_t) z_t
    variance = (1 - ab_prev) / (1 - ab_t) beta,    where 1 - beta = ab_t / ab_prev
    t and t_prev need not be neighbours: beta is the noise of the whole jump.  ab_prev = 1: mean z_0, variance 0.
    """
    ab_t, ab_prev = double(ab_t), double(ab_prev)
    beta = 1 - ab_t / ab_prev  # not beta_t: t_prev may lie many timesteps before t
    towards_z_0 = ab_prev.sqrt() * beta / (1 - ab_t)
    towards_z_t = (1 - beta).sqrt() * (1 - ab_prev) / (1 - ab_t)
    return combine((towards_z_0, z_0), (towards_z_t, z_t)), posterior_variance(ab_t, ab_prev)


def posterior_variance(ab_t: AlphaBar, ab_prev: AlphaBar) -> Tensor:
    """beta~ = (1 - ab_prev) / (1 - ab_t) beta, the variance of q(z_prev | z_t, z_0), in float64.   (DDPM Eq. 7)"""
    ab_t, ab_prev = double(ab_t), double(ab_prev)
    return (1 - ab_prev) / (1 - ab_t) * (1 - ab_t / ab_prev)


def eps_to_z0(z_t: Tensor, eps: Tensor, ab: AlphaBar) -> Tensor:
    """z_0 = (z_t - sqrt(1 - ab) eps) / sqrt(ab): the marginal solved for z_0."""
    ab = double(ab)
    return combine((1 / ab.sqrt(), z_t), (-(1 - ab).sqrt() / ab.sqrt(), eps))


def z0_to_eps(z_t: Tensor, z_0: Tensor, ab: AlphaBar) -> Tensor:
    """eps = (z_t - sqrt(ab) z_0) / sqrt(1 - ab): the marginal solved for eps. Undefined at ab = 1."""
    ab = double(ab)
    return combine((1 / (1 - ab).sqrt(), z_t), (-ab.sqrt() / (1 - ab).sqrt(), z_0))


def to_v(z_0: Tensor, eps: Tensor, ab: AlphaBar) -> Tensor:
    """v = sqrt(ab) eps - sqrt(1 - ab) z_0: z_t turned by a quarter.   (2202.00512, Sec. 4)"""
    ab = double(ab)
    return combine((ab.sqrt(), eps), (-(1 - ab).sqrt(), z_0))


def v_to_z0(z_t: Tensor, v: Tensor, ab: AlphaBar) -> Tensor:
    """z_0 = sqrt(ab) z_t - sqrt(1 - ab) v."""
    ab = double(ab)
    return combine((ab.sqrt(), z_t), (-(1 - ab).sqrt(), v))


def v_to_eps(z_t: Tensor, v: Tensor, ab: AlphaBar) -> Tensor:
    """eps = sqrt(ab) v + sqrt(1 - ab) z_t."""
    ab = double(ab)
    return combine((ab.sqrt(), v), ((1 - ab).sqrt(), z_t))
