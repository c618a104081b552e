"""Make the reference tensors of tests/golden with diffusers 0.42.1 and transformers 5.23.0, without any code of emit.

    pip install -r tests/golden/requirements-golden.txt
    python tests/golden/make_golden.py            (15 seconds on one core)

Weights follow from rule.py by the ORIGINAL name of each tensor. The name maps below are written from the public
correspondence of the two layouts. Every file holds inputs and outputs, and in its metadata "names": for each part a
list of [original name, original shape, names in diffusers or transformers, shape there].
The configurations are small versions of Stable Diffusion 1.5 ("sd1") and 2.1 ("sd2"); "quiet" is sd1 with variances
near 1e-5 before every norm.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.schedulers import scheduling_ddpm
from rule import golden_tensor, normal
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).parent
HINT_CHANNELS = (4, 6, 8)
TEXT_WIDTHS = {"sd1": 24, "sd2": 40}
UNETS = {
    "sd1": dict(
        block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=2,
        attention_head_dim=8,  # the number of heads, whatever its name
        cross_attention_dim=TEXT_WIDTHS["sd1"],
        norm_num_groups=8,
    ),
    "sd2": dict(
        block_out_channels=(32, 64, 96),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        attention_head_dim=(4, 8, 12),  # heads of size 8
        cross_attention_dim=TEXT_WIDTHS["sd2"],
        norm_num_groups=4,
        use_linear_projection=True,
    ),
}
UNETS["quiet"] = UNETS["sd1"]
VAE = dict(
    block_out_channels=(16, 32, 32),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=2,
    latent_channels=4,
    norm_num_groups=4,
    scaling_factor=0.18215,
)
SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    timestep_spacing="leading",
    steps_offset=1,
)
TOKENS = ([24773, 539, 518, 28808], [], [1122, 11261, 539, 596, 2164, *range(500, 570)])


def residual(inner):
    """Name the layers of a residual block in the original code."""
    table = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    return table[inner.split(".")[0]] + "." + inner.split(".")[1]


def original_unet(name, layers, attended):
    """Translate a name of UNet2DConditionModel or ControlNetModel. attended: which up blocks have attention."""
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "controlnet_mid_block": "middle_block_out.0",
        "controlnet_cond_embedding.conv_in": "input_hint_block.0",
        "controlnet_cond_embedding.conv_out": f"input_hint_block.{4 * len(HINT_CHANNELS) - 2}",
    }
    stem, _, kind = name.rpartition(".")
    if stem in fixed:
        return f"{fixed[stem]}.{kind}"
    if m := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)$", stem):
        return f"input_hint_block.{2 + 2 * int(m[1])}.{kind}"
    if m := re.match(r"controlnet_down_blocks\.(\d+)$", stem):
        return f"zero_convs.{m[1]}.0.{kind}"
    if m := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        inner = residual(m[3]) if m[1] == "resnets" else m[3]
        return f"middle_block.{2 * int(m[2]) if m[1] == 'resnets' else 1}.{inner}"
    m = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    side, block, what, repeat, inner = m[1], int(m[2]), m[3], int(m[4]), m[5]
    if what == "downsamplers":
        return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{kind}"
    if what == "upsamplers":
        return f"output_blocks.{(layers + 1) * (block + 1) - 1}.{2 if attended[block] else 1}.conv.{kind}"
    place = f"input_blocks.{1 + (layers + 1) * block + repeat}"
    if side == "up":
        place = f"output_blocks.{(layers + 1) * block + repeat}"
    return f"{place}.0.{residual(inner)}" if what == "resnets" else f"{place}.1.{inner}"


def original_vae(name):
    """Translate a name of AutoencoderKL."""
    levels = len(VAE["block_out_channels"])
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
    name = re.sub(r"to_([qkv])\.", r"\1.", name).replace("to_out.0", "proj_out")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)


def original_text(name):
    """Translate a name of CLIPTextModel to open_clip's; q, k and v are told apart by the caller."""
    fixed = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    name = re.sub(r"^text_model\.", "", name)
    name = fixed.get(name, name).replace("encoder.layers", "transformer.resblocks")
    name = re.sub(r"self_attn\.[qkv]_proj\.", "attn.in_proj_", name).replace("self_attn.out_proj", "attn.out_proj")
    name = name.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2").replace("final_layer_norm", "ln_final")
    return name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")


def fill(module, part, translate, quiet=False):
    """Give every tensor of a module its golden value; return the rows of the name table."""
    state, rows = module.state_dict(), {}
    for name, tensor in state.items():
        original, shape = translate(name), list(tensor.shape)
        if part == "vae" and ".attn_1." in original and len(shape) == 2:
            shape += [1, 1]  # linear in diffusers, a 1x1 convolution in the original
        if "in_proj" in original:
            shape[0] *= 3
        rows.setdefault(original, [original, shape, [], list(tensor.shape)])[2].append(name)
    for original, shape, names, shape_elsewhere in rows.values():
        names.sort(key=lambda name: re.sub(r"([qkv])_proj", lambda m: "qkv".index(m[1]) * "_", name))
        pieces = golden_tensor(f"{part}.{original}", shape, quiet).chunk(len(names))
        for name, piece in zip(names, pieces, strict=True):
            state[name].copy_(piece.reshape(shape_elsewhere))
    module.eval().requires_grad_(False)
    return list(rows.values())


def build(kind):
    """Return UNet, ControlNet and their name tables."""
    sizes = UNETS[kind]
    attended = [block.startswith("Cross") for block in sizes["down_block_types"]]
    up = tuple("CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(attended))
    unet = UNet2DConditionModel(**sizes, up_block_types=up)
    controlnet = ControlNetModel(**sizes, conditioning_embedding_out_channels=HINT_CHANNELS)
    names = {
        part: fill(module, part, lambda name: original_unet(name, sizes["layers_per_block"], attended[::-1]), kind == "quiet")
        for part, module in (("unet", unet), ("controlnet", controlnet))
    }
    return unet, controlnet, names


def random(name, *shape):
    """Draw an input."""
    return torch.from_numpy(normal(f"input {name}", shape).astype(np.float32))


def predict(unet, controlnet, z_t, t, context, hint, scales):
    """Return the UNet's output under the scaled residuals, and the residuals."""
    down, middle = controlnet(z_t, t, context, hint, return_dict=False)
    down, middle = [s * r for s, r in zip(scales[:-1], down, strict=True)], scales[-1] * middle
    out = unet(z_t, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle, return_dict=False)
    return out[0], [*down, middle]


def walk(scheduler, nets, tensors, guidance):
    """Run 20 steps with classifier-free guidance; DDPM takes its noise from tensors."""
    scheduler.set_timesteps(20)
    z_t, context, hint = tensors["z_T"], tensors["context"], tensors["hint"]
    ones = [1.0] * len(tensors["scales"])
    for t in scheduler.timesteps:
        both = torch.cat([z_t, z_t])
        out, _ = predict(*nets, both, t.expand(2), context, hint[:1].expand(2, -1, -1, -1), ones)
        uncond, cond = out.chunk(2)
        z_t = scheduler.step(uncond + guidance * (cond - uncond), t, z_t).prev_sample
    return z_t


def make_unet(kind):
    """Write UNet, ControlNet and the walks of one configuration."""
    unet, controlnet, names = build(kind)
    tensors = {
        "z_t": random(f"{kind} z_t", 2, 4, 8, 12),
        "t": torch.tensor([17, 801]),
        "context": random(f"{kind} context", 2, 77, UNETS[kind]["cross_attention_dim"]),
        "hint": random(f"{kind} hint", 2, 3, 32, 48).sigmoid(),
    }
    args = tensors["z_t"], tensors["t"], tensors["context"]
    tensors["eps"] = unet(*args, return_dict=False)[0]
    count = len(controlnet.controlnet_down_blocks) + 1
    tensors["scales"] = torch.linspace(0.4, 1.6, count)  # all different, so that their order shows
    scales = tensors["scales"].tolist()
    tensors["eps_controlled"], residuals = predict(unet, controlnet, *args, tensors["hint"], scales)
    tensors |= {f"residual_{i}": residual[:1] / scale for i, (residual, scale) in enumerate(zip(residuals, scales, strict=True))}
    if kind != "quiet":
        tensors["z_T"] = random(f"{kind} z_T", 1, 4, 8, 12)
        prediction = {"sd1": "epsilon", "sd2": "v_prediction"}[kind]
        ddim = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, prediction_type=prediction)
        tensors["ddim"] = walk(ddim, (unet, controlnet), tensors, 2.0)
        trailing = DDIMScheduler(**{**SCHEDULE, "timestep_spacing": "trailing"}, set_alpha_to_one=True, prediction_type=prediction)
        tensors["ddim_trailing"] = walk(trailing, (unet, controlnet), tensors, 2.0)
        tensors["noise"] = random(f"{kind} noise", 20, 1, 4, 8, 12)
        stream = iter(tensors["noise"])
        scheduling_ddpm.randn_tensor = lambda *args, **kwargs: next(stream)
        ddpm = DDPMScheduler(**SCHEDULE, variance_type="fixed_small", prediction_type=prediction)
        tensors["ddpm"] = walk(ddpm, (unet, controlnet), tensors, 2.0)
    write(f"unet_{kind}", tensors, names)


def make_vae(kind):
    """Write encoder moments and decoded image."""
    vae = AutoencoderKL(**VAE)
    names = {"vae": fill(vae, "vae", original_vae, kind == "quiet")}
    image, z = random(f"{kind} image", 2, 3, 32, 48).tanh(), random(f"{kind} z", 2, 4, 8, 12)
    posterior = vae.encode(image).latent_dist
    decoded = vae.decode(z).sample
    write(
        f"vae_{kind}", {"image": image, "mean": posterior.mean, "log_variance": posterior.logvar, "z": z, "decoded": decoded}, names
    )


def make_text(kind):
    """Write text states: sd1 after the last of 3 blocks, sd2 after block 23 of 24, both with the final norm."""
    layers, act, pad = {"sd1": (3, "quick_gelu", 49407), "sd2": (24, "gelu", 0)}[kind]
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=TEXT_WIDTHS[kind],
            intermediate_size=4 * TEXT_WIDTHS[kind],
            num_hidden_layers=layers,
            num_attention_heads=4,
            hidden_act=act,
            vocab_size=49408,
        )
    )
    names = {"text": fill(text, "text", original_text)}
    rows = [[49406, *tokens, 49407] for tokens in TOKENS]
    ids = torch.tensor([row + [pad] * (77 - len(row)) for row in rows])
    out = text(input_ids=ids, output_hidden_states=True)
    states = out.last_hidden_state
    if kind == "sd2":
        states = text.final_layer_norm(out.hidden_states[-2])
    write(f"text_{kind}", {"ids": ids, "states": states}, names)


def hed_parts(kind):
    """Return the convolutions of five stages, the scores and, for bsds500, the fusion, as {name: shape}."""
    widths, depths, names, before = (4, 6, 8, 10, 12), (2, 2, 3, 3, 3), {}, 3
    stages = []
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        place = ["One", "Two", "Thr", "Fou", "Fiv"][stage]
        convs = [
            f"moduleVgg{place}.{2 * i + (stage > 0)}" if kind == "hed" else f"block{stage + 1}.convs.{i}" for i in range(depth)
        ]
        for conv in convs:
            names |= {f"{conv}.weight": [width, before, 3, 3], f"{conv}.bias": [width]}
            before = width
        score = f"moduleScore{place}" if kind == "hed" else f"block{stage + 1}.projection"
        names |= {f"{score}.weight": [1, width, 1, 1], f"{score}.bias": [1]}
        stages.append((convs, score))
    extra = {"moduleCombine.0.weight": [1, 5, 1, 1], "moduleCombine.0.bias": [1]}
    return stages, names | (extra if kind == "hed" else {"norm": [1, 3, 1, 1]})


def bilinear(x, sides):
    """Resize by the definition: pixel centres at (i + 0.5) * ratio - 0.5, clamped to the border (no align_corners)."""
    for axis, side in zip((2, 3), sides, strict=True):
        old = x.shape[axis]
        place = ((torch.arange(side, dtype=torch.float64) + 0.5) * old / side - 0.5).clamp(0, old - 1)
        low = place.floor().long()
        high, share = (low + 1).clamp(max=old - 1), (place - low).to(x.dtype)
        share = share.view([-1 if a == axis else 1 for a in range(4)])
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return x


def make_hed(kind):
    """Write the six logits and the edge probability, computed functionally in float64."""
    stages, shapes = hed_parts(kind)
    w = {name: golden_tensor(f"{kind}.{name}", shape).double() for name, shape in shapes.items()}
    image = random(f"{kind} image", 1, 3, 48, 80).tanh()
    h = (image.double() + 1) * 127.5
    if kind == "hed":
        bgr_mean = torch.tensor([104.00698793, 116.66876762, 122.67891434], dtype=torch.float64)
        h = h[:, [2, 1, 0]] - bgr_mean.view(1, 3, 1, 1)
    else:
        h = h - w["norm"]
    logits = []
    for stage, (convs, score) in enumerate(stages):
        h = F.max_pool2d(h, 2, 2) if stage else h
        for conv in convs:
            h = F.conv2d(h, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=1).clamp(min=0)
        logits.append(bilinear(F.conv2d(h, w[f"{score}.weight"], w[f"{score}.bias"]), image.shape[-2:]))
    fused = sum(logits) / 5
    if kind == "hed":
        fused = sum(w["moduleCombine.0.weight"][0, i] * x for i, x in enumerate(logits)) + w["moduleCombine.0.bias"]
    logits = torch.cat([*logits, fused]).float()
    names = {kind: [[name, shape, [name], shape] for name, shape in shapes.items()]}
    write(kind, {"image": image, "logits": logits, "edge": fused.sigmoid().float()}, names)


def write(name, tensors, names):
    """Write one file and tell how large its tensors are."""
    tensors = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    save_file(tensors, HERE / f"{name}.safetensors", {"names": json.dumps(names, separators=(",", ":"))})
    rms = {k: round(t.double().square().mean().sqrt().item(), 3) for k, t in tensors.items()}
    print(name, (HERE / f"{name}.safetensors").stat().st_size, rms)


if __name__ == "__main__":
    with torch.no_grad():
        for kind in ("sd1", "sd2", "quiet"):
            make_unet(kind)
        for kind in ("sd1", "quiet"):
            make_vae(kind)
        for kind in ("sd1", "sd2"):
            make_text(kind)
        for kind in ("hed", "hed_v11"):
            make_hed(kind)
