"""What a file is, told by the names in it: its parts, its naming, what is dropped on purpose, the sizes of each part.

A naming is "original" (CompVis, open_clip, the public HED files) or "elsewhere" (diffusers, Hugging Face's CLIP).
"""

import re
from dataclasses import replace

from emit.networks.text import TextConfig
from emit.networks.unet import UNetConfig
from emit.networks.vae import VAEConfig

PREFIXES = (  # of the original single files
    ("model.diffusion_model.", "unet", "original"),
    ("first_stage_model.", "vae", "original"),
    ("cond_stage_model.transformer.text_model.", "text", "elsewhere"),
    ("cond_stage_model.model.", "text", "original"),
    ("control_model.", "controlnet", "original"),
)
BARE = (  # a part without prefix: the beginning of some of its names, the prefix to strip
    (r"input_hint_block\.", "", "controlnet", "original"),
    (r"controlnet_cond_embedding\.", "", "controlnet", "elsewhere"),
    (r"output_blocks\.", "", "unet", "original"),
    (r"up_blocks\.", "", "unet", "elsewhere"),
    (r"decoder\.up\.", "", "vae", "original"),
    (r"decoder\.up_blocks\.", "", "vae", "elsewhere"),
    (r"transformer\.resblocks\.", "", "text", "original"),
    (r"text_model\.encoder\.layers\.", "text_model.", "text", "elsewhere"),
    (r"encoder\.layers\.", "", "text", "elsewhere"),
)
HED_NAMES = (
    (r"(module|net)(Vgg|Score|Combine)", "hed"),
    (r"(block[1-5]\.(convs|projection)\.|norm$)", "hed_v11"),
)
FOREIGN = (  # the first that fits names the file
    (r"lora[_.]", "a LoRA"),
    (r"(^|\.)(double_blocks|single_blocks|single_transformer_blocks)\.", "a Flux model"),
    (r"(^|\.)(joint_blocks\.|context_embedder\.)|\.add_[kqv]_proj\.", "a Stable Diffusion 3 model"),
    (r"(^|\.)(label_emb|add_embedding|conditioner\.embedders)\.", "an SD-XL (or unCLIP) model"),
)
DROPPED = re.compile(  # on purpose; any other name that a table lacks is an error
    r"(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod"
    r"|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance"
    r"|posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2|logvar)$"
    r"|(first_stage_model\.)?loss\.|model_ema\.|(.*\.)?position_ids$"
    r"|(cond_stage_model\.model\.)?(logit_scale|text_projection)$"
)
# Stable Diffusion 2 takes the next to last of the 24 states, so its last text block is never run.
RUN_NEVER = re.compile(r"(cond_stage_model\.model\.)?transformer\.resblocks\.23\.")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_ATTENTION = re.compile(rf"(coder\.mid_block\.attentions\.0)\.({'|'.join(NEW_ATTENTION)})\.")


def foreign(names):
    """Return what a file is that is not ours to read, such as "a LoRA", or None."""
    for pattern, kind in FOREIGN:
        if any(re.search(pattern, name) for name in names):
            return kind
    return None


def split(names):
    """Sort the names of a file: {part: (naming, {inner name: file name})}, names dropped on purpose, names left."""
    dropped = sorted(name for name in names if DROPPED.match(name) or RUN_NEVER.match(name))
    left, parts = set(names) - set(dropped), {}
    for prefix, part, naming in PREFIXES:
        inner = {name.removeprefix(prefix): name for name in left if name.startswith(prefix)}
        if inner and part not in parts:
            parts[part] = (naming, inner)
            left -= set(inner.values())
    for pattern, prefix, part, naming in BARE:
        if not parts and any(re.match(pattern, name) for name in left):
            parts[part] = (naming, {up_to_date(name.removeprefix(prefix)): name for name in left})
            left = set()
    for pattern, part in HED_NAMES:
        inner = {re.sub("^net", "module", name): name for name in left if re.match(pattern, name)}
        if inner:
            parts[part] = ("original", inner)
            left -= set(inner.values())
    return parts, dropped, left


def up_to_date(name):
    """Return the present diffusers name of an old one: only the autoencoder's attention was renamed."""
    return OLD_ATTENTION.sub(lambda match: f"{match[1]}.{NEW_ATTENTION[match[2]]}.", name)


def layout_of(parts, names):
    """Return "single" (prefixed names), "diffusers" or "bare" (one part under its own original names)."""
    if any(name.startswith(prefix) for prefix, _, _ in PREFIXES for name in names):
        return "single"
    return "diffusers" if any(naming == "elsewhere" for naming, _ in parts.values()) else "bare"


def count(shapes, pattern):
    """Return how many numbers stand at the place of {} in the names that begin with the pattern."""
    found = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    return len({match[1] for match in map(found.match, shapes) if match})


def unet_sizes(shapes, naming):
    """Deduce a UNetConfig (also a ControlNet's) from {inner name: shape}. Heads do not show: they go by version."""
    if naming == "original":
        downsamplers = [name for name in shapes if re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name)]
        levels = len(downsamplers) + 1
        repeats = (count(shapes, "input_blocks.{}.") - levels) // levels
        blocks = [f"input_blocks.{1 + level * (repeats + 1)}" for level in range(levels)]
        width, conv, attention, middle = "time_embed.0", "0.out_layers.3", "1", "middle_block.1"
        first, last, hint = "input_blocks.0.0", "out.2", "input_hint_block.{}.weight"
        hints = [hint.format(4 * step) for step in range((count(shapes, "input_hint_block.{}.") - 1) // 2 + 1)]
    else:
        levels, repeats = count(shapes, "down_blocks.{}."), count(shapes, "down_blocks.0.resnets.{}.")
        blocks = [f"down_blocks.{level}" for level in range(levels)]
        width, conv, attention = "time_embedding.linear_1", "resnets.0.conv2", "attentions.0"
        middle = "mid_block.attentions.0"
        first, last, hint = "conv_in", "conv_out", "controlnet_cond_embedding"
        pairs = count(shapes, f"{hint}.blocks.{{}}.") // 2
        hints = [f"{hint}.conv_in.weight", *(f"{hint}.blocks.{2 * pair + 1}.weight" for pair in range(pairs))]
    channels = shapes[f"{width}.weight"][1]
    sizes = UNetConfig(
        in_channels=shapes[f"{first}.weight"][1],
        out_channels=shapes.get(f"{last}.weight", (4,))[0],
        model_channels=channels,
        channel_mult=tuple(shapes[f"{block}.{conv}.weight"][0] // channels for block in blocks),
        num_res_blocks=repeats,
        attention_levels=tuple(i for i, block in enumerate(blocks) if f"{block}.{attention}.norm.weight" in shapes),
        context_dim=shapes[f"{middle}.transformer_blocks.0.attn2.to_k.weight"][1],
        linear_projections=len(shapes[f"{middle}.proj_in.weight"]) == 2,
    )
    if sizes.linear_projections:
        sizes = replace(sizes, heads=None, head_size=64)
    hint_channels = tuple(shapes[name][0] for name in hints if name in shapes)
    return replace(sizes, hint_channels=hint_channels) if hint_channels else sizes


def vae_sizes(shapes, naming):
    """Deduce a VAEConfig from {inner name: shape}; the scale does not show."""
    down, block = ("encoder.down", "block") if naming == "original" else ("encoder.down_blocks", "resnets")
    channels, levels = shapes["encoder.conv_in.weight"][0], count(shapes, f"{down}.{{}}.")
    widths = [shapes[f"{down}.{level}.{block}.0.conv1.weight"][0] for level in range(levels)]
    return VAEConfig(
        channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        num_res_blocks=count(shapes, f"{down}.0.{block}.{{}}."),
        z_channels=shapes["post_quant_conv.weight"][0],
    )


def text_sizes(shapes, naming):
    """Deduce a TextConfig from {inner name: shape}: Stable Diffusion 2's kind where the tower is 1024 wide."""
    stem, blocks = ("", "transformer.resblocks") if naming == "original" else ("embeddings.", "encoder.layers")
    width, layers = shapes[f"{stem}token_embedding.weight"][1], count(shapes, f"{blocks}.{{}}.")
    if width == 1024:
        return TextConfig(width=width, layers=layers, heads=16, quick_gelu=False, pad=0)
    return TextConfig(width=width, layers=layers, heads=width // 64)


def hed_sizes(shapes, naming):
    """Return the five widths of an edge detector."""
    firsts = ("One.0", "Two.1", "Thr.1", "Fou.1", "Fiv.1")
    return tuple(shapes[f"moduleVgg{first}.weight"][0] for first in firsts)


def hed_v11_sizes(shapes, naming):
    """Return the five widths of an edge detector."""
    return tuple(shapes[f"block{number}.convs.0.weight"][0] for number in range(1, 6))


SIZES = {
    "unet": unet_sizes,
    "vae": vae_sizes,
    "text": text_sizes,
    "controlnet": unet_sizes,
    "hed": hed_sizes,
    "hed_v11": hed_v11_sizes,
}


def version_of(sizes):
    """Return "sd1" or "sd2" where all sizes are that version's, "sd" for an autoencoder alone, else "emit"."""
    text = {768: TextConfig(), 1024: TextConfig(width=1024, layers=23, heads=16, quick_gelu=False, pad=0)}
    first, second = UNetConfig(), UNetConfig(context_dim=1024, linear_projections=True, heads=None, head_size=64)
    public = {
        "sd1": {"unet": first, "controlnet": first, "vae": VAEConfig(), "text": text[768]},
        "sd2": {"unet": second, "controlnet": second, "vae": VAEConfig(), "text": text[1024]},
    }
    judged = {part: size for part, size in sizes.items() if part in public["sd1"]}
    fits = [version for version, whole in public.items() if all(whole[part] == size for part, size in judged.items())]
    return "emit" if not fits or not judged else fits[0] if len(fits) == 1 else "sd"
