"""Make samplers.safetensors: whole walks of diffusers' schedulers around a small analytic network, from integer seeds.

    pip install -r tests/golden/requirements-golden.txt
    python -m tests.golden.make_samplers        (5 seconds on one core)

Settings are those of Stable Diffusion 1.5's scheduler folder, handed from scheduler to scheduler as its pipelines do.
Each tensor (states, 4, 2, 2) is named "method spacing prediction steps", and holds z_T and what each step gave.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.golden.rule import normal

FILE = Path(__file__).parent / "samplers.safetensors"
SHAPE = (4, 2, 2)
SEED = 7
FOLDER = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    skip_prk_steps=True,
    set_alpha_to_one=False,
    steps_offset=1,
)
PURE = dict(timestep_spacing="trailing", rescale_betas_zero_snr=True, set_alpha_to_one=True)
# method, spacing, the scheduler's class, settings beside the folder's, steps; "zero" is trailing at zero terminal SNR
WALKS = [
    ("ddim", "leading", "DDIMScheduler", dict(clip_sample=False), (1, 7, 20)),
    ("ddpm", "leading", "DDPMScheduler", dict(clip_sample=False), (1, 7, 20)),
    ("plms", "leading", "PNDMScheduler", {}, (1, 2, 3, 7, 20, 50)),
    ("euler", "linspace", "EulerDiscreteScheduler", {}, (2, 7, 20)),
    ("euler", "leading", "EulerDiscreteScheduler", dict(timestep_spacing="leading"), (7,)),
    ("euler", "trailing", "EulerDiscreteScheduler", dict(timestep_spacing="trailing"), (7,)),
    ("euler_ancestral", "linspace", "EulerAncestralDiscreteScheduler", {}, (2, 7, 20)),
    ("dpmpp_2m", "trailing", "DPMSolverMultistepScheduler", dict(timestep_spacing="trailing"), (1, 7, 20)),
    ("ddim", "zero", "DDIMScheduler", dict(clip_sample=False, **PURE), (1, 20)),
    ("ddpm", "zero", "DDPMScheduler", dict(clip_sample=False, **PURE), (1, 20)),
]


def network(z_t, t):
    """Stand for a network's output, eps or v: bounded and smooth in z_t, and different at every timestep."""
    mix = torch.from_numpy(normal("samplers mix", (4, 4))).to(z_t) / 2
    return torch.tanh(torch.einsum("oc,bchw->bohw", mix, z_t) + (t.to(z_t) / 300).cos().view(-1, 1, 1, 1))


def walk(scheduler, steps):
    """Return z_T and z after each step, (states, 4, 2, 2), all random numbers from one generator."""
    generator = torch.Generator().manual_seed(SEED)
    scheduler.set_timesteps(steps)
    x, states = torch.randn((1, *SHAPE), generator=generator) * scheduler.init_noise_sigma, []
    draws = {"generator": generator} if "generator" in scheduler.step.__annotations__ else {}
    for t in scheduler.timesteps:
        z_t = scheduler.scale_model_input(x, t)
        states.append(z_t)
        x = scheduler.step(network(z_t, t[None]), t, x, **draws).prev_sample
    return torch.cat([*states, x])


if __name__ == "__main__":
    import diffusers

    public = diffusers.PNDMScheduler.from_config(FOLDER).config
    tensors = {}
    for method, spacing, scheduler, own, counts in WALKS:
        for prediction, theirs in (("eps", "epsilon"), ("v", "v_prediction"))[spacing == "zero" :]:
            for steps in counts:
                kind = getattr(diffusers, scheduler).from_config(public, prediction_type=theirs, **own)
                tensors[f"{method} {spacing} {prediction} {steps}"] = walk(kind, steps).contiguous()
    save_file(tensors, FILE)
    print(FILE.stat().st_size, {name: round(z.square().mean().sqrt().item(), 2) for name, z in tensors.items()})
