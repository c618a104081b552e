"""The text-conditioned UNet of latent diffusion (Rombach et al., 2112.10752): eps from z_t, t and the text states."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emit.networks.layers import (
    ResBlock,
    SpatialTransformer,
    TimestepSequential,
    downsample,
    timestep_embedding,
    upsample,
    zero_module,
)


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet and of its ControlNet; the values are Stable Diffusion 1.5's."""

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    heads: int | None = 8  # None: as many of head_size as there is room for, in Stable Diffusion 2
    head_size: int | None = None  # 64 there
    context_dim: int = 768
    linear_projections: bool = False  # True in Stable Diffusion 2
    groups: int = 32
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)  # one per halving of the hint, from image to latent size


def time_embed(config: UNetConfig) -> nn.Sequential:
    width = 4 * config.model_channels
    return nn.Sequential(nn.Linear(config.model_channels, width), nn.SiLU(), nn.Linear(width, width))


def residual_stage(config: UNetConfig, level: int, channels: int, out_channels: int) -> list[nn.Module]:
    """Build one residual block, with its transformer where the level has attention."""
    layers = [ResBlock(channels, out_channels, 4 * config.model_channels, config.groups)]
    if level in config.attention_levels:  # not at the deepest, in the public sizes; the middle block has its own
        layers.append(transformer(config, out_channels))
    return layers


def transformer(config: UNetConfig, channels: int) -> SpatialTransformer:
    heads = config.heads or channels // config.head_size
    return SpatialTransformer(channels, config.context_dim, heads, config.groups, config.linear_projections)


def encoder_blocks(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Build the encoder, shared by UNet and ControlNet; also return the width that each block puts out."""
    channels = config.model_channels
    blocks = [TimestepSequential(nn.Conv2d(config.in_channels, channels, 3, padding=1))]
    widths = [channels]
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            blocks.append(TimestepSequential(*residual_stage(config, level, channels, mult * config.model_channels)))
            channels = mult * config.model_channels
            widths.append(channels)
        if level + 1 < len(config.channel_mult):
            blocks.append(TimestepSequential(downsample(channels)))
            widths.append(channels)
    return nn.ModuleList(blocks), widths


def middle_block(config: UNetConfig, channels: int) -> TimestepSequential:
    """Build the block at the lowest resolution, shared by UNet and ControlNet."""
    sizes = (channels, channels, 4 * config.model_channels, config.groups)
    return TimestepSequential(ResBlock(*sizes), transformer(config, channels), ResBlock(*sizes))


class UNet(nn.Module):
    """eps_hat = unet(z_t, t, context, control).

    z_t (B, 4, h, w), h and w divisible by 2 to the number of halvings; t (B,) integers; context (B, 77, context_dim);
    control: the ControlNet's residuals, one for each encoder block and one for the middle; read, never changed.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.time_embed = time_embed(config)
        self.input_blocks, widths = encoder_blocks(config)
        channels = widths[-1]
        self.middle_block = middle_block(config, channels)
        blocks = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for repeat in range(config.num_res_blocks + 1):  # one more: conv_in and downsampling are skips too
                layers = residual_stage(config, level, channels + widths.pop(), mult * config.model_channels)
                channels = mult * config.model_channels
                if level and repeat == config.num_res_blocks:
                    layers.append(upsample(channels))
                blocks.append(TimestepSequential(*layers))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            nn.GroupNorm(config.groups, channels, eps=1e-5),
            nn.SiLU(),
            zero_module(nn.Conv2d(channels, config.out_channels, 3, padding=1)),  # output 0 at the start: loss 1
        )

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, control: Sequence[Tensor] = ()) -> Tensor:
        control = control or [0] * (len(self.input_blocks) + 1)
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels).to(z_t.dtype))  # (B,) -> (B, 4C)
        h, skips = z_t, []
        for block in self.input_blocks:
            h = block(h, emb, context)  # (B, 4, h, w) -> (B, C, h, w), then C grows as the sides are halved
            skips.append(h)
        h = self.middle_block(h, emb, context) + control[-1]  # the middle's residual comes last
        for block, skip, residual in zip(self.output_blocks, reversed(skips), reversed(control[:-1]), strict=True):
            h = block(torch.cat([h, skip + residual], dim=1), emb, context)  # h first, as the public weights expect
        return self.out(h)  # (B, C, h, w) -> (B, 4, h, w)
