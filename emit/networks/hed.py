"""Holistically-nested edge detection (HED; Xie & Tu, 1504.06375), in the two forms whose weights are public.

Parameter names are those of the public files: `HED` reads network-bsds500.pth, `HEDv11` reads ControlNetHED.pth.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emit.networks.layers import zero_module

CHANNELS = (64, 128, 256, 512, 512)  # VGG-16 (1409.1556), stages 1 to 5
DEPTHS = (2, 2, 3, 3, 3)  # its convolutions per stage
STAGES = ("One", "Two", "Thr", "Fou", "Fiv")  # their names in network-bsds500.pth
MEAN_RGB = (122.67891434, 116.66876762, 104.00698793)  # of VGG's training images, on the scale 0..255


def vgg_convolutions(channels: tuple[int, ...]) -> Iterator[list[nn.Conv2d]]:
    """Yield the 3x3 convolutions of each VGG stage. A ReLU follows each; 2x2 max pooling precedes all stages but the first."""
    for before, width, depth in zip((3, *channels[:-1]), channels, DEPTHS, strict=True):
        yield [nn.Conv2d(inputs, width, 3, padding=1) for inputs in [before] + [width] * (depth - 1)]


def initialise(stages: list[nn.Module], scores: list[nn.Conv2d]) -> None:
    """Start from scratch: He's rule (1502.01852) for the stages, zero for the side scores (HED, section 4.1)."""
    for layer in [layer for stage in stages for layer in stage.modules() if isinstance(layer, nn.Conv2d)]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    for score in scores:
        zero_module(score)


def side_logits(pixels: Tensor, stages: list[nn.Module], scores: list[nn.Conv2d]) -> list[Tensor]:
    """Score each stage's features of pixels (B, 3, H, W), upsampled bilinearly: five logits (B, 1, H, W), the finest first."""
    features, sides = pixels, []
    for stage, score in zip(stages, scores, strict=True):
        features = stage(features)  # (B, C, H, W) -> (B, C', H / 2, W / 2), rounded down; the first keeps the sides
        sides.append(F.interpolate(score(features), pixels.shape[-2:], mode="bilinear", align_corners=False))
    return sides


class HED(nn.Module):
    """HED with learned fusion: BGR, 0..255 minus the mean; five sides; a 1x1 convolution of the five logits.

    hed(image (B, 3, H, W) RGB in [-1, 1]) is the fused edge probability (B, 1, H, W). Sides from 16 pixels on: four
    poolings leave one. From scratch the fusion starts as the mean of the sides (section 4.1).
    """

    def __init__(self, channels: tuple[int, ...] = CHANNELS):
        super().__init__()
        for name, convolutions in zip(STAGES, vgg_convolutions(channels), strict=True):
            layers = [] if name == "One" else [nn.MaxPool2d(2)]
            for convolution in convolutions:
                layers += [convolution, nn.ReLU()]
            self.add_module(f"moduleVgg{name}", nn.Sequential(*layers))
        for name, width in zip(STAGES, channels, strict=True):
            self.add_module(f"moduleScore{name}", nn.Conv2d(width, 1, 1))
        self.moduleCombine = nn.Sequential(nn.Conv2d(5, 1, 1))
        initialise(*self.stages_and_scores())
        nn.init.constant_(self.moduleCombine[0].weight, 0.2)  # 1 / 5
        nn.init.zeros_(self.moduleCombine[0].bias)

    def stages_and_scores(self) -> tuple[list[nn.Module], list[nn.Conv2d]]:
        """Return the five stages and their 1x1 scores, the finest first."""
        stages = [getattr(self, f"moduleVgg{name}") for name in STAGES]
        return stages, [getattr(self, f"moduleScore{name}") for name in STAGES]

    def logits(self, image: Tensor) -> list[Tensor]:
        """Return six logits (B, 1, H, W): the five sides, the finest first, and their fusion."""
        pixels = (image.float() + 1) * 127.5  # 0..255
        pixels = pixels.flip(1) - pixels.new_tensor(MEAN_RGB[::-1]).view(1, 3, 1, 1)  # RGB -> BGR
        sides = side_logits(pixels, *self.stages_and_scores())
        return [*sides, self.moduleCombine(torch.cat(sides, dim=1))]  # (B, 5, H, W) -> (B, 1, H, W)

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(image)[-1])  # the fusion


class HEDv11Block(nn.Module):
    """One VGG stage and its side score, under the names of ControlNetHED.pth."""

    def __init__(self, convolutions: list[nn.Conv2d], pool: bool):
        super().__init__()
        self.convs = nn.ModuleList(convolutions)
        self.projection = nn.Conv2d(convolutions[-1].out_channels, 1, 1)
        self.pool = pool

    def forward(self, features: Tensor) -> Tensor:
        features = F.max_pool2d(features, 2) if self.pool else features
        for conv in self.convs:
            features = F.relu(conv(features))
        return features


class HEDv11(nn.Module):
    """ControlNet 1.1's HED, called like HED: RGB, 0..255 minus a learned `norm`; the plain mean of the five side logits."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS):
        super().__init__()
        self.norm = nn.Parameter(torch.tensor(MEAN_RGB).view(1, 3, 1, 1))
        for number, convolutions in enumerate(vgg_convolutions(channels), start=1):
            self.add_module(f"block{number}", HEDv11Block(convolutions, pool=number > 1))
        initialise(*self.stages_and_scores())

    def stages_and_scores(self) -> tuple[list[nn.Module], list[nn.Conv2d]]:
        """Return the five stages and their 1x1 scores, the finest first."""
        stages = list(self.children())
        return stages, [stage.projection for stage in stages]

    def logits(self, image: Tensor) -> list[Tensor]:
        """Return six logits (B, 1, H, W): the five sides, the finest first, and their mean."""
        sides = side_logits((image.float() + 1) * 127.5 - self.norm, *self.stages_and_scores())  # 0..255
        return [*sides, torch.stack(sides).mean(dim=0)]  # (5, B, 1, H, W) -> (B, 1, H, W)

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(image)[-1])  # the fusion


def hed_loss(logits: list[Tensor], boundary: Tensor) -> Tensor:
    """L_side + L_fuse (1504.06375, Eq. 4), each of weight 1, of the five sides' logits and their fusion's, each (B, 1, H, W).

    boundary: (B, 1, H, W) in [0, 1]. L_fuse is the plain cross-entropy of Eq. 3; the authors' code balances it as well.
    Departure: means over pixels and images, where the paper sums, so that the scale does not depend on the size.
    """
    *sides, fusion = [logit.float() for logit in logits]
    side_loss = sum(class_balanced_loss(side, boundary) for side in sides)
    return side_loss + F.binary_cross_entropy_with_logits(fusion, boundary)


def class_balanced_loss(logit: Tensor, boundary: Tensor) -> Tensor:
    """l_side of one side (HED, Eq. 2), the mean over pixels and images of

    -beta y log p - (1 - beta) (1 - y) log(1 - p),  beta = 1 - mean(y) of each image
    logit, boundary y: (B, 1, H, W); soft labels weigh both terms. An image without boundary has beta = 1 and loss 0, as
    in the paper: it teaches the sides nothing.
    """
    beta = 1 - boundary.mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1); edges are few, so beta is near 1
    positive, negative = beta * boundary, (1 - beta) * (1 - boundary)
    return (positive * F.softplus(-logit) + negative * F.softplus(logit)).mean()  # softplus(-x) = -log sigmoid(x)
