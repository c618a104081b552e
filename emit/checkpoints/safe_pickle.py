"""Read tensors out of a pickle without executing anything that stands in it.

First PyTorch's own weights-only reader. Pickles that name other classes (PyTorch Lightning's) go through torch.load
once more, with an unpickler that resolves the names below and hands back an inert placeholder for every other one.
"""

import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from zipfile import is_zipfile

import torch
from torch import Tensor

from emit.files import check_zip

ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class Placeholder:
    """Stands for a name that is not resolved: it can be called, built and filled like anything, and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    __setitem__ = __setstate__ = append = extend = add = update = __call__


class Unpickler(pickle.Unpickler):
    """Resolves the allowed names alone."""

    def find_class(self, module, name):
        return ALLOWED.get((module, name), Placeholder)


def load(file, **options):
    """Unpickle, as pickle.load does."""
    return Unpickler(file, **options).load()


RESTRICTED = SimpleNamespace(__name__="restricted", Unpickler=Unpickler, load=load)  # torch.load takes it for `pickle`


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return {name: tensor} of a bare state dict or one under "state_dict", zip (mapped, not copied) or legacy.

    What a damaged pickle raises is anything; ValueError where it holds something else.
    """
    misnamed = path.suffix == ".safetensors"  # torch.load would believe the name of a path, and maps paths alone
    check_zip(path)
    options = {"map_location": "cpu", "mmap": is_zipfile(path) and not misnamed}
    with warnings.catch_warnings(action="ignore"), open(path, "rb") as file:  # warnings: of TorchScript, an error here
        source = file if misnamed else path
        try:
            content = torch.load(source, weights_only=True, **options)
        except pickle.UnpicklingError:  # a TorchScript archive was turned down with another error
            file.seek(0)
            content = torch.load(source, weights_only=False, pickle_module=RESTRICTED, **options)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("a pickle without a state dict of tensors, nothing of it was executed")
    for name, value in content.items():  # one number may claim to be of any shape
        if (value.layout, value.device.type) != (torch.strided, "cpu") or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"{name} is no plain tensor")
    return {str(name): tensor.detach() for name, tensor in content.items()}
