"""Read a diffusers folder: unet/, vae/, text_encoder/, controlnet/, or one of them, in one file each or in shards."""

from dataclasses import replace
from pathlib import Path

from emit.checkpoints import configs
from emit.checkpoints.reader import EXPECTED, dtype_of, header_of, interpret, read_file, read_tensors
from emit.errors import InputError

FOLDERS = ("unet", "vae", "text_encoder", "controlnet")
FOREIGN = {"transformer": "a Stable Diffusion 3 or Flux folder", "text_encoder_2": "an SD-XL folder"}
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "fp16.safetensors", "bin", "fp16.bin")


def read(path, ema=False):
    """Read a file or a diffusers folder into a Checkpoint, recognised by its content.

    ema: take the UNet from `model_ema.*` instead. Raises InputError, in one line, for anything that is not whole.
    """
    path = Path(path)
    if not path.is_dir():
        return read_file(path, ema)
    if ema:
        raise InputError(f"{path}: a folder holds no EMA beside the weights; read it without EMA")
    return read_folder(path)


def read_folder(path):
    """Join the parts of a folder into one Checkpoint."""
    for name, kind in FOREIGN.items():
        if (path / name).is_dir():
            raise InputError(f"{path}: {kind}; {EXPECTED}")
    found = [read_part(path / name) for name in FOLDERS if (path / name).is_dir()] or [read_part(path)]
    parts = {name: tensors for one in found for name, tensors in one.parts.items()}
    header = join_headers([one.header for one in found])
    versions = {one.version for one in found} - {"sd"} or {"sd"}
    version = versions.pop() if len(versions) == 1 else "emit"
    config = header.get("config") or configs.merge([one.config for one in found])
    prediction = configs.prediction_of(path) or ("eps" if version == "sd1" else config.get("prediction", "unknown"))
    return replace(
        found[0],
        version=version,
        parts=parts,
        dropped=[name for one in found for name in one.dropped],
        header=header,
        config={**config, "version": config["version"] if header else version, "prediction": prediction},
        dtype=dtype_of(parts),
        prediction=prediction,
        files=[file for one in found for file in one.files],
    )


def read_part(folder):
    """Read one part: one file, or the shards that an index lists."""
    indexes = sorted(folder.glob("*.index*.json"))
    files, listed = shards(indexes[0]) if indexes else ([weight_file(folder)], None)
    tensors, headers, remarks = {}, [], []
    for file in files:
        more, metadata, said = read_tensors(file)
        tensors, remarks = {**tensors, **more}, remarks + said
        headers.append(header_of(file, metadata))
    header = join_headers(headers)
    if listed is not None and listed != set(tensors):
        names = sorted(listed ^ set(tensors))
        raise InputError(f"{indexes[0]}: {len(names)} tensors not as listed, such as {names[0]}; fetch it again")
    checkpoint = interpret(folder, tensors, header, remarks)
    config = checkpoint.config if header else configs.refine(folder / "config.json", checkpoint.config)
    return replace(checkpoint, config=config, files=files)


def join_headers(headers):
    """Return the first header that is not empty, with what all of them say of their descent, each entry once."""
    joined = dict(next(filter(None, headers), {}))
    for key in ("ancestry", "made_from"):
        entries = [entry for header in headers for entry in header.get(key, [])]
        if entries:
            joined[key] = [entry for place, entry in enumerate(entries) if entry not in entries[:place]]
    return joined


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
        told = f"{len(missing)} of {len(files)} shards missing ({', '.join(missing[:3])})"
        raise InputError(f"{index}: {told}; fetch the whole folder")
    return files, set(places)
