"""The autoencoder's latent scale, posterior and padding; its numbers are in test_golden.py."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from emit.model import SD15, SD21
from emit.networks.vae import AutoencoderKL, Posterior, VAEConfig, downsample
from tests.golden.files import SD1, original, read_golden


@pytest.fixture
def vae():
    module = AutoencoderKL(SD1.vae).requires_grad_(False)
    module.load_state_dict(original("vae", read_golden("vae_sd1")[1]["vae"]))
    return module


def test_the_scale_acts_once_on_each_way(vae):
    """Unscaled latents and decoded images do not depend on it, whatever its value; powers of two divide exactly."""
    stored, _ = read_golden("vae_sd1")
    noise = torch.randn(stored["mean"].shape, generator=torch.Generator().manual_seed(0))
    latents, images = [], []
    for scale in (0.25, 2.0):
        vae.scale = scale
        posterior = vae.encode(stored["image"])
        latents.append((posterior.sample(noise) / scale, posterior.mode() / scale))
        images.append(vae.decode(stored["z"] * scale))
    assert torch.equal(latents[0][0], latents[1][0]) and torch.equal(latents[0][1], latents[1][1])
    assert torch.equal(images[0], images[1])
    drawn = stored["mean"] + (stored["log_variance"] / 2).exp() * noise
    torch.testing.assert_close(latents[0][0], drawn, rtol=0, atol=5e-5)  # the networks' agreement, test_golden.py


def test_kl_is_torchs():
    rng = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(3, 4, 2, 5, generator=rng), torch.randn(3, 4, 2, 5, generator=rng)
    expected = kl_divergence(Normal(mean, log_variance.exp().sqrt()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(Posterior(mean, log_variance, 0.2).kl(), expected)  # also: no scale in it
    assert Posterior(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0.2).kl().item() == 0


def test_log_variance_is_clamped(vae):
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, -100.0, 100.0, -29.0, 19.0]))
    posterior = vae.encode(torch.zeros(1, 3, 8, 8))
    assert posterior.mean[0, :, 0, 0].tolist() == [1, 2, 3, 4]
    assert posterior.log_variance[0, :, 0, 0].tolist() == [-30, 20, -29, 19]


def test_downsampling_pads_right_and_below_only():
    """A kernel that is an impulse at (row, column) picks image[2y + row, 2x + column], zero beyond the far border."""
    layer, image = downsample(1), torch.arange(1.0, 25).reshape(1, 1, 4, 6)
    beyond = torch.zeros(1, 1, 5, 7)
    beyond[..., :4, :6] = image
    with torch.no_grad():
        layer.conv.bias.zero_()
        for row in range(3):
            for column in range(3):
                layer.conv.weight.zero_()
                layer.conv.weight[0, 0, row, column] = 1
                assert torch.equal(layer(image), beyond[..., row : row + 4 : 2, column : column + 6 : 2][..., :2, :3])


def test_sides_shrink_by_the_factor():
    assert [(sizes.vae.factor, sizes.vae.scale) for sizes in (SD15, SD21)] == 2 * [(8, 0.18215)]
    small = VAEConfig(channels=4, channel_mult=(1, 1), num_res_blocks=1, groups=2, z_channels=3)
    vae = AutoencoderKL(small).requires_grad_(False)
    latent = vae.encode(torch.zeros(1, 3, 16, 24)).mode()
    assert small.factor == 2 and latent.shape == (1, 3, 8, 12) and vae.decode(latent).shape == (1, 3, 16, 24)
