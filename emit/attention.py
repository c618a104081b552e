"""Where the UNet looked while it drew: a map for each word of the prompt, from the cross-attention of all its transformers.

The layers run as always; what they attended to is computed once more beside them, so the picture is the same. `emit.sample`
shows the order of the calls: `watch` while the picture is drawn, then `word_maps` and `save_maps`.
"""

import math
from contextlib import contextmanager
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from emit.data.geometry import resize
from emit.evaluation.figures import costing_nothing, save_rows
from emit.networks.layers import CrossAttention, TransformerBlock
from emit.networks.text import CONTEXT_LENGTH, tokenizer
from emit.networks.unet import UNet


def attention_weights(layer: CrossAttention, x: Tensor, context: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(d)) of a layer, (B, heads, N, M): of each of N pixels the shares that M tokens get, sum 1."""
    q, k = (  # (B, N, C) -> (B, heads, N, d)
        rearrange(y, "b n (heads d) -> b heads n d", heads=layer.heads) for y in (layer.to_q(x), layer.to_k(context))
    )
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)


@contextmanager
def watch(unet: UNet, context: Tensor):
    """Within this context, note what the UNet attends to wherever it gets these text states (1, 77, width).

    Yields {pixels N: (sum of attention (N, 77) over layers and steps, mean over heads)}, which fills. The unconditional half
    of guidance, with other states, is not noted, nor is the ControlNet.
    """
    looked = {}

    def note(layer, inputs, output):
        x, given = inputs
        if torch.equal(given, context):
            weights = attention_weights(layer, x, given)[0].float().mean(dim=0)  # (1, heads, N, 77) -> (N, 77)
            looked[len(weights)] = looked.get(len(weights), 0) + weights

    layers = [block.attn2 for block in unet.modules() if isinstance(block, TransformerBlock)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield looked
    finally:
        for hook in hooks:
            hook.remove()


def find_words(prompt: str) -> list[tuple[str, list[int]]]:
    """Return (word, places of its tokens among the 77) in the prompt's order; what a word is, or a mark, CLIP says."""
    bpe = tokenizer()
    tokens = bpe.encode(prompt)[: CONTEXT_LENGTH - 2]
    words, start = [], 0
    for end, token in enumerate(tokens, start=1):
        if bpe.decoder[token].endswith("</w>") or end == len(tokens):
            words.append((bpe.decode(tokens[start:end]).strip(), list(range(start + 1, end + 1))))  # place 0: begin
            start = end
    return words


def word_maps(looked: dict[int, Tensor], prompt: str, size: tuple[int, int]) -> list[tuple[str, Tensor]]:
    """Return (word, (H, W)): the share of each pixel's attention that its tokens get, mean over heads, levels and steps.

    looked: of `watch`. The rest of the share, to 1, is that of the begin and end tokens and of the padding.
    """
    height, width = size
    total = 0
    for pixels, weights in looked.items():
        rows = round(math.sqrt(pixels * height / width))
        total = total + resize(rearrange(weights, "(y x) m -> 1 m y x", y=rows).cpu(), size)[0]  # (77, H, W)
    shares = total / total.sum(dim=0)  # each layer and step adds 1 to a pixel's sum
    return [(word, shares[places].sum(dim=0)) for word, places in find_words(prompt)]


def save_maps(path: Path, image: Tensor, maps: list[tuple[str, Tensor]]) -> None:
    """Save an image (H, W) in [-1, 1] and each word's map beside it, black 0, white the largest share of all; with their means."""
    with costing_nothing(path):
        most = max(shares.max().item() for _, shares in maps)
        pictures = torch.stack([image / 2 + 0.5, *(shares / most for _, shares in maps)])
        titles = ["picture", *(f"{word}\n{shares.mean():.1%}" for word, shares in maps)]
        save_rows(path, {f"0 to {most:.1%}": pictures}, titles)
