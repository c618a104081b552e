"""What makes an autoencoder's pictures sharp, as latent diffusion trains it (2112.10752, section G; 2012.09841, Eq. 4 to 7):

L = |x - x_hat| + s lambda L_adv + w KL

L1 alone finds the median of all pictures that a latent may stand for, and the median of speckle is grey. Departure: no
perceptual distance. That of HED's features, which are all there is offline, did not help (docs/findings.md).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 0.02  # [choice] most that a score may weigh beside L1, see docs/findings.md


class Discriminator(nn.Module):
    """pix2pix's patch discriminator (1611.07004, section 6.1.2): image (B, 3, H, W) to a score of every patch, (B, 1, h, w).

    Patches have 34 pixels with two halvings, and 70 with three, pix2pix's. Departures: it sees the mean of the three
    channels, and group norm in place of batch norm, so that a picture's scores do not depend on its batch.
    """

    def __init__(self, channels: int, halvings: int = 2):
        super().__init__()
        widths = [channels * 2**level for level in range(halvings + 1)]
        self.layers = nn.Sequential(nn.Conv2d(1, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        for before, width in pairwise(widths):
            convolution = nn.Conv2d(before, width, 4, stride=1 if width == widths[-1] else 2, padding=1)
            self.layers.extend([convolution, nn.GroupNorm(max(1, width // 8), width), nn.LeakyReLU(0.2)])
        self.layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image.mean(dim=1, keepdim=True))


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """L_D = (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x_hat))) / 2, from scores of any shape (1705.02894; 2012.09841's code)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adversarial_loss(discriminator: nn.Module, fake: Tensor) -> Tensor:
    """L_adv = -mean D(x_hat), whose gradient reaches x_hat (B, 3, H, W) but not the discriminator's weights."""
    discriminator.requires_grad_(False)
    loss = -discriminator(fake).mean()
    discriminator.requires_grad_(True)
    return loss


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """lambda = |grad L_rec| / (|grad L_adv| + 1e-4), at most LARGEST, of the decoder's last weights (2012.09841, Eq. 7).

    With it both losses pull equally hard. The code has 1e-4 where the paper has 1e-6, and lets lambda reach 1e4. Departure: with
    that, a worse picture is pulled harder, and within 50 steps ours were no pictures any more.
    """
    norms = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=LARGEST)
