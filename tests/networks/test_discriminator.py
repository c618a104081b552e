"""The discriminator's patches and the adversary's terms of the autoencoder's loss, by hand."""

import pytest
import torch
from torch import nn

from emit.networks.discriminator import LARGEST, Discriminator, adaptive_weight, adversarial_loss, hinge_loss


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("halvings", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_sees_a_patch(halvings, patch):
    """Without norms, which see the whole picture, the gradient of one score reaches patch x patch pixels."""
    torch.manual_seed(0)
    discriminator = Discriminator(4, halvings)
    discriminator.layers = nn.Sequential(*(layer for layer in discriminator.layers if not isinstance(layer, nn.GroupNorm)))
    image = rand(1, 3, 128, 128).requires_grad_()
    scores = discriminator(image)
    side = 128 // 2**halvings - 2
    assert scores.shape == (1, 1, side, side)
    scores[0, 0, side // 2, side // 2].backward()
    reached = image.grad[0].abs().sum(0)
    assert (reached.any(0).sum().item(), reached.any(1).sum().item()) == (patch, patch)


def test_a_score_depends_on_its_own_grey_picture_alone():
    torch.manual_seed(0)
    discriminator, images = Discriminator(4), rand(3, 3, 32, 32)
    scores = discriminator(images)
    torch.testing.assert_close(discriminator(images[1:2]), scores[1:2])
    torch.testing.assert_close(discriminator(images.flip(1)), scores)


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.5])
    assert hinge_loss(real, fake).item() == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1.5) / 2) / 2)


def test_each_network_has_the_gradient_of_its_own_loss():
    """One backward pass of the sum gives the picture L_adv's gradient and the weights that of their hinge loss."""
    torch.manual_seed(0)
    discriminator, real, fake = Discriminator(4), rand(2, 3, 16, 16), rand(2, 3, 16, 16, seed=1).requires_grad_()
    parameters = list(discriminator.parameters())
    pull = torch.autograd.grad(-discriminator(fake).mean(), fake)[0]
    own = torch.autograd.grad(hinge_loss(discriminator(real), discriminator(fake.detach())), parameters)
    adversarial = adversarial_loss(discriminator, fake)
    assert adversarial.item() == pytest.approx(-discriminator(fake).mean().item())
    (adversarial + hinge_loss(discriminator(real), discriminator(fake.detach()))).backward()
    torch.testing.assert_close(fake.grad, pull)
    for parameter, gradient in zip(parameters, own, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert pull.any() and any(gradient.any() for gradient in own)


def test_the_weight_makes_both_pull_equally_hard():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = (last * torch.tensor([3e-6, 4e-6])).sum(), (last * torch.tensor([0.0, -4e-4])).sum()
    assert adaptive_weight(reconstruction, adversarial, last).item() == pytest.approx(5e-6 / (4e-4 + 1e-4))
    assert adaptive_weight(reconstruction, 0 * adversarial, last).item() == pytest.approx(LARGEST)  # and not 0.05
    assert last.grad is None and not adaptive_weight(reconstruction, adversarial, last).requires_grad
    reconstruction.backward()  # the graph is still there
