"""The config files of diffusers folders, out of our sizes and back."""

import json
import os
from pathlib import Path

from emit.files import read_json
from emit.networks.text import TextConfig, tokenizer
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig

FORMAT = 2  # of our headers
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
CLASSES = {  # in diffusers and transformers
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text": ("transformers", "CLIPTextModel"),
    "controlnet": ("diffusers", "ControlNetModel"),
}
INDEX = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
INDEX |= {"tokenizer": ["transformers", "CLIPTokenizer"], "safety_checker": [None, None]}
INDEX |= {"feature_extractor": [None, None], "requires_safety_checker": False}
INDEX |= {"unet": CLASSES["unet"], "vae": CLASSES["vae"], "text_encoder": CLASSES["text"]}


def open_config(path: Path) -> dict:
    """Return a JSON object, {} where there is no file."""
    return read_json(path, dict, "fetch it again") if os.path.lexists(path) else {}


def describe(part: str, sizes) -> dict:
    """Return the config.json of a part's folder; what it leaves out are the defaults of diffusers and transformers."""
    if part == "text":
        width, activation = sizes.width, "quick_gelu" if sizes.quick_gelu else "gelu"
        config = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "pad_token_id": sizes.pad}
        config |= {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width, "hidden_act": activation}
        return config | {"num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads}
    levels = range(len(sizes.channel_mult))
    widths = [mult * (sizes.channels if part == "vae" else sizes.model_channels) for mult in sizes.channel_mult]
    config = {"_class_name": CLASSES[part][1], "block_out_channels": widths, "layers_per_block": sizes.num_res_blocks}
    config |= {"norm_num_groups": sizes.groups}
    if part == "vae":
        config |= {"down_block_types": ["DownEncoderBlock2D" for _ in levels]}
        config |= {"up_block_types": ["UpDecoderBlock2D" for _ in levels], "sample_size": 512}
        return config | {"latent_channels": sizes.z_channels, "scaling_factor": sizes.scale}
    down = ["CrossAttnDownBlock2D" if level in sizes.attention_levels else "DownBlock2D" for level in levels]
    heads = [sizes.heads or width // sizes.head_size for width in widths]  # attention_head_dim counts heads
    config |= {"down_block_types": down, "attention_head_dim": heads, "in_channels": sizes.in_channels}
    config |= {"cross_attention_dim": sizes.context_dim, "use_linear_projection": sizes.linear_projections}
    if part == "controlnet":
        return config | {"conditioning_embedding_out_channels": sizes.hint_channels}
    up = [kind.replace("Down", "Up") for kind in reversed(down)]
    return config | {"out_channels": sizes.out_channels, "sample_size": 64, "up_block_types": up}


def read_config(part: str, config: dict):
    """Return the sizes that a config.json states. Raises LookupError, TypeError or ValueError where it is not one."""
    if part == "text":
        quick = config["hidden_act"] == "quick_gelu"
        sizes = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        return TextConfig(*sizes, quick_gelu=quick, pad=49407 if quick else 0)  # public files say pad 1
    widths, repeats, groups = config["block_out_channels"], config["layers_per_block"], config.get("norm_num_groups", 32)
    mult = tuple(width // widths[0] for width in widths)
    if part == "vae":
        return VAEConfig(widths[0], mult, repeats, config["latent_channels"], groups, config.get("scaling_factor", VAEConfig.scale))
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)  # both count heads
    heads = heads if isinstance(heads, list) else [heads]
    same = len(set(heads)) == 1
    return UNetConfig(
        in_channels=config["in_channels"],
        out_channels=config.get("out_channels", UNetConfig.out_channels),
        model_channels=widths[0],
        channel_mult=mult,
        num_res_blocks=repeats,
        attention_levels=tuple(level for level, kind in enumerate(config["down_block_types"]) if kind.startswith("Cross")),
        heads=heads[0] if same else None,
        head_size=None if same else widths[0] // heads[0],
        context_dim=config["cross_attention_dim"],
        linear_projections=config.get("use_linear_projection", False),
        groups=groups,
        hint_channels=tuple(config.get("conditioning_embedding_out_channels", UNetConfig.hint_channels)),
    )


def scheduler(prediction: str) -> dict:
    """Return the config of the public DDIM scheduler: the last step goes to alpha_bar[0]."""
    config = {"_class_name": "DDIMScheduler", "prediction_type": PREDICTIONS[prediction], "num_train_timesteps": 1000}
    config |= {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return config | {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}


def tokenizer_files(pad: int) -> dict[str, str]:
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
