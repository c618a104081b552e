"""Which samples make a batch, and how they are loaded ahead without changing anything."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch

from emit.seeds import generator


class Order:
    """The endless sequence of sample numbers: one permutation of range(samples) per epoch, drawn from (seed, epoch)."""

    def __init__(self, samples, seed, shuffle=True):
        self.samples, self.seed, self.shuffle = samples, seed, shuffle
        self.epoch, self.permutation = None, None

    def at(self, start, count):
        """Return the sample numbers at positions start .. start + count - 1; a batch may span epochs."""
        indices = []
        for position in range(start, start + count):
            epoch, place = divmod(position, self.samples)
            if epoch != self.epoch:
                self.epoch, self.permutation = epoch, self._permute(epoch)
            indices.append(self.permutation[place])
        return indices

    def _permute(self, epoch):
        if not self.shuffle:
            return range(self.samples)
        return torch.randperm(self.samples, generator=generator("order", self.seed, epoch)).tolist()


def prefetch(load, jobs, workers):
    """Yield load(job) for each job, in order; `workers` threads work ahead (0: none).

    Gradients are off in load. With more than one worker load must be thread-safe.
    """
    load = torch.no_grad()(load)
    if workers == 0:
        yield from map(load, jobs)
        return
    pool, waiting = ThreadPoolExecutor(workers), deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(load, job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
