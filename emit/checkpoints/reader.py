"""Read public and own files and folders, strictly: every tensor is used or named as dropped, every parameter filled."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import shorten

import torch
from safetensors import safe_open
from torch import Tensor, nn

from emit.checkpoints import configs, recognise
from emit.checkpoints.keras import read_keras
from emit.checkpoints.names import from_diffusers
from emit.checkpoints.safe_pickle import read_pickle
from emit.checkpoints.sizes import KEYS, check_sizes, network, public_sizes, stated_sizes, version_of
from emit.errors import InputError
from emit.files import check_file, find_misfit
from emit.ledger import ANCESTRY

NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FOLDERS = {"unet": "unet", "vae": "vae", "text": "text_encoder", "controlnet": "controlnet"}
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "fp16.safetensors", "bin", "fp16.bin")  # full precision before fp16, then pickle


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder holds. Its tensors are views of the mapped file: fill one module with them, or clone them.

    parts: {"unet", "vae", "text", "controlnet", "hed" or "hed_v11": {our name: tensor}}.  sizes: {part: its sizes}.
    dropped: what was left out.  header: our JSON header, {} in public files.  prediction: "eps", "v" or None, unknown.
    ema: whether the UNet is the moving average (EMA), None where the file leaves no choice.
    """

    parts: dict
    sizes: dict
    dropped: list
    header: dict
    ema: bool | None
    prediction: str | None

    @property
    def config(self) -> dict:
        """Return sizes and prediction as the header of our own files states them; the ControlNet's are the UNet's."""
        config = {key: asdict(self.sizes[part]) for part, key in KEYS.items() if part in self.sizes}
        return config | ({"prediction": self.prediction} if self.prediction else {})


def read(path: str | Path, ema: bool = False, prediction: str | None = None) -> Checkpoint:
    """Read a file or a diffusers folder (unet/, vae/, ..., or one of them), recognised by its content.

    ema: take the UNet from `model_ema.*` instead. prediction: "eps" or "v", given by the user for files that do not say
    it; Stable Diffusion 1 files that do not are "eps". Raises InputError, in one line, for anything that is not whole,
    and where statements of the prediction contradict each other.
    """
    path = Path(path)
    parts, sizes, dropped, headers, average = {}, {}, [], [], None
    for place in [path / name for name in FOLDERS.values() if (path / name).is_dir()] or [path]:
        file = weight_file(place) if place.is_dir() else place
        tensors, header = read_tensors(file)
        named, left = recognise.sort(file, tensors, ema)
        beside = configs.open_config(place / "config.json") if place.is_dir() else {}
        for part, (naming, own) in named.items():
            check_values(file, part, own)
            sizes[part], parts[part] = match(file, part, naming, own, header.get("config", {}), beside)
        if "unet" in named and any(name.startswith(recognise.EMA) for name in tensors):
            average = ema
        dropped, headers = dropped + left, [*headers, header]
    if {"unet", "controlnet"} <= sizes.keys():
        sizes["unet"] = replace(sizes["unet"], hint_channels=sizes["controlnet"].hint_channels)
    header, ancestry = next(filter(None, headers), {}), [entry for one in headers for entry in one.get("ancestry", [])]
    if ancestry:  # of every part, each entry once
        header = header | {"ancestry": [entry for n, entry in enumerate(ancestry) if entry not in ancestry[:n]]}
    prediction = settle_prediction(path, header, version_of(sizes), prediction)
    return Checkpoint(parts, sizes, dropped, header, average, prediction)


def weight_file(folder):
    """Return the weight file of a folder: full precision before fp16, safetensors before pickle."""
    names = [folder / f"{stem}.{ending}" for ending in ENDINGS for stem in STEMS]
    file = next(filter(Path.is_file, names), None)
    if file is None:
        raise InputError(f"{folder}: a folder without weights; {recognise.EXPECTED}")
    return file


def read_tensors(path):
    """Return {name: tensor} and our header, {} where there is none, whatever the file's name."""
    check_file(path)
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        if head.startswith(b"version https://git-lfs"):
            raise ValueError("a Git-LFS pointer: git lfs pull fetches the file that it stands for")
        if head.startswith(b"\x89HDF"):
            return read_keras(path), {}
        if head[8:9] != b"{":
            return read_pickle(path), {}
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            header = json.loads((opened.metadata() or {}).get("emit", "{}"))
    except Exception as error:  # what a damaged file raises is anything
        reason = getattr(error, "strerror", None) or shorten(str(error), 120) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); {recognise.EXPECTED}") from error
    kinds = {"config": dict, "ancestry": ANCESTRY}
    fault = find_misfit(header, dict) or find_misfit(header, {key: kinds[key] for key in kinds if key in header})
    if fault:
        raise InputError(f"{path}: its header is damaged ({fault}); fetch or write the file again")
    if header and header.get("format") != configs.FORMAT:
        written = f"in format {header['format']}" if "format" in header else "before formats had numbers"
        raise InputError(f"{path}: written {written}, this version reads format {configs.FORMAT}; write the file anew")
    return tensors, header


def check_values(path, part, tensors):
    """Raise InputError for other number formats, NaN or infinity: a sum shows them without a copy of the tensor."""
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMBERS:
            raise InputError(f"{path}: {part}: {name} is of {tensor.dtype}; expected float32, float16 or bfloat16")
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise InputError(f"{path}: {part}: {name} holds NaN or infinity; take a file from before training failed")


def match(path, part, naming, tensors, stated=(), beside=()):
    """Return a part's sizes and {our name: tensor}. stated: the header's config; beside: config.json; else it is public.

    Raises InputError unless the network of these sizes has these tensors, by name and shape.
    """
    try:
        if KEYS.get(part) in stated:
            sizes = stated_sizes(part, stated[KEYS[part]])
        else:
            sizes = check_sizes(configs.read_config(part, beside)) if beside else public_sizes(part, tensors)
        if part == "vae" and not sizes.scale:
            raise ValueError(f"scale is {sizes.scale}")
        tensors = from_diffusers(part, sizes, tensors) if naming == "diffusers" else tensors
        empty = network(part, sizes)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else shorten(str(error), 200)
        raise InputError(f"{path}: {part} has no valid sizes: {reason}; {recognise.EXPECTED}") from error
    load_strictly(empty, tensors, path, part)
    return sizes, {name: tensors[name] for name in empty.state_dict()}


def load_strictly(module, tensors, path, part):
    """Let a module's parameters be these tensors. Raises InputError where a name or shape differs."""
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path}: {part} does not fit: {shorten(str(error), 300)}; {recognise.EXPECTED}") from error


def settle_prediction(path, header, version, prediction):
    """Return "eps" or "v"; None where nothing states it (Stable Diffusion 2 files have the same names for both)."""
    file = path / "scheduler" / "scheduler_config.json"
    config = configs.open_config(file)
    if config.get("rescale_betas_zero_snr"):
        raise InputError(f"{file}: asks for a schedule of zero terminal SNR, which no program here reads; take another model")
    scheduler = config.get("prediction_type", "epsilon") if config else None
    scheduler = {theirs: ours for ours, theirs in configs.PREDICTIONS.items()}.get(str(scheduler), scheduler)
    stated = {"its header says": header.get("config", {}).get("prediction")}
    stated |= {"its scheduler says": scheduler, "--prediction is": prediction}
    stated = {source: str(value) for source, value in stated.items() if value is not None}
    if len(set(stated.values())) > 1 or not configs.PREDICTIONS.keys() >= set(stated.values()):
        statements = ", ".join(f"{source} {value}" for source, value in stated.items())
        raise InputError(f"{path}: {statements}; give a file that says eps or v, and --prediction only where none does")
    return next(iter(stated.values()), "eps" if version == "sd1" else None)


def fill(module: nn.Module, tensors: dict[str, Tensor], path: str | Path, part: str) -> nn.Module:
    """Give every parameter of a module (it may be on the meta device) its tensor, cast to the module's number format.

    Strict: raises InputError where a name or shape differs. Without a cast the module works on the mapped file itself,
    which stays as it is: a page that training changes becomes a private copy.
    """
    own = module.state_dict()
    load_strictly(module, {name: tensor.to(own.get(name, tensor).dtype) for name, tensor in tensors.items()}, path, part)
    return module
