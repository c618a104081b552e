"""Every public layout maps to our parts and back, name by name and shape by shape; no number is needed for that.

The manifests come from the public programs themselves, so they are independent of our names and networks.
"""

import re
from math import prod

import pytest
import torch

from emit.checkpoints.names import to_diffusers
from emit.checkpoints.recognise import sort, split, version_of

BUFFERS = 12  # of the noise schedule
TEXT_SD1 = 148  # 12 blocks x 12 tensors, two embeddings, one norm
TEXT_SD2 = 280  # 23 blocks
CASES = [  # manifest, {part: (tensors, parameters)}, dropped, version, layout
    ("sd15_ldm", {"unet": 686, "vae": 248, "text": TEXT_SD1}, BUFFERS + 1, "sd1", "single"),
    ("sd15_ldm_emaonly_public", {"unet": 686, "vae": 248, "text": TEXT_SD1}, BUFFERS + 3, "sd1", "single"),
    ("sd15_ldm_with_ema", {"unet": 686, "vae": 248, "text": TEXT_SD1}, BUFFERS + 3 + 686, "sd1", "single"),
    ("sd15_controlnet_ldm", {"controlnet": 340}, 0, "sd1", "single"),
    ("sd15_controlnet_ldm_full", {"unet": 686, "vae": 248, "text": TEXT_SD1, "controlnet": 340}, 14, "sd1", "single"),
    ("sd15_diffusers_unet", {"unet": 686}, 0, "sd1", "diffusers"),
    ("sd15_diffusers_vae", {"vae": 248}, 0, "sd", "diffusers"),
    ("sd15_diffusers_vae_old_attn", {"vae": 248}, 0, "sd", "diffusers"),
    ("sd15_diffusers_controlnet", {"controlnet": 340}, 0, "sd1", "diffusers"),
    ("sd15_clip_text_hf", {"text": TEXT_SD1}, 0, "sd1", "diffusers"),
    ("sd15_clip_text_hf_with_position_ids", {"text": TEXT_SD1}, 1, "sd1", "diffusers"),
    ("sd21_ldm", {"unet": 686, "vae": 248, "text": TEXT_SD2}, BUFFERS + 2 + 12, "sd2", "single"),
    ("sd21_ldm_public", {"unet": 686, "vae": 248, "text": TEXT_SD2}, BUFFERS + 2 + 12 + 2, "sd2", "single"),
    ("sd21_controlnet_ldm", {"controlnet": 340}, 0, "sd2", "single"),
    ("sd21_diffusers_unet", {"unet": 686}, 0, "sd2", "diffusers"),
    ("sd21_diffusers_vae", {"vae": 248}, 0, "sd", "diffusers"),
    ("sd21_diffusers_controlnet", {"controlnet": 340}, 0, "sd2", "diffusers"),
    ("sd21_clip_text_hf", {"text": TEXT_SD2}, 0, "sd2", "diffusers"),
    ("open_clip_vit_l_14_text", {"text": TEXT_SD1}, 2, "sd1", "bare"),
    ("open_clip_vit_h_14_text", {"text": TEXT_SD2}, 2 + 12, "sd2", "bare"),
    ("hed_bsds500", {"hed": 38}, 0, "emit", "bare"),
    ("hed_v11", {"hed_v11": 37}, 0, "emit", "bare"),
    ("hed_v11_public_fp16", {"hed_v11": 37}, 0, "emit", "bare"),
]
PARAMETERS = {  # as published, except SD 2's ControlNet: computed from its manifest below
    ("unet", "sd1"): 859_520_964,
    ("unet", "sd2"): 865_910_724,
    ("vae", "sd"): 83_653_863,
    ("controlnet", "sd1"): 361_279_120,
    ("text", "sd1"): 123_060_480,
}


def meta(manifest):
    return {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, (shape, dtype) in manifest.items()}


def test_every_manifest_has_a_case(manifests):
    assert {case[0] for case in CASES} == manifests.keys()


@pytest.mark.parametrize(("kind", "counts", "dropped", "version", "layout"), CASES, ids=[case[0] for case in CASES])
def test_every_tensor_is_used_once_or_named_as_dropped(manifests, kind, counts, dropped, version, layout):
    tensors = meta(manifests[kind])
    parts, sizes, left_out, found_layout = sort(kind, tensors)
    assert {part: len(own) for part, own in parts.items()} == counts
    assert len(left_out) == dropped
    assert version_of(sizes) == version
    assert found_layout == layout
    used = sum(prod(shape) for name, (shape, _) in manifests[kind].items() if name not in left_out)
    assert sum(tensor.numel() for own in parts.values() for tensor in own.values()) == used
    for part, own in parts.items():
        expected = PARAMETERS.get((part, "sd" if part == "vae" else version))
        assert expected is None or sum(tensor.numel() for tensor in own.values()) == expected


DROPPED_FROM_FULL = """alphas_cumprod alphas_cumprod_prev betas
    cond_stage_model.transformer.text_model.embeddings.position_ids log_one_minus_alphas_cumprod logvar
    posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 posterior_variance sqrt_alphas_cumprod
    sqrt_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod"""


def test_the_dropped_names_are_these(manifests):
    full = sort("full", meta(manifests["sd15_controlnet_ldm_full"]))[2]
    assert full == DROPPED_FROM_FULL.split()
    h_14 = sort("h_14", meta(manifests["open_clip_vit_h_14_text"]))[2]
    assert {re.sub(r"^transformer\.resblocks\.23\..*", "last block", name) for name in h_14} == {
        "last block",
        "logit_scale",
        "text_projection",
    }


# The correspondence as the public documentation writes it for four levels of two blocks, numbers and all.
UNET_RULES = [
    (r"time_embed\.0\.", "time_embedding.linear_1."),
    (r"time_embed\.2\.", "time_embedding.linear_2."),
    (r"input_blocks\.0\.0\.", "conv_in."),
    (r"input_blocks\.([369])\.0\.op\.", lambda m: f"down_blocks.{int(m[1]) // 3 - 1}.downsamplers.0.conv."),
    (r"input_blocks\.(\d+)\.0\.", lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.resnets.{(int(m[1]) - 1) % 3}."),
    (r"input_blocks\.(\d+)\.1\.", lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.attentions.{(int(m[1]) - 1) % 3}."),
    (r"middle_block\.0\.", "mid_block.resnets.0."),
    (r"middle_block\.1\.", "mid_block.attentions.0."),
    (r"middle_block\.2\.", "mid_block.resnets.1."),
    (r"output_blocks\.(2\.1|5\.2|8\.2)\.conv\.", lambda m: f"up_blocks.{int(m[1][0]) // 3}.upsamplers.0.conv."),
    (r"output_blocks\.(\d+)\.0\.", lambda m: f"up_blocks.{int(m[1]) // 3}.resnets.{int(m[1]) % 3}."),
    (r"output_blocks\.(\d+)\.1\.", lambda m: f"up_blocks.{int(m[1]) // 3}.attentions.{int(m[1]) % 3}."),
    (r"out\.0\.", "conv_norm_out."),
    (r"out\.2\.", "conv_out."),
    (r"input_hint_block\.0\.", "controlnet_cond_embedding.conv_in."),
    (r"input_hint_block\.14\.", "controlnet_cond_embedding.conv_out."),
    (r"input_hint_block\.(\d+)\.", lambda m: f"controlnet_cond_embedding.blocks.{int(m[1]) // 2 - 1}."),
    (r"zero_convs\.(\d+)\.0\.", r"controlnet_down_blocks.\1."),
    (r"middle_block_out\.0\.", "controlnet_mid_block."),
]
RESIDUAL_RULES = [("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj")]
RESIDUAL_RULES += [("out_layers.0", "norm2"), ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")]
VAE_RULES = [
    (r"(..)coder\.down\.(\d)\.block\.(\d)\.", r"\1coder.down_blocks.\2.resnets.\3."),
    (r"encoder\.down\.(\d)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"decoder\.up\.(\d)\.block\.(\d)\.", lambda m: f"decoder.up_blocks.{3 - int(m[1])}.resnets.{m[2]}."),
    (r"decoder\.up\.(\d)\.upsample\.", lambda m: f"decoder.up_blocks.{3 - int(m[1])}.upsamplers.0."),
    (r"(..)coder\.mid\.block_(\d)\.", lambda m: f"{m[1]}coder.mid_block.resnets.{int(m[2]) - 1}."),
    (r"(..)coder\.mid\.attn_1\.norm\.", r"\1coder.mid_block.attentions.0.group_norm."),
    (r"(..)coder\.mid\.attn_1\.([qkv])\.", r"\1coder.mid_block.attentions.0.to_\2."),
    (r"(..)coder\.mid\.attn_1\.proj_out\.", r"\1coder.mid_block.attentions.0.to_out.0."),
    (r"(..)coder\.norm_out\.", r"\1coder.conv_norm_out."),
]


def translate(name, rules):
    for pattern, replacement in rules:
        if re.match(pattern, name):
            name = re.sub("^" + pattern, replacement, name)
            break
    for ours, theirs in RESIDUAL_RULES:
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name.replace("nin_shortcut", "conv_shortcut")


@pytest.mark.parametrize(
    ("original", "prefix", "other", "rules"),
    [
        ("sd15_ldm", "model.diffusion_model.", "sd15_diffusers_unet", UNET_RULES),
        ("sd21_ldm", "model.diffusion_model.", "sd21_diffusers_unet", UNET_RULES),
        ("sd15_controlnet_ldm", "control_model.", "sd15_diffusers_controlnet", UNET_RULES),
        ("sd21_controlnet_ldm", "control_model.", "sd21_diffusers_controlnet", UNET_RULES),
        ("sd15_ldm", "first_stage_model.", "sd15_diffusers_vae", VAE_RULES),
    ],
)
def test_original_and_diffusers_names_correspond_as_documented(manifests, original, prefix, other, rules):
    parts, sizes, _, _ = sort(original, meta(manifests[original]))
    part = split(manifests[other])[0].keys() & parts.keys()
    (part,) = part
    public = [name.removeprefix(prefix) for name in manifests[original] if name.startswith(prefix)]
    for name in public:
        assert to_diffusers(part, sizes[part], {name: parts[part][name]}).keys() == {translate(name, rules)}
    written = {name: tuple(t.shape) for name, t in to_diffusers(part, sizes[part], parts[part]).items()}
    assert written == {name: shape for name, (shape, _) in manifests[other].items()}


@pytest.mark.parametrize("kind", ["sd15_clip_text_hf", "sd21_clip_text_hf"])
def test_text_goes_back_to_hugging_face_names(manifests, kind):
    parts, sizes, _, _ = sort(kind, meta(manifests[kind]))
    written = to_diffusers("text", sizes["text"], parts["text"])
    assert {f"text_model.{n}": tuple(t.shape) for n, t in written.items()} == {n: s for n, (s, _) in manifests[kind].items()}


def test_bare_parts_and_both_prefixes_of_hed(manifests):
    bare = {name.removeprefix("control_model."): t for name, t in meta(manifests["sd15_controlnet_ldm"]).items()}
    parts, sizes, dropped, layout = sort("bare", bare)
    assert (layout, dropped, parts["controlnet"].keys()) == ("bare", [], bare.keys())
    assert sizes["controlnet"].hint_channels == (16, 32, 96, 256)
    other = {name.replace("module", "net"): t for name, t in meta(manifests["hed_bsds500"]).items()}
    assert sort("net", other)[0]["hed"].keys() == manifests["hed_bsds500"].keys()


def test_a_ControlNet_has_298_copies_and_42_new_tensors(manifests):
    parts, _, _, _ = sort("full", meta(manifests["sd15_controlnet_ldm_full"]))
    copies = parts["controlnet"].keys() & parts["unet"].keys()
    assert (len(copies), len(parts["controlnet"]) - len(copies)) == (298, 42)


def test_ema_is_taken_when_asked_for(manifests):
    tensors = meta(manifests["sd15_ldm_with_ema"])
    parts, _, dropped, _ = sort("ema", tensors, ema=True)
    names = {name: "model_ema.diffusion_model" + name.replace(".", "") for name in parts["unet"]}
    assert all(tensor is tensors[names[name]] for name, tensor in parts["unet"].items())
    assert len(dropped) == BUFFERS + 3  # position_ids, decay, num_updates; the plain UNet was read and replaced
