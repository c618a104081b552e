"""Several processes started by torchrun: who am I, which samples are mine, what is the mean over all of us.

A single process needs no set-up and pays nothing: every function below then returns at once.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from emit.errors import InputError

BUCKET = 2**23  # [choice] numbers sent at once: large enough to fill a link, small beside the model


def start(device="auto"):
    """Return this process's torch.device; join the group when torchrun started several (gloo on CPU, nccl on GPU).

    device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1" or "mps". Under torchrun "cuda" is one GPU per process.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"--device {device}: not a device; write auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: this machine has no usable GPU; write --device cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        backend, gpu = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=timedelta(hours=2), device_id=gpu)  # rank 0 may be drawing samples
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {device}: cannot be used here; write --device cpu") from error
    return device


def refuse_several(program):
    """Refuse torchrun for a program whose processes would all do the same work and write the same files."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"{program}: cannot share its work yet; start it as one process, without torchrun")


def stop():
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    """Return this process's number, 0 .. ranks() - 1; only rank 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks():
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier():
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def split_batch(indices, part, parts):
    """Return one of `parts` equal consecutive pieces of a batch; together they are the batch, whatever their number."""
    size = len(indices) // parts
    return indices[part * size : (part + 1) * size]


def _buckets(tensors):
    bucket, size = [], 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def average(tensors):
    """Replace each tensor, in place, by its mean over the processes. All have one dtype and device."""
    if ranks() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat)
        parts = (flat / ranks()).split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(bucket, [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)])


def average_gradients(parameters):
    """Replace each gradient by its mean over the processes.

    A parameter that only some processes reached counts as zero on the others; one that none reached keeps no gradient.
    """
    if ranks() == 1:
        return
    reached = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    average([reached])
    parameters = [p for p, share in zip(parameters, reached.tolist(), strict=True) if share > 0]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average([parameter.grad for parameter in parameters])


def copy_from_first(tensors):
    """Overwrite each tensor by rank 0's, so that all processes start from one model."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def highest(number, device="cpu"):
    """Return the largest of the processes' numbers."""
    if ranks() == 1:
        return number
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def join(tensor, device="cpu"):
    """Fill the zeros of a CPU tensor, in place, from the other processes' tensors."""
    if ranks() == 1:
        return
    own = tensor.to(device)
    parts = [torch.empty_like(own) for _ in range(ranks())]
    dist.all_gather(parts, own)
    for part in (part.cpu() for part in parts):
        there = part != 0  # only these places are written: the prefetching thread may be filling others
        tensor[there] = part[there]
