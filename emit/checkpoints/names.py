"""Every tensor's name in the original files and in diffusers; shapes are stated once, by the networks themselves.

Inside this program a tensor has its original (CompVis, open_clip) name without prefix. Names in diffusers, or in Hugging
Face's CLIP below `text_model.`, follow from it: the beginning names the block, the rest the layer in it.
"""

from dataclasses import replace

import torch

from emit.networks.controlnet import ControlNet
from emit.networks.hed import HED, HEDv11
from emit.networks.text import TextEncoder
from emit.networks.unet import UNet
from emit.networks.vae import AutoencoderKL

NETWORKS = {"unet": UNet, "vae": AutoencoderKL, "text": TextEncoder, "controlnet": ControlNet}
NETWORKS |= {"hed": HED, "hed_v11": HEDv11}
NEUTRAL = {"unet": {"groups": 1}, "controlnet": {"groups": 1}, "vae": {"groups": 1}, "text": {"heads": 1}}
# the layers inside a block: of UNet and ControlNet, of the autoencoder, of the text encoder
LAYERS = {"in_layers.0": "norm1", "in_layers.2": "conv1", "out_layers.0": "norm2", "out_layers.3": "conv2"}
LAYERS |= {"emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut", "nin_shortcut": "conv_shortcut"}
LAYERS |= {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
LAYERS |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
VAE_ATTENTION = "coder.mid_block.attentions.0."


def own_tensors(part, sizes):
    """Return {our name: tensor on the meta device} of a part's network. Heads and norm groups leave no trace in it."""
    sizes = replace(sizes, **NEUTRAL[part]) if part in NEUTRAL else sizes
    with torch.device("meta"):
        return NETWORKS[part](sizes).state_dict()


def unet(sizes):
    """Return {beginning of our name: its name in diffusers} for UNet and ControlNet. sizes: a UNetConfig."""
    names = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    names |= {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
    names |= {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    names |= {"middle_block.1": "mid_block.attentions.0", "middle_block_out.0": "controlnet_mid_block"}
    blocks = sizes.num_res_blocks + 1  # of a level; in the encoder the last one halves the sides
    for number in range(blocks * len(sizes.channel_mult)):
        level, repeat = divmod(number, blocks)
        names[f"zero_convs.{number}.0"] = f"controlnet_down_blocks.{number}"
        names[f"input_blocks.{number + 1}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for place, kind in enumerate(("resnets", "attentions")):
            names[f"input_blocks.{number + 1}.{place}"] = f"down_blocks.{level}.{kind}.{repeat}"
            names[f"output_blocks.{number}.{place}"] = f"up_blocks.{level}.{kind}.{repeat}"
            names[f"output_blocks.{number}.{place + 1}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    last = 2 * len(sizes.hint_channels) - 1  # SiLU takes every odd place in the hint block
    for step in range(last + 1):
        end = {0: "conv_in", last: "conv_out"}.get(step, f"blocks.{step - 1}")
        names[f"input_hint_block.{2 * step}"] = f"controlnet_cond_embedding.{end}"
    return names


def vae(sizes):
    """Return the autoencoder's names. sizes: a VAEConfig. `decoder.up` counts levels, `up_blocks` the order."""
    names, last = {}, len(sizes.channel_mult) - 1
    for half in ("encoder", "decoder"):
        names |= {f"{half}.mid.block_{n + 1}": f"{half}.mid_block.resnets.{n}" for n in (0, 1)}
        names |= {f"{half}.norm_out": f"{half}.conv_norm_out"}
        for ours, theirs in {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}.items():
            names[f"{half}.mid.attn_1.{ours}"] = f"{half}.mid_block.attentions.0.{theirs}"
    for level in range(last + 1):
        names[f"encoder.down.{level}.block"] = f"encoder.down_blocks.{level}.resnets"
        names[f"encoder.down.{level}.downsample"] = f"encoder.down_blocks.{level}.downsamplers.0"
        names[f"decoder.up.{level}.block"] = f"decoder.up_blocks.{last - level}.resnets"
        names[f"decoder.up.{level}.upsample"] = f"decoder.up_blocks.{last - level}.upsamplers.0"
    return names


def text(sizes):
    """Return the text tower's names in Hugging Face's CLIP, below `text_model.`."""
    names = {"token_embedding": "embeddings.token_embedding", "ln_final": "final_layer_norm"}
    names |= {"positional_embedding": "embeddings.position_embedding.weight", "transformer.resblocks": "encoder.layers"}
    return names


BEGINNINGS = {"unet": unet, "controlnet": unet, "vae": vae, "text": text}


def diffusers_names(name, beginnings):
    """Return the names in diffusers of one of our tensors: three for CLIP's q, k and v, which are one of ours."""
    words = name.split(".")
    cut = next((n for n in range(len(words), 0, -1) if ".".join(words[:n]) in beginnings), 0)
    theirs = ".".join([beginnings.get(".".join(words[:cut]), ""), *words[cut:]]).strip(".")
    for ours, layer in LAYERS.items():
        theirs = theirs.replace(f".{ours}.", f".{layer}.")
    before, joined, kind = theirs.partition("attn.in_proj_")
    return [f"{before}self_attn.{letter}_proj.{kind}" for letter in "qkv"] if joined else [theirs]


def to_diffusers(part, sizes, tensors):
    """Rename our tensors to diffusers' names: q, k, v of CLIP are cut apart, the autoencoder's attention is linear."""
    beginnings, renamed = BEGINNINGS[part](sizes), {}
    for name, tensor in tensors.items():
        names = diffusers_names(name, beginnings)
        renamed |= zip(names, flat(names[0], tensor).chunk(len(names)), strict=True)
    return renamed


def from_diffusers(part, sizes, own, tensors):
    """Rename diffusers' tensors to our names and to the shapes of `own`. Only q, k and v of CLIP are copied."""
    beginnings, renamed = BEGINNINGS[part](sizes), {}
    for name, like in own.items():
        pieces = [tensors[theirs] for theirs in diffusers_names(name, beginnings)]
        renamed[name] = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).reshape(like.shape)
    return renamed


def present(name):
    """Return the present diffusers name of an old one: only the autoencoder's attention was renamed."""
    before, attention, layer = name.partition(VAE_ATTENTION)
    word, _, kind = layer.rpartition(".")
    return f"{before}{attention}{NEW_ATTENTION.get(word, word)}.{kind}" if attention else name


def flat(name, tensor):
    """Return the weight of a 1x1 convolution (C, C, 1, 1) in the autoencoder's attention as linear (C, C)."""
    return tensor[..., 0, 0] if VAE_ATTENTION in name and tensor.shape[2:] == (1, 1) else tensor
