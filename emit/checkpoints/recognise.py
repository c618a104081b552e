"""What a file is, by the names in it: its parts, their naming, what is dropped on purpose.

A naming is "original" (CompVis, open_clip, the public HED files) or "diffusers" (with Hugging Face's CLIP).
"""

import re

from torch import Tensor

from emit.errors import InputError

EXPECTED = "expected Stable Diffusion 1 or 2, a ControlNet or HED, as safetensors, pickle or diffusers folder"
NAMES = {  # part, naming: its prefix in the original single files, and without one the beginning of some of its names
    ("unet", "original"): ("model.diffusion_model.", r"output_blocks\."),
    ("unet", "diffusers"): ("", r"up_blocks\."),
    ("vae", "original"): ("first_stage_model.", r"decoder\.up\."),
    ("vae", "diffusers"): ("", r"decoder\.up_blocks\."),
    ("text", "diffusers"): ("cond_stage_model.transformer.text_model.", r"(text_model\.)?encoder\.layers\."),
    ("text", "original"): ("cond_stage_model.model.", r"transformer\.resblocks\."),
    ("controlnet", "original"): ("control_model.", r"input_hint_block\."),
    ("controlnet", "diffusers"): ("", r"controlnet_cond_embedding\."),
    ("hed", "original"): ("", r"moduleVgg"),
    ("hed_v11", "original"): ("", r"block1\.convs\."),
}
EMA = "model_ema.diffusion_model"  # then the UNet's own name without its dots
# Dropped on purpose: the noise schedule, losses, averages, CLIP's projection, and the last of version 2's 24 text blocks,
# which is never run: Stable Diffusion 2 takes the next to last state. Any other name that a part lacks is an error.
DROPPED = re.compile(
    r"(betas|logvar|(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod|alphas_cumprod_prev"
    r"|posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2))$"
    r"|(first_stage_model\.)?loss\.|model_ema\.|(.*\.)?position_ids$"
    r"|(cond_stage_model\.model\.)?(logit_scale$|text_projection$|transformer\.resblocks\.23\.)"
)


def sort(path, tensors: dict[str, Tensor], ema: bool = False) -> tuple[dict, list[str]]:
    """Sort a file's tensors: {part: (naming, {name without prefix: tensor})}, and the names dropped on purpose.

    ema: take the UNet from its moving average. Raises InputError for names of no known part; looks at no number.
    """
    dropped, named = sorted(filter(DROPPED.match, tensors)), {}
    left = tensors.keys() - set(dropped)
    for (part, naming), (prefix, _) in NAMES.items():
        own = {name.removeprefix(prefix): name for name in left if prefix and name.startswith(prefix)}
        if own and part not in named:
            named[part] = (naming, own)
            left -= set(own.values())
    for (part, naming), (_, pattern) in NAMES.items():
        if not named and any(re.match(pattern, name) for name in left):
            named[part], left = (naming, {name.removeprefix("text_model."): name for name in left}), set()
    if left or not named:
        known, unknown = ", ".join(named) or "no known part", ", ".join(sorted(left)[:3]) or "none"
        raise InputError(f"{path}: holds {known} and {len(left)} unknown names ({unknown}); {EXPECTED}")
    if ema:
        averages = {name: EMA + name.replace(".", "") for name in named.get("unet", ("", {}))[1]}
        named["unet"] = ("original", {name: average for name, average in averages.items() if average in tensors})
        if not named["unet"][1]:
            raise InputError(f"{path}: holds no EMA (an emaonly file has it in place of the weights); read it without EMA")
        dropped = [name for name in dropped if name not in averages.values()]
    return {part: (naming, {name: tensors[own[name]] for name in own}) for part, (naming, own) in named.items()}, dropped
