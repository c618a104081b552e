"""Small random models in every layout, and the manifests of the public files."""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from emit.checkpoints.configs import FORMAT
from emit.checkpoints.names import own_tensors
from emit.ledger import Ledger
from emit.networks.text import TextConfig
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests" / "manifests.json.gz"
UNET = UNetConfig(
    model_channels=8,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_levels=(1, 2),
    heads=2,
    context_dim=16,
    groups=4,
    hint_channels=(4, 6, 8),
)
VAE = VAEConfig(channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, groups=4, scale=0.5)
TEXT = TextConfig(width=16, layers=2, heads=2)
SIZES = {"unet": UNET, "vae": VAE, "text": TEXT, "controlnet": UNET, "hed": (2, 3, 4, 5, 6), "hed_v11": (2, 3, 4, 5, 6)}


@pytest.fixture(scope="session")
def manifests():
    """{file kind: {tensor name: (shape, dtype)}} of public files; facts, no weights."""
    content = json.loads(gzip.decompress(MANIFESTS.read_bytes()))
    return {kind: {name: (tuple(s), d) for name, (s, d) in names.items()} for kind, names in content.items()}


@pytest.fixture(scope="session")
def small():
    """{part: {our name: random tensor}} of a three-level model with one block per level."""
    generator = torch.Generator().manual_seed(0)
    return {
        part: {name: torch.randn(own.shape, generator=generator) for name, own in own_tensors(part, sizes).items()}
        for part, sizes in SIZES.items()
    }


@pytest.fixture
def ledger():
    """What such a model has seen: 1200 pictures."""
    return Ledger().add("pre-training", range(1, 1201))


@pytest.fixture
def header(ledger):
    """The header that such a model's own file has."""
    config = {"unet": asdict(UNET), "vae": asdict(VAE), "text": asdict(TEXT), "version": "sd1", "prediction": "eps"}
    return json.loads(json.dumps({"config": config, **ledger.header, "format": FORMAT}))


@pytest.fixture
def same():
    """A function that asserts that two parts hold the same tensors, bit for bit."""

    def check(one, other):
        assert one.keys() == other.keys()
        for part in one:
            assert one[part].keys() == other[part].keys(), part
            for name, tensor in one[part].items():
                assert torch.equal(tensor, other[part][name]), f"{part} {name}"

    return check
