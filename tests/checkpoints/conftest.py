"""Small random models, which stand for Stable Diffusion 1 where a file states no sizes, and the public files' manifests."""

import gzip
import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from emit.checkpoints.configs import FORMAT
from emit.checkpoints.sizes import PUBLIC, network
from emit.ledger import Ledger
from emit.networks.text import TextConfig
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests" / "manifests.json.gz"
UNET = UNetConfig(4, 4, 8, (1, 2, 2), 1, attention_levels=(1, 2), heads=2, context_dim=16, groups=4, hint_channels=(4, 6, 8))
VAE = VAEConfig(channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, groups=4, scale=0.5)
TEXT = TextConfig(width=16, layers=2, heads=2)
SIZES = {"unet": UNET, "vae": VAE, "text": TEXT, "controlnet": UNET, "hed": (2, 3, 4, 5, 6), "hed_v11": (2, 3, 4, 5, 6)}


@pytest.fixture(scope="session")
def manifests():
    """{file kind: {tensor name: meta tensor}} of public files; facts, no weights."""
    return {
        kind: {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, (shape, dtype) in names.items()}
        for kind, names in json.loads(gzip.decompress(MANIFESTS.read_bytes())).items()
    }


@pytest.fixture(scope="session")
def random():
    """{part: {our name: random tensor}} of three-level networks with one block per level."""
    generator = torch.Generator().manual_seed(0)
    return {
        part: {name: torch.randn(own.shape, generator=generator) for name, own in network(part, sizes).state_dict().items()}
        for part, sizes in SIZES.items()
    }


@pytest.fixture
def small(random, monkeypatch):
    """The four parts of a model; its sizes count as Stable Diffusion 1's."""
    monkeypatch.setitem(PUBLIC, "sd1", {"unet": UNET, "vae": VAE, "text": TEXT})
    return {part: random[part] for part in ("unet", "vae", "text", "controlnet")}


@pytest.fixture
def ledger():
    """What such a model has seen: 1200 pictures."""
    return Ledger().add("pre-training", range(1, 1201))


@pytest.fixture
def header(ledger):
    """The header that such a model's own file has."""
    config = {"unet": asdict(UNET), "vae": asdict(VAE), "text": asdict(TEXT), "prediction": "eps"}
    return json.loads(json.dumps({"config": config, **ledger.header, "format": FORMAT}))


@pytest.fixture
def same():
    """A function that asserts that two parts hold the same tensors, bit for bit."""

    def check(one, other):
        assert {part: own.keys() for part, own in one.items()} == {part: own.keys() for part, own in other.items()}
        for part, own in one.items():
            assert all(torch.equal(tensor, other[part][name]) for name, tensor in own.items()), part

    return check


@pytest.fixture
def command(monkeypatch, capsys):
    """A function that runs `python -m emit.checkpoints` in this process and returns what it prints."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["emit.checkpoints", *map(str, arguments)])
        runpy.run_module("emit.checkpoints", run_name="__main__")
        return capsys.readouterr().out

    return call
