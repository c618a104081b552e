"""Pictures from a prompt and, if given, an edge: no data set, no fold.

    python -m emit.sample --model v1-5-pruned.safetensors --like sd15 --prompt "a breast ultrasound" --out pictures
    python -m emit.sample --model MODEL --controlnet CONTROLNET --hed HED --picture IMAGE --prompt "..." --out pictures
    python -m emit.sample --again pictures/0000_0.png --out again

Writes a PNG for each prompt and seed, and sheet.png: a row per prompt, the condition and the pictures beside it; with
--attention also where the UNet looked for each word. A PNG carries its settings and the SHA-256 of every file that was
read, so that it can be made again, bit for bit on the same machine with the same threads. Each picture depends on its
prompt and its seed alone.
"""

import io
import json
import re
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch.nn import functional as F
from tqdm import tqdm

from emit import errors
from emit.attention import find_words, save_maps, watch, word_maps
from emit.data.edges import contour
from emit.data.geometry import resize
from emit.data.images import decode, is_coloured, read_pair, to_levels
from emit.errors import InputError
from emit.files import check_file, parse_json, sha256, write_atomic, write_bytes
from emit.generated import find_fault, to_bytes
from emit.model import EmitDiff, Sampling, find_edges, hed_side, load_hed, to_grey
from emit.training import distributed
from emit.training.settings import SamplingSettings, code_version, flag_of, parse, setting, show, to_plain

ABOUT = {"settings": dict, "sha256": dict[str, str]}
CHUNK = "emit.sample"  # name of the PNG's text chunk
LIKE = {  # values that --like stands for: those of the model's own folder and of diffusers' pipelines
    "sd15": {"method": "plms", "steps": 50, "spacing": "leading", "guidance": 7.5, "guided": "text", "size": "512x512"}
}
CONDITIONS = ("edges", "picture", "mask")
FILES = ("model", "controlnet", "hed", *CONDITIONS)


@dataclass(frozen=True, kw_only=True)
class Settings(SamplingSettings):
    """Pictures from a prompt, and from an edge map, a picture or a mask if given."""

    model: Path = setting(source="[choice] yours", help="a public file or folder, or model.safetensors of stage 1")
    controlnet: Path | None = setting(None, "[choice] the model's own", help="a ControlNet, if the model file has none")
    hed: Path | None = setting(None, "[choice] only for --picture", help="HED weights, which find a picture's edges")
    out: Path = setting(source="[choice] your folder", help="new folder for the pictures")
    prompt: tuple[str, ...] = setting((), "[choice] the empty prompt", help="one text or more", nargs="+")
    edges: Path | None = setting(None, "[choice] none", help="condition: an edge map, white on black")
    picture: Path | None = setting(None, "[choice] none", help="condition: the edges that HED finds in a picture")
    mask: Path | None = setting(None, "[choice] none", help="condition: a mask's outline; with --picture both, as stage 2 trains")
    prediction: Literal["eps", "v"] | None = setting(None, "[choice] as the file says", help="of a model that does not say it")
    seeds: tuple[int, ...] = setting(
        (0,), "[choice] any numbers", help="one picture of each prompt for each", low=0, high=2**64 - 1
    )
    size: str | None = setting(None, "[choice] the condition's", help="WIDTHxHEIGHT in pixels")
    attention: bool = setting(False, "[choice] an eighth more time", help="also draw where the UNet looked for each word")
    like: Literal["sd15"] | None = setting(None, "[choice] none", help="the values of Stable Diffusion 1.5's folder")
    again: Path | None = setting(None, "[choice] none", help="a PNG of this program: make it once more")

    def __post_init__(self):
        super().__post_init__()
        if self.edges is not None and (self.picture is not None or self.mask is not None):
            raise InputError("--edges: is a whole condition; leave out --picture and --mask")
        if self.picture is not None and self.hed is None:
            raise InputError("--picture: its edges are found by HED; give --hed FILE, or --edges")
        condition = self.edges or self.picture or self.mask
        if self.again is None and ((self.hed and not self.picture) or (self.controlnet and not condition)):
            raise InputError("--controlnet or --hed: would do nothing; the one needs a condition, the other --picture")
        if self.attention and not all(map(find_words, self.prompt or ("",))):
            raise InputError("--attention: is a map for each word, and a prompt has none; give --prompt")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds: is {show(self.seeds)}; give different numbers")


def inherit(given):
    """Return, for `parse`, the values that --again or --like stand for, and where they come from."""
    if given.get("again") is None:
        return {name: value for name, value in LIKE.get(given.get("like"), {}).items() if name not in given}, "--like"
    stated = read_about(given["again"])["settings"]
    paths = {name: Path(str(value)) for name, value in stated.items() if name in FILES and value is not None}
    lists = {name: tuple(value) for name, value in stated.items() if isinstance(value, list)}
    free = {"out", "device", "again", "like", "attention", *(name for name in FILES if name in given)}  # moved files are compared
    return {name: value for name, value in (stated | paths | lists).items() if name not in free}, given["again"]


def read_about(path):
    """Return what a PNG of this program says about itself: settings, sha256 of the files read, versions."""
    check_file(path)
    try:
        with Image.open(path) as file:
            return parse_json(file.text[CHUNK], ABOUT, path, "give a picture of emit.sample")
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is no picture of emit.sample; give one with its text chunk") from error


def read_condition(settings, step):
    """Return the hint (1, 3, H, W) in [0, 1], or None without a condition, and its size (H, W), multiples of `step`."""
    planes = {name: read_plane(name, getattr(settings, name)) for name in CONDITIONS if getattr(settings, name) is not None}
    shapes = {plane.shape for plane in planes.values()}  # (H, W) each
    if len(shapes) > 1:
        raise InputError(f"{settings.mask}: its size is not that of {settings.picture}; redraw it on the picture's grid")
    size = read_size(settings.size, *shapes or [None], step)
    if not planes:
        return None, size
    edge, hint = planes.get("edges"), torch.zeros(1, 1, *size)
    if "picture" in planes:
        hed, header = load_hed(settings.hed)
        edge = find_edges(hed, planes["picture"][None, None], hed_side(header, max(size)))[0, 0]
    if edge is not None:
        hint = resize(edge[None, None], size)  # stretched
    if "mask" in planes:
        labels = F.interpolate(planes["mask"][None, None], size, mode="nearest-exact")
        hint = hint + contour(labels[:, 0])  # (1, H, W) -> (1, 1, H, W)
    if hint.max() < 0.05:
        raise InputError(f"{next(getattr(settings, name) for name in planes)}: is black as a condition; give white (255) on black")
    return hint.clamp(0, 1).repeat(1, 3, 1, 1), size


def read_plane(name, path):
    """Read a condition's file as float32 (H, W): edges in [0, 1], a picture as training images are, a mask's values from 0."""
    if name == "picture":
        return torch.as_tensor(read_pair(path)[0])
    pixels = decode(path, indices=name == "mask")
    if name == "mask":  # a contour asks only where values differ
        values = pixels.astype(np.int64) @ (65536, 256, 1) if is_coloured(pixels) else to_levels(path, pixels, {})
        return torch.as_tensor(np.unique(values, return_inverse=True)[1].reshape(values.shape), dtype=torch.float32)
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    return torch.as_tensor(grey / (65535 if grey.max() > 255 else 255), dtype=torch.float32)


def read_size(text, own, step):
    """Return (H, W) from "WIDTHxHEIGHT", or the condition's own, cut down to a multiple of step."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", text or "")
    if text is None and own is not None and min(own) >= step:
        return tuple(side // step * step for side in own)
    if not match or any(int(side) % step for side in match.groups()):
        given = "is needed here" if text is None else f"is {text}"
        raise InputError(f"--size: {given}; give WIDTHxHEIGHT, both multiples of {step} for these networks")
    return int(match[2]), int(match[1])


def open_model(settings):
    """Return the model, with a trained ControlNet where there is a condition to see, and whether its pictures are grey."""
    model, headers = EmitDiff.load(settings.model, settings.controlnet, settings.prediction)
    conditioned = any(getattr(settings, name) is not None for name in CONDITIONS)
    if conditioned and not any(layer.weight.any() for (layer,) in model.controlnet.zero_convs):
        file = settings.controlnet or settings.model
        raise InputError(f"{file}: has no trained ControlNet, so it would not see the condition; give --controlnet FILE")
    return model, bool(headers[0].get("ancestry"))  # a model trained here saw grey pictures alone


def save_picture(path, pixels, about):
    """Write pixels (H, W) or (H, W, 3) as PNG with the text chunk that --again reads."""
    memory, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_itxt(CHUNK, json.dumps(about))
    Image.fromarray(pixels).save(memory, "PNG", pnginfo=text)
    write_bytes(path, memory.getvalue())


def save_sheet(path, rows):
    """Write all pictures as one: a row for each prompt, its condition first, white lines between them."""
    height, width = rows[0][0].shape[:2]
    sheet = Image.new("RGB", (len(rows[0]) * (width + 2) - 2, len(rows) * (height + 2) - 2), "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            sheet.paste(Image.fromarray(pixels), (x * (width + 2), y * (height + 2)))
    write_atomic(path, lambda temporary: sheet.save(temporary, "PNG"))


def check_files(settings):
    """Return {name: SHA-256} of the files read; with --again they must be those that the picture was made from."""
    digests = {name: sha256(getattr(settings, name)) for name in FILES if getattr(settings, name) is not None}
    if settings.again is None:
        return digests
    for name, digest in sorted(read_about(settings.again)["sha256"].items()):
        if digests.get(name) != digest:
            words = f"is not the file that {settings.again} was made from; give it by {flag_of(name)}"
            raise InputError(f"{getattr(settings, name)}: {words}")
    return digests


def main():
    """Draw every prompt with every seed."""
    settings = parse(Settings, inherit=inherit)
    if settings.out.exists() and (not settings.out.is_dir() or any(settings.out.glob("*.png"))):
        raise InputError(f"{settings.out}: already holds pictures, or is one; choose another folder")
    digests, prompts = check_files(settings), settings.prompt or ("",)
    device = distributed.start(settings.device)
    model, grey = open_model(settings)
    model.to(device).requires_grad_(False)
    hint, size = read_condition(settings, model.sizes.step)
    known = {"sha256": digests, "code": code_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    count = len(prompts) * len(settings.seeds)
    print(
        f"{settings.out}: {count} picture{'s' * (count > 1)} of {size[1]} x {size[0]} pixels, {settings.steps} steps, on {device}"
    )
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    sheet = [[] if hint is None else [to_bytes(2 * hint[0, 0] - 1)] for _ in prompts]
    with autocast, tqdm(total=count, unit="picture") as bar:
        for row, prompt in enumerate(prompts):
            for seed in settings.seeds:
                watching = watch(model.unet, model.contexts([prompt])) if settings.attention else nullcontext()
                with watching as looked:
                    image = model.generate([prompt], hint, [seed], size, Sampling.read(settings), settings.negative)  # (1, 3, H, W)
                fault = find_fault(image)
                if fault:
                    words = "look at --guidance, --strength, --precision and the weights"
                    raise InputError(f"{settings.out}: the picture of seed {seed} {fault}; {words}")
                pixels = to_bytes(to_grey(image)[0, 0] if grey else image[0].permute(1, 2, 0))  # (H, W) or (H, W, 3)
                alone = replace(settings, prompt=(prompt,), seeds=(seed,), size=f"{size[1]}x{size[0]}", like=None, again=None)
                about = {"settings": {f.name: to_plain(getattr(alone, f.name)) for f in fields(alone)}} | known
                save_picture(settings.out / f"{row:04d}_{seed}.png", pixels, about)
                if settings.attention:
                    path = settings.out / f"{row:04d}_{seed}_attention.png"
                    save_maps(path, to_grey(image)[0, 0].cpu(), word_maps(looked, prompt, size))
                sheet[row].append(pixels)
                bar.update()
    if settings.again is not None:
        furthest = np.abs(np.asarray(Image.open(settings.again)).astype(int) - pixels).max()
        print(f"{settings.again}: {f'differs by up to {furthest} grey levels' if furthest else 'the same pixels'}")
    save_sheet(settings.out / "sheet.png", sheet)


if __name__ == "__main__":
    errors.run(main, again="")
