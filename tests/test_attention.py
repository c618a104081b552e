"""Where the UNet looked: the very weights of its layers, on the right words and pixels, and without a change to the picture."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from emit.attention import attention_weights, find_words, save_maps, watch, word_maps
from emit.networks.layers import CrossAttention
from emit.networks.unet import UNet, UNetConfig

SIZES = UNetConfig(4, 4, 8, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0, 1), heads=2, context_dim=6, groups=4)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet(SIZES).requires_grad_(False)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_weights_are_those_with_which_the_layer_mixes_its_values():
    torch.manual_seed(0)
    layer = CrossAttention(8, 6, heads=2)
    x, context = normal(1, 3, 20, 8), normal(2, 3, 77, 6)
    weights = attention_weights(layer, x, context)
    assert weights.shape == (3, 2, 20, 77) and torch.allclose(weights.sum(-1), torch.ones(3, 2, 20))
    values = rearrange(layer.to_v(context), "b n (heads d) -> b heads n d", heads=2)
    mixed = layer.to_out(rearrange(weights @ values, "b heads n d -> b n (heads d)"))
    assert torch.allclose(mixed, layer(x, context), atol=1e-6)  # float32, sums of 77


def test_a_hand_set_key_takes_its_place():
    """Two heads of 4; the third token's key is along the first axis of both, and so is the query of pixel 5 alone."""
    layer = CrossAttention(8, 6, heads=2)
    for weight in (layer.to_q.weight, layer.to_k.weight):
        torch.nn.init.zeros_(weight)
    with torch.no_grad():
        layer.to_q.weight[0, 0] = layer.to_q.weight[4, 0] = layer.to_k.weight[0, 0] = layer.to_k.weight[4, 0] = 1
    x, context = torch.zeros(1, 12, 8), torch.zeros(1, 77, 6)
    x[0, 5, 0], context[0, 3, 0] = 4.0, 2.0
    weights = attention_weights(layer, x, context)
    taken = math.exp(4 * 2 / math.sqrt(4)) / (math.exp(4) + 76)
    assert weights[0, :, 5, 3].tolist() == pytest.approx([taken, taken])
    weights[0, :, 5] = 1 / 77
    assert torch.allclose(weights, torch.full_like(weights, 1 / 77))  # elsewhere all tokens are alike


def test_watching_changes_nothing_and_notes_every_layer_of_the_prompts_own_passes(unet):
    z_t, t, context = normal(1, 1, 4, 4, 8), torch.tensor([7]), normal(2, 1, 77, 6)
    plain = unet(z_t, t, context)
    with watch(unet, context) as looked:
        assert torch.equal(unet(z_t, t, context.clone()), plain)
        unet(z_t, t, normal(3, 1, 77, 6))  # the unconditional half
        unet(z_t, t, context)
    assert {pixels: weights.shape for pixels, weights in looked.items()} == {32: (32, 77), 8: (8, 77)}
    for pixels, layers in {32: 1 + 2, 8: 1 + 1 + 2}.items():  # of encoder, middle and decoder, in two passes
        assert torch.allclose(looked[pixels].sum(-1), torch.tensor(2.0 * layers))
    before = {pixels: weights.clone() for pixels, weights in looked.items()}
    unet(z_t, t, context)  # it is over
    assert all(torch.equal(looked[pixels], weights) for pixels, weights in before.items())


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("US, breast", [("us", [1]), (",", [2]), ("breast", [3])]),
        ("a hepatocellular a", [("a", [1]), ("hepatocellular", [2, 3, 4, 5]), ("a", [6])]),
        (" ", []),
    ],
)
def test_words_are_the_tokens_that_clip_makes_of_them(prompt, words):
    assert find_words(prompt) == words


def test_a_long_prompt_ends_where_the_encoder_cuts_it():
    words = find_words("liver " * 74 + "hepatocellular")
    assert len(words) == 75 and words[-1] == ("hepat", [75])


def test_a_map_is_the_mean_over_layers_and_shows_a_words_place():
    """2 x 4 latents, in one layer, and their 1 x 2 halves, in three; the map of 4 x 8 pixels."""
    fine, coarse = torch.full((8, 77), 1 / 77), torch.full((2, 77), 3 / 77)
    coarse[1] = 0
    coarse[1, [4, 5]] = 1.5  # right of the picture: the third word, in both its tokens, in all three layers
    maps = dict(word_maps({8: fine, 2: coarse}, "of a hepatocellular liver", (4, 8)))
    assert {word: shares.shape for word, shares in maps.items()} == dict.fromkeys(("of", "a", "hepatocellular", "liver"), (4, 8))
    assert maps["hepatocellular"][:, -1].tolist() == pytest.approx([(4 / 77 + 3) / 4] * 4)
    assert maps["hepatocellular"][:, 0].tolist() == pytest.approx([4 / 77] * 4)
    assert maps["liver"][:, -1].tolist() == pytest.approx([1 / 77 / 4] * 4)


def test_the_pictures_have_one_scale(tmp_path):
    half = torch.full((16, 16), 0.1)
    half[:, 8:] = 0.4
    save_maps(tmp_path / "maps.png", torch.zeros(16, 16), [("flat", torch.full((16, 16), 0.2)), ("right", half)])
    levels = np.unique(np.asarray(Image.open(tmp_path / "maps.png").convert("L")), return_counts=True)
    large = {int(level) for level, count in zip(*levels, strict=True) if count > 1000} - {255}
    assert large == {64, 128} or large == {63, 127} or large == {64, 127}  # 0.1 and 0.2 of 0.4, and the grey picture
