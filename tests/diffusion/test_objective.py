"""The losses by hand; the variational bound against exact likelihoods of Gaussians."""

import math
from dataclasses import replace

import pytest
import torch

from emit import model
from emit.diffusion import objective
from emit.diffusion.objective import large_variance, small_variance
from emit.diffusion.schedule import Schedule
from tests.helpers import column

SCHEDULE = Schedule.scaled_linear()


def gaussian_eps(z_t, t, spread):
    """Return E[eps | z_t] for z_0 ~ N(0, spread^2): covariance sqrt(1 - ab) over variance ab spread^2 + 1 - ab."""
    ab = SCHEDULE.at(t)
    return (1 - ab).sqrt() / (ab * spread**2 + 1 - ab) * z_t


def test_loss_by_hand_also_in_half_precision():
    # Errors 1, 3 | 0, 2: samples (1 + 9) / 2 = 5 and (0 + 4) / 2 = 2.
    eps, eps_hat = torch.zeros(2, 2, 1, 1), torch.tensor([[1.0, -3.0], [0.0, 2.0]]).reshape(2, 2, 1, 1)
    assert objective.per_sample_loss(eps, eps_hat).tolist() == [5.0, 2.0]
    # 4096 errors of 1e-3: their squares, 1e-6, vanish or lose digits in float16, not in float32.
    eps_hat = torch.full((1, 4, 32, 32), 1e-3, dtype=torch.float16)
    loss = objective.per_sample_loss(torch.zeros_like(eps_hat), eps_hat)
    assert loss.item() == pytest.approx(1e-6, rel=1e-3)  # 1e-3 itself is known to 2^-11 in float16


def test_training_at_zero_snr_is_finite_for_v_and_refused_for_eps(monkeypatch):
    # At alpha_bar 0, z_t is eps and v is -z_0: a network that says 0 loses the mean of z_0^2.
    whole = model.EmitDiff(model.DEMO)
    whole.schedule = SCHEDULE.rescale_zero_terminal_snr()
    monkeypatch.setattr(whole, "contexts", lambda prompts: None)
    monkeypatch.setattr(whole, "network_output", lambda z_t, *_: torch.where(z_t == eps, 0.0, math.nan))
    z_0, eps = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    losses = whole.losses(z_0, torch.tensor([999, 999, 999]), eps, ["", "", ""])
    torch.testing.assert_close(losses, z_0.square().mean(dim=(1, 2, 3)))
    whole.sizes = replace(whole.sizes, prediction="eps")
    with pytest.raises(ValueError, match="needs v-prediction"):
        whole.losses(z_0, torch.tensor([0, 1, 2]), eps, ["", "", ""])
    with pytest.raises(ValueError, match="needs v-prediction"):
        objective.variational_bound(lambda z_t, t: z_t, z_0, whole.schedule, lambda: eps)


def test_quartiles_split_the_timesteps_evenly_and_absent_ones_stay_absent():
    t = torch.tensor([0, 249, 250, 499, 749, 750, 999])
    loss = torch.tensor([1.0, 3.0, 5.0, 7.0, 11.0, 13.0, 15.0])
    assert objective.loss_by_quartile(loss, t, 1000) == {"q1": 2.0, "q2": 6.0, "q3": 11.0, "q4": 14.0}
    assert objective.loss_by_quartile(loss[:1], t[:1], 1000) == {"q1": 1.0}


def test_gaussian_kl_and_nll_are_the_integrals():
    # Sums over 12 standard deviations of q; the grid rule is exact to rounding for Gaussians.
    mean_q, variance_q, mean_p, variance_p = (torch.tensor(x, dtype=torch.float64) for x in (0.3, 0.5, -0.2, 2.0))
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    log_q = torch.distributions.Normal(mean_q, variance_q.sqrt()).log_prob(z)
    log_p = torch.distributions.Normal(mean_p, variance_p.sqrt()).log_prob(z)
    integral = torch.trapezoid(log_q.exp() * (log_q - log_p), z).item()
    kl = objective.gaussian_kl(mean_q, variance_q, mean_p, variance_p)
    assert kl.item() == pytest.approx(integral, abs=1e-10)
    assert objective.gaussian_kl(mean_p, variance_p, mean_p, variance_p).item() == 0
    assert (objective.gaussian_nll(z, mean_p, variance_p) + log_p).abs().max() < 1e-12


def exact_bound(spread, variance, eps_factor=1.0):
    """Return the bound's terms, in expectation over z_0 ~ N(0, spread^2) and noise, without sampling error.

    With a linear denoiser every term is quadratic in (z_0, eps): the average over z_0 = +-spread, eps = +-1 is exact.
    """
    z_0, noise = spread * column(1, 1, -1, -1), column(1, -1, 1, -1)
    terms = objective.variational_bound(
        lambda z_t, t: eps_factor * gaussian_eps(z_t, t, spread), z_0, SCHEDULE, lambda: noise, variance
    )
    return {name: term.mean(0) for name, term in terms.items()}


def entropy(spread):
    """Return E[-log p(z_0)] of N(0, spread^2): the least that any bound on the likelihood can be."""
    return 0.5 * math.log(2 * math.pi * math.e * spread**2)


def prior_gap(spread):
    """Return KL(q(z_T) || N(0, 1)) for z_0 ~ N(0, spread^2): all that an exact reverse process gives away."""
    ab = SCHEDULE.at(999).item()
    variance = ab * spread**2 + 1 - ab
    return 0.5 * (variance - 1 - math.log(variance))


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_bound_exceeds_the_likelihood_by_the_prior_gap_alone_for_the_exact_reverse_variance(spread):
    def exact_variance(ab_t, ab_prev):  # of z_prev given z_t = sqrt(alpha) z_prev + sqrt(1 - alpha) noise
        alpha, marginal = ab_t / ab_prev, ab_prev * spread**2 + 1 - ab_prev
        return marginal * (1 - alpha) / (alpha * marginal + 1 - alpha)

    # For z_0 ~ N(0, 1) every q(z_t) is N(0, 1): no gap, and the exact variance is the large one.
    bound = exact_bound(spread, large_variance if spread == 1 else exact_variance)
    assert bound["total"].item() == pytest.approx(entropy(spread) + prior_gap(spread), abs=1e-11)  # 1000 roundings of 1e-16


@pytest.mark.parametrize(("spread", "variance"), [(0.3, small_variance), (2.0, large_variance)])
def test_bound_is_never_below_the_likelihood_and_a_worse_model_bounds_worse(spread, variance):
    exact, worse = exact_bound(spread, variance), exact_bound(spread, variance, eps_factor=0.9)
    assert exact["total"] > entropy(spread) + prior_gap(spread) - 1e-11
    assert worse["total"] > exact["total"] + 0.01  # far above rounding
    assert (worse["L_t"] > exact["L_t"]).all()
    assert worse["L_T"] == exact["L_T"]


def test_terms_are_their_closed_forms():
    generator = torch.Generator().manual_seed(0)
    z_0, eps, eps_hat = torch.randn(3, 5, 4, 2, 2, dtype=torch.float64, generator=generator)
    terms = objective.variational_bound(lambda z_t, t: eps_hat, z_0, SCHEDULE, lambda: eps)
    assert terms["L_t"].shape == (5, 999)
    mean_error = (eps - eps_hat).square().mean(dim=(1, 2, 3))
    ab = SCHEDULE.alpha_bar
    # L_T: KL(N(sqrt(ab) z_0, 1 - ab) || N(0, 1)) = (ab z_0^2 - ab - log(1 - ab)) / 2.
    prior = (ab[999] * z_0.square() - ab[999] - (1 - ab[999]).log()).mean(dim=(1, 2, 3)) / 2
    assert (terms["L_T"] - prior).abs().max() < 1e-12
    # L_{t-1} (DDPM Eq. 12 with sigma^2 = beta~): beta^2 / (2 beta~ alpha (1 - ab)) || eps - eps_hat ||^2.
    alpha = ab[1:] / ab[:-1]
    beta_tilde = (1 - ab[:-1]) / (1 - ab[1:]) * (1 - alpha)
    weight = (1 - alpha) ** 2 / (2 * beta_tilde * alpha * (1 - ab[1:]))
    assert (terms["L_t"] / (mean_error[:, None] * weight) - 1).abs().max() < 1e-9
    # L_0 with variance beta_0 = 1 - ab_0: z_0 - z0_hat = sqrt((1 - ab_0) / ab_0) (eps_hat - eps).
    reconstruction = mean_error / (2 * ab[0]) + 0.5 * (2 * math.pi * (1 - ab[0])).log()
    assert (terms["L_0"] - reconstruction).abs().max() < 1e-11
    total = prior + mean_error * weight.sum() + reconstruction
    assert (terms["total"] / total - 1).abs().max() < 1e-9
