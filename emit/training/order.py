"""Which samples make a batch, and how they are loaded ahead without changing anything."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice

import torch

from emit.seeds import generator


@lru_cache(maxsize=1)
def _permute(samples, seed, epoch):
    return torch.randperm(samples, generator=generator("order", seed, epoch)).tolist()


def choose_samples(samples, seed, start, count, shuffle=True):
    """Return the numbers at positions start .. start + count - 1 of an endless sequence of sample numbers.

    Each epoch is a permutation of range(samples), drawn from (seed, epoch); a batch may span epochs.
    """
    places = [divmod(position, samples) for position in range(start, start + count)]
    return [_permute(samples, seed, epoch)[place] if shuffle else place for epoch, place in places]


def prefetch(load, jobs, ahead=2):
    """Yield load(job) for each job, in order; one thread works up to `ahead` jobs ahead, without gradients."""
    load, jobs = torch.no_grad()(load), iter(jobs)
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(load, job) for job in islice(jobs, ahead))
        while waiting:
            waiting.extend(pool.submit(load, job) for job in islice(jobs, 1))
            yield waiting.popleft().result()
