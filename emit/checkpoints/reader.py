"""Read public and own files and folders, strictly: every tensor is used or named as dropped, every parameter filled."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from emit.checkpoints import configs, recognise
from emit.checkpoints.recognise import EXPECTED
from emit.checkpoints.safe_pickle import read_pickle
from emit.errors import InputError

NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FOLDERS = ("unet", "vae", "text_encoder", "controlnet")
FOREIGN_FOLDERS = {"transformer": "a Stable Diffusion 3 or Flux folder", "text_encoder_2": "an SD-XL folder"}
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "fp16.safetensors", "bin", "fp16.bin")  # full precision before fp16, then pickle
DESCENT = ("ancestry", "made_from")  # lists in our header


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. Its tensors are views of the mapped file: fill one module with them, or clone them.

    layout: "single", "bare" or "diffusers".  version: "sd1", "sd2", "sd" (an autoencoder: the same in both) or "emit".
    parts: {"unet", "vae", "text", "controlnet", "hed" or "hed_v11": {our name: tensor}}.  sizes: {part: those deduced}.
    dropped: what was left out.  header: our JSON header, {} in public files.  config: the sizes it states, or those
    deduced, and "prediction" where it is known.  ema: whether the UNet is the moving average (EMA), None without a choice.
    """

    layout: str
    version: str
    parts: dict
    sizes: dict
    dropped: list
    header: dict
    config: dict
    files: list
    ema: bool | None

    @property
    def prediction(self):
        """Return "eps", "v" or "unknown" (Stable Diffusion 2 files have the same names for both)."""
        return self.config.get("prediction", "unknown")

    @property
    def dtype(self):
        """Name the number format, or all of them where they are mixed."""
        dtypes = {tensor.dtype for tensors in self.parts.values() for tensor in tensors.values()}
        return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def read(path, ema=False, prediction=None):
    """Read a file or a diffusers folder into a Checkpoint, recognised by its content.

    ema: take the UNet from `model_ema.*` instead. prediction: "eps" or "v", given by the user for files that do not say
    it; Stable Diffusion 1 files that do not are "eps". Raises InputError, in one line, for anything that is not whole,
    and where statements of the prediction contradict each other.
    """
    path = Path(path)
    if ema and path.is_dir():
        raise InputError(f"{path}: a folder holds no EMA beside the weights; read it without EMA")
    checkpoint = read_folder(path) if path.is_dir() else interpret(path, [path], ema)
    stated = {"its header says": checkpoint.header.get("config", {}).get("prediction")}
    stated |= {"its scheduler says": configs.prediction_of(path), "--prediction is": prediction}
    stated = {source: value for source, value in stated.items() if value is not None}
    if len(set(stated.values())) > 1:
        statements = ", ".join(f"{source} {value}" for source, value in stated.items())
        raise InputError(f"{path}: {statements}; give another file, or --prediction only where the file says nothing")
    settled = next(iter(stated.values()), "eps" if checkpoint.version == "sd1" else None)
    config = {name: value for name, value in checkpoint.config.items() if name != "prediction"}
    if "unet" in config and settled:
        config["prediction"] = settled
    return replace(checkpoint, config=config)


def read_tensors(path):
    """Return {name: tensor}, the safetensors metadata ({} for a pickle) and remarks, whatever the file's name."""
    try:
        with open(path, "rb") as file:
            kind = kind_of(file.read(512))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {EXPECTED}") from error
    if kind == "pickle":
        tensors, remarks = read_pickle(path)
        return tensors, {}, remarks
    if kind != "safetensors":
        raise InputError(f"{path}: {kind}; {EXPECTED}")
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}, []  # noqa: SIM118
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: a damaged or truncated safetensors file ({error}); fetch it again") from error


def kind_of(head):
    """Tell the kind of a file from its first 512 bytes: "safetensors", "pickle", or words for an error message."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file it stands for (git lfs pull fetches that)"
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "pickle"
    readable = all(byte >= 32 or byte in b"\t\n\r" for byte in head)
    return "an empty file" if not head else "a text file" if readable else "a file of unknown kind"


def header_of(path, metadata):
    """Return our JSON header out of safetensors metadata, {} where there is none; its format and values are checked."""
    try:
        header = json.loads(metadata.get("emit", "{}"))
    except json.JSONDecodeError:
        header = None
    lists = [header.get(key, []) for key in DESCENT] if isinstance(header, dict) else [None]
    if not all(isinstance(entries, list) for entries in lists):
        raise InputError(f"{path}: its header is damaged; fetch or write the file again")
    if header and header.get("format") != configs.FORMAT:
        written = f"in format {header['format']}" if "format" in header else "before formats had numbers"
        raise InputError(f"{path}: written {written}, this version reads format {configs.FORMAT}; write the file anew")
    configs.check(path, header.get("config", {}))
    return header


def join_headers(headers):
    """Return the first header that is not empty, with what all of them say of their descent, each entry once."""
    joined = dict(next(filter(None, headers), {}))
    for key in DESCENT:
        entries = [entry for header in headers for entry in header.get(key, [])]
        if entries:
            joined[key] = [entry for place, entry in enumerate(entries) if entry not in entries[:place]]
    return joined


def read_folder(path):
    """Join the parts of a diffusers folder (unet/, vae/, text_encoder/, controlnet/, or one of them) into one Checkpoint."""
    for name, kind in FOREIGN_FOLDERS.items():
        if (path / name).is_dir():
            raise InputError(f"{path}: {kind}; {EXPECTED}")
    whole = [read_part(path / name) for name in FOLDERS if (path / name).is_dir()] or [read_part(path)]
    header = join_headers([one.header for one in whole])
    parts, sizes, dropped, files, config = {}, {}, [], [], {}
    for one in whole:
        parts, sizes, dropped, files = parts | one.parts, sizes | one.sizes, dropped + one.dropped, files + one.files
        for part in one.parts.keys() & recognise.KEYS.keys():  # each part's sizes are those of its own folder
            key = recognise.KEYS[part]
            hint = {"hint_channels": one.config[key]["hint_channels"]} if part == "controlnet" else {}
            config[key] = {**config.get(key, one.config[key]), **hint}
    version = recognise.version_of(sizes)
    config = {"version": version, **header.get("config", {}), **config}
    return Checkpoint(whole[0].layout, version, parts, sizes, dropped, header, config, files, None)


def read_part(folder):
    """Read one part: one file, or the shards that an index lists; what the weights do not show is in its config.json."""
    index = next(iter(sorted(folder.glob("*.index*.json"))), None)
    files, listed = shards(index) if index else ([weight_file(folder)], None)
    checkpoint = interpret(folder, files, listed=listed)
    if checkpoint.header or not (folder / "config.json").is_file():
        return checkpoint
    return replace(checkpoint, config=configs.refine(folder / "config.json", checkpoint.config))


def weight_file(folder):
    """Return the weight file of a folder: full precision before fp16, safetensors before pickle."""
    for ending in ENDINGS:
        for stem in STEMS:
            if (folder / f"{stem}.{ending}").is_file():
                return folder / f"{stem}.{ending}"
    raise InputError(f"{folder}: a folder without weights; {EXPECTED}")


def shards(index):
    """Return the files that an index lists, and the names in it."""
    places = configs.read_json(index).get("weight_map")
    places = places if isinstance(places, dict) else {}
    files = [index.parent / Path(str(name)).name for name in sorted(set(places.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        names = ", ".join(missing[:3])
        raise InputError(f"{index}: {len(missing)} of {len(files)} shards missing ({names}); fetch the whole folder")
    return files, set(places)


def interpret(path, files, ema=False, listed=None):
    """Read the files of one model or part into a Checkpoint. listed: the names that shards must have together."""
    tensors, headers, remarks = {}, [], []
    for file in files:
        more, metadata, said = read_tensors(file)
        tensors, headers, remarks = tensors | more, [*headers, header_of(file, metadata)], remarks + said
    if listed is not None and listed != set(tensors):
        different = sorted(listed ^ set(tensors))
        raise InputError(f"{path}: {len(different)} tensors not as listed, such as {different[0]}; fetch it again")
    parts, sizes, dropped, layout = recognise.sort(path, tensors, ema)
    for part, own in parts.items():
        check_values(path, part, own)
    version, header = recognise.version_of(sizes), join_headers(headers)
    config = {"version": version, **recognise.config_of(sizes), **header.get("config", {})}
    choice = "unet" in parts and any(name.startswith(recognise.EMA) for name in tensors)
    return Checkpoint(layout, version, parts, sizes, dropped + remarks, header, config, files, ema if choice else None)


def check_values(path, part, tensors):
    """Raise InputError for other number formats, NaN or infinity: a sum shows them without a copy of the tensor."""
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMBERS:
            raise InputError(f"{path}: {part}: {name} is of {tensor.dtype}; expected float32, float16 or bfloat16")
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise InputError(f"{path}: {part}: {name} holds NaN or infinity; take a file from before training failed")


def fill(module, tensors, path, part):
    """Give every parameter of a module (it may be on the meta device) its tensor, cast to the module's number format.

    Strict: raises InputError where a name or shape differs. Without a cast the module works on the mapped file itself,
    which stays as it is: a page that training changes becomes a private copy.
    """
    own = module.state_dict()
    recognise.compare(path, part, tensors, own)
    cast = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    if not any(tensor.is_meta for tensor in own.values()):
        cast = {name: tensor.to(own[name].device) for name, tensor in cast.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    return module
