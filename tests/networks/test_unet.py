"""The UNet's sizes and contracts; its numbers are in test_golden.py."""

import math

import pytest
import torch

from emit.model import SD15, SD21
from emit.networks.layers import CrossAttention, timestep_embedding
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


def test_each_head_attends_on_its_own_consecutive_channels():
    """Two heads of two channels on two places, all projections the identity: each half is a softmax by hand."""
    attention = CrossAttention(4, 4, 2)
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
            layer.weight.copy_(torch.eye(4))
        attention.to_out[0].bias.zero_()
        x = torch.tensor([[[1.0, 2.0, -1.0, 0.5], [0.0, 1.0, 3.0, -2.0]]])
        found = attention(x)
    for half in (slice(0, 2), slice(2, 4)):
        own = x[0, :, half].tolist()
        for place, query in enumerate(own):
            weights = [math.exp((query[0] * key[0] + query[1] * key[1]) / math.sqrt(2)) for key in own]
            expected = [sum(w * v[c] for w, v in zip(weights, own, strict=True)) / sum(weights) for c in (0, 1)]
            assert found[0, place, half].tolist() == pytest.approx(expected, abs=1e-6)  # float32


def test_a_new_unet_predicts_zero_and_wants_one_residual_per_block():
    unet = UNet(SD1.unet)
    z_t = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    inputs = z_t, torch.tensor([3]), torch.ones(1, 77, 24)
    assert torch.equal(unet(*inputs), torch.zeros(1, 4, 8, 12))  # the last convolution starts at zero
    with pytest.raises(ValueError, match="zip"):
        unet(*inputs, [0] * 9)
