"""Stage 2: the ControlNet on one segmentation set, once per fold, on that fold's training cases alone.

The hint is the HED edge with the contour of the mask merged in, so that the generated anatomy follows the mask.
Writes set.json, splits.json and fold<k>/controlnet.safetensors (the public `control_model.*` layout).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from emit import errors
from emit.claims import claim, share
from emit.data.cache import Memo, TrainingImages
from emit.data.edges import make_hint
from emit.data.geometry import random_warp
from emit.data.shapes import bend
from emit.dataset import TAKEN_OVER, check_size, choose_folds, open_set, write_set
from emit.diffusion.objective import loss_by_quartile
from emit.files import check_room
from emit.ledger import join, open_ledger
from emit.model import EmitDiff, drop_captions, find_edges, hed_side, load_hed
from emit.probes import choose_fixed, condition_losses, save_samples
from emit.seeds import generator
from emit.training import distributed
from emit.training.loop import Run, room_needed
from emit.training.settings import RunSettings, parse, save_config, setting


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Stage 2 of EMIT-Diff: fine-tuning. A model and a labelled set in, one ControlNet per fold out."""

    data: Path = setting(source="[choice] your folder", help="labelled images, or a folder of python -m emit.dataset")
    model: Path = setting(source="[choice] stage 1's", help="model.safetensors of stage 1, or Stable Diffusion")
    controlnet: Path | None = setting(None, "[choice] in --model", help="a ControlNet file of its own to start from")
    prediction: Literal["eps", "v"] | None = setting(None, "[choice] as --model says", help="what its UNet predicts")
    hed: Path = setting(source="[choice] stage 1's", help="HED weights")
    hed_size: int | None = setting(None, "[choice] --size; public HED 256 or more", help="longer side that HED sees", low=16)
    out: Path = setting(source="[choice] your folder", help="the run folder, new or with --resume")
    fold: str = setting("all", "[paper] one model per fold", help="all, or one fold number")
    size: int = setting(64, "[choice] CPU minutes; [authors' code]: 384", paper=384, help="side of the images in pixels", low=16)
    real_cases: int | None = setting(None, "[paper] all there are", help="training cases per fold, drawn by the seed", low=1)
    hint: Literal["hed+contour", "hed", "contour", "mask", "box"] = setting("hed+contour", "[paper]", help="edge condition")
    steps: int = setting(200, "[choice] a minute; [paper]: 100 epochs; [authors' code]: 400-1600", paper=5000, help="steps", low=1)
    batch: int = setting(16, "[choice] CPU minutes; [authors' code]: 32; [paper]: 48", paper=32, help="images per step", low=1)
    lr: float = setting(2e-3, "[choice] few steps; [paper]: 1e-6", paper=1e-6, help="learning rate of AdamW", above=0)
    caption_dropout: float = setting(0.1, "[choice] guidance needs them", help="share of empty prompts", low=0, high=1)
    vary: float = setting(1.0, "[choice] as emit.generate's", paper=0.0, help="bend the cases; 0: --degrees, --crop", low=0)
    degrees: float = setting(20.0, "[authors' code]", help="rotation U(-degrees, degrees) of a case", low=0, high=180)
    crop: tuple[float, ...] = setting((0.75, 1.05), "[authors' code]", help="smallest,largest crop, share of the side", above=0)
    ema: float = setting(0.98, "[choice] few steps; [authors' code]: none", paper=0.0, help="EMA's decay, 0: none", low=0, below=1)
    warmup: int = setting(10, "[choice] stable start", help="steps of linear warm-up", low=0)
    schedule: Literal["constant", "cosine"] = setting("constant", "[choice] none in [paper]", help="learning rate after it")
    probe_every: int = setting(0, "[choice] at the end alone", paper=500, help="steps between losses with wrong conditions", low=0)


def train_fold(model, hed, cases, classes, settings, folder):
    """Fine-tune the model's ControlNet on the cases; return pictures, hints, and losses and faults of `condition_losses`."""
    pictures = TrainingImages(cases, settings.size, settings.hed_size)
    edges = Memo(lambda view: find_edges(hed, view, size=settings.size))
    model.requires_grad_(False)
    model.controlnet.requires_grad_(True)
    run = Run(folder, {"controlnet": model.controlnet}, settings)

    def condition(batch, rng):
        """Warp image, edge and mask together; return z_0 and hint."""
        edge = edges(batch.indices, batch.view)
        if settings.vary:
            planes, mask = bend(torch.cat([batch.image, edge], dim=1), batch.mask[:, None], [rng] * len(edge), settings.vary)
            image, edge, mask = planes[:, :1], planes[:, 1:], mask[:, 0]  # (B, 1, S, S), (B, 1, S, S), (B, S, S)
        else:
            image, edge, mask = random_warp(batch.image, edge, batch.mask, rng, settings.degrees, settings.crop)
        hint = make_hint(settings.hint, mask, edge, len(classes)).to(run.device)
        with torch.no_grad():
            posterior = model.vae.encode(image.expand(-1, 3, -1, -1).to(run.device))
        return posterior.sample(torch.randn(posterior.mean.shape, generator=rng).to(run.device)), hint

    def probe():
        """Return losses and faults of `condition_losses`, always of the same cases, warps, noise and timesteps."""
        fixed, wrong = choose_fixed([case.prompt for case in cases], settings.seed)
        batch = pictures.batch(fixed)
        z_0, hint = condition(batch, generator(settings.seed, "probe"))
        return condition_losses(model, z_0, batch.prompts, wrong, hint, generator(settings.seed, "probe t"))

    for _, batch in run.steps(pictures):
        z_0, hint = condition(batch, run.rng)
        prompts = drop_captions(batch.prompts, settings.caption_dropout, run.rng)
        t, eps = model.draw(z_0, run.rng)
        with run.autocast():
            loss = model.losses(z_0, t, eps, prompts, hint)
        probes, _ = probe() if run.due(settings.probe_every) else ({}, [])
        run.update(loss.mean(), **loss_by_quartile(loss.detach(), t, model.schedule.T), **probes)
    run.finish()

    def hints(batch):
        return make_hint(settings.hint, batch.mask, edges(batch.indices, batch.view), len(classes))

    return pictures, hints, *probe()


def main():
    """Fine-tune one ControlNet per fold; under torchrun rank 0 alone writes and prints."""
    settings = parse(Settings)
    if len(settings.crop) != 2 or settings.crop[0] > settings.crop[1]:
        raise errors.InputError(f"--crop: is {','.join(map(str, settings.crop))}; give the smaller share, then the larger")
    if settings.vary and (settings.degrees, settings.crop) != (Settings.degrees, Settings.crop):
        raise errors.InputError("--degrees and --crop: are of the authors' warp; give --vary 0 as well")
    device = distributed.start(settings.device)
    hed, hed_header = load_hed(settings.hed)
    settings = replace(settings, hed_size=settings.hed_size or hed_side(hed_header, settings.size))
    labelled = replace(open_set(settings.data), **{name: getattr(settings, name) for name in TAKEN_OVER})
    folds = choose_folds(settings.fold, labelled.splits)
    training = [labelled.training(fold) for fold in folds]  # what is refused stops here
    model, headers = EmitDiff.load(settings.model, settings.controlnet, prediction=settings.prediction)
    files = {"model": settings.model, "controlnet": settings.controlnet, "hed": settings.hed}
    ancestry = join(map(open_ledger, filter(None, files.values()), [*headers, hed_header]))
    check_size(settings.size, model.sizes)
    model.to(device), hed.to(device)
    start = {name: value.clone() for name, value in model.controlnet.state_dict().items()}
    with claim(settings.out, wait=True):
        save_config(settings.out, settings, files, labelled.about.data, labelled.names)
        if distributed.rank() == 0:
            write_set(settings.out, labelled)
            if not settings.resume:
                check_room(settings.out, room_needed([model.controlnet] * len(folds), [model.controlnet] * len(folds)))

    settings = replace(settings, resume=True)  # another process may have begun a fold by the time this one comes to it

    def tune(job):
        fold, cases = job
        folder = settings.out / f"fold{fold}"
        with claim(folder):
            if all((folder / name).exists() for name in ("controlnet.safetensors", "samples.png")):  # what a fold ends with
                return
            model.controlnet.load_state_dict(start)
            pictures, hints, losses, faults = train_fold(model, hed, cases, labelled.classes, settings, folder)
            seen = ancestry.add(f"fine-tuning, fold {fold}", pictures.hashes)
            if distributed.rank() == 0:
                with claim(settings.out, wait=True):
                    seen.write(settings.out)
                model.save(folder / "controlnet.safetensors", seen.header | {"losses": losses}, ["controlnet"])
                print(f"{folder}: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))
                for fault in faults:
                    print(f"{folder}: {fault}")
                save_samples(model, pictures, hints, folder / "samples.png", settings.seed, text_alone=0)

    share(zip(folds, training, strict=True), tune)
    distributed.stop()


if __name__ == "__main__":
    errors.run(main)
