"""The KL autoencoder of latent diffusion (2112.10752): images (B, 3, H, W) in [-1, 1] to latents and back.

The latent scale lives here: `encode` gives scaled latents and `decode` takes them; no caller knows the factor.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from emit.networks.layers import upsample


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the values are Stable Diffusion's. Latent sides are H / 2^(levels - 1)."""

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    groups: int = 32
    scale: float = 0.18215

    @property
    def factor(self) -> int:
        """How many pixels a side of one latent cell covers."""
        return 2 ** (len(self.channel_mult) - 1)


def norm(config: VAEConfig, channels: int) -> nn.GroupNorm:
    """Build the autoencoder's group norm; its eps is 1e-6, not PyTorch's 1e-5."""
    return nn.GroupNorm(config.groups, channels, eps=1e-6)


class Block(nn.Module):
    """A residual block without a timestep."""

    def __init__(self, config: VAEConfig, channels: int, out_channels: int):
        super().__init__()
        self.norm1 = norm(config, channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = norm(config, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """Single-head self-attention over the pixels, residual."""

    def __init__(self, config: VAEConfig, channels: int):
        super().__init__()
        self.norm = norm(config, channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(f(h), "b c y x -> b (y x) c") for f in (self.q, self.k, self.v))  # -> (B, HW, C)
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]  # one head
        return x + self.proj_out(rearrange(h, "b (y x) c -> b c y x", y=x.shape[2]))


def downsample(channels: int) -> nn.Sequential:
    """Halve the sides: zeros on the right and below, then a 3x3 convolution with stride 2 and no padding."""
    pad = nn.ZeroPad2d((0, 1, 0, 1))  # left, right, top, bottom; the UNet pads on every side
    return nn.Sequential(OrderedDict(pad=pad, conv=nn.Conv2d(channels, channels, 3, stride=2)))


def middle(config: VAEConfig, channels: int) -> nn.Sequential:
    layers = [Block(config, channels, channels), Attention(config, channels), Block(config, channels, channels)]
    return nn.Sequential(OrderedDict(zip(("block_1", "attn_1", "block_2"), layers, strict=True)))


def residual_stage(config: VAEConfig, channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """Build `depth` residual blocks under the name `block`; a change of sides may follow."""
    blocks = [Block(config, width, out_channels) for width in [channels] + [out_channels] * (depth - 1)]
    return nn.Sequential(OrderedDict(block=nn.Sequential(*blocks)))


class Encoder(nn.Module):
    """Image (B, 3, H, W) to 2 z_channels moments, before `quant_conv`."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels = config.channels
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.Sequential()
        for level, mult in enumerate(config.channel_mult):
            stage = residual_stage(config, channels, mult * config.channels, config.num_res_blocks)
            channels = mult * config.channels
            if level + 1 < len(config.channel_mult):
                stage.add_module("downsample", downsample(channels))
            self.down.append(stage)
        self.mid = middle(config, channels)
        self.norm_out = norm(config, channels)
        self.conv_out = nn.Conv2d(channels, 2 * config.z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.mid(self.down(self.conv_in(image)))  # (B, 3, H, W) -> (B, C, h, w)
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, C, h, w) -> (B, 2 z_channels, h, w)


class Decoder(nn.Module):
    """Latents, after `post_quant_conv`, to an image. `up` is numbered by level, so it runs from the last to the first."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels = config.channels * config.channel_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = middle(config, channels)
        stages = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            stage = residual_stage(config, channels, mult * config.channels, config.num_res_blocks + 1)  # one more, as in the UNet
            channels = mult * config.channels
            if level:
                stage.add_module("upsample", upsample(channels))
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = norm(config, channels)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))  # (B, z_channels, h, w) -> (B, C, h, w)
        for stage in reversed(self.up):  # up[0] is the finest
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, C, H, W) -> (B, 3, H, W)


@dataclass(frozen=True)
class Posterior:
    """q(z | image): a diagonal Gaussian. mean and std are unscaled; `sample` and `mode` give scaled latents."""

    mean: Tensor
    log_variance: Tensor
    scale: float

    def sample(self, noise: Tensor) -> Tensor:
        """Return scale * (mean + std * noise); noise is standard normal, shaped like mean."""
        return self.scale * (self.mean + torch.exp(0.5 * self.log_variance) * noise)

    def mode(self) -> Tensor:
        return self.scale * self.mean

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)) of the unscaled latent in nats, per image (B,)."""
        mean, log_variance = self.mean.float(), self.log_variance.float()  # a sum in bfloat16 would lose it
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3))


class AutoencoderKL(nn.Module):
    """encode: image -> Posterior of scaled latents.  decode: scaled latents -> image, not clipped."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.scale = config.scale
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, image: Tensor) -> Posterior:
        """Image (B, 3, H, W) in [-1, 1] to the posterior; its log-variance is clamped to [-30, 20]."""
        mean, log_variance = self.quant_conv(self.encoder(image)).chunk(2, dim=1)  # twice (B, z_channels, h, w)
        return Posterior(mean, log_variance.clamp(-30, 20), self.scale)  # exp must stay finite

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, z_channels, h, w) to an image (B, 3, H, W)."""
        return self.decoder(self.post_quant_conv(z / self.scale))
