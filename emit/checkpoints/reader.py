"""Read public and own files into parts, strictly: every tensor is used or named as dropped, every parameter filled."""

import json
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError, safe_open

from emit.checkpoints import formats
from emit.checkpoints.safe_pickle import read_pickle
from emit.checkpoints.tables import TABLES
from emit.errors import InputError

FORMATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
EXPECTED = "expected Stable Diffusion 1 or 2, a ControlNet or HED, as safetensors, pickle or diffusers folder"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. Its tensors are views of the mapped file: fill one module with them, or clone them.

    layout: "single", "bare" or "diffusers".  version: "sd1", "sd2", "sd" (an autoencoder: the same in both) or "emit".
    parts: {"unet", "vae", "text", "controlnet", "hed" or "hed_v11": {our name: tensor}}.  dropped: what was left out.
    header: our JSON header, {} in public files.  config: the sizes it states, or those deduced.
    prediction: "eps", "v" or "unknown" (Stable Diffusion 2 files have the same names for both).
    """

    layout: str
    version: str
    parts: dict
    dropped: list
    header: dict
    config: dict
    dtype: str
    prediction: str
    files: list


def read_file(path, ema=False):
    """Read one file into a Checkpoint. ema: take the UNet from `model_ema.*`."""
    tensors, metadata, remarks = read_tensors(path)
    return interpret(path, tensors, header_of(path, metadata), remarks, ema)


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
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file it stands for (git lfs pull fetches that)"
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04") or (head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        return "pickle"
    if all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        return "a text file"
    return "a file of unknown kind"


def header_of(path, metadata):
    """Return our JSON header out of safetensors metadata, {} where there is none."""
    try:
        header = json.loads(metadata.get("emit", "{}"))
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("config", {}), dict):
        raise InputError(f"{path}: its header is damaged; fetch or write the file again")
    return header


def interpret(path, tensors, header, remarks=(), ema=False):
    """Turn the tensors of one file into a Checkpoint."""
    parts, sizes, dropped, layout = recognise(path, tensors, ema)
    for part, own in parts.items():
        check_values(path, part, own)
    version = formats.version_of(sizes)
    config = header.get("config") or config_of(sizes, version)
    prediction = config.get("prediction", "unknown")
    return Checkpoint(layout, version, parts, [*dropped, *remarks], header, config, dtype_of(parts), prediction, [path])


def recognise(path, tensors, ema=False):
    """Sort the tensors into parts under our names; check every name and shape, but no value (meta tensors will do).

    Returns {part: {our name: tensor}}, {part: sizes}, the names dropped on purpose, and the layout.
    """
    kind = formats.foreign(tensors)
    if kind:
        raise InputError(f"{path}: {kind}; {EXPECTED}")
    found, dropped, left = formats.split(tensors)
    if left:
        beside = f" beside {', '.join(found)}" * bool(found)
        raise InputError(f"{path}: {len(left)} unknown names{beside} ({', '.join(sorted(left)[:3])}, ...); {EXPECTED}")
    if not found:
        raise InputError(f"{path}: none of the names of a known part; {EXPECTED}")
    parts, sizes = {}, {}
    for part, (naming, inner) in found.items():
        named = {name: tensors[file_name] for name, file_name in inner.items()}
        sizes[part], rows = table_of(path, part, naming, named)
        parts[part] = match(path, part, rows, naming, named)
        if part == "unet" and ema:
            parts[part] = match(path, "EMA of the UNet", rows, "original", averaged(path, rows, tensors))
            dropped = [name for name in dropped if not name.startswith(EMA)]
    if ema and "unet" not in parts:
        raise InputError(f"{path}: holds no UNet, so no EMA of one; read it without EMA")
    return parts, sizes, dropped, formats.layout_of(found, tensors)


def table_of(path, part, naming, named):
    """Deduce the sizes of a part and return them with its table."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    try:
        sizes = formats.SIZES[part](shapes, naming)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"{path}: {part}: {error.args[0]} is missing or has a strange shape; {EXPECTED}") from error
    return sizes, TABLES[part](sizes)


EMA = "model_ema.diffusion_model"


def averaged(path, rows, tensors):
    """Return the UNet's moving averages: `model_ema.` and the name below `model.` without its dots."""
    names = {row.name: EMA + row.name.replace(".", "") for row in rows}
    if not any(name in tensors for name in names.values()):
        raise InputError(f"{path}: holds no EMA (an emaonly file has it in place of the weights); read it without EMA")
    return {name: tensors[ema] for name, ema in names.items() if ema in tensors}


def match(path, part, rows, naming, named):
    """Check names and shapes against the table; return {our name: tensor}, with q, k, v joined.

    Of the autoencoder's attention in diffusers' folders linear (C, C) and 1x1 convolution (C, C, 1, 1) are both taken.
    """
    if naming == "original":
        expected = {row.name: (row.shape,) for row in rows}
    else:
        expected = {name: allowed(row) for row in rows for name in row.elsewhere}
    compare(path, part, {name: tuple(tensor.shape) for name, tensor in named.items()}, expected)
    if naming == "original":
        return {row.name: named[row.name] for row in rows}
    return {row.name: join([named[name] for name in row.elsewhere]).reshape(row.shape) for row in rows}


def allowed(row):
    """Return the shapes that a tensor may have under its names elsewhere."""
    return (row.shape_elsewhere, row.shape) if len(row.elsewhere) == 1 else (row.shape_elsewhere,)


def join(pieces):
    """Concatenate along the first side; a single piece is not copied."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def compare(path, part, found, expected):
    """Raise InputError unless {name: shape} has the names of {name: allowed shapes} and one of each one's shapes."""
    both = sorted(found.keys() & expected.keys())
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "misshapen": [f"{n} {found[n]} for {expected[n][0]}" for n in both if found[n] not in expected[n]],
    }
    told = [f"{len(names)} {fault} ({', '.join(names[:3])})" for fault, names in faults.items() if names]
    if told:
        raise InputError(f"{path}: {part} does not fit: {', '.join(told)}; expected {len(expected)} known tensors")


def check_values(path, part, tensors):
    """Raise InputError for other number formats, NaN or infinity: a sum shows them without a copy of the tensor."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FORMATS:
            raise InputError(f"{path}: {part}: {name} is of {tensor.dtype}; expected float32, float16 or bfloat16")
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise InputError(f"{path}: {part}: {name} holds NaN or infinity; take a file from before training failed")


def dtype_of(parts):
    """Name the number format, or all of them where they are mixed."""
    dtypes = {tensor.dtype for tensors in parts.values() for tensor in tensors.values()}
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def config_of(sizes, version):
    """Return the sizes of the parts as the header of our own files would state them."""
    config = {part: asdict(sizes[part]) for part in ("unet", "vae", "text") if part in sizes}
    if "controlnet" in sizes:
        own = asdict(sizes["controlnet"])
        config["unet"] = {**config.get("unet", own), "hint_channels": own["hint_channels"]}
    return {**config, "version": version, "prediction": "eps" if version == "sd1" else "unknown"}


def fill(module, tensors, path, part):
    """Give every parameter of a module (it may be on the meta device) its tensor, cast to the module's number format.

    Strict: raises InputError where a name or shape differs. Without a cast the module works on the mapped file itself,
    which stays as it is: a page that training changes becomes a private copy.
    """
    own = module.state_dict()
    expected = {name: (tuple(tensor.shape),) for name, tensor in own.items()}
    compare(path, part, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected)
    cast = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    if not any(tensor.is_meta for tensor in own.values()):
        cast = {name: tensor.to(own[name].device) for name, tensor in cast.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    return module
