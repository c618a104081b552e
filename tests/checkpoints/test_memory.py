"""Reading maps the file: peak resident memory stays within 1.25 times the file's size, module included."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from emit.checkpoints.configs import FORMAT
from emit.checkpoints.names import to_diffusers
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


def measure(path, sizes, more):
    """Write a random model as Stable Diffusion 1's authors do and read it elsewhere: file size, memory before, at most."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    shapes = {part: network(part, own).state_dict() for part, own in sizes.items()}
    shapes["text"] = to_diffusers("text", sizes["text"], shapes["text"])  # q, k and v apart
    prefixes = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
    prefixes["text"] = "cond_stage_model.transformer.text_model."
    for part, prefix in prefixes.items():
        tensors |= {prefix + name: torch.rand(own.shape, generator=generator) for name, own in shapes[part].items()}
    save_file(tensors, path, more)
    command = [sys.executable, "-c", SCRIPT, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    size = path.stat().st_size
    path.unlink()
    return size, *map(int, done.stdout.split())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["a fifth of a gigabyte", "SD 1"])
def test_peak_memory(tmp_path, full):
    config = {part: asdict(sizes) for part, sizes in SMALL.items()}
    more = {} if full else {"emit": json.dumps({"config": config, "format": FORMAT})}
    size, before, peak = measure(tmp_path / "model.safetensors", SD1 if full else SMALL, more)
    assert size > (4.26e9 if full else 150e6)
    print(f"peak {peak / size:.2f} of the file's size, {before / size:.2f} before")
    assert peak - (0 if full else before) < 1.25 * size  # `before`: Python and PyTorch, as large as such a small file
