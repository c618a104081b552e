"""Every public layout maps to our parts and back, name by name and shape by shape; no number is needed for that.

The manifests come from the public programs themselves, so they are independent of our names and networks.
"""

import re

import pytest

from emit.checkpoints.names import to_diffusers
from emit.checkpoints.reader import match
from emit.checkpoints.recognise import sort
from emit.checkpoints.sizes import version_of

BUFFERS = 12  # of the noise schedule
TEXT_SD1 = 148  # 12 blocks x 12 tensors, two embeddings, one norm
TEXT_SD2 = 280  # 23 blocks
CASES = [  # manifest, {part: tensors}, dropped, version
    ("sd15_ldm", {"unet": 686, "vae": 248, "text": TEXT_SD1}, BUFFERS + 1, "sd1"),
    ("sd15_ldm_emaonly_public", {"unet": 686, "vae": 248, "text": TEXT_SD1}, BUFFERS + 3, "sd1"),
    ("sd15_ldm_with_ema", {"unet": 686, "vae": 248, "text": TEXT_SD1}, BUFFERS + 3 + 686, "sd1"),
    ("sd15_controlnet_ldm", {"controlnet": 340}, 0, "sd1"),
    ("sd15_controlnet_ldm_full", {"unet": 686, "vae": 248, "text": TEXT_SD1, "controlnet": 340}, 14, "sd1"),
    ("sd15_diffusers_unet", {"unet": 686}, 0, "sd1"),
    ("sd15_diffusers_vae", {"vae": 248}, 0, "sd"),
    ("sd15_diffusers_vae_old_attn", {"vae": 248}, 0, "sd"),
    ("sd15_diffusers_controlnet", {"controlnet": 340}, 0, "sd1"),
    ("sd15_clip_text_hf", {"text": TEXT_SD1}, 0, "sd1"),
    ("sd15_clip_text_hf_with_position_ids", {"text": TEXT_SD1}, 1, "sd1"),
    ("sd21_ldm", {"unet": 686, "vae": 248, "text": TEXT_SD2}, BUFFERS + 2 + 12, "sd2"),
    ("sd21_ldm_public", {"unet": 686, "vae": 248, "text": TEXT_SD2}, BUFFERS + 2 + 12 + 2, "sd2"),
    ("sd21_controlnet_ldm", {"controlnet": 340}, 0, "sd2"),
    ("sd21_diffusers_unet", {"unet": 686}, 0, "sd2"),
    ("sd21_diffusers_vae", {"vae": 248}, 0, "sd"),
    ("sd21_diffusers_controlnet", {"controlnet": 340}, 0, "sd2"),
    ("sd21_clip_text_hf", {"text": TEXT_SD2}, 0, "sd2"),
    ("open_clip_vit_l_14_text", {"text": TEXT_SD1}, 2, "sd1"),
    ("open_clip_vit_h_14_text", {"text": TEXT_SD2}, 2 + 12, "sd2"),
    ("hed_bsds500", {"hed": 38}, 0, "emit"),
    ("hed_v11", {"hed_v11": 37}, 0, "emit"),
    ("hed_v11_public_fp16", {"hed_v11": 37}, 0, "emit"),
]
PARAMETERS = {  # as published
    ("unet", "sd1"): 859_520_964,
    ("unet", "sd2"): 865_910_724,
    ("vae", "sd"): 83_653_863,
    ("controlnet", "sd1"): 361_279_120,
    ("text", "sd1"): 123_060_480,
    ("hed", "emit"): 14_714_688 + 1477 + 6,  # VGG-16's convolutions, the scores, the fusion
    ("hed_v11", "emit"): 14_714_688 + 1477 + 3,  # and the norm
}


def interpret(tensors, ema=False):
    """Return {part: {our name: tensor}}, {part: sizes} and the names dropped."""
    named, dropped = sort("file", tensors, ema)
    matched = {part: match("file", part, naming, own) for part, (naming, own) in named.items()}
    return {part: own for part, (_, own) in matched.items()}, {part: sizes for part, (sizes, _) in matched.items()}, dropped


def test_every_manifest_has_a_case(manifests):
    assert {case[0] for case in CASES} == manifests.keys()


@pytest.mark.parametrize(("kind", "counts", "dropped", "version"), CASES, ids=[case[0] for case in CASES])
def test_every_tensor_is_used_once_or_named_as_dropped(manifests, kind, counts, dropped, version):
    parts, sizes, left_out = interpret(manifests[kind])
    assert {part: len(own) for part, own in parts.items()} == counts
    assert (len(left_out), version_of(sizes)) == (dropped, version)
    parameters = {part: sum(tensor.numel() for tensor in own.values()) for part, own in parts.items()}
    assert sum(parameters.values()) == sum(t.numel() for name, t in manifests[kind].items() if name not in left_out)
    for part, count in parameters.items():
        assert PARAMETERS.get((part, "sd" if part == "vae" else version), count) == count


DROPPED_FROM_FULL = """alphas_cumprod alphas_cumprod_prev betas
    cond_stage_model.transformer.text_model.embeddings.position_ids log_one_minus_alphas_cumprod logvar
    posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 posterior_variance sqrt_alphas_cumprod
    sqrt_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod"""


def test_the_dropped_names_are_these(manifests):
    assert sort("full", manifests["sd15_controlnet_ldm_full"])[1] == DROPPED_FROM_FULL.split()
    h_14 = sort("h_14", manifests["open_clip_vit_h_14_text"])[1]
    shortened = {re.sub(r"^transformer\.resblocks\.23\..*", "last block", name) for name in h_14}
    assert shortened == {"last block", "logit_scale", "text_projection"}


@pytest.mark.parametrize(
    ("original", "other"),
    [
        ("sd15_ldm", "sd15_diffusers_unet"),
        ("sd21_ldm", "sd21_diffusers_unet"),
        ("sd15_controlnet_ldm", "sd15_diffusers_controlnet"),
        ("sd21_controlnet_ldm", "sd21_diffusers_controlnet"),
        ("sd15_ldm", "sd15_diffusers_vae"),
        ("open_clip_vit_l_14_text", "sd15_clip_text_hf"),
        ("sd21_ldm", "sd21_clip_text_hf"),
    ],
)
def test_a_part_goes_from_the_original_names_to_diffusers(manifests, original, other):
    """Which tensor is which is in the golden files: tests/networks/test_golden.py."""
    parts, sizes, _ = interpret(manifests[original])
    (part,) = sort(other, manifests[other])[0]
    written = {name: tensor.shape for name, tensor in to_diffusers(part, sizes[part], parts[part]).items()}
    assert written == {name.removeprefix("text_model."): tensor.shape for name, tensor in manifests[other].items()}


def test_a_controlnet_without_prefix_has_298_copies_and_42_new_tensors(manifests):
    bare = {name.removeprefix("control_model."): tensor for name, tensor in manifests["sd15_controlnet_ldm"].items()}
    controlnet, sizes, dropped = interpret(bare)
    unet, _, _ = interpret(manifests["sd15_ldm"])
    assert (dropped, sizes["controlnet"].hint_channels) == ([], (16, 32, 96, 256))
    copies = controlnet["controlnet"].keys() & unet["unet"].keys()
    assert (len(copies), len(bare) - len(copies)) == (298, 42)


def test_ema_is_taken_when_asked_for(manifests):
    tensors = manifests["sd15_ldm_with_ema"]
    parts, _, dropped = interpret(tensors, ema=True)
    names = {name: "model_ema.diffusion_model" + name.replace(".", "") for name in parts["unet"]}
    assert all(tensor is tensors[names[name]] for name, tensor in parts["unet"].items())
    assert len(dropped) == BUFFERS + 3  # position_ids, decay, num_updates; the plain UNet was replaced
