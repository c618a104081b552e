"""Sharing a batch; test_processes.py runs two real processes."""

import pytest
import torch

from emit.errors import InputError
from emit.training import distributed


def test_one_process_is_rank_0_of_1():
    tensor = torch.tensor([1.0, 2.0])
    distributed.average([tensor])
    distributed.barrier()
    assert (distributed.rank(), distributed.ranks(), tensor.tolist()) == (0, 1, [1.0, 2.0])


@pytest.mark.parametrize("parts", [1, 2, 3, 6, 12])
def test_the_pieces_of_a_batch_are_the_batch(parts):
    batch = list(range(100, 112))
    pieces = [distributed.split_batch(batch, part, parts) for part in range(parts)]
    assert {len(piece) for piece in pieces} == {12 // parts}
    assert [sample for piece in pieces for sample in piece] == batch


def test_buckets_hold_every_tensor_once_and_stay_small(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET", 10)
    tensors = [torch.zeros(size) for size in (11, 4, 6, 1, 25, 2, 3)]
    buckets = [[tensor.numel() for tensor in bucket] for bucket in distributed._buckets(tensors)]
    assert buckets == [[11], [4, 6], [1], [25], [2, 3]]  # only a single tensor may be larger than a bucket


@pytest.mark.parametrize("device", ["gpu", "cuda:x"])
def test_a_device_that_does_not_exist(device):
    with pytest.raises(InputError, match=f"--device {device}: "):
        distributed.start(device)


def test_a_machine_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.start("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="--device cuda: this machine has no usable GPU; write --device cpu"):
        distributed.start("cuda")


@pytest.mark.parametrize(("device", "chosen"), [("auto", []), ("cuda", []), ("cuda:1", [torch.device("cuda", 1)])])
def test_a_gpu_is_chosen_where_its_number_is_given(monkeypatch, device, chosen):
    asked, zeros = [], torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    assert distributed.start(device).type == "cuda" and asked == chosen


def test_a_device_that_this_machine_lacks():
    with pytest.raises(InputError, match="--device meta: cannot be used here; write --device cpu"):
        distributed.start("meta")


class Late:
    """Another thread fills place 1 of the tensor while the processes' tensors are joined."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __call__(self, parts, own):
        parts[0].copy_(own), parts[1].copy_(torch.tensor([0, 0, 9]))
        self.tensor[1] = 7


def test_hashes_of_several_processes_are_joined_and_none_is_lost(monkeypatch):
    tensor = torch.tensor([5, 0, 0])
    monkeypatch.setattr(distributed, "ranks", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_gather", Late(tensor))
    distributed.join(tensor)
    assert tensor.tolist() == [5, 7, 9]


def test_cpu_is_cpu():
    assert distributed.start("cpu") == torch.device("cpu")
