"""The parameter tables: every tensor of a part, its name in the original files and in diffusers, and its shape.

Inside this program a tensor has its original (CompVis, open_clip) name without prefix. Each table follows from the
sizes of its part, so block numbers are arithmetic and a small model has the same layouts as Stable Diffusion.
"""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Row:
    """One tensor: our name and shape; its names elsewhere (diffusers, Hugging Face) and the shape each has there.

    Several names are our one tensor cut along its first side: q, k and v of CLIP.
    """

    name: str
    shape: tuple[int, ...]
    elsewhere: tuple[str, ...]
    shape_elsewhere: tuple[int, ...]

    @property
    def size(self):
        return prod(self.shape)


def tensor(name, elsewhere, shape, shape_elsewhere=None):
    return Row(name, shape, (elsewhere,), shape if shape_elsewhere is None else shape_elsewhere)


def layer(name, elsewhere, *shape, shape_elsewhere=None):
    """Return the rows of a weight of the given shape and its bias; a norm's weight has one side."""
    return [
        tensor(f"{name}.weight", f"{elsewhere}.weight", shape, shape_elsewhere),
        tensor(f"{name}.bias", f"{elsewhere}.bias", shape[:1]),
    ]


def residual(name, elsewhere, before, after, emb_width):
    rows = [
        *layer(f"{name}.in_layers.0", f"{elsewhere}.norm1", before),
        *layer(f"{name}.in_layers.2", f"{elsewhere}.conv1", after, before, 3, 3),
        *layer(f"{name}.emb_layers.1", f"{elsewhere}.time_emb_proj", after, emb_width),
        *layer(f"{name}.out_layers.0", f"{elsewhere}.norm2", after),
        *layer(f"{name}.out_layers.3", f"{elsewhere}.conv2", after, after, 3, 3),
    ]
    if before != after:
        rows += layer(f"{name}.skip_connection", f"{elsewhere}.conv_shortcut", after, before, 1, 1)
    return rows


def transformer(name, elsewhere, width, sizes):
    """Return the rows of a spatial transformer: inside it both namings agree."""
    projection = (width, width) if sizes.linear_projections else (width, width, 1, 1)
    rows = layer("norm", "norm", width) + layer("proj_in", "proj_in", *projection)
    for attention, key_width in (("attn1", width), ("attn2", sizes.context_dim)):
        for letter, side in (("q", width), ("k", key_width), ("v", key_width)):
            weight = f"transformer_blocks.0.{attention}.to_{letter}.weight"
            rows.append(tensor(weight, weight, (width, side)))
        rows += layer(*2 * (f"transformer_blocks.0.{attention}.to_out.0",), width, width)
    rows += layer(*2 * ("transformer_blocks.0.ff.net.0.proj",), 8 * width, width)
    rows += layer(*2 * ("transformer_blocks.0.ff.net.2",), width, 4 * width)
    for number in (1, 2, 3):
        rows += layer(*2 * (f"transformer_blocks.0.norm{number}",), width)
    rows += layer("proj_out", "proj_out", *projection)
    return [Row(f"{name}.{row.name}", row.shape, (f"{elsewhere}.{row.name}",), row.shape) for row in rows]


def stage(name, elsewhere, repeat, level, before, after, sizes):
    """Return the rows of one block: `elsewhere` has its residual blocks and transformers in two numbered lists."""
    rows = residual(f"{name}.0", f"{elsewhere}.resnets.{repeat}", before, after, 4 * sizes.model_channels)
    if level in sizes.attention_levels:
        rows += transformer(f"{name}.1", f"{elsewhere}.attentions.{repeat}", after, sizes)
    return rows


def unet_encoder(sizes):
    """Return the rows that UNet and ControlNet share, and the width after every encoder block."""
    width, emb_width, last = sizes.model_channels, 4 * sizes.model_channels, len(sizes.channel_mult) - 1
    rows = layer("time_embed.0", "time_embedding.linear_1", emb_width, width)
    rows += layer("time_embed.2", "time_embedding.linear_2", emb_width, emb_width)
    rows += layer("input_blocks.0.0", "conv_in", width, sizes.in_channels, 3, 3)
    widths = [width]
    for level, mult in enumerate(sizes.channel_mult):
        for repeat in range(sizes.num_res_blocks):
            after = mult * sizes.model_channels
            rows += stage(f"input_blocks.{len(widths)}", f"down_blocks.{level}", repeat, level, width, after, sizes)
            width = after
            widths.append(width)
        if level < last:
            downsampler = f"down_blocks.{level}.downsamplers.0.conv"
            rows += layer(f"input_blocks.{len(widths)}.0.op", downsampler, width, width, 3, 3)
            widths.append(width)
    rows += residual("middle_block.0", "mid_block.resnets.0", width, width, emb_width)
    rows += transformer("middle_block.1", "mid_block.attentions.0", width, sizes)
    rows += residual("middle_block.2", "mid_block.resnets.1", width, width, emb_width)
    return rows, widths


def unet(sizes):
    """Return the UNet's rows. sizes: a UNetConfig."""
    rows, skips = unet_encoder(sizes)
    width, blocks = skips[-1], 0
    for order, level in enumerate(reversed(range(len(sizes.channel_mult)))):
        after = sizes.channel_mult[level] * sizes.model_channels
        for repeat in range(sizes.num_res_blocks + 1):
            name = f"output_blocks.{blocks}"
            rows += stage(name, f"up_blocks.{order}", repeat, level, width + skips.pop(), after, sizes)
            width, blocks = after, blocks + 1
        if level:
            place = 2 if level in sizes.attention_levels else 1
            rows += layer(f"{name}.{place}.conv", f"up_blocks.{order}.upsamplers.0.conv", width, width, 3, 3)
    rows += layer("out.0", "conv_norm_out", width)
    return rows + layer("out.2", "conv_out", sizes.out_channels, width, 3, 3)


def controlnet(sizes):
    """Return the ControlNet's rows. sizes: a UNetConfig; SiLU takes every odd place in the hint block."""
    rows, widths = unet_encoder(sizes)
    sides = [3, sizes.hint_channels[0]]
    for before, after in zip(sizes.hint_channels, sizes.hint_channels[1:], strict=False):
        sides += [before, after]
    sides.append(sizes.model_channels)
    steps = len(sides) - 1
    for step in range(steps):
        elsewhere = {0: "conv_in", steps - 1: "conv_out"}.get(step, f"blocks.{step - 1}")
        name = f"input_hint_block.{2 * step}"
        rows += layer(name, f"controlnet_cond_embedding.{elsewhere}", sides[step + 1], sides[step], 3, 3)
    for number, width in enumerate(widths):
        rows += layer(f"zero_convs.{number}.0", f"controlnet_down_blocks.{number}", width, width, 1, 1)
    return rows + layer("middle_block_out.0", "controlnet_mid_block", widths[-1], widths[-1], 1, 1)


def vae_block(name, elsewhere, before, after):
    rows = [
        *layer(f"{name}.norm1", f"{elsewhere}.norm1", before),
        *layer(f"{name}.conv1", f"{elsewhere}.conv1", after, before, 3, 3),
        *layer(f"{name}.norm2", f"{elsewhere}.norm2", after),
        *layer(f"{name}.conv2", f"{elsewhere}.conv2", after, after, 3, 3),
    ]
    if before != after:
        rows += layer(f"{name}.nin_shortcut", f"{elsewhere}.conv_shortcut", after, before, 1, 1)
    return rows


def vae_middle(half, width):
    """Return the rows of residual block, attention, residual block; diffusers' attention is linear."""
    rows = vae_block(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", width, width)
    name, elsewhere = f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
    rows += layer(f"{name}.norm", f"{elsewhere}.group_norm", width)
    for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        flat = (width, width)
        rows += layer(f"{name}.{ours}", f"{elsewhere}.{theirs}", *flat, 1, 1, shape_elsewhere=flat)
    return rows + vae_block(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", width, width)


def vae(sizes):
    """Return the autoencoder's rows. sizes: a VAEConfig. `decoder.up` counts levels, `up_blocks` the order."""
    last, width, latent = len(sizes.channel_mult) - 1, sizes.channels, sizes.z_channels
    rows = layer("encoder.conv_in", "encoder.conv_in", width, 3, 3, 3)
    for level, mult in enumerate(sizes.channel_mult):
        name, elsewhere = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for repeat in range(sizes.num_res_blocks):
            after = mult * sizes.channels
            rows += vae_block(f"{name}.block.{repeat}", f"{elsewhere}.resnets.{repeat}", width, after)
            width = after
        if level < last:
            rows += layer(f"{name}.downsample.conv", f"{elsewhere}.downsamplers.0.conv", width, width, 3, 3)
    rows += vae_middle("encoder", width)
    rows += layer("encoder.norm_out", "encoder.conv_norm_out", width)
    rows += layer("encoder.conv_out", "encoder.conv_out", 2 * latent, width, 3, 3)
    rows += layer("quant_conv", "quant_conv", 2 * latent, 2 * latent, 1, 1)
    rows += layer("post_quant_conv", "post_quant_conv", latent, latent, 1, 1)
    rows += layer("decoder.conv_in", "decoder.conv_in", width, latent, 3, 3)
    rows += vae_middle("decoder", width)
    for level in reversed(range(last + 1)):
        name, elsewhere = f"decoder.up.{level}", f"decoder.up_blocks.{last - level}"
        for repeat in range(sizes.num_res_blocks + 1):
            after = sizes.channel_mult[level] * sizes.channels
            rows += vae_block(f"{name}.block.{repeat}", f"{elsewhere}.resnets.{repeat}", width, after)
            width = after
        if level:
            rows += layer(f"{name}.upsample.conv", f"{elsewhere}.upsamplers.0.conv", width, width, 3, 3)
    rows += layer("decoder.norm_out", "decoder.conv_norm_out", width)
    return rows + layer("decoder.conv_out", "decoder.conv_out", 3, width, 3, 3)


def text(sizes):
    """Return the text tower's rows; elsewhere is Hugging Face's CLIP below `text_model.`. sizes: a TextConfig."""
    width = sizes.width
    rows = [
        tensor("token_embedding.weight", "embeddings.token_embedding.weight", (49408, width)),
        tensor("positional_embedding", "embeddings.position_embedding.weight", (77, width)),
    ]
    for number in range(sizes.layers):
        name, elsewhere = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        for ours, shape in (("weight", (width, width)), ("bias", (width,))):
            split = tuple(f"{elsewhere}.self_attn.{letter}_proj.{ours}" for letter in "qkv")
            rows.append(Row(f"{name}.attn.in_proj_{ours}", (3 * width, *shape[1:]), split, shape))
        rows += layer(f"{name}.attn.out_proj", f"{elsewhere}.self_attn.out_proj", width, width)
        rows += layer(f"{name}.ln_1", f"{elsewhere}.layer_norm1", width)
        rows += layer(f"{name}.ln_2", f"{elsewhere}.layer_norm2", width)
        rows += layer(f"{name}.mlp.c_fc", f"{elsewhere}.mlp.fc1", 4 * width, width)
        rows += layer(f"{name}.mlp.c_proj", f"{elsewhere}.mlp.fc2", width, 4 * width)
    return rows + layer("ln_final", "final_layer_norm", width)


VGG_DEPTHS = (2, 2, 3, 3, 3)  # VGG-16 (1409.1556): convolutions per stage
STAGES = ("One", "Two", "Thr", "Fou", "Fiv")


def hed(channels):
    """Return the rows of network-bsds500: places count pooling (first, but in stage one), convolutions and ReLUs."""
    rows, before = [], 3
    for number, (stage_name, depth, after) in enumerate(zip(STAGES, VGG_DEPTHS, channels, strict=True)):
        for repeat in range(depth):
            name = f"moduleVgg{stage_name}.{2 * repeat + (number > 0)}"
            rows += layer(name, name, after, before, 3, 3)
            before = after
        rows += layer(*2 * (f"moduleScore{stage_name}",), 1, after, 1, 1)
    return rows + layer(*2 * ("moduleCombine.0",), 1, len(STAGES), 1, 1)


def hed_v11(channels):
    """Return the rows of ControlNetHED, the detector of ControlNet 1.1."""
    rows, before = [tensor("norm", "norm", (1, 3, 1, 1))], 3
    for number, (depth, after) in enumerate(zip(VGG_DEPTHS, channels, strict=True), start=1):
        for repeat in range(depth):
            name = f"block{number}.convs.{repeat}"
            rows += layer(name, name, after, before, 3, 3)
            before = after
        rows += layer(*2 * (f"block{number}.projection",), 1, after, 1, 1)
    return rows


TABLES = {"unet": unet, "vae": vae, "text": text, "controlnet": controlnet, "hed": hed, "hed_v11": hed_v11}
