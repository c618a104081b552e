"""A small training run in a process of its own, for the test that starts one and two: python child.py FOLDER"""

import sys
from pathlib import Path

import torch

from emit.training import distributed
from emit.training.loop import Run
from emit.training.settings import RunSettings

STEPS, BATCH, SAMPLES = 6, 4, 10


class Numbers:
    """Sample i is the row sin(i), sin(2 i), sin(3 i), and i itself."""

    def __len__(self):
        return SAMPLES

    def batch(self, indices, rng):
        index = torch.tensor(indices, dtype=torch.float32)
        return torch.sin(index[:, None] * torch.arange(1.0, 4.0)), index


class Network(torch.nn.Module):
    """A small network, with one weight that only samples 0 and 1 reach and one that none does."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(3, 8, generator=rng))
        self.second = torch.nn.Parameter(torch.randn(8, 1, generator=rng))
        self.rare = torch.nn.Parameter(torch.ones(1))
        self.never = torch.nn.Parameter(torch.ones(1))

    def forward(self, rows, index):
        out = torch.tanh(rows @ self.first) @ self.second
        special = (index < 2)[:, None]
        return out + special * self.rare if special.any() else out


def main():
    distributed.start("cpu")
    settings = {"lr": 0.01, "steps": STEPS, "batch": BATCH, "seed": 1, "ema": 0.5, "warmup": 0, "schedule": "constant"}
    accumulate = 4 // distributed.ranks()
    run = Run(Path(sys.argv[1]), {"network": Network()}, RunSettings(**settings, accumulate=accumulate), log_every=1)
    for _, (rows, index) in run.steps(Numbers()):
        run.update((run.modules["network"](rows, index) - torch.cos(index)[:, None]).square().mean())
    run.finish()
    distributed.stop()


if __name__ == "__main__":
    main()
