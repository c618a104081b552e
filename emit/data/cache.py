"""Training images by index: read once, fitted to a square, kept in memory while they fit."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from emit.data.geometry import LINEAR, NEAREST, fit
from emit.data.images import read_pair
from emit.data.similarity import content_hash


class Memo:
    """memo(keys, inputs): row k is compute(inputs[k : k + 1])[0]; rows are kept while `limit` bytes last.

    inputs: a list or tensor with one row for each key (None: the keys themselves). Every row is computed alone. On a CPU
    the last bits of a convolution depend on the size of its batch, and a resumed run would meet other batches.
    """

    def __init__(self, compute, limit=2 * 2**30):
        self.compute, self.room, self.kept = compute, limit, {}

    def __call__(self, keys, inputs=None):
        inputs, rows = keys if inputs is None else inputs, {}
        for place, key in enumerate(keys):
            if key in self.kept:
                rows[key] = self.kept[key]
            elif key not in rows:
                rows[key] = self.compute(inputs[place : place + 1])[0].clone()
                if rows[key].nbytes <= self.room:
                    self.kept[key] = rows[key]
                    self.room -= rows[key].nbytes
        return torch.stack([rows[key] for key in keys])


@dataclass(frozen=True)
class Batch:
    """B cases read: indices and cases, lists; image (B, 1, S, S) in [-1, 1]; mask (B, S, S) int64.

    view (B, 1, V, V): the image once more, as HED sees it: nan in the frame that made it a square.
    """

    indices: list
    cases: list
    image: torch.Tensor
    mask: torch.Tensor
    view: torch.Tensor | None = None

    @property
    def prompts(self):
        return [case.prompt for case in self.cases]


class TrainingImages:
    """The cases' images and masks at training size; the `data` of a training run.

    A case without a mask has an empty one. view: side of the images for HED, 0: none.
    hashes (N,) int64: the content hash of every picture that was read, 0 of the others; the loop keeps them with its
    state, so that the ledger knows what a model has seen without a second reading.
    """

    def __init__(self, cases, size, view=0):
        self.cases, self.size, self.view = cases, size, view
        self.hashes = torch.zeros(len(cases), dtype=torch.int64)
        self.rows = Memo(self._read)

    def __len__(self):
        return len(self.cases)

    def batch(self, indices: list[int], rng: torch.Generator | None = None) -> Batch:
        """Read a Batch (in the prefetching thread of a run)."""
        rows, sides = self.rows(indices), (self.size, self.size, self.view)
        planes = rows.split([side * side for side in sides], dim=1)  # (B, 2 S S + V V) -> (B, S S), (B, S S), (B, V V)
        image, mask, view = (plane.reshape(len(rows), 1, side, side) for plane, side in zip(planes, sides, strict=True))
        return Batch(indices, [self.cases[i] for i in indices], image, mask[:, 0].round().long(), view)

    def read(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, 1, S, S) in [-1, 1] and masks (B, S, S) int64."""
        batch = self.batch(indices)
        return batch.image, batch.mask

    def image(self, indices):
        """Return images (B, 1, S, S) in [-1, 1]."""
        return self.read(indices)[0]

    def _read(self, indices):
        (index,) = indices
        image, mask = self.cases[index].load()
        hashed = content_hash(image)
        self.hashes[index] = hashed - 2**64 if hashed >= 2**63 else hashed  # the same 64 bits, signed
        fitted = fit(image, self.size, LINEAR, -1.0)
        mask = torch.zeros_like(fitted) if mask is None else fit(mask, self.size, NEAREST, 0).float()
        views = [fit(image, self.view, LINEAR, math.nan)] if self.view else []
        return torch.cat([plane.flatten() for plane in (fitted, mask, *views)])[None]


def read_picture(path: str | Path, size: int) -> torch.Tensor:
    """Read any picture file as a training image: (1, 1, size, size) in [-1, 1], letterboxed."""
    return fit(read_pair(path)[0], size, LINEAR, -1.0)[None, None]
