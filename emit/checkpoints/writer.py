"""Write parts to one safetensors file in the original layout, or to a diffusers folder. Every write is atomic."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from emit.checkpoints import configs, formats
from emit.checkpoints.reader import check_values, match, table_of
from emit.errors import InputError
from emit.files import write_atomic

SINGLE = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "controlnet": "control_model.",
    "hed": "",
    "hed_v11": "",
}
TEXT = {"sd1": "cond_stage_model.transformer.text_model.", "sd2": "cond_stage_model.model."}
FOLDERS = {  # part: folder, file, config, class in diffusers or transformers
    "unet": ("unet", "diffusion_pytorch_model.safetensors", configs.unet, ["diffusers", "UNet2DConditionModel"]),
    "vae": ("vae", "diffusion_pytorch_model.safetensors", configs.vae, ["diffusers", "AutoencoderKL"]),
    "text": ("text_encoder", "model.safetensors", configs.text, ["transformers", "CLIPTextModel"]),
    "controlnet": ("controlnet", "diffusion_pytorch_model.safetensors", configs.controlnet, None),
}


def write_single(path, parts, header):
    """Write parts under their original names, with the header as JSON in the safetensors metadata ("emit").

    The text encoder has Hugging Face's names in Stable Diffusion 1 files and open_clip's in 2: which one is told by
    header["config"]["version"], else by its width. Raises InputError where a part is not whole or not finite: then
    nothing is written.
    """
    version = header.get("config", {}).get("version")
    tensors = {}
    for part, own in parts.items():
        rows = checked(path, part, own)
        if part == "text" and version not in TEXT:
            version = "sd2" if own["token_embedding.weight"].shape[1] == 1024 else "sd1"
        if part == "text" and version == "sd1":
            tensors |= {TEXT["sd1"] + name: tensor for name, tensor in to_elsewhere(rows, own).items()}
        else:
            prefix = SINGLE.get(part, TEXT.get(version))
            tensors |= {prefix + name: tensor for name, tensor in own.items()}
    save(Path(path), tensors, header)


def write_diffusers(folder, parts, config, header=None):
    """Write parts to a diffusers folder, each with its config.json; return the parts it has no place for.

    config: the sizes, as in the header of our own files. Heads, groups, scale and prediction type come from there.
    """
    folder = Path(folder)
    header = {**(header or {}), "config": config}
    for part in FOLDERS.keys() & parts.keys():
        sizes = config.get("unet" if part == "controlnet" else part)
        if sizes is None or sizes.get("channel_mult", (1,))[0] != 1:
            raise InputError(f"{folder}: {part} has no sizes that diffusers can express; write a single file")
    if {"unet", "controlnet"} & parts.keys() and config.get("prediction") not in configs.PREDICTIONS:
        raise InputError(f"{folder}: the files do not tell what the UNet predicts; give it: --prediction eps or v")
    if not FOLDERS.keys() & parts.keys():
        raise InputError(f"{folder}: diffusers has no place for {', '.join(parts)}; write a single file")
    tables = {part: checked(folder, part, parts[part]) for part in FOLDERS if part in parts}
    for part, rows in tables.items():
        name, file, describe, _ = FOLDERS[part]
        prefix = "text_model." if part == "text" else ""
        tensors = to_elsewhere(rows, parts[part])
        save(folder / name / file, {prefix + key: tensor for key, tensor in tensors.items()}, header)
        write_json(folder / name / "config.json", describe(config["unet" if part == "controlnet" else part]))
    if {"unet", "vae", "text"} <= tables.keys():
        write_pipeline(folder, config)
    return [part for part in parts if part not in FOLDERS]


def write_pipeline(folder, config):
    """Write the scheduler and the index of a StableDiffusionPipeline; the user gives it the public tokenizer."""
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    for name, _, _, kind in FOLDERS.values():
        index |= {name: kind} if kind else {}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    write_json(folder / "scheduler" / "scheduler_config.json", configs.scheduler(config["prediction"]))
    write_json(folder / "model_index.json", {**index, "requires_safety_checker": False})


def checked(path, part, tensors):
    """Return the table of a part after checking its tensors against it."""
    if part not in formats.SIZES:
        raise InputError(f"{path}: no part is called {part}; expected {', '.join(formats.SIZES)}")
    _, rows = table_of(path, part, "original", tensors)
    match(path, part, rows, "original", tensors)
    check_values(path, part, tensors)
    return rows


def to_elsewhere(rows, tensors):
    """Rename our tensors to diffusers' or Hugging Face's names; q, k, v are cut apart."""
    return {
        name: piece.reshape(row.shape_elsewhere)
        for row in rows
        for name, piece in zip(row.elsewhere, tensors[row.name].chunk(len(row.elsewhere)), strict=True)
    }


def save(path, tensors, header):
    """Write one safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", "emit": json.dumps(header)}

    def write(temporary):
        try:
            save_file(tensors, temporary, metadata)
            temporary.chmod(0o644)  # safetensors leaves it to its owner alone
        except SafetensorError as error:  # it wraps the system's errors
            raise OSError(str(error)) from error

    write_atomic(path, write)


def write_json(path, content):
    """Write one JSON file."""
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))
