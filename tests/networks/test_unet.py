"""The UNet's sizes and contracts; its numbers are in test_golden.py."""

import math

import pytest
import torch

from emit.model import SD15, SD21
from emit.networks.layers import timestep_embedding
from emit.networks.unet import UNet, transformer
from tests.golden.files import SD1


@pytest.mark.parametrize(("sizes", "heads"), [(SD15, [8, 8, 8]), (SD21, [5, 10, 20])])
def test_heads_per_level(sizes, heads):
    """Version 1 has 8 heads of 40, 80 and 160; version 2 has heads of size 64."""
    with torch.device("meta"):
        layers = [transformer(sizes.unet, width) for width in (320, 640, 1280)]
    assert [layer.transformer_blocks[0].attn1.heads for layer in layers] == heads


def test_timestep_embedding_by_hand():
    """Width 6: frequencies 1, 10000^(-1/3), 10000^(-2/3); cosines first."""
    found = timestep_embedding(torch.tensor([0, 7]), 6)
    frequencies = [10000 ** (-k / 3) for k in range(3)]
    expected = [math.cos(7 * f) for f in frequencies] + [math.sin(7 * f) for f in frequencies]
    assert found[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert found[1].tolist() == pytest.approx(expected, abs=1e-6)  # float32 angles up to 7


def test_a_new_unet_predicts_zero_and_wants_one_residual_per_block():
    unet = UNet(SD1.unet)
    z_t = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    inputs = z_t, torch.tensor([3]), torch.ones(1, 77, 24)
    assert torch.equal(unet(*inputs), torch.zeros(1, 4, 8, 12))  # the last convolution starts at zero
    with pytest.raises(ValueError, match="zip"):
        unet(*inputs, [0] * 9)
