"""Pictures from a prompt and, if given, an edge: no data set, no fold.

    python -m emit.sample --model v1-5-pruned.safetensors --like sd15 --prompt "a breast ultrasound" --out pictures
    python -m emit.sample --model MODEL --controlnet CONTROLNET --hed HED --picture IMAGE --prompt "..." --out pictures
    python -m emit.sample --again pictures/0000_0.png --out again

Writes a PNG for each prompt and seed, and sheet.png: a row per prompt, the condition and the pictures beside it. A PNG
carries its settings and the SHA-256 of every file that was read. So it can be made again: bit for bit on the same machine
with the same threads. Pictures are drawn one at a time: each depends on its prompt and its seed alone.
"""

import io
import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch.nn import functional as F
from tqdm import tqdm

from emit import errors
from emit.data.edges import contour
from emit.data.images import decode, read_pair
from emit.errors import InputError
from emit.files import sha256, write_bytes
from emit.generated import find_fault, to_bytes
from emit.model import EmitDiff, Sampling, find_edges, load_hed, to_grey
from emit.training import distributed
from emit.training.settings import SamplingSettings, code_version, flag_of, parse, setting, to_plain

CHUNK = "emit.sample"  # name of the PNG's text chunk
LIKE = {  # what Stable Diffusion 1.5's own folder and diffusers' pipelines do
    "sd15": {"method": "plms", "steps": 50, "spacing": "leading", "guidance": 7.5, "guided": "text", "size": "512x512"}
}
FILES = ("model", "controlnet", "hed", "edges", "picture", "mask")


@dataclass(frozen=True, kw_only=True)
class Settings(SamplingSettings):
    """Pictures from a prompt, and from an edge map, a picture or a mask if given."""

    model: Path = setting(source="[choice] yours", help="a public file or folder, or model.safetensors of stage 1")
    controlnet: Path | None = setting(None, "[choice] the model's own", help="a ControlNet, if the model file has none")
    hed: Path | None = setting(None, "[choice] only for --picture", help="HED weights, which find a picture's edges")
    out: Path = setting(source="[choice] your folder", help="new folder for the pictures")
    prompt: tuple[str, ...] = setting((), "[choice] the empty prompt", help="texts, or a file with one a line", nargs="+")
    edges: Path | None = setting(None, "[choice] none", help="condition: an edge map, white on black")
    picture: Path | None = setting(None, "[choice] none", help="condition: the edges that HED finds in a picture")
    mask: Path | None = setting(None, "[choice] none", help="condition: the outline of a mask; with --picture both, as in stage 2")
    prediction: Literal["eps", "v"] | None = setting(None, "[choice] as the file says", help="of a model that does not say it")
    seeds: tuple[int, ...] = setting((0,), "[choice] any numbers", help="one picture of each prompt for each", low=0)
    size: str | None = setting(None, "[choice] the condition's", help="WIDTHxHEIGHT in pixels")
    like: Literal["sd15"] | None = setting(None, "[choice] none", help="the values of Stable Diffusion 1.5's folder")
    again: Path | None = setting(None, "[choice] none", help="a PNG of this program: make it once more")

    def __post_init__(self):
        super().__post_init__()
        if self.edges is not None and (self.picture is not None or self.mask is not None):
            raise InputError("--edges: is a whole condition; leave out --picture and --mask")
        if self.picture is not None and self.hed is None:
            raise InputError("--picture: its edges are found by HED; give --hed FILE, or --edges")


def inherit(given):
    """Return, for `parse`, the values that --again or --like stand for, and where they come from."""
    if "again" in given:
        values = read_about(given["again"])["settings"]
        kinds = {name: Path(value) for name, value in values.items() if name in FILES and value is not None}
        values |= kinds | {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        free = {"out", "device", "again", "like", *(name for name in FILES if name in given)}  # moved files are compared
        return {name: value for name, value in values.items() if name not in free}, given["again"]
    return {name: value for name, value in LIKE.get(given.get("like"), {}).items() if name not in given}, "--like"


def read_about(path):
    """Return what a PNG of this program says about itself: settings, sha256 of the files read, versions."""
    try:
        with Image.open(path) as file:
            return json.loads(file.text[CHUNK])
    except (OSError, AttributeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is no picture of emit.sample; give one with its text chunk") from error


def read_condition(settings, hed, step):
    """Return the hint (1, 3, H, W) in [0, 1], or None without a condition, and its size (H, W), multiples of `step`.

    Without --size the condition keeps its own, cut down to the next multiple. All of it is stretched to the size.
    """
    read = {name: getattr(settings, name) for name in ("edges", "picture", "mask") if getattr(settings, name) is not None}
    planes = {name: read_plane(name, path) for name, path in read.items()}  # (H, W) each
    size = read_size(settings.size, next(iter(planes.values())).shape if planes else None, step)
    if not planes:
        return None, size
    edge = torch.zeros(1, 1, *size)
    if "mask" in planes:
        labels = F.interpolate(planes["mask"][None, None], size, mode="nearest-exact")
        edge = contour(labels[:, 0])  # (1, H, W) -> (1, 1, H, W)
    if "edges" in planes or "picture" in planes:
        plane = planes.get("edges", planes.get("picture"))[None, None]
        plane = F.interpolate(plane, size, mode="bilinear", antialias=True)
        edge = edge + (plane if "edges" in planes else find_edges(hed, plane))
    return edge.clamp(0, 1).repeat(1, 3, 1, 1), size


def read_plane(name, path):
    """Read a condition's file as float32 (H, W): edges in [0, 1], a picture in [-1, 1], a mask's values as numbers from 0."""
    if name == "picture":
        return torch.as_tensor(read_pair(path)[0])
    pixels = decode(path, indices=name == "mask")
    if name == "mask":  # a contour asks only where values differ
        values = pixels if pixels.ndim == 2 else pixels.astype(np.int64) @ (65536, 256, 1)
        return torch.as_tensor(np.unique(values, return_inverse=True)[1].reshape(values.shape), dtype=torch.float32)
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    return torch.as_tensor(grey / (65535 if grey.max() > 255 else 255), dtype=torch.float32)


def read_size(text, own, step):
    """Return (H, W) from "WIDTHxHEIGHT", or the condition's own, cut down to a multiple of step."""
    if text is None:
        if own is None or min(own) < step:
            raise InputError(f"--size: is needed here; give WIDTHxHEIGHT, multiples of {step}")
        return tuple(side // step * step for side in own)
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if not match or any(int(side) % step for side in match.groups()):
        raise InputError(f"--size: is {text}; give WIDTHxHEIGHT, both multiples of {step} for these networks")
    return int(match[2]), int(match[1])


def read_prompts(texts):
    """Return the prompts: the texts themselves, or the lines of the one file that they name."""
    if len(texts) != 1 or not texts[0].endswith(".txt"):
        return texts or ("",)
    try:
        lines = [line.strip() for line in Path(texts[0]).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{texts[0]}: cannot be read as text ({error}); give a file with one prompt a line") from error
    return tuple(line for line in lines if line) or ("",)


def open_model(settings):
    """Return the model, of its own or the public kind, with a ControlNet where there is a condition to see."""
    conditioned = any(getattr(settings, name) is not None for name in ("edges", "picture", "mask"))
    model, headers = EmitDiff.load(settings.model, settings.controlnet if conditioned else None, settings.prediction)
    if conditioned and not any(layer.weight.any() for (layer,) in model.controlnet.zero_convs):
        raise InputError(f"{settings.model}: has no trained ControlNet, so it would not see the condition; give --controlnet FILE")
    return model, bool(headers[0].get("ancestry"))  # a model trained here saw grey pictures alone


def save_picture(path, pixels, about):
    """Write pixels (H, W) or (H, W, 3) as PNG with the text chunk that --again reads."""
    memory, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_itxt(CHUNK, json.dumps(about))
    Image.fromarray(pixels).save(memory, "PNG", pnginfo=text)
    write_bytes(path, memory.getvalue())


def compare(path, pixels):
    """Say whether a picture that was made again is the one in the file."""
    before = np.asarray(Image.open(path)).astype(int)
    furthest = np.abs(before - pixels).max() if before.shape == pixels.shape else None
    print(f"{path}: {'the same pixels' if furthest == 0 else f'differs by up to {furthest} grey levels'}")


def check_files(settings):
    """Return {name: SHA-256} of the files read; with --again they must be those that the picture was made from."""
    digests = {name: sha256(getattr(settings, name)) for name in FILES if getattr(settings, name) is not None}
    expected = read_about(settings.again)["sha256"] if settings.again is not None else digests
    for name in sorted(expected):
        if digests.get(name) != expected[name]:
            words = f"is not the file that {settings.again} was made from; give it by {flag_of(name)}"
            raise InputError(f"{getattr(settings, name)}: {words}")
    return digests


def main():
    """Draw every prompt with every seed."""
    settings = parse(Settings, inherit=inherit)
    if settings.out.exists() and any(settings.out.glob("*.png")):
        raise InputError(f"{settings.out}: already holds pictures; choose another folder")
    digests, prompts = check_files(settings), read_prompts(settings.prompt)
    device = distributed.start(settings.device)
    hed = None if settings.hed is None else load_hed(settings.hed)[0].to(device)
    model, grey = open_model(settings)
    model.to(device).requires_grad_(False)
    hint, size = read_condition(settings, hed, model.sizes.step)
    known = {"sha256": digests, "code": code_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    count = len(prompts) * len(settings.seeds)
    print(f"{settings.out}: {count} pictures of {size[1]} x {size[0]} pixels, {settings.steps} steps, on {device}")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    sheet = [[] if hint is None else [to_bytes(2 * hint[0, 0] - 1)] for _ in prompts]
    with autocast, tqdm(total=count, unit="picture") as bar:
        for row, prompt in enumerate(prompts):
            for seed in settings.seeds:
                image = model.generate([prompt], hint, [seed], size, Sampling.read(settings), settings.negative)  # (1, 3, H, W)
                fault = find_fault(image)
                if fault:
                    words = "look at --guidance, --strength, --precision and the weights"
                    raise InputError(f"{settings.out}: the picture of seed {seed} {fault}; {words}")
                pixels = to_bytes(to_grey(image)[0, 0] if grey else image[0].permute(1, 2, 0))  # (H, W) or (H, W, 3)
                alone = replace(settings, prompt=(prompt,), seeds=(seed,), size=f"{size[1]}x{size[0]}")
                about = {"settings": {f.name: to_plain(getattr(alone, f.name)) for f in fields(alone)}} | known
                save_picture(settings.out / f"{row:04d}_{seed}.png", pixels, about)
                sheet[row].append(pixels)
                bar.update()
    if settings.again is not None:
        compare(settings.again, pixels)
    rows = [np.concatenate([np.asarray(Image.fromarray(tile).convert("RGB")) for tile in row], axis=1) for row in sheet]
    save_picture(settings.out / "sheet.png", np.concatenate(rows), {})


if __name__ == "__main__":
    errors.run(main, again="")
