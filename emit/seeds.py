"""Randomness that depends on names and numbers alone: never on batch size, shard, device or what was drawn before."""

import hashlib

import torch


def seed_from(*parts):
    """Turn any parts, such as (run seed, case id, sample index), into a 63-bit seed: the head of their SHA-256."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts):
    """Return a CPU generator seeded from the parts."""
    return torch.Generator().manual_seed(seed_from(*parts))


class SeededNoise:
    """A stream of standard normal tensors (B, *shape), row b drawn on the CPU from seed b alone: the same in any batch."""

    def __init__(self, seeds, shape, device="cpu"):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def __call__(self):
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)
