"""Write parts to one safetensors file in the original layout, or to a diffusers folder. Every write is atomic."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from emit.checkpoints import configs
from emit.checkpoints.names import to_diffusers
from emit.checkpoints.reader import FOLDERS, check_values
from emit.checkpoints.recognise import NAMES
from emit.checkpoints.sizes import KEYS, stated_sizes
from emit.errors import InputError
from emit.files import write_atomic, write_json, write_text


def write_single(path: str | Path, parts: dict[str, dict[str, Tensor]], header: dict) -> None:
    """Write parts under their original names, with the header as JSON in the safetensors metadata ("emit").

    The text encoder has Hugging Face's names, as in Stable Diffusion 1, unless its GELU is exact, as in 2.
    Raises InputError where a part is not finite, or where a UNet or ControlNet comes without its prediction in
    header["config"]: then nothing is written.
    """
    config, tensors = header.get("config", {}), {}
    check(path, parts, config)
    for part, own in parts.items():
        naming = "original"
        if part == "text" and config["text"]["quick_gelu"]:
            naming, own = "diffusers", to_diffusers(part, stated_sizes(part, config["text"]), own)
        tensors |= {NAMES[part, naming][0] + name: tensor for name, tensor in own.items()}
    save(Path(path), tensors, header)


def write_diffusers(folder: str | Path, parts: dict[str, dict[str, Tensor]], config: dict, header: dict | None = None) -> None:
    """Write parts to a diffusers folder, each with its config.json.

    config: the sizes, as in the header of our own files. Heads, groups, scale and prediction come from there. A folder
    with UNet, autoencoder and text encoder is a whole StableDiffusionPipeline, with scheduler and tokenizer. Raises
    InputError as write_single does, and for HED.
    """
    folder, header = Path(folder), {**(header or {}), "config": config}
    if not parts.keys() <= FOLDERS.keys():
        raise InputError(f"{folder}: diffusers has no place for {', '.join(parts)}; write a single file")
    check(folder, parts, config)
    for part, own in parts.items():
        sizes = stated_sizes(part, config[KEYS[part]])
        stem, prefix = ("model", "text_model.") if part == "text" else ("diffusion_pytorch_model", "")
        tensors = {prefix + name: tensor for name, tensor in to_diffusers(part, sizes, own).items()}
        save(folder / FOLDERS[part] / f"{stem}.safetensors", tensors, header, format="pt")  # transformers asks for it
        write_json(folder / FOLDERS[part] / "config.json", configs.describe(part, sizes), indent=2)
    if {"unet", "vae", "text"} <= parts.keys():
        write_json(folder / "scheduler" / "scheduler_config.json", configs.scheduler(config["prediction"]), indent=2)
        for name, content in configs.tokenizer_files(config["text"]["pad"]).items():
            write_text(folder / "tokenizer" / name, content)
        write_json(folder / "model_index.json", configs.INDEX, indent=2)


def check(path, parts, config):
    """Raise InputError unless every part is finite and the UNet's prediction known."""
    for part, tensors in parts.items():
        check_values(path, part, tensors)
    if {"unet", "controlnet"} & parts.keys() and config.get("prediction") not in configs.PREDICTIONS:
        raise InputError(f"{path}: it is not known what the UNet predicts; give it: --prediction eps or v")


def save(path: Path, tensors: dict[str, Tensor], header: dict, **metadata: str) -> None:
    """Write one safetensors file with our header, whose format is stamped here.

    metadata: further entries. With none the file's bytes depend on its content alone: safetensors shuffles several.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata |= {"emit": json.dumps({**header, "format": configs.FORMAT})}

    def write(temporary):
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # it wraps the system's errors
            raise OSError(str(error)) from error
        temporary.chmod(0o644)  # safetensors leaves it to its owner alone

    write_atomic(path, write)
