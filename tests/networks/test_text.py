"""The text encoder's token ids and causality; its numbers are in test_golden.py."""

import json

import pytest
import torch

from emit.networks.text import TextEncoder
from tests.golden.files import HERE, SD1, SD2, original, read_golden

TOKENS = json.loads((HERE / "tokens.json").read_text())  # ids that open_clip's and transformers' tokenizers agree on


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def text(request):
    sizes = {"sd1": SD1, "sd2": SD2}[request.param]
    module = TextEncoder(sizes.text).requires_grad_(False)
    named = original("text", read_golden(f"text_{request.param}")[1]["text"])
    module.load_state_dict({name: tensor for name, tensor in named.items() if ".23." not in name})
    return module


def test_token_ids(text):
    pad = {True: 49407, False: 0}[text.config.quick_gelu]
    ids = text.tokenize(list(TOKENS))
    assert ids.dtype == torch.int64
    for row, known in zip(ids.tolist(), TOKENS.values(), strict=True):
        assert row == known + [pad] * (77 - len(known))


def test_a_long_prompt_keeps_75_tokens(text):
    word = 2653
    assert text.tokenize(["word " * 90]).tolist() == [[49406, *[word] * 75, 49407]]


def test_a_later_token_changes_no_earlier_state(text):
    ids = text.tokenize(["ultrasound of a breast"])
    other = ids.clone()
    other[0, 40] = 320
    states, changed = text(ids), text(other)
    difference = (states - changed).abs().amax(dim=(0, 2))
    assert difference[:40].max() < 1e-6  # rounding of states of order 1
    assert difference[40:].min() > 1e-3  # every later place attends to it


def test_padding_is_attended_to(text):
    """A wrong pad token changes the states of the padding, which the UNet reads, by their own order."""
    ids = text.tokenize(["ultrasound of a breast"])
    other = torch.where(torch.arange(77) > 5, 49407 - text.config.pad, ids)
    difference = text(ids) - text(other)
    assert difference[:, :6].abs().max() < 1e-6 and difference[:, 6:].square().mean().sqrt() > 0.5
