"""The config.json files of diffusers' and transformers' folders, out of our sizes and back."""

import json

from emit.errors import InputError

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}


def read_json(path):
    """Return a JSON object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; fetch it again")
    return content


def widths_of(sizes):
    return [mult * sizes["model_channels"] for mult in sizes["channel_mult"]]


def heads_of(sizes):
    """Return the number of attention heads per level; diffusers calls it attention_head_dim."""
    if sizes["heads"] is not None:
        return [sizes["heads"]] * len(sizes["channel_mult"])
    return [width // sizes["head_size"] for width in widths_of(sizes)]


def unet(sizes):
    """Return the config of a UNet2DConditionModel."""
    crossed = [level in sizes["attention_levels"] for level in range(len(sizes["channel_mult"]))]
    return {
        **encoder(sizes),
        "_class_name": "UNet2DConditionModel",
        "out_channels": sizes["out_channels"],
        "up_block_types": ["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(crossed)],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "center_input_sample": False,
        "sample_size": 64,
    }


def controlnet(sizes):
    """Return the config of a ControlNetModel."""
    return {
        **encoder(sizes),
        "_class_name": "ControlNetModel",
        "conditioning_embedding_out_channels": list(sizes["hint_channels"]),
        "controlnet_conditioning_channel_order": "rgb",
    }


def encoder(sizes):
    """Return what UNet and ControlNet have in common."""
    crossed = [level in sizes["attention_levels"] for level in range(len(sizes["channel_mult"]))]
    return {
        "in_channels": sizes["in_channels"],
        "down_block_types": ["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in crossed],
        "block_out_channels": widths_of(sizes),
        "layers_per_block": sizes["num_res_blocks"],
        "attention_head_dim": heads_of(sizes),
        "cross_attention_dim": sizes["context_dim"],
        "use_linear_projection": sizes["linear_projections"],
        "norm_num_groups": sizes["groups"],
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    }


def vae(sizes):
    """Return the config of an AutoencoderKL."""
    levels = len(sizes["channel_mult"])
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": sizes["z_channels"],
        "block_out_channels": [mult * sizes["channels"] for mult in sizes["channel_mult"]],
        "layers_per_block": sizes["num_res_blocks"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": sizes["groups"],
        "act_fn": "silu",
        "scaling_factor": sizes["scale"],
        "sample_size": 512,
    }


def text(sizes):
    """Return the config of a CLIPTextModel."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": sizes["width"],
        "intermediate_size": 4 * sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "hidden_act": "quick_gelu" if sizes["quick_gelu"] else "gelu",
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": sizes["pad"],
        "projection_dim": sizes["width"],
    }


def scheduler(prediction):
    """Return the config of the public DDIM scheduler: the last step goes to alpha_bar[0]."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "prediction_type": PREDICTIONS[prediction],
    }


def refine(path, config):
    """Add to deduced sizes what only the config.json beside the weights tells: heads, groups, scale, activation."""
    if not path.is_file():
        return config
    told, config = read_json(path), {part: dict(v) if isinstance(v, dict) else v for part, v in config.items()}
    if "unet" in config:
        config["unet"].update(heads_from(told, config["unet"]), groups=told.get("norm_num_groups", 32))
    if "vae" in config:
        config["vae"].update(scale=told.get("scaling_factor", 0.18215), groups=told.get("norm_num_groups", 32))
    if "text" in config:
        quick_gelu = told.get("hidden_act", "quick_gelu") == "quick_gelu"
        config["text"].update(
            quick_gelu=quick_gelu, pad=49407 if quick_gelu else 0
        )  # pad_token_id is 1 in public files
        config["text"].update(heads=told.get("num_attention_heads", config["text"]["heads"]))
    return config


def heads_from(told, sizes):
    """Return heads or head_size out of attention_head_dim, which counts heads, once or per level."""
    heads = told.get("num_attention_heads") or told.get("attention_head_dim", 8)
    heads = heads if isinstance(heads, list) else [heads] * len(sizes["channel_mult"])
    if len(set(heads)) == 1:
        return {"heads": heads[0], "head_size": None}
    return {"heads": None, "head_size": widths_of(sizes)[0] // heads[0]}


def merge(found):
    """Join the deduced sizes of the folders of one model; the ControlNet's hint joins the UNet's sizes."""
    config = {}
    for one in found:
        config = {**one, **config}
    hints = [one["unet"]["hint_channels"] for one in found if "unet" in one]
    if hints:
        config["unet"] = {**config["unet"], "hint_channels": hints[-1]}
    return config


def prediction_of(folder):
    """Return the prediction type that a diffusers folder's scheduler states, None without a scheduler."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return None
    stated = read_json(path).get("prediction_type", "epsilon")
    return {theirs: ours for ours, theirs in PREDICTIONS.items()}.get(stated, "unknown")
