"""Names and shapes of every part are those of the public files, so that a strict load is enough."""

import pytest
import torch

from emit.model import SD15, SD21
from emit.networks.controlnet import ControlNet
from emit.networks.hed import CHANNELS, HED, HEDv11
from emit.networks.text import TextEncoder
from emit.networks.unet import UNet
from emit.networks.vae import AutoencoderKL
from tests.golden.files import read_manifest, shapes_of

PARTS = [  # network, its sizes, the public file and the prefix there, numbers of tensors and of parameters
    (UNet, SD15.unet, "sd15_ldm", "model.diffusion_model.", 686, 859_520_964),
    (UNet, SD21.unet, "sd21_ldm", "model.diffusion_model.", 686, 865_910_724),
    (AutoencoderKL, SD15.vae, "sd15_ldm", "first_stage_model.", 248, 83_653_863),
    (AutoencoderKL, SD21.vae, "sd21_ldm", "first_stage_model.", 248, 83_653_863),
    (ControlNet, SD15.unet, "sd15_controlnet_ldm", "control_model.", 340, 361_279_120),
    (ControlNet, SD21.unet, "sd21_controlnet_ldm", "control_model.", 340, None),
    (TextEncoder, SD15.text, "open_clip_vit_l_14_text", "", 148, 123_060_480),
    (TextEncoder, SD21.text, "sd21_ldm", "cond_stage_model.model.", 280, None),
    (HED, CHANNELS, "hed_bsds500", "", 38, 14_714_688 + 1477 + 6),  # VGG-16's convolutions, the scores, the fusion
    (HEDv11, CHANNELS, "hed_v11", "", 37, 14_714_688 + 1477 + 3),  # and the norm
]


@pytest.mark.parametrize(("network", "config", "manifest", "prefix", "tensors", "parameters"), PARTS)
def test_names_and_shapes_are_the_public_ones(network, config, manifest, prefix, tensors, parameters):
    with torch.device("meta"):
        shapes, count = shapes_of(network(config))
    public = read_manifest(manifest, prefix)
    if network is TextEncoder:  # two that only CLIP's loss needs, and in 2.x the 12 of the block that is never run
        unused = {n for n in public if ".resblocks.23." in n or n in ("logit_scale", "text_projection")}
        assert len(unused) == (14 if config is SD21.text else 2)
        public = {name: shape for name, shape in public.items() if name not in unused}
    assert shapes == public
    assert len(shapes) == tensors and parameters in (None, count)
