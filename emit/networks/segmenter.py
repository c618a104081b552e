"""The 2D U-Net that judges every augmentation, in three variants, and its Dice + cross-entropy loss.

plain: U-Net (Ronneberger et al., 1505.04597), the size of the authors' network; attention: the same with attention
gates on the skips (Oktay et al., 1804.03999); residual: the same with residual units (Zhang et al., 1711.10684).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SegmenterConfig:
    """Sizes of the segmenter; the channels and the variant are the paper's."""

    in_channels: int = 1
    classes: int = 2  # background included
    channels: tuple[int, ...] = (16, 32, 64, 128, 128, 256)  # one level each, the sides halved between them
    variant: Literal["plain", "attention", "residual"] = "attention"


def conv_norm(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)  # the norm has one
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class ConvBlock(nn.Module):
    """`depth` times 3x3 convolution, norm, ReLU, the first with the stride.

    residual: ReLU(f(x) + shortcut(x)), the unit of He et al. (1512.03385); the shortcut is a strided 1x1 convolution.
    """

    def __init__(self, in_channels: int, channels: int, depth: int, stride: int = 1, residual: bool = False):
        super().__init__()
        layers = [conv_norm(in_channels, channels, 3, stride)]
        for _ in range(depth - 1):
            layers += [nn.ReLU(inplace=True), conv_norm(channels, channels, 3)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = conv_norm(in_channels, channels, 1, stride) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers(x)  # (B, C, H, W) -> (B, C', H / stride, W / stride)
        return F.relu(h if self.shortcut is None else h + self.shortcut(x), inplace=True)


class AttentionGate(nn.Module):
    """Additive attention on a skip, steered by the coarser decoder features (Oktay et al., 1804.03999, Eq. 1 and 2).

    alpha = sigmoid(psi ReLU(W_x x + W_g g)),  gate(x, g) = x * alpha, alpha upsampled bilinearly to x
    x: (B, C, 2h, 2w); g: (B, C', h, w). W_x is a 2x2 convolution of stride 2 without bias, W_g and psi are 1x1.
    As in the paper the gate starts almost open: psi's bias is 2, so alpha is near 0.88.
    """

    def __init__(self, skip_channels: int, gating_channels: int):
        super().__init__()
        width = max(skip_channels // 2, 1)
        self.W_x = nn.Conv2d(skip_channels, width, 2, stride=2, bias=False)
        self.W_g = nn.Conv2d(gating_channels, width, 1)
        self.psi = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.psi.bias, 2.0)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.psi(F.relu(self.W_x(x) + self.W_g(g))))  # (B, 1, h, w)
        return x * F.interpolate(alpha, x.shape[-2:], mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """U-Net of any depth: logits (B, K, H, W) = segmenter(image (B, C, H, W)), any H and W.

    Sides that the strides do not divide are padded at the bottom and right by repeating the border, and cropped back.
    Batch norm, as in the authors' network: instance norm would make every arm blind to brightness and contrast,
    and so turn two of the classical augmentations into no-ops. Upsampling is a 2x2 transposed convolution.
    """

    def __init__(self, config: SegmenterConfig):
        super().__init__()
        self.config = config
        widths, residual = config.channels, config.variant == "residual"
        levels = list(pairwise(widths))  # (finer, coarser)
        self.encoder = nn.ModuleList([ConvBlock(config.in_channels, widths[0], 2, residual=residual)])
        self.encoder.extend(ConvBlock(fine, coarse, 2, stride=2, residual=residual) for fine, coarse in levels)
        levels.reverse()
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in levels)
        self.decoder = nn.ModuleList(ConvBlock(2 * fine, fine, 1, residual=residual) for fine, _ in levels)
        gated = levels if config.variant == "attention" else []
        self.gates = nn.ModuleList(AttentionGate(fine, coarse) for fine, coarse in gated)
        self.head = nn.Conv2d(widths[0], config.classes, 1)
        self.to(memory_format=torch.channels_last)  # a step takes a quarter less on a CPU

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        multiple = 2 ** len(self.up)  # the sides are halved once per level
        features = F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        skips = []
        for block in self.encoder:
            features = block(features)
            skips.append(features)
        skips.pop()  # the deepest is no skip
        for level, (up, block) in enumerate(zip(self.up, self.decoder, strict=True)):
            skip = skips.pop()
            if self.gates:
                skip = self.gates[level](skip, features)
            features = block(torch.cat([up(features), skip], dim=1))  # (B, 2C, 2h, 2w) -> (B, C, 2h, 2w)
        return self.head(features)[..., :height, :width]


def dice_ce_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Dice loss plus cross-entropy of logits (B, K, H, W) and mask (B, H, W), whole numbers 0..K-1, both with weight 1.

    Dice_k = 2 sum p_k y_k / (sum p_k + sum y_k), sums over the batch and both image axes (the authors': per image); the loss
    is 1 - mean of Dice_k over the classes, background apart, present in the batch, 0 where none is. No smoothing.
    Cross-entropy: -log p of each pixel's own class, background too, averaged over pixels.
    """
    log_probability = F.log_softmax(logits.float(), dim=1)
    target = F.one_hot(mask.long(), logits.shape[1]).movedim(-1, 1).to(log_probability)  # (B, H, W) -> (B, K, H, W)
    cross_entropy = -(target * log_probability).sum() / mask.numel()
    probability, target, axes = log_probability.exp()[:, 1:], target[:, 1:], (0, 2, 3)  # without background
    size = target.sum(axes)  # (B, K - 1, H, W) -> (K - 1,), pooled over the batch
    present = (size > 0).float()
    overlap = (probability * target).sum(axes)
    dice = 2 * overlap / (probability.sum(axes) + size + (1 - present))  # an absent class: 0, and no division by 0
    dice_loss = (present * (1 - dice)).sum() / present.sum().clamp(min=1)
    return dice_loss + cross_entropy
