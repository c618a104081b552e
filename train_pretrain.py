"""Stage 1: autoencoder, HED, text-conditioned UNet, and the ControlNet on the frozen UNet.

Each part is skipped when its weights are given: --hed, --vae (the autoencoder) or --weights (Stable Diffusion:
autoencoder and UNet). With --weights and --hed only the ControlNet is trained, as in the paper. Writes
model.safetensors (original Stable Diffusion layout) and hed.safetensors.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from emit import checkpoints, errors
from emit.claims import claim
from emit.data.cache import Memo, TrainingImages
from emit.data.cases import read_cases
from emit.data.edges import make_hint
from emit.data.geometry import LINEAR, fit
from emit.data.images import decode
from emit.dataset import check_size
from emit.diffusion.objective import loss_by_quartile
from emit.files import check_room
from emit.ledger import Ledger, join, open_ledger
from emit.model import DEMO_HED, EmitDiff, demo_sizes, drop_captions, find_edges, hed_side, load_hed
from emit.networks.discriminator import Discriminator, adaptive_weight, adversarial_loss, hinge_loss
from emit.networks.hed import HED, hed_loss
from emit.probes import save_samples
from emit.training import distributed
from emit.training.loop import Run, check_run, room_needed
from emit.training.settings import RunSettings, parse, save_config, setting

ADVERSARY_FROM = 0.45  # [choice] share of the autoencoder's steps before its discriminator: first the picture, then its grain


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Stage 1 of EMIT-Diff: pre-training. Images in, model.safetensors and hed.safetensors out."""

    data: Path = setting(source="[choice] your folder", help="pre-training images, RadImageNet tree")
    out: Path = setting(source="[choice] your folder", help="the run folder, new or with --resume")
    boundaries: Path | None = setting(None, "[choice] HED is trained from these", help="same tree, boundary pictures")
    weights: Path | None = setting(None, "[choice] demo trains all", help="Stable Diffusion file or folder; skips VAE, UNet")
    vae: Path | None = setting(None, "[choice] demo trains it", help="model of the same --size; skips the VAE alone")
    prediction: Literal["eps", "v"] | None = setting(None, "[choice] as --weights says", help="what its UNet predicts")
    hed: Path | None = setting(None, "[choice] demo trains it", help="HED weights; skips its training")
    size: int = setting(64, "[choice] CPU minutes; [authors' code]: 256", paper=256, help="side of the images in pixels", low=16)
    vae_steps: int = setting(900, "[choice] less than two minutes on two cores", paper=0, help="autoencoder steps", low=0)
    vae_batch: int = setting(4, "[choice] as above", help="autoencoder batch", low=1)
    vae_lr: float = setting(2e-3, "[choice] small network, few steps", help="autoencoder learning rate", above=0)
    kl_weight: float = setting(1e-5, "[choice] smoother latents; [SD 1.5]: 1e-6", help="weight of the KL term", low=0)
    sharp: float = setting(0.0, "[choice] emit.generate puts texture back", help="weight of the VAE's adversary; try 0.75", low=0)
    hed_steps: int = setting(400, "[choice] ten seconds", paper=0, help="HED steps", low=0)
    hed_batch: int = setting(8, "[choice] as above", help="HED batch", low=1)
    hed_lr = 3e-3  # [choice] from scratch, in seconds: no flag
    unet_steps: int = setting(1000, "[choice] two minutes", paper=0, help="UNet steps", low=0)
    unet_batch: int = setting(16, "[choice] as above", help="UNet batch", low=1)
    unet_lr: float = setting(2e-3, "[choice] small network, few steps", help="UNet learning rate", above=0)
    steps: int = setting(700, "[choice] two minutes; [paper]: 7 days", paper=100_000, help="ControlNet steps", low=1)
    batch: int = setting(16, "[choice] minutes; [authors' code]: 48 x 4; [paper]: 384", paper=192, help="ControlNet batch", low=1)
    lr: float = setting(3e-3, "[choice] few steps; [paper]: 1e-5", paper=1e-5, help="ControlNet learning rate", above=0)
    caption_dropout: float = setting(0.1, "[choice] guidance needs them", help="share of empty prompts", low=0, high=1)
    sample_every: int = setting(0, "[choice] at the end alone", paper=2000, help="steps between sample grids", low=0)


def settings_of(settings, part):
    """Return the RunSettings of one part; accumulation serves the large networks."""
    if part == "controlnet":
        return settings
    own = {name: getattr(settings, f"{part}_{name}") for name in ("steps", "batch", "lr")}
    return replace(settings, **own, accumulate=settings.accumulate if part == "unet" else 1)


def choose_parts(settings):
    """Return the parts to train, in order, after looking whether every one of them can be: later, hours are lost."""
    if settings.hed is None and settings.boundaries is None:
        raise errors.InputError("--hed: is required where there are no --boundaries to train HED from; give either")
    given = {"hed": settings.hed, "vae": settings.vae or settings.weights, "unet": settings.weights, "controlnet": None}
    parts = [part for part, file in given.items() if file is None]
    for part in parts:
        if part != "controlnet" and getattr(settings, f"{part}_steps") == 0:
            instead = "--hed" if part == "hed" else "--weights"
            raise errors.InputError(f"--{part}-steps: is 0, and no weights are given; give steps, or {instead}")
        check_run(settings.out / part, settings_of(settings, part))
    return parts


def open_networks(settings):
    """Return HED, the model and the Ledger of each, as the files given hold them; the rest has initial weights."""
    hed, hed_header = (HED(DEMO_HED), {}) if settings.hed is None else load_hed(settings.hed)
    if settings.weights is None:
        model, header = EmitDiff(demo_sizes(settings.size)), {}
    else:
        model, (header,) = EmitDiff.load(settings.weights, prediction=settings.prediction)
    if settings.vae is not None:
        file = checkpoints.read(settings.vae)
        header, sizes = file.header, file.sizes.get("vae")
        if sizes is None or replace(sizes, scale=1.0) != model.sizes.vae:
            words = "holds no autoencoder of the demo's sizes; give stage 1's, of the same --size and without --weights"
            raise errors.InputError(f"{settings.vae}: {words}")
        checkpoints.fill(model.vae, file.parts["vae"], settings.vae, "vae").scale = sizes.scale
    return hed, model, open_ledger(settings.hed, hed_header), open_ledger(settings.vae or settings.weights, header)


def train_autoencoder(model, pictures, settings):
    """Reconstruction + KL, then a patch discriminator as well; then measure the latent scale 1 / std(z) and keep it.

    One step trains both: the gradients of the sum are those of each network's own loss.
    """
    vae, discriminator = model.vae, Discriminator(model.sizes.vae.channels).to(model.vae.quant_conv.weight.device)
    networks = {"vae": vae, "discriminator": discriminator} if settings.sharp else {"vae": vae}
    run = Run(settings.out / "vae", networks, settings_of(settings, "vae"))
    for step, batch in run.steps(pictures):
        image = batch.image.expand(-1, 3, -1, -1).to(run.device)
        with run.autocast():
            posterior = vae.encode(image)
            noise = torch.randn(posterior.mean.shape, generator=run.rng).to(run.device)
            reconstruction = vae.decode(posterior.sample(noise))
        l1 = (reconstruction.float() - image).abs().mean()
        kl = posterior.kl().mean() / image[0].numel()
        loss, terms = l1 + settings.kl_weight * kl, {"l1": l1.detach(), "kl": kl.detach()}
        if settings.sharp and step >= ADVERSARY_FROM * settings.vae_steps:
            with run.autocast():
                adversarial = adversarial_loss(discriminator, reconstruction)
                own = hinge_loss(discriminator(image), discriminator(reconstruction.detach()))
            weight = settings.sharp * adaptive_weight(l1, adversarial, vae.decoder.conv_out.weight)
            loss = loss + weight * adversarial + own / 100  # AdamW divides it out; else its gradient alone fills the clip
            terms |= {"adversarial": adversarial.detach(), "discriminator": own.detach(), "weight": weight}
        run.update(loss, **terms)
    run.finish()
    with torch.no_grad():
        chosen = range(0, len(pictures), max(1, len(pictures) // 256))  # some 256 of them
        z = torch.cat([vae.encode(pictures.image([i]).expand(-1, 3, -1, -1).to(run.device)).mean for i in chosen])
        vae.scale = distributed.reduce(1 / z.std(), "MAX").item()  # one model, to the last bit


def train_hed(hed, pictures, settings):
    """Class-balanced deep supervision from boundary pictures, which lie in the same tree under --boundaries."""

    def read_boundary(cases):
        boundary = decode(settings.boundaries / Path(cases[0].path).relative_to(settings.data))
        return fit(boundary / 255, settings.size, LINEAR, 0.0).float()[None, None]

    boundaries = Memo(read_boundary)
    run = Run(settings.out / "hed", {"hed": hed}, settings_of(settings, "hed"))
    for _, batch in run.steps(pictures):
        image = batch.image.expand(-1, 3, -1, -1).to(run.device)
        with run.autocast():
            logits = hed.logits(image)
        run.update(hed_loss(logits, boundaries(batch.indices, batch.cases).to(run.device)))
    run.finish()


def train_diffusion(model, part, pictures, latents, hints, settings):
    """Train the UNet with the text encoder (part "unet", no hints) or the ControlNet with all else frozen."""
    is_unet = part == "unet"
    trained = {"unet": model.unet, "text": model.text} if is_unet else {"controlnet": model.controlnet}
    if not is_unet:
        model.vae.requires_grad_(False), model.text.requires_grad_(False), model.unet.requires_grad_(False)
    run = Run(settings.out / part, trained, settings_of(settings, part))
    for _, batch in run.steps(pictures):
        z_0 = latents(batch, run.rng)
        prompts = drop_captions(batch.prompts, settings.caption_dropout, run.rng)
        t, eps = model.draw(z_0, run.rng)
        hint = None if is_unet else hints(batch).to(run.device)
        with run.autocast():
            loss = model.losses(z_0, t, eps, prompts, hint)
        run.update(loss.mean(), **loss_by_quartile(loss.detach(), t, model.schedule.T))
        if distributed.rank() == 0 and run.due(settings.sample_every):
            with run.ema_weights():
                save_samples(model, pictures, hints, settings.out / "samples" / f"{part}_{run.done:06d}.png", settings.seed)
    run.finish()


def main():
    """Train what is not given, then write the model, HED and sample grids; under torchrun rank 0 alone writes."""
    settings = parse(Settings)
    device = distributed.start(settings.device)
    parts = choose_parts(settings)
    cases = read_cases(settings.data, layout="radimagenet").cases
    for case in cases if "hed" in parts else []:
        if not (path := settings.boundaries / Path(case.path).relative_to(settings.data)).is_file():
            raise errors.InputError(f"{path}: is missing; --boundaries needs one picture for each image of --data")
    torch.manual_seed(settings.seed)  # of the initial weights; every later draw has its own generator
    hed, model, hed_ledger, ledger = open_networks(settings)
    check_size(settings.size, model.sizes)
    view = settings.size if "hed" in parts else hed_side(hed_ledger.header, settings.size)
    pictures = TrainingImages(cases, settings.size, view)
    model.to(device), hed.to(device)
    files = {"weights": settings.weights, "vae": settings.vae, "hed": settings.hed}
    with claim(settings.out):
        save_config(settings.out, settings, files, settings.data, [case.id for case in cases])
        if not settings.resume:
            unet = torch.nn.ModuleList([model.unet, model.text])  # trained together
            networks = {"hed": hed, "vae": model.vae, "unet": unet, "controlnet": model.controlnet}
            check_room(settings.out, room_needed([networks[part] for part in parts], [model, hed]))
        if "hed" in parts:
            train_hed(hed, pictures, settings)
            hed_ledger = Ledger().add("hed", pictures.hashes)
            if distributed.rank() == 0:
                hed_ledger.write(settings.out)
                checkpoints.write_single(settings.out / "hed.safetensors", {"hed": hed.state_dict()}, hed_ledger.header)
        if "vae" in parts:
            train_autoencoder(model, pictures, settings)
        latents, edges = model.latent_memo(), Memo(lambda view: find_edges(hed, view, size=settings.size))

        def hints(batch):
            return make_hint("hed", None, edges(batch.indices, batch.view), 2)

        if "unet" in parts:
            train_diffusion(model, "unet", pictures, latents, hints, settings)
            model.controlnet.copy_encoder(model.unet)
        train_diffusion(model, "controlnet", pictures, latents, hints, settings)
        if distributed.rank() == 0:
            seen = join([hed_ledger, ledger]).add("pre-training", pictures.hashes)
            seen.write(settings.out)
            model.save(settings.out / "model.safetensors", seen.header)
            save_samples(model, pictures, hints, settings.out / "samples" / "final.png", settings.seed)
    distributed.stop()


if __name__ == "__main__":
    errors.run(main)
