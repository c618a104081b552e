"""Layers shared by UNet, ControlNet and autoencoder. Names are CompVis's, so public files load as they are."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def zero_module(module: nn.Module) -> nn.Module:
    """Set every parameter of the module to zero and return it (the zero convolution of 2302.05543)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Embed timesteps t (B,) as [cos(t f_k), sin(t f_k)], (B, width): f_k = 10000^(-k / (width / 2)).   (2006.11239)"""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies  # (B, 1) * (width / 2,) -> (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepSequential(nn.Sequential):
    """A sequence that hands the timestep embedding to residual blocks and the text states to transformers."""

    def forward(self, h: Tensor, emb: Tensor | None, context: Tensor | None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context)
            else:
                h = layer(h)
        return h


class ResBlock(nn.Module):
    """h + f(h, t): norm, SiLU, convolution, + timestep projection, norm, SiLU, convolution (zero at the start)."""

    def __init__(self, channels: int, out_channels: int, emb_width: int, groups: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels, eps=1e-5), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_width, out_channels))  # emb comes from a linear layer
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels, eps=1e-5),
            nn.SiLU(),
            nn.Identity(),  # dropout's place in the public names; Stable Diffusion's rate is 0
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),  # at the start only the skip acts
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]  # (B, 4C) -> (B, C', 1, 1)
        return self.skip_connection(x) + self.out_layers(h)


def downsample(channels: int) -> nn.Sequential:
    """Halve the sides: 3x3 convolution, stride 2, padding 1 on every side, unlike the autoencoder's."""
    return nn.Sequential(OrderedDict(op=nn.Conv2d(channels, channels, 3, stride=2, padding=1)))


def upsample(channels: int) -> nn.Sequential:
    """Double the sides: nearest neighbour, then a 3x3 convolution. The autoencoder uses it too."""
    nearest = nn.Upsample(scale_factor=2, mode="nearest")
    return nn.Sequential(OrderedDict(nearest=nearest, conv=nn.Conv2d(channels, channels, 3, padding=1)))


class CrossAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over heads of size d; keys and values come from the context, or from x itself."""

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Identity())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (  # (B, N, C) -> (B, heads, N, d); N: pixels for q, tokens for k and v of the text
            rearrange(y, "b n (heads d) -> b heads n d", heads=self.heads)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = F.scaled_dot_product_attention(q, k, v)  # no mask: the padding of the prompt is attended to
        return self.to_out(rearrange(out, "b heads n d -> b n (heads d)"))  # heads side by side again


class GEGLU(nn.Module):
    """value * gelu(gate); value, gate = the halves of one projection, in that order; the exact GELU (2002.05202)."""

    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * out_width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)  # (B, N, 2C') -> twice (B, N, C')
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each after a layer norm and with a residual."""

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads)
        self.attn2 = CrossAttention(width, context_width, heads)
        net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))  # net.1: dropout
        self.ff = nn.Sequential(OrderedDict(net=net))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))  # pixel to pixel
        x = x + self.attn2(self.norm2(x), context)  # pixel to word
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer over the pixels of a feature map, residual; its last projection is zero at the start.

    linear: the projections in and out are linear (Stable Diffusion 2) instead of 1x1 convolutions (1.x).
    """

    def __init__(self, channels: int, context_width: int, heads: int, groups: int, linear: bool):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)  # the trained weights' eps; 1e-5 in ResBlock
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_width, heads)])
        self.proj_out = zero_module(nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height = x.shape[2]
        h = self.norm(x)
        h = h if self.linear else self.proj_in(h)
        h = rearrange(h, "b c y x -> b (y x) c")  # a pixel is a token
        h = self.proj_in(h) if self.linear else h
        h = self.transformer_blocks[0](h, context)  # the one block
        h = self.proj_out(h) if self.linear else h
        h = rearrange(h, "b (y x) c -> b c y x", y=height)
        return x + (h if self.linear else self.proj_out(h))
