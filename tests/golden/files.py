"""The golden files, the configurations they were made with, and the public layouts they are written in for a test."""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from emit import checkpoints
from emit.checkpoints.configs import FORMAT
from emit.checkpoints.reader import FOLDERS
from emit.model import EmitDiff, Sizes
from emit.networks.text import TextConfig
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig
from tests.golden.rule import golden_tensor

HERE = Path(__file__).parent
UNET = dict(model_channels=32, attention_levels=(0, 1), hint_channels=(4, 6, 8))
VAE = VAEConfig(channels=16, channel_mult=(1, 2, 2), num_res_blocks=2, groups=4)
SD1 = Sizes(
    unet=UNetConfig(**UNET, channel_mult=(1, 2, 2), num_res_blocks=2, heads=8, context_dim=24, groups=8),
    vae=VAE,
    text=TextConfig(width=24, layers=3, heads=4),
)
SD2 = Sizes(
    unet=UNetConfig(
        **UNET, channel_mult=(1, 2, 3), num_res_blocks=1, heads=None, head_size=8, context_dim=40, linear_projections=True, groups=4
    ),
    vae=VAE,
    text=TextConfig(width=40, layers=23, heads=4, quick_gelu=False, pad=0),
    prediction="v",
)
SIZES = {"sd1": SD1, "sd2": SD2, "quiet": SD1}
TEXT_PREFIX = {"sd1": "cond_stage_model.transformer.text_model.", "sd2": "cond_stage_model.model."}


def read_golden(name):
    """Return the tensors of a golden file, and its rows [our name, shape, names in diffusers, shape there] by part."""
    with safe_open(HERE / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["names"])


def read_manifest(kind, prefix=""):
    """Return {name without prefix: shape} of a public file's tensors with the prefix."""
    names = json.loads(gzip.decompress((HERE / "manifests" / "manifests.json.gz").read_bytes()))[kind]
    return {name.removeprefix(prefix): tuple(row[0]) for name, row in names.items() if name.startswith(prefix)}


def original(part, rows, quiet=False):
    """Return {original name: golden tensor} of a part."""
    return {name: golden_tensor(f"{part}.{name}", shape, quiet) for name, shape, _, _ in rows}


def in_diffusers(part, rows, quiet=False):
    """Return {name in diffusers or transformers: golden tensor} of a part."""
    return {
        their_name: piece.reshape(their_shape).contiguous()
        for name, shape, their_names, their_shape in rows
        for their_name, piece in zip(
            their_names, golden_tensor(f"{part}.{name}", shape, quiet).chunk(len(their_names)), strict=True
        )
    }


def tables(kind):
    """Return the rows of every part of a kind: "sd1", "sd2", or "quiet", which has no text of its own."""
    text = "sd1" if kind == "quiet" else kind
    vae = "quiet" if kind == "quiet" else "sd1"
    return {**read_golden(f"unet_{kind}")[1], **read_golden(f"vae_{vae}")[1], **read_golden(f"text_{text}")[1]}


def header(kind):
    """Return the header that states a kind's sizes: these files have public names, and not the public sizes."""
    parts = {part: asdict(getattr(SIZES[kind], part)) for part in ("unet", "vae", "text")}
    return {"emit": json.dumps({"config": parts, "format": FORMAT})}


def write_original(folder, kind):
    """Write one file as Stable Diffusion's authors do, with what a reader must drop, and a ControlNet's own file."""
    rows, quiet, version = tables(kind), kind == "quiet", "sd2" if kind == "sd2" else "sd1"
    tensors = {f"model.diffusion_model.{n}": t for n, t in original("unet", rows["unet"], quiet).items()}
    tensors |= {f"first_stage_model.{n}": t for n, t in original("vae", rows["vae"], quiet).items()}
    text = (in_diffusers if version == "sd1" else original)("text", rows["text"])
    tensors |= {TEXT_PREFIX[version] + n: t for n, t in text.items()}
    tensors |= {"betas": torch.zeros(1000), "model_ema.decay": torch.ones(())}
    if version == "sd1":
        tensors[f"{TEXT_PREFIX['sd1']}embeddings.position_ids"] = torch.arange(77)[None]
    else:
        tensors[f"{TEXT_PREFIX['sd2']}logit_scale"] = torch.ones(())
    save_file(tensors, folder / "model.safetensors", header(kind))
    control = original("controlnet", rows["controlnet"], quiet)
    save_file({f"control_model.{n}": t for n, t in control.items()}, folder / "control.safetensors", header(kind))
    return [folder / "model.safetensors", folder / "control.safetensors"]


def write_diffusers(folder, kind):
    """Write a diffusers folder without config files. The public text encoder of version 2 has no block that is not run."""
    for part, rows in tables(kind).items():
        tensors = in_diffusers(part, rows, kind == "quiet")
        if part == "text":
            tensors = {f"text_model.{n}": t for n, t in tensors.items() if "layers.23." not in n}
        (folder / FOLDERS[part]).mkdir()
        save_file(tensors, folder / FOLDERS[part] / "diffusion_pytorch_model.safetensors", header(kind))
    return [folder]


def read_model(paths, kind):
    """Return EmitDiff of a kind, its parts filled from the files."""
    with torch.device("meta"):
        model = EmitDiff(SIZES[kind])
    for path in paths:
        for part, tensors in checkpoints.read(path).parts.items():
            checkpoints.fill(getattr(model, part), tensors, path, part)
    return model.requires_grad_(False)


def error(ours, reference):
    """Return the largest absolute difference over the reference's root mean square."""
    assert ours.shape == reference.shape
    reference = reference.double()
    return ((ours.double() - reference).abs().max() / reference.square().mean().sqrt()).item()
