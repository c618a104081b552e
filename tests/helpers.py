"""What tests of several rooms share."""

import sys

import pytest
import torch


def call(module, *words):
    """Run a program in this process, with these words after its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        module.main()


def column(*values):
    """Return scalars as a batch of one-pixel latents in float64."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)
