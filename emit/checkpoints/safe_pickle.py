"""Read tensors out of a pickle without executing anything that stands in it.

First PyTorch's own weights-only reader. Pickles that name other classes (PyTorch Lightning's) go through torch.load
once more, with an unpickler that resolves the names below and hands back an inert placeholder for every other one.
"""

import pickle
import warnings
from collections import OrderedDict
from types import SimpleNamespace

import torch

from emit.errors import InputError

ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
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

    def __setitem__(self, key, value):
        pass

    __setstate__ = append = extend = add = update = __call__


def restricted(refused):
    """Return a stand-in for the pickle module; the names it did not resolve are added to the set `refused`."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) not in ALLOWED:
                refused.add(f"{module}.{name}")
            return ALLOWED.get((module, name), Placeholder)

    def load(file, **options):
        return Unpickler(file, **options).load()

    return SimpleNamespace(__name__="restricted", Unpickler=Unpickler, load=load)


def read_pickle(path):
    """Return ({name: tensor}, what else was there: "entry epoch", "class module.name, not executed").

    Takes zip and legacy serialisation; a bare dict or one with "state_dict". A zip file is mapped, not copied.
    """
    refused = set()
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript archives, which are an error here
            mapped = file.read(2) == b"PK" and path.suffix != ".safetensors"  # given a path, torch.load goes by that
            file.seek(0)
            source = path if mapped else file
            try:
                content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
            except pickle.UnpicklingError:  # raised after TorchScript archives were turned down
                file.seek(0)
                options = {"weights_only": False, "pickle_module": restricted(refused)}
                content = torch.load(source, map_location="cpu", mmap=mapped, **options)
    except Exception as error:  # what a damaged pickle raises is anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(
            f"{path}: a damaged or unknown pickle ({reason}), nothing of it was executed; expected a state dict"
        ) from error
    remarks = [f"class {name}, not executed" for name in sorted(refused)]
    return unwrap(path, content, remarks)


def unwrap(path, content, remarks):
    """Take the tensors out of a state dict; `remarks` begins the list of what was left aside."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        remarks += [f"entry {name}" for name in content if isinstance(name, str) and name != "state_dict"]
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        named = f" (it names {remarks[0]})" if remarks else ""
        raise InputError(f"{path}: a pickle without a state dict{named}; expected names with tensors")
    kinds = {key: isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()}
    strange = [key for key, good in kinds.items() if not good]
    if strange:
        raise InputError(f"{path}: {str(strange[0])[:80]!r} in its state dict is no tensor; expected tensors only")
    return {name: value.detach() for name, value in content.items()}, remarks
