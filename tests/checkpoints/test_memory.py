"""Reading maps the file: peak resident memory stays within 1.25 times the file's size, module included."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from emit.checkpoints.names import own_tensors, to_diffusers
from emit.networks.text import TextConfig
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig

ROOT = Path(__file__).parents[2]
# VmHWM is the peak resident memory of that process alone; ru_maxrss would begin with that of its parent.
SCRIPT = """
import sys
from pathlib import Path
import open_clip.transformer  # a program of 2 seconds and 100 MB that every text encoder needs
import torch
from emit import checkpoints
from emit.networks.unet import UNet, UNetConfig
def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
def widths(values):
    return UNetConfig(**{k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()})
before = peak()
found = checkpoints.read(sys.argv[1])
with torch.device("meta"):
    unet = UNet(widths(found.config["unet"]))
checkpoints.fill(unet, found.parts["unet"], sys.argv[1], "unet")
assert unet.input_blocks[0][0].weight.data_ptr() == found.parts["unet"]["input_blocks.0.0.weight"].data_ptr()
print(before, peak())
"""


def write_original(path, sizes):
    """Write a random model in the original layout of Stable Diffusion 1, q, k and v of the text encoder apart."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    prefixes = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
    shapes = {prefixes[part] + name: own for part in prefixes for name, own in own_tensors(part, sizes[part]).items()}
    text = to_diffusers("text", sizes["text"], own_tensors("text", sizes["text"]))
    shapes |= {"cond_stage_model.transformer.text_model." + name: own for name, own in text.items()}
    for name, own in shapes.items():
        tensors[name] = torch.rand(own.shape, generator=generator)
    save_file(tensors, path)
    return path.stat().st_size


def measure(path):
    command = [sys.executable, "-c", SCRIPT, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_of_a_fifth_of_a_gigabyte(tmp_path):
    small = {
        "unet": UNetConfig(model_channels=64, context_dim=128, hint_channels=(4, 4)),
        "vae": VAEConfig(channels=32),
        "text": TextConfig(width=128, layers=12),
    }
    size = write_original(tmp_path / "model.safetensors", small)
    before, peak = measure(tmp_path / "model.safetensors")
    assert size > 150e6
    assert peak - before < 1.25 * size  # `before`: Python and PyTorch, as large as such a small file


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_of_stable_diffusion_1(tmp_path):
    full = {"unet": UNetConfig(), "vae": VAEConfig(), "text": TextConfig()}
    size = write_original(tmp_path / "model.safetensors", full)
    _, peak = measure(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    assert size > 4.26e9
    assert peak < 1.25 * size
