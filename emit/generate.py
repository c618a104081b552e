"""Between stages 2 and 3: n labelled images for each training case of a fold, from pure noise and that case's edge.

    python -m emit.generate --model MODEL --hed HED --finetuned RUN --out FOLDER

The labelled set, its splits and the hint are those of the fine-tuning. Writes the folders of `emit.generated`.
An image depends on (seed, case, index) and its settings alone, not on the order or a restart; with another --batch
or --n the last bits of its sums differ, which may turn a rounding by one grey level.
"""

import contextlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from emit import checkpoints, errors
from emit.claims import claim, share
from emit.compat import read_compat
from emit.data.cache import Memo, TrainingImages
from emit.data.cases import read_cases
from emit.data.edges import edge_agreement, make_hint
from emit.data.geometry import LINEAR, fit
from emit.data.prompts import add_phrase, draw_phrase, gray_sketch
from emit.data.shapes import bend, transplant
from emit.data.similarity import content_hash
from emit.dataset import DATASET, choose_folds, open_set, read_description, write_set
from emit.diffusion.samplers import SAMPLERS
from emit.files import sha256, write_json
from emit.generated import find_fault, is_whole, read_manifest, save_pictures, to_bytes
from emit.ledger import join, open_ledger
from emit.model import EmitDiff, Sampling, find_edges, load_hed, to_grey
from emit.seeds import generator, seed_from
from emit.training import distributed
from emit.training.loop import forecast, write_lines
from emit.training.settings import SamplingSettings, expand_sweep, parse, save_config, setting

OF_EDGES = ("hed+contour", "hed", "contour")  # hints whose agreement with an image's edges means something


@dataclass(frozen=True, kw_only=True)
class Settings(SamplingSettings):
    """EMIT-Diff's generator: a fine-tuned ControlNet per fold in, labelled images per training case out."""

    model: Path = setting(source="[choice] stage 1's", help="model.safetensors of stage 1, or Stable Diffusion")
    finetuned: Path = setting(source="[choice] stage 2's", help="run folder of stage 2, with fold<k>/controlnet.safetensors")
    hed: Path = setting(source="[choice] stage 1's", help="HED weights")
    out: Path = setting(source="[choice] your folder", help="the output folder, new or with --resume", may_change=True)
    data: Path | None = setting(None, "[choice] stage 2's", help="the labelled images, if they were moved", may_change=True)
    fold: str = setting("all", "[paper] one model per fold", help="all, or one fold number", may_change=True)
    n: int = setting(3, "[choice] seconds; [authors' code]: 50", paper=50, help="images per training case", may_change=True, low=1)
    vary: float = setting(1.0, "[choice] new shapes: docs/findings.md", paper=0.0, help="how far edges and mask are bent", low=0)
    texture: float = setting(
        1.0, "[choice] docs/findings.md", paper=0.0, help="share of what the VAE loses, put back", low=0, high=1
    )
    tissue: Path | None = setting(
        None, "[choice] the case's own", help="stage 1's pictures: normal ones take in the labelled objects"
    )
    phrases: str = setting("none", "[choice] for models that know words", paper="words", help="none, words, or their weight")
    compat: tuple[str, ...] = setting((), "[authors' code]", help="diffboost, or diffboost:NAME,... (see docs/paper.md)")
    sweep: tuple[str, ...] = setting((), "[choice] none", help="guidance=V,V,... or strength=V,V,...: a folder for each value")
    seed: int = setting(0, "[choice] any number", help="seed of the draws")
    batch: int = setting(32, "[choice] memory", paper=8, help="images at a time", may_change=True, low=1)
    resume: bool = setting(False, "[choice] explicit", help="go on with the images in --out", may_change=True)


def read_weight(phrases):
    """Return the weight of the phrase's text states, None where it is words of the prompt."""
    if phrases in ("none", "words"):
        return None
    with contextlib.suppress(ValueError):
        if 0 <= float(phrases) <= 1:
            return float(phrases)
    raise errors.InputError(f"--phrases: is {phrases}; give none, words, or a weight from 0 to 1")


class Job(NamedTuple):
    """One image to make: of which case and index, from which text and seed, in the tissue of which other picture (numbers)."""

    case: int
    index: int
    prompt: str
    seed: int
    tissue: int | None


def name_normal(prompt):
    """Return the prompt of a normal picture of the same modality and organ: "US, breast, normal" of "US, breast, benign"."""
    return ", ".join([*prompt.split(", ")[:2], "normal"])


def open_tissue(settings, labelled):
    """Return the pictures of --tissue in which nothing is to be found, of the set's organs, as TrainingImages; None: no flag."""
    if settings.tissue is None:
        return None
    if labelled.hint not in ("hed", "hed+contour"):
        raise errors.InputError(f"--tissue: gives edges, and the hint is {labelled.hint}; leave it out")
    for case in labelled.cases:
        if len(case.prompt.split(", ")) != 3:
            words = f"needs prompts of modality, organ and finding, and that of {case.id} is {case.prompt!r}"
            raise errors.InputError(f"--tissue: {words}; leave it out")
        if case.prompt == name_normal(case.prompt) and case.mask is not None and case.mask.any():
            words = f"is for lesions, and {case.id}, {case.prompt}, is labelled: its organ would be there twice"
            raise errors.InputError(f"--tissue: {words}; leave it out")
    wanted = {name_normal(case.prompt) for case in labelled.cases}
    found = [case for case in read_cases(settings.tissue, layout="radimagenet").cases if case.prompt in wanted]
    for missing in sorted(wanted - {case.prompt for case in found}):
        raise errors.InputError(f"--tissue: {settings.tissue} holds no picture of {missing}; leave the flag out")
    return TrainingImages(found, labelled.size, labelled.hed_size)


def plan(cases, settings, tissue=None):
    """List the Job of every image of a fold. tissue: of `open_tissue`."""
    deviations, weight, jobs = read_compat(settings.compat, "emit.generate"), read_weight(settings.phrases), []
    normal = {}  # {prompt: places in the tissue's cases}
    for place, other in enumerate(tissue.cases if tissue is not None else ()):
        normal.setdefault(other.prompt, []).append(place)
    for number, case in enumerate(cases):
        places = normal.get(name_normal(case.prompt), [])
        for index in range(settings.n):
            prompt, phrase = case.prompt, draw_phrase(generator(settings.seed, case.id, index, "phrase"))
            if "gray_sketch" in deviations:
                prompt = gray_sketch(prompt, phrase)
            elif settings.phrases != "none":
                prompt = add_phrase(prompt, phrase, weight)
            source = () if "one_seed" in deviations else (case.id,)
            draw = torch.randint(max(1, len(places)), (), generator=generator(settings.seed, case.id, index, "tissue"))
            place = places[draw] if places else None
            jobs.append(Job(number, index, prompt, seed_from(settings.seed, *source, index), place))
    return jobs


def look_at(images, model, hed, labelled, settings):
    """Return a Memo: numbers of B images -> (B, 4, S, S): edges, texture, 1 outside the picture, mask.

    Texture: what the autoencoder loses of the picture, x - D(E(x)): noise, mostly.
    """

    def look(numbers):
        batch = images.batch(numbers)
        texture = torch.zeros_like(batch.image)
        if settings.texture:
            colour = batch.image.expand(-1, 3, -1, -1).to(next(model.parameters()).device)
            texture = settings.texture * (batch.image - to_grey(model.vae.decode(model.vae.encode(colour).mode())).cpu())
        frame, edges = fit(batch.view, labelled.size, LINEAR, 0.0).isnan(), find_edges(hed, batch.view, size=labelled.size)
        return torch.cat([edges, texture, frame, batch.mask[:, None]], dim=1)

    return Memo(look)


def make_conditions(own, other, cases, jobs, labelled, settings):
    """Return, for B jobs, hints (B, 3, S, S), masks (B, S, S), frames (B, S, S), true outside the picture, texture (B, 1, S, S).

    own, other: of `look_at`, for the cases and for the tissue (None: their own).
    """
    edges, rest = own([job.case for job in jobs]).split([1, 3], dim=1)  # (B, 4, S, S) -> edges; texture, frame, mask
    if settings.vary:
        draws = [generator(settings.seed, cases[job.case].id, job.index, "shape") for job in jobs]
        edges, rest = bend(edges, rest, draws, settings.vary)  # nearest keeps noise as it is
    planes, frames, masks = torch.cat([edges, rest[:, :1]], dim=1), rest[:, 1] > 0, rest[:, 2].long()
    if other is not None:
        tissue = other([job.tissue for job in jobs])  # (B, 4, S, S)
        frames = tissue[:, 2] > 0
        planes, masks = transplant(planes, masks, tissue[:, :2], frames)
    return make_hint(labelled.hint, masks, planes[:, :1], len(labelled.classes)), masks, frames, planes[:, 1:]


def generate_fold(model, hed, cases, labelled, settings, weights, folder, tissue=None):
    """Make every image of one fold that is not there whole; each line of the manifest is written after its files."""
    manifest, pictures = folder / "manifest.jsonl", TrainingImages(cases, labelled.size, labelled.hed_size)
    place = {case.id: number for number, case in enumerate(cases)}
    whole = (line for line in read_manifest(folder) if line["case"] in place and is_whole(folder, line))
    lines = {(line["case"], line["index"]): line for line in whole}
    write_lines(manifest, lines.values())
    sampling = Sampling.read(settings)
    reading = {name: getattr(labelled.about, name) for name in ("layout", "window", "channel", "axis", "labels")}
    shared = {name: getattr(labelled, name) for name in ("size", "hint", "hed_size", "classes")} | {"reading": reading}
    shared |= {"sampling": asdict(sampling), "negative": settings.negative, "precision": settings.precision}
    shared |= {"weights": weights, "compat": read_compat(settings.compat, "emit.generate"), "synthetic": True}
    shared |= {"vary": settings.vary, "texture": settings.texture, "run_seed": settings.seed}
    sources = {path: sha256(path) for path in {case.path for case in cases}}
    jobs = plan(cases, settings, tissue)
    chunks = [jobs[start : start + settings.batch] for start in range(0, len(jobs), settings.batch)]
    chunks = [chunk for chunk in chunks if any((cases[job.case].id, job.index) not in lines for job in chunk)]
    autocast = torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    own, other = (images and look_at(images, model, hed, labelled, settings) for images in (pictures, tissue))
    with open(manifest, "a", buffering=1) as log, autocast, tqdm(chunks, folder.name, unit="batch") as bar:
        for chunk in bar:  # whole: a sum's last bits depend on what is computed beside it
            prompts, seeds = [job.prompt for job in chunk], [job.seed for job in chunk]
            hint, masks, frames, texture = make_conditions(own, other, cases, chunk, labelled, settings)
            images = model.generate(prompts, hint, seeds, labelled.size, sampling, settings.negative)
            plain = to_grey(images).cpu()  # (n, 3, S, S) -> (n, 1, S, S)
            grey = (plain + texture).clamp(-1, 1)
            unframed = grey.masked_fill(frames[:, None], math.nan)
            agreement = edge_agreement(find_edges(hed, unframed, labelled.hed_size), hint[:, :1])
            for row, job in enumerate(chunk):
                case, index = cases[job.case], job.index
                if (case.id, index) in lines:
                    continue
                # Of all channels, as a mean of clipped ones is not clipped, and of their mean, which can be one grey.
                # A case that is blank itself, such as the first slice of a volume, may have a blank image.
                blank = images[row].isfinite().all() and find_fault(pictures.image([job.case])[0])
                fault = None if blank else find_fault(images[row]) or find_fault(plain[row])
                if fault:
                    words = "look at --guidance, --strength, --precision and the weights, and choose another folder"
                    raise errors.InputError(f"{folder}: image {index} of case {case.id} {fault}; {words}")
                name = f"{case.id.replace('/', '_')}_{index:03d}.png"
                files = to_bytes(grey[row, 0]), masks[row].to(torch.uint8).numpy(), to_bytes(2 * hint[row, 0] - 1)
                line = {"file": name, "case": case.id, "index": index, "prompt": job.prompt, "seed": job.seed, **shared}
                if tissue is not None:
                    line |= {"tissue": tissue.cases[job.tissue].id, "tissue_source": sha256(tissue.cases[job.tissue].path)}
                line |= {"sha256": save_pictures(folder, name, *files), "source": sources[case.path]}
                if labelled.hint in OF_EDGES:
                    line["edge_agreement"] = round(agreement[row].item(), 4)
                lines[case.id, index] = line
                log.write(json.dumps(line) + "\n")
            if chunk is chunks[0]:
                work = f"{folder.name}: {len(chunks)} batches of {len(chunk)} images in {settings.steps} denoising steps"
                forecast(work, images.device, settings.precision, "batch", bar.format_dict["elapsed"], len(chunks))
    write_lines(manifest, sorted(lines.values(), key=lambda line: (place[line["case"]], line["index"])))
    agreements = [line["edge_agreement"] for line in lines.values() if "edge_agreement" in line]
    words = f", edge agreement (F1 within 1 pixel) {np.mean(agreements):.3f} +- {np.std(agreements):.3f}" if agreements else ""
    print(f"{folder}: {len(lines)} images{words}")


def main():
    """Generate every fold that is asked for, once for each value of a sweep."""
    settings = parse(Settings)
    settings = replace(settings, spacing=settings.spacing or SAMPLERS[settings.method].spacing)
    read_compat(settings.compat, "emit.generate"), read_weight(settings.phrases)  # refused before anything is read
    runs = expand_sweep(settings, ("guidance", "strength"))
    if read_description(settings.finetuned / DATASET)[1]["hint"] is None:
        raise errors.InputError(f"{settings.finetuned / DATASET}: is not of stage 2; give its run folder")
    labelled = open_set(settings.finetuned, settings.data)
    folds, tissue = choose_folds(settings.fold, labelled.splits), open_tissue(settings, labelled)
    device = distributed.start(settings.device, alone=True)
    hed, hed_header = load_hed(settings.hed)
    files = {f"fold{fold}": settings.finetuned / f"fold{fold}" / "controlnet.safetensors" for fold in folds}
    found = [checkpoints.read(controlnet) for controlnet in files.values()]  # all can be, before anything is written
    prediction = found[0].prediction  # one for all folds: they come from one run
    for folder in [run.out / name for run in runs.values() for name in files]:
        if not settings.resume and read_manifest(folder):
            raise errors.InputError(f"{folder}: already holds images; go on with --resume or choose another folder")
    hashes = [content_hash(case.image) for case in (tissue.cases if tissue else ())]
    names = [*labelled.names, *map(str, hashes)]
    for run in runs.values():
        with claim(run.out, wait=True):
            save_config(run.out, run, {"model": settings.model, "hed": settings.hed, **files}, labelled.about.data, names)
            write_set(run.out, labelled)

    def fill(fold):
        name = f"fold{fold}"
        with contextlib.ExitStack() as held:
            for run in runs.values():
                held.enter_context(claim(run.out / name))
            model, headers = EmitDiff.load(settings.model, files[name], prediction=prediction)
            model.to(device).requires_grad_(False), hed.to(device)
            paths = {"model": settings.model, "controlnet": files[name], "hed": settings.hed}
            ancestry = join(map(open_ledger, paths.values(), [*headers, hed_header]))
            weights, cases = {part: sha256(path) for part, path in paths.items()}, labelled.training(fold)
            if tissue is not None:
                ancestry = ancestry.add("tissue", np.array(hashes, np.uint64))
            for run in runs.values():
                with claim(run.out, wait=True):
                    ancestry.write(run.out)
                write_json(run.out / name / "ledger.json", ancestry.header)
                generate_fold(model, hed, cases, labelled, run, weights, run.out / name, tissue)

    share(folds, fill)


if __name__ == "__main__":
    errors.run(main)
