"""Which samples make a batch, and loading ahead."""

import threading
import time

import pytest
import torch

from emit.training.order import choose_samples, prefetch


def test_every_epoch_is_a_permutation_of_its_own():
    stream = choose_samples(7, 3, 0, 7 * 20)
    epochs = [tuple(stream[start : start + 7]) for start in range(0, 140, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 20  # two of 20 are equal by chance with probability 190 / 5040; this seed has none
    assert choose_samples(7, 3, 25, 12) == stream[25:37]  # across two ends of an epoch
    assert choose_samples(7, 3, 4, 4) == stream[4:8]  # and back


def test_the_seed_makes_the_order_and_no_shuffle_keeps_it():
    assert choose_samples(50, 1, 0, 50) != choose_samples(50, 2, 0, 50)
    assert choose_samples(3, 1, 2, 5, shuffle=False) == [2, 0, 1, 2, 0]


def test_prefetch_keeps_the_order_and_works_ahead_but_not_far():
    begun = []

    def load(job):
        begun.append(job)
        return job * job

    batches = prefetch(load, iter(range(20)))
    assert next(batches) == 0
    limit = time.monotonic() + 10
    while len(begun) < 3 and time.monotonic() < limit:
        time.sleep(0.001)
    time.sleep(0.02)
    assert begun == [0, 1, 2]  # the one handed over and two ahead
    assert list(batches) == [job * job for job in range(1, 20)]


def test_prefetch_begins_nothing_after_its_end():
    begun = []

    def load(job):
        begun.append(job)
        time.sleep(0.01)

    batches = prefetch(load, iter(range(100)))
    next(batches)
    batches.close()
    seen = len(begun)
    time.sleep(0.04)
    assert len(begun) == seen <= 4


def test_prefetch_hands_on_the_error_and_ends_its_thread():
    before = threading.active_count()
    batches = prefetch(lambda job: 1 / (job - 2), iter(range(9)))
    assert [next(batches), next(batches)] == [-0.5, -1.0]
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert threading.active_count() == before


def test_prefetch_keeps_no_gradients():
    weight = torch.ones(1, requires_grad=True)
    assert not any(batch.requires_grad for batch in prefetch(lambda job: weight * job, iter(range(3))))
