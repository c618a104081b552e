"""The device, and hashes of several processes; test_stages.py runs two real ones."""

import pytest
import torch

from emit.errors import InputError
from emit.training import distributed


def test_one_process_is_rank_0_of_1():
    tensor = distributed.reduce(torch.tensor([1.0, 2.0]))
    distributed.barrier()
    assert (distributed.rank(), distributed.ranks(), tensor.tolist()) == (0, 1, [1.0, 2.0])


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99", "cuda", "meta"])
def test_a_device_that_is_not_here(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"--device {device}: cannot be used here; write auto, cpu"):
        distributed.start(device)
    assert distributed.start("auto") == distributed.start("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("device", "chosen"), [("auto", []), ("cuda", []), ("cuda:1", [torch.device("cuda", 1)])])
def test_a_gpu_is_chosen_where_its_number_is_given(monkeypatch, device, chosen):
    asked, zeros = [], torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    assert distributed.start(device).type == "cuda" and asked == chosen


def test_hashes_of_several_processes_are_joined_and_none_is_lost(monkeypatch):
    def gather(parts, own):
        parts[:] = own.clone(), torch.tensor([0, 0, 9])
        tensor[1] = 7  # another thread fills a place meanwhile

    tensor = torch.tensor([5, 0, 0])
    monkeypatch.setattr(distributed, "ranks", lambda: 2)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    distributed.join(tensor)
    assert tensor.tolist() == [5, 7, 9]
