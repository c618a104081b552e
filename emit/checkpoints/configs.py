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
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "controlnet": "ControlNetModel"}  # in diffusers
NAMES = {"num_res_blocks": "layers_per_block", "groups": "norm_num_groups", "z_channels": "latent_channels"}  # ours: diffusers'
NAMES |= {"scale": "scaling_factor", "in_channels": "in_channels", "out_channels": "out_channels"}
NAMES |= {"context_dim": "cross_attention_dim", "linear_projections": "use_linear_projection"}
NAMES |= {"hint_channels": "conditioning_embedding_out_channels"}
INDEX = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
INDEX |= {"tokenizer": ["transformers", "CLIPTokenizer"], "safety_checker": [None, None]}
INDEX |= {"feature_extractor": [None, None], "requires_safety_checker": False, "text_encoder": ["transformers", "CLIPTextModel"]}
INDEX |= {part: ["diffusers", CLASSES[part]] for part in ("unet", "vae")}


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
    config = {"_class_name": CLASSES[part], "block_out_channels": widths}
    config |= {theirs: getattr(sizes, ours) for ours, theirs in NAMES.items() if hasattr(sizes, ours)}
    if part == "vae":
        config |= {"down_block_types": ["DownEncoderBlock2D" for _ in levels], "sample_size": 512}
        return config | {"up_block_types": ["UpDecoderBlock2D" for _ in levels]}
    down = ["CrossAttnDownBlock2D" if level in sizes.attention_levels else "DownBlock2D" for level in levels]
    heads = [sizes.heads or width // sizes.head_size for width in widths]  # attention_head_dim counts heads
    config |= {"down_block_types": down, "attention_head_dim": heads}
    if part == "controlnet":
        del config["out_channels"]
        return config
    del config[NAMES["hint_channels"]]
    return config | {"sample_size": 64, "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)]}


def read_config(part: str, config: dict):
    """Return the sizes that a config.json states. Raises LookupError, TypeError or ValueError where it is not one."""
    if part == "text":
        quick = config["hidden_act"] == "quick_gelu"
        sizes = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        return TextConfig(*sizes, quick_gelu=quick, pad=49407 if quick else 0)  # public files say pad 1
    kind, widths = VAEConfig if part == "vae" else UNetConfig, config["block_out_channels"]
    sizes = {ours: config[theirs] for ours, theirs in NAMES.items() if theirs in config and hasattr(kind, ours)}
    sizes["channel_mult"] = tuple(width // widths[0] for width in widths)
    if part == "vae":
        return VAEConfig(channels=widths[0], **sizes)
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)  # both count heads
    heads = heads if isinstance(heads, list) else [heads]
    same = len(set(heads)) == 1
    sizes |= {"heads": heads[0]} if same else {"heads": None, "head_size": widths[0] // heads[0]}
    levels = [level for level, kind in enumerate(config["down_block_types"]) if kind.startswith("Cross")]
    hint_channels = tuple(sizes.pop("hint_channels", UNetConfig.hint_channels))
    return UNetConfig(model_channels=widths[0], attention_levels=tuple(levels), hint_channels=hint_channels, **sizes)


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
