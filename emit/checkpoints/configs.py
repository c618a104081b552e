"""The sizes beside the weights: our header's, checked; the config files of diffusers folders, out of them and back."""

import json
import math
from dataclasses import fields
from typing import get_args

from emit.errors import InputError
from emit.networks.text import TextConfig, tokenizer
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig

FORMAT = 2  # of our headers
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
VERSIONS = ("sd1", "sd2", "sd", "emit")
KINDS = {"unet": UNetConfig, "vae": VAEConfig, "text": TextConfig}
UNET = {"norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1}  # and of the ControlNet
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PUBLIC_DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
CLIP = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "layer_norm_eps": 1e-5}
CLIP |= {"max_position_embeddings": 77, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}


def valid(name, value, kind):
    """Tell whether a JSON value is of a size's type: counts are above 0, levels and the pad token may be 0."""
    if kind == tuple[int, ...]:
        return isinstance(value, (list, tuple)) and all(valid(name, one, int) for one in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value) and value > 0
    if type(value) not in (get_args(kind) or (kind,)):
        return False
    return type(value) is not int or value >= (name not in ("attention_levels", "pad"))


def check(path, config):
    """Raise InputError where a config (part: its sizes; "version"; "prediction") holds anything but valid values."""
    faults = [] if isinstance(config, dict) else ["no sizes"]
    for part, value in () if faults else config.items():
        if part in KINDS:
            kinds = {field.name: field.type for field in fields(KINDS[part])}
            value = value if isinstance(value, dict) else {}
            faults += [f"{part} {name}" for name in kinds.keys() ^ value.keys()]
            faults += [f"{part} {n} {value[n]}" for n in kinds if n in value and not valid(n, value[n], kinds[n])]
        elif value not in {"version": VERSIONS, "prediction": tuple(PREDICTIONS)}.get(part, ()):
            faults.append(f"{part} {value}")
    if faults:
        raise InputError(f"{path}: no valid sizes: {', '.join(sorted(faults)[:3])}; fetch or write it anew")


def read_json(path):
    """Return a JSON object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; fetch it again")
    return content


def describe(part, sizes):
    """Return the config.json of a part's folder: diffusers' UNet2DConditionModel and so on, transformers' CLIPTextModel."""
    if part == "text":
        activation, width = "quick_gelu" if sizes["quick_gelu"] else "gelu", sizes["width"]
        config = CLIP | {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
        config |= {"num_hidden_layers": sizes["layers"], "num_attention_heads": sizes["heads"]}
        return config | {"hidden_act": activation, "pad_token_id": sizes["pad"]}
    levels = range(len(sizes["channel_mult"]))
    widths = [mult * sizes["channels" if part == "vae" else "model_channels"] for mult in sizes["channel_mult"]]
    config = {"block_out_channels": widths, "layers_per_block": sizes["num_res_blocks"], "act_fn": "silu"}
    config |= {"norm_num_groups": sizes["groups"]}
    if part == "vae":
        config |= {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "sample_size": 512}
        config |= {"down_block_types": ["DownEncoderBlock2D" for _ in levels]}
        config |= {"up_block_types": ["UpDecoderBlock2D" for _ in levels]}
        return config | {"latent_channels": sizes["z_channels"], "scaling_factor": sizes["scale"]}
    down = ["CrossAttnDownBlock2D" if level in sizes["attention_levels"] else "DownBlock2D" for level in levels]
    heads = [sizes["heads"] or width // sizes["head_size"] for width in widths]  # attention_head_dim counts heads
    config |= UNET | {"down_block_types": down, "attention_head_dim": heads, "in_channels": sizes["in_channels"]}
    config |= {"cross_attention_dim": sizes["context_dim"], "use_linear_projection": sizes["linear_projections"]}
    if part == "controlnet":
        config |= {"_class_name": "ControlNetModel", "controlnet_conditioning_channel_order": "rgb"}
        return config | {"conditioning_embedding_out_channels": list(sizes["hint_channels"])}
    config |= {"_class_name": "UNet2DConditionModel", "out_channels": sizes["out_channels"], "sample_size": 64}
    config |= {"mid_block_type": "UNetMidBlock2DCrossAttn", "center_input_sample": False}
    return config | {"up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)]}


def refine(path, config):
    """Add to deduced sizes what only the config.json beside the weights tells: heads, groups, scale, activation."""
    stated, config = read_json(path), {part: dict(v) if part in KINDS else v for part, v in config.items()}
    groups = stated.get("norm_num_groups", 32)
    if "unet" in config:
        heads = stated.get("num_attention_heads") or stated.get("attention_head_dim", 8)
        heads = heads if isinstance(heads, list) else [heads]
        if not heads or not valid("heads", heads, tuple[int, ...]):
            raise InputError(f"{path}: attention_head_dim is {heads}; fetch it again")
        config["unet"] |= {"groups": groups, "heads": heads[0], "head_size": None}
        if len(set(heads)) > 1:
            config["unet"] |= {"heads": None, "head_size": config["unet"]["model_channels"] // heads[0]}
    if "vae" in config:
        config["vae"] |= {"groups": groups, "scale": stated.get("scaling_factor", VAEConfig.scale)}
    if "text" in config:
        quick = stated.get("hidden_act", "quick_gelu") == "quick_gelu"
        heads = stated.get("num_attention_heads", config["text"]["heads"])
        config["text"] |= {"heads": heads, "quick_gelu": quick, "pad": 49407 if quick else 0}  # public files say 1
    check(path, config)
    return config


def prediction_of(folder):
    """Return the prediction that a diffusers folder's scheduler states, None without a scheduler."""
    path = folder / "scheduler" / "scheduler_config.json"
    stated = read_json(path).get("prediction_type", "epsilon") if path.is_file() else None
    if stated not in (None, *PREDICTIONS.values()):
        raise InputError(f"{path}: prediction_type is {stated}; expected epsilon or v_prediction")
    return {theirs: ours for ours, theirs in PREDICTIONS.items()}.get(stated)


def scheduler(prediction):
    """Return the config of the public DDIM scheduler: the last step goes to alpha_bar[0]."""
    return {"_class_name": "DDIMScheduler", "prediction_type": PREDICTIONS[prediction]} | SCHEDULE | PUBLIC_DDIM


def tokenizer_files(pad):
    """Return {file name: text} of a CLIPTokenizer with open_clip's vocabulary. pad: 49407, the end token, or 0, the "!".

    A "!" at the end of a word is not taken for padding (single_word); transformers takes one that stands alone for it.
    """
    ours, begin, end = tokenizer(), "<|startoftext|>", "<|endoftext|>"
    vocabulary = {word: number for word, number in ours.encoder.items() if number not in ours.all_special_ids}
    padding = {"content": "!", "single_word": True, "lstrip": False, "rstrip": False, "normalized": False}
    special = {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": end if pad else padding}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True} | special
    settings |= {} if pad else {"pad_token": {"__type": "AddedToken", **padding}}
    return {
        "vocab.json": json.dumps({**vocabulary, begin: ours.sot_token_id, end: ours.eot_token_id}),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in ours.bpe_ranks),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
