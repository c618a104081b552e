"""Between stages 2 and 3: n labelled images for each training case of a fold, from pure noise and that case's edge.

    python -m emit.generate --model MODEL --hed HED --finetuned RUN --out FOLDER

The labelled set, its splits and the hint are those of the fine-tuning. Writes the folders of `emit.generated`.
An image depends on (seed, case, index) and its settings alone, not on the order or a restart; with another --batch
or --n the last bits of its sums differ, which may turn a rounding by one grey level.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from emit import checkpoints, errors
from emit.compat import DEVIATIONS, read_compat
from emit.data.cache import TrainingImages
from emit.data.edges import edge_agreement, make_hint
from emit.data.prompts import add_phrase, draw_phrase, gray_sketch
from emit.dataset import DATASET, check_size, choose_folds, open_set, read_description, write_set
from emit.diffusion.samplers import SAMPLERS
from emit.files import sha256, write_json
from emit.generated import find_fault, is_whole, read_manifest, save_pictures, to_bytes
from emit.ledger import join, open_ledger
from emit.model import EmitDiff, Sampling, find_edges, load_hed, to_grey
from emit.seeds import generator, seed_from
from emit.training import distributed
from emit.training.loop import write_lines
from emit.training.settings import Limited, parse, save_config, setting, vary

OF_EDGES = ("hed+contour", "hed", "contour")  # hints whose agreement with an image's edges means something


@dataclass(frozen=True, kw_only=True)
class Settings(Limited):
    """EMIT-Diff's generator: a fine-tuned ControlNet per fold in, labelled images per training case out."""

    model: Path = setting(source="[choice] stage 1's", help="model.safetensors of stage 1, or Stable Diffusion")
    finetuned: Path = setting(source="[choice] stage 2's", help="run folder of stage 2, with fold<k>/controlnet.safetensors")
    hed: Path = setting(source="[choice] stage 1's", help="HED weights")
    out: Path = setting(source="[choice] your folder", help="the output folder, new or with --resume", may_change=True)
    data: Path | None = setting(
        None, "[choice] where stage 2 read it", help="the labelled images, if they were moved", may_change=True
    )
    fold: str = setting("all", "[paper] one model per fold", help="all, or one fold number", may_change=True)
    n: int = setting(3, "[choice] seconds; [authors' code]: 50", paper=50, help="images per training case", may_change=True, low=1)
    method: Literal["ddim", "ddpm", "dpmpp_2m", "plms", "euler", "euler_ancestral"] = setting(
        "ddim", "[authors' code]", help="sampler"
    )
    steps: int = setting(12, "[choice] seconds; [authors' code]: 20", paper=20, help="denoising steps", low=1, high=1000)
    eta: float = setting(0.0, "[authors' code]", help="DDIM's noise, 0 to 1", low=0, high=1)
    spacing: Literal["trailing", "leading", "linspace"] | None = setting(
        None, "[choice] trailing, from the noisiest t; [SD 1.5] plms: leading, euler: linspace", help="kept timesteps"
    )
    guidance: float = setting(2.0, "[choice] see docs/paper.md; [authors' code]: 9", paper=9.0, help="guidance weight")
    guided: Literal["text", "text+hint"] = setting(
        "text+hint", "[choice] lesions follow their mask; [authors' code]: text", paper="text", help="what guidance drives"
    )
    strength: float = setting(1.0, "[authors' code]", help="control strength")
    guess_mode: Literal["original", "diffusers"] | None = setting(None, "[authors' code]", help="falling control scales")
    phrases: str = setting(
        "none", "[choice] only models that know words", paper="words",
        help="appearance phrases: none, words (Fig. 1), or w: the text states (1 - w) prompt + w phrase",
    )  # fmt: skip
    negative: str = setting("", "[choice] no natural-image words", help="text of the unconditional half")
    compat: tuple[str, ...] = setting(
        (), "[authors' code]", help="diffboost, or diffboost:" + ",".join(DEVIATIONS["emit.generate"])
    )
    sweep: tuple[str, ...] = setting(
        (), "[choice] none", help="guidance=V,V,... or strength=V,V,...: one set of images in --out for each value"
    )
    seed: int = setting(0, "[choice] any number", help="seed of the draws")
    batch: int = setting(32, "[choice] memory", paper=8, help="images at a time", may_change=True, low=1)
    precision: Literal["float32", "bf16"] = setting("float32", "[authors' code]", help="of the forward passes")
    device: str = setting("auto", "[choice] a GPU if there is one", help="auto, cpu, cuda, cuda:1 or mps", may_change=True)
    resume: bool = setting(False, "[choice] explicit", help="go on with the images in --out", may_change=True)

    @property
    def phrase_weight(self):
        """The weight of the phrase's text states, None where it is words of the prompt."""
        if self.phrases in ("none", "words"):
            return None
        try:
            weight = float(self.phrases)
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= 1:
            raise errors.InputError(f"--phrases: is {self.phrases}; give none, words, or a weight from 0 to 1")
        return weight


def plan(pictures, settings, deviations):
    """List (case number, sample index, prompt, seed) for every image of a fold."""
    jobs = []
    for number, case in enumerate(pictures.cases):
        for index in range(settings.n):
            phrase = draw_phrase(generator(settings.seed, case.id, index, "phrase"))
            prompt = case.prompt if settings.phrases == "none" else add_phrase(case.prompt, phrase, settings.phrase_weight)
            if "gray_sketch" in deviations:
                prompt = gray_sketch(case.prompt, phrase)
            source = () if "one_seed" in deviations else (case.id,)
            jobs.append((number, index, prompt, seed_from(settings.seed, *source, index)))
    return jobs


def generate_fold(model, hed, cases, labelled, settings, deviations, folder, weights):
    """Make every image of one fold that is not there whole; each line of the manifest is written after its files."""
    manifest, pictures = folder / "manifest.jsonl", TrainingImages(cases, labelled.size)
    lines = {(line["case"], line["index"]): line for line in read_manifest(folder) if is_whole(folder, line)}
    write_lines(manifest, lines.values())
    sampling = Sampling(**{name: getattr(settings, name) for name in Sampling.__dataclass_fields__})
    reading = {name: getattr(labelled.about, name) for name in ("layout", "window", "channel", "axis", "labels")}
    shared = {"hint": labelled.hint, "size": labelled.size, "negative": settings.negative, "sampling": asdict(sampling)}
    shared |= {"precision": settings.precision, "weights": weights, "classes": labelled.classes, "synthetic": True}
    shared |= {"compat": deviations, "reading": reading}
    sources = {path: sha256(path) for path in {case.path for case in cases}}
    jobs, device = plan(pictures, settings, deviations), next(model.unet.parameters()).device
    chunks = [jobs[start : start + settings.batch] for start in range(0, len(jobs), settings.batch)]
    chunks = [chunk for chunk in chunks if any((cases[job[0]].id, job[1]) not in lines for job in chunk)]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    bar = tqdm(total=sum(map(len, chunks)), desc=folder.name, unit="image")
    with open(manifest, "a") as log, autocast, bar:
        for chunk in chunks:  # always whole: the last bits of a sum depend on what is computed beside it
            numbers, indices, prompts, seeds = zip(*chunk, strict=True)
            real, masks = pictures.read(numbers)
            hint = make_hint(labelled.hint, masks, find_edges(hed, real), len(labelled.classes))
            images = model.generate(list(prompts), hint, seeds, labelled.size, sampling, settings.negative)
            grey = to_grey(images)  # (n, 3, S, S) -> (n, 1, S, S)
            agreement = edge_agreement(find_edges(hed, grey.cpu()), hint[:, :1])
            for row, (number, index) in enumerate(zip(numbers, indices, strict=True)):
                case = cases[number]
                if (case.id, index) in lines:
                    continue
                # Of all channels, as a mean of clipped ones is not clipped, and of their mean, which can be one grey.
                # A case that is blank itself, such as the first slice of a volume, may have a blank image.
                blank = images[row].isfinite().all() and find_fault(real[row])
                fault = None if blank else find_fault(images[row]) or find_fault(grey[row])
                if fault:
                    words = "look at --guidance, --strength, --precision and the weights, and choose another folder"
                    raise errors.InputError(f"{folder}: image {index} of case {case.id} {fault}; {words}")
                name = f"{case.id.replace('/', '_')}_{index:03d}.png"
                files = to_bytes(grey[row, 0]), masks[row].to(torch.uint8).numpy(), to_bytes(2 * hint[row, 0] - 1)
                line = {"file": name, "case": case.id, "index": index, "prompt": prompts[row], "seed": seeds[row]}
                line |= {"sha256": save_pictures(folder, name, *files), "source": sources[case.path], **shared}
                if labelled.hint in OF_EDGES:
                    line["edge_agreement"] = round(agreement[row].item(), 4)
                lines[case.id, index] = line
                log.write(json.dumps(line) + "\n")
                log.flush()
            bar.update(len(numbers))
    place = {case.id: number for number, case in enumerate(cases)}
    ordered = sorted(lines.values(), key=lambda line: (place[line["case"]], line["index"]))
    write_lines(manifest, ordered)
    tell_fold(folder, ordered)


def tell_fold(folder, lines):
    """Print how many images there are and how well they follow their edges."""
    agreements = [line["edge_agreement"] for line in lines if "edge_agreement" in line]
    words = f", edge agreement (F1 within 1 pixel) {np.mean(agreements):.3f} +- {np.std(agreements):.3f}" if agreements else ""
    print(f"{folder}: {len(lines)} images{words}")


def main():
    """Generate every fold that is asked for, once for each value of a sweep."""
    settings = parse(Settings)
    settings = replace(settings, spacing=settings.spacing or SAMPLERS[settings.method].spacing)
    if settings.eta and settings.method != "ddim":
        raise errors.InputError(f"--eta: is DDIM's, and --method is {settings.method}; leave one of them out")
    if settings.spacing == "leading" and settings.steps == 1000:
        raise errors.InputError("--spacing: leading takes at most 999 steps; give fewer, or trailing")
    distributed.refuse_several("emit.generate")
    deviations = read_compat(settings.compat, "emit.generate")
    runs = vary(settings, ("guidance", "strength"))
    settings.phrase_weight  # refused before anything is read  # noqa: B018
    if read_description(settings.finetuned / DATASET)[1]["hint"] is None:
        raise errors.InputError(f"{settings.finetuned / DATASET}: is not of stage 2; give its run folder")
    labelled = open_set(settings.finetuned, settings.data)
    folds = choose_folds(settings.fold, labelled.splits)
    device = distributed.start(settings.device)
    hed, hed_header = load_hed(settings.hed)
    files = {f"fold{fold}": settings.finetuned / f"fold{fold}" / "controlnet.safetensors" for fold in folds}
    found = [checkpoints.read(controlnet) for controlnet in files.values()]  # all can be, before anything is written
    prediction = None if found[0].prediction == "unknown" else found[0].prediction
    model, headers = EmitDiff.load(settings.model, files[f"fold{folds[0]}"], prediction=prediction)
    check_size(labelled.size, model.sizes)
    for folder in [run.out / f"fold{fold}" for run in runs.values() for fold in folds]:
        if not settings.resume and read_manifest(folder):
            raise errors.InputError(f"{folder}: already holds images; go on with --resume or choose another folder")
    for run in runs.values():
        save_config(run.out, run, {"model": settings.model, "hed": settings.hed, **files}, labelled.about.data, labelled.names)
        write_set(run.out, labelled)
    shared = {"model": sha256(settings.model), "hed": sha256(settings.hed)}
    for fold in folds:
        controlnet = files[f"fold{fold}"]
        if fold != folds[0]:
            model, headers = EmitDiff.load(settings.model, controlnet, prediction=prediction)
        model.to(device).requires_grad_(False), hed.to(device)
        paths = (settings.model, controlnet, settings.hed)
        ancestry = join(map(open_ledger, paths, (*headers, hed_header)))
        weights = {**shared, "controlnet": sha256(controlnet)}
        training = labelled.training(fold)
        for run in runs.values():
            folder = run.out / f"fold{fold}"
            ancestry.write(run.out)
            write_json(folder / "ledger.json", ancestry.header)
            generate_fold(model, hed, training, labelled, run, deviations, folder, weights)


if __name__ == "__main__":
    errors.run(main)
