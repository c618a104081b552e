"""Training images by index: read once, fitted to a square, kept in memory while they fit."""

import torch

from emit.data.geometry import LINEAR, NEAREST, fit


class Memo:
    """rows = memo(indices): compute(missing indices) -> tensor (B, ...) runs once per index while `limit` bytes last."""

    def __init__(self, compute, limit=2 * 2**30):
        self.compute, self.room, self.kept = compute, limit, {}

    def __call__(self, indices):
        missing = [i for i in dict.fromkeys(indices) if i not in self.kept]
        fresh = dict(zip(missing, self.compute(missing), strict=True)) if missing else {}
        for i, row in fresh.items():
            size = row.numel() * row.element_size()
            if size <= self.room:
                self.kept[i] = row.clone()
                self.room -= size
        return torch.stack([self.kept.get(i, fresh.get(i)) for i in indices])


class Pictures:
    """The cases' images and masks at training size.  image(indices): (B, 1, S, S) in [-1, 1];  mask(indices): (B, S, S).

    A case without a mask has an empty one. Also the `data` of a training run: batch(indices, rng) -> the indices.
    """

    def __init__(self, cases, size):
        self.cases, self.size = cases, size
        self.pairs = Memo(self._read)

    def __len__(self):
        return len(self.cases)

    def batch(self, indices, rng):
        """Read the batch ahead of time (this runs in the prefetching thread) and hand on its indices."""
        self.pairs(indices)
        return indices

    def image(self, indices):
        """Return images (B, 1, S, S) in [-1, 1]."""
        return self.pairs(indices)[:, :1]

    def mask(self, indices):
        """Return masks (B, S, S) int64."""
        return self.pairs(indices)[:, 1].round().long()

    def prompts(self, indices):
        """Return the B prompts."""
        return [self.cases[i].prompt for i in indices]

    def _read(self, indices):
        rows = []
        for i in indices:
            image, mask = self.cases[i].load()
            image = fit(image, self.size, LINEAR, -1.0)
            mask = torch.zeros_like(image) if mask is None else fit(mask, self.size, NEAREST, 0).float()
            rows.append(torch.stack([image, mask]))
        return torch.stack(rows)
