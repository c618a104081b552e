"""Which samples make a batch, and loading ahead."""

import threading
import time

import pytest
import torch

from emit.training.order import Order, prefetch


def test_every_epoch_is_a_permutation_of_its_own():
    stream = Order(7, seed=3).at(0, 7 * 20)
    epochs = [tuple(stream[start : start + 7]) for start in range(0, 140, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 20  # two of 20 are equal by chance with probability 190 / 5040; this seed has none


def test_any_stretch_is_the_same_however_it_is_reached():
    stream = Order(7, seed=3).at(0, 60)
    stepped = Order(7, seed=3)
    assert [index for start in range(0, 60, 4) for index in stepped.at(start, 4)] == stream
    assert Order(7, seed=3).at(25, 12) == stream[25:37]  # across two ends of an epoch, from a fresh start


def test_the_seed_makes_the_order_and_no_shuffle_keeps_it():
    assert Order(50, seed=1).at(0, 50) != Order(50, seed=2).at(0, 50)
    assert Order(3, seed=1, shuffle=False).at(2, 5) == [2, 0, 1, 2, 0]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetch_keeps_the_order(workers):
    def load(job):
        time.sleep(0.002 * (job % 3))  # later jobs are often ready first
        return job * job

    assert list(prefetch(load, iter(range(20)), workers)) == [job * job for job in range(20)]


def test_prefetch_works_ahead_but_not_far():
    begun = []
    batches = prefetch(begun.append, iter(range(100)), workers=2)
    next(batches)
    limit = time.monotonic() + 10
    while len(begun) < 5 and time.monotonic() < limit:
        time.sleep(0.001)
    time.sleep(0.02)
    assert sorted(begun) == [0, 1, 2, 3, 4]  # the first, and two for each worker
    batches.close()


def test_prefetch_begins_nothing_after_its_end():
    begun = []

    def load(job):
        begun.append(job)
        time.sleep(0.01)

    batches = prefetch(load, iter(range(100)), workers=1)
    next(batches)
    batches.close()
    seen = len(begun)
    time.sleep(0.04)
    assert len(begun) == seen <= 2


def test_prefetch_hands_on_the_error_and_ends_its_threads():
    def load(job):
        return 1 / (job - 2)

    before = threading.active_count()
    batches = prefetch(load, iter(range(9)), workers=2)
    assert [next(batches), next(batches)] == [-0.5, -1.0]
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetch_keeps_no_gradients(workers):
    weight = torch.ones(1, requires_grad=True)
    assert not any(batch.requires_grad for batch in prefetch(lambda job: weight * job, iter(range(3)), workers))
