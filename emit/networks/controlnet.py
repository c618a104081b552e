"""ControlNet (Zhang et al., 2302.05543): a copy of the UNet's encoder that reads a hint through zero convolutions."""

from itertools import pairwise

from torch import Tensor, nn

from emit.networks.layers import TimestepSequential, timestep_embedding, zero_module
from emit.networks.unet import UNet, UNetConfig, encoder_blocks, middle_block, time_embed


def hint_encoder(hint_channels: tuple[int, ...], out_channels: int) -> TimestepSequential:
    """Build the convolutions from hint (B, 3, H, W) to latent size: a halving per step of hint_channels, zero at the end.

    They start with He's variance (1502.01852), without bias [choice]: PyTorch's own start, which the public code keeps, leaves
    a few thousandths of the edges; see docs/findings.md.
    """
    layers = [nn.Conv2d(3, hint_channels[0], 3, padding=1), nn.SiLU()]
    for before, after in pairwise(hint_channels):
        layers += [nn.Conv2d(before, before, 3, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]  # sides halved
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    layers.append(zero_module(nn.Conv2d(hint_channels[-1], out_channels, 3, padding=1)))
    return TimestepSequential(*layers)


def zero_convolution(channels: int) -> TimestepSequential:
    return TimestepSequential(zero_module(nn.Conv2d(channels, channels, 1)))


class ControlNet(nn.Module):
    """residuals = controlnet(z_t, t, context, hint): the UNet's `control`, one per encoder block, then the middle.

    hint (B, 3, H, W) in [0, 1] at image size. At the start every residual is exactly zero.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.time_embed = time_embed(config)
        self.input_blocks, widths = encoder_blocks(config)
        self.zero_convs = nn.ModuleList(zero_convolution(width) for width in widths)
        self.input_hint_block = hint_encoder(config.hint_channels, config.model_channels)
        self.middle_block = middle_block(config, widths[-1])
        self.middle_block_out = zero_convolution(widths[-1])

    def copy_encoder(self, unet: UNet) -> "ControlNet":
        """Start from the UNet's encoder: copy every tensor that both have; hint encoder and zero convolutions stay."""
        theirs = unet.state_dict()
        self.load_state_dict({name: theirs.get(name, own) for name, own in self.state_dict().items()})
        return self

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels).to(z_t.dtype))  # (B,) -> (B, 4C)
        guide = self.input_hint_block(hint, emb, context)  # (B, 3, H, W) -> (B, C, h, w)
        h, residuals = z_t, []
        for block, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            h = block(h, emb, context)
            if guide is not None:  # added once, after the first convolution
                h, guide = h + guide, None
            residuals.append(zero_conv(h, emb, context))  # zero at first, its gradient not: h is not zero
        h = self.middle_block(h, emb, context)
        return [*residuals, self.middle_block_out(h, emb, context)]
