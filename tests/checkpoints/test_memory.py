"""Reading maps the file: peak resident memory stays within 1.25 times the file's size, module included."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from emit import checkpoints
from emit.checkpoints.sizes import SD1, network
from emit.networks.text import TextConfig
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig

ROOT = Path(__file__).parents[2]
SMALL = {"unet": UNetConfig(model_channels=64, context_dim=128, hint_channels=(4, 4)), "vae": VAEConfig(channels=32)}
SMALL["text"] = TextConfig(width=128, heads=2)
# VmHWM is the peak resident memory of that process alone; ru_maxrss would begin with that of its parent.
SCRIPT = """
import sys
from pathlib import Path
import open_clip.transformer  # a program of 2 seconds and 100 MB that every text encoder needs
from emit import checkpoints
from emit import checkpoints
from emit.checkpoints.sizes import network
def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
before = peak()
found = checkpoints.read(sys.argv[1])
unet = checkpoints.fill(network("unet", found.sizes["unet"]), found.parts["unet"], sys.argv[1], "unet")
assert unet.input_blocks[0][0].weight.data_ptr() == found.parts["unet"]["input_blocks.0.0.weight"].data_ptr()
print(before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("sizes", [SMALL, pytest.param(SD1, marks=pytest.mark.slow)], ids=["a fifth of a gigabyte", "SD 1"])
def test_peak_memory(tmp_path, sizes):
    """A random model in the layout of Stable Diffusion 1's authors, read in another process."""
    generator, path, parts = torch.Generator().manual_seed(0), tmp_path / "model.safetensors", {}
    for part, own in sizes.items():
        shapes = {name: tensor.shape for name, tensor in network(part, own).state_dict().items()}
        parts[part] = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    config = {part: asdict(own) for part, own in sizes.items()} | {"prediction": "eps"}
    checkpoints.write_single(path, parts, {"config": config})
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    (before, peak), size = map(int, done.stdout.split()), path.stat().st_size
    path.unlink()
    assert size > (4.26e9 if sizes is SD1 else 150e6)
    print(f"peak {peak / size:.2f} of the file's size, {before / size:.2f} before")
    assert peak - (0 if sizes is SD1 else before) < 1.25 * size  # `before`: Python and PyTorch, as large as such a small file
