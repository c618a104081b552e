"""What a file is, by the names in it: its parts, their naming, what is dropped on purpose, the sizes of each part.

A naming is "original" (CompVis, open_clip, the public HED files) or "diffusers" (with Hugging Face's CLIP).
"""

import re
from dataclasses import asdict, replace

from emit.checkpoints.names import flat, from_diffusers, own_tensors, present, to_diffusers
from emit.errors import InputError
from emit.networks.text import TextConfig
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig

EXPECTED = "expected Stable Diffusion 1 or 2, a ControlNet or HED, as safetensors, pickle or diffusers folder"
PREFIXES = (  # of the original single files
    ("model.diffusion_model.", "unet", "original"),
    ("first_stage_model.", "vae", "original"),
    ("cond_stage_model.transformer.text_model.", "text", "diffusers"),
    ("cond_stage_model.model.", "text", "original"),
    ("control_model.", "controlnet", "original"),
)
BARE = (  # a part without prefix: the beginnings of some of its names in both namings
    ("controlnet", r"input_hint_block\.", r"controlnet_cond_embedding\."),
    ("unet", r"output_blocks\.", r"up_blocks\."),
    ("vae", r"decoder\.up\.", r"decoder\.up_blocks\."),
    ("text", r"transformer\.resblocks\.", r"(text_model\.)?encoder\.layers\."),
)
HED_NAMES = {"hed": r"(module|net)(Vgg|Score|Combine)", "hed_v11": r"(block[1-5]\.(convs|projection)\.|norm$)"}
FOREIGN = (  # the first that fits names the file
    (r"lora[_.]", "a LoRA"),
    (r"(^|\.)(double_blocks|single_blocks|single_transformer_blocks)\.", "a Flux model"),
    (r"(^|\.)(joint_blocks\.|context_embedder\.)|\.add_[kqv]_proj\.", "a Stable Diffusion 3 model"),
    (r"(^|\.)(label_emb|add_embedding|conditioner\.embedders)\.", "an SD-XL (or unCLIP) model"),
)
EMA = "model_ema.diffusion_model"  # then the UNet's own name without its dots
# Dropped on purpose: the noise schedule, losses, averages, CLIP's projection, and the last of version 2's 24 text blocks,
# which is never run: Stable Diffusion 2 takes the next to last state. Any other name that a part lacks is an error.
DROPPED = re.compile(
    r"(betas|logvar|(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod|alphas_cumprod_prev"
    r"|posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2))$"
    r"|(first_stage_model\.)?loss\.|model_ema\.|(.*\.)?position_ids$"
    r"|(cond_stage_model\.model\.)?(logit_scale$|text_projection$|transformer\.resblocks\.23\.)"
)
SD2_TEXT = TextConfig(width=1024, layers=23, heads=16, quick_gelu=False, pad=0)
SD2_UNET = UNetConfig(context_dim=1024, linear_projections=True, heads=None, head_size=64)
PUBLIC = {
    "sd1": {"unet": UNetConfig(), "controlnet": UNetConfig(), "vae": VAEConfig(), "text": TextConfig()},
    "sd2": {"unet": SD2_UNET, "controlnet": SD2_UNET, "vae": VAEConfig(), "text": SD2_TEXT},
}


def split(names):
    """Sort the names of a file: {part: (naming, {inner name: file name})}, names dropped on purpose, names left."""
    dropped = sorted(filter(DROPPED.match, names))
    left, parts = set(names) - set(dropped), {}
    for prefix, part, naming in PREFIXES:
        inner = {name.removeprefix(prefix): name for name in left if name.startswith(prefix)}
        if inner and part not in parts:
            parts[part] = (naming, inner)
            left -= set(inner.values())
    for part, *patterns in BARE:
        for naming, pattern in zip(("original", "diffusers"), patterns, strict=True):
            if not parts and any(re.match(pattern, name) for name in left):
                parts[part], left = (naming, {present(name.removeprefix("text_model.")): name for name in left}), set()
    for part, pattern in HED_NAMES.items():
        inner = {re.sub("^net", "module", name): name for name in left if re.match(pattern, name)}
        if inner:
            parts[part] = ("original", inner)
            left -= set(inner.values())
    return parts, dropped, left


def count(shapes, pattern):
    """Return how many numbers stand at the place of {} in the names that begin with the pattern."""
    numbered = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    return len({match[1] for match in map(numbered.match, shapes) if match})


def unet_sizes(shapes, naming):
    """Deduce a UNetConfig (also a ControlNet's) from {inner name: shape}. Heads do not show: they go by version."""
    if naming == "original":
        levels = count(shapes, "input_blocks.{}.0.op.weight") + 1
        repeats = (count(shapes, "input_blocks.{}.") - levels) // levels
        blocks = [f"input_blocks.{1 + level * (repeats + 1)}" for level in range(levels)]
        conv, attention, middle = "0.out_layers.3", "1", "middle_block.1"
        width, first, last = "time_embed.0", "input_blocks.0.0", "out.2"
        hints = [f"input_hint_block.{4 * n}" for n in range((count(shapes, "input_hint_block.{}.") + 1) // 2)]
    else:
        levels, repeats = count(shapes, "down_blocks.{}."), count(shapes, "down_blocks.0.resnets.{}.")
        blocks = [f"down_blocks.{level}" for level in range(levels)]
        conv, attention, middle = "resnets.0.conv2", "attentions.0", "mid_block.attentions.0"
        width, first, last, hint = "time_embedding.linear_1", "conv_in", "conv_out", "controlnet_cond_embedding"
        pairs = count(shapes, f"{hint}.blocks.{{}}.") // 2
        hints = [f"{hint}.conv_in", *(f"{hint}.blocks.{2 * pair + 1}" for pair in range(pairs))]
    channels, linear = shapes[f"{width}.weight"][1], len(shapes[f"{middle}.proj_in.weight"]) == 2
    hint_channels = tuple(shapes[f"{name}.weight"][0] for name in hints if f"{name}.weight" in shapes)
    return UNetConfig(
        in_channels=shapes[f"{first}.weight"][1],
        out_channels=shapes.get(f"{last}.weight", (4,))[0],
        model_channels=channels,
        channel_mult=tuple(max(1, shapes[f"{block}.{conv}.weight"][0] // channels) for block in blocks),
        num_res_blocks=repeats,
        attention_levels=tuple(i for i, block in enumerate(blocks) if f"{block}.{attention}.norm.weight" in shapes),
        context_dim=shapes[f"{middle}.transformer_blocks.0.attn2.to_k.weight"][1],
        linear_projections=linear,
        heads=None if linear else UNetConfig.heads,
        head_size=64 if linear else None,
        hint_channels=hint_channels or UNetConfig.hint_channels,
    )


def vae_sizes(shapes, naming):
    """Deduce a VAEConfig from {inner name: shape}; the scale does not show."""
    down, block = ("encoder.down", "block") if naming == "original" else ("encoder.down_blocks", "resnets")
    channels, levels = shapes["encoder.conv_in.weight"][0], count(shapes, f"{down}.{{}}.")
    widths = [shapes[f"{down}.{level}.{block}.0.conv1.weight"][0] for level in range(levels)]
    return VAEConfig(
        channels=channels,
        channel_mult=tuple(max(1, width // channels) for width in widths),
        num_res_blocks=count(shapes, f"{down}.0.{block}.{{}}."),
        z_channels=shapes["post_quant_conv.weight"][0],
    )


def text_sizes(shapes, naming):
    """Deduce a TextConfig from {inner name: shape}: Stable Diffusion 2's kind where the tower is 1024 wide."""
    stem, blocks = ("", "transformer.resblocks") if naming == "original" else ("embeddings.", "encoder.layers")
    width, layers = shapes[f"{stem}token_embedding.weight"][1], count(shapes, f"{blocks}.{{}}.")
    return replace(SD2_TEXT, layers=layers) if width == 1024 else TextConfig(width, layers, heads=width // 64)


def hed_sizes(shapes, naming):
    """Return the five widths of an edge detector of either kind."""
    if any(name.startswith("module") for name in shapes):
        return tuple(shapes[f"moduleVgg{place}.weight"][0] for place in ("One.0", "Two.1", "Thr.1", "Fou.1", "Fiv.1"))
    return tuple(shapes[f"block{number}.convs.0.weight"][0] for number in range(1, 6))


SIZES = {"unet": unet_sizes, "vae": vae_sizes, "text": text_sizes, "controlnet": unet_sizes}
SIZES |= {"hed": hed_sizes, "hed_v11": hed_sizes}
KEYS = {"unet": "unet", "controlnet": "unet", "vae": "vae", "text": "text"}  # part: its sizes in a config


def sort(path, tensors, ema=False):
    """Sort the tensors into parts under our names; check every name and shape, but no value (meta tensors will do).

    Returns {part: {our name: tensor}}, {part: sizes}, the names dropped on purpose, and the layout: "single" (prefixed
    names), "diffusers" or "bare" (one part under its own original names).
    """
    for pattern, kind in FOREIGN:
        if any(re.search(pattern, name) for name in tensors):
            raise InputError(f"{path}: {kind}; {EXPECTED}")
    named, dropped, left = split(tensors)
    if left:
        beside = f" beside {', '.join(named)}" * bool(named)
        raise InputError(f"{path}: {len(left)} unknown names{beside} ({', '.join(sorted(left)[:3])}, ...); {EXPECTED}")
    if not named:
        raise InputError(f"{path}: none of the names of a known part; {EXPECTED}")
    if ema and "unet" not in named:
        raise InputError(f"{path}: holds no UNet, so no EMA of one; read it without EMA")
    parts, sizes = {}, {}
    for part, (naming, inner) in named.items():
        own = {name: tensors[file_name] for name, file_name in inner.items()}
        sizes[part], parts[part] = match(path, part, naming, own)
    if ema:
        parts["unet"] = averaged(path, parts["unet"], tensors)
        used = {EMA + name.replace(".", "") for name in parts["unet"]}
        dropped = [name for name in dropped if name not in used]
    single = any(name.startswith(prefix) for prefix, _, _ in PREFIXES for name in tensors)
    foreign = any(naming == "diffusers" for naming, _ in named.values())
    return parts, sizes, dropped, "single" if single else "diffusers" if foreign else "bare"


def match(path, part, naming, tensors):
    """Return a part's sizes, deduced, and {our name: tensor}, after a comparison with the network of these sizes.

    Of the autoencoder's attention in diffusers' folders linear (C, C) and 1x1 convolution (C, C, 1, 1) are both taken.
    """
    if naming == "diffusers":
        tensors = {name: flat(name, tensor) for name, tensor in tensors.items()}
    empty = [name for name, tensor in tensors.items() if 0 in tensor.shape]
    if empty:
        raise InputError(f"{path}: {part}: {empty[0]} is empty; {EXPECTED}")
    try:
        sizes = SIZES[part]({name: tuple(tensor.shape) for name, tensor in tensors.items()}, naming)
        own = own_tensors(part, sizes)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"{path}: {part}: {error.args[0]} is missing or has a strange shape; {EXPECTED}") from error
    if naming == "original":
        compare(path, part, tensors, own)
        return sizes, {name: tensors[name] for name in own}
    compare(path, part, tensors, to_diffusers(part, sizes, own))
    return sizes, from_diffusers(part, sizes, own, tensors)


def averaged(path, weights, tensors):
    """Return the UNet's moving averages, shaped like its weights."""
    averages = {name: EMA + name.replace(".", "") for name in weights}
    averages = {name: tensors[ema] for name, ema in averages.items() if ema in tensors}
    if not averages:
        raise InputError(f"{path}: holds no EMA (an emaonly file has it in place of the weights); read it without EMA")
    compare(path, "EMA of the UNet", averages, weights)
    return averages


def compare(path, part, tensors, expected):
    """Raise InputError unless {name: tensor} has the names of `expected` and their shapes."""
    shapes, wanted = ({name: tuple(tensor.shape) for name, tensor in some.items()} for some in (tensors, expected))
    both = sorted(shapes.keys() & wanted.keys())
    faults = {
        "missing": sorted(wanted.keys() - shapes.keys()),
        "unknown": sorted(shapes.keys() - wanted.keys()),
        "misshapen": [f"{name} {shapes[name]} for {wanted[name]}" for name in both if shapes[name] != wanted[name]],
    }
    counts = [f"{len(names)} {fault} ({', '.join(names[:3])})" for fault, names in faults.items() if names]
    if counts:
        raise InputError(f"{path}: {part} does not fit: {', '.join(counts)}; expected {len(wanted)} known tensors")


def version_of(sizes):
    """Return "sd1" or "sd2" where all sizes are that version's, "sd" for an autoencoder alone, else "emit"."""
    parts = sizes.keys() & PUBLIC["sd1"].keys()
    fits = [name for name, public in PUBLIC.items() if parts and all(public[part] == sizes[part] for part in parts)]
    return "emit" if not fits else fits[0] if len(fits) == 1 else "sd"


def config_of(sizes):
    """Return the sizes of the parts as the header of our own files states them; the ControlNet's are the UNet's."""
    config = {part: asdict(sizes[part]) for part in ("unet", "vae", "text") if part in sizes}
    if "controlnet" in sizes:
        own = asdict(sizes["controlnet"])
        config["unet"] = {**config.get("unet", own), "hint_channels": own["hint_channels"]}
    return config
