"""Every tensor's name in diffusers, or in Hugging Face's CLIP below `text_model.`, and back.

Inside this program a tensor has its original (CompVis, open_clip) name without prefix. A table holds the beginnings of
names, ours and theirs: the longest one that fits is exchanged.
"""

import torch
from torch import Tensor

RESIDUAL = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"}
RESIDUAL |= {"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
CLIP = {"attn": "self_attn", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD_ATTENTION = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}  # in older diffusers folders


def unet(sizes):
    """Return {beginning of our name: of diffusers'} for UNet and ControlNet."""
    names = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    names |= {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
    names |= {"middle_block.1": "mid_block.attentions.0", "middle_block_out.0": "controlnet_mid_block"}
    residual = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    levels, blocks = len(sizes.channel_mult), sizes.num_res_blocks + 1  # in the encoder the last one halves the sides
    for number in range(levels * blocks):
        level, repeat = divmod(number, blocks)
        names[f"zero_convs.{number}.0"] = f"controlnet_down_blocks.{number}"
        names[f"input_blocks.{number + 1}.1"] = f"down_blocks.{level}.attentions.{repeat}"
        names[f"output_blocks.{number}.1"] = f"up_blocks.{level}.attentions.{repeat}"
        residual[f"input_blocks.{number + 1}.0"] = f"down_blocks.{level}.resnets.{repeat}"
        residual[f"output_blocks.{number}.0"] = f"up_blocks.{level}.resnets.{repeat}"
    for level in range(levels):
        place = 2 if levels - 1 - level in sizes.attention_levels else 1  # behind the transformer, if there is one
        names[f"input_blocks.{(level + 1) * blocks}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        names[f"output_blocks.{(level + 1) * blocks - 1}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    last = 2 * len(sizes.hint_channels) - 1  # SiLU takes every odd place in the hint block
    for step in range(last + 1):
        end = {0: "conv_in", last: "conv_out"}.get(step, f"blocks.{step - 1}")
        names[f"input_hint_block.{2 * step}"] = f"controlnet_cond_embedding.{end}"
    return names | {f"{a}.{ours}": f"{b}.{theirs}" for a, b in residual.items() for ours, theirs in RESIDUAL.items()}


def vae(sizes):
    """Return the autoencoder's names. `decoder.up` counts levels, `up_blocks` the order."""
    names, residual, last = {}, {}, len(sizes.channel_mult) - 1
    for half in ("encoder", "decoder"):
        names[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        names |= {f"{half}.mid.block_{n + 1}": f"{half}.mid_block.resnets.{n}" for n in (0, 1)}
        names |= {f"{half}.mid.attn_1.{ours}": f"{half}.mid_block.attentions.0.{theirs}" for ours, theirs in ATTENTION.items()}
    for level in range(last + 1):
        names[f"encoder.down.{level}.downsample"] = f"encoder.down_blocks.{level}.downsamplers.0"
        names[f"decoder.up.{level}.upsample"] = f"decoder.up_blocks.{last - level}.upsamplers.0"
        for n in range(sizes.num_res_blocks + 1):
            residual[f"encoder.down.{level}.block.{n}"] = f"encoder.down_blocks.{level}.resnets.{n}"
            residual[f"decoder.up.{level}.block.{n}"] = f"decoder.up_blocks.{last - level}.resnets.{n}"
    return names | residual | {f"{ours}.nin_shortcut": f"{theirs}.conv_shortcut" for ours, theirs in residual.items()}


def text(sizes):
    """Return the text tower's names in Hugging Face's CLIP."""
    names = {"token_embedding": "embeddings.token_embedding", "ln_final": "final_layer_norm"}
    names |= {"positional_embedding": "embeddings.position_embedding.weight"}
    for n in range(sizes.layers):
        names |= {f"transformer.resblocks.{n}.{ours}": f"encoder.layers.{n}.{theirs}" for ours, theirs in CLIP.items()}
    return names


TABLES = {"unet": unet, "controlnet": unet, "vae": vae, "text": text}


def rename(name, table):
    """Exchange the longest beginning of a name that the table holds."""
    words = name.split(".")
    for cut in range(len(words), 0, -1):
        beginning = ".".join(words[:cut])
        if beginning in table:
            return ".".join([table[beginning], *words[cut:]])
    return name


def to_diffusers(part: str, sizes, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors to diffusers' names: q, k, v of CLIP are cut apart, the autoencoder's attention is linear."""
    table, renamed = TABLES[part](sizes), {}
    for name, tensor in tensors.items():
        before, joined, kind = rename(name, table).partition("in_proj_")
        if joined:
            renamed |= zip([f"{before}{letter}_proj.{kind}" for letter in "qkv"], tensor.chunk(3), strict=True)
        else:
            renamed[before] = tensor[..., 0, 0] if ".attn_1." in name and tensor.dim() == 4 else tensor  # (C, C)
    return renamed


def from_diffusers(part: str, sizes, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename diffusers' tensors to ours; names that they do not have stay. Only q, k and v of CLIP are copied."""
    table, renamed = {theirs: ours for ours, theirs in TABLES[part](sizes).items()}, {}
    for half in ("encoder", "decoder"):
        table |= {f"{half}.mid_block.attentions.0.{old}": f"{half}.mid.attn_1.{ours}" for old, ours in OLD_ATTENTION.items()}
    for name, tensor in tensors.items():
        ours = rename(name, table)
        renamed[ours] = tensor[..., None, None] if ".attn_1." in ours and tensor.dim() == 2 else tensor  # (C, C, 1, 1)
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        pieces = [renamed.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        renamed[name.replace("q_proj.", "in_proj_")] = torch.cat(pieces)
    return renamed
