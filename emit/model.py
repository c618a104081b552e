"""Where the parts meet: the sizes of each preset, and EmitDiff = autoencoder + text encoder + UNet + ControlNet."""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from emit import checkpoints
from emit.data.cache import Memo
from emit.data.geometry import LINEAR, fit, resize
from emit.diffusion.guidance import classifier_free, control_scales
from emit.diffusion.objective import per_sample_loss
from emit.diffusion.samplers import sample
from emit.diffusion.schedule import Schedule, q_sample, raise_precision, to_v, v_to_eps
from emit.errors import InputError
from emit.networks.controlnet import ControlNet
from emit.networks.text import TextConfig, TextEncoder
from emit.networks.unet import UNet, UNetConfig
from emit.networks.vae import AutoencoderKL, Posterior, VAEConfig
from emit.seeds import SeededNoise

PARTS = ("vae", "text", "unet", "controlnet")


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts. prediction: what the UNet puts out, "eps" or "v"."""

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text: TextConfig = TextConfig()
    prediction: str = "eps"

    @property
    def step(self) -> int:
        """What the sides of an image are multiples of: latents that the UNet can halve as often as it does."""
        return self.vae.factor * 2 ** (len(self.unet.channel_mult) - 1)


SD15 = Sizes(**checkpoints.SD1)
SD21 = Sizes(**checkpoints.SD2, prediction="v")
DEMO = Sizes(
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(1,),
        heads=4,
        context_dim=64,
        groups=16,
        hint_channels=(16, 32, 64),
    ),
    vae=VAEConfig(channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, groups=8, scale=1.0),
    text=TextConfig(width=64, layers=2, heads=2),
    prediction="v",
)
DEMO_HED = (8, 16, 32, 32, 32)


def demo_sizes(size: int) -> Sizes:
    """Return DEMO; for every doubling beyond 64 pixels the autoencoder halves once more, so that latents stay 16 x 16."""
    extra = max(0, math.ceil(math.log2(size / 64)))
    channels = DEMO.vae.z_channels * 2**extra
    vae = replace(DEMO.vae, z_channels=channels, channel_mult=DEMO.vae.channel_mult + DEMO.vae.channel_mult[-1:] * extra)
    hint_channels = DEMO.unet.hint_channels + DEMO.unet.hint_channels[-1:] * extra
    unet = replace(DEMO.unet, in_channels=channels, out_channels=channels, hint_channels=hint_channels)
    return replace(DEMO, vae=vae, unet=unet)


def drop_captions(prompts: list, rate: float, rng: torch.Generator) -> list:
    """Replace each prompt by the empty one with probability `rate`."""
    dropped = torch.rand(len(prompts), generator=rng) < rate
    return ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]


def load_hed(path: str | Path) -> tuple[nn.Module, dict]:
    """Return the HED network, of either kind and any size, that a weight file holds, and the file's header."""
    file = checkpoints.read(path)
    kind = next(iter(file.parts))
    if kind not in ("hed", "hed_v11"):
        found = ", ".join(file.parts)
        raise InputError(f"{path}: holds {found}, not HED; give network-bsds500, ControlNetHED or our hed.safetensors")
    hed = checkpoints.NETWORKS[kind](file.sizes[kind])
    return checkpoints.fill(hed, file.parts[kind], path, kind).requires_grad_(False), file.header


def hed_side(header: dict, size: int) -> int:
    """Return the longer side of what HED should see: stage 1's learned the training size, public ones photographs of 400."""
    return size if header.get("ancestry") else max(size, 256)


@torch.no_grad()
def find_edges(hed: nn.Module, image: Tensor, side: int | None = None, size: int | None = None) -> Tensor:
    """Run HED on grey images (B, 1, H, W) in [-1, 1]: edge probability (B, 1, H, W), on the images' device.

    HED runs on the box inside a frame of nan, where the edge is 0; a nan within the box (of a tilted frame) is black to it.
    side: the longer side that HED sees (None: the image's own).  size: of the edges returned (None: the image's).
    """
    device, edges, boxes = next(hed.parameters()).device, torch.zeros_like(image), {}
    for row, inside in enumerate(~image[:, 0].isnan()):
        if inside.any():  # nothing is left of a line a pixel high
            places = inside.nonzero()  # (N, 2)
            boxes.setdefault((*places.amin(0).tolist(), *(places.amax(0) + 1).tolist()), []).append(row)
    for (top, left, bottom, right), rows in boxes.items():  # images with the same frame go together
        picture = image[rows, :, top:bottom, left:right].nan_to_num(-1.0)
        scale = side / max(picture.shape[-2:]) if side else 1
        seen = resize(picture, [max(16, round(scale * length)) for length in picture.shape[-2:]])  # HED's least
        edge = hed(seen.expand(-1, 3, -1, -1).to(device)).float().to(image.device)  # (B, 3, h, w) -> (B, 1, h, w)
        edges[rows, :, top:bottom, left:right] = resize(edge, picture.shape[-2:])
    edges = edges.masked_fill(image.isnan(), 0.0)
    return edges if size is None else fit(edges, size, LINEAR, 0.0)


def to_grey(image: Tensor) -> Tensor:
    """Average the channels, (B, 3, H, W) -> (B, 1, H, W): the authors' grey output, as a step after a public decoder."""
    return image.mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class Sampling:
    """How images are drawn: the authors' DDIM 20, eta 0, control strength 1; guidance is [choice], see docs/findings.md."""

    method: str = "ddim"
    steps: int = 20
    eta: float = 0.0
    guidance: float = 2.0
    guided: str = "text+hint"  # what the unconditional half does without: "text" in the authors' code
    strength: float = 1.0
    guess_mode: str | None = None
    spacing: str | None = None  # the method's own

    @classmethod
    def read(cls, settings) -> "Sampling":
        """Return the part of a program's settings that is about sampling."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls)})


class EmitDiff(nn.Module):
    """The whole generator. Sub-modules vae, text, unet, controlnet."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        with torch.device("cpu"):  # also where the networks are built on the meta device
            self.schedule = Schedule.scaled_linear()
        self.vae = AutoencoderKL(sizes.vae)
        self.text = TextEncoder(sizes.text)
        self.unet = UNet(sizes.unet)
        self.controlnet = ControlNet(sizes.unet)

    def network_output(
        self, z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor | None = None, scales: list[float] | None = None
    ) -> Tensor:
        """Return the UNet's output (B, 4, h, w), with the ControlNet where a hint (B, 3, H, W) in [0, 1] is given."""
        control = ()
        if hint is not None:
            control = self.controlnet(z_t, t, context, hint)  # one residual per encoder block, then the middle's
            scales = scales or [1.0] * len(control)
            control = [scale * residual for scale, residual in zip(scales, control, strict=True)]
        out = self.unet(z_t, t, context, control)
        return raise_precision(out)  # what leaves the network is float32, also under autocast

    def predict(self, z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor | None = None, scales=None) -> Tensor:
        """Return eps_hat (B, 4, h, w), whatever the network predicts."""
        out = self.network_output(z_t, t, context, hint, scales)
        return v_to_eps(z_t, out, self.schedule.at(t)) if self.sizes.prediction == "v" else out

    def draw(self, z_0: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw timesteps (B,) uniform in 0..T-1 and noise like z_0 from a CPU generator."""
        t = torch.randint(0, self.schedule.T, (len(z_0),), generator=rng)
        return t.to(z_0.device), torch.randn(z_0.shape, generator=rng).to(z_0.device)  # the same on every device

    def losses(self, z_0: Tensor, t: Tensor, eps: Tensor, prompts: list, hint: Tensor | None = None) -> Tensor:
        """Return each sample's simple loss (B,): || eps - eps_hat ||^2 per dimension, or of v where v is predicted."""
        ab = self.schedule.at(t)  # (B,) -> (B, 1, 1, 1)
        self.schedule.check(self.sizes.prediction)
        z_t, target = q_sample(z_0, ab, eps), eps if self.sizes.prediction == "eps" else to_v(z_0, eps, ab)
        return per_sample_loss(target, self.network_output(z_t, t, self.contexts(prompts), hint))

    def contexts(self, prompts: list) -> Tensor:
        """Encode B prompts, each a text or a mixture ((weight, text), ...) of texts' states, to (B, 77, width)."""
        mixtures = [((1.0, prompt),) if isinstance(prompt, str) else prompt for prompt in prompts]
        different = list(dict.fromkeys(text for mixture in mixtures for _, text in mixture))
        states = self.text.encode(different)
        rows = [sum(weight * states[different.index(text)] for weight, text in mixture) for mixture in mixtures]
        return torch.stack(rows)  # B times (77, width) -> (B, 77, width)

    def latent_memo(self) -> Callable[..., Tensor]:
        """Return (batch, rng) -> z_0 from the autoencoder's posterior, whose moments are computed once per picture."""
        device = next(self.vae.parameters()).device

        @torch.no_grad()
        def encode(image):
            posterior = self.vae.encode(image.expand(-1, 3, -1, -1).to(device))
            return torch.cat([posterior.mean, posterior.log_variance], dim=1)  # (B, 2 z_channels, h, w)

        moments = Memo(encode)

        def latents(batch, rng):
            mean, log_variance = moments(batch.indices, batch.image).chunk(2, dim=1)
            noise = torch.randn(mean.shape, generator=rng).to(device)  # a fresh draw each epoch; only the moments stay
            return Posterior(mean, log_variance, self.vae.scale).sample(noise)

        return latents

    @torch.no_grad()
    def generate(
        self,
        prompts: list,
        hint: Tensor | None,
        seeds: list[int],
        size: int | tuple[int, int],
        sampling: Sampling = Sampling(),
        negative: str = "",
    ) -> Tensor:
        """Draw images (B, 3, H, W) in [-1, 1], nan where numbers overflowed; image b depends on its prompt, hint, seed.

        hint: (B, 3, H, W) in [0, 1], or None for text alone. size: (H, W), or one number for both; multiples of `sizes.step`.
        """
        device = next(self.unet.parameters()).device
        height, width = (size, size) if isinstance(size, int) else size
        factor = self.sizes.vae.factor
        noise = SeededNoise(seeds, (self.sizes.vae.z_channels, height // factor, width // factor), device)
        context, unconditional = self.contexts(prompts), self.contexts([negative] * len(prompts))
        hint = None if hint is None else hint.to(device)
        other_hint = hint if sampling.guided == "text" else None
        scales = control_scales(sampling.strength, len(self.unet.input_blocks) + 1, sampling.guess_mode)

        def denoise(z_t, t):  # the guided network output, eps or v
            out = self.network_output(z_t, t, context, hint, scales)
            if sampling.guidance == 1:  # the unconditional half would cancel: half the time
                return out
            return classifier_free(self.network_output(z_t, t, unconditional, other_hint, scales), out, sampling.guidance)

        how = {"method": sampling.method, "eta": sampling.eta, "spacing": sampling.spacing, "prediction": self.sizes.prediction}
        z_0 = sample(denoise, noise(), self.schedule, sampling.steps, noise=noise, **how)
        decoded = self.vae.decode(z_0).float()  # (B, z_channels, h, w) -> (B, 3, H, W)
        return decoded.clamp(-1, 1).masked_fill(~decoded.isfinite(), math.nan)  # an overflow must not look like white

    def save(self, path: str | Path, header: dict | None = None, parts: Iterable[str] = PARTS) -> None:
        """Write the named parts to one safetensors file in the original layout, with sizes and header in it."""
        sizes = asdict(replace(self.sizes, vae=replace(self.sizes.vae, scale=self.vae.scale)))
        tensors = {name: getattr(self, name).state_dict() for name in parts}
        checkpoints.write_single(path, tensors, {**(header or {}), "config": sizes})

    @classmethod
    def load(
        cls, path: str | Path, controlnet: str | Path | None = None, prediction: str | None = None
    ) -> tuple["EmitDiff", list[dict]]:
        """Return the model built from a public or own file or folder, and the headers of the files read; InputError.

        controlnet: a file of which that part alone is taken. A missing ControlNet starts as a copy of the UNet's encoder.
        prediction: "eps" or "v", needed where the file does not say it (Stable Diffusion 2).
        """
        file = checkpoints.read(path, prediction=prediction)
        missing = [part for part in ("vae", "text", "unet") if part not in file.parts]
        if missing:
            raise InputError(f"{path}: holds {', '.join(file.parts)} but no {', '.join(missing)}; give a whole model")
        if file.prediction is None:
            raise InputError(f"{path}: does not say what its UNet predicts; give it: --prediction eps or v")
        if file.ema is False:
            average = f"python -m emit.checkpoints export {path} --ema --to single FILE2"
            print(f"{path}: the trained weights were taken, not their moving average; {average} gives it", file=sys.stderr)
        sizes = Sizes(file.sizes["unet"], file.sizes["vae"], file.sizes["text"], file.prediction)
        sources, headers = {part: (path, tensors) for part, tensors in file.parts.items()}, [file.header]
        if controlnet is not None:
            control = checkpoints.read(controlnet)
            if "controlnet" not in control.parts:
                found = ", ".join(control.parts)
                raise InputError(f"{controlnet}: holds {found} but no ControlNet; give one, such as stage 2's")
            fits = control.sizes["controlnet"] == sizes.unet and control.prediction in (None, sizes.prediction)
            if control.header.get("config") and not fits:
                raise InputError(f"{controlnet}: its ControlNet belongs to another UNet, by its header; give this model's")
            sources["controlnet"] = (controlnet, control.parts["controlnet"])
            headers.append(control.header)
        with torch.device("meta"):  # no memory, no random start: fill() puts the files' tensors in
            model = cls(sizes)
        for part, (source, tensors) in sources.items():
            checkpoints.fill(getattr(model, part), tensors, source, part)
        if "controlnet" not in sources:
            model.controlnet = ControlNet(sizes.unet).copy_encoder(model.unet)
        return model, headers
