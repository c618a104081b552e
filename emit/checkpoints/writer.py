"""Write parts to one safetensors file in the original layout, or to a diffusers folder. Every write is atomic."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from emit.checkpoints import configs
from emit.checkpoints.names import to_diffusers
from emit.checkpoints.reader import check_values
from emit.checkpoints.recognise import KEYS, SIZES, match
from emit.errors import InputError
from emit.files import write_atomic, write_json, write_text

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "controlnet": "control_model."}
TEXT = {"sd1": "cond_stage_model.transformer.text_model.", "sd2": "cond_stage_model.model."}
FOLDERS = {  # part: folder, file, class in diffusers or transformers
    "unet": ("unet", "diffusion_pytorch_model.safetensors", ["diffusers", "UNet2DConditionModel"]),
    "vae": ("vae", "diffusion_pytorch_model.safetensors", ["diffusers", "AutoencoderKL"]),
    "text": ("text_encoder", "model.safetensors", ["transformers", "CLIPTextModel"]),
    "controlnet": ("controlnet", "diffusion_pytorch_model.safetensors", None),
}
INDEX = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
INDEX |= {"tokenizer": ["transformers", "CLIPTokenizer"], "safety_checker": [None, None]}
INDEX |= {"feature_extractor": [None, None], "requires_safety_checker": False}


def write_single(path, parts, header):
    """Write parts under their original names, with the header as JSON in the safetensors metadata ("emit").

    The text encoder has Hugging Face's names in Stable Diffusion 1 files and open_clip's in 2: header["config"]["version"]
    says which, else its width. Raises InputError where a part is not whole or not finite, or where a UNet or ControlNet
    comes without its prediction in header["config"]: then nothing is written.
    """
    sizes, config, tensors = checked(path, parts, header.get("config", {})), header.get("config", {}), {}
    for part, own in parts.items():
        prefix = PREFIXES.get(part, "")
        if part == "text":
            version = config.get("version") if config.get("version") in TEXT else None
            version = version or ("sd2" if sizes["text"].width == 1024 else "sd1")
            own, prefix = own if version == "sd2" else to_diffusers(part, sizes[part], own), TEXT[version]
        tensors |= {prefix + name: tensor for name, tensor in own.items()}
    save(Path(path), tensors, header)


def write_diffusers(folder, parts, config, header=None):
    """Write parts to a diffusers folder, each with its config.json; return the parts it has no place for.

    config: the sizes, as in the header of our own files. Heads, groups, scale and prediction come from there. A folder
    with UNet, autoencoder and text encoder is a whole StableDiffusionPipeline, with scheduler and tokenizer.
    """
    folder, header, places = Path(folder), {**(header or {}), "config": config}, FOLDERS.keys() & parts.keys()
    if not places:
        raise InputError(f"{folder}: diffusers has no place for {', '.join(parts)}; write a single file")
    for part in places:
        if config.get(KEYS[part], {"channel_mult": (None,)}).get("channel_mult", (1,))[0] != 1:
            raise InputError(f"{folder}: {part} has no sizes that diffusers can express; write a single file")
    sizes = checked(folder, {part: parts[part] for part in FOLDERS if part in places}, config)
    for part, (name, file, _) in FOLDERS.items():
        if part in places:
            tensors, prefix = to_diffusers(part, sizes[part], parts[part]), "text_model." * (part == "text")
            tensors = {prefix + key: tensor for key, tensor in tensors.items()}
            save(folder / name / file, tensors, header, format="pt")  # transformers asks for it
            write_json(folder / name / "config.json", configs.describe(part, config[KEYS[part]]), indent=2)
    if {"unet", "vae", "text"} <= places:
        write_json(folder / "scheduler" / "scheduler_config.json", configs.scheduler(config["prediction"]), indent=2)
        for name, content in configs.tokenizer_files(config["text"]["pad"]).items():
            write_text(folder / "tokenizer" / name, content)
        write_json(folder / "model_index.json", INDEX | {name: kind for name, _, kind in FOLDERS.values() if kind}, indent=2)
    return [part for part in parts if part not in places]


def checked(path, parts, config):
    """Return {part: sizes} after checking that every part is whole and finite and the UNet's prediction known."""
    sizes = {}
    for part, tensors in parts.items():
        if part not in SIZES:
            raise InputError(f"{path}: no part is called {part}; expected {', '.join(SIZES)}")
        sizes[part], _ = match(path, part, "original", tensors)
        check_values(path, part, tensors)
    if {"unet", "controlnet"} & parts.keys() and config.get("prediction") not in configs.PREDICTIONS:
        raise InputError(f"{path}: it is not known what the UNet predicts; give it: --prediction eps or v")
    return sizes


def save(path, tensors, header, **metadata):
    """Write one safetensors file with our header, whose format is stamped here.

    metadata: further entries. With none the file's bytes depend on its content alone: safetensors shuffles several.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata |= {"emit": json.dumps({**header, "format": configs.FORMAT})}

    def write(temporary):
        try:
            save_file(tensors, temporary, metadata)
            temporary.chmod(0o644)  # safetensors leaves it to its owner alone
        except SafetensorError as error:  # it wraps the system's errors
            if "header too large" in str(error):
                size = f"{len(metadata['emit']) / 1e6:.0f} MB"
                raise InputError(f"{path}: a safetensors header holds at most 100 MB, not {size}; shorten it") from error
            raise OSError(str(error)) from error

    write_atomic(path, write)
