"""The sizes of the parts: the public ones, and those that our header states."""

from dataclasses import fields
from typing import get_type_hints

import torch
from torch import Tensor, nn

from emit.files import find_misfit
from emit.networks.controlnet import ControlNet
from emit.networks.hed import HED, STAGES, HEDv11
from emit.networks.text import TextConfig, TextEncoder
from emit.networks.unet import UNet, UNetConfig
from emit.networks.vae import AutoencoderKL, VAEConfig

NETWORKS = {"unet": UNet, "vae": AutoencoderKL, "text": TextEncoder, "controlnet": ControlNet}
NETWORKS |= {"hed": HED, "hed_v11": HEDv11}
KEYS = {"controlnet": "unet", "unet": "unet", "vae": "vae", "text": "text"}  # part: its sizes in a header's config
KINDS = {"unet": UNetConfig, "vae": VAEConfig, "text": TextConfig}
SD1 = {"unet": UNetConfig(), "vae": VAEConfig(), "text": TextConfig()}
SD2 = {
    "unet": UNetConfig(heads=None, head_size=64, context_dim=1024, linear_projections=True),
    "vae": VAEConfig(),
    "text": TextConfig(width=1024, layers=23, heads=16, quick_gelu=False, pad=0),
}
PUBLIC = {"sd1": SD1, "sd2": SD2}


def network(part: str, sizes) -> nn.Module:
    """Build a part's network on the meta device: names and shapes, no numbers."""
    with torch.device("meta"):
        return NETWORKS[part](sizes)


def public_sizes(part: str, tensors: dict[str, Tensor]):
    """Return the sizes of a public file's part: its version shows in the width of the text. HED has any five widths."""
    if part == "hed":
        return tuple(tensors[f"moduleScore{place}.weight"].shape[1] for place in STAGES)
    if part == "hed_v11":
        return tuple(tensors[f"block{number}.projection.weight"].shape[1] for number in range(1, 6))
    widths = {t.shape[-1] for name, t in tensors.items() if name.endswith(("attn2.to_k.weight", "token_embedding.weight"))}
    return PUBLIC["sd2" if 1024 in widths else "sd1"][KEYS[part]]


def stated_sizes(part: str, values: dict):
    """Return the sizes that a header states. Raises TypeError where a name is missing or unknown."""
    kind = KINDS[KEYS[part]]
    missing = {field.name for field in fields(kind)} - values.keys()
    if missing:
        raise TypeError(f"no {', '.join(sorted(missing))}")
    return check_sizes(kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}))


def check_sizes(sizes):
    """Return sizes. Raises ValueError where they are of another kind, or name so many layers that building them takes minutes."""
    if fault := find_misfit(vars(sizes), get_type_hints(type(sizes))):
        raise ValueError(fault)
    for name, value in vars(sizes).items():
        numbers, most = value if isinstance(value, tuple) else (value,), 64 if name in ("layers", "num_res_blocks") else 2**16
        if len(numbers) > 16 or not all(0 <= number <= most for number in numbers if isinstance(number, int | float)):
            raise ValueError(f"{name} is {value}")
    return sizes


def version_of(sizes: dict) -> str:
    """Return "sd1" or "sd2" where all parts' sizes are that version's, "sd" for an autoencoder alone, else "emit"."""
    fits = [name for name, public in PUBLIC.items() if all(public.get(KEYS.get(part)) == sizes[part] for part in sizes)]
    return "emit" if not fits else fits[0] if len(fits) == 1 else "sd"
