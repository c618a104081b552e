"""Make pictures.safetensors: what diffusers' pipelines draw with the golden weights, as 8-bit pictures.

    pip install -r tests/golden/requirements-golden.txt
    python -m tests.golden.make_pictures        (a minute on one core)

Each tensor (H, W, 3) is named "method" or "method control". Not square, with a negative prompt, from an integer seed.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from emit.checkpoints import write_diffusers
from tests.golden.files import SIZES, read_model, write_original
from tests.golden.make_samplers import FOLDER
from tests.golden.rule import normal

FILE = Path(__file__).parent / "pictures.safetensors"
WIDTH, HEIGHT, SEED, STEPS, GUIDANCE, STRENGTH = 48, 32, 11, 8, 3.0, 0.7
PROMPT, NEGATIVE = "MRI of the liver", "blurred"
METHODS = {  # ours: the scheduler's class and its settings beside the folder's, our spacing
    "plms": ("PNDMScheduler", {}, "leading"),
    "ddim": ("DDIMScheduler", {"clip_sample": False}, "leading"),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, "leading"),
    "euler": ("EulerDiscreteScheduler", {}, "linspace"),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}, "linspace"),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, "trailing"),
}


def edge_map():
    """Return the condition as 8-bit (H, W)."""
    return (255 * (normal("edges", (HEIGHT, WIDTH)) > 1)).astype(np.uint8)


def main():
    """Let diffusers draw them all."""
    with tempfile.TemporaryDirectory() as name:
        model, folder = read_model(write_original(Path(name), "sd1"), "sd1"), Path(name) / "folder"
        parts = {part: getattr(model, part).state_dict() for part in ("vae", "text", "unet", "controlnet")}
        write_diffusers(folder, parts, asdict(SIZES["sd1"]))
        read = {
            "vae": diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
            "text_encoder": transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
            "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        }
        control = diffusers.ControlNetModel.from_pretrained(folder / "controlnet")
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    public = diffusers.PNDMScheduler.from_config(FOLDER).config
    hint = torch.from_numpy(edge_map() / 255).float().expand(1, 3, -1, -1)
    words = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    words |= {"negative_prompt": NEGATIVE, "output_type": "np"}
    pictures = {}
    for method, (scheduler, own, _) in METHODS.items():
        read["scheduler"] = getattr(diffusers, scheduler).from_config(public, **own)
        plain = diffusers.StableDiffusionPipeline(**read, **extra)
        conditioned = diffusers.StableDiffusionControlNetPipeline(**read, **extra, controlnet=control)
        for name, pipeline, given in (
            (method, plain, {}),
            (f"{method} control", conditioned, {"image": hint, "controlnet_conditioning_scale": STRENGTH}),
        ):
            image = pipeline(PROMPT, generator=torch.Generator().manual_seed(SEED), **words, **given).images[0]
            pictures[name] = torch.from_numpy((255 * image).round().astype(np.uint8)).contiguous()
    save_file(pictures, FILE)


if __name__ == "__main__":
    main()
