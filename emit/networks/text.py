"""The CLIP text encoder of Stable Diffusion, on open_clip's tokenizer and text tower (the vocabulary ships with it)."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower; the values are Stable Diffusion 1.5's (CLIP ViT-L/14).

    layers counts the blocks that are run: Stable Diffusion 2 takes the next to last of 24 states, so it has 23.
    pad: the token id after the end token: 49407 in 1.x, 0 in 2.x and open_clip. Padding is attended to, so it matters.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    quick_gelu: bool = True
    pad: int = 49407


@cache
def tokenizer():
    """Return open_clip's byte-pair tokenizer, built once."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


class TextEncoder(nn.Module):
    """context = text(text.tokenize(prompts)): states (B, 77, width) after the last block and the final norm.

    Parameter names are open_clip's text tower's.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        from open_clip.transformer import QuickGELU, TextTransformer  # seconds to import, so only where it is used

        tower = TextTransformer(
            context_length=CONTEXT_LENGTH,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            output_dim=None,
            act_layer=QuickGELU if config.quick_gelu else nn.GELU,
        )
        self.config = config
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Turn a list of B prompts into ids (B, 77): begin, at most 75 tokens, end, padding."""
        bpe = tokenizer()
        ids = torch.full((len(prompts), CONTEXT_LENGTH), self.config.pad)
        for row, prompt in zip(ids, prompts, strict=True):
            tokens = [bpe.sot_token_id, *bpe.encode(prompt)[: CONTEXT_LENGTH - 2], bpe.eot_token_id]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids.to(self.positional_embedding.device)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.token_embedding(ids) + self.positional_embedding  # (B, 77) -> (B, 77, width)
        causal = torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), float("-inf"), device=ids.device).triu(1)
        return self.ln_final(self.transformer(states, attn_mask=causal.to(states.dtype)))  # padding attended to

    def encode(self, prompts: list[str]) -> Tensor:
        """Tokenize and encode a list of prompts."""
        return self(self.tokenize(prompts))
