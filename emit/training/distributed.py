"""Several processes started by torchrun; a single one pays nothing, as every function then returns at once."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from emit.errors import InputError


def start(device="auto", alone=False):
    """Return this process's torch.device; join the group when torchrun started several (gloo on CPU, nccl on GPU).

    device: "auto" (cuda, else mps, else cpu), "cpu", "cuda", "cuda:1" or "mps". Under torchrun "cuda" is one GPU per process.
    alone: refuse torchrun, for a program whose processes would all do the same work and write the same files.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several and alone:
        raise InputError("torchrun: this program cannot share its work yet; start it as one process")
    if device == "auto":
        mps = torch.backends.mps.is_available() and not several  # gloo has no tensors there
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if several and device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if several and device.startswith("mps"):
        raise InputError("--device mps: cannot be shared by several processes; write cpu, or start one without torchrun")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {device}: cannot be used here; write auto, cpu, cuda, cuda:0 or mps") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if several and not dist.is_initialized():
        backend, gpu = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=timedelta(hours=2), device_id=gpu)  # rank 0 may be drawing samples
    return device


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    """Return this process's number, 0 .. ranks() - 1; only rank 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks():
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier():
    if dist.is_initialized():
        dist.barrier()


def share(parameters):
    """Copy rank 0's parameters to all; return the function whose result, a loss unchanged, averages their gradients.

    DistributedDataParallel finds its parameters in the graph of what its module returns, so any loss of them will do.
    A parameter that only some processes reached counts as zero on the others; one that none reached keeps no gradient.
    """
    module = torch.nn.Identity()
    module.trained = torch.nn.ParameterList(parameters)
    return DistributedDataParallel(module, find_unused_parameters=True) if ranks() > 1 else module


def reduce(tensor, operation="SUM"):
    """Replace a tensor, in place, by the processes' sum, or another of dist.ReduceOp; return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
    return tensor


def join(tensor):
    """Fill the zeros of a CPU tensor, in place, from the other processes' tensors."""
    parts = [tensor] * ranks()
    if dist.is_initialized():
        dist.all_gather_object(parts, tensor)
    for part in parts:
        there = part != 0  # only these places are written: the prefetching thread may be filling others
        tensor[there] = part[there]
